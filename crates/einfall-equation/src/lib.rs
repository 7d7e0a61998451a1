//! The notation of einfall: text goes in, an immutable [`Equation`] comes out, and errors point at the character.
//!
//! This crate knows nothing of tensors, lengths or devices. Every other crate may use it; it depends on none.
//!
//! ```text
//! equation = operand { "," operand } [ "->" operand ]
//! operand  = { axis | "..." }
//! axis     = label                       one Unicode letter
//!          | "[" { label } "]"           a lookup: the position is read from a table with these subscripts
//!          | "[" [sign] term { sign term } "]"   a window: the position is an affine expression of labels
//! term     = integer | [ integer [ "*" ] ] label
//! sign     = "+" | "-"
//! ```
//!
//! White space is ignored everywhere, even inside `->`, `...` and numbers. A bracket that holds nothing but labels
//! (or nothing at all) is a lookup; a sign or a digit makes it a window, so `[i]` reads a table and `[i+0]` is position
//! `i`. The parser takes time linear in the text, does not recurse, and panics on no text.
//!
//! ```
//! use einfall_equation::{Equation, gradient};
//!
//! let scores: Equation = "bhqd, bh[bhqk]d -> bhqk".parse()?;
//! assert_eq!(scores.operands()[1].lookups(), 1);
//! assert_eq!(gradient(&scores, 1)?.to_string(), "bhqd,bhqk->bh[bhqk]d");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod axis;
mod diagnostic;
mod equation;
mod error;
mod gradient;
mod hint;
mod label;
mod lexer;
mod parser;

pub use axis::{Affine, Axis, Operand};
pub use diagnostic::{Diagnostic, Span, quoted};
pub use equation::{Equation, Place};
pub use error::{ParseError, ParseErrorKind};
pub use gradient::{GradientError, gradient};
pub use label::Label;
