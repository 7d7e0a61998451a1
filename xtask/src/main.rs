//! The commands of contributors: `cargo xtask test` is everything that continuous integration runs.
//!
//! *In*: a command. *Out*: the output of the tools it runs, each printed before it starts. The exit status is that of
//! the first tool that failed.
#![allow(clippy::print_stdout)] // a terminal is all that this program talks to

mod bundle;
mod check;
mod kernels;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  test    everything that continuous integration runs: format, lints, tests, documentation, and checks of the
          repository itself
  check   the checks of the repository alone: who depends on whom, links, promises and their tests
  python  builds the Python package into target/python and runs its tests; those of libraries that are not installed
          there (torch, JAX) are skipped, or installed too with `cargo xtask python all`
  kernels compiles every CUDA kernel for sm_80, sm_90 and sm_100, without a GPU: fetches the compiler, NVRTC, with pip, or
          takes that in the folder EINFALL_NVRTC; says why where it can do neither
  slow    what takes longer: 20000 random cases a test (EINFALL_CASES), each fuzz target for 300 s (EINFALL_FUZZ_SECONDS),
          Miri; says what it skips
  bundle  puts what a machine with a GPU and no Rust needs to run tests and timings into target/bundle
  bench   the experiment of the README on this machine; further arguments go to `einfall bench keys`
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let result = match arguments.first().map(String::as_str) {
        Some("test") => test(),
        Some("bundle") => bundle::bundle(),
        Some("check") => check::run(&root()),
        Some("python") => python(arguments.get(1).is_some_and(|which| which == "all")),
        Some("kernels") => kernels::compile(150),
        Some("slow") => slow(),
        Some("bench") => bench(&arguments[1..]),
        _ => Err(USAGE.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{}", message.trim_end());
            ExitCode::FAILURE
        }
    }
}

type Outcome = Result<(), String>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf()
}

fn test() -> Outcome {
    run("cargo fmt --all --check", &[])?;
    check::run(&root())?;
    run("cargo clippy --workspace --all-targets -- -D warnings", &[])?;
    // Snapshots are compared, never written.
    run("cargo test --workspace", &[("INSTA_UPDATE", "no")])?;
    // NVRTC takes its time for each source: few random cases, and all that the kernels are made for.
    kernels::compile(10)?;
    run("cargo doc --workspace --no-deps", &[("RUSTDOCFLAGS", "-D warnings")])?;
    let version = ["-c", "import sys, venv; sys.exit(sys.version_info < (3, 11))"];
    if !Command::new("python3").args(version).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        println!("skipped: the Python package needs Python 3.11 or later as `python3`, with venv");
        return Ok(());
    }
    match python_environment("opt_einsum") {
        Ok(()) => python_tests(),
        Err(why) => {
            println!("skipped: the Python package, for which pytest and NumPy cannot be installed here ({why})");
            Ok(())
        }
    }
}

/// Builds the Python package in an environment of its own and runs its tests, with every peer library or NumPy alone.
fn python(every_library: bool) -> Outcome {
    python_environment(if every_library { "torch jax opt_einsum cotengra" } else { "opt_einsum" })?;
    python_tests()
}

/// Where the Python package is tested.
fn environment() -> String {
    root().join("target").join("python").display().to_string()
}

fn python_environment(libraries: &str) -> Outcome {
    let environment = environment();
    run(&format!("python3 -m venv {environment}"), &[])?;
    let quiet = "--quiet --disable-pip-version-check";
    run(&format!("{environment}/bin/pip install {quiet} pytest numpy ml_dtypes mypy {libraries}"), &[])
}

fn python_tests() -> Outcome {
    let environment = environment();
    let quiet = "--quiet --disable-pip-version-check";
    run(&format!("{environment}/bin/pip install {quiet} --force-reinstall --no-deps ./bindings/python"), &[])?;
    run(&format!("{environment}/bin/python -m pytest -q bindings/python"), &[])
}

fn slow() -> Outcome {
    let cases = env::var("EINFALL_CASES").unwrap_or("20000".into());
    run("cargo test --release -p einfall", &[("EINFALL_CASES", &cases), ("INSTA_UPDATE", "no")])?;

    if answers("cargo +nightly fuzz --version") {
        let seconds = env::var("EINFALL_FUZZ_SECONDS").unwrap_or("300".into());
        for target in ["parse", "problem"] {
            run(&format!("cargo +nightly fuzz run {target} -- -max_total_time={seconds}"), &[])?;
        }
    } else {
        println!("skipped: fuzzing needs a nightly toolchain and cargo-fuzz (cargo install cargo-fuzz)");
    }

    if !answers("cargo +nightly miri --version") {
        println!("skipped: Miri needs a nightly toolchain with it (rustup +nightly component add miri)");
        return Ok(());
    }
    // Snapshots and random tests read files and the environment; fewer cases, because Miri is slow.
    let root = root().display().to_string();
    let environment = [
        ("MIRIFLAGS", "-Zmiri-disable-isolation -Zrandomize-layout"),
        ("PROPTEST_CASES", "8"),
        ("INSTA_UPDATE", "no"),
        ("INSTA_WORKSPACE_ROOT", root.as_str()),
    ];
    run("cargo +nightly miri test -p einfall-equation -p einfall-tensor -p einfall-plan", &environment)?;
    println!("skipped: Miri does not know vector intrinsics, so the kernels are left to the random tests");
    Ok(())
}

fn bench(arguments: &[String]) -> Outcome {
    run(&format!("cargo run --release -p einfall-cli -- bench keys {}", arguments.join(" ")), &[])
}

/// Runs a command line in the workspace, after printing it.
fn run(line: &str, environment: &[(&str, &str)]) -> Outcome {
    let settings: String = environment.iter().map(|(name, value)| format!("{name}='{value}' ")).collect();
    println!("+ {settings}{}", line.trim_end());
    let start = Instant::now();
    let status = command(line).envs(environment.iter().copied()).status();
    let seconds = start.elapsed().as_secs_f64();
    match status {
        Ok(status) if status.success() => {
            println!("  {seconds:.1} s");
            Ok(())
        }
        Ok(status) => Err(format!("error: `{}` failed: {status}", line.trim_end())),
        Err(error) => Err(format!("error: `{}` could not be started: {error}", line.trim_end())),
    }
}

/// Whether a command can be run here.
fn answers(line: &str) -> bool {
    command(line).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a program");
    let mut command = Command::new(program);
    command.args(words).current_dir(root());
    if line.starts_with("cargo +") {
        // Cargo tells its children which toolchain it is; another one must not hear of it.
        for name in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTDOC"] {
            command.env_remove(name);
        }
    }
    command
}
