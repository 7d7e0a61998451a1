//! Walking a loop nest: the element offsets of all accesses, step by step.
//!
//! *In*: accesses of a [`Contraction`](einfall_plan::Contraction), and the loops to walk. *Out*: for each iteration, the offset of every access, or
//! `None` where a table's value or a window's position is outside its axis. *Callers*: the ops. Together with
//! [`load`](crate::load) this is all that knows how an axis is looked up.

use std::array::from_fn;

use einfall_plan::{Access, Bounds};
use smallvec::SmallVec;

use crate::load::{TableDType, TableRef};

/// A table's memory: first element and type.
#[derive(Clone, Copy, Debug)]
pub struct TablePointer {
    /// Element at coordinate zero.
    pub pointer: *const u8,
    /// Integer type of its elements.
    pub dtype: TableDType,
}

// SAFETY: `span`: tables are only read, through views that are themselves Sync.
unsafe impl Send for TablePointer {}
// SAFETY: as above.
unsafe impl Sync for TablePointer {}

/// A table holds a value outside its axis, and the policy is [`Bounds::Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadTable;

impl TablePointer {
    /// The value at an element offset, `None` when it is not in `0..len`.
    ///
    /// # Safety
    /// `offset` must be an element of the table.
    #[inline]
    pub unsafe fn value(self, offset: isize, len: usize) -> Option<usize> {
        // SAFETY: by the caller; unaligned reads.
        let value: i64 = unsafe {
            match self.dtype {
                TableDType::I64 => self.pointer.cast::<i64>().offset(offset).read_unaligned(),
                TableDType::I32 => self.pointer.cast::<i32>().offset(offset).read_unaligned().into(),
                TableDType::I16 => self.pointer.cast::<i16>().offset(offset).read_unaligned().into(),
                TableDType::I8 => self.pointer.cast::<i8>().offset(offset).read_unaligned().into(),
                TableDType::U8 => self.pointer.cast::<u8>().offset(offset).read_unaligned().into(),
                TableDType::U16 => self.pointer.cast::<u16>().offset(offset).read_unaligned().into(),
                TableDType::U32 => self.pointer.cast::<u32>().offset(offset).read_unaligned().into(),
                TableDType::U64 => {
                    let value = self.pointer.cast::<u64>().offset(offset).read_unaligned();
                    i64::try_from(value).unwrap_or(-1)
                }
            }
        };
        // As an unsigned number a negative value is larger than any length.
        if (value as u64) < len as u64 { Some(value as usize) } else { None }
    }

    /// A run of entries from an element offset on.
    pub fn run(self, offset: isize, stride_elems: isize) -> TableRef {
        let bytes = offset.wrapping_mul(self.dtype.bytes() as isize);
        TableRef { ptr: self.pointer.wrapping_offset(bytes), dtype: self.dtype, stride_elems }
    }
}

/// The offsets of one access while the loops move.
struct Position<'a> {
    access: &'a Access,
    plain: isize,
    /// Element offset in the table of each lookup.
    entries: SmallVec<[isize; 2]>,
    /// Position of each window.
    windows: SmallVec<[i64; 2]>,
}

impl<'a> Position<'a> {
    #[inline]
    fn new(access: &'a Access) -> Self {
        let (mut entries, mut windows) = (SmallVec::new(), SmallVec::new());
        // Most accesses have neither, and small calls notice.
        if !access.is_plain() {
            entries.extend(access.lookups.iter().map(|lookup| lookup.table_offset));
            windows.extend(access.windows.iter().map(|window| window.offset));
        }
        Position { access, plain: access.offset, entries, windows }
    }

    #[inline]
    fn advance(&mut self, at: usize, steps: isize) {
        self.plain += self.access.strides[at] * steps;
        for (entry, lookup) in self.entries.iter_mut().zip(&self.access.lookups) {
            *entry += lookup.table_strides[at] * steps;
        }
        for (position, window) in self.windows.iter_mut().zip(&self.access.windows) {
            *position += window.coefficients[at] * steps as i64;
        }
    }
}

/// An odometer over some loops of a nest, the last one fastest.
pub struct Walk<'a, const N: usize> {
    loops: SmallVec<[(usize, usize); 8]>,
    counters: SmallVec<[usize; 8]>,
    positions: [Position<'a>; N],
    tables: &'a [TablePointer],
    bounds: Bounds,
}

impl<'a, const N: usize> Walk<'a, N> {
    /// A walk over `loops` (position in the nest, length), standing at the first iteration.
    #[inline]
    pub fn new(
        accesses: [&'a Access; N],
        loops: impl IntoIterator<Item = (usize, usize)>,
        tables: &'a [TablePointer],
        bounds: Bounds,
    ) -> Self {
        let loops: SmallVec<[(usize, usize); 8]> = loops.into_iter().collect();
        let counters = SmallVec::from_elem(0, loops.len());
        Walk { loops, counters, positions: from_fn(|at| Position::new(accesses[at])), tables, bounds }
    }

    /// Number of iterations.
    pub fn count(&self) -> usize {
        self.loops.iter().map(|(_, len)| len).product()
    }

    /// Moves a loop that is not walked: its counter stays at `steps` from now on.
    pub fn shift(&mut self, at: usize, steps: usize) {
        self.positions.iter_mut().for_each(|position| position.advance(at, steps as isize));
    }

    /// Takes over the position of another walk over the same accesses; this walk must stand at its first iteration.
    #[inline]
    pub fn follow(&mut self, other: &Walk<'a, N>) {
        for (position, from) in self.positions.iter_mut().zip(&other.positions) {
            position.plain = from.plain;
            position.entries.copy_from_slice(&from.entries);
            position.windows.copy_from_slice(&from.windows);
        }
    }

    /// Starts again at iteration `flat`.
    pub fn seek(&mut self, mut flat: usize) {
        for ((at, len), counter) in self.loops.iter().zip(self.counters.iter_mut()).rev() {
            let target = flat % len;
            flat /= len;
            for position in &mut self.positions {
                position.advance(*at, target as isize - *counter as isize);
            }
            *counter = target;
        }
    }

    /// Goes to the next iteration; after the last it is back at the first.
    #[inline]
    pub fn step(&mut self) {
        for ((at, len), counter) in self.loops.iter().zip(self.counters.iter_mut()).rev() {
            *counter += 1;
            if *counter < *len {
                self.positions.iter_mut().for_each(|position| position.advance(*at, 1));
                return;
            }
            *counter = 0;
            self.positions.iter_mut().for_each(|position| position.advance(*at, 1 - *len as isize));
        }
    }

    /// Iterations from here to the end of the fastest loop, this one included.
    #[inline]
    pub fn left(&self) -> usize {
        self.loops.last().map_or(1, |(_, len)| len - self.counters[self.counters.len() - 1])
    }

    /// The loop that moves fastest, if any is walked.
    #[inline]
    pub fn fastest(&self) -> Option<usize> {
        self.loops.last().map(|&(at, _)| at)
    }

    /// Goes `steps` iterations on, at most [`Walk::left`].
    #[inline]
    pub fn step_by(&mut self, steps: usize) {
        debug_assert!((1..=self.left()).contains(&steps));
        if let Some(at) = self.fastest()
            && steps > 1
        {
            *self.counters.last_mut().expect("one for each loop") += steps - 1;
            self.positions.iter_mut().for_each(|position| position.advance(at, steps as isize - 1));
        }
        self.step();
    }

    /// The element offset of an access, lookups and windows included.
    ///
    /// `None` where the term is left out.
    ///
    /// # Errors
    /// [`BadTable`] where a table's value is outside its axis and the policy is [`Bounds::Error`].
    ///
    /// # Safety
    /// `span`: the access was bound to views whose tables have an entry for every iteration of the nest.
    #[inline]
    pub unsafe fn offset(&self, which: usize) -> Result<Option<isize>, BadTable> {
        let position = &self.positions[which];
        let mut offset = position.plain;
        for (entry, lookup) in position.entries.iter().zip(&position.access.lookups) {
            // SAFETY: by the caller.
            match unsafe { self.tables[lookup.table].value(*entry, lookup.len) } {
                Some(value) => offset += value as isize * lookup.stride,
                None if self.bounds == Bounds::Error => return Err(BadTable),
                None => return Ok(None),
            }
        }
        for (&at, window) in position.windows.iter().zip(&position.access.windows) {
            if at as u64 >= window.len as u64 {
                return Ok(None);
            }
            offset += at as isize * window.stride;
        }
        Ok(Some(offset))
    }

    /// The offset without lookups and windows.
    #[inline]
    pub fn plain_offset(&self, which: usize) -> isize {
        self.positions[which].plain
    }

    /// Element offset in the table of a lookup.
    #[inline]
    pub fn entry(&self, which: usize, lookup: usize) -> isize {
        self.positions[which].entries[lookup]
    }

    /// Position of a window.
    #[inline]
    pub fn window(&self, which: usize, window: usize) -> i64 {
        self.positions[which].windows[window]
    }
}
