//! What may have been meant by a label that no operand has.

use std::collections::BTreeMap;

use crate::{Axis, Equation, Label, Operand};

impl Equation {
    /// The output that was probably meant where it names a label that no operand has: the same with that label replaced
    /// by one of the operands that the output lacks. `None` where operands have the label, or where nothing or more than
    /// one label is close.
    ///
    /// Close is the same letter in the other case, else the only label that stands once in all operands, else the only
    /// label that the output lacks. Takes time linear in the equation but for sorting labels.
    ///
    /// ```
    /// use einfall_equation::{Equation, Label};
    ///
    /// let equation = Equation::parse("ij,jk->iz")?;
    /// let meant = equation.meant_output(Label::new('z').unwrap()).unwrap();
    /// assert_eq!(meant.to_string(), "ik");
    /// # Ok::<(), einfall_equation::ParseError>(())
    /// ```
    pub fn meant_output(&self, label: Label) -> Option<Operand> {
        let output = self.output()?;
        let mut counts: BTreeMap<Label, usize> = BTreeMap::new();
        for one in self.operands().iter().flat_map(Operand::labels) {
            *counts.entry(one).or_default() += 1;
        }
        if counts.contains_key(&label) {
            return None;
        }
        for one in output.labels() {
            counts.remove(&one);
        }
        let same_letter =
            |&(one, _): &(&Label, &usize)| one.as_char().to_lowercase().eq(label.as_char().to_lowercase());
        let meant = only(counts.iter().filter(same_letter))
            .or_else(|| only(counts.iter().filter(|(_, count)| **count == 1)))
            .or_else(|| only(counts.iter()))?;
        let mut output = output.clone();
        for axis in &mut output.axes {
            if *axis == Axis::Label(label) {
                *axis = Axis::Label(meant);
            }
        }
        Some(output)
    }
}

/// The label of the one candidate.
fn only<'a>(mut candidates: impl Iterator<Item = (&'a Label, &'a usize)>) -> Option<Label> {
    let (&label, _) = candidates.next()?;
    candidates.next().is_none().then_some(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_close_label_is_meant() {
        for (equation, meant) in [
            ("ij,jk->iz", Some("ik")),
            ("ij,jk->zi", Some("ki")),
            // Another case of the letter goes before a label that stands once.
            ("iZ,Zk->iz", Some("iZ")),
            // A label that stands twice is meant only where there is no other.
            ("ij,j->iz", Some("ij")),
            ("qd,[qk]d->qz", Some("qk")),
            ("q,[qk]->qz", Some("qk")),
            ("x,[q+w]x->qxz", Some("qxw")),
            // Too many, or none.
            ("ij,kl->iz", None),
            ("ij->ijz", None),
            ("->z", None),
            // An operand has it.
            ("z,k->z", None),
        ] {
            let equation = Equation::parse(equation).unwrap();
            let found = equation.meant_output(Label::new('z').unwrap()).map(|output| output.to_string());
            assert_eq!(found.as_deref(), meant, "{equation}");
        }
    }
}
