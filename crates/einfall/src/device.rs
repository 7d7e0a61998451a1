//! The device that calls without one of their own run on.

use std::path::PathBuf;
use std::sync::OnceLock;

use einfall_cpu::device::{CpuDevice, CpuDeviceError};
use einfall_plan::{Device, Machine};

/// The processor with all its threads, made at the first call. `EINFALL_THREADS` sets their number, `EINFALL_ISA` the
/// instructions. Rates that `einfall machine` measured on this processor are used if they are there.
///
/// # Errors
/// When the environment asks for what this processor does not have.
pub fn default_device() -> Result<&'static CpuDevice, CpuDeviceError> {
    static DEVICE: OnceLock<CpuDevice> = OnceLock::new();
    match DEVICE.get() {
        Some(device) => Ok(device),
        None => fresh_device().map(|device| DEVICE.get_or_init(|| device)),
    }
}

/// A device like [`default_device`] with threads of its own: those of a process do not live on in its forks.
///
/// # Errors
/// As [`default_device`].
pub fn fresh_device() -> Result<CpuDevice, CpuDeviceError> {
    let device = CpuDevice::new(thread_count()?)?;
    Ok(match measured_machine(device.machine()) {
        Some(machine) => device.with_machine(machine),
        None => device,
    })
}

fn thread_count() -> Result<usize, CpuDeviceError> {
    match std::env::var("EINFALL_THREADS") {
        Err(_) => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        Ok(text) => text.parse().ok().filter(|&count| (1..=1024).contains(&count)).ok_or_else(|| {
            let reason = format!("`EINFALL_THREADS` is `{text}`, not a number from 1 to 1024");
            CpuDeviceError::Threads { count: 0, reason }
        }),
    }
}

/// Where measured rates of a machine are kept: under `XDG_CACHE_HOME`, else `~/.cache`. The name depends on the
/// processor, its instructions and the number of threads.
pub fn machine_cache_path(machine: &Machine) -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    let name: String = format!("{}-{}-{}", machine.name, machine.isa, machine.threads)
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
        .collect();
    Some(base.join("einfall").join(format!("machine-{name}.json")))
}

/// Rates measured on a machine with this name; whatever cannot be read or is not plausible is ignored.
fn measured_machine(estimate: &Machine) -> Option<Machine> {
    let text = std::fs::read_to_string(machine_cache_path(estimate)?).ok()?;
    let machine: Machine = serde_json::from_str(&text).ok()?;
    let same = machine.name == estimate.name && machine.isa == estimate.isa && machine.threads == estimate.threads;
    let rates = [
        machine.read_bytes_per_second,
        machine.write_bytes_per_second,
        machine.l2_bytes_per_second,
        machine.l3_bytes_per_second,
        machine.f32_flops_per_second,
        machine.f64_flops_per_second,
    ];
    (same && rates.iter().all(|rate| rate.is_finite() && *rate > 1e6)).then_some(machine)
}
