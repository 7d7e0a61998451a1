//! How engines look: the same colour, dash and marker in every panel, told apart in print without colour too.

use std::fmt::Write;

use crate::bench::record::{BenchRow, is_ours};

/// Shape of a data point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    Circle,
    Square,
    Up,
    Down,
    Diamond,
    Plus,
    Cross,
    Ring,
    Frame,
    Star,
}

/// Look of one engine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// On a white ground.
    pub(super) light: &'static str,
    /// On a dark ground.
    pub(super) dark: &'static str,
    pub(super) dash: &'static str,
    pub(super) marker: Marker,
    pub(super) width: f64,
}

const fn style(light: &'static str, dark: &'static str, dash: &'static str, marker: Marker) -> Style {
    Style { light, dark, dash, marker, width: 1.5 }
}

/// Look of einfall.
pub(super) const OURS: Style = Style { width: 3.0, ..style("#c1121f", "#ff5d5d", "", Marker::Circle) };

/// Peers by name, so that a figure without one of them keeps the looks of the others.
const KNOWN: [(&str, Style); 8] = [
    ("torch.einsum", style("#0061a8", "#5fb3f5", "", Marker::Square)),
    ("torch.matmul", style("#00805c", "#3fd0a0", "7 3", Marker::Up)),
    ("torch mul-sum", style("#8a5a00", "#d9a441", "2 3", Marker::Diamond)),
    ("torch mul-sum compiled", style("#d97706", "#ffb454", "10 3 2 3", Marker::Down)),
    ("torch dense, gather", style("#7b2cbf", "#c08bff", "8 3 2 3 2 3", Marker::Plus)),
    ("torch SDPA", style("#b5179e", "#ff79d9", "4 4", Marker::Cross)),
    ("numpy.einsum", style("#444444", "#c8c8c8", "5 2", Marker::Ring)),
    ("opt_einsum", style("#008c95", "#4fd8e0", "1.5 2.5", Marker::Frame)),
];

/// For engines that are not known by name, in order of appearance.
const MORE: [Style; 4] = [
    style("#5a6b00", "#c5d94a", "12 4", Marker::Star),
    style("#9d4e4e", "#e5a0a0", "3 2", Marker::Up),
    style("#3f51b5", "#9fa8ff", "6 2 1 2", Marker::Diamond),
    style("#37604a", "#90c8a8", "9 2", Marker::Ring),
];

/// The engines of some rows with their looks: einfall first, known peers next, then the rest.
pub(super) fn engines<'a>(rows: &[&'a BenchRow]) -> Vec<(&'a str, Style)> {
    let mut names: Vec<&str> = rows.iter().map(|row| row.engine.as_str()).collect();
    let known = |name: &str| KNOWN.iter().position(|(known, _)| *known == name);
    let rank = |name: &&str| {
        if is_ours(name) { 0 } else { known(name).map_or(usize::MAX, |at| at + 1) }
    };
    names.sort_by(|a, b| rank(a).cmp(&rank(b)).then(a.cmp(b)));
    names.dedup();
    let mut more = MORE.iter().cycle();
    let look = |name| match known(name) {
        _ if is_ours(name) => OURS,
        Some(at) => KNOWN[at].1,
        None => more.next().copied().unwrap_or(OURS),
    };
    let looks: Vec<_> = names.iter().copied().map(look).collect();
    names.into_iter().zip(looks).collect()
}

/// CSS class of a colour: the same engine may stand at another place in another figure.
pub(super) fn class(style: &Style) -> String {
    format!("c{}", style.light.trim_start_matches('#'))
}

/// CSS rules that give every colour its dark variant.
pub(super) fn dark_rules() -> String {
    let mut rules = String::new();
    for style in KNOWN.iter().map(|(_, style)| style).chain(&MORE).chain([&OURS]) {
        let _ = write!(rules, ".{0}{{stroke:{1}}}.{0}.solid{{fill:{1}}}", class(style), style.dark);
    }
    rules
}

/// Adds a marker centred at `(x, y)`.
pub(super) fn marker(out: &mut String, style: &Style, x: f64, y: f64) {
    let r = if style.width > 2.0 { 4.2 } else { 3.6 };
    let solid = |path: String| (path, true);
    let open = |path: String| (path, false);
    let circle = |r: f64| {
        format!("M{:.1},{y:.1}a{r:.1},{r:.1} 0 1 0 {d:.1},0a{r:.1},{r:.1} 0 1 0 -{d:.1},0Z", x - r, d = 2.0 * r)
    };
    let square = |r: f64| format!("M{:.1},{:.1}h{s:.1}v{s:.1}h-{s:.1}Z", x - r, y - r, s = 2.0 * r);
    let (path, filled) = match style.marker {
        Marker::Circle => solid(circle(r)),
        Marker::Ring => open(circle(r)),
        Marker::Square => solid(square(r * 0.85)),
        Marker::Frame => open(square(r)),
        Marker::Up => solid(format!("M{x:.1},{:.1}l{r:.1},{h:.1}h-{:.1}Z", y - r, 2.0 * r, h = r * 1.75)),
        Marker::Down => solid(format!("M{x:.1},{:.1}l{r:.1},-{h:.1}h-{:.1}Z", y + r, 2.0 * r, h = r * 1.75)),
        Marker::Diamond => {
            solid(format!("M{x:.1},{:.1}l{q:.1},{q:.1}l-{q:.1},{q:.1}l-{q:.1},-{q:.1}Z", y - r * 1.15, q = r * 1.15))
        }
        Marker::Plus => open(format!("M{:.1},{y:.1}h{d:.1}M{x:.1},{:.1}v{d:.1}", x - r, y - r, d = 2.0 * r)),
        Marker::Cross => {
            open(format!("M{:.1},{:.1}l{d:.1},{d:.1}m0,-{d:.1}l-{d:.1},{d:.1}", x - r * 0.8, y - r * 0.8, d = r * 1.6))
        }
        Marker::Star => open(format!(
            "M{:.1},{y:.1}h{d:.1}M{x:.1},{:.1}v{d:.1}M{:.1},{:.1}l{e:.1},{e:.1}m0,-{e:.1}l-{e:.1},{e:.1}",
            x - r,
            y - r,
            x - r * 0.7,
            y - r * 0.7,
            d = 2.0 * r,
            e = r * 1.4
        )),
    };
    let (class, colour) = (class(style), style.light);
    let (kind, fill) = if filled { (" solid", colour) } else { (" open", "#ffffff") };
    let _ =
        write!(out, r#"<path class="{class}{kind}" d="{path}" stroke="{colour}" stroke-width="1.4" fill="{fill}"/>"#);
}
