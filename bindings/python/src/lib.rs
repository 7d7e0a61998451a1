//! The Python package einfall, the part that is compiled: arrays of NumPy and torch in, the same kind out, not copied.
//!
//! *In*: calls of the functions below from `python/einfall`. *Out*: arrays of the operands' library, or exceptions.
//! `call` decides by `kind` how operands are read (`array`, `torch`), `cache` keeps plans, `run` runs them.
#![allow(unsafe_code)] // arrays are read where they lie; each block names its invariant

mod array;
mod attention;
mod attention_cuda;
mod attention_xla;
mod bench;
mod cache;
mod call;
mod cuda;
mod describe;
mod device;
mod error;
mod interleaved;
mod kind;
mod large;
mod options;
mod planned;
mod report;
mod run;
mod table;
mod terms;
mod torch;
mod xla;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use call::Keywords;
use planned::Planned;

/// Evaluates an einsum whose axes may be looked up through tables or slid over windows.
///
/// ``equation`` is that of ``numpy.einsum``; a bracket of letters is a lookup, ``[bhqk]``, whose integer table is the
/// argument right after its operand (those of the output come last); a bracket with a sign or a number is a window,
/// ``[q+w-4]``. The interleaved form works too, a list inside of a list being a lookup. Arrays of NumPy, torch or JAX
/// go in and the same kind comes out; nothing is copied on the way.
///
/// * ``out``: an array to write. It may overlap the operands.
/// * ``sizes``: lengths that no operand gives, of labels or of brackets of the output: ``{"w": 9, "[e]": 1000}``.
/// * ``bounds``: ``"error"``, or ``"skip"`` to leave out the terms of table values outside their axis, such as -1.
/// * ``optimize``: ``"auto"``, ``"greedy"``, ``"optimal"``, ``"left-to-right"``, a truth value, or a path.
/// * ``memory_limit``: most elements that intermediate results may have together at any time; labels are sliced until it
///   holds.
/// * ``dtype``: type of the result; by default the operands' promotion in their library.
/// * ``order``, ``casting``: as in NumPy, for its arrays.
///
/// Raises ``ValueError`` for equations and shapes, ``TypeError`` for types and mixed libraries, ``TableError`` (an
/// ``IndexError``) for table values, ``MemoryError`` for limits.
///
/// Examples
/// --------
/// A matrix product, a sliding sum, a gather, and a scatter:
///
/// >>> einfall.einsum("ij,jk->ik", np.eye(2), np.array([[1.0, 2.0], [3.0, 4.0]]))
/// array([[1., 2.],
///        [3., 4.]])
/// >>> x = np.array([1.0, 2.0, 3.0, 4.0])
/// >>> einfall.einsum("[q+w-1]->q", x, sizes={"q": 4, "w": 3})
/// array([3., 6., 9., 7.])
/// >>> einfall.einsum("[i]->i", x, np.array([3, -1, 0]), bounds="skip")
/// array([4., 0., 1.])
/// >>> einfall.einsum("e->[e]", x, np.array([0, 2, 2, 1]), sizes={"[e]": 3})
/// array([1., 4., 5.])
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
    let keywords = [&out, &sizes, &bounds, &optimize, &dtype, &order, &casting];
    if memory_limit.is_none()
        && keywords.iter().all(|keyword| keyword.is_none())
        && let Some(result) = call::plain_numpy(arguments)
    {
        return result;
    }
    let (equation, operands, tables) = call::equation(arguments)?;
    let keywords = Keywords { out, sizes, bounds, optimize, memory_limit, dtype, order, casting, tables };
    call::call(py, equation.as_str()?, &operands, &keywords)
}

/// Prepares a call for operands of certain shapes, to run it many times.
///
/// Takes what :func:`einsum` takes, but shapes may stand in place of arrays: tuples of lengths, of type ``dtype``
/// (float32 if there is none). The result is called with the operands; strides and types may differ from what was
/// planned for, which costs another plan, shapes may not.
///
/// >>> product = einfall.plan("ij,jk->ik", (2, 3), (3, 4), dtype="float64")
/// >>> product
/// <einfall.Plan 'ij,jk->ik' for [2, 3], [3, 4]>
/// >>> product(np.ones((2, 3)), np.ones((3, 4))).sum()
/// np.float64(24.0)
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
) -> PyResult<Bound<'py, Planned>> {
    let (equation, operands, _) = call::equation(arguments)?;
    let keywords = Keywords { sizes, bounds, optimize, memory_limit, dtype, ..Keywords::default() };
    let planned = Bound::new(py, Planned::new(py, equation.as_str()?, &operands, &keywords)?)?;
    // Tracers have to know each plan, for they cannot look into it.
    py.import("einfall._hooks")?.call_method1("planned", (&planned,))?;
    Ok(planned)
}

/// The kernel of the operator that torch knows: tensors which nobody records or traces any more.
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
    let tables = table::hanging(&operands)?;
    let keywords =
        Keywords { sizes, bounds: Some(bounds), optimize, memory_limit, dtype, tables, ..Keywords::default() };
    call::torch_kernel(py, equation, &operands, &keywords, shape)
}

/// Sizes and rates of this machine, by which plans are made: estimates, until ``python -m einfall machine`` measured them.
///
/// >>> sorted(einfall.machine())[:3]
/// ['f32_flops_per_second', 'f64_flops_per_second', 'fork_seconds']
#[pyfunction]
fn machine(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    report::machine(py)
}

#[pyfunction]
fn _cache_info() -> (u64, u64, usize, usize) {
    let (hits, misses, size) = cache::statistics();
    (hits, misses, cache::MOST, size)
}

/// Forgets every plan that was kept, and the statistics.
#[pyfunction]
fn cache_clear() {
    cache::clear();
}

/// The compiled part of the package.
#[pymodule(gil_used = false)]
fn _einfall(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(einsum, module)?)?;
    module.add_function(wrap_pyfunction!(attention::_attend, module)?)?;
    module.add_function(wrap_pyfunction!(attention::_torch_attend, module)?)?;
    module.add_function(wrap_pyfunction!(attention::_torch_attend_backward, module)?)?;
    module.add_function(wrap_pyfunction!(attention::_numpy_attend_backward, module)?)?;
    module.add_function(wrap_pyfunction!(attention::_explain_attend, module)?)?;
    module.add_function(wrap_pyfunction!(_cache_info, module)?)?;
    module.add_function(wrap_pyfunction!(cache_clear, module)?)?;
    module.add_function(wrap_pyfunction!(device::_forget_device, module)?)?;
    module.add_function(wrap_pyfunction!(plan, module)?)?;
    module.add_function(wrap_pyfunction!(machine, module)?)?;
    module.add_function(wrap_pyfunction!(bench::_main, module)?)?;
    module.add_function(wrap_pyfunction!(bench::_bench_keys, module)?)?;
    module.add_function(wrap_pyfunction!(bench::_bench_suite, module)?)?;
    module.add("_BENCH_HEADER", bench::header())?;
    module.add_function(wrap_pyfunction!(_torch_kernel, module)?)?;
    module.add_function(wrap_pyfunction!(table::_register_table, module)?)?;
    module.add_function(wrap_pyfunction!(xla::_xla_target, module)?)?;
    module.add_function(wrap_pyfunction!(xla::_check_gpu, module)?)?;
    module.add_function(wrap_pyfunction!(terms::_terms, module)?)?;
    module.add_function(wrap_pyfunction!(terms::gradient, module)?)?;
    module.add_class::<Planned>()?;
    module.add_class::<table::Kept>()?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("TableError", module.py().get_type::<error::TableError>())?;
    Ok(())
}
