//! The device that a command runs on or plans for: the processor, with its rates if somebody measured them, or a GPU.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use einfall::{AbsentGpu, CpuDevice, CudaDevice, CudaError, Device, Error, Isa, Machine, Quantity};
use einfall::{default_device, measure_machine, saved_machine};

use crate::device::DeviceArg;
use crate::failure::Failure;
use crate::progress::Progress;

/// Most threads that may be asked for.
const MOST_THREADS: usize = 1024;

/// No description of a machine is longer, in bytes.
const MOST_DESCRIBED: u64 = 1 << 20;

/// Reads a number of threads.
///
/// # Errors
/// It is not from 1 to 1024.
pub fn parse_threads(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=MOST_THREADS).contains(count));
    count.ok_or_else(|| format!("`{text}` is not a number from 1 to {MOST_THREADS}"))
}

/// A device that was opened, or what stands for it.
pub enum Opened {
    /// The processor.
    Cpu(CpuDevice),
    /// A GPU.
    Gpu(CudaDevice),
    /// The description of one that is not here, to plan for, and why it stands here.
    Absent(AbsentGpu, String),
}

impl Opened {
    /// The device to plan with.
    #[must_use]
    pub fn device(&self) -> &dyn Device {
        match self {
            Self::Cpu(device) => device,
            Self::Gpu(device) => device,
            Self::Absent(device, _) => device,
        }
    }

    /// The GPU, if it is one.
    #[must_use]
    pub fn gpu(&self) -> Option<&CudaDevice> {
        if let Self::Gpu(device) = self { Some(device) } else { None }
    }
}

/// The device to run on, with `threads` and the machine description in `machine` where they are given.
///
/// # Errors
/// The environment or the description asks for what there is not; there is no such GPU, or no driver.
pub fn open(named: DeviceArg, threads: Option<usize>, machine: Option<&Path>) -> Result<Opened, Failure> {
    let ordinal = match named {
        DeviceArg::Cpu => return processor(threads, machine).map(Opened::Cpu),
        DeviceArg::Cuda(ordinal) => ordinal,
        DeviceArg::H100 => {
            return Err(Failure::bad_input("`cuda:h100` is a description, nothing runs on it\nhint: `--device cuda`"));
        }
    };
    check_threads(named, threads)?;
    described(CudaDevice::new(ordinal)?, machine)
}

/// A GPU with the machine description in `machine` where it is given.
fn described(gpu: CudaDevice, machine: Option<&Path>) -> Result<Opened, Failure> {
    let given = machine.map(read_machine).transpose()?;
    Ok(Opened::Gpu(given.into_iter().fold(gpu, CudaDevice::with_machine)))
}

/// The device to plan for. Without a GPU that is an H100, or what `machine` describes.
///
/// # Errors
/// As [`open`]; that there is no GPU at all is none.
pub fn open_to_plan(named: DeviceArg, threads: Option<usize>, machine: Option<&Path>) -> Result<Opened, Failure> {
    check_threads(named, threads)?;
    let missing = match named {
        DeviceArg::Cpu => return open(named, threads, machine),
        DeviceArg::H100 => "as asked for".to_owned(),
        DeviceArg::Cuda(ordinal) => match CudaDevice::new(ordinal) {
            Ok(gpu) => return described(gpu, machine),
            Err(error @ CudaError::Ordinal { count: 1.., .. }) => return Err(error.into()),
            // The hint is how to get one, which planning does not need.
            Err(error) => error.to_string().lines().next().unwrap_or_default().to_owned(),
        },
    };
    let given = machine.map(read_machine).transpose()?;
    let gpu = given.map_or_else(AbsentGpu::default, AbsentGpu::new);
    let why = format!("planned for a GPU that is not here, {}: {missing}", gpu.machine().name);
    Ok(Opened::Absent(gpu, why))
}

fn check_threads(named: DeviceArg, threads: Option<usize>) -> Result<(), Failure> {
    match (named, threads) {
        (DeviceArg::Cuda(_) | DeviceArg::H100, Some(_)) => {
            Err(Failure::bad_input(format!("`--threads` is of the processor, not of `{named}`")))
        }
        _ => Ok(()),
    }
}

/// The processor: with `threads` and the machine description in `machine` where they are given.
///
/// # Errors
/// The environment or the description asks for what there is not.
pub fn processor(threads: Option<usize>, machine: Option<&Path>) -> Result<CpuDevice, Failure> {
    let given = machine.map(read_machine).transpose()?;
    let threads = match (threads, &given) {
        (Some(threads), _) => threads,
        (None, Some(machine)) => machine.threads,
        (None, None) => default_device()?.machine().threads,
    };
    let device = CpuDevice::new(threads).map_err(Error::from)?;
    let machine = given.or_else(|| saved_machine(device.machine()));
    Ok(match machine {
        Some(machine) => device.with_machine(machine),
        None => device,
    })
}

fn read_machine(path: &Path) -> Result<Machine, Failure> {
    let unreadable = |error| Failure::bad_input(format!("cannot open `{}`: {error}", path.display()));
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MOST_DESCRIBED).read_to_string(&mut text).map_err(unreadable)?;
    let wrong = |error| Failure::bad_input(format!("`{}` describes no machine: {error}", path.display()));
    let mut document: serde_json::Value = serde_json::from_str(&text).map_err(wrong)?;
    // `einfall machine --json` puts it under a name, the saved file does not.
    let described = document.get_mut("machine").map(serde_json::Value::take).unwrap_or(document);
    let machine: Machine = serde_json::from_value(described).map_err(wrong)?;
    if !(1..=MOST_THREADS).contains(&machine.threads) {
        return Err(Failure::bad_input(format!("`{}`: {} threads", path.display(), machine.threads)));
    }
    if !machine.is_plausible() {
        let message = format!("`{}` describes no machine: a rate or a size in it cannot be", path.display());
        return Err(Failure::bad_input(message));
    }
    Ok(machine)
}

/// Whether a description is of a GPU, whose threads are multiprocessors and whose rates nobody measures yet.
#[must_use]
pub fn is_gpu(machine: &Machine) -> bool {
    machine.isa.starts_with("sm_")
}

/// Measures this processor and says how far that is, unless `quiet`.
///
/// # Errors
/// As [`measure_machine`].
pub fn measure(isa: Isa, threads: usize, budget: Duration, quiet: bool) -> Result<Machine, Failure> {
    let progress = Progress::new(Quantity::ALL.len() as u64, quiet);
    let mut first = true;
    let measured = measure_machine(isa, threads, budget, &mut |quantity| {
        progress.advance(u64::from(!std::mem::take(&mut first)));
        progress.message(quantity.title());
    });
    progress.finish();
    Ok(measured.map_err(Error::from)?)
}

/// Bytes of memory that programs may still take; `None` where the system does not say.
pub fn available_bytes() -> Option<u64> {
    meminfo("MemAvailable:")
}

/// Threads that wanted to run in the last minutes, on average; `None` where the system does not say.
pub fn load() -> Option<f64> {
    // Averages over 1, 5 and 15 minutes.
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().nth(1)?.parse().ok()
}

/// Bytes of main memory.
pub fn memory_bytes() -> Option<u64> {
    meminfo("MemTotal:")
}

fn meminfo(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
}
