//! From CUDA C++ to machine code, through NVRTC.
//!
//! Needs no GPU: tests compile every kernel for every architecture on any machine that has the library.

use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::sync::OnceLock;

use cudarc::nvrtc::{result, sys};

use crate::CudaError;

/// Options of every compilation but the architecture.
pub(crate) const OPTIONS: &[&str] = &["--std=c++17", "--device-as-default-execution-space", "-lineinfo"];

/// Loads NVRTC, if it is there: where the loader finds it, else from a CUDA toolkit, or from the folder that the variable
/// `EINFALL_NVRTC` names.
///
/// # Errors
/// [`CudaError::Missing`].
pub fn load() -> Result<(), CudaError> {
    static LOADED: OnceLock<bool> = OnceLock::new();
    // SAFETY: loading the compiler runs its initialisers only.
    let loaded = LOADED.get_or_init(|| unsafe {
        // Once a library is loaded by its path, asking for its name finds it.
        let named = std::env::var_os("EINFALL_NVRTC").map(PathBuf::from);
        if let Some(folder) = &named {
            preload(folder);
        }
        sys::is_culib_present() || folders().iter().any(|folder| preload(folder)) && sys::is_culib_present()
    });
    match loaded {
        true => Ok(()),
        false => Err(CudaError::Missing {
            what: "NVRTC (libnvrtc), the compiler for CUDA kernels",
            hint: "it comes with the CUDA toolkit, or as `pip install nvidia-cuda-nvrtc`; `EINFALL_NVRTC` names its folder",
        }),
    }
}

/// Tells where to look for NVRTC before anywhere else, if it has not been loaded yet; a folder without it does no harm.
pub fn look_in(folder: &std::path::Path) {
    // SAFETY: as in `load`.
    if !unsafe { sys::is_culib_present() } {
        // SAFETY: as above.
        unsafe { preload(folder) };
    }
}

fn folders() -> Vec<PathBuf> {
    let roots = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    roots.chain([PathBuf::from("/usr/local/cuda")]).flat_map(|root| [root.join("lib64"), root.join("lib")]).collect()
}

/// # Safety
/// Loading a library runs its initialisers.
unsafe fn preload(folder: &std::path::Path) -> bool {
    // SAFETY: by the caller. They stay loaded as long as the process.
    let keep = |path: PathBuf| unsafe { libloading::Library::new(path) }.map(std::mem::forget).is_ok();
    // The compiler opens a library of built-in functions by its name.
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("libnvrtc-builtins.so") {
            keep(entry.path());
        }
    }
    ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"].iter().any(|name| keep(folder.join(name)))
}

/// The compiler's version, part of the key of what is kept.
///
/// # Errors
/// [`CudaError::Missing`].
pub fn version() -> Result<(i32, i32), CudaError> {
    load()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both are places for a number.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    Ok((major, minor))
}

/// Machine code of a source for an architecture, `(9, 0)` for `sm_90`.
///
/// # Errors
/// [`CudaError::Missing`] without the compiler, [`CudaError::Compile`] with its words.
pub fn compile(kernel: &str, source: &str, capability: (u32, u32)) -> Result<Vec<u8>, CudaError> {
    load()?;
    let failed = |log: String| CudaError::Compile { kernel: kernel.into(), log };
    let text = CString::new(source).map_err(|_| failed("a zero byte in the source".into()))?;
    let program = result::create_program(&text, None).map_err(|error| failed(error.to_string()))?;
    let mut options: Vec<String> = OPTIONS.iter().map(|&option| option.into()).collect();
    // Instructions of one architecture alone, that of Hopper's warpgroups.
    let alone = if capability == (9, 0) && source.contains("wgmma.mma_async") { "a" } else { "" };
    options.push(format!("--gpu-architecture=sm_{}{}{alone}", capability.0, capability.1));
    // SAFETY: the program was made above and is destroyed below; buffers have the sizes that the compiler asks for.
    unsafe {
        let compiled = result::compile_program(program, &options).map_err(|error| {
            let log = result::get_program_log(program).unwrap_or_default();
            failed(format!("{error}\n{}", CStr::from_ptr(log.as_ptr()).to_string_lossy()))
        });
        let code = compiled.and_then(|()| {
            let mut bytes = 0;
            sys::nvrtcGetCUBINSize(program, &mut bytes).result().map_err(|error| failed(error.to_string()))?;
            let mut code = vec![0_u8; bytes];
            let got = sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result();
            got.map_err(|error| failed(error.to_string())).map(|()| code)
        });
        let _ = result::destroy_program(program);
        code
    }
}
