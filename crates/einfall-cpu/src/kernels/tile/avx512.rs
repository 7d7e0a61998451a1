//! The micro-kernel with AVX-512: 16 lanes of 32 bits, masks on every load and store.

use std::arch::x86_64::*;

use num_complex::Complex;

use super::{Bit, MAX_LANES, Tile, TileKernel, Vector, entries, multiply};

/// # Safety
/// As for [`super::TileFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
unsafe fn entry<V: Vector, const H: usize, const W: usize, const PACKED: bool>(tile: &Tile<V::Elem>) {
    // SAFETY: TileFn's ranges, passed on; the features of `V` are enabled here.
    unsafe { multiply::<V, H, W, PACKED>(tile) }
}

/// Loads, stores and masks of a register that holds `$lanes` elements of `$parts` scalars.
macro_rules! memory {
    ($elem:ty, $scalar:ty, $lanes:literal, $parts:literal, $mask:ty, $zero:ident,
     $load:ident, $load_masked:ident, $store:ident, $store_masked:ident) => {
        type Elem = $elem;
        type Mask = $mask;
        const LANES: usize = $lanes;
        const MASKS: bool = true;
        const FREE_MASKS: bool = true;

        #[inline(always)]
        unsafe fn mask(lanes: usize) -> $mask {
            ((1u32 << (lanes * $parts)) - 1) as $mask
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
        unsafe fn load_masked(from: *const $elem, mask: $mask) -> Self {
            // SAFETY: the caller's range; lanes outside the mask are not touched.
            Self(unsafe { $load_masked(mask, from.cast::<$scalar>()) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut $elem) {
            // SAFETY: the caller's range.
            unsafe { $store(to.cast::<$scalar>(), self.0) }
        }
        #[inline(always)]
        unsafe fn store_masked(self, to: *mut $elem, mask: $mask) {
            // SAFETY: the caller's range; lanes outside the mask are not touched.
            unsafe { $store_masked(to.cast::<$scalar>(), mask, self.0) }
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
    ($register:ty, $real:ty, $set1:ident, $setzero:ident, $fmadd:ident, $fmaddsub:ident, $add:ident,
     $swap:expr) => {
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
            Self(unsafe { $fmaddsub(sum.0, $set1(1.0), $swap(sum.1)) })
        }
        #[inline(always)]
        unsafe fn plus(self, other: Self) -> Self {
            // SAFETY: the instruction set is available.
            Self(unsafe { $add(self.0, other.0) })
        }
    };
}

/// Transposition of `LANES × LANES` elements, whatever their type.
macro_rules! transpose {
    ($lanes:literal, $load:ident, $store:ident, $network:ident) => {
        #[inline(always)]
        unsafe fn transpose(rows: &[*const Self::Elem; MAX_LANES], len: usize, to: *mut Self::Elem, stride: usize) {
            // SAFETY: the caller's ranges: `len` elements of each row, `LANES` at each `to + p·stride`.
            unsafe {
                let mask = Self::mask(len);
                let mut block = [$load(); $lanes];
                for (vector, row) in block.iter_mut().zip(rows) {
                    *vector = Self::load_masked(*row, mask).bits();
                }
                let block = $network(block);
                for (p, vector) in block.into_iter().enumerate() {
                    if p < len {
                        $store(to.add(p * stride).cast(), vector);
                    }
                }
            }
        }
    };
}

/// Lane `l` of each argument, for l = 0, 1, 2, 3.
#[inline(always)]
unsafe fn quarters(a: __m512, b: __m512, c: __m512, d: __m512) -> [__m512; 4] {
    // SAFETY: the instruction set is available.
    unsafe {
        let (even, odd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        let (even_2, odd_2) = (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
        [
            _mm512_shuffle_f32x4::<0x88>(even, even_2),
            _mm512_shuffle_f32x4::<0x88>(odd, odd_2),
            _mm512_shuffle_f32x4::<0xdd>(even, even_2),
            _mm512_shuffle_f32x4::<0xdd>(odd, odd_2),
        ]
    }
}

#[inline(always)]
unsafe fn low_pairs(a: __m512, b: __m512) -> __m512 {
    // SAFETY: the instruction set is available.
    unsafe { _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))) }
}

#[inline(always)]
unsafe fn high_pairs(a: __m512, b: __m512) -> __m512 {
    // SAFETY: the instruction set is available.
    unsafe { _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))) }
}

#[inline(always)]
unsafe fn transpose_32(r: [__m512; 16]) -> [__m512; 16] {
    // SAFETY: the instruction set is available.
    unsafe {
        let mut out = r;
        let mut quads = r;
        for g in 0..4 {
            let (a, b, c, d) = (r[4 * g], r[4 * g + 1], r[4 * g + 2], r[4 * g + 3]);
            let (low, high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let (low_2, high_2) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            quads[4 * g] = low_pairs(low, low_2);
            quads[4 * g + 1] = high_pairs(low, low_2);
            quads[4 * g + 2] = low_pairs(high, high_2);
            quads[4 * g + 3] = high_pairs(high, high_2);
        }
        for c in 0..4 {
            let lanes = quarters(quads[c], quads[4 + c], quads[8 + c], quads[12 + c]);
            for (l, lane) in lanes.into_iter().enumerate() {
                out[4 * l + c] = lane;
            }
        }
        out
    }
}

#[inline(always)]
unsafe fn transpose_64(r: [__m512; 8]) -> [__m512; 8] {
    // SAFETY: the instruction set is available.
    unsafe {
        let mut out = r;
        let mut pairs = r;
        for g in 0..4 {
            pairs[2 * g] = low_pairs(r[2 * g], r[2 * g + 1]);
            pairs[2 * g + 1] = high_pairs(r[2 * g], r[2 * g + 1]);
        }
        for c in 0..2 {
            let lanes = quarters(pairs[c], pairs[2 + c], pairs[4 + c], pairs[6 + c]);
            for (l, lane) in lanes.into_iter().enumerate() {
                out[2 * l + c] = lane;
            }
        }
        out
    }
}

#[inline(always)]
unsafe fn transpose_128(r: [__m512; 4]) -> [__m512; 4] {
    // SAFETY: the instruction set is available.
    unsafe { quarters(r[0], r[1], r[2], r[3]) }
}

macro_rules! vectors {
    ($($(#[$doc:meta])* $name:ident($register:ty), $bits:expr, $tall:tt;)+) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy)]
            pub struct $name($register);

            impl $name {
                #[inline(always)]
                unsafe fn bits(self) -> __m512 {
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
                packed: entries!(entry, $name, true;
                    1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16;
                    2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14;
                    3: 1 2 3 4 5 6 7 8 9;
                    4: 1 2 3 4 5 6),
                direct: entries!(entry, $name, false;
                    1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16;
                    2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14;
                    3: 1 2 3 4 5 6 7 8 9;
                    4: 1 2 3 4 5 6),
            };
        }
    };
    (@kernel $name:ident, integer) => {
        impl $name {
            pub const KERNEL: TileKernel<<$name as Vector>::Elem> = TileKernel {
                lanes: <$name as Vector>::LANES,
                masks: true,
                packed: entries!(entry, $name, true; 1: 1 2 3 4 5 6 7 8 9 10; 2: 1 2 3 4 5 6 7 8 9 10),
                direct: &[],
            };
        }
    };
    (@kernel $name:ident, complex) => {
        impl $name {
            pub const KERNEL: TileKernel<<$name as Vector>::Elem> = TileKernel {
                lanes: <$name as Vector>::LANES,
                masks: true,
                packed: entries!(entry, $name, true; 1: 1 2 3 4 5 6 7 8; 2: 1 2 3 4 5 6),
                direct: &[],
            };
        }
    };
}

vectors! {
    /// 16 × f32.
    F32x16(__m512), std::convert::identity, float;
    /// 8 × f64.
    F64x8(__m512d), _mm512_castpd_ps, float;
    /// 16 × i32, wrapping.
    I32x16(__m512i), _mm512_castsi512_ps, integer;
    /// 8 × i64, wrapping.
    I64x8(__m512i), _mm512_castsi512_ps, integer;
    /// 16 truth values.
    B32x16(__m512i), _mm512_castsi512_ps, integer;
    /// 8 complex numbers of two f32.
    C32x8(__m512), std::convert::identity, complex;
    /// 4 complex numbers of two f64.
    C64x4(__m512d), _mm512_castpd_ps, complex;
}

// SAFETY: (all impls) `memory!` touches only the lanes of the mask.
unsafe impl Vector for F32x16 {
    memory!(
        f32,
        f32,
        16,
        1,
        __mmask16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_maskz_loadu_ps,
        _mm512_storeu_ps,
        _mm512_mask_storeu_ps
    );
    real!(__m512, |from: *const f32| _mm512_set1_ps(*from), |sum, a, b| _mm512_fmadd_ps(a, b, sum), _mm512_add_ps);
    transpose!(16, _mm512_setzero_ps, _mm512_storeu_ps, transpose_32);
}

// SAFETY: as above.
unsafe impl Vector for F64x8 {
    memory!(
        f64,
        f64,
        8,
        1,
        __mmask8,
        _mm512_setzero_pd,
        _mm512_loadu_pd,
        _mm512_maskz_loadu_pd,
        _mm512_storeu_pd,
        _mm512_mask_storeu_pd
    );
    real!(__m512d, |from: *const f64| _mm512_set1_pd(*from), |sum, a, b| _mm512_fmadd_pd(a, b, sum), _mm512_add_pd);
    transpose!(8, _mm512_setzero_ps, _mm512_storeu_ps, transpose_64);
}

// SAFETY: as above.
unsafe impl Vector for I32x16 {
    memory!(
        i32,
        i32,
        16,
        1,
        __mmask16,
        _mm512_setzero_si512,
        _mm512_loadu_epi32,
        _mm512_maskz_loadu_epi32,
        _mm512_storeu_epi32,
        _mm512_mask_storeu_epi32
    );
    real!(
        __m512i,
        |from: *const i32| _mm512_set1_epi32(*from),
        |sum, a, b| _mm512_add_epi32(sum, _mm512_mullo_epi32(a, b)),
        _mm512_add_epi32
    );
    transpose!(16, _mm512_setzero_ps, _mm512_storeu_ps, transpose_32);
}

// SAFETY: as above.
unsafe impl Vector for I64x8 {
    memory!(
        i64,
        i64,
        8,
        1,
        __mmask8,
        _mm512_setzero_si512,
        _mm512_loadu_epi64,
        _mm512_maskz_loadu_epi64,
        _mm512_storeu_epi64,
        _mm512_mask_storeu_epi64
    );
    real!(
        __m512i,
        |from: *const i64| _mm512_set1_epi64(*from),
        |sum, a, b| _mm512_add_epi64(sum, _mm512_mullo_epi64(a, b)),
        _mm512_add_epi64
    );
    transpose!(8, _mm512_setzero_ps, _mm512_storeu_ps, transpose_64);
}

// SAFETY: as above; `Bit` is a transparent 32-bit integer.
unsafe impl Vector for B32x16 {
    memory!(
        Bit,
        i32,
        16,
        1,
        __mmask16,
        _mm512_setzero_si512,
        _mm512_loadu_epi32,
        _mm512_maskz_loadu_epi32,
        _mm512_storeu_epi32,
        _mm512_mask_storeu_epi32
    );
    real!(
        __m512i,
        |from: *const i32| _mm512_set1_epi32(*from),
        |sum, a, b| _mm512_or_si512(sum, _mm512_and_si512(a, b)),
        _mm512_or_si512
    );
    transpose!(16, _mm512_setzero_ps, _mm512_storeu_ps, transpose_32);
}

/// # Safety
/// As for [`super::TileFn`], on a processor with products of pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
unsafe fn pair_entry<V: Vector, const H: usize, const W: usize, const PACKED: bool>(tile: &Tile<V::Elem>) {
    // SAFETY: TileFn's ranges, passed on; the features of `V` are enabled here.
    unsafe { multiply::<V, H, W, PACKED>(tile) }
}

/// The micro-kernels of panels that hold two bf16 in the place of each f32.
pub const PAIRS: TileKernel<f32> = TileKernel {
    lanes: 16,
    masks: true,
    packed: entries!(pair_entry, Pairs32, true;
        1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16;
        2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14;
        3: 1 2 3 4 5 6 7 8 9;
        4: 1 2 3 4 5 6),
    direct: &[],
};

/// 16 sums in f32 of products of 32 bf16.
#[derive(Clone, Copy)]
pub struct Pairs32(__m512);

impl Pairs32 {
    #[inline(always)]
    unsafe fn bits(self) -> __m512 {
        self.0
    }
}

// SAFETY: as above.
unsafe impl Vector for Pairs32 {
    memory!(
        f32,
        f32,
        16,
        1,
        __mmask16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_maskz_loadu_ps,
        _mm512_storeu_ps,
        _mm512_mask_storeu_ps
    );
    real!(
        __m512,
        |from: *const i32| _mm512_castsi512_ps(_mm512_set1_epi32(from.read_unaligned())),
        |sum, a, b| _mm512_dpbf16_ps(
            sum,
            std::mem::transmute::<__m512, __m512bh>(a),
            std::mem::transmute::<__m512, __m512bh>(b)
        ),
        _mm512_add_ps
    );
    transpose!(16, _mm512_setzero_ps, _mm512_storeu_ps, transpose_32);
}

// SAFETY: as above; `Complex` is two reals in order.
unsafe impl Vector for C32x8 {
    memory!(
        Complex<f32>,
        f32,
        8,
        2,
        __mmask16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_maskz_loadu_ps,
        _mm512_storeu_ps,
        _mm512_mask_storeu_ps
    );
    complex!(
        __m512,
        f32,
        _mm512_set1_ps,
        _mm512_setzero_ps,
        _mm512_fmadd_ps,
        _mm512_fmaddsub_ps,
        _mm512_add_ps,
        _mm512_permute_ps::<0xb1>
    );
    transpose!(8, _mm512_setzero_ps, _mm512_storeu_ps, transpose_64);
}

// SAFETY: as above.
unsafe impl Vector for C64x4 {
    memory!(
        Complex<f64>,
        f64,
        4,
        2,
        __mmask8,
        _mm512_setzero_pd,
        _mm512_loadu_pd,
        _mm512_maskz_loadu_pd,
        _mm512_storeu_pd,
        _mm512_mask_storeu_pd
    );
    complex!(
        __m512d,
        f64,
        _mm512_set1_pd,
        _mm512_setzero_pd,
        _mm512_fmadd_pd,
        _mm512_fmaddsub_pd,
        _mm512_add_pd,
        _mm512_permute_pd::<0x55>
    );
    transpose!(4, _mm512_setzero_ps, _mm512_storeu_ps, transpose_128);
}
