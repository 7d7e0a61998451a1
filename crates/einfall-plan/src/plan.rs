//! The plan: the steps of a problem in order, with everything that was decided and why.
//!
//! *In*: a [`Problem`], the [`Machine`], the kernels of a device and [`PlanOptions`]. *Out*: an immutable, printable
//! [`Plan`] that a device runs. *Callers*: the facade makes plans, devices run them. Pure: no data, no clock, no I/O.

mod build;
mod memory;
mod report;
mod slice;
mod verify;

use einfall_tensor::DType;

pub(crate) use report::write_candidates;
pub use report::{Bytes, Flops, Seconds};

use crate::bind::plural;
use crate::contraction::Contraction;
use crate::kernel::Cost;
use crate::kernel::{Candidate, Estimate, KernelSpec};
use crate::machine::Machine;
use crate::path::Order;
use crate::problem::{LabelId, Problem, Term};

/// Choices of the caller that a plan depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PlanOptions {
    /// How to order more than two operands.
    pub order: Order,
    /// Most elements of the intermediate results that live at the same time, together; labels are sliced until it holds.
    /// Parts of the output that slices add up, conversions of operands and a kernel's scratch memory are not counted.
    pub memory_limit: Option<usize>,
    /// A kernel to prefer wherever it can run, for tests and experiments.
    pub kernel: Option<String>,
}

/// Where a step reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// An operand of the call.
    Operand(usize),
    /// An intermediate result.
    Temp(usize),
    /// The output of the call.
    Output,
}

/// An intermediate result, in the arena.
#[derive(Clone, Debug, PartialEq)]
pub struct Temp {
    /// Element type.
    pub dtype: DType,
    /// Number of elements, row-major.
    pub len: usize,
    /// First byte in the arena; results that do not live at the same time share bytes.
    pub offset_bytes: usize,
}

/// One contraction of at most two inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What it reads, and how labels address it: one or two.
    pub inputs: Vec<(Slot, Term)>,
    /// What it writes.
    pub output: (Slot, Term),
    /// Labels of its inputs and its output, `bik,bkj->bij`.
    pub text: String,
    /// The normal form.
    pub contraction: Contraction,
    /// What every kernel answered.
    pub candidates: Vec<Candidate>,
    /// Position of the chosen kernel in `candidates`.
    pub chosen: usize,
    /// Why the step is there, when the equation does not show it: a conversion, a sum taken early.
    pub why: Option<&'static str>,
}

impl Step {
    /// The chosen kernel's name.
    pub fn kernel(&self) -> &'static str {
        self.candidates[self.chosen].kernel
    }

    /// The chosen kernel's offer.
    pub fn estimate(&self) -> &Estimate {
        self.candidates[self.chosen].answer.as_ref().expect("the chosen kernel made an offer")
    }
}

/// How to run a problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The problem.
    pub problem: Problem,
    /// The steps in order.
    pub steps: Vec<Step>,
    /// What is done once after all slices: the result is converted and stored.
    pub epilogue: Option<Step>,
    /// Intermediate results.
    pub temps: Vec<Temp>,
    /// Labels that are sliced: the steps run once for each of their values.
    pub slices: Vec<LabelId>,
    /// With a sliced label that is summed over: the temp that holds one slice's result and the one that adds them up.
    pub slice_sum: Option<(usize, usize)>,
    /// How the order was found.
    pub method: &'static str,
    /// Bytes of all intermediate results together, as laid out in the arena.
    pub arena_bytes: usize,
    /// Bytes beyond inputs and output that a run may take at most.
    pub workspace_bytes: usize,
    /// The machine's name and number of threads, for print.
    pub machine: Machine,
}

/// Why a problem has no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A given path does not fit the operands.
    #[error("{0}")]
    Path(String),
    /// No slicing keeps intermediate results within the limit.
    #[error(
        "intermediate results need {}, more than the memory limit of {limit}\nhint: the smallest that slicing reaches is {needed}; raise `memory_limit`",
        plural(*needed, "element")
    )]
    MemoryLimit {
        /// Least elements reached.
        needed: u128,
        /// The limit.
        limit: usize,
    },
    /// Slicing keeps the limit, but in more slices than can be counted.
    #[error("keeping the memory limit of {limit} takes more slices than can be counted\nhint: raise `memory_limit`")]
    TooManySlices {
        /// The limit.
        limit: usize,
    },
    /// Intermediate results cannot be addressed.
    #[error(
        "intermediate results of {elements} elements are larger than can be addressed\nhint: set `memory_limit` so that the contraction is sliced"
    )]
    TooLarge {
        /// Elements needed.
        elements: u128,
    },
    /// The kernel to prefer is none of the device's.
    #[error("there is no kernel `{name}`\nhint: there {}", list(known))]
    UnknownKernel {
        /// The name that was given.
        name: String,
        /// The kernels of the device.
        known: Vec<&'static str>,
    },
    /// No kernel of the device runs a step.
    #[error("no kernel can run the step {step}")]
    NoKernel {
        /// The step.
        step: String,
    },
}

fn list(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.as_slice() {
        [] => "are none".into(),
        [only] => format!("is {only}"),
        [first @ .., last] => format!("are {} and {last}", first.join(", ")),
    }
}

/// Refuses to prefer a kernel that is not there.
pub(crate) fn check_known(
    preferred: Option<&str>,
    known: impl Iterator<Item = &'static str> + Clone,
) -> Result<(), PlanError> {
    match preferred {
        Some(name) if known.clone().all(|kernel| kernel != name) => {
            Err(PlanError::UnknownKernel { name: name.into(), known: known.collect() })
        }
        _ => Ok(()),
    }
}

impl Plan {
    /// Plans a problem.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn new(
        problem: Problem,
        machine: &Machine,
        kernels: &[KernelSpec],
        options: &PlanOptions,
    ) -> Result<Plan, PlanError> {
        check_known(options.kernel.as_deref(), kernels.iter().map(|kernel| kernel.name))?;
        let plan = build::build(problem, machine, kernels, options)?;
        debug_assert_eq!(plan.verify(), Ok(()));
        Ok(plan)
    }

    /// The half type that intermediate results are rounded to, and how many are.
    pub fn rounded(&self) -> Option<(DType, usize)> {
        // A conversion has another type than what it writes, and rounds nothing that was summed.
        let is_rounded = |step: &&Step| {
            let Contraction { dtype, out_dtype, .. } = &step.contraction;
            matches!(step.output.0, Slot::Temp(_))
                && matches!(out_dtype, DType::F16 | DType::BF16)
                && dtype == out_dtype
        };
        let rounded = || self.steps.iter().filter(is_rounded);
        rounded().next().map(|step| (step.contraction.out_dtype, rounded().count()))
    }

    /// Predicted cost of one run, all slices together.
    pub fn cost(&self) -> Cost {
        let slices = self.slice_count();
        let sliced = self.steps.iter().map(|step| (step, slices));
        let steps = sliced.chain(self.epilogue.iter().map(|step| (step, 1.0)));
        steps.fold(Cost { flops: 0.0, bytes: 0.0, seconds: 0.0 }, |sum, (step, times)| {
            let cost = step.estimate().cost;
            Cost {
                flops: sum.flops + cost.flops * times,
                bytes: sum.bytes + cost.bytes * times,
                seconds: sum.seconds + cost.seconds * times,
            }
        })
    }

    /// How often the steps run.
    pub fn slice_count(&self) -> f64 {
        self.slices.iter().map(|&label| self.problem.len(label) as f64).product()
    }
}
