//! An allocator that counts, so that a benchmark can say how much memory a call took.
//!
//! In: it is the command's global allocator. Out: [`peak_during`]. Counting costs two atomic additions an allocation.
//!
//! Where it is not the global allocator, as in tests of this library or inside another program, nothing is counted and
//! nothing is claimed.
#![allow(unsafe_code)] // an allocator is unsafe by its trait; every call goes on to the system's unchanged

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator with a count of the bytes in use.
#[derive(Debug, Default)]
pub struct Counting {
    _private: (),
}

impl Counting {
    /// The allocator; there should be one.
    pub const fn new() -> Self {
        Self { _private: () }
    }
}

fn grow(bytes: usize) {
    let now = IN_USE.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(now, Relaxed);
}

fn shrink(bytes: usize) {
    IN_USE.fetch_sub(bytes, Relaxed);
}

// SAFETY: `system`: each method passes its arguments to the system's allocator and returns what that returns.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: `system`, by the caller.
        let pointer = unsafe { System.alloc(layout) };
        if !pointer.is_null() {
            grow(layout.size());
        }
        pointer
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: `system`, by the caller.
        let pointer = unsafe { System.alloc_zeroed(layout) };
        if !pointer.is_null() {
            grow(layout.size());
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `system`, by the caller.
        unsafe { System.dealloc(pointer, layout) };
        shrink(layout.size());
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: `system`, by the caller.
        let moved = unsafe { System.realloc(pointer, layout, new_size) };
        if !moved.is_null() {
            // Old and new memory may exist at the same time for a moment; the system does not say.
            grow(new_size);
            shrink(layout.size());
        }
        moved
    }
}

/// The most bytes that were in use at once during a call, beyond those in use before it; with what other threads
/// allocate meanwhile. `None` where [`Counting`] is not the allocator.
pub fn peak_during<R>(call: impl FnOnce() -> R) -> (R, Option<usize>) {
    let before = IN_USE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = call();
    // A program in which nothing was ever in use is not counted.
    let counted = PEAK.load(Relaxed) > 0;
    (result, counted.then(|| PEAK.load(Relaxed).saturating_sub(before)))
}
