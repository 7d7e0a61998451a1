//! The device that a command runs on or plans for: the processor, with its rates if somebody measured them, or a GPU.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use einfall::{AbsentGpu, CpuDevice, CudaDevice, CudaError, Device, Error, Isa, Machine, Quantity};
use einfall::{Einsum, Tensor, View, default_device, measure_machine, saved_machine};

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
    described(einfall::gpu(ordinal)?, machine)
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
        DeviceArg::Cuda(ordinal) => match einfall::gpu(ordinal) {
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

/// Whether a description is of a GPU, whose threads are multiprocessors.
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

/// What [`measure_gpu`] finds.
pub struct MeasuredGpu {
    /// The description to plan with.
    pub machine: Machine,
    /// Floating-point operations a second of a product of `bf16` matrices.
    pub bf16_flops_per_second: f64,
}

/// A call whose time gives a rate.
struct Probe<'a> {
    title: &'a str,
    equation: &'a str,
    arguments: &'a [View<'a>],
    launches: usize,
}

impl Probe<'_> {
    /// Seconds of a launch, the median of replays.
    fn seconds(&self, gpu: &CudaDevice) -> Result<f64, Failure> {
        let einsum = Einsum::new(self.equation);
        let mut seconds = einsum.replay_seconds(gpu, self.arguments, self.launches, 7)?;
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[seconds.len() / 2])
    }
}

/// Measures a GPU by einsums whose bytes or operations are known, and says how far that is, unless `quiet`: the sum of
/// an array, a product of vectors that fills memory, rows looked up out of a third of the L2, products of matrices, and
/// a launch that does nothing. Rates are stated as kernels' predictions use them: a product of matrices is expected to
/// reach 85 % of the peak.
///
/// # Errors
/// Memory of the GPU that is not there.
pub fn measure_gpu(gpu: &CudaDevice, quiet: bool) -> Result<MeasuredGpu, Failure> {
    const ROW: usize = 32;
    let estimate = gpu.machine().clone();
    let failed = |error: einfall::TensorError| Failure::from(Error::from(error));
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(dtype, shape).map_err(failed);
    // Numbers that are not all alike: a GPU is faster on zeros.
    let spread = |count: usize| (0..count).map(|at| (at * 7919 % 1009) as f32 / 1009.0 - 0.5).collect::<Vec<f32>>();
    let square = 4096_usize;
    let long = spread(1 << 26);
    let rows = (estimate.l2_bytes / 3 / (4 * ROW)).max(1);
    let (lists, k) = (1 << 14, 64);
    let table: Vec<i32> = (0..lists * k).map(|at| ((at as u64 * 2_654_435_761 >> 7) % rows as u64) as i32).collect();
    let matrix = View::from_slice(&long[..square * square], &[square, square]).map_err(failed)?;
    let wide: Vec<f64> = long[..square * square].iter().map(|&x| f64::from(x)).collect();
    let wide = View::from_slice(&wide, &[square, square]).map_err(failed)?;
    let half: Vec<einfall::half::bf16> =
        long[..square * square].iter().map(|&x| einfall::half::bf16::from_f32(x)).collect();
    let half = View::from_slice(&half, &[square, square]).map_err(failed)?;
    let one = zeros(einfall::DType::F32, &[1])?;
    let all = View::from_slice(&long, &[long.len()]).map_err(failed)?;
    let queries = View::from_slice(&long[..lists * ROW], &[lists, ROW]).map_err(failed)?;
    let near = View::from_slice(&long[..rows * ROW], &[rows, ROW]).map_err(failed)?;
    let table = View::from_slice(&table, &[lists, k]).map_err(failed)?;
    let column = View::from_slice(&long[..1 << 14], &[1 << 14]).map_err(failed)?;
    let across = View::from_slice(&long[..1 << 13], &[1 << 13]).map_err(failed)?;
    let product = "ij,jk->ik";
    let probes = [
        Probe { title: "launches", equation: "i->i", arguments: &[one.view()], launches: 100 },
        Probe { title: "reading memory", equation: "i->", arguments: &[all], launches: 4 },
        Probe { title: "writing memory", equation: "i,j->ij", arguments: &[column, across], launches: 4 },
        Probe { title: "looking up rows", equation: "qd,[qk]d->qk", arguments: &[queries, near, table], launches: 20 },
        Probe { title: "f32", equation: product, arguments: &[matrix.clone(), matrix], launches: 4 },
        Probe { title: "f64", equation: product, arguments: &[wide.clone(), wide], launches: 4 },
        Probe { title: "bf16", equation: product, arguments: &[half.clone(), half], launches: 10 },
    ];
    let progress = Progress::new(probes.len() as u64, quiet);
    let mut seconds = [0.0; 7];
    for (probe, seconds) in probes.iter().zip(&mut seconds) {
        progress.message(probe.title);
        *seconds = probe.seconds(gpu)?;
        progress.advance(1);
    }
    progress.finish();
    let [launch, read, write, looked_up, f32, f64, bf16] = seconds;
    let rate = |amount: f64, seconds: f64| amount / (seconds - launch).max(1e-7);
    let (bytes, flops) = (4.0 * long.len() as f64, 2.0 * (square as f64).powi(3));
    let l2 = rate((lists * k * ROW * 4) as f64, looked_up);
    let machine = Machine {
        read_bytes_per_second: rate(bytes, read),
        write_bytes_per_second: rate(4.0 * f64::from(1 << 27), write),
        l2_bytes_per_second: l2,
        l3_bytes_per_second: l2,
        f32_flops_per_second: rate(flops, f32) / 0.85,
        // Where products of f64 run on tensor cores, nothing else comes near.
        f64_flops_per_second: (rate(flops, f64) / 0.85).min(rate(flops, f32) / 0.85 / 2.0),
        fork_seconds: launch,
        measured: true,
        ..estimate
    };
    Ok(MeasuredGpu { machine, bf16_flops_per_second: rate(flops, bf16) })
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
