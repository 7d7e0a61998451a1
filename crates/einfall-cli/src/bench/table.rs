//! A report as text for a terminal of 100 columns, understandable without colour.
//!
//! In: a [`BenchReport`]. Out: for each operation and case a heading, for each k a line with the amount of work and the
//! floor, and below it the engines, fastest first.
//!
//! ```
//! use einfall_cli::bench::{record::BenchReport, table};
//!
//! let mut text = Vec::new();
//! table::write(&mut text, &BenchReport::default())?;
//! assert!(String::from_utf8_lossy(&text).contains("nothing was measured"));
//! # Ok::<(), std::io::Error>(())
//! ```

use std::io::{self, Write};
use std::ops::Deref;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width};

use super::record::{BenchReport, BenchRow, Case, Machine, Measured, Op, Run};
use super::units;

/// Width of each column with its padding, 100 together: the same for every table, so that they read as one.
const WIDTHS: [u16; 8] = [24, 10, 10, 9, 8, 10, 11, 18];

/// Writes the whole report: machine, tables, notes.
///
/// # Errors
/// What `out` says.
pub fn write(out: &mut dyn Write, report: &BenchReport) -> io::Result<()> {
    for line in facts(report) {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "{LEGEND}")?;
    if report.rows.is_empty() {
        writeln!(out, "\nnothing was measured")?;
    }
    let mut heading = None;
    for (op, case, k) in report.problems() {
        if heading != Some((op, case)) {
            heading = Some((op, case));
            write_heading(out, op, case)?;
            write_rows(out, &[HEADER.map(str::to_owned)])?;
        }
        write_problem(out, &report.problem(op, case, k))?;
    }
    write_notes(out, &report.notes)
}

pub(super) fn write_notes(out: &mut dyn Write, notes: &[String]) -> io::Result<()> {
    if !notes.is_empty() {
        writeln!(out, "\nNotes")?;
    }
    notes.iter().try_for_each(|note| writeln!(out, "  {note}"))
}

/// The machine and the settings, one fact a line.
#[must_use]
pub fn facts(report: &BenchReport) -> Vec<String> {
    facts_of(report.caption(), &report.machine, &report.settings.run)
}

/// The same of any run, its caption first.
pub(super) fn facts_of(caption: String, machine: &Machine, run: &Run) -> Vec<String> {
    let mut lines = vec![caption];
    let mut limits = Vec::new();
    if let Some(speed) = machine.read_bytes_per_s {
        limits.push(format!("reads memory at {} GB/s", units::digits(speed / 1e9)));
    }
    if let Some(speed) = machine.flops_per_s {
        limits.push(format!("computes {} GFLOP/s", units::digits(speed / 1e9)));
    }
    if machine.cores > 0 {
        limits.push(format!("{} cores", machine.cores));
    }
    if !machine.isa.is_empty() {
        limits.push(machine.isa.clone());
    }
    if !limits.is_empty() {
        lines.push(format!("This machine: {}", limits.join(", ")));
    }
    if !run.peers.is_empty() {
        let peers: Vec<_> = run.peers.iter().map(|(name, version)| format!("{name} {version}")).collect();
        lines.push(format!("Peers: {}", peers.join(", ")));
    }
    lines
}

fn write_heading(out: &mut dyn Write, op: Op, case: Case) -> io::Result<()> {
    let text = format!("{op} / {case}: {}", case.title());
    writeln!(out, "\n{text}\n{}", "=".repeat(text.chars().count()))
}

/// What is the same for every engine of a problem: the work, the bytes, the floor; and the memory that einfall takes.
#[must_use]
pub fn work<R: Deref<Target = Measured>>(rows: &[&R]) -> String {
    let Some(row) = rows.first() else { return String::new() };
    let mut text = format!("{}, {} distinct", units::flop(row.flops as f64), units::bytes(row.bytes_distinct as f64));
    if let Some(floor) = row.floor_s {
        let kind = row.floor_kind.map_or(String::new(), |kind| format!(" ({})", kind.name()));
        text += &format!(", floor {}{kind}", units::seconds(floor));
    }
    if let Some(peak) = rows.iter().find_map(|row| row.peak_bytes) {
        text += &format!("; einfall takes {}", units::bytes(peak as f64));
    }
    text
}

fn write_problem(out: &mut dyn Write, rows: &[&BenchRow]) -> io::Result<()> {
    let Some(first) = rows.first() else {
        return Ok(());
    };
    writeln!(out, "\nk={}  {}", first.k, work(rows))?;
    let ours = rows.iter().find(|row| row.is_ours()).map(|row| row.min_s);
    let cells: Vec<_> = rows.iter().map(|row| cells(row, ours)).collect();
    write_rows(out, &cells)?;
    for row in rows.iter().filter(|row| !row.ok) {
        writeln!(out, " {} is WRONG: {}", row.engine, wrong(row))?;
    }
    Ok(())
}

pub(super) fn wrong(row: &Measured) -> String {
    match (row.max_error, row.tolerance) {
        (Some(error), Some(tolerance)) => {
            format!("off by {error:.1e}, allowed are {tolerance:.1e}")
        }
        _ => "its result is not the reference's".to_owned(),
    }
}

fn write_rows(out: &mut dyn Write, rows: &[[String; 8]]) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTHS.iter().sum());
    table.add_rows(rows);
    table.set_constraints(WIDTHS.map(|width| ColumnConstraint::Absolute(Width::Fixed(width))));
    for column in table.column_iter_mut().skip(1).take(6) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.lines().try_for_each(|line| writeln!(out, "{}", line.trim_end()))
}

/// How to read the columns.
pub const LEGEND: &str = "Time: shortest call. GFLOP/s: a multiply-add is two. GB/s: distinct bytes, counted once.";

/// Titles of [`cells`].
pub const HEADER: [&str; 8] = ["engine", "time", "median", "GFLOP/s", "GB/s", "of floor", "× einfall", "way, remarks"];

/// A row in words: engine, shortest and median time, rates, share of the floor, ratio to einfall's time, remarks.
#[must_use]
pub fn cells(row: &Measured, ours: Option<f64>) -> [String; 8] {
    let none = || "–".to_owned();
    [
        row.engine.clone(),
        units::seconds(row.min_s),
        units::seconds(row.median_s),
        units::digits(row.gflops()),
        units::digits(row.gbytes_per_s()),
        row.share_of_floor().map_or_else(none, |share| format!("{} %", units::digits(share * 100.0))),
        ours.map_or_else(none, |ours| units::digits(row.min_s / ours)),
        remarks(row),
    ]
}

pub(super) fn remarks(row: &Measured) -> String {
    let mut parts = Vec::new();
    if !row.ok {
        parts.push("WRONG".to_owned());
    }
    parts.extend(row.way.clone());
    if let Some(compile) = row.compile_s {
        parts.push(format!("compiles {}", units::seconds(compile)));
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fixture;

    fn text(report: &BenchReport) -> String {
        let mut out = Vec::new();
        write(&mut out, report).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn says_what_was_computed_and_fits_into_100_columns() {
        let text = text(&fixture::report());
        if let Some(folder) = fixture::drawings() {
            std::fs::write(folder.join("table.txt"), &text).unwrap();
        }
        for wanted in [
            "scores / separate-lookup: separate keys, looked up",
            "k=100  51.2 MFLOP, 103 MB distinct, floor 3.83 ms (memory); einfall takes 3.20 MB",
            "AMD EPYC 7763 64-Core Processor, 2 threads, f32, b=8 h=1 q=1000 n=1000 d=32",
            "torch 2.11.0",
            "skipped, it needs 2.05 GB",
            "dense and select",
            "compiles 11.4 s",
        ] {
            assert!(text.contains(wanted), "{wanted:?} in\n{text}");
        }
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{} columns: {line}", line.chars().count());
        }
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn rows_stand_fastest_first_with_the_ratio_to_ours() {
        let report = fixture::report();
        let rows = report.problem(Op::Scores, Case::SeparateLookup, 100);
        assert_eq!(rows[0].engine, "einfall");
        assert!(rows.is_sorted_by(|a, b| a.min_s <= b.min_s));
        let einsum = rows.iter().find(|row| row.engine == "torch.einsum").unwrap();
        assert_eq!(cells(einsum, Some(rows[0].min_s))[6], "62.5");
        assert_eq!(cells(einsum, None)[6], "–");
    }

    #[test]
    fn a_wrong_result_is_said_in_words() {
        let mut report = fixture::report();
        report.rows[0].ok = false;
        assert!(text(&report).contains(" einfall is WRONG: off by 3.8e-6, allowed are 2.1e-5"));
    }
}
