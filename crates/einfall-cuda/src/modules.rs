//! Compiled kernels: in memory for this process, on disk for the next.
//!
//! A file holds the text that it was made from and a checksum. What is torn, stale or another kernel's is compiled
//! again; files appear whole or not at all, so several processes may share a folder.

use std::collections::HashMap;
use std::ffi::CString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::{result, sys};

use crate::driver::{Gpu, checked};
use crate::text::Task;
use crate::{CudaError, compile};

/// A kernel that is loaded; copies are handles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function(pub(crate) sys::CUfunction);

// SAFETY: `context`: handles of the driver may be used by any thread; modules are never unloaded.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// The kernels of one GPU.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    loaded: Mutex<HashMap<(String, u32), Function>>,
    folder: Option<PathBuf>,
}

impl Modules {
    /// Kernels that are kept under the user's cache folder, or that of `EINFALL_CACHE`.
    pub(crate) fn new() -> Self {
        Modules { folder: folder(), ..Modules::default() }
    }

    /// The kernel of a task, compiled if no process did it before.
    pub(crate) fn function(&self, gpu: &Gpu, task: &Task) -> Result<Function, CudaError> {
        // A function carries how much shared memory it may ask for, so tasks that need more have one of their own.
        let key = (task.source.clone(), task.shared_bytes);
        let lock = || self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&function) = lock().get(&key) {
            return Ok(function);
        }
        let code = self.code(gpu, task)?;
        let name = CString::new(task.kernel).expect("names of kernels have no zero byte");
        let function = gpu.current(|| {
            // SAFETY: the code was made for this architecture; the module stays loaded.
            unsafe {
                let module = checked("cuModuleLoadData", result::module::load_data(code.as_ptr().cast()))?;
                let function = checked("cuModuleGetFunction", result::module::get_function(module, name))?;
                // What a kernel declares itself counts towards the 48 KiB that need no asking.
                if task.shared_bytes > 32 << 10 {
                    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                    let set = result::function::set_function_attribute(function, attribute, task.shared_bytes as i32);
                    checked("cuFuncSetAttribute", set)?;
                }
                Ok(Function(function))
            }
        })?;
        Ok(*lock().entry(key).or_insert(function))
    }

    fn code(&self, gpu: &Gpu, task: &Task) -> Result<Vec<u8>, CudaError> {
        let (major, minor) = compile::version()?;
        let options = compile::OPTIONS.join(" ");
        let (capability, source) = (gpu.capability, &task.source);
        let text = format!("// sm_{}{}, NVRTC {major}.{minor} {options}\n{source}", capability.0, capability.1);
        let path = self
            .folder
            .as_ref()
            .map(|folder| folder.join(format!("{}-{:016x}.cubin", task.kernel, hash(text.as_bytes()))));
        if let Some(code) = path.as_ref().and_then(|path| read(path, &text)) {
            return Ok(code);
        }
        let code = compile::compile(task.kernel, &task.source, gpu.capability)?;
        // Without a folder to write to every process compiles for itself.
        if let Some(path) = path {
            let _ = write(&path, &text, &code);
        }
        Ok(code)
    }
}

fn folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("EINFALL_CACHE") {
        return Some(folder.into());
    }
    let absolute = |variable| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("einfall").join("kernels"))
}

/// FNV-1a, 64 bits: names files and tells torn ones; the text itself tells kernels apart.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The code in a file, if the file is whole and was made from this text.
fn read(path: &Path, text: &str) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(8)?)?;
    if sum != hash(body).to_le_bytes() {
        return None;
    }
    let code = body.strip_prefix(text.as_bytes())?.strip_prefix(&[0])?;
    Some(code.to_vec())
}

fn write(path: &Path, text: &str, code: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut body = text.as_bytes().to_vec();
    body.push(0);
    body.extend_from_slice(code);
    let sum = hash(&body);
    body.extend_from_slice(&sum.to_le_bytes());
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&body)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_taken_whole_and_for_its_own_text_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("deeper").join("nest.cubin");
        write(&path, "text", b"code\0with zeros").expect("written");
        assert_eq!(read(&path, "text").as_deref(), Some(&b"code\0with zeros"[..]));
        assert_eq!(read(&path, "other"), None);
        assert_eq!(read(&path, "tex"), None);
        let whole = std::fs::read(&path).expect("there");
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).expect("written");
            assert_eq!(read(&path, "text"), None, "{cut} of {} bytes", whole.len());
        }
        let mut flipped = whole.clone();
        flipped[6] ^= 1;
        std::fs::write(&path, &flipped).expect("written");
        assert_eq!(read(&path, "text"), None);
    }
}
