//! From an equation and shapes to a printable plan.
//!
//! *In*: an [`Equation`](einfall_equation::Equation), shapes, strides and element types, a [`Machine`] and the
//! [`KernelSpec`]s of a device. *Out*: a [`Problem`] ([`bind()`]), then a [`Plan`] ([`Plan::new`]). *Callers*: the facade;
//! devices implement [`Device`]. Pure: no device, no clock, no global, no I/O.
//!
//! ```
//! use einfall_equation::Equation;
//! use einfall_plan::{Argument, BindOptions, bind};
//! use einfall_tensor::{DType, Layout};
//!
//! let equation = Equation::parse("bik,bkj->bij")?;
//! let matrix = |shape: &[usize]| Argument { dtype: DType::F32, layout: Layout::contiguous(shape) };
//! let problem = bind(&equation, &[matrix(&[2, 3, 4]), matrix(&[2, 4, 5])], &BindOptions::default())?;
//! assert_eq!(problem.output_shape().as_slice(), [2, 3, 5]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attention;
mod bind;
mod contraction;
mod device;
mod kernel;
mod machine;
mod path;
pub mod pattern;
mod plan;
mod problem;

pub use attention::{
    Attention, AttentionCandidate, AttentionError, AttentionKernelSpec, AttentionLoop, AttentionOptions, AttentionPlan,
    AttentionPlanError, AttentionRole, Gradients, Limit, Pass, Ragged, RaggedOptions, Scale,
};
pub use bind::{Argument, BindError, BindOptions, Sizes, bind};
pub use contraction::{Access, Contraction, LookupAccess, Loop, Role, WindowAccess, classify, shift};
pub use device::{Device, RunError, Saved};
pub use kernel::{Candidate, Cost, Estimate, KernelSpec, Way, choose};
pub use machine::Machine;
pub use path::{Network, Order, Path, find_path};
pub use plan::{Bytes, Flops, Plan, PlanError, PlanOptions, Seconds, Slot, Step, Temp};
pub use problem::{Bounds, LabelId, LabelInfo, Lookup, Operand, Output, Problem, Table, Term, Window};
