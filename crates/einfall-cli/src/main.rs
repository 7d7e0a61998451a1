//! The `einfall` command.

use std::io::{self, Write};

fn main() -> io::Result<()> {
    writeln!(io::stdout(), "einfall {}", env!("CARGO_PKG_VERSION"))
}
