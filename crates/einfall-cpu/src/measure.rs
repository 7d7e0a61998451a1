//! Measures the rates of this processor, for the planner to divide by.
//!
//! *In*: an instruction set, a number of threads, a time budget. *Out*: a [`Machine`] whose rates were seen, not guessed.
//! *Callers*: `einfall machine`, and benchmarks that want to know how far from the limits they are.
//!
//! Each rate is the best of many short samples: a machine that others use too is slower at times, never faster. Memory
//! is shared, so there a sample is what all threads move together. Caches and registers are each core's own: there
//! every thread times its pieces while the others work, and the best piece counts for all, so that threads which others
//! keep from running at the same time do not make cores look slow. The time to start and join threads is the median,
//! because its best is a lucky accident.
//!
//! ```
//! use std::time::Duration;
//!
//! use einfall_cpu::isa::Isa;
//! use einfall_cpu::measure::measure_machine;
//!
//! let machine = measure_machine(Isa::Portable, 1, Duration::from_millis(70), &mut |_| {})?;
//! assert!(machine.measured && machine.f32_flops_per_second > 1e8);
//! # Ok::<(), einfall_cpu::device::CpuDeviceError>(())
//! ```

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use einfall_plan::Machine;

use crate::device::CpuDeviceError;
use crate::isa::Isa;
use crate::machine::estimate_machine;
use crate::threads::{Shared, Threads};

mod loops;

use loops::{ROW, Row};

/// Something that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Reading memory.
    Read,
    /// Writing memory.
    Write,
    /// Reading rows out of the second-level cache.
    L2,
    /// Reading rows out of the last-level cache.
    L3,
    /// f32 multiply-adds in registers.
    F32,
    /// f64 multiply-adds in registers.
    F64,
    /// Starting and joining threads.
    Fork,
}

impl Quantity {
    /// Everything, in the order in which it is measured.
    pub const ALL: [Quantity; 7] =
        [Quantity::Read, Quantity::Write, Quantity::L2, Quantity::L3, Quantity::F32, Quantity::F64, Quantity::Fork];

    /// A few words for people.
    pub fn title(self) -> &'static str {
        match self {
            Quantity::Read => "reading memory",
            Quantity::Write => "writing memory",
            Quantity::L2 => "rows out of L2",
            Quantity::L3 => "rows out of L3",
            Quantity::F32 => "f32 multiply-adds",
            Quantity::F64 => "f64 multiply-adds",
            Quantity::Fork => "starting and joining threads",
        }
    }
}

/// No buffer is larger; it is many times the last-level cache of most processors.
const MOST_BYTES: usize = 512 << 20;
/// Pieces that a sample is dealt out in, a thread: a thread that others interrupt leaves its share to the rest.
const PIECES: usize = 8;

/// Measures this processor with `threads` threads, in about `budget`; `progress` hears what comes next.
///
/// # Errors
/// [`CpuDeviceError`]: the processor lacks the instructions, or the system refuses the threads.
pub fn measure_machine(
    isa: Isa,
    threads: usize,
    budget: Duration,
    progress: &mut dyn FnMut(Quantity),
) -> Result<Machine, CpuDeviceError> {
    if !isa.is_available() {
        return Err(CpuDeviceError::Isa(format!("this processor has no {isa}")));
    }
    let pool =
        Threads::new(threads).map_err(|error| CpuDeviceError::Threads { count: threads, reason: error.to_string() })?;
    let mut machine = estimate_machine(isa, threads);
    let share = budget / Quantity::ALL.len() as u32;
    let mut measured = Measured { isa, pool, share, machine: machine.clone(), buffer: Vec::new() };
    for quantity in Quantity::ALL {
        progress(quantity);
        let rate = measured.quantity(quantity);
        *match quantity {
            Quantity::Read => &mut machine.read_bytes_per_second,
            Quantity::Write => &mut machine.write_bytes_per_second,
            Quantity::L2 => &mut machine.l2_bytes_per_second,
            Quantity::L3 => &mut machine.l3_bytes_per_second,
            Quantity::F32 => &mut machine.f32_flops_per_second,
            Quantity::F64 => &mut machine.f64_flops_per_second,
            Quantity::Fork => &mut machine.fork_seconds,
        } = rate;
    }
    // A smaller cache cannot be slower than a larger one or than memory; where it seems to be, noise was in the way.
    machine.l3_bytes_per_second = machine.l3_bytes_per_second.max(machine.read_bytes_per_second);
    machine.l2_bytes_per_second = machine.l2_bytes_per_second.max(machine.l3_bytes_per_second);
    machine.measured = true;
    Ok(machine)
}

struct Measured {
    isa: Isa,
    pool: Threads,
    share: Duration,
    machine: Machine,
    buffer: Vec<Row>,
}

impl Measured {
    fn quantity(&mut self, quantity: Quantity) -> f64 {
        match quantity {
            Quantity::Read => self.read(),
            Quantity::Write => self.write(),
            Quantity::L2 => self.rows(self.machine.l2_bytes / 2),
            Quantity::L3 => self.rows(self.machine.l3_bytes / 2),
            Quantity::F32 => self.peak(loops::multiply_adds_f32),
            Quantity::F64 => self.peak(loops::multiply_adds_f64),
            Quantity::Fork => self.fork(),
        }
    }

    /// The best rate of samples that each do `amount`, until the share of the budget is spent.
    fn best(&self, amount: f64, mut sample: impl FnMut()) -> f64 {
        sample();
        let started = Instant::now();
        let mut least = f64::INFINITY;
        loop {
            let start = Instant::now();
            sample();
            least = least.min(start.elapsed().as_secs_f64());
            if started.elapsed() >= self.share {
                return amount / least.max(1e-9);
            }
        }
    }

    /// The best rate of pieces that each do `amount`, times the threads that have a core.
    fn best_piece(&self, amount: f64, work: impl Fn(usize) + Sync) -> f64 {
        let least = AtomicU64::new(u64::MAX);
        let timed = |at: usize| {
            let start = Instant::now();
            work(at);
            least.fetch_min(start.elapsed().as_nanos() as u64, Relaxed);
        };
        self.best(1.0, || self.everywhere(PIECES * self.pool.count(), timed));
        let cores = std::thread::available_parallelism().map_or(1, usize::from).min(self.pool.count());
        amount / (least.into_inner().max(1) as f64 * 1e-9) * cores as f64
    }

    /// Runs `work` on every piece, on all threads.
    fn everywhere(&self, pieces: usize, work: impl Fn(usize) + Sync) {
        let done = self.pool.for_pieces(pieces, 1, 1.0, |range| {
            range.for_each(&work);
            Ok(())
        });
        debug_assert!(done.is_ok(), "no piece fails");
    }

    /// Makes the buffer several times as large as the last-level cache, as far as a short budget allows.
    fn fill_buffer(&mut self) {
        // Touching new pages takes about a second for each 2 GB.
        let affordable = (self.share.as_secs_f64() * 0.5 * 2e9) as usize;
        let bytes = (self.machine.l3_bytes * 6).clamp(64 << 20, MOST_BYTES).min(affordable.max(32 << 20));
        let mut rows = Vec::new();
        // Without memory for it the measurement falls back on what fits.
        if rows.try_reserve_exact(bytes / ROW).is_ok() {
            rows.resize(bytes / ROW, Row([1.0; ROW / 4]));
        } else {
            rows.resize((32 << 20) / ROW, Row([1.0; ROW / 4]));
        }
        self.buffer = rows;
    }

    fn read(&mut self) -> f64 {
        self.fill_buffer();
        let (isa, rows) = (self.isa, &self.buffer);
        let pieces = PIECES * self.pool.count();
        let each = rows.len() / pieces;
        let sum = |at: usize| {
            black_box(loops::sum_all(isa, &rows[at * each..(at + 1) * each]));
        };
        self.best((pieces * each * ROW) as f64, || self.everywhere(pieces, sum))
    }

    fn write(&mut self) -> f64 {
        if self.buffer.is_empty() {
            self.fill_buffer();
        }
        let mut rows = std::mem::take(&mut self.buffer);
        let pieces = PIECES * self.pool.count();
        let each = rows.len() / pieces;
        let start = Shared(rows.as_mut_ptr());
        let fill = |at: usize| {
            // SAFETY: `injective`: piece `at` owns rows `at * each..(at + 1) * each` alone, all inside `rows`.
            let own = unsafe { std::slice::from_raw_parts_mut(start.get().add(at * each), each) };
            black_box(own).fill(Row([2.0; ROW / 4]));
        };
        let rate = self.best((pieces * each * ROW) as f64, || self.everywhere(pieces, fill));
        self.buffer = rows;
        rate
    }

    /// Rows at random places of a working set, as a lookup reads them.
    fn rows(&mut self, working_set_bytes: usize) -> f64 {
        let count = (working_set_bytes / ROW).clamp(64, (256 << 20) / ROW);
        let table = vec![Row([1.0; ROW / 4]); count];
        // Enough lookups for a sample of some milliseconds, in a fixed random order.
        let lookups: Vec<u32> = random_positions(count, 1 << 15);
        let isa = self.isa;
        // Every piece starts at another place of the list, so that threads do not walk in step.
        let sum = |at: usize| {
            let (end, start) = lookups.split_at(at * 4099 % lookups.len());
            black_box(loops::sum_rows(isa, &table, start));
            black_box(loops::sum_rows(isa, &table, end));
        };
        self.best_piece((lookups.len() * ROW) as f64, sum)
    }

    fn peak(&mut self, multiply_adds: fn(Isa, usize) -> f64) -> f64 {
        const TURNS: usize = 50_000;
        let isa = self.isa;
        let each = multiply_adds(isa, 1);
        let work = |_| {
            black_box(multiply_adds(isa, black_box(TURNS)));
        };
        self.best_piece(2.0 * each * TURNS as f64, work)
    }

    /// Seconds from the start of an empty step to its end.
    fn fork(&mut self) -> f64 {
        let pieces = self.pool.count();
        if pieces == 1 {
            return 1e-7;
        }
        let started = Instant::now();
        let mut seconds = Vec::new();
        while seconds.len() < 2000 && started.elapsed() < self.share {
            let start = Instant::now();
            self.everywhere(pieces, |at| {
                black_box(at);
            });
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        seconds.get(seconds.len() / 2).copied().unwrap_or(self.machine.fork_seconds).max(1e-7)
    }
}

/// `many` positions below `count` by a linear congruential generator (Knuth's MMIX multiplier).
fn random_positions(count: usize, many: usize) -> Vec<u32> {
    let mut state = 1u64;
    let position = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((u128::from(state) * count as u128) >> 64) as u32
    };
    (0..many).map(position).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rate_is_plausible_for_every_isa() {
        for isa in Isa::available() {
            let mut heard = Vec::new();
            let budget = Duration::from_millis(140);
            let machine = measure_machine(isa, 2, budget, &mut |quantity| heard.push(quantity)).unwrap();
            assert_eq!(heard, Quantity::ALL);
            assert!(machine.measured && machine.threads == 2 && machine.isa == isa.name());
            for rate in [
                machine.read_bytes_per_second,
                machine.write_bytes_per_second,
                machine.l2_bytes_per_second,
                machine.l3_bytes_per_second,
                machine.f32_flops_per_second,
                machine.f64_flops_per_second,
            ] {
                assert!(rate > 1e7 && rate < 1e14, "{isa}: {machine:?}");
            }
            assert!(machine.fork_seconds > 0.0 && machine.fork_seconds < 0.1, "{machine:?}");
        }
    }

    #[test]
    fn positions_are_spread_over_the_table() {
        let positions = random_positions(1000, 1 << 15);
        let mut seen = vec![false; 1000];
        positions.iter().for_each(|&at| seen[at as usize] = true);
        assert!(seen.into_iter().all(|seen| seen));
    }
}
