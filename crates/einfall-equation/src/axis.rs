//! What a term of an equation is made of: axes, and the operand that lists them.

use std::fmt::{self, Write};

use crate::Label;

/// One axis of an operand or of the output.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Axis {
    /// A label: the position is the label's value. A label that stands twice in one operand takes its diagonal.
    Label(Label),
    /// `...`: as many axes as the shape has beyond the named ones, aligned from the right between operands.
    Ellipsis,
    /// `[bhqk]`: the position is read from an integer table whose axes are these labels. `[]` reads a table with no
    /// axes.
    Lookup(Vec<Label>),
    /// `[q+w-3]`: the position is an affine expression of labels.
    Window(Affine),
}

/// An affine expression of labels, `Σ coefficient·label + offset`.
///
/// In a parsed [`Equation`](crate::Equation) no label stands twice, no coefficient is 0 and the terms are in the order
/// in which their labels first appear. There may be no terms: `[3]` is a fixed position.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Affine {
    /// Labels with their coefficients.
    pub terms: Vec<(Label, i64)>,
    /// The constant, in positions.
    pub offset: i64,
}

/// The axes of one operand, or of the output, from the first to the last; none for a scalar.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Operand {
    /// The axes, from the first (slowest in row-major order) to the last.
    pub axes: Vec<Axis>,
}

impl Axis {
    /// Every label of this axis in reading order, those in brackets included.
    pub fn labels(&self) -> impl Iterator<Item = Label> + '_ {
        let (direct, subscripts, terms): (_, &[Label], &[(Label, i64)]) = match self {
            Axis::Label(label) => (Some(*label), &[], &[]),
            Axis::Ellipsis => (None, &[], &[]),
            Axis::Lookup(labels) => (None, labels, &[]),
            Axis::Window(affine) => (None, &[], &affine.terms),
        };
        let inside = subscripts.iter().copied().chain(terms.iter().map(|&(label, _)| label));
        direct.into_iter().chain(inside)
    }
}

impl Operand {
    /// Every label in reading order, those in brackets included; a repeated label comes as often as it stands there.
    pub fn labels(&self) -> impl Iterator<Item = Label> + '_ {
        self.axes.iter().flat_map(Axis::labels)
    }

    /// The number of lookups, which is the number of tables this operand takes.
    pub fn lookups(&self) -> usize {
        self.axes.iter().filter(|axis| matches!(axis, Axis::Lookup(_))).count()
    }

    /// Whether one of the axes is `...`.
    pub fn has_ellipsis(&self) -> bool {
        self.axes.contains(&Axis::Ellipsis)
    }
}

impl FromIterator<Axis> for Operand {
    fn from_iter<I: IntoIterator<Item = Axis>>(axes: I) -> Self {
        Self { axes: axes.into_iter().collect() }
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.axes.iter().try_for_each(|axis| write!(f, "{axis}"))
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Axis::Label(label) => write!(f, "{label}"),
            Axis::Ellipsis => f.write_str("..."),
            Axis::Lookup(labels) => {
                f.write_char('[')?;
                labels.iter().try_for_each(|label| write!(f, "{label}"))?;
                f.write_char(']')
            }
            Axis::Window(affine) => write!(f, "[{affine}]"),
        }
    }
}

/// Prints the expression without its bracket. A lone label is printed `q+0`, since `[q]` would be a lookup.
impl fmt::Display for Affine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (label, coefficient)) in self.terms.iter().enumerate() {
            if *coefficient < 0 {
                f.write_char('-')?;
            } else if i > 0 {
                f.write_char('+')?;
            }
            match coefficient.unsigned_abs() {
                1 => write!(f, "{label}")?,
                size => write!(f, "{size}{label}")?,
            }
        }
        let reads_as_lookup = matches!(self.terms[..], [(_, 1)]);
        if self.terms.is_empty() {
            write!(f, "{}", self.offset)
        } else if self.offset != 0 || reads_as_lookup {
            write!(f, "{:+}", self.offset)
        } else {
            Ok(())
        }
    }
}
