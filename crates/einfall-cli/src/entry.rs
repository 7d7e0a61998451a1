//! The command from its arguments to its exit code, for the program and for other programs that offer it.

use std::ffi::OsString;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use clap::Parser;

use crate::arguments::Cli;
use crate::commands;
use crate::failure::{Failure, INTERNAL};

/// Does what the arguments say, the first being the program's name; writes to standard output and standard error.
///
/// Returns the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
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
    match catch_unwind(AssertUnwindSafe(run)) {
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
