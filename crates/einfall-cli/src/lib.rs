//! The `einfall` command as a library: [`run`] does what a command line says.
//!
//! [`arguments`] is what may be typed, [`commands`] does it. [`mod@bench`] holds what a benchmark run records and how it is
//! shown, [`files`] reads and writes arrays. Only [`run`] touches the standard streams: below it, whatever goes to a
//! terminal is written to a `&mut dyn Write` that the caller hands in, except for progress bars on standard error.

use std::ffi::OsString;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;

use crate::arguments::Cli;
use crate::failure::{Failure, INTERNAL};

pub mod arguments;
pub mod bench;
pub mod commands;
pub mod counting;
pub mod failure;
pub mod files;
pub mod host;
pub mod sizes;

/// Does what a command line says, the name of the program first: writes to the standard streams and returns the exit
/// code. Neither a mistake nor a panic ends the process, so that other programs may call it.
pub fn run(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, with exit code 0; that nobody reads them is no error.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    let run = || {
        commands::run(&cli, &mut stdout)?;
        stdout.flush().map_err(Failure::from)
    };
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            // What was written before the failure goes out first.
            let _ = stdout.flush();
            let _ = writeln!(io::stderr(), "error: {failure}");
            ExitCode::from(failure.code)
        }
        // The panic has been reported by the hook already.
        Err(_) => ExitCode::from(INTERNAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_programs_get_an_exit_code() {
        // ExitCode says what it is in its debug print alone.
        let code = |arguments: &[&str]| format!("{:?}", run(arguments));
        assert_eq!(code(&["einfall", "--version"]), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(code(&["einfall", "run", "ij->", "missing.npy"]), format!("{:?}", ExitCode::from(2)));
        assert_eq!(code(&["einfall", "walk"]), format!("{:?}", ExitCode::from(2)));
    }
}
