//! Our matrix product and faer's in turn, in one process: `taskset -c 0 cargo run --release -p einfall-cpu --example
//! gemm [filter] [--two]`.
//!
//! Prints GFLOP/s (best of many rounds) of both on one thread, their ratio, the share of the measured peak of
//! multiply-adds, and with `--two` the same on two threads: ours by splitting rows (or the batch), faer's by its own
//! means for single products.

#![allow(unsafe_code, clippy::print_stdout)]

use std::time::Instant;

use einfall_cpu::isa::Isa;
use einfall_cpu::kernels::tile::TileElement;
use einfall_cpu::ops::gemm::{Accum, Blocking, Caches, Scratch, gemm};
use einfall_cpu::pack::{Matrix, MatrixMut, Offsets::Strided};
use faer::traits::ComplexField;
use faer::{MatMut, MatRef, Par};
use half::bf16;

/// A batch of equal products; strides are (row, column).
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    a: (usize, usize),
    b: (usize, usize),
    c: (usize, usize),
}

fn row_major(name: &'static str, batch: usize, m: usize, n: usize, k: usize) -> Shape {
    Shape { name, batch, m, n, k, a: (k, 1), b: (n, 1), c: (n, 1) }
}

fn shapes() -> Vec<Shape> {
    let square = |name, n| row_major(name, 1, n, n, n);
    let s = 512;
    vec![
        square("square 128", 128),
        square("square 500", 500),
        square("square 512", 512),
        square("square 1000", 1000),
        square("square 1024", 1024),
        square("square 2048", 2048),
        Shape { b: (1, 32), ..row_major("shared keys b8 1000x32·(100x32)ᵀ", 8, 1000, 100, 32) },
        Shape { b: (1, 32), ..row_major("all keys b8 1000x32·(1000x32)ᵀ", 8, 1000, 1000, 32) },
        row_major("b8 1000x32·32x1000", 8, 1000, 1000, 32),
        row_major("b64 256x64·64x256", 64, 256, 256, 64),
        row_major("b64 128³", 64, 128, 128, 128),
        row_major("b4096 16³", 4096, 16, 16, 16),
        row_major("b65536 4³", 65536, 4, 4, 4),
        row_major("b8192 8x64·64x8", 8192, 8, 8, 64),
        row_major("100000x32·32x32", 1, 100_000, 32, 32),
        row_major("32x100000·100000x32", 1, 32, 32, 100_000),
        Shape { a: (2 * s, 1), ..square("512³ A rs=2K", s) },
        Shape { a: (7 * s + 3, 7), b: (1, s), ..square("512³ A cs=7, B col", s) },
        Shape { b: (1, s), ..square("512³ B col", s) },
        Shape { c: (1, s), ..square("512³ C col", s) },
        Shape { a: (1, s), ..square("512³ A col", s) },
    ]
}

impl Shape {
    fn extent(rows: usize, cols: usize, strides: (usize, usize)) -> usize {
        (rows - 1) * strides.0 + (cols - 1) * strides.1 + 1
    }
    fn lens(&self) -> (usize, usize, usize) {
        (
            Self::extent(self.m, self.k, self.a),
            Self::extent(self.k, self.n, self.b),
            Self::extent(self.m, self.n, self.c),
        )
    }
    fn flops(&self) -> f64 {
        2.0 * (self.batch * self.m * self.n * self.k) as f64
    }
}

struct Data<T> {
    shape: Shape,
    a: Vec<T>,
    b: Vec<T>,
    c: Vec<T>,
}

impl<T: TileElement> Data<T> {
    fn new(shape: Shape, of: fn(f32) -> T) -> Self {
        let (a, b, c) = shape.lens();
        let fill = |len: usize, seed: usize| {
            (0..len * shape.batch).map(|x| of(((x * 7919 + seed) % 1009) as f32 / 504.0 - 1.0)).collect()
        };
        Data { shape, a: fill(a, 1), b: fill(b, 2), c: fill(c, 3) }
    }

    /// Our product of a part of the rows of a part of the batch.
    fn ours(&self, isa: Isa, blocking: &Blocking, rows: (usize, usize), batch: (usize, usize), scratch: &mut Scratch) {
        let s = &self.shape;
        let (a_len, b_len, c_len) = s.lens();
        for e in batch.0..batch.1 {
            // SAFETY: `extent` sized the buffers; threads get different rows or batch elements, and C is written only
            // through here.
            unsafe {
                let a = self.a.as_ptr().add(e * a_len + rows.0 * s.a.0);
                let c = self.c.as_ptr().cast_mut().add(e * c_len + rows.0 * s.c.0);
                let strided = |(row, col): (usize, usize)| (Strided(row as isize), Strided(col as isize));
                let ((ar, ac), (br, bc), (cr, cc)) = (strided(s.a), strided(s.b), strided(s.c));
                gemm(
                    isa,
                    blocking,
                    rows.1 - rows.0,
                    s.n,
                    s.k,
                    Matrix { ptr: a, rows: ar, cols: ac },
                    Matrix { ptr: self.b.as_ptr().add(e * b_len), rows: br, cols: bc },
                    MatrixMut { ptr: c, rows: cr, cols: cc },
                    Accum::Replace,
                    scratch,
                );
            }
        }
    }

    fn ours_on(&self, threads: usize, isa: Isa, blocking: &Blocking, scratch: &mut [Scratch; 2]) {
        let s = &self.shape;
        if threads == 1 {
            return self.ours(isa, blocking, (0, s.m), (0, s.batch), &mut scratch[0]);
        }
        let [first, second] = scratch;
        let (rows, batch) = if s.batch > 1 {
            let half = s.batch / 2;
            ([(0, s.m); 2], [(0, half), (half, s.batch)])
        } else {
            let half = s.m / 2;
            ([(0, half), (half, s.m)], [(0, 1); 2])
        };
        // SAFETY: `Data` is shared for reading; `ours` says why the writes do not meet.
        let shared = Shared(self);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let shared = shared;
                shared.0.ours(isa, blocking, rows[1], batch[1], second);
            });
            self.ours(isa, blocking, rows[0], batch[0], first);
        });
    }
}

impl<T: TileElement + ComplexField> Data<T> {
    fn faer(&self, par: Par, batch: (usize, usize)) {
        let s = &self.shape;
        let (a_len, b_len, c_len) = s.lens();
        for e in batch.0..batch.1 {
            // SAFETY: as for `ours`.
            unsafe {
                let a = self.a.as_ptr().add(e * a_len);
                let b = self.b.as_ptr().add(e * b_len);
                let c = self.c.as_ptr().cast_mut().add(e * c_len);
                let a = MatRef::from_raw_parts(a, s.m, s.k, s.a.0 as isize, s.a.1 as isize);
                let b = MatRef::from_raw_parts(b, s.k, s.n, s.b.0 as isize, s.b.1 as isize);
                let c = MatMut::from_raw_parts_mut(c, s.m, s.n, s.c.0 as isize, s.c.1 as isize);
                faer::linalg::matmul::matmul(c, faer::Accum::Replace, a, b, one::<T>(), par);
            }
        }
    }

    fn faer_on(&self, threads: usize) {
        let s = &self.shape;
        if threads == 1 {
            return self.faer(Par::Seq, (0, s.batch));
        }
        if s.batch == 1 {
            return self.faer(Par::rayon(2), (0, 1));
        }
        let half = s.batch / 2;
        let shared = Shared(self);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let shared = shared;
                shared.0.faer(Par::Seq, (half, s.batch));
            });
            self.faer(Par::Seq, (0, half));
        });
    }
}

fn one<T: ComplexField>() -> T {
    T::one_impl()
}

/// A reference that threads may share although C is written through it.
struct Shared<'a, T>(&'a Data<T>);
impl<T> Clone for Shared<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<'_, T> {}
// SAFETY: the threads write different elements.
unsafe impl<T> Send for Shared<'_, T> {}

/// Seconds since some start: of this thread alone where the system tells, so that other programs do not count; of the
/// wall clock if `wall`.
fn now(wall: bool) -> f64 {
    #[cfg(target_os = "linux")]
    if !wall {
        unsafe extern "C" {
            fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
        }
        const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
        let mut time = [0; 2];
        // SAFETY: on 64-bit Linux a `timespec` is two 64-bit integers.
        unsafe { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &mut time) };
        return time[0] as f64 + time[1] as f64 * 1e-9;
    }
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64()
}

/// Best seconds of one run of each, in turn.
fn race(flops: f64, wall: bool, runs: &mut [&mut dyn FnMut()]) -> Vec<f64> {
    let inner = (4e6 / flops).ceil().max(1.0) as usize;
    let rounds = ((4e10 / (flops * inner as f64)) as usize).clamp(9, 60);
    let mut best = vec![f64::INFINITY; runs.len()];
    for _ in 0..rounds {
        for (run, best) in runs.iter_mut().zip(&mut best) {
            let start = now(wall);
            for _ in 0..inner {
                run();
            }
            *best = best.min((now(wall) - start) / inner as f64);
        }
    }
    best
}

/// Multiply-adds in registers alone: flops per second of one core.
fn peak(isa: Isa, double: bool) -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        use std::hint::black_box;
        macro_rules! loops {
            ($name:ident, $features:literal, $set:ident, $fma:ident, $scalar:ty) => {
                #[target_feature(enable = $features)]
                fn $name(count: usize) {
                    let one = $set(black_box(1.0));
                    let mut sums = [$set(0.0); 12];
                    for _ in 0..count {
                        for sum in &mut sums {
                            *sum = $fma(one, one, *sum);
                        }
                    }
                    black_box(sums);
                }
            };
        }
        loops!(single_512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps, f32);
        loops!(double_512, "avx512f", _mm512_set1_pd, _mm512_fmadd_pd, f64);
        loops!(single_256, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps, f32);
        loops!(double_256, "avx2,fma", _mm256_set1_pd, _mm256_fmadd_pd, f64);
        let count = 1 << 19;
        let (lanes, run): (usize, unsafe fn(usize)) = match (isa, double) {
            (Isa::Avx512, false) => (16, single_512),
            (Isa::Avx512, true) => (8, double_512),
            (_, false) => (8, single_256),
            (_, true) => (4, double_256),
        };
        if isa != Isa::Portable {
            let flops = (count * 12 * lanes * 2) as f64;
            // SAFETY: the caller's isa is available.
            return flops / race(flops, false, &mut [&mut || unsafe { run(count) }])[0];
        }
    }
    let _ = (isa, double);
    f64::NAN
}

fn caches() -> Caches {
    let size = |level: usize| {
        let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{level}/size")).ok()?;
        text.trim().trim_end_matches('K').parse::<usize>().ok().map(|k| k << 10)
    };
    let fallback = Caches::default();
    Caches {
        l1_bytes: size(0).unwrap_or(fallback.l1_bytes),
        l2_bytes: size(2).unwrap_or(fallback.l2_bytes),
        l3_bytes: size(3).map_or(fallback.l3_bytes, |bytes| bytes / 2),
    }
}

fn section<T: TileElement>(
    title: &str,
    isa: Isa,
    of: fn(f32) -> T,
    rival: Option<fn(&Data<T>, usize)>,
    peak: f64,
    filter: &str,
    most_threads: usize,
) {
    let blocking = Blocking::new::<T>(isa, caches());
    println!("\n{title} on {isa:?}: peak {:.0} GFLOP/s a core, {blocking:?}", peak / 1e9);
    let mut scratch = [Scratch::new(), Scratch::new()];
    for shape in shapes() {
        if !shape.name.contains(filter) {
            continue;
        }
        let data = Data::new(shape, of);
        print!("{:<36}", shape.name);
        for threads in 1..=most_threads {
            let mut ours = || data.ours_on(threads, isa, &blocking, &mut scratch);
            let mut theirs = || rival.unwrap()(&data, threads);
            let mut runs: Vec<&mut dyn FnMut()> = vec![&mut ours];
            if rival.is_some() {
                runs.push(&mut theirs);
            }
            let seconds = race(shape.flops(), threads > 1, &mut runs);
            let gflops = |s: f64| shape.flops() / s / 1e9;
            print!(
                "  {threads}T ours {:>6.1} {:>3.0}%",
                gflops(seconds[0]),
                100.0 * shape.flops() / seconds[0] / peak / threads as f64
            );
            if let Some(&theirs) = seconds.get(1) {
                print!("  faer {:>6.1}  ratio {:>5.2}", gflops(theirs), theirs / seconds[0]);
            }
        }
        println!();
    }
}

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut flag = |name: &str| {
        let before = arguments.len();
        arguments.retain(|argument| argument != name);
        arguments.len() < before
    };
    let threads = if flag("--two") { 2 } else { 1 };
    let (f32_only, f64_only) = (flag("--f32"), flag("--f64"));
    let filter = arguments.first().cloned().unwrap_or_default();
    let isa = Isa::detect().expect("EINFALL_ISA names an instruction set of this machine");
    if !f64_only {
        let rival: fn(&Data<f32>, usize) = |data, threads| data.faer_on(threads);
        section("f32", isa, |x| x, Some(rival), peak(isa, false), &filter, threads);
    }
    if !f32_only {
        let rival: fn(&Data<f64>, usize) = |data, threads| data.faer_on(threads);
        section("f64", isa, f64::from, Some(rival), peak(isa, true), &filter, threads);
    }
    if !f32_only && !f64_only {
        section("bf16", isa, bf16::from_f32, None, peak(isa, false), &filter, threads);
    }
}
