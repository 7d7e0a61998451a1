//! `copies`: rows go to the output one by one, as they are or times a weight; where they come from is looked up.
//!
//! Embedding lookups, gathers, batched permutations that keep their rows, one neighbour a query. Floor: the distinct rows
//! and the table once from memory, the output once to it.

use einfall_plan::pattern::{CopiedRows, Side, copied_rows};
use einfall_plan::{Contraction, Cost, Estimate, Machine, Way};
use einfall_tensor::with_element;

use super::Run;
use super::source::{Filled, RowOffsets, Source};
use crate::kernels::rows::{AxpyList, RowElement, row_axpys as add_rows};
use crate::kernels::through;
use crate::scalar::Scalar;
use crate::walk::{BadTable, Walk};

/// Rows whose offsets are kept at once.
const BLOCK: usize = 256;

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    let pattern = copied_rows(contraction)?;
    if contraction.out_dtype != contraction.dtype {
        return Err(format!("does not write {}", contraction.out_dtype));
    }
    if contraction.right.is_some() && contraction.dtype.accumulator() != contraction.dtype {
        return Err("a weighted row would be rounded twice".into());
    }
    let others = contraction.right.as_ref().and_then(|_| pattern.rows.other().of(contraction));
    let rows = pattern.rows.of(contraction).expect("matched");
    if ![Some(rows), others].into_iter().flatten().all(|access| Source::is_handled(access, pattern.row_loop)) {
        return Err("too many lookups move together".into());
    }
    if rows.is_plain() && contraction.right.is_some() {
        return Err("nothing is looked up: the elementwise loops read rows as they lie".into());
    }
    let d = contraction.loops[pattern.inner].len as f64;
    let count = contraction.flops() / 2.0 / d;
    let row_bytes = d * contraction.dtype.bytes() as f64;
    let threads = machine.threads as f64;
    let bytes = contraction.distinct_bytes();
    let written = count * row_bytes;
    let read = count * row_bytes / machine.bytes_per_second_within(bytes - written);
    let write = written / machine.write_bytes_per_second;
    let seconds = super::started(machine, read + write + count * 3e-9 / threads);
    let way = if rows.is_plain() { Way::Elementwise } else { Way::Gather };
    Ok(Estimate { way, cost: Cost { flops: contraction.flops(), bytes, seconds }, workspace_bytes: 0 })
}

/// Runs the contraction.
///
/// # Errors
/// [`BadTable`].
///
/// # Safety
/// `run` keeps its invariant `bound`.
pub unsafe fn run(run: &Run<'_>) -> Result<(), BadTable> {
    let pattern = copied_rows(run.contraction).expect("the kernel made an offer");
    with_element!(run.contraction.dtype, T => {
        // SAFETY: by the caller; the element type is that of the memory.
        unsafe { typed::<T>(run, pattern) }
    })
}

/// # Safety
/// As [`run`], with `T` the element type of inputs and output.
unsafe fn typed<T>(run: &Run<'_>, pattern: CopiedRows) -> Result<(), BadTable>
where
    T: Scalar + RowElement<Acc = <T as Scalar>::Acc>,
{
    let contraction = run.contraction;
    let outer: Vec<(usize, usize)> = (0..contraction.loops.len())
        .filter(|&at| at != pattern.inner && at != pattern.row_loop)
        .map(|at| (at, contraction.loops[at].len))
        .collect();
    let len = contraction.loops[pattern.row_loop].len;
    let blocks = len.div_ceil(BLOCK);
    let total = outer.iter().map(|(_, len)| len).product::<usize>() * blocks;
    run.threads.for_pieces(total, run.threads.piece(total, 8), run.serial_seconds, |range| {
        // SAFETY: by the caller; pieces write distinct rows of the output.
        unsafe { rows_of::<T>(run, pattern, &outer, blocks, range) }
    })
}

/// # Safety
/// As [`typed`]; `range` counts blocks of rows.
unsafe fn rows_of<T>(
    run: &Run<'_>,
    pattern: CopiedRows,
    outer: &[(usize, usize)],
    blocks: usize,
    range: std::ops::Range<usize>,
) -> Result<(), BadTable>
where
    T: Scalar + RowElement<Acc = <T as Scalar>::Acc>,
{
    let contraction = run.contraction;
    let CopiedRows { rows: side, inner, row_loop } = pattern;
    let rows = side.of(contraction).expect("matched");
    let weights = contraction.right.as_ref().and_then(|_| side.other().of(contraction));
    let (row_data, weight_data): (*const T, *const T) = match side {
        Side::Right => (run.right.cast(), run.left.cast()),
        Side::Left => (run.left.cast(), run.right.cast()),
    };
    let accesses = [rows, weights.unwrap_or(rows), &contraction.out];
    let mut walk = Walk::new(accesses, outer.iter().copied(), run.tables, contraction.bounds);
    walk.seek(range.start / blocks);
    let source = |access| RowOffsets::new(access, row_loop, run.tables, contraction.bounds, run.isa);
    let (source, weight_source) = (source(rows), weights.map(source));
    let (len, d) = (contraction.loops[row_loop].len, contraction.loops[inner].len);
    let step = contraction.out.strides[row_loop];
    let out = run.out.cast::<T>();
    let past = super::is_past_caches(run, size_of::<T>());
    let _fence = through::Fence;

    let (mut offsets, mut weight_offsets) = ([0isize; BLOCK], [0isize; BLOCK]);
    let (mut positions, mut weight_positions) = ([0u32; BLOCK], [0u32; BLOCK]);
    let mut there = [true; BLOCK];
    let mut factors = [T::default(); BLOCK];
    let mut lists: Vec<AxpyList<T>> = Vec::with_capacity(BLOCK);
    for flat in range {
        let first = flat % blocks * BLOCK;
        let count = BLOCK.min(len - first);
        // SAFETY: `bound`: the walk and the block are within the loops.
        unsafe {
            let to = |i: usize| out.wrapping_offset(walk.plain_offset(2) + (first + i) as isize * step);
            let start = source.start(&walk, 0)?;
            let weight_start = match &weight_source {
                Some(weights) => weights.start(&walk, 1)?,
                None => Some(super::source::Start::default()),
            };
            there[..count].fill(false);
            lists.clear();
            if let (Some(start), Some(weight_start)) = (start, weight_start) {
                let filled = source.fill(&start, first, &mut offsets[..count], &mut positions[..count])?;
                let base = row_data.wrapping_offset(start.base);
                let found = if let Filled::Some(found) = filled { found } else { count };
                let position = |i: usize| if filled == Filled::All { i } else { positions[i] as usize };
                match &weight_source {
                    None => {
                        for (i, &offset) in offsets[..found].iter().enumerate() {
                            let (from, at) = (base.offset(offset), position(i));
                            if past && d * size_of::<T>() >= 128 {
                                through::copy(run.isa, from, to(at), d);
                            } else {
                                // Bytes: neither side need be aligned.
                                from.cast::<u8>().copy_to_nonoverlapping(to(at).cast(), d * size_of::<T>());
                            }
                            there[at] = true;
                        }
                    }
                    Some(weights) => {
                        let (all, at) = (&mut weight_offsets[..count], &mut weight_positions[..count]);
                        let weighted = weights.fill(&weight_start, first, all, at)?;
                        let data = weight_data.wrapping_offset(weight_start.base);
                        let kept = if let Filled::Some(found) = weighted { found } else { count };
                        let weight_position =
                            |i: usize| if weighted == Filled::All { i } else { weight_positions[i] as usize };
                        let mut w = 0;
                        for (i, offset) in offsets[..found].iter().enumerate() {
                            let at = position(i);
                            while w < kept && weight_position(w) < at {
                                w += 1;
                            }
                            if w < kept && weight_position(w) == at {
                                factors[i] = data.offset(weight_offsets[w]).read_unaligned();
                                there[at] = true;
                                let weights = factors.as_ptr().add(i);
                                lists.push(AxpyList {
                                    weights,
                                    rows: base,
                                    offsets: offset,
                                    count: 1,
                                    acc: to(at).cast(),
                                });
                            }
                        }
                        add_rows(run.isa, d, &lists, false);
                    }
                }
            }
            for i in (0..count).filter(|&i| !there[i]) {
                for j in 0..d {
                    to(i).add(j).write_unaligned(T::narrow(<T as Scalar>::ZERO));
                }
            }
        }
        if (flat + 1).is_multiple_of(blocks) {
            walk.step();
        }
    }
    Ok(())
}
