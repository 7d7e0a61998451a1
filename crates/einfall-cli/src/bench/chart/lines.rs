//! A panel of one case: time against k, both logarithmic.

use std::fmt::Write;

use crate::bench::record::{BenchRow, Case};
use crate::bench::units;

use super::escape;
use super::figure::{Medium, Panel, rule, text};
use super::scale::{LogScale, time_unit};
use super::style::{self, Style};

pub(super) const HEIGHT: f64 = 330.0;
const TITLE: f64 = 22.0;
const LEFT: f64 = 58.0;
const BOTTOM: f64 = 42.0;

/// The two lines that are no engine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reference {
    /// What the machine cannot go below.
    Floor,
    /// The time of all keys: where it lies lower, selecting keys does not pay.
    All,
}

/// Whether there is a k to draw against.
pub(super) fn suits(rows: &[&BenchRow]) -> bool {
    let mut ks = rows.iter().filter(|row| row.case != Case::All).map(|row| row.k);
    ks.next().is_some_and(|first| ks.any(|k| k != first))
}

/// All keys have one k, n: they are a line across the other panels.
pub(super) fn has_panel(case: Case, rows: &[&BenchRow]) -> bool {
    case != Case::All || all_keys(rows).is_none()
}

/// The row that stands for all keys: ours, else the fastest.
pub(super) fn all_keys<'a>(rows: &[&'a BenchRow]) -> Option<&'a BenchRow> {
    let all = || rows.iter().copied().filter(|row| row.case == Case::All);
    let ours = all().find(|row| row.is_ours());
    ours.or_else(|| all().min_by(|a, b| a.min_s.total_cmp(&b.min_s)))
}

/// Adds an engine's line.
pub(super) fn stroke(out: &mut String, style: &Style, path: &str) {
    let dash = if style.dash.is_empty() { String::new() } else { format!(r#" stroke-dasharray="{}""#, style.dash) };
    let _ = write!(
        out,
        r#"<path class="{}" d="{path}" stroke="{}" stroke-width="{}" stroke-linejoin="round" fill="none"{dash}/>"#,
        style::class(style),
        style.light,
        style.width
    );
}

/// Adds a reference line.
pub(super) fn reference(out: &mut String, kind: Reference, path: &str) {
    let (stroke, dash, width) = match kind {
        Reference::Floor => ("#9a9a9a", "", 5.0),
        Reference::All => ("#222222", "14 5", 1.2),
    };
    let (class, opacity) = if kind == Reference::Floor { ("floor", 0.45) } else { ("all", 1.0) };
    let _ = write!(
        out,
        r#"<path class="{class}" d="{path}" stroke="{stroke}" stroke-width="{width}" stroke-opacity="{opacity}" stroke-dasharray="{dash}" fill="none"/>"#
    );
}

fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (at, (x, y)) in points.enumerate() {
        let _ = write!(path, "{}{x:.1},{y:.1}", if at == 0 { 'M' } else { 'L' });
    }
    path
}

/// Draws the panel. `all` are the rows of the whole figure: they set the axes, so that panels compare.
pub(super) fn draw(out: &mut String, panel: &Panel<'_>, all: &[&BenchRow], engines: &[(&str, Style)]) {
    let (left, right) = (panel.x + LEFT, panel.x + panel.width - 8.0);
    let (top, bottom) = (panel.y + TITLE, panel.y + panel.height - BOTTOM);
    let ks = all.iter().filter(|row| row.case != Case::All).map(|row| row.k as f64);
    let horizontal = LogScale::tight(ks, left, right, 16.0);
    let times = all.iter().flat_map(|row| [Some(row.min_s), row.floor_s]).flatten();
    let vertical = LogScale::new(times, bottom, top);

    text(out, left, panel.y + 14.0, 14.0, "start", "ink bold", panel.case.title());
    axes(out, panel, (left, right, top, bottom), &horizontal, &vertical);

    let mut floors: Vec<_> = panel.rows.iter().filter_map(|row| Some((row.k, row.floor_s?))).collect();
    floors.sort_by_key(|(k, _)| *k);
    floors.dedup_by_key(|(k, _)| *k);
    if floors.len() > 1 {
        let points = floors.iter().map(|&(k, floor)| (horizontal.at(k as f64), vertical.at(floor)));
        reference(out, Reference::Floor, &path(points));
    }
    if let Some(row) = all_keys(all) {
        let y = vertical.at(row.min_s);
        reference(out, Reference::All, &format!("M{left:.1},{y:.1}H{right:.1}"));
    }
    // Ours last: it lies on top.
    for (name, style) in engines.iter().rev() {
        let mut rows: Vec<_> = panel.rows.iter().filter(|row| row.engine == *name).collect();
        rows.sort_by_key(|row| row.k);
        let at = |row: &BenchRow| {
            let aside = if row.is_ours() { 0.0 } else { beside(panel, row, engines, &vertical) };
            (horizontal.at(row.k as f64) + aside, vertical.at(row.min_s))
        };
        if rows.len() > 1 {
            stroke(out, style, &path(rows.iter().map(|row| at(row))));
        }
        for row in rows {
            let (x, y) = at(row);
            out.push_str("<g>");
            if panel.medium == Medium::Paper {
                let _ = write!(
                    out,
                    "<title>{}</title>",
                    escape(&format!("{name}, k={}: {}", row.k, units::seconds(row.min_s)))
                );
            }
            style::marker(out, style, x, y);
            out.push_str("</g>");
        }
    }
    if panel.medium == Medium::Page {
        strips(out, panel, (left, right, top, bottom), &horizontal);
    }
}

/// How far to the side a peer's marker stands, so that peers of nearly the same time at one k can all be seen. Ours
/// stays where it is.
fn beside(panel: &Panel<'_>, row: &BenchRow, engines: &[(&str, Style)], up: &LogScale) -> f64 {
    const TOUCHING: f64 = 5.0;
    const APART: f64 = 6.5;
    let order = |name: &str| engines.iter().position(|(other, _)| *other == name);
    let mut column: Vec<_> = panel.rows.iter().copied().filter(|other| other.k == row.k && !other.is_ours()).collect();
    column.sort_by(|a, b| a.min_s.total_cmp(&b.min_s));
    // Neighbours that touch form a chain, which is centred on the k.
    let mut chains = column.chunk_by(|a, b| (up.at(a.min_s) - up.at(b.min_s)).abs() < TOUCHING);
    let Some(chain) = chains.find(|chain| chain.iter().any(|other| std::ptr::eq(*other, row))) else {
        return 0.0;
    };
    let before = chain.iter().filter(|other| order(&other.engine) < order(&row.engine)).count();
    (before as f64 - (chain.len() - 1) as f64 / 2.0) * APART
}

type Box = (f64, f64, f64, f64);

fn axes(out: &mut String, panel: &Panel<'_>, (left, right, top, bottom): Box, across: &LogScale, up: &LogScale) {
    let (unit, seconds) = time_unit(up.middle());
    for tick in up.ticks(seconds, 15.0) {
        rule(out, if tick.label.is_empty() { "subgrid" } else { "grid" }, (left, tick.at), (right, tick.at));
        text(out, left - 6.0, tick.at + 4.0, 11.0, "end", "ink", &tick.label);
    }
    let mut ticks = across.ticks(1.0, 26.0);
    if ticks.iter().filter(|tick| !tick.label.is_empty()).count() < 3 {
        ticks = across.marks(panel.rows.iter().map(|row| row.k).filter(|_| panel.case != Case::All), 26.0);
    }
    for tick in ticks {
        rule(out, if tick.label.is_empty() { "subgrid" } else { "grid" }, (tick.at, top), (tick.at, bottom));
        rule(out, "axis", (tick.at, bottom), (tick.at, bottom + 4.0));
        text(out, tick.at, bottom + 16.0, 11.0, "middle", "ink", &tick.label);
    }
    rule(out, "axis", (left, top), (left, bottom));
    rule(out, "axis", (left, bottom), (right, bottom));
    text(out, f64::midpoint(left, right), bottom + 33.0, 12.0, "middle", "ink", "k, keys of a query");
    let (x, y) = (panel.x + 12.0, f64::midpoint(top, bottom));
    let _ = write!(out, r#"<g transform="rotate(-90 {x:.1} {y:.1})">"#);
    text(out, x, y, 12.0, "middle", "ink", &format!("time of a call, {unit}"));
    out.push_str("</g>");
}

/// Invisible columns around each k that tell the page what to show there.
fn strips(out: &mut String, panel: &Panel<'_>, (left, right, top, bottom): Box, across: &LogScale) {
    let mut ks: Vec<_> = panel.rows.iter().map(|row| row.k).collect();
    ks.sort_unstable();
    ks.dedup();
    let at: Vec<_> = ks.iter().map(|&k| across.at(k as f64)).collect();
    for (i, &k) in ks.iter().enumerate() {
        let from = if i == 0 { left } else { f64::midpoint(at[i - 1], at[i]) };
        let to = if i + 1 == ks.len() { right } else { f64::midpoint(at[i], at[i + 1]) };
        let _ = write!(
            out,
            r#"<rect class="strip" tabindex="0" data-x="{:.1}" data-tip="{}" x="{from:.1}" y="{top:.1}" width="{:.1}" height="{:.1}" fill="transparent"/>"#,
            at[i],
            escape(&tip(panel, k)),
            to - from,
            bottom - top
        );
    }
}

/// All engines at one k, fastest first.
pub(super) fn tip(panel: &Panel<'_>, k: usize) -> String {
    let mut rows: Vec<_> = panel.rows.iter().filter(|row| row.k == k).collect();
    rows.sort_by(|a, b| a.min_s.total_cmp(&b.min_s));
    let mut lines = vec![format!("{}, k={k}", panel.case.title())];
    for row in &rows {
        let way = row.way.as_ref().map_or(String::new(), |way| format!(" ({way})"));
        lines.push(format!("{:>8}  {}{way}", units::seconds(row.min_s), row.engine));
    }
    if let Some(row) = rows.iter().find(|row| row.floor_s.is_some()) {
        let kind = row.floor_kind.map_or("", |kind| kind.name());
        lines.push(format!("{:>8}  floor ({kind})", units::seconds(row.floor_s.unwrap_or(f64::NAN))));
    }
    if let Some(row) = rows.first() {
        let work = (units::flop(row.flops as f64), units::bytes(row.bytes_distinct as f64));
        lines.push(format!("{}, {} distinct", work.0, work.1));
    }
    lines.join("\n")
}
