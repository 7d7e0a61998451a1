//! The inversion of a table: for each row of the output the terms that reach it, by a stable counting sort.

use super::{Shape, count};
use crate::load::{load_offsets, load_offsets_skip};
use crate::ops::Run;
use crate::threads::Shared;
use crate::walk::{BadTable, Walk};
use einfall_plan::Bounds;

/// Table entries that are read at once.
const BLOCK: usize = 1024;

/// The terms of each row, in order. Terms are numbered by the loops that [`Shape::terms`] lists, the last one fastest.
pub(super) struct Inversion {
    /// For each batch, part and row: where the row's terms of that part end, from the batch's first one on.
    ends: Vec<u32>,
    /// For each batch the numbers of its terms, sorted by row.
    entries: Vec<u32>,
    rows: usize,
    terms: usize,
    parts: usize,
}

impl Inversion {
    /// Inverts the table of the output, each batch in `parts` parts. Terms with a bad value are left out.
    ///
    /// # Errors
    /// [`BadTable`] where bad values are errors.
    ///
    /// # Safety
    /// `run` keeps its invariant `bound`, and `shape` is that of its contraction.
    pub(super) unsafe fn new(run: &Run<'_>, shape: &Shape, parts: usize) -> Result<Inversion, BadTable> {
        let rows = run.contraction.out.lookups[0].len;
        let (batches, terms) = (count(&shape.tables), count(&shape.terms));
        let mut ends = vec![0u32; batches * parts * rows];
        let mut entries = vec![0u32; batches * terms];
        let (counts, sorted) = (Shared(ends.as_mut_ptr()), Shared(entries.as_mut_ptr()));
        let part = |unit: usize| {
            let part = unit % parts;
            (unit / parts, terms * part / parts..terms * (part + 1) / parts)
        };
        run.threads.for_pieces(batches * parts, 1, run.serial_seconds, |units| {
            units.into_iter().try_for_each(|unit| {
                let (batch, range) = part(unit);
                // SAFETY: each unit has counters of its own, and every value is below `rows`.
                unsafe {
                    let counts = counts.get().add(unit * rows);
                    for_values(run, shape, batch, range, |_, value| *counts.add(value) += 1)
                }
            })
        })?;
        // From counts to where the terms of each row and part start.
        run.threads.for_pieces(batches, 1, run.serial_seconds, |range| {
            for batch in range {
                let mut next = 0u32;
                for row in 0..rows {
                    for unit in batch * parts..(batch + 1) * parts {
                        // SAFETY: each batch has counters of its own.
                        unsafe {
                            let count = &mut *counts.get().add(unit * rows + row);
                            next += std::mem::replace(count, next);
                        }
                    }
                }
            }
            Ok(())
        })?;
        run.threads.for_pieces(batches * parts, 1, run.serial_seconds, |units| {
            units.into_iter().try_for_each(|unit| {
                let (batch, range) = part(unit);
                // A table that another thread rewrites must not lead outside.
                let mut moved = false;
                // SAFETY: as above; a position is checked, because it is only as good as the count of the first pass.
                unsafe {
                    let starts = counts.get().add(unit * rows);
                    let sorted = sorted.get().add(batch * terms);
                    for_values(run, shape, batch, range, |entry, value| {
                        let start = &mut *starts.add(value);
                        if (*start as usize) < terms {
                            sorted.add(*start as usize).write(entry as u32);
                        } else {
                            moved = true;
                        }
                        *start = start.wrapping_add(1);
                    })?;
                }
                if moved { Err(BadTable) } else { Ok(()) }
            })
        })?;
        Ok(Inversion { ends, entries, rows, terms, parts })
    }

    /// Number of rows of a batch.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The terms of a row.
    pub(super) fn row(&self, batch: usize, row: usize) -> &[u32] {
        let ends = &self.ends[((batch + 1) * self.parts - 1) * self.rows..][..self.rows];
        let start = if row == 0 { 0 } else { ends[row - 1] };
        let entries = &self.entries[batch * self.terms..][..self.terms];
        entries.get(start as usize..ends[row] as usize).unwrap_or_default()
    }
}

/// Calls `f` with the number and the value of each term of a part whose value is good, in order.
///
/// # Errors
/// [`BadTable`] where bad values are errors.
///
/// # Safety
/// As [`Inversion::new`]; `range` is within the terms.
unsafe fn for_values(
    run: &Run<'_>,
    shape: &Shape,
    batch: usize,
    range: std::ops::Range<usize>,
    mut f: impl FnMut(usize, usize),
) -> Result<(), BadTable> {
    let out = &run.contraction.out;
    let lookup = &out.lookups[0];
    // Trailing loops that run through the table as one.
    let mut outer = shape.terms.clone();
    let (at, mut len) = outer.pop().expect("there are terms");
    let stride = lookup.table_strides[at];
    while let Some(&(_, more)) = outer.last().filter(|(at, _)| lookup.table_strides[*at] == stride * len as isize) {
        len *= more;
        outer.pop();
    }
    let turns = count(&outer);
    let loops = shape.tables.iter().chain(&outer).copied();
    let mut walk = Walk::new([out], loops, run.tables, run.contraction.bounds);
    walk.seek(batch * turns + range.start / len);
    let mut at = range.start % len;
    let mut term = range.start;
    let mut values = [0isize; BLOCK];
    let mut positions = [0u32; BLOCK];
    while term < range.end {
        let count = BLOCK.min(len - at).min(range.end - term);
        let entries = run.tables[lookup.table].run(walk.entry(0, 0) + at as isize * stride, stride);
        // SAFETY: `bound`: the run lies in the table.
        unsafe {
            if run.contraction.bounds == Bounds::Error {
                load_offsets(run.isa, entries, count, lookup.len, 1, &mut values).map_err(|_| BadTable)?;
                values[..count].iter().enumerate().for_each(|(i, &value)| f(term + i, value as usize));
            } else {
                let found = load_offsets_skip(run.isa, entries, count, lookup.len, 1, &mut values, &mut positions);
                let found = values[..found].iter().zip(&positions);
                found.for_each(|(&value, &i)| f(term + i as usize, value as usize));
            }
        }
        term += count;
        at += count;
        if at == len {
            at = 0;
            walk.step();
        }
    }
    Ok(())
}
