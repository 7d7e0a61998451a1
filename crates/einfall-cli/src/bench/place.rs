//! Where a benchmark runs: the device with rates that somebody measured, and what a report says of it.

use std::path::Path;
use std::time::Duration;

use einfall::{DType, Device, Machine};

use super::record;
use crate::device::DeviceArg;
use crate::failure::Failure;
use crate::host::{self, Opened};

/// What was asked for.
pub(super) struct Wanted<'a> {
    pub(super) device: DeviceArg,
    pub(super) threads: Option<usize>,
    /// A description, instead of measuring.
    pub(super) machine: Option<&'a Path>,
    /// Measures in less than a second.
    pub(super) quick: bool,
    /// Does not say how far measuring is.
    pub(super) quiet: bool,
}

/// The device with its rates: given, saved, or measured now. Those of a GPU are estimates.
pub(super) fn open_measured(wanted: &Wanted<'_>) -> Result<Opened, Failure> {
    let device = match host::open(wanted.device, wanted.threads, wanted.machine)? {
        Opened::Cpu(device) if !device.machine().measured && wanted.machine.is_none() => device,
        opened => return Ok(opened),
    };
    let budget = Duration::from_secs_f64(if wanted.quick { 0.7 } else { 3.0 });
    let machine = host::measure(device.isa(), device.machine().threads, budget, wanted.quiet)?;
    Ok(Opened::Cpu(device.with_machine(machine)))
}

/// The machine as reports have it, with its peak for one element type.
pub(super) fn about(machine: &Machine, dtype: DType) -> record::Machine {
    let on_cpu = !host::is_gpu(machine);
    record::Machine {
        cpu: machine.name.clone(),
        isa: machine.isa.clone(),
        cores: if on_cpu { std::thread::available_parallelism().map_or(1, usize::from) } else { 0 },
        memory_bytes: host::memory_bytes().filter(|_| on_cpu).unwrap_or(0),
        os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        read_bytes_per_s: Some(machine.read_bytes_per_second),
        flops_per_s: Some(machine.peak_flops_per_second(dtype)),
    }
}
