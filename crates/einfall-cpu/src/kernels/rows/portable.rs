//! Lanes of every dtype as plain arrays, which the compiler vectorises where it can.
#![allow(unsafe_op_in_unsafe_fn)] // the invariants are those of `Lanes`

use std::marker::PhantomData;

use super::RowElement;
use super::lanes::{Lanes, Rows};

/// Eight elements at a time.
pub(super) struct Array<T>(PhantomData<T>);

const STEP: usize = 8;

impl<T> Array<T> {
    pub(super) fn new() -> Array<T> {
        Array(PhantomData)
    }
}

#[inline(always)]
fn sum<T: RowElement>(v: [T::Acc; STEP]) -> T::Acc {
    let four = [T::add(v[0], v[4]), T::add(v[1], v[5]), T::add(v[2], v[6]), T::add(v[3], v[7])];
    T::add(T::ZERO, T::add(T::add(four[0], four[2]), T::add(four[1], four[3])))
}

impl<T: RowElement> Lanes for Array<T> {
    type Element = T;
    type Chunk = [T::Acc; STEP];
    type Sums = [T::Acc; STEP];
    type Weight = T::Acc;

    const STEP: usize = STEP;
    const BLOCK: usize = STEP;
    const TAIL: usize = 4;
    const DOT_CHUNKS: usize = 4;
    const AXPY_CHUNKS: usize = 4;
    const SIDE_BY_SIDE: usize = 4;

    #[inline(always)]
    unsafe fn load(p: *const T) -> [T::Acc; STEP] {
        p.cast::<[T; STEP]>().read_unaligned().map(T::widen)
    }

    #[inline(always)]
    unsafe fn load_head(p: *const T, n: usize) -> [T::Acc; STEP] {
        let mut chunk = [T::ZERO; STEP];
        for (j, value) in chunk.iter_mut().enumerate().take(n) {
            *value = p.add(j).read_unaligned().widen();
        }
        chunk
    }

    #[inline(always)]
    unsafe fn mul(a: [T::Acc; STEP], b: [T::Acc; STEP]) -> [T::Acc; STEP] {
        Self::mul_add([T::ZERO; STEP], a, b)
    }

    #[inline(always)]
    unsafe fn mul_add(mut sums: [T::Acc; STEP], a: [T::Acc; STEP], b: [T::Acc; STEP]) -> [T::Acc; STEP] {
        for j in 0..STEP {
            sums[j] = T::add(sums[j], T::mul(a[j], b[j]));
        }
        sums
    }

    #[inline(always)]
    unsafe fn full(rows: &impl Rows<[T::Acc; STEP]>) -> [T::Acc; STEP] {
        let mut dots = [T::ZERO; STEP];
        for (i, dot) in dots.iter_mut().enumerate() {
            *dot = sum::<T>(rows.row(i));
        }
        dots
    }

    #[inline(always)]
    unsafe fn tail(rows: &impl Rows<[T::Acc; STEP]>) -> [T::Acc; STEP] {
        let mut dots = [T::ZERO; STEP];
        for (i, dot) in dots.iter_mut().enumerate().take(Self::TAIL) {
            *dot = sum::<T>(rows.row(i));
        }
        dots
    }

    #[inline(always)]
    unsafe fn store(out: *mut T::Acc, sums: [T::Acc; STEP]) {
        out.cast::<[T::Acc; STEP]>().write_unaligned(sums);
    }

    #[inline(always)]
    unsafe fn store_head(out: *mut T::Acc, sums: [T::Acc; STEP], n: usize) {
        for (j, value) in sums.iter().enumerate().take(n) {
            out.add(j).write_unaligned(*value);
        }
    }

    #[inline(always)]
    unsafe fn zero() -> [T::Acc; STEP] {
        [T::ZERO; STEP]
    }

    #[inline(always)]
    unsafe fn load_acc(p: *const T::Acc) -> [T::Acc; STEP] {
        p.cast::<[T::Acc; STEP]>().read_unaligned()
    }

    #[inline(always)]
    unsafe fn load_acc_head(p: *const T::Acc, n: usize) -> [T::Acc; STEP] {
        let mut chunk = [T::ZERO; STEP];
        for (j, value) in chunk.iter_mut().enumerate().take(n) {
            *value = p.add(j).read_unaligned();
        }
        chunk
    }

    #[inline(always)]
    unsafe fn store_acc(p: *mut T::Acc, chunk: [T::Acc; STEP]) {
        Self::store(p, chunk);
    }

    #[inline(always)]
    unsafe fn store_acc_head(p: *mut T::Acc, chunk: [T::Acc; STEP], n: usize) {
        Self::store_head(p, chunk, n);
    }

    #[inline(always)]
    unsafe fn splat(w: *const T) -> T::Acc {
        w.read_unaligned().widen()
    }

    #[inline(always)]
    unsafe fn splat_acc(w: *const T::Acc) -> T::Acc {
        w.read_unaligned()
    }

    #[inline(always)]
    unsafe fn axpy(acc: [T::Acc; STEP], w: T::Acc, row: [T::Acc; STEP]) -> [T::Acc; STEP] {
        Self::mul_add(acc, [w; STEP], row)
    }
}

super::entry::entries!();
