//! The parts of the `einfall` command that can be tested without a terminal.
//!
//! [`arguments`] is what may be typed, [`commands`] does it. [`mod@bench`] holds what a benchmark run records and how it is
//! shown, [`files`] reads and writes arrays, [`entry`] is the whole program. But for that, nothing here prints on its own:
//! whatever goes to a terminal is written to a `&mut dyn Write` that the caller hands in, except for progress bars, which
//! are on standard error.

pub mod arguments;
pub mod bench;
pub mod commands;
pub mod counting;
pub mod entry;
pub mod failure;
pub mod files;
pub mod host;
pub mod sizes;
