//! The dtypes of rows: how each is widened, multiplied and summed, and which instruction sets have kernels for it.

use einfall_tensor::half::{bf16, f16};
use einfall_tensor::num_complex::Complex;
use einfall_tensor::{Bool8, Element};

use super::{Axpys, Dots, MultiAxpys, MultiDots, PairedDots, Scatter, portable};
use crate::isa::Isa;

#[cfg(target_arch = "aarch64")]
use super::neon;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// An element type that rows may have.
///
/// Sums run in [`RowElement::Acc`]: `f32` for `f16` and `bf16`, else the type itself, where integers wrap and `bool`
/// is "or" of "and".
pub trait RowElement: Element + Kernels<Self> {
    /// The type of a sum of products.
    type Acc: RowElement<Acc = Self::Acc>;
    /// The empty sum.
    const ZERO: Self::Acc;

    /// The element as a number of the accumulator.
    fn widen(self) -> Self::Acc;
    /// `a * b`.
    fn mul(a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// `a + b`.
    fn add(a: Self::Acc, b: Self::Acc) -> Self::Acc;
}

/// A weight of an axpy over rows of `T`: an element, or a number of the accumulator (the outcome of a softmax, say).
pub trait RowWeight<T: RowElement>: Copy {
    /// Whether the weight is an element of the rows' dtype, to be widened.
    const IS_ELEMENT: bool;
}

impl<T: RowElement> RowWeight<T> for T {
    const IS_ELEMENT: bool = true;
}

impl RowWeight<f16> for f32 {
    const IS_ELEMENT: bool = false;
}

impl RowWeight<bf16> for f32 {
    const IS_ELEMENT: bool = false;
}

/// The kernels of one dtype; each method picks the entry function of the instruction set.
///
/// # Safety
/// Those of the public functions of [`super`]; `lists` and the like are passed on as they are.
#[doc(hidden)]
pub trait Kernels<T: RowElement> {
    unsafe fn dots(isa: Isa, call: &Dots<T>);
    unsafe fn paired_dots(isa: Isa, call: &PairedDots<T>);
    unsafe fn multi_dots(isa: Isa, call: &MultiDots<T>);
    unsafe fn axpys<W: RowWeight<T>>(isa: Isa, call: &Axpys<T, W>);
    unsafe fn multi_axpys<W: RowWeight<T>>(isa: Isa, call: &MultiAxpys<T, W>);
    unsafe fn scatter(isa: Isa, call: &Scatter<T>);
}

/// Implements [`Kernels`]: `T, x86: lanes, aarch64: lanes`, or `T` alone for the portable kernels.
macro_rules! kernels {
    ($T:ty $(, x86: $X:ident)? $(, aarch64: $A:ident)?) => {
        impl Kernels<$T> for $T {
            unsafe fn dots(isa: Isa, call: &Dots<$T>) {
                kernels!(@match isa, call, dots, $T, ($($X)?), ($($A)?))
            }
            unsafe fn paired_dots(isa: Isa, call: &PairedDots<$T>) {
                kernels!(@match isa, call, paired_dots, $T, ($($X)?), ($($A)?))
            }
            unsafe fn multi_dots(isa: Isa, call: &MultiDots<$T>) {
                kernels!(@match isa, call, multi_dots, $T, ($($X)?), ($($A)?))
            }
            unsafe fn axpys<W: RowWeight<$T>>(isa: Isa, call: &Axpys<$T, W>) {
                kernels!(@match isa, call, axpys, $T, ($($X)?), ($($A)?))
            }
            unsafe fn multi_axpys<W: RowWeight<$T>>(isa: Isa, call: &MultiAxpys<$T, W>) {
                kernels!(@match isa, call, multi_axpys, $T, ($($X)?), ($($A)?))
            }
            unsafe fn scatter(isa: Isa, call: &Scatter<$T>) {
                kernels!(@match isa, call, scatter, $T, ($($X)?), ($($A)?))
            }
        }
    };
    (@match $isa:ident, $call:ident, $f:ident, $T:ty, ($($X:ident)?), ($($A:ident)?)) => {
        match $isa {
            $(
                // SAFETY: an `Isa` promises its instructions; the caller keeps the rules of the public function.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => unsafe { avx512::$f(avx512::$X, $call) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2::$f(avx2::$X, $call) },
            )?
            $(
                // SAFETY: as above.
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => unsafe { neon::$f(neon::$A, $call) },
            )?
            // SAFETY: the caller keeps the rules of the public function.
            _ => unsafe { portable::$f(portable::Array::<$T>::new(), $call) },
        }
    };
}

kernels!(f32, x86: F32, aarch64: F32);
kernels!(f64, x86: F64, aarch64: F64);
kernels!(f16, x86: F16);
kernels!(bf16, x86: BF16);

macro_rules! elements {
    ($($T:ty => $Acc:ty, $zero:expr; |$x:ident| $widen:expr; |$a:ident, $b:ident| $mul:expr, $add:expr;)*) => {$(
        impl RowElement for $T {
            type Acc = $Acc;
            const ZERO: $Acc = $zero;

            #[inline(always)]
            fn widen(self) -> $Acc {
                let $x = self;
                $widen
            }

            #[inline(always)]
            fn mul($a: $Acc, $b: $Acc) -> $Acc {
                $mul
            }

            #[inline(always)]
            fn add($a: $Acc, $b: $Acc) -> $Acc {
                $add
            }
        }
    )*};
}

elements! {
    f16 => f32, 0.0; |x| x.to_f32(); |a, b| a * b, a + b;
    bf16 => f32, 0.0; |x| x.to_f32(); |a, b| a * b, a + b;
    f32 => f32, 0.0; |x| x; |a, b| a * b, a + b;
    f64 => f64, 0.0; |x| x; |a, b| a * b, a + b;
    bool => bool, false; |x| x; |a, b| a & b, a | b;
    Bool8 => Bool8, Bool8(0); |x| Bool8(x.get() as u8); |a, b| Bool8(a.0 & b.0), Bool8(a.0 | b.0);
    Complex<f32> => Complex<f32>, Complex::new(0.0, 0.0); |x| x; |a, b| a * b, a + b;
    Complex<f64> => Complex<f64>, Complex::new(0.0, 0.0); |x| x; |a, b| a * b, a + b;
}

macro_rules! integers {
    ($($T:ty),*) => {
        elements! {$(
            $T => $T, 0; |x| x; |a, b| a.wrapping_mul(b), a.wrapping_add(b);
        )*}
    };
}

integers!(i8, i16, i32, i64, u8, u16, u32, u64);

macro_rules! portable_kernels {
    ($($T:ty),*) => {$(kernels!($T);)*};
}

portable_kernels!(bool, Bool8, i8, i16, i32, i64, u8, u16, u32, u64, Complex<f32>, Complex<f64>);
