//! Every plan and kernel against the oracle, on random problems and on the regressions: bit for bit where the arithmetic
//! is exact, and the same bits for any number of threads.

mod common;

use common::{Target, call, check_call, check_case, compare_elements, devices};
use einfall::{CpuDevice, DType, Device, Isa, Machine, Order, View};
use einfall_cpu::ops::KERNELS;
use einfall_testing::case::{ArgumentSpec, Buffer, Case, Fill};
use einfall_testing::generator::random_case;
use einfall_testing::oracle::Bounds;
use einfall_testing::suite;

/// Random cases per test; `EINFALL_CASES` asks for more.
fn case_count() -> u64 {
    std::env::var("EINFALL_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1200)
}

fn report(failures: impl Iterator<Item = String>) {
    let failures: Vec<String> = failures.take(10).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn random_problems_match_the_oracle() {
    let devices = devices();
    report((0..case_count()).filter_map(|seed| {
        let device = &devices[seed as usize % devices.len()];
        check_case(&random_case(seed), device).err().map(|why| format!("seed {seed}: {why}"))
    }));
}

#[test]
fn every_kernel_matches_the_oracle_wherever_it_can_run() {
    let devices = devices();
    report(KERNELS.iter().flat_map(|kernel| {
        let devices = &devices;
        (0..case_count() / 2).filter_map(move |seed| {
            let case = random_case(1_000_000 + seed);
            let device = &devices[seed as usize % devices.len()];
            let checked = check_call(&case, call(&case, device).kernel(kernel.name));
            checked.err().map(|why| format!("{} on seed {seed}: {why}", kernel.name))
        })
    }));
}

#[test]
fn every_order_of_operands_matches_the_oracle() {
    let device = CpuDevice::new(2).unwrap();
    report((0..case_count()).filter_map(|seed| {
        let case = random_case(2_000_000 + seed);
        let orders = [Order::LeftToRight, Order::Greedy, Order::Exact];
        let order = orders[seed as usize % 3].clone();
        let checked = check_call(&case, call(&case, &device).order(order));
        checked.err().map(|why| format!("seed {seed}: {why}"))
    }));
}

#[test]
fn slicing_to_a_memory_limit_matches_the_oracle() {
    let device = CpuDevice::new(2).unwrap();
    let mut sliced = 0;
    report((0..case_count() / 2).filter_map(|seed| {
        let case = random_case(3_000_000 + seed);
        let buffers = case.materialise().ok()?;
        let views: Vec<View<'_>> = buffers.iter().map(Buffer::view).collect();
        let limited = call(&case, &device).memory_limit(300);
        sliced += usize::from(limited.plan(&views).is_ok_and(|plan| !plan.plan().slices.is_empty()));
        check_call(&case, limited).err().map(|why| format!("seed {seed}: {why}"))
    }));
    assert!(sliced as u64 > case_count() / 200, "only {sliced} cases were sliced");
}

/// Columns of one run that a block does not hold as whole panels, blocks that end within a panel, depths of several
/// blocks: caches of a few KiB bring them about with problems that are quickly checked.
#[test]
fn products_in_many_blocks_match_the_oracle() {
    let caches = [(4 << 10, 8 << 10, 1 << 20), (32 << 10, 192 << 10, 4 << 20)];
    let devices: Vec<CpuDevice> = Isa::available()
        .into_iter()
        .flat_map(|isa| {
            caches.map(|(l1_bytes, l2_bytes, l3_bytes)| {
                let device = CpuDevice::with_isa(2, isa).unwrap();
                let machine = Machine { l1_bytes, l2_bytes, l3_bytes, ..device.machine().clone() };
                device.with_machine(machine)
            })
        })
        .collect();
    // These had columns of one run, a block of which was packed as if it held no run.
    let known = [44, 246, 457, 564, 1040, 1340, 1442, 1497, 2081, 2239, 3407];
    let seeds = known.into_iter().chain(5000..5100);
    report(seeds.flat_map(|seed| {
        let case = random_case(7_000_000 + seed);
        let check = |device: &CpuDevice| check_call(&case, call(&case, device).kernel("gemm")).err();
        let failures: Vec<String> = devices.iter().filter_map(check).collect();
        failures.into_iter().map(move |why| format!("seed {seed}: {why}"))
    }));
}

/// With caches of a few bytes everything is large: blocks of several steps, results past the caches, fetches ahead.
#[test]
fn problems_larger_than_all_caches_match_the_oracle() {
    let small = |threads, isa| {
        let device = CpuDevice::with_isa(threads, isa).unwrap();
        let machine = Machine { l1_bytes: 64, l2_bytes: 192, l3_bytes: 256, ..device.machine().clone() };
        device.with_machine(machine)
    };
    let devices: Vec<CpuDevice> =
        Isa::available().into_iter().flat_map(|isa| [1, 2, 7].map(|threads| small(threads, isa))).collect();
    report((0..case_count()).filter_map(|seed| {
        let device = &devices[seed as usize % devices.len()];
        check_case(&random_case(7_000_000 + seed), device).err().map(|why| format!("seed {seed}: {why}"))
    }));
    // Several steps over a label of the output: it is cut, and its last block is shorter.
    let cuts = [
        ("bi,bi,bi->b", &[&[131, 7][..], &[131, 7], &[131, 7]][..]),
        ("bi,bi,i,b->bi", &[&[67, 5], &[67, 5], &[5], &[67]]),
        ("ijb,bij,b->jb", &[&[3, 5, 101], &[101, 3, 5], &[101]]),
        ("b,bi,bij,bj->b", &[&[37], &[37, 5], &[37, 5, 3], &[37, 3]]),
    ];
    for (equation, shapes) in cuts {
        let argument = |shape: &&[usize]| ArgumentSpec {
            dtype: DType::F32,
            shape: shape.to_vec(),
            strides: None,
            offset: 0,
            misaligned: 0,
            fill: Fill::Integers(3),
            storage_len: None,
        };
        let case = Case {
            equation: equation.into(),
            arguments: shapes.iter().map(argument).collect(),
            sizes: Default::default(),
            bounds: Bounds::Error,
            out: None,
            seed: 5,
            source: String::new(),
        };
        let buffers = case.materialise().unwrap();
        let views: Vec<View<'_>> = buffers.iter().map(Buffer::view).collect();
        let bits: Vec<Vec<u8>> = devices
            .iter()
            .map(|device| {
                check_case(&case, device).unwrap();
                call(&case, device).run(&views).unwrap().as_bytes().to_vec()
            })
            .collect();
        assert!(bits.iter().all(|other| *other == bits[0]), "{equation}");
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    for isa in Isa::available() {
        let devices = [1, 2, 3, 7].map(|threads| CpuDevice::with_isa(threads, isa).unwrap());
        report((0..case_count() / 4).filter_map(|seed| {
            let case = random_case(4_000_000 + seed);
            let buffers = case.materialise().ok()?;
            let views: Vec<View<'_>> = buffers.iter().map(Buffer::view).collect();
            let plan = call(&case, &devices[0]).plan(&views).ok()?;
            let kernels: Vec<&str> = plan.plan().steps.iter().map(|step| step.kernel()).collect();
            let bits = |device: &CpuDevice| {
                // The same plan for all: the number of threads may change what is cheapest.
                let call = call(&case, device).kernel(kernels.last().copied().unwrap_or("nest"));
                call.run(&views).ok().map(|result| result.as_bytes().to_vec())
            };
            let first = bits(&devices[0]);
            let differs = devices.iter().any(|device| bits(device) != first);
            differs.then(|| format!("seed {seed} on {isa}: {case}"))
        }));
    }
}

#[test]
fn the_regressions_of_other_projects_stay_fixed() {
    let devices = devices();
    report(suite::regressions().into_iter().flat_map(|regression| {
        let about = format!("{} ({})", regression.about, regression.case.source);
        devices
            .iter()
            .filter_map(move |device| check_regression(&regression, device).err().map(|why| format!("{about}: {why}")))
            .take(1)
            .collect::<Vec<_>>()
    }));
}

fn check_regression(regression: &suite::Regression, device: &CpuDevice) -> Result<(), String> {
    check_case(&regression.case, device)?;
    if let suite::Expectation::Error(expected) = &regression.expect {
        let error = run_error(&regression.case, device).ok_or("accepted")?;
        if !error.contains(expected.as_str()) {
            return Err(format!("says `{error}`, which does not contain `{expected}`"));
        }
    }
    Ok(())
}

fn run_error(case: &Case, device: &CpuDevice) -> Option<String> {
    let buffers = match case.materialise() {
        Ok(buffers) => buffers,
        Err(error) => return Some(error.to_string()),
    };
    let views: Vec<View<'_>> = buffers.iter().map(Buffer::view).collect();
    call(case, device).run(&views).err().map(|error| error.to_string())
}

#[test]
fn strided_output_is_written_and_nothing_else() {
    let devices = devices();
    report((0..case_count() / 2).filter_map(|seed| {
        let case = random_case(5_000_000 + seed);
        let device = &devices[seed as usize % devices.len()];
        let expected = case.expected().ok()?;
        let buffers = case.materialise().ok()?;
        let views: Vec<View<'_>> = buffers.iter().map(Buffer::view).collect();
        let mut target = Target::new(expected.dtype, &expected.shape);
        let untouched = Target::new(expected.dtype, &expected.shape);
        let written = call(&case, device).run_into(&views, &mut target.view_mut());
        if let Err(error) = written {
            return Some(format!("seed {seed}: {error}\n{case}"));
        }
        // Not compared with a contiguous result: another layout may have another plan, which adds in another order.
        let right = compare_elements(&case, &target.view(), &expected);
        if !target.gaps_equal(&untouched) {
            return Some(format!("seed {seed}: wrote between its elements\n{case}"));
        }
        right.err().map(|why| format!("seed {seed}: {why}"))
    }));
}
