//! The `einfall` command.

use std::process::ExitCode;

use einfall_cli::counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

fn main() -> ExitCode {
    ExitCode::from(einfall_cli::run(std::env::args_os()))
}
