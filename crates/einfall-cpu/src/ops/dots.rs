//! `dots`: one vector meets many contiguous rows, stored, looked up or under a window; the rows are read where they lie.
//!
//! Scores of attention, nearest-neighbour distances, matrix × vector. Floor: the distinct rows once from memory, and
//! each row once from the cache that holds them.

use einfall_plan::pattern::{RowDots, row_dots};
use einfall_plan::{Contraction, Cost, Estimate, Machine, Way};
use einfall_tensor::{Element, with_element};

use super::source::{Filled, RowOffsets, Source};
use super::{Run, rows_cost};
use crate::kernels::rows::{
    DotList, PairedDots, RowElement, StridedDots, paired_dots, row_dots as dot_rows, row_dots_strided,
};
use crate::scalar::Scalar;
use crate::walk::{BadTable, Walk};

/// Rows whose offsets are kept at once: 16 KiB, half of a small L1.
const BLOCK: usize = 2048;
/// Lists that are handed to the row kernel at once.
const LISTS: usize = 256;
/// Lists of stored rows that are handed to it at once: enough to share a call, few enough that results stay in order.
const STORED_LISTS: usize = 16;

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    let pattern = row_dots(contraction)?;
    if contraction.out_dtype != contraction.dtype && contraction.out_dtype != contraction.dtype.accumulator() {
        return Err(format!("does not write {}", contraction.out_dtype));
    }
    let rows = pattern.rows.of(contraction).expect("matched");
    let way = match pattern.row_loop.map(|at| Source::of(rows, at)) {
        Some(Source::Lookup(_) | Source::Mixed) => Way::Gather,
        Some(Source::Window(_)) => Way::Gather,
        _ => Way::Stream,
    };
    let d = contraction.loops[pattern.inner].len as f64;
    let count = contraction.flops() / 2.0 / d.max(1.0);
    let lists = count / pattern.row_loop.map_or(1.0, |at| contraction.loops[at].len as f64);
    let seconds = rows_cost(contraction, machine, rows, pattern.inner, count, lists);
    let bytes = super::distinct_bytes(contraction);
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
    let direct = run.contraction.out_dtype == run.contraction.dtype.accumulator();
    with_element!(run.contraction.dtype, T => {
        // SAFETY: by the caller; the element types are those of the memory.
        unsafe {
            if direct {
                typed::<T, <T as Scalar>::Acc>(run, pattern)
            } else {
                typed::<T, T>(run, pattern)
            }
        }
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
    let source = RowOffsets::new(rows, row_loop, run.tables, contraction.bounds, run.isa);
    let (len, d) = (contraction.loops[row_loop].len, contraction.loops[pattern.inner].len);
    let out_stride = contraction.out.strides[row_loop];
    let out = run.out.cast::<U>();
    let direct = out_stride == 1 && U::DTYPE == <T as Scalar>::Acc::DTYPE && out.is_aligned();

    let mut offsets = [0isize; BLOCK];
    let mut positions = [0u32; BLOCK];
    let mut results = [<T as Scalar>::ZERO; BLOCK];
    let mut lists: Vec<DotList<T>> = Vec::with_capacity(LISTS);
    let mut used = 0;
    // Where each list's results go, when they do not go straight to the output.
    for flat in range {
        let start = flat % chunks * BLOCK;
        let count = BLOCK.min(len - start);
        if used + count > BLOCK || lists.len() == LISTS {
            // SAFETY: every list was made from offsets within the rows' view.
            unsafe { dot_rows(run.isa, row_data, d, &lists) };
            lists.clear();
            used = 0;
        }
        // SAFETY: `bound`: the walk and the chunk are within the loops.
        unsafe {
            let to = out.offset(walk.plain_offset(2) + start as isize * out_stride);
            let filled = match (source.base(&walk, 0)?, walk.offset(1)?) {
                (Some(base), Some(x)) => {
                    let list = &mut offsets[used..used + count];
                    let filled = source.fill(&walk, 0, start, list, &mut positions[..count])?;
                    let found = if let Filled::Some(found) = filled { found } else { count };
                    list[..found].iter_mut().for_each(|offset| *offset += base);
                    Some((filled, found, vector_data.offset(x)))
                }
                _ => None,
            };
            match filled {
                Some((Filled::All, _, x)) if direct => {
                    lists.push(DotList { x, offsets: offsets[used..].as_ptr(), count, out: to.cast() });
                    used += count;
                }
                Some((filled, found, x)) => {
                    let list =
                        DotList { x, offsets: offsets[used..].as_ptr(), count: found, out: results.as_mut_ptr() };
                    dot_rows(run.isa, row_data, d, &[list]);
                    if let Filled::Some(_) = filled {
                        spread(&mut results[..count], &positions[..found]);
                    }
                    store(&results[..count], to, out_stride);
                }
                None => {
                    results[..count].fill(<T as Scalar>::ZERO);
                    store(&results[..count], to, out_stride);
                }
            }
        }
        if (flat + 1) % chunks == 0 {
            walk.step();
        }
    }
    // SAFETY: as above.
    unsafe { dot_rows(run.isa, row_data, d, &lists) };
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
unsafe fn store<U: Scalar>(results: &[U::Acc], to: *mut U, stride: isize) {
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
