//! The NVIDIA GPU kernels of einfall.
//!
//! *In*: a [`Plan`](einfall_plan::Plan) made with this device's machine and kernels, and pointers to memory of the device
//! or views of the host's. *Out*: numbers. *Callers*: the facade.
//!
//! Nothing of CUDA is needed to build this, nor to plan for it: [`kernel_specs`] and [`Machine`](einfall_plan::Machine)
//! descriptions are plain data, and an [`AbsentGpu`] is a device made of them. Driver and compiler (NVRTC) are loaded when a [`CudaDevice`] is made.
//!
//! * [`ops`] turns a contraction into tasks: source text, grid and parameters. No GPU takes part, so tests can compile
//!   every kernel on any machine.
//! * [`compile`] makes machine code of the text, `modules` keeps it, in memory and on disk.
//! * [`CudaDevice`] binds tasks to pointers and launches them.

#![allow(unsafe_code)] // a binding of the driver

mod absent;
mod attention;
mod blas;
mod check;
pub mod compile;
mod device;
mod driver;
mod error;
mod machine;
mod modules;
pub mod ops;
mod program;
mod text;
mod time;

pub use absent::AbsentGpu;
pub use attention::{AttentionPointers, AttentionProgram};
pub use device::CudaDevice;
pub use error::CudaError;
pub use machine::example as example_machine;
pub use ops::attention::{AttentionLowering, attention_specs};
pub use ops::kernel_specs;
pub use program::{Kept, Program};
pub use text::{Lowering, Memory, Task, Value};
