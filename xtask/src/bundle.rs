//! Everything that a machine with a GPU needs to run tests and timings, and that has no Rust: in one folder.
//!
//! *In*: this checkout, cargo, binutils and pip. *Out*: `target/bundle` with `run.sh` and `sanitize.sh`, for the same
//! processor and a libc that is not older. NVRTC is not in it: it comes with torch, or with the CUDA toolkit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Outcome, command, root, run};

/// More than this is not carried about.
const MOST_BYTES: u64 = 60 << 20;

/// Builds the bundle anew.
///
/// # Errors
/// A tool failed, the extension asks for a libpython, or the bundle is too large.
pub(crate) fn bundle() -> Outcome {
    let (root, target) = (root(), root().join("target").join("bundle"));
    if target.exists() {
        fs::remove_dir_all(&target).map_err(|error| failed(&target, &error))?;
    }
    // An extension that may be loaded by any Python from 3.11 on links none of them.
    run("cargo build --release -p einfall-cli -p einfall-python", &[("PYO3_BUILD_EXTENSION_MODULE", "1")])?;
    let release = root.join("target").join("release");
    strip(&release.join("einfall"), &target.join("einfall"))?;
    strip(&test_program()?, &target.join("cuda_tests"))?;
    let package = target.join("site").join("einfall");
    let python = root.join("bindings").join("python");
    copy(&python.join("python").join("einfall"), &package)?;
    let extension = package.join("_einfall.abi3.so");
    strip(&release.join("lib_einfall.so"), &extension)?;
    check_needed(&extension)?;
    gpu_tests(&python.join("tests"), &target.join("tests"))?;
    copy(&python.join("benches").join("time_gpu.py"), &target.join("time_gpu.py"))?;
    for script in ["run.sh", "sanitize.sh"] {
        copy(&root.join("xtask").join("bundle").join(script), &target.join(script))?;
    }
    wheels(&target.join("wheels"));
    let bytes = size(&target);
    println!("{} in {:.1} MiB; there: sh run.sh [RESULTS]", target.display(), bytes as f64 / f64::from(1 << 20));
    if bytes > MOST_BYTES {
        return Err(format!("error: the bundle is larger than {} MiB", MOST_BYTES >> 20));
    }
    Ok(())
}

/// Copies the tests of GPUs, `test_cuda*.py`, and the cases that they share with others.
fn gpu_tests(from: &Path, to: &Path) -> Outcome {
    let entries = fs::read_dir(from).map_err(|error| failed(from, &error))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let text = name.to_string_lossy();
        if text.ends_with("_cases.py") || text.starts_with("test_cuda") && text.ends_with(".py") {
            copy(&entry.path(), &to.join(&name))?;
        }
    }
    Ok(())
}

fn failed(path: &Path, error: &std::io::Error) -> String {
    format!("error: {}: {error}", path.display())
}

/// Builds the tests of the GPU's kernels, and says where they are.
fn test_program() -> Result<PathBuf, String> {
    let line = "cargo test --release -p einfall --test cuda --no-run --message-format=json-render-diagnostics";
    println!("+ {line}");
    let output = command(line).stderr(Stdio::inherit()).output().map_err(|error| format!("error: cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("error: `{line}` failed: {}", output.status));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let path = messages.lines().find_map(|message| executable(message, "cuda"));
    path.map(PathBuf::from).ok_or("error: cargo built no test program".into())
}

/// The program that a message of cargo says was built, if it is that of a target.
fn executable<'m>(message: &'m str, target: &str) -> Option<&'m str> {
    let (_, path) = message.split_once("\"executable\":\"")?;
    message.contains(&format!("\"name\":\"{target}\"")).then(|| path.split('"').next())?
}

/// Copies a program without what only debuggers read.
fn strip(from: &Path, to: &Path) -> Outcome {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
    }
    let status = Command::new("strip").arg("-o").arg(to).arg(from).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("error: strip {}: {status}", from.display())),
        Err(error) => Err(format!("error: strip, of binutils, does not start: {error}")),
    }
}

/// Refuses an extension that would bring a second interpreter, or find none.
fn check_needed(extension: &Path) -> Outcome {
    let output = Command::new("readelf").arg("-d").arg(extension).output();
    let output = output.map_err(|error| format!("error: readelf, of binutils, does not start: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().find(|line| line.contains("NEEDED") && line.contains("libpython")) {
        Some(line) => Err(format!("error: {} asks for a libpython: {}", extension.display(), line.trim())),
        None if text.contains("NEEDED") => Ok(()),
        None => Err(format!("error: readelf says nothing of {}", extension.display())),
    }
}

/// Copies a file, or a folder but for what Python compiled.
fn copy(from: &Path, to: &Path) -> Outcome {
    if !from.is_dir() {
        let folder = to.parent().expect("a file lies in a folder");
        fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
        return fs::copy(from, to).map(|_| ()).map_err(|error| failed(from, &error));
    }
    for entry in fs::read_dir(from).map_err(|error| failed(from, &error))?.flatten() {
        let name = entry.file_name();
        let made = name == "__pycache__" || entry.path().extension().is_some_and(|kind| kind == "so");
        if !made {
            copy(&entry.path(), &to.join(name))?;
        }
    }
    Ok(())
}

/// pytest for a machine that has none; where pip cannot fetch it, that machine must.
fn wheels(folder: &Path) {
    let line = format!(
        "python3 -m pip download --quiet --disable-pip-version-check --only-binary=:all: --dest {} pytest",
        folder.display()
    );
    if let Err(why) = run(&line, &[]) {
        println!("skipped: pytest ({why})");
    }
}

/// Bytes of all files below a folder.
fn size(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { size(&entry.path()) } else { file_bytes(&entry) }).sum()
}

fn file_bytes(entry: &fs::DirEntry) -> u64 {
    entry.metadata().map_or(0, |about| about.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_what_cargo_says() {
        let message =
            r#"{"reason":"compiler-artifact","target":{"name":"cuda","kind":["test"]},"executable":"/t/cuda-1"}"#;
        assert_eq!(executable(message, "cuda"), Some("/t/cuda-1"));
        assert_eq!(executable(message, "ways"), None);
        assert_eq!(executable(&message.replace("\"/t/cuda-1\"", "null"), "cuda"), None);
    }
}
