//! `axpys`: weighted sums of contiguous rows, stored, looked up or under a window; the rows are read where they lie.
//!
//! Values of attention, embedding bags, graph aggregation, vector × matrix, sums over leading axes. Floor: the distinct
//! rows once from memory, and each row once from the cache that holds them.

use einfall_plan::pattern::{RowAxpys, Side, row_axpys};
use einfall_plan::{Access, Contraction, Cost, Estimate, Machine, Role, Way};
use einfall_tensor::{Element, with_element};
use smallvec::SmallVec;

use super::source::{Filled, RowOffsets, Source};
use super::{Run, rows_cost};
use crate::kernels::rows::{AxpyList, RowElement, row_axpys as add_rows};
use crate::scalar::Scalar;
use crate::walk::{BadTable, Walk};

/// Rows whose offsets and weights are kept at once.
const BLOCK: usize = 1024;
/// Rows for which nothing is allocated.
const SHORT: usize = 32;
/// Elements of a row that one task sums at most, so that few long rows still keep all threads busy.
const COLUMNS: usize = 512;

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    let pattern = row_axpys(contraction)?;
    if contraction.out_dtype != contraction.dtype && contraction.out_dtype != contraction.dtype.accumulator() {
        return Err(format!("does not write {}", contraction.out_dtype));
    }
    let rows = pattern.rows.of(contraction).expect("matched");
    let d = contraction.loops[pattern.inner].len as f64;
    if d < 4.0 {
        return Err("rows are too short".into());
    }
    let way = match Source::of(rows, pattern.row_loop) {
        Source::Strided(_) => Way::Stream,
        _ => Way::Gather,
    };
    let count = contraction.flops() / 2.0 / d;
    let lists = count / contraction.loops[pattern.row_loop].len as f64;
    let outputs =
        lists / other_contracted(contraction, pattern).map(|at| contraction.loops[at].len as f64).product::<f64>();
    let mut seconds = rows_cost(contraction, machine, rows, pattern.inner, count, lists);
    // Few sums of many rows run on few threads.
    let pieces = outputs * (d / COLUMNS as f64).ceil();
    if pieces < machine.threads as f64 {
        seconds *= machine.threads as f64 / pieces;
    }
    let bytes = super::distinct_bytes(contraction);
    Ok(Estimate { way, cost: Cost { flops: contraction.flops(), bytes, seconds }, workspace_bytes: 0 })
}

fn other_contracted(contraction: &Contraction, pattern: RowAxpys) -> impl Iterator<Item = usize> + '_ {
    contraction.loops_of(Role::Contracted).filter(move |&at| at != pattern.row_loop)
}

/// Runs the contraction.
///
/// # Errors
/// [`BadTable`].
///
/// # Safety
/// `run` keeps its invariant `bound`.
pub unsafe fn run(run: &Run<'_>) -> Result<(), BadTable> {
    let pattern = row_axpys(run.contraction).expect("the kernel made an offer");
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
unsafe fn typed<T, U>(run: &Run<'_>, pattern: RowAxpys) -> Result<(), BadTable>
where
    T: Scalar + RowElement<Acc = <T as Scalar>::Acc>,
    U: Scalar<Acc = <T as Scalar>::Acc>,
{
    let contraction = run.contraction;
    let loops = |at: usize| (at, contraction.loops[at].len);
    let outer: SmallVec<[(usize, usize); 8]> = (0..contraction.loops.len())
        .filter(|&at| at != pattern.inner && contraction.loops[at].role != Role::Contracted)
        .map(loops)
        .collect();
    let turns: SmallVec<[(usize, usize); 8]> = other_contracted(contraction, pattern).map(loops).collect();
    let sums: usize = outer.iter().map(|(_, len)| len).product();
    let d = contraction.loops[pattern.inner].len;
    let strips = d.div_ceil(COLUMNS);
    let total = sums * strips;
    run.threads.for_pieces(total, run.threads.piece(total, 8), run.serial_seconds, |range| {
        // SAFETY: by the caller; pieces write distinct strips of outputs.
        unsafe { strips_of::<T, U>(run, pattern, &outer, &turns, strips, range) }
    })
}

/// # Safety
/// As [`typed`]; `range` counts strips.
unsafe fn strips_of<T, U>(
    run: &Run<'_>,
    pattern: RowAxpys,
    outer: &[(usize, usize)],
    turns: &[(usize, usize)],
    strips: usize,
    range: std::ops::Range<usize>,
) -> Result<(), BadTable>
where
    T: Scalar + RowElement<Acc = <T as Scalar>::Acc>,
    U: Scalar<Acc = <T as Scalar>::Acc>,
{
    let contraction = run.contraction;
    let rows = pattern.rows.of(contraction).expect("matched");
    let weights = contraction.right.as_ref().and_then(|_| pattern.rows.other().of(contraction));
    let (row_data, weight_data): (*const T, *const T) = match pattern.rows {
        Side::Right => (run.right.cast(), run.left.cast()),
        Side::Left => (run.left.cast(), run.right.cast()),
    };
    let none = Access::default();
    let accesses = [rows, weights.unwrap_or(rows), &contraction.out];
    let mut walk = Walk::new(accesses, outer.iter().copied(), run.tables, contraction.bounds);
    walk.seek(range.start / strips);
    // Without further summed loops there is nothing to walk.
    let mut turn =
        (!turns.is_empty()).then(|| Walk::new(accesses, turns.iter().copied(), run.tables, contraction.bounds));
    let turn_count = turn.as_ref().map_or(1, Walk::count);
    let row_loop = pattern.row_loop;
    let source = RowOffsets::new(rows, row_loop, run.tables, contraction.bounds, run.isa);
    let weighing = weights.unwrap_or(&none);
    let weight_source =
        weights.map(|weights| RowOffsets::new(weights, row_loop, run.tables, contraction.bounds, run.isa));
    let (len, d) = (contraction.loops[row_loop].len, contraction.loops[pattern.inner].len);
    let width = COLUMNS.min(d);
    let out_stride = contraction.out.strides[pattern.inner];
    let out = run.out.cast::<U>();
    let direct = out_stride == 1 && U::DTYPE == <T as Scalar>::Acc::DTYPE && out.is_aligned();

    // Stored rows lie at the same offsets in every list.
    let plain_weights = weight_source.as_ref().is_none_or(|weights| matches!(weights.source(), Source::Strided(_)));
    let repeats = matches!(source.source(), Source::Strided(_)) && plain_weights && len <= BLOCK;
    let mut fixed = None;
    // As long as needed: to clear whole blocks takes longer than a small product.
    let block = BLOCK.min(len);
    let mut offsets: SmallVec<[isize; SHORT]> = SmallVec::from_elem(0, block);
    let mut positions: SmallVec<[u32; SHORT]> = SmallVec::from_elem(0, block);
    let mut gathered: SmallVec<[T; SHORT]> = SmallVec::from_elem(T::default(), block);
    let mut sums = vec![<T as Scalar>::ZERO; if direct { 0 } else { width }];
    for flat in range {
        let start = flat % strips * COLUMNS;
        let columns = COLUMNS.min(d - start);
        // SAFETY: `bound`: the walks, the strip and each block are within the loops.
        unsafe {
            let to = out.offset(walk.plain_offset(2) + start as isize * out_stride);
            let acc: *mut <T as Scalar>::Acc = if direct { to.cast() } else { sums.as_mut_ptr() };
            let mut accumulate = false;
            if let Some(turn) = &mut turn {
                turn.follow(&walk);
            }
            for _ in 0..turn_count {
                let here = turn.as_ref().unwrap_or(&walk);
                let base = source.base(here, 0)?;
                let weight_base = match &weight_source {
                    Some(weights) => weights.base(here, 1)?,
                    None => Some(0),
                };
                if let (Some(base), Some(weight_base)) = (base, weight_base) {
                    for first in (0..len).step_by(BLOCK) {
                        let count = BLOCK.min(len - first);
                        let list = &mut offsets[..count];
                        let filled = match fixed {
                            Some(filled) => filled,
                            None => source.fill(here, 0, first, list, &mut positions[..count])?,
                        };
                        fixed = repeats.then_some(filled);
                        let weights = Weights {
                            access: weighing,
                            source: weight_source.as_ref(),
                            data: weight_data,
                            base: weight_base,
                        };
                        let (count, weights) =
                            weights.load(here, first, count, filled, list, &mut positions, &mut gathered)?;
                        let rows = row_data.offset(base + start as isize);
                        let list = AxpyList::<T> { weights, offsets: offsets.as_ptr(), count, acc };
                        add_rows(run.isa, rows, columns, &[list], accumulate);
                        accumulate = true;
                    }
                }
                turn.iter_mut().for_each(Walk::step);
            }
            if !accumulate {
                for i in 0..columns {
                    acc.add(i).write(<T as Scalar>::ZERO);
                }
            }
            if !direct {
                for (i, &sum) in sums[..columns].iter().enumerate() {
                    to.offset(i as isize * out_stride).write_unaligned(U::narrow(sum));
                }
            }
        }
        if (flat + 1) % strips == 0 {
            walk.step();
        }
    }
    Ok(())
}

/// The weights of a run of rows.
struct Weights<'a, T> {
    access: &'a Access,
    /// `None` for a single input: every weight is one.
    source: Option<&'a RowOffsets<'a>>,
    data: *const T,
    base: isize,
}

impl<T: Scalar> Weights<'_, T> {
    /// The weights of the rows that are there, contiguous; drops rows whose weight is left out.
    ///
    /// # Safety
    /// As [`RowOffsets::fill`].
    unsafe fn load<const N: usize>(
        &self,
        turn: &Walk<'_, N>,
        first: usize,
        count: usize,
        filled: Filled,
        offsets: &mut [isize],
        positions: &mut [u32],
        gathered: &mut [T],
    ) -> Result<(usize, *const T), BadTable> {
        let found = if let Filled::Some(found) = filled { found } else { count };
        let Some(source) = self.source else {
            gathered[..found].fill(T::narrow(T::ONE));
            return Ok((found, gathered.as_ptr()));
        };
        // SAFETY: by the caller.
        unsafe {
            if let Source::Strided(stride) = source.source() {
                let start = self.data.offset(self.base + first as isize * stride);
                if filled == Filled::All && stride == 1 && start.is_aligned() {
                    return Ok((found, start));
                }
                for (i, weight) in gathered[..found].iter_mut().enumerate() {
                    let at = if filled == Filled::All { i } else { positions[i] as usize };
                    *weight = start.offset(at as isize * stride).read_unaligned();
                }
                return Ok((found, gathered.as_ptr()));
            }
            // Weights that are looked up themselves: keep the rows whose weight is there too.
            let mut weight_offsets = [0isize; BLOCK];
            let mut weight_positions = [0u32; BLOCK];
            debug_assert!(!self.access.is_plain());
            let weight_filled =
                source.fill(turn, 1, first, &mut weight_offsets[..count], &mut weight_positions[..count])?;
            let weight_count = if let Filled::Some(found) = weight_filled { found } else { count };
            let position = |filled: Filled, positions: &[u32], i: usize| match filled {
                Filled::All => i as u32,
                Filled::Some(_) => positions[i],
            };
            let (mut kept, mut w) = (0, 0);
            for i in 0..found {
                let at = position(filled, positions, i);
                while w < weight_count && position(weight_filled, &weight_positions, w) < at {
                    w += 1;
                }
                if w < weight_count && position(weight_filled, &weight_positions, w) == at {
                    offsets[kept] = offsets[i];
                    gathered[kept] = self.data.offset(self.base + weight_offsets[w]).read_unaligned();
                    kept += 1;
                }
            }
            Ok((kept, gathered.as_ptr()))
        }
    }
}
