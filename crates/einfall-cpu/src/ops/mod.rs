//! The loops: one file a kernel, each with what it would cost and how it runs.
//!
//! [`KERNELS`] is the table that the planner sees, most specific first; to add a kernel, add a file and a row.

pub mod attention;
pub mod axpys;
pub mod best;
pub mod copies;
pub mod dense;
pub mod dots;
pub mod gemm;
pub mod inverted;
pub mod matmul;
pub mod nest;
mod run;
pub mod sorted;
mod source;
pub mod spread;
pub mod tiny;

use einfall_plan::{Access, Contraction, Estimate, KernelSpec, Machine};

pub use run::Run;

use crate::walk::BadTable;

/// Runs an expression for the element type of the inputs, `T`, and that of the output, `U`: the same, or the accumulator.
macro_rules! with_types {
    ($contraction:expr, $T:ident, $U:ident => $body:expr) => {{
        let contraction: &einfall_plan::Contraction = $contraction;
        if contraction.out_dtype == contraction.dtype {
            einfall_tensor::with_element!(contraction.dtype, $T => {
                type $U = $T;
                $body
            })
        } else {
            einfall_tensor::with_element!(contraction.dtype, $T => {
                type $U = <$T as $crate::scalar::Scalar>::Acc;
                $body
            })
        }
    }};
}
use with_types;

/// What an address of this type must be a multiple of: half an element if it is complex.
fn alignment(dtype: einfall_tensor::DType) -> usize {
    if dtype.is_complex() { dtype.bytes() / 2 } else { dtype.bytes() }
}

/// Why a kernel that [`with_types`] runs cannot write the output.
fn check_out_dtype(contraction: &Contraction) -> Result<(), String> {
    if [contraction.dtype, contraction.dtype.accumulator()].contains(&contraction.out_dtype) {
        return Ok(());
    }
    Err(format!("does not write {}", contraction.out_dtype))
}

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
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "tiny", estimate: tiny::estimate, run: tiny::run },
    Kernel { name: "dots", estimate: dots::estimate, run: dots::run },
    Kernel { name: "axpys", estimate: axpys::estimate, run: axpys::run },
    Kernel { name: "copies", estimate: copies::estimate, run: copies::run },
    Kernel { name: "dense", estimate: dense::estimate, run: dense::run },
    Kernel { name: "spread", estimate: spread::estimate, run: spread::run },
    Kernel { name: "sorted", estimate: sorted::estimate, run: sorted::run },
    Kernel { name: "gemm", estimate: matmul::estimate, run: matmul::run },
    Kernel { name: "inverted", estimate: inverted::estimate, run: inverted::run },
    Kernel { name: "nest", estimate: nest::estimate, run: nest::run },
];

/// The table as the planner sees it.
pub fn kernel_specs() -> Vec<KernelSpec> {
    KERNELS.iter().map(|kernel| KernelSpec { name: kernel.name, estimate: kernel.estimate }).collect()
}

/// The kernel of a name.
pub fn kernel_named(name: &str) -> Option<&'static Kernel> {
    KERNELS.iter().find(|kernel| kernel.name == name)
}

/// Predicted time of moving bytes that are touched once, from wherever so many of them are.
fn stream_seconds(bytes: f64, machine: &Machine) -> f64 {
    let bytes = bytes.max(0.0);
    // Half of the last cache, since others use it too.
    bytes / machine.bytes_per_second_within(bytes * 1.6)
}

/// Predicted time of writing a result that the second-level caches do not hold; smaller ones are written meanwhile.
fn write_seconds(bytes: f64, machine: &Machine) -> f64 {
    if bytes > machine.l2_bytes as f64 { bytes / machine.write_bytes_per_second } else { 0.0 }
}

/// Measured: what it takes until all threads work, and until the last of them is done, beside joining them.
const START_SECONDS: f64 = 10e-6;

/// Predicted time of work that takes `seconds` on all threads: with their start, or on one thread where that is faster.
fn started(machine: &Machine, seconds: f64) -> f64 {
    let alone = seconds * machine.threads as f64;
    if machine.threads == 1 { seconds } else { alone.min(seconds + machine.fork_seconds + START_SECONDS) }
}

/// Measured on Zen 5: what the kernels of rows and of matrices take to read a contraction and to lay out their lists,
/// however little there is to compute.
const PREPARE_SECONDS: f64 = 0.4e-6;

/// Whether the output is better written past the caches: it would not be found there anyway. Half of the last cache is
/// left to what is read.
fn is_past_caches(run: &Run<'_>, out_bytes: usize) -> bool {
    let bytes = run.contraction.distinct_elements(&run.contraction.out) * out_bytes as f64;
    bytes > run.machine.l3_bytes as f64 / 2.0
}

/// Predicted time of visiting `count` contiguous rows, `lists` runs of them.
///
/// Each row is read from the cache that holds the rows of one batch; all distinct bytes come from memory once.
fn rows_cost(contraction: &Contraction, machine: &Machine, rows: &Access, inner: usize, count: f64, lists: f64) -> f64 {
    let threads = machine.threads as f64;
    let d = contraction.loops[inner].len as f64;
    let row_bytes = d * contraction.dtype.bytes() as f64;
    // Rows of one looked-up axis (or window) are visited again and again; strided ones only by loops they ignore.
    let axis: Option<f64> =
        rows.lookups.iter().map(|l| l.len as f64).chain(rows.windows.iter().map(|w| w.len as f64)).reduce(|a, b| a * b);
    let distinct = contraction.distinct_elements(rows) * contraction.dtype.bytes() as f64;
    let working_set = axis.map_or(distinct, |axis| (axis * row_bytes).min(distinct));
    // Rows that are read once come from memory, and everything else happens meanwhile.
    let visited_again = count * row_bytes > distinct * 1.01;
    let compute = 2.0 * count * d / (machine.flops_per_second(contraction.dtype) * 0.5);
    // Measured with AVX-512 on Zen 5: what a row and a list cost beside the bytes of the rows.
    let work = compute + (0.15e-9 * count + 6e-9 * lists) / threads;
    let bytes = contraction.distinct_bytes();
    if !visited_again {
        return started(machine, work.max(bytes / machine.bytes_per_second_within(bytes)));
    }
    // A row that does not begin with a line touches one more than it fills.
    let touched = if row_bytes % 64.0 == 0.0 { row_bytes } else { row_bytes + 60.0 };
    // Rows that are picked from far apart do not come at the rate of a stream, and what is in no cache needs a page too.
    let rate = match working_set {
        bytes if bytes > machine.l3_bytes as f64 => machine.read_bytes_per_second * 0.5,
        bytes if bytes > machine.l2_bytes as f64 => machine.l3_bytes_per_second,
        _ => machine.l2_bytes_per_second,
    };
    let from_cache = (count * touched / rate).max(0.5e-9 * count / threads);
    // Tables, weights and results pass by, which takes the caches' time too.
    started(machine, from_cache.max(compute) + work - compute + stream_seconds(bytes - distinct, machine))
}
