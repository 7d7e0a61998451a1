//! What einfall is tested with: a naive oracle, cases to run, and the suites of cases in `testdata/`.
//!
//! *In*: an equation with arguments, or a seed. *Out*: what the result must be. *Callers*: the tests of every other
//! crate. This crate is not published, and it knows the notation and the element types but nothing of the engine.
#![forbid(unsafe_code)]

pub mod attention;
pub mod case;
pub mod features;
mod fill;
pub mod generator;
pub mod number;
pub mod oracle;
pub mod random;
pub mod suite;
