//! `einfall bench keys`: each query attends to k keys of its own; how does time grow with k, and on what does it depend?
//!
//! In: the command line. Out: tables and a summary on the terminal (or the JSON document), `keys.json`, `keys.html` and an SVG an
//! operation. Each result is compared with plain loops; a wrong one of ours fails the run after everything is written.

mod data;
mod options;
mod oracle;
mod ours;
mod run;
mod softmax;

use std::io::Write;

use super::record::{BenchReport, Run, Settings};
use super::{chart, place, summary, table, units, write};
use crate::Surroundings;
use crate::arguments::KeysArgs;
use crate::failure::Failure;
use crate::{host, interrupt};
use options::Options;

/// Runs the experiment, and writes what it found to `out` and to files.
///
/// # Errors
/// [`Failure`]: what was asked for makes no sense, files cannot be written, or a result of ours is wrong.
pub fn run(args: &KeysArgs, surroundings: &Surroundings<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    interrupt::watch();
    let options = Options::new(args)?;
    check_memory(&options)?;
    let folder = write::Folder::open(&args.out)?;
    let report = measured(args, &options, surroundings)?;
    let written = folder.write(&files(&report))?;
    if args.json {
        out.write_all(report.to_json().as_bytes())?;
    } else {
        table::write(out, &report)?;
        writeln!(out)?;
        for line in summary::lines(&report) {
            writeln!(out, "{line}")?;
        }
        writeln!(out, "{written}")?;
    }
    out.flush()?;
    check_results(&report)
}

/// Runs the experiment, and writes no files.
///
/// # Errors
/// As [`run`].
pub fn measure(args: &KeysArgs, surroundings: &Surroundings<'_>) -> Result<BenchReport, Failure> {
    let options = Options::new(args)?;
    check_memory(&options)?;
    let report = measured(args, &options, surroundings)?;
    check_results(&report)?;
    Ok(report)
}

fn measured(args: &KeysArgs, options: &Options, surroundings: &Surroundings<'_>) -> Result<BenchReport, Failure> {
    let opened = place::open_measured(&place::Wanted {
        device: options.device,
        threads: args.threads,
        machine: args.machine.as_deref(),
        quick: args.quick,
        quiet: args.json,
    })?;
    let machine = opened.device().machine();
    let mut report = BenchReport {
        machine: place::about(machine, options.dtype),
        settings: Settings {
            run: Run::new(machine.threads, options.dtype.name(), options.table_dtype.name(), surroundings.words),
            sizes: options.sizes,
        },
        ..BenchReport::default()
    };
    run::measure(args, options, &opened, surroundings.interpreter, &mut report)?;
    Ok(report)
}

/// Fails where a result of ours is wrong.
fn check_results(report: &BenchReport) -> Result<(), Failure> {
    let wrong: Vec<String> = report
        .rows
        .iter()
        .filter(|row| row.is_ours() && !row.ok)
        .map(|row| format!("{} {} k={}", row.op, row.case, row.k))
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Failure::internal(format!("einfall's result is wrong: {}", wrong.join(", "))))
}

/// Refuses data that there is no room for, which would end the process.
fn check_memory(options: &Options) -> Result<(), Failure> {
    let needed = options.data_bytes();
    let Some(free) = host::available_bytes().map(|bytes| bytes as f64).filter(|free| needed > *free) else {
        return Ok(());
    };
    let (needed, free) = (units::bytes(needed), units::bytes(free));
    Err(Failure::bad_input(format!("{} takes {needed} of memory and {free} are free", options.sizes)))
}

/// The document, the page and the pictures.
fn files(report: &BenchReport) -> Vec<(String, String)> {
    let pictures = report.ops().into_iter().map(|op| (format!("keys-{op}.svg"), chart::svg(report, op)));
    let document = [("keys.json".to_owned(), report.to_json()), ("keys.html".to_owned(), chart::html(report))];
    document.into_iter().chain(pictures).collect()
}
