//! Times what memory bounds, through the whole engine: stored rows against a plain sum of the same memory, and scattered
//! outputs against the loop nest.
//!
//! `cargo run --release -p einfall --example memory -- stored` or `scatter`; the number of threads is a second argument,
//! the number of queries a third. On a busy machine ask for so few that a run ends before another program gets the core.
#![allow(unsafe_code, clippy::print_stdout)]

use std::hint::black_box;
use std::time::Instant;

use einfall::{CpuDevice, Einsum, Prepared, View, ViewMut};
use einfall_cpu::isa::Isa;
use einfall_cpu::threads::Threads;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let threads = arguments.get(1).map_or(Ok(2), |text| text.parse())?;
    match arguments.first().map(String::as_str) {
        Some("stored") => stored(threads, arguments.get(2).map_or(Ok(8000), |text| text.parse())?),
        _ => scatter(threads),
    }
}

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    indices(count, 1 << 20, seed).into_iter().map(|value| value as f32 / (1 << 19) as f32 - 1.0).collect()
}

fn indices(count: usize, below: usize, mut seed: u64) -> Vec<i64> {
    let mut next = || {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((seed >> 33) % below as u64) as i64
    };
    (0..count).map(|_| next()).collect()
}

/// Seconds of each job, the least of many turns; all jobs take turns, so that a busy machine disturbs them alike.
fn race(turns: usize, jobs: &mut [(String, Box<dyn FnMut() + '_>)]) -> Vec<f64> {
    let mut best = vec![f64::INFINITY; jobs.len()];
    for _ in 0..turns {
        for (best, (_, job)) in best.iter_mut().zip(jobs.iter_mut()) {
            let start = Instant::now();
            job();
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    best
}

fn into<'a>(
    call: &'a Prepared<'a>,
    arguments: &'a [View<'a>],
    out: &'a mut [f32],
    shape: &'a [usize],
) -> Box<dyn FnMut() + 'a> {
    Box::new(move || {
        let mut out = ViewMut::from_slice(out, shape).expect("the length is that of the shape");
        call.run_into(arguments, &mut out).expect("planned for these arguments");
    })
}

fn stored(threads: usize, q: usize) -> Result<(), Box<dyn std::error::Error>> {
    let device = CpuDevice::new(threads)?;
    let pool = Threads::new(threads)?;
    let (b, h) = (1, 1);
    for (k, d) in [(100, 32), (50, 64), (25, 128), (13, 256), (160, 20)] {
        let (keys, queries, weights) =
            (numbers(b * h * q * k * d, 1), numbers(b * h * q * d, 2), numbers(b * h * q * k, 3));
        let (keys_shape, query_shape, weight_shape) = ([b, h, q, k, d], [b, h, q, d], [b, h, q, k]);
        let scores = [View::from_slice(&queries, &query_shape)?, View::from_slice(&keys, &keys_shape)?];
        let values = [View::from_slice(&weights, &weight_shape)?, View::from_slice(&keys, &keys_shape)?];
        let (mut scores_out, mut values_out) = (vec![0.0; b * h * q * k], vec![0.0; b * h * q * d]);
        let dots = Einsum::new("bhqd,bhqkd->bhqk").device(&device).plan(&scores)?;
        let axpys = Einsum::new("bhqk,bhqkd->bhqd").device(&device).plan(&values)?;
        let names = [&dots, &axpys].map(|call| call.plan().steps[0].kernel());
        let sum = || {
            let piece = keys.len() / (threads * 8);
            let work = |range: std::ops::Range<usize>| {
                black_box(sum(&keys[range]));
                Ok(())
            };
            pool.for_pieces(keys.len(), piece, 1.0, work).expect("never fails");
        };
        let mut jobs: Vec<(String, Box<dyn FnMut()>)> = vec![
            ("plain sum".into(), Box::new(sum)),
            (format!("scores ({})", names[0]), into(&dots, &scores, &mut scores_out, &weight_shape)),
            (format!("values ({})", names[1]), into(&axpys, &values, &mut values_out, &query_shape)),
        ];
        let bytes = (keys.len() * 4) as f64;
        let moved = [0.0, (queries.len() + weights.len()) as f64 * 4.0, (queries.len() + weights.len()) as f64 * 4.0];
        let seconds = race(200, &mut jobs);
        println!("k={k} d={d}, {} MB, {threads} threads", bytes / 1e6);
        for (((name, _), s), more) in jobs.iter().zip(&seconds).zip(moved) {
            let (rate, ratio) = (bytes / s / 1e9, seconds[0] / s);
            let all = (bytes + more) / bytes * ratio;
            println!("  {name:16} {:7.2} ms  {rate:5.1} GB/s  {ratio:.2} of the sum, all bytes {all:.2}", s * 1e3);
        }
    }
    Ok(())
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
    let (chunks, rest) = values.as_chunks::<128>();
    for chunk in chunks {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: a chunk has 8 × 16 values.
            *sum = _mm512_add_ps(*sum, unsafe { _mm512_loadu_ps(chunk.as_ptr().add(i * 16)) });
        }
    }
    sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum::<f32>() + rest.iter().sum::<f32>()
}

fn scatter(threads: usize) -> Result<(), Box<dyn std::error::Error>> {
    let device = CpuDevice::new(threads)?;
    for (e, n, d) in [(2_000_000, 100_000, 64), (1_200_000, 100_000, 16)] {
        let (values, dense) = (numbers(e, 1), numbers(n * d, 2));
        let (col, row) = (indices(e, n, 3), indices(e, n, 4));
        let (table, tall) = ([e], [n, d]);
        let arguments = [
            View::from_slice(&values, &table)?,
            View::from_slice(&dense, &tall)?,
            View::from_slice(&col, &table)?,
            View::from_slice(&row, &table)?,
        ];
        compare(&device, "e,[e]d->[e]d", n, &arguments, &tall, threads)?;
    }
    let (t, n, d) = (1_000_000, 100_000, 64);
    let (tokens, row) = (numbers(t * d, 1), indices(t, n, 2));
    let arguments = [View::from_slice(&tokens, &[t, d])?, View::from_slice(&row, &[t])?];
    compare(&device, "td->[t]d", n, &arguments, &[n, d], threads)?;
    let (b, h, q, k, d) = (8, 1, 1000, 100, 32);
    let (weights, queries) = (numbers(b * h * q * k, 1), numbers(b * h * q * d, 2));
    let table = indices(b * h * q * k, q, 3);
    let wide = [b, h, q, k];
    let arguments = [
        View::from_slice(&weights, &wide)?,
        View::from_slice(&queries, &[b, h, q, d])?,
        View::from_slice(&table, &wide)?,
    ];
    compare(&device, "bhqk,bhqd->bh[bhqk]d", q, &arguments, &[b, h, q, d], threads)
}

fn compare(
    device: &CpuDevice,
    equation: &str,
    rows: usize,
    arguments: &[View<'_>],
    shape: &[usize],
    threads: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let axis = &equation[equation.rfind('[').expect("scattered")..=equation.rfind(']').expect("scattered")];
    let call = |kernel: &str| Einsum::new(equation).device(device).size(axis, rows).kernel(kernel).plan(arguments);
    let chosen = Einsum::new(equation).device(device).size(axis, rows).plan(arguments)?;
    let calls = [call("inverted")?, call("nest")?];
    let count = shape.iter().product();
    let mut outputs = [vec![0.0f32; count], vec![0.0f32; count]];
    let [first, second] = &mut outputs;
    let mut jobs: Vec<(String, Box<dyn FnMut()>)> = vec![
        ("inverted".into(), into(&calls[0], arguments, first, shape)),
        ("nest".into(), into(&calls[1], arguments, second, shape)),
    ];
    let seconds = race(8, &mut jobs);
    drop(jobs);
    println!("{equation} into {shape:?}, {threads} threads; chosen: {}", chosen.plan().steps[0].kernel());
    for (call, s) in calls.iter().zip(&seconds) {
        let step = &call.plan().steps[0];
        println!("  {:9} {:8.2} ms, predicted {:8.2} ms", step.kernel(), s * 1e3, step.estimate().cost.seconds * 1e3);
    }
    let worst = outputs[0].iter().zip(&outputs[1]).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
    println!("  largest difference {worst:e}");
    Ok(())
}
