//! The measuring itself: engines take turns on a problem, and cases take turns for each k.

use std::time::Duration;

use einfall::{Error, Machine};

use super::data::{Lists, Looked, Rows, distinct_bytes, stored_bytes};
use super::options::{Group, Options};
use super::oracle::{Compared, Oracle};
use super::ours::{Call, Equations};
use super::rivals::Rivals;
use crate::arguments::KeysArgs;
use crate::bench::peers::Interpreter;
use crate::bench::record::{BenchReport, BenchRow, Case, EINFALL, EINFALL_COMPOSED, FloorKind, Op, Sizes};
use crate::bench::units;
use crate::counting::peak_during;
use crate::failure::Failure;
use crate::host::{self, Opened};
use crate::progress::Progress;

/// Turns that each engine takes on a problem.
const ROUNDS: u32 = 4;

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
        Rivals::start(args.python.as_deref(), interpreter, options.device, threads, &rows, report)?
    } else {
        None
    };
    general_notes(options, machine, report);

    progress.start_clock();
    for group in &groups {
        let lists = Lists::new(options, group.k)?;
        if let Some(rivals) = &mut rivals {
            rivals.lists(&lists)?;
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
        let (repeats, budget) = (self.share_of_repeats(), self.options.budget / ROUNDS);
        let (repeats, budget) = if rivals.is_some() { (repeats.div_ceil(2), budget / 2) } else { (repeats, budget) };
        for _ in 0..ROUNDS {
            for one in &mut ours {
                self.progress.message(&format!("{op} {} k={k}", one.case));
                one.seconds.extend(one.call.time(repeats, budget)?);
                self.go_on()?;
            }
        }
        for mut one in ours {
            let mut peers = Vec::new();
            if let Some(rivals) = &mut rivals {
                peers = self.beside(&mut one, rivals, (repeats, budget), &mut report.notes)?;
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

    fn share_of_repeats(&self) -> usize {
        self.options.repeats.div_ceil(ROUNDS as usize)
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
        (repeats, budget): (usize, Duration),
        notes: &mut Vec<String>,
    ) -> Result<Vec<BenchRow>, Failure> {
        let Group { op, k, .. } = self.group;
        let case = ours.case;
        self.progress.message(&format!("{op} {case} k={k}: peers read the data"));
        let names = rivals.offer(*op, case, self.lists, ours.looked, self.options.table_dtype.name(), notes);
        let oracle = self.oracle(case, self.options.dtype);
        let mut rows: Vec<BenchRow> = Vec::new();
        let mut samples: Vec<Vec<f64>> = Vec::new();
        let mut out: Vec<&str> = Vec::new();
        for _ in 0..ROUNDS {
            ours.seconds.extend(ours.call.time(repeats, budget)?);
            for name in &names {
                if out.contains(&name.as_str()) {
                    continue;
                }
                self.go_on()?;
                self.progress.message(&format!("{op} {case} k={k}: {name}"));
                let times = match rivals.time(name, self.share_of_repeats(), self.options.budget / ROUNDS) {
                    Ok(times) => times,
                    Err(why) => {
                        notes.push(format!("{name}, {op} {case}, k={k}: {why}"));
                        out.push(name);
                        continue;
                    }
                };
                if let Some(at) = rows.iter().position(|row| row.engine == *name) {
                    samples[at].extend(times.seconds);
                    continue;
                }
                let mut compared = oracle.compare(&times.positions, &times.sample);
                compared.ok &= times.shape == oracle.shape() && times.positions.len() >= oracle.positions().len();
                let row = self.row(case, name, &compared);
                rows.push(BenchRow { compile_s: times.compile_s, ..row });
                samples.push(times.seconds);
            }
        }
        Ok(rows.into_iter().zip(samples).map(|(row, seconds)| with_times(row, seconds)).collect())
    }

    fn our_row(&self, ours: &Ours<'_>) -> BenchRow {
        let engine = if self.group.op == Op::Attention { EINFALL_COMPOSED } else { EINFALL };
        let row = self.row(ours.case, engine, &ours.compared);
        let row = BenchRow { way: Some(ours.call.way()), peak_bytes: ours.peak_bytes.map(|bytes| bytes as u64), ..row };
        with_times(row, ours.seconds.clone())
    }

    /// A row without times.
    fn row(&self, case: Case, engine: &str, compared: &Compared) -> BenchRow {
        let (op, sizes): (Op, Sizes) = (self.group.op, self.lists.sizes);
        let machine = self.opened.device().machine();
        let (flops, bytes) = (sizes.flops(op), distinct_bytes(sizes, op, case, self.options));
        let memory = bytes as f64 / machine.bytes_per_second_within(bytes as f64);
        let compute = flops as f64 / machine.flops_per_second(self.options.dtype);
        BenchRow {
            case,
            op,
            k: sizes.k,
            engine: engine.to_owned(),
            dtype: self.options.dtype.name().to_owned(),
            device: self.options.device.to_string(),
            threads: machine.threads,
            sizes,
            min_s: 0.0,
            median_s: 0.0,
            repeats: 0,
            flops,
            bytes_distinct: bytes,
            floor_s: Some(memory.max(compute)),
            floor_kind: Some(if memory > compute { FloorKind::Memory } else { FloorKind::Compute }),
            way: None,
            peak_bytes: None,
            compile_s: None,
            max_error: Some(compared.max_error).filter(|error| error.is_finite()),
            tolerance: Some(compared.tolerance),
            ok: compared.ok,
        }
    }
}

fn with_times(row: BenchRow, mut seconds: Vec<f64>) -> BenchRow {
    seconds.sort_by(f64::total_cmp);
    let middle = seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN);
    let least = seconds.first().copied().unwrap_or(f64::NAN);
    BenchRow { min_s: least, median_s: middle, repeats: seconds.len(), ..row }
}
