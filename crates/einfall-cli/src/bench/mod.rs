//! What a benchmark run records, and how it is shown.
//!
//! [`record`] is the data, one serialisable document; [`table`] writes it to a terminal with a [`summary`], [`chart`] as an
//! SVG or an HTML page; [`keys`] measures, [`peers`] times NumPy, torch and opt_einsum in a Python process beside ours.

pub mod chart;
mod clock;
mod compare;
pub mod keys;
mod numbers;
pub mod peers;
mod place;
pub mod record;
mod rivals;
pub mod suite;
pub mod summary;
pub mod table;
pub mod units;
mod write;

#[cfg(test)]
mod fixture;
