//! The kernels: what runs with one set of vector instructions.

pub mod tile;
