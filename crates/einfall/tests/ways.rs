//! Each kernel on the problems it is made for, so long that its vector loops, blocks and groups all turn: the random
//! problems of `oracle` are too small and too varied to reach them reliably.

mod common;

use common::{call, check_call, devices};
use einfall::{DType, View};
use einfall_testing::case::{ArgumentSpec, Buffer, Case, Fill};
use einfall_testing::oracle::Bounds;

/// A problem and the kernel that must run it.
struct Way {
    kernel: &'static str,
    equation: &'static str,
    /// Lengths of the axes of each argument; a table says into how many rows it points.
    arguments: &'static [(&'static [usize], Option<usize>)],
    sizes: &'static [(&'static str, usize)],
}

const WAYS: &[Way] = &[
    Way {
        kernel: "tiny",
        equation: "aijc,akjc->cik",
        arguments: &[(&[2, 3, 5, 7], None), (&[2, 4, 5, 7], None)],
        sizes: &[],
    },
    Way { kernel: "tiny", equation: "iij->j", arguments: &[(&[6, 6, 11], None)], sizes: &[] },
    Way { kernel: "tiny", equation: "i,j->ji", arguments: &[(&[5], None), (&[13], None)], sizes: &[] },
    Way { kernel: "tiny", equation: "ab,ab->", arguments: &[(&[31, 9], None), (&[31, 9], None)], sizes: &[] },
    Way {
        kernel: "dots",
        equation: "bqd,b[bqk]d->bqk",
        arguments: &[(&[2, 19, 37], None), (&[2, 53, 37], None), (&[2, 19, 67], Some(53))],
        sizes: &[],
    },
    Way {
        kernel: "dots",
        equation: "qd,[qk]d->qk",
        arguments: &[(&[3, 20], None), (&[900, 20], None), (&[3, 1100], Some(900))],
        sizes: &[],
    },
    Way {
        kernel: "dots",
        equation: "qd,[qk]d->qk",
        arguments: &[(&[40, 8], None), (&[70, 8], None), (&[40, 130], Some(70))],
        sizes: &[],
    },
    Way {
        kernel: "dots",
        equation: "[e]d,[e]d->e",
        arguments: &[(&[31, 33], None), (&[600], Some(31)), (&[29, 33], None), (&[600], Some(29))],
        sizes: &[],
    },
    Way {
        kernel: "dots",
        equation: "qd,[q+w-3]d->qw",
        arguments: &[(&[41, 17], None), (&[41, 17], None)],
        sizes: &[("w", 7)],
    },
    Way {
        kernel: "axpys",
        equation: "bqk,b[bqk]d->bqd",
        arguments: &[(&[2, 19, 67], None), (&[2, 53, 37], None), (&[2, 19, 67], Some(53))],
        sizes: &[],
    },
    Way {
        kernel: "axpys",
        equation: "qk,[qk]d->qd",
        arguments: &[(&[3, 1100], None), (&[900, 600], None), (&[3, 1100], Some(900))],
        sizes: &[],
    },
    Way { kernel: "axpys", equation: "[qk]d->qd", arguments: &[(&[50, 19], None), (&[7, 300], Some(50))], sizes: &[] },
    Way {
        kernel: "axpys",
        equation: "qjk,[qjk]d->qd",
        arguments: &[(&[5, 3, 40], None), (&[50, 24], None), (&[5, 3, 40], Some(50))],
        sizes: &[],
    },
    Way {
        kernel: "axpys",
        equation: "qw,[2q+w-5]d->qd",
        arguments: &[(&[41, 9], None), (&[80, 17], None)],
        sizes: &[],
    },
    Way {
        kernel: "copies",
        equation: "[qk]d->qkd",
        arguments: &[(&[50, 37], None), (&[9, 300], Some(50))],
        sizes: &[],
    },
    Way {
        kernel: "copies",
        equation: "q,[q]d->qd",
        arguments: &[(&[600], None), (&[50, 20], None), (&[600], Some(50))],
        sizes: &[],
    },
    Way {
        kernel: "dense",
        equation: "bqd,b[bqk]d->bqk",
        arguments: &[(&[2, 70, 21], None), (&[2, 53, 21], None), (&[2, 70, 131], Some(53))],
        sizes: &[],
    },
    Way {
        kernel: "dense",
        equation: "bqd,b[q+w-40]d->bqw",
        arguments: &[(&[2, 70, 21], None), (&[2, 75, 21], None)],
        sizes: &[("w", 90)],
    },
    Way {
        kernel: "dense",
        equation: "qd,[3q-2w+9]d->qw",
        arguments: &[(&[70, 21], None), (&[75, 21], None)],
        sizes: &[("w", 31)],
    },
    Way {
        kernel: "spread",
        equation: "bqk,b[bqk]d->bqd",
        arguments: &[(&[2, 70, 131], None), (&[2, 53, 21], None), (&[2, 70, 131], Some(53))],
        sizes: &[],
    },
    Way {
        kernel: "spread",
        equation: "bqw,b[q+w-40]d->bqd",
        arguments: &[(&[2, 70, 90], None), (&[2, 75, 21], None)],
        sizes: &[],
    },
    Way {
        kernel: "spread",
        equation: "qw,[3q-2w+9]d->qd",
        arguments: &[(&[70, 31], None), (&[75, 21], None)],
        sizes: &[],
    },
    Way {
        kernel: "sorted",
        equation: "td,[t]df->tf",
        arguments: &[(&[700, 19], None), (&[3, 19, 37], None), (&[700], Some(3))],
        sizes: &[],
    },
    Way {
        kernel: "sorted",
        equation: "bstd,b[st]fd->bstf",
        arguments: &[(&[2, 6, 100, 7], None), (&[2, 5, 37, 7], None), (&[6, 100], Some(5))],
        sizes: &[],
    },
    Way {
        kernel: "gemm",
        equation: "bqd,bkd->bqk",
        arguments: &[(&[2, 70, 21], None), (&[2, 75, 21], None)],
        sizes: &[],
    },
    Way {
        kernel: "gemm",
        equation: "id,[j]d->ij",
        arguments: &[(&[70, 21], None), (&[75, 21], None), (&[90], Some(75))],
        sizes: &[],
    },
    Way {
        kernel: "inverted",
        equation: "e,[e]d->[e]d",
        arguments: &[(&[900], None), (&[50, 21], None), (&[900], Some(50)), (&[900], Some(40))],
        sizes: &[("[e]", 40)],
    },
];

fn case_of(way: &Way, dtype: DType, table: DType, fill: &Fill, bounds: Bounds, seed: u64) -> Case {
    let argument = |&(shape, rows): &(&[usize], Option<usize>)| ArgumentSpec {
        dtype: if rows.is_some() { table } else { dtype },
        shape: shape.to_vec(),
        strides: None,
        offset: 0,
        misaligned: 0,
        fill: match rows {
            Some(rows) if bounds == Bounds::Skip => Fill::Outside(rows),
            Some(rows) => Fill::Random(rows),
            None => fill.clone(),
        },
        storage_len: None,
    };
    Case {
        equation: way.equation.into(),
        arguments: way.arguments.iter().map(argument).collect(),
        sizes: way.sizes.iter().map(|&(name, len)| (name.into(), len)).collect(),
        bounds,
        out: None,
        seed,
        source: String::new(),
    }
}

#[test]
fn every_kernel_runs_what_it_is_made_for() {
    let devices = devices();
    let mut failures = Vec::new();
    let mut seed = 0;
    for way in WAYS {
        for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
            if way.kernel == "spread" && matches!(dtype, DType::BF16 | DType::F16) {
                continue;
            }
            if way.kernel == "inverted" && matches!(dtype, DType::BF16 | DType::F16) {
                continue;
            }
            if way.kernel == "copies" && way.arguments.len() == 3 && matches!(dtype, DType::BF16 | DType::F16) {
                continue;
            }
            for (table, bounds) in [
                (DType::I64, Bounds::Error),
                (DType::I64, Bounds::Skip),
                (DType::U16, Bounds::Error),
                (DType::I32, Bounds::Skip),
            ] {
                seed += 1;
                // Small enough that bf16 sums of a hundred terms are exact.
                let case = case_of(way, dtype, table, &Fill::Integers(2), bounds, seed);
                let device = &devices[seed as usize % devices.len()];
                let buffers = case.materialise().unwrap();
                let views: Vec<View<'_>> = buffers.iter().map(Buffer::view).collect();
                let plan = call(&case, device).kernel(way.kernel).plan(&views).unwrap();
                let taken: Vec<&str> = plan.plan().steps.iter().map(|step| step.kernel()).collect();
                assert!(
                    taken.contains(&way.kernel),
                    "{} runs in {taken:?}, not in {}\n{case}",
                    way.equation,
                    way.kernel
                );
                if let Err(why) = check_call(&case, call(&case, device).kernel(way.kernel)) {
                    failures.push(format!("{} in {dtype}: {why}", way.kernel));
                }
            }
        }
    }
    failures.truncate(6);
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn every_kernel_refuses_a_wrong_table() {
    let devices = devices();
    for way in WAYS.iter().filter(|way| way.arguments.iter().any(|(_, rows)| rows.is_some())) {
        for device in &devices {
            // The last entry of the last table: the end of a vector, of a block, of a group.
            let mut case = case_of(way, DType::F32, DType::I32, &Fill::Integers(2), Bounds::Error, 1);
            let (at, rows) =
                way.arguments.iter().enumerate().rev().find_map(|(at, (_, rows))| Some((at, (*rows)?))).unwrap();
            let count: usize = way.arguments[at].0.iter().product();
            let mut values = vec![0.0; count];
            values[count - 1] = rows as f64;
            case.arguments[at].fill = Fill::Values(values);
            let buffers = case.materialise().unwrap();
            let views: Vec<View<'_>> = buffers.iter().map(Buffer::view).collect();
            let error = call(&case, device).kernel(way.kernel).run(&views).unwrap_err().to_string();
            assert!(error.contains(&format!("{rows}")), "{}: {error}", way.equation);
        }
    }
}

/// A row that nobody asked for may hold anything.
#[test]
fn rows_that_are_not_listed_do_not_matter() {
    for kernel in ["dots", "dense"] {
        poisoned(kernel, "qd,[qk]d->qk", &[70, 21], &[70, 131]);
    }
    for kernel in ["axpys", "spread"] {
        poisoned(kernel, "qk,[qk]d->qd", &[70, 131], &[70, 131]);
    }
}

fn poisoned(kernel: &str, equation: &str, first: &[usize], table: &[usize]) {
    let count = |shape: &[usize]| shape.iter().product::<usize>();
    let x: Vec<f32> = (0..count(first)).map(|i| (i % 5) as f32 - 2.0).collect();
    // 0·∞ would be NaN.
    let rows: Vec<f32> = (0..53 * 21).map(|i| if i / 21 == 52 { f32::INFINITY } else { (i % 7) as f32 }).collect();
    let mut entries: Vec<i64> = (0..count(table) as i64).map(|i| i * 31 % 52).collect();
    let run = |entries: &[i64], device: &einfall::CpuDevice| {
        let arguments = [
            View::from_slice(&x, first).unwrap(),
            View::from_slice(&rows, &[53, 21]).unwrap(),
            View::from_slice(entries, table).unwrap(),
        ];
        let call = einfall::Einsum::new(equation).device(device).kernel(kernel);
        let result = call.run(&arguments).unwrap();
        result.as_slice::<f32>().unwrap().to_vec()
    };
    for device in &devices() {
        assert!(run(&entries, device).iter().all(|value| value.is_finite()), "{kernel}");
    }
    // And one that somebody does ask for is found.
    entries[0] = 52;
    for device in &devices() {
        assert!(run(&entries, device).iter().any(|value| !value.is_finite()), "{kernel}");
    }
}
