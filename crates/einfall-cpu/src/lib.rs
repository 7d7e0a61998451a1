//! CPU kernels of einfall.
#![allow(unsafe_code)]

pub mod isa;
pub mod kernels;
pub mod ops;
pub mod pack;
