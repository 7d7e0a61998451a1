//! Every kernel of attention against the oracle, on random problems with every option, forward and backward.

mod common;

use std::collections::BTreeMap;

use common::attention::{call, check, run};
use common::devices;
use einfall::{Argument, CpuDevice, Isa, View};
use einfall_cpu::ops::attention::KERNELS;
use einfall_testing::attention::{AttentionCase, random_attention};
use einfall_testing::case::Buffer;

/// Random cases per test; `EINFALL_CASES` asks for more.
fn case_count() -> u64 {
    std::env::var("EINFALL_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(600)
}

fn report(failures: impl Iterator<Item = String>) {
    let failures: Vec<String> = failures.take(10).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn random_attentions_match_the_oracle() {
    let devices = devices();
    report((0..case_count()).filter_map(|seed| {
        let case = random_attention(seed);
        if std::env::var_os("EINFALL_TRACE").is_some() {
            eprintln!("{seed}: {case}");
        }
        let device = &devices[seed as usize % devices.len()];
        check(&case, &call(&case, device)).err().map(|why| format!("seed {seed}: {why}"))
    }));
}

#[test]
fn every_kernel_matches_the_oracle_wherever_it_can_run() {
    let devices = devices();
    let mut runs: BTreeMap<&str, u64> = BTreeMap::new();
    report(KERNELS.iter().flat_map(|kernel| (0..case_count()).map(move |seed| (kernel.name, seed))).filter_map(
        |(name, seed)| {
            let case = random_attention(1_000_000 + seed);
            let device = &devices[seed as usize % devices.len()];
            let call = call(&case, device).kernel(name);
            let buffers = case.materialise().ok()?;
            let views: Vec<View<'_>> = buffers.iter().map(Buffer::view).collect();
            // Where it makes no offer another one runs, which the test above has checked.
            let chosen = call.plan(&views).ok().filter(|plan| plan.plan().kernel() == name);
            chosen.as_ref()?;
            *runs.entry(name).or_default() += 1;
            check(&case, &call).err().map(|why| format!("{name} on seed {}: {why}", 1_000_000 + seed))
        },
    ));
    for kernel in KERNELS {
        let count = runs.get(kernel.name).copied().unwrap_or(0);
        assert!(count >= case_count() / 50, "{} ran {count} of {} cases", kernel.name, case_count());
    }
}

/// Whether a kernel runs a case forward and all its gradients.
fn runs_by(case: &AttentionCase, device: &CpuDevice, name: &str) -> bool {
    let Ok(buffers) = case.materialise() else { return false };
    let call = call(case, device).kernel(name);
    let described = || -> Vec<Argument> {
        let views = buffers.iter().map(Buffer::view);
        views.map(|view| Argument { dtype: view.dtype(), layout: view.layout().clone() }).collect()
    };
    let has_bias = case.equation.matches(',').count() == 3;
    let plans = [call.plan_for(described()), call.plan_gradients(described(), [true, true, true, has_bias])];
    plans.into_iter().all(|plan| plan.is_ok_and(|plan| plan.plan().kernel() == name))
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    for isa in Isa::available() {
        let devices = [1, 2, 5].map(|threads| CpuDevice::with_isa(threads, isa).unwrap());
        report(
            KERNELS.iter().flat_map(|kernel| (0..case_count() / 8).map(move |seed| (kernel.name, seed))).filter_map(
                |(name, seed)| {
                    let case = random_attention(2_000_000 + seed);
                    // A kernel that cannot run it leaves the choice to costs, which depend on the number of threads.
                    if devices.iter().any(|device| !runs_by(&case, device, name)) {
                        return None;
                    }
                    let bits = |device| run(&case, &call(&case, device).kernel(name)).ok().map(|given| given.bits());
                    let first = bits(&devices[0]);
                    let differs = devices[1..].iter().any(|device| bits(device) != first);
                    differs.then(|| format!("{name} on seed {} on {isa}: {case}", 2_000_000 + seed))
                },
            ),
        );
    }
}
