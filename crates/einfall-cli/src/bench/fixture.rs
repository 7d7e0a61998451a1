//! A report to draw and to print: figures of the reference experiment (b=8 h=1 q=n=1000 d=32, f32, two cores), some of
//! them measured, the gaps filled with plausible numbers. For tests only; not a benchmark result.

use std::path::PathBuf;

use super::record::{BenchReport, BenchRow, Case, EINFALL, FloorKind, Machine, Measured, Op, Run, Settings, Sizes};

const KS: [usize; 5] = [10, 30, 100, 300, 1000];

/// Times in ms at `KS`; 0 where there is none.
type Line = (&'static str, [f64; 5]);

const STORED: [Line; 7] = [
    (EINFALL, [0.41, 1.15, 3.74, 11.2, 37.6]),
    ("torch.einsum", [1.0, 1.6, 5.3, 15.2, 0.0]),
    ("torch.matmul", [0.95, 1.65, 5.1, 15.6, 0.0]),
    ("torch mul-sum", [3.9, 14.1, 54.5, 160.0, 0.0]),
    ("torch mul-sum compiled", [0.52, 1.4, 4.3, 12.9, 43.0]),
    ("numpy.einsum", [2.4, 8.0, 49.0, 121.0, 0.0]),
    ("opt_einsum", [1.06, 1.68, 5.4, 15.4, 0.0]),
];
const EXPANDED: [Line; 7] = [
    (EINFALL, [0.28, 0.25, 0.69, 2.1, 6.0]),
    ("torch.einsum", [1.9, 5.4, 54.0, 158.0, 0.0]),
    ("torch.matmul", [1.8, 5.3, 53.0, 155.0, 0.0]),
    ("torch mul-sum", [3.8, 13.9, 54.5, 162.0, 0.0]),
    ("torch mul-sum compiled", [0.35, 0.6, 1.3, 3.6, 11.9]),
    ("numpy.einsum", [2.2, 7.7, 47.0, 118.0, 0.0]),
    ("opt_einsum", [1.95, 5.5, 54.6, 159.0, 0.0]),
];
const LOOKUP: [Line; 8] = [
    (EINFALL, [0.31, 0.44, 1.04, 2.6, 6.3]),
    ("torch.einsum", [2.1, 5.6, 65.0, 185.0, 0.0]),
    ("torch.matmul", [2.05, 5.7, 64.0, 183.0, 0.0]),
    ("torch mul-sum", [5.1, 18.0, 112.0, 340.0, 0.0]),
    ("torch mul-sum compiled", [0.36, 0.66, 1.41, 3.9, 12.8]),
    ("torch dense, gather", [6.9, 7.2, 8.4, 12.1, 24.0]),
    ("numpy.einsum", [4.4, 14.0, 97.0, 250.0, 0.0]),
    ("opt_einsum", [2.2, 5.8, 65.5, 186.0, 0.0]),
];
const SHARED: [Line; 7] = [
    (EINFALL, [0.27, 0.24, 0.67, 2.0, 5.9]),
    ("torch.einsum", [0.30, 0.26, 0.68, 2.4, 6.2]),
    ("torch.matmul", [0.29, 0.24, 0.66, 2.3, 6.1]),
    ("torch mul-sum", [3.8, 13.9, 54.5, 162.0, 0.0]),
    ("torch mul-sum compiled", [0.35, 0.6, 1.3, 3.6, 11.9]),
    ("numpy.einsum", [0.26, 0.35, 1.4, 2.2, 0.0]),
    ("opt_einsum", [0.36, 0.31, 0.73, 2.5, 6.3]),
];
const ALL: [Line; 3] = [
    (EINFALL, [0.0, 0.0, 0.0, 0.0, 3.7]),
    ("torch.einsum", [0.0, 0.0, 0.0, 0.0, 6.2]),
    ("numpy.einsum", [0.0, 0.0, 0.0, 0.0, 7.9]),
];

fn push(rows: &mut Vec<BenchRow>, op: Op, case: Case, lines: &[Line], factor: f64) {
    for (engine, times) in lines {
        for (k, ms) in KS.into_iter().zip(times).filter(|(_, ms)| **ms > 0.0) {
            let sizes = Sizes { b: 8, h: 1, q: 1000, n: 1000, k, d: 32 };
            let flops = sizes.flops(op);
            let contractions = if op == Op::Attention { 2 } else { 1 };
            let scores = 8 * 1000 * k as u64 * 4;
            let rows_of_d = 8 * 1000 * 32 * 4;
            let bytes = match case {
                Case::SeparateStored => scores * 32 * contractions + rows_of_d,
                Case::SeparateLookup => scores * 2 + rows_of_d * 2,
                _ => scores + rows_of_d * 2,
            };
            let (memory, compute) = (bytes as f64 / 27e9, flops as f64 / 138e9);
            let ours = *engine == EINFALL;
            let way = ours.then_some(match case {
                Case::SeparateStored => "stream",
                Case::SeparateExpanded => "broadcast to gemm",
                Case::SeparateLookup if k < 300 => "gather",
                Case::SeparateLookup => "dense and select",
                _ => "gemm",
            });
            rows.push(BenchRow {
                case,
                op,
                k,
                sizes,
                measured: Measured {
                    engine: (*engine).to_owned(),
                    dtype: "f32".to_owned(),
                    device: "cpu".to_owned(),
                    threads: 2,
                    min_s: ms * factor * 1e-3,
                    median_s: ms * factor * 1.06e-3,
                    repeats: 20,
                    flops,
                    bytes_distinct: bytes,
                    floor_s: Some(memory.max(compute)),
                    floor_kind: Some(if memory > compute { FloorKind::Memory } else { FloorKind::Compute }),
                    way: way.map(str::to_owned),
                    peak_bytes: ours.then_some(scores),
                    compile_s: engine.ends_with("compiled").then_some(11.4),
                    max_error: Some(3.8e-6),
                    tolerance: Some(2.1e-5),
                    ok: true,
                },
            });
        }
    }
}

/// A folder to leave what tests draw in, to be looked at: `$EINFALL_DRAWINGS`.
pub(crate) fn drawings() -> Option<PathBuf> {
    std::env::var_os("EINFALL_DRAWINGS").map(PathBuf::from)
}

/// Two operations, five cases, eight engines.
pub(crate) fn report() -> BenchReport {
    let mut rows = Vec::new();
    for (op, factor) in [(Op::Scores, 1.0), (Op::Attention, 2.15)] {
        for (case, lines) in [
            (Case::SeparateStored, &STORED[..]),
            (Case::SeparateExpanded, &EXPANDED),
            (Case::SeparateLookup, &LOOKUP),
            (Case::Shared, &SHARED),
            (Case::All, &ALL),
        ] {
            push(&mut rows, op, case, lines, factor);
        }
    }
    BenchReport {
        machine: Machine {
            cpu: "AMD EPYC 7763 64-Core Processor".to_owned(),
            isa: "avx2 fma".to_owned(),
            cores: 2,
            memory_bytes: 24 << 30,
            os: "linux x86_64".to_owned(),
            read_bytes_per_s: Some(27e9),
            flops_per_s: Some(138e9),
        },
        settings: Settings {
            sizes: Sizes { b: 8, h: 1, q: 1000, n: 1000, k: 10, d: 32 },
            run: Run {
                version: "0.1.0".to_owned(),
                unix_time: 1_795_362_000,
                threads: 2,
                dtype: "f32".to_owned(),
                table_dtype: "i32".to_owned(),
                peers: [("python", "3.11.2"), ("torch", "2.11.0"), ("numpy", "2.4.6"), ("opt_einsum", "3.4.0")]
                    .map(|(name, version)| (name.to_owned(), version.to_owned()))
                    .into(),
                command: "einfall bench keys --threads 2".to_owned(),
            },
        },
        rows,
        notes: vec![
            "torch.einsum, separate-stored, k=1000: skipped, it needs 2.05 GB and the limit is 2.00 GB".to_owned(),
        ],
        ..BenchReport::default()
    }
}
