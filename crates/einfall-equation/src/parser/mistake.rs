//! What the parser says about each mistake: the message, the places and the hint, all of them in this file.

use super::Parser;
use crate::diagnostic::{push_visible, quoted};
use crate::lexer::Token;
use crate::{Diagnostic, Label, ParseError, ParseErrorKind as Kind, Span};

const ONE_LETTER: &str = "a label is one letter, and space does not separate names: write `ij`, not `row col`";
const ROUND: &str = "axes are not grouped: write their labels one after the other and reshape outside";

impl Parser<'_> {
    fn error(&self, kind: Kind, message: impl Into<String>, spans: Vec<Span>, hint: &str) -> ParseError {
        let hint = (!hint.is_empty()).then(|| hint.to_string());
        ParseError::new(kind, Diagnostic { message: message.into(), text: self.text.to_string(), spans, hint })
    }

    /// `operand 2` or `the output`: the term that is being read.
    fn here(&self) -> String {
        match self.arrow {
            Some(_) => "the output".to_string(),
            None => format!("operand {}", self.terms.len()),
        }
    }

    /// A token that cannot stand outside brackets.
    pub(super) fn wrong_outside(&self, token: Token, span: Span) -> ParseError {
        let here = self.here();
        let (kind, message, hint) = match token {
            Token::Number(_) => (
                Kind::NumberOutsideBrackets,
                format!("a number outside brackets in {here}"),
                "a label is one letter; a fixed position is written `[3]`",
            ),
            Token::Minus => (
                Kind::SignOutsideBrackets,
                format!("`-` outside brackets in {here}"),
                "`->` stands before the output, and a window is written `[i-j]`",
            ),
            Token::Plus => (
                Kind::SignOutsideBrackets,
                format!("`+` outside brackets in {here}"),
                "a window is written `[i+j]`, and an equation has one product, so add the results of two",
            ),
            Token::Star => {
                (Kind::SignOutsideBrackets, format!("`*` outside brackets in {here}"), "operands are separated by `,`")
            }
            Token::Close => (
                Kind::UnopenedBracket,
                format!("`]` without `[` in {here}"),
                "a lookup is written `[ij]`, a window `[i+j]`",
            ),
            _ => return self.wrong_anywhere(token, span),
        };
        self.error(kind, message, vec![span], hint)
    }

    /// What stands in the bracket opened at `open` and cannot stand there; `None` is the end of the text.
    pub(super) fn wrong_inside(&self, found: Option<(Token, Span)>, open: Span) -> ParseError {
        let here = self.here();
        let Some((token, span)) = found else {
            return self.unclosed(open);
        };
        match token {
            Token::Arrow => self.unclosed(open),
            // A comma belongs to the bracket only if that is closed before anything else begins.
            Token::Comma if !self.closes(1) => self.unclosed(open),
            Token::Comma => self.error(
                Kind::CommaInBrackets,
                format!("`,` inside brackets in {here}"),
                vec![span],
                "the labels of a table follow each other: `[bq]`",
            ),
            Token::Open if self.closes(2) => self.error(
                Kind::NestedBracket,
                format!("`[` inside brackets in {here}"),
                vec![open, span],
                "a table is looked up with labels only; look its own entries up beforehand",
            ),
            Token::Open => self.unclosed(open),
            Token::Dots(3) => self.error(
                Kind::EllipsisInBrackets,
                format!("`...` inside brackets in {here}"),
                vec![span],
                "name the axes of the table, each by its label",
            ),
            _ => self.wrong_anywhere(token, span),
        }
    }

    /// A token that cannot stand anywhere.
    fn wrong_anywhere(&self, token: Token, span: Span) -> ParseError {
        let here = self.here();
        let shown = self.shown(span);
        let (kind, message, hint) = match token {
            Token::WrongArrow => {
                (Kind::WrongArrow, format!("`{shown}` where `->` is meant"), "`->` stands before the output")
            }
            Token::Dots(dots) if dots % 3 == 0 => return self.second_ellipsis(vec![span]),
            Token::Dots(_) | Token::Other('…' | '⋯') => (
                Kind::WrongEllipsis,
                format!("`{shown}` in {here} is not an ellipsis"),
                "write three full stops: `...`",
            ),
            Token::Other('(' | ')') => (Kind::WrongBracket, format!("round bracket in {here}"), ROUND),
            Token::Other('{' | '}') => {
                (Kind::WrongBracket, format!("curly bracket in {here}"), "a lookup is written `[ij]`, a window `[i+j]`")
            }
            Token::Other(c) if is_combining(c) => (
                Kind::CombiningMark,
                format!("combining mark `{shown}` in {here}"),
                "a label is one character: use a letter without a mark, or one in which the mark is built in",
            ),
            Token::Other(c) => (Kind::UnexpectedCharacter, format!("unexpected `{shown}` in {here}"), hint_for(c)),
            _ => (Kind::UnexpectedCharacter, format!("unexpected `{shown}` in {here}"), ""),
        };
        self.error(kind, message, vec![span], hint)
    }

    pub(super) fn second_arrow(&self, first: Span, second: Span) -> ParseError {
        let hint = "an equation has one output: bind the first result to a name and give it to a second equation";
        self.error(Kind::SecondArrow, "a second `->`", vec![first, second], hint)
    }

    pub(super) fn comma_in_output(&self, comma: Span) -> ParseError {
        let hint = "an equation has one output: write one equation for each";
        self.error(Kind::CommaInOutput, "`,` after `->`", vec![comma], hint)
    }

    pub(super) fn second_ellipsis(&self, spans: Vec<Span>) -> ParseError {
        let hint = "`...` stands for all axes that have no label, so once is enough";
        self.error(Kind::SecondEllipsis, format!("a second `...` in {}", self.here()), spans, hint)
    }

    pub(super) fn repeated_output_label(&self, label: Label, spans: Vec<Span>) -> ParseError {
        let message = format!("label `{label}` stands in the output {}", times(spans.len()));
        let words = self.spans.last().map_or("", |term| &self.text[term.term.start..term.term.end]);
        let named =
            words.split_whitespace().count() > 1 && words.split_whitespace().any(|word| word.chars().count() > 1);
        let diagonal = format!("to write a diagonal, make the second a window: `{label}[{label}+0]`");
        self.error(Kind::RepeatedOutputLabel, message, spans, if named { ONE_LETTER } else { &diagonal })
    }

    pub(super) fn product(&self, star: Span) -> ParseError {
        let hint = "only an integer can multiply a label, from the left: `[2q]` or `[2*q]`";
        let message = format!("`*` in {} is not between an integer and a label", self.here());
        self.error(Kind::Product, message, vec![star], hint)
    }

    /// `read` are the tokens of the window up to the one that lacks a sign before it.
    pub(super) fn missing_sign(&self, read: &[(Token, Span)]) -> ParseError {
        let (message, spans, hint) = match read {
            [.., (Token::Letter(label), before), (Token::Number(Some(size)), at)] => (
                format!("number after label `{label}` in a window of {}", self.here()),
                vec![Span { start: before.start, end: at.end }],
                format!("a coefficient stands before its label, `{size}{label}`; a sum has a sign, `{label}+{size}`"),
            ),
            [.., (_, before), (_, at)] => (
                format!("no sign between `{}` and `{}` in {}", self.shown(*before), self.shown(*at), self.here()),
                vec![*before, *at],
                "brackets hold labels only (a lookup) or a sum with `+` and `-` (a window)".to_string(),
            ),
            _ => (format!("no sign in a window of {}", self.here()), Vec::new(), String::new()),
        };
        self.error(Kind::MissingSign, message, spans, &hint)
    }

    pub(super) fn missing_term(&self, span: Span) -> ParseError {
        let message = format!("sign without a term in {}", self.here());
        self.error(Kind::MissingTerm, message, vec![span], "a window is a sum such as `[q+w-3]` or `[-2q+5]`")
    }

    pub(super) fn no_effect(&self, label: Label, bracket: Span) -> ParseError {
        let message = format!("label `{label}` has coefficient 0 in {}", self.here());
        self.error(Kind::NoEffect, message, vec![bracket], "it has no effect on the position: leave it out")
    }

    pub(super) fn overflow(&self, span: Span) -> ParseError {
        let message = format!("number out of range in {}", self.here());
        let hint = format!("coefficients and offsets lie between {} and {}", i64::MIN, i64::MAX);
        self.error(Kind::Overflow, message, vec![span], &hint)
    }

    fn unclosed(&self, open: Span) -> ParseError {
        let message = format!("`[` without `]` in {}", self.here());
        self.error(Kind::UnclosedBracket, message, vec![open], "a lookup is written `[ij]`, a window `[i+j]`")
    }

    /// Whether the text goes on to close `brackets` brackets before it opens one or comes to an arrow.
    fn closes(&self, brackets: usize) -> bool {
        let deciding = |token: &Token| matches!(token, Token::Open | Token::Close | Token::Arrow);
        let next = self.lexer.clone().map(|(token, _)| token).filter(deciding).take(brackets);
        next.filter(|token| *token == Token::Close).count() == brackets
    }

    /// The text at `span`, in a form that can be seen.
    fn shown(&self, span: Span) -> String {
        let mut shown = String::new();
        for c in quoted(&self.text[span.start..span.end]).chars() {
            push_visible(&mut shown, c);
        }
        shown
    }
}

fn times(count: usize) -> String {
    if count == 2 { "twice".to_string() } else { format!("{count} times") }
}

/// What is most likely meant by a character that is no part of the notation.
fn hint_for(c: char) -> &'static str {
    match c {
        '_' => ONE_LETTER,
        ';' | '|' | '×' | '·' | '/' | '，' | '、' => "operands are separated by `,`",
        '−' | '–' | '—' => "the minus sign of a window is `-`, and the arrow is `->`",
        '<' => "write `->` before the output",
        '"' | '\'' | '`' | '\\' => "quotation marks and backslashes are no part of an equation",
        '【' | '［' | '】' | '］' => "brackets are `[` and `]`",
        _ if c.is_control() || c.escape_debug().len() > 1 => "the character cannot be seen: delete it",
        _ if c.is_numeric() => "numbers are written with the digits 0 to 9, inside brackets",
        _ => "a label is one letter",
    }
}

/// Whether a character joins the one before it: the blocks of combining marks and variation selectors.
fn is_combining(c: char) -> bool {
    matches!(u32::from(c),
        0x300..=0x36F | 0x483..=0x489 | 0x591..=0x5BD | 0x64B..=0x65F | 0x93C | 0x94D | 0x1AB0..=0x1AFF
        | 0x1DC0..=0x1DFF | 0x200D | 0x20D0..=0x20FF | 0x3099..=0x309A | 0xFE00..=0xFE0F | 0xFE20..=0xFE2F
        | 0xE0100..=0xE01EF)
}
