//! `einfall bench dense` and `einfall bench lookups`: every contraction of a suite beside its peers and its floor.
//!
//! In: the command line. Out: a table and a summary on the terminal (or the JSON document), and the same as files, of which the
//! document is kept up to date meanwhile. Each result is compared with plain loops; a wrong one of ours, or one that there is not, fails the run after everything is
//! written.

mod attention;
mod call;
mod cases;
mod data;
mod options;
mod oracle;
mod page;
mod problem;
mod random;
pub mod record;
mod run;
mod summary;
mod table;

use std::io::Write;

use einfall::DType;

use super::record::Run;
use super::{place, table as rows, units, write};
use crate::Surroundings;
use crate::arguments::SuiteArgs;
use crate::failure::Failure;
use crate::{host, interrupt};
use options::Options;
use record::{Problem, Suite, SuiteReport};

/// Runs a suite, and writes what it found to `out` and to files.
///
/// # Errors
/// [`Failure`]: what was asked for makes no sense, files cannot be written, or a result of ours is wrong.
pub fn run(
    suite: Suite,
    args: &SuiteArgs,
    surroundings: &Surroundings<'_>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    interrupt::watch();
    let options = Options::new(suite, args)?;
    if args.list {
        table::write_list(out, &options.problems)?;
        return Ok(out.flush()?);
    }
    let (json, html) = (format!("{}.json", suite.name()), format!("{}.html", suite.name()));
    let folder = write::Folder::open(&args.out)?;
    folder.refuse_to_replace(&[&json, &html], args.force)?;
    // A run takes long: what an interruption cuts off is only what comes after it.
    let keep = |report: &SuiteReport| folder.write(&[(json.clone(), report.to_json())]).map(drop);
    let report = measured(&options, args, surroundings, &keep)?;
    let written = folder.write(&[(json, report.to_json()), (html, page::page(&report))])?;
    if args.json {
        out.write_all(report.to_json().as_bytes())?;
    } else {
        write_text(out, &report)?;
        writeln!(out, "{written}")?;
    }
    out.flush()?;
    check_results(&report)
}

/// Runs a suite, and writes no files.
///
/// # Errors
/// As [`run`].
pub fn measure(suite: Suite, args: &SuiteArgs, surroundings: &Surroundings<'_>) -> Result<SuiteReport, Failure> {
    let report = measured(&Options::new(suite, args)?, args, surroundings, &|_| Ok(()))?;
    check_results(&report)?;
    Ok(report)
}

/// Writes a report as text for a terminal, its summary last.
///
/// # Errors
/// What `out` says.
pub fn write_text(out: &mut dyn Write, report: &SuiteReport) -> std::io::Result<()> {
    table::write(out, report)?;
    writeln!(out)?;
    summary::lines(report).iter().try_for_each(|line| writeln!(out, "{line}"))
}

/// Every row as cells of a table, its case first; the titles are those of [`rows`](super::table::HEADER).
#[must_use]
pub fn lines(report: &SuiteReport) -> Vec<(String, [String; 8])> {
    let of_problem = |problem: Problem<'_>| {
        let rows = [problem.ours].into_iter().chain(problem.peers.iter().copied());
        rows.map(|row| (problem.title(true), rows::cells(row, Some(problem.ours.min_s)))).collect::<Vec<_>>()
    };
    report.problems().into_iter().flat_map(of_problem).collect()
}

/// The ratios to the fastest peers as an SVG; none without peers.
#[must_use]
pub fn picture(report: &SuiteReport) -> Option<String> {
    page::ratios(report)
}

fn measured(
    options: &Options,
    args: &SuiteArgs,
    surroundings: &Surroundings<'_>,
    keep: &dyn Fn(&SuiteReport) -> Result<(), Failure>,
) -> Result<SuiteReport, Failure> {
    let opened = place::open_measured(&place::Wanted {
        device: options.device,
        threads: args.threads,
        machine: args.machine.as_deref(),
        quick: args.quick,
        quiet: args.json,
    })?;
    let machine = opened.device().machine();
    let dtypes: Vec<&str> = options.dtypes().into_iter().map(DType::name).collect();
    let settings = Run::new(machine.threads, &dtypes.join(","), options.table_dtype.name(), surroundings.words);
    let mut report = SuiteReport::new(options.suite, place::about(machine, DType::F32), settings);
    report.notes.push(
        "a call returns new memory each time; plans are made once, peers are warmed up; engines take turns".to_owned(),
    );
    if opened.gpu().is_some() {
        report.notes[0] = "CUDA graph replays; the same inputs each time; engines take turns".to_owned();
    }
    if !machine.measured {
        report.notes.push("the rates of this machine are estimates".to_owned());
    }
    run::measure(args, options, &opened, surroundings.interpreter, &mut report, keep)?;
    let (load, cores) = (host::load().unwrap_or(0.0), report.machine.cores as f64);
    if cores > 0.0 && load > cores + 1.0 {
        report.notes.push(format!(
            "other programs were running: {} wanted the {cores} cores in the last minutes; times are uncertain",
            units::digits(load)
        ));
    }
    Ok(report)
}

/// Fails where a result of ours is wrong, or where there is none.
fn check_results(report: &SuiteReport) -> Result<(), Failure> {
    let wrong = report.problems().into_iter().filter(|problem| !problem.ours.ok).map(|problem| problem.title(true));
    let failed = report.skipped.iter().filter(|skipped| skipped.failed).map(|skipped| skipped.name.clone());
    let (wrong, failed): (Vec<String>, Vec<String>) = (wrong.collect(), failed.collect());
    if !wrong.is_empty() {
        return Err(Failure::internal(format!("einfall's result is wrong: {}", wrong.join(", "))));
    }
    if !failed.is_empty() {
        return Err(Failure::internal(format!("einfall failed: {}", failed.join(", "))));
    }
    Ok(())
}
