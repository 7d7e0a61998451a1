//! Threads that wait for work, and a caller that works with them.
//!
//! *In*: a job that may run on several threads at once. *Out*: the job has run on the caller and on every worker that
//! came in time. *Callers*: [`Threads`](crate::threads::Threads).
//!
//! Kernels of a tenth of a millisecond leave no time to wake a sleeping thread twice. So the caller does not hand its
//! work over: it works itself, a worker joins when it is awake, and once the caller finds nothing left to do it waits
//! only for those who joined. A worker that slept through the job costs nothing. After a job a worker stays awake for a
//! moment, because calls come in sequences. A process that was forked off has no workers and still makes progress.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker looks for the next job before it sleeps.
const AWAKE: Duration = Duration::from_micros(100);
/// Set while a job may be joined.
const OPEN: u64 = 1 << 31;
/// The bits that count who joined.
const JOINED: u64 = OPEN - 1;
/// One job further on.
const EPOCH: u64 = 1 << 32;

type Job = *const (dyn Fn() + Sync);

/// What caller and workers share.
///
/// Invariant `gate`: the job is written only by the thread that holds `caller`, while the gate is shut and nobody is
/// counted; it is read only by those who were counted while the gate was open; and the caller leaves [`Pool::run`], where
/// the job lives, only when the gate is shut and nobody is counted.
struct Shared {
    /// Number of the job, [`OPEN`], and how many workers run it.
    gate: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    caller: Mutex<()>,
    /// Which workers have to be woken.
    asleep: Box<[AtomicBool]>,
    panicked: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: `gate` orders every access to the job, which is itself Sync.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// Worker threads; dropped, they end.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// The process that has them: one that is forked off has none.
    process: u32,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("workers", &self.workers.len()).finish()
    }
}

impl Pool {
    /// Starts `workers` threads.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn new(workers: usize) -> std::io::Result<Pool> {
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            caller: Mutex::new(()),
            asleep: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut pool = Pool { shared, workers: Vec::with_capacity(workers), process: std::process::id() };
        for at in 0..workers {
            let shared = Arc::clone(&pool.shared);
            // On an error the pool is dropped, and with it the workers that did start.
            let name = format!("einfall-{at}");
            pool.workers.push(std::thread::Builder::new().name(name).spawn(move || work(&shared, at))?);
        }
        Ok(pool)
    }

    /// Runs `job` on this thread and on the workers that come before it ends here; returns when all have left it. At
    /// most `most` workers are woken for it.
    ///
    /// From inside a job, or while another thread uses the pool, it runs on this thread alone.
    ///
    /// # Panics
    /// When `job` does, on any thread.
    pub(crate) fn run(&self, most: usize, job: &(dyn Fn() + Sync)) {
        let shared = &*self.shared;
        let _caller = match shared.caller.try_lock() {
            Ok(guard) => guard,
            // A job panicked while it was held; the gate was shut all the same.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return job(),
        };
        // A job whose caller panicked too left this behind.
        shared.panicked.store(false, Ordering::Relaxed);
        let erased: *const (dyn Fn() + Sync + '_) = job;
        // SAFETY: only the lifetime changes; by `gate` nobody reads the job after this function returned.
        let erased: Job = unsafe { std::mem::transmute(erased) };
        // SAFETY: `gate`: this thread holds `caller`, and the gate is shut.
        unsafe { *shared.job.get() = Some(erased) };
        let gate = shared.gate.load(Ordering::Relaxed);
        shared.gate.store((gate & !JOINED & !OPEN).wrapping_add(EPOCH) | OPEN, Ordering::SeqCst);
        let shut = Shut(shared);
        for (asleep, worker) in shared.asleep.iter().zip(&self.workers).take(most) {
            if asleep.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        job();
        drop(shut);
        if shared.panicked.swap(false, Ordering::Relaxed) {
            resume_unwind(Box::new("a worker thread panicked"));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            return;
        }
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker never panics outside a job.
            let _ = worker.join();
        }
    }
}

/// Shuts the gate and waits for those inside, also while unwinding.
struct Shut<'a>(&'a Shared);

impl Drop for Shut<'_> {
    fn drop(&mut self) {
        self.0.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut turns = 0_u32;
        while self.0.gate.load(Ordering::Acquire) & JOINED != 0 {
            turns = turns.saturating_add(1);
            // They are in the middle of their last pieces, unless the system took a core from them.
            if turns < 10_000 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

/// The life of a worker.
fn work(shared: &Shared, at: usize) {
    let mut last = 0;
    while let Some(gate) = next_job(shared, at, last) {
        if shared.gate.compare_exchange(gate, gate + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            continue;
        }
        last = gate & !JOINED;
        // SAFETY: `gate`: this worker is counted, so the job is there and stays until it has left.
        let job = unsafe { (*shared.job.get()).map(|job| &*job) };
        if let Some(job) = job
            && catch_unwind(AssertUnwindSafe(job)).is_err()
        {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.gate.fetch_sub(1, Ordering::Release);
    }
}

/// Waits for an open gate that is not the `last` one; `None` when the pool ends.
fn next_job(shared: &Shared, at: usize, last: u64) -> Option<u64> {
    let found = |order| {
        let gate = shared.gate.load(order);
        (gate & OPEN != 0 && gate & !JOINED != last).then_some(gate)
    };
    loop {
        let start = Instant::now();
        while start.elapsed() < AWAKE {
            for _ in 0..64 {
                if let Some(gate) = found(Ordering::Acquire) {
                    return Some(gate);
                }
                std::hint::spin_loop();
            }
            if shared.stop.load(Ordering::Relaxed) {
                return None;
            }
        }
        // First asleep, then a last look: a caller opens first, then looks who sleeps, so one of them sees the other.
        shared.asleep[at].store(true, Ordering::SeqCst);
        if found(Ordering::SeqCst).is_none() && !shared.stop.load(Ordering::SeqCst) {
            std::thread::park();
        }
        shared.asleep[at].store(false, Ordering::SeqCst);
        if shared.stop.load(Ordering::SeqCst) {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn every_job_runs_to_its_end_before_the_call_returns() {
        let pool = Pool::new(3).unwrap();
        for round in 0..2000 {
            let next = AtomicUsize::new(0);
            let sum = AtomicUsize::new(0);
            pool.run(9, &|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= 50 {
                        return;
                    }
                    sum.fetch_add(at, Ordering::Relaxed);
                }
            });
            assert_eq!(sum.into_inner(), 49 * 50 / 2, "round {round}");
            if round % 500 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn sleeping_workers_come_to_long_jobs() {
        let pool = Pool::new(1).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        let here = AtomicUsize::new(0);
        pool.run(9, &|| {
            here.fetch_add(1, Ordering::SeqCst);
            let start = Instant::now();
            while here.load(Ordering::SeqCst) < 2 && start.elapsed() < Duration::from_secs(10) {
                std::thread::yield_now();
            }
        });
        assert_eq!(here.into_inner(), 2);
    }

    #[test]
    fn a_job_inside_a_job_and_a_second_caller_run_alone() {
        let pool = Pool::new(2).unwrap();
        let count = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mine = AtomicUsize::new(0);
                        pool.run(9, &|| {
                            pool.run(9, &|| {
                                mine.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                        count.fetch_add(usize::from(mine.into_inner() > 0), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(count.into_inner(), 800);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..20 {
            assert!(catch_unwind(AssertUnwindSafe(|| pool.run(9, &|| panic!("on purpose")))).is_err());
        }
        let ran = AtomicUsize::new(0);
        pool.run(9, &|| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert!(ran.into_inner() >= 1);
    }
}
