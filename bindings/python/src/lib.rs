//! The Python package einfall, the part that is compiled: arrays of NumPy and torch in, the same kind out, not copied.
//!
//! *In*: calls of the functions below from `python/einfall`. *Out*: arrays of the operands' library, or exceptions.
//! `call` decides by `kind` how operands are read (`array`, `torch`), `cache` keeps plans, `run` runs them.
#![allow(unsafe_code)] // arrays are read where they lie; each block names its invariant

mod array;
mod cache;
mod call;
mod describe;
mod device;
mod error;
mod interleaved;
mod kind;
mod options;
mod planned;
mod report;
mod run;
mod terms;
mod torch;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use call::Keywords;
use planned::Planned;

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

/// What `plan`, `explain` and `contract_path` take: arrays, or shapes in their place.
#[pyfunction]
#[pyo3(
    signature = (*arguments, sizes=None, bounds=None, optimize=None, memory_limit=None, dtype=None),
    text_signature = "(equation, *operands, sizes=None, bounds='error', optimize='auto', memory_limit=None, dtype=None)"
)]
fn plan<'py>(
    py: Python<'py>,
    arguments: &Bound<'py, PyTuple>,
    sizes: Option<Bound<'py, PyAny>>,
    bounds: Option<Bound<'py, PyAny>>,
    optimize: Option<Bound<'py, PyAny>>,
    memory_limit: Option<usize>,
    dtype: Option<Bound<'py, PyAny>>,
) -> PyResult<Planned> {
    let (equation, operands) = call::equation(arguments)?;
    let keywords = Keywords { sizes, bounds, optimize, memory_limit, dtype, ..Keywords::default() };
    Planned::new(py, equation.as_str()?, &operands, &keywords)
}

/// The kernel of the operator that torch knows: tensors of the CPU, which nobody records or traces any more.
#[pyfunction]
#[pyo3(signature = (equation, operands, sizes, bounds, optimize, memory_limit, dtype, shape))]
fn _torch_kernel<'py>(
    py: Python<'py>,
    equation: &str,
    operands: Vec<Bound<'py, PyAny>>,
    sizes: Bound<'py, PyDict>,
    bounds: Bound<'py, PyAny>,
    optimize: Option<Bound<'py, PyAny>>,
    memory_limit: Option<usize>,
    dtype: Option<Bound<'py, PyAny>>,
    shape: Option<Vec<usize>>,
) -> PyResult<Bound<'py, PyAny>> {
    let sizes = Some(sizes.into_any());
    let keywords =
        Keywords { sizes, bounds: Some(bounds), optimize, memory_limit, dtype, ..Keywords::default() };
    call::torch_kernel(py, equation, &operands, &keywords, shape)
}

#[pyfunction]
fn machine(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    report::machine(py)
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
    module.add_function(wrap_pyfunction!(plan, module)?)?;
    module.add_function(wrap_pyfunction!(machine, module)?)?;
    module.add_function(wrap_pyfunction!(_torch_kernel, module)?)?;
    module.add_function(wrap_pyfunction!(terms::_terms, module)?)?;
    module.add_function(wrap_pyfunction!(terms::gradient, module)?)?;
    module.add_class::<Planned>()?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("TableError", module.py().get_type::<error::TableError>())?;
    Ok(())
}
