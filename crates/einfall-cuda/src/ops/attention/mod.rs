//! Attention: one file a way of running it, each with its cost and its tasks, forward and backward.
//!
//! *In*: an [`Attention`], the normal form that the planner made. *Out*: tasks. [`ATTENTION_KERNELS`] is the table that the
//! planner sees, most specific first; to add a kernel, add a file and a row.

mod backward;
mod inverse;
pub mod lists;
pub mod nest;
pub mod resident;
pub mod rows;
pub mod tensor;
pub mod tiles;

use einfall_plan::{Attention, AttentionKernelSpec, Estimate, Machine, Pass};
use einfall_tensor::DType;

use crate::text::{Memory, Task};

/// One row of the table of kernels.
pub struct AttentionKernel {
    /// Its noun.
    pub name: &'static str,
    /// What it would cost, or why it cannot run an attention.
    pub estimate: fn(&Attention, Pass, &Machine) -> Result<Estimate, String>,
    /// The tasks that run an attention for which `estimate` made an offer.
    pub lower: fn(&AttentionLowering<'_>) -> Vec<Task>,
}

/// The kernels of attention, most specific first.
pub const ATTENTION_KERNELS: &[AttentionKernel] = &[
    AttentionKernel { name: "band", estimate: tensor::band::estimate, lower: tensor::band::lower },
    AttentionKernel { name: "grouped", estimate: tensor::grouped::estimate, lower: tensor::grouped::lower },
    AttentionKernel { name: "tiles", estimate: tiles::estimate, lower: tiles::lower },
    AttentionKernel { name: "resident", estimate: resident::estimate, lower: resident::lower },
    AttentionKernel { name: "rows", estimate: rows::estimate, lower: rows::lower },
    AttentionKernel { name: "nest", estimate: nest::estimate, lower: nest::lower },
];

/// The table as the planner sees it.
pub fn attention_specs() -> Vec<AttentionKernelSpec> {
    ATTENTION_KERNELS
        .iter()
        .map(|kernel| AttentionKernelSpec { name: kernel.name, estimate: kernel.estimate })
        .collect()
}

/// The kernel of a name.
pub fn attention_named(name: &str) -> Option<&'static AttentionKernel> {
    ATTENTION_KERNELS.iter().find(|kernel| kernel.name == name)
}

/// An attention to be lowered, with what is known beside it.
#[derive(Clone, Copy)]
pub struct AttentionLowering<'a> {
    /// What to compute.
    pub attention: &'a Attention,
    /// Which way.
    pub pass: Pass,
    /// Types of the problem's tables.
    pub tables: &'a [DType],
    /// Where it runs.
    pub machine: &'a Machine,
    /// Whether the log-sum-exp is wanted, forward.
    pub wants_lse: bool,
    /// Whether keys and values begin at one address.
    pub values_in_keys: bool,
    /// What the address of a memory is a multiple of at least, bytes.
    pub alignment: &'a dyn Fn(Memory) -> usize,
}
