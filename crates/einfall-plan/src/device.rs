//! What a device is to the facade: numbers for the planner, and something that runs plans.

use einfall_tensor::{View, ViewMut};

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
    fn run(&self, plan: &Plan, arguments: &[View<'_>], out: &mut ViewMut<'_>) -> Result<(), RunError>;

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
        "table argument {argument} holds {value} at {position:?}, outside the axis of length {len}\nhint: `bounds=\"skip\"` leaves such terms out"
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
    /// The system has no memory for the workspace.
    #[error("out of memory: a workspace of {bytes} bytes could not be allocated")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
}
