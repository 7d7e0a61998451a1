//! The kernels: one file each, with what it would cost and the tasks that run it. No GPU takes part here.
//!
//! [`KERNELS`] is the table that the planner sees, most specific first; to add a kernel, add a file and a row.

pub mod attention;
pub mod axpys;
pub mod dots;
pub mod gemm;
pub mod inverted;
pub mod map;
pub mod nest;
pub mod packed;
pub mod parts;
pub mod reduce;
mod rows;
pub mod split;
pub mod tile;
pub mod transpose;

use einfall_plan::{Contraction, Estimate, KernelSpec, Machine};

use crate::text::{Lowering, Task};

/// Arithmetic of all element types; stands before every source.
pub(crate) const NUMBERS: &str = include_str!("../../kernels/numbers.cuh");

/// Threads of a block, where nothing else is known.
pub(crate) const THREADS: u32 = 256;

/// Measured: a launch in a graph or a busy stream, until the next may start.
pub(crate) const LAUNCH_SECONDS: f64 = 2e-6;

/// The contractions that stand in for one, or why there are none.
pub type Sequencer = fn(&Contraction, &Machine) -> Result<parts::Sequence, String>;

/// One row of the table of kernels.
pub struct Kernel {
    /// Its noun.
    pub name: &'static str,
    /// What it would cost, or why it cannot run a contraction.
    pub estimate: fn(&Contraction, &Machine) -> Result<Estimate, String>,
    /// The tasks that run a contraction for which `estimate` made an offer.
    pub lower: fn(&Lowering<'_>) -> Vec<Task>,
    /// The product of matrices that the vendor's library is asked for instead, where it is installed.
    pub product: Option<fn(&Lowering<'_>) -> gemm::Product>,
    /// The contractions that it runs one after the other, if it is made of others; `lower` has the tasks of them all.
    pub sequence: Option<Sequencer>,
}

impl Kernel {
    const fn new(
        name: &'static str,
        estimate: fn(&Contraction, &Machine) -> Result<Estimate, String>,
        lower: fn(&Lowering<'_>) -> Vec<Task>,
    ) -> Self {
        Kernel { name, estimate, lower, product: None, sequence: None }
    }
}

/// The kernels of this device, most specific first.
pub const KERNELS: &[Kernel] = &[
    Kernel::new("dots", dots::estimate, dots::lower),
    Kernel::new("axpys", axpys::estimate, axpys::lower),
    Kernel::new("sorted", tile::sorted::estimate, tile::sorted::lower),
    Kernel { product: Some(gemm::product), ..Kernel::new("gemm", gemm::estimate, tile::lower) },
    Kernel::new("tile", tile::estimate, tile::lower),
    Kernel { sequence: Some(packed::sequence), ..Kernel::new("packed", packed::estimate, packed::lower) },
    Kernel { sequence: Some(split::sequence), ..Kernel::new("split", split::estimate, split::lower) },
    Kernel::new("inverted", inverted::estimate, inverted::lower),
    Kernel::new("reduce", reduce::estimate, reduce::lower),
    Kernel::new("transpose", transpose::estimate, transpose::lower),
    Kernel::new("map", map::estimate, map::lower),
    Kernel::new("nest", nest::estimate, nest::lower),
];

/// The table as the planner sees it.
pub fn kernel_specs() -> Vec<KernelSpec> {
    KERNELS.iter().map(|kernel| KernelSpec { name: kernel.name, estimate: kernel.estimate }).collect()
}

/// The kernel of a name.
pub fn kernel_named(name: &str) -> Option<&'static Kernel> {
    KERNELS.iter().find(|kernel| kernel.name == name)
}

/// Predicted time of moving bytes that are touched once.
pub(crate) fn stream_seconds(bytes: f64, machine: &Machine) -> f64 {
    bytes.max(0.0) / machine.bytes_per_second_within(bytes)
}

/// The architecture that a machine description names, 90 for `sm_90`.
pub(crate) fn capability(machine: &Machine) -> u32 {
    machine.isa.strip_prefix("sm_").and_then(|number| number.parse().ok()).unwrap_or(80)
}

/// Blocks for so many items, as many as a grid may have at most; kernels stride over what is left.
pub(crate) fn blocks_for(items: usize, each: usize) -> u32 {
    items.div_ceil(each.max(1)).clamp(1, 1 << 24) as u32
}
