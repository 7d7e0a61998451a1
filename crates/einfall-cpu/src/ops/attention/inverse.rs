//! The inverse of a set's tables: for each row, the queries that look at it, in their order.
//!
//! *In*: positions of the keys of one query after another. *Out*: queries by position, by a stable counting sort.
//! *Callers*: the gradients of keys and values.

use einfall_plan::Access;

use super::keys::Rows;
use crate::ops::source::Source;

/// The axis on which an access's rows stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    /// Number of positions.
    pub len: usize,
    /// From one to the next, in elements.
    pub stride: isize,
}

impl Axis {
    /// The position of a row, from its offset to that of the first.
    #[inline(always)]
    pub fn position(&self, offset: isize) -> u32 {
        if self.stride == 0 { 0 } else { (offset / self.stride) as u32 }
    }
}

/// The axis of an access whose rows stand on one.
pub(super) fn axis_of(access: &Access, rows: &Rows) -> Option<Axis> {
    let axes = access.lookups.len() + access.windows.len();
    let axis = match Source::of(access, rows.at) {
        Source::Lookup(number) if axes == 1 => {
            Axis { len: access.lookups[number].len, stride: access.lookups[number].stride }
        }
        Source::Window(number) if axes == 1 => {
            Axis { len: access.windows[number].len, stride: access.windows[number].stride }
        }
        Source::Strided(stride) if axes == 0 && rows.outer_keys.is_empty() => Axis { len: rows.len, stride },
        _ => return None,
    };
    let direct = rows.outer_keys.iter().any(|&(at, _)| access.strides[at] != 0);
    (!direct && (axis.stride != 0 || axis.len <= 1) && axis.len < u32::MAX as usize).then_some(axis)
}

/// Queries by the position that they look at.
#[derive(Default)]
pub(super) struct Inverse {
    /// Where the queries of each position begin, and the end.
    starts: Vec<u32>,
    queries: Vec<u32>,
    indices: Vec<u32>,
    /// Positions in the order of queries, and the queries with how many each has.
    positions: Vec<u32>,
    runs: Vec<(u32, u32)>,
    given: Vec<u32>,
    with_index: bool,
}

impl Inverse {
    /// Forgets everything, for an axis of `len` positions.
    pub fn begin(&mut self, len: usize, with_index: bool) {
        self.starts.clear();
        self.starts.resize(len + 1, 0);
        self.positions.clear();
        self.runs.clear();
        self.given.clear();
        self.with_index = with_index;
    }

    /// Adds keys of a query; `indices` says which of its keys they are.
    pub fn add(&mut self, query: u32, positions: impl Iterator<Item = u32>, indices: &[u32]) {
        let from = self.positions.len();
        self.positions.extend(positions);
        for &position in &self.positions[from..] {
            self.starts[position as usize + 1] += 1;
        }
        self.runs.push((query, (self.positions.len() - from) as u32));
        if self.with_index {
            self.given.extend_from_slice(indices);
        }
    }

    /// Sorts by position.
    pub fn sort(&mut self) {
        for at in 1..self.starts.len() {
            self.starts[at] += self.starts[at - 1];
        }
        let mut next = self.starts.clone();
        self.queries.resize(self.positions.len(), 0);
        self.indices.resize(self.given.len(), 0);
        let mut at = 0;
        for &(query, count) in &self.runs {
            for _ in 0..count {
                let to = &mut next[self.positions[at] as usize];
                self.queries[*to as usize] = query;
                if self.with_index {
                    self.indices[*to as usize] = self.given[at];
                }
                *to += 1;
                at += 1;
            }
        }
    }

    /// The queries that look at a position.
    pub fn row(&self, position: usize) -> &[u32] {
        &self.queries[self.range(position)]
    }

    /// Which of their keys it is, where that was asked for.
    pub fn indices(&self, position: usize) -> &[u32] {
        if self.with_index { &self.indices[self.range(position)] } else { &[] }
    }

    fn range(&self, position: usize) -> std::ops::Range<usize> {
        self.starts[position] as usize..self.starts[position + 1] as usize
    }
}
