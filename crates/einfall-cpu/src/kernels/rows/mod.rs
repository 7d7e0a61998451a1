//! Row kernels: dots with rows, and weighted sums of rows, where a list of offsets says which rows.
//!
//! *In*: a base pointer to rows of `d` contiguous elements, and lists of element offsets from it, one a row. *Out*: for
//! dots one number a row, for axpys one row a list, both in the dtype's accumulator. *Callers*: the loops of `ops`,
//! which have checked every offset (see [`crate::load`]); nothing here does. No threads, no allocation.
//!
//! Rows may be anywhere and of any alignment. What is read of a row is exactly its `d` elements.
//!
//! **Same bits.** A dot is summed in an order that depends on `d`, the dtype and the [`Isa`] alone; an axpy adds its
//! rows in the order of the list, one multiply-add each, from 0 or from what is there. So the result does not depend
//! on how a caller splits its lists, on the position in a list, or on which of the functions below computes it.
//!
//! ```
//! use einfall_cpu::isa::Isa;
//! use einfall_cpu::kernels::rows::{DotList, row_dots};
//!
//! let (rows, x) = ([1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0], [10.0_f32, 1.0]);
//! let mut out = [0.0; 2];
//! let offsets = [4, 0];
//! let list =
//!     DotList { x: x.as_ptr(), rows: rows.as_ptr(), offsets: offsets.as_ptr(), count: 2, out: out.as_mut_ptr() };
//! // SAFETY: both offsets leave a row of 2 elements inside `rows`.
//! unsafe { row_dots(Isa::Portable, 2, &[list]) };
//! assert_eq!(out, [56.0, 12.0]);
//! ```

mod axpys;
mod dots;
mod element;
mod entry;
mod lanes;
mod portable;
mod scatter;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

pub use element::{RowElement, RowWeight};

use crate::isa::Isa;

/// One vector and the rows it meets: `out[i] = Σ_j x[j] * rows[offsets[i] + j]`.
#[derive(Clone, Copy, Debug)]
pub struct DotList<T: RowElement> {
    /// `d` elements.
    pub x: *const T,
    /// The base of the rows.
    pub rows: *const T,
    /// `count` offsets in elements.
    pub offsets: *const isize,
    /// Number of rows.
    pub count: usize,
    /// `count` results.
    pub out: *mut T::Acc,
}

/// One vector and the rows it meets, which are stored one after another: `out[i] = Σ_j x[j] * rows[i * row_stride + j]`.
#[derive(Clone, Copy, Debug)]
pub struct StridedDots<T: RowElement> {
    /// `d` elements.
    pub x: *const T,
    /// The first row.
    pub rows: *const T,
    /// Number of rows.
    pub count: usize,
    /// `count` results.
    pub out: *mut T::Acc,
}

/// Pairs of rows: `out[i] = Σ_j x[x_offsets[i] + j] * rows[offsets[i] + j]`.
#[derive(Clone, Copy, Debug)]
pub struct PairedDots<T: RowElement> {
    /// The base of the first rows of the pairs.
    pub x: *const T,
    /// `count` offsets in elements from `x`.
    pub x_offsets: *const isize,
    /// The base of the second rows.
    pub rows: *const T,
    /// `count` offsets in elements from `rows`.
    pub offsets: *const isize,
    /// Number of pairs.
    pub count: usize,
    /// Elements of a row.
    pub d: usize,
    /// `count` results.
    pub out: *mut T::Acc,
}

/// Vectors that share their rows: `out[k * out_stride + i] = Σ_j x[k * x_stride + j] * rows[offsets[i] + j]`.
#[derive(Clone, Copy, Debug)]
pub struct MultiDots<T: RowElement> {
    /// The first vector.
    pub x: *const T,
    /// Elements from a vector to the next.
    pub x_stride: isize,
    /// Number of vectors.
    pub m: usize,
    /// The base of the rows.
    pub rows: *const T,
    /// `count` offsets in elements.
    pub offsets: *const isize,
    /// Number of rows.
    pub count: usize,
    /// Elements of a row.
    pub d: usize,
    /// The results of the first vector, `count` contiguous ones.
    pub out: *mut T::Acc,
    /// Elements from the results of a vector to those of the next.
    pub out_stride: isize,
}

/// One weighted sum of rows: `acc[j] (+)= Σ_i weights[i] * rows[offsets[i] + j]`.
#[derive(Clone, Copy, Debug)]
pub struct AxpyList<T: RowElement, W: RowWeight<T> = T> {
    /// `count` weights.
    pub weights: *const W,
    /// The base of the rows.
    pub rows: *const T,
    /// `count` offsets in elements.
    pub offsets: *const isize,
    /// Number of rows.
    pub count: usize,
    /// `d` sums.
    pub acc: *mut T::Acc,
}

/// Weight vectors that share their rows:
/// `acc[k * acc_stride + j] (+)= Σ_i weights[k * weight_stride + i] * rows[offsets[i] + j]`.
#[derive(Clone, Copy, Debug)]
pub struct MultiAxpys<T: RowElement, W: RowWeight<T> = T> {
    /// The first weight vector, `count` contiguous weights.
    pub weights: *const W,
    /// Elements from a weight vector to the next.
    pub weight_stride: isize,
    /// Number of weight vectors.
    pub m: usize,
    /// The base of the rows.
    pub rows: *const T,
    /// `count` offsets in elements.
    pub offsets: *const isize,
    /// Number of rows.
    pub count: usize,
    /// Elements of a row.
    pub d: usize,
    /// The sums of the first weight vector, `d` contiguous ones.
    pub acc: *mut T::Acc,
    /// Elements from the sums of a weight vector to those of the next.
    pub acc_stride: isize,
    /// Whether to add to `acc` or to overwrite it.
    pub accumulate: bool,
}

/// One vector that is added to rows: `rows[offsets[i] + j] += weights[i] * x[j]`.
#[derive(Clone, Copy, Debug)]
pub struct ScatterList<T: RowElement> {
    /// `count` weights.
    pub weights: *const T::Acc,
    /// `d` elements.
    pub x: *const T,
    /// The base of the rows.
    pub rows: *mut T::Acc,
    /// `count` offsets in elements.
    pub offsets: *const isize,
    /// Number of rows.
    pub count: usize,
}

/// The arguments of [`row_scatter`].
#[doc(hidden)]
pub struct Scatter<'a, T: RowElement> {
    d: usize,
    list: &'a ScatterList<T>,
}

/// The arguments of [`row_dots`].
#[doc(hidden)]
pub struct Dots<'a, T: RowElement> {
    d: usize,
    lists: &'a [DotList<T>],
    /// Rows follow each other without gaps and are read only once: they are fetched ahead, past the caches.
    once: bool,
}

/// The arguments of [`row_axpys`].
#[doc(hidden)]
pub struct Axpys<'a, T: RowElement, W: RowWeight<T>> {
    d: usize,
    lists: &'a [AxpyList<T, W>],
    accumulate: bool,
}

/// The dots of each list's vector with each of its rows. Cheap to call with many short lists: what depends on `d` is
/// chosen once. Below about 4 rows a list, [`paired_dots`] over all lists is faster.
///
/// # Safety
/// The machine has `isa`. Every pointer is valid for what the list says of it, its `rows` plus each offset for reading
/// `d` elements; nothing written overlaps anything read. `offsets` are aligned, the rest need not be.
pub unsafe fn row_dots<T: RowElement>(isa: Isa, d: usize, lists: &[DotList<T>]) {
    // SAFETY: the caller's promise is the one asked for.
    unsafe { T::dots(isa, &Dots { d, lists, once: false }) }
}

/// The dots of each list's vector with rows that lie `row_stride` elements apart: stored keys, at memory speed.
///
/// `once` says that nobody reads these rows again soon: if they have no gaps they then leave no trace in the caches.
///
/// # Safety
/// The machine has `isa`; `x`, `out` and each of the rows of a list are valid for `d`, `count` and `d` elements; nothing
/// written overlaps anything read.
pub unsafe fn row_dots_strided<T: RowElement>(
    isa: Isa,
    d: usize,
    row_stride: isize,
    once: bool,
    lists: &[StridedDots<T>],
) {
    let mut offsets = [0_isize; 128];
    let longest = lists.iter().map(|list| list.count).max().unwrap_or(0);
    for (i, offset) in offsets.iter_mut().enumerate().take(longest) {
        *offset = i as isize * row_stride;
    }
    let once = once && row_stride == d as isize;
    for &StridedDots { x, rows, count, out } in lists {
        for first in (0..count).step_by(offsets.len()) {
            let n = offsets.len().min(count - first);
            // SAFETY: rows `first .. first + n` exist, so the list is one of those that the caller promised.
            unsafe {
                let list = DotList {
                    x,
                    rows: rows.offset(first as isize * row_stride),
                    offsets: offsets.as_ptr(),
                    count: n,
                    out: out.add(first),
                };
                T::dots(isa, &Dots { d, lists: &[list], once });
            }
        }
    }
}

/// The dots of pairs of rows, both looked up.
///
/// # Safety
/// As for [`row_dots`], with each of the two lists of offsets.
pub unsafe fn paired_dots<T: RowElement>(isa: Isa, call: &PairedDots<T>) {
    // SAFETY: the caller's promise is the one asked for.
    unsafe { T::paired_dots(isa, call) }
}

/// The dots of several vectors with the same rows; each row is read once for four vectors.
///
/// # Safety
/// As for [`row_dots`], for each of the `m` vectors and its results.
pub unsafe fn row_dots_multi<T: RowElement>(isa: Isa, call: &MultiDots<T>) {
    let MultiDots { x, x_stride, m, rows, offsets, count, d, out, out_stride } = *call;
    for k in (0..m).step_by(dots::MULTI) {
        // SAFETY: vectors `k .. m` exist, so the pointers stay within what the caller promised.
        unsafe {
            let (x, out) = (x.offset(k as isize * x_stride), out.offset(k as isize * out_stride));
            if d == 0 || m - k == 1 {
                for k in 0..dots::MULTI.min(m - k) as isize {
                    let list =
                        DotList { x: x.offset(k * x_stride), rows, offsets, count, out: out.offset(k * out_stride) };
                    T::dots(isa, &Dots { d, lists: &[list], once: false });
                }
            } else {
                T::multi_dots(isa, &MultiDots { x, out, m: m - k, ..*call });
            }
        }
    }
}

/// The weighted sum of the rows of each list, added to `acc` if `accumulate`, else stored in it (0 for an empty list).
///
/// Serves a scatter too: with an inverted table each row of the output is a list.
///
/// # Safety
/// The machine has `isa`. Every pointer is valid for what the list says of it, its `rows` plus each offset for reading
/// `d` elements, `acc` for reading and writing `d`; no `acc` overlaps another or anything else that is read. `offsets` are
/// aligned, the rest need not be.
pub unsafe fn row_axpys<T: RowElement, W: RowWeight<T>>(
    isa: Isa,
    d: usize,
    lists: &[AxpyList<T, W>],
    accumulate: bool,
) {
    // SAFETY: the caller's promise is the one asked for.
    unsafe { T::axpys(isa, &Axpys { d, lists, accumulate }) }
}

/// The weighted sums of the same rows under several weight vectors; each row is read once for four of them.
///
/// # Safety
/// As for [`row_axpys`], for each of the `m` weight vectors and its sums.
pub unsafe fn row_axpys_multi<T: RowElement, W: RowWeight<T>>(isa: Isa, call: &MultiAxpys<T, W>) {
    let MultiAxpys { weights, weight_stride, m, rows, offsets, count, d, acc, acc_stride, accumulate } = *call;
    for k in (0..m).step_by(axpys::MULTI) {
        // SAFETY: weight vectors `k .. m` exist, so the pointers stay within what the caller promised.
        unsafe {
            let weights = weights.offset(k as isize * weight_stride);
            let acc = acc.offset(k as isize * acc_stride);
            if m - k == 1 {
                let lists = &[AxpyList { weights, rows, offsets, count, acc }];
                T::axpys(isa, &Axpys { d, lists, accumulate });
            } else {
                T::multi_axpys(isa, &MultiAxpys { weights, acc, m: m - k, ..*call });
            }
        }
    }
}

/// Adds a weighted vector to each row of a list, in order, one multiply-add an element: what [`row_axpys`] over the inverse
/// of the list's table adds up, to the bit.
///
/// # Safety
/// As for [`row_axpys`]; the rows are written, and overlap neither `x`, the weights nor the offsets. A row may come again.
pub unsafe fn row_scatter<T: RowElement>(isa: Isa, d: usize, list: &ScatterList<T>) {
    // SAFETY: the caller's promise is the one asked for.
    unsafe { T::scatter(isa, &Scatter { d, list }) }
}
