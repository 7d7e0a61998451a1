//! Compiling every CUDA kernel, on any machine: the compiler, NVRTC, comes as a Python wheel and needs no GPU.
//!
//! *In*: nothing, or a folder with NVRTC in `EINFALL_NVRTC`. *Out*: the test that compiles the kernels has run, or a line
//! says why it could not.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Outcome, root, run};

/// The wheel with NVRTC: its major version is the one that the binding asks for.
const WHEEL: &str = "nvidia-cuda-nvrtc==13.0.*";
const LIBRARY: &str = "libnvrtc.so.13";

/// Compiles the kernels of random cases (as many as `EINFALL_CASES` says, else `cases`) and of the cases that they are
/// made for.
///
/// # Errors
/// A kernel does not compile. That there is no compiler is none.
pub(crate) fn compile(cases: u64) -> Outcome {
    let folder = match env::var_os("EINFALL_NVRTC") {
        Some(folder) => PathBuf::from(folder),
        None => match fetched() {
            Ok(folder) => folder,
            Err(why) => {
                println!("skipped: compiling the CUDA kernels, for which NVRTC cannot be fetched here ({why})");
                return Ok(());
            }
        },
    };
    let cases = env::var("EINFALL_CASES").unwrap_or(cases.to_string());
    let environment = [("EINFALL_NVRTC", folder.to_str().ok_or("error: NVRTC's folder is no text")?)];
    run(
        "cargo test -p einfall --test cuda --test cuda_tensor -- --ignored every_kernel_compiles",
        &[environment[0], ("EINFALL_CASES", &cases)],
    )
}

/// The folder with NVRTC, fetched with pip, as pip is set up here, if it is not there yet.
fn fetched() -> Result<PathBuf, String> {
    let target = root().join("target").join("nvrtc");
    if let Some(folder) = holding(&target, LIBRARY) {
        return Ok(folder);
    }
    println!("+ python3 -m pip install --target {} {WHEEL}", target.display());
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]);
    pip.args(["--upgrade", "--target"]).arg(&target).arg(WHEEL);
    let output = pip.output().map_err(|error| format!("python3 does not start: {error}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let line = text.lines().rev().find(|line| line.contains("rror")).or(text.lines().last());
        return Err(format!("pip: {}", line.unwrap_or("it gave no reason").trim()));
    }
    holding(&target, LIBRARY).ok_or(format!("{WHEEL} holds no {LIBRARY}"))
}

/// The folder at or below this one that holds a file.
fn holding(folder: &Path, file: &str) -> Option<PathBuf> {
    if folder.join(file).is_file() {
        return Some(folder.to_path_buf());
    }
    let inside = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    inside.into_iter().find_map(|path| holding(&path, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_found_wherever_a_wheel_puts_it() {
        let sources = root().join("xtask");
        assert_eq!(holding(&sources, "kernels.rs"), Some(sources.join("src")));
        assert_eq!(holding(&sources, LIBRARY), None);
        assert_eq!(holding(&sources.join("missing"), "kernels.rs"), None);
    }
}
