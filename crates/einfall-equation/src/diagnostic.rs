//! A message about an equation, drawn with carets under the characters it is about.
//!
//! Any crate that has something to say about an equation may fill in a [`Diagnostic`]; this module decides how it looks.

use std::fmt;

/// A range of bytes of an equation's text; empty where something is missing.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Span {
    /// The first byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// A message about an equation, with the places it is about.
///
/// `Display` renders it without a leading `error: `, which is for the program that prints it, and without a final line
/// break. Letters that are two columns wide get two carets, characters that cannot be seen are shown escaped, and a
/// long equation is cut down to what surrounds the first few spans.
///
/// ```
/// use einfall_equation::{Diagnostic, Span};
///
/// let diagnostic = Diagnostic {
///     message: "label `k` is 512 in operand 0 but 256 in operand 1".into(),
///     text: "bik,bkj->bij".into(),
///     spans: vec![Span { start: 2, end: 3 }, Span { start: 5, end: 6 }],
///     hint: Some("operand 1 has shape [64, 256, 128]; did you mean `bjk`?".into()),
/// };
/// assert_eq!(
///     diagnostic.to_string(),
///     "label `k` is 512 in operand 0 but 256 in operand 1
///   bik,bkj->bij
///     ^  ^
/// hint: operand 1 has shape [64, 256, 128]; did you mean `bjk`?"
/// );
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Diagnostic {
    /// What is wrong: lower case, no period, labels in backticks.
    pub message: String,
    /// The whole equation.
    pub text: String,
    /// The places to point at, in any order. A place outside the text is shown at its end.
    pub spans: Vec<Span>,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Equations of at most this many characters are shown whole.
const WHOLE: usize = 100;
/// Characters kept on either side of each end of a span when an equation is shortened.
const CONTEXT: usize = 16;
/// Spans drawn when an equation is shortened.
const DRAWN: usize = 4;

impl Diagnostic {
    /// The text and its carets as two lines without indentation; the second is empty where there are no spans.
    fn drawing(&self) -> (String, String) {
        let length = self.text.chars().count();
        let drawn = if length <= WHOLE { self.spans.len() } else { self.spans.len().min(DRAWN) };
        let mut spans: Vec<Span> = self.spans[..drawn].to_vec();
        for span in &mut spans {
            span.start = span.start.min(self.text.len());
            span.end = span.end.max(span.start + 1);
        }
        let places: Vec<(usize, usize)> = if length <= WHOLE { Vec::new() } else { self.places(&spans) };
        let kept = |at: usize| {
            let near = |edge: usize| at.abs_diff(edge) <= CONTEXT;
            length <= WHOLE || places.iter().any(|&(first, last)| near(first) || near(last))
        };

        let mut line = String::new();
        let mut carets = String::new();
        let mut cut = false;
        // One blank more than the text has, for spans that point past its end.
        let past = std::iter::once((self.text.len(), ' '));
        for (at, (byte, c)) in self.text.char_indices().chain(past).enumerate() {
            let marked = spans.iter().any(|s| s.start < byte + c.len_utf8() && byte < s.end);
            let caret = if marked { '^' } else { ' ' };
            if kept(at) {
                cut = false;
                carets.extend(std::iter::repeat_n(caret, push_visible(&mut line, c)));
            } else if !cut {
                cut = true;
                line.push('…');
                carets.push(caret);
            }
        }
        (line.trim_end().to_string(), carets.trim_end().to_string())
    }

    /// The first and last character of each span, counted from the start of the text.
    fn places(&self, spans: &[Span]) -> Vec<(usize, usize)> {
        let count = |byte: usize| self.text.char_indices().take_while(|&(at, _)| at < byte).count();
        spans.iter().map(|span| (count(span.start), count(span.end).saturating_sub(1))).collect()
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let (line, carets) = self.drawing();
        if !line.is_empty() || !carets.is_empty() {
            write!(f, "\n  {line}")?;
        }
        if !carets.is_empty() {
            write!(f, "\n  {carets}")?;
        }
        self.hint.iter().try_for_each(|hint| write!(f, "\nhint: {hint}"))
    }
}

/// Most characters of a term that a message quotes.
const QUOTED: usize = 60;

/// A part of an equation to be quoted in a message: at most 60 characters of it, the first and the last.
///
/// ```
/// assert_eq!(einfall_equation::quoted("bh[bhqk]d"), "bh[bhqk]d");
/// assert_eq!(einfall_equation::quoted(&"ij".repeat(50_000)).chars().count(), 60);
/// ```
pub fn quoted(text: &str) -> String {
    let length = text.chars().count();
    if length <= QUOTED {
        return text.to_string();
    }
    let (first, last) = (QUOTED / 2, QUOTED - QUOTED / 2 - 1);
    text.chars().take(first).chain(['…']).chain(text.chars().skip(length - last)).collect()
}

/// Appends `c` in a form that can be seen, and returns how many columns of a terminal that takes.
pub(crate) fn push_visible(line: &mut String, c: char) -> usize {
    // `escape_debug` escapes what cannot be printed and what combines with its neighbour, and three signs that can.
    if matches!(c, '\'' | '"' | '\\') {
        line.push(c);
        return 1;
    }
    let escaped = c.escape_debug();
    let columns = escaped.len();
    line.extend(escaped);
    if columns == 1 && is_wide(c) { 2 } else { columns }
}

/// Whether terminals give the character two columns (East Asian wide and fullwidth, Unicode Standard Annex 11, by block).
fn is_wide(c: char) -> bool {
    matches!(u32::from(c),
        0x1100..=0x115F | 0x2E80..=0x303E | 0x3041..=0x4DBF | 0x4E00..=0xA4CF | 0xA960..=0xA97F | 0xAC00..=0xD7A3
        | 0xF900..=0xFAFF | 0xFE30..=0xFE6F | 0xFF01..=0xFF60 | 0xFFE0..=0xFFE6 | 0x17000..=0x18CFF
        | 0x1B000..=0x1B2FF | 0x1F300..=0x1F64F | 0x1F680..=0x1F6FF | 0x1F900..=0x1F9FF | 0x20000..=0x3FFFD)
}
