//! `sorted`: a matrix is looked up for each vector; vectors of the same matrix are multiplied together.
//!
//! Mixtures of experts, relational graph layers, per-class projections. One by one, each vector would read a whole
//! matrix from memory or cache; sorted by matrix they are the rows of one product each. Floor: the matrices once from
//! memory, and the arithmetic of the products. The sort is stable and each row is summed by itself, so a result does not
//! depend on what else is in its group.

use einfall_plan::{Access, Bounds, Contraction, Cost, Estimate, Machine, Role, Way};
use einfall_tensor::{DType, with_element};

use super::gemm::{Accum, Blocking, Scratch, gemm, scratch_bytes};
use super::matmul::{caches, lanes, offsets};
use super::{Run, with_types};
use crate::isa::Isa;
use crate::kernels::tile::TileElement;
use crate::load::{load_offsets, load_offsets_skip};
use crate::pack::{Matrix, MatrixMut};
use crate::scalar::Scalar;
use crate::threads::Shared;
use crate::walk::{BadTable, Walk};

/// Vectors of one matrix that a task multiplies at most.
const GROUP: usize = 256;
/// Table entries that are read at once.
const BLOCK: usize = 1024;

/// A contraction whose matrices are looked up.
struct Pattern {
    /// Whether the matrices are the left input.
    left: bool,
    /// Loops that choose the matrix: each of their positions is a vector.
    chosen: Vec<usize>,
    /// Batch loops beside these.
    outer: Vec<usize>,
}

fn matched(contraction: &Contraction) -> Result<Pattern, String> {
    let right = contraction.right.as_ref().ok_or("needs two inputs")?;
    if !contraction.out.is_plain() {
        return Err("the output is scattered".into());
    }
    let left = match (contraction.left.is_plain(), right.is_plain()) {
        (false, true) => true,
        (true, false) => false,
        _ => return Err("needs one input that is looked up".into()),
    };
    let matrices = if left { &contraction.left } else { right };
    let ([lookup], []) = (matrices.lookups.as_slice(), matrices.windows.as_slice()) else {
        return Err("needs matrices chosen by one lookup".into());
    };
    let moved = |&at: &usize| lookup.table_strides[at] != 0;
    let (chosen, outer): (Vec<usize>, Vec<usize>) = contraction.loops_of(Role::Batch).partition(moved);
    let others = (0..contraction.loops.len()).filter(|at| contraction.loops[*at].role != Role::Batch);
    if chosen.is_empty() || others.into_iter().any(|at| moved(&at)) {
        return Err("a label of one input alone chooses the matrix".into());
    }
    if chosen.iter().any(|&at| matrices.strides[at] != 0) {
        return Err("matrices are chosen and strided at once".into());
    }
    Ok(Pattern { left, chosen, outer })
}

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    super::check_out_dtype(contraction)?;
    let pattern = matched(contraction)?;
    let product = |loops: &[usize]| loops.iter().map(|&at| contraction.loops[at].len as f64).product::<f64>();
    let (vectors, batches) = (product(&pattern.chosen), product(&pattern.outer));
    let (own, columns) = match pattern.left {
        true => (contraction.len_of(Role::Right), contraction.len_of(Role::Left)),
        false => (contraction.len_of(Role::Left), contraction.len_of(Role::Right)),
    };
    let k = contraction.len_of(Role::Contracted);
    let matrices = if pattern.left { &contraction.left } else { contraction.right.as_ref().expect("matched") };
    let used = vectors.min(matrices.lookups[0].len as f64);
    if columns < 2.0 || vectors.max(matrices.lookups[0].len as f64) > f64::from(u32::MAX) {
        return Err("nothing to multiply together".into());
    }
    if matrices.lookups[0].len as f64 > 8.0 * vectors {
        return Err("most matrices have no vector".into());
    }
    let threads = machine.threads as f64;
    let bytes = contraction.dtype.bytes() as f64;
    let round = |len: f64, to: f64| (len / to).ceil() * to;
    let rows = vectors * own / used;
    let groups = batches * used * (rows / GROUP as f64).ceil();
    let tile_rows = batches * used * round(rows, 4.0);
    let compute = 2.0 * tile_rows * round(columns, lanes(machine, contraction.dtype)) * (k + 6.0)
        / (machine.flops_per_second(contraction.dtype) * 0.8);
    let packed = (groups * columns * k + batches * vectors * own * k) * bytes;
    let packing = packed / (machine.l2_bytes_per_second * 0.25);
    let sort = 4e-9 * vectors + 0.5e-6 * groups / threads;
    let moved = contraction.distinct_bytes();
    let seconds = super::started(machine, compute + packing + sort + super::stream_seconds(moved, machine));
    let isa = machine.isa.parse().unwrap_or(Isa::Portable);
    let scratch = with_element!(contraction.dtype, T => {
        let blocking = Blocking::new::<T>(isa, caches(machine));
        let side = |len: f64| len.min(f64::from(u32::MAX)) as usize;
        scratch_bytes::<T>(isa, &blocking, side(GROUP as f64 * own), side(columns), side(k))
    });
    let lists = 16.0 * GROUP as f64 * own * threads + 16.0 * (k + columns) + 28.0 * vectors + 48.0 * (batches + used);
    let starts = 8.0 * matrices.lookups[0].len as f64;
    let workspace_bytes = ((machine.threads * scratch) as f64 + lists + starts) as usize;
    let workspace_bytes = workspace_bytes.saturating_add(1 << 16);
    Ok(Estimate { way: Way::Sorted, cost: Cost { flops: contraction.flops(), bytes: moved, seconds }, workspace_bytes })
}

/// Runs the contraction.
///
/// # Errors
/// [`BadTable`].
///
/// # Safety
/// `run` keeps its invariant `bound`.
pub unsafe fn run(run: &Run<'_>) -> Result<(), BadTable> {
    let (dtype, out_dtype) = (run.contraction.dtype, run.contraction.out_dtype);
    let aligned = |pointer: *const u8, dtype: DType| pointer.addr().is_multiple_of(super::alignment(dtype));
    if !aligned(run.left, dtype) || !aligned(run.right, dtype) || !aligned(run.out, out_dtype) {
        // SAFETY: by the caller.
        return unsafe { super::nest::run(run) };
    }
    with_types!(run.contraction, T, U => {
        // SAFETY: by the caller; the element types are those of the memory.
        unsafe { typed::<T, U>(run) }
    })
}

/// The vectors in the order of their matrices.
struct Order {
    /// Positions of the chosen loops.
    vectors: Vec<u32>,
    /// Where the vectors of each task begin and end, and their matrix.
    tasks: Vec<(usize, usize, usize)>,
    /// Vectors that choose no matrix: their results are zero.
    missing: Vec<u32>,
}

/// Sorts the vectors by matrix, by counting.
///
/// # Safety
/// As [`Walk::offset`].
unsafe fn sort(run: &Run<'_>, matrices: &Access, chosen: &[(usize, usize)]) -> Result<Order, BadTable> {
    let contraction = run.contraction;
    let lookup = &matrices.lookups[0];
    let count: usize = chosen.iter().map(|(_, len)| len).product();
    let mut matrix_of = vec![u32::MAX; count];
    let mut starts = vec![0usize; lookup.len + 1];
    // Runs of the last chosen loop are read as they lie.
    let (&(last, run_len), before) = chosen.split_last().expect("matched");
    let mut walk = Walk::new([matrices], before.iter().copied(), run.tables, contraction.bounds);
    let stride = lookup.table_strides[last];
    let (mut values, mut positions) = ([0isize; BLOCK], [0u32; BLOCK]);
    for row in (0..count).step_by(run_len.max(1)) {
        let entries = run.tables[lookup.table].run(walk.entry(0, 0), stride);
        for first in (0..run_len).step_by(BLOCK) {
            let len = BLOCK.min(run_len - first);
            // SAFETY: by the caller: the run is a part of the table.
            let found = unsafe {
                let entries = entries.skip(first);
                if contraction.bounds == Bounds::Error {
                    load_offsets(run.isa, entries, len, lookup.len, 1, &mut values).map_err(|_| BadTable)?;
                    positions.iter_mut().zip(0..).for_each(|(position, i)| *position = i);
                    len
                } else {
                    load_offsets_skip(run.isa, entries, len, lookup.len, 1, &mut values, &mut positions)
                }
            };
            for (&value, &position) in values[..found].iter().zip(&positions[..found]) {
                matrix_of[row + first + position as usize] = value as u32;
                starts[value as usize + 1] += 1;
            }
        }
        walk.step();
    }
    let mut tasks = Vec::new();
    for matrix in 0..lookup.len {
        let (from, to) = (starts[matrix], starts[matrix] + starts[matrix + 1]);
        tasks.extend((from..to).step_by(GROUP).map(|first| (first, to.min(first + GROUP), matrix)));
        starts[matrix + 1] = to;
    }
    let mut vectors = vec![0; starts[lookup.len]];
    let mut missing = Vec::new();
    for (vector, &matrix) in (0..).zip(&matrix_of) {
        match starts.get_mut(matrix as usize).filter(|_| matrix != u32::MAX) {
            Some(next) => {
                vectors[*next] = vector;
                *next += 1;
            }
            None => missing.push(vector),
        }
    }
    Ok(Order { vectors, tasks, missing })
}

/// Offsets of an access without lookups for all positions of some loops.
fn plain_offsets(access: &Access, loops: &[(usize, usize)]) -> Vec<isize> {
    loops.iter().fold(vec![0], |offsets, &(at, len)| {
        let step = |i: usize| i as isize * access.strides[at];
        offsets.iter().flat_map(|&offset| (0..len).map(move |i| offset + step(i))).collect()
    })
}

/// # Safety
/// As [`run`], with `T` and `U` the element types of inputs and output.
unsafe fn typed<T, U>(run: &Run<'_>) -> Result<(), BadTable>
where
    T: Scalar + TileElement,
    U: Scalar<Acc = <T as Scalar>::Acc> + TileElement<Acc = <T as TileElement>::Acc>,
{
    let contraction = run.contraction;
    let pattern = matched(contraction).expect("the kernel made an offer");
    let right = contraction.right.as_ref().expect("matched");
    let (matrices, others, own, columns) = match pattern.left {
        true => (&contraction.left, right, Role::Right, Role::Left),
        false => (right, &contraction.left, Role::Left, Role::Right),
    };
    let (matrix_data, other_data): (*const T, *const T) =
        if pattern.left { (run.left.cast(), run.right.cast()) } else { (run.right.cast(), run.left.cast()) };
    let (matrix_data, other_data) =
        (matrix_data.wrapping_offset(matrices.offset), other_data.wrapping_offset(others.offset));
    let out = run.out.cast::<U>().wrapping_offset(contraction.out.offset);
    let with_len = |at: usize| (at, contraction.loops[at].len);
    let of = |role: Role| contraction.loops_of(role).map(with_len).collect::<Vec<_>>();
    let (chosen, outer): (Vec<_>, Vec<_>) = (
        pattern.chosen.iter().map(|&at| with_len(at)).collect(),
        pattern.outer.iter().map(|&at| with_len(at)).collect(),
    );
    // SAFETY: by the caller.
    let order = unsafe { sort(run, matrices, &chosen)? };
    let vectors = [others, &contraction.out].map(|access| plain_offsets(access, &chosen));
    let rows = [others, &contraction.out].map(|access| plain_offsets(access, &of(own)));
    let columns = [matrices, &contraction.out].map(|access| plain_offsets(access, &of(columns)));
    let length = [others, matrices].map(|access| plain_offsets(access, &of(Role::Contracted)));
    let batches = [others, matrices, &contraction.out].map(|access| plain_offsets(access, &outer));
    let blocking = Blocking::new::<T>(run.isa, caches(run.machine));
    let stride = matrices.lookups[0].stride;

    for &out_batch in &batches[2] {
        for &vector in &order.missing {
            for &row in &rows[1] {
                for &column in &columns[1] {
                    let at = out_batch + vectors[1][vector as usize] + row + column;
                    // SAFETY: `bound`: an element of the output.
                    unsafe { out.offset(at).write_unaligned(<U as Scalar>::narrow(<U as Scalar>::ZERO)) };
                }
            }
        }
    }
    let (out, other_data, matrix_data) = (Shared(out), Shared(other_data.cast_mut()), Shared(matrix_data.cast_mut()));
    run.threads.for_pieces_with(
        batches[0].len() * order.tasks.len(),
        1,
        run.serial_seconds,
        || (Scratch::new(), Vec::new(), Vec::new()),
        |(scratch, from, to): &mut (Scratch, Vec<isize>, Vec<isize>), range| {
            for flat in range {
                let (batch, task) = (flat / order.tasks.len(), flat % order.tasks.len());
                let (start, end, matrix) = order.tasks[task];
                from.clear();
                to.clear();
                for &vector in &order.vectors[start..end] {
                    from.extend(rows[0].iter().map(|row| row + vectors[0][vector as usize]));
                    to.extend(rows[1].iter().map(|row| row + vectors[1][vector as usize]));
                }
                let (first, from_rows) = offsets(from);
                let (x_length_first, x_length) = offsets(&length[0]);
                let (length_first, matrix_length) = offsets(&length[1]);
                let (column_first, matrix_columns) = offsets(&columns[0]);
                let (to_first, to_rows) = offsets(to);
                let (to_column_first, to_columns) = offsets(&columns[1]);
                let base = batches[1][batch] + matrix as isize * stride + length_first + column_first;
                let a = Matrix {
                    ptr: other_data.get().wrapping_offset(batches[0][batch] + first + x_length_first).cast_const(),
                    rows: from_rows,
                    cols: x_length,
                };
                let b = Matrix {
                    ptr: matrix_data.get().wrapping_offset(base).cast_const(),
                    rows: matrix_length,
                    cols: matrix_columns,
                };
                let c = MatrixMut {
                    ptr: out.get().wrapping_offset(batches[2][batch] + to_first + to_column_first),
                    rows: to_rows,
                    cols: to_columns,
                };
                let (m, n, k) = (from.len(), columns[0].len(), length[0].len());
                // SAFETY: `bound`: every offset is within the loops and every matrix within its axis; each vector is in
                // one task alone.
                unsafe { gemm::<T, U>(run.isa, &blocking, m, n, k, a, b, c, Accum::Replace, scratch) };
            }
            Ok(())
        },
    )
}
