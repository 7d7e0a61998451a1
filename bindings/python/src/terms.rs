//! Equations as text and as plain Python objects, for the parts of the package that are written in Python.

use einfall::{Axis, Equation};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::error::to_python;

pub(crate) fn parse(py: Python<'_>, equation: &str) -> PyResult<Equation> {
    Equation::parse(equation).map_err(|error| to_python(py, error.into()))
}

/// The operands and the output: each axis is `("label", b)`, `("ellipsis",)`, `("lookup", bhqk)` or
/// `("window", ((q, 1), (w, 1)), -4)`. The last item says whether the output was written out.
#[pyfunction]
pub(crate) fn _terms<'py>(
    py: Python<'py>,
    equation: &str,
) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyTuple>, bool)> {
    let equation = parse(py, equation)?;
    let operands: Vec<_> =
        equation.operands().iter().map(|operand| term(py, &operand.axes)).collect::<PyResult<_>>()?;
    Ok((PyTuple::new(py, operands)?, term(py, &equation.explicit_output().axes)?, equation.output().is_some()))
}

fn term<'py>(py: Python<'py>, axes: &[Axis]) -> PyResult<Bound<'py, PyTuple>> {
    let axes = axes.iter().map(|axis| {
        Ok(match axis {
            Axis::Label(label) => ("label", label.to_string()).into_pyobject(py)?,
            Axis::Ellipsis => ("ellipsis",).into_pyobject(py)?,
            Axis::Lookup(labels) => {
                let text: String = labels.iter().map(|label| label.as_char()).collect();
                ("lookup", text).into_pyobject(py)?
            }
            Axis::Window(affine) => {
                let terms = affine.terms.iter().map(|(label, by)| (label.to_string(), *by));
                let terms = terms.map(|term| term.into_pyobject(py)).collect::<PyResult<Vec<_>>>()?;
                ("window", PyTuple::new(py, terms)?, affine.offset).into_pyobject(py)?
            }
        }
        .into_any())
    });
    PyTuple::new(py, axes.collect::<PyResult<Vec<_>>>()?)
}

/// The equation that gives the gradient for one operand: the gradient of an einsum is an einsum.
///
/// The operand and the output change places; where the operand stood, the gradient of the output is given, with the
/// output's tables. The operand's own tables come last.
///
/// >>> einfall.gradient("bhqd,bh[bhqk]d->bhqk", 1)
/// 'bhqd,bhqk->bh[bhqk]d'
#[pyfunction]
pub(crate) fn gradient(py: Python<'_>, equation: &str, operand: usize) -> PyResult<String> {
    let equation = parse(py, equation)?;
    let gradient = einfall::gradient(&equation, operand).map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(gradient.to_string())
}
