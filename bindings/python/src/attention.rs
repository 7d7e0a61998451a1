//! Attention: which library the operands belong to decides who runs it.
//!
//! *In*: an attend-equation with query, key, the key's tables, value, and a bias where there is one. *Out*: the result and
//! its log-sum-exp, arrays of the operands' library. `python/einfall/_attention.py` writes the equation for the usual
//! shapes, and is what users call.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::kind::{Kind, common_kind, imported};
use crate::table;

/// Attention by an equation: the result, and its log-sum-exp or `None`.
#[pyfunction]
#[pyo3(signature = (equation, operands, sizes, scale, bounds, causal, return_lse))]
pub(crate) fn _attend<'py>(
    py: Python<'py>,
    equation: &str,
    mut operands: Vec<Bound<'py, PyAny>>,
    sizes: Bound<'py, PyAny>,
    scale: Option<f64>,
    bounds: Bound<'py, PyAny>,
    causal: bool,
    return_lse: bool,
) -> PyResult<Bound<'py, PyAny>> {
    crate::options::bounds(&bounds)?;
    table::unwrap(&mut operands)?;
    let module = match common_kind(&operands)? {
        Kind::Torch | Kind::TorchSubclass => "einfall._attention_torch",
        Kind::Jax => "einfall._attention_jax",
        Kind::NumPy | Kind::CuPy => "einfall._attention_steps",
        Kind::Other if imported(py, "numpy")?.is_some() => "einfall._attention_steps",
        Kind::Other => return Err(PyTypeError::new_err("no operand is an array of NumPy, torch, JAX or CuPy")),
    };
    let function = py.import(module)?.getattr("_attend")?;
    function.call1((equation, PyTuple::new(py, operands)?, sizes, scale, bounds, causal, return_lse))
}
