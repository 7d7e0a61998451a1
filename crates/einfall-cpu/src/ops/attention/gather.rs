//! Attention over rows that are gathered where they lie: scores, softmax and weighted sum, a few queries at a time.
//!
//! Floor: each row of keys and of values once from the cache that holds them, and the exponentials. Scores live in the L1;
//! lists longer than a block are taken block by block, with the largest score so far (Milakov and Gimelshein, "Online
//! normalizer calculation for softmax", 2018).

use std::ops::Range;

use einfall_plan::{Access, Attention, AttentionRole, Cost, Estimate, Machine, Pass, Way};
use einfall_tensor::DType;
use einfall_tensor::half::{bf16, f16};

use super::keys::{BIAS, Found, Keys, LSE, OUT, QUERY, Queries, Rows};
use super::{AttentionRun, Backward, Failure, Written, with_float};
use crate::kernels::exp::Exponent;
use crate::kernels::rows::{AxpyList, DotList, RowElement, RowWeight, row_axpys, row_dots};
use crate::scalar::Scalar;
use crate::walk::BadTable;

/// Keys that are weighed at once: offsets, scores and positions of so many fit the L1 beside some rows.
const BLOCK: usize = 1024;
/// Queries that are taken at once, if their keys fit.
const QUERIES: usize = 32;

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the attention.
pub fn estimate(attention: &Attention, pass: Pass, machine: &Machine) -> Result<Estimate, String> {
    let rows = Rows::of(attention)?;
    if pass == Pass::Backward {
        super::gradients::check(attention, &rows)?;
    }
    let seconds = seconds(attention, &rows, pass, machine);
    let way = if attention.key.lookups.is_empty() { Way::Stream } else { Way::Gather };
    let workspace_bytes = match pass {
        Pass::Forward => 0,
        Pass::Backward => super::gradients::workspace_bytes(attention, &rows),
    };
    let cost = Cost { flops: attention.flops(pass), bytes: attention.distinct_bytes(pass), seconds };
    Ok(Estimate { way, cost, workspace_bytes })
}

/// Each row from the cache that holds those of one head, and what every pair and every query costs beside.
fn seconds(attention: &Attention, rows: &Rows, pass: Pass, machine: &Machine) -> f64 {
    let (pairs, threads) = (attention.pairs(), machine.threads as f64);
    let queries = (attention.len_of(AttentionRole::List) * attention.len_of(AttentionRole::Head)) as f64;
    let size = attention.dtype.bytes() as f64;
    // Adding to rows in memory keeps those of the gradients beside those of the operands.
    let scattered = pass == Pass::Backward && super::gradients::is_scattered(attention, rows, machine.threads);
    let kept = if scattered { 2.0 } else { 1.0 };
    let set = |access: &Access| {
        let axis: f64 =
            access.lookups.iter().map(|l| l.len).chain(access.windows.iter().map(|w| w.len)).product::<usize>() as f64;
        let all = attention.distinct_elements(access) * size;
        let row = size * rows.depth.max(rows.width) as f64;
        if access.is_plain() {
            all
        } else if access.lookups.is_empty() {
            // Neighbouring queries look at nearly the same rows.
            kept * all.min(axis.min(2.0 * attention.keys_of_list()) * row)
        } else {
            kept * all.min(axis * row)
        }
    };
    let row_seconds = |count: f64, access: &Access| {
        let touched = (count * size).max(64.0) + if (count * size) % 64.0 == 0.0 { 0.0 } else { 32.0 };
        let cached = touched / machine.bytes_per_second_within(set(access)) * threads;
        let compute = 2.0 * count / (machine.flops_per_second(attention.dtype) * 0.5) * threads;
        cached.max(compute).max(0.5e-9)
    };
    let (key, value) =
        (row_seconds(rows.depth as f64, &attention.key), row_seconds(rows.width as f64, &attention.value));
    let wide = if attention.accumulator == DType::F64 { 2.0 } else { 1.0 };
    // Measured on Zen 5, two threads, by the example `attend`.
    let (pair, products, query) = match pass {
        Pass::Forward => (0.9e-9 + 0.6e-9 * wide, key + value, 110e-9),
        Pass::Backward if scattered => (1.2e-9 + 1e-9 * wide, 3.0 * (key + value), 180e-9),
        Pass::Backward => (4e-9 + 1.5e-9 * wide, 3.5 * (key + value), 180e-9),
    };
    let work = pairs * (pair + products) + queries * query;
    crate::ops::started(machine, work / threads) + attention.distinct_bytes(pass) * 0.2 / machine.read_bytes_per_second
}

/// An element that attention is computed on.
pub(super) trait Float: Scalar<Acc = Self::Sum> + RowElement<Acc = Self::Sum> {
    /// What scores are kept in.
    type Sum: Scalar<Acc = Self::Sum> + RowElement<Acc = Self::Sum> + Exponent + RowWeight<Self> + Real;
}

/// The arithmetic of accumulators.
pub(super) trait Real: Copy + PartialOrd + Send + Sync {
    const LEAST: Self;
    fn of(value: f64) -> Self;
    fn wide(self) -> f64;
    fn negative(self) -> Self;
}

macro_rules! reals {
    ($($T:ident),*) => {$(
        impl Real for $T {
            const LEAST: $T = $T::NEG_INFINITY;

            #[inline(always)]
            fn of(value: f64) -> $T {
                value as $T
            }

            #[inline(always)]
            fn wide(self) -> f64 {
                self as f64
            }

            #[inline(always)]
            fn negative(self) -> $T {
                -self
            }
        }
    )*};
}

reals!(f32, f64);

macro_rules! floats {
    ($($T:ident: $Sum:ident),*) => {$(
        impl Float for $T {
            type Sum = $Sum;
        }
    )*};
}

floats!(f32: f32, f64: f64, f16: f32, bf16: f32);

/// # Safety
/// The element is in memory; unaligned reads.
#[inline(always)]
pub(super) unsafe fn bias_at<T: Float>(run: &AttentionRun<'_>, at: isize) -> T::Sum {
    let pointer = run.operands[3];
    // SAFETY: by the caller; the type is one of the two.
    unsafe {
        if run.attention.bias_dtype == T::DTYPE {
            pointer.cast::<T>().offset(at).read_unaligned().widen_float()
        } else {
            pointer.cast::<T::Sum>().offset(at).read_unaligned()
        }
    }
}

/// Widening where both traits of an element have a method of that name.
pub(super) trait Widen: Float {
    fn widen_float(self) -> Self::Sum;
    fn narrow_float(sum: Self::Sum) -> Self;
}

impl<T: Float> Widen for T {
    #[inline(always)]
    fn widen_float(self) -> T::Sum {
        <T as Scalar>::widen(self)
    }

    #[inline(always)]
    fn narrow_float(sum: T::Sum) -> T {
        <T as Scalar>::narrow(sum)
    }
}

/// Runs the attention.
///
/// # Errors
/// [`Failure`].
///
/// # Safety
/// `run` and `to` keep the invariant `bound`.
pub unsafe fn forward(run: &AttentionRun<'_>, to: Written) -> Result<(), Failure> {
    let rows = Rows::of(run.attention).expect("the kernel made an offer");
    with_float!(run.attention.dtype, T => {
        // SAFETY: by the caller; the element type is that of the memory.
        unsafe { typed::<T>(run, &rows, to) }
    })
}

/// The gradients.
///
/// # Errors
/// [`Failure`].
///
/// # Safety
/// `run` and `with` keep the invariant `bound`.
pub unsafe fn backward(run: &AttentionRun<'_>, with: Backward) -> Result<(), Failure> {
    let rows = Rows::of(run.attention).expect("the kernel made an offer");
    with_float!(run.attention.dtype, T => {
        // SAFETY: by the caller; the element type is that of the memory.
        unsafe { super::gradients::run::<T>(run, &rows, with) }
    })
}

/// What a thread has to itself.
struct Scratch<'a, T: Float> {
    keys: Keys<'a>,
    walk: Queries<'a>,
    found: Found,
    scores: Vec<T::Sum>,
    sums: Vec<T::Sum>,
}

/// # Safety
/// As [`forward`], with `T` the element type.
unsafe fn typed<T: Float>(run: &AttentionRun<'_>, rows: &Rows, to: Written) -> Result<(), Failure> {
    let attention = run.attention;
    let nowhere = Access { strides: vec![0; attention.loops.len()], ..Access::default() };
    let bias = attention.bias.as_ref().unwrap_or(&nowhere);
    let queries = Keys::new(run, rows, bias).queries();
    let of_query = rows.len.saturating_mul(rows.turns);
    let state = || {
        let keys = Keys::new(run, rows, bias);
        let walk = keys.walk(bias);
        Scratch::<T> { keys, walk, found: Found::default(), scores: Vec::new(), sums: Vec::new() }
    };
    let short = of_query <= BLOCK && attention.ragged.is_none();
    let together = if short { (BLOCK / of_query.max(1)).clamp(1, QUERIES) } else { 1 };
    let piece = run.threads.piece(queries, 8).next_multiple_of(together);
    let work = |scratch: &mut Scratch<'_, T>, range: Range<usize>| {
        let to = to.get();
        scratch.walk.seek(range.start);
        let mut flat = range.start;
        while flat < range.end {
            let count = together.min(range.end - flat);
            // SAFETY: by the caller; queries write distinct elements.
            unsafe {
                if short {
                    several(run, rows, scratch, flat, count, to)?;
                } else {
                    long(run, rows, scratch, flat, to)?;
                }
            }
            flat += count;
        }
        Ok(())
    };
    Ok(run.threads.for_pieces_with(queries, piece, run.serial_seconds, state, work)?)
}

/// A query's part of what was found.
struct Part {
    keys: Range<usize>,
    query: isize,
    bias: isize,
    out: isize,
    lse: isize,
}

/// Some queries, all keys of each at once.
///
/// # Safety
/// As [`typed`]; the walk stands at query `flat`.
unsafe fn several<T: Float>(
    run: &AttentionRun<'_>,
    rows: &Rows,
    scratch: &mut Scratch<'_, T>,
    flat: usize,
    count: usize,
    to: Written,
) -> Result<(), BadTable> {
    let Scratch { keys, walk, found, scores, sums } = scratch;
    let mut parts: [Part; QUERIES] = std::array::from_fn(|_| Part { keys: 0..0, query: 0, bias: 0, out: 0, lse: 0 });
    found.clear();
    for (at, part) in parts[..count].iter_mut().enumerate() {
        let place = |which| walk.plain_offset(which);
        *part = Part { keys: 0..0, query: place(QUERY), bias: place(BIAS), out: place(OUT), lse: place(LSE) };
        let from = found.keys.len();
        // SAFETY: by the caller.
        unsafe {
            let (range, limit) = keys.range(flat + at);
            keys.find_all(walk, range, limit, found)?;
            walk.step();
        }
        part.keys = from..found.keys.len();
    }
    scores.resize(found.keys.len(), <T as Scalar>::ZERO);
    sums.resize(count * rows.width, <T as Scalar>::ZERO);
    let [query, key, value, _] = run.operands;
    // SAFETY: by the caller; every offset was found by the walk.
    unsafe {
        let lists: [DotList<T>; QUERIES] = std::array::from_fn(|at| DotList {
            x: query.cast::<T>().wrapping_offset(parts[at].query),
            rows: key.cast(),
            offsets: found.keys.as_ptr().wrapping_add(parts[at].keys.start),
            count: parts[at].keys.len(),
            out: scores.as_mut_ptr().wrapping_add(parts[at].keys.start),
        });
        row_dots(run.isa, rows.depth, &lists[..count]);
        let mut inverse: [T::Sum; QUERIES] = [<T as Scalar>::ZERO; QUERIES];
        for (part, inverse) in parts[..count].iter().zip(&mut inverse) {
            let scores = &mut scores[part.keys.clone()];
            let factor = scale::<T>(run, part.bias, &found.index[part.keys.clone()], scores);
            let most = T::Sum::most(run.isa, scores, factor);
            let sum = weigh::<T>(run, scores, factor, most);
            *inverse = if sum.wide() == 0.0 { <T as Scalar>::ZERO } else { T::Sum::of(1.0 / sum.wide()) };
            if !to.lse.is_null() {
                let lse = most.wide() + sum.wide().ln();
                let lse = if part.keys.is_empty() { f64::NEG_INFINITY } else { lse };
                to.lse.cast::<T::Sum>().offset(part.lse).write_unaligned(T::Sum::of(lse));
            }
        }
        let lists: [AxpyList<T, T::Sum>; QUERIES] = std::array::from_fn(|at| AxpyList {
            weights: scores.as_ptr().wrapping_add(parts[at].keys.start),
            rows: value.cast(),
            offsets: found.values.as_ptr().wrapping_add(parts[at].keys.start),
            count: parts[at].keys.len(),
            acc: sums.as_mut_ptr().wrapping_add(at.min(count - 1) * rows.width),
        });
        row_axpys(run.isa, rows.width, &lists[..count], false);
        for (at, part) in parts[..count].iter().enumerate() {
            let sums = &sums[at * rows.width..(at + 1) * rows.width];
            store::<T>(sums, inverse[at], to.out.cast::<T>().offset(part.out));
        }
    }
    Ok(())
}

/// Weights of scores, where `most` is the largest; their sum.
fn weigh<T: Float>(run: &AttentionRun<'_>, scores: &mut [T::Sum], factor: T::Sum, most: T::Sum) -> T::Sum {
    // Without any finite score there is nothing to weigh, and −∞ − −∞ would not be 0.
    if most == T::Sum::LEAST {
        scores.fill(<T as Scalar>::ZERO);
        return <T as Scalar>::ZERO;
    }
    T::Sum::exponentials(run.isa, scores, factor, most)
}

/// Adds the bias to scores, which then are scaled already; what they still have to be multiplied by.
///
/// # Safety
/// `bound`: the bias has an element for each key.
pub(super) unsafe fn scale<T: Float>(
    run: &AttentionRun<'_>,
    bias: isize,
    index: &[u32],
    scores: &mut [T::Sum],
) -> T::Sum {
    let factor = T::Sum::of(run.attention.scale.get());
    let Some(access) = &run.attention.bias else { return factor };
    for (score, &index) in scores.iter_mut().zip(index) {
        // SAFETY: by the caller.
        let added = unsafe { bias_at::<T>(run, bias + bias_step(run.attention, access, index)) };
        *score = T::Sum::of(score.wide() * factor.wide() + added.wide());
    }
    T::Sum::of(1.0)
}

/// How far a key's index moves an access along the loops over keys.
pub(super) fn bias_step(attention: &Attention, access: &Access, index: u32) -> isize {
    let mut flat = index as usize;
    let mut step = 0;
    for at in attention.loops_of(AttentionRole::Key).rev() {
        let len = attention.loops[at].len;
        step += (flat % len) as isize * access.strides[at];
        flat /= len;
    }
    step
}

/// # Safety
/// There are so many elements of the output, one after another.
pub(super) unsafe fn store<T: Float>(sums: &[T::Sum], factor: T::Sum, to: *mut T) {
    for (at, &sum) in sums.iter().enumerate() {
        // SAFETY: by the caller; unaligned writes.
        unsafe { to.add(at).write_unaligned(T::narrow_float(<T as Scalar>::mul(sum, factor))) };
    }
}

/// One query, its keys a block at a time.
///
/// # Safety
/// As [`several`].
unsafe fn long<T: Float>(
    run: &AttentionRun<'_>,
    rows: &Rows,
    scratch: &mut Scratch<'_, T>,
    flat: usize,
    to: Written,
) -> Result<(), BadTable> {
    let Scratch { keys, walk, found, scores, sums } = scratch;
    let place = [QUERY, BIAS, OUT, LSE].map(|which| walk.plain_offset(which));
    sums.clear();
    sums.resize(rows.width, <T as Scalar>::ZERO);
    let [query, key, value, _] = run.operands;
    let (mut most, mut sum) = (T::Sum::LEAST, 0.0);
    // SAFETY: by the caller; every offset was found by the walk.
    unsafe {
        let (range, limit) = keys.range(flat);
        for turn in 0..rows.turns {
            for first in range.clone().step_by(BLOCK) {
                found.clear();
                keys.find(walk, turn, first..range.end.min(first + BLOCK), limit, found)?;
                let count = found.keys.len();
                scores.resize(count.max(scores.len()), <T as Scalar>::ZERO);
                let scores = &mut scores[..count];
                let x = query.cast::<T>().offset(place[0]);
                let out = scores.as_mut_ptr();
                row_dots(
                    run.isa,
                    rows.depth,
                    &[DotList { x, rows: key.cast(), offsets: found.keys.as_ptr(), count, out }],
                );
                let factor = scale::<T>(run, place[1], &found.index, scores);
                let block = T::Sum::most(run.isa, scores, factor);
                // A NaN stays: no comparison with it is true.
                let next = if block > most || block.wide().is_nan() { block } else { most };
                if most > T::Sum::LEAST && next != most {
                    let shrink = (most.wide() - next.wide()).exp();
                    sum *= shrink;
                    let shrink = T::Sum::of(shrink);
                    sums.iter_mut().for_each(|sum| *sum = <T as Scalar>::mul(*sum, shrink));
                }
                most = next;
                sum += weigh::<T>(run, scores, factor, most).wide();
                let weights = scores.as_ptr();
                let (offsets, acc) = (found.values.as_ptr(), sums.as_mut_ptr());
                row_axpys(
                    run.isa,
                    rows.width,
                    &[AxpyList { weights, rows: value.cast::<T>(), offsets, count, acc }],
                    true,
                );
            }
        }
        walk.step();
        let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        store::<T>(sums, T::Sum::of(inverse), to.out.cast::<T>().offset(place[2]));
        if !to.lse.is_null() {
            let lse = if sum == 0.0 { f64::NEG_INFINITY } else { most.wide() + sum.ln() };
            to.lse.cast::<T::Sum>().offset(place[3]).write_unaligned(T::Sum::of(lse));
        }
    }
    Ok(())
}
