//! Probabilities and slopes of the scores of queries, one query after another, and what is added up from them: gradients of
//! queries and of the bias, and, where one thread has all queries that look at a set of rows, those of keys and values.
//!
//! *In*: queries in their order, with their log-sum-exp. *Out*: gradients. *Callers*: the gradients of attention.
//!
//! Keys and values are added to in memory, row by row in the order of queries: five products a pair, and the bits of sums
//! along the inverse of the table.

use std::ops::Range;

use einfall_plan::Access;

use super::gather::{Float, Real, Widen, bias_step, scale, store};
use super::gradients::{Pass, probabilities};
use super::keys::{BIAS, Found, KEY, Keys, LSE, OUT, QUERY, Queries, VALUE};
use crate::kernels::exp::Exponent;
use crate::kernels::rows::{AxpyList, DotList, ScatterList, row_axpys, row_dots, row_scatter};
use crate::scalar::Scalar;
use crate::walk::{BadTable, Walk};

/// Pairs whose slopes are computed at once, and queries that are taken at once, if their pairs fit.
const BLOCK: usize = 1024;
const QUERIES: usize = 32;

/// The gradients in the order of a walk over them.
const TO_QUERY: usize = 0;
const TO_KEY: usize = 1;
const TO_VALUE: usize = 2;
const TO_BIAS: usize = 3;

/// A query's part of a batch.
#[derive(Clone, Default)]
struct Part {
    pairs: Range<usize>,
    /// Where the walk over operands stands.
    place: [isize; 6],
    /// Where the walk over gradients stands.
    to: [isize; 4],
}

/// What a thread needs to go through queries.
pub(super) struct Slopes<'a, T: Float> {
    pass: &'a Pass<'a>,
    keys: Keys<'a>,
    walk: Queries<'a>,
    to: Walk<'a, 4>,
    /// The rows of the gradients of keys and values, where they do not lie as those of the operands.
    apart: Option<(Keys<'a>, Queries<'a>, Found)>,
    together: usize,
    /// The query at which the walks stand.
    at: usize,
    parts: Vec<Part>,
    found: Found,
    probabilities: Vec<T::Sum>,
    slopes: Vec<T::Sum>,
    sums: Vec<T::Sum>,
}

/// Whether loops over keys move two accesses alike.
fn alike(pass: &Pass<'_>, a: &Access, b: &Access) -> bool {
    let strides = |access: &Access| -> (Vec<isize>, Vec<isize>) {
        let steps = access.lookups.iter().map(|lookup| lookup.stride);
        let loops = pass.rows.outer_keys.iter().map(|&(at, _)| at).chain([pass.rows.at]);
        (
            steps.chain(access.windows.iter().map(|window| window.stride)).collect(),
            loops.map(|at| access.strides[at]).collect(),
        )
    };
    strides(a) == strides(b)
}

impl<'a, T: Float> Slopes<'a, T> {
    /// `scattered`: whether gradients of keys and values are added to.
    pub fn new(pass: &'a Pass<'a>, scattered: bool) -> Self {
        let (run, rows) = (pass.run, pass.rows);
        let attention = run.attention;
        let gradients = &attention.gradients;
        let keys = Keys::new(run, rows, pass.bias);
        let walk = keys.walk(pass.bias);
        let [query, bias] = [&gradients.query, &gradients.bias].map(|to| to.as_ref().unwrap_or(pass.nowhere));
        let key = gradients.key.as_ref().unwrap_or(&attention.key);
        let value = gradients.value.as_ref().unwrap_or(&attention.value);
        let to = Walk::new([query, key, value, bias], pass.queries.iter().copied(), run.tables, attention.bounds);
        let same = alike(pass, key, &attention.key) && alike(pass, value, &attention.value);
        let apart = (scattered && !same).then(|| {
            let keys = Keys::of(run, rows, pass.bias, [key, value]);
            let walk = keys.walk(pass.bias);
            (keys, walk, Found::default())
        });
        let of_query = rows.len.saturating_mul(rows.turns);
        let short = of_query <= BLOCK && attention.ragged.is_none();
        let together = if short { (BLOCK / of_query.max(1)).clamp(1, QUERIES) } else { 1 };
        Slopes {
            pass,
            keys,
            walk,
            to,
            apart,
            together,
            at: 0,
            parts: Vec::new(),
            found: Found::default(),
            probabilities: Vec::new(),
            slopes: Vec::new(),
            sums: Vec::new(),
        }
    }

    /// Goes through queries, numbered in the order of their loops; adds to keys and values where there is a place for that.
    ///
    /// # Errors
    /// [`BadTable`].
    ///
    /// # Safety
    /// `bound`; nobody else writes what belongs to these queries, nor the rows that they look at.
    pub unsafe fn queries(
        &mut self,
        range: Range<usize>,
        deltas: &[T::Sum],
        rows: Option<[*mut T::Sum; 2]>,
    ) -> Result<(), BadTable> {
        if self.at != range.start {
            self.at = range.start;
            self.walk.seek(range.start);
            self.to.seek(range.start);
            if let Some((_, walk, _)) = &mut self.apart {
                walk.seek(range.start);
            }
        }
        while self.at < range.end {
            let count = self.together.min(range.end - self.at);
            // SAFETY: by the caller.
            unsafe {
                self.find(count)?;
                self.batch(deltas);
                if let Some(rows) = rows {
                    self.scatter(rows);
                }
            }
        }
        Ok(())
    }

    /// Finds the keys of the next queries.
    ///
    /// # Safety
    /// As [`Slopes::queries`].
    unsafe fn find(&mut self, count: usize) -> Result<(), BadTable> {
        self.found.clear();
        self.parts.clear();
        if let Some((_, _, found)) = &mut self.apart {
            found.clear();
        }
        for _ in 0..count {
            let from = self.found.keys.len();
            let place = [QUERY, KEY, VALUE, BIAS, OUT, LSE].map(|which| self.walk.plain_offset(which));
            let to = [TO_QUERY, TO_KEY, TO_VALUE, TO_BIAS].map(|which| self.to.plain_offset(which));
            // SAFETY: by the caller.
            unsafe {
                let (among, limit) = self.keys.range(self.at);
                self.keys.find_all(&self.walk, among.clone(), limit, &mut self.found)?;
                if let Some((keys, walk, found)) = &mut self.apart {
                    keys.find_all(walk, among, limit, found)?;
                    walk.step();
                }
            }
            self.parts.push(Part { pairs: from..self.found.keys.len(), place, to });
            self.walk.step();
            self.to.step();
            self.at += 1;
        }
        Ok(())
    }

    /// Probabilities and slopes of all pairs, gradients of queries and of the bias.
    ///
    /// # Safety
    /// As [`Slopes::queries`].
    unsafe fn batch(&mut self, deltas: &[T::Sum]) {
        let Pass { run, rows, with, .. } = *self.pass;
        let attention = run.attention;
        let gradients = &attention.gradients;
        let Slopes { parts, found, probabilities: weights, slopes, sums, .. } = self;
        for buffer in [&mut *weights, &mut *slopes] {
            buffer.resize(found.keys.len(), <T as Scalar>::ZERO);
        }
        // SAFETY: by the caller; every offset was found by the walks.
        unsafe {
            let dots = |which: usize, x: *const u8, rows: *const u8, offsets: &[isize], out: &mut [T::Sum]| {
                let list = |part: &Part| DotList {
                    x: x.cast::<T>().offset(part.place[which]),
                    rows: rows.cast::<T>(),
                    offsets: offsets.as_ptr().add(part.pairs.start),
                    count: part.pairs.len(),
                    out: out.as_mut_ptr().add(part.pairs.start),
                };
                parts.iter().map(list).collect::<smallvec::SmallVec<[DotList<T>; QUERIES]>>()
            };
            let lists = dots(QUERY, run.operands[0], run.operands[1], &found.keys, weights);
            row_dots(run.isa, rows.depth, &lists);
            let lists = dots(OUT, with.grad_out, run.operands[2], &found.values, slopes);
            row_dots(run.isa, rows.width, &lists);
            let by = T::Sum::of(attention.scale.get());
            let one = T::Sum::of(1.0);
            for part in &*parts {
                let (scores, index) = (&mut weights[part.pairs.clone()], &found.index[part.pairs.clone()]);
                let products = &mut slopes[part.pairs.clone()];
                let factor = scale::<T>(run, part.place[BIAS], index, scores);
                let saved = part.place[LSE];
                let lse = with.lse.cast::<T::Sum>().offset(saved).read_unaligned();
                probabilities::<T>(run, scores, factor, lse);
                let delta = deltas[saved as usize];
                let Some(bias) = &gradients.bias else {
                    T::Sum::slopes(run.isa, scores, products, delta, by);
                    continue;
                };
                T::Sum::slopes(run.isa, scores, products, delta, one);
                for (slope, &index) in products.iter_mut().zip(index) {
                    let at = part.to[TO_BIAS] + bias_step(attention, bias, index);
                    write_bias::<T>(run, with.gradients[3], at, *slope);
                    *slope = <T as Scalar>::mul(*slope, by);
                }
            }
            if gradients.query.is_some() {
                sums.resize(parts.len() * rows.depth, <T as Scalar>::ZERO);
                let acc = sums.as_mut_ptr();
                let list = |(at, part): (usize, &Part)| AxpyList {
                    weights: slopes.as_ptr().add(part.pairs.start),
                    rows: run.operands[1].cast::<T>(),
                    offsets: found.keys.as_ptr().add(part.pairs.start),
                    count: part.pairs.len(),
                    acc: acc.add(at * rows.depth),
                };
                let lists: smallvec::SmallVec<[AxpyList<T, T::Sum>; QUERIES]> =
                    parts.iter().enumerate().map(list).collect();
                row_axpys(run.isa, rows.depth, &lists, false);
                for (at, part) in parts.iter().enumerate() {
                    let sums = &sums[at * rows.depth..(at + 1) * rows.depth];
                    store::<T>(sums, one, with.gradients[0].cast::<T>().offset(part.to[TO_QUERY]));
                }
            }
        }
    }

    /// Adds to the rows of keys and values.
    ///
    /// # Safety
    /// As [`Slopes::queries`].
    unsafe fn scatter(&mut self, to: [*mut T::Sum; 2]) {
        let Pass { run, rows, with, .. } = *self.pass;
        let found = self.apart.as_ref().map_or(&self.found, |(_, _, found)| found);
        for part in &self.parts {
            let add = |which: usize, x: *const T, weights: &[T::Sum], offsets: &[isize], d: usize| {
                if to[which].is_null() {
                    return;
                }
                // Rows that lie as those of the operand are counted from where the operand's are.
                let shift = if self.apart.is_some() { 0 } else { part.to[TO_KEY + which] - part.place[KEY + which] };
                // SAFETY: by the caller: rows of gradients are at the offsets of their walk; there is a weight for each.
                unsafe {
                    let list = ScatterList {
                        weights: weights.as_ptr().add(part.pairs.start),
                        x,
                        rows: to[which].wrapping_offset(shift),
                        offsets: offsets.as_ptr().add(part.pairs.start),
                        count: part.pairs.len(),
                    };
                    row_scatter(run.isa, d, &list);
                }
            };
            let query = run.operands[0].cast::<T>().wrapping_offset(part.place[QUERY]);
            add(0, query, &self.slopes, &found.keys, rows.depth);
            let grad = with.grad_out.cast::<T>().wrapping_offset(part.place[OUT]);
            add(1, grad, &self.probabilities, &found.values, rows.width);
        }
    }
}

/// # Safety
/// The element is in the gradient.
unsafe fn write_bias<T: Float>(run: &super::AttentionRun<'_>, to: *mut u8, at: isize, slope: T::Sum) {
    // SAFETY: by the caller; the type is one of the two.
    unsafe {
        if run.attention.bias_dtype == T::DTYPE {
            to.cast::<T>().offset(at).write_unaligned(T::narrow_float(slope));
        } else {
            to.cast::<T::Sum>().offset(at).write_unaligned(slope);
        }
    }
}
