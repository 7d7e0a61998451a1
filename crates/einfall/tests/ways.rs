//! Each kernel on the problems it is made for, so long that its vector loops, blocks and groups all turn: the random
//! problems of `oracle` are too small and too varied to reach them reliably.

mod common;

use common::ways::{WAYS, case_of};
use common::{call, check_call, devices};
use einfall::{DType, View};
use einfall_testing::case::{Buffer, Fill};
use einfall_testing::oracle::Bounds;

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
