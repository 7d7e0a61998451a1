//! The loop nest as written: runs every contraction, for every element type.
//!
//! The innermost loop is one that all accesses walk at a fixed stride. If it is an output loop, a block of sums is kept
//! while the contracted loops turn; if it is contracted, lanes of partial sums are. Scattered outputs accumulate in
//! place, in the order of the loops, each task owning distinct elements of a loop that is not scattered.

mod inner;
mod map;
mod plain;

use einfall_plan::{Access, Contraction, Cost, Estimate, Machine, Role, Way};
use einfall_tensor::half::{bf16, f16};
use einfall_tensor::{DType, with_element};

use crate::ops::Run;
use crate::scalar::Scalar;
use crate::threads::Shared;
use crate::walk::{BadTable, Walk};

/// Sums that one task keeps while the contracted loops turn.
const BLOCK: usize = 256;
/// Terms that are summed in one run before the partial sum is added to the total: keeps long sums precise.
const RUN: usize = 4096;
/// Terms of a sum that one task takes when there are fewer outputs than tasks.
const SPLIT: usize = 1 << 16;

/// What the nest would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    if contraction.right.is_some() && !writes(contraction.dtype, contraction.out_dtype) {
        return Err(format!("writes {} or its accumulator, not {}", contraction.dtype, contraction.out_dtype));
    }
    let scattered = !contraction.out.is_plain();
    if scattered && contraction.out_dtype != contraction.dtype.accumulator() {
        return Err("a scattered output accumulates in place".into());
    }
    let shape = Shape::of(contraction);
    let iterations = contraction.flops() / 2.0;
    let inner = shape.inner.map_or(1.0, |at| contraction.loops[at].len as f64);
    // Measured: about 20 ns for each turn of the outer loops; the inner loop at vector speed when its strides are 0 or 1.
    let unit = |access: &Access| shape.inner.is_none_or(|at| access.strides[at].unsigned_abs() <= 1);
    let turned = is_turned(contraction, &shape);
    let all_unit =
        contraction.accesses().all(|access| (turned && std::ptr::eq(access, &contraction.out)) || unit(access));
    let rate = machine.flops_per_second(contraction.dtype) / machine.threads as f64;
    let per_term = if all_unit { 8.0 / rate } else { 1.2e-9 };
    let accesses = 1.0 + contraction.accesses().map(|a| (a.lookups.len() + a.windows.len()) as f64).sum::<f64>();
    let turns = iterations / inner.max(1.0);
    // Loops that are turned by pointers alone take less than walks: measured, a row of products 2 ns, a short sum 4 ns.
    let per_turn = match () {
        () if scattered => 12e-9 + 4e-9 * accesses,
        () if map::fits(contraction, &shape) || plain::is_vectors(contraction, &shape) => 2e-9,
        () if plain::is_sums(contraction, &shape) => 4e-9,
        () => 12e-9 + 4e-9 * accesses,
    };
    let serial = turns * per_turn + iterations * per_term;
    let threads = if scattered && shape.owner.is_none() { 1.0 } else { machine.threads as f64 };
    let bytes = contraction.distinct_bytes();
    let out_bytes = contraction.distinct_elements(&contraction.out) * contraction.out_dtype.bytes() as f64;
    let streamed = super::stream_seconds(bytes - out_bytes, machine) + super::write_seconds(out_bytes, machine);
    let seconds = (serial / threads).max(streamed);
    let seconds = if threads > 1.0 { super::started(machine, seconds) } else { seconds } + super::PREPARE_SECONDS;
    let elementwise = contraction.loops_of(Role::Contracted).next().is_none() && !scattered;
    let way = if elementwise { Way::Elementwise } else { Way::Nest };
    Ok(Estimate {
        way,
        cost: Cost { flops: contraction.flops(), bytes, seconds },
        workspace_bytes: split_bytes(contraction) + turned_bytes(contraction, &shape),
    })
}

fn turned_bytes(contraction: &Contraction, shape: &Shape) -> usize {
    if is_turned(contraction, shape) { outputs(contraction).saturating_mul(contraction.out_dtype.bytes()) } else { 0 }
}

fn writes(dtype: DType, out: DType) -> bool {
    out == dtype || out == dtype.accumulator()
}

/// How the loops are arranged.
struct Shape {
    /// Innermost loop: walked at fixed strides by every access.
    inner: Option<usize>,
    /// Output loops outside the innermost, outermost first.
    outer: Vec<usize>,
    /// Contracted loops outside the innermost.
    summed: Vec<usize>,
    /// For scattered outputs: an output loop that is not scattered, which tasks divide among themselves.
    owner: Option<usize>,
}

impl Shape {
    fn of(contraction: &Contraction) -> Shape {
        let scattered = !contraction.out.is_plain();
        let loops = 0..contraction.loops.len();
        let fixed = |at: &usize| contraction.accesses().all(|access| !access.is_indirect_in(*at));
        // A loop that is neither scattered nor without effect on the output can be divided among tasks.
        let owner = loops
            .clone()
            .filter(|&at| scattered && contraction.out.strides[at] != 0 && !contraction.out.is_indirect_in(at))
            .max_by_key(|&at| contraction.loops[at].len.min(64));
        let score = |at: usize| {
            let len = contraction.loops[at].len.min(64);
            // What is read in the order of its memory: of a large operand that counts, whatever small ones do.
            let unit = contraction.accesses().filter(|access| access.strides[at].unsigned_abs() <= 1);
            let unit = unit.map(|access| contraction.distinct_elements(access) as u64).sum::<u64>();
            // Sums of an output loop stay in registers; a contracted one needs a reduction at its end.
            let output = usize::from(contraction.loops[at].role != Role::Contracted);
            (len >= 4, unit, len, output)
        };
        let inner = loops.clone().filter(fixed).max_by_key(|&at| score(at));
        let role = |at: usize| contraction.loops[at].role;
        let rest: Vec<usize> = loops.filter(|&at| Some(at) != inner).collect();
        let (summed, outer) = rest.into_iter().partition(|&at| role(at) == Role::Contracted);
        Shape { inner, outer, summed, owner }
    }
}

/// Runs the contraction.
///
/// # Errors
/// [`BadTable`] where a table's value is outside its axis and bad values are errors.
///
/// # Safety
/// `run` keeps its invariant `bound`; a scattered output holds zeros, or what earlier slices added.
pub unsafe fn run(run: &Run<'_>) -> Result<(), BadTable> {
    let contraction = run.contraction;
    let (dtype, out_dtype) = (contraction.dtype, contraction.out_dtype);
    with_element!(dtype, T => {
        // SAFETY: by the caller; the element types are those of the memory.
        unsafe {
            if out_dtype == dtype {
                typed::<T, T>(run)
            } else if out_dtype == dtype.accumulator() {
                typed::<T, <T as Scalar>::Acc>(run)
            } else if (dtype, out_dtype) == (DType::F32, DType::BF16) {
                // Finished sums are rounded by vector instructions too.
                typed::<f32, bf16>(run)
            } else if (dtype, out_dtype) == (DType::F32, DType::F16) {
                typed::<f32, f16>(run)
            } else {
                with_element!(out_dtype, U => convert::<T, U>(run))
            }
        }
    })
}

/// An output element: how a finished sum is stored.
trait Store<A>: Copy {
    fn store(acc: A) -> Self;
    fn load(self) -> A;
}

impl<T: Scalar> Store<T::Acc> for T {
    #[inline(always)]
    fn store(acc: T::Acc) -> Self {
        T::narrow(acc)
    }

    #[inline(always)]
    fn load(self) -> T::Acc {
        self.widen()
    }
}

/// # Safety
/// As [`run`], with `T` and `U` the element types of inputs and output.
unsafe fn typed<T: Scalar, U: Scalar<Acc = T::Acc>>(run: &Run<'_>) -> Result<(), BadTable> {
    let shape = Shape::of(run.contraction);
    if !run.contraction.out.is_plain() {
        // SAFETY: by the caller.
        return unsafe { scatter::<T, U>(run, &shape) };
    }
    let contraction = run.contraction;
    if is_turned(contraction, &shape) {
        // SAFETY: by the caller.
        return unsafe { turned::<T, U>(run, &shape) };
    }
    if map::fits(contraction, &shape) {
        // SAFETY: by the caller.
        return unsafe { map::run::<T, U>(run, &shape) };
    }
    if plain::is_vectors(contraction, &shape) {
        // SAFETY: by the caller.
        return unsafe { plain::vectors::<T, U>(run, &shape) };
    }
    if plain::is_sums(contraction, &shape) && split(contraction).is_none() {
        // SAFETY: by the caller.
        return unsafe { plain::sums::<T, U>(run, &shape) };
    }
    let outputs: usize = shape.outer.iter().map(|&at| contraction.loops[at].len).product();
    let vector = shape.inner.filter(|&at| contraction.loops[at].role != Role::Contracted);
    match vector {
        Some(inner) => {
            let len = contraction.loops[inner].len;
            let blocks = len.div_ceil(BLOCK);
            let total = outputs * blocks;
            run.threads.for_pieces(total, run.threads.piece(total, 8), run.serial_seconds, |range| {
                // SAFETY: by the caller; pieces write distinct blocks of outputs.
                unsafe { vector_blocks::<T, U>(run, &shape, inner, blocks, range) }
            })
        }
        None => match split(contraction) {
            Some((at, parts)) => {
                // SAFETY: by the caller.
                unsafe { split_sums::<T, U>(run, &shape, at, parts, outputs) }
            }
            None => run.threads.for_pieces(outputs, run.threads.piece(outputs, 8), run.serial_seconds, |range| {
                let right = run.contraction.right.as_ref();
                let out = Shared(run.out.cast::<U>());
                // SAFETY: by the caller; pieces write distinct outputs.
                unsafe {
                    sums::<T>(run, &shape, &contraction.left, right, range, |_, offset, acc| {
                        out.get().offset(offset).write_unaligned(U::store(acc));
                    })
                }
            }),
        },
    }
}

/// Fewest terms of sums that are computed in the order of the inputs, where the output has another.
const TURNED_TERMS: f64 = 8.0;

/// Whether the inputs are read along a loop that the output is not contiguous along: a result in their order is transposed
/// sooner than its elements are written one by one, each block of them for itself.
fn is_turned(contraction: &Contraction, shape: &Shape) -> bool {
    let across = |at: usize| contraction.out.strides[at].unsigned_abs() > 1 && contraction.loops[at].len >= 4;
    shape.inner.is_some_and(|at| contraction.loops[at].role != Role::Contracted && across(at))
        && contraction.accesses().all(Access::is_plain)
        && contraction.terms() >= TURNED_TERMS
        && (0..contraction.loops.len()).any(|at| contraction.out.strides[at].unsigned_abs() == 1)
}

/// Elements of the output, whose loops are its own.
fn outputs(contraction: &Contraction) -> usize {
    contraction.loops.iter().filter(|l| l.role != Role::Contracted).map(|l| l.len).product()
}

/// The result in the order of the inputs, then transposed.
///
/// # Safety
/// As [`typed`], of a contraction that [`is_turned`].
unsafe fn turned<T: Scalar, U: Scalar<Acc = T::Acc>>(run: &Run<'_>, shape: &Shape) -> Result<(), BadTable> {
    let contraction = run.contraction;
    let mut own = contraction.clone();
    own.out = Access { strides: vec![0; contraction.loops.len()], ..Access::default() };
    let mut count = 1;
    for &at in shape.inner.iter().chain(shape.outer.iter().rev()) {
        own.out.strides[at] = count as isize;
        count *= contraction.loops[at].len;
    }
    let mut memory: Vec<U> = Vec::with_capacity(count);
    let inner = Run { contraction: &own, out: memory.as_mut_ptr().cast(), ..*run };
    let kept = |at: &usize| contraction.loops[*at].role != Role::Contracted;
    let only = |access: &Access| Access {
        strides: (0..contraction.loops.len()).filter(kept).map(|at| access.strides[at]).collect(),
        ..access.clone()
    };
    let copy = Contraction {
        loops: contraction.loops.iter().filter(|l| l.role != Role::Contracted).cloned().collect(),
        left: only(&own.out),
        right: None,
        out: only(&contraction.out),
        dtype: U::DTYPE,
        out_dtype: U::DTYPE,
        bounds: contraction.bounds,
    };
    // SAFETY: by the caller; the memory has room for the whole result, which is written before it is read.
    unsafe {
        typed::<T, U>(&inner)?;
        let copy = Run { contraction: &copy, left: memory.as_ptr().cast(), ..*run };
        typed::<U, U>(&copy)
    }
}

/// When few outputs sum many terms: the contracted loop to split, and into how many parts. Depends on the problem alone.
fn split(contraction: &Contraction) -> Option<(usize, usize)> {
    if !contraction.out.is_plain() {
        return None;
    }
    let shape = Shape::of(contraction);
    if shape.inner.is_some_and(|at| contraction.loops[at].role != Role::Contracted) {
        return None;
    }
    let outputs: usize = shape.outer.iter().map(|&at| contraction.loops[at].len).product();
    let terms = contraction.terms();
    if outputs == 0 || outputs >= 64 || terms * (outputs as f64) < 4.0 * SPLIT as f64 {
        return None;
    }
    let at = contraction.loops_of(Role::Contracted).max_by_key(|&at| contraction.loops[at].len)?;
    let parts = ((terms / SPLIT as f64).ceil() as usize).min(contraction.loops[at].len).min(256);
    (parts > 1).then_some((at, parts))
}

fn split_bytes(contraction: &Contraction) -> usize {
    let outputs = |at: usize, l: &einfall_plan::Loop| if contraction.out.depends_on(at) { l.len } else { 1 };
    split(contraction).map_or(0, |(_, parts)| {
        let count: usize = contraction.loops.iter().enumerate().map(|(at, l)| outputs(at, l)).product();
        parts * count * contraction.dtype.accumulator().bytes()
    })
}

/// Sums of few outputs with many terms: each part of a contracted loop is summed by itself, parts are joined in order.
///
/// # Safety
/// As [`typed`].
unsafe fn split_sums<T: Scalar, U: Scalar<Acc = T::Acc>>(
    run: &Run<'_>,
    shape: &Shape,
    at: usize,
    parts: usize,
    outputs: usize,
) -> Result<(), BadTable> {
    let len = run.contraction.loops[at].len;
    let mut partial: Vec<(isize, T::Acc)> = vec![(0, T::ZERO); parts * outputs];
    let slots = Shared(partial.as_mut_ptr());
    run.threads.for_pieces(parts, 1, run.serial_seconds, |range| {
        for part in range {
            let (start, end) = (len * part / parts, len * (part + 1) / parts);
            let mut contraction = run.contraction.clone();
            contraction.loops[at].len = end - start;
            shift_loop(&mut contraction, at, start);
            let inner = Run { contraction: &contraction, ..*run };
            let right = contraction.right.as_ref();
            // SAFETY: by the caller: the part is a range of the loop; each part writes slots of its own.
            unsafe {
                sums::<T>(&inner, shape, &contraction.left, right, 0..outputs, |flat, offset, acc| {
                    slots.get().add(part * outputs + flat).write((offset, acc));
                })?;
            }
        }
        Ok(())
    })?;
    for flat in 0..outputs {
        let total = (0..parts).fold(T::ZERO, |sum, part| T::add(sum, partial[part * outputs + flat].1));
        // SAFETY: by the caller.
        unsafe { run.out.cast::<U>().offset(partial[flat].0).write_unaligned(U::store(total)) };
    }
    Ok(())
}

/// Starts a loop at `start`.
pub(super) fn shift_loop(contraction: &mut Contraction, at: usize, start: usize) {
    let Contraction { left, right, out, .. } = contraction;
    for access in [Some(left), right.as_mut(), Some(out)].into_iter().flatten() {
        access.offset += access.strides[at] * start as isize;
        for lookup in &mut access.lookups {
            lookup.table_offset += lookup.table_strides[at] * start as isize;
        }
        for window in &mut access.windows {
            window.offset += window.coefficients[at] * start as i64;
        }
    }
}

fn with_len(contraction: &Contraction, loops: &[usize]) -> impl Iterator<Item = (usize, usize)> {
    loops.iter().map(|&at| (at, contraction.loops[at].len)).collect::<Vec<_>>().into_iter()
}

/// Sums whose innermost loop is contracted, one output at a time.
///
/// # Safety
/// As [`typed`].
unsafe fn sums<T: Scalar>(
    run: &Run<'_>,
    shape: &Shape,
    left: &Access,
    right: Option<&Access>,
    range: std::ops::Range<usize>,
    mut store: impl FnMut(usize, isize, T::Acc),
) -> Result<(), BadTable> {
    let contraction = run.contraction;
    // The inner loop is walked too when an access has no fixed stride for it; else it is summed in runs.
    let (len, left_stride, right_stride) = match shape.inner {
        Some(at) => (contraction.loops[at].len, left.strides[at], right.map_or(0, |right| right.strides[at])),
        None => (1, 0, 0),
    };
    let accesses = [left, right.unwrap_or(left), &contraction.out];
    let far = contraction.distinct_bytes() > run.machine.l3_bytes as f64;
    let mut outer = Walk::new(accesses, with_len(contraction, &shape.outer), run.tables, contraction.bounds);
    outer.seek(range.start);
    let mut turns = Walk::new(accesses, with_len(contraction, &shape.summed), run.tables, contraction.bounds);
    let turn_count = turns.count();
    let (left_data, right_data) = (run.left.cast::<T>(), run.right.cast::<T>());
    for flat in range {
        turns.follow(&outer);
        let mut total = T::ZERO;
        for _ in 0..turn_count {
            // SAFETY: `bound`: both walks together are within the loops.
            unsafe {
                let l = turns.offset(0)?;
                let r = if right.is_some() { turns.offset(1)? } else { Some(0) };
                if let (Some(l), Some(r)) = (l, r) {
                    let mut done = 0;
                    while done < len {
                        let count = RUN.min(len - done);
                        let l = left_data.offset(l + done as isize * left_stride);
                        let sum = if right.is_some() {
                            let r = right_data.offset(r + done as isize * right_stride);
                            inner::dot(run.isa, count, far, l, left_stride, r, right_stride)
                        } else {
                            inner::sum(run.isa, count, far, l, left_stride)
                        };
                        total = T::add(total, sum);
                        done += count;
                    }
                }
            }
            turns.step();
        }
        store(flat, outer.plain_offset(2), total);
        outer.step();
    }
    Ok(())
}

/// Blocks of outputs along the innermost loop; the contracted loops turn around each block.
///
/// # Safety
/// As [`typed`]; `range` counts blocks.
unsafe fn vector_blocks<T: Scalar, U: Scalar<Acc = T::Acc>>(
    run: &Run<'_>,
    shape: &Shape,
    inner: usize,
    blocks: usize,
    range: std::ops::Range<usize>,
) -> Result<(), BadTable> {
    let contraction = run.contraction;
    let (left, right, out) = (&contraction.left, contraction.right.as_ref(), &contraction.out);
    let accesses = [left, right.unwrap_or(left), out];
    let mut outer = Walk::new(accesses, with_len(contraction, &shape.outer), run.tables, contraction.bounds);
    outer.seek(range.start / blocks);
    let mut turns = Walk::new(accesses, with_len(contraction, &shape.summed), run.tables, contraction.bounds);
    let turn_count = turns.count();
    let len = contraction.loops[inner].len;
    let strides = [left.strides[inner], right.map_or(0, |right| right.strides[inner]), out.strides[inner]];
    let mut sums = [T::ZERO; BLOCK];
    let out_data = run.out.cast::<U>();
    for flat in range {
        let start = flat % blocks * BLOCK;
        let count = BLOCK.min(len - start);
        let sums = &mut sums[..count];
        turns.follow(&outer);
        let mut fresh = true;
        for _ in 0..turn_count {
            // SAFETY: `bound`: both walks together are within the loops, and the block within the innermost.
            unsafe {
                let l = turns.offset(0)?;
                let r = if right.is_some() { turns.offset(1)? } else { Some(0) };
                if let (Some(l), Some(r)) = (l, r) {
                    let l = run.left.cast::<T>().offset(l + start as isize * strides[0]);
                    let r = right.map(|_| run.right.cast::<T>().offset(r + start as isize * strides[1]));
                    inner::multiply_add(run.isa, sums, fresh, l, strides[0], r, strides[1]);
                    fresh = false;
                }
            }
            turns.step();
        }
        if fresh {
            sums.fill(T::ZERO);
        }
        // SAFETY: `bound`, and this block belongs to this piece alone.
        unsafe {
            let to = out_data.offset(outer.plain_offset(2) + start as isize * strides[2]);
            inner::store::<T, U>(run.isa, sums, to, strides[2]);
        }
        if flat % blocks + 1 == blocks {
            outer.step();
        }
    }
    Ok(())
}

/// Adds every term to its place in a scattered output. Tasks divide a loop that is not scattered.
///
/// # Safety
/// As [`typed`]; the output holds zeros.
unsafe fn scatter<T: Scalar, U: Scalar<Acc = T::Acc>>(run: &Run<'_>, shape: &Shape) -> Result<(), BadTable> {
    let contraction = run.contraction;
    let (left, right, out) = (&contraction.left, contraction.right.as_ref(), &contraction.out);
    let accesses = [left, right.unwrap_or(left), out];
    let owned = shape.owner.map_or(1, |at| contraction.loops[at].len);
    let piece = if shape.owner.is_some() { run.threads.piece(owned, 1).max(16.min(owned)) } else { 1 };
    run.threads.for_pieces(owned, piece, run.serial_seconds, |range| {
        // Every loop in its order, the owner's cut to this piece; the innermost as a run of fixed strides.
        let inner = shape.inner;
        let part = |at: usize| if Some(at) == shape.owner { range.len() } else { contraction.loops[at].len };
        let loops = (0..contraction.loops.len()).filter(|&at| Some(at) != inner).map(|at| (at, part(at)));
        let mut walk = Walk::new(accesses, loops, run.tables, contraction.bounds);
        if let Some(owner) = shape.owner {
            walk.shift(owner, range.start);
        }
        let (count, strides) = match inner {
            Some(at) => (part(at), [left.strides[at], right.map_or(0, |r| r.strides[at]), out.strides[at]]),
            None => (1, [0; 3]),
        };
        for _ in 0..walk.count() {
            // SAFETY: `bound`; this piece alone writes its part of the owner's loop.
            unsafe {
                let l = walk.offset(0)?;
                let r = if right.is_some() { walk.offset(1)? } else { Some(0) };
                let o = walk.offset(2)?;
                if let (Some(l), Some(r), Some(o)) = (l, r, o) {
                    let l = run.left.cast::<T>().offset(l);
                    let r = right.map(|_| run.right.cast::<T>().offset(r));
                    let o = run.out.cast::<U>().offset(o);
                    for i in 0..count as isize {
                        let product = match r {
                            Some(r) => T::mul(
                                l.offset(i * strides[0]).read_unaligned().widen(),
                                r.offset(i * strides[1]).read_unaligned().widen(),
                            ),
                            None => l.offset(i * strides[0]).read_unaligned().widen(),
                        };
                        let to = o.offset(i * strides[2]);
                        to.write_unaligned(U::store(T::add(to.read_unaligned().load(), product)));
                    }
                }
            }
            walk.step();
        }
        Ok(())
    })
}

/// A plain sum or copy of one input into another element type.
///
/// # Safety
/// As [`typed`].
unsafe fn convert<T: Scalar, U: Scalar>(run: &Run<'_>) -> Result<(), BadTable> {
    let contraction = run.contraction;
    let shape = Shape::of(contraction);
    let all: Vec<usize> = shape
        .outer
        .iter()
        .copied()
        .chain(shape.inner.filter(|&at| contraction.loops[at].role != Role::Contracted))
        .collect();
    let summed: Vec<usize> = contraction.loops_of(Role::Contracted).collect();
    let outputs: usize = all.iter().map(|&at| contraction.loops[at].len).product();
    let accesses = [&contraction.left, &contraction.out];
    run.threads.for_pieces(outputs, run.threads.piece(outputs, 8), run.serial_seconds, |range| {
        let mut outer = Walk::new(accesses, with_len(contraction, &all), run.tables, contraction.bounds);
        outer.seek(range.start);
        let mut turns = Walk::new(accesses, with_len(contraction, &summed), run.tables, contraction.bounds);
        let turn_count = turns.count();
        for _ in range {
            turns.follow(&outer);
            let mut total = U::ZERO;
            for _ in 0..turn_count {
                // SAFETY: `bound`; the output is this piece's own.
                unsafe {
                    let value = run.left.cast::<T>().offset(turns.plain_offset(0)).read_unaligned();
                    // One term is converted once, straight to the output's type.
                    if turn_count == 1 {
                        run.out
                            .cast::<U>()
                            .offset(turns.plain_offset(1))
                            .write_unaligned(U::from_number(value.to_number()));
                    } else {
                        total = U::add(total, U::Acc::from_number(value.to_number()));
                    }
                }
                turns.step();
            }
            if turn_count != 1 {
                // SAFETY: as above.
                unsafe { run.out.cast::<U>().offset(outer.plain_offset(1)).write_unaligned(U::narrow(total)) };
            }
            outer.step();
        }
        Ok(())
    })
}
