//! Attention as written: loops over lists, heads and keys. Runs everything, at the speed of scalar code.
//!
//! Scores and sums are kept in `f64`. Forward, lists are independent of one another. Backward, gradients are summed one
//! list after another into accumulators, so that their order is that of the loops.

use std::ops::Range;

use einfall_plan::{
    Access, Attention, AttentionRole, Bounds, Cost, Estimate, Gradients, Machine, Pass, Way, WindowAccess,
};
use einfall_tensor::DType;
use einfall_tensor::half::{bf16, f16};

use super::{AttentionRun, Backward, Failure, Written, with_float};
use crate::walk::BadTable;

/// Measured: a multiply-add with its loads and conversions.
const STEP_SECONDS: f64 = 1.5e-9;

/// What the kernel would cost.
///
/// # Errors
/// Never: it runs everything.
pub fn estimate(attention: &Attention, pass: Pass, machine: &Machine) -> Result<Estimate, String> {
    let flops = attention.flops(pass);
    let steps = flops / 2.0 + 30.0 * attention.pairs();
    let gradients = attention.gradients.wanted().map(|access| span(attention, access)).sum::<usize>();
    let threads = if pass == Pass::Forward { machine.threads as f64 } else { 1.0 };
    let seconds = 1e-6 + steps * STEP_SECONDS / threads;
    let cost = Cost { flops, bytes: attention.distinct_bytes(pass), seconds };
    Ok(Estimate { way: Way::Nest, cost, workspace_bytes: gradients.saturating_mul(8) })
}

/// Elements from the first to the last that a row-major access reaches.
fn span(attention: &Attention, access: &Access) -> usize {
    let axes = access.lookups.iter().map(|lookup| (lookup.len, lookup.stride));
    let axes = axes.chain(access.windows.iter().map(|window| (window.len, window.stride)));
    let loops = attention.loops.iter().zip(&access.strides).map(|(l, &stride)| (l.len, stride));
    let all: Vec<(usize, isize)> = loops.chain(axes).filter(|&(_, stride)| stride != 0).collect();
    if all.iter().any(|&(len, _)| len == 0) {
        return 0;
    }
    1 + all.iter().map(|&(len, stride)| (len - 1) * stride.unsigned_abs()).sum::<usize>()
}

/// A real number in memory.
trait Real: Copy + Send + Sync {
    fn get(self) -> f64;
    fn put(value: f64) -> Self;
}

macro_rules! real {
    ($($T:ty, |$x:ident| $get:expr, $put:expr;)*) => {$(
        impl Real for $T {
            fn get(self) -> f64 {
                let $x = self;
                $get
            }

            fn put($x: f64) -> Self {
                $put
            }
        }
    )*};
}

real! {
    f16, |x| x.to_f64(), f16::from_f64(x);
    bf16, |x| x.to_f64(), bf16::from_f64(x);
    f32, |x| f64::from(x), x as f32;
    f64, |x| x, x;
}

/// # Safety
/// The element is in memory of type `dtype`.
unsafe fn read(pointer: *const u8, dtype: DType, at: isize) -> f64 {
    // SAFETY: by the caller; unaligned reads.
    with_float!(dtype, T => unsafe { pointer.cast::<T>().offset(at).read_unaligned().get() })
}

/// # Safety
/// As [`read`], and nobody else writes the element.
unsafe fn write(pointer: *mut u8, dtype: DType, at: isize, value: f64) {
    // SAFETY: by the caller; unaligned writes.
    with_float!(dtype, T => unsafe { pointer.cast::<T>().offset(at).write_unaligned(T::put(value)) });
}

/// Offset of an access from the values of all loops, without its lookups and windows.
fn plain(access: &Access, counters: &[usize]) -> isize {
    let steps = access.strides.iter().zip(counters).map(|(&stride, &counter)| stride * counter as isize);
    access.offset + steps.sum::<isize>()
}

/// Offsets along loops of one role, from where the others put an access.
fn along(run: &AttentionRun<'_>, access: &Access, role: AttentionRole) -> Vec<isize> {
    let mut offsets = vec![0];
    for (at, len) in run.loops(&[role]) {
        let step = |&from: &isize| (0..len).map(move |i| from + i as isize * access.strides[at]);
        offsets = offsets.iter().flat_map(step).collect();
    }
    offsets
}

/// Sets the counters of some loops to those of iteration `flat`.
fn decode(loops: &[(usize, usize)], mut flat: usize, counters: &mut [usize]) {
    for &(at, len) in loops.iter().rev() {
        counters[at] = flat % len;
        flat /= len;
    }
}

/// A key of a query that counts.
struct Found {
    /// The values of the loops over keys.
    index: usize,
    /// Where its row begins, and that of its value.
    rows: [isize; 2],
    /// The same in the gradients.
    gradients: [isize; 2],
    /// The score, then its probability.
    weight: f64,
}

/// What is the same for all queries.
struct Nest<'a> {
    run: &'a AttentionRun<'a>,
    outer: Vec<(usize, usize)>,
    keys: Vec<(usize, usize)>,
    /// Along a query's row and a key's.
    depth: [Vec<isize>; 2],
    /// Along a value's row and the output's.
    width: [Vec<isize>; 2],
}

impl<'a> Nest<'a> {
    fn new(run: &'a AttentionRun<'a>) -> Self {
        let attention = run.attention;
        Nest {
            run,
            outer: run.loops(&[AttentionRole::List, AttentionRole::Head]),
            keys: run.loops(&[AttentionRole::Key]),
            depth: [&attention.query, &attention.key].map(|access| along(run, access, AttentionRole::Depth)),
            width: [&attention.value, &attention.out].map(|access| along(run, access, AttentionRole::Width)),
        }
    }

    fn queries(&self) -> usize {
        self.outer.iter().map(|(_, len)| len).product()
    }

    /// Where an access's row begins at the current key; `None` where it is left out.
    ///
    /// # Safety
    /// `bound`.
    unsafe fn row(&self, access: &Access, counters: &[usize]) -> Result<Option<isize>, BadTable> {
        let mut offset = plain(access, counters);
        for lookup in &access.lookups {
            let steps = lookup.table_strides.iter().zip(counters).map(|(&stride, &counter)| stride * counter as isize);
            let entry = lookup.table_offset + steps.sum::<isize>();
            // SAFETY: by the caller.
            match unsafe { self.run.tables[lookup.table].value(entry, lookup.len) } {
                Some(value) => offset += value as isize * lookup.stride,
                None if self.run.attention.bounds == Bounds::Error => return Err(BadTable),
                None => return Ok(None),
            }
        }
        for window in &access.windows {
            let position = position(window, counters);
            if position as u64 >= window.len as u64 {
                return Ok(None);
            }
            offset += position as isize * window.stride;
        }
        Ok(Some(offset))
    }

    /// The keys of a query that count, with their scores.
    ///
    /// # Safety
    /// `bound`.
    unsafe fn find(&self, counters: &mut [usize], found: &mut Vec<Found>) -> Result<(), BadTable> {
        let attention = self.run.attention;
        found.clear();
        // SAFETY: by the caller.
        let range = unsafe { self.run.keys_at(counters) };
        let query = plain(&attention.query, counters);
        for index in range {
            decode(&self.keys, index, counters);
            // SAFETY: by the caller.
            unsafe {
                let row = |access: &Access| self.row(access, counters);
                let (Some(key), Some(value)) = (row(&attention.key)?, row(&attention.value)?) else { continue };
                if !self.is_seen(counters, index) {
                    continue;
                }
                let gradient = |access: &Option<Access>| access.as_ref().map_or(Ok(Some(0)), row);
                let gradients = [gradient(&attention.gradients.key)?, gradient(&attention.gradients.value)?];
                let gradients = gradients.map(|offset| offset.expect("it is where its operand is"));
                let weight = self.score(query, key, counters);
                found.push(Found { index, rows: [key, value], gradients, weight });
            }
        }
        self.keys.iter().for_each(|&(at, _)| counters[at] = 0);
        Ok(())
    }

    /// Whether a causal mask lets the query see the key.
    ///
    /// # Safety
    /// `bound`, and the key is there.
    unsafe fn is_seen(&self, counters: &[usize], index: usize) -> bool {
        let attention = self.run.attention;
        let Some(limit) = &attention.limit else { return true };
        let steps = limit.strides.iter().zip(counters).map(|(&stride, &counter)| stride * counter as i64);
        let limit = limit.offset + steps.sum::<i64>();
        let key = &attention.key;
        let at = match (key.lookups.first(), key.windows.first()) {
            (Some(lookup), _) => {
                let steps = lookup.table_strides.iter().zip(counters).map(|(&stride, &i)| stride * i as isize);
                let entry = lookup.table_offset + steps.sum::<isize>();
                // SAFETY: by the caller.
                unsafe { self.run.tables[lookup.table].value(entry, lookup.len) }.map_or(i64::MAX, |value| value as i64)
            }
            (None, Some(window)) => position(window, counters),
            (None, None) => index as i64,
        };
        at <= limit
    }

    /// # Safety
    /// `bound`: the rows begin there.
    unsafe fn score(&self, query: isize, key: isize, counters: &[usize]) -> f64 {
        let attention = self.run.attention;
        let [queries, keys, _, biases] = self.run.operands;
        let term = |(&q, &k): (&isize, &isize)| {
            // SAFETY: by the caller.
            unsafe { read(queries, attention.dtype, query + q) * read(keys, attention.dtype, key + k) }
        };
        let sum: f64 = self.depth[0].iter().zip(&self.depth[1]).map(term).sum();
        let scaled = sum * attention.scale.get();
        match &attention.bias {
            // SAFETY: by the caller.
            Some(bias) => scaled + unsafe { read(biases, attention.bias_dtype, plain(bias, counters)) },
            None => scaled,
        }
    }
}

fn position(window: &WindowAccess, counters: &[usize]) -> i64 {
    let steps = window.coefficients.iter().zip(counters).map(|(&by, &counter)| by * counter as i64);
    window.offset + steps.sum::<i64>()
}

/// Turns scores into probabilities, and gives their log-sum-exp.
fn softmax(found: &mut [Found]) -> f64 {
    let most = found.iter().map(|found| found.weight).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = found.iter().map(|found| (found.weight - most).exp()).sum();
    if found.iter().all(|found| found.weight == f64::NEG_INFINITY) {
        return f64::NEG_INFINITY;
    }
    found.iter_mut().for_each(|found| found.weight = (found.weight - most).exp() / sum);
    most + sum.ln()
}

/// Runs the attention.
///
/// # Errors
/// [`Failure`].
///
/// # Safety
/// `run` and `to` keep the invariant `bound`.
pub unsafe fn forward(run: &AttentionRun<'_>, to: Written) -> Result<(), Failure> {
    let nest = Nest::new(run);
    let attention = run.attention;
    let queries = nest.queries();
    let work = |range: Range<usize>| {
        let to = to.get();
        let (mut counters, mut found) = (vec![0; attention.loops.len()], Vec::new());
        for flat in range {
            decode(&nest.outer, flat, &mut counters);
            // SAFETY: by the caller; queries write distinct elements.
            unsafe {
                nest.find(&mut counters, &mut found)?;
                let lse = softmax(&mut found);
                let out = plain(&attention.out, &counters);
                for (&column, &at) in nest.width[0].iter().zip(&nest.width[1]) {
                    let value = |found: &Found| read(run.operands[2], attention.dtype, found.rows[1] + column);
                    let sum = if lse == f64::NEG_INFINITY {
                        0.0
                    } else {
                        found.iter().map(|found| found.weight * value(found)).sum()
                    };
                    write(to.out, attention.dtype, out + at, sum);
                }
                if !to.lse.is_null() {
                    write(to.lse, attention.accumulator, plain(&attention.lse, &counters), lse);
                }
            }
        }
        Ok(())
    };
    Ok(run.threads.for_pieces(queries, run.threads.piece(queries, 8), run.serial_seconds, work)?)
}

/// A gradient that is summed up: row-major, from its first element on.
struct Sum {
    values: Vec<f64>,
    wanted: bool,
}

impl Sum {
    fn new(access: Option<&Access>, len: usize) -> Result<Self, Failure> {
        let mut values = Vec::new();
        values.try_reserve_exact(len).map_err(|_| Failure::OutOfMemory(len.saturating_mul(8)))?;
        values.resize(len, 0.0);
        Ok(Sum { values, wanted: access.is_some() })
    }

    fn add(&mut self, at: isize, value: f64) {
        if self.wanted {
            self.values[at as usize] += value;
        }
    }
}

/// The gradients.
///
/// # Errors
/// [`Failure`].
///
/// # Safety
/// `run` and `with` keep the invariant `bound`.
pub unsafe fn backward(run: &AttentionRun<'_>, with: Backward) -> Result<(), Failure> {
    let nest = Nest::new(run);
    let attention = run.attention;
    let Gradients { query, key, value, bias } = &attention.gradients;
    let wanted = [query, key, value, bias].map(Option::as_ref);
    let mut sums = Vec::with_capacity(4);
    for (access, len) in wanted.into_iter().zip(with.elements) {
        sums.push(Sum::new(access, len)?);
    }
    let offsets = |access: Option<&Access>, role| access.map_or(Vec::new(), |access| along(run, access, role));
    let gradient_depth = [wanted[0], wanted[1]].map(|access| offsets(access, AttentionRole::Depth));
    let gradient_width = offsets(wanted[2], AttentionRole::Width);
    let (mut counters, mut found) = (vec![0; attention.loops.len()], Vec::new());
    for flat in 0..nest.queries() {
        decode(&nest.outer, flat, &mut counters);
        // SAFETY: by the caller.
        unsafe {
            nest.find(&mut counters, &mut found)?;
            let lse = read(with.lse, attention.accumulator, plain(&attention.lse, &counters));
            if lse == f64::NEG_INFINITY {
                continue;
            }
            let (out, from) = (plain(&attention.out, &counters), plain(&attention.query, &counters));
            let grad_out = |at: isize| read(with.grad_out, attention.dtype, out + at);
            let saved = |&at: &isize| read(with.out, attention.dtype, out + at) * grad_out(at);
            let delta: f64 = nest.width[1].iter().map(saved).sum();
            for found in &found {
                let probability = (found.weight - lse).exp();
                let mut slope = 0.0;
                for (at, (&column, &to)) in nest.width[0].iter().zip(&nest.width[1]).enumerate() {
                    slope += grad_out(to) * read(run.operands[2], attention.dtype, found.rows[1] + column);
                    if let Some(&column) = gradient_width.get(at) {
                        sums[2].add(found.gradients[1] + column, probability * grad_out(to));
                    }
                }
                let slope = probability * (slope - delta);
                decode(&nest.keys, found.index, &mut counters);
                if let Some(bias) = wanted[3] {
                    sums[3].add(plain(bias, &counters), slope);
                }
                let scaled = slope * attention.scale.get();
                let query_row = wanted[0].map_or(0, |access| plain(access, &counters));
                for (at, (&q, &k)) in nest.depth[0].iter().zip(&nest.depth[1]).enumerate() {
                    if let Some(&to) = gradient_depth[0].get(at) {
                        let value = read(run.operands[1], attention.dtype, found.rows[0] + k);
                        sums[0].add(query_row + to, scaled * value);
                    }
                    if let Some(&to) = gradient_depth[1].get(at) {
                        let value = read(run.operands[0], attention.dtype, from + q);
                        sums[1].add(found.gradients[0] + to, scaled * value);
                    }
                }
                nest.keys.iter().for_each(|&(at, _)| counters[at] = 0);
            }
        }
    }
    for (operand, sum) in sums.iter().enumerate() {
        let dtype = if operand == 3 { attention.bias_dtype } else { attention.dtype };
        for (at, &value) in sum.values.iter().enumerate() {
            // SAFETY: by the caller: the gradient has so many elements, and is row-major.
            unsafe { write(with.gradients[operand], dtype, at as isize, value) };
        }
    }
    Ok(())
}
