//! The keys of queries: where the rows of a list's keys and values lie.
//!
//! *In*: a walk that stands at a query. *Out*: offsets of its keys' rows and of its values', those left out already gone.
//! *Callers*: the kernels that gather rows.

use std::ops::Range;

use einfall_plan::{Access, Attention, AttentionRole};

use super::AttentionRun;
use crate::ops::source::{Filled, RowOffsets, Source};
use crate::walk::{BadTable, Walk};

/// An attention whose rows are contiguous, and whose keys one loop counts, perhaps inside others.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    /// Elements of a query's row and of a key's.
    pub depth: usize,
    /// Elements of a value's row and of the output's.
    pub width: usize,
    /// The innermost loop over keys.
    pub at: usize,
    /// Its length.
    pub len: usize,
    /// The other loops over keys.
    pub outer_keys: Vec<(usize, usize)>,
    /// How often the innermost one runs for a query.
    pub turns: usize,
}

impl Rows {
    /// Matches an attention.
    ///
    /// # Errors
    /// Why its rows cannot be gathered.
    pub fn of(attention: &Attention) -> Result<Rows, String> {
        let one = |role, accesses: [Option<&Access>; 4]| -> Result<usize, String> {
            let loops: Vec<usize> = attention.loops_of(role).collect();
            match loops.as_slice() {
                [] => Ok(1),
                &[at] if accesses.iter().flatten().all(|access| access.strides[at] == 1) => Ok(attention.loops[at].len),
                _ => Err("rows are not contiguous".into()),
            }
        };
        let Attention { query, key, value, out, gradients, .. } = attention;
        let depth = [Some(query), Some(key), gradients.query.as_ref(), gradients.key.as_ref()];
        let (depth, width) = (
            one(AttentionRole::Depth, depth)?,
            one(AttentionRole::Width, [Some(value), Some(out), gradients.value.as_ref(), None])?,
        );
        if attention.loops_of(AttentionRole::Key).any(|at| query.depends_on(at)) {
            return Err("queries depend on their keys".into());
        }
        let mut keys: Vec<(usize, usize)> =
            attention.loops_of(AttentionRole::Key).map(|at| (at, attention.loops[at].len)).collect();
        let Some((at, len)) = keys.pop() else { return Err("there is one key".into()) };
        if ![key, value].into_iter().all(|access| Source::is_handled(access, at)) {
            return Err("too many lookups move together".into());
        }
        if attention.limit.is_some() && !has_positions(key, at) {
            return Err("a causal mask over rows without positions".into());
        }
        let turns = keys.iter().map(|(_, len)| len).product();
        Ok(Rows { depth, width, at, len, outer_keys: keys, turns })
    }
}

/// Whether a row's offset tells its position.
pub(super) fn has_positions(key: &Access, at: usize) -> bool {
    match Source::of(key, at) {
        Source::Lookup(number) => key.lookups[number].stride != 0 && key.windows.is_empty(),
        Source::Window(number) => key.windows[number].stride != 0 && key.lookups.is_empty(),
        Source::Strided(stride) => stride != 0 && key.is_plain(),
        Source::Mixed => false,
    }
}

/// The accesses of a walk over queries, in its order.
pub(super) const QUERY: usize = 0;
pub(super) const KEY: usize = 1;
pub(super) const VALUE: usize = 2;
pub(super) const BIAS: usize = 3;
pub(super) const OUT: usize = 4;
pub(super) const LSE: usize = 5;

/// A walk over queries, and over the outer loops of their keys.
pub(super) type Queries<'a> = Walk<'a, 6>;

/// A walk over some loops.
fn over<'a>(
    run: &'a AttentionRun<'a>,
    bias: &'a Access,
    [key, value]: [&'a Access; 2],
    loops: Vec<(usize, usize)>,
) -> Queries<'a> {
    let Attention { query, out, lse, bounds, .. } = run.attention;
    Walk::new([query, key, value, bias, out, lse], loops, run.tables, *bounds)
}

/// Rows of keys and values: one an entry, relative to nothing.
#[derive(Default)]
pub(super) struct Found {
    /// Element offsets of the keys' rows.
    pub keys: Vec<isize>,
    /// Element offsets of the values' rows.
    pub values: Vec<isize>,
    /// Which key of the query each is: the index in all loops over keys.
    pub index: Vec<u32>,
}

impl Found {
    pub fn clear(&mut self) {
        self.keys.clear();
        self.values.clear();
        self.index.clear();
    }
}

/// Finds the keys of queries.
pub(super) struct Keys<'a> {
    run: &'a AttentionRun<'a>,
    rows: &'a Rows,
    /// What the offsets are of.
    accesses: [&'a Access; 2],
    interior: Option<Interior>,
    /// Over the outer loops of the keys of the query that was asked for last.
    outer: Queries<'a>,
    key: RowOffsets<'a>,
    value: RowOffsets<'a>,
    /// From an offset of a key's row to that of its value, where both are multiples of one position.
    same: bool,
    queries: Vec<(usize, usize)>,
    positions: Vec<u32>,
    counters: Vec<usize>,
}

/// The keys of a query whose windows lie inside their axes altogether, from where the windows stand.
struct Interior {
    offsets: [Vec<isize>; 2],
    /// How far each window reaches.
    reaches: Vec<(i64, i64)>,
}

impl Interior {
    /// Where windows on several axes alone say where the rows lie.
    fn of(attention: &Attention, rows: &Rows, accesses: [&Access; 2]) -> Option<Interior> {
        let windows = |access: &Access| access.lookups.is_empty() && !access.windows.is_empty();
        let moves =
            |access: &Access| access.windows.iter().map(|window| window.coefficients.clone()).collect::<Vec<_>>();
        if rows.outer_keys.is_empty()
            || attention.limit.is_some()
            || !accesses.iter().all(|access| windows(access))
            || moves(accesses[0]) != moves(accesses[1])
        {
            return None;
        }
        let loops: Vec<(usize, usize)> = rows.outer_keys.iter().copied().chain([(rows.at, rows.len)]).collect();
        if loops.iter().any(|&(_, len)| len == 0) {
            return None;
        }
        let offsets = accesses.map(|access| {
            loops.iter().fold(vec![0], |offsets, &(at, len)| {
                let windows = access.windows.iter().map(|window| window.coefficients[at] as isize * window.stride);
                let by = access.strides[at] + windows.sum::<isize>();
                offsets.iter().flat_map(|&from: &isize| (0..len).map(move |i| from + i as isize * by)).collect()
            })
        });
        let reach = |coefficients: Vec<i64>| {
            loops.iter().fold((0, 0), |(low, high), &(at, len)| {
                let far = coefficients[at] * (len as i64 - 1);
                (low + far.min(0), high + far.max(0))
            })
        };
        Some(Interior { offsets, reaches: moves(accesses[0]).into_iter().map(reach).collect() })
    }

    /// Adds the keys of the query where `walk` stands; does nothing where some may be outside, and says so.
    fn find(&self, accesses: [&Access; 2], walk: &Queries<'_>, found: &mut Found) -> bool {
        let mut bases = [KEY, VALUE].map(|which| walk.plain_offset(which));
        for (which, access) in accesses.into_iter().enumerate() {
            for (at, (window, &(low, high))) in access.windows.iter().zip(&self.reaches).enumerate() {
                let position = walk.window(KEY + which, at);
                if position + low < 0 || position + high >= window.len as i64 {
                    return false;
                }
                bases[which] += position as isize * window.stride;
            }
        }
        let [keys, values] = &self.offsets;
        found.keys.extend(keys.iter().map(|offset| offset + bases[0]));
        found.values.extend(values.iter().map(|offset| offset + bases[1]));
        found.index.extend(0..keys.len() as u32);
        true
    }
}

impl<'a> Keys<'a> {
    pub fn new(run: &'a AttentionRun<'a>, rows: &'a Rows, bias: &'a Access) -> Self {
        Keys::of(run, rows, bias, [&run.attention.key, &run.attention.value])
    }

    /// The same for other rows of keys and values that stand at the same positions: those of their gradients.
    pub fn of(run: &'a AttentionRun<'a>, rows: &'a Rows, bias: &'a Access, accesses: [&'a Access; 2]) -> Self {
        let Attention { bounds, .. } = run.attention;
        let source = |access: &'a Access| RowOffsets::new(access, rows.at, run.tables, *bounds, run.isa);
        let strides = |access: &Access| match Source::of(access, rows.at) {
            Source::Lookup(number) => Some(access.lookups[number].stride),
            Source::Window(number) => Some(access.windows[number].stride),
            Source::Strided(stride) => Some(stride),
            Source::Mixed => None,
        };
        let [key, value] = accesses;
        let outer = over(run, bias, accesses, rows.outer_keys.clone());
        Keys {
            run,
            rows,
            accesses,
            interior: Interior::of(run.attention, rows, accesses),
            outer,
            key: source(key),
            value: source(value),
            same: strides(key).is_some() && strides(key) == strides(value),
            queries: run.loops(&[AttentionRole::List, AttentionRole::Head]),
            positions: Vec::new(),
            counters: vec![0; run.attention.loops.len()],
        }
    }

    /// A walk over queries, `bias` standing in for a bias that is not there.
    pub fn walk(&self, bias: &'a Access) -> Queries<'a> {
        over(self.run, bias, self.accesses, self.queries.clone())
    }

    /// Number of queries.
    pub fn queries(&self) -> usize {
        self.queries.iter().map(|(_, len)| len).product()
    }

    /// The keys of query `flat`, as a range of the innermost loop, and the highest position that it may see.
    ///
    /// # Safety
    /// `bound`.
    pub unsafe fn range(&mut self, mut flat: usize) -> (Range<usize>, i64) {
        let attention = self.run.attention;
        if attention.ragged.is_none() && attention.limit.is_none() {
            return (0..self.rows.len, i64::MAX);
        }
        for &(at, len) in self.queries.iter().rev() {
            (self.counters[at], flat) = (flat % len, flat / len);
        }
        let limit = attention.limit.as_ref().map_or(i64::MAX, |limit| {
            let steps = limit.strides.iter().zip(&self.counters).map(|(&stride, &counter)| stride * counter as i64);
            limit.offset + steps.sum::<i64>()
        });
        let range = match &attention.ragged {
            // SAFETY: by the caller.
            Some(_) => unsafe { self.run.keys_at(&self.counters) },
            None => 0..self.rows.len,
        };
        (range, limit)
    }

    /// Adds all keys of the query where `walk` stands.
    ///
    /// # Errors
    /// [`BadTable`].
    ///
    /// # Safety
    /// As [`Keys::find`].
    pub unsafe fn find_all(
        &mut self,
        walk: &Queries<'a>,
        range: Range<usize>,
        limit: i64,
        found: &mut Found,
    ) -> Result<(), BadTable> {
        if let Some(interior) = &self.interior
            && interior.find(self.accesses, walk, found)
        {
            return Ok(());
        }
        for turn in 0..self.rows.turns {
            // SAFETY: by the caller.
            unsafe { self.find(walk, turn, range.clone(), limit, found)? };
        }
        Ok(())
    }

    /// Adds the keys of a run of the innermost loop to those found, for the query where `walk` stands, in a turn of the
    /// outer loops.
    ///
    /// # Errors
    /// [`BadTable`].
    ///
    /// # Safety
    /// `bound`; the run is within the loop.
    pub unsafe fn find(
        &mut self,
        walk: &Queries<'a>,
        turn: usize,
        range: Range<usize>,
        limit: i64,
        found: &mut Found,
    ) -> Result<(), BadTable> {
        let walk = if self.rows.turns == 1 {
            walk
        } else {
            if turn == 0 {
                self.outer.seek(0);
                self.outer.follow(walk);
            } else {
                self.outer.seek(turn);
            }
            &self.outer
        };
        // SAFETY: by the caller.
        let starts = unsafe { (self.key.start(walk, KEY)?, self.value.start(walk, VALUE)?) };
        let (Some(key), Some(value)) = starts else { return Ok(()) };
        let (from, count) = (found.keys.len(), range.len());
        self.positions.resize(self.positions.len().max(count), 0);
        found.keys.resize(from + count, 0);
        // SAFETY: by the caller.
        let filled =
            unsafe { self.key.fill(&key, range.start, &mut found.keys[from..], &mut self.positions[..count])? };
        let there = if let Filled::Some(there) = filled { there } else { count };
        found.keys.truncate(from + there);
        if self.same {
            let shift = value.base;
            found.values.extend(found.keys[from..].iter().map(|offset| offset + shift));
        } else {
            found.values.resize(from + count, 0);
            // SAFETY: by the caller.
            unsafe { self.value.fill(&value, range.start, &mut found.values[from..], &mut self.positions[..count])? };
            found.values.truncate(from + there);
            found.values[from..].iter_mut().for_each(|offset| *offset += value.base);
        }
        let first = (turn * self.rows.len + range.start) as u32;
        match filled {
            Filled::All => found.index.extend((0..count as u32).map(|i| first + i)),
            Filled::Some(_) => found.index.extend(self.positions[..there].iter().map(|i| first + i)),
        }
        if limit < i64::MAX {
            self.keep_seen(from, limit, found);
        }
        found.keys[from..].iter_mut().for_each(|offset| *offset += key.base);
        Ok(())
    }

    /// Drops keys above a position; their offsets still count from where the loop itself begins.
    fn keep_seen(&self, from: usize, limit: i64, found: &mut Found) {
        let access = self.accesses[0];
        let stride = match self.key.source() {
            Source::Lookup(number) => access.lookups[number].stride,
            Source::Window(number) => access.windows[number].stride,
            Source::Strided(stride) => stride,
            Source::Mixed => unreachable!("refused"),
        };
        let mut kept = from;
        for at in from..found.keys.len() {
            if (found.keys[at] / stride) as i64 <= limit {
                found.keys[kept] = found.keys[at];
                found.values[kept] = found.values[at];
                found.index[kept] = found.index[at];
                kept += 1;
            }
        }
        found.keys.truncate(kept);
        found.values.truncate(kept);
        found.index.truncate(kept);
    }
}
