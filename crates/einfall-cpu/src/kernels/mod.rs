//! The innermost loops, one file a noun; each takes raw pointers that its caller has checked, and starts no threads.

pub mod exp;
pub mod rows;
pub mod through;
pub mod tile;
