//! Tokens to terms. One pass, one token at a time; the tokens of a bracket are held until it is closed.

mod bracket;
mod mistake;

use crate::lexer::{Lexer, Token};
use crate::{Axis, Diagnostic, Operand, ParseError, ParseErrorKind, Span};

/// Where a term stands.
#[derive(Clone, Debug)]
pub(crate) struct TermSpans {
    pub(crate) term: Span,
    pub(crate) axes: Vec<Span>,
}

/// What a text says.
pub(crate) struct Parsed {
    pub(crate) operands: Vec<Operand>,
    pub(crate) output: Option<Operand>,
    /// Of the operands, then of the output.
    pub(crate) spans: Vec<TermSpans>,
}

/// Reads a text.
pub(crate) fn parse(text: &str) -> Result<Parsed, ParseError> {
    Parser { text, lexer: Lexer::new(text), terms: Vec::new(), spans: Vec::new(), arrow: None }.run()
}

/// The error of an equation without operands.
pub(crate) fn no_operand(output: Option<&Operand>) -> ParseError {
    let text = output.map(|output| format!("->{output}")).unwrap_or_default();
    let message = "an equation has at least one operand".to_string();
    ParseError::new(ParseErrorKind::NoOperand, Diagnostic { message, text, spans: vec![], hint: None })
}

struct Parser<'t> {
    text: &'t str,
    lexer: Lexer<'t>,
    /// The terms read so far, the output among them.
    terms: Vec<Operand>,
    spans: Vec<TermSpans>,
    arrow: Option<Span>,
}

impl Parser<'_> {
    fn run(mut self) -> Result<Parsed, ParseError> {
        loop {
            let (axes, spans, end) = self.term()?;
            let (first, last) = (spans.first(), spans.last());
            let at = end.map_or(self.text.len(), |(_, span)| span.start);
            let term = Span { start: first.map_or(at, |s| s.start), end: last.map_or(at, |s| s.end) };
            self.terms.push(Operand { axes });
            self.spans.push(TermSpans { term, axes: spans });
            match end {
                None => break,
                Some((Token::Arrow, span)) => match self.arrow {
                    Some(first) => return Err(self.second_arrow(first, span)),
                    None => self.arrow = Some(span),
                },
                Some((_, span)) if self.arrow.is_some() => return Err(self.comma_in_output(span)),
                Some(_) => {}
            }
        }
        let output = self.arrow.and_then(|_| self.terms.pop());
        if let Some(output) = &output {
            self.check_output(output)?;
        }
        Ok(Parsed { operands: self.terms, output, spans: self.spans })
    }

    /// Reads axes up to a comma, an arrow or the end, and returns them, their places and what ended them.
    #[allow(clippy::type_complexity)]
    fn term(&mut self) -> Result<(Vec<Axis>, Vec<Span>, Option<(Token, Span)>), ParseError> {
        let (mut axes, mut spans) = (Vec::new(), Vec::new());
        let mut ellipsis = None;
        while let Some((token, mut span)) = self.lexer.next() {
            let axis = match token {
                Token::Comma | Token::Arrow => return Ok((axes, spans, Some((token, span)))),
                Token::Letter(label) => Axis::Label(label),
                Token::Dots(3) => match ellipsis.replace(span) {
                    Some(first) => return Err(self.second_ellipsis(vec![first, span])),
                    None => Axis::Ellipsis,
                },
                Token::Open => self.bracket(&mut span)?,
                wrong => return Err(self.wrong_outside(wrong, span)),
            };
            axes.push(axis);
            spans.push(span);
        }
        Ok((axes, spans, None))
    }

    /// Refuses a label that stands directly in the output twice.
    fn check_output(&self, output: &Operand) -> Result<(), ParseError> {
        let direct = output.axes.iter().enumerate().filter_map(|(i, axis)| match axis {
            Axis::Label(label) => Some((*label, i)),
            _ => None,
        });
        let mut direct: Vec<_> = direct.collect();
        direct.sort_unstable();
        // Of all repeated labels, name the one whose repetition comes first in the text.
        let repeated = direct.chunk_by(|a, b| a.0 == b.0).filter(|run| run.len() > 1).min_by_key(|run| run[1].1);
        let Some(run) = repeated else { return Ok(()) };
        let places = self.spans.last().map_or(&[][..], |term| &term.axes);
        let spans = run.iter().map(|&(_, axis)| places[axis]).collect();
        Err(self.repeated_output_label(run[0].0, spans))
    }
}
