//! Memory for NumPy's large arrays from the blocks that einfall keeps, through NumPy's own handlers of memory.
//!
//! *In*: a function that makes an array. *Out*: the same array, which owns its memory like any other and gives it back
//! to [`memory`] when it goes. *Callers*: [`array::empty`](crate::array::empty), for arrays of [`LEAST`] bytes and more.
//! NumPy before 1.22 has no handlers: arrays have its own memory there.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::{self, NonNull};

use einfall::memory::{self, ALIGNMENT};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// Arrays with fewer bytes are left to NumPy.
pub(crate) const LEAST: usize = 1 << 20;

/// `PyDataMem_Handler` of NumPy's binary interface, version 1.
#[repr(C)]
struct Handler {
    name: [c_char; 127],
    version: u8,
    context: *mut c_void,
    malloc: unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void,
    calloc: unsafe extern "C" fn(*mut c_void, usize, usize) -> *mut c_void,
    realloc: unsafe extern "C" fn(*mut c_void, *mut c_void, usize) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void, *mut c_void, usize),
}

// SAFETY: functions and a name, which nobody writes.
unsafe impl Sync for Handler {}

const CAPSULE: &CStr = c"mem_handler";

static HANDLER: Handler = Handler {
    name: {
        let mut name = [0; 127];
        let text = b"einfall";
        let mut at = 0;
        while at < text.len() {
            name[at] = text[at] as c_char;
            at += 1;
        }
        name
    },
    version: 1,
    context: ptr::null_mut(),
    malloc,
    calloc,
    realloc,
    free,
};

/// Room for the size of a block, which a reallocation must know, before its first byte.
const HEADER: usize = ALIGNMENT;

unsafe extern "C" fn malloc(_: *mut c_void, bytes: usize) -> *mut c_void {
    let Some(whole) = bytes.max(1).checked_add(HEADER) else { return ptr::null_mut() };
    match memory::take(whole) {
        // SAFETY: the block has room for its size and for the bytes.
        Some(block) => unsafe {
            block.as_ptr().cast::<usize>().write(whole);
            block.as_ptr().add(HEADER).cast()
        },
        None => ptr::null_mut(),
    }
}

unsafe extern "C" fn calloc(context: *mut c_void, count: usize, bytes: usize) -> *mut c_void {
    let Some(bytes) = count.checked_mul(bytes) else { return ptr::null_mut() };
    // SAFETY: as many bytes as were asked for.
    unsafe {
        let data = malloc(context, bytes);
        if !data.is_null() {
            data.write_bytes(0, bytes);
        }
        data
    }
}

unsafe extern "C" fn realloc(context: *mut c_void, data: *mut c_void, bytes: usize) -> *mut c_void {
    // SAFETY: NumPy passes what `malloc` gave, or null; both blocks hold as many bytes as are copied.
    unsafe {
        let new = malloc(context, bytes);
        if !data.is_null() && !new.is_null() {
            let whole = data.cast::<u8>().sub(HEADER).cast::<usize>().read();
            data.copy_to_nonoverlapping(new, bytes.min(whole - HEADER));
            free(context, data, 0);
        }
        new
    }
}

unsafe extern "C" fn free(_: *mut c_void, data: *mut c_void, _: usize) {
    let Some(data) = NonNull::new(data.cast::<u8>()) else { return };
    // SAFETY: NumPy passes what `malloc` gave, once; the size lies before it.
    unsafe {
        let block = data.sub(HEADER);
        memory::give(block, block.cast::<usize>().read());
    }
}

type SetHandler = unsafe extern "C" fn(*mut ffi::PyObject) -> *mut ffi::PyObject;

/// NumPy's function that sets the handler of the running context, and ours.
struct Setting {
    set: SetHandler,
    handler: Py<PyAny>,
}

static SETTING: PyOnceLock<Option<Setting>> = PyOnceLock::new();

fn setting(py: Python<'_>) -> Option<Setting> {
    /// First version of NumPy's functions with handlers, and where the version and the handlers are in their table.
    const SINCE: u32 = 0xf;
    const VERSION: usize = 211;
    const SET: usize = 304;
    let core = ["numpy._core.multiarray", "numpy.core.multiarray"].into_iter().find_map(|name| py.import(name).ok())?;
    let table = core.getattr("_ARRAY_API").ok()?;
    // SAFETY: NumPy's table of functions, which lives as long as the process; entries are functions of these types in
    // every version that has them.
    unsafe {
        let table = ffi::PyCapsule_GetPointer(table.as_ptr(), ptr::null()).cast::<*const c_void>();
        if table.is_null() {
            ffi::PyErr_Clear();
            return None;
        }
        let version: unsafe extern "C" fn() -> u32 = std::mem::transmute(*table.add(VERSION));
        if version() < SINCE {
            return None;
        }
        let set: SetHandler = std::mem::transmute(*table.add(SET));
        let pointer = (&raw const HANDLER).cast_mut().cast();
        let handler = Bound::from_owned_ptr_or_err(py, ffi::PyCapsule_New(pointer, CAPSULE.as_ptr(), None)).ok()?;
        Some(Setting { set, handler: handler.unbind() })
    }
}

/// Runs a function during which NumPy takes memory for arrays from einfall.
pub(crate) fn with_kept_memory<R>(py: Python<'_>, make: impl FnOnce() -> R) -> R {
    let Some(setting) = SETTING.get_or_init(py, || setting(py)) else { return make() };
    // SAFETY: a capsule of NumPy's kind, which it keeps alive as long as an array has its memory; the handler before it
    // comes back as a reference of ours.
    unsafe {
        let before = (setting.set)(setting.handler.as_ptr());
        if before.is_null() {
            ffi::PyErr_Clear();
            return make();
        }
        let made = make();
        let ours = (setting.set)(before);
        if ours.is_null() {
            ffi::PyErr_Clear();
        } else {
            ffi::Py_DECREF(ours);
        }
        ffi::Py_DECREF(before);
        made
    }
}
