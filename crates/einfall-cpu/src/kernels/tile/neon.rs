//! The micro-kernel with NEON: 4 lanes of 32 bits. Integers and complex numbers use the portable one.

use std::arch::aarch64::*;

use super::{Tile, TileKernel, Vector, entries, multiply};

/// # Safety
/// As for [`super::TileFn`].
#[target_feature(enable = "neon")]
unsafe fn entry<V: Vector, const H: usize, const W: usize, const PACKED: bool>(tile: &Tile<V::Elem>) {
    // SAFETY: TileFn's ranges, passed on; the features of `V` are enabled here.
    unsafe { multiply::<V, H, W, PACKED>(tile) }
}

macro_rules! vector {
    ($(#[$doc:meta])* $name:ident, $register:ty, $elem:ty, $lanes:literal, $set1:ident, $load:ident, $store:ident,
     $fma:ident, $add:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub struct $name($register);

        impl $name {
            pub const KERNEL: TileKernel<$elem> = TileKernel {
                lanes: $lanes,
                masks: false,
                packed: entries!(entry, $name, true; 1: 1 2 3 4 5 6 7 8 9 10 11 12; 2: 1 2 3 4 5 6 7 8 9 10 11 12),
                direct: entries!(entry, $name, false; 1: 1 2 3 4 5 6 7 8 9 10 11 12; 2: 1 2 3 4 5 6 7 8 9 10 11 12),
            };
        }

        // SAFETY: loads and stores touch LANES elements, or the count of the mask.
        unsafe impl Vector for $name {
            type Elem = $elem;
            type Mask = usize;
            type Left = $register;
            type Sum = Self;
            const LANES: usize = $lanes;
            const MASKS: bool = false;
    const FREE_MASKS: bool = false;

            #[inline(always)]
            unsafe fn mask(lanes: usize) -> usize {
                lanes
            }
            #[inline(always)]
            unsafe fn empty() -> Self {
                // SAFETY: the instruction set is available.
                unsafe { Self::zero() }
            }
            #[inline(always)]
            unsafe fn zero() -> Self {
                // SAFETY: the instruction set is available.
                Self(unsafe { $set1(0.0) })
            }
            #[inline(always)]
            unsafe fn load(from: *const $elem) -> Self {
                // SAFETY: the caller's range.
                Self(unsafe { $load(from) })
            }
            #[inline(always)]
            unsafe fn load_masked(from: *const $elem, mask: usize) -> Self {
                let mut lanes = [0.0; $lanes];
                for (x, lane) in lanes.iter_mut().enumerate().take(mask) {
                    // SAFETY: the caller's range of `mask` elements.
                    *lane = unsafe { *from.add(x) };
                }
                // SAFETY: `lanes` holds LANES elements.
                unsafe { Self::load(lanes.as_ptr()) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut $elem) {
                // SAFETY: the caller's range.
                unsafe { $store(to, self.0) }
            }
            #[inline(always)]
            unsafe fn store_masked(self, to: *mut $elem, mask: usize) {
                let mut lanes = [0.0; $lanes];
                // SAFETY: `lanes` holds LANES elements; the caller's range of `mask` elements.
                unsafe {
                    self.store(lanes.as_mut_ptr());
                    for (x, lane) in lanes.into_iter().enumerate().take(mask) {
                        *to.add(x) = lane;
                    }
                }
            }
            #[inline(always)]
            unsafe fn broadcast(from: *const $elem) -> $register {
                // SAFETY: the caller's element.
                unsafe { $set1(*from) }
            }
            #[inline(always)]
            unsafe fn multiply_add(sum: Self, left: $register, right: Self) -> Self {
                // SAFETY: the instruction set is available.
                Self(unsafe { $fma(sum.0, left, right.0) })
            }
            #[inline(always)]
            unsafe fn finish(sum: Self) -> Self {
                sum
            }
            #[inline(always)]
            unsafe fn plus(self, other: Self) -> Self {
                // SAFETY: the instruction set is available.
                Self(unsafe { $add(self.0, other.0) })
            }
        }
    };
}

vector!(
    /// 4 × f32.
    F32x4, float32x4_t, f32, 4, vdupq_n_f32, vld1q_f32, vst1q_f32, vfmaq_f32, vaddq_f32);
vector!(
    /// 2 × f64.
    F64x2, float64x2_t, f64, 2, vdupq_n_f64, vld1q_f64, vst1q_f64, vfmaq_f64, vaddq_f64);
