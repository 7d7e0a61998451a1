//! `spread`: weights of looked-up rows are spread over all rows, a tile at a time, and multiplied densely.
//!
//! The other half of [`dense`](super::dense): when a list names a large part of the rows, spreading its weights and one
//! matrix product over all rows is cheaper than visiting each listed row. A row that holds an infinity or a NaN would
//! reach queries that never asked for it, as 0·∞; such batches are summed row by row instead.

use einfall_plan::pattern::{DenseTile, Moved, RowAxpys, Side, dense_tile, row_axpys};
use einfall_plan::{Access, Bounds, Contraction, Cost, Estimate, Machine, Role, Way};
use einfall_tensor::DType;

use super::Run;
use super::dense::{BAND, band, part_of, reach, tile_rows};
use super::gemm::{Accum, Blocking, Caches, Scratch, gemm, gemm_prepacked, pack_right, packed_right_len};
use super::source::inside;
use crate::isa::Isa;
use crate::kernels::rows::{AxpyList, RowElement, row_axpys as add_rows};
use crate::kernels::tile::TileElement;
use crate::load::{load_offsets_skip, place};
use crate::pack::{Matrix, MatrixMut, Offsets};
use crate::scalar::Scalar;
use crate::walk::{BadTable, Walk};

/// Table entries that are turned into offsets at once.
const BLOCK: usize = 1024;

fn matched(contraction: &Contraction) -> Result<(RowAxpys, DenseTile), String> {
    let axpys = row_axpys(contraction)?;
    if contraction.right.is_none() {
        return Err("needs two inputs".into());
    }
    if contraction.loops_of(Role::Contracted).count() != 1 {
        return Err("needs exactly one summed loop".into());
    }
    let rows = axpys.rows.of(contraction).expect("matched");
    let weights = axpys.rows.other().of(contraction).expect("matched");
    if !weights.is_plain() {
        return Err("the weights are looked up too".into());
    }
    Ok((axpys, dense_tile(contraction, rows, weights, axpys.row_loop)?))
}

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    if !matches!(contraction.dtype, DType::F32 | DType::F64) || contraction.out_dtype != contraction.dtype {
        return Err("for f32 and f64".into());
    }
    let (axpys, tile) = matched(contraction)?;
    let rows = axpys.rows.of(contraction).expect("matched");
    let bytes = contraction.dtype.bytes();
    let len = |at: usize| contraction.loops[at].len as f64;
    let (d, queries) = (len(axpys.inner), len(tile.tile_loop));
    let wanted = contraction.flops() / 2.0 / d.max(1.0);
    let lists = wanted / len(axpys.row_loop);
    // Rows that the tile of a query covers, and rows that are read for all queries.
    let (way, n, covered) = match tile.moved {
        Moved::Lookup(at) => {
            let n = rows.lookups[at].len;
            if n == 0 {
                return Err("there are no rows".into());
            }
            if tile_rows(machine, n, bytes) < 8 {
                return Err("a tile over all rows does not fit the cache".into());
            }
            (Way::DenseSelect, n, n as f64)
        }
        Moved::Window(at) => {
            let covered = band(contraction, rows, at, axpys.row_loop, tile.tile_loop);
            if covered * BAND as f64 * bytes as f64 > machine.l2_bytes as f64 / 2.0 {
                return Err("a tile over the band does not fit the cache".into());
            }
            (Way::Band, rows.windows[at].len, covered)
        }
    };
    let threads = machine.threads as f64;
    let flops = 2.0 * lists * covered * d;
    let compute = flops / (machine.flops_per_second(contraction.dtype) * 0.75);
    let pack = if way == Way::DenseSelect { lists / queries * n as f64 * d * 0.3e-9 / threads } else { 0.0 };
    let each = if way == Way::DenseSelect { 0.27e-9 } else { 0.2e-9 };
    let spread = (wanted * each + lists * (15e-9 + covered * 0.03e-9)) / threads;
    let moved = contraction.distinct_bytes();
    let seconds = super::started(machine, compute + pack + spread + super::stream_seconds(moved, machine));
    let width = if way == Way::DenseSelect { contraction.loops[axpys.inner].len + 64 } else { BAND };
    let scratch = (covered as usize * width + contraction.loops[axpys.row_loop].len) * bytes + machine.l2_bytes / 4;
    let workspace_bytes = machine.threads * (scratch + machine.l2_bytes) + (1 << 16);
    Ok(Estimate { way, cost: Cost { flops, bytes: moved, seconds }, workspace_bytes })
}

/// Runs the contraction.
///
/// # Errors
/// [`BadTable`].
///
/// # Safety
/// `run` keeps its invariant `bound`.
pub unsafe fn run(run: &Run<'_>) -> Result<(), BadTable> {
    let bytes = run.contraction.dtype.bytes();
    let aligned = [run.left.addr(), run.right.addr(), run.out.addr()].iter().all(|at| at.is_multiple_of(bytes));
    // SAFETY: by the caller; the element types are those of the memory.
    unsafe {
        match run.contraction.dtype {
            _ if !aligned => super::axpys::run(run),
            DType::F64 => typed::<f64>(run),
            _ => typed::<f32>(run),
        }
    }
}

/// Scratch memory of one thread.
struct Tile<T> {
    packed: Vec<T>,
    weights: Vec<T>,
    scratch: Scratch,
}

/// # Safety
/// As [`run`], with `T` the element type of the memory.
unsafe fn typed<T>(run: &Run<'_>) -> Result<(), BadTable>
where
    T: Scalar<Acc = T> + TileElement<Acc = T> + RowElement<Acc = T>,
{
    let contraction = run.contraction;
    let (axpys, tile) = matched(contraction).expect("the kernel made an offer");
    let rows = axpys.rows.of(contraction).expect("matched");
    let weights = axpys.rows.other().of(contraction).expect("matched");
    let outer: Vec<(usize, usize)> = (0..contraction.loops.len())
        .filter(|&at| at != axpys.inner && at != axpys.row_loop && at != tile.tile_loop)
        .map(|at| (at, contraction.loops[at].len))
        .collect();
    let machine = run.machine;
    let caches =
        Caches { l1_bytes: machine.l1_bytes, l2_bytes: machine.l2_bytes, l3_bytes: machine.l3_bytes / machine.threads };
    let job = Job { run, axpys, tile, blocking: Blocking::new::<T>(run.isa, caches) };
    let queries = contraction.loops[tile.tile_loop].len;
    let batches: usize = outer.iter().map(|(_, len)| len).product();
    let least = match tile.moved {
        Moved::Lookup(at) => 4 * tile_rows(machine, rows.lookups[at].len, size_of::<T>()),
        Moved::Window(_) => 4 * BAND,
    };
    let parts = (4 * run.threads.count()).div_ceil(batches.max(1)).min(queries.div_ceil(least)).max(1);
    let parts = if run.threads.count() == 1 { 1 } else { parts };
    run.threads.for_pieces_with(
        batches * parts,
        1,
        run.serial_seconds,
        || Tile { packed: Vec::new(), weights: Vec::new(), scratch: Scratch::new() },
        |state, range| {
            for flat in range {
                let accesses = [rows, weights, &contraction.out];
                let mut walk = Walk::new(accesses, outer.iter().copied(), run.tables, contraction.bounds);
                walk.seek(flat / parts);
                let part = flat % parts;
                let span = part_of(queries, part, parts);
                // SAFETY: `bound`; each part of the queries is one piece's own.
                unsafe {
                    match tile.moved {
                        Moved::Lookup(at) => job.spread::<T>(&walk, at, span, state)?,
                        Moved::Window(at) => job.band::<T>(&walk, at, span, state),
                    }
                }
            }
            Ok(())
        },
    )
}

struct Job<'a> {
    run: &'a Run<'a>,
    axpys: RowAxpys,
    tile: DenseTile,
    blocking: Blocking,
}

impl Job<'_> {
    /// Weights over all rows for a few queries at a time; the table places them.
    ///
    /// # Safety
    /// As [`typed`]; `span` is within the tile loop.
    unsafe fn spread<T>(
        &self,
        walk: &Walk<'_, 3>,
        at: usize,
        span: std::ops::Range<usize>,
        state: &mut Tile<T>,
    ) -> Result<(), BadTable>
    where
        T: Scalar<Acc = T> + TileElement<Acc = T> + RowElement<Acc = T>,
    {
        let Sides { row_data, weight_data, rows, weights } = self.sides::<T>();
        let run = self.run;
        let contraction = run.contraction;
        let RowAxpys { inner, row_loop, .. } = self.axpys;
        let lookup = &rows.lookups[at];
        let (n, d, count) = (lookup.len, contraction.loops[inner].len, contraction.loops[row_loop].len);
        let tile_loop = self.tile.tile_loop;
        let (out_step, out_stride) = (contraction.out.strides[tile_loop], contraction.out.strides[inner]);
        let (weight_step, weight_stride) = (weights.strides[tile_loop], weights.strides[row_loop]);
        // SAFETY: by the caller, throughout: rows, weights and outputs are those that the walk reaches.
        unsafe {
            let base = row_data.offset(walk.plain_offset(0));
            let finite = all_finite(base, n, lookup.stride, d);
            let packed_len = packed_right_len::<T>(run.isa, d, n);
            let height = tile_rows(run.machine, n, size_of::<T>());
            state.packed.resize(packed_len, T::default());
            state.weights.resize(height * n, T::default());
            if finite {
                let matrix = Matrix { ptr: base, rows: Offsets::Strided(lookup.stride), cols: Offsets::Strided(1) };
                let room = std::slice::from_raw_parts_mut(state.packed.as_mut_ptr().cast(), packed_len);
                pack_right::<T, T>(run.isa, &self.blocking, d, n, matrix, room);
            }
            let mut alone = Vec::new();
            let mut first = span.start;
            while first < span.end {
                let m = height.min(span.end - first);
                state.weights[..m * n].fill(T::default());
                alone.clear();
                let entries_of = |query: isize| {
                    let entry = walk.entry(0, at) + query * lookup.table_strides[tile_loop];
                    run.tables[lookup.table].run(entry, lookup.table_strides[row_loop])
                };
                let weights_of = |query: isize| weight_data.offset(walk.plain_offset(1) + query * weight_step);
                for i in 0..m {
                    let query = (first + i) as isize;
                    if finite {
                        let row = &mut state.weights[i * n..(i + 1) * n];
                        let valid =
                            place(entries_of(query), count, n, weights_of(query), weight_stride, row.as_mut_ptr());
                        if !valid && contraction.bounds == Bounds::Error {
                            return Err(BadTable);
                        }
                        // Weights of one row, added up, may overflow where their products do not.
                        if all_finite(row.as_ptr(), 1, 0, n) {
                            continue;
                        }
                        row.fill(T::default());
                    }
                    alone.push(query);
                }
                if finite {
                    let tile = Matrix {
                        ptr: state.weights.as_ptr(),
                        rows: Offsets::Strided(n as isize),
                        cols: Offsets::Strided(1),
                    };
                    let c = MatrixMut {
                        ptr: run.out.cast::<T>().offset(walk.plain_offset(2) + first as isize * out_step),
                        rows: Offsets::Strided(out_step),
                        cols: Offsets::Strided(out_stride),
                    };
                    let packed = state.packed.as_ptr();
                    let scratch = &mut state.scratch;
                    gemm_prepacked::<T, T>(run.isa, &self.blocking, m, d, n, tile, packed, c, Accum::Replace, scratch);
                }
                for &query in &alone {
                    let (entries, from) = (entries_of(query), weights_of(query));
                    let mut sum = Sum::new(run.isa, base, d);
                    for start in (0..count).step_by(BLOCK) {
                        let (len, run_of) = (BLOCK.min(count - start), entries.skip(start));
                        let from = from.offset(start as isize * weight_stride);
                        let (mut offsets, mut positions) = ([0; BLOCK], [0; BLOCK]);
                        let found =
                            load_offsets_skip(run.isa, run_of, len, n, lookup.stride, &mut offsets, &mut positions);
                        if found < len && contraction.bounds == Bounds::Error {
                            return Err(BadTable);
                        }
                        sum.add(&offsets[..found], |i| from.offset(positions[i] as isize * weight_stride));
                    }
                    sum.store(run.out.cast::<T>().offset(walk.plain_offset(2) + query * out_step), out_stride);
                }
                first += m;
            }
        }
        Ok(())
    }

    /// Weights over the band that a few neighbouring queries see.
    ///
    /// # Safety
    /// As [`typed`]; `span` is within the tile loop.
    unsafe fn band<T>(&self, walk: &Walk<'_, 3>, at: usize, span: std::ops::Range<usize>, state: &mut Tile<T>)
    where
        T: Scalar<Acc = T> + TileElement<Acc = T> + RowElement<Acc = T>,
    {
        let Sides { row_data, weight_data, rows, weights } = self.sides::<T>();
        let run = self.run;
        let contraction = run.contraction;
        let RowAxpys { inner, row_loop, .. } = self.axpys;
        let window = &rows.windows[at];
        let tile_loop = self.tile.tile_loop;
        let (by_query, by_key) = (window.coefficients[tile_loop], window.coefficients[row_loop]);
        let (d, count) = (contraction.loops[inner].len, contraction.loops[row_loop].len);
        let (out_step, out_stride) = (contraction.out.strides[tile_loop], contraction.out.strides[inner]);
        let (weight_step, weight_stride) = (weights.strides[tile_loop], weights.strides[row_loop]);
        // SAFETY: by the caller, throughout: rows, weights and outputs are those that the walk reaches.
        unsafe {
            let mut first = span.start;
            while first < span.end {
                let m = BAND.min(span.end - first);
                let start = walk.window(0, at) + by_query * first as i64;
                let reached = reach(start, (by_query, m), (by_key, count), window.len);
                let n = reached.len();
                let base = row_data.wrapping_offset(walk.plain_offset(0) + reached.start as isize * window.stride);
                let finite = all_finite(base, n, window.stride, d);
                state.weights.clear();
                state.weights.resize(m * n, T::default());
                for i in 0..m {
                    let position = start + by_query * i as i64 - reached.start as i64;
                    let there = inside(position, by_key, count, n);
                    let query = (first + i) as isize;
                    let from = weight_data.offset(walk.plain_offset(1) + query * weight_step);
                    let weight = |k: usize| from.offset(k as isize * weight_stride);
                    let row = |k: usize| (position + k as i64 * by_key) as usize;
                    if finite {
                        let tile = &mut state.weights[i * n..(i + 1) * n];
                        for k in there {
                            tile[row(k)] = weight(k).read_unaligned();
                        }
                        continue;
                    }
                    let mut sum = Sum::new(run.isa, base, d);
                    let offsets: Vec<isize> = there.clone().map(|k| row(k) as isize * window.stride).collect();
                    sum.add(&offsets, |k| weight(there.start + k));
                    sum.store(run.out.cast::<T>().offset(walk.plain_offset(2) + query * out_step), out_stride);
                }
                if finite {
                    let a = Matrix {
                        ptr: state.weights.as_ptr(),
                        rows: Offsets::Strided(n as isize),
                        cols: Offsets::Strided(1),
                    };
                    let b = Matrix { ptr: base, rows: Offsets::Strided(window.stride), cols: Offsets::Strided(1) };
                    let c = MatrixMut {
                        ptr: run.out.cast::<T>().offset(walk.plain_offset(2) + first as isize * out_step),
                        rows: Offsets::Strided(out_step),
                        cols: Offsets::Strided(out_stride),
                    };
                    let scratch = &mut state.scratch;
                    gemm::<T, T>(run.isa, &self.blocking, m, d, n, a, b, c, Accum::Replace, scratch);
                }
                first += m;
            }
        }
    }

    fn sides<T>(&self) -> Sides<'_, T> {
        let contraction = self.run.contraction;
        let side = self.axpys.rows;
        let (row_data, weight_data) = match side {
            Side::Right => (self.run.right.cast(), self.run.left.cast()),
            Side::Left => (self.run.left.cast(), self.run.right.cast()),
        };
        let rows = side.of(contraction).expect("matched");
        Sides { row_data, weight_data, rows, weights: side.other().of(contraction).expect("matched") }
    }
}

/// Rows and weights.
struct Sides<'a, T> {
    row_data: *const T,
    weight_data: *const T,
    rows: &'a Access,
    weights: &'a Access,
}

/// The sum of the listed rows of one query, one by one, where they lie.
struct Sum<T> {
    isa: Isa,
    base: *const T,
    sums: Vec<T>,
}

impl<T: Scalar<Acc = T> + RowElement<Acc = T>> Sum<T> {
    fn new(isa: Isa, base: *const T, d: usize) -> Self {
        Sum { isa, base, sums: vec![T::default(); d] }
    }

    /// # Safety
    /// The rows at these offsets from the base, and their weights, are readable.
    unsafe fn add(&mut self, offsets: &[isize], weight: impl Fn(usize) -> *const T) {
        // SAFETY: by the caller.
        unsafe {
            let weights: Vec<T> = (0..offsets.len()).map(|i| weight(i).read_unaligned()).collect();
            let list = AxpyList::<T> {
                weights: weights.as_ptr(),
                rows: self.base,
                offsets: offsets.as_ptr(),
                count: offsets.len(),
                acc: self.sums.as_mut_ptr(),
            };
            add_rows(self.isa, self.sums.len(), &[list], true);
        }
    }

    /// # Safety
    /// The row is writable.
    unsafe fn store(&self, to: *mut T, stride: isize) {
        for (j, &sum) in self.sums.iter().enumerate() {
            // SAFETY: by the caller.
            unsafe { to.offset(j as isize * stride).write_unaligned(sum) };
        }
    }
}

/// True when no row holds an infinity or a NaN: times zero each element is zero.
///
/// # Safety
/// The rows are readable.
unsafe fn all_finite<T: Scalar<Acc = T>>(base: *const T, n: usize, stride: isize, d: usize) -> bool {
    const LANES: usize = 16;
    let nothing = |element: T| T::mul(element, T::default());
    // 0·x is 0 for every finite x and NaN for the others, which every sum then is.
    let mut sums = [T::default(); LANES];
    for row in 0..n {
        let row = base.wrapping_offset(row as isize * stride);
        for j in (0..d / LANES * LANES).step_by(LANES) {
            for (lane, sum) in sums.iter_mut().enumerate() {
                // SAFETY: by the caller.
                *sum = T::add(*sum, nothing(unsafe { row.add(j + lane).read_unaligned() }));
            }
        }
        for j in d / LANES * LANES..d {
            // SAFETY: by the caller.
            sums[j % LANES] = T::add(sums[j % LANES], nothing(unsafe { row.add(j).read_unaligned() }));
        }
    }
    sums.iter().all(|sum| matches!(sum.to_number(), crate::scalar::Number::Real(value) if value == 0.0))
}
