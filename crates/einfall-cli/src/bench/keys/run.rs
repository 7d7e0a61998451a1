//! The measuring itself: engines take turns on a problem, and cases take turns for each k.

use einfall::{Error, Machine};

use super::data::{Lists, Looked, Rows, distinct_bytes, stored_bytes};
use super::options::{Group, Options};
use super::oracle::Oracle;
use super::ours::{Call, Equations};
use crate::arguments::KeysArgs;
use crate::bench::compare::Compared;
use crate::bench::peers::{Interpreter, Question};
use crate::bench::record::{BenchReport, BenchRow, Case, EINFALL, EINFALL_COMPOSED, Measured, Op, Sizes};
use crate::bench::rivals::{self, ROUNDS, Rivals, Turn};
use crate::bench::units;
use crate::counting::peak_during;
use crate::failure::Failure;
use crate::host::{self, Opened};
use crate::progress::Progress;

/// Fills the report's rows and notes.
pub(super) fn measure(
    args: &KeysArgs,
    options: &Options,
    opened: &Opened,
    interpreter: Option<&dyn Interpreter>,
    report: &mut BenchReport,
) -> Result<(), Failure> {
    let groups = options.groups();
    let problems = groups.iter().map(|group| group.cases.len() as u64).sum();
    let progress = Progress::new(problems, args.json);
    progress.message("making the data");
    let machine = opened.device().machine();
    // Nothing of ours runs on the processor where there is a GPU.
    let threads = if opened.gpu().is_some() { 1 } else { machine.threads };
    let rows = Rows::new(options)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|error| Failure::internal(format!("could not start {threads} threads: {error}")))?;
    let mut rivals = if args.peers {
        let wanted = rivals::Wanted { python: args.python.as_deref(), interpreter, device: options.device };
        let run = &mut report.settings.run;
        // No peer of these problems uses it.
        Rivals::start(&wanted, threads, &["jax"], run, &mut report.notes)?
    } else {
        None
    };
    if let Some(rivals) = &mut rivals {
        for (role, tensor) in [("query", &rows.query), ("keys", &rows.keys), ("values", &rows.values)] {
            rivals.file(role, tensor)?;
        }
    }
    general_notes(options, machine, report);

    progress.start_clock();
    for group in &groups {
        let lists = Lists::new(options, group.k)?;
        if let Some(rivals) = &mut rivals {
            rivals.file("table", &lists.table)?;
            rivals.file("weights", &lists.weights)?;
        }
        let bench =
            Bench { options, opened, interpreter, pool: &pool, rows: &rows, lists: &lists, group, progress: &progress };
        bench.run(rivals.as_mut(), report)?;
    }
    progress.finish();
    report.rows.sort_by_key(|row| (row.op, row.case, row.k));
    Ok(())
}

fn general_notes(options: &Options, machine: &Machine, report: &mut BenchReport) {
    let how = if host::is_gpu(machine) {
        "CUDA graph replays; the same inputs each time; engines and cases take turns"
    } else {
        "a call returns new memory each time; plans are made once, peers are warmed up; engines and cases take turns"
    };
    report.notes.push(how.to_owned());
    report.notes.push(
        "the floor is the distinct bytes from the level of memory that they fit in, or the arithmetic at its peak"
            .to_owned(),
    );
    if !machine.measured {
        report.notes.push("the rates of this machine are estimates".to_owned());
    }
    if options.ops.contains(&Op::Attention) {
        report.notes.push(format!(
            "`{EINFALL_COMPOSED}` is scores, a plain softmax of this benchmark, values: not one fused call"
        ));
    }
    if options.cases.contains(&Case::Window) && options.ops.contains(&Op::Attention) {
        report
            .notes
            .push("attention window: not measured, two einsums give rows outside of the axis a weight".to_owned());
    }
}

/// One group with its data.
struct Bench<'a> {
    options: &'a Options,
    opened: &'a Opened,
    interpreter: Option<&'a dyn Interpreter>,
    pool: &'a rayon::ThreadPool,
    rows: &'a Rows,
    lists: &'a Lists,
    group: &'a Group,
    progress: &'a Progress,
}

/// What our engine did on one case.
struct Ours<'a> {
    case: Case,
    looked: &'a Looked<'a>,
    call: Call<'a>,
    seconds: Vec<f64>,
    compared: Compared,
    peak_bytes: Option<usize>,
}

impl Bench<'_> {
    fn run(&self, mut rivals: Option<&mut Rivals<'_>>, report: &mut BenchReport) -> Result<(), Failure> {
        let Group { op, k, cases } = self.group;
        let copies = rivals.as_ref().is_some_and(|rivals| rivals.copies());
        let fitting: Vec<Case> =
            cases.iter().copied().filter(|&case| self.takes_part(case, copies, &mut report.notes)).collect();
        self.progress.advance((cases.len() - fitting.len()) as u64);
        let looked = fitting.iter().map(|&case| Looked::new(*op, case, self.rows, self.lists));
        let looked = looked.collect::<Result<Vec<_>, Error>>()?;
        let equations: Vec<Equations> = looked.iter().map(Equations::new).collect();
        let mut ours = Vec::new();
        for ((&case, looked), equations) in fitting.iter().zip(&looked).zip(&equations) {
            self.progress.message(&format!("{op} {case} k={k}: comparing"));
            ours.push(self.check(case, looked, equations)?);
            self.go_on()?;
        }
        // Cases take turns.
        let whole = self.turn();
        let turn = match rivals {
            Some(_) => Turn { repeats: whole.repeats.div_ceil(2), budget: whole.budget / 2 },
            None => whole,
        };
        for _ in 0..ROUNDS {
            for one in &mut ours {
                self.progress.message(&format!("{op} {} k={k}", one.case));
                one.seconds.extend(one.call.time(turn)?);
                self.go_on()?;
            }
        }
        for mut one in ours {
            let mut peers = Vec::new();
            if let Some(rivals) = &mut rivals {
                peers = self.beside(&mut one, rivals, turn, &mut report.notes)?;
            }
            report.rows.push(self.our_row(&one));
            report.rows.extend(peers);
            self.progress.advance(1);
        }
        Ok(())
    }

    /// Fails where the user wants the run to end.
    fn go_on(&self) -> Result<(), Failure> {
        match self.interpreter {
            Some(interpreter) if interpreter.interrupted() => Err(Failure::internal("interrupted")),
            _ => Ok(()),
        }
    }

    /// What one engine may take of one round.
    fn turn(&self) -> Turn {
        Turn { repeats: self.options.repeats.div_ceil(ROUNDS as usize), budget: self.options.budget / ROUNDS }
    }

    /// Whether a case is measured; why not goes to the notes.
    fn takes_part(&self, case: Case, copies: bool, notes: &mut Vec<String>) -> bool {
        let Group { op, k, .. } = self.group;
        if case == Case::Window {
            return *op != Op::Attention;
        }
        if case != Case::SeparateStored {
            return true;
        }
        // Peers may hold a copy of their own.
        let need = stored_bytes(self.lists.sizes, *op, self.options.dtype) * if copies { 2 } else { 1 };
        let limit = host::available_bytes().map_or(u64::MAX, |bytes| bytes / 3);
        if need > limit {
            let (need, limit) = (units::bytes(need as f64), units::bytes(limit as f64));
            notes.push(format!(
                "{op} {case}, k={k}: skipped, it takes {need} and a third of the free memory is {limit}"
            ));
        }
        need <= limit
    }

    /// Plans a case, compares a sample of its result, and counts the memory that a call takes.
    fn check<'b>(&'b self, case: Case, looked: &'b Looked<'b>, equations: &'b Equations) -> Result<Ours<'b>, Error> {
        let op = self.group.op;
        let call = Call::new(op, looked, equations, self.opened, self.pool, self.lists.sizes.d)?;
        let oracle = self.oracle(case, self.options.dtype.accumulator());
        let compared = oracle.check(&call.run()?);
        // What is counted is the host's memory.
        let peak_bytes = match self.opened.gpu() {
            Some(_) => None,
            None => {
                let (result, peak_bytes) = peak_during(|| call.run());
                drop(result?);
                peak_bytes
            }
        };
        Ok(Ours { case, looked, call, seconds: Vec::new(), compared, peak_bytes })
    }

    fn oracle(&self, case: Case, sums_in: einfall::DType) -> Oracle<'_> {
        Oracle { op: self.group.op, case, rows: self.rows, lists: self.lists, sums_in }
    }

    /// Times peers on a case, in turns with our own call.
    fn beside(
        &self,
        ours: &mut Ours<'_>,
        rivals: &mut Rivals<'_>,
        our_turn: Turn,
        notes: &mut Vec<String>,
    ) -> Result<Vec<BenchRow>, Failure> {
        let Group { op, k, .. } = *self.group;
        let case = ours.case;
        if case == Case::Window {
            return Ok(Vec::new());
        }
        self.progress.message(&format!("{op} {case} k={k}: peers read the data"));
        let question = Question::Keys { op, case, sizes: self.lists.sizes };
        let dtypes = (self.options.dtype, self.options.table_dtype);
        let about = |name: &str| format!("{name}, {op} {case}, k={k}");
        let names = rivals.offer(question, dtypes, ours.looked.lent(op), &about, notes);
        let oracle = self.oracle(case, self.options.dtype);
        let begins = |name: &str| {
            self.progress.message(&format!("{op} {case} k={k}: {name}"));
            self.go_on()
        };
        let mut again = || {
            ours.seconds.extend(ours.call.time(our_turn)?);
            Ok(())
        };
        let runs = rivals.turns(&names, self.turn(), &mut again, &begins, &about, notes)?;
        let rows = runs.into_iter().map(|run| {
            let mut compared = oracle.compare(&run.first.positions, &run.first.sample);
            compared.ok &= run.first.shape == oracle.shape() && run.first.positions.len() >= oracle.positions().len();
            let measured = Measured { compile_s: run.first.compile_s, ..self.measured(case, &run.name) };
            self.row(case, measured.compared(&compared).timed(run.seconds))
        });
        Ok(rows.collect())
    }

    fn our_row(&self, ours: &Ours<'_>) -> BenchRow {
        let engine = if self.group.op == Op::Attention { EINFALL_COMPOSED } else { EINFALL };
        let measured = self.measured(ours.case, engine).compared(&ours.compared).timed(ours.seconds.clone());
        let (way, peak_bytes) = (Some(ours.call.way()), ours.peak_bytes.map(|bytes| bytes as u64));
        self.row(ours.case, Measured { way, peak_bytes, ..measured })
    }

    /// The work of a case, for an engine.
    fn measured(&self, case: Case, engine: &str) -> Measured {
        let (op, sizes): (Op, Sizes) = (self.group.op, self.lists.sizes);
        let machine = self.opened.device().machine();
        let (flops, bytes) = (sizes.flops(op), distinct_bytes(sizes, op, case, self.options));
        Measured::new(engine, self.options.dtype, self.options.device.to_string(), flops, bytes, machine)
    }

    fn row(&self, case: Case, measured: Measured) -> BenchRow {
        let sizes = self.lists.sizes;
        BenchRow { case, op: self.group.op, k: sizes.k, sizes, measured }
    }
}
