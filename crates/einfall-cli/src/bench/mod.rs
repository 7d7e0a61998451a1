//! What a benchmark run records, and how it is shown.
//!
//! [`record`] is the data, one serialisable document; [`table`] writes it to a terminal with a [`summary`], [`chart`] as an
//! SVG or an HTML page; [`keys`] measures, [`peers`] times NumPy, torch and opt_einsum in a Python process beside ours.

pub mod chart;
pub mod keys;
pub mod peers;
pub mod record;
pub mod summary;
pub mod table;
pub mod units;

#[cfg(test)]
mod fixture;
