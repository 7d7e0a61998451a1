//! Times the row kernels on looked-up and stored rows, against the floors that the caches set.
//!
//! `cargo run --release -p einfall-cpu --example rows -- [reference|shapes|stored|axpys|isas|all] [isa]`
//!
//! Each time is the minimum of many repeats. Cycles assume the clock that a chain of dependent additions shows.
#![allow(unsafe_code)]
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::ops::Range;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use einfall_cpu::isa::Isa;
use einfall_cpu::kernels::rows::{
    AxpyList, DotList, MultiAxpys, MultiDots, RowElement, StridedDots, row_axpys, row_axpys_multi, row_dots,
    row_dots_multi, row_dots_strided,
};
use einfall_cpu::load::{TableDType, TableRef, load_offsets, load_offsets_skip};
use einfall_tensor::half::bf16;

/// A pointer that threads share.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);
// SAFETY: the threads below write disjoint parts.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}
impl<T> Shared<T> {
    fn at(&self, i: usize) -> *mut T {
        self.0.wrapping_add(i)
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let z = self.0 ^ (self.0 >> 33);
        z.wrapping_mul(0xff51_afd7_ed55_8ccd) >> 20
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn real(&mut self) -> f32 {
        self.below(2001) as f32 / 1000.0 - 1.0
    }
}

trait Value: RowElement {
    fn of(x: f32) -> Self;
}
impl Value for f32 {
    fn of(x: f32) -> f32 {
        x
    }
}
impl Value for f64 {
    fn of(x: f32) -> f64 {
        x.into()
    }
}
impl Value for bf16 {
    fn of(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
}

/// Memory that starts at a cache line, as arrays of the callers do.
fn aligned<T: Value>(len: usize, random: &mut Random) -> (Vec<T>, usize) {
    let values: Vec<T> = (0..len + 64).map(|_| T::of(random.real())).collect();
    let first = values.as_ptr().align_offset(64);
    (values, first)
}

/// Nanoseconds a clock cycle: a chain of dependent additions runs at one a cycle.
fn nanoseconds_per_cycle() -> f64 {
    let steps = 4_000_000_u64;
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let start = Instant::now();
        let mut x = 1_u64;
        for _ in 0..steps {
            x = black_box_add(x);
        }
        black_box(x);
        best = best.min(start.elapsed().as_nanos() as f64 / steps as f64);
    }
    best
}

#[inline(always)]
fn black_box_add(x: u64) -> u64 {
    let y;
    // SAFETY: one addition of registers.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("add {0}, 1", inlateout(reg) x => y, options(pure, nomem, nostack));
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        y = black_box(x + 1);
    }
    y
}

/// Nanoseconds for all `queries`, of which each of `threads` threads works off a contiguous part.
///
/// With two threads: the least time of `repeats` runs. With one, the run is cut into slices that last some ten
/// microseconds, and the least times of the slices are summed, so that a busy machine disturbs less.
fn time(threads: usize, repeats: usize, queries: usize, work: impl Fn(Range<usize>) + Sync) -> f64 {
    if threads == 1 {
        const SLICES: usize = 40;
        let mut best = [f64::INFINITY; SLICES];
        for _ in 0..repeats {
            for (s, best) in best.iter_mut().enumerate() {
                let start = Instant::now();
                work(s * queries / SLICES..(s + 1) * queries / SLICES);
                *best = best.min(start.elapsed().as_nanos() as f64);
            }
        }
        return best.iter().sum();
    }
    let barrier = Barrier::new(threads);
    let spans: Vec<Vec<(Instant, Instant)>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                let (barrier, work) = (&barrier, &work);
                scope.spawn(move || {
                    (0..repeats)
                        .map(|_| {
                            barrier.wait();
                            // The other thread has to be awake too.
                            let wake = Instant::now();
                            while wake.elapsed() < Duration::from_micros(20) {}
                            let start = Instant::now();
                            work(thread * queries / threads..(thread + 1) * queries / threads);
                            (start, Instant::now())
                        })
                        .collect()
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    (0..repeats)
        .map(|r| {
            let start = spans.iter().map(|s| s[r].0).min().unwrap();
            let end = spans.iter().map(|s| s[r].1).max().unwrap();
            (end - start).as_nanos() as f64
        })
        .fold(f64::INFINITY, f64::min)
}

/// `batches` tables of `n` rows, `queries` queries over all, `k` table entries each.
#[derive(Clone, Copy)]
struct Shape {
    batches: usize,
    n: usize,
    queries: usize,
    k: usize,
    d: usize,
}

const REFERENCE: Shape = Shape { batches: 8, n: 1000, queries: 8000, k: 100, d: 32 };

/// Queries whose offsets are loaded together.
const TOGETHER: usize = 4;

fn looked_up<T: Value>(isa: Isa, name: &str, shape: Shape, threads: usize, cycle: f64) {
    let Shape { batches, n, queries, k, d } = shape;
    let mut random = Random(1);
    let (rows, rows_at) = aligned::<T>(batches * n * d, &mut random);
    let (x, x_at) = aligned::<T>(queries * d, &mut random);
    let table: Vec<i64> = (0..queries * k).map(|_| random.below(n) as i64).collect();
    let mut out = vec![T::ZERO; queries * k];
    let out = Shared(out.as_mut_ptr());
    let (rows, x) = (&rows[rows_at..], &x[x_at..]);
    let run = |part: Range<usize>| {
        let mut offsets = vec![0_isize; TOGETHER * k];
        for first in part.clone().step_by(TOGETHER) {
            let count = TOGETHER.min(part.end - first);
            let run = TableRef { ptr: table[first * k..].as_ptr().cast(), dtype: TableDType::I64, stride_elems: 1 };
            // SAFETY: the table holds values below `n`, of which there are rows.
            unsafe {
                load_offsets(isa, run, count * k, n, d as isize, &mut offsets).unwrap();
                let batch = first * batches / queries;
                let lists: [DotList<T>; TOGETHER] = std::array::from_fn(|i| DotList {
                    x: x.as_ptr().wrapping_add((first + i) * d),
                    rows: rows[batch * n * d..].as_ptr(),
                    offsets: offsets.as_ptr().wrapping_add(i * k),
                    count: k,
                    out: out.at((first + i) * k),
                });
                row_dots(isa, d, &lists[..count]);
            }
        }
    };
    let nanoseconds = time(threads, repeats(queries * k * d), queries, run);
    report(name, shape, size_of::<T>(), threads, nanoseconds, cycle);
}

fn repeats(work: usize) -> usize {
    (4_000_000_000 / work).clamp(10, 200)
}

/// Floor: the lines of a row come from the L2 at 64 bytes a cycle, from the L1 at 128.
fn report(name: &str, shape: Shape, bytes: usize, threads: usize, nanoseconds: f64, cycle: f64) {
    let Shape { queries, k, d, .. } = shape;
    let rows = (queries * k) as f64 / threads as f64;
    let cycles = nanoseconds / cycle / rows;
    let row_bytes = (d * bytes) as f64;
    println!(
        "{name:32} {:9.3} ms  {:6.3} ns/row  {cycles:6.2} cycles/row  {:6.1} GB/s  floor {:5.2} cycles ({:3.0} %)",
        nanoseconds * 1e-6,
        nanoseconds / rows,
        row_bytes * rows * threads as f64 / nanoseconds,
        row_bytes / 64.0,
        100.0 * row_bytes / 64.0 / cycles
    );
}

fn tables_alone(isa: Isa, cycle: f64) {
    let Shape { n, queries, k, d, .. } = REFERENCE;
    let mut random = Random(3);
    let wide: Vec<i64> = (0..queries * k).map(|_| random.below(n) as i64).collect();
    let narrow: Vec<i32> = wide.iter().map(|&v| v as i32).collect();
    for (name, ptr, dtype) in [
        ("table i64 alone", Shared(wide.as_ptr().cast::<u8>().cast_mut()), TableDType::I64),
        ("table i32 alone", Shared(narrow.as_ptr().cast::<u8>().cast_mut()), TableDType::I32),
    ] {
        let step = TOGETHER * k;
        let nanoseconds = time(1, 100, queries / TOGETHER, |part| {
            let mut offsets = vec![0_isize; step];
            for first in (part.start * step..part.end * step).step_by(step) {
                // SAFETY: the table has that many entries.
                unsafe {
                    let run = TableRef { ptr: ptr.at(0), dtype, stride_elems: 1 }.skip(first);
                    load_offsets(isa, run, step, n, d as isize, &mut offsets).unwrap();
                }
                black_box(&offsets);
            }
        });
        report(name, Shape { d: 0, ..REFERENCE }, dtype.bytes(), 1, nanoseconds, cycle);
        let nanoseconds = time(1, 100, queries / TOGETHER, |part| {
            let mut offsets = vec![0_isize; step];
            let mut positions = vec![0_u32; step];
            for first in (part.start * step..part.end * step).step_by(step) {
                // SAFETY: the table has that many entries.
                unsafe {
                    let run = TableRef { ptr: ptr.at(0), dtype, stride_elems: 1 }.skip(first);
                    load_offsets_skip(isa, run, step, n * 9 / 10, d as isize, &mut offsets, &mut positions);
                }
                black_box((&offsets, &positions));
            }
        });
        report(&format!("{name}, skip"), Shape { d: 0, ..REFERENCE }, dtype.bytes(), 1, nanoseconds, cycle);
    }
}

/// One call a list of `k` rows, without tables.
fn dots_alone(isa: Isa, d: usize, k: usize, cycle: f64) {
    let n = REFERENCE.n;
    let queries = 100_000 / k;
    let shape = Shape { batches: 1, n, queries, d, k };
    let mut random = Random(3);
    let (rows, at) = aligned::<f32>(n * d, &mut random);
    let offsets: Vec<isize> = (0..k * 16).map(|_| (random.below(n) * d) as isize).collect();
    let mut out = vec![0.0_f32; k];
    let out = Shared(out.as_mut_ptr());
    for (name, few) in [("dots alone, rows in L2", n), ("dots alone, rows in L1", 100)] {
        let offsets: Vec<isize> = offsets.iter().map(|o| o % (few * d) as isize).collect();
        let nanoseconds = time(1, 200, queries, |part| {
            for q in part {
                let list = DotList {
                    x: rows[at..].as_ptr(),
                    rows: rows[at..].as_ptr(),
                    offsets: offsets[q % 16 * k..].as_ptr(),
                    count: k,
                    out: out.at(0),
                };
                // SAFETY: the offsets are those of rows.
                unsafe { row_dots(isa, d, &[list]) };
            }
        });
        report(&format!("{name} d={d} k={k}"), shape, 4, 1, nanoseconds, cycle);
    }
}

fn stored(isa: Isa, cycle: f64) {
    let Shape { queries, k, d, .. } = REFERENCE;
    let shape = Shape { n: k, ..REFERENCE };
    let mut random = Random(5);
    let (rows, at) = aligned::<f32>(queries * k * d, &mut random);
    let (x, x_at) = aligned::<f32>(queries * d, &mut random);
    let (rows, x) = (&rows[at..], &x[x_at..]);
    let mut out = vec![0.0_f32; queries * k];
    let out = Shared(out.as_mut_ptr());
    for threads in [1, 2] {
        let nanoseconds = time(threads, 30, queries, |part| {
            black_box(sum(&rows[part.start * k * d..part.end * k * d]));
        });
        report(&format!("plain sum, {threads} threads"), shape, 4, threads, nanoseconds, cycle);
        let nanoseconds = time(threads, 30, queries, |part| {
            for q in part {
                // SAFETY: each query has `k` rows of its own.
                unsafe {
                    let (x, rows) = (x[q * d..].as_ptr(), rows[q * k * d..].as_ptr());
                    let list = StridedDots { x, rows, count: k, out: out.at(q * k) };
                    row_dots_strided(isa, d, d as isize, true, &[list]);
                }
            }
        });
        report(&format!("stored rows, {threads} threads"), shape, 4, threads, nanoseconds, cycle);
    }
}

/// A sum that reads at the speed of memory.
fn sum(values: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx512.is_available() {
        // SAFETY: the machine has AVX-512.
        return unsafe { sum_avx512(values) };
    }
    values.iter().sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn sum_avx512(values: &[f32]) -> f32 {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_ps(); 8];
    for chunk in values.as_chunks::<128>().0 {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: 16 elements of the chunk.
            *sum = _mm512_add_ps(*sum, unsafe { _mm512_loadu_ps(chunk.as_ptr().add(16 * i)) });
        }
    }
    sums.into_iter().map(|v| _mm512_reduce_add_ps(v)).sum()
}

fn axpys(isa: Isa, name: &str, shape: Shape, threads: usize, cycle: f64) {
    let Shape { batches, n, queries, k, d } = shape;
    let mut random = Random(1);
    let (rows, rows_at) = aligned::<f32>(batches * n * d, &mut random);
    let weights: Vec<f32> = (0..queries * k).map(|_| random.real()).collect();
    let table: Vec<i64> = (0..queries * k).map(|_| random.below(n) as i64).collect();
    let mut out = vec![0.0_f32; queries * d];
    let out = Shared(out.as_mut_ptr());
    let rows = &rows[rows_at..];
    let run = |part: Range<usize>| {
        let mut offsets = vec![0_isize; TOGETHER * k];
        for first in part.clone().step_by(TOGETHER) {
            let count = TOGETHER.min(part.end - first);
            let run = TableRef { ptr: table[first * k..].as_ptr().cast(), dtype: TableDType::I64, stride_elems: 1 };
            // SAFETY: the table holds values below `n`, of which there are rows.
            unsafe {
                load_offsets(isa, run, count * k, n, d as isize, &mut offsets).unwrap();
                let batch = first * batches / queries;
                let lists: [AxpyList<f32>; TOGETHER] = std::array::from_fn(|i| AxpyList {
                    weights: weights.as_ptr().wrapping_add((first + i) * k),
                    rows: rows[batch * n * d..].as_ptr(),
                    offsets: offsets.as_ptr().wrapping_add(i * k),
                    count: k,
                    acc: out.at((first + i) * d),
                });
                row_axpys(isa, d, &lists[..count], false);
            }
        }
    };
    let nanoseconds = time(threads, repeats(queries * k * d), queries, run);
    report(name, shape, 4, threads, nanoseconds, cycle);
}

/// `m` heads share each table entry.
fn shared_selection(isa: Isa, m: usize, d: usize, cycle: f64) {
    let Shape { n, k, .. } = REFERENCE;
    let queries = 1000;
    let mut random = Random(1);
    let (rows, at) = aligned::<f32>(n * d, &mut random);
    let (x, _) = aligned::<f32>(queries * m * d.max(k), &mut random);
    let offsets: Vec<isize> = (0..queries * k).map(|_| (random.below(n) * d) as isize).collect();
    let mut out = vec![0.0_f32; m * k.max(d)];
    let out = Shared(out.as_mut_ptr());
    let shape = Shape { batches: 1, n, queries: queries * m, k, d };
    let nanoseconds = time(1, repeats(queries * m * k * d), queries, |part| {
        for q in part {
            let call = MultiDots {
                x: x[q * m * d..].as_ptr(),
                x_stride: d as isize,
                m,
                rows: rows[at..].as_ptr(),
                offsets: offsets[q * k..].as_ptr(),
                count: k,
                d,
                out: out.at(0),
                out_stride: k as isize,
            };
            // SAFETY: the offsets are those of rows.
            unsafe { row_dots_multi(isa, &call) };
        }
    });
    report(&format!("dots, {m} heads share, d={d}"), shape, 4, 1, nanoseconds, cycle);
    let nanoseconds = time(1, repeats(queries * m * k * d), queries, |part| {
        for q in part {
            let call = MultiAxpys::<f32> {
                weights: x[q * m * k..].as_ptr(),
                weight_stride: k as isize,
                m,
                rows: rows[at..].as_ptr(),
                offsets: offsets[q * k..].as_ptr(),
                count: k,
                d,
                acc: out.at(0),
                acc_stride: d as isize,
                accumulate: false,
            };
            // SAFETY: the offsets are those of rows.
            unsafe { row_axpys_multi(isa, &call) };
        }
    });
    report(&format!("axpys, {m} heads share, d={d}"), shape, 4, 1, nanoseconds, cycle);
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let what = arguments.first().map_or("all", String::as_str);
    let isa = match arguments.get(1) {
        Some(name) => name.parse().expect("an instruction set"),
        None => Isa::detect().expect("an instruction set"),
    };
    let is = |part: &str| what == part || what == "all";
    let cycle = nanoseconds_per_cycle();
    println!("{isa}, {:.2} GHz", 1.0 / cycle);
    if is("reference") {
        tables_alone(isa, cycle);
        for k in [100, 1600] {
            dots_alone(isa, 32, k, cycle);
        }
        for threads in [1, 2] {
            looked_up::<f32>(isa, &format!("reference, {threads} threads"), REFERENCE, threads, cycle);
        }
    }
    if is("shapes") {
        for d in [8, 16, 20, 32, 64, 96, 128, 256] {
            looked_up::<f32>(isa, &format!("f32 d={d}"), Shape { d, ..REFERENCE }, 1, cycle);
        }
        for n in [100, 10_000, 1_000_000] {
            let batches = if n > 1000 { 1 } else { 8 };
            looked_up::<f32>(isa, &format!("f32 n={n}"), Shape { n, batches, ..REFERENCE }, 1, cycle);
        }
        for k in [1, 3, 17, 999] {
            let queries = 800_000 / k / 8 * 8;
            looked_up::<f32>(isa, &format!("f32 k={k}"), Shape { k, queries, ..REFERENCE }, 1, cycle);
        }
        looked_up::<f64>(isa, "f64 d=32", REFERENCE, 1, cycle);
        looked_up::<bf16>(isa, "bf16 d=32", REFERENCE, 1, cycle);
        looked_up::<bf16>(isa, "bf16 d=128", Shape { d: 128, ..REFERENCE }, 1, cycle);
    }
    if what == "ragged" {
        for k in [8, 16, 17, 20, 31, 32, 33] {
            let queries = 80_000 / k / 8 * 8;
            looked_up::<f32>(isa, &format!("f32 k={k}"), Shape { k, queries, ..REFERENCE }, 1, cycle);
        }
    }
    if is("stored") {
        stored(isa, cycle);
    }
    if is("axpys") {
        for d in [8, 20, 32, 64, 96, 128] {
            axpys(isa, &format!("axpys d={d}"), Shape { d, ..REFERENCE }, 1, cycle);
        }
        axpys(isa, "axpys reference, 2 threads", REFERENCE, 2, cycle);
    }
    if is("multi") {
        for (m, d) in [(2, 32), (4, 32), (4, 128), (8, 64)] {
            shared_selection(isa, m, d, cycle);
        }
    }
}
