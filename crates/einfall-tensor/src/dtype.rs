//! The element types, and the one table of their sizes, accumulators and promotions.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};
use num_complex::Complex;

/// The type of an element.
///
/// Promotion follows NumPy (`bf16` with `f16` gives `f32`). Sums run in [`DType::accumulator`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum DType {
    /// One byte, zero is false and anything else is true; products are "and", sums are "or".
    Bool,
    /// 8-bit signed integer.
    I8,
    /// 16-bit signed integer.
    I16,
    /// 32-bit signed integer.
    I32,
    /// 64-bit signed integer.
    I64,
    /// 8-bit unsigned integer.
    U8,
    /// 16-bit unsigned integer.
    U16,
    /// 32-bit unsigned integer.
    U32,
    /// 64-bit unsigned integer.
    U64,
    /// IEEE half precision.
    F16,
    /// The upper half of an `f32`.
    BF16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// Two `f32`: real, imaginary.
    C64,
    /// Two `f64`: real, imaginary.
    C128,
}

use DType::*;

impl DType {
    /// Every element type.
    pub const ALL: [DType; 15] = [Bool, I8, I16, I32, I64, U8, U16, U32, U64, F16, BF16, F32, F64, C64, C128];

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Bool | I8 | U8 => 1,
            I16 | U16 | F16 | BF16 => 2,
            I32 | U32 | F32 => 4,
            I64 | U64 | F64 | C64 => 8,
            C128 => 16,
        }
    }

    /// The short name: `f32`, `i64`, `c64`, …
    pub const fn name(self) -> &'static str {
        match self {
            Bool => "bool",
            I8 => "i8",
            I16 => "i16",
            I32 => "i32",
            I64 => "i64",
            U8 => "u8",
            U16 => "u16",
            U32 => "u32",
            U64 => "u64",
            F16 => "f16",
            BF16 => "bf16",
            F32 => "f32",
            F64 => "f64",
            C64 => "c64",
            C128 => "c128",
        }
    }

    /// The type in which products are summed, and in which intermediate results of a longer contraction are kept.
    ///
    /// Half types sum in `f32`; all others in themselves: integers wrap, as in NumPy, and `bool` is "or".
    pub const fn accumulator(self) -> DType {
        match self {
            F16 | BF16 => F32,
            other => other,
        }
    }

    /// True for the signed and unsigned integers (not for `bool`).
    pub const fn is_integer(self) -> bool {
        matches!(self, I8 | I16 | I32 | I64 | U8 | U16 | U32 | U64)
    }

    /// True for `i8` … `i64`.
    pub const fn is_signed_integer(self) -> bool {
        matches!(self, I8 | I16 | I32 | I64)
    }

    /// True for real floating-point types.
    pub const fn is_float(self) -> bool {
        matches!(self, F16 | BF16 | F32 | F64)
    }

    /// True for complex types.
    pub const fn is_complex(self) -> bool {
        matches!(self, C64 | C128)
    }

    /// The smallest type that holds both, by NumPy's rules.
    pub fn promote(self, other: DType) -> DType {
        let (a, b) = if self <= other { (self, other) } else { (other, self) };
        if a == b || a == Bool {
            return b;
        }
        match (a, b) {
            // Both are integers: `a` is the signed one when they differ in sign, by the order of the enum.
            (a, b) if a.is_integer() && b.is_integer() => {
                if a.is_signed_integer() == b.is_signed_integer() {
                    return if a.bytes() >= b.bytes() { a } else { b };
                }
                match a.bytes().max(2 * b.bytes()) {
                    2 => I16,
                    4 => I32,
                    8 => I64,
                    _ => F64,
                }
            }
            (a, b) if a.is_integer() => float_holding(a).promote(b),
            (F16, BF16) => F32,
            (F64, C64) => C128,
            _ => b,
        }
    }

    /// True where NumPy's `casting="safe"` allows a conversion.
    pub fn can_cast_safely(self, to: DType) -> bool {
        self.promote(to) == to
    }

    /// True where NumPy's `casting="same_kind"` allows a conversion: never from complex to real, float to integer,
    /// or anything to `bool`.
    pub fn can_cast_same_kind(self, to: DType) -> bool {
        let rank = |dtype: DType| match dtype {
            Bool => 0,
            U8 | U16 | U32 | U64 => 1,
            I8 | I16 | I32 | I64 => 2,
            F16 | BF16 | F32 | F64 => 3,
            C64 | C128 => 4,
        };
        rank(self) <= rank(to)
    }
}

/// The floating-point type that NumPy pairs with an integer type before it promotes.
fn float_holding(integer: DType) -> DType {
    match integer.bytes() {
        1 => F16,
        2 => F32,
        _ => F64,
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = String;

    /// Reads the short names and those of NumPy and torch (`float32`, `complex64`, `bfloat16`, …).
    fn from_str(text: &str) -> Result<Self, String> {
        let short = match text {
            "float16" | "half" => "f16",
            "bfloat16" => "bf16",
            "float32" | "float" => "f32",
            "float64" | "double" => "f64",
            "complex64" => "c64",
            "complex128" => "c128",
            "int8" => "i8",
            "int16" => "i16",
            "int32" => "i32",
            "int64" => "i64",
            "uint8" => "u8",
            "uint16" => "u16",
            "uint32" => "u32",
            "uint64" => "u64",
            other => other,
        };
        DType::ALL.into_iter().find(|dtype| dtype.name() == short).ok_or_else(|| format!("unknown dtype `{text}`"))
    }
}

/// A truth value in one byte of any content: zero is false, everything else is true.
///
/// Foreign memory may hold bytes other than 0 and 1, which a Rust `bool` must not.
#[derive(Clone, Copy, Debug, Default)]
#[repr(transparent)]
pub struct Bool8(pub u8);

impl Bool8 {
    /// The truth value.
    pub const fn get(self) -> bool {
        self.0 != 0
    }
}

impl From<bool> for Bool8 {
    fn from(value: bool) -> Self {
        Bool8(value as u8)
    }
}

impl PartialEq for Bool8 {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that is the memory of one [`DType`].
///
/// Sealed: the kernels rely on size, and on zero bytes being a valid value. All but `bool` accept any bytes; views of
/// foreign memory with dtype [`DType::Bool`] are read as [`Bool8`].
pub trait Element: Copy + Default + Send + Sync + fmt::Debug + sealed::Sealed + 'static {
    /// The element type.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),* $(,)?) => {$(
        impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}

elements! {
    bool => Bool, Bool8 => Bool,
    i8 => I8, i16 => I16, i32 => I32, i64 => I64,
    u8 => U8, u16 => U16, u32 => U32, u64 => U64,
    f16 => F16, bf16 => BF16, f32 => F32, f64 => F64,
    Complex<f32> => C64, Complex<f64> => C128,
}

/// Runs one expression for the Rust type of a [`DType`]: `with_element!(dtype, T => run::<T>())`.
///
/// [`DType::Bool`] becomes [`Bool8`].
#[macro_export]
macro_rules! with_element {
    ($dtype:expr, $T:ident => $body:expr) => {{
        #[allow(unused_imports)]
        use $crate::DType as __D;
        match $dtype {
            __D::Bool => {
                type $T = $crate::Bool8;
                $body
            }
            __D::I8 => {
                type $T = i8;
                $body
            }
            __D::I16 => {
                type $T = i16;
                $body
            }
            __D::I32 => {
                type $T = i32;
                $body
            }
            __D::I64 => {
                type $T = i64;
                $body
            }
            __D::U8 => {
                type $T = u8;
                $body
            }
            __D::U16 => {
                type $T = u16;
                $body
            }
            __D::U32 => {
                type $T = u32;
                $body
            }
            __D::U64 => {
                type $T = u64;
                $body
            }
            __D::F16 => {
                type $T = $crate::half::f16;
                $body
            }
            __D::BF16 => {
                type $T = $crate::half::bf16;
                $body
            }
            __D::F32 => {
                type $T = f32;
                $body
            }
            __D::F64 => {
                type $T = f64;
                $body
            }
            __D::C64 => {
                type $T = $crate::num_complex::Complex<f32>;
                $body
            }
            __D::C128 => {
                type $T = $crate::num_complex::Complex<f64>;
                $body
            }
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NumPy 2.4 `np.promote_types` over every pair that NumPy has, in the order of `DType::ALL` without `bf16`.
    const NUMPY: [&str; 14] = [
        "bool i8 i16 i32 i64 u8 u16 u32 u64 f16 f32 f64 c64 c128",
        "i8 i8 i16 i32 i64 i16 i32 i64 f64 f16 f32 f64 c64 c128",
        "i16 i16 i16 i32 i64 i16 i32 i64 f64 f32 f32 f64 c64 c128",
        "i32 i32 i32 i32 i64 i32 i32 i64 f64 f64 f64 f64 c128 c128",
        "i64 i64 i64 i64 i64 i64 i64 i64 f64 f64 f64 f64 c128 c128",
        "u8 i16 i16 i32 i64 u8 u16 u32 u64 f16 f32 f64 c64 c128",
        "u16 i32 i32 i32 i64 u16 u16 u32 u64 f32 f32 f64 c64 c128",
        "u32 i64 i64 i64 i64 u32 u32 u32 u64 f64 f64 f64 c128 c128",
        "u64 f64 f64 f64 f64 u64 u64 u64 u64 f64 f64 f64 c128 c128",
        "f16 f16 f32 f64 f64 f16 f32 f64 f64 f16 f32 f64 c64 c128",
        "f32 f32 f32 f64 f64 f32 f32 f64 f64 f32 f32 f64 c64 c128",
        "f64 f64 f64 f64 f64 f64 f64 f64 f64 f64 f64 f64 c128 c128",
        "c64 c64 c64 c128 c128 c64 c64 c128 c128 c64 c64 c128 c64 c128",
        "c128 c128 c128 c128 c128 c128 c128 c128 c128 c128 c128 c128 c128 c128",
    ];

    #[test]
    fn promotion_is_numpys_for_every_pair() {
        let known: Vec<DType> = DType::ALL.into_iter().filter(|&d| d != BF16).collect();
        for (row, &a) in known.iter().enumerate() {
            for (expected, &b) in NUMPY[row].split(' ').zip(&known) {
                assert_eq!(a.promote(b).name(), expected, "{a} with {b}");
            }
        }
    }

    #[test]
    fn bf16_promotes_like_f16_but_never_to_it() {
        assert_eq!(BF16.promote(F16), F32);
        assert_eq!(I8.promote(BF16), F32);
        assert_eq!(BF16.promote(F32), F32);
        assert_eq!(BF16.promote(BF16), BF16);
        assert_eq!(BF16.promote(C64), C64);
        assert_eq!(Bool.promote(BF16), BF16);
    }

    #[test]
    fn names_round_trip() {
        for dtype in DType::ALL {
            assert_eq!(dtype.name().parse(), Ok(dtype));
        }
        assert_eq!("bfloat16".parse(), Ok(BF16));
        assert!("float99".parse::<DType>().is_err());
    }
}
