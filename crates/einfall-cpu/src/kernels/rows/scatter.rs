//! The loop of the scatter, written once for every instruction set.
//!
//! The vector stays in registers, and one multiply-add an element goes to each row in memory, in the order of the list. So
//! a row that is added to has the bits of an axpy whose list names what was added, in that order.
#![allow(unsafe_op_in_unsafe_fn)] // the invariants are those of `Lanes` and of the public functions of `rows`

use super::ScatterList;
use super::lanes::{Lanes, WHOLE, load_last};

/// The `C` chunks of columns from `column` on, for all rows of a list.
#[inline(always)]
pub(super) unsafe fn columns<L: Lanes, const C: usize, const LAST: u8>(
    column: usize,
    d: usize,
    list: &ScatterList<L::Element>,
) {
    let head = (d - column - (C - 1) * L::STEP).min(L::STEP);
    let mut x = [L::zero(); C];
    for (c, chunk) in x.iter_mut().enumerate() {
        let p = list.x.add(column + c * L::STEP);
        *chunk = if c + 1 == C { load_last::<L, LAST>(p, head) } else { L::load(p) };
    }
    for i in 0..list.count {
        let row = list.rows.offset(*list.offsets.add(i)).add(column);
        let w = L::splat_acc(list.weights.add(i));
        for (c, chunk) in x.iter().enumerate() {
            let p = row.add(c * L::STEP);
            if LAST != WHOLE && c + 1 == C {
                L::store_acc_head(p, L::axpy(L::load_acc_head(p, head), w, *chunk), head);
            } else {
                L::store_acc(p, L::axpy(L::load_acc(p), w, *chunk));
            }
        }
    }
}
