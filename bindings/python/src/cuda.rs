//! Arrays on NVIDIA GPUs, of torch and CuPy: launched into the caller's stream, with the library's own memory.
//!
//! *In*: views whose memory the host must not read. *Out*: a new array of the library. Nothing waits for the GPU, so a bad
//! value of a table is found by the next call on the same GPU, which raises.

use std::any::Any;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use einfall::{Argument, CudaDevice, CudaError, DType, Error, Plan, Program, RunError, View};
use lru::LruCache;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use rustc_hash::FxBuildHasher;

use crate::cache::{key, plan_on};
use crate::error::{TableError, to_python};
use crate::kind::imported;
use crate::options::Options;
use crate::run::{Views, promote_like_torch};
use crate::table::{Entry, Kept, State, Tables};

/// Programs that are kept at most.
const MOST: usize = 4096;

/// A plan and its kernels, for arguments of some alignment.
pub(crate) struct Ready {
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

/// A GPU, with how many bad tables were reported.
pub(crate) struct Gpu {
    pub(crate) device: CudaDevice,
    reported: AtomicU64,
}

/// GPUs that a process may use.
const GPUS: usize = 64;

static DEVICES: [OnceLock<Gpu>; GPUS] = [const { OnceLock::new() }; GPUS];

/// A GPU, made at the first call and kept.
pub(crate) fn gpu(ordinal: usize) -> Result<&'static Gpu, Error> {
    let missing = || RunError::from(CudaError::Ordinal { ordinal, count: GPUS });
    let place = DEVICES.get(ordinal).ok_or_else(missing)?;
    if let Some(gpu) = place.get() {
        return Ok(gpu);
    }
    let fresh = Gpu { device: einfall::gpu(ordinal).map_err(RunError::from)?, reported: AtomicU64::new(0) };
    // The first stays; another that was made meanwhile is dropped.
    Ok(place.get_or_init(|| fresh))
}

impl Gpu {
    /// Refuses to go on where a call that has passed found a bad table.
    pub(crate) fn check_tables(&self) -> Result<(), &'static str> {
        if !self.device.take_bad_table() {
            return Ok(());
        }
        self.reported.fetch_add(1, Ordering::Relaxed);
        Err("a table of an earlier call on this GPU holds a value outside its axis; the results of that call are not \
             valid\nhint: bounds=\"skip\" leaves such terms out")
    }
}

/// Lets the package's folders be searched for NVRTC, which comes with torch, JAX and CuPy as a package of its own.
pub(crate) fn look_for_nvrtc(py: Python<'_>) -> PyResult<()> {
    let paths: Vec<std::path::PathBuf> = PyModule::import(py, "sys")?.getattr("path")?.extract().unwrap_or_default();
    let folders = ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"];
    let mut candidates = paths.iter().flat_map(|path| folders.iter().map(move |folder| path.join(folder)));
    if let Some(folder) = candidates.find(|folder| folder.is_dir()) {
        einfall::look_for_nvrtc(&folder);
    }
    Ok(())
}

/// A call that has been bound to memory.
pub(crate) struct Call<'a> {
    pub(crate) ordinal: usize,
    pub(crate) equation: &'a str,
    pub(crate) views: &'a [View<'a>],
    pub(crate) options: &'a Options,
    /// Whether operands of several types are promoted as torch does.
    pub(crate) like_torch: bool,
}

impl Call<'_> {
    /// Finds or makes its plan with the kernels.
    pub(crate) fn ready(&self, gpu: &'static Gpu) -> Result<Arc<Ready>, Error> {
        let &Call { ordinal, equation, views, options, like_torch } = self;
        // Wide loads need aligned arrays; more than 16 bytes make no difference. New arrays are aligned well.
        let class = |address: u64| address.trailing_zeros().min(4);
        let mut words = key(equation, views, options);
        words.push(ordinal as u64 | u64::from(like_torch) << 32);
        words.extend(views.iter().map(|view| u64::from(class(view.as_ptr() as u64))));
        if let Some(ready) = programs().get(&words[..]) {
            return Ok(Arc::clone(ready));
        }
        let arguments = || {
            let describe = |view: &View<'_>| Argument { dtype: view.dtype(), layout: view.layout().clone() };
            views.iter().map(describe).collect()
        };
        let mut plan = plan_on(&gpu.device, equation, arguments(), options)?;
        if like_torch && options.dtype.is_none() {
            let operands = plan.problem.operands.iter().map(|operand| operand.dtype);
            let dtype = operands.reduce(promote_like_torch).filter(|&dtype| dtype != plan.problem.dtype);
            if dtype.is_some() {
                plan = plan_on(&gpu.device, equation, arguments(), &Options { dtype, ..options.clone() })?;
            }
        }
        let classes = views.iter().map(|view| 1_u64 << class(view.as_ptr() as u64)).chain([16]);
        let program = gpu.device.prepare(&plan, &classes.collect::<Vec<_>>()).map_err(RunError::from)?;
        let ready = Arc::new(Ready { plan, program });
        programs().put(words.into_boxed_slice(), Arc::clone(&ready));
        Ok(ready)
    }

    fn addresses(&self) -> Addresses {
        self.views.iter().map(|view| view.as_ptr() as u64).collect()
    }

    /// Puts it into a stream.
    ///
    /// # Safety
    /// The views are of this GPU, `out` is a new row-major array of the plan's, `workspace` has
    /// [`Keeps::workspace_bytes`] and is aligned to 256; all stay until the stream has passed.
    pub(crate) unsafe fn launch(
        &self,
        gpu: &Gpu,
        ready: &Ready,
        out: u64,
        workspace: u64,
        stream: u64,
    ) -> Result<(), RunError> {
        // SAFETY: by the caller.
        Ok(unsafe { gpu.device.launch(&ready.program, &self.addresses(), out, workspace, stream as Stream) }?)
    }
}

type Addresses = smallvec::SmallVec<[u64; 8]>;
pub(crate) type Stream = *mut std::ffi::c_void;

/// A library's memory and stream.
pub(crate) trait Library<'py> {
    /// A new array, and where its first element is.
    fn empty(&self, dtype: DType, shape: &[usize]) -> PyResult<(Bound<'py, PyAny>, u64)>;
    /// The current stream.
    fn stream(&self) -> PyResult<u64>;
    /// A number that changes whenever an array is written to, where the library has one.
    fn version(&self, array: &Bound<'py, PyAny>) -> Option<i64>;

    /// Bytes that are used until the stream has passed, and where they are.
    fn bytes(&self, bytes: usize) -> PyResult<(Bound<'py, PyAny>, u64)> {
        self.empty(DType::U8, &[bytes])
    }
}

/// A GPU for a call of Python: raises where an earlier call found a bad table.
pub(crate) fn opened(py: Python<'_>, ordinal: usize) -> PyResult<&'static Gpu> {
    if DEVICES.get(ordinal).is_some_and(|place| place.get().is_none()) {
        look_for_nvrtc(py)?;
    }
    let gpu = gpu(ordinal).map_err(|error| to_python(py, error))?;
    gpu.check_tables().map_err(TableError::new_err)?;
    Ok(gpu)
}

fn run<'py>(
    py: Python<'py>,
    library: &impl Library<'py>,
    call: &Call<'_>,
    operands: &[Bound<'py, PyAny>],
    tables: &Tables,
) -> PyResult<Bound<'py, PyAny>> {
    let gpu = opened(py, call.ordinal)?;
    let ready = call.ready(gpu).map_err(|error| to_python(py, error))?;
    let output = &ready.plan.problem.output;
    let (result, out) = library.empty(output.dtype, &output.layout.shape)?;
    let stream = library.stream()?;
    if ready.program.kept_bytes > 0 && !tables.is_empty() {
        let arguments = &call.addresses();
        let (ready, ordinal) = (&ready, call.ordinal);
        let keeping = Keeping { gpu, ordinal, ready, operands, given: arguments, arguments, tables, stream };
        run_kept(py, library, keeping, |kept, workspace| {
            let stream = stream as Stream;
            match kept {
                // SAFETY: as below; what is kept is as `run_kept` says.
                Some(kept) => unsafe {
                    gpu.device.launch_kept(&ready.program, arguments, out, workspace, kept, stream)
                },
                // SAFETY: as below.
                None => unsafe { gpu.device.launch(&ready.program, arguments, out, workspace, stream) },
            }
        })?;
        return Ok(result);
    }
    let workspace = Workspace::of(library, gpu, call.ordinal, stream, ready.program.workspace_bytes)?;
    // SAFETY: the arrays are as the plan says, which was made for them; the library keeps memory that it has given away
    // for this stream until the stream has passed, and nobody else has seen the result.
    let launched = unsafe { call.launch(gpu, &ready, out, workspace.address(), stream) };
    drop(workspace);
    launched.map_err(|error| to_python(py, error.into()))?;
    Ok(result)
}

/// Scratch memory that is kept for a stream: calls in it follow each other, so they may share it.
pub(crate) struct Shared {
    place: (usize, u64),
    bytes: usize,
    address: u64,
    _memory: Py<PyAny>,
}

/// More is not kept, and not for more streams.
const SHARED_BYTES: usize = 48 << 20;
const SHARED_STREAMS: usize = 32;

static SHARED: Mutex<Vec<Shared>> = Mutex::new(Vec::new());

/// Scratch memory for one launch.
pub(crate) enum Workspace<'py> {
    None,
    Own {
        _memory: Bound<'py, PyAny>,
        address: u64,
    },
    /// Others must not launch in between: so the lock is held, and Python is not asked.
    Shared {
        address: u64,
        _guard: MutexGuard<'static, Vec<Shared>>,
    },
}

impl<'py> Workspace<'py> {
    pub(crate) fn of(
        library: &impl Library<'py>,
        gpu: &Gpu,
        ordinal: usize,
        stream: u64,
        bytes: usize,
    ) -> PyResult<Self> {
        if bytes == 0 {
            return Ok(Workspace::None);
        }
        let own = |bytes: usize| library.bytes(bytes).map(|(_memory, address)| Workspace::Own { _memory, address });
        // What a graph writes when it runs belongs to it alone.
        // SAFETY: the library's current stream on this GPU. A stream that cannot be asked is treated as capturing.
        if bytes > SHARED_BYTES || unsafe { gpu.device.is_capturing(stream as Stream) }.unwrap_or(true) {
            return own(bytes);
        }
        let shared = || SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (ordinal, stream);
        let fitting = |guard: &MutexGuard<'_, Vec<Shared>>| {
            guard.iter().find(|known| known.place == place && known.bytes >= bytes).map(|known| known.address)
        };
        let guard = shared();
        if let Some(address) = fitting(&guard) {
            return Ok(Workspace::Shared { address, _guard: guard });
        }
        drop(guard);
        let (memory, address) = library.bytes(bytes)?;
        let mut guard = shared();
        let smaller = guard.iter().position(|known| known.place == place);
        if smaller.is_none() && guard.len() >= SHARED_STREAMS {
            return Ok(Workspace::Own { _memory: memory, address });
        }
        let displaced = smaller.map(|at| guard.swap_remove(at));
        guard.push(Shared { place, bytes, address, _memory: memory.unbind() });
        // Python is asked to take it back, so no lock is held; should another thread put in its own meanwhile, that is as
        // good.
        drop(guard);
        drop(displaced);
        let guard = shared();
        match fitting(&guard) {
            Some(address) => Ok(Workspace::Shared { address, _guard: guard }),
            None => {
                drop(guard);
                own(bytes)
            }
        }
    }

    pub(crate) fn address(&self) -> u64 {
        match self {
            Workspace::None => 0,
            Workspace::Own { address, .. } | Workspace::Shared { address, .. } => *address,
        }
    }
}

/// What is asked of a program that lets inverses be kept.
pub(crate) trait Keeps: Send + Sync + 'static {
    /// Bytes of scratch memory, with what may be kept.
    fn workspace_bytes(&self) -> usize;
    fn kept_bytes(&self) -> usize;
    fn workspace_beside_kept(&self) -> usize;
    fn is_decided_by(&self, unchanged: &[bool]) -> bool;
}

impl Keeps for Ready {
    fn workspace_bytes(&self) -> usize {
        self.program.workspace_bytes
    }

    fn kept_bytes(&self) -> usize {
        self.program.kept_bytes
    }

    fn workspace_beside_kept(&self) -> usize {
        self.program.workspace_beside_kept
    }

    fn is_decided_by(&self, unchanged: &[bool]) -> bool {
        self.program.is_decided_by(unchanged)
    }
}

/// A call whose tables keep their inverses.
pub(crate) struct Keeping<'a, 'py, R> {
    pub(crate) gpu: &'static Gpu,
    pub(crate) ordinal: usize,
    pub(crate) ready: &'a Arc<R>,
    /// What Python gave, with its addresses.
    pub(crate) operands: &'a [Bound<'py, PyAny>],
    pub(crate) given: &'a [u64],
    /// The program's arguments.
    pub(crate) arguments: &'a [u64],
    pub(crate) tables: &'a Tables,
    pub(crate) stream: u64,
}

/// Launches with the inverses that hang on the first of the call's tables, which are made where they are not there.
/// `launch` is given the kept memory, if any, and scratch memory that fits.
pub(crate) fn run_kept<'py, R: Keeps>(
    py: Python<'py>,
    library: &impl Library<'py>,
    keeping: Keeping<'_, 'py, R>,
    launch: impl FnOnce(Option<einfall::Kept<'_>>, u64) -> Result<(), CudaError>,
) -> PyResult<()> {
    let Keeping { gpu, ordinal, ready, operands, given, arguments, tables, stream } = keeping;
    let failed = |error: CudaError| to_python(py, RunError::from(error).into());
    let state = |(at, _): &(usize, Py<Kept>)| (*at, given[*at], library.version(&operands[*at]));
    let states: smallvec::SmallVec<[State; 2]> = tables.iter().map(state).collect();
    // SAFETY: the library's current stream on this GPU.
    let capturing = unsafe { gpu.device.is_capturing(stream as Stream) }.map_err(failed)?;
    let reported = gpu.reported.load(Ordering::Relaxed);
    let kept = tables[0].1.get();
    let unchanged = |entry: &Entry| {
        let same = |&address: &u64| {
            entry.reported == reported && entry.states.iter().any(|s| s.1 == address && states.contains(s))
        };
        arguments.iter().map(same).collect::<smallvec::SmallVec<[bool; 8]>>()
    };
    let program: Arc<dyn Any + Send + Sync> = Arc::<R>::clone(ready);
    let known = {
        let mut entries = kept.entries();
        let of_program = |entry: &&mut Entry| std::ptr::addr_eq(Arc::as_ptr(&entry.program), Arc::as_ptr(ready));
        let mut found = None;
        for entry in entries.iter_mut().filter(of_program) {
            let mask = unchanged(entry);
            let whole = ready.is_decided_by(&mask);
            // A graph, which runs later, may read what another stream has made by then, and fixes it; otherwise streams
            // keep apart, and what a graph reads is not written.
            if if capturing { whole } else { entry.stream == stream && (whole || !entry.pinned) } {
                entry.pinned |= capturing;
                found = Some((entry.memory.clone_ref(py), entry.address, mask));
                break;
            }
        }
        found
    };
    let (memory, address, mask) = match known {
        Some(known) => known,
        None if capturing => {
            // What a graph makes is there when it runs, not before: it keeps nothing for others.
            let (_memory, workspace) = library.bytes(ready.workspace_bytes())?;
            return launch(None, workspace).map_err(failed);
        }
        None => {
            let (memory, address) = library.bytes(ready.kept_bytes())?;
            (memory.unbind(), address, smallvec::smallvec![false; arguments.len()])
        }
    };
    let workspace = Workspace::of(library, gpu, ordinal, stream, ready.workspace_beside_kept())?;
    // What is called unchanged was made in this stream by this program, or, for a graph, before it was captured.
    let launched = launch(Some(einfall::Kept { pointer: address, unchanged: &mask }), workspace.address());
    drop(workspace);
    launched.map_err(failed)?;
    if !ready.is_decided_by(&mask) {
        let entry = Entry { program, stream, reported, states, memory, address, pinned: false };
        drop(kept.put(entry));
    }
    Ok(())
}

pub(crate) struct Torch<'a, 'py> {
    pub(crate) py: Python<'py>,
    pub(crate) ordinal: usize,
    /// A tensor of the call, and its type.
    pub(crate) like: (&'a Bound<'py, PyAny>, DType),
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

    fn stream(&self) -> PyResult<u64> {
        crate::torch::current_stream(self.py, self.ordinal)
    }

    fn version(&self, array: &Bound<'py, PyAny>) -> Option<i64> {
        // Tensors of inference mode have none, and an exception for it takes longer than a launch.
        if array.call_method0(intern!(self.py, "is_inference")).ok()?.is_truthy().ok()? {
            return None;
        }
        array.getattr(intern!(self.py, "_version")).ok()?.extract().ok()
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
    tables: &Tables,
) -> PyResult<Bound<'py, PyAny>> {
    let like = (&operands[0], views[0].dtype());
    let call = Call { ordinal, equation, views, options, like_torch: true };
    run(py, &Torch { py, ordinal, like }, &call, operands, tables)
}

pub(crate) struct CuPy<'py> {
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

    fn stream(&self) -> PyResult<u64> {
        self.cupy.getattr("cuda")?.call_method0("get_current_stream")?.getattr("ptr")?.extract()
    }

    fn version(&self, _: &Bound<'py, PyAny>) -> Option<i64> {
        None
    }
}

/// Runs on arrays of CuPy, into a new one.
pub(crate) fn on_cupy<'py>(
    py: Python<'py>,
    equation: &str,
    operands: &[Bound<'py, PyAny>],
    mut options: Options,
    dtype: Option<DType>,
    tables: &Tables,
) -> PyResult<Bound<'py, PyAny>> {
    options.dtype = dtype;
    with_cupy(py, operands, |library, ordinal, views| {
        let call = Call { ordinal, equation, views, options: &options, like_torch: false };
        run(py, library, &call, operands, tables)
    })
}

/// Does something on the GPU of the operands, with views of them.
pub(crate) fn with_cupy<'py, T>(
    py: Python<'py>,
    operands: &[Bound<'py, PyAny>],
    run: impl FnOnce(&CuPy<'py>, usize, &Views) -> PyResult<T>,
) -> PyResult<T> {
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
    // New memory and the current stream are those of CuPy's current device.
    let ordinal = ordinal.unwrap_or(0);
    let device = cupy.getattr("cuda")?.call_method1("Device", (ordinal,))?;
    device.call_method0("__enter__")?;
    let result = run(&CuPy { cupy }, ordinal, &views);
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
