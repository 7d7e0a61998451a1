//! Element types, shapes and strided views: what einfall knows of data, apart from equations.
//!
//! *In*: memory that somebody else owns (a slice, a mapped file, a foreign array) with a shape and strides.
//! *Out*: [`View`] and [`ViewMut`], whose every element is proved to lie inside that memory, and [`Tensor`], which owns
//! its memory. *Callers*: every other crate. This crate knows nothing of labels, plans or devices.
//!
//! ```
//! use einfall_tensor::{DType, View};
//! let data = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0];
//! let rows = View::from_slice(&data, &[2, 3])?;
//! assert_eq!(rows.dtype(), DType::F32);
//! let columns_backwards = View::from_slice_strided(&data, &[3, 2], &[-1, 3], 2)?;
//! assert_eq!(columns_backwards.strides(), &[-1, 3]);
//! # Ok::<(), einfall_tensor::TensorError>(())
//! ```
#![allow(unsafe_code)] // views hold raw pointers; each block names its invariant

pub use half;
pub use num_complex;

mod dtype;
mod layout;
pub mod memory;
#[cfg(feature = "ndarray")]
mod ndarray;
mod tensor;
mod view;

pub use dtype::{Bool8, DType, Element};
pub use layout::{Dims, Layout, Strides, contiguous_strides, element_count};
pub use tensor::Tensor;
pub use view::{TensorError, View, ViewMut};
