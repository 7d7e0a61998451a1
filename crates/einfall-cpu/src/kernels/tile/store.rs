//! Writing a tile that the micro-kernel could not store itself: another type, scattered rows or columns, or an edge
//! without masks.
//!
//! In: rows of accumulators in a buffer. Out: elements of C, converted once.

use crate::isa::Isa;
use crate::pack::MatrixMut;

use super::{Accumulator, TileElement};

/// Writes `c[i, j] = narrow(from[i·stride + j])`, or adds it to `c` in the accumulator type if `add`.
///
/// # Safety
/// The instruction set is available; `from` is initialised and `c` writable for i < rows, j < cols, and readable if
/// `add`.
#[inline(always)]
pub unsafe fn store<U: TileElement>(
    isa: Isa,
    from: *const U::Acc,
    stride: usize,
    rows: usize,
    cols: usize,
    c: MatrixMut<'_, U>,
    add: bool,
) {
    // SAFETY: the caller's ranges; the instruction set is available.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => store_avx512(from, stride, rows, cols, c, add),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => store_avx2(from, stride, rows, cols, c, add),
            _ => body(from, stride, rows, cols, c, add),
        }
    }
}

/// # Safety
/// As for [`store`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn store_avx512<U: TileElement>(
    from: *const U::Acc,
    stride: usize,
    rows: usize,
    cols: usize,
    c: MatrixMut<'_, U>,
    add: bool,
) {
    // SAFETY: the caller's ranges.
    unsafe { body(from, stride, rows, cols, c, add) }
}

/// # Safety
/// As for [`store`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store_avx2<U: TileElement>(
    from: *const U::Acc,
    stride: usize,
    rows: usize,
    cols: usize,
    c: MatrixMut<'_, U>,
    add: bool,
) {
    // SAFETY: the caller's ranges.
    unsafe { body(from, stride, rows, cols, c, add) }
}

/// # Safety
/// As for [`store`].
#[inline(always)]
unsafe fn body<U: TileElement>(
    from: *const U::Acc,
    stride: usize,
    rows: usize,
    cols: usize,
    c: MatrixMut<'_, U>,
    add: bool,
) {
    for i in 0..rows {
        // SAFETY: the caller's ranges.
        unsafe {
            let from = from.add(i * stride);
            let row = c.ptr.offset(c.rows.get(i));
            if c.cols.stride() == Some(1) {
                if add {
                    for j in 0..cols {
                        let to = row.add(j);
                        *to = U::narrow((*to).widen().plus(*from.add(j)));
                    }
                } else {
                    for j in 0..cols {
                        *row.add(j) = U::narrow(*from.add(j));
                    }
                }
            } else {
                for j in 0..cols {
                    let to = row.offset(c.cols.get(j));
                    let value = *from.add(j);
                    *to = U::narrow(if add { (*to).widen().plus(value) } else { value });
                }
            }
        }
    }
}
