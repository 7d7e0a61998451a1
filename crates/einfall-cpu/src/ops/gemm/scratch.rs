//! Working memory for packed blocks: uninitialised, aligned to a page, kept from call to call.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr;

/// Working memory that calls share; grows to what the largest call needs.
#[derive(Debug)]
pub struct Scratch {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the memory is owned and reached only through `&mut`.
unsafe impl Send for Scratch {}

impl Scratch {
    pub(super) const ALIGN: usize = 4096;

    /// No memory yet.
    pub const fn new() -> Self {
        Scratch { start: ptr::null_mut(), bytes: 0 }
    }

    /// The bytes held now: the most that a call needed so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// At least `bytes` bytes, uninitialised, aligned to a page.
    pub(super) fn reserve(&mut self, bytes: usize) -> *mut u8 {
        if bytes > self.bytes {
            self.release();
            let layout = Self::layout(bytes);
            // SAFETY: `bytes` is above the old size, hence not zero.
            let start = unsafe { alloc(layout) };
            if start.is_null() {
                handle_alloc_error(layout);
            }
            (self.start, self.bytes) = (start, bytes);
        }
        self.start
    }

    fn release(&mut self) {
        if self.bytes > 0 {
            // SAFETY: allocated by `reserve` with this layout.
            unsafe { dealloc(self.start, Self::layout(self.bytes)) }
            (self.start, self.bytes) = (ptr::null_mut(), 0);
        }
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, Self::ALIGN).expect("scratch exceeds the address space")
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.release();
    }
}
