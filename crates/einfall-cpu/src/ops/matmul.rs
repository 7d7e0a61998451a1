//! `gemm`: matrix products over batch loops, operands packed from wherever they lie.
//!
//! Left loops are the rows, right loops the columns, contracted loops the length; several loops on one side become a
//! list of offsets, so nothing is transposed or copied beforehand, and looked-up rows are packed like any others. The
//! idea is TBLIS's: a tensor contraction differs from a matrix product in packing only.

mod runs;

use einfall_plan::{Access, Bounds, Contraction, Cost, Estimate, Machine, Role, Way};
use einfall_tensor::{DType, with_element};

use super::gemm::{Accum, Blocking, Caches, Scratch, gemm, scratch_bytes};
use super::{Run, with_types};
use crate::isa::Isa;
use crate::kernels::tile::TileElement;
use crate::pack::{Matrix, MatrixMut, Offsets};
use crate::scalar::Scalar;
use crate::walk::{BadTable, Walk};
use runs::Layout;

/// Fewest rows and columns of a product that is worth packing.
const LEAST_SIDE: f64 = 2.0;

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    let right = contraction.right.as_ref().ok_or("needs two inputs")?;
    if !contraction.out.is_plain() {
        return Err("the output is scattered".into());
    }
    super::check_out_dtype(contraction)?;
    if !separable(contraction, &contraction.left, Role::Left) || !separable(contraction, right, Role::Right) {
        return Err("a lookup or window joins kept and summed labels".into());
    }
    let size = |role| contraction.len_of(role);
    let (m, n, k, batch) = (size(Role::Left), size(Role::Right), size(Role::Contracted), size(Role::Batch));
    if m < LEAST_SIDE || n < LEAST_SIDE {
        return Err("a vector on one side: nothing to pack for".into());
    }
    let threads = machine.threads as f64;
    let bytes = contraction.dtype.bytes() as f64;
    // Edges of the register tile are computed whole; short sums do not amortise the stores of their tile.
    let round = |len: f64, to: f64| (len / to).ceil() * to;
    let tile_flops = 2.0 * batch * round(m, 4.0) * round(n, lanes(machine, contraction.dtype)) * (k + 6.0);
    let compute = tile_flops / (rate(machine, contraction.dtype) * 0.85);
    let packed = batch * (m + n) * k * bytes;
    let packing = packed / (machine.l2_bytes_per_second * 0.25);
    let calls = batch * CALL_SECONDS / threads;
    let out_bytes = contraction.distinct_elements(&contraction.out) * contraction.out_dtype.bytes() as f64;
    let read = super::stream_seconds(contraction.distinct_bytes() - out_bytes, machine);
    // Measured: packing waits for memory, and so do the tiles of a large result. Nothing of it hides behind arithmetic.
    let work = compute + packing + calls + read + super::write_seconds(out_bytes, machine);
    let seconds = super::started(machine, work) + super::PREPARE_SECONDS;
    let cost = Cost { flops: contraction.flops(), bytes: contraction.distinct_bytes(), seconds };
    Ok(Estimate { way: Way::Gemm, cost, workspace_bytes: workspace(contraction, machine) })
}

/// Measured: what a product costs beside its arithmetic, where there are many small ones.
const CALL_SECONDS: f64 = 60e-9;

/// Arithmetic of the micro-kernels of a type: as many real operations a second as are counted for one multiply-add.
fn rate(machine: &Machine, dtype: DType) -> f64 {
    let isa: Isa = machine.isa.parse().unwrap_or(Isa::Portable);
    let rate = machine.flops_per_second(dtype);
    match dtype {
        // Four real multiply-adds a complex one.
        _ if dtype.is_complex() => rate / 4.0,
        DType::BF16 if <half::bf16 as TileElement>::pairs(isa) => 2.0 * rate,
        DType::I64 | DType::U64 => rate,
        // In 32-bit lanes; measured on Zen 5 with AVX-512.
        _ if dtype.is_integer() => machine.f32_flops_per_second / 1.5,
        _ => rate,
    }
}

pub(super) fn lanes(machine: &Machine, dtype: DType) -> f64 {
    let bytes = match machine.isa.as_str() {
        "avx512" => 64,
        "avx2" => 32,
        _ => 16,
    };
    (bytes / dtype.accumulator().bytes()).max(1) as f64
}

/// Packing buffers of all threads, and the lists of offsets.
fn workspace(contraction: &Contraction, machine: &Machine) -> usize {
    let size = |role| contraction.len_of(role);
    let (m, n, k) = (size(Role::Left), size(Role::Right), size(Role::Contracted));
    // Blocks do not grow with sides that are longer than any block.
    let side = |len: f64| len.min(f64::from(u32::MAX)) as usize;
    let (rows, columns, length) = (side(m), side(n), side(k));
    let isa = machine.isa.parse().unwrap_or(Isa::Portable);
    let mut sums = 0;
    let scratch = with_element!(contraction.dtype, T => {
        let blocking = Blocking::new::<T>(isa, caches(machine));
        let ordered = layout::<T>(contraction, isa, &blocking);
        ordered.map_or_else(
            || scratch_bytes::<T>(isa, &blocking, rows, columns, length),
            |layout| {
                sums = layout.sum_bytes::<T>(length);
                layout.scratch_bytes::<T>(isa, &blocking, length)
            },
        )
    });
    let lists = 8.0 * 2.0 * (m + n + k) + 3.0 * 4096.0;
    ((machine.threads as f64 * (scratch as f64 + lists)) as usize).saturating_add(sums + (1 << 16))
}

/// The order of loops where there is a choice.
fn layout<T: TileElement>(contraction: &Contraction, isa: Isa, blocking: &Blocking) -> Option<Layout> {
    // Sums of several blocks are kept in the accumulator type, which a narrower output cannot hold.
    let whole = T::IS_ACC || contraction.terms() <= (blocking.kc * T::in_place_of_one(isa)) as f64;
    if whole { Layout::new::<T>(contraction, isa, blocking) } else { None }
}

/// Caches of one core; the last level is shared.
pub(super) fn caches(machine: &Machine) -> Caches {
    Caches {
        l1_bytes: machine.l1_bytes,
        l2_bytes: machine.l2_bytes,
        l3_bytes: machine.l3_bytes / machine.threads.max(1),
    }
}

/// True when no lookup or window of an input joins kept and contracted loops.
fn separable(contraction: &Contraction, access: &Access, kept: Role) -> bool {
    let joins = |moves: &dyn Fn(usize) -> bool| {
        let any = |role: Role| contraction.loops_of(role).any(moves);
        any(kept) && any(Role::Contracted)
    };
    !access.lookups.iter().any(|lookup| joins(&|at| lookup.table_strides[at] != 0))
        && !access.windows.iter().any(|window| joins(&|at| window.coefficients[at] != 0))
}

/// Runs the contraction.
///
/// # Errors
/// [`BadTable`].
///
/// # Safety
/// `run` keeps its invariant `bound`.
pub unsafe fn run(run: &Run<'_>) -> Result<(), BadTable> {
    // Operands at odd addresses are rare (mapped files, packed records): the nest reads them as they are.
    let aligned = |pointer: *const u8, dtype: DType| pointer.addr().is_multiple_of(super::alignment(dtype));
    let (dtype, out_dtype) = (run.contraction.dtype, run.contraction.out_dtype);
    if !aligned(run.left, dtype) || !aligned(run.right, dtype) || !aligned(run.out, out_dtype) {
        // SAFETY: by the caller.
        return unsafe { super::nest::run(run) };
    }
    with_types!(run.contraction, T, U => {
        // SAFETY: by the caller; the element types are those of the memory.
        unsafe { typed::<T, U>(run) }
    })
}

/// One side of the products: where its rows (or columns) lie in an input and in the output.
struct SideOffsets {
    input: Vec<isize>,
    output: Vec<isize>,
    /// Positions of the output that have no term: their sum is zero.
    missing: Vec<isize>,
}

/// Offsets that do not depend on the batch are made once; others at each turn of it.
struct Lists {
    left: SideOffsets,
    right: SideOffsets,
    left_length: Vec<isize>,
    right_length: Vec<isize>,
}

/// # Safety
/// As [`run`], with `T` and `U` the element types of inputs and output.
unsafe fn typed<T, U>(run: &Run<'_>) -> Result<(), BadTable>
where
    T: Scalar + TileElement,
    U: Scalar<Acc = <T as Scalar>::Acc> + TileElement<Acc = <T as TileElement>::Acc>,
{
    let contraction = run.contraction;
    let right = contraction.right.as_ref().expect("two inputs");
    let batch: Vec<(usize, usize)> =
        contraction.loops_of(Role::Batch).map(|at| (at, contraction.loops[at].len)).collect();
    let batches: usize = batch.iter().map(|(_, len)| len).product();
    let size = |role| contraction.loops_of(role).map(|at| contraction.loops[at].len).product::<usize>();
    let (m, n) = (size(Role::Left), size(Role::Right));
    let blocks = Blocks::new(m, n, batches, run.threads.count());
    let blocking = Blocking::new::<T>(run.isa, caches(run.machine));
    if let Some(layout) = layout::<T>(contraction, run.isa, &blocking) {
        // SAFETY: by the caller.
        return unsafe { runs::run::<T, U>(run, &layout, &blocking) };
    }
    let moving = lists_move(contraction);
    let total = batches * blocks.count();
    let piece = if blocks.count() > 1 { 1 } else { run.threads.piece(total, 8) };
    run.threads.for_pieces_with(
        total,
        piece,
        run.serial_seconds,
        || (Scratch::new(), None::<Lists>),
        |(scratch, lists), range| {
            let accesses = [&contraction.left, right, &contraction.out];
            let mut walk = Walk::new(accesses, batch.iter().copied(), run.tables, contraction.bounds);
            let mut at = range.start / blocks.count();
            walk.seek(at);
            let mut made = None::<(usize, Part<'_>)>;
            let mut moved = None::<(usize, Lists)>;
            if !moving && lists.is_none() {
                // SAFETY: `bound`: the walk stands within the batch loops.
                *lists = Some(unsafe { make_lists(run, &walk)? });
            }
            for flat in range {
                if flat / blocks.count() != at {
                    at = flat / blocks.count();
                    walk.step();
                }
                let number = flat % blocks.count();
                // SAFETY: `bound`: the walk stands within the batch loops; each block of the output is one piece's own.
                unsafe {
                    if moving {
                        if moved.as_ref().is_none_or(|(of, _)| *of != at) {
                            moved = Some((at, make_lists(run, &walk)?));
                        }
                        let (_, lists) = moved.as_ref().expect("made just above");
                        multiply::<T, U>(run, &walk, &Part::new(lists, &blocks, number), &blocking, scratch)?;
                        continue;
                    }
                    let lists = lists.as_ref().expect("made above");
                    let (_, part) = match made.take() {
                        Some((of, part)) if of == number => made.insert((of, part)),
                        _ => made.insert((number, Part::new(lists, &blocks, number))),
                    };
                    multiply::<T, U>(run, &walk, part, &blocking, scratch)?;
                }
            }
            Ok(())
        },
    )
}

/// True when the lists of offsets depend on the batch: something is looked up in a batch loop and another.
fn lists_move(contraction: &Contraction) -> bool {
    let inputs = [Some(&contraction.left), contraction.right.as_ref()].into_iter().flatten();
    inputs.into_iter().any(|access| !access.is_plain())
}

/// How one product is divided among tasks. Each element's sum is the same whichever block it is in.
struct Blocks {
    rows: usize,
    row_block: usize,
    columns: usize,
    column_block: usize,
}

impl Blocks {
    fn new(rows: usize, columns: usize, batches: usize, threads: usize) -> Blocks {
        let (mut row_block, mut column_block) = (rows.max(1), columns.max(1));
        if threads > 1 && batches < 4 * threads {
            // Every thread has a few blocks, cut so that little is packed again, and none below what packing amortises.
            let wanted = (4 * threads).div_ceil(batches.max(1));
            let most = |len: usize| (len / 64).max(1);
            let cut = |len: usize, parts: usize| len.div_ceil(parts).next_multiple_of(32).min(len).max(1);
            let ways = (1..=wanted.min(most(columns)))
                .map(|across| (cut(rows, wanted.div_ceil(across).min(most(rows))), cut(columns, across)));
            let count = |&(row_block, column_block): &(usize, usize)| {
                let (down, across) = (rows.div_ceil(row_block), columns.div_ceil(column_block));
                (wanted.saturating_sub(down * across), rows * across / 2 + columns * down)
            };
            (row_block, column_block) = ways.min_by_key(count).unwrap_or((row_block, column_block));
        }
        Blocks { rows, row_block, columns, column_block }
    }

    fn count(&self) -> usize {
        self.rows.div_ceil(self.row_block) * self.columns.div_ceil(self.column_block)
    }

    fn ranges(&self, number: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        let across = self.columns.div_ceil(self.column_block);
        let range = |at: usize, block: usize, len: usize| at * block..((at + 1) * block).min(len);
        (range(number / across, self.row_block, self.rows), range(number % across, self.column_block, self.columns))
    }
}

/// The offsets of all rows, columns and contracted positions, relative to where the batch stands.
///
/// # Safety
/// As [`Walk::offset`].
unsafe fn make_lists(run: &Run<'_>, batch: &Walk<'_, 3>) -> Result<Lists, BadTable> {
    let contraction = run.contraction;
    let loops = |role: Role| contraction.loops_of(role).map(|at| (at, contraction.loops[at].len)).collect::<Vec<_>>();
    let accesses = [&contraction.left, contraction.right.as_ref().expect("two inputs"), &contraction.out];
    // SAFETY: by the caller.
    unsafe {
        let (left_length, right_length) = length_lists(run, batch, accesses, &loops(Role::Contracted))?;
        Ok(Lists {
            left: side_list(run, batch, accesses, 0, &loops(Role::Left))?,
            right: side_list(run, batch, accesses, 1, &loops(Role::Right))?,
            left_length,
            right_length,
        })
    }
}

/// # Safety
/// As [`Walk::offset`].
unsafe fn side_list(
    run: &Run<'_>,
    batch: &Walk<'_, 3>,
    accesses: [&Access; 3],
    which: usize,
    loops: &[(usize, usize)],
) -> Result<SideOffsets, BadTable> {
    let mut walk = Walk::new(accesses, loops.iter().copied(), run.tables, run.contraction.bounds);
    walk.follow(batch);
    let room = || Vec::with_capacity(walk.count());
    let mut side = SideOffsets { input: room(), output: room(), missing: Vec::new() };
    let (start, out_start) = (batch.plain_offset(which), batch.plain_offset(2));
    let moved = |at: usize| accesses[which].is_indirect_in(at);
    let sided: Vec<usize> = loops.iter().map(|(at, _)| *at).filter(|&at| moved(at)).collect();
    for _ in 0..walk.count() {
        let output = walk.plain_offset(2) - out_start;
        // SAFETY: by the caller.
        match unsafe { partial_offset(&walk, accesses[which], which, &sided, run)? } {
            Some(offset) => {
                side.input.push(offset - start);
                side.output.push(output);
            }
            None => side.missing.push(output),
        }
        walk.step();
    }
    Ok(side)
}

/// Offsets of the contracted positions that both inputs have.
///
/// # Safety
/// As [`Walk::offset`].
unsafe fn length_lists(
    run: &Run<'_>,
    batch: &Walk<'_, 3>,
    accesses: [&Access; 3],
    loops: &[(usize, usize)],
) -> Result<(Vec<isize>, Vec<isize>), BadTable> {
    let mut walk = Walk::new(accesses, loops.iter().copied(), run.tables, run.contraction.bounds);
    walk.follow(batch);
    let sided = |which: usize| -> Vec<usize> {
        loops.iter().map(|(at, _)| *at).filter(|&at| accesses[which].is_indirect_in(at)).collect()
    };
    let moved = [sided(0), sided(1)];
    let room = || Vec::with_capacity(walk.count());
    let (mut left, mut right) = (room(), room());
    for _ in 0..walk.count() {
        // SAFETY: by the caller.
        let (l, r) = unsafe {
            (
                partial_offset(&walk, accesses[0], 0, &moved[0], run)?,
                partial_offset(&walk, accesses[1], 1, &moved[1], run)?,
            )
        };
        if let (Some(l), Some(r)) = (l, r) {
            left.push(l - batch.plain_offset(0));
            right.push(r - batch.plain_offset(1));
        }
        walk.step();
    }
    Ok((left, right))
}

/// The plain offset plus those lookups and windows that the given loops move.
///
/// # Safety
/// As [`Walk::offset`].
unsafe fn partial_offset(
    walk: &Walk<'_, 3>,
    access: &Access,
    which: usize,
    moved_by: &[usize],
    run: &Run<'_>,
) -> Result<Option<isize>, BadTable> {
    let mut offset = walk.plain_offset(which);
    for (number, lookup) in access.lookups.iter().enumerate() {
        if moved_by.iter().any(|&at| lookup.table_strides[at] != 0) {
            // SAFETY: by the caller.
            match unsafe { run.tables[lookup.table].value(walk.entry(which, number), lookup.len) } {
                Some(value) => offset += value as isize * lookup.stride,
                None if run.contraction.bounds == Bounds::Error => return Err(BadTable),
                None => return Ok(None),
            }
        }
    }
    for (number, window) in access.windows.iter().enumerate() {
        if moved_by.iter().any(|&at| window.coefficients[at] != 0) {
            let position = walk.window(which, number);
            if position as u64 >= window.len as u64 {
                return Ok(None);
            }
            offset += position as isize * window.stride;
        }
    }
    Ok(Some(offset))
}

/// Base offset of an input for this batch: lookups and windows that neither kept nor contracted loops move.
///
/// # Safety
/// As [`Walk::offset`].
unsafe fn batch_offset(
    run: &Run<'_>,
    walk: &Walk<'_, 3>,
    access: &Access,
    which: usize,
) -> Result<Option<isize>, BadTable> {
    if access.is_plain() {
        return Ok(Some(walk.plain_offset(which)));
    }
    let moving: Vec<usize> =
        (0..run.contraction.loops.len()).filter(|&at| run.contraction.loops[at].role != Role::Batch).collect();
    let mut offset = walk.plain_offset(which);
    for (number, lookup) in access.lookups.iter().enumerate() {
        if moving.iter().all(|&at| lookup.table_strides[at] == 0) {
            // SAFETY: by the caller.
            match unsafe { run.tables[lookup.table].value(walk.entry(which, number), lookup.len) } {
                Some(value) => offset += value as isize * lookup.stride,
                None if run.contraction.bounds == Bounds::Error => return Err(BadTable),
                None => return Ok(None),
            }
        }
    }
    for (number, window) in access.windows.iter().enumerate() {
        if moving.iter().all(|&at| window.coefficients[at] == 0) {
            let position = walk.window(which, number);
            if position as u64 >= window.len as u64 {
                return Ok(None);
            }
            offset += position as isize * window.stride;
        }
    }
    Ok(Some(offset))
}

/// A list as a stride where it is one.
pub(super) fn offsets(list: &[isize]) -> (isize, Offsets<'_>) {
    match list {
        [] => (0, Offsets::Strided(0)),
        [only] => (*only, Offsets::Strided(0)),
        [first, second, ..] => {
            let stride = second - first;
            if list.windows(2).all(|pair| pair[1] - pair[0] == stride) {
                (*first, Offsets::Strided(stride))
            } else {
                (0, Offsets::Scattered(list))
            }
        }
    }
}

/// One block of a product: its lists, as strides where they are. Finding that out takes longer than a small product.
struct Part<'a> {
    lists: &'a Lists,
    /// Whether this block writes the zeros of whole rows, and of whole columns.
    zeros: bool,
    rows: usize,
    columns: usize,
    /// First row, column and contracted positions in the inputs and the output, and where the others are.
    left: (isize, Offsets<'a>),
    right: (isize, Offsets<'a>),
    left_length: (isize, Offsets<'a>),
    right_length: (isize, Offsets<'a>),
    out_rows: (isize, Offsets<'a>),
    out_columns: (isize, Offsets<'a>),
}

impl<'a> Part<'a> {
    fn new(lists: &'a Lists, blocks: &Blocks, number: usize) -> Self {
        let (rows, columns) = blocks.ranges(number);
        let zeros = rows.start == 0 && columns.start == 0;
        let clip = |range: std::ops::Range<usize>, len: usize| range.start.min(len)..range.end.min(len);
        let (rows, columns) = (clip(rows, lists.left.input.len()), clip(columns, lists.right.input.len()));
        Part {
            lists,
            zeros,
            rows: rows.len(),
            columns: columns.len(),
            left: offsets(&lists.left.input[rows.clone()]),
            right: offsets(&lists.right.input[columns.clone()]),
            left_length: offsets(&lists.left_length),
            right_length: offsets(&lists.right_length),
            out_rows: offsets(&lists.left.output[rows]),
            out_columns: offsets(&lists.right.output[columns]),
        }
    }
}

/// One block of one product.
///
/// # Safety
/// As [`typed`].
unsafe fn multiply<T, U>(
    run: &Run<'_>,
    walk: &Walk<'_, 3>,
    part: &Part<'_>,
    blocking: &Blocking,
    scratch: &mut Scratch,
) -> Result<(), BadTable>
where
    T: Scalar + TileElement,
    U: Scalar<Acc = <T as Scalar>::Acc> + TileElement<Acc = <T as TileElement>::Acc>,
{
    let contraction = run.contraction;
    let lists = part.lists;
    let right = contraction.right.as_ref().expect("two inputs");
    let out = run.out.cast::<U>().wrapping_offset(walk.plain_offset(2));
    // Rows without a term are zero; the first block writes those of all others.
    if part.zeros {
        // SAFETY: by the caller.
        unsafe {
            zero_missing(out, &lists.left.missing, &lists.right);
            zero_missing(out, &lists.right.missing, &lists.left);
        }
    }
    if part.rows == 0 || part.columns == 0 {
        return Ok(());
    }
    // SAFETY: by the caller.
    let bases = unsafe { (batch_offset(run, walk, &contraction.left, 0)?, batch_offset(run, walk, right, 1)?) };
    // A batch that is left out is a product of length zero.
    let (left_base, right_base, k) = match bases {
        (Some(left), Some(right)) => (left, right, lists.left_length.len()),
        _ => (0, 0, 0),
    };
    let ptr = run.left.cast::<T>().wrapping_offset(left_base + part.left.0 + part.left_length.0);
    let a = Matrix { ptr, rows: part.left.1, cols: part.left_length.1 };
    let ptr = run.right.cast::<T>().wrapping_offset(right_base + part.right_length.0 + part.right.0);
    let b = Matrix { ptr, rows: part.right_length.1, cols: part.right.1 };
    let to = out.wrapping_offset(part.out_rows.0 + part.out_columns.0);
    let c = MatrixMut { ptr: to, rows: part.out_rows.1, cols: part.out_columns.1 };
    // SAFETY: `bound`: every offset in the lists came from a walk within the loops; this block is this piece's own.
    unsafe { gemm(run.isa, blocking, part.rows, part.columns, k, a, b, c, Accum::Replace, scratch) };
    Ok(())
}

/// Writes zeros where a row (or column) of the output has no term at all.
///
/// # Safety
/// The offsets are elements of the output that belong to this piece.
unsafe fn zero_missing<U: Scalar>(out: *mut U, missing: &[isize], across: &SideOffsets) {
    for &row in missing {
        for &column in across.output.iter().chain(&across.missing) {
            // SAFETY: by the caller.
            unsafe { out.offset(row + column).write_unaligned(U::narrow(U::ZERO)) };
        }
    }
}
