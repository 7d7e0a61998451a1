//! Placeholder.
#![allow(unsafe_code)]

pub mod isa;
