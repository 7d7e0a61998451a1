//! The measuring: on each problem the engines take turns.

use std::time::Duration;

use einfall::{DType, Error, Tensor};

use super::attention::AttentionOracle;
use super::call::Call;
use super::cases::Kind;
use super::data::Data;
use super::options::Options;
use super::oracle::{Oracle, sample};
use super::problem::Problem;
use super::record::{Skipped, SuiteReport, SuiteRow};
use crate::arguments::SuiteArgs;
use crate::bench::compare::{Bounded, Compared};
use crate::bench::peers::{Interpreter, Question};
use crate::bench::record::{EINFALL, Measured};
use crate::bench::rivals::{self, PeerRun, ROUNDS, Rivals, Turn};
use crate::bench::units;
use crate::counting::peak_during;
use crate::failure::Failure;
use crate::host::{self, Opened};
use crate::progress::Progress;

/// Peers that solve another problem: they attend to every key.
const OTHER: [&str; 1] = ["torch SDPA, all keys"];

/// Longest that a peer may take for one answer, compiling included.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Fills the report's rows and notes, and calls `keep` with what there is after each problem.
pub(super) fn measure(
    args: &SuiteArgs,
    options: &Options,
    opened: &Opened,
    interpreter: Option<&dyn Interpreter>,
    report: &mut SuiteReport,
    keep: &dyn Fn(&SuiteReport) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let progress = Progress::new(options.problems.len() as u64, args.json);
    progress.message("starting");
    let threads = if opened.gpu().is_some() { 1 } else { opened.device().machine().threads };
    let mut rivals = if args.peers {
        let wanted = rivals::Wanted { python: args.python.as_deref(), interpreter, device: options.device };
        let unused: &[&str] = if options.needs_jax() { &[] } else { &["jax", "opt_einsum"] };
        Rivals::start(&wanted, threads, unused, &mut report.settings, &mut report.notes)?
    } else {
        None
    };
    if let Some(rivals) = &mut rivals {
        rivals.set_timeout(TIMEOUT);
    }
    let bench = Bench { options, opened, interpreter, progress: &progress, compile: !args.no_compile };
    progress.start_clock();
    for problem in &options.problems {
        bench.run(problem, rivals.as_mut(), report)?;
        keep(report)?;
        progress.advance(1);
    }
    progress.finish();
    Ok(())
}

/// One run.
struct Bench<'a> {
    options: &'a Options,
    opened: &'a Opened,
    interpreter: Option<&'a dyn Interpreter>,
    progress: &'a Progress,
    compile: bool,
}

impl Bench<'_> {
    /// Measures a problem, or says why not.
    fn run(&self, problem: &Problem, rivals: Option<&mut Rivals<'_>>, report: &mut SuiteReport) -> Result<(), Failure> {
        let name = problem.title();
        let mut skip = |why: String, failed| report.skipped.push(Skipped { name: name.clone(), why, failed });
        if let Some(why) = self.too_large(problem, rivals.as_ref().is_some_and(|rivals| rivals.copies())) {
            skip(why, false);
            return Ok(());
        }
        self.say(&format!("{name}: making the data"))?;
        let data = Data::new(problem, self.options.seed)?;
        self.say(&format!("{name}: comparing"))?;
        let begun = Call::new(problem, &data, self.opened).and_then(|call| {
            let result = call.run()?;
            Ok((call, result))
        });
        let (call, result) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                skip(error.to_string(), true);
                return Ok(());
            }
        };
        let oracle = Reference::new(problem, &data);
        let compared = oracle.compare(&result, call.rounds_to());
        drop(result);
        // What is counted is the host's memory.
        let peak_bytes = match self.opened.gpu() {
            Some(_) => None,
            None => self.peak(&call)?,
        };
        let (mut seconds, mut runs) = (Vec::new(), Vec::new());
        let turn = self.turn();
        let mut ours = || {
            self.say(&name)?;
            seconds.extend(call.time(turn)?);
            Ok(())
        };
        match rivals {
            None => (0..ROUNDS).try_for_each(|_| ours())?,
            Some(rivals) => runs = self.beside(problem, &data, rivals, &mut ours, &mut report.notes)?,
        }
        let measured = self.measured(problem, EINFALL, &call).compared(&compared).timed(seconds);
        let way = Some(call.ways());
        let predicted_s = Some(call.cost().seconds);
        report.rows.push(SuiteRow { predicted_s, ..row(problem, Measured { way, peak_bytes, ..measured }) });
        for run in runs {
            let other = OTHER.contains(&run.name.as_str());
            let measured = Measured { compile_s: run.first.compile_s, ..self.measured(problem, &run.name, &call) };
            let measured = if other { measured } else { measured.compared(&oracle.compare_peer(&run)) };
            report.rows.push(SuiteRow { other, ..row(problem, measured.timed(run.seconds)) });
        }
        Ok(())
    }

    /// Says what is done, and fails where the user wants the run to end.
    fn say(&self, what: &str) -> Result<(), Failure> {
        self.progress.message(what);
        match self.interpreter {
            Some(interpreter) if interpreter.interrupted() => Err(Failure::internal("interrupted")),
            _ => Ok(()),
        }
    }

    fn turn(&self) -> Turn {
        Turn { repeats: self.options.repeats.div_ceil(ROUNDS as usize), budget: self.options.budget / ROUNDS }
    }

    /// Why there is no room for a problem.
    fn too_large(&self, problem: &Problem, copies: bool) -> Option<String> {
        // Peers hold a copy of their own, and a file that is kept in memory.
        let needed = problem.memory_bytes() as f64 * if copies { 3.5 } else { 1.5 };
        let free = host::available_bytes()? as f64;
        let (needs, frees) = (units::bytes(needed), units::bytes(free));
        (needed > 0.8 * free).then(|| format!("it needs {needs} of memory with its peers, and {frees} are free"))
    }

    fn peak(&self, call: &Call<'_>) -> Result<Option<u64>, Error> {
        let (result, peak_bytes) = peak_during(|| call.run());
        drop(result?);
        Ok(peak_bytes.map(|bytes| bytes as u64))
    }

    fn beside(
        &self,
        problem: &Problem,
        data: &Data,
        rivals: &mut Rivals<'_>,
        ours: &mut dyn FnMut() -> Result<(), Failure>,
        notes: &mut Vec<String>,
    ) -> Result<Vec<PeerRun>, Failure> {
        let name = problem.title();
        self.say(&format!("{name}: peers read the data"))?;
        for (role, tensor) in &data.arrays {
            rivals.file(role, tensor)?;
        }
        let described = |(role, tensor): &(&str, std::sync::Arc<Tensor>)| {
            ((*role).to_owned(), tensor.shape().to_vec(), tensor.dtype().name().to_owned())
        };
        let question = Question::Suite {
            kind: problem.kind.name(),
            equation: problem.equation.clone(),
            sizes: problem.sizes.clone(),
            arguments: data.arrays.iter().map(described).collect(),
            scope: problem.scope.clone(),
            backward: problem.pass == super::record::Pass::Both,
            compile: self.compile,
        };
        let about = |peer: &str| format!("{peer}, {name}");
        let dtypes = (problem.dtype, self.options.table_dtype);
        let names = rivals.offer(question, dtypes, data.arrays.clone(), &about, notes);
        rivals.turns(&names, self.turn(), ours, &|peer| self.say(&format!("{name}: {peer}")), &about, notes)
    }

    /// The work of a problem, for an engine. Where the order of operands decides, the plan's arithmetic counts.
    fn measured(&self, problem: &Problem, engine: &str, call: &Call<'_>) -> Measured {
        let flops = problem.flops.unwrap_or_else(|| call.cost().flops as u64);
        let machine = self.opened.device().machine();
        Measured::new(engine, problem.dtype, self.options.device.to_string(), flops, problem.bytes, machine)
    }
}

fn row(problem: &Problem, measured: Measured) -> SuiteRow {
    SuiteRow {
        name: problem.name.clone(),
        section: problem.section.clone(),
        pass: problem.pass,
        equation: problem.equation.clone(),
        sizes: problem.sizes.clone(),
        predicted_s: None,
        other: false,
        measured,
    }
}

/// What results are compared with.
enum Reference<'a> {
    Einsum(Oracle<'a>, DType),
    Attention(AttentionOracle<'a>, DType),
    /// Nothing knows what is right.
    None,
}

impl<'a> Reference<'a> {
    fn new(problem: &'a Problem, data: &'a Data) -> Self {
        let arguments: Vec<&Tensor> = data.arrays.iter().map(|(_, tensor)| &**tensor).collect();
        let reference = if problem.kind == Kind::Attention {
            AttentionOracle::new(problem, data).map(|oracle| Self::Attention(oracle, problem.dtype))
        } else {
            let oracle = Oracle::new(&problem.equation, &arguments, &problem.output);
            oracle.map(|oracle| Self::Einsum(oracle, problem.dtype))
        };
        reference.unwrap_or(Self::None)
    }

    fn dtype(&self) -> DType {
        match self {
            Self::Einsum(_, dtype) | Self::Attention(_, dtype) => *dtype,
            Self::None => DType::F64,
        }
    }

    /// Our result, whose intermediate results are rounded to a half type where the plan says so.
    fn compare(&self, result: &Tensor, rounds_to: Option<DType>) -> Compared {
        let (positions, values) = sample(result);
        let sums_in = rounds_to.unwrap_or_else(|| self.dtype().accumulator());
        self.check(result.shape(), &positions, &values, sums_in)
    }

    /// Of a peer nobody knows what it sums in.
    fn compare_peer(&self, run: &PeerRun) -> Compared {
        self.check(&run.first.shape, &run.first.positions, &run.first.sample, self.dtype())
    }

    fn check(&self, shape: &[usize], positions: &[usize], values: &[f64], sums_in: DType) -> Compared {
        let right = match self {
            Self::Einsum(oracle, _) => oracle.shape(),
            Self::Attention(oracle, _) => oracle.shape(),
            Self::None => return Compared::OF_ANOTHER_SHAPE,
        };
        if shape != right || values.len() != positions.len() {
            return Compared::OF_ANOTHER_SHAPE;
        }
        let expected: Vec<Bounded> = match self {
            Self::Einsum(oracle, _) => oracle.expected(positions, sums_in),
            Self::Attention(oracle, _) => oracle.expected(positions, sums_in),
            Self::None => Vec::new(),
        };
        Compared::new(values.iter().copied().zip(expected))
    }
}
