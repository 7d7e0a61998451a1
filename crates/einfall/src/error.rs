//! The one error of the facade: what each stage of the pipeline may say.

use einfall_cpu::device::CpuDeviceError;
use einfall_equation::{Axis, Diagnostic, Equation, ParseError, Place};
use einfall_plan::{AttentionPlanError, BindError, PlanError, RunError};
use einfall_tensor::TensorError;

/// Why a contraction was not done. `Display` names operand, label and sizes, and points at the equation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The equation is malformed.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The equation does not fit its arguments.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// No plan keeps the limits.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Query, key, value and table make no attention.
    #[error("{0}")]
    Attention(String),
    /// A table's value is outside its axis, or a prepared call got other arguments.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A shape, a stride or a buffer was refused.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A variable of the environment makes no sense.
    #[error("{0}")]
    Environment(String),
    /// A device could not be made.
    #[error(transparent)]
    Device(#[from] CpuDeviceError),
}

impl From<AttentionPlanError> for Error {
    fn from(error: AttentionPlanError) -> Self {
        match error {
            AttentionPlanError::Plan(error) => Error::Plan(error),
            other => Error::Attention(other.to_string()),
        }
    }
}

impl Error {
    /// The error as a message about the equation of the call, with the places that it is about: of an equation, of a
    /// binding, and of a table's value, which points at the bracket that looks it up. `None` for what is about no place
    /// in the equation. Cost: linear in the equation.
    ///
    /// ```
    /// use einfall::{Equation, View, einsum};
    ///
    /// let (x, table) = ([1.0f32, 2.0], [0i64, 2]);
    /// let arguments = [View::from_slice(&x, &[2])?, View::from_slice(&table, &[2])?];
    /// let error = einsum("[e]->e", &arguments).unwrap_err();
    /// let drawn = error.diagnostic(&Equation::parse("[e]->e")?).unwrap().to_string();
    /// assert!(drawn.contains("holds 2 at [1], outside the axis of length 2\n  [e]->e\n  ^^^\nhint: "));
    /// # Ok::<(), einfall::Error>(())
    /// ```
    pub fn diagnostic(&self, equation: &Equation) -> Option<Diagnostic> {
        match self {
            Error::Parse(error) => Some(error.diagnostic().clone()),
            Error::Bind(
                BindError::ArgumentCount(diagnostic)
                | BindError::Rank(diagnostic)
                | BindError::SizeConflict(diagnostic)
                | BindError::MissingSize(diagnostic)
                | BindError::UnknownSize(diagnostic)
                | BindError::DType(diagnostic)
                | BindError::Out(diagnostic)
                | BindError::TooLarge(diagnostic),
            ) => Some((**diagnostic).clone()),
            Error::Run(error @ RunError::TableValue { argument, .. }) => {
                let (place, axis) = lookup_of(equation, *argument)?;
                let text = error.to_string();
                let (message, hint) = match text.split_once("\nhint: ") {
                    Some((message, hint)) => (message.to_owned(), Some(hint.to_owned())),
                    None => (text, None),
                };
                let spans = vec![equation.span(place, axis)];
                Some(Diagnostic { message, text: equation.text().to_owned(), spans, hint })
            }
            _ => None,
        }
    }
}

/// The bracket that looks an argument of the call up; `None` for an argument that is no table.
fn lookup_of(equation: &Equation, argument: usize) -> Option<(Place, usize)> {
    let operands = equation.operands().iter().enumerate();
    let terms = operands.map(|(number, term)| (Place::Operand(number), term)).chain(
        // An implicit output looks nothing up.
        equation.output().map(|output| (Place::Output, output)),
    );
    let mut next = 0;
    for (place, term) in terms {
        next += usize::from(place != Place::Output);
        for (at, axis) in term.axes.iter().enumerate() {
            if matches!(axis, Axis::Lookup(_)) {
                if next == argument {
                    return Some((place, at));
                }
                next += 1;
            }
        }
    }
    None
}

/// Adds what may have been meant where a label stands in the output alone and nothing gives it a length.
pub(crate) fn with_meant(error: BindError, equation: &Equation) -> BindError {
    let BindError::MissingSize(mut diagnostic) = error else { return error };
    let output = equation.output().map_or(&[][..], |output| &output.axes);
    let pointed = output.iter().enumerate().find(|(at, axis)| {
        matches!(axis, Axis::Label(_)) && diagnostic.spans.first() == Some(&equation.span(Place::Output, *at))
    });
    if let Some((_, Axis::Label(label))) = pointed
        && !equation.operands().iter().any(|operand| operand.labels().any(|other| other == *label))
    {
        let meant = equation.meant_output(*label).map(|output| format!("did you mean the output `{output}`? "));
        let hint = format!(
            "{}no operand has `{label}`: to repeat the result along it, name it in `sizes`, as in `{label}=4`",
            meant.unwrap_or_default()
        );
        diagnostic.hint = Some(hint);
    }
    BindError::MissingSize(diagnostic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_finds_its_bracket() {
        let equation = Equation::parse("a[b][c],d,[e+0][f]->[a]b[d]").unwrap();
        let found: Vec<_> = (0..9).map(|argument| lookup_of(&equation, argument)).collect();
        let (at, out) = (|operand, axis| Some((Place::Operand(operand), axis)), |axis| Some((Place::Output, axis)));
        // Operand, its two tables, an operand without, an operand with one behind a window, the tables of the output.
        assert_eq!(found, [None, at(0, 1), at(0, 2), None, None, at(2, 1), out(0), out(2), None]);
    }
}
