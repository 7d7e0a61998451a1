//! Matrices by separable offsets, and packing: the only reader of operands that cannot be used in place.
//!
//! In: a [`Matrix`], whose element (i, k) lies at `ptr + rows(i) + cols(k)`, each side either a stride or a list of
//! offsets. So every layout, fused labels and rows that a table looked up are read without a copy of the operand. Out:
//! panels in the order in which the micro-kernel reads them. Called by [`crate::ops::gemm`] only.
//!
//! A panel holds up to `step` rows (or columns), its elements along k in order: `panel[k·stride + x]`. The stride of a
//! panel of B, whose rows are read as vectors, is a whole number of vectors, and the columns beyond are zero; panels of A
//! have no such gaps if they are no taller than a vector.
//!
//! ```
//! use einfall_cpu::pack::{Matrix, Offsets};
//!
//! let rows = [8, 0]; // row 2, then row 0
//! let data = [0.0f32; 12];
//! let looked_up = Matrix { ptr: data.as_ptr(), rows: Offsets::Scattered(&rows), cols: Offsets::Strided(1) };
//! assert_eq!(looked_up.offset(0, 3), 11);
//! ```

use std::mem::MaybeUninit;

use crate::isa::Isa;
use crate::kernels::tile::{Accumulator, MAX_LANES, TileElement, Vector, prefetch};

/// Where the rows or columns of a matrix lie, in elements from its base.
#[derive(Clone, Copy, Debug)]
pub enum Offsets<'a> {
    /// Row i lies at i times this stride, which may be zero or negative.
    Strided(isize),
    /// Row i lies at the i-th of these offsets.
    Scattered(&'a [isize]),
}

impl<'a> Offsets<'a> {
    /// The offset of row `i`.
    ///
    /// # Panics
    /// If the list is shorter.
    #[inline(always)]
    pub fn get(&self, i: usize) -> isize {
        match self {
            Offsets::Strided(stride) => i as isize * stride,
            Offsets::Scattered(list) => list[i],
        }
    }

    #[inline(always)]
    pub(crate) fn stride(&self) -> Option<isize> {
        match self {
            Offsets::Strided(stride) => Some(*stride),
            Offsets::Scattered(_) => None,
        }
    }

    /// The rows from `start` on, and how far the base moves.
    #[inline(always)]
    fn skip(self, start: usize) -> (isize, Offsets<'a>) {
        match self {
            Offsets::Strided(stride) => (start as isize * stride, self),
            Offsets::Scattered(list) => (0, Offsets::Scattered(&list[start..])),
        }
    }
}

/// A matrix to read.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, T> {
    /// The base, from which offsets count.
    pub ptr: *const T,
    /// Where its rows lie.
    pub rows: Offsets<'a>,
    /// Where its columns lie.
    pub cols: Offsets<'a>,
}

/// A matrix to write. Its elements must not overlap.
#[derive(Clone, Copy, Debug)]
pub struct MatrixMut<'a, T> {
    /// The base, from which offsets count.
    pub ptr: *mut T,
    /// Where its rows lie.
    pub rows: Offsets<'a>,
    /// Where its columns lie.
    pub cols: Offsets<'a>,
}

macro_rules! matrix {
    ($name:ident) => {
        impl<'a, T> $name<'a, T> {
            /// The offset of element (i, j).
            #[inline(always)]
            pub fn offset(&self, i: usize, j: usize) -> isize {
                self.rows.get(i) + self.cols.get(j)
            }

            /// The same elements with rows and columns swapped.
            #[inline(always)]
            #[must_use]
            pub fn transposed(self) -> Self {
                $name { ptr: self.ptr, rows: self.cols, cols: self.rows }
            }

            /// The rows from `i` and the columns from `j` on.
            #[inline(always)]
            #[must_use]
            pub fn from(self, i: usize, j: usize) -> Self {
                let (down, rows) = self.rows.skip(i);
                let (right, cols) = self.cols.skip(j);
                $name { ptr: self.ptr.wrapping_offset(down + right), rows, cols }
            }
        }
    };
}
matrix!(Matrix);
matrix!(MatrixMut);

/// How a packed panel is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Element by element: no gaps between rows if they fit into one vector.
    Left,
    /// By whole vectors.
    Right,
}

impl Side {
    /// The stride along k of a panel of `valid` rows.
    #[inline(always)]
    pub(crate) fn stride(self, valid: usize, lanes: usize) -> usize {
        if self == Side::Left && valid <= lanes { valid } else { valid.next_multiple_of(lanes) }
    }

    /// The elements that [`pack`] writes for `count` rows in panels of `step` along `k`, of which the last `lanes` may
    /// be overrun.
    #[inline(always)]
    pub(crate) fn packed_len(self, count: usize, step: usize, lanes: usize, k: usize) -> usize {
        (count / step * self.stride(step, lanes) + self.stride(count % step, lanes)) * k
    }
}

/// Packs `count` rows of `from` along its `k` columns into panels of `step` rows.
///
/// Panels of the left side are packed in ascending order of k by whole vectors, each of which overruns into the next.
///
/// # Safety
/// The instruction set is available, every element (i < count, p < k) is readable, and `to` has room for
/// [`Side::packed_len`] elements, on the left side also for one more vector.
#[inline(always)]
pub(crate) unsafe fn pack<T: TileElement>(
    isa: Isa,
    side: Side,
    from: Matrix<'_, T>,
    count: usize,
    k: usize,
    step: usize,
    to: *mut T::Acc,
) {
    // SAFETY: the caller's ranges; the instruction set is available.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => pack_avx512(side, from, count, k, step, to),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => pack_avx2(side, from, count, k, step, to),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => panels::<T, <T::Acc as Accumulator>::Neon>(side, from, count, k, step, to),
            _ => panels::<T, <T::Acc as Accumulator>::Portable>(side, from, count, k, step, to),
        }
    }
}

/// # Safety
/// As for [`pack`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn pack_avx512<T: TileElement>(
    side: Side,
    from: Matrix<'_, T>,
    count: usize,
    k: usize,
    step: usize,
    to: *mut T::Acc,
) {
    // SAFETY: the caller's ranges.
    unsafe { panels::<T, <T::Acc as Accumulator>::Avx512>(side, from, count, k, step, to) }
}

/// # Safety
/// As for [`pack`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack_avx2<T: TileElement>(
    side: Side,
    from: Matrix<'_, T>,
    count: usize,
    k: usize,
    step: usize,
    to: *mut T::Acc,
) {
    // SAFETY: the caller's ranges.
    unsafe { panels::<T, <T::Acc as Accumulator>::Avx2>(side, from, count, k, step, to) }
}

/// # Safety
/// As for [`pack`].
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
            if panel.rows.stride() == Some(1) {
                copy::<T, V>(panel, valid, k, stride, to);
            } else if panel.cols.stride() == Some(1) {
                transpose::<T, V>(panel, valid, count - start, k, stride, to);
            } else {
                gather(panel, valid, k, stride, to);
            }
            to = to.add(stride * k);
        }
        start += step;
    }
}

/// Rows of stride 1: each k is one run.
///
/// # Safety
/// As for [`pack`], for one panel.
#[inline(always)]
unsafe fn copy<T: TileElement, V: Vector<Elem = T::Acc>>(
    from: Matrix<'_, T>,
    valid: usize,
    k: usize,
    stride: usize,
    to: *mut T::Acc,
) {
    // SAFETY: each run of `valid` elements is readable, and `stride` writable, by the caller's ranges; IS_ACC says that
    // T and its accumulator have the same bits.
    unsafe {
        let whole = (valid - 1) / V::LANES * V::LANES;
        let last = valid - whole;
        let mask = V::mask(last);
        let columns = from.ptr;
        for p in 0..k {
            let run = columns.offset(from.cols.get(p));
            let row = to.add(p * stride);
            if T::IS_ACC {
                let run = run.cast::<T::Acc>();
                let mut x = 0;
                // Panels are narrow and rows long: the next panel's part of this row is not fetched by itself.
                for x in (0..stride).step_by(V::LANES) {
                    prefetch(run.wrapping_add(stride + x));
                }
                while x < whole {
                    V::load(run.add(x)).store(row.add(x));
                    x += V::LANES;
                }
                let tail = if last == V::LANES { V::load(run.add(x)) } else { V::load_masked(run.add(x), mask) };
                tail.store(row.add(x));
            } else {
                for x in 0..valid {
                    *row.add(x) = (*run.add(x)).widen();
                }
                for x in valid..stride {
                    *row.add(x) = T::Acc::ZERO;
                }
            }
        }
    }
}

/// Columns of stride 1: blocks of `LANES × LANES` are transposed in registers. Where the rows lie does not matter, so
/// this also packs rows that a table looked up.
///
/// # Safety
/// As for [`pack`], for one panel, which `rest` − `valid` more rows follow.
#[inline(always)]
unsafe fn transpose<T: TileElement, V: Vector<Elem = T::Acc>>(
    from: Matrix<'_, T>,
    valid: usize,
    rest: usize,
    k: usize,
    stride: usize,
    to: *mut T::Acc,
) {
    let zeros = [T::Acc::ZERO; MAX_LANES];
    let mut widened = MaybeUninit::<[[T::Acc; MAX_LANES]; MAX_LANES]>::uninit();
    let widened = widened.as_mut_ptr().cast::<[T::Acc; MAX_LANES]>();
    let mut first = 0;
    while first < valid {
        let count = V::LANES.min(valid - first);
        let mut rows = [zeros.as_ptr(); MAX_LANES];
        let mut sources = [from.ptr; MAX_LANES];
        for (x, source) in sources.iter_mut().enumerate().take(count) {
            *source = from.ptr.wrapping_offset(from.rows.get(first + x));
        }
        // The rows after these, of this panel or the next, to ask for in advance: each is the start of a new stream.
        let mut coming = [from.ptr; MAX_LANES];
        let more = rest.saturating_sub(first + V::LANES).min(V::LANES);
        for (x, source) in coming.iter_mut().enumerate().take(more) {
            *source = from.ptr.wrapping_offset(from.rows.get(first + V::LANES + x));
        }
        let mut p = 0;
        while p < k {
            for source in &coming[..more] {
                prefetch(source.wrapping_add(p));
            }
            let len = V::LANES.min(k - p);
            // SAFETY: rows below `count` have `len` elements from p on, the others are zeros; `widened` is written
            // before it is read; the destination rows p..p + len have LANES elements from `first` on.
            unsafe {
                for x in 0..count {
                    let source = sources[x].add(p);
                    rows[x] = if T::IS_ACC {
                        source.cast()
                    } else {
                        let line = widened.add(x).cast::<T::Acc>();
                        for y in 0..len {
                            *line.add(y) = (*source.add(y)).widen();
                        }
                        line
                    };
                }
                V::transpose(&rows, len, to.add(p * stride + first), stride);
            }
            p += V::LANES;
        }
        first += V::LANES;
    }
}

/// Any offsets, one element at a time.
///
/// # Safety
/// As for [`pack`], for one panel.
#[inline(always)]
unsafe fn gather<T: TileElement>(from: Matrix<'_, T>, valid: usize, k: usize, stride: usize, to: *mut T::Acc) {
    for p in 0..k {
        // SAFETY: the caller's ranges.
        unsafe {
            let column = from.ptr.offset(from.cols.get(p));
            let row = to.add(p * stride);
            match from.rows {
                Offsets::Strided(step) => {
                    for x in 0..valid {
                        *row.add(x) = (*column.offset(x as isize * step)).widen();
                    }
                }
                Offsets::Scattered(list) => {
                    for (x, &offset) in list[..valid].iter().enumerate() {
                        *row.add(x) = (*column.offset(offset)).widen();
                    }
                }
            }
            for x in valid..stride {
                *row.add(x) = T::Acc::ZERO;
            }
        }
    }
}
