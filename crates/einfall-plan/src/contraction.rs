//! The pairwise normal form: one or two inputs, one output, and loops that each have one role.
//!
//! *In*: terms of a [`Problem`] (or of intermediate results). *Out*: a [`Contraction`], whose loops are fused as far as
//! every access allows, outermost first. *Callers*: the planner, and every kernel that matches on it.
//!
//! TBLIS, NumPy and torch use the same four roles. A lookup is an axis whose stride reads a table, and the labels of its
//! table count as labels of the operand, so `bhqd,bh[bhqk]d->bhqk` is the batched matrix-vector product that
//! `bhqd,bhqkd->bhqk` is.

use std::fmt;

use einfall_tensor::DType;

use crate::problem::{Bounds, LabelId, Problem, Table, Term};

/// What a loop does, by where its label has an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// In both inputs and in the output.
    Batch,
    /// In the left input and in the output (or in the output alone).
    Left,
    /// In the right input and in the output.
    Right,
    /// Not in the output: summed over.
    Contracted,
}

/// One loop of a contraction: a label, or several that were fused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Loop {
    /// Letters of the fused labels, outermost first.
    pub name: String,
    /// Number of iterations.
    pub len: usize,
    /// Its role.
    pub role: Role,
}

/// A looked-up axis of an access.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LookupAccess {
    /// Position in [`Problem::tables`].
    pub table: usize,
    /// First element of the table, for sliced labels.
    pub table_offset: isize,
    /// Stride of each loop in the table, in elements.
    pub table_strides: Vec<isize>,
    /// Bytes of one entry of the table.
    pub entry_bytes: usize,
    /// Length of the looked-up axis.
    pub len: usize,
    /// Stride of the looked-up axis, in elements.
    pub stride: isize,
}

/// A window axis of an access.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WindowAccess {
    /// Coefficient of each loop.
    pub coefficients: Vec<i64>,
    /// The constant, sliced labels included.
    pub offset: i64,
    /// Length of the axis: other positions are left out.
    pub len: usize,
    /// Stride of the axis, in elements.
    pub stride: isize,
}

/// How the loops address the elements of one tensor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Access {
    /// Element at which all loops are zero, for sliced labels.
    pub offset: isize,
    /// Stride of each loop, in elements; zero where the elements do not depend on it.
    pub strides: Vec<isize>,
    /// Looked-up axes.
    pub lookups: Vec<LookupAccess>,
    /// Windows.
    pub windows: Vec<WindowAccess>,
}

impl Access {
    /// True when an element may depend on the loop, through a stride, a table or a window.
    pub fn depends_on(&self, at: usize) -> bool {
        self.strides[at] != 0 || self.is_indirect_in(at)
    }

    /// True when the loop moves a lookup or a window.
    pub fn is_indirect_in(&self, at: usize) -> bool {
        self.lookups.iter().any(|lookup| lookup.table_strides[at] != 0)
            || self.windows.iter().any(|window| window.coefficients[at] != 0)
    }

    /// True when there is neither a lookup nor a window.
    pub fn is_plain(&self) -> bool {
        self.lookups.is_empty() && self.windows.is_empty()
    }

    /// Elements that can be reached at most, by loops of these lengths: the product of the loops that move the access,
    /// capped at its axes.
    pub(crate) fn distinct_elements(&self, len: impl Fn(usize) -> f64) -> f64 {
        let loops = || 0..self.strides.len();
        let product = |moves: &dyn Fn(usize) -> bool| -> f64 { loops().filter(|&at| moves(at)).map(&len).product() };
        let plain = product(&|at| self.strides[at] != 0);
        // Strides that overlap reach no more than lies between the ends.
        let span = |at: usize| self.strides[at].unsigned_abs() as f64 * (len(at) - 1.0).max(0.0);
        let plain = plain.min(1.0 + loops().map(span).sum::<f64>());
        let lookups = self
            .lookups
            .iter()
            .map(|lookup| product(&|at| lookup.table_strides[at] != 0 && self.strides[at] == 0).min(lookup.len as f64));
        let windows =
            self.windows.iter().map(|window| product(&|at| window.coefficients[at] != 0).min(window.len as f64));
        plain * lookups.product::<f64>() * windows.product::<f64>()
    }

    /// Keeps the loops of `order`, in that order.
    pub(crate) fn keep(&mut self, order: &[usize]) {
        self.strides = order.iter().map(|&at| self.strides[at]).collect();
        for lookup in &mut self.lookups {
            lookup.table_strides = order.iter().map(|&at| lookup.table_strides[at]).collect();
        }
        for window in &mut self.windows {
            window.coefficients = order.iter().map(|&at| window.coefficients[at]).collect();
        }
    }

    /// True when the loop `outer` goes on where `inner`, of length `len`, ends.
    pub(crate) fn walks_as_one(&self, outer: usize, inner: usize, len: i128) -> bool {
        let steps = |outer: i128, inner: i128| outer == inner * len;
        let strides = |of: &[isize]| steps(of[outer] as i128, of[inner] as i128);
        let coefficients = |of: &[i64]| steps(i128::from(of[outer]), i128::from(of[inner]));
        strides(&self.strides)
            && self.lookups.iter().all(|lookup| strides(&lookup.table_strides))
            && self.windows.iter().all(|window| coefficients(&window.coefficients))
    }
}

/// A sum of products of one or two inputs, ready to be matched by kernels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Contraction {
    /// The loops, outermost first: those of the output by falling stride, then the contracted ones.
    pub loops: Vec<Loop>,
    /// The left input.
    pub left: Access,
    /// The right input, if there are two.
    pub right: Option<Access>,
    /// The output. With lookups or windows it accumulates and starts at zero.
    pub out: Access,
    /// Element type of both inputs.
    pub dtype: DType,
    /// Element type of the output: that of the inputs, their accumulator, or any for a single input.
    pub out_dtype: DType,
    /// Policy for values outside a looked-up axis.
    pub bounds: Bounds,
}

impl Contraction {
    /// Positions of the loops with a role.
    pub fn loops_of(&self, role: Role) -> impl DoubleEndedIterator<Item = usize> + '_ {
        self.loops.iter().enumerate().filter(move |(_, l)| l.role == role).map(|(at, _)| at)
    }

    /// Product of the lengths of the loops with a role.
    pub fn len_of(&self, role: Role) -> f64 {
        self.loops_of(role).map(|at| self.loops[at].len as f64).product()
    }

    /// Multiply-adds, times two.
    pub fn flops(&self) -> f64 {
        2.0 * self.loops.iter().map(|l| l.len as f64).product::<f64>()
    }

    /// Number of terms of each sum.
    pub fn terms(&self) -> f64 {
        self.len_of(Role::Contracted)
    }

    /// True when there is nothing to sum or to write.
    pub fn is_empty(&self) -> bool {
        self.loops.iter().any(|l| l.len == 0)
    }

    /// All accesses.
    pub fn accesses(&self) -> impl Iterator<Item = &Access> {
        [Some(&self.left), self.right.as_ref(), Some(&self.out)].into_iter().flatten()
    }

    fn accesses_mut(&mut self) -> impl Iterator<Item = &mut Access> {
        [Some(&mut self.left), self.right.as_mut(), Some(&mut self.out)].into_iter().flatten()
    }

    /// Bytes of the entries that the tables of an access hold for these loops.
    pub fn table_bytes(&self, access: &Access) -> f64 {
        let entries = |lookup: &LookupAccess| -> f64 {
            let moved = (0..self.loops.len()).filter(|&at| lookup.table_strides[at] != 0);
            moved.map(|at| self.loops[at].len as f64).product()
        };
        access.lookups.iter().map(|lookup| entries(lookup) * lookup.entry_bytes as f64).sum()
    }

    /// Distinct bytes of inputs, tables and output: what any way must move at least.
    pub fn distinct_bytes(&self) -> f64 {
        let inputs = [Some(&self.left), self.right.as_ref()].into_iter().flatten();
        let read: f64 = inputs.map(|access| self.distinct_elements(access)).sum();
        let tables: f64 = self.accesses().map(|access| self.table_bytes(access)).sum();
        read * self.dtype.bytes() as f64 + tables + self.distinct_elements(&self.out) * self.out_dtype.bytes() as f64
    }

    /// Elements that an access can reach at most.
    pub fn distinct_elements(&self, access: &Access) -> f64 {
        access.distinct_elements(|at| self.loops[at].len as f64)
    }
}

/// Brings a step into normal form: gives every label its role, drops loops of length one and fuses the rest.
///
/// `sliced` labels are left out; the executor shifts the accesses for them (see [`shift`]).
pub fn classify(
    problem: &Problem,
    left: &Term,
    right: Option<&Term>,
    out: &Term,
    dtype: DType,
    out_dtype: DType,
    sliced: &[LabelId],
) -> Contraction {
    let mut labels: Vec<LabelId> =
        [Some(left), right, Some(out)].into_iter().flatten().flat_map(|term| term.labels(&problem.tables)).collect();
    labels.sort_unstable();
    labels.dedup();
    labels.retain(|label| problem.len(*label) != 1 && !sliced.contains(label));

    let access = |term: &Term| access(term, &labels, &problem.tables);
    let (left, right, out) = (access(left), right.map(access), access(out));
    let loops = labels
        .iter()
        .enumerate()
        .map(|(at, &label)| {
            let in_right = right.as_ref().is_some_and(|right| right.depends_on(at));
            let role = match (left.depends_on(at), in_right, out.depends_on(at)) {
                (_, _, false) => Role::Contracted,
                (true, true, true) => Role::Batch,
                (false, true, true) => Role::Right,
                (_, false, true) => Role::Left,
            };
            Loop { name: problem.name(label).to_string(), len: problem.len(label), role }
        })
        .collect();
    let mut contraction = Contraction { loops, left, right, out, dtype, out_dtype, bounds: problem.bounds };
    // The executor shifts windows for sliced labels, so these stay what they are.
    if sliced.is_empty() {
        contraction.fold_windows();
    }
    contraction.sort();
    contraction.fuse();
    contraction
}

/// A copy between two strided layouts of one shape, converting on its way.
pub(crate) fn copy(
    shape: &[usize],
    from: &[isize],
    to: &[isize],
    dtype: DType,
    out_dtype: DType,
    bounds: Bounds,
) -> Contraction {
    let kept: Vec<usize> = (0..shape.len()).filter(|&at| shape[at] != 1).collect();
    let access =
        |strides: &[isize]| Access { strides: kept.iter().map(|&at| strides[at]).collect(), ..Access::default() };
    let name = |at: usize| format!("{at}");
    let loops = kept.iter().map(|&at| Loop { name: name(at), len: shape[at], role: Role::Left }).collect();
    let mut contraction =
        Contraction { loops, left: access(from), right: None, out: access(to), dtype, out_dtype, bounds };
    contraction.sort();
    contraction.fuse();
    contraction
}

/// How `labels` address the elements of a term.
pub(crate) fn access(term: &Term, labels: &[LabelId], tables: &[Table]) -> Access {
    Access {
        offset: 0,
        strides: labels.iter().map(|&label| term.stride(label)).collect(),
        lookups: term
            .lookups
            .iter()
            .map(|lookup| {
                let strides = &tables[lookup.table].strides;
                let stride = |label: &LabelId| strides.iter().find(|(l, _)| l == label).map_or(0, |(_, s)| *s);
                LookupAccess {
                    table: lookup.table,
                    table_offset: 0,
                    table_strides: labels.iter().map(stride).collect(),
                    entry_bytes: tables[lookup.table].dtype.bytes(),
                    len: lookup.len,
                    stride: lookup.stride,
                }
            })
            .collect(),
        windows: term
            .windows
            .iter()
            .map(|window| {
                let coefficient =
                    |label: &LabelId| window.terms.iter().find(|(l, _)| l == label).map_or(0, |(_, c)| *c);
                WindowAccess {
                    coefficients: labels.iter().map(coefficient).collect(),
                    offset: window.offset,
                    len: window.len,
                    stride: window.stride,
                }
            })
            .collect(),
    }
}

/// Moves an access to the given values of sliced labels.
pub fn shift(access: &mut Access, term: &Term, tables: &[Table], values: &[(LabelId, usize)]) {
    for &(label, value) in values {
        access.offset += term.stride(label) * value as isize;
        for (shifted, lookup) in access.lookups.iter_mut().zip(&term.lookups) {
            let stride = tables[lookup.table].strides.iter().find(|(l, _)| *l == label).map_or(0, |(_, s)| *s);
            shifted.table_offset += stride * value as isize;
        }
        for (shifted, window) in access.windows.iter_mut().zip(&term.windows) {
            let by = window.terms.iter().find(|(l, _)| *l == label).map_or(0, |(_, c)| *c);
            shifted.offset += by * value as i64;
        }
    }
}

impl Contraction {
    /// Turns windows that never leave their axis into strides, where they join a kept and a summed loop of one input: the
    /// windows of a convolution, which then is a product of matrices whose rows overlap. Windows that move with both
    /// inputs keep their name, because there are ways of their own for them.
    fn fold_windows(&mut self) {
        let Contraction { loops, left, right, .. } = self;
        for access in [Some(left), right.as_mut()].into_iter().flatten() {
            let Access { offset, strides, windows, .. } = access;
            windows.retain(|window| {
                let moved =
                    |role: Role| loops.iter().zip(&window.coefficients).any(|(l, &by)| by != 0 && l.role == role);
                let convolves =
                    moved(Role::Contracted) && (moved(Role::Left) || moved(Role::Right)) && !moved(Role::Batch);
                let steps = || loops.iter().zip(&window.coefficients).map(|(l, &by)| by * (l.len as i64 - 1));
                let low: i64 = window.offset + steps().map(|step| step.min(0)).sum::<i64>();
                let high: i64 = window.offset + steps().map(|step| step.max(0)).sum::<i64>();
                if !convolves || loops.iter().any(|l| l.len == 0) || low < 0 || high >= window.len as i64 {
                    return true;
                }
                *offset += window.offset as isize * window.stride;
                for (stride, &by) in strides.iter_mut().zip(&window.coefficients) {
                    *stride += by as isize * window.stride;
                }
                false
            });
        }
    }

    /// The same with loops in the order of the normal form, those that every access walks as one merged.
    #[must_use]
    pub fn fused(mut self) -> Self {
        self.sort();
        self.fuse();
        self
    }

    /// Output loops by falling stride of the output, contracted ones by falling stride of the inputs.
    fn sort(&mut self) {
        let key = |at: usize| {
            let stride = |access: &Access| access.strides[at].unsigned_abs();
            let contracted = self.loops[at].role == Role::Contracted;
            let own = if contracted { 0 } else { stride(&self.out) };
            let inputs = stride(&self.left).max(self.right.as_ref().map_or(0, stride));
            (contracted, std::cmp::Reverse(own), std::cmp::Reverse(inputs), at)
        };
        let mut order: Vec<usize> = (0..self.loops.len()).collect();
        order.sort_by_key(|&at| key(at));
        self.keep(&order);
    }

    /// Keeps the loops of `order`, in that order.
    fn keep(&mut self, order: &[usize]) {
        self.loops = order.iter().map(|&at| self.loops[at].clone()).collect();
        self.accesses_mut().for_each(|access| access.keep(order));
    }

    /// Merges loops that every access walks as one.
    fn fuse(&mut self) {
        'again: loop {
            for inner in 0..self.loops.len() {
                for outer in 0..self.loops.len() {
                    if inner != outer && self.can_fuse(outer, inner) {
                        self.fuse_pair(outer, inner);
                        continue 'again;
                    }
                }
            }
            return;
        }
    }

    fn can_fuse(&self, outer: usize, inner: usize) -> bool {
        let (a, b) = (&self.loops[outer], &self.loops[inner]);
        // Two loops that no access distinguishes (all strides zero) fuse too: their lengths multiply.
        let len = b.len as i128;
        a.role == b.role
            && a.len.checked_mul(b.len).is_some_and(|len| len <= isize::MAX as usize)
            && self.accesses().all(|access| access.walks_as_one(outer, inner, len))
    }

    fn fuse_pair(&mut self, outer: usize, inner: usize) {
        let name = format!("{}{}", self.loops[outer].name, self.loops[inner].name);
        let len = self.loops[outer].len * self.loops[inner].len;
        let role = self.loops[inner].role;
        self.loops[inner] = Loop { name, len, role };
        let order: Vec<usize> = (0..self.loops.len()).filter(|&at| at != outer).collect();
        self.keep(&order);
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Batch => "batch",
            Role::Left => "left",
            Role::Right => "right",
            Role::Contracted => "contracted",
        })
    }
}

impl fmt::Display for Contraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for role in [Role::Batch, Role::Left, Role::Right, Role::Contracted] {
            let mut loops = self.loops_of(role).peekable();
            if loops.peek().is_some() {
                write!(f, "{separator}{role}")?;
                separator = ", ";
                for at in loops {
                    write!(f, " {}={}", self.loops[at].name, self.loops[at].len)?;
                }
            }
        }
        if separator.is_empty() { f.write_str("one product") } else { Ok(()) }
    }
}
