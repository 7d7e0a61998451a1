//! What a run over a suite is to measure: the command line with its gaps filled.

use std::time::Duration;

use einfall::DType;

use super::cases::{self, Kind};
use super::problem::Problem;
use super::record::{Pass, Suite};
use crate::arguments::SuiteArgs;
use crate::device::DeviceArg;
use crate::failure::Failure;

/// A run.
pub(super) struct Options {
    pub(super) suite: Suite,
    pub(super) problems: Vec<Problem>,
    pub(super) device: DeviceArg,
    pub(super) table_dtype: DType,
    pub(super) repeats: usize,
    pub(super) budget: Duration,
    pub(super) seed: u64,
}

impl Options {
    pub(super) fn new(suite: Suite, args: &SuiteArgs) -> Result<Self, Failure> {
        let on_gpu = args.device != DeviceArg::Cpu;
        let table_dtype = args.table_dtype;
        let mut problems = Vec::new();
        match suite {
            Suite::Dense => {
                for case in cases::dense(&args.only, args.random.map(|count| (count as usize, args.seed)))? {
                    let dtypes = dtypes(case.dtype, &args.dtype);
                    problems.extend(dtypes.into_iter().map(|dtype| Problem::dense(&case, dtype, args.quick)));
                }
            }
            Suite::Lookups => {
                for case in cases::lookups(&args.only, on_gpu)? {
                    for dtype in dtypes(case.dtype, &args.dtype) {
                        let problem = |pass| Problem::lookup(&case, dtype, table_dtype, pass, args.quick);
                        problems.push(problem(Pass::Forward));
                        if case.kind == Kind::Attention && case.is_trained() {
                            problems.push(problem(Pass::Both));
                        }
                    }
                }
            }
        }
        Ok(Self {
            suite,
            problems,
            device: args.device,
            table_dtype,
            repeats: args.repeats.map_or(if args.quick { 20 } else { 1000 }, |repeats| repeats as usize),
            budget: Duration::from_secs_f64(args.budget.unwrap_or(if args.quick { 0.02 } else { 0.5 })),
            seed: args.seed,
        })
    }

    /// Whether JAX and opt_einsum have anything to do.
    pub(super) fn needs_jax(&self) -> bool {
        self.suite == Suite::Dense && self.device == DeviceArg::Cpu
    }

    /// The types that problems have, for reports.
    pub(super) fn dtypes(&self) -> Vec<DType> {
        let mut dtypes: Vec<DType> = Vec::new();
        for problem in &self.problems {
            if !dtypes.contains(&problem.dtype) {
                dtypes.push(problem.dtype);
            }
        }
        dtypes
    }
}

/// The types to run a case in: those that were asked for in place of f32 or bf16, else its own.
fn dtypes(own: DType, wanted: &[DType]) -> Vec<DType> {
    if wanted.is_empty() || !matches!(own, DType::F32 | DType::BF16) { vec![own] } else { wanted.to_vec() }
}
