//! The element types, to and from exact integers.

use std::fmt::Debug;

use einfall_cpu::kernels::tile::TileElement;
use half::{bf16, f16};
use num_complex::Complex;

/// A sum without rounding.
pub type Exact = Complex<i64>;

/// An element that small integers convert to exactly.
pub trait Element: TileElement + Debug {
    /// The element of an exact sum, rounded or wrapped once.
    fn of(value: Exact) -> Self;
    /// A value that spoils every sum it takes part in.
    fn poison() -> Self;
    /// The exact value, of elements made by `of` from small integers.
    fn exact(self) -> Exact;
    /// The bits, to compare NaN as well.
    fn bits(self) -> u128;
    /// Products and sums of this type.
    fn fold(sum: Exact, a: Exact, b: Exact) -> Exact {
        sum + a * b
    }
}

macro_rules! real {
    ($($type:ty, $poison:expr, |$x:ident| $of:expr, |$y:ident| $exact:expr, |$z:ident| $bits:expr;)+) => {$(
        impl Element for $type {
            fn of(value: Exact) -> Self {
                let $x = value.re;
                $of
            }
            fn poison() -> Self {
                $poison
            }
            fn exact(self) -> Exact {
                let $y = self;
                Complex::new($exact, 0)
            }
            fn bits(self) -> u128 {
                let $z = self;
                $bits
            }
        }
    )+};
}
real! {
    f32, f32::NAN, |x| x as f32, |y| y as i64, |z| z.to_bits() as u128;
    f64, f64::NAN, |x| x as f64, |y| y as i64, |z| z.to_bits() as u128;
    f16, f16::NAN, |x| f16::from_f32(x as f32), |y| y.to_f32() as i64, |z| z.to_bits() as u128;
    bf16, bf16::NAN, |x| bf16::from_f32(x as f32), |y| y.to_f32() as i64, |z| z.to_bits() as u128;
    i8, i8::MAX, |x| x as i8, |y| y as i64, |z| z as u8 as u128;
    u8, u8::MAX, |x| x as u8, |y| y as i64, |z| z as u128;
    i16, i16::MAX, |x| x as i16, |y| y as i64, |z| z as u16 as u128;
    u16, u16::MAX, |x| x as u16, |y| y as i64, |z| z as u128;
    i32, i32::MAX, |x| x as i32, |y| y as i64, |z| z as u32 as u128;
    u32, u32::MAX, |x| x as u32, |y| y as i32 as i64, |z| z as u128;
    i64, i64::MAX, |x| x, |y| y, |z| z as u64 as u128;
    u64, u64::MAX, |x| x as u64, |y| y as i64, |z| z as u128;
}

impl Element for bool {
    fn of(value: Exact) -> Self {
        value.re > 1
    }
    fn poison() -> Self {
        true
    }
    fn exact(self) -> Exact {
        Complex::new(2 * self as i64, 0)
    }
    fn bits(self) -> u128 {
        self as u128
    }
    fn fold(sum: Exact, a: Exact, b: Exact) -> Exact {
        if a.re > 1 && b.re > 1 { Complex::new(2, 0) } else { sum }
    }
}

impl Element for Complex<f32> {
    fn of(value: Exact) -> Self {
        Complex::new(value.re as f32, value.im as f32)
    }
    fn poison() -> Self {
        Complex::new(f32::NAN, f32::NAN)
    }
    fn exact(self) -> Exact {
        Complex::new(self.re as i64, self.im as i64)
    }
    fn bits(self) -> u128 {
        (self.re.to_bits() as u128) << 32 | self.im.to_bits() as u128
    }
}

impl Element for Complex<f64> {
    fn of(value: Exact) -> Self {
        Complex::new(value.re as f64, value.im as f64)
    }
    fn poison() -> Self {
        Complex::new(f64::NAN, f64::NAN)
    }
    fn exact(self) -> Exact {
        Complex::new(self.re as i64, self.im as i64)
    }
    fn bits(self) -> u128 {
        (self.re.to_bits() as u128) << 64 | self.im.to_bits() as u128
    }
}
