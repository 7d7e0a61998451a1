//! The inside of a bracket: a lookup or a window.

use std::collections::HashMap;

use super::Parser;
use crate::lexer::Token;
use crate::{Affine, Axis, Label, ParseError, Span};

impl Parser<'_> {
    /// Reads the rest of a bracket whose `[` is at `span`, and moves `span` up to its `]`.
    pub(super) fn bracket(&mut self, span: &mut Span) -> Result<Axis, ParseError> {
        let mut tokens: Vec<(Token, Span)> = Vec::new();
        loop {
            match self.lexer.next() {
                Some((Token::Close, close)) => {
                    span.end = close.end;
                    break;
                }
                Some((token, place)) if in_brackets(token) => tokens.push((token, place)),
                wrong => return Err(self.wrong_inside(wrong, *span)),
            }
        }
        let label = |&(token, _): &(Token, Span)| match token {
            Token::Letter(label) => Some(label),
            _ => None,
        };
        match tokens.iter().map(label).collect() {
            Some(labels) => Ok(Axis::Lookup(labels)),
            None => self.window(&tokens, *span).map(Axis::Window),
        }
    }

    fn window(&self, tokens: &[(Token, Span)], span: Span) -> Result<Affine, ParseError> {
        let mut terms: Vec<(Label, i128)> = Vec::new();
        let mut places: HashMap<Label, usize> = HashMap::new();
        let mut offset = 0i128;
        let mut rest = tokens;
        while let [(first, place), after @ ..] = rest {
            let sign = match first {
                Token::Plus | Token::Minus => Some(*first),
                _ if rest.len() == tokens.len() => None,
                Token::Star => return Err(self.product(*place)),
                _ => return Err(self.missing_sign(&tokens[..=tokens.len() - rest.len()])),
            };
            if sign.is_some() {
                rest = after;
            }
            let sign = if sign == Some(Token::Minus) { -1 } else { 1 };
            let (size, label) = self.window_term(&mut rest, Span { start: place.start, end: span.end })?;
            // Sums of fewer than 2^63 terms below 2^64 cannot overflow, and a text has fewer bytes than that.
            match label {
                None => offset += sign * size,
                Some(label) => {
                    let at = *places.entry(label).or_insert(terms.len());
                    if at == terms.len() {
                        terms.push((label, 0));
                    }
                    terms[at].1 += sign * size;
                }
            }
        }
        if let Some((label, _)) = terms.iter().find(|(_, coefficient)| *coefficient == 0) {
            return Err(self.no_effect(*label, span));
        }
        let fitting = |value: i128| i64::try_from(value).map_err(|_| self.overflow(span));
        let terms = terms.into_iter().map(|(label, coefficient)| Ok((label, fitting(coefficient)?)));
        Ok(Affine { terms: terms.collect::<Result<_, ParseError>>()?, offset: fitting(offset)? })
    }

    /// Takes `integer`, `label`, `integer label` or `integer * label` from the front of `rest`. `whole` goes from the
    /// sign of the term to the end of the bracket.
    fn window_term(&self, rest: &mut &[(Token, Span)], whole: Span) -> Result<(i128, Option<Label>), ParseError> {
        match **rest {
            [(Token::Number(None), place), ..] => Err(self.overflow(place)),
            [(Token::Number(Some(_)), _), (Token::Star, star), ..]
                if !matches!(rest.get(2), Some((Token::Letter(_), _))) =>
            {
                Err(self.product(star))
            }
            [(Token::Number(Some(size)), _), (Token::Star, _), (Token::Letter(label), _), ..] => {
                *rest = &rest[3..];
                Ok((size.into(), Some(label)))
            }
            [(Token::Number(Some(size)), _), (Token::Letter(label), _), ..] => {
                *rest = &rest[2..];
                Ok((size.into(), Some(label)))
            }
            [(Token::Number(Some(size)), _), ..] => {
                *rest = &rest[1..];
                Ok((size.into(), None))
            }
            [(Token::Letter(label), _), ..] => {
                *rest = &rest[1..];
                Ok((1, Some(label)))
            }
            [(Token::Star, place), ..] => Err(self.product(place)),
            [(_, next), ..] => Err(self.missing_term(Span { start: whole.start, end: next.end })),
            [] => Err(self.missing_term(Span { start: whole.start, end: whole.start + 1 })),
        }
    }
}

/// Whether a token can stand in a bracket.
fn in_brackets(token: Token) -> bool {
    matches!(token, Token::Letter(_) | Token::Number(_) | Token::Plus | Token::Minus | Token::Star)
}
