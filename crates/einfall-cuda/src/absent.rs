//! A GPU that is not there: plans are made for it, to be explained and to have their kernels compiled.

use einfall_plan::{AttentionKernelSpec, Device, KernelSpec, Machine, Plan, RunError};
use einfall_tensor::{View, ViewMut};

use crate::{machine, ops};

/// A device of the planner that runs nothing.
///
/// ```
/// use einfall_cuda::AbsentGpu;
/// use einfall_plan::Device;
///
/// assert_eq!(AbsentGpu::default().machine().isa, "sm_90");
/// ```
#[derive(Debug)]
pub struct AbsentGpu {
    machine: Machine,
    kernels: Vec<KernelSpec>,
    attention_kernels: Vec<AttentionKernelSpec>,
}

impl AbsentGpu {
    /// A GPU that a description is of.
    pub fn new(machine: Machine) -> Self {
        AbsentGpu { machine, kernels: ops::kernel_specs(), attention_kernels: ops::attention::attention_specs() }
    }
}

/// An H100.
impl Default for AbsentGpu {
    fn default() -> Self {
        Self::new(machine::example())
    }
}

impl Device for AbsentGpu {
    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn kernels(&self) -> &[KernelSpec] {
        &self.kernels
    }

    fn attention_kernels(&self) -> &[AttentionKernelSpec] {
        &self.attention_kernels
    }

    unsafe fn run(&self, _: &Plan, _: &[View<'_>], _: &mut ViewMut<'_>) -> Result<(), RunError> {
        Err(RunError::Device { reason: "a plan for a GPU that is not there cannot be run".into() })
    }

    fn check_tables(&self, _: &Plan, _: &[View<'_>]) -> Result<(), RunError> {
        Ok(())
    }
}
