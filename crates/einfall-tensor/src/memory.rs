//! Large blocks of memory, kept for the next one who needs as much.
//!
//! *In*: a number of bytes. *Out*: memory aligned to a cache line, whose contents are unknown. *Callers*: [`Tensor`](crate::Tensor)
//! (crate::Tensor), devices for their scratch memory, the Python package for its arrays.
//!
//! The system hands out large blocks as pages that it clears one by one when they are first touched: for an output that is
//! written once, that takes longer than to compute it. So a freed block is kept for a while, its pages marked as free for
//! the system to take back whenever it wants them, and large pages are asked for where there are any. What is kept is
//! bounded by `MOST_KEPT`. A smaller block comes from the allocator, which does the same for it.
//!
//! ```
//! use einfall_tensor::memory;
//! let block = memory::take(10).expect("ten bytes are to be had");
//! // SAFETY: taken just above, with the same number of bytes.
//! unsafe { memory::give(block, 10) };
//! ```

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;
use std::sync::Mutex;

/// Alignment of every block in bytes: a cache line, and the widest vector register.
pub const ALIGNMENT: usize = 64;

/// Bytes from which on blocks are kept: smaller ones the allocator keeps itself.
const LEAST: usize = 1 << 20;
/// Bytes of kept blocks at most, all together.
const MOST_KEPT: usize = 256 << 20;
/// Blocks that are kept at most.
const SLOTS: usize = 8;

/// A kept block: nobody's, its bytes unknown.
struct Kept {
    memory: NonNull<u8>,
    bytes: usize,
}

// SAFETY: `kept`: memory that nobody else refers to.
unsafe impl Send for Kept {}

static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

/// The size of the block for so many bytes: blocks of nearly the same size are of one size. `None` past all addresses.
fn rounded(bytes: usize) -> Option<usize> {
    if bytes < LEAST {
        return Some(bytes);
    }
    bytes.checked_next_multiple_of(LEAST / 16)
}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(rounded(bytes)?, ALIGNMENT).ok()
}

/// A block of at least so many bytes, contents unknown; `None` where there is no more memory, or none were asked for.
pub fn take(bytes: usize) -> Option<NonNull<u8>> {
    let layout = layout(bytes).filter(|_| bytes > 0)?;
    if bytes >= LEAST
        && let Ok(mut kept) = KEPT.try_lock()
        && let Some(at) = kept.iter().rposition(|block| block.bytes == layout.size())
    {
        return Some(kept.remove(at).memory);
    }
    // SAFETY: the size is above zero.
    let memory = NonNull::new(unsafe { alloc(layout) })?;
    if bytes >= LEAST {
        advise(memory, layout.size(), Advice::LargePages);
    }
    Some(memory)
}

/// Gives a block back.
///
/// # Safety
/// The block came from [`take`] for the same number of bytes, and nobody refers to it any more.
pub unsafe fn give(memory: NonNull<u8>, bytes: usize) {
    let layout = layout(bytes).expect("as taken");
    if (LEAST..=MOST_KEPT).contains(&layout.size()) {
        advise(memory, layout.size(), Advice::Free);
        // A thread that finds the list in use, or a process forked while it was, does without.
        if let Ok(mut kept) = KEPT.try_lock() {
            kept.push(Kept { memory, bytes: layout.size() });
            let mut total: usize = kept.iter().map(|block| block.bytes).sum();
            while total > MOST_KEPT || kept.len() > SLOTS {
                let oldest = kept.remove(0);
                total -= oldest.bytes;
                // SAFETY: `kept`: allocated with a layout of this size, and nobody's.
                unsafe { dealloc(oldest.memory.as_ptr(), Layout::from_size_align_unchecked(oldest.bytes, ALIGNMENT)) };
            }
            return;
        }
    }
    // SAFETY: by the caller: allocated with this layout.
    unsafe { dealloc(memory.as_ptr(), layout) };
}

/// What the system is told about a block.
#[derive(Clone, Copy)]
enum Advice {
    /// Use large pages, where there are any.
    LargePages,
    /// The contents are of no use any more: take the pages if memory is short.
    Free,
}

/// Tells the system about the whole pages of a block: a wish, which it may ignore.
fn advise(memory: NonNull<u8>, bytes: usize, advice: Advice) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 1 << 12;
        let advice = match advice {
            Advice::LargePages => libc::MADV_HUGEPAGE,
            Advice::Free => libc::MADV_FREE,
        };
        let skipped = memory.as_ptr().align_offset(PAGE);
        // SAFETY: whole pages inside an allocation of this process; either the advice changes none of their bytes, or
        // nobody will read them before writing them.
        unsafe {
            let start = memory.as_ptr().add(skipped);
            libc::madvise(start.cast(), (bytes - skipped) / PAGE * PAGE, advice);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (memory, bytes, advice);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_whole_and_apart() {
        let sizes = [1, 63, LEAST - 1, LEAST, LEAST + 1, 3 * LEAST + 5];
        for _ in 0..3 {
            let blocks: Vec<_> = sizes.iter().map(|&bytes| (take(bytes).unwrap(), bytes)).collect();
            for (at, &(block, bytes)) in blocks.iter().enumerate() {
                assert_eq!(block.as_ptr() as usize % ALIGNMENT, 0);
                // SAFETY: the block has so many bytes.
                unsafe { block.as_ptr().write_bytes(at as u8, bytes) };
            }
            for (at, &(block, bytes)) in blocks.iter().enumerate() {
                // SAFETY: as above; written just above, and given back once.
                unsafe {
                    assert_eq!((*block.as_ptr(), *block.as_ptr().add(bytes - 1)), (at as u8, at as u8));
                    give(block, bytes);
                }
            }
        }
        assert!(take(0).is_none() && take(usize::MAX).is_none() && take(isize::MAX as usize).is_none());
    }

    #[test]
    fn sizes_are_few_and_never_too_small() {
        for bytes in [1, LEAST - 1, LEAST, LEAST + 1, 64_000_000, 64_000_001, 1 << 40] {
            let size = rounded(bytes).unwrap();
            assert!(size >= bytes && size <= bytes + bytes / 16, "{bytes} {size}");
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let blocks: Vec<_> = (0..2 * SLOTS).map(|at| (take(LEAST + (at << 17)).unwrap(), LEAST + (at << 17))).collect();
        for (block, bytes) in blocks {
            // SAFETY: taken above, given back once.
            unsafe { give(block, bytes) };
        }
        let kept = KEPT.lock().unwrap();
        assert!(kept.len() <= SLOTS && kept.iter().map(|block| block.bytes).sum::<usize>() <= MOST_KEPT);
    }
}
