//! The interleaved form, `einsum(a, [0, 1], b, [1, 2], [0, 2])`, as an equation.

use std::fmt::Write;

use einfall::Label;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyEllipsis, PyList, PyString, PyTuple};

/// The equation and the operands. A list inside of a list is a lookup, whose table follows the list.
pub(crate) fn read<'py>(arguments: &[Bound<'py, PyAny>]) -> PyResult<(String, Vec<Bound<'py, PyAny>>)> {
    let mut equation = String::new();
    let mut operands = Vec::new();
    let mut at = 0;
    while at < arguments.len() {
        let Some(list) = arguments.get(at + 1).filter(|list| is_list(list) || is_array_of_labels(list)) else {
            return Err(PyTypeError::new_err(format!(
                "argument {at} is neither an equation nor followed by a list of labels"
            )));
        };
        if !operands.is_empty() {
            equation.push(',');
        }
        let lookups = write_list(&mut equation, list)?;
        let tables = arguments.get(at + 2..at + 2 + lookups).ok_or_else(|| {
            PyValueError::new_err(format!(
                "the list of argument {at} has {lookups} lookups, so as many tables must follow"
            ))
        })?;
        operands.push(arguments[at].clone());
        operands.extend_from_slice(tables);
        at += 2 + lookups;
        if let Some(list) = arguments.get(at).filter(|list| is_output(list, &arguments[at + 1..])) {
            equation.push_str("->");
            let lookups = write_list(&mut equation, list)?;
            let tables = &arguments[at + 1..];
            if tables.len() != lookups {
                return Err(PyValueError::new_err(format!(
                    "the list of the output has {lookups} lookups, but {} tables follow",
                    tables.len()
                )));
            }
            operands.extend_from_slice(tables);
            return Ok((equation, operands));
        }
    }
    Ok((equation, operands))
}

fn is_list(object: &Bound<'_, PyAny>) -> bool {
    object.is_instance_of::<PyList>() || object.is_instance_of::<PyTuple>()
}

/// NumPy takes arrays of integers for lists of labels.
fn is_array_of_labels(object: &Bound<'_, PyAny>) -> bool {
    let shape = object.getattr("shape").and_then(|shape| shape.extract::<Vec<usize>>());
    shape.is_ok_and(|shape| shape.len() == 1)
}

/// What stands last, or a list that no other list follows, is the list of the output.
fn is_output(object: &Bound<'_, PyAny>, rest: &[Bound<'_, PyAny>]) -> bool {
    match rest.first() {
        None => is_list(object) || is_array_of_labels(object),
        Some(next) => is_list(object) && !is_list(next),
    }
}

/// Writes a term, and gives the number of its lookups.
fn write_list(equation: &mut String, list: &Bound<'_, PyAny>) -> PyResult<usize> {
    let mut lookups = 0;
    for item in list.try_iter()? {
        let item = item?;
        if is_list(&item) {
            lookups += 1;
            equation.push('[');
            if write_list(equation, &item)? > 0 {
                return Err(PyValueError::new_err("a list of labels is nested more than once"));
            }
            equation.push(']');
        } else if item.is(PyEllipsis::get(list.py())) {
            equation.push_str("...");
        } else if let Ok(text) = item.cast::<PyString>() {
            let text = text.to_str()?;
            let mut letters = text.chars();
            match (letters.next().and_then(Label::new), letters.next()) {
                (Some(label), None) => write!(equation, "{label}").expect("a string takes everything"),
                // A window of the text form may stand in a list.
                _ if text.starts_with('[') => equation.push_str(text),
                _ => return Err(PyValueError::new_err(format!("`{text}` is not a label"))),
            }
        } else {
            let index = item.call_method0("__index__").map_err(|_| {
                PyTypeError::new_err("labels of the interleaved form are integers, letters or Ellipsis")
            })?;
            let index: i128 = index.extract()?;
            let label = usize::try_from(index).ok().and_then(Label::from_index);
            let label = label.ok_or_else(|| PyValueError::new_err(format!("{index} is not the number of a label")))?;
            write!(equation, "{label}").expect("a string takes everything");
        }
    }
    Ok(lookups)
}
