//! The frame of a figure: title, legend, panels in a grid, caption. Panels draw themselves (`lines`, `dots`).

use std::fmt::Write;

use crate::bench::record::{BenchReport, BenchRow, Case, Op};

use super::style::{self, Style};
use super::{dots, escape, lines};

/// Where a figure will be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    /// Standalone: own title and caption, `<title>` for tooltips.
    Paper,
    /// Inside the page, which has headings and tooltips of its own.
    Page,
}

pub(super) const WIDTH: f64 = 1000.0;
const MARGIN: f64 = 16.0;
const GAP: f64 = 20.0;
const LEGEND_LINE: f64 = 20.0;
const CAPTION_LINE: f64 = 15.0;

/// The place of a panel, and what all panels of a figure share.
pub(super) struct Panel<'a> {
    pub(super) case: Case,
    pub(super) rows: Vec<&'a BenchRow>,
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) medium: Medium,
}

/// Width of a text in a generic sans-serif font, on the safe side.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * 0.56
}

/// Adds a text; `anchor` is `start`, `middle` or `end`, `class` its ink: `ink` or `faint`.
pub(super) fn text(out: &mut String, x: f64, y: f64, size: f64, anchor: &str, class: &str, content: &str) {
    let fill = if class.starts_with("faint") { "#555555" } else { "#111111" };
    let weight = if class.ends_with("bold") { r#" font-weight="bold""# } else { "" };
    let _ = write!(
        out,
        r#"<text class="{class}" x="{x:.1}" y="{y:.1}" font-size="{size}" text-anchor="{anchor}" fill="{fill}"{weight}>{}</text>"#,
        escape(content)
    );
}

/// Adds a straight line of the axes or the grid.
pub(super) fn rule(out: &mut String, class: &str, from: (f64, f64), to: (f64, f64)) {
    let stroke = match class {
        "grid" => "#e3e3e3",
        "subgrid" => "#f1f1f1",
        _ => "#555555",
    };
    let _ = write!(
        out,
        r#"<path class="{class}" d="M{:.1},{:.1}L{:.1},{:.1}" stroke="{stroke}" fill="none"/>"#,
        from.0, from.1, to.0, to.1
    );
}

/// Draws one operation.
pub(super) fn draw(report: &BenchReport, op: Op, medium: Medium) -> String {
    let rows: Vec<_> = report.rows.iter().filter(|row| row.op == op && row.min_s > 0.0).collect();
    let engines = style::engines(&rows);
    let lines = lines::suits(&rows);
    let cases: Vec<_> = Case::ALL
        .into_iter()
        .filter(|&case| (!lines || lines::has_panel(case, &rows)) && rows.iter().any(|row| row.case == case))
        .collect();

    let mut body = String::new();
    let mut y = MARGIN;
    if medium == Medium::Paper {
        y += 14.0;
        text(&mut body, MARGIN, y, 17.0, "start", "ink bold", op.title());
        y += 12.0;
    }
    if rows.is_empty() {
        y += 20.0;
        text(&mut body, MARGIN, y, 13.0, "start", "ink", "nothing was measured");
    } else if lines {
        y = legend(&mut body, &rows, &engines, y);
    }

    let columns = if cases.len() == 1 { 1 } else { 2 };
    let width = (WIDTH - 2.0 * MARGIN - GAP * (columns - 1) as f64) / columns as f64;
    for line in cases.chunks(columns) {
        let of = |case: Case| rows.iter().copied().filter(|row| row.case == case).collect::<Vec<_>>();
        let heights = line.iter().map(|&case| if lines { lines::HEIGHT } else { dots::height(&of(case)) });
        let height = heights.fold(0.0, f64::max);
        for (column, &case) in line.iter().enumerate() {
            let x = MARGIN + column as f64 * (width + GAP);
            let panel = Panel { case, rows: of(case), x, y, width, height, medium };
            if lines {
                lines::draw(&mut body, &panel, &rows, &engines);
            } else {
                dots::draw(&mut body, &panel, &rows, &engines);
            }
        }
        y += height + GAP;
    }
    if medium == Medium::Paper {
        for line in caption(report, lines) {
            y += CAPTION_LINE;
            text(&mut body, MARGIN, y, 12.0, "start", "faint", &line);
        }
    }
    y += MARGIN;
    format!(
        concat!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h:.0}" width="{w}" height="{h:.0}" "#,
            r#"font-family="Helvetica, Arial, sans-serif" role="img" aria-label="{label}">"#,
            r##"<rect class="ground" width="{w}" height="{h:.0}" fill="#ffffff"/>{body}</svg>"##
        ),
        w = WIDTH,
        h = y,
        label = escape(&format!("{}, time against k", op.title())),
        body = body,
    ) + "\n"
}

/// What the two reference lines are called, if the rows have them.
fn references(rows: &[&BenchRow]) -> Vec<(lines::Reference, String)> {
    let mut found = Vec::new();
    if rows.iter().any(|row| row.floor_s.is_some()) {
        found.push((lines::Reference::Floor, "floor of this machine".to_owned()));
    }
    if let Some(all) = lines::all_keys(rows) {
        found.push((lines::Reference::All, format!("all {} keys, {}", all.k, all.engine)));
    }
    found
}

/// Adds the legend in as many lines as it takes; returns where it ends.
fn legend(out: &mut String, rows: &[&BenchRow], engines: &[(&str, Style)], top: f64) -> f64 {
    const SAMPLE: f64 = 34.0;
    const SIZE: f64 = 12.5;
    let (mut x, mut y) = (MARGIN, top + 14.0);
    let mut place = |label: &str| {
        let width = SAMPLE + 6.0 + text_width(label, SIZE) + 18.0;
        if x + width > WIDTH - MARGIN && x > MARGIN {
            x = MARGIN;
            y += LEGEND_LINE;
        }
        let at = (x, y);
        x += width;
        at
    };
    for (name, style) in engines {
        let (x, y) = place(name);
        lines::stroke(out, style, &format!("M{x:.1},{:.1}h{SAMPLE}", y - 4.0));
        style::marker(out, style, x + SAMPLE / 2.0, y - 4.0);
        text(out, x + SAMPLE + 6.0, y, SIZE, "start", "ink", name);
    }
    for (reference, label) in references(rows) {
        let (x, y) = place(&label);
        lines::reference(out, reference, &format!("M{x:.1},{:.1}h{SAMPLE}", y - 4.0));
        text(out, x + SAMPLE + 6.0, y, SIZE, "start", "ink", &label);
    }
    y + 14.0
}

/// Machine, threads, dtype and sizes, wrapped to the width of the figure.
fn caption(report: &BenchReport, lines: bool) -> Vec<String> {
    let peers: Vec<_> = report.settings.run.peers.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let mut words = report.caption();
    if !peers.is_empty() {
        words += &format!("; {}", peers.join(", "));
    }
    words += ". Shortest time of a call, logarithmic axes";
    words += if lines {
        ", the same time axis in all panels; markers that would cover each other stand side by side."
    } else {
        "."
    };
    let mut wrapped = vec![String::new()];
    for word in words.split_whitespace() {
        let last = wrapped.last_mut().expect("there is always a line");
        if !last.is_empty() && text_width(last, 12.0) + text_width(word, 12.0) > WIDTH - 2.0 * MARGIN {
            wrapped.push(word.to_owned());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    wrapped
}
