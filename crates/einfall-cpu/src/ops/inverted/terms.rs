//! Where an input stands in each term of a row: from numbers of terms to offsets.

use einfall_plan::{Access, Bounds};

use crate::walk::{BadTable, TablePointer, Walk};

/// The offset of a term that is left out.
pub(super) const LEFT_OUT: isize = isize::MIN;

/// How the terms move an input.
enum Moves {
    /// By a fixed stride from a term to the next.
    Strided(isize),
    /// By one lookup alone, whose table moves by a fixed stride.
    Lookup(usize, isize),
    /// By several strides, lookups or windows.
    Mixed,
}

/// An input as the terms move it.
pub(super) struct Terms<'a> {
    access: &'a Access,
    loops: &'a [(usize, usize)],
    tables: &'a [TablePointer],
    bounds: Bounds,
    moves: Moves,
}

/// The stride of a run over all `loops`, if it has one.
fn stride_of(strides: &[isize], loops: &[(usize, usize)]) -> Option<isize> {
    let mut expected = None;
    for &(at, len) in loops.iter().rev() {
        if *expected.get_or_insert(strides[at]) != strides[at] {
            return None;
        }
        expected = Some(strides[at] * len as isize);
    }
    Some(loops.last().map_or(0, |&(at, _)| strides[at]))
}

impl<'a> Terms<'a> {
    pub(super) fn new(
        access: &'a Access,
        loops: &'a [(usize, usize)],
        tables: &'a [TablePointer],
        bounds: Bounds,
    ) -> Self {
        let moved = |strides: &[isize]| loops.iter().any(|&(at, _)| strides[at] != 0);
        let mut lookups = (0..access.lookups.len()).filter(|&l| moved(&access.lookups[l].table_strides));
        let windowed = access.windows.iter().any(|w| loops.iter().any(|&(at, _)| w.coefficients[at] != 0));
        let moves = match (lookups.next(), lookups.next(), windowed) {
            (None, _, false) => stride_of(&access.strides, loops).map(Moves::Strided),
            (Some(lookup), None, false) if !moved(&access.strides) => {
                stride_of(&access.lookups[lookup].table_strides, loops).map(|stride| Moves::Lookup(lookup, stride))
            }
            _ => None,
        };
        Terms { access, loops, tables, bounds, moves: moves.unwrap_or(Moves::Mixed) }
    }

    /// Where the access stands but for what the terms move; `None` where all terms are left out.
    ///
    /// # Errors
    /// [`BadTable`].
    ///
    /// # Safety
    /// As [`Walk::offset`]; `walk` stands at the first term.
    pub(super) unsafe fn base<const N: usize>(
        &self,
        walk: &Walk<'_, N>,
        which: usize,
    ) -> Result<Option<isize>, BadTable> {
        let mut base = walk.plain_offset(which);
        for (number, lookup) in self.access.lookups.iter().enumerate() {
            if self.loops.iter().all(|&(at, _)| lookup.table_strides[at] == 0) {
                // SAFETY: by the caller.
                match unsafe { self.tables[lookup.table].value(walk.entry(which, number), lookup.len) } {
                    Some(value) => base += value as isize * lookup.stride,
                    None if self.bounds == Bounds::Error => return Err(BadTable),
                    None => return Ok(None),
                }
            }
        }
        for (number, window) in self.access.windows.iter().enumerate() {
            if self.loops.iter().all(|&(at, _)| window.coefficients[at] == 0) {
                let position = walk.window(which, number);
                if position as u64 >= window.len as u64 {
                    return Ok(None);
                }
                base += position as isize * window.stride;
            }
        }
        Ok(Some(base))
    }

    /// The offsets of some terms, [`LEFT_OUT`] for those that are; whether none is.
    ///
    /// # Errors
    /// [`BadTable`].
    ///
    /// # Safety
    /// As [`Terms::base`], which gave `base`; the terms are iterations of the loops.
    pub(super) unsafe fn fill<const N: usize>(
        &self,
        walk: &Walk<'_, N>,
        which: usize,
        base: isize,
        terms: &[u32],
        offsets: &mut [isize],
    ) -> Result<bool, BadTable> {
        let mut all = true;
        match self.moves {
            Moves::Strided(stride) => {
                for (offset, &term) in offsets.iter_mut().zip(terms) {
                    *offset = base + term as isize * stride;
                }
            }
            Moves::Lookup(number, stride) => {
                let lookup = &self.access.lookups[number];
                let (table, first) = (self.tables[lookup.table], walk.entry(which, number));
                for (offset, &term) in offsets.iter_mut().zip(terms) {
                    // SAFETY: by the caller.
                    let value = unsafe { table.value(first + term as isize * stride, lookup.len) };
                    if value.is_none() && self.bounds == Bounds::Error {
                        return Err(BadTable);
                    }
                    all &= value.is_some();
                    *offset = value.map_or(LEFT_OUT, |value| base + value as isize * lookup.stride);
                }
            }
            Moves::Mixed => {
                for (offset, &term) in offsets.iter_mut().zip(terms) {
                    // SAFETY: by the caller.
                    let there = unsafe { self.mixed(walk, which, base, term as usize)? };
                    all &= there.is_some();
                    *offset = there.unwrap_or(LEFT_OUT);
                }
            }
        }
        Ok(all)
    }

    /// # Safety
    /// As [`Terms::fill`].
    unsafe fn mixed<const N: usize>(
        &self,
        walk: &Walk<'_, N>,
        which: usize,
        base: isize,
        term: usize,
    ) -> Result<Option<isize>, BadTable> {
        let Access { strides, lookups, windows, .. } = self.access;
        let steps = |strides: &dyn Fn(usize) -> isize| {
            let (mut rest, mut sum) = (term, 0);
            for &(at, len) in self.loops.iter().rev() {
                sum += strides(at) * (rest % len) as isize;
                rest /= len;
            }
            sum
        };
        let mut offset = base + steps(&|at| strides[at]);
        for (number, lookup) in lookups.iter().enumerate() {
            if self.loops.iter().any(|&(at, _)| lookup.table_strides[at] != 0) {
                let entry = walk.entry(which, number) + steps(&|at| lookup.table_strides[at]);
                // SAFETY: by the caller.
                match unsafe { self.tables[lookup.table].value(entry, lookup.len) } {
                    Some(value) => offset += value as isize * lookup.stride,
                    None if self.bounds == Bounds::Error => return Err(BadTable),
                    None => return Ok(None),
                }
            }
        }
        for (number, window) in windows.iter().enumerate() {
            if self.loops.iter().any(|&(at, _)| window.coefficients[at] != 0) {
                let position = walk.window(which, number) + steps(&|at| window.coefficients[at] as isize) as i64;
                if position as u64 >= window.len as u64 {
                    return Ok(None);
                }
                offset += position as isize * window.stride;
            }
        }
        Ok(Some(offset))
    }
}
