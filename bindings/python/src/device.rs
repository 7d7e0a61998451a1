//! The processor with its threads, made at the first call and anew in a forked process, where threads do not live on.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use einfall::{CpuDevice, Error, fresh_device};
use pyo3::prelude::*;

static DEVICE: AtomicPtr<CpuDevice> = AtomicPtr::new(ptr::null_mut());

/// The device that calls run on.
pub(crate) fn device() -> Result<&'static CpuDevice, Error> {
    let known = DEVICE.load(Ordering::Acquire);
    // SAFETY: only leaked boxes are ever stored, and they are never freed.
    if let Some(device) = unsafe { known.as_ref() } {
        return Ok(device);
    }
    let fresh = Box::into_raw(Box::new(fresh_device()?));
    match DEVICE.compare_exchange(ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: just leaked.
        Ok(_) => Ok(unsafe { &*fresh }),
        Err(other) => {
            // SAFETY: nobody else has seen `fresh`; `other` was leaked by the thread that stored it.
            unsafe {
                drop(Box::from_raw(fresh));
                Ok(&*other)
            }
        }
    }
}

/// Called in the child of a fork: the threads stayed in the parent, so the next call starts new ones.
#[pyfunction]
pub(crate) fn _forget_device() {
    DEVICE.store(ptr::null_mut(), Ordering::Release);
}
