//! The parts of the `einfall` command that can be tested without a terminal.
//!
//! [`bench`] holds what a benchmark run records and how it is shown, [`files`] reads and writes arrays. Nothing here
//! prints on its own: whatever goes to a terminal is written to a `&mut dyn Write` that the caller hands in.

pub mod bench;
pub mod files;
