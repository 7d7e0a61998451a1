//! The driver: one GPU with its primary context, memory and launches.
//!
//! Everything goes through [`Gpu`], which makes its context current for the time of a call and restores the caller's.
//! The primary context is the one that torch, JAX and CuPy use too.

use std::ffi::c_void;

use cudarc::driver::{DriverError, result, sys};

use crate::CudaError;

/// A pointer to memory of the device.
pub type DevicePointer = u64;

/// A stream of the driver, `CUstream`; null is the default stream.
pub type Stream = *mut c_void;

/// One GPU.
#[derive(Debug)]
pub struct Gpu {
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// Which one.
    pub ordinal: usize,
    /// Compute capability.
    pub capability: (u32, u32),
}

// SAFETY: `context`: handles of the driver may be used by any thread.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

/// Makes an error of the driver ours.
pub(crate) fn checked<T>(call: &'static str, result: Result<T, DriverError>) -> Result<T, CudaError> {
    result.map_err(|error| {
        let text =
            error.error_string().map_or_else(|_| format!("{error:?}"), |text| text.to_string_lossy().into_owned());
        CudaError::Driver { call, reason: text }
    })
}

/// Loads the driver, if it is there.
fn load() -> Result<(), CudaError> {
    static LOADED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    // SAFETY: loading the driver runs its initialisers only.
    match LOADED.get_or_init(|| unsafe { sys::is_culib_present() }) {
        true => checked("cuInit", result::init()),
        false => Err(CudaError::Missing {
            what: "the NVIDIA driver (libcuda)",
            hint: "CUDA tensors need a machine with an NVIDIA GPU and its driver; everything else runs without",
        }),
    }
}

impl Gpu {
    /// Number of GPUs.
    ///
    /// # Errors
    /// [`CudaError::Missing`] without a driver.
    pub fn count() -> Result<usize, CudaError> {
        load()?;
        Ok(checked("cuDeviceGetCount", result::device::get_count())?.max(0) as usize)
    }

    /// A GPU by its number.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn new(ordinal: usize) -> Result<Self, CudaError> {
        let count = Self::count()?;
        if ordinal >= count {
            return Err(CudaError::Ordinal { ordinal, count });
        }
        let device = checked("cuDeviceGet", result::device::get(ordinal as i32))?;
        // SAFETY: the device is one of the driver's; the context is released by `drop`.
        let context = checked("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) })?;
        let mut gpu = Gpu { device, context, ordinal, capability: (0, 0) };
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        };
        gpu.capability = (
            gpu.attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            gpu.attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        );
        Ok(gpu)
    }

    /// Its name.
    pub fn name(&self) -> Result<String, CudaError> {
        checked("cuDeviceGetName", result::device::get_name(self.device))
    }

    /// A number that the driver knows of it.
    pub(crate) fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<i32, CudaError> {
        // SAFETY: the device is one of the driver's.
        checked("cuDeviceGetAttribute", unsafe { result::device::get_attribute(self.device, attribute) })
    }

    /// Runs `work` with this GPU's context current.
    pub fn current<T>(&self, work: impl FnOnce() -> Result<T, CudaError>) -> Result<T, CudaError> {
        // SAFETY: the context was retained and lives as long as `self`; what is pushed is popped.
        unsafe {
            let mut known = std::ptr::null_mut();
            if sys::cuCtxGetCurrent(&mut known).result().is_ok() && known == self.context {
                return work();
            }
            checked("cuCtxPushCurrent", sys::cuCtxPushCurrent_v2(self.context).result())?;
            let result = work();
            let mut popped = std::ptr::null_mut();
            checked("cuCtxPopCurrent", sys::cuCtxPopCurrent_v2(&mut popped).result())?;
            result
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: retained once by `new`. An error here could not be handled: the driver is gone then.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Memory of the device, for arguments that come from the host.
#[derive(Debug)]
pub(crate) struct Memory<'a> {
    gpu: &'a Gpu,
    pointer: DevicePointer,
    bytes: usize,
}

impl<'a> Memory<'a> {
    /// `bytes` bytes, uninitialised.
    pub(crate) fn new(gpu: &'a Gpu, bytes: usize) -> Result<Self, CudaError> {
        // SAFETY: freed by `drop`.
        let pointer = gpu.current(|| checked("cuMemAlloc", unsafe { result::malloc_sync(bytes.max(1)) }))?;
        Ok(Memory { gpu, pointer, bytes })
    }

    pub(crate) fn pointer(&self) -> DevicePointer {
        self.pointer
    }

    /// Copies from the host to `at` and on.
    pub(crate) fn write_at(&self, at: usize, from: &[u8]) -> Result<(), CudaError> {
        assert!(at + from.len() <= self.bytes, "what is copied fits");
        let to = self.pointer + at as u64;
        // SAFETY: the memory has so many bytes; a synchronous copy ends before the slice does.
        self.gpu.current(|| checked("cuMemcpyHtoD", unsafe { result::memcpy_htod_sync(to, from) }))
    }

    /// Copies `bytes` from `at` on to the host.
    ///
    /// # Safety
    /// So many bytes may be written at `to`; they need not be initialised.
    pub(crate) unsafe fn read_at(&self, at: usize, to: *mut u8, bytes: usize) -> Result<(), CudaError> {
        assert!(at + bytes <= self.bytes, "what is copied is there");
        let from = self.pointer + at as u64;
        // SAFETY: by the caller; the memory has so many bytes.
        self.gpu.current(|| checked("cuMemcpyDtoH", unsafe { sys::cuMemcpyDtoH_v2(to.cast(), from, bytes).result() }))
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        let pointer = self.pointer;
        // SAFETY: allocated by `new`, freed once. A failure means that the context is gone, and the memory with it.
        let _ = self.gpu.current(|| checked("cuMemFree", unsafe { result::free_sync(pointer) }));
    }
}

/// A word that both sides see: kernels set it when a table holds a value outside its axis.
#[derive(Debug)]
pub(crate) struct Status {
    host: *mut u32,
    pointer: DevicePointer,
}

// SAFETY: `status`: the word is read and written as a volatile word only.
unsafe impl Send for Status {}
// SAFETY: as above.
unsafe impl Sync for Status {}

impl Status {
    pub(crate) fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        gpu.current(|| {
            let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
            // SAFETY: the memory lives as long as the process: kernels of other streams may still write to it.
            unsafe {
                let host = checked("cuMemHostAlloc", result::malloc_host(64, flags))?.cast::<u32>();
                host.write_volatile(0);
                let mut pointer = 0;
                let mapped = sys::cuMemHostGetDevicePointer_v2(&mut pointer, host.cast(), 0).result();
                checked("cuMemHostGetDevicePointer", mapped)?;
                Ok(Status { host, pointer })
            }
        })
    }

    pub(crate) fn pointer(&self) -> DevicePointer {
        self.pointer
    }

    /// Whether it was set since it was last asked.
    pub(crate) fn take(&self) -> bool {
        // SAFETY: `status`: allocated by `new`, never freed.
        unsafe {
            let set = self.host.read_volatile() != 0;
            if set {
                self.host.write_volatile(0);
            }
            set
        }
    }
}
