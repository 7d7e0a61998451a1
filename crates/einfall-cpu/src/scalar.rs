//! Arithmetic of each element type: the accumulator table in code.
//!
//! *In and out*: elements. *Callers*: every kernel. Sums and products are plain (never contracted into fused
//! operations here), so that all instruction sets give the same bits.

use einfall_tensor::half::{bf16, f16};
use einfall_tensor::num_complex::Complex;
use einfall_tensor::{Bool8, Element};

/// An element type with the arithmetic of its accumulator.
pub trait Scalar: Element {
    /// What sums of products are kept in: `f32` for half types, otherwise the type itself.
    type Acc: Scalar<Acc = Self::Acc>;
    /// The empty sum.
    const ZERO: Self::Acc;
    /// The empty product.
    const ONE: Self::Acc;
    /// The element as an accumulator; exact.
    fn widen(self) -> Self::Acc;
    /// The accumulator as an element, rounded to nearest even.
    fn narrow(acc: Self::Acc) -> Self;
    /// Sum; integers wrap, truth values are joined by "or".
    fn add(a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// Product; integers wrap, truth values are joined by "and".
    fn mul(a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// Converts to the accumulator of another type, as NumPy's casts do.
    fn to_number(self) -> Number;
    /// The inverse of [`Scalar::to_number`].
    fn from_number(number: Number) -> Self;
}

/// Any element, for conversions between types. Conversions are rare and memory-bound; this is branch-free per type.
#[derive(Clone, Copy, Debug)]
pub enum Number {
    /// A signed or unsigned integer, or a truth value.
    Integer(i128),
    /// A real number.
    Real(f64),
    /// A complex number.
    Complex(f64, f64),
}

impl Number {
    fn real(self) -> f64 {
        match self {
            Number::Integer(value) => value as f64,
            Number::Real(value) | Number::Complex(value, _) => value,
        }
    }

    fn imaginary(self) -> f64 {
        if let Number::Complex(_, value) = self { value } else { 0.0 }
    }

    fn integer(self) -> i128 {
        match self {
            Number::Integer(value) => value,
            other => other.real() as i128,
        }
    }
}

macro_rules! scalar {
    ($T:ty, $Acc:ty, $zero:expr, $one:expr, |$w:ident| $widen:expr, |$n:ident| $narrow:expr,
     |$a:ident, $b:ident| $add:expr, $mul:expr, |$t:ident| $to:expr, |$f:ident| $from:expr) => {
        impl Scalar for $T {
            type Acc = $Acc;
            const ZERO: $Acc = $zero;
            const ONE: $Acc = $one;

            #[inline(always)]
            fn widen(self) -> $Acc {
                let $w = self;
                $widen
            }

            #[inline(always)]
            fn narrow($n: $Acc) -> Self {
                $narrow
            }

            #[inline(always)]
            fn add($a: $Acc, $b: $Acc) -> $Acc {
                $add
            }

            #[inline(always)]
            fn mul($a: $Acc, $b: $Acc) -> $Acc {
                $mul
            }

            #[inline(always)]
            fn to_number(self) -> Number {
                let $t = self;
                $to
            }

            #[inline(always)]
            fn from_number($f: Number) -> Self {
                $from
            }
        }
    };
}

/// The nearest `f32` towards zero, its last bit set if anything was cut off: rounding it again to a half type gives what
/// rounding the `f64` once would (Boldo and Melquiond, "When double rounding is odd", 2005).
fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let back = f64::from(nearest);
    if back == value || !nearest.is_finite() {
        return nearest;
    }
    let truncated = if back.abs() > value.abs() { f32::from_bits(nearest.to_bits() - 1) } else { nearest };
    f32::from_bits(truncated.to_bits() | 1)
}

macro_rules! integers {
    ($($T:ty),*) => {$(
        scalar!($T, $T, 0, 1, |w| w, |n| n, |a, b| a.wrapping_add(b), a.wrapping_mul(b),
            |t| Number::Integer(t as i128), |f| f.integer() as $T);
    )*};
}

integers!(i8, i16, i32, i64, u8, u16, u32, u64);
scalar!(f32, f32, 0.0, 1.0, |w| w, |n| n, |a, b| a + b, a * b, |t| Number::Real(f64::from(t)), |f| match f {
    Number::Integer(value) => value as f32,
    other => other.real() as f32,
});
// Half types by integer arithmetic without branches, which compilers make vector instructions of; the conversions of the type
// itself ask the processor what it can do for every element.

/// Exact; a NaN stays one. Exponents move up by 112, subnormal numbers by a product with 2^112.
#[inline(always)]
fn widened_f16(half: f16) -> f32 {
    let bits = u32::from(half.to_bits());
    let (sign, magnitude) = ((bits & 0x8000) << 16, (bits & 0x7fff) << 13);
    let number = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let top = if magnitude >= 0x0f80_0000 { 0x7f80_0000 } else { 0 };
    f32::from_bits(number | top | sign)
}

/// To nearest, ties to even; a NaN stays one. Subnormal results are rounded by adding 0.5, whose last bit has their weight.
#[inline(always)]
fn narrowed_f16(number: f32) -> f16 {
    let bits = number.to_bits();
    let (sign, magnitude) = ((bits >> 16) & 0x8000, bits & 0x7fff_ffff);
    let odd = (magnitude >> 13) & 1;
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + odd) >> 13;
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let special = if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
    let rounded = if magnitude < 113 << 23 { subnormal } else { normal };
    let rounded = if magnitude >= 0x4780_0000 { special } else { rounded };
    f16::from_bits((rounded | sign) as u16)
}

/// To nearest, ties to even; a NaN stays one.
#[inline(always)]
fn narrowed_bf16(number: f32) -> bf16 {
    let bits = number.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = (bits >> 16) | 0x40;
    bf16::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded } as u16)
}

scalar!(f64, f64, 0.0, 1.0, |w| w, |n| n, |a, b| a + b, a * b, |t| Number::Real(t), |f| f.real());
scalar!(
    f16,
    f32,
    0.0,
    1.0,
    |w| widened_f16(w),
    |n| narrowed_f16(n),
    |a, b| a + b,
    a * b,
    |t| Number::Real(t.to_f64()),
    |f| f16::from_f32(to_odd(f.real()))
);
scalar!(
    bf16,
    f32,
    0.0,
    1.0,
    |w| f32::from_bits(u32::from(w.to_bits()) << 16),
    |n| narrowed_bf16(n),
    |a, b| a + b,
    a * b,
    |t| Number::Real(t.to_f64()),
    |f| bf16::from_f32(to_odd(f.real()))
);
scalar!(
    Complex<f32>,
    Complex<f32>,
    Complex::new(0.0, 0.0),
    Complex::new(1.0, 0.0),
    |w| w,
    |n| n,
    |a, b| a + b,
    a * b,
    |t| Number::Complex(f64::from(t.re), f64::from(t.im)),
    |f| Complex::new(f.real() as f32, f.imaginary() as f32)
);
scalar!(
    Complex<f64>,
    Complex<f64>,
    Complex::new(0.0, 0.0),
    Complex::new(1.0, 0.0),
    |w| w,
    |n| n,
    |a, b| a + b,
    a * b,
    |t| Number::Complex(t.re, t.im),
    |f| Complex::new(f.real(), f.imaginary())
);
scalar!(
    Bool8,
    Bool8,
    Bool8(0),
    Bool8(1),
    |w| Bool8::from(w.get()),
    |n| n,
    |a, b| Bool8(a.0 | b.0),
    Bool8(a.0 & b.0),
    |t| Number::Integer(t.get() as i128),
    |f| Bool8::from(match f {
        Number::Complex(re, im) => re != 0.0 || im != 0.0,
        other => other.real() != 0.0,
    })
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_keep_what_the_target_can_hold() {
        assert_eq!(i64::from_number((-7i8).to_number()), -7);
        assert_eq!(f64::from_number(u64::MAX.to_number()), u64::MAX as f64);
        assert_eq!(u64::from_number(u64::MAX.to_number()), u64::MAX);
        assert_eq!(Complex::<f32>::from_number(bf16::from_f32(1.5).to_number()), Complex::new(1.5, 0.0));
        assert_eq!(bf16::from_number(Number::Real(f64::from(1.003_906_2f32))).to_f32(), 1.0, "ties go to even");
    }

    #[test]
    fn half_types_convert_as_their_crate_does() {
        let same = |ours: f32, theirs: f32| ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan());
        for bits in 0..=u16::MAX {
            let (half, brain) = (f16::from_bits(bits), bf16::from_bits(bits));
            assert!(same(half.widen(), half.to_f32()), "{bits:#x}");
            assert!(same(brain.widen(), brain.to_f32()), "{bits:#x}");
        }
        // All exponents, with the mantissas around every tie.
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x0fff, 0x1000, 0x1001, 0x2000, 0x3000, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let number = f32::from_bits(u32::from(high) << 16 | low);
                assert!(same(f16::narrow(number).to_f32(), f16::from_f32(number).to_f32()), "{number:e}");
                assert!(same(bf16::narrow(number).to_f32(), bf16::from_f32(number).to_f32()), "{number:e}");
            }
        }
    }

    #[test]
    fn truth_values_of_any_byte_multiply_and_add() {
        let odd = Bool8(4).widen();
        assert!(Bool8::mul(odd, Bool8(2).widen()).get());
        assert_eq!(Bool8::narrow(Bool8::add(odd, Bool8(0))).0, 1);
    }
}
