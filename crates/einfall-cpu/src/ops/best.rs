//! The best keys of each query: positions of the largest products, best first.
//!
//! *In*: query `(b, h, q, d)` and key `(b, g, n, d)` with h a multiple of g, as pointers with strides. *Out*: `count` positions
//! a query, by falling score, equal scores by rising position, −1 where there are no more keys. *Callers*: the device.
//!
//! Scores are computed a tile at a time and what cannot be among the best is dropped at once, so that the scores of all
//! keys are never stored. A score that is no number comes last. Cost: the matrix product, and a comparison a score.

use std::cmp::Ordering;
use std::ops::Range;

use crate::isa::Isa;
use crate::kernels::tile::TileElement;
use crate::ops::gemm::{Accum, Blocking, Caches, Scratch, gemm_prepacked, pack_right, packed_right_len};
use crate::pack::{Matrix, MatrixMut, Offsets};
use crate::threads::{Shared, Threads};

/// Queries of a tile, and keys of a block.
const TILE: usize = 64;
const BLOCK: usize = 512;
/// The most queries of a task, and about the bytes that their candidates take.
const CHUNK: usize = 4 * TILE;
const CANDIDATE_BYTES: usize = 1 << 20;

/// A call.
///
/// Invariant `bound`: the pointers are aligned, and every offset of the shape is inside their memory; `table` has
/// `batch * heads * queries * count` elements that nobody else uses.
pub struct BestKeys<'a, T, I> {
    /// The instructions to use.
    pub isa: Isa,
    /// The threads to run on.
    pub threads: &'a Threads,
    /// Cache sizes.
    pub caches: Caches,
    /// Batches, heads of the query, groups of the key, queries, keys, features.
    pub shape: [usize; 6],
    /// The query and its strides.
    pub query: (*const T, [isize; 4]),
    /// The key and its strides.
    pub key: (*const T, [isize; 4]),
    /// How many keys are wanted.
    pub count: usize,
    /// Whether query i sees the keys 0 to i alone.
    pub causal: bool,
    /// The positions, row-major.
    pub table: *mut I,
    /// Predicted time on one thread.
    pub serial_seconds: f64,
}

// SAFETY: `bound`: inputs are only read, and tasks write distinct rows of the table.
unsafe impl<T, I> Sync for BestKeys<'_, T, I> {}

/// A score that is ordered.
pub trait Score: TileElement<Acc = Self> + PartialOrd + Copy {
    /// Below all others.
    const LEAST: Self;
    /// Itself, or the least if it is no number.
    fn number(self) -> Self;
}

macro_rules! scores {
    ($($T:ident),*) => {$(
        impl Score for $T {
            const LEAST: $T = $T::NEG_INFINITY;

            #[inline(always)]
            fn number(self) -> $T {
                if self.is_nan() { $T::NEG_INFINITY } else { self }
            }
        }
    )*};
}

scores!(f32, f64);

/// A position in a table.
pub trait Position: Copy {
    /// Where there is no key.
    const NONE: Self;
    /// A position that the type holds.
    fn of(position: usize) -> Self;
}

impl Position for i32 {
    const NONE: i32 = -1;

    fn of(position: usize) -> i32 {
        position as i32
    }
}

impl Position for i64 {
    const NONE: i64 = -1;

    fn of(position: usize) -> i64 {
        position as i64
    }
}

/// A key that may be among the best.
#[derive(Clone, Copy)]
struct Candidate<A> {
    score: A,
    /// Its score is no number.
    is_nan: bool,
    at: usize,
}

/// Best first.
fn order<A: Score>(a: &Candidate<A>, b: &Candidate<A>) -> Ordering {
    let by_score = b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal);
    a.is_nan.cmp(&b.is_nan).then(by_score).then(a.at.cmp(&b.at))
}

/// The best keys of one query so far.
struct Best<A> {
    kept: Vec<Candidate<A>>,
    /// Once there are enough: the score that a later key has to be above.
    threshold: Option<A>,
}

impl<A: Score> Best<A> {
    /// Takes the scores of the keys from `first` on.
    fn take(&mut self, scores: &[A], first: usize, count: usize) {
        const STRIP: usize = 32;
        for (strip, scores) in scores.chunks(STRIP).enumerate() {
            if let Some(threshold) = self.threshold {
                let above = scores.iter().fold(false, |any, score| any | (*score > threshold));
                if !above {
                    continue;
                }
            }
            for (i, &raw) in scores.iter().enumerate() {
                let score = raw.number();
                if self.threshold.is_none_or(|threshold| score > threshold) {
                    #[allow(clippy::eq_op, reason = "only what is no number differs from itself")]
                    let is_nan = raw != raw;
                    self.kept.push(Candidate { score, is_nan, at: first + strip * STRIP + i });
                }
            }
            if self.kept.len() >= 2 * count + STRIP {
                self.narrow(count);
            }
        }
    }

    /// Keeps the best.
    fn narrow(&mut self, count: usize) {
        if count == 0 || self.kept.len() <= count {
            if count == 0 {
                self.kept.clear();
            }
            return;
        }
        let (_, last, _) = self.kept.select_nth_unstable_by(count - 1, order);
        // What is no number is below every number, and only a number is above it.
        let threshold = if last.is_nan { None } else { Some(last.score) };
        self.kept.truncate(count);
        self.threshold = threshold;
    }
}

/// What a thread has to itself.
struct State<A> {
    packed: Vec<A>,
    scores: Vec<A>,
    best: Vec<Best<A>>,
    scratch: Scratch,
}

/// Fills the table.
///
/// # Safety
/// `call` keeps its invariant `bound`.
pub unsafe fn best_keys<T, I>(call: &BestKeys<'_, T, I>)
where
    T: TileElement,
    T::Acc: Score,
    I: Position,
{
    let [batches, heads, groups, queries, _, _] = call.shape;
    let shared = heads / groups.max(1);
    let rows = shared * queries;
    let chunk = (CANDIDATE_BYTES / (24 * (2 * call.count + 32))).clamp(16, CHUNK);
    let chunks = rows.div_ceil(chunk);
    let blocking = Blocking::new::<T>(call.isa, call.caches);
    let state = || State { packed: Vec::new(), scores: Vec::new(), best: Vec::new(), scratch: Scratch::new() };
    let table = Shared(call.table);
    let total = batches * groups * chunks;
    let work = |state: &mut State<T::Acc>, range: Range<usize>| {
        for task in range {
            let (list, first) = (task / chunks, task % chunks * chunk);
            let rows = first..rows.min(first + chunk);
            // SAFETY: by the caller; tasks have rows of their own.
            unsafe { some(call, &blocking, (list / groups, list % groups), rows, table, state) };
        }
        Ok(())
    };
    let done = call.threads.for_pieces_with(total, 1, call.serial_seconds, state, work);
    debug_assert!(done.is_ok(), "no table is read");
}

/// Some queries of the heads that share a group's keys.
///
/// # Safety
/// As [`best_keys`]; batch, group and rows are there.
unsafe fn some<T, I>(
    call: &BestKeys<'_, T, I>,
    blocking: &Blocking,
    (batch, group): (usize, usize),
    rows: Range<usize>,
    table: Shared<I>,
    state: &mut State<T::Acc>,
) where
    T: TileElement,
    T::Acc: Score,
    I: Position,
{
    let [_, heads, groups, queries, keys, depth] = call.shape;
    let shared = heads / groups;
    let (query, by_query) = call.query;
    let (key, by_key) = call.key;
    let at = |row: usize| (group * shared + row / queries, row % queries);
    let offsets: Vec<isize> = rows
        .clone()
        .map(|row| {
            let (head, query) = at(row);
            batch as isize * by_query[0] + head as isize * by_query[1] + query as isize * by_query[2]
        })
        .collect();
    let seen = |row: usize| if call.causal { keys.min(at(row).1 + 1) } else { keys };
    let most = rows.clone().map(seen).max().unwrap_or(0);
    state.best.resize_with(rows.len().max(state.best.len()), || Best { kept: Vec::new(), threshold: None });
    state.best.iter_mut().for_each(|best| {
        best.kept.clear();
        best.threshold = None;
    });
    let base = key.wrapping_offset(batch as isize * by_key[0] + group as isize * by_key[1]);
    for first in (0..if call.count == 0 { 0 } else { most }).step_by(BLOCK) {
        let block = BLOCK.min(most - first);
        let len = packed_right_len::<T>(call.isa, block, depth);
        let zero = <T::Acc as crate::kernels::tile::Accumulator>::ZERO;
        state.packed.resize(len.max(state.packed.len()), zero);
        state.scores.resize(TILE * BLOCK, zero);
        // SAFETY: by the caller: the block's keys are there, and the buffers have room.
        unsafe {
            let from = base.offset(first as isize * by_key[2]);
            let matrix = Matrix { ptr: from, rows: Offsets::Strided(by_key[3]), cols: Offsets::Strided(by_key[2]) };
            let room = std::slice::from_raw_parts_mut(state.packed.as_mut_ptr().cast(), len);
            pack_right::<T, T>(call.isa, blocking, block, depth, matrix, room);
        }
        for (tile, offsets) in offsets.chunks(TILE).enumerate() {
            let a = Matrix { ptr: query, rows: Offsets::Scattered(offsets), cols: Offsets::Strided(by_query[3]) };
            let c = MatrixMut {
                ptr: state.scores.as_mut_ptr(),
                rows: Offsets::Strided(block as isize),
                cols: Offsets::Strided(1),
            };
            // SAFETY: as above; the tile has room for its scores.
            unsafe {
                gemm_prepacked::<T, T::Acc>(
                    call.isa,
                    blocking,
                    offsets.len(),
                    block,
                    depth,
                    a,
                    state.packed.as_ptr(),
                    c,
                    Accum::Replace,
                    &mut state.scratch,
                );
            }
            for i in 0..offsets.len() {
                let row = tile * TILE + i;
                let there = seen(rows.start + row).saturating_sub(first).min(block);
                state.best[row].take(&state.scores[i * block..i * block + there], first, call.count);
            }
        }
    }
    for (best, row) in state.best.iter_mut().zip(rows) {
        best.narrow(call.count);
        best.kept.sort_unstable_by(order);
        let (head, query) = at(row);
        let to = ((batch * heads + head) * queries + query) * call.count;
        for place in 0..call.count {
            let position = best.kept.get(place).map_or(I::NONE, |found| I::of(found.at));
            // SAFETY: by the caller: the row is this task's own.
            unsafe { table.get().add(to + place).write(position) };
        }
    }
}
