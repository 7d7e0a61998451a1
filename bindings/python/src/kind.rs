//! Which library an operand belongs to. Nothing is imported to find out: whoever made the operand has imported it.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use numpy::npyffi::{NpyTypes, get_type_object};
use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyModule};

/// Whose array it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    NumPy,
    Torch,
    /// A tensor of torch that only torch may look into: a sub-class, a fake one, one that is being traced.
    TorchSubclass,
    Jax,
    CuPy,
    /// A number, a list, anything that NumPy may turn into an array.
    Other,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::NumPy => "a NumPy array",
            Kind::Torch | Kind::TorchSubclass => "a torch tensor",
            Kind::Jax => "a JAX array",
            Kind::CuPy => "a CuPy array",
            Kind::Other => "no array",
        }
    }
}

static NUMPY: AtomicPtr<ffi::PyTypeObject> = AtomicPtr::new(ptr::null_mut());
static TENSOR: AtomicPtr<ffi::PyTypeObject> = AtomicPtr::new(ptr::null_mut());
static PARAMETER: AtomicPtr<ffi::PyTypeObject> = AtomicPtr::new(ptr::null_mut());

/// A module, if it has been imported by somebody.
pub(crate) fn imported<'py>(py: Python<'py>, name: &str) -> PyResult<Option<Bound<'py, PyModule>>> {
    let modules = PyModule::import(py, "sys")?.getattr("modules")?;
    let module = modules.cast::<PyDict>()?.get_item(name)?;
    Ok(module.and_then(|module| module.cast_into::<PyModule>().ok()))
}

/// Whether it is an array of NumPy's own class, which is asked of every operand first.
pub(crate) fn is_plain_numpy(operand: &Bound<'_, PyAny>) -> bool {
    // SAFETY: a bound object has a type.
    let class = unsafe { ffi::Py_TYPE(operand.as_ptr()) };
    ptr::eq(class, NUMPY.load(Ordering::Relaxed))
}

/// The kind of one operand.
pub(crate) fn kind(operand: &Bound<'_, PyAny>) -> PyResult<Kind> {
    if is_plain_numpy(operand) {
        return Ok(Kind::NumPy);
    }
    // SAFETY: a bound object has a type.
    let class = unsafe { ffi::Py_TYPE(operand.as_ptr()) };
    if ptr::eq(class, TENSOR.load(Ordering::Relaxed)) || ptr::eq(class, PARAMETER.load(Ordering::Relaxed)) {
        return Ok(Kind::Torch);
    }
    find_out(operand)
}

#[cold]
fn find_out(operand: &Bound<'_, PyAny>) -> PyResult<Kind> {
    let py = operand.py();
    let exact = operand.get_type();
    if let Some(numpy) = imported(py, "numpy")?
        && let Ok(array) = numpy.getattr("ndarray")
        && operand.is_instance(&array)?
    {
        if NUMPY.load(Ordering::Relaxed).is_null() {
            // SAFETY: NumPy is there; its type objects live as long as the process.
            NUMPY.store(unsafe { get_type_object(py, NpyTypes::PyArray_Type) }, Ordering::Relaxed);
        }
        return Ok(Kind::NumPy);
    }
    if let Some(torch) = imported(py, "torch")?
        && let Ok(tensor) = torch.getattr("Tensor")
        && operand.is_instance(&tensor)?
    {
        let parameter = torch.getattr("nn")?.getattr("Parameter")?;
        for (class, known) in [(tensor, &TENSOR), (parameter, &PARAMETER)] {
            if exact.is(&class) {
                // Kept for good: classes of torch are not collected.
                known.store(class.into_ptr().cast(), Ordering::Relaxed);
                return Ok(Kind::Torch);
            }
        }
        return Ok(Kind::TorchSubclass);
    }
    for (name, class, kind) in [("jax", "Array", Kind::Jax), ("cupy", "ndarray", Kind::CuPy)] {
        if let Some(library) = imported(py, name)?
            && let Ok(class) = library.getattr(class)
            && operand.is_instance(&class)?
        {
            return Ok(kind);
        }
    }
    Ok(Kind::Other)
}

/// The kind that all operands have; numbers and lists go along with NumPy arrays, and NumPy arrays with those of JAX.
///
/// # Errors
/// `TypeError`, which names both operands and their kinds.
pub(crate) fn common_kind(operands: &[Bound<'_, PyAny>]) -> PyResult<Kind> {
    let mut common = (0, Kind::Other);
    for (number, operand) in operands.iter().enumerate() {
        let kind = kind(operand)?;
        common = match (common.1, kind) {
            (known, kind) if known == kind => continue,
            (Kind::Other, Kind::NumPy | Kind::Jax) if number > 0 => (number, kind),
            (Kind::NumPy | Kind::Jax, Kind::Other) | (Kind::Jax, Kind::NumPy) => continue,
            (Kind::TorchSubclass, Kind::Torch) => continue,
            (Kind::NumPy, Kind::Jax) | (Kind::Torch, Kind::TorchSubclass) => (number, kind),
            _ if number == 0 => (0, kind),
            (known, kind) => {
                let describe = |number: usize, kind: Kind| -> PyResult<String> {
                    let class = operands[number].get_type().name()?;
                    Ok(format!("operand {number} is {} (`{class}`)", kind.name()))
                };
                return Err(PyTypeError::new_err(format!(
                    "{} but {}\nhint: all operands and tables of a call must be of one library",
                    describe(common.0, known)?,
                    describe(number, kind)?
                )));
            }
        };
    }
    Ok(common.1)
}
