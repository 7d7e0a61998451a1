//! What may have been meant where lengths disagree: the labels of one operand in another order, or one other label.
//!
//! *In*: the lengths of all axes that labels name. *Out*: a hint, or the shape alone where nothing or too much fits.
//! *Callers*: binding, once it knows that lengths disagree.

use std::collections::BTreeSet;

use einfall_equation::{Axis, Equation, Label};

use crate::problem::LabelId;

/// An axis that a label names, with its length.
pub(crate) type Measured = (LabelId, usize);

/// What is known where lengths disagree.
pub(crate) struct Disagreement<'a> {
    pub(crate) equation: &'a Equation,
    /// Of each operand, the axes that a label names, in order.
    pub(crate) operands: &'a [Vec<Measured>],
    /// Axes of ellipses and tables.
    pub(crate) others: &'a [Measured],
    /// The letter of a label.
    pub(crate) letter: &'a dyn Fn(LabelId) -> Option<Label>,
}

/// More labels are not permuted: 6! orders are tried at most.
const MOST_PERMUTED: usize = 6;
/// Longer equations are not searched.
const MOST_AXES: usize = 200;

impl Disagreement<'_> {
    /// The term of an operand with which all lengths would agree, if there is one that is closest to what was written:
    /// the fewest labels moved, or else one label replaced by another one of the equation.
    pub(crate) fn meant(&self, operand: usize) -> Option<String> {
        let axes = &self.operands[operand];
        let all = self.operands.iter().map(Vec::len).sum::<usize>() + self.others.len();
        if all > MOST_AXES {
            return None;
        }
        let written: Vec<LabelId> = axes.iter().map(|(label, _)| *label).collect();
        let mut orders = Vec::new();
        if written.len() <= MOST_PERMUTED {
            permute(&mut written.clone(), 0, &mut orders);
        }
        let moved = |order: &[LabelId]| order.iter().zip(&written).filter(|(a, b)| a != b).count();
        let fitting = |candidates: Vec<Vec<LabelId>>| -> BTreeSet<(usize, Vec<LabelId>)> {
            let fits = candidates.into_iter().filter(|labels| *labels != written && self.agree(operand, labels));
            fits.map(|labels| (moved(&labels), labels)).collect()
        };
        let found = closest(fitting(orders)).or_else(|| closest(fitting(self.replaced(operand, &written))))?;
        let mut term = self.equation.operands()[operand].clone();
        let direct = term.axes.iter_mut().filter(|axis| matches!(axis, Axis::Label(_)));
        for (axis, label) in direct.zip(found) {
            *axis = Axis::Label((self.letter)(label)?);
        }
        Some(term.to_string())
    }

    /// Every way to write another label of the equation once, where the old one keeps a length elsewhere.
    fn replaced(&self, operand: usize, written: &[LabelId]) -> Vec<Vec<LabelId>> {
        let elsewhere: BTreeSet<LabelId> = self.elsewhere(operand).map(|(label, _)| label).collect();
        let new = elsewhere.iter().filter(|label| !written.contains(label));
        let replace = |at: usize, label: LabelId| {
            let mut labels = written.to_vec();
            labels[at] = label;
            labels
        };
        let places = (0..written.len()).filter(|&at| elsewhere.contains(&written[at]));
        new.flat_map(|&label| places.clone().map(move |at| replace(at, label))).collect()
    }

    fn elsewhere(&self, operand: usize) -> impl Iterator<Item = Measured> {
        let others = self.operands.iter().enumerate().filter(move |(other, _)| *other != operand);
        others.flat_map(|(_, axes)| axes).chain(self.others).copied()
    }

    /// Whether each label would have one length, lengths of one aside.
    fn agree(&self, operand: usize, labels: &[LabelId]) -> bool {
        let lens = self.operands[operand].iter().map(|(_, len)| *len);
        let mut all: Vec<Measured> = self.elsewhere(operand).chain(labels.iter().copied().zip(lens)).collect();
        all.retain(|(_, len)| *len != 1);
        all.sort_unstable();
        all.dedup();
        all.windows(2).all(|pair| pair[0].0 != pair[1].0)
    }
}

/// The one candidate that is closest to what was written.
fn closest(candidates: BTreeSet<(usize, Vec<LabelId>)>) -> Option<Vec<LabelId>> {
    let mut by_distance = candidates.into_iter();
    let (least, labels) = by_distance.next()?;
    by_distance.next().is_none_or(|(distance, _)| distance > least).then_some(labels)
}

fn permute(labels: &mut Vec<LabelId>, from: usize, found: &mut Vec<Vec<LabelId>>) {
    if from == labels.len() {
        return found.push(labels.clone());
    }
    for at in from..labels.len() {
        labels.swap(from, at);
        permute(labels, from + 1, found);
        labels.swap(from, at);
    }
}
