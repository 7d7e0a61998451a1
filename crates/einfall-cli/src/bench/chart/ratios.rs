//! Ratios by name along a logarithmic axis, 1 in the middle of things: who is ahead, and by how much.

use std::fmt::Write;

use super::figure::{WIDTH, rule, text, text_width};
use super::scale::LogScale;
use super::{escape, lines, style};
use crate::bench::units;

const LINE: f64 = 17.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 34.0;
const NUMBERS: f64 = 60.0;

/// Draws them in the order given.
pub(super) fn draw(ratios: &[(String, f64)]) -> String {
    let names = ratios.iter().map(|(name, _)| text_width(name, 12.0)).fold(60.0, f64::max).min(WIDTH * 0.4);
    let (left, right) = (names + 16.0, WIDTH - NUMBERS);
    let bottom = TOP + LINE * ratios.len() as f64;
    let scale = LogScale::new(ratios.iter().map(|(_, ratio)| *ratio).chain([0.9, 1.1]), left, right);
    let mut body = String::new();
    for tick in scale.ticks(1.0, 30.0) {
        rule(&mut body, if tick.label.is_empty() { "subgrid" } else { "grid" }, (tick.at, TOP), (tick.at, bottom));
        text(&mut body, tick.at, bottom + 16.0, 11.0, "middle", "ink", &tick.label);
    }
    rule(&mut body, "axis", (left, bottom), (right, bottom));
    lines::reference(&mut body, lines::Reference::Floor, &format!("M{:.1},{TOP:.1}V{bottom:.1}", scale.at(1.0)));
    text(&mut body, scale.at(1.0), TOP - 6.0, 10.5, "middle", "faint", "as fast as einfall");
    for (at, (name, ratio)) in ratios.iter().enumerate() {
        let y = TOP + LINE * (at as f64 + 0.5);
        text(&mut body, left - 8.0, y + 4.0, 12.0, "end", "ink", name);
        lines::stroke(&mut body, &style::OURS, &format!("M{:.1},{y:.1}H{:.1}", scale.at(1.0), scale.at(*ratio)));
        style::marker(&mut body, &style::OURS, scale.at(*ratio), y);
        text(&mut body, WIDTH - 4.0, y + 4.0, 12.0, "end", "ink", &units::digits(*ratio));
    }
    let height = bottom + BOTTOM;
    let mut svg = String::new();
    let _ = write!(
        svg,
        concat!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h:.0}" width="{w}" height="{h:.0}" "#,
            r#"font-family="Helvetica, Arial, sans-serif" role="img" aria-label="{label}">"#,
            r##"<rect class="ground" width="{w}" height="{h:.0}" fill="#ffffff"/>{body}</svg>"##
        ),
        w = WIDTH,
        h = height,
        label = escape("ratios by case"),
        body = body,
    );
    svg
}
