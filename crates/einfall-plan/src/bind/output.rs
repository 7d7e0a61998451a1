//! The shape, the type and the layout of the output.

use einfall_equation::{Operand as Written, Place, quoted};
use einfall_tensor::{DType, Dims, Layout, element_count};

use super::scope::Scope;
use super::sizes::find_bracket;
use super::{Argument, AxisKind, BindError, BindOptions, BoundAxis, build_term, plural};
use crate::problem::{LabelInfo, Output};

pub(crate) fn bind_output(
    scope: &Scope<'_>,
    axes: &[BoundAxis],
    labels: &[LabelInfo],
    dtype: DType,
    options: &BindOptions,
    written: &Written,
) -> Result<Output, BindError> {
    let out = options.out.as_ref();
    if let Some(out) = out.filter(|out| out.layout.shape.len() != axes.len()) {
        let message = format!("`out` has {} but the result has {}", plural(out.layout.shape.len(), "axis"), axes.len());
        return Err(BindError::Out(scope.diagnose(message, &[(Place::Output, None)])));
    }
    let mut shape = Dims::new();
    for (number, axis) in axes.iter().enumerate() {
        let given = out.map(|out| out.layout.shape[number]);
        shape.push(match &axis.kind {
            AxisKind::Label(label) => labels[label.0 as usize].len,
            _ => bracket_len(scope, axis, written, options, given)?,
        });
    }
    let layout = match out {
        None => Layout::contiguous(&shape),
        Some(out) => {
            check_out(scope, out, &shape, dtype)?;
            out.layout.clone()
        }
    };
    let too_large = |error: String| BindError::TooLarge(scope.diagnose(error, &[(Place::Output, None)]));
    let result_dtype = out.map_or(dtype, |out| out.dtype);
    element_count(&shape)
        .ok()
        .and_then(|count| count.checked_mul(result_dtype.bytes()))
        .filter(|&bytes| bytes <= isize::MAX as usize)
        .ok_or_else(|| {
            too_large(format!("the result would have shape {:?}, more than can be addressed", &shape[..]))
        })?;
    let term = |layout: &Layout| {
        build_term(axes, layout, labels)
            .ok_or_else(|| too_large("a window position of the output does not fit 64 bits".into()))
    };
    Ok(Output { dtype: result_dtype, term: term(&layout)?, row_major: term(&Layout::contiguous(&shape))?, layout })
}

/// Length of a scattered axis: from `sizes` under its bracket, else from `out`.
fn bracket_len(
    scope: &Scope<'_>,
    axis: &BoundAxis,
    written: &Written,
    options: &BindOptions,
    given: Option<usize>,
) -> Result<usize, BindError> {
    let bracket = &written.axes[axis.written];
    let shown = quoted(&bracket.to_string());
    let named = options.sizes.iter().find(|(key, _)| find_bracket(written, key) == Some(bracket));
    match (named, given) {
        (Some((_, &len)), Some(out)) if len != out => {
            let message = format!("axis `{shown}` is {out} in `out` but {len} in `sizes`");
            Err(BindError::Out(scope.diagnose(message, &[(Place::Output, Some(axis.written))])))
        }
        (Some((_, &len)), _) | (None, Some(len)) => Ok(len),
        (None, None) => {
            let message = format!("nothing gives the output axis `{shown}` a length");
            let hint = format!("name it in `sizes`, as in `{shown}=1000`");
            Err(BindError::MissingSize(scope.diagnose_with_hint(message, &[(Place::Output, Some(axis.written))], hint)))
        }
    }
}

fn check_out(scope: &Scope<'_>, out: &Argument, shape: &[usize], dtype: DType) -> Result<(), BindError> {
    let at = [(Place::Output, None)];
    if out.layout.shape.as_slice() != shape {
        let message = format!("`out` has shape {:?} but the result has shape {shape:?}", out.layout.shape.as_slice());
        return Err(BindError::Out(scope.diagnose(message, &at)));
    }
    if !out.layout.is_injective() {
        let message = format!("`out` with strides {:?} overlaps itself", out.layout.strides.as_slice());
        return Err(BindError::Out(scope.diagnose(message, &at)));
    }
    if !dtype.can_cast_same_kind(out.dtype) {
        let message = format!("a result of type {dtype} cannot be stored in `out` of type {}", out.dtype);
        return Err(BindError::DType(scope.diagnose(message, &at)));
    }
    Ok(())
}
