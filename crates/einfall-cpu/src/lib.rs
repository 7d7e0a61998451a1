//! The CPU device: kernels, the threads they run on, and the table by which the planner knows them.
//!
//! *In*: a [`Plan`](einfall_plan::Plan) and views. *Out*: numbers. *Callers*: the facade, through
//! [`Device`](einfall_plan::Device). Layers, each seeing only those below: [`device`] runs steps, [`ops`] are the loops
//! (one file a kernel, with its cost), [`kernels`] the innermost loops in vector instructions; [`walk`] and [`load`] are
//! the only readers of looked-up axes.
//!
//! ```
//! use einfall_cpu::device::CpuDevice;
//! use einfall_plan::Device;
//!
//! let device = CpuDevice::new(2)?;
//! assert_eq!(device.machine().threads, 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![allow(unsafe_code)] // kernels read and write raw memory; each block names its invariant

mod blocks;
mod check;
pub mod device;
pub mod isa;
pub mod kernels;
pub mod load;
pub mod machine;
pub mod measure;
pub mod ops;
pub mod pack;
mod pool;
pub mod scalar;
pub mod threads;
pub mod walk;
