//! What must not depend on how a call is run: rounding, infinities, the number of threads, the order of its steps.

mod common;

use common::devices;
use einfall::half::{bf16, f16};
use einfall::num_complex::Complex;
use einfall::{CpuDevice, DType, Einsum, Isa, View, einsum, einsum_into};

/// Numbers of all magnitudes, the same in every run.
fn noise(count: usize) -> Vec<f32> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn a_narrower_result_is_rounded_once_at_the_end() {
    let thirds = vec![1.0_f64 / 3.0; 300_000];
    let sum = Einsum::new("i->").dtype(DType::F32).run(&[View::from_slice(&thirds, &[300_000]).unwrap()]).unwrap();
    assert_eq!(sum.as_slice::<f32>().unwrap(), [100_000.0]);
    let cancels = [1e8_f64, 1.0, -1e8];
    let sum = Einsum::new("i->").dtype(DType::F32).run(&[View::from_slice(&cancels, &[3]).unwrap()]).unwrap();
    assert_eq!(sum.as_slice::<f32>().unwrap(), [1.0]);
    let ones = vec![1_i32; (1 << 24) + 10];
    let mut out = [0.0_f32];
    let mut view = einfall::ViewMut::from_slice(&mut out, &[]).unwrap();
    einsum_into("i->", &[View::from_slice(&ones, &[ones.len()]).unwrap()], &mut view).unwrap();
    assert_eq!(out, [((1 << 24) + 10) as f32]);
}

#[test]
fn conversions_round_once() {
    // Just above the middle of two halves: by way of f32 it would be the middle, and go down.
    let values = [1.0 + 2f64.powi(-11) + 2f64.powi(-40), 1.0 + 2f64.powi(-8) + 2f64.powi(-40)];
    let view = View::from_slice(&values, &[2]).unwrap();
    let halves = Einsum::new("i->i").dtype(DType::F16).run(std::slice::from_ref(&view)).unwrap();
    assert_eq!(halves.as_slice::<f16>().unwrap()[0].to_f64(), 1.0 + 2f64.powi(-10));
    let halves = Einsum::new("i->i").dtype(DType::BF16).run(&[view]).unwrap();
    assert_eq!(halves.as_slice::<bf16>().unwrap()[1].to_f64(), 1.0 + 2f64.powi(-7));
    let wide = [(1_i64 << 60) + (1 << 36) + 1];
    let mut out = [0.0_f32];
    let mut view = einfall::ViewMut::from_slice(&mut out, &[1]).unwrap();
    einsum_into("i->i", &[View::from_slice(&wide, &[1]).unwrap()], &mut view).unwrap();
    assert_eq!(out, [wide[0] as f32]);
}

/// Long sums of ordinary numbers, where another order shows.
#[test]
fn the_number_of_threads_does_not_change_a_rounded_bit() {
    type Table = Option<(usize, usize)>;
    let cases: [(&str, &[usize], &[usize], Table); 6] = [
        ("qw,[q+w-50]d->qd", &[1000, 600], &[1000, 24], None),
        ("qd,[q+w-50]d->qw", &[1000, 300], &[1000, 300], None),
        ("qk,[qk]d->qd", &[400, 900], &[1000, 24], Some((360_000, 1000))),
        ("qd,[qk]d->qk", &[400, 300], &[1000, 300], Some((360_000, 1000))),
        ("qd,kd->qk", &[400, 900], &[333, 900], None),
        ("td,[t]df->tf", &[900, 700], &[3, 700, 20], Some((900, 3))),
    ];
    for (equation, first, second, table) in cases {
        let (a, b) = (noise(first.iter().product()), noise(second.iter().product()));
        let (count, rows) = table.unwrap_or((0, 1));
        let entries: Vec<i64> = (0..count as i64).map(|i| i * 7919 % rows as i64).collect();
        let mut arguments = vec![View::from_slice(&a, first).unwrap(), View::from_slice(&b, second).unwrap()];
        if count > 0 {
            let shape = if rows == 3 { vec![count] } else { vec![400, count / 400] };
            arguments.push(View::from_slice(&entries, &shape).unwrap());
        }
        let isa = *Isa::available().last().unwrap();
        let run = |threads: usize, kernel: &str| {
            let device = CpuDevice::with_isa(threads, isa).unwrap();
            let call = Einsum::new(equation).device(&device).kernel(kernel);
            let call = if equation.starts_with("qd,[q+w") { call.size("w", 120) } else { call };
            call.run(&arguments).unwrap().as_slice::<f32>().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        for kernel in ["dots", "axpys", "dense", "spread", "sorted", "gemm", "nest"] {
            let one = run(1, kernel);
            for threads in [2, 3, 5] {
                assert!(run(threads, kernel) == one, "{equation} prefers {kernel}: {threads} threads change bits");
            }
        }
    }
}

#[test]
fn a_bad_table_is_refused_even_where_a_window_leaves_its_term_out() {
    let (x, keys) = (vec![1.0_f32; 60], vec![1.0_f32; 36]);
    let mut table = vec![0_i64; 40];
    table[0] = 99;
    let arguments = [
        View::from_slice(&x, &[10, 6]).unwrap(),
        View::from_slice(&keys, &[6, 6]).unwrap(),
        View::from_slice(&table, &[10, 4]).unwrap(),
    ];
    for kernel in ["dots", "dense", "nest"] {
        let error = Einsum::new("[q-5]d,[qk]d->qk").kernel(kernel).run(&arguments).unwrap_err().to_string();
        assert!(error.contains("99"), "{kernel}: {error}");
    }
}

#[test]
fn a_sum_without_a_factor_multiplies_nothing() {
    let rows = vec![Complex::new(f32::INFINITY, 1.0); 8 * 20];
    for device in &devices() {
        let view = View::from_slice(&rows, &[8, 20]).unwrap();
        let sum = Einsum::new("id->d").device(device).run(&[view]).unwrap();
        let expected = Complex::new(f32::INFINITY, 8.0);
        assert!(sum.as_slice::<Complex<f32>>().unwrap().iter().all(|&x| x == expected));
    }
}

#[test]
fn weights_of_one_row_do_not_overflow_before_they_are_multiplied() {
    let (queries, keys, d, rows) = (70, 131, 21, 53);
    let mut weights = vec![1.0_f32; queries * keys];
    (weights[0], weights[1]) = (f32::MAX, f32::MAX);
    let values = vec![0.25_f32; rows * d];
    let mut table: Vec<i64> = (0..(queries * keys) as i64).map(|i| i % rows as i64).collect();
    (table[0], table[1]) = (3, 3);
    for device in &devices() {
        for kernel in ["spread", "axpys", "nest"] {
            let result = Einsum::new("qk,[qk]d->qd").device(device).kernel(kernel).run(&[
                View::from_slice(&weights, &[queries, keys]).unwrap(),
                View::from_slice(&values, &[rows, d]).unwrap(),
                View::from_slice(&table, &[queries, keys]).unwrap(),
            ]);
            let result = result.unwrap();
            assert!(result.as_slice::<f32>().unwrap().iter().all(|x| x.is_finite()), "{kernel}");
        }
    }
}

#[test]
fn windows_at_the_ends_of_64_bits_are_empty_or_refused() {
    let (x, keys) = (vec![1.0_f32; 64 * 16], vec![1.0_f32; 8 * 16]);
    for equation in [
        "qd,[q+k-9223372036854775000]d->qk",
        "qd,[q+k-100000000000000000]d->qk",
        "qd,[9000000000000000q-9000000000000000k]d->qk",
        "qd,[90000000000000q-90000000000000k]d->qk",
    ] {
        for kernel in ["dots", "dense", "gemm", "nest"] {
            let call = Einsum::new(equation).size("k", 64).kernel(kernel);
            let arguments = [View::from_slice(&x, &[64, 16]).unwrap(), View::from_slice(&keys, &[8, 16]).unwrap()];
            let _ = call.run(&arguments);
        }
    }
    assert!(einsum("[q]->q", &[]).is_err());
}
