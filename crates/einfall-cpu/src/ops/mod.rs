//! The loops: one file a kernel, each with what it would cost and how it runs.
//!
//! [`KERNELS`] is the table that the planner sees, most specific first; to add a kernel, add a file and a row.

pub mod nest;
mod run;

use einfall_plan::{Contraction, Estimate, KernelSpec, Machine};

pub use run::Run;

use crate::walk::BadTable;

/// One row of the table of kernels.
pub struct Kernel {
    /// Its noun.
    pub name: &'static str,
    /// What it would cost, or why it cannot run a contraction.
    pub estimate: fn(&Contraction, &Machine) -> Result<Estimate, String>,
    /// Runs a contraction for which `estimate` made an offer.
    pub run: unsafe fn(&Run<'_>) -> Result<(), BadTable>,
}

/// The kernels of this device, most specific first.
pub const KERNELS: &[Kernel] = &[Kernel { name: "nest", estimate: nest::estimate, run: nest::run }];

/// The table as the planner sees it.
pub fn kernel_specs() -> Vec<KernelSpec> {
    KERNELS.iter().map(|kernel| KernelSpec { name: kernel.name, estimate: kernel.estimate }).collect()
}

/// The kernel of a name.
pub fn kernel_named(name: &str) -> Option<&'static Kernel> {
    KERNELS.iter().find(|kernel| kernel.name == name)
}
