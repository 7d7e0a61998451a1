//! `dense`: scores of every row are computed a tile at a time, and the looked-up ones are picked out of it.
//!
//! When a list names a large part of the rows, a matrix product over all of them is cheaper than visiting each listed
//! row; the tile stays in cache, so the scores of rows that nobody asked for are never stored. Under a window the tile
//! covers the band of a few neighbouring queries.

use einfall_plan::pattern::{DenseTile, Moved, RowDots, Side, dense_tile, row_dots};
use einfall_plan::{Access, Bounds, Contraction, Cost, Estimate, Machine, Way};
use einfall_tensor::{DType, Element};

use super::Run;
use super::dots::store;
use super::gemm::{Accum, Blocking, Caches, Scratch, gemm, gemm_prepacked, pack_right, packed_right_len};
use super::source::inside;
use crate::kernels::through;
use crate::kernels::tile::TileElement;
use crate::load::pick;
use crate::pack::{Matrix, MatrixMut, Offsets};
use crate::scalar::Scalar;
use crate::walk::{BadTable, Walk};

/// Queries of a band's tile: one vector register of f32 on the widest machines.
pub(super) const BAND: usize = 32;

fn matched(contraction: &Contraction) -> Result<(RowDots, usize, DenseTile), String> {
    let dots = row_dots(contraction)?;
    let row_loop = dots.row_loop.ok_or("nothing chooses among rows")?;
    let rows = dots.rows.of(contraction).expect("matched");
    let other = dots.rows.other().of(contraction).expect("matched");
    let tile = dense_tile(contraction, rows, other, row_loop)?;
    Ok((dots, row_loop, tile))
}

/// Queries whose scores (or weights) over all rows fill a quarter of the second-level cache, a multiple of 8.
pub(super) fn tile_rows(machine: &Machine, columns: usize, bytes: usize) -> usize {
    (machine.l2_bytes / 4 / (columns.max(1) * bytes)).min(64) / 8 * 8
}

/// The queries of one of `parts` tasks: whole tiles, so that what a tile covers, and with it the order of a sum, does not
/// depend on the number of tasks.
pub(super) fn part_of(queries: usize, part: usize, parts: usize) -> std::ops::Range<usize> {
    let tiles = queries.div_ceil(BAND);
    let start = |part: usize| (tiles * part / parts * BAND).min(queries);
    start(part)..start(part + 1)
}

/// Positions that a tile of [`BAND`] neighbouring queries covers.
pub(super) fn band(contraction: &Contraction, rows: &Access, at: usize, row_loop: usize, tile_loop: usize) -> f64 {
    let window = &rows.windows[at];
    let reach = |at: usize, steps: usize| window.coefficients[at].unsigned_abs() as f64 * steps as f64;
    let keys = contraction.loops[row_loop].len.saturating_sub(1);
    (1.0 + reach(row_loop, keys) + reach(tile_loop, BAND - 1)).min(window.len as f64)
}

/// Positions that some queries reach from `start` on, clipped to the axis: steps and their number, of queries and keys.
pub(super) fn reach(start: i64, queries: (i64, usize), keys: (i64, usize), len: usize) -> std::ops::Range<usize> {
    let far = |(by, count): (i64, usize)| by * (count as i64 - 1);
    let (query, key) = (far(queries), far(keys));
    let clip = |position: i64| position.clamp(0, len as i64) as usize;
    let low = clip(start + query.min(0) + key.min(0));
    low..clip(start + query.max(0) + key.max(0) + 1).max(low)
}

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    if !contraction.dtype.is_float() {
        return Err("for real floating-point types".into());
    }
    super::check_out_dtype(contraction)?;
    let (dots, row_loop, tile) = matched(contraction)?;
    let rows = dots.rows.of(contraction).expect("matched");
    let accumulator = contraction.dtype.accumulator().bytes();
    let len = |at: usize| contraction.loops[at].len as f64;
    let (d, queries) = (len(dots.inner), len(tile.tile_loop));
    let wanted = contraction.flops() / 2.0 / d.max(1.0);
    let lists = wanted / len(row_loop);
    // Rows that the tile of a query covers.
    let (way, covered, scratch) = match tile.moved {
        Moved::Lookup(at) => {
            let n = rows.lookups[at].len;
            if n == 0 {
                return Err("there are no rows".into());
            }
            if tile_rows(machine, n, accumulator) < 8 {
                return Err("a tile over all rows does not fit the cache".into());
            }
            let scratch = n * (contraction.loops[dots.inner].len + 64) * accumulator + machine.l2_bytes / 4;
            (Way::DenseSelect, n as f64, scratch)
        }
        Moved::Window(at) => {
            let covered = band(contraction, rows, at, row_loop, tile.tile_loop);
            if covered * BAND as f64 * accumulator as f64 > machine.l2_bytes as f64 / 2.0 {
                return Err("a tile over the band does not fit the cache".into());
            }
            let bytes = covered as usize * (BAND + contraction.loops[dots.inner].len) * accumulator * 2;
            (Way::Band, covered, bytes)
        }
    };
    let threads = machine.threads as f64;
    let flops = 2.0 * lists * covered * if way == Way::DenseSelect { d } else { d + 6.0 };
    let compute = flops / (machine.flops_per_second(contraction.dtype) * 0.8);
    let pack = if way == Way::DenseSelect { lists / queries * covered * d * 0.3e-9 / threads } else { 0.0 };
    let each = if way == Way::DenseSelect { 0.15e-9 } else { 0.2e-9 };
    let select = (wanted * each + lists * 10e-9) / threads;
    let bytes = contraction.distinct_bytes();
    let seconds = super::started(machine, compute + pack + select + super::stream_seconds(bytes, machine));
    let workspace_bytes = machine.threads * (scratch + machine.l2_bytes) + (1 << 16);
    Ok(Estimate { way, cost: Cost { flops, bytes, seconds }, workspace_bytes })
}

/// Runs the contraction.
///
/// # Errors
/// [`BadTable`].
///
/// # Safety
/// `run` keeps its invariant `bound`.
pub unsafe fn run(run: &Run<'_>) -> Result<(), BadTable> {
    let direct = run.contraction.out_dtype == run.contraction.dtype.accumulator();
    let dtype = run.contraction.dtype;
    let aligned = |pointer: *const u8, dtype: DType| pointer.addr().is_multiple_of(dtype.bytes());
    if !aligned(run.left, dtype) || !aligned(run.right, dtype) {
        // SAFETY: by the caller.
        return unsafe { super::dots::run(run) };
    }
    // SAFETY: by the caller; the element types are those of the memory.
    unsafe {
        match dtype {
            DType::F64 => typed::<f64, f64>(run),
            DType::F32 => typed::<f32, f32>(run),
            DType::F16 if direct => typed::<half::f16, f32>(run),
            DType::F16 => typed::<half::f16, half::f16>(run),
            DType::BF16 if direct => typed::<half::bf16, f32>(run),
            _ => typed::<half::bf16, half::bf16>(run),
        }
    }
}

/// # Safety
/// As [`run`], with `T` and `U` the element types of inputs and output.
unsafe fn typed<T, U>(run: &Run<'_>) -> Result<(), BadTable>
where
    T: Scalar + TileElement<Acc = <T as Scalar>::Acc>,
    U: Scalar<Acc = <T as Scalar>::Acc>,
    <T as Scalar>::Acc: TileElement<Acc = <T as Scalar>::Acc>,
{
    let contraction = run.contraction;
    let (dots, row_loop, tile) = matched(contraction).expect("the kernel made an offer");
    let rows = dots.rows.of(contraction).expect("matched");
    let vectors = dots.rows.other().of(contraction).expect("matched");
    let (row_data, vector_data): (*const T, *const T) = match dots.rows {
        Side::Right => (run.right.cast(), run.left.cast()),
        Side::Left => (run.left.cast(), run.right.cast()),
    };
    let outer: Vec<(usize, usize)> = (0..contraction.loops.len())
        .filter(|&at| at != dots.inner && at != row_loop && at != tile.tile_loop)
        .map(|at| (at, contraction.loops[at].len))
        .collect();
    let machine = run.machine;
    let blocking = Blocking::new::<T>(
        run.isa,
        Caches { l1_bytes: machine.l1_bytes, l2_bytes: machine.l2_bytes, l3_bytes: machine.l3_bytes / machine.threads },
    );
    let queries = contraction.loops[tile.tile_loop].len;
    let job = Job {
        run,
        dots,
        row_loop,
        tile,
        row_data,
        vector_data,
        blocking,
        d: contraction.loops[dots.inner].len,
        count: contraction.loops[row_loop].len,
    };
    // Few batches: their queries are divided among tasks; each task packs the rows for itself.
    let batches: usize = outer.iter().map(|(_, len)| len).product();
    let least = match tile.moved {
        Moved::Lookup(at) => 4 * tile_rows(machine, rows.lookups[at].len, size_of::<<T as Scalar>::Acc>()),
        Moved::Window(_) => 4 * BAND,
    };
    let parts = (4 * run.threads.count()).div_ceil(batches.max(1)).min(queries.div_ceil(least)).max(1);
    let parts = if run.threads.count() == 1 { 1 } else { parts };
    run.threads.for_pieces_with(
        batches * parts,
        1,
        run.serial_seconds,
        || Tile { packed: Vec::new(), scores: Vec::new(), picked: Vec::new(), scratch: Scratch::new() },
        |state, range| {
            for flat in range {
                let mut walk =
                    Walk::new([rows, vectors, &contraction.out], outer.iter().copied(), run.tables, contraction.bounds);
                walk.seek(flat / parts);
                let part = flat % parts;
                let span = part_of(queries, part, parts);
                // SAFETY: `bound`; each part of the queries is one piece's own.
                unsafe {
                    match tile.moved {
                        Moved::Lookup(at) => job.select::<U>(&walk, at, span, state)?,
                        Moved::Window(at) => job.band::<U>(&walk, at, span, state)?,
                    }
                }
            }
            Ok(())
        },
    )
}

/// Scratch memory of one thread.
struct Tile<A> {
    packed: Vec<A>,
    scores: Vec<A>,
    picked: Vec<A>,
    scratch: Scratch,
}

struct Job<'a, T> {
    run: &'a Run<'a>,
    dots: RowDots,
    row_loop: usize,
    tile: DenseTile,
    row_data: *const T,
    vector_data: *const T,
    blocking: Blocking,
    d: usize,
    count: usize,
}

// SAFETY: `bound`: the pointers are those of `run`, which is Sync.
unsafe impl<T> Sync for Job<'_, T> {}

/// Makes room for `len` elements that will be written before they are read.
fn reserve<A: Scalar>(buffer: &mut Vec<A>, len: usize) -> *mut A {
    if buffer.capacity() < len {
        buffer.clear();
        buffer.reserve_exact(len);
    }
    buffer.as_mut_ptr()
}

impl<T> Job<'_, T>
where
    T: Scalar + TileElement<Acc = <T as Scalar>::Acc>,
    <T as Scalar>::Acc: TileElement<Acc = <T as Scalar>::Acc>,
{
    /// Scores over all rows for a few queries at a time; the table picks.
    ///
    /// # Safety
    /// As [`typed`]; `span` is within the tile loop.
    unsafe fn select<U: Scalar<Acc = <T as Scalar>::Acc>>(
        &self,
        walk: &Walk<'_, 3>,
        at: usize,
        span: std::ops::Range<usize>,
        state: &mut Tile<<T as Scalar>::Acc>,
    ) -> Result<(), BadTable> {
        let Job { run, d, count, .. } = *self;
        let contraction = run.contraction;
        let rows = self.dots.rows.of(contraction).expect("matched");
        let vectors = self.dots.rows.other().of(contraction).expect("matched");
        let lookup = &rows.lookups[at];
        let n = lookup.len;
        let out = run.out.cast::<U>();
        let out_stride = contraction.out.strides[self.row_loop];
        // SAFETY: by the caller, throughout: rows and vectors are those that the walk reaches.
        unsafe {
            let Some(x) = walk.offset(1)? else {
                return self.zeros::<U>(walk, span);
            };
            let packed = reserve(&mut state.packed, packed_right_len::<T>(run.isa, n, d));
            let base = self.row_data.offset(walk.plain_offset(0));
            let matrix = Matrix { ptr: base, rows: Offsets::Strided(1), cols: Offsets::Strided(lookup.stride) };
            let room = std::slice::from_raw_parts_mut(packed.cast(), packed_right_len::<T>(run.isa, n, d));
            pack_right::<T, T>(run.isa, &self.blocking, n, d, matrix, room);
            let height = tile_rows(run.machine, n, size_of::<<T as Scalar>::Acc>());
            let scores = reserve(&mut state.scores, height * n);
            let step = vectors.strides[self.tile.tile_loop];
            let direct = out_stride == 1 && U::DTYPE == <T as Scalar>::Acc::DTYPE && out.is_aligned();
            let past = direct && super::is_past_caches(run, size_of::<U>());
            let _fence = through::Fence;
            let in_place = direct && !past;
            let mut first = span.start;
            while first < span.end {
                let m = height.min(span.end - first);
                let a = Matrix {
                    ptr: self.vector_data.offset(x + first as isize * step),
                    rows: Offsets::Strided(step),
                    cols: Offsets::Strided(1),
                };
                let c = MatrixMut { ptr: scores, rows: Offsets::Strided(n as isize), cols: Offsets::Strided(1) };
                gemm_prepacked::<T, <T as Scalar>::Acc>(
                    run.isa,
                    &self.blocking,
                    m,
                    n,
                    d,
                    a,
                    packed,
                    c,
                    Accum::Replace,
                    &mut state.scratch,
                );
                for i in 0..m {
                    let query = (first + i) as isize;
                    let entry = walk.entry(0, at) + query * lookup.table_strides[self.tile.tile_loop];
                    let to = out.offset(walk.plain_offset(2) + query * contraction.out.strides[self.tile.tile_loop]);
                    let stride = lookup.table_strides[self.row_loop];
                    let entries = run.tables[lookup.table].run(entry, stride);
                    let picked = if in_place { to.cast() } else { reserve(&mut state.picked, count) };
                    let valid = pick(run.isa, entries, count, n, scores.add(i * n), picked);
                    if !valid && contraction.bounds == Bounds::Error {
                        return Err(BadTable);
                    }
                    if past {
                        through::copy(run.isa, picked, to.cast(), count);
                    } else if !in_place {
                        store(std::slice::from_raw_parts(picked, count), to, out_stride);
                    }
                }
                first += m;
            }
        }
        Ok(())
    }

    /// Scores over the band that a few neighbouring queries see; each takes its diagonal.
    ///
    /// # Safety
    /// As [`typed`]; `span` is within the tile loop.
    unsafe fn band<U: Scalar<Acc = <T as Scalar>::Acc>>(
        &self,
        walk: &Walk<'_, 3>,
        at: usize,
        span: std::ops::Range<usize>,
        state: &mut Tile<<T as Scalar>::Acc>,
    ) -> Result<(), BadTable> {
        let Job { run, d, count, .. } = *self;
        let contraction = run.contraction;
        let rows = self.dots.rows.of(contraction).expect("matched");
        let vectors = self.dots.rows.other().of(contraction).expect("matched");
        let window = &rows.windows[at];
        let (by_query, by_key) = (window.coefficients[self.tile.tile_loop], window.coefficients[self.row_loop]);
        let out = run.out.cast::<U>();
        let out_stride = contraction.out.strides[self.row_loop];
        // SAFETY: by the caller, throughout.
        unsafe {
            let Some(x) = walk.offset(1)? else {
                return self.zeros::<U>(walk, span);
            };
            let step = vectors.strides[self.tile.tile_loop];
            let direct = out_stride == 1 && U::DTYPE == <T as Scalar>::Acc::DTYPE;
            let past = direct && super::is_past_caches(run, size_of::<U>());
            let _fence = through::Fence;
            let mut first = span.start;
            while first < span.end {
                let m = BAND.min(span.end - first);
                let start = walk.window(0, at) + by_query * first as i64;
                let reached = reach(start, (by_query, m), (by_key, count), window.len);
                let (low, height) = (reached.start as i64, reached.len());
                let scores = reserve(&mut state.scores, height.max(1) * BAND);
                let base = self.row_data.wrapping_offset(walk.plain_offset(0) + low as isize * window.stride);
                let a = Matrix { ptr: base, rows: Offsets::Strided(window.stride), cols: Offsets::Strided(1) };
                let b = Matrix {
                    ptr: self.vector_data.offset(x + first as isize * step),
                    rows: Offsets::Strided(1),
                    cols: Offsets::Strided(step),
                };
                // Row p of the tile is position low + p, column i is query first + i.
                let c = MatrixMut { ptr: scores, rows: Offsets::Strided(BAND as isize), cols: Offsets::Strided(1) };
                gemm::<T, <T as Scalar>::Acc>(
                    run.isa,
                    &self.blocking,
                    height,
                    m,
                    d,
                    a,
                    b,
                    c,
                    Accum::Replace,
                    &mut state.scratch,
                );
                for i in 0..m {
                    let query = (first + i) as isize;
                    let to = out.offset(walk.plain_offset(2) + query * contraction.out.strides[self.tile.tile_loop]);
                    let first_position = start + by_query * i as i64 - low;
                    let there = inside(first_position, by_key, count, height);
                    let target = to;
                    // Column i of the tile, from the first position that is there on.
                    let from =
                        scores.wrapping_offset((first_position as isize).wrapping_mul(BAND as isize)).wrapping_add(i);
                    let to = if past { reserve(&mut state.picked, count).cast() } else { to };
                    let write = |k: usize, value| to.offset(k as isize * out_stride).write_unaligned(U::narrow(value));
                    (0..there.start).chain(there.end..count).for_each(|k| write(k, <T as Scalar>::ZERO));
                    let step = by_key as isize * BAND as isize;
                    there.for_each(|k| write(k, *from.wrapping_offset(k as isize * step)));
                    if past {
                        through::copy(run.isa, to.cast_const(), target, count);
                    }
                }
                first += m;
            }
        }
        Ok(())
    }

    /// Zeros for queries that are left out as a whole.
    ///
    /// # Safety
    /// As [`typed`].
    unsafe fn zeros<U: Scalar>(&self, walk: &Walk<'_, 3>, span: std::ops::Range<usize>) -> Result<(), BadTable> {
        let strides = &self.run.contraction.out.strides;
        for query in span {
            for k in 0..self.count {
                let at = walk.plain_offset(2)
                    + query as isize * strides[self.tile.tile_loop]
                    + k as isize * strides[self.row_loop];
                // SAFETY: by the caller.
                unsafe { self.run.out.cast::<U>().offset(at).write_unaligned(U::narrow(U::ZERO)) };
            }
        }
        Ok(())
    }
}
