//! The parsed equation.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use crate::parser::{self, TermSpans};
use crate::{Axis, Operand, ParseError, Span};

/// An einsum equation: its operands, its output if it names one, and the text they came from.
///
/// It means `out[...] = Σ over labels not in the output of Π operands`. Every lookup takes a table as one more argument,
/// right after the operand in which it stands and in the order of the brackets; the tables of the output come last.
///
/// Two equations are equal if their operands and outputs are; text and spans do not count, so `i j -> j` equals `ij->j`.
/// An implicit output differs from the same output written out. `Display` prints the equation without spaces, and
/// parsing that gives an equal equation.
///
/// ```
/// use einfall_equation::Equation;
///
/// let equation = Equation::parse("b q [2*q + w - 3], w")?;
/// assert_eq!(equation.to_string(), "bq[2q+w-3],w");
/// assert_eq!(equation.explicit_output().to_string(), "b");
/// # Ok::<(), einfall_equation::ParseError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Equation {
    operands: Vec<Operand>,
    output: Option<Operand>,
    text: String,
    /// Of the operands in order, then of the output if there is one.
    spans: Vec<TermSpans>,
}

/// A term of an equation.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Place {
    /// The operand of this number, counted from 0.
    Operand(usize),
    /// The output.
    Output,
}

impl Equation {
    /// Reads an equation, in time linear in the text but for sorting the labels of the output.
    ///
    /// The empty text is one scalar operand, `,` is two of them, and `->` is a scalar with a scalar output. Whether an
    /// output label or ellipsis has a length is not asked here: it may come from the sizes given when binding.
    ///
    /// # Errors
    /// [`ParseErrorKind`](crate::ParseErrorKind) lists the mistakes.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let parsed = parser::parse(text)?;
        Ok(Self { operands: parsed.operands, output: parsed.output, text: text.to_string(), spans: parsed.spans })
    }

    /// Builds an equation from its terms, as the interleaved form does, and writes its text.
    ///
    /// Windows are brought into the form that the parser gives: a label that stands twice is merged.
    ///
    /// # Errors
    /// The mistakes that can be made without a text: [`NoOperand`], [`SecondEllipsis`], [`RepeatedOutputLabel`],
    /// [`NoEffect`] for a coefficient of 0, and [`Overflow`] when merging.
    ///
    /// [`NoOperand`]: crate::ParseErrorKind::NoOperand
    /// [`SecondEllipsis`]: crate::ParseErrorKind::SecondEllipsis
    /// [`RepeatedOutputLabel`]: crate::ParseErrorKind::RepeatedOutputLabel
    /// [`NoEffect`]: crate::ParseErrorKind::NoEffect
    /// [`Overflow`]: crate::ParseErrorKind::Overflow
    pub fn from_parts(operands: Vec<Operand>, output: Option<Operand>) -> Result<Self, ParseError> {
        if operands.is_empty() {
            return Err(parser::no_operand(output.as_ref()));
        }
        // Reading the printed text checks the terms, normalises them and finds their places, all by the one parser.
        Self::parse(&Printed { operands: &operands, output: output.as_ref() }.to_string())
    }

    /// The operands in order; there is at least one.
    pub fn operands(&self) -> &[Operand] {
        &self.operands
    }

    /// The output that the equation names, or `None` where it is implicit.
    pub fn output(&self) -> Option<&Operand> {
        self.output.as_ref()
    }

    /// The output that the equation names, or else the one that NumPy's rule gives: `...` if any operand has it, then
    /// the labels that appear exactly once over all operands, sorted by code point. Labels in brackets count.
    pub fn explicit_output(&self) -> Operand {
        if let Some(output) = &self.output {
            return output.clone();
        }
        let mut labels: Vec<_> = self.operands.iter().flat_map(Operand::labels).collect();
        labels.sort_unstable();
        let once = labels.chunk_by(|a, b| a == b).filter(|run| run.len() == 1);
        let ellipsis = self.operands.iter().any(Operand::has_ellipsis).then_some(Axis::Ellipsis);
        ellipsis.into_iter().chain(once.map(|run| Axis::Label(run[0]))).collect()
    }

    /// The text as it was given, or as it was written for [`from_parts`](Self::from_parts).
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The bytes of [`text`](Self::text) that an axis takes, its brackets included.
    ///
    /// Where the term has no such axis (an axis of an implicit output, say) this is [`term_span`](Self::term_span).
    pub fn span(&self, place: Place, axis: usize) -> Span {
        let term = self.spans(place);
        term.and_then(|term| term.axes.get(axis).copied()).unwrap_or_else(|| self.term_span(place))
    }

    /// The bytes of [`text`](Self::text) that a term takes, from its first axis to its last; empty, but at the right
    /// place, for a scalar. For an implicit output, or an operand that there is not, it is the end of the text.
    pub fn term_span(&self, place: Place) -> Span {
        let end = self.text.len();
        self.spans(place).map_or(Span { start: end, end }, |term| term.term)
    }

    fn spans(&self, place: Place) -> Option<&TermSpans> {
        match place {
            Place::Operand(operand) => self.spans[..self.operands.len()].get(operand),
            Place::Output => self.spans.get(self.operands.len()),
        }
    }
}

/// What [`Equation`] prints, for terms that are not an equation yet.
struct Printed<'e> {
    operands: &'e [Operand],
    output: Option<&'e Operand>,
}

impl fmt::Display for Printed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, operand) in self.operands.iter().enumerate() {
            write!(f, "{}{operand}", if i > 0 { "," } else { "" })?;
        }
        self.output.iter().try_for_each(|output| write!(f, "->{output}"))
    }
}

impl fmt::Display for Equation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printed { operands: &self.operands, output: self.output.as_ref() }.fmt(f)
    }
}

impl FromStr for Equation {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

impl PartialEq for Equation {
    fn eq(&self, other: &Self) -> bool {
        self.operands == other.operands && self.output == other.output
    }
}

impl Eq for Equation {}

impl Hash for Equation {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.operands.hash(state);
        self.output.hash(state);
    }
}
