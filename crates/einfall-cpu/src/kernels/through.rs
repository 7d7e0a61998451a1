//! Writing past the caches: results that do not fit there anyway need not push out what does.
//!
//! *In*: a few kilobytes of finished results. *Out*: the same bytes in an output too large for the caches. An ordinary
//! store first reads the line that it is about to overwrite; these do not, which saves a third of the traffic.
//! *Callers*: the ops, a block at a time, and a [`Fence`] until their piece ends.
#![allow(unsafe_op_in_unsafe_fn)] // the invariant is that of `copy`

use crate::isa::Isa;

/// Copies `count` elements past the caches, where the instruction set can.
///
/// # Safety
/// The machine has `isa`; both runs are valid for `count` elements and do not overlap; a [`Fence`] goes before
/// another thread may read the result.
pub unsafe fn copy<T: Copy>(isa: Isa, from: *const T, to: *mut T, count: usize) {
    let (from, to, bytes) = (from.cast::<u8>(), to.cast::<u8>(), count * size_of::<T>());
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::Avx2 | Isa::Avx512) {
        // Lines are written as a whole; what is left at both ends takes the ordinary way.
        let head = to.align_offset(64).min(bytes);
        let body = (bytes - head) / 64 * 64;
        from.copy_to_nonoverlapping(to, head);
        lines(from.add(head), to.add(head), body);
        from.add(head + body).copy_to_nonoverlapping(to.add(head + body), bytes - head - body);
        return;
    }
    let _ = isa;
    from.copy_to_nonoverlapping(to, bytes);
}

/// `bytes` is a multiple of 64, `to` a multiple of 64.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn lines(from: *const u8, to: *mut u8, bytes: usize) {
    use std::arch::x86_64::{_mm256_loadu_si256, _mm256_stream_si256};
    for at in (0..bytes).step_by(64) {
        let low = _mm256_loadu_si256(from.add(at).cast());
        let high = _mm256_loadu_si256(from.add(at + 32).cast());
        _mm256_stream_si256(to.add(at).cast(), low);
        _mm256_stream_si256(to.add(at + 32).cast(), high);
    }
}

/// When it goes, on whichever way, what was copied is ordered before whatever this thread writes next.
pub struct Fence;

impl Drop for Fence {
    fn drop(&mut self) {
        done();
    }
}

/// The fence itself.
fn done() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a fence; every x86-64 machine has it.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_any_run_at_any_alignment() {
        let from: Vec<u16> = (0..700).collect();
        for isa in Isa::available() {
            for count in [0, 1, 3, 31, 32, 33, 64, 100, 500] {
                for (skip_from, skip_to) in [(0, 0), (1, 0), (0, 1), (5, 37)] {
                    let mut to = vec![7777_u16; 600];
                    // SAFETY: both runs are inside their vectors.
                    unsafe { copy(isa, from[skip_from..].as_ptr(), to[skip_to..].as_mut_ptr(), count) };
                    done();
                    assert!(to[..skip_to].iter().all(|&x| x == 7777), "{isa} wrote before");
                    assert_eq!(to[skip_to..skip_to + count], from[skip_from..skip_from + count], "{isa} {count}");
                    assert!(to[skip_to + count..].iter().all(|&x| x == 7777), "{isa} wrote behind");
                }
            }
        }
    }
}
