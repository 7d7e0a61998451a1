//! Lengths that no operand axis gives: from `sizes`, from windows, from `out`.

use std::collections::BTreeMap;

use einfall_equation::{Axis, Label, Operand as Written};

use super::scope::Scope;
use super::{Argument, AxisKind, BindError, BoundAxis, Sizes};
use crate::problem::LabelId;

/// Applies the caller's `sizes`; a bracket is read by [`super::output`].
///
/// A label that operands measured already must agree, except that a length of one broadcasts.
pub(crate) fn apply(scope: &mut Scope<'_>, sizes: &Sizes, output: &Written) -> Result<(), BindError> {
    for (key, &len) in sizes {
        let mut letters = key.chars();
        let label = match (letters.next().and_then(Label::new), letters.next()) {
            (Some(label), None) => scope.find(label),
            _ => None,
        };
        let Some(label) = label else {
            if find_bracket(output, key).is_some() {
                continue;
            }
            let message = format!("`sizes` names `{key}`, which the equation does not have");
            let hint = "a key is a label, or a whole bracket of the output such as `[e]`".to_string();
            return Err(BindError::UnknownSize(scope.diagnose_with_hint(message, &[], hint)));
        };
        match scope.len(label) {
            Some(known) if known == len => {}
            Some(known) if known != 1 => {
                return Err(BindError::SizeConflict(scope.conflict_with_sizes(label, known, len)));
            }
            _ => scope.set_len(label, len),
        }
    }
    Ok(())
}

/// The axis of the output that a key such as `[e]` names, spaces ignored.
pub(crate) fn find_bracket<'o>(output: &'o Written, key: &str) -> Option<&'o Axis> {
    let key: String = key.chars().filter(|c| !c.is_whitespace()).collect();
    output.axes.iter().find(|axis| matches!(axis, Axis::Lookup(_) | Axis::Window(_)) && axis.to_string() == key)
}

/// A window: labels with their coefficients, the constant, and the length of the axis.
pub(crate) type WindowOn<'w> = (&'w [(LabelId, i64)], i64, usize);

/// Gives a label that only windows have the largest length that keeps them inside their axes.
///
/// This is the "valid" convolution: `[x+u]` on an axis of 10 with `u` of 3 gives `x` the length 8. It is done where all
/// other labels of the window are known and no position is negative; of several windows the tightest decides.
pub(crate) fn infer_from_windows(scope: &mut Scope<'_>, windows: &[WindowOn<'_>]) {
    loop {
        let mut found: BTreeMap<LabelId, usize> = BTreeMap::new();
        for (label, len) in windows.iter().filter_map(|window| infer_one(scope, window)) {
            found.entry(label).and_modify(|least| *least = len.min(*least)).or_insert(len);
        }
        if found.is_empty() {
            return;
        }
        found.into_iter().for_each(|(label, len)| scope.set_len(label, len));
    }
}

/// The one unknown label of a window, and the length that the window allows it.
fn infer_one(scope: &Scope<'_>, &(terms, offset, len): &WindowOn<'_>) -> Option<(LabelId, usize)> {
    let mut unknown = terms.iter().filter(|(label, _)| scope.len(*label).is_none());
    let (Some(&(label, by)), None) = (unknown.next(), unknown.next()) else { return None };
    let (mut least, mut most) = (i128::from(offset), i128::from(offset));
    for &(other, coefficient) in terms.iter().filter(|(other, _)| *other != label) {
        let last = scope.len(other)?.checked_sub(1)?;
        let reach = i128::from(coefficient) * last as i128;
        if reach < 0 { least += reach } else { most += reach }
    }
    let room = len as i128 - 1 - most;
    let len = if room < 0 { 0 } else { room / i128::from(by.max(1)) + 1 };
    (by > 0 && least >= 0).then_some((label, len as usize))
}

/// Gives labels that only the output has the lengths of the array to write.
pub(crate) fn infer_from_out(
    scope: &mut Scope<'_>,
    labels: impl Iterator<Item = LabelId>,
    axes: &[BoundAxis],
    out: Option<&Argument>,
) {
    let Some(out) = out.filter(|out| out.layout.shape.len() == axes.len()) else { return };
    let lens = axes.iter().zip(&out.layout.shape).filter(|(axis, _)| matches!(axis.kind, AxisKind::Label(_)));
    for (label, (_, &len)) in labels.zip(lens) {
        if scope.len(label).is_none() {
            scope.set_len(label, len);
        }
    }
}
