//! What a device is to the facade: numbers for the planner, and something that runs plans.

use einfall_tensor::{DType, Layout, View, ViewMut};

use crate::attention::{AttentionKernelSpec, AttentionPlan, Pass};
use crate::bind::{Argument, plural, were};
use crate::kernel::KernelSpec;
use crate::machine::Machine;
use crate::plan::Plan;

/// A device that runs plans; plans and devices are shared between threads.
pub trait Device: Send + Sync {
    /// Its sizes and rates.
    fn machine(&self) -> &Machine;

    /// Its kernels, most specific first.
    fn kernels(&self) -> &[KernelSpec];

    /// Runs a plan on arguments in call order and writes all of `out`.
    ///
    /// `out` must not overlap any argument. Under [`Bounds::Error`](crate::Bounds) a table value outside its axis is an
    /// error; unless `out` is thrown away then, call [`Device::check_tables`] first.
    ///
    /// # Errors
    /// [`RunError`].
    ///
    /// # Safety
    /// The plan is what [`Plan::new`] made, from a problem that [`bind`](crate::bind()) made, with the machine and the
    /// kernels of this device, and nothing in it was changed: the device reads and writes where the plan says.
    #[allow(unsafe_code)] // a declaration; the facade keeps the promise
    unsafe fn run(&self, plan: &Plan, arguments: &[View<'_>], out: &mut ViewMut<'_>) -> Result<(), RunError>;

    /// Its kernels of attention, most specific first.
    fn attention_kernels(&self) -> &[AttentionKernelSpec] {
        &[]
    }

    /// Runs the plan of an attention forward, on its arguments in order; writes all of `out`, and of `lse` if it is wanted.
    ///
    /// Neither may overlap an argument. Under [`Bounds::Error`](crate::Bounds) a table value outside its axis is an error,
    /// and `out` has to be thrown away.
    ///
    /// # Errors
    /// [`RunError`].
    ///
    /// # Safety
    /// As [`Device::run`], of [`AttentionPlan::new`] and [`Device::attention_kernels`].
    #[allow(unsafe_code)] // a declaration; the facade keeps the promise
    unsafe fn attend(
        &self,
        plan: &AttentionPlan,
        arguments: &[View<'_>],
        out: &mut ViewMut<'_>,
        lse: Option<&mut ViewMut<'_>>,
    ) -> Result<(), RunError> {
        let _ = (arguments, out, lse);
        Err(no_attention(plan))
    }

    /// Runs the plan of an attention backward; writes all of the gradients that it was planned for.
    ///
    /// # Errors
    /// [`RunError`].
    ///
    /// # Safety
    /// As [`Device::attend`].
    #[allow(unsafe_code)] // a declaration; the facade keeps the promise
    unsafe fn attend_backward(
        &self,
        plan: &AttentionPlan,
        arguments: &[View<'_>],
        saved: &Saved<'_>,
        gradients: &mut [Option<ViewMut<'_>>; 4],
    ) -> Result<(), RunError> {
        let _ = (arguments, saved, gradients);
        Err(no_attention(plan))
    }

    /// Checks every table value against its axis, unless the plan leaves bad ones out.
    ///
    /// # Errors
    /// [`RunError::TableValue`].
    fn check_tables(&self, plan: &Plan, arguments: &[View<'_>]) -> Result<(), RunError>;
}

/// What the backward pass reads beside the arguments, all row-major.
#[derive(Clone, Debug)]
pub struct Saved<'a> {
    /// The output of the forward pass.
    pub out: View<'a>,
    /// Its log-sum-exp.
    pub lse: View<'a>,
    /// The gradient of the output, of its shape and type.
    pub grad_out: View<'a>,
}

fn no_attention(plan: &AttentionPlan) -> RunError {
    RunError::Device { reason: format!("{} has no kernels of attention", plan.machine.name) }
}

/// Why a plan could not be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A table holds a value outside the axis that it looks up.
    #[error(
        "table argument {argument} holds {value} at {position:?}, outside the axis of length {len}\nhint: bounds `skip` leaves such terms out"
    )]
    TableValue {
        /// Which argument of the call the table is.
        argument: usize,
        /// Coordinates in the table.
        position: Vec<usize>,
        /// The value.
        value: i128,
        /// Length of the axis.
        len: usize,
    },
    /// An offset of ragged lists is below the one before it, or beyond the entries.
    #[error(
        "offsets argument {argument} holds {value} at {position:?}, which is not in {least}..={entries}\nhint: list i has the entries offsets[i]..offsets[i + 1], so offsets rise"
    )]
    Offset {
        /// Which argument of the call the offsets are.
        argument: usize,
        /// Coordinates in the offsets.
        position: Vec<usize>,
        /// The value.
        value: i128,
        /// The offset before it.
        least: usize,
        /// Number of entries.
        entries: usize,
    },
    /// A prepared call got more or fewer arguments than it was planned for.
    #[error("the plan was made for {} but {} given", plural(*expected, "argument"), were(*given))]
    ArgumentCount {
        /// How many the plan takes.
        expected: usize,
        /// How many were given.
        given: usize,
    },
    /// An argument is not what the plan was made for.
    #[error("{argument} is {found} but the plan was made for {expected}")]
    Mismatch {
        /// Which argument of the call, or `out`.
        argument: String,
        /// What was given.
        found: String,
        /// What the plan was made for.
        expected: String,
    },
    /// A table was written while the call ran.
    #[error("a table changed while it was being read")]
    Changed,
    /// The device or its driver failed.
    #[error("{reason}")]
    Device {
        /// What was tried, and what it said.
        reason: String,
    },
    /// The system has no memory for the workspace.
    #[error("out of memory: a workspace of {bytes} bytes could not be allocated")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
}

impl Plan {
    /// Whether tables have to be checked before a run, since kernels check what they read: nothing where nothing is summed,
    /// and not what a window of another term leaves out.
    pub fn has_unread_entries(&self) -> bool {
        let problem = &self.problem;
        let mut terms = problem.operands.iter().map(|operand| &operand.term).chain([&problem.output.term]);
        terms.any(|term| !term.windows.is_empty()) || problem.labels.iter().any(|label| label.len == 0)
    }

    /// Whether bad values of tables are errors, in so many arguments.
    ///
    /// # Errors
    /// [`RunError::ArgumentCount`] where they are, and the number is another.
    pub fn refuses_bad_tables(&self, given: usize) -> Result<bool, RunError> {
        let expected = self.problem.arguments.len();
        match self.problem.bounds {
            crate::Bounds::Skip => Ok(false),
            _ if given == expected => Ok(true),
            _ => Err(RunError::ArgumentCount { expected, given }),
        }
    }

    /// Compares what a run is given with what the plan was made for. No data is read.
    ///
    /// # Errors
    /// [`RunError::ArgumentCount`] and [`RunError::Mismatch`].
    pub fn check_arguments(&self, arguments: &[View<'_>], out: &ViewMut<'_>) -> Result<(), RunError> {
        let planned = &self.problem.arguments;
        if arguments.len() != planned.len() {
            return Err(RunError::ArgumentCount { expected: planned.len(), given: arguments.len() });
        }
        for (number, (view, Argument { dtype, layout })) in arguments.iter().zip(planned).enumerate() {
            same(|| format!("argument {number}"), (view.dtype(), view.layout()), (*dtype, layout))?;
        }
        let output = &self.problem.output;
        same(|| "`out`".into(), (out.dtype(), out.layout()), (output.dtype, &output.layout))
    }
}

impl AttentionPlan {
    /// Compares what a forward run is given with what the plan was made for. No data is read.
    ///
    /// # Errors
    /// [`RunError::ArgumentCount`] and [`RunError::Mismatch`].
    pub fn check_forward(
        &self,
        arguments: &[View<'_>],
        out: &ViewMut<'_>,
        lse: Option<&ViewMut<'_>>,
    ) -> Result<(), RunError> {
        self.check_pass(Pass::Forward)?;
        self.check_given(arguments)?;
        let output = &self.problem.output;
        same(|| "`out`".into(), (out.dtype(), out.layout()), (output.dtype, &output.layout))?;
        lse.map_or(Ok(()), |lse| same(|| "`lse`".into(), (lse.dtype(), lse.layout()), self.lse_type()))
    }

    /// Compares what a backward run is given with what the plan was made for. No data is read.
    ///
    /// # Errors
    /// [`RunError::ArgumentCount`] and [`RunError::Mismatch`].
    pub fn check_backward(
        &self,
        arguments: &[View<'_>],
        saved: &Saved<'_>,
        gradients: &[Option<ViewMut<'_>>; 4],
    ) -> Result<(), RunError> {
        self.check_pass(Pass::Backward)?;
        self.check_given(arguments)?;
        let output = (self.problem.output.dtype, &self.problem.output.layout);
        for (name, view) in [("out", &saved.out), ("grad_out", &saved.grad_out)] {
            same(|| format!("`{name}`"), (view.dtype(), view.layout()), output)?;
        }
        same(|| "`lse`".into(), (saved.lse.dtype(), saved.lse.layout()), self.lse_type())?;
        for (operand, (gradient, wanted)) in gradients.iter().zip(self.wanted).enumerate() {
            let name = || format!("the gradient of operand {operand}");
            match (gradient, wanted) {
                (None, false) => {}
                (Some(view), true) => {
                    let argument = &self.problem.arguments[self.problem.operands[operand].argument];
                    let layout = Layout::contiguous(&argument.layout.shape);
                    same(name, (view.dtype(), view.layout()), (argument.dtype, &layout))?;
                }
                (given, _) => {
                    let say = |there: bool| if there { "wanted" } else { "not wanted" }.to_string();
                    let (found, expected) = (say(given.is_some()), say(wanted));
                    return Err(RunError::Mismatch { argument: name(), found, expected });
                }
            }
        }
        Ok(())
    }

    fn lse_type(&self) -> (DType, &Layout) {
        (self.attention.accumulator, &self.lse)
    }

    fn check_pass(&self, pass: Pass) -> Result<(), RunError> {
        if self.pass == pass {
            return Ok(());
        }
        let say = |pass: Pass| format!("{pass:?}").to_lowercase();
        Err(RunError::Mismatch { argument: "the pass".into(), found: say(pass), expected: say(self.pass) })
    }

    fn check_given(&self, arguments: &[View<'_>]) -> Result<(), RunError> {
        if arguments.len() != self.arguments.len() {
            return Err(RunError::ArgumentCount { expected: self.arguments.len(), given: arguments.len() });
        }
        for (number, (view, Argument { dtype, layout })) in arguments.iter().zip(&self.arguments).enumerate() {
            same(|| format!("argument {number}"), (view.dtype(), view.layout()), (*dtype, layout))?;
        }
        Ok(())
    }
}

fn same(name: impl Fn() -> String, found: (DType, &Layout), planned: (DType, &Layout)) -> Result<(), RunError> {
    if found == planned {
        return Ok(());
    }
    let text = |(dtype, layout): (DType, &Layout)| {
        format!("{dtype} {:?} with strides {:?}", layout.shape.as_slice(), layout.strides.as_slice())
    };
    Err(RunError::Mismatch { argument: name(), found: text(found), expected: text(planned) })
}
