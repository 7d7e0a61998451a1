//! The loops of the dots, written once for every instruction set.
//!
//! A dot runs over the chunks of its row in order, into one set of partial sums, and then through the tree of
//! [`Lanes::full`]; [`Lanes::tail`] sums in the same order. So a dot has the same bits wherever it stands in a list,
//! however the list is split, and whichever of these loops computes it.
#![allow(unsafe_op_in_unsafe_fn)] // the invariants are those of `Lanes` and of the public functions of `rows`

use super::lanes::{Acc, Lanes, Rows, WHOLE, load_last};
use super::{DotList, MultiDots, PairedDots, RowElement};

/// Rows of looked-up dots with `x` in registers: `C` chunks, the last of them `head` elements long, which is as much of
/// a chunk as `LAST` says.
struct Listed<'a, L: Lanes, const C: usize, const LAST: u8> {
    x: &'a [L::Chunk; C],
    rows: *const L::Element,
    offsets: *const isize,
    head: usize,
}

impl<L: Lanes, const C: usize, const LAST: u8> Rows<L::Sums> for Listed<'_, L, C, LAST> {
    #[inline(always)]
    unsafe fn row(&self, i: usize) -> L::Sums {
        let row = self.rows.offset(*self.offsets.add(i));
        let chunk = |c: usize| row.add(c * L::STEP);
        if C == 1 {
            return L::mul(self.x[0], load_last::<L, LAST>(row, self.head));
        }
        let mut sums = L::mul(self.x[0], L::load(row));
        for c in 1..C - 1 {
            sums = L::mul_add(sums, self.x[c], L::load(chunk(c)));
        }
        sums = L::mul_add(sums, self.x[C - 1], load_last::<L, LAST>(chunk(C - 1), self.head));
        sums
    }
}

/// Rows past the end repeat the last one, so that a short block needs no code of its own.
struct Clamped<'a, R> {
    rows: &'a R,
    last: usize,
}

impl<V, R: Rows<V>> Rows<V> for Clamped<'_, R> {
    #[inline(always)]
    unsafe fn row(&self, i: usize) -> V {
        self.rows.row(i.min(self.last))
    }
}

impl<V: Copy, const N: usize> Rows<V> for [V; N] {
    #[inline(always)]
    unsafe fn row(&self, i: usize) -> V {
        self[i]
    }
}

/// How far ahead a run of rows is fetched, bytes: one page. Half and twice as far were no better on Zen 5.
const AHEAD: usize = 4096;

/// Asks for the bytes that come [`AHEAD`] after a run of `bytes`, as data that is read once. A whole block of rows at a
/// time: row by row the requests disturb the hardware's own.
#[inline(always)]
fn fetch_ahead<T>(run: *const T, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..bytes).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_NTA, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and cannot fault, whatever lies there.
        unsafe { _mm_prefetch::<_MM_HINT_NTA>(run.cast::<i8>().wrapping_add(AHEAD + line)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (run, bytes);
}

/// Dots whose `x` fits in `C` chunks. With `once` the rows of a list follow each other without gaps.
#[inline(always)]
pub(super) unsafe fn listed<L: Lanes, const C: usize, const LAST: u8>(
    d: usize,
    lists: &[DotList<L::Element>],
    once: bool,
) {
    let row_bytes = d * size_of::<L::Element>();
    let head = d - (C - 1) * L::STEP;
    for list in lists {
        let rows = list.rows;
        let mut x = [L::zero(); C];
        for (c, chunk) in x.iter_mut().enumerate() {
            let p = list.x.add(c * L::STEP);
            *chunk = if LAST != WHOLE && c + 1 == C { L::load_head(p, head) } else { L::load(p) };
        }
        let at = |i: usize| Listed::<L, C, LAST> { x: &x, rows, offsets: list.offsets.add(i), head };
        let mut i = 0;
        while i + L::BLOCK <= list.count {
            if once {
                fetch_ahead(rows.offset(*list.offsets.add(i)), L::BLOCK * row_bytes);
            }
            L::store(list.out.add(i), L::full(&at(i)));
            i += L::BLOCK;
        }
        while i < list.count {
            let n = L::TAIL.min(list.count - i);
            if once {
                fetch_ahead(rows.offset(*list.offsets.add(i)), n * row_bytes);
            }
            let sums = L::tail(&Clamped { rows: &at(i), last: n - 1 });
            L::store_head(list.out.add(i), sums, n);
            i += n;
        }
    }
}

/// The partial sums of `G` long rows side by side: one chunk of `x` serves all of them.
#[inline(always)]
unsafe fn group<L: Lanes, const G: usize>(
    x: *const L::Element,
    rows: [*const L::Element; G],
    d: usize,
) -> [L::Sums; G] {
    let first = L::load(x);
    let mut sums = [L::mul(first, L::load(rows[0])); G];
    for g in 1..G {
        sums[g] = L::mul(first, L::load(rows[g]));
    }
    let mut j = L::STEP;
    while j + L::STEP <= d {
        let chunk = L::load(x.add(j));
        for g in 0..G {
            sums[g] = L::mul_add(sums[g], chunk, L::load(rows[g].add(j)));
        }
        j += L::STEP;
    }
    if j < d {
        let chunk = L::load_head(x.add(j), d - j);
        for g in 0..G {
            sums[g] = L::mul_add(sums[g], chunk, L::load_head(rows[g].add(j), d - j));
        }
    }
    sums
}

/// Dots of rows that are longer than the registers; `d` is at least [`Lanes::STEP`].
#[inline(always)]
pub(super) unsafe fn long<L: Lanes>(d: usize, lists: &[DotList<L::Element>]) {
    for list in lists {
        let row = |i: usize| list.rows.offset(*list.offsets.add(i));
        let mut i = 0;
        while i + L::BLOCK <= list.count {
            // 16 is the largest block of any lanes; 4 divides every block and gives the four chains that the latency
            // of a multiply-add needs to keep up with the L2.
            let mut sums = [L::mul(L::zero(), L::zero()); 16];
            for g in (0..L::BLOCK).step_by(4) {
                let four = [row(i + g), row(i + g + 1), row(i + g + 2), row(i + g + 3)];
                sums[g..g + 4].copy_from_slice(&group::<L, 4>(list.x, four, d));
            }
            L::store(list.out.add(i), L::full(&sums));
            i += L::BLOCK;
        }
        while i < list.count {
            let n = L::TAIL.min(list.count - i);
            let last = i + n - 1;
            let four = [row(i), row(last.min(i + 1)), row(last.min(i + 2)), row(last)];
            L::store_head(list.out.add(i), L::tail(&group::<L, 4>(list.x, four, d)), n);
            i += n;
        }
    }
}

impl<L: Lanes> Rows<L::Sums> for Pairs<'_, L> {
    #[inline(always)]
    unsafe fn row(&self, i: usize) -> L::Sums {
        let &PairedDots { x, x_offsets, rows, offsets, d, .. } = self.call;
        let x = x.offset(*x_offsets.add(self.first + i));
        let row = rows.offset(*offsets.add(self.first + i));
        if d < L::STEP {
            return L::mul(L::load_head(x, d), L::load_head(row, d));
        }
        let mut sums = L::mul(L::load(x), L::load(row));
        let mut j = L::STEP;
        while j + L::STEP <= d {
            sums = L::mul_add(sums, L::load(x.add(j)), L::load(row.add(j)));
            j += L::STEP;
        }
        if j < d {
            sums = L::mul_add(sums, L::load_head(x.add(j), d - j), L::load_head(row.add(j), d - j));
        }
        sums
    }
}

/// Pairs of rows from the pair `first` on.
struct Pairs<'a, L: Lanes> {
    call: &'a PairedDots<L::Element>,
    first: usize,
}

/// Dots of pairs of rows; `d` is at least 1.
#[inline(always)]
pub(super) unsafe fn paired<L: Lanes>(call: &PairedDots<L::Element>) {
    let &PairedDots { count, out, .. } = call;
    let mut first = 0;
    while first + L::BLOCK <= count {
        L::store(out.add(first), L::full(&Pairs::<L> { call, first }));
        first += L::BLOCK;
    }
    while first < count {
        let n = L::TAIL.min(count - first);
        let sums = L::tail(&Clamped { rows: &Pairs::<L> { call, first }, last: n - 1 });
        L::store_head(out.add(first), sums, n);
        first += n;
    }
}

/// Vectors that share the rows of one block of [`multi`].
pub(super) const MULTI: usize = 4;

/// The dots of up to [`MULTI`] vectors, `call.x` the first, with `R` rows at a time; `B = MULTI * R = L::BLOCK`, and
/// `d` is at least 1.
#[inline(always)]
pub(super) unsafe fn multi<L: Lanes, const B: usize, const R: usize>(call: &MultiDots<L::Element>) {
    debug_assert!(B == L::BLOCK && B == MULTI * R);
    let &MultiDots { m, offsets, count, d, .. } = call;
    let x = [0, 1, 2, 3].map(|k: usize| call.x.offset(k.min(m - 1) as isize * call.x_stride));
    let whole = d / L::STEP;
    let head = d % L::STEP;
    let mut i = 0;
    while i < count {
        let n = R.min(count - i);
        let mut row = [call.rows; R];
        for (r, row) in row.iter_mut().enumerate() {
            *row = call.rows.offset(*offsets.add(i + r.min(n - 1)));
        }
        let mut sums = [L::mul(L::zero(), L::zero()); B];
        let mut chunk = [L::zero(); R];
        for c in 0..whole {
            for r in 0..R {
                chunk[r] = L::load(row[r].add(c * L::STEP));
            }
            for k in 0..MULTI {
                let x = L::load(x[k].add(c * L::STEP));
                for r in 0..R {
                    sums[k * R + r] = L::mul_add(sums[k * R + r], x, chunk[r]);
                }
            }
        }
        if head > 0 {
            for r in 0..R {
                chunk[r] = L::load_head(row[r].add(whole * L::STEP), head);
            }
            for k in 0..MULTI {
                let x = L::load_head(x[k].add(whole * L::STEP), head);
                for r in 0..R {
                    sums[k * R + r] = L::mul_add(sums[k * R + r], x, chunk[r]);
                }
            }
        }
        let mut dots = [<L::Element as RowElement>::ZERO; B];
        L::store(dots.as_mut_ptr(), L::full(&sums));
        for k in 0..m.min(MULTI) {
            let out = call.out.offset(k as isize * call.out_stride).add(i);
            std::ptr::copy_nonoverlapping(dots.as_ptr().add(k * R).cast::<u8>(), out.cast(), n * size_of::<Acc<L>>());
        }
        i += n;
    }
}
