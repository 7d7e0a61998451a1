//! Packing two neighbours along k into the place of one accumulator, for micro-kernels that multiply pairs.
//!
//! In and out as for `pack`, which calls this. An odd length ends with a zero.

#![cfg(target_arch = "x86_64")]

use super::{MAX_LANES, Matrix, Offsets, Side, TileElement, Vector};
use crate::kernels::tile::{Accumulator, prefetch};

/// # Safety
/// As for [`super::pack`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(super) unsafe fn pack_avx512<T: TileElement>(
    side: Side,
    from: Matrix<'_, T>,
    count: usize,
    k: usize,
    step: usize,
    to: *mut T::Acc,
) {
    // SAFETY: the caller's ranges.
    unsafe {
        let Offsets::Runs { starts, len, stride } = from.rows else {
            return panels::<T, <T::Acc as Accumulator>::Avx512>(side, from, count, k, step, to);
        };
        debug_assert!(count.is_multiple_of(len));
        let room = len.div_ceil(step) * step * k.div_ceil(2);
        for (number, start) in starts[..count / len].iter().enumerate() {
            let ptr = from.ptr.wrapping_offset(*start);
            let run = Matrix { ptr, rows: Offsets::Strided(stride), cols: from.cols };
            panels::<T, <T::Acc as Accumulator>::Avx512>(side, run, len, k, step, to.add(number * room));
        }
    }
}

/// # Safety
/// As for [`super::pack`].
#[inline(always)]
unsafe fn panels<T: TileElement, V: Vector<Elem = T::Acc>>(
    side: Side,
    from: Matrix<'_, T>,
    count: usize,
    k: usize,
    step: usize,
    mut to: *mut T::Acc,
) {
    let mut start = 0;
    while start < count {
        let valid = step.min(count - start);
        let stride = side.stride(valid, V::LANES);
        let panel = from.from(start, 0);
        // SAFETY: the panel is a part of the caller's range.
        unsafe {
            if panel.rows.stride_of(valid) == Some(1) {
                let first = panel.ptr.wrapping_offset(panel.rows.get(0));
                for p in (0..k).step_by(2) {
                    let row = to.add(p / 2 * stride);
                    let even = first.offset(panel.cols.get(p));
                    if p + 1 < k {
                        let odd = first.offset(panel.cols.get(p + 1));
                        for x in 0..valid {
                            *row.add(x) = T::pair(*even.add(x), Some(*odd.add(x)));
                        }
                    } else {
                        for x in 0..valid {
                            *row.add(x) = T::pair(*even.add(x), None);
                        }
                    }
                    for x in valid..stride {
                        *row.add(x) = T::Acc::ZERO;
                    }
                }
            } else if panel.cols.stride() == Some(1) {
                transpose::<T, V>(panel, valid, k, stride, to);
            } else {
                for p in (0..k).step_by(2) {
                    let row = to.add(p / 2 * stride);
                    for x in 0..valid {
                        let even = *panel.ptr.offset(panel.offset(x, p));
                        let odd = (p + 1 < k).then(|| *panel.ptr.offset(panel.offset(x, p + 1)));
                        *row.add(x) = T::pair(even, odd);
                    }
                    for x in valid..stride {
                        *row.add(x) = T::Acc::ZERO;
                    }
                }
            }
            to = to.add(stride * k.div_ceil(2));
        }
        start += step;
    }
}

/// Columns of stride 1: two neighbours are already the pair.
///
/// # Safety
/// As for [`super::pack`], for one panel.
#[inline(always)]
unsafe fn transpose<T: TileElement, V: Vector<Elem = T::Acc>>(
    from: Matrix<'_, T>,
    valid: usize,
    k: usize,
    stride: usize,
    to: *mut T::Acc,
) {
    let zeros = [T::Acc::ZERO; MAX_LANES];
    let whole = k / 2;
    for first in (0..valid).step_by(V::LANES) {
        let count = V::LANES.min(valid - first);
        let mut sources = [from.ptr; MAX_LANES];
        for (x, source) in sources.iter_mut().enumerate().take(count) {
            *source = from.ptr.wrapping_offset(from.rows.get(first + x));
        }
        let mut ends = zeros;
        let mut rows = [zeros.as_ptr(); MAX_LANES];
        // SAFETY: rows below `count` have `k` elements, the others are zeros.
        unsafe {
            for p in (0..whole).step_by(V::LANES) {
                for (row, source) in rows.iter_mut().zip(&sources[..count]) {
                    *row = source.add(2 * p).cast();
                    prefetch(source.wrapping_add(2 * p + 8 * V::LANES));
                }
                V::transpose(&rows, V::LANES.min(whole - p), to.add(p * stride + first), stride);
            }
            if k % 2 == 1 {
                for (end, source) in ends.iter_mut().zip(&sources[..count]) {
                    *end = T::pair(*source.add(k - 1), None);
                }
                for (x, row) in rows.iter_mut().enumerate() {
                    *row = ends.as_ptr().wrapping_add(x);
                }
                V::transpose(&rows, 1, to.add(whole * stride + first), stride);
            }
        }
    }
}
