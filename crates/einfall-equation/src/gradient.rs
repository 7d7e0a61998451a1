//! The gradient of an einsum, which is an einsum again.

use std::collections::HashSet;
use std::fmt;

use crate::{Affine, Axis, Equation, Operand};

/// Why there is no gradient.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum GradientError {
    /// The equation has no operand of this number.
    NoSuchOperand {
        /// The number that was asked for, counted from 0.
        operand: usize,
        /// How many operands the equation has.
        operands: usize,
        /// The equation.
        equation: String,
    },
}

impl fmt::Display for GradientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::NoSuchOperand { operand, operands, equation } = self;
        let (noun, last) = (if *operands == 1 { "operand" } else { "operands" }, operands - 1);
        let known = if last == 0 { "the only one is 0".to_string() } else { format!("they are 0 to {last}") };
        write!(f, "no operand {operand}: the equation has {operands} {noun}\n  {equation}\nhint: {known}")
    }
}

impl std::error::Error for GradientError {}

/// The equation that gives the gradient with respect to operand number `operand` from the gradient of the output.
///
/// The operand and the output change places. The result has the operands of `equation` in their order, but at position
/// `operand` stands the [explicit output](Equation::explicit_output), which now means the *gradient of the output*; the
/// result's output is the operand's own term. So only one argument of the forward call is replaced.
///
/// **Tables** move with the term in which they stand. Every other operand keeps its tables; the tables of the forward
/// output follow the output gradient at position `operand`; the tables of the operand come last, as those of an output
/// do. For `e,[e]d->[e]d` with arguments `values, dense, col, row`, the gradient for operand 0 is `[e]d,[e]d->e` with
/// arguments `grad, row, dense, col`, and for operand 1 `e,[e]d->[e]d` with `values, grad, row, col`.
///
/// **Diagonals**: a label that stands twice in the operand would stand twice in the output. Its second and later places
/// become windows, `ii->i` giving `i->i[i+0]`, so that the gradient is written to the diagonal and is 0 beside it.
///
/// What the text cannot say, the caller does:
/// * Complex operands: give the complex conjugates of the other operands.
/// * Lengths that the operand alone gave now come from nowhere, so give the operand's shape as `sizes`: the length of
///   each lookup and window of the result's output, and of labels that stand in the operand only (`ij->i` has the
///   gradient `i->ij`).
/// * Broadcasting: where the operand was broadcast (an axis of length 1, or fewer axes under `...` than the others),
///   the result has the broadcast length; sum it over those axes.
///
/// # Errors
/// [`GradientError::NoSuchOperand`].
///
/// ```
/// use einfall_equation::{Equation, gradient};
///
/// let scores = Equation::parse("bhqd,bh[bhqk]d->bhqk")?;
/// assert_eq!(gradient(&scores, 0)?.to_string(), "bhqk,bh[bhqk]d->bhqd");
/// assert_eq!(gradient(&scores, 1)?.to_string(), "bhqd,bhqk->bh[bhqk]d");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn gradient(equation: &Equation, operand: usize) -> Result<Equation, GradientError> {
    let mut operands = equation.operands().to_vec();
    let Some(place) = operands.get_mut(operand) else {
        let operands = operands.len();
        return Err(GradientError::NoSuchOperand { operand, operands, equation: equation.to_string() });
    };
    let term = std::mem::replace(place, equation.explicit_output());
    let gradient = Equation::from_parts(operands, Some(without_diagonals(term)));
    Ok(gradient.expect("terms of an equation, none with a label twice in the output, are an equation"))
}

fn without_diagonals(mut term: Operand) -> Operand {
    let mut seen = HashSet::new();
    for axis in &mut term.axes {
        if let Axis::Label(label) = *axis
            && !seen.insert(label)
        {
            *axis = Axis::Window(Affine { terms: vec![(label, 1)], offset: 0 });
        }
    }
    term
}
