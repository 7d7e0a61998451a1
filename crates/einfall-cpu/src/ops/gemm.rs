//! The matrix product `C[i, j] (+)= Σ_k A[i, k] · B[k, j]` of matrices by separable offsets.
//!
//! In: two [`Matrix`] and where to write. Out: the product. Called by whoever runs a contraction, from any thread: the
//! caller splits rows or columns over threads, and the result does not depend on the split, because each element is
//! summed over k in ascending order, in blocks that depend on k alone. No threads and no global state here.
//!
//! A contraction of tensors differs from a matrix product in its offsets only, so everything that is not a plain matrix
//! is dealt with by [`crate::pack`]. The five loops around the micro-kernel follow Goto and van de Geijn, "Anatomy of
//! High-Performance Matrix Multiplication" (2008); scattered offsets follow Matthews, "High-Performance Tensor
//! Contraction without Transposition" (2018).
//!
//! ```
//! use einfall_cpu::isa::Isa;
//! use einfall_cpu::ops::gemm::{Accum, Blocking, Caches, Scratch, gemm};
//! use einfall_cpu::pack::{Matrix, MatrixMut, Offsets::Strided};
//!
//! let (a, b, mut c) = ([1.0f32, 2.0, 3.0, 4.0], [5.0f32, 6.0, 7.0, 8.0], [0.0f32; 4]);
//! let isa = Isa::Portable;
//! let blocking = Blocking::new::<f32>(isa, Caches::default());
//! let row_major = |ptr| Matrix { ptr, rows: Strided(2), cols: Strided(1) };
//! let out = MatrixMut { ptr: c.as_mut_ptr(), rows: Strided(2), cols: Strided(1) };
//! // SAFETY: all offsets are within the three arrays, and `c` is not read elsewhere.
//! unsafe {
//!     gemm(isa, &blocking, 2, 2, 2, row_major(a.as_ptr()), row_major(b.as_ptr()), out, Accum::Replace,
//!         &mut Scratch::new());
//! }
//! assert_eq!(c, [19.0, 22.0, 43.0, 50.0]);
//! ```

mod blocks;
mod scratch;

use std::mem::MaybeUninit;

use crate::isa::Isa;
use crate::kernels::tile::{Tile, TileElement, TileKernel, store};
use crate::pack::{Matrix, MatrixMut, Offsets, Side, pack};

use blocks::Blocks;
pub use scratch::Scratch;

/// What becomes of the old values of C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accum {
    /// They are not read.
    Replace,
    /// The product is added to them.
    Add,
}

/// Cache sizes of one core, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Caches {
    /// First-level data cache.
    pub l1_bytes: usize,
    /// Second-level cache.
    pub l2_bytes: usize,
    /// This core's share of the last level.
    pub l3_bytes: usize,
}

impl Default for Caches {
    /// Sizes that most machines of the last ten years have.
    fn default() -> Self {
        Caches { l1_bytes: 32 << 10, l2_bytes: 512 << 10, l3_bytes: 4 << 20 }
    }
}

/// Block lengths of the loops around the micro-kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocking {
    /// The most rows of A that are packed at a time, if they are used for several blocks of columns; else a sixteenth.
    pub mc: usize,
    /// Length along k. It decides how each element is rounded; all calls that must agree use the same.
    pub kc: usize,
    /// Columns of B in a block, which stays in the second-level cache.
    pub nc: usize,
}

impl Blocking {
    /// The block lengths for an element type on a machine.
    pub fn new<T: TileElement>(isa: Isa, caches: Caches) -> Self {
        let kernel = T::kernel_for(isa);
        let bytes = size_of::<T::Acc>();
        let columns = kernel.max_width() * kernel.lanes;
        // A panel of A takes about a sixth of the first-level cache, a block of B half of the second, and a block of A
        // a quarter of the last.
        let kc = (caches.l1_bytes / 32 / bytes / 16 * 16).clamp(64, 512);
        let nc = (caches.l2_bytes / 2 / (kc * bytes) / columns * columns).max(columns);
        let mc = (caches.l3_bytes / 4 / (kc * bytes)).max(kernel.max_height(1));
        Blocking { mc, kc, nc }
    }
}

/// Computes `C = A·B` or `C += A·B` for A of `m × k` and B of `k × n`.
///
/// Half types accumulate in f32 and are rounded once; integers wrap in their own type; `bool` is *or* of *and*. Nothing
/// is allocated beyond `scratch`. C should have a side of stride 1: then tiles are stored as vectors.
///
/// # Safety
/// * `isa` is available on this machine.
/// * Every element (i < m, p < k) of A and (p < k, j < n) of B may be read, every element (i < m, j < n) of C written,
///   and read under [`Accum::Add`]. Lists of offsets are at least that long.
/// * No two elements of C overlap, and none overlaps an element of A or B.
pub unsafe fn gemm<T, U>(
    isa: Isa,
    blocking: &Blocking,
    m: usize,
    n: usize,
    k: usize,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    c: MatrixMut<'_, U>,
    accum: Accum,
    scratch: &mut Scratch,
) where
    T: TileElement,
    U: TileElement<Acc = T::Acc>,
{
    // Tiles are stored along rows of C. Where its columns are the contiguous side, compute the transposed product.
    let along = n == 1 || c.cols.stride() == Some(1);
    let down = m == 1 || c.rows.stride() == Some(1);
    let turned = down && (!along || m > n);
    let (left, right, out) = (&a, &Right::Matrix(b), &c);
    // SAFETY: the caller's invariants, which do not care which side is called left.
    unsafe {
        // Tried before anything else, and without moving a matrix: of these there may be millions.
        if !turned && small(isa, blocking, m, n, k, left, right, out, accum).is_some() {
            return;
        }
        let (m, n, a, b, c) =
            if turned { (n, m, b.transposed(), a.transposed(), c.transposed()) } else { (m, n, a, b, c) };
        product(isa, blocking, m, n, k, a, Right::Matrix(b), c, accum, scratch);
    }
}

/// Like [`gemm`], where the columns of B and C are runs of equal length, and C is contiguous along each; blocks of
/// columns are whole runs.
///
/// # Safety
/// As for [`gemm`]. U is the accumulator, or k at most `blocking.kc` places.
pub unsafe fn gemm_runs<T, U>(
    isa: Isa,
    blocking: &Blocking,
    m: usize,
    n: usize,
    k: usize,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    c: MatrixMut<'_, U>,
    accum: Accum,
    scratch: &mut Scratch,
) where
    T: TileElement,
    U: TileElement<Acc = T::Acc>,
{
    debug_assert!(U::IS_ACC || k <= blocking.kc * T::in_place_of_one(isa));
    // A lone run is cut into blocks like the columns of any matrix.
    let (b, c) = if c.cols.run_len().is_none_or(|run| run < n) { (b, c) } else { (b.panel(0, 0), c.panel(0, 0)) };
    // SAFETY: the caller's invariants.
    unsafe { product(isa, blocking, m, n, k, a, Right::Matrix(b), c, accum, scratch) }
}

/// The most bytes that [`gemm_runs`] takes from its scratch for so many rows and columns, or fewer.
pub fn runs_scratch_bytes<T: TileElement>(
    isa: Isa,
    blocking: &Blocking,
    m: usize,
    n: usize,
    run: usize,
    k: usize,
) -> usize {
    let step = step_of(T::kernel_for(isa), run);
    Blocks::<T::Acc>::cut::<T>(isa, blocking, m, n, run, k, step).bytes()
}

/// The elements that [`pack_right`] writes for B of `k × n`, where A has type `T`.
pub fn packed_right_len<T: TileElement>(isa: Isa, n: usize, k: usize) -> usize {
    let kernel = T::kernel_for(isa);
    Side::Right.packed_len(n, step_of(kernel, n), kernel.lanes, k.div_ceil(T::in_place_of_one(isa)))
}

/// Packs B of `k × n` for [`gemm_prepacked`] with an A of type `L`, which is T or its accumulator, so that many products
/// share the work.
///
/// # Panics
/// If `to` is shorter than [`packed_right_len`].
///
/// # Safety
/// `isa` is available, and every element (p < k, j < n) of B may be read.
pub unsafe fn pack_right<T: TileElement, L: TileElement<Acc = T::Acc>>(
    isa: Isa,
    blocking: &Blocking,
    n: usize,
    k: usize,
    b: Matrix<'_, T>,
    to: &mut [MaybeUninit<T::Acc>],
) {
    assert!(to.len() >= packed_right_len::<L>(isa, n, k));
    let kernel = L::kernel_for(isa);
    let step = step_of(kernel, n);
    let per = L::in_place_of_one(isa);
    let block = block_len(k.div_ceil(per), blocking.kc);
    let mut to = to.as_mut_ptr().cast::<T::Acc>();
    let mut p = 0;
    while p < k {
        let len = (block * per).min(k - p);
        // SAFETY: the caller's range of B; the length of `to` was checked.
        unsafe {
            pack(isa, Side::Right, b.from(p, 0).transposed(), n, len, step, per > 1, to);
            to = to.add(Side::Right.packed_len(n, step, kernel.lanes, len.div_ceil(per)));
        }
        p += len;
    }
}

/// Like [`gemm`], with B of `k × n` packed by [`pack_right`] with the same `isa` and `blocking`. The bits are the same.
///
/// Fast only if the columns of C have stride 1.
///
/// # Safety
/// As for [`gemm`]; `b` is what [`pack_right`] wrote.
pub unsafe fn gemm_prepacked<T, U>(
    isa: Isa,
    blocking: &Blocking,
    m: usize,
    n: usize,
    k: usize,
    a: Matrix<'_, T>,
    b: *const T::Acc,
    c: MatrixMut<'_, U>,
    accum: Accum,
    scratch: &mut Scratch,
) where
    T: TileElement,
    U: TileElement<Acc = T::Acc>,
{
    let kernel = T::kernel_for(isa);
    let columns = Side::Right.packed_len(n, step_of(kernel, n), kernel.lanes, 1);
    let b = Right::Packed { start: b, columns, first: 0 };
    // SAFETY: the caller's invariants.
    unsafe { product(isa, blocking, m, n, k, a, b, c, accum, scratch) }
}

/// Where B comes from.
enum Right<'a, T: TileElement> {
    Matrix(Matrix<'a, T>),
    /// Packed in blocks of k, each `columns` wide, of which this part starts at column `first`.
    Packed {
        start: *const T::Acc,
        columns: usize,
        first: usize,
    },
}

impl<T: TileElement> Clone for Right<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T: TileElement> Copy for Right<'_, T> {}

impl<T: TileElement> Right<'_, T> {
    /// The columns from `j`, a multiple of the panel, on.
    fn from(self, j: usize) -> Self {
        match self {
            Right::Matrix(b) => Right::Matrix(b.from(0, j)),
            Right::Packed { start, columns, first } => Right::Packed { start, columns, first: first + j },
        }
    }
}

/// Columns of a panel of B: panels of nearly equal width, none wider than a tile.
#[inline(always)]
fn step_of<E>(kernel: &TileKernel<E>, n: usize) -> usize {
    let vectors = n.div_ceil(kernel.lanes).max(1);
    vectors.div_ceil(vectors.div_ceil(kernel.max_width())) * kernel.lanes
}

/// The block along k: equal blocks, but for rounding, of at most `kc`.
#[inline(always)]
fn block_len(k: usize, kc: usize) -> usize {
    if k <= kc {
        return k;
    }
    k.div_ceil(k.div_ceil(kc)).next_multiple_of(16).min(kc)
}

/// The product, with the vectors along the columns of C.
///
/// # Safety
/// As for [`gemm`].
unsafe fn product<T, U>(
    isa: Isa,
    blocking: &Blocking,
    m: usize,
    n: usize,
    k: usize,
    a: Matrix<'_, T>,
    b: Right<'_, T>,
    c: MatrixMut<'_, U>,
    accum: Accum,
    scratch: &mut Scratch,
) where
    T: TileElement,
    U: TileElement<Acc = T::Acc>,
{
    let add = accum == Accum::Add;
    if m == 0 || n == 0 || (k == 0 && add) {
        return;
    }
    // SAFETY: the caller's invariants.
    unsafe {
        if small(isa, blocking, m, n, k, &a, &b, &c, accum).is_some() {
            return;
        }
        if U::IS_ACC || k <= blocking.kc * T::in_place_of_one(isa) {
            let run = c.cols.run_len().unwrap_or(n);
            let step = step_of(T::kernel_for(isa), run);
            let blocks = Blocks::cut::<T>(isa, blocking, m, n, run, k, step).reading(&a, &b);
            let memory = scratch.reserve(blocks.bytes());
            blocks.run(a, b, c, add, memory);
        } else {
            accumulated(isa, blocking, m, n, k, a, b, c, add, scratch);
        }
    }
}

/// Rows and columns up to which nothing is packed if nothing must be.
const SMALL: usize = 64;

/// The whole product if all three matrices can be used in place, else nothing: no memory, and little arithmetic before
/// the first tile.
///
/// # Safety
/// As for [`gemm`].
#[inline(always)]
unsafe fn small<T, U>(
    isa: Isa,
    blocking: &Blocking,
    m: usize,
    n: usize,
    k: usize,
    a: &Matrix<'_, T>,
    b: &Right<'_, T>,
    c: &MatrixMut<'_, U>,
    accum: Accum,
) -> Option<()>
where
    T: TileElement,
    U: TileElement<Acc = T::Acc>,
{
    if m > SMALL || n > SMALL || k > blocking.kc || m == 0 || n == 0 || k == 0 {
        return None;
    }
    let kernel = T::kernel_for(isa);
    let (a, a_row, a_col) = left_in_place(a)?;
    let (b, b_row) = right_in_place(b, n)?;
    let (c, c_row) = storable(c, m, n)?;
    let lanes = kernel.lanes;
    if kernel.direct.is_empty() || !(kernel.masks || n.is_multiple_of(lanes)) {
        return None;
    }
    let vectors = n.div_ceil(lanes);
    // One panel of columns is the common case; dividing takes longer than a small tile.
    let width =
        if vectors <= kernel.max_width() { vectors } else { vectors.div_ceil(vectors.div_ceil(kernel.max_width())) };
    let tallest = kernel.max_height(width);
    let height = if m <= tallest { m } else { m.div_ceil(m.div_ceil(tallest)) };
    let mut tile = Tile { k, a, a_row, a_col, b, b_row, c, c_row, last: lanes, add: accum == Accum::Add };
    let mut i = 0;
    while i < m {
        let rows = height.min(m - i);
        tile.a = a.wrapping_offset(i as isize * a_row);
        let c = c.wrapping_offset(i as isize * c_row);
        let mut first = 0;
        while first < vectors {
            let wide = width.min(vectors - first);
            let columns = (n - first * lanes).min(wide * lanes);
            tile.last = columns - (wide - 1) * lanes;
            tile.b = b.wrapping_add(first * lanes);
            tile.c = c.wrapping_add(first * lanes);
            // SAFETY: the tile is within the caller's matrices.
            unsafe { kernel.direct[wide - 1][rows - 1](&tile) }
            first += wide;
        }
        i += rows;
    }
    Some(())
}

/// A and its strides, if the micro-kernel can read it where it is.
#[inline(always)]
fn left_in_place<T: TileElement>(a: &Matrix<'_, T>) -> Option<(*const T::Acc, isize, isize)> {
    if !T::IS_ACC {
        return None;
    }
    Some((a.ptr.cast(), a.rows.stride()?, a.cols.stride()?))
}

/// Whether reading A in place uses whole cache lines.
#[inline(always)]
fn compact<T: TileElement>(a: &Matrix<'_, T>) -> bool {
    left_in_place(a).is_some_and(|(_, row, col)| row == 1 || col == 1)
}

/// B and its row stride, if the micro-kernel can read it where it is.
#[inline(always)]
fn right_in_place<T: TileElement>(b: &Right<'_, T>, n: usize) -> Option<(*const T::Acc, isize)> {
    match b {
        Right::Matrix(b) if T::IS_ACC && (n == 1 || b.cols.stride() == Some(1)) => {
            // A lone column may be scattered: its offset belongs to the base.
            let start = b.ptr.wrapping_offset(b.cols.get(0));
            Some((start.cast(), b.rows.stride()?))
        }
        _ => None,
    }
}

/// C and its row stride, if the micro-kernel can store to it.
#[inline(always)]
fn storable<U: TileElement>(c: &MatrixMut<'_, U>, m: usize, n: usize) -> Option<(*mut U::Acc, isize)> {
    if U::IS_ACC && (n == 1 || c.cols.stride() == Some(1)) {
        let stride = c.rows.stride_of(m)?;
        let first = if let Offsets::Strided(_) = c.rows { 0 } else { c.rows.get(0) };
        let start = c.ptr.wrapping_offset(first + c.cols.get(0));
        return Some((start.cast(), stride));
    }
    None
}

/// The product in blocks of C small enough to keep in the accumulator type until all of k is summed.
///
/// # Safety
/// As for [`gemm`].
unsafe fn accumulated<T, U>(
    isa: Isa,
    blocking: &Blocking,
    m: usize,
    n: usize,
    k: usize,
    a: Matrix<'_, T>,
    b: Right<'_, T>,
    c: MatrixMut<'_, U>,
    add: bool,
    scratch: &mut Scratch,
) where
    T: TileElement,
    U: TileElement<Acc = T::Acc>,
{
    let step = step_of(T::kernel_for(isa), n);
    let (mc, nc, sum_bytes) = sums::<T::Acc>(blocking, m, n, step);
    let memory = scratch.reserve(sum_bytes + Blocks::<T::Acc>::cut::<T>(isa, blocking, mc, nc, nc, k, step).bytes());
    for i in (0..m).step_by(mc) {
        let rows = mc.min(m - i);
        for j in (0..n).step_by(nc) {
            let cols = nc.min(n - j);
            let (a, b) = (a.from(i, 0), b.from(j));
            let sums = MatrixMut {
                ptr: memory.cast::<T::Acc>(),
                rows: Offsets::Strided(nc as isize),
                cols: Offsets::Strided(1),
            };
            let blocks = Blocks::cut::<T>(isa, blocking, rows, cols, cols, k, step).reading(&a, &b);
            // SAFETY: the caller's invariants for this part of C; the sums lie before the blocks in the scratch, and
            // `Blocks::bytes` does not grow when rows or columns are fewer, or when less is packed.
            unsafe {
                blocks.run(a, b, sums, false, memory.add(sum_bytes));
                store(isa, sums.ptr, nc, rows, cols, c.from(i, j), add);
            }
        }
    }
}

/// Columns of a block of sums.
const SUM_COLUMNS: usize = 1024;

/// Rows, columns and bytes of a block of sums, which fits into the last-level cache.
fn sums<E>(blocking: &Blocking, m: usize, n: usize, step: usize) -> (usize, usize, usize) {
    let rows = (blocking.mc / 4).max(1).min(m);
    let columns = (blocking.nc.min(SUM_COLUMNS) / step * step).max(step).min(n);
    (rows, columns, (rows * columns * size_of::<E>()).next_multiple_of(Scratch::ALIGN))
}

/// The most bytes that [`gemm`] or [`gemm_prepacked`] takes from its scratch for these sizes, whatever the layouts.
pub fn scratch_bytes<T: TileElement>(isa: Isa, blocking: &Blocking, m: usize, n: usize, k: usize) -> usize {
    let kernel = T::kernel_for(isa);
    let most = |m: usize, n: usize| {
        let step = step_of(kernel, n);
        let whole = Blocks::<T::Acc>::cut::<T>(isa, blocking, m, n, n, k, step).bytes();
        let (rows, columns, sum_bytes) = sums::<T::Acc>(blocking, m, n, step);
        let part = Blocks::<T::Acc>::cut::<T>(isa, blocking, rows, columns, columns, k, step).bytes();
        whole.max(if k > blocking.kc * T::in_place_of_one(isa) { sum_bytes + part } else { 0 })
    };
    if m == 0 || n == 0 { 0 } else { most(m, n).max(most(n, m)) }
}
