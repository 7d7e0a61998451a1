//! Where the rows of a block lie: offsets for a run of one loop, whatever moves it.
//!
//! *Callers*: the ops that work on rows. A plain stride, a single lookup and a single window have fast paths; anything
//! else is walked.

use einfall_plan::{Access, Bounds};

use crate::isa::Isa;
use crate::load::{even_offsets, load_offsets, load_offsets_skip};
use crate::walk::{BadTable, TablePointer, Walk};

/// How a loop moves an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// By a fixed stride.
    Strided(isize),
    /// By one lookup alone.
    Lookup(usize),
    /// By one window alone.
    Window(usize),
    /// By several at once.
    Mixed,
}

impl Source {
    /// Whether the loop moves few enough lookups and windows of the access.
    pub fn is_handled(access: &Access, at: usize) -> bool {
        let lookups = access.lookups.iter().filter(|lookup| lookup.table_strides[at] != 0).count();
        lookups + access.windows.iter().filter(|window| window.coefficients[at] != 0).count() <= MOVED
    }

    /// How the loop moves the access.
    pub fn of(access: &Access, at: usize) -> Source {
        let mut lookups = (0..access.lookups.len()).filter(|&l| access.lookups[l].table_strides[at] != 0);
        let mut windows = (0..access.windows.len()).filter(|&w| access.windows[w].coefficients[at] != 0);
        let direct = access.strides[at];
        match (lookups.next(), lookups.next(), windows.next(), windows.next()) {
            (None, _, None, _) => Source::Strided(direct),
            (Some(lookup), None, None, _) if direct == 0 => Source::Lookup(lookup),
            (None, _, Some(window), None) if direct == 0 => Source::Window(window),
            _ => Source::Mixed,
        }
    }
}

impl Start {
    #[inline]
    fn after(&self, step: &Start, steps: usize) -> Start {
        let moved = std::array::from_fn(|i| self.moved[i] + step.moved[i] * steps as i64);
        Start { base: self.base + step.base * steps as isize, moved }
    }
}

/// One list: its rows, what they meet, and where the result goes.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// Where the rows begin; `None` where all of them are left out.
    pub rows: Option<Start>,
    /// Where the vector is, or the weights begin; `None` where it is left out.
    pub other: Option<Start>,
    /// Element offset of the first result.
    pub to: isize,
}

/// Reads lists off a walk over rows, what they meet, and the output.
pub struct Heads<'a> {
    /// The rows.
    pub rows: RowOffsets<'a>,
    /// What they meet, if anything.
    pub other: Option<RowOffsets<'a>>,
    /// From one list to the next along the fastest loop, where no table has to be read for it.
    step: Option<(Start, Start, isize)>,
}

impl<'a> Heads<'a> {
    /// `out` is the access of the results, `fastest` the loop that the walk moves fastest.
    pub fn new(rows: RowOffsets<'a>, other: Option<RowOffsets<'a>>, out: &Access, fastest: Option<usize>) -> Heads<'a> {
        let step = fastest.and_then(|at| {
            let others = other.as_ref().map_or(Some(Start::default()), |other| other.along(at))?;
            Some((rows.along(at)?, others, out.strides[at]))
        });
        Heads { rows, other, step }
    }

    /// The next `count` lists, which `walk` then has passed.
    ///
    /// # Errors
    /// [`BadTable`].
    ///
    /// # Safety
    /// As [`RowOffsets::start`]; there are so many lists.
    pub unsafe fn read(&self, walk: &mut Walk<'_, 3>, count: usize, heads: &mut Vec<Head>) -> Result<(), BadTable> {
        heads.clear();
        while heads.len() < count {
            // SAFETY: by the caller.
            let (rows, other) = unsafe {
                let other = match &self.other {
                    Some(other) => other.start(walk, 1)?,
                    None => Some(Start::default()),
                };
                (self.rows.start(walk, 0)?, other)
            };
            let to = walk.plain_offset(2);
            heads.push(Head { rows, other, to });
            let mut steps = 1;
            if let (Some((row_step, other_step, out_step)), Some(rows), Some(other)) = (&self.step, rows, other) {
                steps = (count - heads.len() + 1).min(walk.left());
                heads.extend((1..steps).map(|i| Head {
                    rows: Some(rows.after(row_step, i)),
                    other: Some(other.after(other_step, i)),
                    to: to + out_step * i as isize,
                }));
            }
            walk.step_by(steps);
        }
        Ok(())
    }

    /// Fills the offsets of all lists, `count` rows each, if their entries follow each other in one table; else does
    /// nothing and says so.
    ///
    /// # Errors
    /// [`BadTable`].
    ///
    /// # Safety
    /// As [`RowOffsets::fill`]: the lists come from [`Heads::read`], and each has `count` rows.
    pub unsafe fn fill_all(&self, heads: &[Head], count: usize, offsets: &mut [isize]) -> Result<bool, BadTable> {
        let Source::Lookup(number) = self.rows.source else { return Ok(false) };
        let by = count as i64 * self.rows.access.lookups[number].table_strides[self.rows.at] as i64;
        let Some(Head { rows: Some(first), .. }) = heads.first() else { return Ok(false) };
        let follows =
            |(i, head): (usize, &Head)| head.rows.is_some_and(|rows| rows.moved[0] == first.moved[0] + i as i64 * by);
        if self.rows.bounds != Bounds::Error || heads.len() == 1 || !heads.iter().enumerate().all(follows) {
            return Ok(false);
        }
        // SAFETY: by the caller; together the lists' entries are one run.
        unsafe { self.rows.fill(first, 0, &mut offsets[..heads.len() * count], &mut [])? };
        Ok(true)
    }
}

/// Lookups and windows that one loop may move at once.
const MOVED: usize = 4;

/// Where a run of rows begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct Start {
    /// Element offset but for what the loop itself moves.
    pub base: isize,
    /// Element offset in its table of each lookup that the loop moves, then the position of each such window.
    moved: [i64; MOVED],
}

/// Offsets of the rows of one run, relative to where the access stands without the loop's own moves.
pub struct RowOffsets<'a> {
    access: &'a Access,
    at: usize,
    source: Source,
    tables: &'a [TablePointer],
    bounds: Bounds,
    isa: Isa,
}

/// What a run of rows came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// Every row is there; offsets are in order.
    All,
    /// Only so many rows are there; positions say which.
    Some(usize),
}

impl<'a> RowOffsets<'a> {
    /// Offsets for the loop `at` of an access, of which [`Source::is_handled`].
    pub fn new(access: &'a Access, at: usize, tables: &'a [TablePointer], bounds: Bounds, isa: Isa) -> Self {
        RowOffsets { access, at, source: Source::of(access, at), tables, bounds, isa }
    }

    /// How the loop moves the access.
    pub fn source(&self) -> Source {
        self.source
    }

    /// How far it is from a run to the next along a loop; `None` where that depends on what stands in a table.
    fn along(&self, at: usize) -> Option<Start> {
        let mut step = Start { base: self.access.strides[at], moved: [0; MOVED] };
        let lookups = self.access.lookups.iter().map(|l| (l.table_strides[self.at], l.table_strides[at] as i64));
        let windows = self.access.windows.iter().map(|w| (w.coefficients[self.at] as isize, w.coefficients[at]));
        for (moved, (by, to_next)) in lookups.chain(windows).enumerate() {
            if by == 0 {
                return None;
            }
            step.moved[moved] = to_next;
        }
        Some(step)
    }

    /// Where a run begins; `None` where the whole run is left out.
    ///
    /// # Errors
    /// [`BadTable`].
    ///
    /// # Safety
    /// As [`Walk::offset`]; `walk` stands at the loop's first iteration.
    #[inline]
    pub unsafe fn start<const N: usize>(&self, walk: &Walk<'_, N>, which: usize) -> Result<Option<Start>, BadTable> {
        let mut start = Start { base: walk.plain_offset(which), moved: [0; MOVED] };
        let mut moved = 0;
        for (number, lookup) in self.access.lookups.iter().enumerate() {
            let entry = walk.entry(which, number);
            if lookup.table_strides[self.at] != 0 {
                start.moved[moved] = entry as i64;
                moved += 1;
                continue;
            }
            // SAFETY: by the caller.
            match unsafe { self.tables[lookup.table].value(entry, lookup.len) } {
                Some(value) => start.base += value as isize * lookup.stride,
                None if self.bounds == Bounds::Error => return Err(BadTable),
                None => return Ok(None),
            }
        }
        for (number, window) in self.access.windows.iter().enumerate() {
            let position = walk.window(which, number);
            if window.coefficients[self.at] != 0 {
                start.moved[moved] = position;
                moved += 1;
            } else if position as u64 >= window.len as u64 {
                return Ok(None);
            } else {
                start.base += position as isize * window.stride;
            }
        }
        Ok(Some(start))
    }

    /// Fills the offsets of iterations `first..first + offsets.len()`, relative to [`Start::base`].
    ///
    /// # Errors
    /// [`BadTable`].
    ///
    /// # Safety
    /// `start` comes from this source; the iterations are within the loop.
    #[inline]
    pub unsafe fn fill(
        &self,
        start: &Start,
        first: usize,
        offsets: &mut [isize],
        positions: &mut [u32],
    ) -> Result<Filled, BadTable> {
        let count = offsets.len();
        match self.source {
            Source::Strided(stride) => {
                // SAFETY: the machine has the instructions.
                unsafe { even_offsets(self.isa, first as isize * stride, stride, offsets) };
                Ok(Filled::All)
            }
            Source::Lookup(number) => {
                let lookup = &self.access.lookups[number];
                let stride = lookup.table_strides[self.at];
                let entry = start.moved[0] as isize + first as isize * stride;
                let run = self.tables[lookup.table].run(entry, stride);
                // SAFETY: `span`: the run is a part of the table, and every row of the axis is inside its view.
                unsafe {
                    if self.bounds == Bounds::Error {
                        load_offsets(self.isa, run, count, lookup.len, lookup.stride, offsets).map_err(|_| BadTable)?;
                        return Ok(Filled::All);
                    }
                    let found = load_offsets_skip(self.isa, run, count, lookup.len, lookup.stride, offsets, positions);
                    Ok(if found == count { Filled::All } else { Filled::Some(found) })
                }
            }
            Source::Window(number) => {
                let window = &self.access.windows[number];
                let by = window.coefficients[self.at];
                let inside = inside(start.moved[0] + first as i64 * by, by, count, window.len);
                let from = start.moved[0] + (first + inside.start) as i64 * by;
                let found = inside.len();
                // Beyond the axis, where nothing is inside, these may be anything.
                let (base, step) =
                    ((from as isize).wrapping_mul(window.stride), (by as isize).wrapping_mul(window.stride));
                // SAFETY: the machine has the instructions.
                unsafe { even_offsets(self.isa, base, step, &mut offsets[..found]) };
                if found == count {
                    return Ok(Filled::All);
                }
                for (i, position) in positions[..found].iter_mut().enumerate() {
                    *position = (inside.start + i) as u32;
                }
                Ok(Filled::Some(found))
            }
            // SAFETY: by the caller.
            Source::Mixed => unsafe { self.fill_mixed(start, first, offsets, positions) },
        }
    }

    /// # Safety
    /// As [`RowOffsets::fill`].
    unsafe fn fill_mixed(
        &self,
        start: &Start,
        first: usize,
        offsets: &mut [isize],
        positions: &mut [u32],
    ) -> Result<Filled, BadTable> {
        let count = offsets.len();
        let mut found = 0;
        'rows: for i in 0..count {
            let step = (first + i) as isize;
            let mut offset = self.access.strides[self.at] * step;
            let mut moved = start.moved.iter();
            for lookup in &self.access.lookups {
                let stride = lookup.table_strides[self.at];
                if stride != 0 {
                    let entry = *moved.next().expect("one for each") as isize + step * stride;
                    // SAFETY: by the caller.
                    match unsafe { self.tables[lookup.table].value(entry, lookup.len) } {
                        Some(value) => offset += value as isize * lookup.stride,
                        None if self.bounds == Bounds::Error => return Err(BadTable),
                        None => continue 'rows,
                    }
                }
            }
            for window in &self.access.windows {
                let by = window.coefficients[self.at];
                if by != 0 {
                    let position = moved.next().expect("one for each") + by * step as i64;
                    if position as u64 >= window.len as u64 {
                        continue 'rows;
                    }
                    offset += position as isize * window.stride;
                }
            }
            offsets[found] = offset;
            positions[found] = i as u32;
            found += 1;
        }
        Ok(if found == count { Filled::All } else { Filled::Some(found) })
    }
}

/// The steps `i` in `0..count` for which `first + i * by` is in `0..len`; `by` is not 0.
pub fn inside(first: i64, by: i64, count: usize, len: usize) -> std::ops::Range<usize> {
    // In the direction of the steps: how far it is to the axis, and to its end.
    let (to_first, to_end) = if by > 0 { (-first, len as i64 - first) } else { (first - len as i64 + 1, first + 1) };
    let step = by.unsigned_abs();
    let steps = |distance: i64| (distance.max(0) as u64).div_ceil(step).min(count as u64) as usize;
    let (start, end) = (steps(to_first), steps(to_end));
    start.min(end)..end
}

#[cfg(test)]
mod tests {
    use super::inside;

    #[test]
    fn the_steps_inside_are_those_that_a_search_finds() {
        for len in 0..6_usize {
            for count in 0..9_usize {
                for by in [-3, -2, -1, 1, 2, 5] {
                    for first in -12..12_i64 {
                        let there: Vec<usize> =
                            (0..count).filter(|&i| (0..len as i64).contains(&(first + i as i64 * by))).collect();
                        let found: Vec<usize> = inside(first, by, count, len).collect();
                        assert_eq!(found, there, "first={first} by={by} count={count} len={len}");
                    }
                }
            }
        }
    }
}
