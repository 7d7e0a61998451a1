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
use crate::kernels::tile::{Accumulator, MAX_LANES, TileElement, Vector, prefetch, prefetch_far};

mod pairs;

/// Where the rows or columns of a matrix lie, in elements from its base.
#[derive(Clone, Copy, Debug)]
pub enum Offsets<'a> {
    /// Row i lies at i times this stride, which may be zero or negative.
    Strided(isize),
    /// Row i lies at the i-th of these offsets.
    Scattered(&'a [isize]),
    /// Runs of `len` rows, each with this stride, begin at these offsets: row i lies at `starts[i / len]` plus
    /// `i % len` times the stride.
    Runs {
        /// Where the runs begin.
        starts: &'a [isize],
        /// Rows of a run, at least one.
        len: usize,
        /// Distance of the rows within a run.
        stride: isize,
    },
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
            Offsets::Runs { starts, len, stride } => starts[i / len] + (i % len) as isize * stride,
        }
    }

    #[inline(always)]
    pub(crate) fn stride(&self) -> Option<isize> {
        match self {
            Offsets::Strided(stride) => Some(*stride),
            Offsets::Scattered(_) | Offsets::Runs { .. } => None,
        }
    }

    /// The stride of the first `count` rows, if they have one.
    #[inline(always)]
    pub(crate) fn stride_of(&self, count: usize) -> Option<isize> {
        match self {
            Offsets::Strided(stride) => Some(*stride),
            Offsets::Scattered(list) => match list[..count] {
                [] | [_] => Some(0),
                [first, second, ..] => {
                    let stride = second - first;
                    list[..count].windows(2).all(|pair| pair[1] - pair[0] == stride).then_some(stride)
                }
            },
            Offsets::Runs { len, stride, .. } => (count <= *len).then_some(*stride),
        }
    }

    /// Rows of a run, where there are runs.
    #[inline(always)]
    pub(crate) fn run_len(&self) -> Option<usize> {
        match self {
            Offsets::Runs { len, .. } => Some(*len),
            _ => None,
        }
    }

    /// The rows from `start` on, and how far the base moves. From within a run on, only its own rows.
    #[inline(always)]
    fn skip(self, start: usize) -> (isize, Offsets<'a>) {
        match self {
            Offsets::Strided(stride) => (start as isize * stride, self),
            Offsets::Scattered(list) => (0, Offsets::Scattered(&list[start..])),
            Offsets::Runs { starts, len, stride } if start.is_multiple_of(len) => {
                (0, Offsets::Runs { starts: &starts[start / len..], len, stride })
            }
            Offsets::Runs { stride, .. } => (self.get(start), Offsets::Strided(stride)),
        }
    }

    /// The rows from `start` on as far as they go with one stride or are listed.
    #[inline(always)]
    fn panel(self, start: usize) -> (isize, Offsets<'a>) {
        match self {
            Offsets::Runs { stride, .. } => (self.get(start), Offsets::Strided(stride)),
            _ => self.skip(start),
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

            /// The rows from `i` and the columns from `j` on, as far as these go within one run.
            #[inline(always)]
            #[must_use]
            pub(crate) fn panel(self, i: usize, j: usize) -> Self {
                let (down, rows) = self.rows.skip(i);
                let (right, cols) = self.cols.panel(j);
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

/// Packs `count` rows of `from` along its `k` columns into panels of `step` rows; in `pairs`, the panels are half as long,
/// rounded up. Of rows in runs, `count` has whole ones.
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
    pairs: bool,
    to: *mut T::Acc,
) {
    // SAFETY: the caller's ranges; the instruction set is available.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if pairs => pairs::pack_avx512(side, from, count, k, step, to),
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
    to: *mut T::Acc,
) {
    let along = Along::of(&from.cols, k);
    let Offsets::Runs { starts, len, stride } = from.rows else {
        // SAFETY: the caller's ranges.
        return unsafe { strided_panels::<T, V>(side, from, along, count, k, step, to) };
    };
    // Each run has panels of its own, the last of which may be narrower but takes the place of a whole one.
    debug_assert!(count.is_multiple_of(len));
    let room = len.div_ceil(step) * step * k;
    let starts = &starts[..count / len];
    let mut first = 0;
    while first < starts.len() {
        let beside = if stride != 1 && along == Along::Apart { side_by_side(&starts[first..]) } else { 1 };
        let ptr = from.ptr.wrapping_offset(starts[first]);
        let run = Matrix { ptr, rows: Offsets::Strided(stride), cols: from.cols };
        // SAFETY: runs are parts of the caller's range; so is their room.
        unsafe {
            let to = to.add(first * room);
            if beside >= LEAST_BESIDE && T::IS_ACC {
                runs_beside::<T, V>(run, beside, len, k, step, room, to);
                first += beside;
            } else {
                strided_panels::<T, V>(side, run, along, len, k, step, to);
                first += 1;
            }
        }
    }
}

/// How the columns of a matrix lie, which are the k of a panel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Along {
    /// One after another.
    Contiguous,
    /// Pieces of several, one after another.
    Pieces,
    /// Some distance on there is the next to each.
    Beside,
    /// No two side by side within sight.
    Apart,
}

/// So many neighbours are worth a transposition in registers.
const LEAST_BESIDE: usize = 3;

/// How far apart neighbours are looked for.
const SIGHT: usize = 64;

impl Along {
    fn of(cols: &Offsets<'_>, k: usize) -> Along {
        match cols {
            Offsets::Strided(1) => Along::Contiguous,
            Offsets::Scattered(list) => {
                let list = &list[..k];
                let steps = list.windows(2).filter(|pair| pair[1] == pair[0] + 1).count();
                if steps * 4 >= list.len() * 3 && steps > 0 {
                    Along::Pieces
                } else if let Some(by) = next_to_first(list)
                    && neighbours(list, by) >= LEAST_BESIDE
                {
                    Along::Beside
                } else {
                    Along::Apart
                }
            }
            _ => Along::Apart,
        }
    }
}

/// How far on the neighbour of the first lies.
fn next_to_first(list: &[isize]) -> Option<usize> {
    let sight = SIGHT.min(list.len().saturating_sub(1));
    (1..=sight).find(|&by| list[by] == list[0] + 1)
}

/// How many times the next `by` are the neighbours of those before, the first included, up to a block's rows.
fn neighbours(list: &[isize], by: usize) -> usize {
    let beside = |times: usize| {
        let next = &list[times * by..];
        next.len() >= by && next.iter().zip(&list[..by]).all(|(offset, first)| *offset == first + times as isize)
    };
    (1..MAX_LANES).find(|&times| times * by > list.len() || !beside(times)).unwrap_or(MAX_LANES)
}

/// How many of the first runs begin side by side.
fn side_by_side(starts: &[isize]) -> usize {
    let more = starts.windows(2).take(4 * MAX_LANES - 1).take_while(|pair| pair[1] == pair[0] + 1);
    1 + more.count()
}

/// # Safety
/// As for [`pack`].
#[inline(always)]
unsafe fn strided_panels<T: TileElement, V: Vector<Elem = T::Acc>>(
    side: Side,
    from: Matrix<'_, T>,
    along: Along,
    count: usize,
    k: usize,
    step: usize,
    mut to: *mut T::Acc,
) {
    let mut start = 0;
    while start < count {
        let valid = step.min(count - start);
        let stride = side.stride(valid, V::LANES);
        let mut panel = from.from(start, 0);
        if let Offsets::Scattered(list) = panel.rows
            && panel.rows.stride_of(valid) == Some(1)
        {
            panel = Matrix { ptr: panel.ptr.wrapping_offset(list[0]), rows: Offsets::Strided(1), cols: panel.cols };
        }
        // SAFETY: the panel is a part of the caller's range.
        unsafe {
            if panel.rows.stride() == Some(1) {
                copy::<T, V>(panel, valid, k, stride, to);
            } else {
                match along {
                    Along::Contiguous => transpose::<T, V>(panel, valid, count - start, k, stride, to),
                    Along::Pieces => pieces::<T, V>(panel, valid, count - start, k, stride, to),
                    Along::Beside if T::IS_ACC => beside::<T, V>(panel, valid, k, stride, to),
                    _ => gather(panel, valid, k, stride, to),
                }
            }
            to = to.add(stride * k);
        }
        start += step;
    }
}

/// Columns that are contiguous for a while.
///
/// # Safety
/// As for [`transpose`].
#[inline(always)]
unsafe fn pieces<T: TileElement, V: Vector<Elem = T::Acc>>(
    from: Matrix<'_, T>,
    valid: usize,
    rest: usize,
    k: usize,
    stride: usize,
    to: *mut T::Acc,
) {
    let mut p = 0;
    while p < k {
        let first = from.cols.get(p);
        let mut len = 1;
        while p + len < k && from.cols.get(p + len) == first + len as isize {
            len += 1;
        }
        let ptr = from.ptr.wrapping_offset(first);
        let piece = Matrix { ptr, rows: from.rows, cols: Offsets::Strided(1) };
        // SAFETY: a part of the caller's range.
        unsafe { transpose::<T, V>(piece, valid, rest, len, stride, to.add(p * stride)) }
        p += len;
    }
}

/// Columns that have their neighbours some distance on: blocks of rows and neighbours are transposed in registers.
///
/// # Safety
/// As for [`pack`], for one panel of a type that is its own accumulator.
#[inline(always)]
unsafe fn beside<T: TileElement, V: Vector<Elem = T::Acc>>(
    from: Matrix<'_, T>,
    valid: usize,
    k: usize,
    stride: usize,
    to: *mut T::Acc,
) {
    let Offsets::Scattered(list) = from.cols else { return };
    let list = &list[..k];
    let zeros = [T::Acc::ZERO; MAX_LANES];
    let mut block = MaybeUninit::<[[T::Acc; MAX_LANES]; MAX_LANES]>::uninit();
    let block = block.as_mut_ptr().cast::<T::Acc>();
    // A panel without gaps is not written by whole vectors, which would overrun into the next row.
    let gaps = stride.is_multiple_of(V::LANES);
    let mut p = 0;
    while p < k {
        let by = next_to_first(&list[p..]).unwrap_or(1);
        let times = neighbours(&list[p..], by).min(V::LANES);
        for (i, &column) in list[p..p + by].iter().enumerate() {
            // The same neighbours some columns on, or those after them.
            let coming = if i + COMING < by { p + i + COMING } else { p + by * times + i };
            if let Some(coming) = list.get(coming) {
                for x in 0..valid {
                    prefetch_far(from.ptr.wrapping_offset(coming + from.rows.get(x)));
                }
            }
            for first in (0..valid).step_by(V::LANES) {
                let count = V::LANES.min(valid - first);
                let mut rows = [zeros.as_ptr(); MAX_LANES];
                for (x, row) in rows.iter_mut().enumerate().take(count) {
                    *row = from.ptr.wrapping_offset(column + from.rows.get(first + x)).cast();
                }
                // SAFETY: the neighbours are columns of the caller's; their places in the panel are `by` apart; the
                // block is written before it is read.
                unsafe {
                    let to = to.add((p + i) * stride + first);
                    if gaps {
                        V::transpose(&rows, times, to, by * stride);
                        continue;
                    }
                    V::transpose(&rows, times, block, V::LANES);
                    for j in 0..times {
                        let (row, to) = (block.add(j * V::LANES), to.add(j * by * stride));
                        if V::MASKS {
                            V::load(row).store_masked(to, V::mask(count));
                        } else {
                            to.copy_from_nonoverlapping(row, count);
                        }
                    }
                }
            }
        }
        p += by * times;
    }
}

/// So many k ahead the lines of runs are asked for.
const COMING: usize = 6;

/// Runs that begin side by side, of which `from` is the first: blocks of rows and runs are transposed in registers, so
/// that each line of the input is used whole, and each line of the panels.
///
/// # Safety
/// As for [`pack`], for `count` runs of `len` rows, whose panels lie `room` apart; T is its own accumulator.
#[inline(always)]
unsafe fn runs_beside<T: TileElement, V: Vector<Elem = T::Acc>>(
    from: Matrix<'_, T>,
    count: usize,
    len: usize,
    k: usize,
    step: usize,
    room: usize,
    to: *mut T::Acc,
) {
    let zeros = [T::Acc::ZERO; MAX_LANES];
    for first in (0..len).step_by(V::LANES) {
        let valid = V::LANES.min(len - first);
        let panel = first / step;
        let stride = step.min((len - panel * step).next_multiple_of(V::LANES));
        // SAFETY: the first of the runs has room for this.
        let to = unsafe { to.add(panel * step * k + first % step) };
        let mut lines = [from.ptr; MAX_LANES];
        for (x, line) in lines.iter_mut().enumerate().take(valid) {
            *line = from.ptr.wrapping_offset(from.rows.get(first + x));
        }
        for p in 0..k {
            let column = from.cols.get(p);
            let coming = from.cols.get((p + COMING).min(k - 1));
            for start in (0..count).step_by(V::LANES) {
                let mut rows = [zeros.as_ptr(); MAX_LANES];
                for (row, line) in rows.iter_mut().zip(&lines[..valid]) {
                    *row = line.wrapping_offset(column + start as isize).cast();
                    prefetch_far(line.wrapping_offset(coming + start as isize));
                }
                // SAFETY: `count` elements lie side by side at each row; the room of each run has this row of a panel.
                unsafe { V::transpose(&rows, V::LANES.min(count - start), to.add(start * room + p * stride), room) }
            }
        }
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
                Offsets::Runs { .. } => {
                    for x in 0..valid {
                        *row.add(x) = (*column.offset(from.rows.get(x))).widen();
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
