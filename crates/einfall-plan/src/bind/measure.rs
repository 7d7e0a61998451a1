//! Lengths that axes of operands and tables give to labels, and what is said where they disagree.

use einfall_equation::{Axis, Diagnostic, Equation, Label, Place};

use super::scope::{Conflict, Giver, Scope};
use super::suggest::{Disagreement, Measured};
use super::{Argument, Assigned, AxisKind, BindError, BoundAxis, UnboundTable};

/// Everything that gives labels a length.
pub(crate) struct Axes<'a> {
    pub(crate) equation: &'a Equation,
    pub(crate) operands: &'a [Vec<BoundAxis>],
    pub(crate) assigned: &'a [Assigned],
    pub(crate) tables: &'a [UnboundTable],
    pub(crate) arguments: &'a [Argument],
}

impl Axes<'_> {
    /// Gives every label the length of its axes; lengths of one broadcast.
    ///
    /// # Errors
    /// [`BindError::SizeConflict`].
    pub(crate) fn measure(&self, scope: &mut Scope<'_>) -> Result<(), BindError> {
        for number in 0..self.operands.len() {
            for (axis, len) in self.axes_of(number) {
                if let AxisKind::Label(label) = axis.kind {
                    let place = (Place::Operand(number), axis.written);
                    let found = scope.measure(label, len, Giver::Operand(number), place);
                    found.map_err(|conflict| self.describe(scope, conflict))?;
                }
            }
        }
        for table in self.tables {
            let shape = &self.arguments[table.argument].layout.shape;
            for (&label, &len) in table.labels.iter().zip(shape) {
                let found = scope.measure(label, len, Giver::Table(table.argument), table.place);
                found.map_err(|conflict| self.describe(scope, conflict))?;
            }
        }
        Ok(())
    }

    fn axes_of(&self, operand: usize) -> impl Iterator<Item = (&BoundAxis, usize)> {
        let shape = &self.arguments[self.assigned[operand].operand].layout.shape;
        self.operands[operand].iter().zip(shape.iter().copied())
    }

    /// The message, with what may have been meant: first of the later of the two.
    fn describe(&self, scope: &Scope<'_>, conflict: Conflict) -> BindError {
        let shape = |giver: Giver| {
            let argument = match giver {
                Giver::Operand(number) => self.assigned[number].operand,
                Giver::Table(argument) => argument,
            };
            format!("{giver} has shape {:?}", self.arguments[argument].layout.shape.as_slice())
        };
        let meant = |giver: Giver| match giver {
            Giver::Operand(number) => self.meant(scope, number).map(|term| (giver, term)),
            Giver::Table(_) => None,
        };
        let [before, giver] = conflict.givers;
        let hint = match meant(giver).or_else(|| meant(before)) {
            Some((giver, term)) => format!("{}; did you mean `{term}`?", shape(giver)),
            None => shape(giver),
        };
        BindError::SizeConflict(Box::new(Diagnostic {
            message: conflict.message,
            text: self.equation.text().to_string(),
            spans: conflict.spans,
            hint: Some(hint),
        }))
    }

    /// The term of an operand with which all lengths would agree.
    fn meant(&self, scope: &Scope<'_>, operand: usize) -> Option<String> {
        let mut operands: Vec<Vec<Measured>> = vec![Vec::new(); self.operands.len()];
        let mut others: Vec<Measured> = Vec::new();
        for (number, direct) in operands.iter_mut().enumerate() {
            for (axis, len) in self.axes_of(number) {
                let AxisKind::Label(label) = axis.kind else { continue };
                let written = &self.equation.operands()[number].axes[axis.written];
                if matches!(written, Axis::Label(_)) { direct.push((label, len)) } else { others.push((label, len)) }
            }
        }
        for table in self.tables {
            let shape = self.arguments[table.argument].layout.shape.iter().copied();
            others.extend(table.labels.iter().copied().zip(shape));
        }
        let letter = |label| scope.name(label).chars().next().and_then(Label::new);
        let (operands, others) = (&operands, &others);
        Disagreement { equation: self.equation, operands, others, letter: &letter }.meant(operand)
    }
}
