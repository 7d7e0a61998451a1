//! Gradients of attention over gathered rows, from the log-sum-exp that the forward pass saved.
//!
//! Probabilities are computed again: `p = exp(score - lse)`. With `delta = Σ grad_out * out` and `dp = grad_out · value`, the
//! slope of a score is `ds = p (dp - delta)`. A query's gradient is a sum over its own keys; a key's and a value's are sums
//! over the queries that look at it, in order. Where there are sets of rows enough for all threads (heads, batches), each is
//! one thread's, which goes through its queries once and adds to the rows in memory: five products of rows a pair. Else the
//! inverse of the table lists the queries of each row, which is written once, and scores are computed again: seven.
//! Both round alike, so the bits are the same for any number of threads.

use std::ops::Range;

use einfall_plan::{Access, Attention, AttentionRole};

use super::gather::{Float, Real, Widen, bias_step, store};
use super::inverse::{Inverse, axis_of};
use super::keys::{Found, Keys, Rows, has_positions};
use super::slopes::Slopes;
use super::{AttentionRun, Backward, Failure};
use crate::kernels::exp::Exponent;
use crate::kernels::rows::{AxpyList, DotList, row_axpys, row_dots};
use crate::scalar::Scalar;
use crate::threads::Shared;
use crate::walk::BadTable;

/// Pairs whose slopes are computed at once.
const BLOCK: usize = 1024;
/// Rows that are taken at once, if their pairs fit.
const ROWS: usize = 32;

/// Whether the kernel has these gradients.
///
/// # Errors
/// Why not.
pub(super) fn check(attention: &Attention, rows: &Rows) -> Result<(), String> {
    let gradients = &attention.gradients;
    let kept = || {
        let roles = [AttentionRole::List, AttentionRole::Head];
        roles.into_iter().flat_map(|role| attention.loops_of(role))
    };
    if gradients.query.as_ref().is_some_and(|query| kept().any(|at| query.strides[at] == 0)) {
        return Err("queries are shared".into());
    }
    if let Some(bias) = &gradients.bias
        && kept().chain(attention.loops_of(AttentionRole::Key)).any(|at| bias.strides[at] == 0)
    {
        return Err("a bias is shared".into());
    }
    for gradient in [&gradients.key, &gradients.value].into_iter().flatten() {
        if sets(attention).iter().any(|&(at, _)| gradient.strides[at] == 0) {
            return Err("keys or values are shared, not both".into());
        }
        if attention.limit.is_some() && !has_positions(gradient, rows.at) {
            return Err("a causal mask over rows without positions".into());
        }
    }
    Ok(())
}

/// Whether the rows of keys or values, or of their gradients, do not stand on one axis.
fn on_several_axes(attention: &Attention, rows: &Rows) -> bool {
    let Attention { key, value, gradients, .. } = attention;
    let accesses = [Some(key), Some(value), gradients.key.as_ref(), gradients.value.as_ref()];
    accesses.into_iter().flatten().any(|access| axis_of(access, rows).is_none())
}

/// Bytes that the backward pass takes at most.
pub(super) fn workspace_bytes(attention: &Attention, rows: &Rows) -> usize {
    let delta = attention.distinct_elements(&attention.lse) as usize * attention.accumulator.bytes();
    let sets: usize = sets(attention).iter().filter(|(at, _)| moves_keys(attention, *at)).map(|(_, len)| len).product();
    let axis = axis_of(&attention.key, rows).map_or(0, |axis| axis.len);
    let pairs = attention.pairs() as usize / sets.max(1);
    let wide = if on_several_axes(attention, rows) && attention.dtype != attention.accumulator {
        let accesses = [attention.gradients.key.as_ref(), attention.gradients.value.as_ref()];
        accesses.into_iter().flatten().map(|access| attention.distinct_elements(access) as usize * 4).sum()
    } else {
        0
    };
    delta + wide + (pairs * 12 + axis * 4).saturating_mul(sets.min(64))
}

/// Loops that tell rows of keys and values apart, beside the axis on which they are looked up.
fn sets(attention: &Attention) -> Vec<(usize, usize)> {
    let Attention { key, value, gradients, loops, .. } = attention;
    let accesses = [Some(key), Some(value), gradients.key.as_ref(), gradients.value.as_ref()];
    let tells = |at: usize| accesses.iter().flatten().any(|access| access.strides[at] != 0);
    let kept = |role| matches!(role, AttentionRole::List | AttentionRole::Head);
    let all = loops.iter().enumerate().filter(|(_, l)| kept(l.role));
    all.filter(|(at, _)| tells(*at)).map(|(at, l)| (at, l.len)).collect()
}

/// Whether the keys of a query depend on a loop, other than by where their rows lie.
fn moves_keys(attention: &Attention, at: usize) -> bool {
    attention.key.is_indirect_in(at)
        || attention.limit.as_ref().is_some_and(|limit| limit.strides[at] != 0)
        || attention.ragged.as_ref().is_some_and(|ragged| ragged.strides[at] != 0)
}

/// Whether keys and values are added to by whoever has all queries that look at them: always where their rows stand on
/// several axes, else where that keeps all threads busy. Both ways give the same bits.
pub(super) fn is_scattered(attention: &Attention, rows: &Rows, threads: usize) -> bool {
    let gradients = &attention.gradients;
    if gradients.key.is_none() && gradients.value.is_none() {
        return false;
    }
    if on_several_axes(attention, rows) {
        return true;
    }
    let sets = count(&sets(attention));
    attention.dtype == attention.accumulator && 4 * sets >= 3 * sets.next_multiple_of(threads.max(1))
}

/// Offset of an access at an iteration of some loops, without its lookups and windows.
pub(super) fn offset(access: &Access, loops: &[(usize, usize)], mut flat: usize) -> isize {
    let mut offset = 0;
    for &(at, len) in loops.iter().rev() {
        offset += (flat % len) as isize * access.strides[at];
        flat /= len;
    }
    offset
}

pub(super) fn count(loops: &[(usize, usize)]) -> usize {
    loops.iter().map(|(_, len)| len).product()
}

/// All that the parts of the pass share.
pub(super) struct Pass<'a> {
    pub run: &'a AttentionRun<'a>,
    pub rows: &'a Rows,
    pub with: Backward,
    /// The bias, or an access to nothing.
    pub bias: &'a Access,
    /// An access to nothing.
    pub nowhere: &'a Access,
    /// Lists and heads.
    pub queries: Vec<(usize, usize)>,
}

// SAFETY: `bound`: inputs are only read; each row of a gradient is written by one piece.
unsafe impl Sync for Pass<'_> {}

/// Runs the pass.
///
/// # Errors
/// [`Failure`].
///
/// # Safety
/// `bound`; `T` is the element type, and [`check`] found nothing to refuse.
pub(super) unsafe fn run<T: Float>(run: &AttentionRun<'_>, rows: &Rows, with: Backward) -> Result<(), Failure> {
    let attention = run.attention;
    let nowhere = Access { strides: vec![0; attention.loops.len()], ..Access::default() };
    let bias = attention.bias.as_ref().unwrap_or(&nowhere);
    let queries = run.loops(&[AttentionRole::List, AttentionRole::Head]);
    let pass = Pass { run, rows, with, bias, nowhere: &nowhere, queries };
    // SAFETY: by the caller.
    unsafe {
        if let Some(bias) = &attention.gradients.bias {
            debug_assert!(bias.is_plain());
            // What no key is found for has no slope.
            with.gradients[3].write_bytes(0, with.elements[3] * attention.bias_dtype.bytes());
        }
        let deltas = pass.deltas::<T>()?;
        if is_scattered(attention, rows, run.threads.count()) {
            return pass.scattered::<T>(&deltas);
        }
        if attention.gradients.query.is_some() || attention.gradients.bias.is_some() {
            pass.query_side::<T>(&deltas)?;
        }
        if attention.gradients.key.is_some() || attention.gradients.value.is_some() {
            pass.key_side::<T>(&deltas)?;
        }
    }
    Ok(())
}

impl Pass<'_> {
    /// `Σ grad_out * out` of each query, where its log-sum-exp lies.
    ///
    /// # Safety
    /// `bound`.
    unsafe fn deltas<T: Float>(&self) -> Result<Vec<T::Sum>, Failure> {
        let attention = self.run.attention;
        let queries = count(&self.queries);
        let mut deltas = Vec::new();
        deltas.try_reserve_exact(queries).map_err(|_| Failure::OutOfMemory(queries.saturating_mul(8)))?;
        deltas.resize(queries, <T as Scalar>::ZERO);
        let to = Shared(deltas.as_mut_ptr());
        let width = self.rows.width;
        self.run.threads.for_pieces(
            queries,
            self.run.threads.piece(queries, 4),
            self.run.serial_seconds * 0.1,
            |range| {
                let with = self.with.get();
                for flat in range {
                    let at = offset(&attention.out, &self.queries, flat) + attention.out.offset;
                    // SAFETY: `bound`; each query has a log-sum-exp of its own, within the row-major ones.
                    unsafe {
                        let (out, grad) = (with.out.cast::<T>().offset(at), with.grad_out.cast::<T>().offset(at));
                        let term = |e: usize| {
                            let (a, b) = (out.add(e).read_unaligned(), grad.add(e).read_unaligned());
                            <T as Scalar>::mul(a.widen_float(), b.widen_float())
                        };
                        let sum = (0..width).map(term).fold(<T as Scalar>::ZERO, <T as Scalar>::add);
                        to.get().offset(offset(&attention.lse, &self.queries, flat)).write(sum);
                    }
                }
                Ok(())
            },
        )?;
        Ok(deltas)
    }

    /// Gradients of queries and of the bias.
    ///
    /// # Safety
    /// `bound`.
    unsafe fn query_side<T: Float>(&self, deltas: &[T::Sum]) -> Result<(), Failure> {
        let run = self.run;
        let queries = count(&self.queries);
        let work = |slopes: &mut Slopes<'_, T>, range: Range<usize>| {
            // SAFETY: `bound`; each query has a row of its own.
            unsafe { slopes.queries(range, deltas, None) }
        };
        let (piece, seconds) = (run.threads.piece(queries, 8), run.serial_seconds * 0.4);
        Ok(run.threads.for_pieces_with(queries, piece, seconds, || Slopes::new(self, false), work)?)
    }

    /// All gradients, one set of rows of keys and values after another.
    ///
    /// # Safety
    /// `bound`.
    unsafe fn scattered<T: Float>(&self, deltas: &[T::Sum]) -> Result<(), Failure> {
        let (run, with) = (self.run, self.with);
        let direct = T::DTYPE == <T::Sum as einfall_tensor::Element>::DTYPE;
        let mut sums: [Vec<T::Sum>; 2] = [Vec::new(), Vec::new()];
        let mut to = [std::ptr::null_mut::<T::Sum>(); 2];
        for (at, sums) in sums.iter_mut().enumerate() {
            let (gradient, elements) = (with.gradients[at + 1], with.elements[at + 1]);
            if gradient.is_null() {
                continue;
            }
            if direct {
                to[at] = gradient.cast();
                self.clear::<T::Sum>(to[at], elements)?;
            } else {
                let bytes = elements.saturating_mul(size_of::<T::Sum>());
                sums.try_reserve_exact(elements).map_err(|_| Failure::OutOfMemory(bytes))?;
                sums.resize(elements, <T as Scalar>::ZERO);
                to[at] = sums.as_mut_ptr();
            }
        }
        let sets = sets(run.attention);
        let rest: Vec<(usize, usize)> = self.queries.iter().copied().filter(|l| !sets.contains(l)).collect();
        let numbers = Numbers::of(&self.queries, run.attention.loops.len());
        // Queries that follow each other are asked for together.
        let runs = rest.iter().rev().zip(self.queries.iter().rev()).take_while(|(a, b)| a == b).count();
        let (apart, side) = rest.split_at(rest.len() - runs);
        let length = count(side);
        let to = [Shared(to[0]), Shared(to[1])];
        let work = |slopes: &mut Slopes<'_, T>, range: Range<usize>| {
            for set in range {
                let first = numbers.flat(&sets, set);
                for part in 0..count(apart) {
                    let first = first + numbers.flat(apart, part);
                    // SAFETY: `bound`; each set has rows of its own.
                    unsafe { slopes.queries(first..first + length, deltas, Some(to.map(Shared::get)))? };
                }
            }
            Ok(())
        };
        run.threads.for_pieces_with(count(&sets), 1, run.serial_seconds, || Slopes::new(self, true), work)?;
        for (at, sums) in sums.iter().enumerate().filter(|(_, sums)| !sums.is_empty()) {
            // SAFETY: `bound`: the gradient has so many elements.
            unsafe { store::<T>(sums, T::Sum::of(1.0), with.gradients[at + 1].cast()) };
        }
        Ok(())
    }

    /// Writes zeros.
    fn clear<S: Copy>(&self, to: *mut S, elements: usize) -> Result<(), Failure> {
        let to = Shared(to);
        let threads = self.run.threads;
        let seconds = elements as f64 * size_of::<S>() as f64 * 1e-10;
        Ok(threads.for_pieces(elements, threads.piece(elements, 2), seconds, |range| {
            // SAFETY: `bound`: the gradient has so many elements; all bits zero is the number 0.
            unsafe { to.get().add(range.start).write_bytes(0, range.len()) };
            Ok(())
        })?)
    }

    /// Gradients of keys and values.
    ///
    /// # Safety
    /// `bound`.
    unsafe fn key_side<T: Float>(&self, deltas: &[T::Sum]) -> Result<(), Failure> {
        let run = self.run;
        let attention = run.attention;
        let sets = sets(attention);
        let (tables, others): (Vec<_>, Vec<_>) = sets.iter().partition(|(at, _)| moves_keys(attention, *at));
        let rest: Vec<(usize, usize)> = self.queries.iter().copied().filter(|l| !sets.contains(l)).collect();
        let side = Side::new::<T>(self, &tables, &others, &rest);
        let (units, all) = (count(&tables), count(&others) * side.axis);
        let seconds = run.serial_seconds * 0.6;
        if units >= 2 * run.threads.count() {
            let work = |inverse: &mut Inverse, range: Range<usize>| {
                range.into_iter().try_for_each(|unit| {
                    // SAFETY: `bound`; each unit has rows of its own.
                    unsafe {
                        side.invert(unit, inverse)?;
                        side.write::<T>(unit, inverse, deltas, 0..all);
                    }
                    Ok(())
                })
            };
            return Ok(run.threads.for_pieces_with(units, 1, seconds, Inverse::default, work)?);
        }
        let mut inverse = Inverse::default();
        for unit in 0..units {
            // SAFETY: `bound`.
            unsafe { side.invert(unit, &mut inverse)? };
            let inverse = &inverse;
            run.threads.for_pieces(all, run.threads.piece(all, 16), seconds, |range| {
                // SAFETY: `bound`; each row is in one piece.
                unsafe { side.write::<T>(unit, inverse, deltas, range) };
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Probabilities of scores, from the log-sum-exp of their query.
pub(super) fn probabilities<T: Float>(run: &AttentionRun<'_>, scores: &mut [T::Sum], factor: T::Sum, lse: T::Sum) {
    if lse == T::Sum::LEAST {
        scores.fill(<T as Scalar>::ZERO);
    } else {
        T::Sum::exponentials(run.isa, scores, factor, lse);
    }
}

/// Numbers of queries, from those of their loops.
struct Numbers(Vec<usize>);

impl Numbers {
    fn of(queries: &[(usize, usize)], loops: usize) -> Numbers {
        let mut number = vec![0; loops];
        let mut step = 1;
        for &(at, len) in queries.iter().rev() {
            number[at] = step;
            step *= len;
        }
        Numbers(number)
    }

    /// The number of iteration `flat` of some of the loops, where the others stand at their first.
    fn flat(&self, loops: &[(usize, usize)], mut flat: usize) -> usize {
        let part = |&(at, len): &(usize, usize)| {
            let value = flat % len;
            flat /= len;
            value * self.0[at]
        };
        loops.iter().rev().map(part).sum()
    }
}

/// The side of keys and values: which queries may look at their rows, and where what belongs to these lies.
struct Side<'a> {
    pass: &'a Pass<'a>,
    tables: Vec<(usize, usize)>,
    others: Vec<(usize, usize)>,
    rest: Vec<(usize, usize)>,
    /// Positions on the axis of keys.
    axis: usize,
    /// Of each query of a set: offsets in query, output, log-sum-exp and bias.
    query: Vec<isize>,
    out: Vec<isize>,
    lse: Vec<isize>,
    bias: Vec<isize>,
}

// SAFETY: as of `Pass`.
unsafe impl Sync for Side<'_> {}

/// A row's part of a block of pairs.
#[derive(Clone, Default)]
struct Part {
    pairs: Range<usize>,
    position: usize,
    set: usize,
}

impl<'a> Side<'a> {
    fn new<T: Float>(
        pass: &'a Pass<'a>,
        tables: &[(usize, usize)],
        others: &[(usize, usize)],
        rest: &[(usize, usize)],
    ) -> Self {
        let attention = pass.run.attention;
        let all = |access: &Access| (0..count(rest)).map(|flat| offset(access, rest, flat)).collect();
        Side {
            pass,
            tables: tables.to_vec(),
            others: others.to_vec(),
            rest: rest.to_vec(),
            axis: axis_of(&attention.key, pass.rows).expect("checked").len,
            query: all(&attention.query),
            out: all(&attention.out),
            lse: all(&attention.lse),
            bias: if attention.bias.is_some() { all(pass.bias) } else { Vec::new() },
        }
    }

    /// Where an access stands in a set.
    fn base(&self, access: &Access, unit: usize, set: usize) -> isize {
        access.offset + offset(access, &self.tables, unit) + offset(access, &self.others, set)
    }

    /// Lists the queries of each row.
    ///
    /// # Safety
    /// `bound`.
    unsafe fn invert(&self, unit: usize, inverse: &mut Inverse) -> Result<(), BadTable> {
        let Pass { run, rows, bias, ref queries, .. } = *self.pass;
        let mut keys = Keys::new(run, rows, bias);
        let mut walk = keys.walk(bias);
        let numbers = Numbers::of(queries, run.attention.loops.len());
        let first = numbers.flat(&self.tables, unit);
        let with_index = !self.bias.is_empty();
        inverse.begin(self.axis, with_index);
        let axis = axis_of(&run.attention.key, rows).expect("checked");
        let mut found = Found::default();
        for query in 0..count(&self.rest) {
            let flat = first + numbers.flat(&self.rest, query);
            walk.seek(flat);
            found.clear();
            // SAFETY: by the caller.
            unsafe {
                let (among, limit) = keys.range(flat);
                keys.find_all(&walk, among, limit, &mut found)?;
                let base = walk.plain_offset(super::keys::KEY);
                let positions = found.keys.iter().map(|&offset| axis.position(offset - base));
                inverse.add(query as u32, positions, &found.index);
            }
        }
        inverse.sort();
        Ok(())
    }

    /// Writes the gradients of rows `range`, numbered by set, then by position.
    ///
    /// # Safety
    /// `bound`; nobody else writes these rows.
    unsafe fn write<T: Float>(&self, unit: usize, inverse: &Inverse, deltas: &[T::Sum], range: Range<usize>) {
        let mut block = Block::<T>::default();
        let mut at = range.start;
        while at < range.end {
            block.parts.clear();
            block.pairs = 0;
            while at < range.end && block.parts.len() < ROWS {
                let (set, position) = (at / self.axis, at % self.axis);
                let more = inverse.row(position).len();
                if block.pairs > 0 && block.pairs + more > BLOCK {
                    break;
                }
                block.parts.push(Part { pairs: block.pairs..block.pairs + more, position, set });
                block.pairs += more;
                at += 1;
            }
            // SAFETY: by the caller.
            unsafe { self.rows_of(unit, inverse, deltas, &mut block) };
        }
    }

    /// # Safety
    /// As [`Side::write`].
    unsafe fn rows_of<T: Float>(&self, unit: usize, inverse: &Inverse, deltas: &[T::Sum], block: &mut Block<T>) {
        let Pass { run, rows, with, .. } = *self.pass;
        let attention = run.attention;
        let Block { parts, pairs, queries, outs, probabilities, slopes, sums } = block;
        for buffer in [&mut *probabilities, &mut *slopes] {
            buffer.resize(*pairs, <T as Scalar>::ZERO);
        }
        queries.clear();
        outs.clear();
        for part in &*parts {
            queries.extend(inverse.row(part.position).iter().map(|&query| self.query[query as usize]));
            outs.extend(inverse.row(part.position).iter().map(|&query| self.out[query as usize]));
        }
        let axes = [&attention.key, &attention.value].map(|access| axis_of(access, rows).expect("checked"));
        let row = |which: usize, access: &Access, part: &Part| {
            self.base(access, unit, part.set) + part.position as isize * axes[which].stride
        };
        // SAFETY: by the caller: rows and queries are those of the loops.
        unsafe {
            let dots = |which: usize, rows: *const u8, access: &Access, offsets: &[isize], to: &mut [T::Sum]| {
                let own = [&attention.key, &attention.value][which];
                let list = |part: &Part| DotList {
                    x: run.operands[which + 1].cast::<T>().offset(row(which, own, part)),
                    rows: rows.cast::<T>().offset(self.base(access, unit, part.set)),
                    offsets: offsets.as_ptr().add(part.pairs.start),
                    count: part.pairs.len(),
                    out: to.as_mut_ptr().add(part.pairs.start),
                };
                parts.iter().map(list).collect::<smallvec::SmallVec<[DotList<T>; ROWS]>>()
            };
            let lists = dots(0, run.operands[0], &attention.query, queries, probabilities);
            row_dots(run.isa, rows.depth, &lists);
            let lists = dots(1, with.grad_out, &attention.out, outs, slopes);
            row_dots(run.isa, rows.width, &lists);
            let factor = T::Sum::of(attention.scale.get());
            for part in &*parts {
                let (saved, bias) =
                    (self.base(&attention.lse, unit, part.set), self.base(self.pass.bias, unit, part.set));
                let indices = inverse.indices(part.position);
                let lse = with.lse.cast::<T::Sum>().offset(saved);
                for (i, &query) in inverse.row(part.position).iter().enumerate() {
                    let score = &mut probabilities[part.pairs.start + i];
                    let lse = lse.offset(self.lse[query as usize]).read_unaligned();
                    // As the queries' side rounds it.
                    let scaled = match &attention.bias {
                        None => <T as Scalar>::mul(*score, factor),
                        Some(access) => {
                            let at = bias + self.bias[query as usize] + bias_step(attention, access, indices[i]);
                            let added = super::gather::bias_at::<T>(run, at);
                            T::Sum::of(score.wide() * factor.wide() + added.wide())
                        }
                    };
                    *score = if lse == T::Sum::LEAST { lse } else { <T as Scalar>::add(scaled, lse.negative()) };
                }
            }
            T::Sum::exponentials(run.isa, probabilities, T::Sum::of(1.0), <T as Scalar>::ZERO);
            for part in &*parts {
                let saved = self.base(&attention.lse, unit, part.set);
                for (i, &query) in inverse.row(part.position).iter().enumerate() {
                    let slope = &mut slopes[part.pairs.start + i];
                    let delta = deltas[(saved + self.lse[query as usize]) as usize];
                    *slope = <T as Scalar>::add(*slope, delta.negative());
                }
            }
            T::Sum::slopes(run.isa, probabilities, slopes, <T as Scalar>::ZERO, factor);
            let mut write = |gradient: &Option<Access>,
                             to: *mut u8,
                             source: (*const u8, &Access),
                             offsets: &[isize],
                             weights: &[T::Sum],
                             len: usize| {
                let Some(gradient) = gradient else { return };
                sums.resize(parts.len() * len, <T as Scalar>::ZERO);
                let acc = sums.as_mut_ptr();
                let list = |(at, part): (usize, &Part)| AxpyList {
                    weights: weights.as_ptr().add(part.pairs.start),
                    rows: source.0.cast::<T>().offset(self.base(source.1, unit, part.set)),
                    offsets: offsets.as_ptr().add(part.pairs.start),
                    count: part.pairs.len(),
                    acc: acc.add(at * len),
                };
                let lists: smallvec::SmallVec<[AxpyList<T, T::Sum>; ROWS]> =
                    parts.iter().enumerate().map(list).collect();
                row_axpys(run.isa, len, &lists, false);
                let stride = axis_of(gradient, rows).expect("checked").stride;
                for (at, part) in parts.iter().enumerate() {
                    let offset = self.base(gradient, unit, part.set) + part.position as isize * stride;
                    store::<T>(&sums[at * len..(at + 1) * len], T::Sum::of(1.0), to.cast::<T>().offset(offset));
                }
            };
            let gradients = &attention.gradients;
            let from = (with.grad_out, &attention.out);
            write(&gradients.value, with.gradients[2], from, outs, probabilities, rows.width);
            let from = (run.operands[0], &attention.query);
            write(&gradients.key, with.gradients[1], from, queries, slopes, rows.depth);
        }
    }
}

/// Rows whose gradients are computed at once.
struct Block<T: Float> {
    parts: Vec<Part>,
    pairs: usize,
    queries: Vec<isize>,
    outs: Vec<isize>,
    probabilities: Vec<T::Sum>,
    slopes: Vec<T::Sum>,
    sums: Vec<T::Sum>,
}

impl<T: Float> Default for Block<T> {
    fn default() -> Self {
        Block {
            parts: Vec::new(),
            pairs: 0,
            queries: Vec::new(),
            outs: Vec::new(),
            probabilities: Vec::new(),
            slopes: Vec::new(),
            sums: Vec::new(),
        }
    }
}
