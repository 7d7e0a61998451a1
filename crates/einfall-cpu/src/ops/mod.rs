//! The loops around the kernels.

pub mod gemm;
