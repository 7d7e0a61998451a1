//! The HTML page: facts, why, and for each operation the figure and its table.

use std::cmp::Reverse;
use std::fmt::Write;

use crate::bench::record::{BenchReport, Case, Op};
use crate::bench::table;
use crate::bench::units;

use super::figure::{self, Medium};
use super::{escape, style};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Draws the whole page.
pub(super) fn page(report: &BenchReport) -> String {
    let mut body = String::from("<h1>einfall: what separate keys cost</h1>\n");
    body += "<ul class=\"facts\">";
    for fact in table::facts(report) {
        let _ = write!(body, "<li>{}</li>", escape(&fact));
    }
    if !report.settings.run.command.is_empty() {
        let _ = write!(body, "<li>Again: <code>{}</code></li>", escape(&report.settings.run.command));
    }
    body += "</ul>\n";
    let _ = writeln!(body, "<p>{}</p>", escape(table::LEGEND));
    let _ = writeln!(body, "<h2>Why</h2>\n<p>{}</p>", why(report));
    if report.rows.is_empty() {
        body += "<p>nothing was measured</p>\n";
    }
    for op in report.ops() {
        let _ = writeln!(body, "<h2>{}</h2>", escape(op.title()));
        let _ = writeln!(body, "<figure>{}</figure>", figure::draw(report, op, Medium::Page));
        tables(&mut body, report, op);
    }
    if !report.notes.is_empty() {
        body += "<h2>Notes</h2>\n<ul>";
        for note in &report.notes {
            let _ = write!(body, "<li>{}</li>", escape(note));
        }
        body += "</ul>\n";
    }
    document(&format!("einfall: {}", report.caption()), &body)
}

/// A page with a title and its content.
pub(super) fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n\
         <style>\n{STYLE}@media (prefers-color-scheme: dark) {{\n{}\n}}\n</style>\n</head>\n<body>\n<main>\n{body}</main>\n\
         <div id=\"tip\" role=\"status\" hidden></div>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        escape(title),
        style::dark_rules(),
    )
}

/// Why the cases differ though the arithmetic is the same, with the figures of this run where it has them.
fn why(report: &BenchReport) -> String {
    let mut text = "All cases of one k do the same arithmetic; what differs is how many bytes have to be fetched for it. \
        <b>Stored whole</b>, each element of a key is read from memory for a single multiply-add, so the bytes decide and \
        not the arithmetic"
        .to_owned();
    let stored = report.rows.iter().filter(|row| row.case == Case::SeparateStored && row.is_ours());
    if let Some(row) = stored.max_by_key(|row| (row.k, Reverse(row.op))) {
        let _ = write!(
            text,
            ": {} for {} at k={}",
            escape(&units::bytes(row.bytes_distinct as f64)),
            escape(&units::flop(row.flops as f64)),
            row.k
        );
        if let (Some(read), Some(compute)) = (report.machine.read_bytes_per_s, report.machine.flops_per_s) {
            let _ = write!(
                text,
                ", which takes this machine {} to read and {} to compute",
                escape(&units::seconds(row.bytes_distinct as f64 / read)),
                escape(&units::seconds(row.flops as f64 / compute))
            );
        }
    }
    text += ". <b>Looked up</b> through a table, the keys are n rows that are pointed into: they stay in the cache, and the \
        selected rows are never stored anywhere. An <b>expanded view</b> repeats one key list, so it is the matrix product \
        that <b>shared</b> keys are. Copying either into separate keys first makes it cost what stored keys cost, and more.";
    if report.rows.iter().any(|row| row.case == Case::All) {
        text += " The dashed line shows all n keys: above it, selecting keys does not pay.";
    }
    text
}

fn tables(out: &mut String, report: &BenchReport, op: Op) {
    let problems: Vec<_> = report.problems().into_iter().filter(|problem| problem.0 == op).collect();
    for case in Case::ALL {
        let ks: Vec<_> = problems.iter().filter(|problem| problem.1 == case).map(|problem| problem.2).collect();
        if ks.is_empty() {
            continue;
        }
        let _ = writeln!(
            out,
            "<details{}><summary>{}: all figures</summary>",
            if case == Case::SeparateLookup { " open" } else { "" },
            escape(case.title())
        );
        out.push_str("<div class=\"wide\"><table><thead><tr>");
        for title in table::HEADER {
            let _ = write!(out, "<th>{}</th>", escape(title));
        }
        out.push_str("</tr></thead>\n");
        for k in ks {
            let rows = report.problem(op, case, k);
            let ours = rows.iter().find(|row| row.is_ours()).map(|row| row.min_s);
            let work = table::work(&rows);
            let _ = writeln!(
                out,
                "<tbody><tr class=\"group\"><th colspan=\"{}\">k={k} <span>{}</span></th></tr>",
                table::HEADER.len(),
                escape(&work)
            );
            for row in &rows {
                let _ = write!(out, "<tr{}>", if row.is_ours() { " class=\"ours\"" } else { "" });
                for cell in table::cells(row, ours) {
                    let _ = write!(out, "<td>{}</td>", escape(&cell));
                }
                out.push_str("</tr>\n");
            }
            out.push_str("</tbody>\n");
        }
        out.push_str("</table></div></details>\n");
    }
}
