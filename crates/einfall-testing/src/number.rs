//! Exact numbers: elements of a [`View`] go in as [`Scalar`]s, and a [`Scalar`] goes out as the bytes of any dtype.

use einfall_tensor::{Bool8, DType, Element, View, with_element};
use half::{bf16, f16};
use num_complex::Complex;

/// One element, wide enough for every dtype; `bool` is 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    /// An integer or a truth value.
    Int(i128),
    /// A real number.
    Real(f64),
    /// A complex number.
    Complex(Complex<f64>),
}

impl Scalar {
    /// The integer; a real is cut off towards zero.
    pub fn int(self) -> i128 {
        match self {
            Scalar::Int(value) => value,
            Scalar::Real(value) => value as i128,
            Scalar::Complex(value) => value.re as i128,
        }
    }

    /// The real part.
    pub fn real(self) -> f64 {
        match self {
            Scalar::Int(value) => value as f64,
            Scalar::Real(value) => value,
            Scalar::Complex(value) => value.re,
        }
    }

    /// The number with an imaginary part.
    pub fn complex(self) -> Complex<f64> {
        match self {
            Scalar::Complex(value) => value,
            other => Complex::new(other.real(), 0.0),
        }
    }

    /// Rounds to the nearest value of a dtype, ties to even; integers wrap.
    pub fn round_to(self, dtype: DType) -> Scalar {
        match dtype {
            DType::Bool => Scalar::Int((self.complex() != Complex::ZERO) as i128),
            DType::C64 | DType::C128 => {
                let value = self.complex();
                Scalar::Complex(Complex::new(round_real(value.re, dtype), round_real(value.im, dtype)))
            }
            dtype if dtype.is_float() => Scalar::Real(round_real(self.real(), dtype)),
            dtype => with_element!(dtype, T => <T as Number>::wrap(self)),
        }
    }

    /// Whether both are the same number, where NaN equals NaN and 0 equals -0.
    pub fn same(self, other: Scalar) -> bool {
        let same = |a: f64, b: f64| a == b || a.is_nan() && b.is_nan();
        match (self, other) {
            (Scalar::Int(a), Scalar::Int(b)) => a == b,
            _ => {
                let (a, b) = (self.complex(), other.complex());
                same(a.re, b.re) && same(a.im, b.im)
            }
        }
    }
}

/// One rounding from f64 to a narrower type. Written out, because a conversion through f32 rounds twice.
fn round_real(value: f64, dtype: DType) -> f64 {
    let (digits, least_exponent, largest) = match dtype {
        DType::F16 => (11, -14, f64::from(f16::MAX)),
        DType::BF16 => (8, -126, f64::from(bf16::MAX)),
        DType::F32 | DType::C64 => return f64::from(value as f32),
        _ => return value,
    };
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let exponent = ((value.to_bits() >> 52) & 0x7FF) as i32 - 1023;
    let unit = 2f64.powi(exponent.max(least_exponent) - (digits - 1));
    let rounded = (value / unit).round_ties_even() * unit;
    if rounded.abs() > largest { f64::INFINITY.copysign(value) } else { rounded }
}

/// Half the distance from 1 to the next number: the largest relative error of one rounding. 0 for exact types.
pub fn unit_roundoff(dtype: DType) -> f64 {
    let digits = match dtype {
        DType::F16 => 11,
        DType::BF16 => 8,
        DType::F32 | DType::C64 => 24,
        DType::F64 | DType::C128 => 53,
        _ => return 0.0,
    };
    2f64.powi(-digits)
}

/// Conversion between an element type and [`Scalar`].
trait Number: Element {
    fn scalar(self) -> Scalar;
    fn wrap(value: Scalar) -> Scalar;
    fn bytes(value: Scalar) -> Vec<u8>;
}

macro_rules! integers {
    ($($T:ty),*) => {$(
        impl Number for $T {
            fn scalar(self) -> Scalar {
                Scalar::Int(self as i128)
            }
            fn wrap(value: Scalar) -> Scalar {
                Scalar::Int(value.int() as $T as i128)
            }
            fn bytes(value: Scalar) -> Vec<u8> {
                (value.int() as $T).to_ne_bytes().to_vec()
            }
        }
    )*};
}

integers!(i8, i16, i32, i64, u8, u16, u32, u64);

macro_rules! inexact {
    ($($T:ty, $value:ident => $scalar:expr, $narrow:expr);* $(;)?) => {$(
        impl Number for $T {
            fn scalar(self) -> Scalar {
                let $value = self;
                $scalar
            }
            fn wrap(value: Scalar) -> Scalar {
                value
            }
            fn bytes($value: Scalar) -> Vec<u8> {
                $narrow
            }
        }
    )*};
}

inexact! {
    Bool8, v => Scalar::Int(v.get() as i128), vec![(v.int() != 0) as u8];
    f16, v => Scalar::Real(v.to_f64()), f16::from_f64(round_real(v.real(), DType::F16)).to_ne_bytes().to_vec();
    bf16, v => Scalar::Real(v.to_f64()), bf16::from_f64(round_real(v.real(), DType::BF16)).to_ne_bytes().to_vec();
    f32, v => Scalar::Real(f64::from(v)), (v.real() as f32).to_ne_bytes().to_vec();
    f64, v => Scalar::Real(v), v.real().to_ne_bytes().to_vec();
    Complex<f32>, v => Scalar::Complex(Complex::new(v.re.into(), v.im.into())), {
        let value = v.complex();
        [(value.re as f32).to_ne_bytes(), (value.im as f32).to_ne_bytes()].concat()
    };
    Complex<f64>, v => Scalar::Complex(v), {
        let value = v.complex();
        [value.re.to_ne_bytes(), value.im.to_ne_bytes()].concat()
    };
}

/// The elements of a view in row-major order.
pub fn scalars(view: &View) -> Vec<Scalar> {
    with_element!(view.dtype(), T => {
        let values = view.to_vec::<T>().expect("the view was read as its own dtype");
        values.into_iter().map(Number::scalar).collect()
    })
}

/// The bytes of a number as an element of a dtype, in the byte order of the machine.
pub fn bytes_of(value: Scalar, dtype: DType) -> Vec<u8> {
    with_element!(dtype, T => <T as Number>::bytes(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_once() {
        // Just above a tie of f16: through f32 the excess is lost first, and the tie then goes down to even.
        let above_tie = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        assert_eq!(Scalar::Real(above_tie).round_to(DType::F16), Scalar::Real(1.0 + 2f64.powi(-10)));
        assert_eq!(Scalar::Real(65519.0).round_to(DType::F16), Scalar::Real(65504.0));
        assert_eq!(Scalar::Real(-65520.0).round_to(DType::F16), Scalar::Real(f64::NEG_INFINITY));
        assert_eq!(Scalar::Real(257.0).round_to(DType::BF16), Scalar::Real(256.0));
        assert_eq!(Scalar::Real(2f64.powi(-25)).round_to(DType::F16), Scalar::Real(0.0));
        assert_eq!(Scalar::Real(2f64.powi(-25) * 1.5).round_to(DType::F16), Scalar::Real(2f64.powi(-24)));
        for bits in 0..=u16::MAX {
            let value = f16::from_bits(bits).to_f64();
            assert!(Scalar::Real(value).round_to(DType::F16).same(Scalar::Real(value)), "{value}");
        }
    }

    #[test]
    fn integers_wrap_in_their_own_width() {
        assert_eq!(Scalar::Int(300).round_to(DType::U8), Scalar::Int(44));
        assert_eq!(Scalar::Int(200).round_to(DType::I8), Scalar::Int(-56));
        assert_eq!(bytes_of(Scalar::Int(-1), DType::U16), [0xFF, 0xFF]);
    }
}
