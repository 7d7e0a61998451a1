//! Calls that XLA has compiled into a program of JAX: the handler of a custom call, by XLA's foreign function interface.
//!
//! *In*: a frame of the call, with pointers to its buffers, whose layouts are row-major, and the call's settings as one
//! text. *Out*: numbers in the buffer of the result; on a GPU put into XLA's stream, with scratch memory from XLA. Python
//! takes no part, and its lock is not held.
//!
//! The structures are those of `xla/ffi/api/c_api.h`, version 0.3; each begins with its size, so that later ones may be
//! longer. What XLA says of its version is what we say of ours.

use std::ffi::{CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use einfall::{Argument, Bounds, DType, Device, Layout, Order, RunError, View, ViewMut};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use serde_json::Value;

use crate::attention_xla;
use crate::cache::prepare;
use crate::cuda::{self, Call, Gpu, Keeps};
use crate::device::device;
use crate::error::TableError;
use crate::options::{Options, named_order};
use crate::run::Views;

#[repr(C)]
struct Head {
    size: usize,
    extension: *mut Extension,
}

#[repr(C)]
struct Extension {
    size: usize,
    kind: c_int,
    next: *mut Extension,
}

/// The only extension that there is: a question for the handler's version.
const METADATA: c_int = 1;

#[repr(C)]
struct Version {
    head: Head,
    major: c_int,
    minor: c_int,
}

#[repr(C)]
struct Metadata {
    size: usize,
    version: Version,
    traits: u32,
}

#[repr(C)]
struct MetadataExtension {
    base: Extension,
    metadata: *mut Metadata,
}

/// A list of arguments or of results.
#[repr(C)]
struct List {
    head: Head,
    len: i64,
    kinds: *const c_int,
    items: *const *const c_void,
}

#[repr(C)]
struct Span {
    start: *const c_char,
    len: usize,
}

#[repr(C)]
struct Attributes {
    head: Head,
    len: i64,
    kinds: *const c_int,
    names: *const *const Span,
    items: *const *const c_void,
}

/// Kind of an attribute that is a text.
const STRING: c_int = 4;

#[repr(C)]
struct Buffer {
    head: Head,
    dtype: c_int,
    data: *mut u8,
    rank: i64,
    lens: *const i64,
}

#[repr(C)]
pub(crate) struct Frame {
    head: Head,
    api: *const Api,
    context: *mut c_void,
    stage: c_int,
    arguments: List,
    results: List,
    attributes: Attributes,
}

/// The stage in which a call is run.
const EXECUTE: c_int = 3;

/// An error of XLA's; null is none.
type Failure = *mut c_void;

#[repr(C)]
struct Create {
    head: Head,
    message: *const c_char,
    code: c_int,
}

#[repr(C)]
struct GetStream {
    head: Head,
    context: *mut c_void,
    stream: *mut c_void,
}

#[repr(C)]
struct Memory {
    head: Head,
    context: *mut c_void,
    bytes: usize,
    alignment: usize,
    data: *mut c_void,
}

#[repr(C)]
struct GetOrdinal {
    head: Head,
    context: *mut c_void,
    ordinal: i32,
}

type Ask<T> = unsafe extern "C" fn(*mut T) -> Failure;

#[repr(C)]
struct GetMessage {
    head: Head,
    error: Failure,
    message: *const c_char,
}

#[repr(C)]
struct Destroy {
    head: Head,
    error: Failure,
}

/// The functions of XLA; those that are not called have no type.
#[repr(C)]
struct Api {
    head: Head,
    version: Version,
    internal: *const c_void,
    create: Ask<Create>,
    message: unsafe extern "C" fn(*mut GetMessage),
    destroy: unsafe extern "C" fn(*mut Destroy),
    register: *const c_void,
    stream: Ask<GetStream>,
    types_and_states: [*const c_void; 4],
    allocate: Ask<Memory>,
    free: Ask<Free>,
    threads_and_futures: [*const c_void; 5],
    run_id: *const c_void,
    ordinal: Ask<GetOrdinal>,
}

fn head<T>() -> Head {
    Head { size: size_of::<T>(), extension: ptr::null_mut() }
}

/// Codes of errors.
const INVALID_ARGUMENT: c_int = 3;
const RESOURCE_EXHAUSTED: c_int = 8;
const OUT_OF_RANGE: c_int = 11;
const INTERNAL: c_int = 13;

/// Why a call fails: a code of XLA's, and a message.
pub(crate) type Why = (c_int, String);

pub(crate) fn invalid(why: impl ToString) -> Why {
    (INVALID_ARGUMENT, why.to_string())
}

/// The handler on the CPU.
unsafe extern "C" fn on_cpu(frame: *mut Frame) -> Failure {
    // SAFETY: XLA passes a frame that lives as long as the call.
    unsafe { handle(frame, run_on_cpu) }
}

/// The handler on GPUs.
unsafe extern "C" fn on_gpu(frame: *mut Frame) -> Failure {
    // SAFETY: as above.
    unsafe { handle(frame, run_on_gpu) }
}

/// The handler of attention on the CPU.
unsafe extern "C" fn attend_on_cpu(frame: *mut Frame) -> Failure {
    // SAFETY: as above.
    unsafe { handle(frame, attention_xla::run_on_cpu) }
}

/// The handler of attention on GPUs.
unsafe extern "C" fn attend_on_gpu(frame: *mut Frame) -> Failure {
    // SAFETY: as above.
    unsafe { handle(frame, attention_xla::run_on_gpu) }
}

/// # Safety
/// The frame is one of XLA's, alive.
unsafe fn handle(frame: *mut Frame, run: impl FnOnce(&Frame) -> Result<(), Why>) -> Failure {
    // SAFETY: by the caller; of extensions there is one kind, whose metadata XLA wants filled in.
    unsafe {
        let extension = (*frame).head.extension;
        if !extension.is_null() && (*extension).kind == METADATA {
            let metadata = (*extension.cast::<MetadataExtension>()).metadata;
            let version = if (*frame).api.is_null() {
                (0, 3)
            } else {
                ((*(*frame).api).version.major, (*(*frame).api).version.minor)
            };
            ((*metadata).version.major, (*metadata).version.minor) = version;
            (*metadata).traits = 0;
            return ptr::null_mut();
        }
        let frame = &*frame;
        if frame.stage != EXECUTE {
            return ptr::null_mut();
        }
        let done = catch_unwind(AssertUnwindSafe(|| run(frame)));
        let (code, message) = match done {
            Ok(Ok(())) => return ptr::null_mut(),
            Ok(Err(why)) => why,
            Err(_) => (INTERNAL, "einfall failed where it must not".to_owned()),
        };
        let message = CString::new(message.replace('\0', " ")).expect("no zero byte is left");
        ((*frame.api).create)(&mut Create { head: head::<Create>(), message: message.as_ptr(), code })
    }
}

/// What a call is about, beside its buffers.
pub(crate) fn document(frame: &Frame) -> Result<Value, Why> {
    let Attributes { len, kinds, names, items, .. } = frame.attributes;
    // SAFETY: the lists have so many entries; a text is a span.
    let text = unsafe {
        let text = |span: *const Span| std::slice::from_raw_parts((*span).start.cast::<u8>(), (*span).len);
        (0..len as usize)
            .find(|&at| *kinds.add(at) == STRING && text(*names.add(at)) == b"call")
            .map(|at| text((*items.add(at)).cast()))
    };
    let text = text.ok_or_else(|| invalid("the attribute `call` is missing"))?;
    serde_json::from_slice(text).map_err(invalid)
}

/// The equation of a call, and the lengths that it gives.
pub(crate) fn equation(document: &Value) -> Result<(String, Vec<(String, usize)>), Why> {
    let mut sizes = Vec::new();
    for (name, len) in document["sizes"].as_object().into_iter().flatten() {
        let len = len.as_u64().ok_or_else(|| invalid("a length is no number"))?;
        sizes.push((name.clone(), len as usize));
    }
    sizes.sort_unstable();
    let equation = document["equation"].as_str().ok_or_else(|| invalid("the equation is missing"))?;
    Ok((equation.to_owned(), sizes))
}

/// What happens to table values outside their axis.
pub(crate) fn bounds(document: &Value) -> Bounds {
    if document["bounds"] == "skip" { Bounds::Skip } else { Bounds::Error }
}

fn settings(frame: &Frame) -> Result<(String, Options), Why> {
    let document = document(frame)?;
    let (equation, sizes) = equation(&document)?;
    let mut options = Options { bounds: bounds(&document), sizes, ..Options::default() };
    options.memory_limit = document["memory_limit"].as_u64().map(|limit| limit as usize);
    options.order = order(&document["optimize"])?;
    Ok((equation, options))
}

fn order(given: &Value) -> Result<Order, Why> {
    match given {
        Value::Null | Value::Bool(true) => Ok(Order::Auto),
        Value::Bool(false) => Ok(Order::LeftToRight),
        Value::String(name) => named_order(name).map_err(|_| invalid(format!("`optimize` is `{name}`"))),
        Value::Array(items) => {
            let steps = items.iter().filter(|item| !item.is_string());
            let step = |item: &Value| serde_json::from_value(item.clone()).map_err(invalid);
            Ok(Order::Given(steps.map(step).collect::<Result<_, _>>()?))
        }
        _ => Err(invalid("`optimize` is neither a word, nor a truth value, nor a path")),
    }
}

fn dtype(number: c_int) -> Option<DType> {
    Some(match number {
        1 => DType::Bool,
        2 => DType::I8,
        3 => DType::I16,
        4 => DType::I32,
        5 => DType::I64,
        6 => DType::U8,
        7 => DType::U16,
        8 => DType::U32,
        9 => DType::U64,
        10 => DType::F16,
        11 => DType::F32,
        12 => DType::F64,
        15 => DType::C64,
        16 => DType::BF16,
        18 => DType::C128,
        _ => return None,
    })
}

/// The buffers of a list.
fn buffers(list: &List) -> Result<Vec<(*mut u8, Argument)>, Why> {
    let describe = |at: usize| {
        // SAFETY: the list has so many entries, all of them buffers, which say how many lengths they have.
        let (buffer, lens) = unsafe {
            let buffer = &*(*list.items.add(at)).cast::<Buffer>();
            let rank = buffer.rank as usize;
            (buffer, if rank == 0 { &[][..] } else { std::slice::from_raw_parts(buffer.lens, rank) })
        };
        let shape: Vec<usize> = lens.iter().map(|&len| len as usize).collect();
        let dtype = dtype(buffer.dtype).ok_or_else(|| invalid(format!("operand {at} is of an unsupported type")))?;
        Ok((buffer.data, Argument { dtype, layout: Layout::contiguous(&shape) }))
    };
    (0..list.len as usize).map(describe).collect()
}

/// The buffers of the results.
pub(crate) fn results(frame: &Frame) -> Result<Vec<(*mut u8, Argument)>, Why> {
    buffers(&frame.results)
}

/// Views of the arguments.
pub(crate) fn views(frame: &Frame) -> Result<Views, Why> {
    let view = |(data, argument): (*mut u8, Argument)| {
        // SAFETY: XLA's buffers are row-major and alive during the call; those of a GPU are not read here.
        unsafe { View::from_raw_parts(data, argument.dtype, argument.layout) }
    };
    Ok(buffers(&frame.arguments)?.into_iter().map(view).collect())
}

/// Views of the arguments, and the result with its description.
fn arguments(frame: &Frame) -> Result<(Views, *mut u8, Argument), Why> {
    let (data, out) = results(frame)?.into_iter().next().ok_or_else(|| invalid("a result is missing"))?;
    Ok((views(frame)?, data, out))
}

pub(crate) fn of_run(error: RunError) -> Why {
    let code = match error {
        RunError::TableValue { .. } => OUT_OF_RANGE,
        RunError::OutOfMemory { .. } => RESOURCE_EXHAUSTED,
        _ => INVALID_ARGUMENT,
    };
    (code, error.to_string())
}

fn run_on_cpu(frame: &Frame) -> Result<(), Why> {
    let (equation, mut options) = settings(frame)?;
    let (views, data, out) = arguments(frame)?;
    options.dtype = Some(out.dtype);
    options.out = Some(out.clone());
    let prepared = prepare(&equation, &views, &options).map_err(invalid)?;
    // SAFETY: XLA lets nobody else see the buffer of the result before the call is over.
    let mut out = unsafe { ViewMut::from_raw_parts(data, out.dtype, out.layout) }.map_err(invalid)?;
    // SAFETY: `planned`: as in `run`.
    unsafe { device().map_err(invalid)?.run(&prepared.plan, &views, &mut out) }.map_err(of_run)
}

fn run_on_gpu(frame: &Frame) -> Result<(), Why> {
    let (equation, mut options) = settings(frame)?;
    let (views, data, out) = arguments(frame)?;
    options.dtype = Some(out.dtype);
    options.out = Some(out);
    let call = |ordinal| Call { ordinal, equation: &equation, views: &views, options: &options, like_torch: false };
    let ready = |gpu, ordinal| {
        let ready = call(ordinal).ready(gpu).map_err(invalid)?;
        Ok((ready.workspace_bytes(), (ordinal, ready)))
    };
    on_its_gpu(frame, ready, |gpu, (ordinal, ready), workspace, stream| {
        // SAFETY: XLA's buffers are of this GPU and row-major, as the plan says, and stay until its stream has passed.
        unsafe { call(ordinal).launch(gpu, &ready, data as u64, workspace, stream) }.map_err(of_run)
    })
}

/// Launches on the GPU and in the stream of a call: `ready` says how much scratch memory there must be, which `launch` is
/// given, aligned to 256.
pub(crate) fn on_its_gpu<R>(
    frame: &Frame,
    ready: impl FnOnce(&'static Gpu, usize) -> Result<(usize, R), Why>,
    launch: impl FnOnce(&'static Gpu, R, u64, u64) -> Result<(), Why>,
) -> Result<(), Why> {
    // SAFETY: XLA's table of functions, as long as it says that it is.
    let api = unsafe { &*frame.api };
    if api.head.size < size_of::<Api>() {
        return Err(invalid("this jaxlib is too old: its foreign functions cannot ask which GPU they are on"));
    }
    let context = frame.context;
    let mut at = GetOrdinal { head: head::<GetOrdinal>(), context, ordinal: 0 };
    let mut stream = GetStream { head: head::<GetStream>(), context, stream: ptr::null_mut() };
    // SAFETY: the structures are those that XLA wants.
    unsafe {
        asked(api, INTERNAL, (api.ordinal)(&mut at))?;
        asked(api, INTERNAL, (api.stream)(&mut stream))?;
    }
    let gpu = cuda::gpu(at.ordinal as usize).map_err(invalid)?;
    gpu.check_tables().map_err(|why| (OUT_OF_RANGE, why.to_owned()))?;
    let (bytes, ready) = ready(gpu, at.ordinal as usize)?;
    // XLA refuses to align further; what is left over makes up for it.
    let bytes = match bytes {
        0 => 0,
        bytes => bytes + 256 - 16,
    };
    let mut memory = Memory { head: head::<Memory>(), context, bytes, alignment: 16, data: ptr::null_mut() };
    if bytes > 0 {
        // SAFETY: as above. XLA takes the memory back for this stream, after what has been put into it.
        unsafe { asked(api, RESOURCE_EXHAUSTED, (api.allocate)(&mut memory))? };
    }
    let workspace = (memory.data as u64).next_multiple_of(256);
    let launched = launch(gpu, ready, workspace, stream.stream as u64);
    if bytes > 0 {
        let mut free = Free { head: head::<Free>(), context, bytes, data: memory.data };
        // SAFETY: as above, given back once.
        unsafe { asked(api, INTERNAL, (api.free)(&mut free))? };
    }
    launched
}

#[repr(C)]
struct Free {
    head: Head,
    context: *mut c_void,
    bytes: usize,
    data: *mut c_void,
}

/// Makes an error of XLA's ours, with a code.
///
/// # Safety
/// The error is one of XLA's, or null.
unsafe fn asked(api: &Api, code: c_int, error: Failure) -> Result<(), Why> {
    if error.is_null() {
        return Ok(());
    }
    let mut get = GetMessage { head: head::<GetMessage>(), error, message: ptr::null() };
    // SAFETY: by the caller; the message lives as long as the error, which is destroyed once.
    unsafe {
        (api.message)(&mut get);
        let message = std::ffi::CStr::from_ptr(get.message).to_string_lossy().into_owned();
        (api.destroy)(&mut Destroy { head: head::<Destroy>(), error });
        Err((code, message))
    }
}

/// The handler of a target for a platform, `cpu` or `cuda`, as a capsule that JAX registers.
#[pyfunction]
pub(crate) fn _xla_target<'py>(py: Python<'py>, target: &str, platform: &str) -> PyResult<Bound<'py, PyAny>> {
    let handler: unsafe extern "C" fn(*mut Frame) -> Failure = match (target, platform) {
        ("einfall_einsum", "cpu") => on_cpu,
        ("einfall_einsum", "cuda") => on_gpu,
        ("einfall_attend", "cpu") => attend_on_cpu,
        ("einfall_attend", "cuda") => attend_on_gpu,
        _ => return Err(PyValueError::new_err(format!("no handler of `{target}` for `{platform}`"))),
    };
    if platform == "cuda" {
        cuda::look_for_nvrtc(py)?;
    }
    // SAFETY: the name is constant, and the pointer that of a function, which JAX alone looks at.
    unsafe {
        let capsule = ffi::PyCapsule_New(handler as *mut c_void, c"xla._CUSTOM_CALL_TARGET".as_ptr(), None);
        Bound::from_owned_ptr_or_err(py, capsule)
    }
}

/// Raises what a call on a GPU found that has passed.
#[pyfunction]
pub(crate) fn _check_gpu(ordinal: usize) -> PyResult<()> {
    let gpu = cuda::gpu(ordinal).map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
    gpu.check_tables().map_err(TableError::new_err)
}
