//! The five loops around the micro-kernel.
//!
//! In: matrices and how they are cut, decided by `Blocks::cut`. Out: C. Called by [`super::gemm`] only.

use std::mem::MaybeUninit;
use std::ptr;

use super::{Blocking, Right, Scratch, block_len, compact, left_in_place, right_in_place, storable};
use crate::isa::Isa;
use crate::kernels::tile::{Accumulator, TILE_LEN, Tile, TileElement, TileKernel, prefetch, store};
use crate::pack::{Matrix, MatrixMut, Side, pack};

/// Up to this many panels of A, B is read where it is: packing it would not be repaid.
const PANELS_IN_PLACE: usize = 12;

/// A panel of B of so many bytes leaves room for others in the first-level cache.
const NARROW_BYTES: usize = 8 << 10;

/// Bytes of a cache line, near enough on every machine.
const LINE_BYTES: usize = 64;

/// The five loops: how the matrices are cut.
pub(super) struct Blocks<E: 'static> {
    isa: Isa,
    kernel: &'static TileKernel<E>,
    m: usize,
    n: usize,
    k: usize,
    /// Elements along k that a panel holds in the place of one.
    per: usize,
    /// Rows of a panel of A.
    height: usize,
    /// Columns of a panel of B.
    step: usize,
    /// Columns of a run, which has panels of its own; all of them where there are no runs.
    run: usize,
    /// Rows of a block of A, whole panels.
    mb: usize,
    /// Columns of a block of B, whole panels.
    nb: usize,
    /// Length of a block along k, in places.
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
    /// Stride along k; none: packed, as [`Side::stride`] says for the rows of the panel.
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

impl<E: Accumulator> Blocks<E> {
    /// How `m × n × k` is cut, with panels of B of `step` columns, if both sides are packed; columns are runs of `run`, of which each block has whole ones.
    pub(super) fn cut<T: TileElement<Acc = E>>(
        isa: Isa,
        blocking: &Blocking,
        m: usize,
        n: usize,
        run: usize,
        k: usize,
        step: usize,
    ) -> Self {
        let kernel = T::kernel_for(isa);
        let tallest = kernel.max_height(step / kernel.lanes);
        let panels = m.div_ceil(tallest).max(1);
        let height = m.div_ceil(panels).max(1);
        let nb = match blocking.nc {
            nc if n <= nc => n,
            nc if run < n => ((nc / run).max(1) * run).min(n),
            nc => (nc / step * step).max(step).min(n),
        };
        let per = T::in_place_of_one(isa);
        let kb = block_len(k.div_ceil(per), blocking.kc);
        // If A is packed for several blocks of columns, many rows at a time, since a block is packed but once if it
        // holds all rows; otherwise few, which are still in cache when they are used.
        let mc = if nb < n { blocking.mc } else { blocking.mc / 16 } * (blocking.kc / kb.max(1)).max(1);
        Blocks {
            isa,
            kernel,
            m,
            n,
            k,
            per,
            height,
            step,
            run,
            mb: (mc / tallest).clamp(1, panels) * height,
            nb,
            kb,
            pack_left: true,
            pack_right: true,
        }
    }

    /// The same, leaving operands where they are if that is at least as fast.
    pub(super) fn reading<T: TileElement<Acc = E>>(mut self, a: &Matrix<'_, T>, b: &Right<'_, T>) -> Self {
        let aside = self.kernel.direct.is_empty() || left_in_place(a).is_none();
        self.pack_left = aside || (!compact(a) && self.n > self.step);
        self.pack_right = match b {
            Right::Packed { .. } => false,
            Right::Matrix(_) => {
                let whole = self.kernel.masks || self.run.is_multiple_of(self.kernel.lanes);
                !whole || right_in_place(b, self.n).is_none() || self.m > self.height * PANELS_IN_PLACE
            }
        };
        self
    }

    /// Bytes that [`Blocks::run`] needs. Cut to fewer rows or columns and packing the same sides, it is never more.
    pub(super) fn bytes(&self) -> usize {
        let right = if self.run < self.n {
            self.nb / self.run * self.panels() * self.step * self.kb
        } else {
            Side::Right.packed_len(self.nb, self.step, self.kernel.lanes, self.kb)
        };
        self.left_bytes() + if self.pack_right { right * size_of::<E>() } else { 0 }
    }

    /// Elements along k in `len` places from `p` on.
    #[inline(always)]
    fn elements(&self, p: usize, len: usize) -> usize {
        (len * self.per).min(self.k - p * self.per)
    }

    /// Panels of a run.
    #[inline(always)]
    fn panels(&self) -> usize {
        self.run.div_ceil(self.step)
    }

    fn left_bytes(&self) -> usize {
        if !self.pack_left {
            return 0;
        }
        let lanes = self.kernel.lanes;
        let tallest = self.kernel.max_height(self.step / lanes);
        let len = self.mb.div_ceil(self.height) * Side::Left.stride(tallest, lanes) * self.kb + lanes;
        (len * size_of::<E>()).next_multiple_of(Scratch::ALIGN)
    }

    /// # Safety
    /// As for [`gemm`]; `memory` has [`Blocks::bytes`] bytes, aligned to a cache line.
    pub(super) unsafe fn run<T, U>(
        &self,
        a: Matrix<'_, T>,
        b: Right<'_, T>,
        c: MatrixMut<'_, U>,
        add: bool,
        memory: *mut u8,
    ) where
        T: TileElement<Acc = E>,
        U: TileElement<Acc = E>,
    {
        let left_memory = memory.cast::<E>();
        // SAFETY: `memory` has room for A, then B; blocks stay within the caller's matrices.
        unsafe {
            let right_memory = memory.add(self.left_bytes()).cast::<E>();
            // Loop 5: along k. Once even if there is nothing to sum, to write zeros.
            let places = self.k.div_ceil(self.per);
            let mut p = 0;
            loop {
                let len = self.kb.min(places - p);
                let mut left = None;
                // Loop 4: columns of B and C that share a packed block.
                for j in (0..self.n).step_by(self.nb) {
                    let cols = self.nb.min(self.n - j);
                    let right = self.right(b, p, j, len, cols, right_memory);
                    // Loop 3: rows of A and C that share a packed block.
                    for i in (0..self.m).step_by(self.mb) {
                        let rows = self.mb.min(self.m - i);
                        if self.mb < self.m || left.is_none() {
                            left = Some(self.left(a.from(i, p * self.per), p, len, rows, left_memory));
                        }
                        if let Some(left) = &left {
                            self.tiles(rows, cols, len, left, &right, c.from(i, j), add || p > 0);
                        }
                    }
                }
                p += len;
                if p >= places {
                    break;
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
        p: usize,
        len: usize,
        rows: usize,
        memory: *mut E,
    ) -> LeftBlock<E> {
        if !self.pack_left
            && let Some((start, row, col)) = left_in_place(&a)
        {
            return LeftBlock { start, panel: row * self.height as isize, row, col: Some(col) };
        }
        // SAFETY: the caller's ranges; `left_bytes` are there for it.
        unsafe { pack(self.isa, Side::Left, a, rows, self.elements(p, len), self.height, self.per > 1, memory) }
        LeftBlock {
            start: memory,
            panel: (Side::Left.stride(self.height, self.kernel.lanes) * len) as isize,
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
                let part = b.from(p * self.per, j);
                if !self.pack_right
                    && let Some((start, row)) = right_in_place(&Right::Matrix(part), self.n)
                {
                    return RightBlock { start, panel: self.step as isize, row: Some(row) };
                }
                // SAFETY: the caller's ranges; a block of `nb` columns fits.
                unsafe {
                    let part = part.transposed();
                    pack(self.isa, Side::Right, part, cols, self.elements(p, len), self.step, self.per > 1, memory)
                }
                RightBlock { start: memory, panel, row: None }
            }
        }
    }

    /// Loops 2 and 1: the tiles of a block of C, along its rows, so that C is written as it lies and the panel of A
    /// stays in the first-level cache while B comes from the second.
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
        let down = rows.div_ceil(self.height);
        let across = if self.run < self.n { cols / self.run * self.panels() } else { cols.div_ceil(self.step) };
        // Rows of A that lie apart are new to the hardware's prefetcher at every panel: ask for the next panel while
        // this one is used. Rows closer than that arrive by themselves.
        let line = LINE_BYTES / size_of::<E>();
        let apart = left.col == Some(1) && left.row.unsigned_abs() >= 4 * line;
        let share = self.height.div_ceil(across);
        if down > 1 && across > 1 && self.is_down_first(len, &c) {
            for j in 0..across {
                for i in 0..down {
                    // SAFETY: tile (i, j) is within the block.
                    unsafe { self.tile(rows, cols, len, i, j, left, right, c, add) }
                }
            }
            return;
        }
        for i in 0..down {
            let next = left.start.wrapping_offset((i + 1) as isize * left.panel);
            let coming = if apart && i + 1 < down { self.height.min(rows - (i + 1) * self.height) } else { 0 };
            for j in 0..across {
                for row in j * share..((j + 1) * share).min(coming) {
                    let row = next.wrapping_offset(row as isize * left.row);
                    for at in (0..len).step_by(line) {
                        prefetch(row.wrapping_add(at));
                    }
                }
                // SAFETY: tile (i, j) is within the block.
                unsafe { self.tile(rows, cols, len, i, j, left, right, c, add) }
            }
        }
    }

    /// Whether the tiles below one another are the closer ones in C, and a panel of B stays in the first-level cache
    /// while A passes.
    fn is_down_first<U: TileElement<Acc = E>>(&self, len: usize, c: &MatrixMut<'_, U>) -> bool {
        let next = if self.run > self.step || self.run == self.n { self.step } else { self.run };
        let (down, across) = (c.rows.get(self.height) - c.rows.get(0), c.cols.get(next) - c.cols.get(0));
        self.step * len * size_of::<E>() <= NARROW_BYTES && down.unsigned_abs() < across.unsigned_abs()
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
        let first_row = i * self.height;
        let height = self.height.min(rows - first_row);
        let (first_col, columns) = if self.run < self.n {
            let (run, panel) = (j / self.panels(), j % self.panels());
            (run * self.run + panel * self.step, self.step.min(self.run - panel * self.step))
        } else {
            (j * self.step, self.step.min(cols - j * self.step))
        };
        let width = columns.div_ceil(lanes);
        let last = columns - (width - 1) * lanes;
        let table = if left.col.is_some() { self.kernel.direct } else { self.kernel.packed };
        let function = table[width - 1][height - 1];
        let mut tile = Tile {
            k: len,
            a: left.start.wrapping_offset(i as isize * left.panel),
            a_row: left.row,
            a_col: left.col.unwrap_or(Side::Left.stride(height, lanes) as isize),
            b: right.start.wrapping_offset(j as isize * right.panel),
            b_row: right.row.unwrap_or((width * lanes) as isize),
            c: ptr::null_mut(),
            c_row: (width * lanes) as isize,
            last,
            add,
        };
        let c = c.panel(first_row, first_col);
        // SAFETY: TileFn's ranges are panels of the caller's; the buffer holds the largest tile, and `store` reads only
        // what the micro-kernel wrote.
        unsafe {
            if (self.kernel.masks || last == lanes)
                && let Some((start, row)) = storable(&c, height, self.run)
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
