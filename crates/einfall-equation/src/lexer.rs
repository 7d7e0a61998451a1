//! Text to tokens. Total: every text has tokens, and the parser says which of them are wrong where they stand.

use std::iter::Peekable;
use std::str::CharIndices;

use crate::{Label, Span};

/// The smallest meaningful pieces of an equation.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Token {
    Letter(Label),
    /// A run of ASCII digits; `None` where its value is above `u64::MAX`.
    Number(Option<u64>),
    Plus,
    Minus,
    Star,
    Comma,
    Arrow,
    /// `=>`, `→` and their like.
    WrongArrow,
    /// A run of full stops, with their number.
    Dots(usize),
    Open,
    Close,
    Other(char),
}

/// Iterates over the tokens of a text with their places, leaving white space out.
#[derive(Clone)]
pub(crate) struct Lexer<'t> {
    chars: Peekable<CharIndices<'t>>,
}

impl<'t> Lexer<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Self { chars: text.char_indices().peekable() }
    }

    /// Takes the next character that is not white space, if `wanted` holds for it, and moves `span` up to its end.
    fn take_if(&mut self, span: &mut Span, wanted: impl Fn(char) -> bool) -> Option<char> {
        while self.chars.next_if(|&(_, c)| c.is_whitespace()).is_some() {}
        let (at, c) = self.chars.next_if(|&(_, c)| wanted(c))?;
        span.end = at + c.len_utf8();
        Some(c)
    }

    fn number(&mut self, first: char, span: &mut Span) -> Token {
        let mut value = first.to_digit(10).map(u64::from);
        while let Some(c) = self.take_if(span, |c| c.is_ascii_digit()) {
            let digit = c.to_digit(10).map(u64::from);
            value = value.zip(digit).and_then(|(value, digit)| value.checked_mul(10)?.checked_add(digit));
        }
        Token::Number(value)
    }
}

impl Iterator for Lexer<'_> {
    type Item = (Token, Span);

    fn next(&mut self) -> Option<(Token, Span)> {
        let mut span = Span { start: 0, end: 0 };
        let c = self.take_if(&mut span, |_| true)?;
        span.start = span.end - c.len_utf8();
        let token = match c {
            '+' => Token::Plus,
            '-' if self.take_if(&mut span, |c| c == '>').is_some() => Token::Arrow,
            '-' => Token::Minus,
            '=' if self.take_if(&mut span, |c| c == '>').is_some() => Token::WrongArrow,
            '=' | '>' | '→' | '⇒' | '⟶' | '⟹' | '➔' | '↦' => Token::WrongArrow,
            '*' => Token::Star,
            ',' => Token::Comma,
            '[' => Token::Open,
            ']' => Token::Close,
            '.' => {
                let mut dots = 1;
                while self.take_if(&mut span, |c| c == '.').is_some() {
                    dots += 1;
                }
                Token::Dots(dots)
            }
            '0'..='9' => self.number(c, &mut span),
            _ => Label::new(c).map_or(Token::Other(c), Token::Letter),
        };
        Some((token, span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_left_out_of_tokens_but_counted_in_places() {
        let tokens: Vec<_> = Lexer::new(" λ\t- > 1 2\u{3000}. . .\n=>").collect();
        let span = |start, end| Span { start, end };
        let lambda = Token::Letter(Label::new('λ').unwrap());
        assert_eq!(
            tokens,
            [
                (lambda, span(1, 3)),
                (Token::Arrow, span(4, 7)),
                (Token::Number(Some(12)), span(8, 11)),
                (Token::Dots(3), span(14, 19)),
                (Token::WrongArrow, span(20, 22)),
            ]
        );
    }

    #[test]
    fn numbers_stop_at_the_largest() {
        let value = |text| Lexer::new(text).map(|(token, _)| token).collect::<Vec<_>>();
        assert_eq!(value("18446744073709551615"), [Token::Number(Some(u64::MAX))]);
        assert_eq!(value("18446744073709551616"), [Token::Number(None)]);
    }
}
