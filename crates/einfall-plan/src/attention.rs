//! Attention: a softmax of scores, then the weighted sum of values, as one normal form and one plan.
//!
//! *In*: a [`Problem`](crate::Problem) of three operands, query, key and value, or four with an additive bias, as
//! [`bind`](crate::bind()) made it, and [`AttentionOptions`]. *Out*: an [`Attention`], whose loops have one role each, and an
//! [`AttentionPlan`]. *Callers*: the facade makes plans, devices run them. Pure, as the rest of the planner.
//!
//! `bhqd,bh[bhqk]d,bh[bhqk]e->bhqe` is softmax over `k` of the scores `scale * Σ_d query * key`, times the values: over the
//! labels that keys and values have, and that query and output have not.

mod classify;
mod plan;
mod report;

pub use classify::AttentionError;
pub use plan::{
    AttentionCandidate, AttentionKernelSpec, AttentionOptions, AttentionPlan, AttentionPlanError, Pass, RaggedOptions,
};

use einfall_tensor::DType;

use crate::contraction::Access;
use crate::problem::Bounds;

/// What a loop of an attention does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttentionRole {
    /// In the output and in keys or values, or in their tables: each list has keys of its own.
    List,
    /// In query and output alone: heads, or queries, that share the rows of a list.
    Head,
    /// In keys and values and not in the output: the softmax runs over it.
    Key,
    /// In query and key alone: summed in each score.
    Depth,
    /// In value and output alone.
    Width,
}

/// One loop of an attention: a label, or several that were fused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AttentionLoop {
    /// Letters of the fused labels, outermost first.
    pub name: String,
    /// Number of iterations.
    pub len: usize,
    /// Its role.
    pub role: AttentionRole,
}

/// Which keys a query may see: those at a position that is not above its own.
///
/// The position of a query is `offset + Σ loop * stride`. That of a key is its table's value, its window's position, or
/// the index of the only loop with the role `Key`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    /// The position at which all loops are zero.
    pub offset: i64,
    /// How far each loop moves it.
    pub strides: Vec<i64>,
}

/// Lists of different lengths: the entries of list `i` are `entries[offsets[i]..offsets[i + 1]]` of a table of one axis.
///
/// The loop over keys then has no length of its own: it is the number of all entries, and no list is longer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ragged {
    /// Which argument of the call holds the offsets.
    pub argument: usize,
    /// Their type, an integer.
    pub dtype: DType,
    /// From a list's offset to the next list's, for each loop, in elements.
    pub strides: Vec<isize>,
    /// From a list's first offset to its end, in elements.
    pub step: isize,
    /// Number of entries in the table.
    pub entries: usize,
}

/// Where gradients are written, by the same loops; none where the caller does not want it or there is no element.
///
/// An axis of length one that meets a longer one has stride zero: its gradient is a sum.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Gradients {
    /// That of the query.
    pub query: Option<Access>,
    /// That of the keys.
    pub key: Option<Access>,
    /// That of the values.
    pub value: Option<Access>,
    /// That of the bias.
    pub bias: Option<Access>,
}

impl Gradients {
    /// Those that are wanted.
    pub fn wanted(&self) -> impl Iterator<Item = &Access> {
        [&self.query, &self.key, &self.value, &self.bias].into_iter().flatten()
    }

    fn wanted_mut(&mut self) -> impl Iterator<Item = &mut Access> {
        [&mut self.query, &mut self.key, &mut self.value, &mut self.bias].into_iter().flatten()
    }
}

/// An attention, ready to be matched by kernels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attention {
    /// The loops by role, and in each role by falling stride: of the output, of the key for `Key` and `Depth`.
    pub loops: Vec<AttentionLoop>,
    /// The query.
    pub query: Access,
    /// The keys.
    pub key: Access,
    /// The values, at the positions of the keys.
    pub value: Access,
    /// What is added to the scores, after they were scaled.
    pub bias: Option<Access>,
    /// The output.
    pub out: Access,
    /// Backward: the gradients, row-major, each of its operand's shape. That of the output is read as `out` is written.
    pub gradients: Gradients,
    /// The log of the sum of exponentials, base e, one for each query: row-major over the output's labels but `Width` ones.
    pub lse: Access,
    /// With a causal mask: which keys are seen.
    pub limit: Option<Limit>,
    /// With lists of different lengths: where they begin.
    pub ragged: Option<Ragged>,
    /// Type of query, keys, values and output.
    pub dtype: DType,
    /// Type of the bias, if there is one: `dtype`, or the accumulator.
    pub bias_dtype: DType,
    /// Type of scores, sums and log-sum-exp: `f32`, or `f64` for `f64`.
    pub accumulator: DType,
    /// What scores are multiplied by.
    pub scale: Scale,
    /// Policy for table values outside the looked-up axis.
    pub bounds: Bounds,
}

/// A factor that can be compared and hashed: the bits of an `f64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scale(u64);

impl Scale {
    /// The factor.
    pub fn new(factor: f64) -> Self {
        Scale(factor.to_bits())
    }

    /// The factor.
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl Attention {
    /// Positions of the loops with a role, outermost first.
    pub fn loops_of(&self, role: AttentionRole) -> impl DoubleEndedIterator<Item = usize> + '_ {
        self.loops.iter().enumerate().filter(move |(_, l)| l.role == role).map(|(at, _)| at)
    }

    /// Product of the lengths of the loops with a role.
    pub fn len_of(&self, role: AttentionRole) -> usize {
        self.loops_of(role).map(|at| self.loops[at].len).fold(1, usize::saturating_mul)
    }

    /// Number of keys of a list, for cost: its length, or the mean over lists of different lengths.
    pub fn keys_of_list(&self) -> f64 {
        match &self.ragged {
            None => self.len_of(AttentionRole::Key) as f64,
            Some(ragged) => ragged.entries as f64 / self.ragged_lists().max(1.0),
        }
    }

    /// Number of lists of different lengths that the offsets tell apart.
    fn ragged_lists(&self) -> f64 {
        let Some(ragged) = &self.ragged else { return 1.0 };
        let moved = (0..self.loops.len()).filter(|&at| ragged.strides[at] != 0);
        moved.map(|at| self.loops[at].len as f64).product()
    }

    /// Pairs of a query (one head of one list) and a key.
    pub fn pairs(&self) -> f64 {
        self.len_of(AttentionRole::List) as f64 * self.len_of(AttentionRole::Head) as f64 * self.keys_of_list()
    }

    /// Multiply-adds of scores and weighted sums, times two; backward, those of its five products.
    pub fn flops(&self, pass: Pass) -> f64 {
        let [depth, width] = [AttentionRole::Depth, AttentionRole::Width].map(|role| self.len_of(role) as f64);
        2.0 * self.pairs()
            * match pass {
                Pass::Forward => depth + width,
                Pass::Backward => 3.0 * depth + 2.0 * width,
            }
    }

    /// Elements that an access can reach at most.
    pub fn distinct_elements(&self, access: &Access) -> f64 {
        access.distinct_elements(|at| self.loops[at].len as f64)
    }

    /// Bytes of the entries of the keys' tables; those of the values are the same.
    pub fn table_bytes(&self) -> f64 {
        let entries = |strides: &[isize]| -> f64 {
            (0..self.loops.len()).filter(|&at| strides[at] != 0).map(|at| self.loops[at].len as f64).product()
        };
        let of = |lookup: &crate::LookupAccess| match &self.ragged {
            Some(ragged) => (ragged.entries * lookup.entry_bytes) as f64,
            None => entries(&lookup.table_strides) * lookup.entry_bytes as f64,
        };
        self.key.lookups.iter().map(of).sum()
    }

    /// Distinct bytes of inputs, tables and output: what any way must move at least. Backward, the gradients and what
    /// they are computed from.
    pub fn distinct_bytes(&self, pass: Pass) -> f64 {
        let size = self.dtype.bytes() as f64;
        let operands: f64 =
            [&self.query, &self.key, &self.value].map(|access| self.distinct_elements(access)).iter().sum();
        let bias = self.bias.as_ref().map_or(0.0, |bias| self.distinct_elements(bias) * self.bias_dtype.bytes() as f64);
        let out = self.distinct_elements(&self.out);
        let lse = self.distinct_elements(&self.lse) * self.accumulator.bytes() as f64;
        let forward = (operands + out) * size + bias + lse + self.table_bytes();
        match pass {
            Pass::Forward => forward,
            Pass::Backward => forward + (operands + out) * size,
        }
    }

    /// True when nothing is written forward: there is no query. Without width there still is a log-sum-exp.
    pub fn is_empty(&self) -> bool {
        let kept = |l: &AttentionLoop| matches!(l.role, AttentionRole::List | AttentionRole::Head);
        self.loops.iter().any(|l| kept(l) && l.len == 0)
    }

    /// True when keys stand at positions that neither a table nor a window gives.
    pub fn is_dense(&self) -> bool {
        self.key.is_plain() && self.value.is_plain()
    }

    /// The accesses of the operands, of the output and of the gradients.
    pub fn accesses(&self) -> impl Iterator<Item = &Access> {
        [Some(&self.query), Some(&self.key), Some(&self.value), self.bias.as_ref(), Some(&self.out), Some(&self.lse)]
            .into_iter()
            .flatten()
            .chain(self.gradients.wanted())
    }

    fn accesses_mut(&mut self) -> impl Iterator<Item = &mut Access> {
        [
            Some(&mut self.query),
            Some(&mut self.key),
            Some(&mut self.value),
            self.bias.as_mut(),
            Some(&mut self.out),
            Some(&mut self.lse),
        ]
        .into_iter()
        .flatten()
        .chain(self.gradients.wanted_mut())
    }
}
