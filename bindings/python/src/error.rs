//! Errors of the library as exceptions of Python, messages unchanged.

use einfall::{BindError, Error, PlanError, RunError, TensorError};
use pyo3::create_exception;
use pyo3::exceptions::{PyIndexError, PyMemoryError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;

create_exception!(
    einfall,
    TableError,
    PyIndexError,
    "A table holds a value outside the axis that it looks up. \
     Attributes: ``argument`` (which argument the table is), ``position`` (coordinates in it), ``value`` and ``length`` \
     (of the axis)."
);

/// The exception for an error of the facade.
pub(crate) fn to_python(py: Python<'_>, error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Bind(BindError::DType(_)) => PyTypeError::new_err(message),
        Error::Plan(PlanError::MemoryLimit { .. } | PlanError::TooLarge { .. }) => PyMemoryError::new_err(message),
        Error::Plan(PlanError::NoKernel { .. }) => PyRuntimeError::new_err(message),
        Error::Run(RunError::TableValue { argument, position, value, len }) => {
            let error = TableError::new_err(message);
            let object = error.value(py);
            let set = || -> PyResult<()> {
                object.setattr("argument", argument)?;
                object.setattr("position", pyo3::types::PyTuple::new(py, position)?)?;
                object.setattr("value", value)?;
                object.setattr("length", len)
            };
            match set() {
                Ok(()) => error,
                Err(other) => other,
            }
        }
        Error::Run(RunError::OutOfMemory { .. }) | Error::Tensor(TensorError::OutOfMemory { .. }) => {
            PyMemoryError::new_err(message)
        }
        Error::Run(RunError::Changed) | Error::Device(_) | Error::Environment(_) => PyRuntimeError::new_err(message),
        _ => PyValueError::new_err(message),
    }
}
