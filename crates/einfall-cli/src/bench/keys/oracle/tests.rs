use clap::Parser;
use einfall::CpuDevice;

use super::*;
use crate::arguments::{Cli, Command, Experiment};
use crate::bench::compare::SAMPLE;
use crate::bench::keys::data::Looked;
use crate::bench::keys::options::Options;
use crate::bench::keys::ours::{Call, Equations};
use crate::host::Opened;

fn options(dtype: &str) -> Options {
    let line = ["einfall", "bench", "keys", "-s", "b=2,h=3,q=11,n=13,d=5", "--k", "7", "--dtype", dtype];
    let Command::Bench(bench) = Cli::try_parse_from(line).unwrap().command else { unreachable!() };
    let Experiment::Keys(args) = bench.experiment else { unreachable!() };
    Options::new(&args).unwrap()
}

/// Calls `test` with the oracle of every problem and our result.
fn every_problem(dtype: &str, test: impl Fn(&Oracle<'_>, &Tensor)) {
    let options = options(dtype);
    let opened = Opened::Cpu(CpuDevice::new(1).unwrap());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let rows = Rows::new(&options).unwrap();
    for op in Op::ALL {
        for case in Case::ALL {
            if (op, case) == (Op::Attention, Case::Window) {
                continue;
            }
            let lists = Lists::new(&options, if case == Case::All { 13 } else { 7 }).unwrap();
            let looked = Looked::new(op, case, &rows, &lists).unwrap();
            let equations = Equations::new(&looked);
            let call = Call::new(op, &looked, &equations, &opened, &pool, 5).unwrap();
            let oracle = Oracle { op, case, rows: &rows, lists: &lists, sums_in: options.dtype.accumulator() };
            test(&oracle, &call.run().unwrap());
        }
    }
}

#[test]
fn our_results_are_right_in_every_problem() {
    for dtype in ["f32", "f64", "bf16", "f16"] {
        every_problem(dtype, |oracle, result| {
            let compared = oracle.check(result);
            assert!(
                compared.ok && compared.max_error <= compared.tolerance,
                "{dtype} {} {} {compared:?}",
                oracle.op,
                oracle.case
            );
            // A bound that lets everything pass would be none: the results are about 1.
            assert!(
                compared.tolerance < if dtype.len() == 3 && dtype != "f16" { 1e-4 } else { 1.0 },
                "{dtype} {compared:?}"
            );
        });
    }
}

#[test]
fn a_wrong_result_is_seen() {
    every_problem("f32", |oracle, result| {
        let positions = oracle.positions();
        assert_eq!(positions.len(), SAMPLE);
        let right: Vec<f64> = positions.iter().map(|&at| number(result, at)).collect();
        assert!(oracle.compare(&positions, &right).ok);
        for wrong in [f64::NAN, 0.125, f64::INFINITY] {
            let mut values = right.clone();
            values[63] += wrong;
            let compared = oracle.compare(&positions, &values);
            assert!(!compared.ok, "{} {} {wrong} {compared:?}", oracle.op, oracle.case);
        }
        let transposed = einfall::einsum("bhqx->bhxq", &[result.view()]).unwrap();
        assert!(!oracle.check(&transposed).ok, "another shape");
    });
}

#[test]
fn lists_name_no_row_twice() {
    let options = options("f32");
    let lists = Lists::new(&options, 7).unwrap();
    for list in lists.positions.chunks(7) {
        let mut sorted = list.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert!(sorted.len() == 7 && sorted[6] < 13, "{list:?}");
    }
    assert_ne!(lists.positions[..7], lists.positions[7..14]);
}
