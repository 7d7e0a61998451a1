//! The threads that kernels run on: an explicit pool, and work in pieces that do not depend on its size.
//!
//! *Callers*: the ops. Results are the same bits for any number of threads because the pieces, and the order in which
//! their sums are joined, are fixed by the problem alone.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::pool::Pool;
use crate::walk::BadTable;

/// A pool of worker threads; cheap to clone.
#[derive(Clone, Debug)]
pub struct Threads {
    pool: Option<Arc<Pool>>,
    count: usize,
}

/// Below so many seconds of predicted work a step runs on the calling thread.
const LEAST_PARALLEL_SECONDS: f64 = 15e-6;

impl Threads {
    /// `count` threads, the calling one among them.
    ///
    /// # Errors
    /// When the system refuses to start threads.
    pub fn new(count: usize) -> std::io::Result<Self> {
        let count = count.max(1);
        let pool = match count {
            1 => None,
            _ => Some(Arc::new(Pool::new(count - 1)?)),
        };
        Ok(Threads { pool, count })
    }

    /// Number of threads.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether work of so many predicted seconds on one thread stays on the calling one.
    fn is_serial(&self, seconds: f64) -> bool {
        self.pool.is_none() || seconds <= LEAST_PARALLEL_SECONDS
    }

    /// Runs `work` on disjoint ranges that cover `0..total`, of `piece` items each but the last, or on all at once where
    /// threads do not pay.
    ///
    /// `seconds` is the predicted time on one thread. Stops early when a piece fails.
    ///
    /// # Errors
    /// [`BadTable`] when any piece failed.
    pub fn for_pieces(
        &self,
        total: usize,
        piece: usize,
        seconds: f64,
        work: impl Fn(Range<usize>) -> Result<(), BadTable> + Sync,
    ) -> Result<(), BadTable> {
        // Alone, one piece saves the others' preparations.
        let piece = if self.is_serial(seconds) { total } else { piece };
        self.for_pieces_with(total, piece, seconds, || (), |(), range| work(range))
    }

    /// The same, where every thread has a state of its own: scratch memory.
    ///
    /// # Errors
    /// [`BadTable`] when any piece failed.
    pub fn for_pieces_with<S>(
        &self,
        total: usize,
        piece: usize,
        seconds: f64,
        state: impl Fn() -> S + Sync,
        work: impl Fn(&mut S, Range<usize>) -> Result<(), BadTable> + Sync,
    ) -> Result<(), BadTable> {
        let piece = piece.max(1);
        let pieces = total.div_ceil(piece);
        let range = |at: usize| at * piece..((at + 1) * piece).min(total);
        let Some(pool) = self.pool.as_ref().filter(|_| pieces > 1 && !self.is_serial(seconds)) else {
            let mut state = state();
            return (0..pieces).try_for_each(|at| work(&mut state, range(at)));
        };
        // Pieces are taken from a counter, so that a slow core takes fewer of them.
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        pool.run(pieces - 1, &|| {
            // Whoever comes too late needs no scratch memory.
            if next.load(Ordering::Relaxed) >= pieces {
                return;
            }
            let mut state = state();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= pieces || failed.load(Ordering::Relaxed) {
                    return;
                }
                if work(&mut state, range(at)).is_err() {
                    failed.store(true, Ordering::Relaxed);
                }
            }
        });
        if failed.into_inner() { Err(BadTable) } else { Ok(()) }
    }

    /// A piece size that gives every thread about `per_thread` pieces.
    ///
    /// Only for work whose pieces are independent of one another: the size depends on the number of threads.
    pub fn piece(&self, total: usize, per_thread: usize) -> usize {
        total.div_ceil(self.count * per_thread).max(1)
    }
}

/// A pointer that pieces of one step share; each writes elements of its own.
#[derive(Clone, Copy, Debug)]
pub struct Shared<T>(pub *mut T);

// SAFETY: `injective`: pieces write disjoint elements (each op says which), so sharing the base is sound.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The pointer. A method, so that closures capture the whole (Sync) value.
    pub fn get(self) -> *mut T {
        self.0
    }
}
