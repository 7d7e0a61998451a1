//! `plan`: a call prepared once, to run many times.

use std::sync::{Arc, Mutex, PoisonError};

use einfall::{Argument, DType, View};
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::array;
use crate::cache::{self, Prepared};
use crate::call::{Keywords, Operands, call, run_numpy};
use crate::kind::{Kind, common_kind};
use crate::run::{Views, prepared, run_fresh};
use crate::torch::{self, Place, Tensors};

/// An einsum that is planned for certain shapes: call it with arrays, or print it to see what it does.
#[pyclass(frozen, weakref, module = "einfall", name = "Plan")]
pub(crate) struct Planned {
    equation: String,
    /// What was planned for.
    arguments: Vec<Argument>,
    keywords: Mutex<Kept>,
    options: crate::options::Options,
    /// The plan for what was given.
    first: Arc<Prepared>,
    /// The plan for what came last, which may have other strides or types.
    latest: Mutex<Arc<Prepared>>,
}

/// Keyword arguments that calls of other libraries are handed on with.
struct Kept {
    sizes: Option<Py<PyAny>>,
    bounds: Option<Py<PyAny>>,
    optimize: Option<Py<PyAny>>,
    dtype: Option<Py<PyAny>>,
}

impl Planned {
    pub(crate) fn new<'py>(
        py: Python<'py>,
        equation: &str,
        given: &[Bound<'py, PyAny>],
        keywords: &Keywords<'py>,
    ) -> PyResult<Self> {
        let mut options = keywords.options()?;
        let dtype = keywords.dtype.as_ref().map(crate::options::dtype).transpose()?;
        let arguments = crate::describe::arguments(py, equation, given, dtype)?;
        options.dtype = dtype;
        let plan = cache::plan(equation, arguments.clone(), &options);
        let plan = plan.map_err(|error| crate::error::to_python(py, error))?;
        let first = Arc::new(Prepared::new(plan));
        let kept = |object: &Option<Bound<'py, PyAny>>| object.clone().map(Bound::unbind);
        Ok(Planned {
            equation: equation.to_owned(),
            arguments,
            keywords: Mutex::new(Kept {
                sizes: kept(&keywords.sizes),
                bounds: kept(&keywords.bounds),
                optimize: kept(&keywords.optimize),
                dtype: kept(&keywords.dtype),
            }),
            options,
            latest: Mutex::new(Arc::clone(&first)),
            first,
        })
    }

    /// The plan for these views that the first was not made for: mostly the latest.
    fn prepared(&self, py: Python<'_>, views: &[View<'_>]) -> PyResult<Arc<Prepared>> {
        {
            let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
            if latest.fits(views) {
                return Ok(Arc::clone(&latest));
            }
        }
        self.check(views.len(), views.iter().map(View::shape))?;
        let other = prepared(py, &self.equation, views, &self.options)?;
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&other);
        Ok(other)
    }

    /// Strides and types may differ from what was planned for, shapes may not.
    fn check<'s>(&self, given: usize, shapes: impl Iterator<Item = &'s [usize]>) -> PyResult<()> {
        if given != self.arguments.len() {
            return Err(PyValueError::new_err(format!(
                "the plan takes {} operands and tables but {given} were given",
                self.arguments.len(),
            )));
        }
        for (number, (argument, found)) in self.arguments.iter().zip(shapes).enumerate() {
            let expected = argument.layout.shape.as_slice();
            if expected != found {
                return Err(PyValueError::new_err(format!(
                    "operand {number} has shape {found:?} but the plan was made for {expected:?}"
                )));
            }
        }
        Ok(())
    }

    fn keywords<'py>(&self, py: Python<'py>, out: Option<Bound<'py, PyAny>>) -> Keywords<'py> {
        let kept = self.keywords.lock().unwrap_or_else(PoisonError::into_inner);
        let bind = |object: &Option<Py<PyAny>>| object.as_ref().map(|object| object.bind(py).clone());
        Keywords {
            out,
            sizes: bind(&kept.sizes),
            bounds: bind(&kept.bounds),
            optimize: bind(&kept.optimize),
            memory_limit: self.options.memory_limit,
            dtype: bind(&kept.dtype),
            ..Keywords::default()
        }
    }
}

/// Lengths of what has a shape; numbers and lists have that of the array that they stand for.
fn shape(operand: &Bound<'_, PyAny>) -> PyResult<Vec<usize>> {
    match operand.getattr(intern!(operand.py(), "shape")) {
        Ok(shape) => shape.extract(),
        Err(_) => operand.py().import("numpy")?.call_method1("shape", (operand,))?.extract(),
    }
}

#[pymethods]
impl Planned {
    #[pyo3(signature = (*operands, out=None))]
    fn __call__<'py>(
        &self,
        py: Python<'py>,
        operands: &Bound<'py, PyTuple>,
        out: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut views = Views::new();
        if out.is_none() && array::views(operands, 0, &mut views) {
            if self.first.fits(&views) {
                return run_numpy(py, &self.first, &views);
            }
            let prepared = self.prepared(py, &views)?;
            return run_numpy(py, &prepared, &views);
        }
        self.call_any(py, operands.iter().collect(), out)
    }

    /// By which torch names it in a graph.
    #[getter]
    fn __name__(&self) -> &'static str {
        "plan"
    }

    /// The equation.
    #[getter]
    fn equation(&self) -> &str {
        &self.equation
    }

    /// Shape of the result.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.latest().result().1)
    }

    /// Type of the result, by its short name.
    #[getter]
    fn dtype(&self) -> &'static str {
        DType::name(self.latest().result().0)
    }

    fn _report<'py>(&self, py: Python<'py>) -> PyResult<(String, Bound<'py, PyDict>)> {
        crate::report::report(py, &self.latest().plan)
    }

    fn __str__(&self) -> String {
        self.latest().plan.to_string()
    }

    fn __repr__(&self) -> String {
        let shapes: Vec<String> = self.arguments.iter().map(|a| format!("{:?}", a.layout.shape.as_slice())).collect();
        format!("<einfall.Plan '{}' for {}>", self.equation, shapes.join(", "))
    }
}

impl Planned {
    /// A call with operands of any library.
    fn call_any<'py>(
        &self,
        py: Python<'py>,
        mut operands: Operands<'py>,
        out: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let tables = crate::table::unwrap(&mut operands)?;
        let kind = common_kind(&operands)?;
        if out.is_none() && kind == Kind::NumPy {
            let mut views = Views::new();
            for operand in &operands {
                if crate::kind::kind(operand)? != Kind::NumPy {
                    break;
                }
                // SAFETY: an array, which the caller holds.
                match unsafe { array::view(operand) } {
                    Ok(view) => views.push(view),
                    Err(_) => break,
                }
            }
            if views.len() == operands.len() {
                let prepared = self.prepared(py, &views)?;
                return run_numpy(py, &prepared, &views);
            }
        }
        if out.is_none() && kind == Kind::Torch && !torch::must_dispatch(py, &operands)? {
            let Tensors { views, made: _made, place } = torch::views(&operands)?;
            // Where types differ torch promotes in its own way.
            if place == Place::Cpu
                && views.iter().zip(&self.arguments).all(|(view, argument)| view.dtype() == argument.dtype)
            {
                let prepared = self.prepared(py, &views)?;
                let (dtype, shape) = prepared.result();
                let (tensor, data) = torch::empty(py, dtype, shape, None)?;
                // SAFETY: torch has just made the tensor, row-major, and nobody else has seen it.
                unsafe { run_fresh(py, &prepared, &views, data)? };
                return Ok(tensor);
            }
        }
        // Whoever gets the call from here plans anew, for any shape.
        let shapes = operands.iter().map(shape).collect::<PyResult<Vec<_>>>()?;
        self.check(shapes.len(), shapes.iter().map(Vec::as_slice))?;
        call(py, &self.equation, &operands, &Keywords { tables, ..self.keywords(py, out) })
    }

    fn latest(&self) -> Arc<Prepared> {
        Arc::clone(&self.latest.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
