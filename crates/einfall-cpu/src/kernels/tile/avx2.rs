//! The micro-kernel with AVX2 and FMA: 8 lanes of 32 bits.

use std::arch::x86_64::*;

use num_complex::Complex;

use super::{Bit, MAX_LANES, Tile, TileKernel, Vector, entries, multiply};

/// # Safety
/// As for [`super::TileFn`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn entry<V: Vector, const H: usize, const W: usize, const PACKED: bool>(tile: &Tile<V::Elem>) {
    // SAFETY: TileFn's ranges, passed on; the features of `V` are enabled here.
    unsafe { multiply::<V, H, W, PACKED>(tile) }
}

/// Loads, stores and a transposition for elements of `$parts` units of 32 bits. Masked stores are microcoded on some
/// machines, but still no slower than single elements.
macro_rules! memory {
    ($elem:ty, $scalar:ty, $lanes:literal, $parts:literal, $zero:ident, $load:ident, $store:ident, $bits:expr,
     $network:ident) => {
        type Elem = $elem;
        type Mask = __m256i;
        const LANES: usize = $lanes;
        const MASKS: bool = true;
        const FREE_MASKS: bool = false;

        #[inline(always)]
        unsafe fn mask(lanes: usize) -> __m256i {
            // SAFETY: the instruction set is available.
            unsafe {
                let units = _mm256_set1_epi32((lanes * $parts) as i32);
                _mm256_cmpgt_epi32(units, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
            }
        }
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the instruction set is available.
            Self(unsafe { $zero() })
        }
        #[inline(always)]
        unsafe fn load(from: *const $elem) -> Self {
            // SAFETY: the caller's range.
            Self(unsafe { $load(from.cast::<$scalar>()) })
        }
        #[inline(always)]
        unsafe fn load_masked(from: *const $elem, mask: __m256i) -> Self {
            // SAFETY: the caller's range; lanes outside the mask are not touched.
            #[allow(unused_unsafe)]
            Self(unsafe { $bits(_mm256_maskload_ps(from.cast(), mask)) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut $elem) {
            // SAFETY: the caller's range.
            unsafe { $store(to.cast::<$scalar>(), self.0) }
        }
        #[inline(always)]
        unsafe fn store_masked(self, to: *mut $elem, mask: __m256i) {
            // SAFETY: the caller's range; lanes outside the mask are not touched.
            unsafe { _mm256_maskstore_ps(to.cast(), mask, self.bits()) }
        }
        #[inline(always)]
        unsafe fn transpose(rows: &[*const Self::Elem; MAX_LANES], len: usize, to: *mut Self::Elem, stride: usize) {
            // SAFETY: the caller's ranges: `len` elements of each row, `LANES` at each `to + p·stride`.
            unsafe {
                let mask = Self::mask(len);
                let mut block = [_mm256_setzero_ps(); $lanes];
                for (vector, row) in block.iter_mut().zip(rows) {
                    let loaded = if len == $lanes { Self::load(*row) } else { Self::load_masked(*row, mask) };
                    *vector = loaded.bits();
                }
                let block = $network(block);
                for (p, vector) in block.into_iter().enumerate() {
                    if p < len {
                        _mm256_storeu_ps(to.add(p * stride).cast(), vector);
                    }
                }
            }
        }
    };
}

/// Sums that need one register.
macro_rules! real {
    ($register:ty, $broadcast:expr, |$sum:ident, $a:ident, $b:ident| $multiply_add:expr, $plus:ident) => {
        type Left = $register;
        type Sum = Self;

        #[inline(always)]
        unsafe fn empty() -> Self {
            // SAFETY: the instruction set is available.
            unsafe { Self::zero() }
        }
        #[inline(always)]
        unsafe fn broadcast(from: *const Self::Elem) -> $register {
            // SAFETY: the caller's element.
            unsafe { $broadcast(from.cast::<_>()) }
        }
        #[inline(always)]
        unsafe fn multiply_add($sum: Self, $a: $register, $b: Self) -> Self {
            let ($sum, $b) = ($sum.0, $b.0);
            // SAFETY: the instruction set is available.
            Self(unsafe { $multiply_add })
        }
        #[inline(always)]
        unsafe fn finish(sum: Self) -> Self {
            sum
        }
        #[inline(always)]
        unsafe fn plus(self, other: Self) -> Self {
            // SAFETY: the instruction set is available.
            Self(unsafe { $plus(self.0, other.0) })
        }
    };
}

/// Sums of complex numbers, `(re, im)` interleaved: real and imaginary part of A multiply the same vector of B into two
/// sums, so that nothing is shuffled before the end.
macro_rules! complex {
    ($register:ty, $real:ty, $set1:ident, $setzero:ident, $fmadd:ident, $addsub:ident, $add:ident, $swap:expr) => {
        type Left = ($register, $register);
        type Sum = ($register, $register);

        #[inline(always)]
        unsafe fn empty() -> Self::Sum {
            // SAFETY: the instruction set is available.
            unsafe { ($setzero(), $setzero()) }
        }
        #[inline(always)]
        unsafe fn broadcast(from: *const Self::Elem) -> Self::Left {
            let from = from.cast::<$real>();
            // SAFETY: the caller's element, which is two reals.
            unsafe { ($set1(*from), $set1(*from.add(1))) }
        }
        #[inline(always)]
        unsafe fn multiply_add(sum: Self::Sum, left: Self::Left, right: Self) -> Self::Sum {
            // SAFETY: the instruction set is available.
            unsafe { ($fmadd(left.0, right.0, sum.0), $fmadd(left.1, right.0, sum.1)) }
        }
        #[inline(always)]
        unsafe fn finish(sum: Self::Sum) -> Self {
            // SAFETY: the instruction set is available.
            Self(unsafe { $addsub(sum.0, $swap(sum.1)) })
        }
        #[inline(always)]
        unsafe fn plus(self, other: Self) -> Self {
            // SAFETY: the instruction set is available.
            Self(unsafe { $add(self.0, other.0) })
        }
    };
}

#[inline(always)]
unsafe fn low_pairs(a: __m256, b: __m256) -> __m256 {
    // SAFETY: the instruction set is available.
    unsafe { _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b))) }
}

#[inline(always)]
unsafe fn high_pairs(a: __m256, b: __m256) -> __m256 {
    // SAFETY: the instruction set is available.
    unsafe { _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b))) }
}

#[inline(always)]
unsafe fn transpose_32(r: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: the instruction set is available.
    unsafe {
        let mut out = r;
        let mut quads = r;
        for g in 0..2 {
            let (a, b, c, d) = (r[4 * g], r[4 * g + 1], r[4 * g + 2], r[4 * g + 3]);
            let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (low_2, high_2) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            quads[4 * g] = low_pairs(low, low_2);
            quads[4 * g + 1] = high_pairs(low, low_2);
            quads[4 * g + 2] = low_pairs(high, high_2);
            quads[4 * g + 3] = high_pairs(high, high_2);
        }
        for c in 0..4 {
            out[c] = _mm256_permute2f128_ps::<0x20>(quads[c], quads[4 + c]);
            out[4 + c] = _mm256_permute2f128_ps::<0x31>(quads[c], quads[4 + c]);
        }
        out
    }
}

#[inline(always)]
unsafe fn transpose_64(r: [__m256; 4]) -> [__m256; 4] {
    // SAFETY: the instruction set is available.
    unsafe {
        let (even, odd) = (low_pairs(r[0], r[1]), high_pairs(r[0], r[1]));
        let (even_2, odd_2) = (low_pairs(r[2], r[3]), high_pairs(r[2], r[3]));
        [
            _mm256_permute2f128_ps::<0x20>(even, even_2),
            _mm256_permute2f128_ps::<0x20>(odd, odd_2),
            _mm256_permute2f128_ps::<0x31>(even, even_2),
            _mm256_permute2f128_ps::<0x31>(odd, odd_2),
        ]
    }
}

#[inline(always)]
unsafe fn transpose_128(r: [__m256; 2]) -> [__m256; 2] {
    // SAFETY: the instruction set is available.
    unsafe { [_mm256_permute2f128_ps::<0x20>(r[0], r[1]), _mm256_permute2f128_ps::<0x31>(r[0], r[1])] }
}

/// The low 64 bits of each product: three 32-bit products, since there is no 64-bit one.
#[inline(always)]
unsafe fn multiply_i64(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the instruction set is available.
    unsafe {
        let cross = _mm256_mullo_epi32(a, _mm256_shuffle_epi32::<0xb1>(b));
        let cross = _mm256_add_epi32(cross, _mm256_srli_epi64::<32>(cross));
        _mm256_add_epi64(_mm256_mul_epu32(a, b), _mm256_slli_epi64::<32>(cross))
    }
}

macro_rules! vectors {
    ($($(#[$doc:meta])* $name:ident($register:ty), $bits:expr, $tall:tt;)+) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy)]
            pub struct $name($register);

            impl $name {
                #[inline(always)]
                unsafe fn bits(self) -> __m256 {
                    // SAFETY: the instruction set is available.
                    #[allow(unused_unsafe)]
                    unsafe { $bits(self.0) }
                }
            }

            vectors!(@kernel $name, $tall);
        )+
    };
    (@kernel $name:ident, float) => {
        impl $name {
            pub const KERNEL: TileKernel<<$name as Vector>::Elem> = TileKernel {
                lanes: <$name as Vector>::LANES,
                masks: true,
                packed: entries!(entry, $name, true; 1: 1 2 3 4 5 6 7 8; 2: 1 2 3 4 5 6),
                direct: entries!(entry, $name, false; 1: 1 2 3 4 5 6 7 8; 2: 1 2 3 4 5 6),
            };
        }
    };
    (@kernel $name:ident, integer) => {
        impl $name {
            pub const KERNEL: TileKernel<<$name as Vector>::Elem> = TileKernel {
                lanes: <$name as Vector>::LANES,
                masks: true,
                packed: entries!(entry, $name, true; 1: 1 2 3 4 5; 2: 1 2 3 4 5),
                direct: &[],
            };
        }
    };
    (@kernel $name:ident, complex) => {
        impl $name {
            pub const KERNEL: TileKernel<<$name as Vector>::Elem> = TileKernel {
                lanes: <$name as Vector>::LANES,
                masks: true,
                packed: entries!(entry, $name, true; 1: 1 2 3; 2: 1 2 3),
                direct: &[],
            };
        }
    };
}

vectors! {
    /// 8 × f32.
    F32x8(__m256), std::convert::identity, float;
    /// 4 × f64.
    F64x4(__m256d), _mm256_castpd_ps, float;
    /// 8 × i32, wrapping.
    I32x8(__m256i), _mm256_castsi256_ps, integer;
    /// 4 × i64, wrapping.
    I64x4(__m256i), _mm256_castsi256_ps, integer;
    /// 8 truth values.
    B32x8(__m256i), _mm256_castsi256_ps, integer;
    /// 4 complex numbers of two f32.
    C32x4(__m256), std::convert::identity, complex;
    /// 2 complex numbers of two f64.
    C64x2(__m256d), _mm256_castpd_ps, complex;
}

// SAFETY: (all impls) `memory!` touches only the lanes of the mask.
unsafe impl Vector for F32x8 {
    memory!(f32, f32, 8, 1, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, std::convert::identity, transpose_32);
    real!(__m256, |from: *const f32| _mm256_set1_ps(*from), |sum, a, b| _mm256_fmadd_ps(a, b, sum), _mm256_add_ps);
}

// SAFETY: as above.
unsafe impl Vector for F64x4 {
    memory!(f64, f64, 4, 2, _mm256_setzero_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_castps_pd, transpose_64);
    real!(__m256d, |from: *const f64| _mm256_set1_pd(*from), |sum, a, b| _mm256_fmadd_pd(a, b, sum), _mm256_add_pd);
}

// SAFETY: as above.
unsafe impl Vector for I32x8 {
    memory!(
        i32,
        __m256i,
        8,
        1,
        _mm256_setzero_si256,
        _mm256_loadu_si256,
        _mm256_storeu_si256,
        _mm256_castps_si256,
        transpose_32
    );
    real!(
        __m256i,
        |from: *const i32| _mm256_set1_epi32(*from),
        |sum, a, b| _mm256_add_epi32(sum, _mm256_mullo_epi32(a, b)),
        _mm256_add_epi32
    );
}

// SAFETY: as above.
unsafe impl Vector for I64x4 {
    memory!(
        i64,
        __m256i,
        4,
        2,
        _mm256_setzero_si256,
        _mm256_loadu_si256,
        _mm256_storeu_si256,
        _mm256_castps_si256,
        transpose_64
    );
    real!(
        __m256i,
        |from: *const i64| _mm256_set1_epi64x(*from),
        |sum, a, b| _mm256_add_epi64(sum, multiply_i64(a, b)),
        _mm256_add_epi64
    );
}

// SAFETY: as above; `Bit` is a transparent 32-bit integer.
unsafe impl Vector for B32x8 {
    memory!(
        Bit,
        __m256i,
        8,
        1,
        _mm256_setzero_si256,
        _mm256_loadu_si256,
        _mm256_storeu_si256,
        _mm256_castps_si256,
        transpose_32
    );
    real!(
        __m256i,
        |from: *const i32| _mm256_set1_epi32(*from),
        |sum, a, b| _mm256_or_si256(sum, _mm256_and_si256(a, b)),
        _mm256_or_si256
    );
}

// SAFETY: as above; `Complex` is two reals in order.
unsafe impl Vector for C32x4 {
    memory!(
        Complex<f32>,
        f32,
        4,
        2,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        std::convert::identity,
        transpose_64
    );
    complex!(
        __m256,
        f32,
        _mm256_set1_ps,
        _mm256_setzero_ps,
        _mm256_fmadd_ps,
        _mm256_addsub_ps,
        _mm256_add_ps,
        _mm256_permute_ps::<0xb1>
    );
}

// SAFETY: as above.
unsafe impl Vector for C64x2 {
    memory!(
        Complex<f64>,
        f64,
        2,
        4,
        _mm256_setzero_pd,
        _mm256_loadu_pd,
        _mm256_storeu_pd,
        _mm256_castps_pd,
        transpose_128
    );
    complex!(
        __m256d,
        f64,
        _mm256_set1_pd,
        _mm256_setzero_pd,
        _mm256_fmadd_pd,
        _mm256_addsub_pd,
        _mm256_add_pd,
        _mm256_permute_pd::<0x5>
    );
}
