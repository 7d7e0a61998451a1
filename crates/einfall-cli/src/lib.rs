//! The `einfall` command as a library: [`run`] does what a command line says, [`bench_keys`] gives back what it measures.
//!
//! [`arguments`] is what may be typed, [`commands`] does it. [`mod@bench`] holds what a benchmark run records and how it is
//! shown, [`files`] reads and writes arrays. Only [`run_in`] touches the standard streams: below it, whatever goes to a
//! terminal is written to a `&mut dyn Write` that the caller hands in, except for [`progress`] on standard error.

use std::ffi::OsString;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use clap::Parser;

use crate::arguments::{Cli, Command, Experiment};
use crate::bench::peers::Interpreter;
use crate::bench::record::BenchReport;
use crate::bench::suite::record::{Suite, SuiteReport};
use crate::failure::{Failure, INTERNAL};

pub mod arguments;
pub mod bench;
pub mod commands;
pub mod counting;
pub mod device;
pub mod failure;
pub mod files;
pub mod host;
pub mod interrupt;
pub mod progress;
pub mod sizes;

/// Where a command line is run.
pub struct Surroundings<'a> {
    /// The command line, the name of the program first.
    pub words: &'a [OsString],
    /// The Python that we are in, if it is one: peers are timed there, unless another is asked for.
    pub interpreter: Option<&'a dyn Interpreter>,
}

/// Does what a command line says, the name of the program first: writes to the standard streams and returns the exit
/// code. Neither a mistake nor a panic ends the process, so that other programs may call it; Ctrl-C does.
pub fn run(arguments: impl IntoIterator<Item = impl Into<OsString>>) -> u8 {
    let words: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    run_in(&Surroundings { words: &words, interpreter: None })
}

/// As [`run`], where there may be an interpreter.
pub fn run_in(surroundings: &Surroundings<'_>) -> u8 {
    let cli = match Cli::try_parse_from(surroundings.words) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, with exit code 0; that nobody reads them is no error.
            let _ = error.print();
            return error.exit_code() as u8;
        }
    };
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    let run = || {
        commands::run(&cli, surroundings, &mut stdout)?;
        stdout.flush().map_err(Failure::from)
    };
    let ended = catch_unwind(AssertUnwindSafe(run));
    // What fails because its process or its files went away is not worth a word.
    interrupt::settle();
    match ended {
        Ok(Ok(())) => 0,
        Ok(Err(failure)) if failure.is_broken_pipe() => 0,
        Ok(Err(failure)) => {
            // What was written before the failure goes out first.
            let _ = stdout.flush();
            let _ = writeln!(io::stderr(), "error: {failure}");
            failure.code
        }
        // The panic has been reported by the hook already.
        Err(_) => INTERNAL,
    }
}

/// What a command line with `bench keys` measures: nothing is printed, and no file is written.
///
/// # Errors
/// [`Failure`]: it is no such command line, makes no sense, or a result of ours is wrong.
pub fn bench_keys(surroundings: &Surroundings<'_>) -> Result<BenchReport, Failure> {
    match experiment(surroundings)? {
        Experiment::Keys(args) => bench::keys::measure(&args, surroundings),
        _ => Err(Failure::bad_input("this is not `bench keys`")),
    }
}

/// What a command line with `bench dense` or `bench lookups` measures, as [`bench_keys`].
///
/// # Errors
/// As [`bench_keys`].
pub fn bench_suite(surroundings: &Surroundings<'_>) -> Result<SuiteReport, Failure> {
    match experiment(surroundings)? {
        Experiment::Dense(args) => bench::suite::measure(Suite::Dense, &args.suite(), surroundings),
        Experiment::Lookups(args) => bench::suite::measure(Suite::Lookups, &args, surroundings),
        Experiment::Keys(_) => Err(Failure::bad_input("this is no suite")),
    }
}

fn experiment(surroundings: &Surroundings<'_>) -> Result<Experiment, Failure> {
    let cli = Cli::try_parse_from(surroundings.words).map_err(|error| Failure::bad_input(plain(&error)))?;
    match cli.command {
        Command::Bench(bench) => Ok(bench.experiment),
        _ => Err(Failure::bad_input("this is no benchmark")),
    }
}

/// The first line of what the parser says, without what only a command line needs.
fn plain(error: &clap::Error) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    first.trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_programs_get_an_exit_code() {
        assert_eq!(run(["einfall", "--version"]), 0);
        assert_eq!(run(["einfall", "run", "ij->", "missing.npy"]), 2);
        assert_eq!(run(["einfall", "walk"]), 2);
    }
}
