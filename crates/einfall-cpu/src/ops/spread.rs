//! `spread`: weights of looked-up rows are spread over all rows, a tile at a time, and multiplied densely.
//!
//! The other half of [`dense`](super::dense): when a list names a large part of the rows, spreading its weights and one
//! matrix product over all rows is cheaper than visiting each listed row. A row that holds an infinity or a NaN would
//! reach queries that never asked for it, as 0·∞; such batches are summed row by row instead.

use einfall_plan::pattern::{DenseTile, Moved, RowAxpys, Side, dense_tile, row_axpys};
use einfall_plan::{Bounds, Contraction, Cost, Estimate, Machine, Role, Way};
use einfall_tensor::DType;

use super::Run;
use super::dense::tile_rows;
use super::gemm::{Accum, Blocking, Caches, Scratch, gemm_prepacked, pack_right, packed_right_len};
use crate::kernels::rows::{AxpyList, RowElement, row_axpys as add_rows};
use crate::kernels::tile::TileElement;
use crate::load::{load_offsets, load_offsets_skip};
use crate::pack::{Matrix, MatrixMut, Offsets};
use crate::scalar::Scalar;
use crate::walk::{BadTable, Walk};

/// Table entries that are turned into offsets at once.
const BLOCK: usize = 1024;

fn matched(contraction: &Contraction) -> Result<(RowAxpys, usize, DenseTile), String> {
    let axpys = row_axpys(contraction)?;
    if contraction.right.is_none() {
        return Err("needs two inputs".into());
    }
    if contraction.loops_of(Role::Contracted).count() != 1 {
        return Err("needs exactly one summed loop".into());
    }
    let rows = axpys.rows.of(contraction).expect("matched");
    let weights = axpys.rows.other().of(contraction).expect("matched");
    let tile = dense_tile(contraction, rows, weights, axpys.row_loop)?;
    match tile.moved {
        Moved::Lookup(lookup) if weights.is_plain() => Ok((axpys, lookup, tile)),
        Moved::Lookup(_) => Err("the weights are looked up too".into()),
        Moved::Window(_) => Err("for lookups".into()),
    }
}

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    if !matches!(contraction.dtype, DType::F32 | DType::F64) || contraction.out_dtype != contraction.dtype {
        return Err("for f32 and f64".into());
    }
    let (axpys, lookup, tile) = matched(contraction)?;
    let rows = axpys.rows.of(contraction).expect("matched");
    let n = rows.lookups[lookup].len;
    let bytes = contraction.dtype.bytes();
    if tile_rows(machine, n, bytes) < 8 {
        return Err("a tile over all rows does not fit the cache".into());
    }
    let len = |at: usize| contraction.loops[at].len as f64;
    let d = len(axpys.inner);
    let wanted = contraction.flops() / 2.0 / d.max(1.0);
    let lists = wanted / len(axpys.row_loop);
    let threads = machine.threads as f64;
    let flops = 2.0 * lists * n as f64 * (d + 4.0);
    let compute = flops / (machine.flops_per_second(contraction.dtype) * 0.75);
    let pack = lists / len(tile.tile_loop) * n as f64 * d * 0.3e-9 / threads;
    let spread = (wanted * 0.7e-9 + lists * (15e-9 + n as f64 * 0.03e-9)) / threads;
    let moved = super::distinct_bytes(contraction);
    let seconds = (compute + pack + spread).max(moved / machine.read_bytes_per_second);
    let scratch = n * (contraction.loops[axpys.inner].len + 64) * bytes + machine.l2_bytes / 4;
    let workspace_bytes = machine.threads * (scratch + machine.l2_bytes) + (1 << 16);
    Ok(Estimate { way: Way::DenseSelect, cost: Cost { flops, bytes: moved, seconds }, workspace_bytes })
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
    let (axpys, lookup, tile) = matched(contraction).expect("the kernel made an offer");
    let rows = axpys.rows.of(contraction).expect("matched");
    let weights = axpys.rows.other().of(contraction).expect("matched");
    let outer: Vec<(usize, usize)> = (0..contraction.loops.len())
        .filter(|&at| at != axpys.inner && at != axpys.row_loop && at != tile.tile_loop)
        .map(|at| (at, contraction.loops[at].len))
        .collect();
    let machine = run.machine;
    let caches =
        Caches { l1_bytes: machine.l1_bytes, l2_bytes: machine.l2_bytes, l3_bytes: machine.l3_bytes / machine.threads };
    let job = Job { run, axpys, lookup, tile, blocking: Blocking::new::<T>(run.isa, caches) };
    let queries = contraction.loops[tile.tile_loop].len;
    let batches: usize = outer.iter().map(|(_, len)| len).product();
    let least = 4 * tile_rows(machine, rows.lookups[lookup].len, size_of::<T>());
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
                let span = queries * part / parts..queries * (part + 1) / parts;
                // SAFETY: `bound`; each part of the queries is one piece's own.
                unsafe { job.spread::<T>(&walk, span, state)? };
            }
            Ok(())
        },
    )
}

struct Job<'a> {
    run: &'a Run<'a>,
    axpys: RowAxpys,
    lookup: usize,
    tile: DenseTile,
    blocking: Blocking,
}

impl Job<'_> {
    /// # Safety
    /// As [`typed`]; `span` is within the tile loop.
    unsafe fn spread<T>(
        &self,
        walk: &Walk<'_, 3>,
        span: std::ops::Range<usize>,
        state: &mut Tile<T>,
    ) -> Result<(), BadTable>
    where
        T: Scalar<Acc = T> + TileElement<Acc = T> + RowElement<Acc = T>,
    {
        let run = self.run;
        let contraction = run.contraction;
        let RowAxpys { inner, row_loop, rows: side } = self.axpys;
        let rows = side.of(contraction).expect("matched");
        let weights = side.other().of(contraction).expect("matched");
        let (row_data, weight_data): (*const T, *const T) = match side {
            Side::Right => (run.right.cast(), run.left.cast()),
            Side::Left => (run.left.cast(), run.right.cast()),
        };
        let lookup = &rows.lookups[self.lookup];
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
                pack_right::<T>(run.isa, &self.blocking, d, n, matrix, room);
            }
            let mut first = span.start;
            while first < span.end {
                let m = height.min(span.end - first);
                state.weights[..m * n].fill(T::default());
                for i in 0..m {
                    let query = (first + i) as isize;
                    let entry = walk.entry(0, self.lookup) + query * lookup.table_strides[tile_loop];
                    let from = weight_data.offset(walk.plain_offset(1) + query * weight_step);
                    let row = Row { entry, from, stride: weight_stride, count };
                    let to = run.out.cast::<T>().offset(walk.plain_offset(2) + query * out_step);
                    if finite {
                        self.fill_row(row, &mut state.weights[i * n..(i + 1) * n])?;
                    } else {
                        self.sum_rows(row, base, d, to, out_stride)?;
                    }
                }
                if finite {
                    let a = Matrix {
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
                    gemm_prepacked::<T, T>(
                        run.isa,
                        &self.blocking,
                        m,
                        d,
                        n,
                        a,
                        packed,
                        c,
                        Accum::Replace,
                        &mut state.scratch,
                    );
                }
                first += m;
            }
        }
        Ok(())
    }

    /// Adds the weights of one query to their places among all rows.
    ///
    /// # Safety
    /// As [`Job::spread`].
    unsafe fn fill_row<T: Scalar<Acc = T>>(&self, row: Row<T>, to: &mut [T]) -> Result<(), BadTable> {
        // SAFETY: by the caller.
        unsafe {
            self.for_entries(row.entry, row.count, |offsets, position| {
                for (i, &offset) in offsets.iter().enumerate() {
                    let weight = row.from.offset(position(i) * row.stride).read_unaligned();
                    let place = &mut to[offset as usize];
                    *place = T::add(*place, weight);
                }
            })
        }
    }

    /// Sums the listed rows of one query one by one, where they lie.
    ///
    /// # Safety
    /// As [`Job::spread`].
    unsafe fn sum_rows<T>(
        &self,
        row: Row<T>,
        base: *const T,
        d: usize,
        to: *mut T,
        out_stride: isize,
    ) -> Result<(), BadTable>
    where
        T: Scalar<Acc = T> + RowElement<Acc = T>,
    {
        let contraction = self.run.contraction;
        let rows = self.axpys.rows.of(contraction).expect("matched");
        let stride = rows.lookups[self.lookup].stride;
        let mut sums = vec![T::default(); d];
        // SAFETY: by the caller.
        unsafe {
            self.for_entries(row.entry, row.count, |offsets, position| {
                let places: Vec<isize> = offsets.iter().map(|&offset| offset * stride).collect();
                let weights: Vec<T> =
                    (0..offsets.len()).map(|i| row.from.offset(position(i) * row.stride).read_unaligned()).collect();
                let list = AxpyList::<T> {
                    weights: weights.as_ptr(),
                    offsets: places.as_ptr(),
                    count: places.len(),
                    acc: sums.as_mut_ptr(),
                };
                add_rows(self.run.isa, base, d, &[list], true);
            })?;
            for (j, &sum) in sums.iter().enumerate() {
                to.offset(j as isize * out_stride).write_unaligned(sum);
            }
        }
        Ok(())
    }

    /// Calls `visit` with blocks of valid row numbers, and with a function from position in the block to that in the run.
    ///
    /// # Safety
    /// As [`Job::spread`].
    unsafe fn for_entries(
        &self,
        entry: isize,
        count: usize,
        mut visit: impl FnMut(&[isize], &dyn Fn(usize) -> isize),
    ) -> Result<(), BadTable> {
        let contraction = self.run.contraction;
        let rows = self.axpys.rows.of(contraction).expect("matched");
        let lookup = &rows.lookups[self.lookup];
        let stride = lookup.table_strides[self.axpys.row_loop];
        let mut offsets = [0isize; BLOCK];
        let mut positions = [0u32; BLOCK];
        for start in (0..count).step_by(BLOCK) {
            let len = BLOCK.min(count - start);
            let run_of = self.run.tables[lookup.table].run(entry + start as isize * stride, stride);
            // SAFETY: by the caller: the run is a part of the table.
            unsafe {
                if contraction.bounds == Bounds::Error {
                    load_offsets(self.run.isa, run_of, len, lookup.len, 1, &mut offsets).map_err(|_| BadTable)?;
                    visit(&offsets[..len], &|i| (start + i) as isize);
                } else {
                    let isa = self.run.isa;
                    let found = load_offsets_skip(isa, run_of, len, lookup.len, 1, &mut offsets, &mut positions);
                    visit(&offsets[..found], &|i| (start + positions[i] as usize) as isize);
                }
            }
        }
        Ok(())
    }
}

/// The list of one query: its first table entry and its weights.
struct Row<T> {
    entry: isize,
    from: *const T,
    stride: isize,
    count: usize,
}

/// True when no row holds an infinity or a NaN: times zero each element is zero.
///
/// # Safety
/// The rows are readable.
unsafe fn all_finite<T: Scalar<Acc = T>>(base: *const T, n: usize, stride: isize, d: usize) -> bool {
    (0..n).all(|row| {
        let mut sum = T::default();
        for j in 0..d {
            // SAFETY: by the caller.
            let element = unsafe { base.offset(row as isize * stride).add(j).read_unaligned() };
            sum = T::add(sum, T::mul(element, T::default()));
        }
        // 0·x is 0 for every finite x and NaN for the others; a sum of zeros equals itself.
        matches!(sum.to_number(), crate::scalar::Number::Real(value) if value == 0.0)
    })
}
