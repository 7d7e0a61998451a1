//! The GPU's kernels: that all of them compile, on any machine that has NVRTC, and that they are right, on one that has a
//! GPU. `cargo xtask kernels` runs the first, a bundle of `cargo xtask bundle` both.

mod common;

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use common::attention::{
    call as attention_call, check as check_attention, check_with as check_attention_with, run as run_attention,
};
use common::ways::{WAYS, Way, case_of};
use common::{call, check_call, check_case};
use einfall::{AbsentGpu, Attend, CudaDevice, DType, Device, Einsum, Machine, View, example_gpu};
use einfall_cuda::{AttentionLowering, Lowering, Memory, compile, kernel_specs, ops};
use einfall_plan::{Argument, Pass};
use einfall_testing::attention::{AttentionCase, random_attention};
use einfall_testing::case::{ArgumentSpec, Buffer, Case, Fill};
use einfall_testing::generator::random_case;
use einfall_testing::oracle::Bounds;
use einfall_testing::oracle::attention::AttentionCall;
use einfall_testing::suite;

/// Random cases per test; `EINFALL_CASES` asks for more.
fn case_count() -> u64 {
    std::env::var("EINFALL_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(150)
}

/// Problems that kernels of the GPU alone are made for.
const MORE: &[Way] = &[
    Way { kernel: "transpose", equation: "abc->cab", arguments: &[(&[70, 3, 130], None)], sizes: &[] },
    Way { kernel: "gemm", equation: "i,ij->j", arguments: &[(&[130], None), (&[130, 70], None)], sizes: &[] },
    Way { kernel: "gemm", equation: "bij,bj->bi", arguments: &[(&[3, 130, 70], None), (&[3, 70], None)], sizes: &[] },
    Way { kernel: "map", equation: "ij,ij->ij", arguments: &[(&[37, 61], None), (&[37, 61], None)], sizes: &[] },
    Way { kernel: "map", equation: "bi,bj->bij", arguments: &[(&[5, 33], None), (&[5, 72], None)], sizes: &[] },
    Way { kernel: "map", equation: "ij,j->ij", arguments: &[(&[37, 64], None), (&[64], None)], sizes: &[] },
    Way { kernel: "map", equation: "abc->bac", arguments: &[(&[7, 5, 48], None)], sizes: &[] },
    Way { kernel: "transpose", equation: "ab->ba", arguments: &[(&[64, 201], None)], sizes: &[] },
    Way { kernel: "transpose", equation: "ab->ba", arguments: &[(&[1030, 902], None)], sizes: &[] },
    Way { kernel: "transpose", equation: "abcde->ecadb", arguments: &[(&[4, 20, 7, 24, 20], None)], sizes: &[] },
    Way { kernel: "transpose", equation: "abcdef->fbdcae", arguments: &[(&[4, 6, 5, 12, 3, 14], None)], sizes: &[] },
    Way { kernel: "transpose", equation: "abcd->dcba", arguments: &[(&[28, 24, 12, 16], None)], sizes: &[] },
    Way { kernel: "transpose", equation: "abc->bac", arguments: &[(&[130, 17, 21], None)], sizes: &[] },
    Way { kernel: "transpose", equation: "bij->bji", arguments: &[(&[5000, 6, 10], None)], sizes: &[] },
    Way { kernel: "map", equation: "i,j->ij", arguments: &[(&[1300], None), (&[1272], None)], sizes: &[] },
    Way { kernel: "reduce", equation: "ij,ij->", arguments: &[(&[700, 600], None), (&[700, 600], None)], sizes: &[] },
    Way { kernel: "reduce", equation: "ij,ji->", arguments: &[(&[96, 40], None), (&[40, 96], None)], sizes: &[] },
    Way {
        kernel: "reduce",
        equation: "ijkl,jl->ik",
        arguments: &[(&[8, 9, 10, 16], None), (&[9, 16], None)],
        sizes: &[],
    },
    Way {
        kernel: "reduce",
        equation: "jk,ijkl->il",
        arguments: &[(&[29, 30], None), (&[8, 29, 30, 16], None)],
        sizes: &[],
    },
    Way { kernel: "reduce", equation: "ac,abc->cb", arguments: &[(&[40, 48], None), (&[40, 7, 48], None)], sizes: &[] },
    Way { kernel: "reduce", equation: "ij->j", arguments: &[(&[4000, 8], None)], sizes: &[] },
    Way { kernel: "reduce", equation: "ij->j", arguments: &[(&[400, 136], None)], sizes: &[] },
    Way { kernel: "reduce", equation: "ij->i", arguments: &[(&[77, 133], None)], sizes: &[] },
    Way { kernel: "reduce", equation: "ii->", arguments: &[(&[400, 400], None)], sizes: &[] },
    Way {
        kernel: "dots",
        equation: "qd,[q]d->q",
        arguments: &[(&[300, 36], None), (&[50, 36], None), (&[300], Some(50))],
        sizes: &[],
    },
    Way {
        kernel: "dots",
        equation: "bqd,b[2q-3w+9]d->bqw",
        arguments: &[(&[2, 70, 20], None), (&[2, 75, 20], None)],
        sizes: &[("w", 31)],
    },
    Way {
        kernel: "axpys",
        equation: "bqw,b[q+2w-9]d->bqd",
        arguments: &[(&[2, 70, 31], None), (&[2, 75, 40], None)],
        sizes: &[],
    },
    Way {
        kernel: "axpys",
        equation: "bqk,bqkd->bqd",
        arguments: &[(&[3, 50, 41], None), (&[3, 50, 41, 40], None)],
        sizes: &[],
    },
    Way {
        kernel: "tile",
        equation: "bij,bkj->bik",
        arguments: &[(&[2, 140, 32], None), (&[2, 150, 32], None)],
        sizes: &[],
    },
    Way { kernel: "tile", equation: "ji,jk->ki", arguments: &[(&[50, 70], None), (&[50, 68], None)], sizes: &[] },
    // Rows, columns and terms of several loops, whose last ones are contiguous.
    Way {
        kernel: "tile",
        equation: "aebd,ce->dcba",
        arguments: &[(&[9, 20, 5, 16], None), (&[24, 20], None)],
        sizes: &[],
    },
    Way {
        kernel: "tile",
        equation: "dacf,bdcf->ab",
        arguments: &[(&[3, 40, 4, 24], None), (&[50, 3, 4, 24], None)],
        sizes: &[],
    },
    // An input, both and the output are no matrices as they lie; loops of one side count matrices.
    Way {
        kernel: "packed",
        equation: "dabfe,fc->edcba",
        arguments: &[(&[3, 4, 5, 6, 7], None), (&[6, 9], None)],
        sizes: &[],
    },
    Way {
        kernel: "packed",
        equation: "fbea,cedf->dcba",
        arguments: &[(&[6, 7, 9, 8], None), (&[5, 9, 4, 6], None)],
        sizes: &[],
    },
    Way {
        kernel: "packed",
        equation: "aged,cbfg->fedcba",
        arguments: &[(&[3, 4, 5, 6], None), (&[5, 7, 3, 4], None)],
        sizes: &[],
    },
    Way {
        kernel: "packed",
        equation: "bqhd,bkhd->bhqk",
        arguments: &[(&[2, 33, 3, 16], None), (&[2, 37, 3, 16], None)],
        sizes: &[],
    },
    Way {
        kernel: "packed",
        equation: "dac,bcd->ba",
        arguments: &[(&[11, 13, 20], None), (&[17, 20, 11], None)],
        sizes: &[],
    },
    // Pieces of one length, a rest, and terms that are looked up.
    Way { kernel: "split", equation: "ik,jk->ij", arguments: &[(&[9, 5120], None), (&[7, 5120], None)], sizes: &[] },
    Way { kernel: "split", equation: "bk,bk->b", arguments: &[(&[3, 4999], None), (&[3, 4999], None)], sizes: &[] },
    Way {
        kernel: "split",
        equation: "k,[k]d->d",
        arguments: &[(&[5003], None), (&[50, 24], None), (&[5003], Some(50))],
        sizes: &[],
    },
];

/// Problems that kernels are made for, in types and tables that matter, and some with rows that end oddly.
fn ways() -> Vec<Case> {
    let mut seed = 0;
    let mut cases = Vec::new();
    for way in WAYS.iter().chain(MORE) {
        for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
            for (table, bounds) in [
                (DType::I64, Bounds::Error),
                (DType::I64, Bounds::Skip),
                (DType::I32, Bounds::Error),
                (DType::I32, Bounds::Skip),
                (DType::U16, Bounds::Error),
            ] {
                seed += 1;
                let case = case_of(way, dtype, table, &Fill::Integers(2), bounds, seed);
                cases.extend(skewed(way, &case));
                cases.push(case);
            }
        }
    }
    cases
}

/// The case with an output that is scattered so that three of four entries hit one row, if it is.
fn skewed(way: &Way, case: &Case) -> Option<Case> {
    let &(shape, rows) = way.arguments.last().filter(|_| way.equation.contains("->[e]"))?;
    let (count, rows) = (shape.iter().product::<usize>(), rows?);
    let value = |entry: usize| if entry.is_multiple_of(4) { entry * 31 % rows } else { rows / 2 };
    let mut case = case.clone();
    case.arguments.last_mut()?.fill = Fill::Values((0..count).map(|entry| value(entry) as f64).collect());
    Some(case)
}

#[test]
#[ignore = "needs NVRTC, which `cargo xtask kernels` fetches"]
fn every_kernel_compiles_for_every_architecture() {
    let devices = ["sm_80", "sm_90", "sm_100"].map(|isa| AbsentGpu::new(Machine { isa: isa.into(), ..example_gpu() }));
    let mut sources = HashSet::new();
    for kernel in kernel_specs() {
        for (at, case) in (0..case_count()).map(random_case).chain(ways()).enumerate() {
            let device = &devices[at % 3];
            let Ok(buffers) = case.materialise() else { continue };
            let views: Vec<View<'_>> = buffers.iter().map(Buffer::view).collect();
            let Ok(prepared) = call(&case, device).kernel(kernel.name).plan(&views) else { continue };
            let plan = prepared.plan();
            let tables: Vec<_> = plan.problem.tables.iter().map(|table| table.dtype).collect();
            for step in plan.steps.iter().chain(&plan.epilogue).filter(|step| !step.contraction.is_empty()) {
                let lower = ops::kernel_named(step.kernel()).expect("one of the table").lower;
                for alignment in [[16; 3], [8, 16, 8]] {
                    let (contraction, machine) = (&step.contraction, device.machine());
                    let table_alignment = &vec![alignment[0]; tables.len()];
                    let tasks = lower(&Lowering { contraction, tables: &tables, machine, alignment, table_alignment });
                    sources.extend(tasks.into_iter().map(|task| (task.kernel, at % 3, task.source)));
                }
            }
        }
    }
    let mut kinds: Vec<&str> = sources.iter().map(|(kernel, ..)| *kernel).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let inverted = ["keys", "count", "scan", "scatter", "begins", "places"].map(|what| format!("invert_{what}"));
    let segments = ["segments", "segment_parts", "segment_joins"].map(String::from);
    let others =
        ["axpys", "dots", "dots_resident", "group", "map", "nest", "reduce", "reduce_join", "tile", "transpose"]
            .map(String::from);
    for kernel in inverted.iter().chain(&segments).chain(&others) {
        let kernel = kernel.as_str();
        assert!(kinds.contains(&kernel), "no {kernel} among {kinds:?}");
    }
    compile_all(&sources, &kinds);
}

/// What kernels of attention are made for, and chance seldom makes: a list for each query and head, rows of whole chunks of 16
/// bytes, and so many lists of many keys that blocks go over them in phases, with a head's keys in the L1 or too many for it.
fn lists_of_whole_chunks() -> Vec<AttentionCase> {
    let argument = |dtype, shape: &[usize], fill| ArgumentSpec {
        dtype,
        shape: shape.to_vec(),
        strides: None,
        offset: 0,
        misaligned: 0,
        fill,
        storage_len: None,
    };
    let case = |(dtype, table, [b, h, q, n, k, d]): (_, _, [usize; 6])| AttentionCase {
        equation: "bhqd,bh[bhqk]d,bh[bhqk]e->bhqe".into(),
        arguments: vec![
            argument(dtype, &[b, h, q, d], Fill::Normal),
            argument(dtype, &[b, h, n, d], Fill::Normal),
            argument(table, &[b, h, q, k], Fill::Random(n)),
            argument(dtype, &[b, h, n, d], Fill::Normal),
        ],
        call: AttentionCall {
            sizes: Default::default(),
            bounds: Bounds::Skip,
            causal: false,
            scale: None,
            offsets: None,
        },
        seed: 5,
    };
    let kinds = [
        (DType::F32, DType::I64, [2, 3, 70, 90, 17, 32]),
        (DType::BF16, DType::I32, [2, 3, 70, 90, 17, 32]),
        (DType::F16, DType::I64, [2, 3, 70, 90, 17, 32]),
        (DType::F32, DType::I32, [2, 3, 70, 90, 17, 32]),
        (DType::F32, DType::I64, [1, 2, 130, 300, 400, 36]),
        (DType::F16, DType::I32, [1, 1, 67, 5000, 300, 24]),
        (DType::BF16, DType::I32, [1, 2, 17_001, 70, 16, 64]),
        (DType::F32, DType::I64, [1, 1, 34_003, 6007, 17, 32]),
    ];
    kinds.map(case).to_vec()
}

/// Compiles texts of kernels, each for the architecture of its number.
fn compile_all(sources: &HashSet<(&'static str, usize, String)>, kinds: &[&str]) {
    // Few random cases ask for a short test: then few of each kernel's sources, spread over all of them.
    let most = 3 * case_count() as usize;
    let chosen: Vec<_> = kinds
        .iter()
        .flat_map(|kind| {
            let mut own: Vec<_> = sources.iter().filter(|(kernel, ..)| kernel == kind).collect();
            own.sort_unstable();
            let step = own.len().div_ceil(most).max(1);
            own.into_iter().step_by(step)
        })
        .collect();
    let next = AtomicUsize::new(0);
    let compile_some = || {
        while let Some((kernel, device, source)) = chosen.get(next.fetch_add(1, Relaxed)) {
            let capability = [(8, 0), (9, 0), (10, 0)][*device];
            if let Err(error) = compile::compile(kernel, source, capability) {
                panic!("{error}\n{source}");
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(compile_some);
        }
    });
}

/// The texts of attention, forward and backward, of a kernel on a case.
fn attention_sources(case: &AttentionCase, kernel: &str, device: &AbsentGpu) -> Option<Vec<(&'static str, String)>> {
    let buffers = case.materialise().ok()?;
    let views: Vec<View<'_>> = buffers.iter().map(Buffer::view).collect();
    let described = |view: &View<'_>| Argument { dtype: view.dtype(), layout: view.layout().clone() };
    let arguments: Vec<Argument> = views.iter().map(described).collect();
    let call = attention_call(case, device).kernel(kernel);
    let has_bias = case.equation.matches(',').count() == 3;
    let forward = call.plan_for(arguments.clone()).ok()?;
    let backward = call.plan_gradients(arguments, [true, true, true, has_bias]).ok()?;
    let mut sources = Vec::new();
    for plan in [forward.plan(), backward.plan()] {
        let tables: Vec<_> = plan.problem.tables.iter().map(|table| table.dtype).collect();
        let lower = ops::attention::attention_named(plan.kernel()).expect("one of the table").lower;
        for alignment in [16, 4] {
            let wants_lse = plan.pass == Pass::Backward || alignment == 16;
            let alignment = &|_: Memory| alignment;
            let machine = device.machine();
            let (attention, pass, tables) = (&plan.attention, plan.pass, &tables[..]);
            let tasks = lower(&AttentionLowering {
                attention,
                pass,
                tables,
                machine,
                wants_lse,
                alignment,
                values_in_keys: false,
            });
            assert!(tasks.iter().all(|task| task.blocks > 0 && task.shared_bytes as usize <= machine.l1_bytes));
            sources.extend(tasks.into_iter().map(|task| (task.kernel, task.source)));
        }
    }
    Some(sources)
}

#[test]
#[ignore = "needs NVRTC, which `cargo xtask kernels` fetches"]
fn every_kernel_compiles_of_attention() {
    let devices = ["sm_80", "sm_90", "sm_100"].map(|isa| AbsentGpu::new(Machine { isa: isa.into(), ..example_gpu() }));
    let mut sources = HashSet::new();
    for kernel in ops::attention::ATTENTION_KERNELS {
        let cases = lists_of_whole_chunks().into_iter().chain((0..case_count()).map(random_attention));
        for (number, case) in cases.enumerate() {
            let at = number % 3;
            let found = attention_sources(&case, kernel.name, &devices[at]).unwrap_or_default();
            sources.extend(found.into_iter().map(|(kernel, source)| (kernel, at, source)));
        }
    }
    let mut kinds: Vec<&str> = sources.iter().map(|(kernel, ..)| *kernel).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for kernel in ["rows", "resident", "tiles", "nest", "grad_query", "grad_key", "entries", "zero", "narrow"] {
        assert!(kinds.contains(&format!("attention_{kernel}").as_str()), "no {kernel} among {kinds:?}");
    }
    compile_all(&sources, &kinds);
}

/// Checks cases with a thread for each core, since compiling takes most of the time, and reports the first that fail.
fn every<C: Send>(cases: impl Iterator<Item = C> + Send, check: impl Fn(C, &CudaDevice) -> Result<(), String> + Sync) {
    let (cases, failures) = (Mutex::new(cases), Mutex::new(Vec::new()));
    let work = || {
        // A device of its own: a thread does not wait for launches of others, and has no table's errors of theirs.
        let device = CudaDevice::new(0).expect("a GPU");
        let next = || cases.lock().expect("no panic").next();
        while let Some(case) = next() {
            if let Err(why) = check(case, &device) {
                failures.lock().expect("no panic").push(why);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().expect("no panic");
    let first: Vec<&str> = failures.iter().take(6).map(String::as_str).collect();
    assert!(failures.is_empty(), "{} failed\n\n{}", failures.len(), first.join("\n\n"));
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn random_problems_match_the_oracle_on_the_gpu() {
    every(0..case_count(), |seed, device| {
        check_case(&random_case(seed), device).map_err(|why| format!("seed {seed}: {why}"))
    });
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn every_kernel_matches_the_oracle_on_the_gpu() {
    let cases = kernel_specs().into_iter().flat_map(|kernel| (0..case_count()).map(move |seed| (kernel.name, seed)));
    every(cases, |(kernel, seed), device| {
        let case = random_case(1_000_000 + seed);
        check_call(&case, call(&case, device).kernel(kernel)).map_err(|why| format!("{kernel} on seed {seed}: {why}"))
    });
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn slices_match_the_oracle_on_the_gpu() {
    every(0..case_count(), |seed, device| {
        let case = random_case(3_000_000 + seed);
        check_call(&case, call(&case, device).memory_limit(300)).map_err(|why| format!("seed {seed}: {why}"))
    });
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn the_regressions_of_other_projects_stay_fixed_on_the_gpu() {
    every(suite::regressions().into_iter(), |regression, device| {
        let checked = check_case(&regression.case, device);
        checked.map_err(|why| format!("{} ({}): {why}", regression.about, regression.case.source))
    });
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn every_kernel_runs_what_it_is_made_for_on_the_gpu() {
    let cases = kernel_specs().into_iter().flat_map(|kernel| ways().into_iter().map(move |case| (kernel.name, case)));
    every(cases, |(kernel, case), device| {
        check_call(&case, call(&case, device).kernel(kernel)).map_err(|why| format!("{kernel}: {why}"))
    });
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn launches_are_timed_on_the_gpu() {
    let device = CudaDevice::new(0).expect("a GPU");
    let (query, rows) = (vec![1.0f32; 1000 * 32], vec![1.0f32; 500 * 32]);
    let mut table: Vec<i64> = (0..1000 * 20).map(|at| at * 7919 % 500).collect();
    let einsum = Einsum::new("qd,[qk]d->qk");
    let time = |table: &[i64]| {
        let view = |values| View::from_slice(values, &[1000, 20]);
        let query = View::from_slice(&query, &[1000, 32]).expect("a view");
        let rows = View::from_slice(&rows, &[500, 32]).expect("a view");
        einsum.replay_seconds(&device, &[query, rows, view(table).expect("a view")], 10, 5)
    };
    let seconds = time(&table).expect("timed");
    assert!(seconds.len() == 5 && seconds.iter().all(|seconds| (1e-7..1e-2).contains(seconds)), "{seconds:?}");
    table[9] = 500;
    let error = time(&table).expect_err("a bad table");
    assert!(error.to_string().contains("holds 500 at [0, 9]"), "{error}");
    table[9] = 0;
    assert!(time(&table).is_ok());
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn launches_of_attention_are_timed_on_the_gpu() {
    let device = CudaDevice::new(0).expect("a GPU");
    let (query, rows) = (vec![0.5f32; 1000 * 32], vec![0.25f32; 500 * 32]);
    let table: Vec<i64> = (0..1000 * 20).map(|at| at * 7919 % 500).collect();
    let query = View::from_slice(&query, &[1000, 32]).expect("a view");
    let rows = View::from_slice(&rows, &[500, 32]).expect("a view");
    let table = View::from_slice(&table, &[1000, 20]).expect("a view");
    let arguments = [query.clone(), rows.clone(), table, rows];
    let attend = Attend::new("qd,[qk]d,[qk]e->qe");
    let time = |backward| attend.replay_seconds(&device, &arguments, backward, 10, 5).expect("timed");
    let forward = time(None);
    let both = time(Some((&query, [true, true, true, false])));
    for seconds in [&forward, &both] {
        assert!(seconds.len() == 5 && seconds.iter().all(|seconds| (1e-7..1e-2).contains(seconds)), "{seconds:?}");
    }
    assert!(both.iter().sum::<f64>() > forward.iter().sum::<f64>(), "{forward:?}, {both:?}");
}

/// Problems of attention that kernels are made for, in all types.
fn attentions() -> impl Iterator<Item = AttentionCase> {
    // Among random ones these are few: ask for more.
    let random = (0..4 * case_count()).map(|seed| random_attention(7_000_000 + seed));
    lists_of_whole_chunks().into_iter().chain(random.filter(|case| case.arguments[0].shape.len() >= 3))
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn random_attentions_match_the_oracle_on_the_gpu() {
    every(0..2 * case_count(), |seed, device| {
        let case = random_attention(seed);
        check_attention(&case, &attention_call(&case, device)).map_err(|why| format!("seed {seed}: {why}"))
    });
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn every_kernel_of_attention_matches_the_oracle_on_the_gpu() {
    every(attentions(), |case, device| {
        let expected = case.expected().map_err(|error| error.to_string());
        for kernel in ops::attention::ATTENTION_KERNELS {
            let call = attention_call(&case, device).kernel(kernel.name);
            check_attention_with(&case, &call, &expected).map_err(|why| format!("{}: {why}", kernel.name))?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn attention_gives_the_same_bits_every_time_on_the_gpu() {
    every(0..case_count() / 10, |seed, device| {
        let case = random_attention(8_000_000 + seed);
        let bits = || run_attention(&case, &attention_call(&case, device)).ok().map(|given| given.bits());
        let first = bits();
        if (1..100).all(|_| bits() == first) { Ok(()) } else { Err(format!("seed {seed}: {case}")) }
    });
}
