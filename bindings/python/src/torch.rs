//! Tensors of torch: read and made without its dispatcher, where nobody but einfall needs to know of the call.
//!
//! Torch 2.10 and later describe a tensor through DLPack's table of C functions; before, its attributes do.

use std::ffi::{c_int, c_void};
use std::ptr;

use einfall::{DType, Layout, View};
use pyo3::exceptions::{PyNotImplementedError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCapsule, PyDict, PyTuple};

use crate::kind::imported;
use crate::run::Views;

/// `DLTensor` of DLPack 1.
#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: c_int,
    device_id: c_int,
    ndim: c_int,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

/// `DLPackExchangeAPI` of DLPack 1.3, up to the function that is used.
#[repr(C)]
struct ExchangeApi {
    major: u32,
    minor: u32,
    previous: *mut c_void,
    allocate: *const c_void,
    managed_from_object: *const c_void,
    managed_to_object: *const c_void,
    describe: Option<unsafe extern "C" fn(*mut c_void, *mut DlTensor) -> c_int>,
}

/// What is asked of torch at every call.
struct Torch {
    api: Option<&'static ExchangeApi>,
    empty: Py<PyAny>,
    dtypes: Vec<(DType, Py<PyAny>)>,
    grad_enabled: Py<PyAny>,
    autocast: Py<PyAny>,
    /// Functions that give `None` or 0 where torch is not transforming or tracing.
    idle: Vec<Py<PyAny>>,
    forward_mode: Py<PyAny>,
}

// SAFETY: the table of functions is constant, as DLPack demands.
unsafe impl Send for Torch {}
// SAFETY: as above.
unsafe impl Sync for Torch {}

/// How torch, NumPy and CuPy call an element type.
pub(crate) fn name(dtype: DType) -> &'static str {
    match dtype {
        DType::Bool => "bool",
        DType::I8 => "int8",
        DType::I16 => "int16",
        DType::I32 => "int32",
        DType::I64 => "int64",
        DType::U8 => "uint8",
        DType::U16 => "uint16",
        DType::U32 => "uint32",
        DType::U64 => "uint64",
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        DType::F32 => "float32",
        DType::F64 => "float64",
        DType::C64 => "complex64",
        DType::C128 => "complex128",
    }
}

fn torch(py: Python<'_>) -> PyResult<&'static Torch> {
    static TORCH: PyOnceLock<Torch> = PyOnceLock::new();
    TORCH.get_or_try_init(py, || {
        let torch = imported(py, "torch")?.expect("an operand is a tensor");
        let private = torch.getattr("_C")?;
        let named = |dtype: DType| {
            let name = name(dtype);
            torch.getattr(name).ok().map(|object| (dtype, object.unbind()))
        };
        let stack = |name: &str| private.getattr(name).map(Bound::unbind);
        let functorch = private.getattr("_functorch")?.getattr("peek_interpreter_stack")?.unbind();
        let mut idle = vec![functorch, stack("_len_torch_dispatch_stack")?, stack("_len_torch_function_stack")?];
        idle.extend(stack("_get_tracing_state").ok());
        Ok(Torch {
            api: exchange_api(&torch.getattr("Tensor")?),
            empty: torch.getattr("empty")?.unbind(),
            dtypes: DType::ALL.into_iter().filter_map(named).collect(),
            grad_enabled: torch.getattr("is_grad_enabled")?.unbind(),
            autocast: torch.getattr("is_autocast_enabled")?.unbind(),
            idle,
            forward_mode: py.import("torch.autograd.forward_ad")?.into_any().unbind(),
        })
    })
}

/// The table of functions, where this torch has it in a version that is known.
fn exchange_api(class: &Bound<'_, PyAny>) -> Option<&'static ExchangeApi> {
    let capsule = class.getattr("__dlpack_c_exchange_api__").ok()?.cast_into::<PyCapsule>().ok()?;
    let pointer = capsule.pointer_checked(Some(c"dlpack_exchange_api")).ok()?;
    // SAFETY: a capsule of this name holds the table, which lives as long as the process.
    let api: &'static ExchangeApi = unsafe { pointer.cast::<ExchangeApi>().as_ref() };
    (api.major == 1 && api.describe.is_some()).then_some(api)
}

/// Whether torch has to know of the call: it records gradients, transforms, traces, or changes types.
pub(crate) fn must_dispatch(py: Python<'_>, operands: &[Bound<'_, PyAny>]) -> PyResult<bool> {
    let torch = torch(py)?;
    for question in &torch.idle {
        let answer = question.bind(py).call0()?;
        if !answer.is_none() && answer.extract::<usize>().map_or(true, |depth| depth > 0) {
            return Ok(true);
        }
    }
    if torch.forward_mode.bind(py).getattr(intern!(py, "_current_level"))?.extract::<i64>()? >= 0 {
        return Ok(true);
    }
    let mut records = false;
    let device = match operands.first() {
        Some(first) if first.getattr(intern!(py, "is_cuda"))?.is_truthy()? => intern!(py, "cuda"),
        _ => intern!(py, "cpu"),
    };
    if torch.autocast.bind(py).call1((device,))?.is_truthy()? {
        return Ok(true);
    }
    for operand in operands {
        records |= operand.getattr(intern!(py, "requires_grad"))?.is_truthy()?;
    }
    Ok(records && torch.grad_enabled.bind(py).call0()?.is_truthy()?)
}

/// A view of a tensor, for as long as the caller holds it, and the tensor if it had to be made from the one given.
///
/// # Errors
/// `NotImplementedError` for devices and layouts that are not supported, `TypeError` for unknown element types.
pub(crate) fn view<'py>(
    number: usize,
    tensor: &Bound<'py, PyAny>,
) -> PyResult<(View<'static>, Option<Bound<'py, PyAny>>, Place)> {
    let py = tensor.py();
    let described = match torch(py)?.api {
        Some(api) => describe(api, tensor)?,
        None => ask(tensor)?,
    };
    let Described { place, view } = described;
    if place == Place::Other {
        let device = tensor.getattr("device")?.str()?;
        return Err(PyNotImplementedError::new_err(format!(
            "operand {number} is on `{device}`: only the CPU and NVIDIA GPUs are supported\nhint: move it with `.cpu()`"
        )));
    }
    let Some(view) = view else {
        let dtype = tensor.getattr("dtype")?.str()?;
        return Err(PyTypeError::new_err(format!("operand {number} has the unsupported dtype `{dtype}`")));
    };
    // What torch conjugates or negates only when it is read has to be made real.
    let lazy = if view.dtype().is_complex() {
        tensor.call_method0(intern!(py, "is_conj"))?.is_truthy()?
            || tensor.call_method0(intern!(py, "is_neg"))?.is_truthy()?
    } else {
        view.dtype().is_float() && tensor.call_method0(intern!(py, "is_neg"))?.is_truthy()?
    };
    if lazy {
        let real = tensor.call_method0("resolve_conj")?.call_method0("resolve_neg")?;
        let (view, _, place) = self::view(number, &real)?;
        return Ok((view, Some(real), place));
    }
    Ok((view, None, place))
}

/// Where a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the host's memory.
    Cpu,
    /// On a GPU of NVIDIA: the host must not read it.
    Cuda(usize),
    /// Anywhere else.
    Other,
}

/// The tensors of a call.
pub(crate) struct Tensors<'py> {
    pub(crate) views: Views,
    /// What had to be made from those given; the views need it.
    pub(crate) made: Vec<Bound<'py, PyAny>>,
    pub(crate) place: Place,
}

/// Views of tensors in one place.
///
/// # Errors
/// As [`view`], and where they are in several places.
pub(crate) fn views<'py>(operands: &[Bound<'py, PyAny>]) -> PyResult<Tensors<'py>> {
    let mut tensors = Tensors { views: Views::new(), made: Vec::new(), place: Place::Cpu };
    for (number, operand) in operands.iter().enumerate() {
        let (view, made, place) = view(number, operand)?;
        if number > 0 && place != tensors.place {
            let device = |number: usize| operands[number].getattr("device").and_then(|device| device.str());
            return Err(PyValueError::new_err(format!(
                "operand 0 is on `{}` but operand {number} on `{}`\nhint: all operands and tables must be on one device",
                device(0)?,
                device(number)?
            )));
        }
        tensors.place = place;
        tensors.views.push(view);
        tensors.made.extend(made);
    }
    Ok(tensors)
}

struct Described {
    place: Place,
    /// Missing where the element type is unknown.
    view: Option<View<'static>>,
}

fn describe(api: &ExchangeApi, tensor: &Bound<'_, PyAny>) -> PyResult<Described> {
    let mut described = DlTensor {
        data: ptr::null_mut(),
        device_type: 0,
        device_id: 0,
        ndim: 0,
        code: 0,
        bits: 0,
        lanes: 0,
        shape: ptr::null_mut(),
        strides: ptr::null_mut(),
        byte_offset: 0,
    };
    let function = api.describe.expect("asked for when the table was found");
    // SAFETY: the object is a tensor of the class that the table is for; `described` outlives the call.
    if unsafe { function(tensor.as_ptr().cast(), &mut described) } != 0 {
        return Err(PyErr::fetch(tensor.py()));
    }
    let place = match described.device_type {
        1 => Place::Cpu,
        2 => Place::Cuda(described.device_id as usize),
        _ => Place::Other,
    };
    let dtype = match (described.code, described.bits) {
        (6, 8) => DType::Bool,
        (0, 8) => DType::I8,
        (0, 16) => DType::I16,
        (0, 32) => DType::I32,
        (0, 64) => DType::I64,
        (1, 8) => DType::U8,
        (1, 16) => DType::U16,
        (1, 32) => DType::U32,
        (1, 64) => DType::U64,
        (2, 16) => DType::F16,
        (4, 16) => DType::BF16,
        (2, 32) => DType::F32,
        (2, 64) => DType::F64,
        (5, 64) => DType::C64,
        (5, 128) => DType::C128,
        _ => return Ok(Described { place, view: None }),
    };
    if described.lanes != 1 || place == Place::Other {
        return Ok(Described { place, view: None });
    }
    let rank = described.ndim as usize;
    let (lens, steps): (&[i64], &[i64]) = match rank {
        0 => (&[], &[]),
        // SAFETY: the producer filled in `ndim` lengths and strides, which live as long as the tensor.
        _ => unsafe {
            (std::slice::from_raw_parts(described.shape, rank), std::slice::from_raw_parts(described.strides, rank))
        },
    };
    let data = described.data.cast::<u8>().wrapping_add(described.byte_offset as usize);
    Ok(Described { place, view: Some(from_parts(data, dtype, lens, steps)) })
}

/// The slow way, for older versions.
fn ask(tensor: &Bound<'_, PyAny>) -> PyResult<Described> {
    let place = if tensor.getattr("is_cpu")?.is_truthy()? {
        Place::Cpu
    } else if tensor.getattr("is_cuda")?.is_truthy()? {
        Place::Cuda(tensor.call_method0("get_device")?.extract()?)
    } else {
        Place::Other
    };
    let name = tensor.getattr("dtype")?.str()?;
    let dtype = name.to_str()?.strip_prefix("torch.").and_then(|name| name.parse().ok());
    let Some(dtype) = dtype.filter(|_| place != Place::Other) else { return Ok(Described { place, view: None }) };
    let lens: Vec<i64> = tensor.getattr("shape")?.extract()?;
    let steps: Vec<i64> = tensor.call_method0("stride")?.extract()?;
    let data: usize = tensor.call_method0("data_ptr")?.extract()?;
    Ok(Described { place, view: Some(from_parts(ptr::with_exposed_provenance_mut(data), dtype, &lens, &steps)) })
}

fn from_parts(data: *mut u8, dtype: DType, lens: &[i64], steps: &[i64]) -> View<'static> {
    let shape = lens.iter().map(|&len| len as usize).collect();
    let strides = lens.iter().zip(steps).map(|(&len, &step)| if len <= 1 { 0 } else { step as isize }).collect();
    // SAFETY: torch keeps every element of a tensor inside its storage, which the caller holds.
    unsafe { View::from_raw_parts(data, dtype, Layout { shape, strides }) }
}

/// A new tensor without contents beside another, of its type, and the address of its first element.
pub(crate) fn empty_like<'py>(like: &Bound<'py, PyAny>, shape: &[usize]) -> PyResult<(Bound<'py, PyAny>, *mut u8)> {
    let py = like.py();
    let tensor = like.call_method1(intern!(py, "new_empty"), (PyTuple::new(py, shape)?,))?;
    address(py, tensor)
}

/// A tensor with the address of its first element.
fn address<'py>(py: Python<'py>, tensor: Bound<'py, PyAny>) -> PyResult<(Bound<'py, PyAny>, *mut u8)> {
    let data = match torch(py)?.api {
        Some(api) => describe(api, &tensor)?.view.map(|view| view.as_ptr().cast_mut()),
        None => ask(&tensor)?.view.map(|view| view.as_ptr().cast_mut()),
    };
    Ok((tensor, data.expect("a tensor of a known type where it was wanted")))
}

/// The current stream of a GPU.
pub(crate) fn current_stream(py: Python<'_>, ordinal: usize) -> PyResult<u64> {
    static STREAM: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let stream = STREAM.get_or_try_init(py, || -> PyResult<Py<PyAny>> {
        let torch = imported(py, "torch")?.expect("an operand is a tensor");
        Ok(torch.getattr("_C")?.getattr("_cuda_getCurrentRawStream")?.unbind())
    })?;
    stream.bind(py).call1((ordinal,))?.extract()
}

/// A new tensor without contents, and the address of its first element.
/// On the CPU, or on a GPU.
pub(crate) fn empty<'py>(
    py: Python<'py>,
    dtype: DType,
    shape: &[usize],
    gpu: Option<usize>,
) -> PyResult<(Bound<'py, PyAny>, *mut u8)> {
    let torch = torch(py)?;
    let known = torch.dtypes.iter().find(|(known, _)| *known == dtype);
    let (_, object) = known.ok_or_else(|| PyTypeError::new_err(format!("this torch has no type for {dtype}")))?;
    let options = PyDict::new(py);
    options.set_item(intern!(py, "dtype"), object)?;
    if let Some(ordinal) = gpu {
        // A number alone is a GPU.
        options.set_item(intern!(py, "device"), ordinal)?;
    }
    // A default device that is not the CPU has pushed a mode, which was asked for before.
    let tensor = torch.empty.bind(py).call((PyTuple::new(py, shape)?,), Some(&options))?;
    address(py, tensor)
}
