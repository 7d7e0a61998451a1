//! The loops of the axpys, written once for every instruction set.
//!
//! An accumulator stays in registers while all rows of its list pass, one multiply-add a row, in the order of the
//! list. So a list has the same bits however it is split into calls, and whichever of these loops computes it. With
//! few chunks to a row that chain of multiply-adds would be bound by its latency; several lists then run side by side.
#![allow(unsafe_op_in_unsafe_fn)] // the invariants are those of `Lanes` and of the public functions of `rows`

use super::lanes::{Acc, Lanes, WHOLE, load_last};
use super::{AxpyList, MultiAxpys, RowElement, RowWeight};

/// One weight, of the dtype of the rows or of the accumulator.
#[inline(always)]
unsafe fn weight<L: Lanes, W: RowWeight<L::Element>>(w: *const W) -> L::Weight {
    if W::IS_ELEMENT { L::splat(w.cast()) } else { L::splat_acc(w.cast()) }
}

#[inline(always)]
unsafe fn load_accs<L: Lanes, const C: usize, const LAST: u8>(
    acc: *const Acc<L>,
    head: usize,
    accumulate: bool,
) -> [L::Chunk; C] {
    let mut chunks = [L::zero(); C];
    if accumulate {
        for (c, chunk) in chunks.iter_mut().enumerate() {
            let p = acc.add(c * L::STEP);
            *chunk = if LAST != WHOLE && c + 1 == C { L::load_acc_head(p, head) } else { L::load_acc(p) };
        }
    }
    chunks
}

#[inline(always)]
unsafe fn store_accs<L: Lanes, const C: usize, const LAST: u8>(acc: *mut Acc<L>, chunks: &[L::Chunk; C], head: usize) {
    for (c, chunk) in chunks.iter().enumerate() {
        let p = acc.add(c * L::STEP);
        if LAST != WHOLE && c + 1 == C { L::store_acc_head(p, *chunk, head) } else { L::store_acc(p, *chunk) }
    }
}

#[inline(always)]
unsafe fn add_row<L: Lanes, const C: usize, const LAST: u8>(
    chunks: &mut [L::Chunk; C],
    w: L::Weight,
    row: *const L::Element,
    head: usize,
) {
    for (c, chunk) in chunks.iter_mut().enumerate() {
        let p = row.add(c * L::STEP);
        let value = if c + 1 == C { load_last::<L, LAST>(p, head) } else { L::load(p) };
        *chunk = L::axpy(*chunk, w, value);
    }
}

/// `P` lists side by side over one block of `C` chunks of columns, which starts at `column`.
#[inline(always)]
unsafe fn side_by_side<L: Lanes, W: RowWeight<L::Element>, const P: usize, const C: usize, const LAST: u8>(
    column: usize,
    head: usize,
    lists: &[AxpyList<L::Element, W>; P],
    accumulate: bool,
) {
    let mut accs = [[L::zero(); C]; P];
    let mut common = usize::MAX;
    for p in 0..P {
        accs[p] = load_accs::<L, C, LAST>(lists[p].acc.add(column), head, accumulate);
        common = common.min(lists[p].count);
    }
    for i in 0..common {
        for p in 0..P {
            let row = lists[p].rows.offset(*lists[p].offsets.add(i)).add(column);
            let w = weight::<L, W>(lists[p].weights.add(i));
            add_row::<L, C, LAST>(&mut accs[p], w, row, head);
        }
    }
    for p in 0..P {
        let list = &lists[p];
        for i in common..list.count {
            let row = list.rows.offset(*list.offsets.add(i)).add(column);
            add_row::<L, C, LAST>(&mut accs[p], weight::<L, W>(list.weights.add(i)), row, head);
        }
        store_accs::<L, C, LAST>(list.acc.add(column), &accs[p], head);
    }
}

/// A block of `C` chunks of columns for all lists, `P` lists at a time.
#[inline(always)]
pub(super) unsafe fn columns<L: Lanes, W: RowWeight<L::Element>, const P: usize, const C: usize, const LAST: u8>(
    column: usize,
    d: usize,
    lists: &[AxpyList<L::Element, W>],
    accumulate: bool,
) {
    let head = (d - column - (C - 1) * L::STEP).min(L::STEP);
    let (groups, rest) = lists.as_chunks::<P>();
    for group in groups {
        side_by_side::<L, W, P, C, LAST>(column, head, group, accumulate);
    }
    for list in rest {
        side_by_side::<L, W, 1, C, LAST>(column, head, &[*list], accumulate);
    }
}

/// Weight vectors that share the rows of one pass of [`multi`].
pub(super) const MULTI: usize = 4;

/// Up to [`MULTI`] weight vectors, `call.weights` the first, for the `C` chunks of columns from `column` on.
#[inline(always)]
pub(super) unsafe fn multi<L: Lanes, W: RowWeight<L::Element>, const C: usize, const LAST: u8>(
    call: &MultiAxpys<L::Element, W>,
    column: usize,
) {
    let &MultiAxpys { m, offsets, count, d, accumulate, .. } = call;
    let head = (d - column - (C - 1) * L::STEP).min(L::STEP);
    // Vectors past the last repeat it and are not stored.
    let last = m.min(MULTI) - 1;
    let weights = [0, 1, 2, 3].map(|k: usize| call.weights.offset(k.min(last) as isize * call.weight_stride));
    let acc = [0, 1, 2, 3].map(|k: usize| call.acc.offset(k.min(last) as isize * call.acc_stride).add(column));
    let rows = call.rows.add(column);
    let mut accs = [[L::zero(); C]; MULTI];
    for k in 0..MULTI {
        accs[k] = load_accs::<L, C, LAST>(acc[k], head, accumulate);
    }
    for i in 0..count {
        let row = rows.offset(*offsets.add(i));
        let mut w = [weight::<L, W>(weights[0].add(i)); MULTI];
        for k in 1..MULTI {
            w[k] = weight::<L, W>(weights[k].add(i));
        }
        for c in 0..C {
            let p = row.add(c * L::STEP);
            let value = if c + 1 == C { load_last::<L, LAST>(p, head) } else { L::load(p) };
            for (accs, w) in accs.iter_mut().zip(w) {
                accs[c] = L::axpy(accs[c], w, value);
            }
        }
    }
    for k in 0..=last {
        store_accs::<L, C, LAST>(acc[k], &accs[k], head);
    }
}

/// Accumulators of empty sums.
pub(super) unsafe fn clear<T: RowElement>(acc: *mut T::Acc, n: usize) {
    for j in 0..n {
        acc.add(j).write_unaligned(T::ZERO);
    }
}
