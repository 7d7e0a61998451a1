//! `einsum`: which library the operands belong to decides how they are read and who makes the result.

use einfall::{Argument, BindError, Bounds, DType, Error, Layout, Order, View, ViewMut};
use pyo3::exceptions::{PyNotImplementedError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};
use smallvec::SmallVec;

use crate::array::{self, Unusable};
use crate::cache::{Prepared, prepare, prepare_plain};
use crate::cuda;
use crate::error::to_python;
use crate::kind::{Kind, common_kind, imported};
use crate::options::{self, Options};
use crate::run::{Views, prepared, promote_like_torch, run_fresh, run_into};
use crate::table::{self, Tables};
use crate::torch::{self, Place, Tensors};

/// The keyword arguments, as they were given.
#[derive(Default)]
pub(crate) struct Keywords<'py> {
    pub(crate) out: Option<Bound<'py, PyAny>>,
    pub(crate) sizes: Option<Bound<'py, PyAny>>,
    pub(crate) bounds: Option<Bound<'py, PyAny>>,
    pub(crate) optimize: Option<Bound<'py, PyAny>>,
    pub(crate) memory_limit: Option<usize>,
    pub(crate) dtype: Option<Bound<'py, PyAny>>,
    pub(crate) order: Option<Bound<'py, PyAny>>,
    pub(crate) casting: Option<Bound<'py, PyAny>>,
    /// Not a keyword: which arguments were tables that keep their inverses.
    pub(crate) tables: Tables,
}

impl<'py> Keywords<'py> {
    /// What the plan depends on, but for the type of the result.
    pub(crate) fn options(&self) -> PyResult<Options> {
        let mut read = Options { memory_limit: self.memory_limit, ..Options::default() };
        if let Some(bounds) = &self.bounds {
            read.bounds = options::bounds(bounds)?;
        }
        if let Some(sizes) = &self.sizes {
            read.sizes = options::sizes(sizes)?;
        }
        if let Some(optimize) = &self.optimize {
            let (order, limit) = options::optimize(optimize)?;
            read.order = order;
            read.memory_limit = read.memory_limit.or(limit);
        }
        Ok(read)
    }

    /// As keyword arguments for a function written in Python.
    fn to_dict(&self, py: Python<'py>, options: &Options) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        let sizes = PyDict::new(py);
        for (name, len) in &options.sizes {
            sizes.set_item(name, len)?;
        }
        dict.set_item("sizes", sizes)?;
        dict.set_item("bounds", if options.bounds == Bounds::Skip { "skip" } else { "error" })?;
        dict.set_item("optimize", &self.optimize)?;
        dict.set_item("memory_limit", options.memory_limit)?;
        let dtype = self.dtype.as_ref().map(options::dtype).transpose()?;
        dict.set_item("dtype", dtype.map(DType::name))?;
        dict.set_item("out", &self.out)?;
        Ok(dict)
    }

    fn word<'a>(given: &'a Option<Bound<'py, PyAny>>, name: &str, allowed: &[&'a str]) -> PyResult<&'a str> {
        let Some(given) = given else { return Ok(allowed[0]) };
        let text = given.cast::<PyString>()?.to_str()?;
        match allowed.contains(&text) {
            true => Ok(text),
            false => Err(PyValueError::new_err(format!("`{name}` is `{text}`, not one of {}", allowed.join(", ")))),
        }
    }
}

/// Operands of a call.
pub(crate) type Operands<'py> = SmallVec<[Bound<'py, PyAny>; 4]>;

/// The equation, the operands of either form, and which of them were tables that keep their inverses.
pub(crate) fn equation<'py>(arguments: &Bound<'py, PyTuple>) -> PyResult<(Text<'py>, Operands<'py>, Tables)> {
    let (text, mut operands) = given(arguments)?;
    let tables = table::unwrap(&mut operands)?;
    Ok((text, operands, tables))
}

fn given<'py>(arguments: &Bound<'py, PyTuple>) -> PyResult<(Text<'py>, Operands<'py>)> {
    let mut given = arguments.iter();
    let first = given.next().ok_or_else(|| PyValueError::new_err("an equation is missing"))?;
    match first.cast_into::<PyString>() {
        Ok(text) => {
            if arguments.len() == 1 {
                return Err(PyValueError::new_err("operands are missing"));
            }
            Ok((Text::Given(text), given.collect()))
        }
        Err(_) => {
            let all: Vec<_> = arguments.iter().collect();
            let (text, operands) = crate::interleaved::read(&all)?;
            Ok((Text::Written(text), operands.into()))
        }
    }
}

/// The text of an equation.
pub(crate) enum Text<'py> {
    Given(Bound<'py, PyString>),
    Written(String),
}

impl Text<'_> {
    pub(crate) fn as_str(&self) -> PyResult<&str> {
        match self {
            Text::Given(text) => text.to_str(),
            Text::Written(text) => Ok(text),
        }
    }
}

/// Evaluates an einsum on operands of any library.
pub(crate) fn call<'py>(
    py: Python<'py>,
    equation: &str,
    operands: &[Bound<'py, PyAny>],
    keywords: &Keywords<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let options = keywords.options()?;
    check_path(py, equation, &options)?;
    match common_kind(operands)? {
        Kind::NumPy => on_numpy(py, equation, operands, options, keywords),
        Kind::Torch if !torch::must_dispatch(py, operands)? => on_torch(py, equation, operands, options, keywords),
        Kind::Torch | Kind::TorchSubclass => in_python(py, "einfall.torch", equation, operands, &options, keywords),
        Kind::Jax => in_python(py, "einfall.jax", equation, operands, &options, keywords),
        Kind::CuPy if keywords.out.is_some() || keywords.order.is_some() || keywords.casting.is_some() => {
            Err(PyNotImplementedError::new_err("`out`, `order` and `casting` are not there for arrays of CuPy"))
        }
        Kind::CuPy => {
            let dtype = keywords.dtype.as_ref().map(options::dtype).transpose()?;
            cuda::on_cupy(py, equation, operands, options, dtype, &keywords.tables)
        }
        Kind::Other if imported(py, "numpy")?.is_some() => on_numpy(py, equation, operands, options, keywords),
        Kind::Other => Err(PyTypeError::new_err("no operand is an array of NumPy, torch or JAX")),
    }
}

/// A given path must lead to one result.
fn check_path(py: Python<'_>, equation: &str, options: &Options) -> PyResult<()> {
    let Order::Given(path) = &options.order else { return Ok(()) };
    let operands = crate::terms::parse(py, equation)?.operands().len();
    let taken: usize = path.iter().map(|step| step.len().saturating_sub(1)).sum();
    // One operand needs no step, and none is left after the last.
    if taken + 1 == operands {
        return Ok(());
    }
    Err(PyRuntimeError::new_err(format!("the path takes {taken} of {operands} operands together, not all of them")))
}

/// Hands a call to the part of the package that knows a library's transformations.
fn in_python<'py>(
    py: Python<'py>,
    module: &str,
    equation: &str,
    operands: &[Bound<'py, PyAny>],
    options: &Options,
    keywords: &Keywords<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let function = py.import(module)?.getattr("_einsum")?;
    let operands = PyTuple::new(py, operands)?;
    function.call((equation, operands), Some(&keywords.to_dict(py, options)?))
}

/// Views of NumPy's arrays; what NumPy has to convert first is kept in `made`.
///
/// `None` where elements are of a type that einfall does not have.
pub(crate) fn numpy_views<'py>(
    py: Python<'py>,
    operands: &[Bound<'py, PyAny>],
    made: &mut Vec<Bound<'py, PyAny>>,
) -> PyResult<Option<Views>> {
    let mut views = Views::new();
    for operand in operands {
        let mut operand = operand.clone();
        if crate::kind::kind(&operand)? != Kind::NumPy {
            let numpy = imported(py, "numpy")?.expect("asked before");
            operand = numpy.call_method1("asarray", (operand,))?;
            crate::kind::kind(&operand)?;
            made.push(operand.clone());
        }
        // SAFETY: an array; the caller holds it or `made` does.
        match unsafe { array::view(&operand) } {
            Ok(view) => views.push(view),
            Err(Unusable::Type) => return Ok(None),
            Err(Unusable::Layout) => {
                let native = operand.getattr("dtype")?.call_method1("newbyteorder", ("=",))?;
                let copy = operand.call_method1("astype", (native, "C"))?;
                // SAFETY: as above.
                views.push(unsafe { array::view(&copy) }.expect("a copy in native order"));
                made.push(copy);
            }
        }
    }
    Ok(Some(views))
}

fn on_numpy<'py>(
    py: Python<'py>,
    equation: &str,
    operands: &[Bound<'py, PyAny>],
    options: Options,
    keywords: &Keywords<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let mut made = Vec::new();
    let Some(views) = numpy_views(py, operands, &mut made)? else {
        return in_numpy_itself(py, equation, operands, keywords);
    };
    if keywords.out.is_some() || keywords.dtype.is_some() || keywords.order.is_some() || all_column_major(&views) {
        return on_numpy_with_all(py, equation, operands, views, options, keywords);
    }
    Keywords::word(&keywords.casting, "casting", CASTINGS)?;
    let prepared = prepared(py, equation, &views, &options)?;
    if prepared.rearranges && made.is_empty() {
        return rearranged(&prepared, &operands[0]);
    }
    run_numpy(py, &prepared, &views)
}

/// A text and arrays of NumPy's own class, nothing else: what most calls are. `None` for all others.
pub(crate) fn plain_numpy<'py>(arguments: &Bound<'py, PyTuple>) -> Option<PyResult<Bound<'py, PyAny>>> {
    let equation = arguments.get_borrowed_item(0).ok()?;
    let equation = equation.cast::<PyString>().ok()?;
    let mut views = Views::new();
    // NumPy's order of axes is another question.
    if !array::views(arguments, 1, &mut views) || all_column_major(&views) {
        return None;
    }
    let run = || {
        let prepared = prepare_plain(&equation, &views)?;
        if prepared.rearranges {
            return rearranged(&prepared, &arguments.get_item(1)?);
        }
        run_numpy(arguments.py(), &prepared, &views)
    };
    Some(run())
}

/// Runs a plan into a new array of NumPy.
pub(crate) fn run_numpy<'py>(py: Python<'py>, prepared: &Prepared, views: &Views) -> PyResult<Bound<'py, PyAny>> {
    let output = &prepared.plan.problem.output;
    let (array, data) = array::empty(py, output.dtype, &output.layout)?;
    // SAFETY: NumPy has just made the array in the layout of the plan, and nobody else has seen it.
    unsafe { run_fresh(py, prepared, views, data)? };
    if output.layout.shape.is_empty() { array::finish(array) } else { Ok(array) }
}

/// A view of the only operand, as NumPy gives it where nothing is summed.
fn rearranged<'py>(prepared: &Prepared, operand: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let problem = &prepared.plan.problem;
    let (dtype, shape) = prepared.result();
    let from = &problem.operands[0].term;
    // Every axis of the result is a label that the operand has; rows of the result's own strides say which.
    let strides: SmallVec<[isize; 8]> =
        problem.output.term.strides.iter().map(|&(label, _)| from.stride(label)).collect();
    // SAFETY: the offsets of a term's labels are offsets of the operand.
    unsafe { array::view_into(operand, dtype, shape, &strides) }
}

const CASTINGS: &[&str] = &["safe", "no", "equiv", "same_kind", "unsafe"];

/// The rarer arguments: `out`, `dtype`, `order`, `casting`.
fn on_numpy_with_all<'py>(
    py: Python<'py>,
    equation: &str,
    operands: &[Bound<'py, PyAny>],
    mut views: Views,
    mut options: Options,
    keywords: &Keywords<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let numpy = imported(py, "numpy")?.expect("an operand is an array");
    let casting = Keywords::word(&keywords.casting, "casting", CASTINGS)?;
    let order = Keywords::word(&keywords.order, "order", &["K", "C", "F", "A", "k", "c", "f", "a"])?;
    let can_cast = |from: DType, to: DType| match casting {
        _ if from == to => true,
        "unsafe" => true,
        "safe" => from.can_cast_safely(to),
        "same_kind" => from.can_cast_same_kind(to),
        _ => false,
    };
    // Operands that the wanted type does not hold are converted first, as NumPy does.
    let mut made = Vec::new();
    if let Some(wanted) = &keywords.dtype {
        let Ok(dtype) = options::dtype(wanted) else {
            return in_numpy_itself(py, equation, operands, keywords);
        };
        let plain = prepared(py, equation, &views, &options)?;
        for operand in &plain.plan.problem.operands {
            let at = operand.argument;
            if !can_cast(operand.dtype, dtype) {
                return Err(PyTypeError::new_err(format!(
                    "operand {at} of type {} cannot be cast to {dtype} under `casting=\"{casting}\"`",
                    operand.dtype
                )));
            }
            if !operand.dtype.can_cast_same_kind(dtype) {
                let copy = numpy.call_method1("asarray", (&operands[at],))?.call_method1("astype", (wanted,))?;
                // SAFETY: a new array, kept in `made`.
                views[at] = unsafe { array::view(&copy) }
                    .map_err(|_| PyTypeError::new_err(format!("operand {at} cannot be converted to {dtype}")))?;
                made.push(copy);
            }
        }
        options.dtype = Some(dtype);
    }
    let Some(out) = &keywords.out else {
        let row_major = prepared(py, equation, &views, &options)?;
        let is_array = operands[0].is_instance(&numpy.getattr("ndarray")?)?;
        if row_major.rearranges && matches!(order, "K" | "k") && made.is_empty() && is_array {
            return rearranged(&row_major, &operands[0]);
        }
        let (dtype, shape) = row_major.result();
        let layout = match order {
            "F" | "f" => Some(column_major(shape)),
            "A" | "a" if all_column_major(&views) => Some(column_major(shape)),
            "K" | "k" if all_column_major(&views) => Some(like_operands(&row_major)),
            _ => None,
        };
        let Some(layout) = layout else {
            return run_numpy(py, &row_major, &views);
        };
        options.out = Some(Argument { dtype, layout });
        let prepared = prepared(py, equation, &views, &options)?;
        return run_numpy(py, &prepared, &views);
    };
    if common_kind(std::slice::from_ref(out))? != Kind::NumPy {
        return Err(PyTypeError::new_err("`out` is not a NumPy array, but the operands are"));
    }
    // SAFETY: `out` is an array that the caller holds.
    if !unsafe { array::is_writeable(out) } {
        return Err(PyValueError::new_err("`out` is read-only"));
    }
    // As in NumPy, an optimised result is assigned, and so converted to any type.
    let optimised = keywords.optimize.as_ref().is_some_and(|optimize| optimize.is_truthy().unwrap_or(true));
    let assigned = optimised && keywords.casting.is_none();
    // SAFETY: as above.
    if let Ok(target) = unsafe { array::view(out) } {
        let argument = Argument { dtype: target.dtype(), layout: target.layout().clone() };
        let into = Options { out: Some(argument), ..options.clone() };
        match prepare(equation, &views, &into) {
            Ok(prepared) => {
                let operands = prepared.plan.problem.operands.iter().map(|operand| operand.dtype);
                let dtype = options.dtype.or(operands.reduce(DType::promote)).expect("at least one operand");
                if !assigned && !can_cast(dtype, target.dtype()) {
                    return Err(PyTypeError::new_err(format!(
                        "a result of type {dtype} cannot be cast to `out` of type {} under `casting=\"{casting}\"`",
                        target.dtype()
                    )));
                }
                write_into(py, equation, &views, into, target.as_ptr().cast_mut())?;
                return Ok(out.clone());
            }
            // NumPy converts to any type, if it is told to.
            Err(Error::Bind(BindError::DType(_))) => {}
            Err(error) => return Err(to_python(py, error)),
        }
    }
    // A type or a layout that einfall cannot write: NumPy copies the result.
    let apart = prepared(py, equation, &views, &options)?;
    let result = run_numpy(py, &apart, &views)?;
    let kwargs = PyDict::new(py);
    kwargs.set_item(intern!(py, "casting"), if assigned { "unsafe" } else { casting })?;
    numpy.getattr("copyto")?.call((out, result), Some(&kwargs))?;
    Ok(out.clone())
}

/// The layout without gaps whose axes are in the order of the operands' strides, the fastest first.
fn like_operands(prepared: &Prepared) -> Layout {
    let problem = &prepared.plan.problem;
    let mut layout = problem.output.layout.clone();
    // Axes that are looked up have no stride of their own, and stay slow.
    let key = |axis: usize| {
        let (label, _) = problem.output.term.strides.get(axis)?;
        let strides = problem.operands.iter().map(|operand| operand.term.stride(*label).unsigned_abs());
        strides.filter(|&stride| stride > 0).min()
    };
    if problem.output.term.strides.len() != layout.shape.len() {
        return layout;
    }
    let mut axes: SmallVec<[usize; 8]> = (0..layout.shape.len()).rev().collect();
    axes.sort_by_key(|&axis| key(axis).unwrap_or(usize::MAX));
    let mut next = 1isize;
    for axis in axes {
        layout.strides[axis] = next;
        next = next.saturating_mul(layout.shape[axis].max(1) as isize);
    }
    layout
}

/// Whether every operand with a choice lies column-major, so that the result should too.
fn all_column_major(views: &[View<'_>]) -> bool {
    let column_major = |view: &View<'_>| {
        let mut next = 1;
        let mut longer = view.shape().iter().zip(view.strides()).filter(|(len, _)| **len != 1);
        longer.all(|(&len, &stride)| {
            let expected = next;
            next *= len as isize;
            stride == expected
        })
    };
    let mut any = false;
    views.iter().filter(|view| !view.layout().is_contiguous()).all(|view| {
        any = true;
        column_major(view)
    }) && any
        && views
            .iter()
            .all(|view| !view.layout().is_contiguous() || view.shape().iter().filter(|len| **len > 1).count() < 2)
}

/// Writes an array of the caller's: `out` of the options, whose first element is at `data`.
fn write_into(py: Python<'_>, equation: &str, views: &Views, options: Options, data: *mut u8) -> PyResult<()> {
    // The plan says more of an `out` that does not fit, so it comes first.
    prepared(py, equation, views, &options)?;
    let Argument { dtype, layout } = options.out.clone().expect("an array to write");
    // SAFETY: a writable array that the caller holds; what overlaps the operands is computed apart.
    let out = unsafe { ViewMut::from_raw_parts(data, dtype, layout) };
    let mut out = out.map_err(|error| to_python(py, error.into()))?;
    run_into(py, equation, views, &options, &mut out)
}

pub(crate) fn column_major(shape: &[usize]) -> Layout {
    let mut next = 1isize;
    let strides = shape.iter().map(|&len| {
        let stride = next;
        next = next.saturating_mul(len.max(1) as isize);
        stride
    });
    Layout { strides: strides.collect(), shape: shape.into() }
}

/// Types that einfall does not have, such as `longdouble` and `object`, are left to NumPy's own loops.
fn in_numpy_itself<'py>(
    py: Python<'py>,
    equation: &str,
    operands: &[Bound<'py, PyAny>],
    keywords: &Keywords<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    if equation.contains('[') || keywords.sizes.is_some() {
        return Err(PyTypeError::new_err(
            "operands are of a type that lookups and windows are not there for\nhint: convert them to float64",
        ));
    }
    let loops = py.import("numpy._core.einsumfunc").or_else(|_| py.import("numpy.core.einsumfunc"))?;
    let kwargs = PyDict::new(py);
    let given = [
        ("dtype", &keywords.dtype),
        ("order", &keywords.order),
        ("casting", &keywords.casting),
        ("out", &keywords.out),
    ];
    for (name, value) in given {
        if let Some(value) = value {
            kwargs.set_item(name, value)?;
        }
    }
    let arguments = [equation.into_pyobject(py)?.into_any()].into_iter().chain(operands.iter().cloned());
    loops.getattr("c_einsum")?.call(PyTuple::new(py, arguments.collect::<Vec<_>>())?, Some(&kwargs))
}

/// Tensors that only einfall needs to know of.
fn on_torch<'py>(
    py: Python<'py>,
    equation: &str,
    operands: &[Bound<'py, PyAny>],
    mut options: Options,
    keywords: &Keywords<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let Tensors { views, made: _made, place } = torch::views(operands)?;
    options.dtype = match &keywords.dtype {
        Some(dtype) => Some(options::dtype(dtype)?),
        // GPUs find it out where they make the plan.
        None if place != Place::Cpu => None,
        None => torch_dtype(py, equation, &views, &options)?,
    };
    if let Some(out) = &keywords.out {
        if common_kind(std::slice::from_ref(out))? != Kind::Torch {
            return Err(PyTypeError::new_err("`out` is not a torch tensor, but the operands are"));
        }
        let (view, resolved, out_place) = torch::view(operands.len(), out)?;
        if out_place != place {
            return Err(PyValueError::new_err("`out` is on another device than the operands"));
        }
        if resolved.is_some() {
            return Err(PyValueError::new_err("`out` is a conjugate or negative view"));
        }
        if place != Place::Cpu {
            // In stream order, whatever overlaps.
            let result = run_torch(py, equation, operands, &views, &options, place, &keywords.tables)?;
            return out.call_method1("copy_", (result,));
        }
        options.out = Some(Argument { dtype: view.dtype(), layout: view.layout().clone() });
        write_into(py, equation, &views, options, view.as_ptr().cast_mut())?;
        return Ok(out.clone());
    }
    run_torch(py, equation, operands, &views, &options, place, &keywords.tables)
}

/// What torch's dispatcher calls at last; a result of a given shape takes lengths from it.
pub(crate) fn torch_kernel<'py>(
    py: Python<'py>,
    equation: &str,
    operands: &[Bound<'py, PyAny>],
    keywords: &Keywords<'py>,
    shape: Option<Vec<usize>>,
) -> PyResult<Bound<'py, PyAny>> {
    let mut options = keywords.options()?;
    let Some(shape) = shape else { return on_torch(py, equation, operands, options, keywords) };
    let Tensors { views, made: _made, place } = torch::views(operands)?;
    let dtype = match &keywords.dtype {
        Some(dtype) => Some(options::dtype(dtype)?),
        None => {
            let operands = crate::describe::tables(&crate::terms::parse(py, equation)?);
            let operands = operands.iter().zip(&views).filter(|(table, _)| !**table);
            operands.map(|(_, view)| view.dtype()).reduce(promote_like_torch)
        }
    };
    options.dtype = dtype;
    let dtype = dtype.ok_or_else(|| PyValueError::new_err("operands are missing"))?;
    options.out = Some(Argument { dtype, layout: Layout::contiguous(&shape) });
    run_torch(py, equation, operands, &views, &options, place, &keywords.tables)
}

/// Runs into a new tensor.
pub(crate) fn run_torch<'py>(
    py: Python<'py>,
    equation: &str,
    operands: &[Bound<'py, PyAny>],
    views: &Views,
    options: &Options,
    place: Place,
    tables: &Tables,
) -> PyResult<Bound<'py, PyAny>> {
    if let Place::Cuda(ordinal) = place {
        return cuda::run_torch(py, ordinal, equation, operands, views, options, tables);
    }
    let prepared = prepared(py, equation, views, options)?;
    let (dtype, shape) = prepared.result();
    let (tensor, data) = torch::empty(py, dtype, shape, None)?;
    // SAFETY: torch has just made the tensor, row-major, and nobody else has seen it.
    unsafe { run_fresh(py, &prepared, views, data)? };
    Ok(tensor)
}

/// The type that torch promotes operands to, where it is not the one that NumPy does.
fn torch_dtype(py: Python<'_>, equation: &str, views: &Views, options: &Options) -> PyResult<Option<DType>> {
    let first = views.first().map(View::dtype);
    if views.iter().all(|view| Some(view.dtype()) == first) {
        return Ok(None);
    }
    // Tables do not take part; the plan knows which arguments are operands.
    let plain = prepared(py, equation, views, options)?;
    let operands = plain.plan.problem.operands.iter().map(|operand| operand.dtype);
    Ok(operands.reduce(promote_like_torch).filter(|&dtype| dtype != plain.plan.problem.dtype))
}
