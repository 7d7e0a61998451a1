//! A suite's report as an HTML page: facts, summary, how each case compares with its fastest peer, and all figures.

use std::fmt::Write;

use super::record::{Problem, SuiteReport};
use super::{summary, table};
use crate::bench::chart::{self, escape};
use crate::bench::table as rows;
use crate::bench::units;

/// Draws the page.
pub(super) fn page(report: &SuiteReport) -> String {
    let title = format!("einfall: the suite {}", report.suite.name());
    let mut body = format!("<h1>{}</h1>\n<ul class=\"facts\">", escape(&title));
    for fact in rows::facts_of(report.caption(), &report.machine, &report.settings) {
        let _ = write!(body, "<li>{}</li>", escape(&fact));
    }
    if !report.settings.command.is_empty() {
        let _ = write!(body, "<li>Again: <code>{}</code></li>", escape(&report.settings.command));
    }
    let _ = writeln!(
        body,
        "</ul>\n<p>{}</p>\n<pre>{}</pre>",
        escape(table::LEGEND),
        escape(&summary::lines(report).join("\n"))
    );
    if let Some(picture) = ratios(report) {
        let _ = writeln!(body, "<h2>The fastest peer's time over einfall's</h2>\n<figure>{picture}</figure>");
    }
    for (section, problems) in table::sections(report) {
        let engines = table::engines(report, &problems);
        let _ = write!(body, "<h2>{}</h2>\n<div class=\"wide\"><table><thead><tr>", escape(&section));
        for title in table::header(&engines) {
            let _ = write!(body, "<th>{}</th>", escape(&title));
        }
        body.push_str("</tr></thead>\n<tbody>");
        for problem in &problems {
            body.push_str("<tr>");
            for cell in table::cells(problem, &engines, report.several_dtypes()) {
                let _ = write!(body, "<td>{}</td>", escape(&cell));
            }
            body.push_str("</tr>\n");
        }
        body.push_str("</tbody></table></div>\n");
        figures(&mut body, &problems);
    }
    let skipped = report.skipped.iter().map(|skipped| format!("{}: not run, {}", skipped.name, skipped.why));
    let notes: Vec<String> = skipped.chain(report.notes.iter().cloned()).collect();
    if !notes.is_empty() {
        body += "<h2>Notes</h2>\n<ul>";
        for note in notes {
            let _ = write!(body, "<li>{}</li>", escape(&note));
        }
        body += "</ul>\n";
    }
    chart::document(&title, &body)
}

/// How each case compares with its fastest peer, the worst first; none without peers.
pub(super) fn ratios(report: &SuiteReport) -> Option<String> {
    let ratio = |problem: &Problem<'_>| Some((problem.title(report.several_dtypes()), problem.ratio()?));
    let mut ratios: Vec<(String, f64)> = report.problems().iter().filter_map(ratio).collect();
    ratios.sort_by(|a, b| a.1.total_cmp(&b.1));
    (!ratios.is_empty()).then(|| chart::ratios(&ratios))
}

/// Every row of some problems, folded away.
fn figures(body: &mut String, problems: &[Problem<'_>]) {
    body.push_str("<details><summary>all figures</summary><div class=\"wide\"><table><thead><tr>");
    for title in rows::HEADER {
        let _ = write!(body, "<th>{}</th>", escape(title));
    }
    body.push_str("</tr></thead>\n");
    for problem in problems {
        let ours = problem.ours;
        let sizes: Vec<String> = ours.sizes.iter().map(|(name, len)| format!("{name}={len}")).collect();
        let _ = writeln!(
            body,
            "<tbody><tr class=\"group\"><th colspan=\"{}\">{} <code>{}</code> <span>{}; {}</span></th></tr>",
            rows::HEADER.len(),
            escape(&problem.title(true)),
            escape(&ours.equation),
            escape(&sizes.join(" ")),
            escape(&rows::work(&[ours])),
        );
        let mut all: Vec<_> = problem.peers.iter().chain([&ours]).collect();
        all.sort_by(|a, b| a.min_s.total_cmp(&b.min_s));
        for row in all {
            let _ = write!(body, "<tr{}>", if row.is_ours() { " class=\"ours\"" } else { "" });
            for cell in rows::cells(row, Some(ours.min_s)) {
                let _ = write!(body, "<td>{}</td>", escape(&cell));
            }
            body.push_str("</tr>\n");
        }
        if let Some(predicted) = ours.predicted_s {
            let _ = writeln!(body, "<tr><td>predicted</td><td>{}</td></tr>", escape(&units::seconds(predicted)));
        }
        body.push_str("</tbody>\n");
    }
    body.push_str("</table></div></details>\n");
}
