//! Lanes of AVX2 with FMA and F16C: 8 sums of `f32`, or 4 of `f64`.
#![allow(unsafe_op_in_unsafe_fn)] // the invariants are those of `Lanes`

use std::arch::x86_64::*;

use einfall_tensor::half::{bf16, f16};

use super::lanes::{Lanes, Rows};

super::entry::entries!(#[target_feature(enable = "avx2,fma,f16c")]);

/// All-ones then zeros: the eight words that start at `8 - n` select `n` lanes.
static HEADS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// The lowest `n` lanes of eight words.
#[inline(always)]
unsafe fn head8(n: usize) -> __m256i {
    _mm256_loadu_si256(HEADS.as_ptr().add(8 - n).cast())
}

/// The lowest `n` lanes of four double words.
#[inline(always)]
unsafe fn head4(n: usize) -> __m256i {
    _mm256_loadu_si256(HEADS.as_ptr().add(8 - 2 * n).cast())
}

/// The first `n` half-precision elements, the rest 0: AVX2 has no masked load of 16-bit lanes.
#[inline(always)]
unsafe fn copy_head<T>(p: *const T, n: usize) -> [u16; 16] {
    let mut words = [0_u16; 16];
    for (j, word) in words.iter_mut().enumerate().take(n) {
        *word = p.cast::<u16>().add(j).read_unaligned();
    }
    words
}

// The tree over rows of 8 sums. Every level adds the two halves of what is left of a row, for two operands at once:
// neighbouring lanes first. The dots come out in order.

#[inline(always)]
unsafe fn add_neighbours(a: __m256, b: __m256) -> __m256 {
    _mm256_add_ps(_mm256_shuffle_ps::<0b10_00_10_00>(a, b), _mm256_shuffle_ps::<0b11_01_11_01>(a, b))
}

#[inline(always)]
unsafe fn add_halves(a: __m256, b: __m256) -> __m256 {
    _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b))
}

/// Both halves hold partial sums of the four rows from `i` on.
#[inline(always)]
unsafe fn rows_4(rows: &impl Rows<__m256>, i: usize) -> __m256 {
    let low = add_neighbours(rows.row(i), rows.row(i + 1));
    add_neighbours(low, add_neighbours(rows.row(i + 2), rows.row(i + 3)))
}

#[inline(always)]
unsafe fn full_8(rows: &impl Rows<__m256>) -> __m256 {
    let low = rows_4(rows, 0);
    // Adding +0 turns a sum of nothing but −0 into the +0 that a sum from zero has.
    _mm256_add_ps(add_halves(low, rows_4(rows, 4)), _mm256_setzero_ps())
}

#[inline(always)]
unsafe fn tail_4(rows: &impl Rows<__m256>) -> __m256 {
    let four = rows_4(rows, 0);
    _mm256_add_ps(add_halves(four, four), _mm256_setzero_ps())
}

/// What the dtypes that sum in 8 lanes of `f32` share.
macro_rules! sums_of_f32 {
    () => {
        type Sums = __m256;
        type Weight = __m256;

        const BLOCK: usize = 8;
        const TAIL: usize = 4;

        #[inline(always)]
        unsafe fn full(rows: &impl Rows<__m256>) -> __m256 {
            full_8(rows)
        }

        #[inline(always)]
        unsafe fn tail(rows: &impl Rows<__m256>) -> __m256 {
            tail_4(rows)
        }

        #[inline(always)]
        unsafe fn store(out: *mut f32, sums: __m256) {
            _mm256_storeu_ps(out, sums);
        }

        #[inline(always)]
        unsafe fn store_head(out: *mut f32, sums: __m256, n: usize) {
            _mm256_maskstore_ps(out, head8(n), sums);
        }

        #[inline(always)]
        unsafe fn splat_acc(w: *const f32) -> __m256 {
            _mm256_set1_ps(w.read_unaligned())
        }
    };
}

/// What the dtypes whose chunks are 8 lanes of `f32` in order share.
macro_rules! chunks_of_f32 {
    () => {
        type Chunk = __m256;

        const STEP: usize = 8;
        const DOT_CHUNKS: usize = 4;
        const AXPY_CHUNKS: usize = 4;
        const SIDE_BY_SIDE: usize = 8;

        #[inline(always)]
        unsafe fn mul(a: __m256, b: __m256) -> __m256 {
            _mm256_mul_ps(a, b)
        }

        #[inline(always)]
        unsafe fn mul_add(sums: __m256, a: __m256, b: __m256) -> __m256 {
            _mm256_fmadd_ps(a, b, sums)
        }

        #[inline(always)]
        unsafe fn zero() -> __m256 {
            _mm256_setzero_ps()
        }

        #[inline(always)]
        unsafe fn load_acc(p: *const f32) -> __m256 {
            _mm256_loadu_ps(p)
        }

        #[inline(always)]
        unsafe fn load_acc_head(p: *const f32, n: usize) -> __m256 {
            _mm256_maskload_ps(p, head8(n))
        }

        #[inline(always)]
        unsafe fn store_acc(p: *mut f32, chunk: __m256) {
            _mm256_storeu_ps(p, chunk);
        }

        #[inline(always)]
        unsafe fn store_acc_head(p: *mut f32, chunk: __m256, n: usize) {
            _mm256_maskstore_ps(p, head8(n), chunk);
        }

        #[inline(always)]
        unsafe fn axpy(acc: __m256, w: __m256, row: __m256) -> __m256 {
            _mm256_fmadd_ps(w, row, acc)
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
    unsafe fn load(p: *const f32) -> __m256 {
        _mm256_loadu_ps(p)
    }

    #[inline(always)]
    unsafe fn load_head(p: *const f32, n: usize) -> __m256 {
        _mm256_maskload_ps(p, head8(n))
    }

    #[inline(always)]
    unsafe fn splat(w: *const f32) -> __m256 {
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
    unsafe fn load(p: *const f16) -> __m256 {
        _mm256_cvtph_ps(_mm_loadu_si128(p.cast()))
    }

    #[inline(always)]
    unsafe fn load_head(p: *const f16, n: usize) -> __m256 {
        let words = copy_head(p, n);
        _mm256_cvtph_ps(_mm_loadu_si128(words.as_ptr().cast()))
    }

    #[inline(always)]
    unsafe fn splat(w: *const f16) -> __m256 {
        _mm256_cvtph_ps(_mm_set1_epi16(w.cast::<i16>().read_unaligned()))
    }
}

/// `bf16`. A chunk holds the even elements and the odd ones, each the upper half of an `f32`: a shift and a mask widen
/// 16 elements without a shuffle.
pub(super) struct BF16;

#[inline(always)]
unsafe fn widen_pairs(v: __m256i) -> [__m256; 2] {
    let even = _mm256_slli_epi32::<16>(v);
    let odd = _mm256_and_si256(v, _mm256_set1_epi32(0xffff_0000_u32 as i32));
    [_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd)]
}

#[inline(always)]
unsafe fn split_pairs(low: __m256, high: __m256) -> [__m256; 2] {
    // The upper half of `low` and the lower half of `high` change places, so that work within halves comes out in order.
    let a = _mm256_permute2f128_ps::<0x20>(low, high);
    let b = _mm256_permute2f128_ps::<0x31>(low, high);
    [_mm256_shuffle_ps::<0b10_00_10_00>(a, b), _mm256_shuffle_ps::<0b11_01_11_01>(a, b)]
}

#[inline(always)]
unsafe fn join_pairs(chunk: [__m256; 2]) -> [__m256; 2] {
    let low = _mm256_unpacklo_ps(chunk[0], chunk[1]);
    let high = _mm256_unpackhi_ps(chunk[0], chunk[1]);
    [_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high)]
}

impl Lanes for BF16 {
    type Element = bf16;
    type Chunk = [__m256; 2];

    const STEP: usize = 16;
    const DOT_CHUNKS: usize = 4;
    const AXPY_CHUNKS: usize = 2;
    const SIDE_BY_SIDE: usize = 4;

    sums_of_f32!();

    #[inline(always)]
    unsafe fn load(p: *const bf16) -> [__m256; 2] {
        widen_pairs(_mm256_loadu_si256(p.cast()))
    }

    #[inline(always)]
    unsafe fn load_head(p: *const bf16, n: usize) -> [__m256; 2] {
        let words = copy_head(p, n);
        widen_pairs(_mm256_loadu_si256(words.as_ptr().cast()))
    }

    #[inline(always)]
    unsafe fn mul(a: [__m256; 2], b: [__m256; 2]) -> __m256 {
        _mm256_fmadd_ps(a[1], b[1], _mm256_mul_ps(a[0], b[0]))
    }

    #[inline(always)]
    unsafe fn mul_add(sums: __m256, a: [__m256; 2], b: [__m256; 2]) -> __m256 {
        _mm256_fmadd_ps(a[1], b[1], _mm256_fmadd_ps(a[0], b[0], sums))
    }

    #[inline(always)]
    unsafe fn zero() -> [__m256; 2] {
        [_mm256_setzero_ps(); 2]
    }

    #[inline(always)]
    unsafe fn load_acc(p: *const f32) -> [__m256; 2] {
        split_pairs(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8)))
    }

    #[inline(always)]
    unsafe fn load_acc_head(p: *const f32, n: usize) -> [__m256; 2] {
        let low = _mm256_maskload_ps(p, head8(n.min(8)));
        split_pairs(low, _mm256_maskload_ps(p.wrapping_add(8), head8(n.saturating_sub(8))))
    }

    #[inline(always)]
    unsafe fn store_acc(p: *mut f32, chunk: [__m256; 2]) {
        let [low, high] = join_pairs(chunk);
        _mm256_storeu_ps(p, low);
        _mm256_storeu_ps(p.add(8), high);
    }

    #[inline(always)]
    unsafe fn store_acc_head(p: *mut f32, chunk: [__m256; 2], n: usize) {
        let [low, high] = join_pairs(chunk);
        _mm256_maskstore_ps(p, head8(n.min(8)), low);
        _mm256_maskstore_ps(p.wrapping_add(8), head8(n.saturating_sub(8)), high);
    }

    #[inline(always)]
    unsafe fn splat(w: *const bf16) -> __m256 {
        _mm256_castsi256_ps(_mm256_set1_epi32((w.cast::<u16>().read_unaligned() as i32) << 16))
    }

    #[inline(always)]
    unsafe fn axpy(acc: [__m256; 2], w: __m256, row: [__m256; 2]) -> [__m256; 2] {
        [_mm256_fmadd_ps(w, row[0], acc[0]), _mm256_fmadd_ps(w, row[1], acc[1])]
    }
}

/// `f64`.
pub(super) struct F64;

impl Lanes for F64 {
    type Element = f64;
    type Chunk = __m256d;
    type Sums = __m256d;
    type Weight = __m256d;

    const STEP: usize = 4;
    const BLOCK: usize = 4;
    const TAIL: usize = 4;
    const DOT_CHUNKS: usize = 8;
    const AXPY_CHUNKS: usize = 8;
    const SIDE_BY_SIDE: usize = 8;

    #[inline(always)]
    unsafe fn load(p: *const f64) -> __m256d {
        _mm256_loadu_pd(p)
    }

    #[inline(always)]
    unsafe fn load_head(p: *const f64, n: usize) -> __m256d {
        _mm256_maskload_pd(p, head4(n))
    }

    #[inline(always)]
    unsafe fn mul(a: __m256d, b: __m256d) -> __m256d {
        _mm256_mul_pd(a, b)
    }

    #[inline(always)]
    unsafe fn mul_add(sums: __m256d, a: __m256d, b: __m256d) -> __m256d {
        _mm256_fmadd_pd(a, b, sums)
    }

    #[inline(always)]
    unsafe fn full(rows: &impl Rows<__m256d>) -> __m256d {
        let (a, b) = (rows.row(0), rows.row(1));
        let low = _mm256_add_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
        let (a, b) = (rows.row(2), rows.row(3));
        let high = _mm256_add_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
        let lower = _mm256_permute2f128_pd::<0x20>(low, high);
        let upper = _mm256_permute2f128_pd::<0x31>(low, high);
        _mm256_add_pd(_mm256_add_pd(lower, upper), _mm256_setzero_pd())
    }

    #[inline(always)]
    unsafe fn tail(rows: &impl Rows<__m256d>) -> __m256d {
        Self::full(rows)
    }

    #[inline(always)]
    unsafe fn store(out: *mut f64, sums: __m256d) {
        _mm256_storeu_pd(out, sums);
    }

    #[inline(always)]
    unsafe fn store_head(out: *mut f64, sums: __m256d, n: usize) {
        _mm256_maskstore_pd(out, head4(n), sums);
    }

    #[inline(always)]
    unsafe fn zero() -> __m256d {
        _mm256_setzero_pd()
    }

    #[inline(always)]
    unsafe fn load_acc(p: *const f64) -> __m256d {
        _mm256_loadu_pd(p)
    }

    #[inline(always)]
    unsafe fn load_acc_head(p: *const f64, n: usize) -> __m256d {
        Self::load_head(p, n)
    }

    #[inline(always)]
    unsafe fn store_acc(p: *mut f64, chunk: __m256d) {
        _mm256_storeu_pd(p, chunk);
    }

    #[inline(always)]
    unsafe fn store_acc_head(p: *mut f64, chunk: __m256d, n: usize) {
        Self::store_head(p, chunk, n);
    }

    #[inline(always)]
    unsafe fn splat(w: *const f64) -> __m256d {
        _mm256_set1_pd(w.read_unaligned())
    }

    #[inline(always)]
    unsafe fn splat_acc(w: *const f64) -> __m256d {
        _mm256_set1_pd(w.read_unaligned())
    }

    #[inline(always)]
    unsafe fn axpy(acc: __m256d, w: __m256d, row: __m256d) -> __m256d {
        _mm256_fmadd_pd(w, row, acc)
    }
}
