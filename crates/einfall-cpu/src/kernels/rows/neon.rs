//! Lanes of NEON: 4 sums of `f32`, or 4 of `f64` in two registers.
#![allow(unsafe_op_in_unsafe_fn)] // the invariants are those of `Lanes`

use std::arch::aarch64::*;

use super::lanes::{Lanes, Rows};

super::entry::entries!(#[target_feature(enable = "neon")]);

/// The first `n` of four values, the rest 0; NEON has no masked load.
#[inline(always)]
unsafe fn copy_head<T: Copy + Default>(p: *const T, n: usize) -> [T; 4] {
    let mut values = [T::default(); 4];
    for (j, value) in values.iter_mut().enumerate().take(n) {
        *value = p.add(j).read_unaligned();
    }
    values
}

#[inline(always)]
unsafe fn store_copy<T: Copy>(p: *mut T, values: [T; 4], n: usize) {
    for (j, value) in values.iter().enumerate().take(n) {
        p.add(j).write_unaligned(*value);
    }
}

/// `f32`.
pub(super) struct F32;

impl Lanes for F32 {
    type Element = f32;
    type Chunk = float32x4_t;
    type Sums = float32x4_t;
    type Weight = float32x4_t;

    const STEP: usize = 4;
    const BLOCK: usize = 4;
    const TAIL: usize = 4;
    const DOT_CHUNKS: usize = 8;
    const AXPY_CHUNKS: usize = 8;
    const SIDE_BY_SIDE: usize = 14;

    #[inline(always)]
    unsafe fn load(p: *const f32) -> float32x4_t {
        vld1q_f32(p)
    }

    #[inline(always)]
    unsafe fn load_head(p: *const f32, n: usize) -> float32x4_t {
        vld1q_f32(copy_head(p, n).as_ptr())
    }

    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vmulq_f32(a, b)
    }

    #[inline(always)]
    unsafe fn mul_add(sums: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vfmaq_f32(sums, a, b)
    }

    #[inline(always)]
    unsafe fn full(rows: &impl Rows<float32x4_t>) -> float32x4_t {
        let low = vpaddq_f32(rows.row(0), rows.row(1));
        let dots = vpaddq_f32(low, vpaddq_f32(rows.row(2), rows.row(3)));
        // Adding +0 turns a sum of nothing but −0 into the +0 that a sum from zero has.
        vaddq_f32(dots, vdupq_n_f32(0.0))
    }

    #[inline(always)]
    unsafe fn tail(rows: &impl Rows<float32x4_t>) -> float32x4_t {
        Self::full(rows)
    }

    #[inline(always)]
    unsafe fn store(out: *mut f32, sums: float32x4_t) {
        vst1q_f32(out, sums);
    }

    #[inline(always)]
    unsafe fn store_head(out: *mut f32, sums: float32x4_t, n: usize) {
        let mut values = [0.0; 4];
        vst1q_f32(values.as_mut_ptr(), sums);
        store_copy(out, values, n);
    }

    #[inline(always)]
    unsafe fn zero() -> float32x4_t {
        vdupq_n_f32(0.0)
    }

    #[inline(always)]
    unsafe fn load_acc(p: *const f32) -> float32x4_t {
        vld1q_f32(p)
    }

    #[inline(always)]
    unsafe fn load_acc_head(p: *const f32, n: usize) -> float32x4_t {
        Self::load_head(p, n)
    }

    #[inline(always)]
    unsafe fn store_acc(p: *mut f32, chunk: float32x4_t) {
        vst1q_f32(p, chunk);
    }

    #[inline(always)]
    unsafe fn store_acc_head(p: *mut f32, chunk: float32x4_t, n: usize) {
        Self::store_head(p, chunk, n);
    }

    #[inline(always)]
    unsafe fn splat(w: *const f32) -> float32x4_t {
        vdupq_n_f32(w.read_unaligned())
    }

    #[inline(always)]
    unsafe fn splat_acc(w: *const f32) -> float32x4_t {
        vdupq_n_f32(w.read_unaligned())
    }

    #[inline(always)]
    unsafe fn axpy(acc: float32x4_t, w: float32x4_t, row: float32x4_t) -> float32x4_t {
        vfmaq_f32(acc, w, row)
    }
}

/// `f64`, in pairs of registers.
pub(super) struct F64;

impl Lanes for F64 {
    type Element = f64;
    type Chunk = [float64x2_t; 2];
    type Sums = [float64x2_t; 2];
    type Weight = float64x2_t;

    const STEP: usize = 4;
    const BLOCK: usize = 4;
    const TAIL: usize = 4;
    const DOT_CHUNKS: usize = 4;
    const AXPY_CHUNKS: usize = 4;
    const SIDE_BY_SIDE: usize = 8;

    #[inline(always)]
    unsafe fn load(p: *const f64) -> [float64x2_t; 2] {
        [vld1q_f64(p), vld1q_f64(p.add(2))]
    }

    #[inline(always)]
    unsafe fn load_head(p: *const f64, n: usize) -> [float64x2_t; 2] {
        Self::load(copy_head(p, n).as_ptr())
    }

    #[inline(always)]
    unsafe fn mul(a: [float64x2_t; 2], b: [float64x2_t; 2]) -> [float64x2_t; 2] {
        [vmulq_f64(a[0], b[0]), vmulq_f64(a[1], b[1])]
    }

    #[inline(always)]
    unsafe fn mul_add(sums: [float64x2_t; 2], a: [float64x2_t; 2], b: [float64x2_t; 2]) -> [float64x2_t; 2] {
        [vfmaq_f64(sums[0], a[0], b[0]), vfmaq_f64(sums[1], a[1], b[1])]
    }

    #[inline(always)]
    unsafe fn full(rows: &impl Rows<[float64x2_t; 2]>) -> [float64x2_t; 2] {
        let (a, b) = (rows.row(0), rows.row(1));
        let low = vpaddq_f64(vaddq_f64(a[0], a[1]), vaddq_f64(b[0], b[1]));
        let (a, b) = (rows.row(2), rows.row(3));
        let high = vpaddq_f64(vaddq_f64(a[0], a[1]), vaddq_f64(b[0], b[1]));
        [vaddq_f64(low, vdupq_n_f64(0.0)), vaddq_f64(high, vdupq_n_f64(0.0))]
    }

    #[inline(always)]
    unsafe fn tail(rows: &impl Rows<[float64x2_t; 2]>) -> [float64x2_t; 2] {
        Self::full(rows)
    }

    #[inline(always)]
    unsafe fn store(out: *mut f64, sums: [float64x2_t; 2]) {
        vst1q_f64(out, sums[0]);
        vst1q_f64(out.add(2), sums[1]);
    }

    #[inline(always)]
    unsafe fn store_head(out: *mut f64, sums: [float64x2_t; 2], n: usize) {
        let mut values = [0.0; 4];
        Self::store(values.as_mut_ptr(), sums);
        store_copy(out, values, n);
    }

    #[inline(always)]
    unsafe fn zero() -> [float64x2_t; 2] {
        [vdupq_n_f64(0.0); 2]
    }

    #[inline(always)]
    unsafe fn load_acc(p: *const f64) -> [float64x2_t; 2] {
        Self::load(p)
    }

    #[inline(always)]
    unsafe fn load_acc_head(p: *const f64, n: usize) -> [float64x2_t; 2] {
        Self::load_head(p, n)
    }

    #[inline(always)]
    unsafe fn store_acc(p: *mut f64, chunk: [float64x2_t; 2]) {
        Self::store(p, chunk);
    }

    #[inline(always)]
    unsafe fn store_acc_head(p: *mut f64, chunk: [float64x2_t; 2], n: usize) {
        Self::store_head(p, chunk, n);
    }

    #[inline(always)]
    unsafe fn splat(w: *const f64) -> float64x2_t {
        vdupq_n_f64(w.read_unaligned())
    }

    #[inline(always)]
    unsafe fn splat_acc(w: *const f64) -> float64x2_t {
        vdupq_n_f64(w.read_unaligned())
    }

    #[inline(always)]
    unsafe fn axpy(acc: [float64x2_t; 2], w: float64x2_t, row: [float64x2_t; 2]) -> [float64x2_t; 2] {
        [vfmaq_f64(acc[0], w, row[0]), vfmaq_f64(acc[1], w, row[1])]
    }
}
