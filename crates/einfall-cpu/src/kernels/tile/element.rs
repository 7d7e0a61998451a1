//! The element types: what is stored, what is computed with, and how one becomes the other.
//!
//! In: an element of an operand. Out: its accumulator, exactly; and back, rounded once.
//!
//! Integers of up to 32 bits are computed in 32-bit lanes and cut off at the end: wrapping in the narrow type and
//! cutting off a wrapped sum give the same bits, because both are arithmetic modulo 2ⁿ.

use einfall_tensor::Bool8;
use half::{bf16, f16};
use num_complex::Complex;

use super::{TileKernel, Vector, portable};
use crate::isa::Isa;

#[cfg(target_arch = "aarch64")]
use super::neon;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// A type that the micro-kernels compute in.
pub trait Accumulator: TileElement<Acc = Self> {
    /// The vector for AVX-512.
    #[cfg(target_arch = "x86_64")]
    type Avx512: Vector<Elem = Self>;
    /// The vector for AVX2.
    #[cfg(target_arch = "x86_64")]
    type Avx2: Vector<Elem = Self>;
    /// The vector for NEON.
    #[cfg(target_arch = "aarch64")]
    type Neon: Vector<Elem = Self>;
    /// The vector for every other machine.
    type Portable: Vector<Elem = Self>;
    /// The sum of nothing.
    const ZERO: Self;
    /// `self + a · b`.
    fn multiply_add(self, a: Self, b: Self) -> Self;
    /// `self + other`.
    fn plus(self, other: Self) -> Self;
    /// The micro-kernels for an instruction set.
    fn kernel(isa: Isa) -> &'static TileKernel<Self>;
}

/// A type that operands and results are stored in.
pub trait TileElement: Copy + Send + Sync + 'static {
    /// The type it is computed in.
    type Acc: Accumulator;
    /// Whether the stored bits are those of the accumulator, so that operands can be read in place.
    const IS_ACC: bool;
    /// Whether packed panels hold two elements, neighbours along k, in the place of one accumulator: the bits of both,
    /// for micro-kernels that multiply and add pairs.
    #[inline(always)]
    fn pairs(_isa: Isa) -> bool {
        false
    }
    /// Elements along k that take the place of one accumulator in a panel.
    #[inline(always)]
    fn in_place_of_one(isa: Isa) -> usize {
        if Self::pairs(isa) { 2 } else { 1 }
    }
    /// The micro-kernels for panels of this type.
    #[inline(always)]
    fn kernel_for(isa: Isa) -> &'static TileKernel<Self::Acc> {
        Self::Acc::kernel(isa)
    }
    /// The bits of two elements in the place of an accumulator. Only types with pairs are asked.
    #[inline(always)]
    fn pair(_first: Self, _second: Option<Self>) -> Self::Acc {
        Self::Acc::ZERO
    }
    /// The accumulator of the same value.
    fn widen(self) -> Self::Acc;
    /// The nearest stored value, ties to even; integers wrap.
    fn narrow(acc: Self::Acc) -> Self;
}

/// A truth value in a 32-bit lane, 0 or 1: the product is *and*, the sum is *or*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bit(pub u32);

macro_rules! accumulator {
    ($type:ty, $zero:expr, $avx512:ident, $avx2:ident, $neon:ty, $neon_kernel:path, $lanes:literal, $portable:path,
     |$sum:ident, $a:ident, $b:ident| $multiply_add:expr, |$x:ident, $y:ident| $plus:expr) => {
        impl Accumulator for $type {
            #[cfg(target_arch = "x86_64")]
            type Avx512 = avx512::$avx512;
            #[cfg(target_arch = "x86_64")]
            type Avx2 = avx2::$avx2;
            #[cfg(target_arch = "aarch64")]
            type Neon = $neon;
            type Portable = portable::Lanes<$type, $lanes>;
            const ZERO: Self = $zero;

            #[inline(always)]
            fn multiply_add(self, $a: Self, $b: Self) -> Self {
                let $sum = self;
                $multiply_add
            }

            #[inline(always)]
            fn plus(self, $y: Self) -> Self {
                let $x = self;
                $plus
            }

            #[inline]
            fn kernel(isa: Isa) -> &'static TileKernel<Self> {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => &avx512::$avx512::KERNEL,
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => &avx2::$avx2::KERNEL,
                    #[cfg(target_arch = "aarch64")]
                    Isa::Neon => &$neon_kernel,
                    _ => &$portable,
                }
            }
        }
    };
}

accumulator!(
    f32,
    0.0,
    F32x16,
    F32x8,
    neon::F32x4,
    neon::F32x4::KERNEL,
    4,
    portable::F32,
    |sum, a, b| sum + a * b,
    |x, y| x + y
);
accumulator!(
    f64,
    0.0,
    F64x8,
    F64x4,
    neon::F64x2,
    neon::F64x2::KERNEL,
    2,
    portable::F64,
    |sum, a, b| sum + a * b,
    |x, y| x + y
);
accumulator!(i32, 0, I32x16, I32x8, portable::Lanes<i32, 4>, portable::I32, 4, portable::I32,
    |sum, a, b| sum.wrapping_add(a.wrapping_mul(b)), |x, y| x.wrapping_add(y));
accumulator!(i64, 0, I64x8, I64x4, portable::Lanes<i64, 2>, portable::I64, 2, portable::I64,
    |sum, a, b| sum.wrapping_add(a.wrapping_mul(b)), |x, y| x.wrapping_add(y));
accumulator!(Bit, Bit(0), B32x16, B32x8, portable::Lanes<Bit, 4>, portable::BIT, 4, portable::BIT,
    |sum, a, b| Bit(sum.0 | (a.0 & b.0)), |x, y| Bit(x.0 | y.0));
accumulator!(
    Complex<f32>,
    Complex::new(0.0, 0.0),
    C32x8,
    C32x4,
    portable::Lanes<Complex<f32>, 2>,
    portable::C32,
    2,
    portable::C32,
    |sum, a, b| sum + a * b,
    |x, y| x + y
);
accumulator!(
    Complex<f64>,
    Complex::new(0.0, 0.0),
    C64x4,
    C64x2,
    portable::Lanes<Complex<f64>, 1>,
    portable::C64,
    1,
    portable::C64,
    |sum, a, b| sum + a * b,
    |x, y| x + y
);

macro_rules! element {
    ($type:ty, $acc:ty, $is_acc:literal, |$x:ident| $widen:expr, |$y:ident| $narrow:expr) => {
        impl TileElement for $type {
            type Acc = $acc;
            const IS_ACC: bool = $is_acc;

            #[inline(always)]
            fn widen(self) -> $acc {
                let $x = self;
                $widen
            }

            #[inline(always)]
            fn narrow($y: $acc) -> Self {
                $narrow
            }
        }
    };
}

element!(f32, f32, true, |x| x, |y| y);
element!(f64, f64, true, |x| x, |y| y);
element!(i32, i32, true, |x| x, |y| y);
element!(i64, i64, true, |x| x, |y| y);
element!(u32, i32, true, |x| x as i32, |y| y as u32);
element!(u64, i64, true, |x| x as i64, |y| y as u64);
element!(i8, i32, false, |x| x as i32, |y| y as i8);
element!(u8, i32, false, |x| x as i32, |y| y as u8);
element!(i16, i32, false, |x| x as i32, |y| y as i16);
element!(u16, i32, false, |x| x as i32, |y| y as u16);
element!(bool, Bit, false, |x| Bit(x as u32), |y| y.0 != 0);
element!(Bool8, Bit, false, |x| Bit(u32::from(x.get())), |y| Bool8::from(y.0 != 0));
element!(Bit, Bit, true, |x| x, |y| y);
element!(Complex<f32>, Complex<f32>, true, |x| x, |y| y);
element!(Complex<f64>, Complex<f64>, true, |x| x, |y| y);

impl TileElement for bf16 {
    type Acc = f32;
    const IS_ACC: bool = false;

    #[inline(always)]
    fn pairs(isa: Isa) -> bool {
        #[cfg(target_arch = "x86_64")]
        return isa == Isa::Avx512 && is_x86_feature_detected!("avx512bf16");
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = isa;
            false
        }
    }

    #[inline(always)]
    fn kernel_for(isa: Isa) -> &'static TileKernel<f32> {
        #[cfg(target_arch = "x86_64")]
        if Self::pairs(isa) {
            return &avx512::PAIRS;
        }
        f32::kernel(isa)
    }

    #[inline(always)]
    fn pair(first: Self, second: Option<Self>) -> f32 {
        f32::from_bits(u32::from(first.to_bits()) | second.map_or(0, |second| u32::from(second.to_bits()) << 16))
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }

    #[inline(always)]
    fn narrow(acc: f32) -> Self {
        bf16::from_bits(narrow_bf16(acc))
    }
}
element!(f16, f32, false, |x| widen_f16(x.to_bits()), |y| f16::from_bits(narrow_f16(y)));

/// The value of a half, without branches so that loops over it become vector code.
#[inline(always)]
fn widen_f16(bits: u16) -> f32 {
    let magnitude = ((bits & 0x7fff) as u32) << 13;
    // The exponent is still biased by 15 instead of 127: scaling by 2¹¹² is exact and makes subnormals normal.
    let scaled = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled | special | ((bits & 0x8000) as u32) << 16)
}

/// The nearest bf16, ties to even, without branches.
#[inline(always)]
fn narrow_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // A NaN keeps its high bits and becomes quiet; rounding could carry it into infinity.
    let quiet = (bits >> 16) | 0x40;
    (if value.is_nan() { quiet } else { rounded }) as u16
}

/// The nearest f16, ties to even, without branches.
#[inline(always)]
fn narrow_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    // Normal halves: rebias the exponent and round the 13 bits that are cut off; too large a value carries into
    // infinity or above, which `min` turns into infinity.
    let odd = (magnitude >> 13) & 1;
    let normal = (magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + odd) >> 13).min(0x7c00);
    // Subnormal halves: adding 0.5 puts the bits where the addition itself rounds them to a multiple of 2⁻²⁴.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let special = 0x7c00 | if magnitude > 0x7f80_0000 { 0x200 } else { 0 };
    let result = if magnitude >= 0x7f80_0000 {
        special
    } else if magnitude < 113 << 23 {
        subnormal
    } else {
        normal
    };
    (sign | result) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_widens_like_the_reference() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (widen_f16(bits), f16::from_bits(bits).to_f32());
            assert!(
                ours == theirs && ours.is_sign_negative() == theirs.is_sign_negative()
                    || ours.is_nan() && theirs.is_nan(),
                "{bits:#x}"
            );
        }
    }

    #[test]
    fn narrowing_rounds_like_the_reference() {
        // Every exponent, with mantissas around the places where rounding decides.
        for high in 0..=u16::MAX {
            for low in [0u32, 1, 0xfff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x3000, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits((high as u32) << 16 | low);
                let half = f16::from_bits(narrow_f16(value));
                let brain = bf16::from_bits(narrow_bf16(value));
                if value.is_nan() {
                    assert!(half.is_nan() && brain.is_nan(), "{value:?}");
                } else {
                    assert_eq!(half.to_bits(), f16::from_f32(value).to_bits(), "{value:e}");
                    assert_eq!(brain.to_bits(), bf16::from_f32(value).to_bits(), "{value:e}");
                }
            }
        }
    }
}
