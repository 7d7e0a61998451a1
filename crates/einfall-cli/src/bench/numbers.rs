//! Random numbers for benchmarks, and arrays of them.
//!
//! In: a seed, and the number of a stream, so that arrays do not depend on each other. Out: the same numbers on every
//! machine.

use einfall::half::{bf16, f16};
use einfall::{DType, Tensor, TensorError};

/// Numbers that depend on a seed alone (Steele, Lea and Flood: SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(stream << 32))
    }

    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// From 0 to below 1.
    pub(super) fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A position below `len`.
    pub(super) fn below(&mut self, len: usize) -> usize {
        ((u128::from(self.bits()) * len as u128) >> 64) as usize
    }

    /// Of variance 1, near enough to normal: the sum of 12 uniform numbers.
    pub(super) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

impl Random {
    /// Of variance 1 and nearly normal, made of one number: the sum of its four quarters.
    pub(super) fn quick_normal(&mut self) -> f64 {
        let bits = self.bits();
        let quarters: u64 = (0..4).map(|at| bits >> (16 * at) & 0xffff).sum();
        (quarters as f64 / 65536.0 - 2.0) * 3f64.sqrt()
    }

    /// Brings `count` elements that are drawn at random to the front: the start of a shuffle (Fisher and Yates).
    pub(super) fn first<T>(&mut self, list: &mut [T], count: usize) {
        for at in 0..count {
            let other = at + self.below(list.len() - at);
            list.swap(at, other);
        }
    }
}

/// An array of a floating-point dtype.
pub(super) fn floats(dtype: DType, shape: &[usize], mut next: impl FnMut() -> f64) -> Result<Tensor, TensorError> {
    let count = shape.iter().product();
    let numbers = (0..count).map(|_| next());
    match dtype {
        DType::F64 => Tensor::from_slice(&numbers.collect::<Vec<_>>(), shape),
        DType::F16 => Tensor::from_slice(&numbers.map(f16::from_f64).collect::<Vec<_>>(), shape),
        DType::BF16 => Tensor::from_slice(&numbers.map(bf16::from_f64).collect::<Vec<_>>(), shape),
        _ => Tensor::from_slice(&numbers.map(|x| x as f32).collect::<Vec<_>>(), shape),
    }
}

/// An element of a floating-point array as f64.
pub(super) fn number(tensor: &Tensor, at: usize) -> f64 {
    let size = tensor.dtype().bytes();
    let bytes = &tensor.as_bytes()[at * size..(at + 1) * size];
    match *bytes {
        [a, b] if tensor.dtype() == DType::F16 => f16::from_ne_bytes([a, b]).to_f64(),
        [a, b] => bf16::from_ne_bytes([a, b]).to_f64(),
        [a, b, c, d] => f64::from(f32::from_ne_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => f64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        _ => f64::NAN,
    }
}
