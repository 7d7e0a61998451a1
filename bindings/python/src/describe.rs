//! Arguments of a plan without their data: from arrays of any library, or from shapes.

use einfall::{Argument, DType, Equation, Layout};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use crate::error::to_python;
use crate::kind::{Kind, kind};
use crate::{array, torch};

/// Says for each argument of an equation whether it is a table.
pub(crate) fn tables(equation: &Equation) -> Vec<bool> {
    let mut tables = Vec::new();
    for operand in equation.operands() {
        tables.push(false);
        tables.resize(tables.len() + operand.lookups(), true);
    }
    tables.resize(tables.len() + equation.explicit_output().lookups(), true);
    tables
}

/// Describes what was given in place of operands: arrays, or shapes as tuples or lists of integers.
///
/// A shape is taken as row-major, of `dtype` (`f32` if there is none), or of `i64` where a table stands.
pub(crate) fn arguments(
    py: Python<'_>,
    equation: &str,
    given: &[Bound<'_, PyAny>],
    dtype: Option<DType>,
) -> PyResult<Vec<Argument>> {
    let parsed = Equation::parse(equation).map_err(|error| to_python(py, error.into()))?;
    let tables = tables(&parsed);
    let describe = |(number, given): (usize, &Bound<'_, PyAny>)| {
        let table = tables.get(number).copied().unwrap_or(false);
        let dtype = if table { DType::I64 } else { dtype.unwrap_or(DType::F32) };
        argument(number, given, dtype)
    };
    given.iter().enumerate().map(describe).collect()
}

/// The same for an attention, whose tables are given once, after the key, or after key and value.
pub(crate) fn attention_arguments(
    py: Python<'_>,
    equation: &str,
    given: &[Bound<'_, PyAny>],
    dtype: Option<DType>,
) -> PyResult<Vec<Argument>> {
    let (equation, offsets) = equation.split_once('|').map_or((equation, false), |(text, _)| (text, true));
    let parsed = Equation::parse(equation).map_err(|error| to_python(py, error.into()))?;
    let mut tables = tables(&parsed);
    if offsets {
        tables.push(true);
    }
    let of_value = parsed.operands().get(2).map_or(0, |value| value.lookups());
    if tables.len() == given.len() + of_value {
        let before: usize = parsed.operands().iter().take(3).map(|operand| operand.lookups() + 1).sum();
        tables.drain(before - of_value..before);
    }
    let describe = |(number, given): (usize, &Bound<'_, PyAny>)| {
        let table = tables.get(number).copied().unwrap_or(false);
        let dtype = if table { DType::I64 } else { dtype.unwrap_or(DType::F32) };
        argument(number, given, dtype)
    };
    given.iter().enumerate().map(describe).collect()
}

fn argument(number: usize, given: &Bound<'_, PyAny>, dtype: DType) -> PyResult<Argument> {
    if given.is_instance_of::<PyTuple>() || given.is_instance_of::<PyList>() {
        let shape: Vec<usize> = given
            .extract()
            .map_err(|_| PyTypeError::new_err(format!("operand {number} is neither an array nor a shape")))?;
        return Ok(Argument { dtype, layout: Layout::contiguous(&shape) });
    }
    let view = match kind(given)? {
        // SAFETY: an array; the view is not read, only described.
        Kind::NumPy => unsafe { array::view(given) }.ok(),
        Kind::Torch => torch::view(number, given).ok().map(|(view, ..)| view),
        _ => None,
    };
    if let Some(view) = view {
        return Ok(Argument { dtype: view.dtype(), layout: view.layout().clone() });
    }
    // Anything with a shape and a type: traced, fake, on another device.
    let shape: Vec<usize> = given
        .getattr("shape")
        .and_then(|shape| shape.extract())
        .map_err(|_| PyTypeError::new_err(format!("operand {number} is neither an array nor a shape")))?;
    let dtype = crate::options::dtype(&given.getattr("dtype")?)?;
    Ok(Argument { dtype, layout: Layout::contiguous(&shape) })
}
