//! What a device offers the planner: kernels that look at a contraction and say what they would cost.

use std::fmt;

use serde::Serialize;

use crate::contraction::Contraction;
use crate::machine::Machine;

/// A way to run a contraction (DESIGN: "Ways to run a contraction with looked-up keys").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Rows that are distinct memory are read once, at memory speed.
    Stream,
    /// Matrix products; a label of stride zero moved out of the batch.
    Gemm,
    /// Looked-up rows are read where they lie, in cache.
    Gather,
    /// A tile over all rows is computed and the looked-up ones are picked out of it.
    DenseSelect,
    /// Several heads share the rows of one selection.
    GroupedHeads,
    /// A tile over the band of a window.
    Band,
    /// Lookups sorted by row, one matrix product a row.
    Sorted,
    /// The table of a scattered output is inverted, each row is reduced in order.
    Inverted,
    /// Element by element: products, sums, copies and permutations.
    Elementwise,
    /// The loop nest as written: runs everything.
    Nest,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Way::Stream => "stream",
            Way::Gemm => "gemm",
            Way::Gather => "gather",
            Way::DenseSelect => "dense-select",
            Way::GroupedHeads => "grouped-heads",
            Way::Band => "band",
            Way::Sorted => "sorted",
            Way::Inverted => "inverted",
            Way::Elementwise => "elementwise",
            Way::Nest => "nest",
        })
    }
}

/// What running a contraction in some way takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// Floating-point operations done, those for terms that are thrown away included.
    pub flops: f64,
    /// Bytes moved between the slowest memory that takes part and the cores.
    pub bytes: f64,
    /// Predicted time.
    pub seconds: f64,
}

/// An offer of a kernel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// How the kernel would run it.
    pub way: Way,
    /// What it would take.
    pub cost: Cost,
    /// Scratch memory beyond inputs and output.
    pub workspace_bytes: usize,
}

/// A kernel as the planner sees it.
#[derive(Clone, Copy, Debug)]
pub struct KernelSpec {
    /// Its noun, unique within a device.
    pub name: &'static str,
    /// An offer, or why it cannot run this contraction.
    pub estimate: fn(&Contraction, &Machine) -> Result<Estimate, String>,
}

/// What a kernel answered when asked about a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Its offer, or why it cannot.
    pub answer: Result<Estimate, String>,
}

/// Asks every kernel and picks the least predicted time; on a tie the earlier, more specific one.
///
/// Returns all answers and the position of the choice. `None` when no kernel can run the contraction.
pub fn choose(
    contraction: &Contraction,
    machine: &Machine,
    kernels: &[KernelSpec],
    forced: Option<&str>,
) -> Option<(Vec<Candidate>, usize)> {
    let candidates: Vec<Candidate> = kernels
        .iter()
        .map(|kernel| Candidate { kernel: kernel.name, answer: (kernel.estimate)(contraction, machine) })
        .collect();
    let chosen = pick(&candidates, forced)?;
    Some((candidates, chosen))
}

/// The position of the forced kernel's offer, else of the least predicted time; on a tie of the earlier one.
pub(crate) fn pick(candidates: &[Candidate], forced: Option<&str>) -> Option<usize> {
    let offers = || {
        candidates.iter().enumerate().filter_map(|(at, c)| c.answer.as_ref().ok().map(|offer| (at, c.kernel, offer)))
    };
    let cheapest = offers().min_by(|a, b| a.2.cost.seconds.total_cmp(&b.2.cost.seconds))?;
    Some(offers().find(|(_, kernel, _)| Some(*kernel) == forced).unwrap_or(cheapest).0)
}
