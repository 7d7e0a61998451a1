//! The one error of the facade: what each stage of the pipeline may say.

use einfall_cpu::device::CpuDeviceError;
use einfall_equation::ParseError;
use einfall_plan::{BindError, PlanError, RunError};
use einfall_tensor::TensorError;

/// Why a contraction was not done. `Display` names operand, label and sizes, and points at the equation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The equation is malformed.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The equation does not fit its arguments.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// No plan keeps the limits.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A table's value is outside its axis, or a prepared call got other arguments.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A shape, a stride or a buffer was refused.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A variable of the environment makes no sense.
    #[error("{0}")]
    Environment(String),
    /// A device could not be made.
    #[error(transparent)]
    Device(#[from] CpuDeviceError),
}
