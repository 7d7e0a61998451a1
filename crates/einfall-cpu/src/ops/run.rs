//! What an op is given to run one step.

use einfall_plan::Contraction;

use crate::isa::Isa;
use crate::threads::Threads;
use crate::walk::TablePointer;

/// One step with its memory.
///
/// Invariant `bound`: the pointers are what the contraction's accesses were bound to, so every offset that a walk over
/// all its loops gives is inside them; `out` overlaps no input.
pub struct Run<'a> {
    /// Loops and accesses.
    pub contraction: &'a Contraction,
    /// First element of the left input.
    pub left: *const u8,
    /// First element of the right input; null when there is none.
    pub right: *const u8,
    /// First element of the output.
    pub out: *mut u8,
    /// The tables of the problem.
    pub tables: &'a [TablePointer],
    /// The threads to run on.
    pub threads: &'a Threads,
    /// The instructions to use.
    pub isa: Isa,
    /// Caches, for block sizes.
    pub machine: &'a einfall_plan::Machine,
    /// Predicted time on one thread, in seconds: whether threads pay.
    pub serial_seconds: f64,
}

// SAFETY: `bound`: inputs are only read; each op writes disjoint parts of the output from different threads.
unsafe impl Sync for Run<'_> {}
