//! The device that calls without one of their own run on.

use std::path::PathBuf;
use std::sync::OnceLock;

use einfall_cpu::device::CpuDevice;
use einfall_cuda::{CudaDevice, CudaError};
use einfall_plan::{Device, Machine};

use crate::Error;

/// The processor with all its threads, made at the first call. `EINFALL_THREADS` sets their number, `EINFALL_ISA` the
/// instructions. Rates that `einfall machine` measured on this processor are used if they are there.
///
/// # Errors
/// [`Error::Environment`] and [`Error::Device`]: the environment asks for what this processor does not have.
pub fn default_device() -> Result<&'static CpuDevice, Error> {
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
pub fn fresh_device() -> Result<CpuDevice, Error> {
    let device = CpuDevice::new(thread_count()?)?;
    Ok(match saved_machine(device.machine()) {
        Some(machine) => device.with_machine(machine),
        None => device,
    })
}

/// An NVIDIA GPU by its number, with the rates that `einfall machine --device cuda` measured on it if they are there.
///
/// # Errors
/// [`CudaError`]: no driver, no such GPU.
pub fn gpu(ordinal: usize) -> Result<CudaDevice, CudaError> {
    let device = CudaDevice::new(ordinal)?;
    Ok(match saved_machine(device.machine()) {
        Some(machine) => device.with_machine(machine),
        None => device,
    })
}

/// Most threads that may be asked for.
const MOST_THREADS: usize = 1024;

fn thread_count() -> Result<usize, Error> {
    let Some(text) = std::env::var_os("EINFALL_THREADS") else {
        return Ok(std::thread::available_parallelism().map_or(1, |count| usize::from(count).min(MOST_THREADS)));
    };
    let count = text.to_str().and_then(|text| text.parse().ok()).filter(|count| (1..=MOST_THREADS).contains(count));
    let wrong = || format!("`EINFALL_THREADS` is `{}`, not a number from 1 to {MOST_THREADS}", text.display());
    count.ok_or_else(|| Error::Environment(wrong()))
}

/// Where measured rates of a machine are kept: under `XDG_CACHE_HOME`, else `~/.cache`. The name depends on the
/// processor, its instructions and the number of threads.
pub fn machine_cache_path(machine: &Machine) -> Option<PathBuf> {
    let folder = |variable| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")))?;
    let name: String = format!("{}-{}-{}", machine.name, machine.isa, machine.threads)
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
        .collect();
    Some(base.join("einfall").join(format!("machine-{name}.json")))
}

/// Rates that `einfall machine` measured on the processor that `estimate` describes, with as many threads. What cannot
/// be read or is not plausible is ignored.
pub fn saved_machine(estimate: &Machine) -> Option<Machine> {
    let text = std::fs::read_to_string(machine_cache_path(estimate)?).ok()?;
    let machine: Machine = serde_json::from_str(&text).ok()?;
    let same = machine.name == estimate.name && machine.isa == estimate.isa && machine.threads == estimate.threads;
    (same && machine.is_plausible()).then_some(machine)
}
