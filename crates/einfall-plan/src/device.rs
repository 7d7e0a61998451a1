//! What a device is to the facade: numbers for the planner, and something that runs plans.

use einfall_tensor::{DType, Layout, View, ViewMut};

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

    /// Checks every table value against its axis, unless the plan leaves bad ones out.
    ///
    /// # Errors
    /// [`RunError::TableValue`].
    fn check_tables(&self, plan: &Plan, arguments: &[View<'_>]) -> Result<(), RunError>;
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

fn same(name: impl Fn() -> String, found: (DType, &Layout), planned: (DType, &Layout)) -> Result<(), RunError> {
    if found == planned {
        return Ok(());
    }
    let text = |(dtype, layout): (DType, &Layout)| {
        format!("{dtype} {:?} with strides {:?}", layout.shape.as_slice(), layout.strides.as_slice())
    };
    Err(RunError::Mismatch { argument: name(), found: text(found), expected: text(planned) })
}
