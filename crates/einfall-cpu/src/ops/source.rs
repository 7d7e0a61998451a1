//! Where the rows of a block lie: offsets for a run of one loop, whatever moves it.
//!
//! *Callers*: the ops that work on rows. A plain stride, a single lookup and a single window have fast paths; anything
//! else is walked.

use einfall_plan::{Access, Bounds};

use crate::isa::Isa;
use crate::load::{load_offsets, load_offsets_skip};
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
    /// Offsets for the loop `at` of an access.
    pub fn new(access: &'a Access, at: usize, tables: &'a [TablePointer], bounds: Bounds, isa: Isa) -> Self {
        RowOffsets { access, at, source: Source::of(access, at), tables, bounds, isa }
    }

    /// How the loop moves the access.
    pub fn source(&self) -> Source {
        self.source
    }

    /// Where the access stands but for what the loop moves; `None` where the whole run is left out.
    ///
    /// # Errors
    /// [`BadTable`].
    ///
    /// # Safety
    /// As [`Walk::offset`]; `walk` stands at the loop's first iteration.
    pub unsafe fn base<const N: usize>(&self, walk: &Walk<'_, N>, which: usize) -> Result<Option<isize>, BadTable> {
        let mut base = walk.plain_offset(which);
        for (number, lookup) in self.access.lookups.iter().enumerate() {
            if lookup.table_strides[self.at] == 0 {
                let entry = walk.entry(which, number);
                // SAFETY: by the caller.
                match unsafe { self.tables[lookup.table].value(entry, lookup.len) } {
                    Some(value) => base += value as isize * lookup.stride,
                    None if self.bounds == Bounds::Error => return Err(BadTable),
                    None => return Ok(None),
                }
            }
        }
        for (number, window) in self.access.windows.iter().enumerate() {
            if window.coefficients[self.at] == 0 {
                let position = walk.window(which, number);
                if position as u64 >= window.len as u64 {
                    return Ok(None);
                }
                base += position as isize * window.stride;
            }
        }
        Ok(Some(base))
    }

    /// Fills the offsets of iterations `start..start + offsets.len()`, relative to [`RowOffsets::base`].
    ///
    /// # Errors
    /// [`BadTable`].
    ///
    /// # Safety
    /// As [`RowOffsets::base`]; the iterations are within the loop.
    pub unsafe fn fill<const N: usize>(
        &self,
        walk: &Walk<'_, N>,
        which: usize,
        start: usize,
        offsets: &mut [isize],
        positions: &mut [u32],
    ) -> Result<Filled, BadTable> {
        let count = offsets.len();
        match self.source {
            Source::Strided(stride) => {
                for (i, offset) in offsets.iter_mut().enumerate() {
                    *offset = (start + i) as isize * stride;
                }
                Ok(Filled::All)
            }
            Source::Lookup(number) => {
                let lookup = &self.access.lookups[number];
                let stride = lookup.table_strides[self.at];
                let entry = walk.entry(which, number) + start as isize * stride;
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
                let first = walk.window(which, number) + start as i64 * by;
                let mut found = 0;
                for i in 0..count {
                    let position = first + i as i64 * by;
                    if (position as u64) < window.len as u64 {
                        offsets[found] = position as isize * window.stride;
                        positions[found] = i as u32;
                        found += 1;
                    }
                }
                Ok(if found == count { Filled::All } else { Filled::Some(found) })
            }
            // SAFETY: by the caller.
            Source::Mixed => unsafe { self.fill_mixed(walk, which, start, offsets, positions) },
        }
    }

    /// # Safety
    /// As [`RowOffsets::fill`].
    unsafe fn fill_mixed<const N: usize>(
        &self,
        walk: &Walk<'_, N>,
        which: usize,
        start: usize,
        offsets: &mut [isize],
        positions: &mut [u32],
    ) -> Result<Filled, BadTable> {
        let count = offsets.len();
        let mut found = 0;
        'rows: for i in 0..count {
            let step = (start + i) as isize;
            let mut offset = self.access.strides[self.at] * step;
            for (number, lookup) in self.access.lookups.iter().enumerate() {
                let stride = lookup.table_strides[self.at];
                if stride != 0 {
                    // SAFETY: by the caller.
                    match unsafe {
                        self.tables[lookup.table].value(walk.entry(which, number) + step * stride, lookup.len)
                    } {
                        Some(value) => offset += value as isize * lookup.stride,
                        None if self.bounds == Bounds::Error => return Err(BadTable),
                        None => continue 'rows,
                    }
                }
            }
            for (number, window) in self.access.windows.iter().enumerate() {
                let by = window.coefficients[self.at];
                if by != 0 {
                    let position = walk.window(which, number) + by * step as i64;
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
