//! Why a text is not an equation.

use std::fmt;

use crate::Diagnostic;

/// A text that is not an equation: what kind of mistake it is, and a [`Diagnostic`] that shows where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParseError {
    kind: ParseErrorKind,
    diagnostic: Diagnostic,
}

/// The mistakes that the parser tells apart.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ParseErrorKind {
    /// A character that is no part of the notation, such as `_`, `;` or a control character.
    UnexpectedCharacter,
    /// A combining mark: together with the letter before it, it looks like one label, but it is a second character.
    CombiningMark,
    /// A digit outside brackets, as in `i1`.
    NumberOutsideBrackets,
    /// A `+`, `-` or `*` outside brackets, as in `i-j`.
    SignOutsideBrackets,
    /// `=>`, `→` or `>` where `->` is meant.
    WrongArrow,
    /// A second `->`.
    SecondArrow,
    /// A comma after `->`.
    CommaInOutput,
    /// A run of full stops whose length is not three, or the single character `…`.
    WrongEllipsis,
    /// A second `...` in one operand or in the output.
    SecondEllipsis,
    /// A round or curly bracket.
    WrongBracket,
    /// A `[` without its `]`.
    UnclosedBracket,
    /// A `]` without its `[`.
    UnopenedBracket,
    /// A `[` inside brackets.
    NestedBracket,
    /// A `...` inside brackets.
    EllipsisInBrackets,
    /// A comma inside brackets, as in `[b,q]`.
    CommaInBrackets,
    /// Two terms of a window without `+` or `-` between them, as in `[qw+1]` and `[q2]`.
    MissingSign,
    /// A sign in a window with no term after it, as in `[q+]`.
    MissingTerm,
    /// A `*` in a window that does not stand between an integer and a label, as in `[q*w]`.
    Product,
    /// A coefficient or an offset that does not fit in an `i64`.
    Overflow,
    /// A label whose coefficient is 0, as in `[0q+w]` and `[q-q]`.
    NoEffect,
    /// A label that stands directly in the output twice.
    RepeatedOutputLabel,
    /// No operand at all; only [`Equation::from_parts`](crate::Equation::from_parts) can be given none.
    NoOperand,
}

impl ParseError {
    pub(crate) fn new(kind: ParseErrorKind, diagnostic: Diagnostic) -> Self {
        Self { kind, diagnostic }
    }

    /// What kind of mistake it is.
    pub fn kind(&self) -> ParseErrorKind {
        self.kind
    }

    /// The message, the text and the places.
    pub fn diagnostic(&self) -> &Diagnostic {
        &self.diagnostic
    }
}

/// Renders the [`Diagnostic`].
impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.diagnostic.fmt(f)
    }
}

impl std::error::Error for ParseError {}
