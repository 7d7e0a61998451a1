//! Lanes of AVX-512: 16 sums of `f32`, or 8 of `f64`.
#![allow(unsafe_op_in_unsafe_fn)] // the invariants are those of `Lanes`

use std::arch::x86_64::*;

use einfall_tensor::half::{bf16, f16};

use super::lanes::{Lanes, Rows};

super::entry::entries!(#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]);

/// The lowest `n` lanes.
#[inline(always)]
fn head16(n: usize) -> __mmask16 {
    ((1_u32 << n) - 1) as __mmask16
}

#[inline(always)]
fn head8(n: usize) -> __mmask8 {
    ((1_u32 << n) - 1) as __mmask8
}

#[inline(always)]
fn head32(n: usize) -> __mmask32 {
    ((1_u64 << n) - 1) as __mmask32
}

// The tree over rows of 16 sums. Every level adds the two halves of what is left of a row, for two operands at once:
// neighbouring lanes first, because shuffles within 128 bits are the cheapest and the first levels have the most. The
// dots come out in order.

#[inline(always)]
unsafe fn add_neighbours(a: __m512, b: __m512) -> __m512 {
    _mm512_add_ps(_mm512_shuffle_ps::<0b10_00_10_00>(a, b), _mm512_shuffle_ps::<0b11_01_11_01>(a, b))
}

#[inline(always)]
unsafe fn add_quarters(a: __m512, b: __m512) -> __m512 {
    _mm512_add_ps(_mm512_shuffle_f32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b))
}

/// Every quarter holds partial sums of the four rows from `i` on.
#[inline(always)]
unsafe fn rows_4(rows: &impl Rows<__m512>, i: usize) -> __m512 {
    let low = add_neighbours(rows.row(i), rows.row(i + 1));
    add_neighbours(low, add_neighbours(rows.row(i + 2), rows.row(i + 3)))
}

#[inline(always)]
unsafe fn rows_8(rows: &impl Rows<__m512>, i: usize) -> __m512 {
    let low = rows_4(rows, i);
    add_quarters(low, rows_4(rows, i + 4))
}

#[inline(always)]
unsafe fn full_16(rows: &impl Rows<__m512>) -> __m512 {
    let low = rows_8(rows, 0);
    // Adding +0 turns a sum of nothing but −0 into the +0 that a sum from zero has.
    _mm512_add_ps(add_quarters(low, rows_8(rows, 8)), _mm512_setzero_ps())
}

#[inline(always)]
unsafe fn tail_4(rows: &impl Rows<__m512>) -> __m512 {
    let four = rows_4(rows, 0);
    let halves = add_quarters(four, four);
    _mm512_add_ps(add_quarters(halves, halves), _mm512_setzero_ps())
}

/// What the dtypes that sum in 16 lanes of `f32` share.
macro_rules! sums_of_f32 {
    () => {
        type Sums = __m512;
        type Weight = __m512;

        const BLOCK: usize = 16;
        const TAIL: usize = 4;

        #[inline(always)]
        unsafe fn full(rows: &impl Rows<__m512>) -> __m512 {
            full_16(rows)
        }

        #[inline(always)]
        unsafe fn tail(rows: &impl Rows<__m512>) -> __m512 {
            tail_4(rows)
        }

        #[inline(always)]
        unsafe fn store(out: *mut f32, sums: __m512) {
            _mm512_storeu_ps(out, sums);
        }

        #[inline(always)]
        unsafe fn store_head(out: *mut f32, sums: __m512, n: usize) {
            _mm512_mask_storeu_ps(out, head16(n), sums);
        }

        #[inline(always)]
        unsafe fn splat_acc(w: *const f32) -> __m512 {
            _mm512_set1_ps(w.read_unaligned())
        }
    };
}

/// What the dtypes whose chunks are 16 lanes of `f32` in order share.
macro_rules! chunks_of_f32 {
    () => {
        type Chunk = __m512;

        const STEP: usize = 16;
        const HALVES: bool = true;
        const DOT_CHUNKS: usize = 8;
        const AXPY_CHUNKS: usize = 8;
        const SIDE_BY_SIDE: usize = 14;

        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            _mm512_mul_ps(a, b)
        }

        #[inline(always)]
        unsafe fn mul_add(sums: __m512, a: __m512, b: __m512) -> __m512 {
            _mm512_fmadd_ps(a, b, sums)
        }

        #[inline(always)]
        unsafe fn zero() -> __m512 {
            _mm512_setzero_ps()
        }

        #[inline(always)]
        unsafe fn load_acc(p: *const f32) -> __m512 {
            _mm512_loadu_ps(p)
        }

        #[inline(always)]
        unsafe fn load_acc_head(p: *const f32, n: usize) -> __m512 {
            _mm512_maskz_loadu_ps(head16(n), p)
        }

        #[inline(always)]
        unsafe fn store_acc(p: *mut f32, chunk: __m512) {
            _mm512_storeu_ps(p, chunk);
        }

        #[inline(always)]
        unsafe fn store_acc_head(p: *mut f32, chunk: __m512, n: usize) {
            _mm512_mask_storeu_ps(p, head16(n), chunk);
        }

        #[inline(always)]
        unsafe fn axpy(acc: __m512, w: __m512, row: __m512) -> __m512 {
            _mm512_fmadd_ps(w, row, acc)
        }
    };
}

/// `f32`.
pub(super) struct F32;

impl Lanes for F32 {
    type Element = f32;

    sums_of_f32!();
    chunks_of_f32!();

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        _mm512_loadu_ps(p)
    }

    #[inline(always)]
    unsafe fn load_head(p: *const f32, n: usize) -> __m512 {
        _mm512_maskz_loadu_ps(head16(n), p)
    }

    #[inline(always)]
    unsafe fn load_half(p: *const f32, n: usize) -> __m512 {
        _mm512_zextps256_ps512(_mm256_maskz_loadu_ps(head8(n), p))
    }

    #[inline(always)]
    unsafe fn splat(w: *const f32) -> __m512 {
        Self::splat_acc(w)
    }
}

/// `f16`, widened when loaded.
pub(super) struct F16;

impl Lanes for F16 {
    type Element = f16;

    sums_of_f32!();
    chunks_of_f32!();

    #[inline(always)]
    unsafe fn load(p: *const f16) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
    }

    #[inline(always)]
    unsafe fn load_head(p: *const f16, n: usize) -> __m512 {
        _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(head16(n), p.cast()))
    }

    #[inline(always)]
    unsafe fn load_half(p: *const f16, n: usize) -> __m512 {
        _mm512_cvtph_ps(_mm256_zextsi128_si256(_mm_maskz_loadu_epi16(head8(n), p.cast())))
    }

    #[inline(always)]
    unsafe fn splat(w: *const f16) -> __m512 {
        _mm512_cvtph_ps(_mm256_set1_epi16(w.cast::<i16>().read_unaligned()))
    }
}

/// `bf16`. A chunk holds the even elements and the odd ones, each the upper half of an `f32`: a shift and a mask widen
/// 32 elements without a shuffle.
pub(super) struct BF16;

#[inline(always)]
unsafe fn widen_pairs(v: __m512i) -> [__m512; 2] {
    let even = _mm512_slli_epi32::<16>(v);
    let odd = _mm512_and_si512(v, _mm512_set1_epi32(0xffff_0000_u32 as i32));
    [_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd)]
}

#[inline(always)]
unsafe fn split_pairs(low: __m512, high: __m512) -> [__m512; 2] {
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    [_mm512_permutex2var_ps(low, even, high), _mm512_permutex2var_ps(low, odd, high)]
}

#[inline(always)]
unsafe fn join_pairs(chunk: [__m512; 2]) -> [__m512; 2] {
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    [_mm512_permutex2var_ps(chunk[0], low, chunk[1]), _mm512_permutex2var_ps(chunk[0], high, chunk[1])]
}

impl Lanes for BF16 {
    type Element = bf16;
    type Chunk = [__m512; 2];

    const STEP: usize = 32;
    const HALVES: bool = true;
    const DOT_CHUNKS: usize = 4;
    const AXPY_CHUNKS: usize = 4;
    const SIDE_BY_SIDE: usize = 8;

    sums_of_f32!();

    #[inline(always)]
    unsafe fn load(p: *const bf16) -> [__m512; 2] {
        widen_pairs(_mm512_loadu_si512(p.cast()))
    }

    #[inline(always)]
    unsafe fn load_head(p: *const bf16, n: usize) -> [__m512; 2] {
        widen_pairs(_mm512_maskz_loadu_epi16(head32(n), p.cast()))
    }

    #[inline(always)]
    unsafe fn load_half(p: *const bf16, n: usize) -> [__m512; 2] {
        widen_pairs(_mm512_zextsi256_si512(_mm256_maskz_loadu_epi16(head16(n), p.cast())))
    }

    #[inline(always)]
    unsafe fn mul(a: [__m512; 2], b: [__m512; 2]) -> __m512 {
        _mm512_fmadd_ps(a[1], b[1], _mm512_mul_ps(a[0], b[0]))
    }

    #[inline(always)]
    unsafe fn mul_add(sums: __m512, a: [__m512; 2], b: [__m512; 2]) -> __m512 {
        _mm512_fmadd_ps(a[1], b[1], _mm512_fmadd_ps(a[0], b[0], sums))
    }

    #[inline(always)]
    unsafe fn zero() -> [__m512; 2] {
        [_mm512_setzero_ps(); 2]
    }

    #[inline(always)]
    unsafe fn load_acc(p: *const f32) -> [__m512; 2] {
        split_pairs(_mm512_loadu_ps(p), _mm512_loadu_ps(p.add(16)))
    }

    #[inline(always)]
    unsafe fn load_acc_head(p: *const f32, n: usize) -> [__m512; 2] {
        let mask = head32(n);
        let low = _mm512_maskz_loadu_ps(mask as __mmask16, p);
        split_pairs(low, _mm512_maskz_loadu_ps((mask >> 16) as __mmask16, p.wrapping_add(16)))
    }

    #[inline(always)]
    unsafe fn store_acc(p: *mut f32, chunk: [__m512; 2]) {
        let [low, high] = join_pairs(chunk);
        _mm512_storeu_ps(p, low);
        _mm512_storeu_ps(p.add(16), high);
    }

    #[inline(always)]
    unsafe fn store_acc_head(p: *mut f32, chunk: [__m512; 2], n: usize) {
        let [low, high] = join_pairs(chunk);
        let mask = head32(n);
        _mm512_mask_storeu_ps(p, mask as __mmask16, low);
        _mm512_mask_storeu_ps(p.wrapping_add(16), (mask >> 16) as __mmask16, high);
    }

    #[inline(always)]
    unsafe fn splat(w: *const bf16) -> __m512 {
        _mm512_castsi512_ps(_mm512_set1_epi32((w.cast::<u16>().read_unaligned() as i32) << 16))
    }

    #[inline(always)]
    unsafe fn axpy(acc: [__m512; 2], w: __m512, row: [__m512; 2]) -> [__m512; 2] {
        [_mm512_fmadd_ps(w, row[0], acc[0]), _mm512_fmadd_ps(w, row[1], acc[1])]
    }
}

/// `f64`.
pub(super) struct F64;

#[inline(always)]
unsafe fn add_neighbours_f64(a: __m512d, b: __m512d) -> __m512d {
    _mm512_add_pd(_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b))
}

#[inline(always)]
unsafe fn add_quarters_f64(a: __m512d, b: __m512d) -> __m512d {
    _mm512_add_pd(_mm512_shuffle_f64x2::<0b10_00_10_00>(a, b), _mm512_shuffle_f64x2::<0b11_01_11_01>(a, b))
}

/// Halves of the sums of the four rows from `i` on.
#[inline(always)]
unsafe fn rows_4_f64(rows: &impl Rows<__m512d>, i: usize) -> __m512d {
    let low = add_neighbours_f64(rows.row(i), rows.row(i + 1));
    add_quarters_f64(low, add_neighbours_f64(rows.row(i + 2), rows.row(i + 3)))
}

impl Lanes for F64 {
    type Element = f64;
    type Chunk = __m512d;
    type Sums = __m512d;
    type Weight = __m512d;

    const STEP: usize = 8;
    const HALVES: bool = true;
    const BLOCK: usize = 8;
    const TAIL: usize = 4;
    const DOT_CHUNKS: usize = 8;
    const AXPY_CHUNKS: usize = 8;
    const SIDE_BY_SIDE: usize = 14;

    #[inline(always)]
    unsafe fn load(p: *const f64) -> __m512d {
        _mm512_loadu_pd(p)
    }

    #[inline(always)]
    unsafe fn load_head(p: *const f64, n: usize) -> __m512d {
        _mm512_maskz_loadu_pd(head8(n), p)
    }

    #[inline(always)]
    unsafe fn load_half(p: *const f64, n: usize) -> __m512d {
        _mm512_zextpd256_pd512(_mm256_maskz_loadu_pd(head8(n), p))
    }

    #[inline(always)]
    unsafe fn mul(a: __m512d, b: __m512d) -> __m512d {
        _mm512_mul_pd(a, b)
    }

    #[inline(always)]
    unsafe fn mul_add(sums: __m512d, a: __m512d, b: __m512d) -> __m512d {
        _mm512_fmadd_pd(a, b, sums)
    }

    #[inline(always)]
    unsafe fn full(rows: &impl Rows<__m512d>) -> __m512d {
        let low = rows_4_f64(rows, 0);
        _mm512_add_pd(add_quarters_f64(low, rows_4_f64(rows, 4)), _mm512_setzero_pd())
    }

    #[inline(always)]
    unsafe fn tail(rows: &impl Rows<__m512d>) -> __m512d {
        let four = rows_4_f64(rows, 0);
        _mm512_add_pd(add_quarters_f64(four, four), _mm512_setzero_pd())
    }

    #[inline(always)]
    unsafe fn store(out: *mut f64, sums: __m512d) {
        _mm512_storeu_pd(out, sums);
    }

    #[inline(always)]
    unsafe fn store_head(out: *mut f64, sums: __m512d, n: usize) {
        _mm512_mask_storeu_pd(out, head8(n), sums);
    }

    #[inline(always)]
    unsafe fn zero() -> __m512d {
        _mm512_setzero_pd()
    }

    #[inline(always)]
    unsafe fn load_acc(p: *const f64) -> __m512d {
        _mm512_loadu_pd(p)
    }

    #[inline(always)]
    unsafe fn load_acc_head(p: *const f64, n: usize) -> __m512d {
        Self::load_head(p, n)
    }

    #[inline(always)]
    unsafe fn store_acc(p: *mut f64, chunk: __m512d) {
        _mm512_storeu_pd(p, chunk);
    }

    #[inline(always)]
    unsafe fn store_acc_head(p: *mut f64, chunk: __m512d, n: usize) {
        Self::store_head(p, chunk, n);
    }

    #[inline(always)]
    unsafe fn splat(w: *const f64) -> __m512d {
        _mm512_set1_pd(w.read_unaligned())
    }

    #[inline(always)]
    unsafe fn splat_acc(w: *const f64) -> __m512d {
        _mm512_set1_pd(w.read_unaligned())
    }

    #[inline(always)]
    unsafe fn axpy(acc: __m512d, w: __m512d, row: __m512d) -> __m512d {
        _mm512_fmadd_pd(w, row, acc)
    }
}
