//! A suite's report as text for a terminal of 100 columns, understandable without colour: a line a case.

use std::collections::BTreeSet;
use std::io::{self, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width};

use super::problem::Problem as Asked;
use super::record::{Problem, SuiteReport, SuiteRow};
use crate::bench::record::Measured;
use crate::bench::{table, units};

/// Widths of the columns with their padding: case, time, share of the floor, prediction; then one for each peer.
const WIDTHS: [u16; 4] = [25, 9, 8, 10];
const PEER: u16 = 10;
/// What is left for the way where there are no peers.
const WAY: u16 = 40;

/// How to read the columns.
pub(super) const LEGEND: &str = "\
Time: einfall's shortest call. Of floor: least possible time over that. Predicted: the plan's time
over that. Below a peer: how many times as long it takes; above 1 einfall is faster. In
parentheses: it solves another problem.";

/// Writes the whole report but for the summary.
pub(super) fn write(out: &mut dyn Write, report: &SuiteReport) -> io::Result<()> {
    for line in table::facts_of(report.caption(), &report.machine, &report.settings) {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "{LEGEND}")?;
    if report.rows.is_empty() {
        writeln!(out, "\nnothing was measured")?;
    }
    for (section, problems) in sections(report) {
        writeln!(out, "\n{section}\n{}", "=".repeat(section.chars().count()))?;
        write_section(out, report, &problems)?;
        for problem in &problems {
            for row in [problem.ours].into_iter().chain(problem.peers.iter().copied()).filter(|row| !row.ok) {
                let title = problem.title(report.several_dtypes());
                writeln!(out, " {}, {title} is WRONG: {}", row.engine, table::wrong(row))?;
            }
        }
    }
    if !report.skipped.is_empty() {
        writeln!(out, "\nNot run")?;
    }
    for skipped in &report.skipped {
        writeln!(out, "  {}: {}", skipped.name, skipped.why.replace('\n', "; "))?;
    }
    table::write_notes(out, &report.notes)
}

/// Problems by section, in the order of the suite.
pub(super) fn sections(report: &SuiteReport) -> Vec<(String, Vec<Problem<'_>>)> {
    let mut sections: Vec<(String, Vec<Problem<'_>>)> = Vec::new();
    for problem in report.problems() {
        match sections.iter_mut().find(|(name, _)| *name == problem.ours.section) {
            Some((_, problems)) => problems.push(problem),
            None => sections.push((problem.ours.section.clone(), vec![problem])),
        }
    }
    sections
}

/// The peers that some problems have, in the order in which they first appear in the report.
pub(super) fn engines<'a>(report: &'a SuiteReport, problems: &[Problem<'_>]) -> Vec<&'a str> {
    let here: BTreeSet<&str> =
        problems.iter().flat_map(|problem| &problem.peers).map(|row| row.engine.as_str()).collect();
    let mut engines: Vec<&str> = Vec::new();
    for row in &report.rows {
        if here.contains(row.engine.as_str()) && !engines.contains(&row.engine.as_str()) {
            engines.push(&row.engine);
        }
    }
    engines
}

/// A problem in words: its name, our time, the share of the floor, the prediction, and each engine's ratio.
pub(super) fn cells(problem: &Problem<'_>, engines: &[&str], with_dtype: bool) -> Vec<String> {
    let ours = problem.ours;
    let none = || "–".to_owned();
    let mut cells = vec![
        problem.title(with_dtype),
        units::seconds(ours.min_s),
        ours.share_of_floor().map_or_else(none, |share| format!("{} %", units::digits(share * 100.0))),
        ours.predicted_s.map_or_else(none, |seconds| units::digits(seconds / ours.min_s)),
    ];
    cells.extend(engines.iter().map(|engine| {
        let row = problem.peers.iter().find(|row| row.engine == **engine);
        row.map_or_else(none, |row| ratio(row, ours))
    }));
    cells
}

fn ratio(row: &SuiteRow, ours: &Measured) -> String {
    let ratio = units::digits(row.min_s / ours.min_s);
    match row {
        row if row.other => format!("({ratio})"),
        row if row.ok => ratio,
        _ => "WRONG".to_owned(),
    }
}

/// The titles of [`cells`].
pub(super) fn header(engines: &[&str]) -> Vec<String> {
    let titles = ["case", "time", "of floor", "predicted"].into_iter().map(str::to_owned);
    titles.chain(engines.iter().map(|engine| in_words(engine))).collect()
}

/// An engine's name with spaces wherever a line may end.
fn in_words(engine: &str) -> String {
    let mut words = String::new();
    let mut before = ' ';
    for letter in engine.chars() {
        if letter.is_uppercase() && before.is_lowercase() {
            words.push(' ');
        }
        words.push(if matches!(letter, '.' | '_') { ' ' } else { letter });
        before = letter;
    }
    words
}

fn write_section(out: &mut dyn Write, report: &SuiteReport, problems: &[Problem<'_>]) -> io::Result<()> {
    let engines = engines(report, problems);
    let mut widths = WIDTHS.to_vec();
    widths.extend(engines.iter().map(|_| PEER));
    let (mut titles, alone) = (header(&engines), engines.is_empty());
    if alone {
        titles.push("way".to_owned());
        widths.push(WAY);
    }
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(widths.iter().sum());
    table.add_row(titles);
    for problem in problems {
        let mut cells = cells(problem, &engines, report.several_dtypes());
        if alone {
            cells.push(table::remarks(problem.ours));
        }
        table.add_row(cells);
    }
    table.set_constraints(widths.iter().map(|&width| ColumnConstraint::Absolute(Width::Fixed(width))));
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((u16::from(at > 0), 0));
        if at > 0 && !(alone && at == WIDTHS.len()) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().try_for_each(|line| writeln!(out, " {}", line.trim_end()))
}

/// Writes the names of cases, what each computes, and its lengths.
pub(super) fn write_list(out: &mut dyn Write, problems: &[Asked]) -> io::Result<()> {
    let mut section = "";
    for problem in problems {
        if problem.section != section {
            section = &problem.section;
            writeln!(out, "{section}")?;
        }
        let sizes: Vec<String> = problem.sizes.iter().map(|(name, len)| format!("{name}={len}")).collect();
        writeln!(out, "  {:<24} {}   {}", problem.title(), problem.equation, sizes.join(" "))?;
    }
    Ok(())
}
