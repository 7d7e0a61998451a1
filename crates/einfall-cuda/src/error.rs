//! What can go wrong with a GPU.

use einfall_plan::RunError;

/// Why the GPU could not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// A library of CUDA is not there.
    #[error("{what} could not be loaded\nhint: {hint}")]
    Missing {
        /// Which library.
        what: &'static str,
        /// Where it comes from.
        hint: &'static str,
    },
    /// There is no such device.
    #[error("there is no CUDA device {ordinal}, but {count} of them")]
    Ordinal {
        /// The number asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// A call of the driver failed.
    #[error("{call} failed: {reason}")]
    Driver {
        /// The function.
        call: &'static str,
        /// What the driver says.
        reason: String,
    },
    /// An address is not what the program was prepared for.
    #[error("an array is not aligned as it was when the call was prepared, at least to its elements")]
    Alignment,
    /// NVRTC refused a kernel: a defect of this library.
    #[error("kernel `{kernel}` does not compile:\n{log}")]
    Compile {
        /// The kernel.
        kernel: String,
        /// The compiler's words.
        log: String,
    },
}

impl From<CudaError> for RunError {
    fn from(error: CudaError) -> Self {
        RunError::Device { reason: error.to_string() }
    }
}
