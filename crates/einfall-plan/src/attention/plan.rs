//! The plan of an attention: the kernel that runs it, and what the others would have taken.

use einfall_tensor::{Dims, Layout};

pub use crate::kernel::Candidate as AttentionCandidate;

use super::classify::{AttentionError, lse_shape};
use super::{Attention, AttentionRole};
use crate::bind::Argument;
use crate::kernel::{Cost, Estimate, pick};
use crate::machine::Machine;
use crate::plan::{PlanError, check_known};
use crate::problem::Problem;

/// Which way an attention runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pass {
    /// From query, key, value to the output and its log-sum-exp.
    #[default]
    Forward,
    /// From these and the output's gradient to the operands' gradients.
    Backward,
}

/// Lists of different lengths, as the caller describes them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RaggedOptions {
    /// Which argument of the call holds the offsets: the one after those of the equation.
    pub number: usize,
    /// Its type and layout: one more on its last axis than there are lists.
    pub argument: Argument,
    /// The labels of its axes; the last one's lists lie between neighbouring offsets.
    pub labels: Vec<String>,
}

/// Choices of the caller that an attention's plan depends on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttentionOptions {
    /// What scores are multiplied by; by default one over the root of the number of terms of a score.
    pub scale: Option<f64>,
    /// Whether keys at positions above the query's are left out.
    pub causal: bool,
    /// Lists of different lengths.
    pub ragged: Option<RaggedOptions>,
    /// Which way.
    pub pass: Pass,
    /// Backward: which operands' gradients are wanted.
    pub wanted: [bool; 4],
    /// A kernel to prefer wherever it can run, for tests and experiments.
    pub kernel: Option<String>,
}

/// A kernel of attention as the planner sees it.
#[derive(Clone, Copy, Debug)]
pub struct AttentionKernelSpec {
    /// Its noun, unique within a device.
    pub name: &'static str,
    /// An offer, or why it cannot run this attention.
    pub estimate: fn(&Attention, Pass, &Machine) -> Result<Estimate, String>,
}

/// How to run an attention.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionPlan {
    /// The problem, as an einsum of its operands would be bound.
    pub problem: Problem,
    /// Every argument: those of the equation, then the offsets of ragged lists.
    pub arguments: Vec<Argument>,
    /// The normal form.
    pub attention: Attention,
    /// Which way it runs.
    pub pass: Pass,
    /// Backward: which operands' gradients the caller is given. Those of operands without elements have nothing to be
    /// computed, so [`Attention::gradients`] lacks them.
    pub wanted: [bool; 4],
    /// What every kernel answered.
    pub candidates: Vec<AttentionCandidate>,
    /// Position of the chosen kernel in `candidates`.
    pub chosen: usize,
    /// Shape and strides of the log-sum-exp: row-major.
    pub lse: Layout,
    /// The machine that it was planned for.
    pub machine: Machine,
}

impl AttentionPlan {
    /// Plans an attention.
    ///
    /// # Errors
    /// [`AttentionError`], or [`PlanError`] where no kernel runs it, or none has the name that is preferred.
    pub fn new(
        problem: Problem,
        machine: &Machine,
        kernels: &[AttentionKernelSpec],
        options: &AttentionOptions,
    ) -> Result<AttentionPlan, AttentionPlanError> {
        check_known(options.kernel.as_deref(), kernels.iter().map(|kernel| kernel.name))?;
        let attention = Attention::new(&problem, options)?;
        let candidates: Vec<AttentionCandidate> = kernels
            .iter()
            .map(|kernel| AttentionCandidate {
                kernel: kernel.name,
                answer: (kernel.estimate)(&attention, options.pass, machine),
            })
            .collect();
        let Some(chosen) = pick(&candidates, options.kernel.as_deref()) else {
            return Err(PlanError::NoKernel { step: problem.equation.to_string() }.into());
        };
        let mut arguments = problem.arguments.clone();
        arguments.extend(options.ragged.iter().map(|ragged| ragged.argument.clone()));
        let lse = Layout::contiguous(&lse_shape(&problem)?);
        let backward = options.pass == Pass::Backward;
        let wanted = std::array::from_fn(|at| backward && options.wanted[at] && at < problem.operands.len());
        Ok(AttentionPlan {
            wanted,
            problem,
            arguments,
            attention,
            pass: options.pass,
            candidates,
            chosen,
            lse,
            machine: machine.clone(),
        })
    }

    /// The chosen kernel's name.
    pub fn kernel(&self) -> &'static str {
        self.candidates[self.chosen].kernel
    }

    /// The chosen kernel's offer.
    pub fn estimate(&self) -> &Estimate {
        self.candidates[self.chosen].answer.as_ref().expect("the chosen kernel made an offer")
    }

    /// Predicted cost.
    pub fn cost(&self) -> Cost {
        self.estimate().cost
    }

    /// Bytes beyond inputs and outputs that a run may take at most.
    pub fn workspace_bytes(&self) -> usize {
        self.estimate().workspace_bytes
    }

    /// Shape of the output.
    pub fn output_shape(&self) -> Dims {
        self.problem.output_shape()
    }
}

/// Why an attention has no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttentionPlanError {
    /// The problem is no attention.
    #[error(transparent)]
    Attention(#[from] AttentionError),
    /// No kernel runs it.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl AttentionRole {
    /// All roles, in the order of loops.
    pub const ALL: [AttentionRole; 5] =
        [AttentionRole::List, AttentionRole::Head, AttentionRole::Key, AttentionRole::Depth, AttentionRole::Width];
}
