//! Attention a tile at a time: queries that share keys meet a block of them in a matrix product, the softmax runs online
//! over the blocks, and a second product adds up the values.
//!
//! Queries share keys where loops of heads do, which is every query where all keys count; and where neighbouring queries
//! look through a window, whose band of keys is then masked. What is left out as a whole (padding, bad positions) is no
//! column of a tile, so it is never loaded. Floor: two matrix products over the keys that the tiles cover, and the
//! exponentials (Dao et al., "FlashAttention", 2022, for the order of the loops).
//!
//! Blocks depend on the problem alone, and so do the bits of the result.

use std::ops::Range;

use einfall_plan::{Access, Attention, AttentionRole, Cost, Estimate, Machine, Pass, Way};
use einfall_tensor::DType;

use super::gather::{Float, Real, Widen, bias_at};
use super::{AttentionRun, Failure, Written, with_float};
use crate::kernels::exp::Exponent;
use crate::kernels::tile::TileElement;
use crate::ops::gemm::{Accum, Blocking, Caches, Scratch, gemm_prepacked, pack_right, packed_right_len};
use crate::ops::source::inside;
use crate::pack::{Matrix, MatrixMut, Offsets};
use crate::scalar::Scalar;
use crate::walk::{BadTable, Walk};

/// Queries of a tile, and those whose sums are kept while the keys pass.
const TILE: usize = 64;
const CHUNK: usize = 4 * TILE;
/// Keys of a block.
const BLOCK: usize = 256;

/// Neighbouring queries that look through one window.
#[derive(Clone, Copy, Debug)]
struct Band {
    /// The loop over queries, and that over keys.
    query: usize,
    key: usize,
    /// How far each moves the window, in positions.
    by_query: i64,
    by_key: i64,
}

/// How an attention is cut into tiles.
#[derive(Clone, Debug)]
struct Cut {
    /// Loops that are walked, one list after another.
    outer: Vec<(usize, usize)>,
    /// Loops over the queries that share keys.
    rows: Vec<(usize, usize)>,
    /// Loops over keys; under a band, positions are walked instead.
    keys: Vec<(usize, usize)>,
    band: Option<Band>,
}

impl Cut {
    fn of(attention: &Attention) -> Result<Cut, String> {
        let loops = |role| -> Vec<(usize, usize)> {
            attention.loops_of(role).map(|at| (at, attention.loops[at].len)).collect()
        };
        let (lists, heads, keys) = (loops(AttentionRole::List), loops(AttentionRole::Head), loops(AttentionRole::Key));
        if keys.iter().any(|&(at, _)| attention.query.strides[at] != 0) {
            return Err("queries depend on their keys".into());
        }
        if let Some(band) = band(attention) {
            let outer = [lists, heads].concat().into_iter().filter(|&(at, _)| at != band.query).collect();
            let rows = vec![(band.query, attention.loops[band.query].len)];
            return Ok(Cut { outer, rows, keys, band: Some(band) });
        }
        if heads.is_empty() {
            return Err("no queries share keys".into());
        }
        Ok(Cut { outer: lists, rows: heads, keys, band: None })
    }

    fn count(loops: &[(usize, usize)]) -> usize {
        loops.iter().map(|(_, len)| len).product()
    }

    /// Keys that the tile of a query covers.
    fn covered(&self, attention: &Attention) -> f64 {
        match self.band {
            None => attention.keys_of_list(),
            Some(band) => {
                let reach = |by: i64, count: usize| by.unsigned_abs() as f64 * count.saturating_sub(1) as f64;
                let queries = attention.loops[band.query].len.min(TILE);
                let window = &attention.key.windows[0];
                let all = 1.0 + reach(band.by_query, queries) + reach(band.by_key, attention.loops[band.key].len);
                all.min(window.len as f64)
            }
        }
    }
}

/// The band, if one window gives all positions, one loop of lists moves it, and one loop of keys.
fn band(attention: &Attention) -> Option<Band> {
    let Attention { key, value, bias, ragged, .. } = attention;
    let [window] = key.windows.as_slice() else { return None };
    let mut keys = attention.loops_of(AttentionRole::Key);
    let (at, None) = (keys.next()?, keys.next()) else { return None };
    if !key.lookups.is_empty() || ragged.is_some() || bias.is_some() || window.coefficients[at] == 0 {
        return None;
    }
    let direct = |at: usize| key.strides[at] != 0 || value.strides[at] != 0;
    let moves = |&at: &usize| window.coefficients[at] != 0 && !direct(at);
    let query = attention.loops_of(AttentionRole::List).filter(moves).max_by_key(|&at| attention.loops[at].len)?;
    (!direct(at)).then_some(Band {
        query,
        key: at,
        by_query: window.coefficients[query],
        by_key: window.coefficients[at],
    })
}

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the attention.
pub fn estimate(attention: &Attention, pass: Pass, machine: &Machine) -> Result<Estimate, String> {
    if pass == Pass::Backward {
        return Err("has no gradients".into());
    }
    let cut = Cut::of(attention)?;
    let len = |role| attention.len_of(role) as f64;
    let (depth, width) = (len(AttentionRole::Depth), len(AttentionRole::Width));
    let (lists, rows) = (Cut::count(&cut.outer) as f64, Cut::count(&cut.rows) as f64);
    let covered = cut.covered(attention);
    let half = if attention.limit.is_some() && attention.is_dense() { 0.6 } else { 1.0 };
    let pairs = lists * rows * covered * half;
    let flops = 2.0 * pairs * (depth + width);
    let threads = machine.threads as f64;
    // Rows that do not fill the tiles of the matrix kernel leave it waiting.
    let filled = (rows / (rows / 12.0).ceil() / 12.0).max(0.1) * if rows < 12.0 { 0.6 } else { 0.75 };
    let products = flops / (machine.flops_per_second(attention.dtype) * filled);
    let wide = if attention.accumulator == DType::F64 { 2.0 } else { 1.0 };
    let weights = pairs * WEIGHT_SECONDS * wide / threads;
    let chunk = if cut.band.is_some() { TILE as f64 } else { CHUNK as f64 };
    let packed = lists * (rows / chunk).ceil() * covered * half * (depth + width);
    let packing = (packed * PACK_SECONDS * wide + lists * rows * 60e-9 + lists * 300e-9) / threads;
    let bytes = attention.distinct_bytes(pass);
    let seconds =
        crate::ops::started(machine, products + weights + packing) + bytes * 0.2 / machine.read_bytes_per_second;
    let way = match (&cut.band, attention.is_dense()) {
        (Some(_), _) => Way::Band,
        (None, true) => Way::Gemm,
        (None, false) => Way::GroupedHeads,
    };
    let size = attention.accumulator.bytes();
    let columns = (depth + width) as usize + 160;
    let workspace_bytes = machine.threads * size * (BLOCK * (columns + TILE) + CHUNK * (columns + 16)) + (1 << 18);
    Ok(Estimate { way, cost: Cost { flops, bytes, seconds }, workspace_bytes })
}

/// The largest score, the exponential and the sum, for one pair; fitted to a band on Zen 5.
const WEIGHT_SECONDS: f64 = 0.3e-9;
/// As before: an element of a row of keys or values, brought into the order of the matrix kernel.
const PACK_SECONDS: f64 = 0.12e-9;

/// Runs the attention.
///
/// # Errors
/// [`Failure`].
///
/// # Safety
/// `run` and `to` keep the invariant `bound`.
pub unsafe fn forward(run: &AttentionRun<'_>, to: Written) -> Result<(), Failure> {
    let size = run.attention.dtype.bytes();
    // The matrix kernel reads whole elements.
    if run.operands[..3].iter().any(|pointer| !pointer.addr().is_multiple_of(size)) {
        // SAFETY: by the caller.
        return unsafe { super::nest::forward(run, to) };
    }
    with_float!(run.attention.dtype, T => {
        // SAFETY: by the caller; the element type is that of the memory.
        unsafe { typed::<T>(run, to) }
    })
}

/// Offsets along loops, from where the others put an access.
fn along(strides: &[isize], loops: &[(usize, usize)]) -> Vec<isize> {
    loops.iter().fold(vec![0], |offsets, &(at, len)| {
        let step = |&from: &isize| (0..len).map(move |i| from + i as isize * strides[at]);
        offsets.iter().flat_map(step).collect()
    })
}

/// The same as a side of a matrix.
fn side<'a>(offsets: &'a [isize]) -> Offsets<'a> {
    let step = if offsets.len() > 1 { offsets[1] } else { 1 };
    let even = offsets.iter().enumerate().all(|(i, &offset)| offset == i as isize * step);
    if even { Offsets::Strided(step) } else { Offsets::Scattered(offsets) }
}

/// Where the rows of queries lie, relative to their list.
struct Rows {
    query: Vec<isize>,
    out: Vec<isize>,
    lse: Vec<isize>,
    bias: Vec<isize>,
    limit: Vec<i64>,
}

/// What all tasks share.
struct Job<'a, T: Float + TileElement> {
    run: &'a AttentionRun<'a>,
    cut: Cut,
    rows: Rows,
    /// Along the depth of a query and of a key, and along the width of a value and of the output.
    depth: [Vec<isize>; 2],
    width: [Vec<isize>; 2],
    /// Of the bias, along the keys.
    biases: Vec<isize>,
    keys: usize,
    blocking: Blocking,
    to: Written,
    element: std::marker::PhantomData<T>,
}

// SAFETY: `bound`: the pointers are those of `run` and `to`, which are Sync.
unsafe impl<T: Float + TileElement> Sync for Job<'_, T> {}

/// Scratch memory of one thread.
struct State<A> {
    queries: Vec<A>,
    keys: Vec<A>,
    values: Vec<A>,
    scores: Vec<A>,
    sums: Vec<A>,
    row: Vec<A>,
    columns: Columns,
    most: Vec<A>,
    total: Vec<f64>,
    scratch: Scratch,
}

/// The keys of a block.
#[derive(Default)]
struct Columns {
    keys: Vec<isize>,
    values: Vec<isize>,
    /// Which key of the list, or under a band which position.
    index: Vec<usize>,
    /// Where each stands, under a causal mask.
    positions: Vec<i64>,
}

/// # Safety
/// As [`forward`], with `T` the element type.
unsafe fn typed<T>(run: &AttentionRun<'_>, to: Written) -> Result<(), Failure>
where
    T: Float + TileElement<Acc = T::Sum>,
    T::Sum: TileElement<Acc = T::Sum>,
{
    let attention = run.attention;
    let cut = Cut::of(attention).expect("the kernel made an offer");
    let machine = run.machine;
    let caches = Caches {
        l1_bytes: machine.l1_bytes,
        l2_bytes: machine.l2_bytes,
        l3_bytes: machine.l3_bytes / machine.threads.max(1),
    };
    let [depth, width] = [AttentionRole::Depth, AttentionRole::Width].map(|role| run.loops(&[role]));
    let none = vec![0; attention.loops.len()];
    let bias = attention.bias.as_ref().map_or(&none, |bias| &bias.strides);
    let limits: Vec<isize> =
        attention.limit.as_ref().map_or(none.clone(), |limit| limit.strides.iter().map(|&by| by as isize).collect());
    let rows = Rows {
        query: along(&attention.query.strides, &cut.rows),
        out: along(&attention.out.strides, &cut.rows),
        lse: along(&attention.lse.strides, &cut.rows),
        bias: along(bias, &cut.rows),
        limit: along(&limits, &cut.rows).into_iter().map(|limit| limit as i64).collect(),
    };
    let job = Job::<T> {
        depth: [&attention.query, &attention.key].map(|access| along(&access.strides, &depth)),
        width: [&attention.value, &attention.out].map(|access| along(&access.strides, &width)),
        biases: if attention.bias.is_some() { along(bias, &cut.keys) } else { Vec::new() },
        keys: Cut::count(&cut.keys),
        blocking: Blocking::new::<T>(run.isa, caches),
        rows,
        run,
        cut,
        to,
        element: std::marker::PhantomData,
    };
    let count = job.rows.query.len();
    let chunk = if job.cut.band.is_some() { TILE } else { CHUNK };
    let chunks = count.div_ceil(chunk);
    let total = Cut::count(&job.cut.outer) * chunks;
    let job = &job;
    let state = || State {
        queries: Vec::new(),
        keys: Vec::new(),
        values: Vec::new(),
        scores: Vec::new(),
        sums: Vec::new(),
        row: Vec::new(),
        columns: Columns::default(),
        most: Vec::new(),
        total: Vec::new(),
        scratch: Scratch::new(),
    };
    let work = |state: &mut State<T::Sum>, range: Range<usize>| {
        for task in range {
            let first = task % chunks * chunk;
            // SAFETY: by the caller; chunks write distinct elements.
            unsafe { job.chunk(task / chunks, first..count.min(first + chunk), state)? };
        }
        Ok(())
    };
    Ok(run.threads.for_pieces_with(total, run.threads.piece(total, 8), run.serial_seconds, state, work)?)
}

impl<T> Job<'_, T>
where
    T: Float + TileElement<Acc = T::Sum>,
    T::Sum: TileElement<Acc = T::Sum>,
{
    /// Some queries of a list, with all of their keys.
    ///
    /// # Safety
    /// As [`typed`]; list and rows are there.
    unsafe fn chunk(&self, list: usize, rows: Range<usize>, state: &mut State<T::Sum>) -> Result<(), BadTable> {
        let (run, attention) = (self.run, self.run.attention);
        let none = Access { strides: vec![0; attention.loops.len()], ..Access::default() };
        let bias = attention.bias.as_ref().unwrap_or(&none);
        let outer = || self.cut.outer.iter().copied();
        let accesses = [&attention.query, bias, &attention.out, &attention.lse];
        let mut place = Walk::new(accesses, outer(), run.tables, attention.bounds);
        place.seek(list);
        let [query, bias, out, lse] = [0, 1, 2, 3].map(|which| place.plain_offset(which));
        let mut counters = vec![0; attention.loops.len()];
        let mut flat = list;
        for &(at, len) in self.cut.outer.iter().rev() {
            (counters[at], flat) = (flat % len, flat / len);
        }
        let limit = attention.limit.as_ref().map_or(i64::MAX, |limit| {
            let steps = limit.strides.iter().zip(&counters).map(|(&stride, &counter)| stride * counter as i64);
            limit.offset + steps.sum::<i64>()
        });
        let last = if attention.limit.is_some() {
            rows.clone().map(|row| limit.saturating_add(self.rows.limit[row])).max().unwrap_or(limit)
        } else {
            i64::MAX
        };
        let (depth, width, count) = (self.depth[0].len(), self.width[0].len(), rows.len());
        let State { queries, sums, most, total, .. } = state;
        // Queries with the scale in them, as the accumulator.
        queries.clear();
        let factor = T::Sum::of(attention.scale.get());
        for row in rows.clone() {
            let from = query + self.rows.query[row];
            queries.extend(self.depth[0].iter().map(|&step| {
                // SAFETY: by the caller.
                let element = unsafe { *run.operands[0].cast::<T>().offset(from + step) };
                <T as Scalar>::mul(element.widen_float(), factor)
            }));
        }
        sums.clear();
        sums.resize(count * width, <T as Scalar>::ZERO);
        most.clear();
        most.resize(count, T::Sum::LEAST);
        total.clear();
        total.resize(count, 0.0);
        // SAFETY: by the caller.
        let (span, start) = unsafe { self.span(&counters, &rows) };
        let mut walk = Walk::new(
            [&attention.key, &attention.value],
            outer().chain(self.cut.keys.iter().copied()),
            run.tables,
            attention.bounds,
        );
        for first in span.clone().step_by(BLOCK) {
            let block = first..span.end.min(first + BLOCK);
            // SAFETY: by the caller.
            unsafe { self.columns(&mut walk, list, block, last, &mut state.columns)? };
            if state.columns.keys.is_empty() {
                continue;
            }
            // SAFETY: by the caller; every column was found by the walk.
            unsafe { self.block(&rows, bias, limit, start, depth, width, state) };
        }
        for (at, row) in rows.enumerate() {
            let total = state.total[at];
            let inverse = T::Sum::of(if total == 0.0 { 0.0 } else { 1.0 / total });
            let sums = &state.sums[at * width..(at + 1) * width];
            // SAFETY: by the caller; unaligned writes.
            unsafe {
                let to = self.to.out.cast::<T>().offset(out + self.rows.out[row]);
                for (&sum, &step) in sums.iter().zip(&self.width[1]) {
                    to.offset(step).write_unaligned(T::narrow_float(<T as Scalar>::mul(sum, inverse)));
                }
                if !self.to.lse.is_null() {
                    let value = if total == 0.0 { f64::NEG_INFINITY } else { state.most[at].wide() + total.ln() };
                    let to = self.to.lse.cast::<T::Sum>().offset(lse + self.rows.lse[row]);
                    to.write_unaligned(T::Sum::of(value));
                }
            }
        }
        Ok(())
    }

    /// The keys, or under a band the positions, that some rows of a list see; and where the first row's window begins.
    ///
    /// # Safety
    /// As [`Job::chunk`].
    unsafe fn span(&self, counters: &[usize], rows: &Range<usize>) -> (Range<usize>, i64) {
        let attention = self.run.attention;
        let Some(band) = self.cut.band else {
            // SAFETY: by the caller.
            return (if attention.ragged.is_some() { unsafe { self.run.keys_at(counters) } } else { 0..self.keys }, 0);
        };
        let window = &attention.key.windows[0];
        let steps = window.coefficients.iter().zip(counters).map(|(&by, &counter)| by * counter as i64);
        let start = window.offset + steps.sum::<i64>() + band.by_query * rows.start as i64;
        let far = |by: i64, count: usize| by * (count as i64 - 1);
        let (queries, keys) = (far(band.by_query, rows.len()), far(band.by_key, self.keys));
        let clip = |position: i64| position.clamp(0, window.len as i64) as usize;
        let low = clip(start + queries.min(0) + keys.min(0));
        let high = if self.keys == 0 { low } else { clip(start + queries.max(0) + keys.max(0) + 1) };
        (low..high.max(low), start)
    }

    /// Finds the keys of a block that are there, and that some row may see.
    ///
    /// # Safety
    /// As [`Job::chunk`].
    unsafe fn columns(
        &self,
        walk: &mut Walk<'_, 2>,
        list: usize,
        block: Range<usize>,
        last: i64,
        to: &mut Columns,
    ) -> Result<(), BadTable> {
        let attention = self.run.attention;
        let [keys, values] = [&attention.key, &attention.value];
        to.keys.clear();
        to.values.clear();
        to.index.clear();
        to.positions.clear();
        if self.cut.band.is_some() {
            walk.seek(list * self.keys);
            let (key, value) = (walk.plain_offset(0), walk.plain_offset(1));
            let block = block.start..block.end.min(usize::try_from(last.saturating_add(1)).unwrap_or(0));
            for position in block {
                to.keys.push(key + position as isize * keys.windows[0].stride);
                to.values.push(value + position as isize * values.windows[0].stride);
                to.index.push(position);
                to.positions.push(position as i64);
            }
            return Ok(());
        }
        walk.seek(list * self.keys + block.start);
        for index in block {
            // SAFETY: by the caller.
            let rows = unsafe { (walk.offset(0)?, walk.offset(1)?) };
            if let (Some(key), Some(value)) = rows {
                let position = match (keys.lookups.first(), keys.windows.first()) {
                    _ if attention.limit.is_none() => 0,
                    (Some(lookup), _) => {
                        // SAFETY: by the caller; the walk found the row through this entry.
                        let at = unsafe { self.run.tables[lookup.table].value(walk.entry(0, 0), lookup.len) };
                        at.map_or(i64::MAX, |at| at as i64)
                    }
                    (None, Some(_)) => walk.window(0, 0),
                    (None, None) => index as i64,
                };
                if position <= last {
                    to.keys.push(key);
                    to.values.push(value);
                    to.index.push(index);
                    to.positions.push(position);
                }
            }
            walk.step();
        }
        Ok(())
    }

    /// A block of keys meets all rows.
    ///
    /// # Safety
    /// As [`Job::chunk`]; the columns are there.
    unsafe fn block(
        &self,
        rows: &Range<usize>,
        bias: isize,
        limit: i64,
        start: i64,
        depth: usize,
        width: usize,
        state: &mut State<T::Sum>,
    ) {
        let run = self.run;
        let State { queries, keys, values, scores, sums, row: spare, columns, most, total, scratch } = state;
        let count = columns.keys.len();
        // SAFETY: by the caller: the rows of all columns are in memory; buffers are as long as is asked for.
        unsafe {
            let matrix = Matrix {
                ptr: run.operands[1].cast::<T>(),
                rows: side(&self.depth[1]),
                cols: Offsets::Scattered(&columns.keys),
            };
            let packed_keys = packed::<T>(run, &self.blocking, count, depth, matrix, keys);
            let matrix = Matrix {
                ptr: run.operands[2].cast::<T>(),
                rows: Offsets::Scattered(&columns.values),
                cols: side(&self.width[0]),
            };
            let packed_values = packed::<T>(run, &self.blocking, width, count, matrix, values);
            let room = packed_right_len::<T::Sum>(run.isa, width, count);
            // What is not a number would come through a weight of 0.
            let finite =
                || std::slice::from_raw_parts(packed_values, room).iter().all(|value| value.wide().is_finite());
            let mut is_finite = None;
            scores.resize(TILE * count, <T as Scalar>::ZERO);
            for first in (0..rows.len()).step_by(TILE) {
                let tile = TILE.min(rows.len() - first);
                let a = Matrix {
                    ptr: queries.as_ptr().add(first * depth),
                    rows: Offsets::Strided(depth as isize),
                    cols: Offsets::Strided(1),
                };
                let c = MatrixMut {
                    ptr: scores.as_mut_ptr(),
                    rows: Offsets::Strided(count as isize),
                    cols: Offsets::Strided(1),
                };
                gemm_prepacked::<T::Sum, T::Sum>(
                    run.isa,
                    &self.blocking,
                    tile,
                    count,
                    depth,
                    a,
                    packed_keys,
                    c,
                    Accum::Replace,
                    scratch,
                );
                let mut masked = false;
                for i in 0..tile {
                    let at = first + i;
                    let scores = &mut scores[i * count..(i + 1) * count];
                    masked |= self.mask(rows.start + at, at, bias, limit, start, columns, scores, spare);
                    let block = T::Sum::most(run.isa, scores, T::Sum::of(1.0));
                    // A NaN stays: no comparison with it is true.
                    let next = if block > most[at] || block.wide().is_nan() { block } else { most[at] };
                    if next == T::Sum::LEAST {
                        scores.fill(<T as Scalar>::ZERO);
                        continue;
                    }
                    if most[at] > T::Sum::LEAST && next != most[at] {
                        let shrink = (most[at].wide() - next.wide()).exp();
                        total[at] *= shrink;
                        let shrink = T::Sum::of(shrink);
                        let sums = &mut sums[at * width..(at + 1) * width];
                        sums.iter_mut().for_each(|sum| *sum = <T as Scalar>::mul(*sum, shrink));
                    }
                    most[at] = next;
                    total[at] += T::Sum::exponentials(run.isa, scores, T::Sum::of(1.0), next).wide();
                }
                let to = sums.as_mut_ptr().add(first * width);
                if masked && !*is_finite.get_or_insert_with(finite) {
                    self.add_one_by_one(&scores[..tile * count], columns, width, to);
                    continue;
                }
                let a =
                    Matrix { ptr: scores.as_ptr(), rows: Offsets::Strided(count as isize), cols: Offsets::Strided(1) };
                let c = MatrixMut { ptr: to, rows: Offsets::Strided(width as isize), cols: Offsets::Strided(1) };
                gemm_prepacked::<T::Sum, T::Sum>(
                    run.isa,
                    &self.blocking,
                    tile,
                    width,
                    count,
                    a,
                    packed_values,
                    c,
                    Accum::Add,
                    scratch,
                );
            }
        }
    }

    /// Adds the bias to the scores of a row, and leaves out what it does not see; whether there was any.
    ///
    /// # Safety
    /// As [`Job::block`].
    unsafe fn mask(
        &self,
        row: usize,
        at: usize,
        bias: isize,
        limit: i64,
        start: i64,
        columns: &Columns,
        scores: &mut [T::Sum],
        spare: &mut Vec<T::Sum>,
    ) -> bool {
        let attention = self.run.attention;
        let mut masked = false;
        if attention.bias.is_some() {
            for (score, &index) in scores.iter_mut().zip(&columns.index) {
                // SAFETY: by the caller: the bias has an element for each key.
                let added = unsafe { bias_at::<T>(self.run, bias + self.rows.bias[row] + self.biases[index]) };
                *score = <T as Scalar>::add(*score, added);
            }
        }
        if let Some(band) = self.cut.band {
            let (low, count) = (columns.index[0], scores.len());
            let window = start + band.by_query * at as i64 - low as i64;
            let there = inside(window, band.by_key, self.keys, count);
            let column = |key: usize| (window + key as i64 * band.by_key) as usize;
            spare.clear();
            spare.extend_from_slice(scores);
            scores.fill(T::Sum::LEAST);
            masked |= there.len() < count;
            if band.by_key == 1 && !there.is_empty() {
                let (from, to) = (column(there.start), column(there.end - 1) + 1);
                scores[from..to].copy_from_slice(&spare[from..to]);
            } else {
                there.for_each(|key| scores[column(key)] = spare[column(key)]);
            }
        }
        if attention.limit.is_some() {
            let limit = limit.saturating_add(self.rows.limit[row]);
            for (score, &position) in scores.iter_mut().zip(&columns.positions) {
                let hidden = position > limit;
                masked |= hidden;
                *score = if hidden { T::Sum::LEAST } else { *score };
            }
        }
        masked
    }

    /// Adds values that have a weight, where some are no numbers.
    ///
    /// # Safety
    /// As [`Job::block`]; `to` has a row for each of `weights`.
    unsafe fn add_one_by_one(&self, weights: &[T::Sum], columns: &Columns, width: usize, to: *mut T::Sum) {
        for (row, weights) in weights.chunks_exact(columns.values.len()).enumerate() {
            for (&weight, &value) in weights.iter().zip(&columns.values) {
                if weight == <T as Scalar>::ZERO {
                    continue;
                }
                for (at, &step) in self.width[0].iter().enumerate() {
                    // SAFETY: by the caller.
                    unsafe {
                        let element = (*self.run.operands[2].cast::<T>().offset(value + step)).widen_float();
                        let sum = to.add(row * width + at);
                        *sum = <T as Scalar>::add(*sum, <T as Scalar>::mul(weight, element));
                    }
                }
            }
        }
    }
}

/// Packs the right side of a product.
///
/// # Safety
/// As for [`pack_right`].
unsafe fn packed<T>(
    run: &AttentionRun<'_>,
    blocking: &Blocking,
    n: usize,
    k: usize,
    matrix: Matrix<'_, T>,
    buffer: &mut Vec<T::Sum>,
) -> *const T::Sum
where
    T: Float + TileElement<Acc = T::Sum>,
    T::Sum: TileElement<Acc = T::Sum>,
{
    let len = packed_right_len::<T::Sum>(run.isa, n, k);
    buffer.resize(len.max(buffer.len()), <T as Scalar>::ZERO);
    // SAFETY: by the caller; as many elements as are written.
    unsafe {
        let room = std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast(), len);
        pack_right::<T, T::Sum>(run.isa, blocking, n, k, matrix, room);
    }
    buffer.as_ptr()
}
