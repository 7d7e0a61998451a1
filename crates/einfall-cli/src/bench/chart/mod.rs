//! Time against k as a picture: an SVG for paper, an HTML page for a screen.
//!
//! In: a [`BenchReport`]. Out: text to be written to a file; no network is needed to show it. A figure has one panel a
//! case, and each engine keeps its colour, dash and marker in all of them. Where only one k was measured a line against
//! k says nothing: then each panel lists the engines along a time axis.
//!
//! ```
//! use einfall_cli::bench::{chart, record::{BenchReport, Op}};
//!
//! let svg = chart::svg(&BenchReport::default(), Op::Scores);
//! assert!(svg.starts_with("<svg ") && svg.contains("nothing was measured"));
//! ```

mod dots;
mod figure;
mod lines;
mod page;
mod ratios;
mod scale;
mod style;

use super::record::{BenchReport, Op};

/// A standalone SVG of one operation: white ground, generic fonts, its own caption.
#[must_use]
pub fn svg(report: &BenchReport, op: Op) -> String {
    figure::draw(report, op, figure::Medium::Paper)
}

/// A self-contained HTML page: for each operation the figure with tooltips and the table below it, light and dark.
#[must_use]
pub fn html(report: &BenchReport) -> String {
    page::page(report)
}

/// An SVG of ratios by name, in the order given.
pub(super) fn ratios(ratios: &[(String, f64)]) -> String {
    ratios::draw(ratios)
}

/// A self-contained HTML page with our style, light and dark, and tooltips.
pub(super) fn document(title: &str, body: &str) -> String {
    page::document(title, body)
}

/// Text as content or attribute of XML and HTML. Characters that XML forbids become U+FFFD.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' => safe.push_str("&#10;"),
            control if control.is_control() => safe.push('\u{fffd}'),
            '\u{fffe}' | '\u{ffff}' => safe.push('\u{fffd}'),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests;
