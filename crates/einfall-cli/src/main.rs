//! The `einfall` command.

use std::process::ExitCode;

use einfall_cli::counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

fn main() -> ExitCode {
    einfall_cli::failure::report_panics();
    ExitCode::from(einfall_cli::run(std::env::args_os()))
}
