//! The Python package einfall, the part that is compiled: arrays of NumPy and torch in, the same kind out, not copied.
//!
//! *In*: calls of the functions below from `python/einfall`. *Out*: arrays of the operands' library, or exceptions.
//! `call` decides by `kind` how operands are read (`array`, `torch`), `cache` keeps plans, `run` runs them.
#![allow(unsafe_code)] // arrays are read where they lie; each block names its invariant

mod array;
mod cache;
mod call;
mod device;
mod error;
mod interleaved;
mod kind;
mod options;
mod run;
mod torch;

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use call::Keywords;

#[pyfunction]
#[pyo3(
    signature = (*arguments, out=None, sizes=None, bounds=None, optimize=None, memory_limit=None, dtype=None, order=None, casting=None),
    text_signature = "(equation, *operands, out=None, sizes=None, bounds='error', optimize='auto', memory_limit=None, dtype=None, order='K', casting='safe')"
)]
fn einsum<'py>(
    py: Python<'py>,
    arguments: &Bound<'py, PyTuple>,
    out: Option<Bound<'py, PyAny>>,
    sizes: Option<Bound<'py, PyAny>>,
    bounds: Option<Bound<'py, PyAny>>,
    optimize: Option<Bound<'py, PyAny>>,
    memory_limit: Option<usize>,
    dtype: Option<Bound<'py, PyAny>>,
    order: Option<Bound<'py, PyAny>>,
    casting: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let (equation, operands) = call::equation(arguments)?;
    let keywords = Keywords { out, sizes, bounds, optimize, memory_limit, dtype, order, casting };
    call::call(py, equation.as_str()?, &operands, &keywords)
}

#[pyfunction]
fn _cache_info() -> (u64, u64, usize, usize) {
    let (hits, misses, size) = cache::statistics();
    (hits, misses, cache::MOST, size)
}

#[pyfunction]
fn cache_clear() {
    cache::clear();
}

/// The compiled part of the package.
#[pymodule(gil_used = false)]
fn _einfall(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(einsum, module)?)?;
    module.add_function(wrap_pyfunction!(_cache_info, module)?)?;
    module.add_function(wrap_pyfunction!(cache_clear, module)?)?;
    module.add_function(wrap_pyfunction!(device::_forget_device, module)?)?;
    module.add("TableError", module.py().get_type::<error::TableError>())?;
    Ok(())
}
