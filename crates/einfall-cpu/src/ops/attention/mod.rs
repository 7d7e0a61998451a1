//! Attention: one file a way of running it, each with its cost, forward and backward.
//!
//! *In*: an [`Attention`], the normal form that the planner made, with pointers to its memory. *Out*: the output and its
//! log-sum-exp, or gradients. *Callers*: the device. [`KERNELS`] is the table that the planner sees, most specific first.

pub mod gather;
mod gradients;
mod inverse;
mod keys;
pub mod nest;
mod slopes;
pub mod tiles;

use einfall_plan::{Attention, AttentionKernelSpec, AttentionRole, Estimate, Machine, Pass};

use crate::isa::Isa;
use crate::load::TableDType;
use crate::threads::Threads;
use crate::walk::{BadTable, TablePointer};

/// Runs an expression for the element type of an attention.
macro_rules! with_float {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            einfall_tensor::DType::F16 => {
                type $T = einfall_tensor::half::f16;
                $body
            }
            einfall_tensor::DType::BF16 => {
                type $T = einfall_tensor::half::bf16;
                $body
            }
            einfall_tensor::DType::F64 => {
                type $T = f64;
                $body
            }
            _ => {
                type $T = f32;
                $body
            }
        }
    };
}

use with_float;

/// One attention with its memory.
///
/// Invariant `bound`: the pointers are what the attention's accesses were bound to, so every offset that a walk over all
/// its loops gives is inside them; what is written overlaps nothing else. Offsets of ragged lists were checked.
#[derive(Clone, Copy)]
pub struct AttentionRun<'a> {
    /// Loops and accesses.
    pub attention: &'a Attention,
    /// First elements of query, key, value and bias (null where there is none).
    pub operands: [*const u8; 4],
    /// Offsets of ragged lists; null where there are none.
    pub offsets: *const u8,
    /// The tables of the problem.
    pub tables: &'a [TablePointer],
    /// The threads to run on.
    pub threads: &'a Threads,
    /// The instructions to use.
    pub isa: Isa,
    /// Caches, for block sizes.
    pub machine: &'a Machine,
    /// Predicted time on one thread, in seconds: whether threads pay.
    pub serial_seconds: f64,
}

// SAFETY: `bound`: inputs are only read; each op writes disjoint parts of the output from different threads.
unsafe impl Sync for AttentionRun<'_> {}

/// What a forward run writes.
#[derive(Clone, Copy)]
pub struct Written {
    /// First element of the output.
    pub out: *mut u8,
    /// First element of the log-sum-exp; null where it is not wanted.
    pub lse: *mut u8,
}

// SAFETY: `bound`: pieces write disjoint elements.
unsafe impl Sync for Written {}

impl Written {
    /// Itself: closures that call it share the whole value between threads, not its pointers.
    pub fn get(&self) -> Written {
        *self
    }
}

/// What a backward run reads and writes beside the operands.
#[derive(Clone, Copy)]
pub struct Backward {
    /// The output of the forward run.
    pub out: *const u8,
    /// Its log-sum-exp.
    pub lse: *const u8,
    /// The gradient of the output, laid out as the output.
    pub grad_out: *const u8,
    /// Gradients of query, key, value and bias; null where they are not wanted.
    pub gradients: [*mut u8; 4],
    /// Number of their elements.
    pub elements: [usize; 4],
}

// SAFETY: `bound`: pieces write disjoint elements.
unsafe impl Sync for Backward {}

impl Backward {
    /// As [`Written::get`].
    pub fn get(&self) -> Backward {
        *self
    }
}

/// One row of the table of kernels.
pub struct Kernel {
    /// Its noun.
    pub name: &'static str,
    /// What it would cost, or why it cannot run an attention.
    pub estimate: fn(&Attention, Pass, &Machine) -> Result<Estimate, String>,
    /// Runs an attention for which `estimate` made an offer.
    pub forward: unsafe fn(&AttentionRun<'_>, Written) -> Result<(), Failure>,
    /// Its gradients.
    pub backward: unsafe fn(&AttentionRun<'_>, Backward) -> Result<(), Failure>,
}

/// Why a kernel stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A table holds a value outside its axis, and that is an error.
    BadTable,
    /// So many bytes of scratch memory could not be had.
    OutOfMemory(usize),
}

impl From<BadTable> for Failure {
    fn from(BadTable: BadTable) -> Self {
        Failure::BadTable
    }
}

/// The kernels of attention, most specific first.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "tiles", estimate: tiles::estimate, forward: tiles::forward, backward: nest::backward },
    Kernel { name: "gather", estimate: gather::estimate, forward: gather::forward, backward: gather::backward },
    Kernel { name: "nest", estimate: nest::estimate, forward: nest::forward, backward: nest::backward },
];

/// The table as the planner sees it.
pub fn kernel_specs() -> Vec<AttentionKernelSpec> {
    KERNELS.iter().map(|kernel| AttentionKernelSpec { name: kernel.name, estimate: kernel.estimate }).collect()
}

/// The kernel of a name.
pub fn kernel_named(name: &str) -> Option<&'static Kernel> {
    KERNELS.iter().find(|kernel| kernel.name == name)
}

impl AttentionRun<'_> {
    /// The loops with one of these roles, and their lengths.
    pub(crate) fn loops(&self, roles: &[AttentionRole]) -> Vec<(usize, usize)> {
        let loops = self.attention.loops.iter().enumerate();
        loops.filter(|(_, l)| roles.contains(&l.role)).map(|(at, l)| (at, l.len)).collect()
    }

    /// The keys of the list at which `lists` stands, as a range of the loop over keys: all of them, or with ragged lists
    /// those between its offsets.
    ///
    /// # Safety
    /// `bound`; `counters` has the value of each loop, those of lists and heads in it.
    pub(crate) unsafe fn keys_at(&self, counters: &[usize]) -> std::ops::Range<usize> {
        let Some(ragged) = &self.attention.ragged else {
            return 0..self.attention.len_of(AttentionRole::Key);
        };
        let dtype = TableDType::of(ragged.dtype).expect("binding takes integer offsets only");
        let offsets = TablePointer { pointer: self.offsets, dtype };
        let at: isize = ragged.strides.iter().zip(counters).map(|(&stride, &counter)| stride * counter as isize).sum();
        // SAFETY: `bound`: the offsets have one for every list, and one more.
        let [from, to] = [at, at + ragged.step].map(|at| unsafe { offsets.value(at, ragged.entries + 1) });
        match (from, to) {
            (Some(from), Some(to)) if from <= to => from..to,
            _ => 0..0,
        }
    }
}
