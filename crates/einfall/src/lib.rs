//! Einsum at the speed of the hardware, whose axes can be looked up through a table or slid over a window, so that what
//! is only looked at is never copied.
//!
//! ```
//! use einfall::{View, einsum};
//!
//! let queries = [1.0f32, 0.0, 0.0, 1.0]; // 2 queries of 2 features
//! let keys = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]; // 3 keys
//! let table = [2i64, 0, 1, 1]; // each query looks at 2 keys
//! let scores = einsum(
//!     "qd,[qk]d->qk",
//!     &[
//!         View::from_slice(&queries, &[2, 2])?,
//!         View::from_slice(&keys, &[3, 2])?,
//!         View::from_slice(&table, &[2, 2])?,
//!     ],
//! )?;
//! assert_eq!(scores.as_slice::<f32>()?, [5.0, 1.0, 4.0, 4.0]);
//! # Ok::<(), einfall::Error>(())
//! ```
//!
//! A table is the argument right after the operand in which its bracket stands. [`Einsum`] is the same call with
//! options; [`Einsum::plan`] gives a [`Prepared`] call to run many times, and its `Display` explains what it does.
//!
//! Tools that explain calls without data find here what they need of the stages behind: [`Argument`] for
//! [`Einsum::plan_for`], the [`Axis`]es of an [`Equation`] and its [`Place`]s, the [`Problem`] and the [`Step`]s of a
//! [`Plan`], and [`measure_machine`].

mod attend;
mod call;
mod device;
mod error;

pub use attend::{Attend, PreparedAttention, attention};
pub use call::{Einsum, Prepared, einsum, einsum_into};
pub use device::{default_device, fresh_device, gpu, machine_cache_path, saved_machine};
pub use einfall_cpu::device::{CpuDevice, CpuDeviceError};
pub use einfall_cpu::isa::Isa;
pub use einfall_cpu::measure::{Quantity, measure_machine};
pub use einfall_cuda::compile::look_in as look_for_nvrtc;
pub use einfall_cuda::{AbsentGpu, AttentionPointers, AttentionProgram, CudaDevice, CudaError, Kept, Program, example_machine as example_gpu};
pub use einfall_equation::{
    Axis, Diagnostic, Equation, GradientError, Label, ParseError, ParseErrorKind, Place, Span, gradient,
};
pub use einfall_plan::{
    Argument, Attention, AttentionError, AttentionPlan, AttentionRole, BindError, Bounds, Bytes, Candidate,
    Contraction, Cost, Device, Estimate, Flops, KernelSpec, LabelId, Machine, Order, Pass, Plan, PlanError, Problem,
    RunError, Saved, Seconds, Slot, Step, Term, Way,
};
pub use einfall_tensor::{
    Bool8, DType, Element, Layout, Tensor, TensorError, View, ViewMut, half, memory, num_complex,
};
pub use error::Error;

/// Compiles and runs the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
