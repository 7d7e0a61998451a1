//! Arrays on NVIDIA GPUs, of torch and CuPy: launched into the caller's stream, with the library's own memory.
//!
//! *In*: views whose memory the host must not read. *Out*: a new array of the library. Nothing waits for the GPU, so a bad
//! value of a table is found by the next call on the same GPU, which raises.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use einfall::{CudaDevice, CudaError, DType, Plan, Program, RunError, View};
use lru::LruCache;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use rustc_hash::FxBuildHasher;

use crate::cache::{key, plan_on};
use crate::error::{TableError, to_python};
use crate::kind::imported;
use crate::options::Options;
use crate::run::Views;

/// Programs that are kept at most.
const MOST: usize = 4096;

/// A plan and its kernels, for arguments of some alignment.
struct Ready {
    plan: Plan,
    program: Program,
}

type Programs = LruCache<Box<[u64]>, Arc<Ready>, FxBuildHasher>;

fn programs() -> MutexGuard<'static, Programs> {
    static PROGRAMS: OnceLock<Mutex<Programs>> = OnceLock::new();
    let most = NonZeroUsize::new(MOST).expect("above zero");
    let programs = PROGRAMS.get_or_init(|| Mutex::new(LruCache::with_hasher(most, FxBuildHasher)));
    // What a panic interrupted is a cache: whatever is in it is whole.
    programs.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A GPU, made at the first call and kept.
fn device(py: Python<'_>, ordinal: usize) -> PyResult<&'static CudaDevice> {
    static DEVICES: Mutex<Option<HashMap<usize, &'static CudaDevice>>> = Mutex::new(None);
    // Python may hand over to another thread, so no lock is held while it is asked.
    let devices = || DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = devices().as_ref().and_then(|devices| devices.get(&ordinal)) {
        return Ok(device);
    }
    // NVRTC comes with torch and CuPy as a package of its own, which is loaded by its path.
    if let Some(folder) = nvrtc_folder(py)? {
        einfall::look_for_nvrtc(&folder);
    }
    let fresh = CudaDevice::new(ordinal).map_err(|error| failed(py, error))?;
    let mut devices = devices();
    let devices = devices.get_or_insert_with(HashMap::new);
    // The first stays; another that was made meanwhile is dropped.
    Ok(*devices.entry(ordinal).or_insert_with(|| Box::leak(Box::new(fresh))))
}

/// Where Python's packages keep NVRTC.
fn nvrtc_folder(py: Python<'_>) -> PyResult<Option<std::path::PathBuf>> {
    let paths: Vec<std::path::PathBuf> = PyModule::import(py, "sys")?.getattr("path")?.extract().unwrap_or_default();
    let folders = ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"];
    let candidates = paths.iter().flat_map(|path| folders.iter().map(move |folder| path.join(folder)));
    Ok(candidates.into_iter().find(|folder| folder.is_dir()))
}

fn failed(py: Python<'_>, error: CudaError) -> PyErr {
    to_python(py, RunError::from(error).into())
}

/// A library's memory and stream.
trait Library<'py> {
    /// A new array, and where its first element is.
    fn empty(&self, dtype: DType, shape: &[usize]) -> PyResult<(Bound<'py, PyAny>, u64)>;
    /// Bytes that are used until the stream has passed, and where they are.
    fn workspace(&self, bytes: usize) -> PyResult<(Bound<'py, PyAny>, u64)>;
    /// The current stream.
    fn stream(&self) -> PyResult<u64>;
}

fn run<'py>(
    py: Python<'py>,
    library: &impl Library<'py>,
    ordinal: usize,
    equation: &str,
    views: &[View<'_>],
    options: &Options,
) -> PyResult<Bound<'py, PyAny>> {
    let device = device(py, ordinal)?;
    if device.take_bad_table() {
        return Err(TableError::new_err(
            "a table of an earlier call on this GPU holds a value outside its axis; the results of that call are not \
             valid\nhint: bounds=\"skip\" leaves such terms out",
        ));
    }
    // Wide loads need aligned arrays; more than 16 bytes make no difference. New arrays are aligned well.
    let class = |address: u64| address.trailing_zeros().min(4);
    let mut words = key(equation, views, options);
    words.push(ordinal as u64);
    words.extend(views.iter().map(|view| u64::from(class(view.as_ptr() as u64))));
    let known = programs().get(&words[..]).cloned();
    let ready = match known {
        Some(ready) => ready,
        None => {
            let arguments =
                views.iter().map(|view| einfall::Argument { dtype: view.dtype(), layout: view.layout().clone() });
            let plan = plan_on(device, equation, arguments.collect(), options).map_err(|error| to_python(py, error))?;
            let classes = views.iter().map(|view| 1_u64 << class(view.as_ptr() as u64)).chain([16]);
            let program = device.prepare(&plan, &classes.collect::<Vec<_>>()).map_err(|error| failed(py, error))?;
            let ready = Arc::new(Ready { plan, program });
            programs().put(words.into_boxed_slice(), Arc::clone(&ready));
            ready
        }
    };
    let output = &ready.plan.problem.output;
    let (result, out) = library.empty(output.dtype, &output.layout.shape)?;
    let (_workspace, workspace) = match ready.program.workspace_bytes {
        0 => (None, 0),
        bytes => {
            let (memory, address) = library.workspace(bytes)?;
            (Some(memory), address)
        }
    };
    let arguments: smallvec::SmallVec<[u64; 8]> = views.iter().map(|view| view.as_ptr() as u64).collect();
    let stream = library.stream()? as *mut std::ffi::c_void;
    // SAFETY: the arrays are as the plan says, which was made for them; the library keeps memory that it has given away
    // for this stream until the stream has passed, and nobody else has seen the result.
    unsafe { device.launch(&ready.program, &arguments, out, workspace, stream) }.map_err(|error| failed(py, error))?;
    Ok(result)
}

struct Torch<'a, 'py> {
    py: Python<'py>,
    ordinal: usize,
    /// A tensor of the call, and its type.
    like: (&'a Bound<'py, PyAny>, DType),
}

impl<'py> Library<'py> for Torch<'_, 'py> {
    fn empty(&self, dtype: DType, shape: &[usize]) -> PyResult<(Bound<'py, PyAny>, u64)> {
        let (like, known) = self.like;
        let (tensor, data) = match known == dtype {
            true => crate::torch::empty_like(like, shape)?,
            false => crate::torch::empty(self.py, dtype, shape, Some(self.ordinal))?,
        };
        Ok((tensor, data as u64))
    }

    fn workspace(&self, bytes: usize) -> PyResult<(Bound<'py, PyAny>, u64)> {
        self.empty(DType::U8, &[bytes])
    }

    fn stream(&self) -> PyResult<u64> {
        crate::torch::current_stream(self.py, self.ordinal)
    }
}

/// Runs on tensors of torch, into a new one.
pub(crate) fn run_torch<'py>(
    py: Python<'py>,
    ordinal: usize,
    equation: &str,
    operands: &[Bound<'py, PyAny>],
    views: &Views,
    options: &Options,
) -> PyResult<Bound<'py, PyAny>> {
    let like = (&operands[0], views[0].dtype());
    run(py, &Torch { py, ordinal, like }, ordinal, equation, views, options)
}

struct CuPy<'py> {
    cupy: Bound<'py, PyModule>,
}

impl<'py> Library<'py> for CuPy<'py> {
    fn empty(&self, dtype: DType, shape: &[usize]) -> PyResult<(Bound<'py, PyAny>, u64)> {
        if dtype == DType::BF16 {
            return Err(PyTypeError::new_err("CuPy has no type for bf16"));
        }
        let name = crate::torch::name(dtype);
        let array = self.cupy.call_method1("empty", (PyTuple::new(self.cupy.py(), shape)?, name))?;
        let address = array.getattr("data")?.getattr("ptr")?.extract()?;
        Ok((array, address))
    }

    fn workspace(&self, bytes: usize) -> PyResult<(Bound<'py, PyAny>, u64)> {
        self.empty(DType::U8, &[bytes])
    }

    fn stream(&self) -> PyResult<u64> {
        self.cupy.getattr("cuda")?.call_method0("get_current_stream")?.getattr("ptr")?.extract()
    }
}

/// Runs on arrays of CuPy, into a new one.
pub(crate) fn on_cupy<'py>(
    py: Python<'py>,
    equation: &str,
    operands: &[Bound<'py, PyAny>],
    mut options: Options,
    dtype: Option<DType>,
) -> PyResult<Bound<'py, PyAny>> {
    let cupy = imported(py, "cupy")?.expect("an operand is an array of CuPy");
    let mut views = Views::new();
    let mut ordinal = None;
    for (number, operand) in operands.iter().enumerate() {
        let at: usize = operand.getattr("device")?.getattr("id")?.extract()?;
        if ordinal.is_some_and(|ordinal| ordinal != at) {
            return Err(PyValueError::new_err(format!("operand {number} is on another GPU than those before")));
        }
        ordinal = Some(at);
        views.push(described(number, operand)?);
    }
    options.dtype = dtype;
    // New memory and the current stream are those of CuPy's current device.
    let ordinal = ordinal.unwrap_or(0);
    let device = cupy.getattr("cuda")?.call_method1("Device", (ordinal,))?;
    device.call_method0("__enter__")?;
    let result = run(py, &CuPy { cupy }, ordinal, equation, &views, &options);
    device.call_method1("__exit__", (py.None(), py.None(), py.None()))?;
    result
}

/// A view from `__cuda_array_interface__`.
fn described(number: usize, array: &Bound<'_, PyAny>) -> PyResult<View<'static>> {
    let interface = array.getattr("__cuda_array_interface__")?.cast_into::<PyDict>()?;
    let get = |name: &str| interface.get_item(name).map(|item| item.filter(|item| !item.is_none()));
    let text: String = get("typestr")?.map(|item| item.extract()).transpose()?.unwrap_or_default();
    let unsupported = || PyTypeError::new_err(format!("operand {number} has the unsupported dtype `{text}`"));
    let dtype = match text.trim_start_matches(['<', '|', '=']) {
        "b1" => DType::Bool,
        "i1" => DType::I8,
        "i2" => DType::I16,
        "i4" => DType::I32,
        "i8" => DType::I64,
        "u1" => DType::U8,
        "u2" => DType::U16,
        "u4" => DType::U32,
        "u8" => DType::U64,
        "f2" => DType::F16,
        "f4" => DType::F32,
        "f8" => DType::F64,
        "c8" => DType::C64,
        "c16" => DType::C128,
        _ => return Err(unsupported()),
    };
    let missing = || PyValueError::new_err("an array without a shape or data");
    let shape: Vec<usize> = get("shape")?.ok_or_else(missing)?.extract()?;
    let (address, _): (usize, bool) = get("data")?.ok_or_else(missing)?.extract()?;
    let strides: Vec<isize> = match get("strides")? {
        Some(strides) => {
            let bytes: Vec<isize> = strides.extract()?;
            let size = dtype.bytes() as isize;
            if bytes.iter().zip(&shape).any(|(bytes, &len)| len > 1 && bytes % size != 0) {
                return Err(unsupported());
            }
            bytes.iter().map(|bytes| bytes / size).collect()
        }
        None => einfall::Layout::contiguous(&shape).strides.to_vec(),
    };
    let layout = einfall::Layout { shape: shape[..].into(), strides: strides[..].into() };
    // SAFETY: CuPy keeps every element of an array inside its memory, which the caller holds; the host never reads it.
    Ok(unsafe { View::from_raw_parts(std::ptr::with_exposed_provenance_mut(address), dtype, layout) })
}
