//! Products whose sides have several loops: in which order rows, columns and contracted positions are taken.
//!
//! *In*: a contraction without lookups or windows. *Out*: the output. *Callers*: `matmul`.
//!
//! Any order gives the same sums, so the one is taken that uses cache lines whole. Columns are the side that has the
//! output's contiguous loop, which is innermost: a *run*, stored as vectors. Where the input is contiguous along another
//! loop of the columns, that one comes next, so that runs begin side by side: packing transposes blocks of it in registers,
//! and reads whole lines of the input as well. Where an input is contiguous along a contracted loop, that is innermost;
//! where the two inputs disagree about which, positions are taken in squares of both.

use std::ops::Range;

use einfall_plan::{Contraction, Role};

use super::offsets;
use crate::isa::Isa;
use crate::kernels::tile::{Accumulator, TileElement};
use crate::ops::Run;
use crate::ops::gemm::{Accum, Blocking, Scratch, gemm_runs, runs_scratch_bytes};
use crate::pack::{Matrix, MatrixMut, Offsets};
use crate::threads::Shared;
use crate::walk::{BadTable, Walk};

/// Side of a square of contracted positions, and runs that are packed together: a line of f32.
const SQUARE: usize = 16;

/// Contracted length up to which runs far below a vector are still better than single elements.
const SHORT: usize = 48;

/// Fewest rows of a task, where several tasks pack the same columns.
const LEAST_ROWS: usize = 32;

/// A loop of one side.
#[derive(Clone, Copy, Debug)]
struct Axis {
    len: usize,
    input: isize,
    output: isize,
}

/// The order of a product's loops, and how its columns are cut.
pub(super) struct Layout {
    /// The columns are those of the left input.
    turned: bool,
    rows: Vec<Axis>,
    /// Loops over the runs, outermost first.
    outer: Vec<Axis>,
    run: Axis,
    /// Runs that begin side by side, or one.
    unit: usize,
    /// Columns of a block.
    nc: usize,
    /// Where units are too large for a block: how many runs of them, and columns of each run, are taken at a time.
    part: Option<(usize, usize)>,
    /// Contracted positions that are summed apart from the others, where there are few rows and columns for so many.
    chunk: Option<usize>,
}

impl Layout {
    /// The order for a contraction that needs one: it has several loops on a side, and a contiguous output.
    pub(super) fn new<T: TileElement>(contraction: &Contraction, isa: Isa, blocking: &Blocking) -> Option<Layout> {
        let right = contraction.right.as_ref()?;
        let count = |role| contraction.loops_of(role).count();
        if !contraction.accesses().all(einfall_plan::Access::is_plain) || contraction.is_empty() {
            return None;
        }
        let run = (0..contraction.loops.len()).find(|&at| contraction.out.strides[at] == 1)?;
        let (turned, columns, rows) = match contraction.loops[run].role {
            Role::Left => (true, Role::Left, Role::Right),
            Role::Right => (false, Role::Right, Role::Left),
            _ => return None,
        };
        let (of_rows, of_columns) = if turned { (right, &contraction.left) } else { (&contraction.left, right) };
        let axis = |at: usize, access: &einfall_plan::Access| Axis {
            len: contraction.loops[at].len,
            input: access.strides[at],
            output: contraction.out.strides[at],
        };
        let mut rows: Vec<Axis> = contraction.loops_of(rows).map(|at| axis(at, of_rows)).collect();
        let mut outer: Vec<Axis> =
            contraction.loops_of(columns).filter(|&at| at != run).map(|at| axis(at, of_columns)).collect();
        let run = axis(run, of_columns);
        // Rows that are contiguous in their input come last, unless it is in cache and the output gains by its own order.
        let all: usize = rows.iter().map(|axis| axis.len).product();
        let k: usize = contraction.loops_of(Role::Contracted).map(|at| contraction.loops[at].len).product();
        if all * k > blocking.nc * blocking.kc {
            last(&mut rows, |axis| axis.input == 1);
        }
        let beside = run.input != 1 && last(&mut outer, |axis| axis.input == 1);
        let unit = if beside { outer.last().map_or(1, |axis| axis.len) } else { 1 };
        let kernel = T::kernel_for(isa);
        if rows.is_empty() || (run.len < kernel.lanes / 2 && k > SHORT) {
            return None;
        }
        let room = blocking.nc * blocking.kc;
        let kb = k.clamp(1, blocking.kc);
        let (nc, part) = if unit * run.len * kb <= room {
            (room / (unit * run.len * kb) * unit * run.len, None)
        } else {
            let together = unit.min(SQUARE);
            let most = (room / (together * kb) / kernel.lanes * kernel.lanes).max(2 * kernel.lanes);
            let parts = run.len.div_ceil(most);
            let columns = run.len.div_ceil(parts).next_multiple_of(kernel.lanes).min(run.len);
            let together = (room / (together * columns * kb)).max(1) * together;
            (together.min(unit) * columns, Some((together.min(unit), columns)))
        };
        let columns = run.len * outer.iter().map(|axis| axis.len).product::<usize>();
        let chunk = chunk_len::<T>(all * columns, k, blocking, isa);
        let chunk = chunk.filter(|_| part.is_none() && count(Role::Batch) == 0);
        let single = [Role::Left, Role::Right, Role::Contracted].into_iter().all(|role| count(role) <= 1);
        (chunk.is_some() || !single).then_some(Layout { turned, rows, outer, run, unit, nc, part, chunk })
    }

    fn rows(&self) -> usize {
        self.rows.iter().map(|axis| axis.len).product()
    }

    fn runs(&self) -> usize {
        self.outer.iter().map(|axis| axis.len).product()
    }

    /// Pieces of the columns that tasks are made of.
    fn pieces(&self) -> usize {
        let units = self.runs() / self.unit;
        self.part.map_or(units, |(runs, columns)| units * self.unit.div_ceil(runs) * self.run.len.div_ceil(columns))
    }

    /// The runs and columns of each that a piece has.
    fn piece(&self, number: usize) -> (Range<usize>, Range<usize>) {
        let Some((runs, columns)) = self.part else {
            return (number * self.unit..(number + 1) * self.unit, 0..self.run.len);
        };
        let across = self.run.len.div_ceil(columns);
        let chunks = self.unit.div_ceil(runs);
        let (part, chunk, unit) = (number % across, number / across % chunks, number / across / chunks);
        let first = unit * self.unit + chunk * runs;
        let last = (first + runs).min((unit + 1) * self.unit);
        (first..last, part * columns..((part + 1) * columns).min(self.run.len))
    }

    /// The most bytes that one thread takes from its scratch.
    pub(super) fn scratch_bytes<T: TileElement>(&self, isa: Isa, blocking: &Blocking, k: usize) -> usize {
        let blocking = Blocking { nc: self.nc, ..*blocking };
        let (n, run) = match self.part {
            Some((runs, columns)) => (runs * columns, columns),
            None => (self.runs() * self.run.len, self.run.len),
        };
        runs_scratch_bytes::<T>(isa, &blocking, self.rows(), n, run, k)
    }

    /// The bytes of the sums that are joined at the end.
    pub(super) fn sum_bytes<T: TileElement>(&self, k: usize) -> usize {
        let elements = self.rows() * self.runs() * self.run.len;
        self.chunk.map_or(0, |chunk| k.div_ceil(chunk) * elements * size_of::<T::Acc>())
    }

    /// How rows and columns are divided for `tasks` tasks: so that as little as can be is packed again.
    fn divide(&self, tasks: usize) -> (usize, usize) {
        let (rows, pieces) = (self.rows(), self.pieces());
        let columns = self.runs() * self.run.len;
        let most_rows = rows.div_ceil(LEAST_ROWS);
        let cost = |&(down, across): &(usize, usize)| {
            let again = if self.part.is_some() { pieces } else { across };
            let idle = tasks.saturating_sub(down * across) * (rows + columns);
            rows * again + columns * down + idle
        };
        let ways = (1..=tasks.min(pieces)).map(|across| (tasks.div_ceil(across).min(most_rows), across));
        ways.min_by_key(cost).unwrap_or((1, 1))
    }
}

/// So many blocks along k are worth dividing, into at most [`MOST_CHUNKS`], where the sums are at most [`SUM_BYTES`].
const DEEP: usize = 8;
const MOST_CHUNKS: usize = 16;
const SUM_BYTES: usize = 256 << 10;

/// The contracted positions of a task where it is these that are divided. It depends on the problem alone, not on the
/// number of threads, since it decides how sums are rounded.
fn chunk_len<T: TileElement>(elements: usize, k: usize, blocking: &Blocking, isa: Isa) -> Option<usize> {
    let block = blocking.kc * T::in_place_of_one(isa);
    let deep = k >= DEEP * block && elements * size_of::<T::Acc>() <= SUM_BYTES;
    deep.then(|| k.div_ceil((k / block / 2).clamp(2, MOST_CHUNKS)).next_multiple_of(block))
}

/// Moves the first axis that is wanted to the end; whether there is one.
fn last(axes: &mut Vec<Axis>, wanted: impl Fn(&Axis) -> bool) -> bool {
    let found = axes.iter().position(wanted);
    if let Some(at) = found {
        let axis = axes.remove(at);
        axes.push(axis);
    }
    found.is_some()
}

/// Offsets in input and output.
#[derive(Default)]
struct List {
    input: Vec<isize>,
    output: Vec<isize>,
    range: Range<usize>,
}

impl List {
    /// The positions of a range, where all axes move, the last fastest.
    fn fill(&mut self, axes: &[Axis], range: Range<usize>) {
        if self.range == range && !range.is_empty() {
            return;
        }
        self.range = range.clone();
        for list in [&mut self.input, &mut self.output] {
            list.clear();
            list.reserve_exact(range.len());
        }
        let Some((inner, outer)) = axes.split_last() else {
            self.input.resize(range.len(), 0);
            self.output.resize(range.len(), 0);
            return;
        };
        let mut at = range.start;
        while at < range.end {
            let (mut input, mut output, mut rest) = (0, 0, at / inner.len);
            for axis in outer.iter().rev() {
                let position = (rest % axis.len) as isize;
                rest /= axis.len;
                input += position * axis.input;
                output += position * axis.output;
            }
            let first = at % inner.len;
            let count = (inner.len - first).min(range.end - at);
            self.input.extend((first..first + count).map(|i| input + i as isize * inner.input));
            self.output.extend((first..first + count).map(|i| output + i as isize * inner.output));
            at += count;
        }
    }
}

/// The contracted positions in the inputs of rows and of columns.
fn length_lists(contraction: &Contraction, turned: bool) -> (Vec<isize>, Vec<isize>) {
    let right = contraction.right.as_ref().expect("two inputs");
    let (of_rows, of_columns) = if turned { (right, &contraction.left) } else { (&contraction.left, right) };
    let mut axes: Vec<Axis> = contraction
        .loops_of(Role::Contracted)
        .map(|at| Axis { len: contraction.loops[at].len, input: of_rows.strides[at], output: of_columns.strides[at] })
        .collect();
    let rows_last = last(&mut axes, |axis| axis.input == 1);
    let agreed = axes.last().is_some_and(|axis| axis.output == 1);
    let columns_last = last(&mut axes, |axis| axis.output == 1);
    let mut list = List::default();
    let squares = rows_last && columns_last && !agreed && axes.len() >= 2;
    let inner = axes.split_off(if squares { axes.len() - 2 } else { axes.len() });
    list.fill(&axes, 0..axes.iter().map(|axis| axis.len).product());
    let [slow, fast] = inner[..] else { return (list.input, list.output) };
    let room = list.input.len() * slow.len * fast.len;
    let (mut rows, mut columns) = (Vec::with_capacity(room), Vec::with_capacity(room));
    for (row, column) in list.input.iter().zip(&list.output) {
        for first in (0..slow.len).step_by(SQUARE) {
            for second in (0..fast.len).step_by(SQUARE) {
                for i in first..(first + SQUARE).min(slow.len) {
                    for j in second..(second + SQUARE).min(fast.len) {
                        let (i, j) = (i as isize, j as isize);
                        rows.push(row + i * slow.input + j * fast.input);
                        columns.push(column + i * slow.output + j * fast.output);
                    }
                }
            }
        }
    }
    (rows, columns)
}

/// Runs the contraction in this order.
///
/// # Safety
/// As `matmul::typed`; the layout is that of the contraction.
pub(super) unsafe fn run<T, U>(run: &Run<'_>, layout: &Layout, blocking: &Blocking) -> Result<(), BadTable>
where
    T: TileElement,
    U: TileElement<Acc = T::Acc>,
{
    let contraction = run.contraction;
    let batch: Vec<(usize, usize)> =
        contraction.loops_of(Role::Batch).map(|at| (at, contraction.loops[at].len)).collect();
    let batches: usize = batch.iter().map(|(_, len)| len).product();
    let threads = run.threads.count();
    let wanted = if threads == 1 || batches >= 4 * threads { 1 } else { (4 * threads).div_ceil(batches.max(1)) };
    let (down, across) = layout.divide(wanted);
    let tasks = down * across;
    let (all_rows_length, all_columns_length) = length_lists(contraction, layout.turned);
    let k = all_rows_length.len();
    let (rows_first, rows_length) = offsets(&all_rows_length);
    let (columns_first, columns_length) = offsets(&all_columns_length);
    let blocking = Blocking { nc: layout.nc, ..*blocking };
    let share = |of: usize, at: usize, parts: usize| of * at / parts..of * (at + 1) / parts;
    let total = batches * tasks;
    let piece = if tasks > 1 { 1 } else { run.threads.piece(total, 8) };
    let right = contraction.right.as_ref().expect("two inputs");
    if let Some(chunk) = layout.chunk {
        // SAFETY: by the caller.
        return unsafe { deep::<T, U>(run, layout, &blocking, [&all_rows_length, &all_columns_length], chunk) };
    }
    run.threads.for_pieces_with(
        total,
        piece,
        run.serial_seconds,
        || (Scratch::new(), List::default(), List::default()),
        |(scratch, rows, starts), range| {
            let accesses = [&contraction.left, right, &contraction.out];
            let mut walk = Walk::new(accesses, batch.iter().copied(), run.tables, contraction.bounds);
            for flat in range {
                walk.seek(flat / tasks);
                let task = flat % tasks;
                rows.fill(&layout.rows, share(layout.rows(), task / across, down));
                let pieces = share(layout.pieces(), task % across, across);
                let (left, right) = (
                    run.left.cast::<T>().wrapping_offset(walk.plain_offset(0)),
                    run.right.cast::<T>().wrapping_offset(walk.plain_offset(1)),
                );
                let (rows_data, columns_data) = if layout.turned { (right, left) } else { (left, right) };
                let out = run.out.cast::<U>().wrapping_offset(walk.plain_offset(2));
                let (row_first, row_offsets) = offsets(&rows.input);
                let (out_first, out_rows) = offsets(&rows.output);
                let a = Matrix {
                    ptr: rows_data.wrapping_offset(rows_first + row_first),
                    rows: row_offsets,
                    cols: rows_length,
                };
                let mut multiply = |runs: Range<usize>, columns: Range<usize>| {
                    starts.fill(&layout.outer, runs);
                    let (len, first) = (columns.len(), columns.start as isize);
                    let b = Matrix {
                        ptr: columns_data.wrapping_offset(columns_first + first * layout.run.input),
                        rows: columns_length,
                        cols: Offsets::Runs { starts: &starts.input, len, stride: layout.run.input },
                    };
                    let c = MatrixMut {
                        ptr: out.wrapping_offset(out_first + first * layout.run.output),
                        rows: out_rows,
                        cols: Offsets::Runs { starts: &starts.output, len, stride: 1 },
                    };
                    let (m, n) = (rows.input.len(), starts.input.len() * len);
                    // SAFETY: `bound`: all offsets are those of the loops, and tasks have rows or columns of their own.
                    unsafe { gemm_runs(run.isa, &blocking, m, n, k, a, b, c, Accum::Replace, scratch) }
                };
                if layout.part.is_none() {
                    multiply(pieces.start * layout.unit..pieces.end * layout.unit, 0..layout.run.len);
                } else {
                    for piece in pieces {
                        let (runs, columns) = layout.piece(piece);
                        multiply(runs, columns);
                    }
                }
            }
            Ok(())
        },
    )
}

/// Few sums of very many terms: the terms are divided among tasks, and their sums joined in order.
///
/// # Safety
/// As for [`run`]; there is no batch, and `lengths` are the contracted positions in the inputs of rows and of columns.
unsafe fn deep<T, U>(
    run: &Run<'_>,
    layout: &Layout,
    blocking: &Blocking,
    lengths: [&[isize]; 2],
    chunk: usize,
) -> Result<(), BadTable>
where
    T: TileElement,
    U: TileElement<Acc = T::Acc>,
{
    let contraction = run.contraction;
    let (left, right) = (contraction.left.offset, contraction.right.as_ref().expect("two inputs").offset);
    let (left, right) = (run.left.cast::<T>().wrapping_offset(left), run.right.cast::<T>().wrapping_offset(right));
    let (rows_data, columns_data) = if layout.turned {
        (Shared(right.cast_mut()), Shared(left.cast_mut()))
    } else {
        (Shared(left.cast_mut()), Shared(right.cast_mut()))
    };
    let out = Shared(run.out.cast::<U>().wrapping_offset(contraction.out.offset));
    let (mut rows, mut starts) = (List::default(), List::default());
    rows.fill(&layout.rows, 0..layout.rows());
    starts.fill(&layout.outer, 0..layout.runs());
    let (m, len) = (rows.input.len(), layout.run.len);
    let n = starts.input.len() * len;
    let beside: Vec<isize> = (0..starts.input.len()).map(|run| (run * len) as isize).collect();
    let k = lengths[0].len();
    let chunks = k.div_ceil(chunk);
    let mut memory: Vec<T::Acc> = Vec::with_capacity(chunks * m * n);
    let sums = Shared(memory.as_mut_ptr());
    let (row_first, row_offsets) = offsets(&rows.input);
    run.threads.for_pieces_with(chunks, 1, run.serial_seconds, Scratch::new, |scratch, range| {
        for at in range {
            let part = at * chunk..((at + 1) * chunk).min(k);
            let (first, length) = offsets(&lengths[0][part.clone()]);
            let a = Matrix {
                ptr: rows_data.get().cast_const().wrapping_offset(row_first + first),
                rows: row_offsets,
                cols: length,
            };
            let (first, length) = offsets(&lengths[1][part.clone()]);
            let b = Matrix {
                ptr: columns_data.get().cast_const().wrapping_offset(first),
                rows: length,
                cols: Offsets::Runs { starts: &starts.input, len, stride: layout.run.input },
            };
            let c = MatrixMut {
                ptr: sums.get().wrapping_add(at * m * n),
                rows: Offsets::Strided(n as isize),
                cols: Offsets::Runs { starts: &beside, len, stride: 1 },
            };
            // SAFETY: `bound`: all offsets are those of the loops, and each task has sums of its own.
            unsafe { gemm_runs::<T, T::Acc>(run.isa, blocking, m, n, part.len(), a, b, c, Accum::Replace, scratch) }
        }
        Ok(())
    })?;
    run.threads.for_pieces(m, m.div_ceil(4 * run.threads.count()), run.serial_seconds / 64.0, |range| {
        for row in range {
            for (run, start) in starts.output.iter().enumerate() {
                let from = sums.get().wrapping_add(row * n + run * len);
                let to = out.get().wrapping_offset(rows.output[row] + start);
                for x in 0..len {
                    // SAFETY: the sums were written above; rows of the output are one piece's own.
                    unsafe {
                        let first = *from.add(x);
                        let sum = (1..chunks).fold(first, |sum, at| sum.plus(*from.add(at * m * n + x)));
                        *to.add(x) = U::narrow(sum);
                    }
                }
            }
        }
        Ok(())
    })
}
