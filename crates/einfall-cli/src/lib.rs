//! The `einfall` command as a library: [`run`] does what a command line says.
//!
//! [`arguments`] is what may be typed, [`commands`] does it. [`mod@bench`] holds what a benchmark run records and how it is
//! shown, [`files`] reads and writes arrays. Only [`run`] touches the standard streams: below it, whatever goes to a
//! terminal is written to a `&mut dyn Write` that the caller hands in, except for [`progress`] on standard error.

use std::ffi::OsString;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

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
pub mod interrupt;
pub mod progress;
pub mod sizes;

/// Does what a command line says, the name of the program first: writes to the standard streams and returns the exit
/// code. Neither a mistake nor a panic ends the process, so that other programs may call it; Ctrl-C does.
pub fn run(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, with exit code 0; that nobody reads them is no error.
            let _ = error.print();
            return error.exit_code() as u8;
        }
    };
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    let run = || {
        commands::run(&cli, &mut stdout)?;
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
