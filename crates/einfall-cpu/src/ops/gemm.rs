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

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::mem::MaybeUninit;
use std::ptr;

use crate::isa::Isa;
use crate::kernels::tile::{Accumulator, TILE_LEN, Tile, TileElement, TileFn, TileKernel, store};
use crate::pack::{Matrix, MatrixMut, Offsets, pack, packed_len};

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
    /// Rows of A in a block, which should stay in the second-level cache.
    pub mc: usize,
    /// Length along k. It decides how each element is rounded; all calls that must agree use the same.
    pub kc: usize,
    /// Columns of B in a block.
    pub nc: usize,
}

impl Blocking {
    /// The block lengths for an element type on a machine.
    pub fn new<T: TileElement>(isa: Isa, caches: Caches) -> Self {
        let kernel = T::Acc::kernel(isa);
        let width = kernel.max_width();
        let bytes = size_of::<T::Acc>();
        let columns = width * kernel.lanes;
        let kc = (caches.l1_bytes * 2 / 3 / (columns * bytes) / 16 * 16).clamp(64, 512);
        let mc = (caches.l2_bytes / 2 / (kc * bytes)).max(kernel.max_height(width));
        let nc = (caches.l3_bytes / 2 / (kc * bytes) / columns * columns).max(columns);
        Blocking { mc, kc, nc }
    }
}

/// Working memory that calls share; grows to what the largest call needs.
#[derive(Debug)]
pub struct Scratch {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the memory is owned and reached only through `&mut`.
unsafe impl Send for Scratch {}

impl Scratch {
    const ALIGN: usize = 4096;

    /// No memory yet.
    pub const fn new() -> Self {
        Scratch { start: ptr::null_mut(), bytes: 0 }
    }

    /// At least `bytes` bytes, uninitialised, aligned to a page.
    fn reserve(&mut self, bytes: usize) -> *mut u8 {
        if bytes > self.bytes {
            self.release();
            let layout = Self::layout(bytes);
            // SAFETY: `bytes` is above the old size, hence not zero.
            let start = unsafe { alloc(layout) };
            if start.is_null() {
                handle_alloc_error(layout);
            }
            (self.start, self.bytes) = (start, bytes);
        }
        self.start
    }

    fn release(&mut self) {
        if self.bytes > 0 {
            // SAFETY: allocated by `reserve` with this layout.
            unsafe { dealloc(self.start, Self::layout(self.bytes)) }
            (self.start, self.bytes) = (ptr::null_mut(), 0);
        }
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, Self::ALIGN).expect("scratch exceeds the address space")
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.release();
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
    // SAFETY: the caller's invariants, which do not care which side is called left.
    unsafe {
        if down && (!along || m > n) {
            let (a, b, c) = (b.transposed(), a.transposed(), c.transposed());
            product(isa, blocking, n, m, k, a, Right::Matrix(b), c, accum, scratch);
        } else {
            product(isa, blocking, m, n, k, a, Right::Matrix(b), c, accum, scratch);
        }
    }
}

/// The elements that [`pack_right`] writes for B of `k × n`.
pub fn packed_right_len<T: TileElement>(isa: Isa, n: usize, k: usize) -> usize {
    let kernel = T::Acc::kernel(isa);
    packed_len(n, step_of(kernel, n), kernel.lanes, k)
}

/// Packs B of `k × n` for [`gemm_prepacked`], so that many products share the work.
///
/// # Panics
/// If `to` is shorter than [`packed_right_len`].
///
/// # Safety
/// `isa` is available, and every element (p < k, j < n) of B may be read.
pub unsafe fn pack_right<T: TileElement>(
    isa: Isa,
    blocking: &Blocking,
    n: usize,
    k: usize,
    b: Matrix<'_, T>,
    to: &mut [MaybeUninit<T::Acc>],
) {
    assert!(to.len() >= packed_right_len::<T>(isa, n, k));
    let kernel = T::Acc::kernel(isa);
    let step = step_of(kernel, n);
    let block = block_len(k, blocking.kc);
    let mut to = to.as_mut_ptr().cast::<T::Acc>();
    let mut p = 0;
    while p < k {
        let len = block.min(k - p);
        // SAFETY: the caller's range of B; the length of `to` was checked.
        unsafe {
            pack(isa, b.from(p, 0).transposed(), n, len, step, to);
            to = to.add(packed_len(n, step, kernel.lanes, len));
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
    let kernel = T::Acc::kernel(isa);
    let columns = packed_len(n, step_of(kernel, n), kernel.lanes, 1);
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

/// Columns of a panel of B.
#[inline(always)]
fn step_of<E>(kernel: &TileKernel<E>, n: usize) -> usize {
    if n <= kernel.lanes { kernel.lanes } else { kernel.max_width() * kernel.lanes }
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
#[inline(always)]
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
    let kernel = T::Acc::kernel(isa);
    // SAFETY: the caller's invariants.
    unsafe {
        if k <= blocking.kc
            && let Some((tile, function)) = single_tile(kernel, m, n, k, &a, &b, &c, add)
        {
            return function(&tile);
        }
        if U::IS_ACC || k <= blocking.kc {
            let blocks = Blocks::new(isa, blocking, m, n, k, &a, &b);
            let memory = scratch.reserve(blocks.bytes());
            blocks.run(a, b, c, add, memory);
        } else {
            accumulated(isa, blocking, m, n, k, a, b, c, add, scratch);
        }
    }
}

/// The one call that computes everything, if C is a tile and all three matrices can be used in place.
#[inline(always)]
fn single_tile<T, U>(
    kernel: &'static TileKernel<T::Acc>,
    m: usize,
    n: usize,
    k: usize,
    a: &Matrix<'_, T>,
    b: &Right<'_, T>,
    c: &MatrixMut<'_, U>,
    add: bool,
) -> Option<(Tile<T::Acc>, TileFn<T::Acc>)>
where
    T: TileElement,
    U: TileElement<Acc = T::Acc>,
{
    let lanes = kernel.lanes;
    let width = if n <= lanes { 1 } else { 2 };
    if kernel.direct.len() < width || n > width * lanes {
        return None;
    }
    let function = *kernel.direct[width - 1].get(m - 1)?;
    if !(kernel.masks || n == width * lanes) {
        return None;
    }
    let (a, a_row, a_col) = left_in_place(a)?;
    let (b, b_row) = right_in_place(b, n)?;
    let (c, c_row) = storable(c, n)?;
    let tile = Tile { k, a, a_row, a_col, b, b_row, c, c_row, last: n - (width - 1) * lanes, add };
    Some((tile, function))
}

/// A and its strides, if the micro-kernel can read it where it is.
#[inline(always)]
fn left_in_place<T: TileElement>(a: &Matrix<'_, T>) -> Option<(*const T::Acc, isize, isize)> {
    if !T::IS_ACC {
        return None;
    }
    Some((a.ptr.cast(), a.rows.stride()?, a.cols.stride()?))
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
fn storable<U: TileElement>(c: &MatrixMut<'_, U>, n: usize) -> Option<(*mut U::Acc, isize)> {
    if U::IS_ACC && (n == 1 || c.cols.stride() == Some(1)) {
        let start = c.ptr.wrapping_offset(c.cols.get(0));
        return Some((start.cast(), c.rows.stride()?));
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
    let step = step_of(T::Acc::kernel(isa), n);
    let mc = blocking.mc.min(m);
    let nc = (blocking.nc.min(SUM_COLUMNS) / step * step).max(step).min(n);
    let sum_bytes = (mc * nc * size_of::<T::Acc>()).next_multiple_of(Scratch::ALIGN);
    let block_bytes = Blocks::new(isa, blocking, mc, nc, k, &a, &b).bytes();
    let memory = scratch.reserve(sum_bytes + block_bytes);
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
            let blocks = Blocks::with_step(isa, blocking, rows, cols, k, &a, &b, step);
            // SAFETY: the caller's invariants for this part of C; the sums lie before the blocks in the scratch, and
            // `Blocks::bytes` does not grow when rows or columns are fewer.
            unsafe {
                blocks.run(a, b, sums, false, memory.add(sum_bytes));
                store(isa, sums.ptr, nc, rows, cols, c.from(i, j), add);
            }
        }
    }
}

/// Columns of a block of sums; with [`Blocking::mc`] rows they fit into the last-level cache.
const SUM_COLUMNS: usize = 1024;

/// The five loops: how the matrices are cut.
struct Blocks<'a, E: 'static> {
    isa: Isa,
    kernel: &'static TileKernel<E>,
    blocking: &'a Blocking,
    m: usize,
    n: usize,
    k: usize,
    /// Rows of a panel of A.
    height: usize,
    /// Columns of a panel of B.
    step: usize,
    /// Rows of a block of A, whole panels.
    mb: usize,
    /// Columns of a block of B, whole panels.
    nb: usize,
    /// Length of a block along k.
    kb: usize,
    pack_left: bool,
    pack_right: bool,
}

/// A packed block of A, or A where it is.
struct LeftBlock<E> {
    start: *const E,
    /// Distance between panels.
    panel: isize,
    row: isize,
    /// Stride along k; none: packed, the rows of the panel rounded up to whole vectors.
    col: Option<isize>,
}

/// A packed block of B, or B where it is.
struct RightBlock<E> {
    start: *const E,
    /// Distance between panels.
    panel: isize,
    /// Stride along k; none: packed, the columns of the panel rounded up to whole vectors.
    row: Option<isize>,
}

/// A tile on its way to a C that cannot be stored to directly.
#[repr(align(64))]
struct TileBuffer<E>(MaybeUninit<[E; TILE_LEN]>);

impl<'a, E: Accumulator> Blocks<'a, E> {
    fn new<T: TileElement<Acc = E>>(
        isa: Isa,
        blocking: &'a Blocking,
        m: usize,
        n: usize,
        k: usize,
        a: &Matrix<'_, T>,
        b: &Right<'_, T>,
    ) -> Self {
        let step = step_of(E::kernel(isa), n);
        Self::with_step(isa, blocking, m, n, k, a, b, step)
    }

    fn with_step<T: TileElement<Acc = E>>(
        isa: Isa,
        blocking: &'a Blocking,
        m: usize,
        n: usize,
        k: usize,
        a: &Matrix<'_, T>,
        b: &Right<'_, T>,
        step: usize,
    ) -> Self {
        let kernel = E::kernel(isa);
        let tallest = kernel.max_height(step / kernel.lanes);
        let panels = m.div_ceil(tallest);
        let height = m.div_ceil(panels);
        let kb = block_len(k, blocking.kc);
        let masked = kernel.masks || n.is_multiple_of(kernel.lanes);
        Blocks {
            isa,
            kernel,
            blocking,
            m,
            n,
            k,
            height,
            step,
            mb: (blocking.mc / tallest).clamp(1, panels) * height,
            nb: (blocking.nc / step * step).max(step).min(n),
            kb,
            pack_left: kernel.direct.is_empty() || left_in_place(a).is_none() || n > 8 * step,
            pack_right: !masked || right_in_place(b, n).is_none() || panels > 4,
        }
    }

    /// Elements of a packed block of A. For fewer rows in all it is never more.
    fn left_len(&self) -> usize {
        let tallest = self.kernel.max_height(self.step / self.kernel.lanes);
        self.mb.div_ceil(self.height) * tallest.next_multiple_of(self.kernel.lanes) * self.kb
    }

    /// Bytes that [`Blocks::run`] needs.
    fn bytes(&self) -> usize {
        let right = packed_len(self.nb, self.step, self.kernel.lanes, self.kb);
        self.left_bytes() + right * size_of::<E>()
    }

    fn left_bytes(&self) -> usize {
        (self.left_len() * size_of::<E>()).next_multiple_of(Scratch::ALIGN)
    }

    /// # Safety
    /// As for [`gemm`]; `memory` has [`Blocks::bytes`] bytes, aligned to a cache line.
    unsafe fn run<T, U>(&self, a: Matrix<'_, T>, b: Right<'_, T>, c: MatrixMut<'_, U>, add: bool, memory: *mut u8)
    where
        T: TileElement<Acc = E>,
        U: TileElement<Acc = E>,
    {
        let left_memory = memory.cast::<E>();
        // SAFETY: `memory` has room for A, then B; blocks stay within the caller's matrices.
        unsafe {
            let right_memory = memory.add(self.left_bytes()).cast::<E>();
            // Loop 5: columns of B and C that share a packed block.
            for j in (0..self.n).step_by(self.nb) {
                let cols = self.nb.min(self.n - j);
                // Loop 4: along k. Once even if there is nothing to sum, to write zeros.
                let mut p = 0;
                loop {
                    let len = self.kb.min(self.k - p);
                    let right = self.right(b, p, j, len, cols, right_memory);
                    // Loop 3: rows of A and C that share a packed block.
                    for i in (0..self.m).step_by(self.mb) {
                        let rows = self.mb.min(self.m - i);
                        let left = self.left(a.from(i, p), len, rows, left_memory);
                        self.tiles(rows, cols, len, &left, &right, c.from(i, j), add || p > 0);
                    }
                    p += len;
                    if p >= self.k {
                        break;
                    }
                }
            }
        }
    }

    /// # Safety
    /// As for [`Blocks::run`].
    #[inline(always)]
    unsafe fn left<T: TileElement<Acc = E>>(
        &self,
        a: Matrix<'_, T>,
        len: usize,
        rows: usize,
        memory: *mut E,
    ) -> LeftBlock<E> {
        if !self.pack_left
            && let Some((start, row, col)) = left_in_place(&a)
        {
            return LeftBlock { start, panel: row * self.height as isize, row, col: Some(col) };
        }
        // SAFETY: the caller's ranges; `left_len` elements are there for it.
        unsafe { pack(self.isa, a, rows, len, self.height, memory) }
        LeftBlock {
            start: memory,
            panel: (self.height.next_multiple_of(self.kernel.lanes) * len) as isize,
            row: 1,
            col: None,
        }
    }

    /// # Safety
    /// As for [`Blocks::run`].
    #[inline(always)]
    unsafe fn right<T: TileElement<Acc = E>>(
        &self,
        b: Right<'_, T>,
        p: usize,
        j: usize,
        len: usize,
        cols: usize,
        memory: *mut E,
    ) -> RightBlock<E> {
        let panel = (self.step * len) as isize;
        match b {
            Right::Packed { start, columns, first } => {
                RightBlock { start: start.wrapping_add(columns * p + (first + j) * len), panel, row: None }
            }
            Right::Matrix(b) => {
                let part = b.from(p, j);
                if !self.pack_right
                    && let Some((start, row)) = right_in_place(&Right::Matrix(part), self.n)
                {
                    return RightBlock { start, panel: self.step as isize, row: Some(row) };
                }
                // SAFETY: the caller's ranges; a block of `nb` columns fits.
                unsafe { pack(self.isa, part.transposed(), cols, len, self.step, memory) }
                RightBlock { start: memory, panel, row: None }
            }
        }
    }

    /// Loops 2 and 1: the tiles of a block of C.
    ///
    /// # Safety
    /// As for [`Blocks::run`].
    #[inline(always)]
    unsafe fn tiles<U: TileElement<Acc = E>>(
        &self,
        rows: usize,
        cols: usize,
        len: usize,
        left: &LeftBlock<E>,
        right: &RightBlock<E>,
        c: MatrixMut<'_, U>,
        add: bool,
    ) {
        // The inner loop reads one side again and again: keep B there if it fits into the second-level cache, so that C
        // is written along its rows; else A.
        let rows_first = cols * len <= self.blocking.mc * self.blocking.kc;
        let (down, across) = (rows.div_ceil(self.height), cols.div_ceil(self.step));
        // SAFETY: tile (i, j) is within the block.
        unsafe {
            if rows_first {
                for i in 0..down {
                    for j in 0..across {
                        self.tile(rows, cols, len, i, j, left, right, c, add);
                    }
                }
            } else {
                for j in 0..across {
                    for i in 0..down {
                        self.tile(rows, cols, len, i, j, left, right, c, add);
                    }
                }
            }
        }
    }

    /// Panel `i` of A times panel `j` of B.
    ///
    /// # Safety
    /// As for [`Blocks::run`].
    #[inline(always)]
    unsafe fn tile<U: TileElement<Acc = E>>(
        &self,
        rows: usize,
        cols: usize,
        len: usize,
        i: usize,
        j: usize,
        left: &LeftBlock<E>,
        right: &RightBlock<E>,
        c: MatrixMut<'_, U>,
        add: bool,
    ) {
        let lanes = self.kernel.lanes;
        let (first_row, first_col) = (i * self.height, j * self.step);
        let height = self.height.min(rows - first_row);
        let columns = self.step.min(cols - first_col);
        let width = columns.div_ceil(lanes);
        let last = columns - (width - 1) * lanes;
        let table = if left.col.is_some() { self.kernel.direct } else { self.kernel.packed };
        let function = table[width - 1][height - 1];
        let mut tile = Tile {
            k: len,
            a: left.start.wrapping_offset(i as isize * left.panel),
            a_row: left.row,
            a_col: left.col.unwrap_or(height.next_multiple_of(lanes) as isize),
            b: right.start.wrapping_offset(j as isize * right.panel),
            b_row: right.row.unwrap_or((width * lanes) as isize),
            c: ptr::null_mut(),
            c_row: (width * lanes) as isize,
            last,
            add,
        };
        let c = c.from(first_row, first_col);
        // SAFETY: TileFn's ranges are panels of the caller's; the buffer holds the largest tile, and `store` reads only
        // what the micro-kernel wrote.
        unsafe {
            if (self.kernel.masks || last == lanes)
                && let Some((start, row)) = storable(&c, self.n)
            {
                (tile.c, tile.c_row) = (start, row);
                return function(&tile);
            }
            let mut buffer = TileBuffer::<E>(MaybeUninit::uninit());
            tile.c = buffer.0.as_mut_ptr().cast();
            tile.add = false;
            function(&tile);
            store(self.isa, tile.c, width * lanes, height, columns, c, add);
        }
    }
}
