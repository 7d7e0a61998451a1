//! `inverted`: an output scattered through one table. The table is inverted by a counting sort, so that each row of the
//! output is the weighted sum of a list of rows, which one task adds up in the order of the loops.
//!
//! Sparse × dense in coordinate form, messages of a graph, gradients of whatever is looked up. Each row is written by
//! one task: no atomics, and the same bits for any number of threads. Floor: the table three times, each row of the
//! input once from the cache that holds them, the output once.

mod sort;
mod terms;

use einfall_plan::pattern::{ScatteredRows, Side, scattered_rows};
use einfall_plan::{Access, Contraction, Cost, Estimate, Machine, Way};
use einfall_tensor::with_element;

use self::sort::Inversion;
use self::terms::{LEFT_OUT, Terms};
use super::{Run, rows_cost};
use crate::kernels::rows::{AxpyList, RowElement, row_axpys as add_rows};
use crate::scalar::Scalar;
use crate::walk::{BadTable, Walk};

/// Entries whose offsets and weights are kept at once.
const BLOCK: usize = 1024;
/// Lists that are handed to the row kernel at once.
const LISTS: usize = 128;
/// Elements of a row that one task sums at most, so that few long rows still keep all threads busy.
const COLUMNS: usize = 512;
/// Largest workspace beside the data, bytes.
const LEAST_WORKSPACE: f64 = 64e6;

/// What each loop does; pairs of position in the nest and length, outermost first.
struct Shape {
    /// Loops that move the output plainly and its table: each of their iterations has an inversion of its own.
    tables: Vec<(usize, usize)>,
    /// Loops that move the output plainly and not its table: they share an inversion.
    shared: Vec<(usize, usize)>,
    /// Loops whose terms meet in the rows of the output, in the order in which they are added.
    terms: Vec<(usize, usize)>,
}

fn count(loops: &[(usize, usize)]) -> usize {
    loops.iter().map(|(_, len)| len).product()
}

impl Shape {
    fn of(contraction: &Contraction, inner: usize) -> Shape {
        let (out, lookup) = (&contraction.out, &contraction.out.lookups[0]);
        let mut shape = Shape { tables: Vec::new(), shared: Vec::new(), terms: Vec::new() };
        for (at, of) in contraction.loops.iter().enumerate().filter(|&(at, _)| at != inner) {
            let part = match (out.strides[at] != 0, lookup.table_strides[at] != 0) {
                (true, true) => &mut shape.tables,
                (true, false) => &mut shape.shared,
                (false, _) => &mut shape.terms,
            };
            part.push((at, of.len));
        }
        shape
    }

    /// Parts of the terms that are sorted at the same time. Every part counts all rows, so few rows pay for many parts.
    fn parts(&self, rows: usize, threads: usize) -> usize {
        threads.div_ceil(count(&self.tables).max(1)).min(count(&self.terms) / (4 * rows.max(1))).max(1)
    }
}

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    let ScatteredRows { rows, inner } = scattered_rows(contraction)?;
    if contraction.out_dtype != contraction.dtype.accumulator() {
        return Err("a scattered output accumulates in place".into());
    }
    if contraction.right.is_none() && contraction.dtype.is_complex() {
        return Err("times one an infinite complex number is none any more".into());
    }
    let shape = Shape::of(contraction, inner);
    let len = |loops: &[(usize, usize)]| loops.iter().map(|&(_, len)| len as f64).product::<f64>();
    let (tables, shared, terms) = (len(&shape.tables), len(&shape.shared), len(&shape.terms));
    if shape.terms.is_empty() || terms > f64::from(u32::MAX) {
        return Err(format!("cannot sort {terms} terms"));
    }
    let targets = contraction.out.lookups[0].len;
    let parts = shape.parts(targets, machine.threads);
    let workspace = tables * (parts as f64 * targets as f64 + terms) * size_of::<u32>() as f64;
    if workspace > LEAST_WORKSPACE + 4.0 * contraction.distinct_bytes() {
        return Err("the inverted table would be much larger than the data".into());
    }
    let threads = machine.threads as f64;
    let entries = tables * terms;
    let visits = entries * shared;
    let lists = (tables * shared * targets as f64).min(visits);
    let rows = rows.of(contraction).expect("matched");
    let tasks = tables * shared * targets as f64;
    // First guesses: see docs/decisions/0004-scatter.md.
    let sort = 3.0e-9 * (entries + tables * parts as f64 * targets as f64) / threads.min(tables * parts as f64);
    let resolve = 2.5e-9 * visits / threads.min(tasks) + 1e-9 * tasks / threads;
    let mut seconds = rows_cost(contraction, machine, rows, inner, visits, lists);
    if tasks < threads {
        seconds *= threads / tasks;
    }
    seconds += sort + resolve + 4.0 * machine.fork_seconds;
    let bytes = contraction.distinct_bytes();
    Ok(Estimate {
        way: Way::Inverted,
        cost: Cost { flops: contraction.flops(), bytes, seconds },
        workspace_bytes: workspace as usize,
    })
}

/// Runs the contraction: adds to the output.
///
/// # Errors
/// [`BadTable`].
///
/// # Safety
/// `run` keeps its invariant `bound`; a scattered output holds zeros, or what earlier slices added.
pub unsafe fn run(run: &Run<'_>) -> Result<(), BadTable> {
    let pattern = scattered_rows(run.contraction).expect("the kernel made an offer");
    let shape = Shape::of(run.contraction, pattern.inner);
    let parts = shape.parts(run.contraction.out.lookups[0].len, run.machine.threads);
    // SAFETY: by the caller.
    let inversion = unsafe { Inversion::new(run, &shape, parts)? };
    let d = run.contraction.loops[pattern.inner].len;
    let total = count(&shape.tables) * count(&shape.shared) * d.div_ceil(COLUMNS) * inversion.rows();
    with_element!(run.contraction.dtype, T => {
        run.threads.for_pieces(total, run.threads.piece(total, 16), run.serial_seconds, |range| {
            // SAFETY: by the caller; the element types are those of the memory; pieces write distinct strips of rows.
            unsafe { reduce::<T>(run, pattern, &shape, &inversion, range) }
        })
    })
}

/// Adds up strips of rows of the output; `range` counts them, rows fastest, then strips, then batches.
///
/// # Safety
/// As [`run`], with `T` the element type of the inputs; no other task has strips of this range.
unsafe fn reduce<T>(
    run: &Run<'_>,
    pattern: ScatteredRows,
    shape: &Shape,
    inversion: &Inversion,
    range: std::ops::Range<usize>,
) -> Result<(), BadTable>
where
    T: Scalar + RowElement<Acc = <T as Scalar>::Acc>,
{
    let contraction = run.contraction;
    let rows = pattern.rows.of(contraction).expect("matched");
    let weights = contraction.right.as_ref().and_then(|_| pattern.rows.other().of(contraction));
    let (row_data, weight_data): (*const T, *const T) = match pattern.rows {
        Side::Right => (run.right.cast(), run.left.cast()),
        Side::Left => (run.left.cast(), run.right.cast()),
    };
    let accesses: [&Access; 3] = [rows, weights.unwrap_or(rows), &contraction.out];
    let batches = shape.tables.iter().chain(&shape.shared).copied();
    let mut walk = Walk::new(accesses, batches, run.tables, contraction.bounds);
    let shared = count(&shape.shared);
    let row_terms = Terms::new(rows, &shape.terms, run.tables, contraction.bounds);
    let weight_terms = weights.map(|weights| Terms::new(weights, &shape.terms, run.tables, contraction.bounds));
    let (n, d) = (inversion.rows(), contraction.loops[pattern.inner].len);
    let strips = d.div_ceil(COLUMNS);
    let row_stride = contraction.out.lookups[0].stride;
    let out_stride = contraction.out.strides[pattern.inner];
    let out = run.out.cast::<<T as Scalar>::Acc>();
    let direct = out_stride == 1 && out.is_aligned();
    let mut sums = [<T as Scalar>::ZERO; COLUMNS];
    let mut lists = Lists::<T>::new(run, row_data, weight_data);

    let mut flat = range.start;
    while flat < range.end {
        let (first, strip, batch) = (flat % n, flat / n % strips, flat / n / strips);
        let end = n.min(first + range.end - flat);
        flat += end - first;
        walk.seek(batch);
        let start = strip * COLUMNS;
        lists.column = start;
        lists.columns = COLUMNS.min(d - start);
        // SAFETY: `bound`: the walk is within the loops, entries are iterations of the terms' loops, and rows of the
        // table's values are rows of the output, each met once.
        unsafe {
            let row_base = row_terms.base(&walk, 0)?;
            let weight_base = weight_terms.as_ref().map_or(Ok(Some(0)), |terms| terms.base(&walk, 1))?;
            let (Some(row_base), Some(weight_base)) = (row_base, weight_base) else { continue };
            let strip_out = out.offset(walk.plain_offset(2) + start as isize * out_stride);
            for row in first..end {
                let mut entries = inversion.row(batch / shared, row);
                if entries.is_empty() {
                    continue;
                }
                let to = strip_out.offset(row as isize * row_stride);
                let acc = if direct { to } else { sums.as_mut_ptr() };
                if !direct {
                    for (i, sum) in sums[..lists.columns].iter_mut().enumerate() {
                        *sum = to.offset(i as isize * out_stride).read_unaligned();
                    }
                }
                if entries.len() > BLOCK - lists.used || lists.lists.len() == LISTS {
                    lists.flush();
                }
                while !entries.is_empty() {
                    let (some, rest) = entries.split_at(entries.len().min(BLOCK - lists.used));
                    let (offsets, weight_offsets) = lists.room(some.len());
                    let mut all = row_terms.fill(&walk, 0, row_base, some, offsets)?;
                    if let Some(terms) = &weight_terms {
                        all &= terms.fill(&walk, 1, weight_base, some, weight_offsets)?;
                    }
                    lists.push(some.len(), all, weights.is_some(), acc);
                    entries = rest;
                    if !rest.is_empty() {
                        lists.flush();
                    }
                }
                if !direct {
                    lists.flush();
                    for (i, &sum) in sums[..lists.columns].iter().enumerate() {
                        to.offset(i as isize * out_stride).write_unaligned(sum);
                    }
                }
            }
            lists.flush();
        }
    }
    Ok(())
}

/// Lists of rows that wait for the row kernel.
///
/// Invariant `filled`: the first `used` offsets and weights are those of `lists`, which point to them.
struct Lists<'a, T: RowElement> {
    run: &'a Run<'a>,
    row_data: *const T,
    weight_data: *const T,
    column: usize,
    columns: usize,
    used: usize,
    offsets: Box<[isize; BLOCK]>,
    weight_offsets: Box<[isize; BLOCK]>,
    weights: Box<[T; BLOCK]>,
    lists: Vec<AxpyList<T>>,
}

impl<'a, T> Lists<'a, T>
where
    T: Scalar + RowElement<Acc = <T as Scalar>::Acc>,
{
    fn new(run: &'a Run<'a>, row_data: *const T, weight_data: *const T) -> Self {
        Lists {
            run,
            row_data,
            weight_data,
            column: 0,
            columns: 0,
            used: 0,
            offsets: Box::new([0; BLOCK]),
            weight_offsets: Box::new([0; BLOCK]),
            weights: Box::new([T::narrow(<T as Scalar>::ONE); BLOCK]),
            lists: Vec::with_capacity(LISTS),
        }
    }

    /// Where the offsets of the next list's rows and weights go.
    fn room(&mut self, count: usize) -> (&mut [isize], &mut [isize]) {
        let room = self.used..self.used + count;
        (&mut self.offsets[room.clone()], &mut self.weight_offsets[room])
    }

    /// Takes the offsets that were written to [`Lists::room`] as a list; entries that are left out are dropped.
    ///
    /// # Safety
    /// The offsets are in the inputs or [`LEFT_OUT`]; `acc` has room for the columns until the lists are flushed.
    unsafe fn push(&mut self, count: usize, all: bool, weighted: bool, acc: *mut <T as Scalar>::Acc) {
        let (start, mut kept) = (self.used, count);
        if !all {
            kept = 0;
            for from in start..start + count {
                let there = self.offsets[from] != LEFT_OUT && (!weighted || self.weight_offsets[from] != LEFT_OUT);
                self.offsets[start + kept] = self.offsets[from];
                self.weight_offsets[start + kept] = self.weight_offsets[from];
                kept += usize::from(there);
            }
        }
        if weighted {
            let weights = &mut self.weights[start..start + kept];
            for (weight, &offset) in weights.iter_mut().zip(&self.weight_offsets[start..start + kept]) {
                // SAFETY: by the caller.
                *weight = unsafe { self.weight_data.offset(offset).read_unaligned() };
            }
        }
        if kept > 0 {
            let (weights, offsets) = (self.weights[start..].as_ptr(), self.offsets[start..].as_ptr());
            let rows = self.row_data.wrapping_add(self.column);
            self.lists.push(AxpyList { weights, rows, offsets, count: kept, acc });
            self.used += kept;
        }
    }

    /// Adds up what waits.
    ///
    /// # Safety
    /// What [`Lists::push`] was promised.
    unsafe fn flush(&mut self) {
        // SAFETY: `filled`, and by the caller.
        unsafe { add_rows(self.run.isa, self.columns, &self.lists, true) };
        self.lists.clear();
        self.used = 0;
    }
}
