//! The loops: one file a kernel, each with what it would cost and how it runs.

pub mod nest;
mod run;

pub use run::Run;
