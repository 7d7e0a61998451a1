//! The micro-kernel as plain loops over short arrays, for machines without a kernel of their own.

use num_complex::Complex;

use super::{Accumulator, Bit, Tile, TileKernel, Vector, entries, multiply};

/// `N` elements that the compiler may keep in vector registers.
#[derive(Clone, Copy)]
pub struct Lanes<E, const N: usize>([E; N]);

// SAFETY: loads and stores touch `N` elements, or the count of the mask.
unsafe impl<E: Accumulator, const N: usize> Vector for Lanes<E, N> {
    type Elem = E;
    type Mask = usize;
    type Left = E;
    type Sum = Self;
    const LANES: usize = N;
    const MASKS: bool = false;
    const FREE_MASKS: bool = false;

    #[inline(always)]
    unsafe fn mask(lanes: usize) -> usize {
        lanes
    }
    #[inline(always)]
    unsafe fn empty() -> Self {
        Lanes([E::ZERO; N])
    }
    #[inline(always)]
    unsafe fn zero() -> Self {
        Lanes([E::ZERO; N])
    }
    #[inline(always)]
    unsafe fn load(from: *const E) -> Self {
        // SAFETY: the caller's range of `N` elements.
        Lanes(unsafe { from.cast::<[E; N]>().read() })
    }
    #[inline(always)]
    unsafe fn load_masked(from: *const E, mask: usize) -> Self {
        let mut lanes = [E::ZERO; N];
        for (x, lane) in lanes.iter_mut().enumerate().take(mask) {
            // SAFETY: the caller's range of `mask` elements.
            *lane = unsafe { from.add(x).read() };
        }
        Lanes(lanes)
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut E) {
        // SAFETY: the caller's range of `N` elements.
        unsafe { to.cast::<[E; N]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn store_masked(self, to: *mut E, mask: usize) {
        for (x, lane) in self.0.into_iter().enumerate().take(mask) {
            // SAFETY: the caller's range of `mask` elements.
            unsafe { to.add(x).write(lane) }
        }
    }
    #[inline(always)]
    unsafe fn broadcast(from: *const E) -> E {
        // SAFETY: the caller's element.
        unsafe { from.read() }
    }
    #[inline(always)]
    unsafe fn multiply_add(mut sum: Self, left: E, right: Self) -> Self {
        for (sum, lane) in sum.0.iter_mut().zip(right.0) {
            *sum = sum.multiply_add(left, lane);
        }
        sum
    }
    #[inline(always)]
    unsafe fn finish(sum: Self) -> Self {
        sum
    }
    #[inline(always)]
    unsafe fn plus(mut self, other: Self) -> Self {
        for (lane, other) in self.0.iter_mut().zip(other.0) {
            *lane = lane.plus(other);
        }
        self
    }
}

/// # Safety
/// As for [`super::TileFn`].
unsafe fn entry<V: Vector, const H: usize, const W: usize, const PACKED: bool>(tile: &Tile<V::Elem>) {
    // SAFETY: TileFn's ranges, passed on.
    unsafe { multiply::<V, H, W, PACKED>(tile) }
}

macro_rules! kernel {
    ($name:ident, $type:ty, $lanes:literal) => {
        pub static $name: TileKernel<$type> = TileKernel {
            lanes: $lanes,
            masks: false,
    packed: entries!(entry, Lanes<$type, $lanes>, true; 1: 1 2 3 4; 2: 1 2 3 4),
            direct: &[],
        };
    };
}

kernel!(F32, f32, 4);
kernel!(F64, f64, 2);
kernel!(I32, i32, 4);
kernel!(I64, i64, 2);
kernel!(BIT, Bit, 4);
kernel!(C32, Complex<f32>, 2);
kernel!(C64, Complex<f64>, 1);
