//! `axpys`: weighted sums of contiguous rows, stored, looked up or under a window; the rows are read where they lie.
//!
//! Values of attention, embedding bags, graph aggregation, vector × matrix, sums over leading axes. Floor: the distinct
//! rows once from memory, and each row once from the cache that holds them.

use einfall_plan::pattern::{RowAxpys, Side, row_axpys};
use einfall_plan::{Access, Contraction, Cost, Estimate, Machine, Role, Way};
use einfall_tensor::Element;
use smallvec::SmallVec;

use super::source::{Filled, Head, Heads, RowOffsets, Source, Start};
use super::{Run, rows_cost, with_types};
use crate::kernels::rows::{AxpyList, RowElement, row_axpys as add_rows};
use crate::scalar::Scalar;
use crate::threads::Shared;
use crate::walk::{BadTable, Walk};

/// Rows whose offsets and weights are kept at once: a third of a small L1.
const BLOCK: usize = 1024;
/// Rows of one list that are added up before those of the next ones.
const ROWS: usize = 128;
/// Rows of all lists for which nothing is allocated.
const SHORT: usize = 64;
/// Lists that are handed to the row kernel at once.
const LISTS: usize = 64;
/// Elements of a row that one task sums at most, so that few long rows still keep all threads busy.
const COLUMNS: usize = 512;

/// Rows that are added to whole sums at a time, where each is read once and all sums stay in a near cache.
const TOGETHER: usize = 8;

/// Bytes of rows that a part has at least, where sums are cut into parts.
const PART_BYTES: usize = 1 << 18;
/// Parts at most, and rows of a part at least.
const MOST_PARTS: usize = 32;
const LEAST_ROWS: usize = 64;
/// Bytes of all sums at most, where they are cut into parts: each part has its own.
const MOST_PARTIAL: usize = 1 << 16;

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    let pattern = row_axpys(contraction)?;
    super::check_out_dtype(contraction)?;
    if contraction.right.is_none() && contraction.dtype.is_complex() {
        return Err("times one an infinite complex number is none any more".into());
    }
    let rows = pattern.rows.of(contraction).expect("matched");
    let d = contraction.loops[pattern.inner].len as f64;
    if d < 4.0 {
        return Err("rows are too short".into());
    }
    let others = contraction.right.as_ref().and_then(|_| pattern.rows.other().of(contraction));
    if ![Some(rows), others].into_iter().flatten().all(|access| Source::is_handled(access, pattern.row_loop)) {
        return Err("too many lookups move together".into());
    }
    let way = match Source::of(rows, pattern.row_loop) {
        Source::Strided(_) => Way::Stream,
        _ => Way::Gather,
    };
    let count = contraction.flops() / 2.0 / d;
    let lists = count / contraction.loops[pattern.row_loop].len as f64;
    let outputs =
        lists / other_contracted(contraction, pattern).map(|at| contraction.loops[at].len as f64).product::<f64>();
    let mut seconds = rows_cost(contraction, machine, rows, pattern.inner, count, lists);
    // Few sums of many rows run on few threads, unless the rows are divided.
    let pieces = outputs * (d / COLUMNS as f64).ceil();
    if pieces < machine.threads as f64 && parts_of(contraction, pattern).is_none() {
        seconds *= machine.threads as f64 / pieces;
    }
    seconds += super::PREPARE_SECONDS;
    let bytes = contraction.distinct_bytes();
    let workspace_bytes = parts_of(contraction, pattern).map_or(0, |parts| parts * partial_bytes(contraction));
    Ok(Estimate { way, cost: Cost { flops: contraction.flops(), bytes, seconds }, workspace_bytes })
}

/// When few long sums take many stored rows: into how many parts the rows are cut, so that every thread reads rows as a
/// whole, one after another. Depends on the problem alone.
fn parts_of(contraction: &Contraction, pattern: RowAxpys) -> Option<usize> {
    let accesses = contraction.accesses().all(Access::is_plain);
    let rows = pattern.rows.of(contraction)?;
    let len = contraction.loops[pattern.row_loop].len;
    // A row loop that the rows do not have, or sums as large as what is summed, are better left whole.
    let parts = ((contraction.distinct_elements(rows) * contraction.dtype.bytes() as f64) / PART_BYTES as f64)
        .min(MOST_PARTS as f64) as usize;
    let parts = parts.min(len / LEAST_ROWS);
    (accesses && rows.strides[pattern.row_loop] != 0 && parts > 1 && partial_bytes(contraction) <= MOST_PARTIAL)
        .then_some(parts)
}

/// Bytes of all sums in their accumulators.
fn partial_bytes(contraction: &Contraction) -> usize {
    let outputs = contraction.loops.iter().filter(|l| l.role != Role::Contracted).map(|l| l.len).product::<usize>();
    outputs.saturating_mul(contraction.dtype.accumulator().bytes())
}

fn other_contracted(contraction: &Contraction, pattern: RowAxpys) -> impl Iterator<Item = usize> + '_ {
    contraction.loops_of(Role::Contracted).filter(move |&at| at != pattern.row_loop)
}

/// Runs the contraction.
///
/// # Errors
/// [`BadTable`].
///
/// # Safety
/// `run` keeps its invariant `bound`.
pub unsafe fn run(run: &Run<'_>) -> Result<(), BadTable> {
    let pattern = row_axpys(run.contraction).expect("the kernel made an offer");
    with_types!(run.contraction, T, U => {
        // SAFETY: by the caller; the element types are those of the memory.
        unsafe {
            match parts_of(run.contraction, pattern) {
                Some(parts) => in_parts::<T, U>(run, pattern, parts),
                None => typed::<T, U>(run, pattern, STRIPS),
            }
        }
    })
}

/// Each part of the rows is added up by itself, then the parts in order.
///
/// # Safety
/// As [`typed`]; all accesses are strides alone.
unsafe fn in_parts<T, U>(run: &Run<'_>, pattern: RowAxpys, parts: usize) -> Result<(), BadTable>
where
    T: Scalar + RowElement<Acc = <T as Scalar>::Acc>,
    U: Scalar<Acc = <T as Scalar>::Acc>,
{
    let contraction = run.contraction;
    let len = contraction.loops[pattern.row_loop].len;
    // A part's sums lie without gaps, in the order of the loops.
    let mut own = contraction.clone();
    own.out = Access { strides: vec![0; contraction.loops.len()], ..Access::default() };
    own.out_dtype = contraction.dtype.accumulator();
    let mut sums = 1;
    let inner = std::iter::once(pattern.inner);
    let others = (0..contraction.loops.len()).rev().filter(|&at| at != pattern.inner);
    for at in inner.chain(others).filter(|&at| contraction.loops[at].role != Role::Contracted) {
        own.out.strides[at] = sums as isize;
        sums *= contraction.loops[at].len;
    }
    let mut partial: Vec<<T as Scalar>::Acc> = Vec::with_capacity(parts * sums);
    // In strips, each row would be a piece of a page; whole rows that follow each other come as one stream.
    let whole = pattern.rows.of(contraction).is_some_and(|rows| rows.strides[pattern.row_loop] > COLUMNS as isize);
    let cut = match whole {
        true => Cut { columns: contraction.loops[pattern.inner].len, rows: TOGETHER },
        false => STRIPS,
    };
    let slots = Shared(partial.as_mut_ptr());
    run.threads.for_pieces(parts, 1, run.serial_seconds, |range| {
        for part in range {
            let (start, end) = (len * part / parts, len * (part + 1) / parts);
            let mut contraction = own.clone();
            contraction.loops[pattern.row_loop].len = end - start;
            super::nest::shift_loop(&mut contraction, pattern.row_loop, start);
            let out = slots.get().wrapping_add(part * sums).cast();
            let run = Run { contraction: &contraction, out, ..*run };
            // SAFETY: by the caller: the part is a range of the loop; each part writes all of its own sums.
            unsafe { typed::<T, <T as Scalar>::Acc>(&run, pattern, cut)? };
        }
        Ok(())
    })?;
    // SAFETY: every part has written all of its sums.
    unsafe { partial.set_len(parts * sums) };
    let (first, rest) = partial.split_at_mut(sums);
    for part in rest.chunks_exact(sums) {
        for (sum, &more) in first.iter_mut().zip(part) {
            *sum = <T as Scalar>::add(*sum, more);
        }
    }
    let outputs = |at: &usize| contraction.loops[*at].role != Role::Contracted;
    let loops = (0..contraction.loops.len()).filter(outputs).map(|at| (at, contraction.loops[at].len));
    let mut walk = Walk::new([&contraction.out, &own.out], loops, run.tables, contraction.bounds);
    for _ in 0..sums {
        let sum = first[walk.plain_offset(1) as usize];
        // SAFETY: `bound`: the walk is within the loops.
        unsafe { run.out.cast::<U>().offset(walk.plain_offset(0)).write_unaligned(U::narrow(sum)) };
        walk.step();
    }
    Ok(())
}

/// How the rows of a list are taken: it does not change a bit.
#[derive(Clone, Copy)]
struct Cut {
    /// Elements of a row that one task sums at most, so that few long rows still keep all threads busy.
    columns: usize,
    /// Rows of all lists whose offsets are kept at once.
    rows: usize,
}

/// Rows that are visited again and again: strips of them stay in the nearest cache.
const STRIPS: Cut = Cut { columns: COLUMNS, rows: BLOCK };

/// # Safety
/// As [`run`], with `T` and `U` the element types of inputs and output.
unsafe fn typed<T, U>(run: &Run<'_>, pattern: RowAxpys, cut: Cut) -> Result<(), BadTable>
where
    T: Scalar + RowElement<Acc = <T as Scalar>::Acc>,
    U: Scalar<Acc = <T as Scalar>::Acc>,
{
    let contraction = run.contraction;
    let loops = |at: usize| (at, contraction.loops[at].len);
    let outer: SmallVec<[(usize, usize); 8]> = (0..contraction.loops.len())
        .filter(|&at| at != pattern.inner && contraction.loops[at].role != Role::Contracted)
        .map(loops)
        .collect();
    let turns: SmallVec<[(usize, usize); 8]> = other_contracted(contraction, pattern).map(loops).collect();
    let sums: usize = outer.iter().map(|(_, len)| len).product();
    let d = contraction.loops[pattern.inner].len;
    let strips = d.div_ceil(cut.columns);
    let total = sums * strips;
    run.threads.for_pieces(total, run.threads.piece(total, 8), run.serial_seconds, |range| {
        // SAFETY: by the caller; pieces write distinct strips of outputs.
        unsafe { strips_of::<T, U>(run, pattern, cut, &outer, &turns, strips, range) }
    })
}

/// # Safety
/// As [`typed`]; `range` counts strips.
unsafe fn strips_of<T, U>(
    run: &Run<'_>,
    pattern: RowAxpys,
    cut: Cut,
    outer: &[(usize, usize)],
    turns: &[(usize, usize)],
    strips: usize,
    range: std::ops::Range<usize>,
) -> Result<(), BadTable>
where
    T: Scalar + RowElement<Acc = <T as Scalar>::Acc>,
    U: Scalar<Acc = <T as Scalar>::Acc>,
{
    let contraction = run.contraction;
    let rows = pattern.rows.of(contraction).expect("matched");
    let weights = contraction.right.as_ref().and_then(|_| pattern.rows.other().of(contraction));
    let (row_data, weight_data): (*const T, *const T) = match pattern.rows {
        Side::Right => (run.right.cast(), run.left.cast()),
        Side::Left => (run.left.cast(), run.right.cast()),
    };
    let accesses = [rows, weights.unwrap_or(rows), &contraction.out];
    let mut walk = Walk::new(accesses, outer.iter().copied(), run.tables, contraction.bounds);
    walk.seek(range.start / strips);
    let turn_count = turns.iter().map(|(_, len)| len).product::<usize>();
    // Without further summed loops there is nothing more to walk.
    let mut turn = (turn_count != 1 || strips != 1)
        .then(|| Walk::new(accesses, turns.iter().copied(), run.tables, contraction.bounds));
    let row_loop = pattern.row_loop;
    let source = |access| RowOffsets::new(access, row_loop, run.tables, contraction.bounds, run.isa);
    let source = Heads::new(source(rows), weights.map(source), &contraction.out, walk.fastest());
    let (len, d) = (contraction.loops[row_loop].len, contraction.loops[pattern.inner].len);
    let width = cut.columns.min(d);
    let out_stride = contraction.out.strides[pattern.inner];
    let out = run.out.cast::<U>();
    let direct = out_stride == 1 && U::DTYPE == <T as Scalar>::Acc::DTYPE && out.is_aligned();

    // Sums are added up side by side, a block of each one's rows at a time.
    let together = if turn.is_none() { (BLOCK / len.clamp(1, ROWS)).min(LISTS) } else { 1 };
    let block = (BLOCK / together).min(cut.rows);
    // As long as needed: to clear whole blocks takes longer than a small product.
    let most = together.min(range.len());
    let needed = most * block.min(len);
    let mut offsets: SmallVec<[isize; SHORT]> = SmallVec::from_elem(0, needed);
    let mut positions: SmallVec<[u32; SHORT]> = SmallVec::from_elem(0, block.min(len));
    let mut gathered: SmallVec<[T; SHORT]> = SmallVec::from_elem(T::default(), needed);
    let (offsets, gathered) = (offsets.as_mut_ptr(), gathered.as_mut_ptr());
    let mut sums = vec![<T as Scalar>::ZERO; if direct { 0 } else { width * together }];
    let sums = sums.as_mut_ptr();
    let mut targets: Vec<*mut U> = Vec::with_capacity(most);
    let mut heads: Vec<Head> = Vec::with_capacity(most);
    let mut lists: Vec<AxpyList<T>> = Vec::with_capacity(most);
    let mut flat = range.start;
    while flat < range.end {
        let size = together.min(range.end - flat);
        let column = flat % strips * cut.columns;
        let columns = cut.columns.min(d - column);
        let target = |to: isize| out.wrapping_offset(to + column as isize * out_stride);
        targets.clear();
        if let Some(turn) = &mut turn {
            turn.follow(&walk);
            targets.push(target(walk.plain_offset(2)));
            if (flat + 1).is_multiple_of(strips) {
                walk.step();
            }
        }
        for turn_number in 0..turn_count {
            // SAFETY: `bound`: the walks are within the loops.
            unsafe {
                match &mut turn {
                    Some(turn) => source.read(turn, 1, &mut heads)?,
                    None => {
                        source.read(&mut walk, size, &mut heads)?;
                        targets.extend(heads.iter().map(|head| target(head.to)));
                    }
                }
            }
            for first in (0..len).step_by(block) {
                let count = block.min(len - first);
                lists.clear();
                // SAFETY: `bound`: the block is within the loop; each list has a part of the buffers to itself.
                unsafe {
                    let room = std::slice::from_raw_parts_mut(offsets, needed);
                    let all = count == len && source.fill_all(&heads, count, room)?;
                    for (at, head) in heads.iter().enumerate() {
                        let acc = if direct { targets[at].cast() } else { sums.wrapping_add(at * width) };
                        let room = offsets.add(at * count);
                        let mut list = AxpyList { weights: weight_data, rows: row_data, offsets: room, count: 0, acc };
                        if let (Some(start), Some(weight_start)) = (&head.rows, &head.other) {
                            let offsets = std::slice::from_raw_parts_mut(room, count);
                            let filled = match all {
                                true => Filled::All,
                                false => source.rows.fill(start, first, offsets, &mut positions[..count])?,
                            };
                            let gathered = std::slice::from_raw_parts_mut(gathered.add(at * count), count);
                            let weights = Weights { source: source.other.as_ref(), data: weight_data };
                            (list.count, list.weights) =
                                weights.load(weight_start, first, filled, offsets, &positions, gathered)?;
                            list.rows = row_data.wrapping_offset(start.base + column as isize);
                        }
                        lists.push(list);
                    }
                }
                // SAFETY: every list was made from offsets within the rows' view; each has sums of its own.
                unsafe { add_rows(run.isa, columns, &lists, turn_number > 0 || first > 0) };
            }
        }
        if !direct {
            for (at, &to) in targets.iter().enumerate() {
                for j in 0..columns {
                    // SAFETY: `bound`: the strip is within the output, and its sums were just written.
                    unsafe {
                        let sum = *sums.add(at * width + j);
                        to.offset(j as isize * out_stride).write_unaligned(U::narrow(sum));
                    }
                }
            }
        }
        flat += size;
    }
    Ok(())
}

/// The weights of a run of rows.
struct Weights<'a, T> {
    /// `None` for a single input: every weight is one.
    source: Option<&'a RowOffsets<'a>>,
    data: *const T,
}

impl<T: Scalar> Weights<'_, T> {
    /// The weights of the rows that are there, contiguous; drops rows whose weight is left out.
    ///
    /// # Safety
    /// As [`RowOffsets::fill`].
    unsafe fn load(
        &self,
        start: &Start,
        first: usize,
        filled: Filled,
        offsets: &mut [isize],
        positions: &[u32],
        gathered: &mut [T],
    ) -> Result<(usize, *const T), BadTable> {
        let count = offsets.len();
        let found = if let Filled::Some(found) = filled { found } else { count };
        let Some(source) = self.source else {
            gathered[..found].fill(T::narrow(T::ONE));
            return Ok((found, gathered.as_ptr()));
        };
        let position = |filled: Filled, positions: &[u32], i: usize| match filled {
            Filled::All => i,
            Filled::Some(_) => positions[i] as usize,
        };
        // SAFETY: by the caller.
        unsafe {
            let data = self.data.wrapping_offset(start.base);
            if let Source::Strided(stride) = source.source() {
                let from = data.wrapping_offset(first as isize * stride);
                let skipped = position(filled, positions, 0).min(count);
                let in_a_row = found == 0 || position(filled, positions, found - 1) + 1 - skipped == found;
                if in_a_row && stride == 1 && from.is_aligned() {
                    return Ok((found, from.add(if found == 0 { 0 } else { skipped })));
                }
                for (i, weight) in gathered[..found].iter_mut().enumerate() {
                    *weight = from.offset(position(filled, positions, i) as isize * stride).read_unaligned();
                }
                return Ok((found, gathered.as_ptr()));
            }
            // Weights that are looked up themselves: keep the rows whose weight is there too.
            let mut weight_offsets = [0isize; BLOCK];
            let mut weight_positions = [0u32; BLOCK];
            let (weight_offsets, weight_positions) = (&mut weight_offsets[..count], &mut weight_positions[..count]);
            let weight_filled = source.fill(start, first, weight_offsets, weight_positions)?;
            let weight_count = if let Filled::Some(found) = weight_filled { found } else { count };
            let (mut kept, mut w) = (0, 0);
            for i in 0..found {
                let at = position(filled, positions, i);
                while w < weight_count && position(weight_filled, weight_positions, w) < at {
                    w += 1;
                }
                if w < weight_count && position(weight_filled, weight_positions, w) == at {
                    offsets[kept] = offsets[i];
                    gathered[kept] = data.offset(weight_offsets[w]).read_unaligned();
                    kept += 1;
                }
            }
            Ok((kept, gathered.as_ptr()))
        }
    }
}
