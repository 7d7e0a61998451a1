//! What `einfall bench keys` is to measure: the command line with its gaps filled.

use std::time::Duration;

use einfall::DType;

use crate::arguments::KeysArgs;
use crate::bench::record::{Case, Op, Sizes};
use crate::device::DeviceArg;
use crate::failure::Failure;
use crate::sizes::Length;

/// Keys of a query that are measured by default, as far as there are so many.
const KS: [usize; 7] = [1, 3, 10, 30, 100, 300, 1000];
const QUICK_KS: [usize; 3] = [1, 10, 100];

/// An experiment.
#[derive(Clone, Debug)]
pub(super) struct Options {
    /// All but k.
    pub(super) sizes: Sizes,
    pub(super) ks: Vec<usize>,
    pub(super) ops: Vec<Op>,
    pub(super) cases: Vec<Case>,
    pub(super) device: DeviceArg,
    pub(super) dtype: DType,
    pub(super) table_dtype: DType,
    pub(super) repeats: usize,
    pub(super) budget: Duration,
    pub(super) seed: u64,
}

/// Cases that are measured with one k.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) op: Op,
    pub(super) k: usize,
    pub(super) cases: Vec<Case>,
}

impl Options {
    pub(super) fn new(args: &KeysArgs) -> Result<Self, Failure> {
        let lens = if args.quick { (2, 1, 100, 100, 32) } else { (8, 1, 1000, 1000, 32) };
        let mut sizes = Sizes { b: lens.0, h: lens.1, q: lens.2, n: lens.3, d: lens.4, k: 0 };
        for Length { key, len } in &args.size {
            let place = match key.as_str() {
                "b" => &mut sizes.b,
                "h" => &mut sizes.h,
                "q" => &mut sizes.q,
                "n" => &mut sizes.n,
                "d" => &mut sizes.d,
                "k" => {
                    return Err(Failure::bad_input(
                        "`k` is not one length but many\nhint: give them with `--k 10,100`",
                    ));
                }
                other => {
                    let message =
                        format!("the experiment has no label `{other}`\nhint: it has b, h, q, n and d, and `--k`");
                    return Err(Failure::bad_input(message));
                }
            };
            if *len == 0 {
                return Err(Failure::bad_input(format!("`{key}` is 0: there is nothing to time")));
            }
            *place = *len;
        }
        let n = sizes.n;
        let ks = match args.k.as_slice() {
            [] if args.quick => QUICK_KS.into_iter().filter(|&k| k <= n).collect(),
            [] => KS.into_iter().filter(|&k| k <= n).collect(),
            given => {
                if let Some(&k) = given.iter().find(|&&k| k == 0 || k > n) {
                    let hint = if k == 0 {
                        String::new()
                    } else {
                        format!("\nhint: a list names no row twice; raise n with `-s n={k}`")
                    };
                    return Err(Failure::bad_input(format!("`--k {k}` is not from 1 to n={n}{hint}")));
                }
                sorted(given)
            }
        };
        let on_gpu = args.device != DeviceArg::Cpu;
        let ops = match args.op.as_slice() {
            // The softmax between two einsums runs on the processor.
            [] => Op::ALL.into_iter().filter(|&op| !on_gpu || op != Op::Attention).collect(),
            given if on_gpu && given.contains(&Op::Attention) => {
                return Err(Failure::bad_input(
                    "attention is not timed on a GPU: its softmax is the processor's\nhint: `--op scores,values`",
                ));
            }
            given => sorted(given),
        };
        let most = [sizes.b, sizes.h, sizes.q, sizes.n.max(sizes.d), sizes.n.max(sizes.d)];
        let most = most.iter().try_fold(32usize, |product, &len| product.checked_mul(len));
        if most.is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(Failure::bad_input(format!("{sizes} is more than can be addressed")));
        }
        Ok(Self {
            sizes: Sizes { k: ks.first().copied().unwrap_or(1), ..sizes },
            ks,
            ops,
            cases: match args.case.as_slice() {
                [] => Case::ALL.into_iter().filter(|&case| case != Case::Window).collect(),
                given => sorted(given),
            },
            device: args.device,
            dtype: args.dtype,
            table_dtype: args.table_dtype,
            repeats: args.repeats.map_or(if args.quick { 20 } else { 1000 }, |repeats| repeats as usize),
            budget: Duration::from_secs_f64(args.budget.unwrap_or(if args.quick { 0.02 } else { 0.5 })),
            seed: args.seed,
        })
    }

    /// Bytes of the data that every case needs, each array once more while it is made.
    pub(super) fn data_bytes(&self) -> f64 {
        let Sizes { b, h, q, n, d, .. } = self.sizes;
        let elements = (q as f64 + 2.0 * n as f64) * d as f64 * self.dtype.bytes() as f64;
        let entries = q as f64 * self.ks.last().copied().unwrap_or(1) as f64 * self.table_dtype.bytes() as f64;
        2.0 * b as f64 * h as f64 * (elements + entries)
    }

    /// What is measured together, in order. All n keys are k = n, whatever the other cases are measured with.
    pub(super) fn groups(&self) -> Vec<Group> {
        let mut groups = Vec::new();
        for &op in &self.ops {
            let mut ks = self.ks.clone();
            if self.cases.contains(&Case::All) {
                ks.push(self.sizes.n);
            }
            for k in sorted(&ks) {
                let fits = |case: &&Case| if **case == Case::All { k == self.sizes.n } else { self.ks.contains(&k) };
                let cases: Vec<Case> = self.cases.iter().filter(fits).copied().collect();
                if !cases.is_empty() {
                    groups.push(Group { op, k, cases });
                }
            }
        }
        groups
    }
}

fn sorted<T: Copy + Ord>(list: &[T]) -> Vec<T> {
    let mut sorted = list.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    sorted
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Cli, Command, Experiment};

    fn options(line: &str) -> Result<Options, Failure> {
        let words = ["einfall", "bench", "keys"].into_iter().chain(line.split_whitespace());
        let Command::Bench(bench) = Cli::try_parse_from(words).unwrap().command else { unreachable!() };
        let Experiment::Keys(args) = bench.experiment else { unreachable!() };
        Options::new(&args)
    }

    #[test]
    fn the_default_is_the_reference_experiment() {
        let options = options("").unwrap();
        assert_eq!(options.sizes, Sizes { b: 8, h: 1, q: 1000, n: 1000, k: 1, d: 32 });
        assert_eq!(options.ks, KS);
        assert_eq!(options.groups().len(), 3 * 7);
        let last = options.groups().pop().unwrap();
        assert_eq!((last.k, last.cases.len()), (1000, 5));
    }

    #[test]
    fn attention_stays_on_the_processor() {
        assert_eq!(options("--device cuda:1").unwrap().ops, [Op::Scores, Op::Values]);
        assert_eq!(options("").unwrap().ops, Op::ALL);
    }

    #[test]
    fn all_keys_are_measured_once() {
        let options = options("--k 10,7 --op scores --case all,shared -s n=20").unwrap();
        let groups = options.groups();
        let of = |k, case: &[Case]| Group { op: Op::Scores, k, cases: case.to_vec() };
        assert_eq!(groups, [of(7, &[Case::Shared]), of(10, &[Case::Shared]), of(20, &[Case::All])]);
    }

    #[test]
    fn mistakes_are_refused() {
        for (line, wrong) in [
            ("--k 2000", "`--k 2000` is not from 1 to n=1000"),
            ("-s x=3", "no label `x`"),
            ("-s k=3", "--k 10,100"),
            ("-s q=0", "`q` is 0"),
            ("--device cuda --op both", "attention is not timed on a GPU"),
            ("-s b=99999999999,n=9999999999", "more than can be addressed"),
        ] {
            let error = options(line).unwrap_err();
            assert!(error.message.contains(wrong) && error.code == 2, "{error}");
        }
    }
}
