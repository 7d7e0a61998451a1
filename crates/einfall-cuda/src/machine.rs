//! What the planner is told of a GPU: its sizes, and rates estimated from its clocks.

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use einfall_plan::Machine;

use crate::CudaError;
use crate::driver::Gpu;

/// A description of an H100, for plans without a GPU: tests, and `explain` on other machines.
pub fn example() -> Machine {
    Machine {
        name: "NVIDIA H100".into(),
        threads: 132,
        isa: "sm_90".into(),
        l1_bytes: 227 << 10,
        l2_bytes: 50 << 20,
        l3_bytes: 50 << 20,
        read_bytes_per_second: 3.0e12,
        write_bytes_per_second: 2.8e12,
        l2_bytes_per_second: 6.4e12,
        l3_bytes_per_second: 6.4e12,
        f32_flops_per_second: 60e12,
        f64_flops_per_second: 30e12,
        half_flops_per_second: 800e12,
        fork_seconds: 2e-6,
        measured: false,
    }
}

/// Sizes and estimated rates of a GPU.
pub(crate) fn estimate(gpu: &Gpu) -> Result<Machine, CudaError> {
    let of = |attribute| gpu.attribute(attribute).map(|value| value.max(1) as f64);
    let multiprocessors = of(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let clock = of(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)? * 1e3;
    let bus_bytes = of(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)? / 8.0;
    let memory_clock = of(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)? * 1e3;
    let l2_bytes = of(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize;
    let shared = of(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize;
    let read = 2.0 * memory_clock * bus_bytes * 0.9;
    let (f32_lanes, f64_lanes): (f64, f64) = match gpu.capability {
        (8, 0) | (9, 0) | (10, _) => (if gpu.capability == (8, 0) { 64.0 } else { 128.0 }, 64.0),
        _ => (128.0, 2.0),
    };
    // Operations of the tensor cores of a multiprocessor in a clock; what is left of them under full power.
    let half = match gpu.capability {
        (8, 0) => 2048.0,
        (8, _) => 1024.0,
        (9, _) => 4096.0,
        _ => 8192.0,
    };
    let l2 = multiprocessors * clock * 26.0;
    Ok(Machine {
        name: gpu.name()?,
        threads: multiprocessors as usize,
        isa: format!("sm_{}{}", gpu.capability.0, gpu.capability.1),
        l1_bytes: shared,
        l2_bytes,
        l3_bytes: l2_bytes,
        read_bytes_per_second: read,
        write_bytes_per_second: read * 0.93,
        l2_bytes_per_second: l2,
        l3_bytes_per_second: l2,
        f32_flops_per_second: multiprocessors * f32_lanes * 2.0 * clock * 0.9,
        f64_flops_per_second: multiprocessors * f64_lanes.min(f32_lanes / 2.0) * 2.0 * clock * 0.9,
        half_flops_per_second: multiprocessors * half * clock * 0.8,
        fork_seconds: 2e-6,
        measured: false,
    })
}
