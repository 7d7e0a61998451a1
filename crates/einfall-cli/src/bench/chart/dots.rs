//! A panel of one case where only one k was measured: the engines in a list, their times along a logarithmic axis.

use std::fmt::Write;

use crate::bench::record::BenchRow;
use crate::bench::units;

use super::escape;
use super::figure::{Medium, Panel, rule, text, text_width};
use super::lines;
use super::scale::{LogScale, time_unit};
use super::style::{self, Style};

const LINE: f64 = 22.0;
const TITLE: f64 = 36.0;
const BOTTOM: f64 = 46.0;
const NUMBERS: f64 = 72.0;

/// Height of a panel with these rows.
pub(super) fn height(rows: &[&BenchRow]) -> f64 {
    TITLE + LINE * rows.len() as f64 + BOTTOM
}

/// Draws the panel; `all` are the rows of the whole figure.
pub(super) fn draw(out: &mut String, panel: &Panel<'_>, all: &[&BenchRow], engines: &[(&str, Style)]) {
    let mut rows = panel.rows.clone();
    rows.sort_by(|a, b| a.min_s.total_cmp(&b.min_s));
    let names = all.iter().map(|row| text_width(&row.engine, 12.0)).fold(60.0, f64::max).min(panel.width * 0.45);
    let (left, right) = (panel.x + names + 10.0, panel.x + panel.width - NUMBERS);
    let (top, bottom) = (panel.y + TITLE, panel.y + TITLE + LINE * rows.len() as f64);
    let scale = LogScale::new(all.iter().flat_map(|row| [Some(row.min_s), row.floor_s]).flatten(), left, right);
    let k = rows.first().map_or(0, |row| row.k);
    text(out, panel.x, panel.y + 14.0, 14.0, "start", "ink bold", &format!("{}, k={k}", panel.case.title()));

    let (unit, seconds) = time_unit(scale.middle());
    for tick in scale.ticks(seconds, 30.0) {
        rule(out, if tick.label.is_empty() { "subgrid" } else { "grid" }, (tick.at, top), (tick.at, bottom));
        text(out, tick.at, bottom + 16.0, 11.0, "middle", "ink", &tick.label);
    }
    rule(out, "axis", (left, bottom), (right, bottom));
    text(out, f64::midpoint(left, right), bottom + 33.0, 12.0, "middle", "ink", &format!("time of a call, {unit}"));
    if let Some(floor) = rows.iter().find_map(|row| row.floor_s) {
        lines::reference(out, lines::Reference::Floor, &format!("M{:.1},{top:.1}V{bottom:.1}", scale.at(floor)));
        text(out, scale.at(floor), top - 4.0, 10.5, "middle", "faint", "floor");
    }
    for (at, row) in rows.iter().enumerate() {
        let Some((name, style)) = engines.iter().find(|(name, _)| *name == row.engine) else {
            continue;
        };
        let y = top + LINE * (at as f64 + 0.5);
        let bold = if row.is_ours() { "ink bold" } else { "ink" };
        text(out, left - 8.0, y + 4.0, 12.0, "end", bold, name);
        rule(out, "grid", (left, y), (right, y));
        lines::stroke(out, style, &format!("M{left:.1},{y:.1}H{:.1}", scale.at(row.min_s)));
        style::marker(out, style, scale.at(row.min_s), y);
        text(out, right + NUMBERS - 4.0, y + 4.0, 12.0, "end", bold, &units::seconds(row.min_s));
    }
    if panel.medium == Medium::Page {
        let _ = write!(
            out,
            r#"<rect class="strip" tabindex="0" data-tip="{}" x="{:.1}" y="{top:.1}" width="{:.1}" height="{:.1}" fill="transparent"/>"#,
            escape(&lines::tip(panel, k)),
            panel.x,
            panel.width,
            bottom - top
        );
    }
}
