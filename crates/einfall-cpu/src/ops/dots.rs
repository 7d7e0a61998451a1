//! `dots`: one vector meets many contiguous rows, stored, looked up or under a window; the rows are read where they lie.
//!
//! Scores of attention, nearest-neighbour distances, matrix × vector. Floor: the distinct rows once from memory, and
//! each row once from the cache that holds them.

use einfall_plan::pattern::{RowDots, row_dots};
use einfall_plan::{Contraction, Cost, Estimate, Machine, Way};
use einfall_tensor::Element;

use super::source::{Filled, Head, Heads, RowOffsets, Source};
use super::{Run, rows_cost, with_types};
use crate::kernels::rows::{
    DotList, PairedDots, RowElement, StridedDots, paired_dots, row_dots as dot_rows, row_dots_strided,
};
use crate::kernels::through;
use crate::scalar::Scalar;
use crate::walk::{BadTable, Walk};

/// Rows whose offsets are kept at once: 4 KiB, so that the L1 is left to the rows.
const BLOCK: usize = 512;
/// Lists that are handed to the row kernel at once.
const LISTS: usize = 64;
/// Lists of stored rows that are handed to it at once: enough to share a call, few enough that results stay in order.
const STORED_LISTS: usize = 16;

/// Terms of a sum from which on it is not left to one chain of additions, which loses digits, nor to one thread.
const LONG: f64 = 32768.0;

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    let pattern = row_dots(contraction)?;
    super::check_out_dtype(contraction)?;
    let rows = pattern.rows.of(contraction).expect("matched");
    if pattern.row_loop.is_some_and(|at| !Source::is_handled(rows, at)) {
        return Err("too many lookups move together".into());
    }
    let stored = match pattern.row_loop {
        Some(at) => matches!(Source::of(rows, at), Source::Strided(_)),
        None => rows.is_plain(),
    };
    let d = contraction.loops[pattern.inner].len as f64;
    if pattern.row_loop.is_none() && d > LONG {
        return Err("sums so long are better cut into parts".into());
    }
    let way = if stored { Way::Stream } else { Way::Gather };
    let count = contraction.flops() / 2.0 / d.max(1.0);
    let lists = count / pattern.row_loop.map_or(1.0, |at| contraction.loops[at].len as f64);
    let seconds = rows_cost(contraction, machine, rows, pattern.inner, count, lists) + 0.5 * super::PREPARE_SECONDS;
    let bytes = contraction.distinct_bytes();
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
    let pattern = row_dots(run.contraction).expect("the kernel made an offer");
    with_types!(run.contraction, T, U => {
        // SAFETY: by the caller; the element types are those of the memory.
        unsafe { typed::<T, U>(run, pattern) }
    })
}

/// # Safety
/// As [`run`], with `T` and `U` the element types of inputs and output.
unsafe fn typed<T, U>(run: &Run<'_>, pattern: RowDots) -> Result<(), BadTable>
where
    T: Scalar + RowElement<Acc = <T as Scalar>::Acc>,
    U: Scalar<Acc = <T as Scalar>::Acc>,
{
    let contraction = run.contraction;
    let outer: Vec<(usize, usize)> = (0..contraction.loops.len())
        .filter(|&at| at != pattern.inner && Some(at) != pattern.row_loop)
        .map(|at| (at, contraction.loops[at].len))
        .collect();
    let lists: usize = outer.iter().map(|(_, len)| len).product();
    let Some(row_loop) = pattern.row_loop else {
        return run.threads.for_pieces(lists, run.threads.piece(lists, 8), run.serial_seconds, |range| {
            // SAFETY: by the caller; pieces write distinct outputs.
            unsafe { pairs::<T, U>(run, pattern, &outer, range) }
        });
    };
    // Long runs of rows are divided too, so that one vector with a million rows keeps all threads busy.
    let count = contraction.loops[row_loop].len;
    let chunks = count.div_ceil(BLOCK);
    let total = lists * chunks;
    let stored = match Source::of(pattern.rows.of(contraction).expect("matched"), row_loop) {
        Source::Strided(stride) => Some(stride),
        _ => None,
    };
    run.threads.for_pieces(total, run.threads.piece(total, 8), run.serial_seconds, |range| {
        // SAFETY: by the caller; pieces write distinct outputs.
        unsafe {
            match stored {
                Some(stride) => stored_blocks::<T, U>(run, pattern, (row_loop, stride), &outer, chunks, range),
                None => blocks::<T, U>(run, pattern, row_loop, &outer, chunks, range),
            }
        }
    })
}

/// Rows at a fixed distance: no offsets to fill, and if they are read only once, fetched ahead past the caches.
///
/// # Safety
/// As [`typed`]; `range` counts chunks of lists; the rows have that stride in that loop.
unsafe fn stored_blocks<T, U>(
    run: &Run<'_>,
    pattern: RowDots,
    (row_loop, stride): (usize, isize),
    outer: &[(usize, usize)],
    chunks: usize,
    range: std::ops::Range<usize>,
) -> Result<(), BadTable>
where
    T: Scalar + RowElement<Acc = <T as Scalar>::Acc>,
    U: Scalar<Acc = <T as Scalar>::Acc>,
{
    let contraction = run.contraction;
    let rows = pattern.rows.of(contraction).expect("matched");
    let vector = pattern.rows.other().of(contraction).expect("matched");
    let (row_data, vector_data) = side_pointers::<T>(run, pattern);
    let mut walk = Walk::new([rows, vector, &contraction.out], outer.iter().copied(), run.tables, contraction.bounds);
    walk.seek(range.start / chunks);
    let (len, d) = (contraction.loops[row_loop].len, contraction.loops[pattern.inner].len);
    let out_stride = contraction.out.strides[row_loop];
    let out = run.out.cast::<U>();
    let direct = out_stride == 1 && U::DTYPE == <T as Scalar>::Acc::DTYPE && out.is_aligned();
    let bytes = contraction.distinct_elements(rows) * size_of::<T>() as f64;
    let revisited = outer.iter().any(|&(at, _)| rows.strides[at] == 0);
    let once = rows.is_plain() && !revisited && bytes > run.machine.l3_bytes as f64;

    let mut results = [<T as Scalar>::ZERO; BLOCK];
    let mut lists: Vec<StridedDots<T>> = Vec::with_capacity(STORED_LISTS);
    for flat in range {
        let start = flat % chunks * BLOCK;
        let count = BLOCK.min(len - start);
        // SAFETY: `bound`: the walk and the chunk are within the loops.
        unsafe {
            let to = out.offset(walk.plain_offset(2) + start as isize * out_stride);
            let list = match (walk.offset(0)?, walk.offset(1)?) {
                (Some(row), Some(x)) => {
                    let (x, rows) = (vector_data.offset(x), row_data.offset(row + start as isize * stride));
                    Some(StridedDots { x, rows, count, out: if direct { to.cast() } else { results.as_mut_ptr() } })
                }
                _ => None,
            };
            match list {
                Some(list) if direct => lists.push(list),
                Some(list) => row_dots_strided(run.isa, d, stride, once, &[list]),
                None => results[..count].fill(<T as Scalar>::ZERO),
            }
            if list.is_none() || !direct {
                store(&results[..count], to, out_stride);
            }
            if lists.len() == STORED_LISTS {
                row_dots_strided(run.isa, d, stride, once, &lists);
                lists.clear();
            }
        }
        if (flat + 1) % chunks == 0 {
            walk.step();
        }
    }
    // SAFETY: as above.
    unsafe { row_dots_strided(run.isa, d, stride, once, &lists) };
    Ok(())
}

/// Lists of rows, as many at once as there is room for offsets.
///
/// # Safety
/// As [`typed`]; `range` counts chunks of lists.
unsafe fn blocks<T, U>(
    run: &Run<'_>,
    pattern: RowDots,
    row_loop: usize,
    outer: &[(usize, usize)],
    chunks: usize,
    range: std::ops::Range<usize>,
) -> Result<(), BadTable>
where
    T: Scalar + RowElement<Acc = <T as Scalar>::Acc>,
    U: Scalar<Acc = <T as Scalar>::Acc>,
{
    let contraction = run.contraction;
    let rows = pattern.rows.of(contraction).expect("matched");
    let vector = pattern.rows.other().of(contraction).expect("matched");
    let (row_data, vector_data) = side_pointers::<T>(run, pattern);
    let accesses = [rows, vector, &contraction.out];
    let mut walk = Walk::new(accesses, outer.iter().copied(), run.tables, contraction.bounds);
    walk.seek(range.start / chunks);
    let source = |access| RowOffsets::new(access, row_loop, run.tables, contraction.bounds, run.isa);
    let source = Heads::new(source(rows), Some(source(vector)), &contraction.out, walk.fastest());
    let (len, d) = (contraction.loops[row_loop].len, contraction.loops[pattern.inner].len);
    let out_stride = contraction.out.strides[row_loop];
    let out = run.out.cast::<U>();
    let direct = out_stride == 1 && U::DTYPE == <T as Scalar>::Acc::DTYPE && out.is_aligned();

    // What does not fit the caches is better written past them: nobody finds it there.
    let past = direct && super::is_past_caches(run, size_of::<U>());
    let _fence = through::Fence;

    // Short lists are taken many at a time, long ones in chunks.
    let together = if chunks == 1 { (BLOCK / len.max(1)).clamp(1, LISTS) } else { 1 };
    let mut heads: Vec<Head> = Vec::with_capacity(together);
    let mut lists: Vec<DotList<T>> = Vec::with_capacity(together);
    let mut filled: Vec<Filled> = Vec::with_capacity(together);
    let mut offsets = [0isize; BLOCK];
    let mut positions = [0u32; BLOCK];
    let mut results = [<T as Scalar>::ZERO; BLOCK];
    let (offsets, results) = (offsets.as_mut_ptr(), results.as_mut_ptr());
    let mut flat = range.start;
    while flat < range.end {
        let first = flat % chunks * BLOCK;
        let count = BLOCK.min(len - first);
        // SAFETY: `bound`: the lists and the chunk are within the loops; each list has a part of the buffers to itself.
        unsafe {
            if first == 0 {
                source.read(&mut walk, together.min(range.end - flat), &mut heads)?;
            } else if heads.is_empty() {
                source.read(&mut walk, 1, &mut heads)?;
            }
            let all = chunks == 1
                && source.fill_all(&heads, count, std::slice::from_raw_parts_mut(offsets, heads.len() * count))?;
            let target = |to: isize| out.offset(to + first as isize * out_stride);
            lists.clear();
            filled.clear();
            for (at, &Head { rows, other, to }) in heads.iter().enumerate() {
                let (offsets, mut list_out) = (offsets.add(at * count), results.add(at * count));
                let (Some(from), Some(x)) = (rows, other) else {
                    filled.push(Filled::Some(0));
                    continue;
                };
                let positions = &mut positions[at * count..(at + 1) * count];
                let there = match all {
                    true => Filled::All,
                    false => {
                        source.rows.fill(&from, first, std::slice::from_raw_parts_mut(offsets, count), positions)?
                    }
                };
                if direct && !past && there == Filled::All {
                    list_out = target(to).cast();
                }
                let found = if let Filled::Some(found) = there { found } else { count };
                let (x, rows) = (vector_data.offset(x.base), row_data.wrapping_offset(from.base));
                lists.push(DotList { x, rows, offsets, count: found, out: list_out });
                filled.push(there);
            }
            dot_rows(run.isa, d, &lists);
            for (at, (&Head { to, .. }, &there)) in heads.iter().zip(&filled).enumerate() {
                if let Filled::Some(found) = there {
                    let part = std::slice::from_raw_parts_mut(results.add(at * count), count);
                    spread(part, &positions[at * count..at * count + found]);
                }
                if !(past || direct && there == Filled::All) {
                    store(std::slice::from_raw_parts(results.add(at * count), count), target(to), out_stride);
                }
            }
            if past {
                let to = |head: &Head| target(head.to).cast::<<T as Scalar>::Acc>();
                if heads.iter().enumerate().all(|(at, head)| head.to == heads[0].to + (at * count) as isize) {
                    through::copy(run.isa, results, to(&heads[0]), heads.len() * count);
                } else {
                    for (at, head) in heads.iter().enumerate() {
                        through::copy(run.isa, results.add(at * count), to(head), count);
                    }
                }
            }
        }
        flat += heads.len();
    }
    Ok(())
}

/// Moves the results of the rows that are there to their positions, zeros between them.
fn spread<A: Scalar>(results: &mut [A], positions: &[u32]) {
    let mut end = results.len();
    for (from, &to) in positions.iter().enumerate().rev() {
        let (to, value) = (to as usize, results[from]);
        results[to + 1..end].fill(A::from_number(crate::scalar::Number::Integer(0)));
        results[to] = value;
        end = to;
    }
    results[..end].fill(A::from_number(crate::scalar::Number::Integer(0)));
}

/// # Safety
/// The run lies in the output.
pub(super) unsafe fn store<U: Scalar>(results: &[U::Acc], to: *mut U, stride: isize) {
    for (i, &result) in results.iter().enumerate() {
        // SAFETY: by the caller.
        unsafe { to.offset(i as isize * stride).write_unaligned(U::narrow(result)) };
    }
}

/// Pointers to the rows and to the vectors.
fn side_pointers<T>(run: &Run<'_>, pattern: RowDots) -> (*const T, *const T) {
    use einfall_plan::pattern::Side;
    match pattern.rows {
        Side::Right => (run.right.cast(), run.left.cast()),
        Side::Left => (run.left.cast(), run.right.cast()),
    }
}

/// Every row meets a vector of its own.
///
/// # Safety
/// As [`typed`]; `range` counts outputs.
unsafe fn pairs<T, U>(
    run: &Run<'_>,
    pattern: RowDots,
    outer: &[(usize, usize)],
    range: std::ops::Range<usize>,
) -> Result<(), BadTable>
where
    T: Scalar + RowElement<Acc = <T as Scalar>::Acc>,
    U: Scalar<Acc = <T as Scalar>::Acc>,
{
    const PAIRS: usize = 512;
    let contraction = run.contraction;
    let rows = pattern.rows.of(contraction).expect("matched");
    let vector = pattern.rows.other().of(contraction).expect("matched");
    let (row_data, vector_data) = side_pointers::<T>(run, pattern);
    let mut walk = Walk::new([rows, vector, &contraction.out], outer.iter().copied(), run.tables, contraction.bounds);
    walk.seek(range.start);
    let d = contraction.loops[pattern.inner].len;
    let out = run.out.cast::<U>();
    let (mut x_offsets, mut offsets, mut targets) = ([0isize; PAIRS], [0isize; PAIRS], [0isize; PAIRS]);
    let mut results = [<T as Scalar>::ZERO; PAIRS];
    let mut left = range.len();
    while left > 0 {
        let mut found = 0;
        while left > 0 && found < PAIRS {
            // SAFETY: `bound`.
            unsafe {
                let to = walk.plain_offset(2);
                match (walk.offset(0)?, walk.offset(1)?) {
                    (Some(row), Some(x)) => {
                        (offsets[found], x_offsets[found], targets[found]) = (row, x, to);
                        found += 1;
                    }
                    _ => out.offset(to).write_unaligned(U::narrow(<T as Scalar>::ZERO)),
                }
            }
            walk.step();
            left -= 1;
        }
        // SAFETY: `bound`: every offset came from the walk.
        unsafe {
            paired_dots(
                run.isa,
                &PairedDots::<T> {
                    x: vector_data,
                    x_offsets: x_offsets.as_ptr(),
                    rows: row_data,
                    offsets: offsets.as_ptr(),
                    count: found,
                    d,
                    out: results.as_mut_ptr(),
                },
            );
            for i in 0..found {
                out.offset(targets[i]).write_unaligned(U::narrow(results[i]));
            }
        }
    }
    Ok(())
}
