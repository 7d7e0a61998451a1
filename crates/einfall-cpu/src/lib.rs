//! Placeholder.
#![allow(unsafe_code)]

pub mod isa;
pub mod kernels;
pub mod load;
