//! The `einfall` command.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;
use einfall_cli::arguments::Cli;
use einfall_cli::counting::Counting;
use einfall_cli::failure::{Failure, INTERNAL};

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, with exit code 0; that nobody reads them is no error.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    let run = || {
        einfall_cli::commands::run(&cli, &mut stdout)?;
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
