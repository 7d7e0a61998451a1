//! Sums over strided memory whose innermost loops are short: three loops without a walk between them.
//!
//! *In*: a contraction of strides alone. *Out*: its output. A walk takes as long as ten additions, so that here the longest
//! loop over outputs, and two more, are turned by pointers alone. Two forms: [`sums`], whose innermost loop is summed, and
//! [`vectors`], whose innermost loop is a short row of outputs that stays in registers: products of many small matrices.

use std::ops::Range;

use einfall_plan::{Access, Contraction, Role};
use smallvec::SmallVec;

use super::{Shape, inner};
use crate::ops::Run;
use crate::scalar::Scalar;
use crate::walk::{BadTable, Walk};

/// Terms that one task takes at least.
const TASK: usize = 1 << 14;
/// Lengths of rows of outputs that stay in registers: each is compiled for itself.
const WIDTHS: [usize; 5] = [2, 3, 4, 8, 16];
/// Most terms of a sum of such rows.
const LONGEST: usize = 64;

/// One loop: its length, and the strides of left, right and output.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    pub(super) len: usize,
    pub(super) strides: [isize; 3],
}

impl Turn {
    const ONCE: Turn = Turn { len: 1, strides: [0; 3] };

    fn of(contraction: &Contraction, at: usize) -> Turn {
        let right = contraction.right.as_ref().map_or(0, |right| right.strides[at]);
        let strides = [contraction.left.strides[at], right, contraction.out.strides[at]];
        Turn { len: contraction.loops[at].len, strides }
    }
}

/// Which loops are turned by pointers; all others are walked.
struct Nest {
    inner: Turn,
    /// Summed, around the innermost.
    summed: Turn,
    /// Outputs, around those: the second one is the longest, and cut into tasks.
    outputs: [Turn; 2],
    /// Outputs that are walked.
    outer: SmallVec<[(usize, usize); 8]>,
    /// Sums that are walked.
    turns: SmallVec<[(usize, usize); 8]>,
}

impl Nest {
    fn of(contraction: &Contraction, shape: &Shape) -> Nest {
        let len = |at: &usize| contraction.loops[*at].len;
        let mut outer = shape.outer.clone();
        let mut turns = shape.summed.clone();
        let take = |from: &mut Vec<usize>| {
            let longest = (0..from.len()).max_by_key(|&place| (len(&from[place]), place))?;
            Some(Turn::of(contraction, from.remove(longest)))
        };
        let summed = take(&mut turns);
        let (long, other) = (take(&mut outer), take(&mut outer));
        let with_len = |loops: Vec<usize>| loops.into_iter().map(|at| (at, contraction.loops[at].len)).collect();
        Nest {
            inner: shape.inner.map_or(Turn::ONCE, |at| Turn::of(contraction, at)),
            summed: summed.unwrap_or(Turn::ONCE),
            outputs: [other.unwrap_or(Turn::ONCE), long.unwrap_or(Turn::ONCE)],
            outer: with_len(outer),
            turns: with_len(turns),
        }
    }

    /// How many of the longest loop's outputs a task takes, and how many tasks that makes of it.
    fn pieces(&self) -> (usize, usize) {
        let terms: usize = self.inner.len * self.summed.len * self.outputs[0].len;
        let terms = terms * self.turns.iter().map(|(_, len)| len).product::<usize>();
        let piece = (TASK / terms.max(1)).clamp(1, self.outputs[1].len);
        (piece, self.outputs[1].len.div_ceil(piece))
    }
}

/// Whether [`sums`] runs a contraction, and better than the walk does.
pub(super) fn is_sums(contraction: &Contraction, shape: &Shape) -> bool {
    let Some(at) = shape.inner else { return false };
    contraction.accesses().all(Access::is_plain) && contraction.loops[at].role == Role::Contracted
}

/// Whether [`vectors`] runs a contraction, and better than the walk does.
pub(super) fn is_vectors(contraction: &Contraction, shape: &Shape) -> bool {
    let (Some(at), Some(right)) = (shape.inner, &contraction.right) else { return false };
    let row = &contraction.loops[at];
    contraction.accesses().all(Access::is_plain)
        && row.role != Role::Contracted
        && WIDTHS.contains(&row.len)
        && contraction.out.strides[at] == 1
        && (0..=1).contains(&contraction.left.strides[at])
        && (0..=1).contains(&right.strides[at])
        && matches!(shape.summed[..], [summed] if contraction.loops[summed].len <= LONGEST)
}

/// Sums whose innermost loop is contracted.
///
/// # Safety
/// As [`typed`](super::typed), of a contraction that [`is_sums`].
pub(super) unsafe fn sums<T: Scalar, U: Scalar<Acc = T::Acc>>(run: &Run<'_>, shape: &Shape) -> Result<(), BadTable> {
    let nest = Nest::of(run.contraction, shape);
    let turn_count: usize = nest.turns.iter().map(|(_, len)| len).product();
    let contraction = run.contraction;
    let far = contraction.distinct_bytes() > run.machine.l3_bytes as f64;
    each_piece(run, &nest, |outputs, base| {
        let accesses = [&contraction.left, contraction.right.as_ref().unwrap_or(&contraction.left)];
        let turns = nest.turns.iter().copied();
        let mut walk = (turn_count > 1).then(|| Walk::new(accesses, turns, run.tables, contraction.bounds));
        for i in outputs {
            for j in 0..nest.outputs[0].len {
                let [l, r, o] = [0, 1, 2].map(|which| {
                    let [other, long] = nest.outputs.map(|turn| turn.strides[which]);
                    base[which] + i as isize * long + j as isize * other
                });
                let mut total = T::ZERO;
                for _ in 0..turn_count {
                    let [dl, dr] = walk
                        .as_ref()
                        .map_or([0; 2], |walk| [0, 1].map(|at| walk.plain_offset(at) - accesses[at].offset));
                    // SAFETY: `bound`: all loops are within their lengths.
                    unsafe {
                        let l = run.left.cast::<T>().offset(l + dl);
                        let r = contraction.right.as_ref().map(|_| run.right.cast::<T>().offset(r + dr));
                        let sum = inner::plane::<T>(run.isa, far, nest.summed, nest.inner, l, r);
                        total = if turn_count == 1 { sum } else { T::add(total, sum) };
                    }
                    if let Some(walk) = &mut walk {
                        walk.step();
                    }
                }
                // SAFETY: `bound`, and this output is this piece's own.
                unsafe { run.out.cast::<U>().offset(o).write_unaligned(U::narrow(total)) };
            }
        }
    })
}

/// Short rows of outputs that stay in registers while their terms are added.
///
/// # Safety
/// As [`typed`](super::typed), of a contraction that [`is_vectors`].
pub(super) unsafe fn vectors<T: Scalar, U: Scalar<Acc = T::Acc>>(run: &Run<'_>, shape: &Shape) -> Result<(), BadTable> {
    let nest = Nest::of(run.contraction, shape);
    let turns = [nest.outputs[0], nest.summed, nest.inner];
    each_piece(run, &nest, |outputs, base| {
        let long = nest.outputs[1].strides;
        let start = |which: usize| base[which] + outputs.start as isize * long[which];
        let first = Turn { len: outputs.len(), strides: long };
        // SAFETY: `bound`: all loops are within their lengths; these outputs are this piece's own.
        unsafe {
            let (l, r) = (run.left.cast::<T>().offset(start(0)), run.right.cast::<T>().offset(start(1)));
            let o = run.out.cast::<U>().offset(start(2));
            inner::rows::<T, U>(run.isa, first, turns, l, r, o);
        }
    })
}

/// Calls `work` with ranges of the longest loop of outputs, and the offsets at which the other loops stand.
fn each_piece(run: &Run<'_>, nest: &Nest, work: impl Fn(Range<usize>, [isize; 3]) + Sync) -> Result<(), BadTable> {
    let contraction = run.contraction;
    let (piece, pieces) = nest.pieces();
    let total = nest.outer.iter().map(|(_, len)| len).product::<usize>() * pieces;
    let accesses = [&contraction.left, contraction.right.as_ref().unwrap_or(&contraction.left), &contraction.out];
    run.threads.for_pieces(total, run.threads.piece(total, 8), run.serial_seconds, |range| {
        let mut walk = Walk::new(accesses, nest.outer.iter().copied(), run.tables, contraction.bounds);
        walk.seek(range.start / pieces);
        for flat in range {
            let first = flat % pieces * piece;
            let last = (first + piece).min(nest.outputs[1].len);
            work(first..last, [0, 1, 2].map(|which| walk.plain_offset(which)));
            if (flat + 1).is_multiple_of(pieces) {
                walk.step();
            }
        }
        Ok(())
    })
}
