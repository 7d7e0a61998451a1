//! From a table to offsets: the only reader of tables.
//!
//! *In*: a strided run of integers of any width, the length of the axis they index and the stride of its rows. *Out*:
//! one element offset an entry, or the first entry that is outside the axis. *Callers*: the loops of `ops`, a block of
//! entries at a time, into scratch that stays in the L1 cache, right before a row kernel.
//!
//! There is no wrap-around and no clamping: a negative entry is as invalid as one past the end.
//!
//! ```
//! use einfall_cpu::isa::Isa;
//! use einfall_cpu::load::{TableDType, TableRef, load_offsets};
//!
//! let entries = [2_i32, 0, 1];
//! let table = TableRef { ptr: entries.as_ptr().cast(), dtype: TableDType::I32, stride_elems: 1 };
//! let mut offsets = [0_isize; 3];
//! // SAFETY: the table has three entries.
//! unsafe { load_offsets(Isa::Portable, table, 3, 3, 10, &mut offsets) }.unwrap();
//! assert_eq!(offsets, [20, 0, 10]);
//! ```
#![allow(unsafe_op_in_unsafe_fn)] // the invariant everywhere: the table has `count` entries

use std::fmt;

use einfall_tensor::DType;

use crate::isa::Isa;

mod select;

pub use select::{pick, place};

/// An integer type that a table may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableDType {
    /// 8-bit signed.
    I8,
    /// 16-bit signed.
    I16,
    /// 32-bit signed.
    I32,
    /// 64-bit signed.
    I64,
    /// 8-bit unsigned.
    U8,
    /// 16-bit unsigned.
    U16,
    /// 32-bit unsigned.
    U32,
    /// 64-bit unsigned.
    U64,
}

impl TableDType {
    /// The table's type for an element type; none but integers index rows.
    pub fn of(dtype: DType) -> Option<TableDType> {
        Some(match dtype {
            DType::I8 => TableDType::I8,
            DType::I16 => TableDType::I16,
            DType::I32 => TableDType::I32,
            DType::I64 => TableDType::I64,
            DType::U8 => TableDType::U8,
            DType::U16 => TableDType::U16,
            DType::U32 => TableDType::U32,
            DType::U64 => TableDType::U64,
            _ => return None,
        })
    }

    /// Bytes of an entry.
    pub const fn bytes(self) -> usize {
        match self {
            TableDType::I8 | TableDType::U8 => 1,
            TableDType::I16 | TableDType::U16 => 2,
            TableDType::I32 | TableDType::U32 => 4,
            TableDType::I64 | TableDType::U64 => 8,
        }
    }
}

/// A run of table entries.
#[derive(Clone, Copy, Debug)]
pub struct TableRef {
    /// The first entry, of any alignment.
    pub ptr: *const u8,
    /// The type of the entries.
    pub dtype: TableDType,
    /// Entries from one to the next; may be 0 or negative.
    pub stride_elems: isize,
}

impl TableRef {
    /// The run that starts `entries` steps further on.
    ///
    /// # Safety
    /// The table has that entry, or ends right before it.
    pub unsafe fn skip(self, entries: usize) -> TableRef {
        let bytes = entries as isize * self.stride_elems * self.dtype.bytes() as isize;
        TableRef { ptr: self.ptr.wrapping_offset(bytes), ..self }
    }
}

/// A table entry outside its axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Where in the run.
    pub position: usize,
    /// What the entry says.
    pub value: i128,
    /// The length of the axis.
    pub len: usize,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Invalid { position, value, len } = self;
        write!(f, "table entry {position} is {value}, outside an axis of length {len}")
    }
}

impl std::error::Error for Invalid {}

/// An integer of a table.
trait Entry: Copy {
    /// The value in 64 bits, where every value that no axis is long enough for has the sign bit set.
    fn wide(self) -> i64;
    fn exact(self) -> i128;

    /// Eight contiguous entries as [`Entry::wide`] gives them.
    #[cfg(target_arch = "x86_64")]
    unsafe fn wide_8(p: *const Self) -> std::arch::x86_64::__m512i;
}

macro_rules! entries {
    ($($T:ident: $load:ident $(then $widen:ident)?;)*) => {$(
        impl Entry for $T {
            #[inline(always)]
            fn wide(self) -> i64 {
                self as i64
            }

            fn exact(self) -> i128 {
                i128::from(self)
            }

            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn wide_8(p: *const $T) -> std::arch::x86_64::__m512i {
                use std::arch::x86_64::*;
                let entries = $load(p.cast());
                $(let entries = $widen(entries);)?
                entries
            }
        }
    )*};
}

entries! {
    i8: _mm_loadl_epi64 then _mm512_cvtepi8_epi64;
    i16: _mm_loadu_si128 then _mm512_cvtepi16_epi64;
    i32: _mm256_loadu_si256 then _mm512_cvtepi32_epi64;
    i64: _mm512_loadu_epi64;
    u8: _mm_loadl_epi64 then _mm512_cvtepu8_epi64;
    u16: _mm_loadu_si128 then _mm512_cvtepu16_epi64;
    u32: _mm256_loadu_si256 then _mm512_cvtepu32_epi64;
    u64: _mm512_loadu_epi64;
}

/// Runs an expression for the type of the entries, and for contiguous and strided runs apart: `stride` is a constant 1
/// in the first, which is what lets the compiler vectorise.
macro_rules! with_entry {
    ($table:expr, $E:ident, $stride:ident => $body:expr) => {{
        macro_rules! for_type {
            ($T:ty) => {{
                type $E = $T;
                if $table.stride_elems == 1 {
                    let $stride = 1_isize;
                    $body
                } else {
                    let $stride = $table.stride_elems;
                    $body
                }
            }};
        }
        match $table.dtype {
            TableDType::I8 => for_type!(i8),
            TableDType::I16 => for_type!(i16),
            TableDType::I32 => for_type!(i32),
            TableDType::I64 => for_type!(i64),
            TableDType::U8 => for_type!(u8),
            TableDType::U16 => for_type!(u16),
            TableDType::U32 => for_type!(u32),
            TableDType::U64 => for_type!(u64),
        }
    }};
}

use with_entry;

/// Writes `out[i] = table[i] * row_stride` for the first `count` entries.
///
/// Costs about half a cycle an entry. Runs are expected one after another: what follows is fetched. On an error some of `out` is written, with values that must not be used.
///
/// # Errors
/// The first entry that is not in `0..len`.
///
/// # Panics
/// `out` is shorter than `count`.
///
/// # Safety
/// The machine has `isa`; the table has `count` entries; `value * row_stride` fits in an `isize` for every value below
/// `len`.
pub unsafe fn load_offsets(
    isa: Isa,
    table: TableRef,
    count: usize,
    len: usize,
    row_stride: isize,
    out: &mut [isize],
) -> Result<(), Invalid> {
    let mut valid = true;
    for (number, out) in out[..count].chunks_mut(STRIP).enumerate() {
        let table = table.skip(number * STRIP);
        fetch_ahead(table, out.len());
        valid &= match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => offsets_avx512(table, len, row_stride, out),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => offsets_avx2(table, len, row_stride, out),
            _ => with_entry!(table, E, stride => offsets::<E>(table.ptr.cast(), stride, len, row_stride, out)),
        };
    }
    if valid {
        return Ok(());
    }
    match first_invalid(isa, table, count, len) {
        Some(invalid) => Err(invalid),
        // Another thread rewrote the table between the two passes.
        None => Err(Invalid { position: 0, value: -1, len }),
    }
}

/// How far ahead of the entries that are read now the table is fetched, bytes. Between two runs of a table the rows
/// pass through the caches, and the hardware loses sight of the table; half and twice as far were no better on Zen 5.
const AHEAD: usize = 4096;

/// Entries between two requests: so few lines at once do not crowd out what is being read.
const STRIP: usize = 128;

/// Asks for the table that comes [`AHEAD`] after a contiguous run.
#[inline]
fn fetch_ahead(table: TableRef, count: usize) {
    #[cfg(target_arch = "x86_64")]
    if table.stride_elems == 1 {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for line in (0..count * table.dtype.bytes()).step_by(64) {
            // SAFETY: a prefetch reads nothing and cannot fault, whatever lies there.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(table.ptr.wrapping_add(AHEAD + line).cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (table, count);
}

/// The valid entries only: their offsets and their positions in the run, in order. Returns how many they are.
///
/// # Panics
/// An output is shorter than `count`, or `count` is above `u32::MAX`.
///
/// # Safety
/// As for [`load_offsets`].
pub unsafe fn load_offsets_skip(
    isa: Isa,
    table: TableRef,
    count: usize,
    len: usize,
    row_stride: isize,
    out_offsets: &mut [isize],
    out_positions: &mut [u32],
) -> usize {
    assert!(u32::try_from(count).is_ok(), "a run of {count} table entries is too long");
    let (out, at) = (&mut out_offsets[..count], &mut out_positions[..count]);
    for first in (0..count).step_by(STRIP) {
        fetch_ahead(table.skip(first), STRIP.min(count - first));
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if table.stride_elems == 1 => skip_avx512(table, len, row_stride, out, at),
        _ => with_entry!(table, E, stride => skip::<E>(table.ptr.cast(), stride, 0, len, row_stride, 0, out, at)),
    }
}

/// Writes `out[i] = first + i * step`: the offsets of rows that no table names.
///
/// # Safety
/// The machine has `isa`.
pub unsafe fn even_offsets(isa: Isa, first: isize, step: isize, out: &mut [isize]) {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 {
        return even_avx512(first, step, out);
    }
    let _ = isa;
    even(first, step, out);
}

#[inline(always)]
fn even(first: isize, step: isize, out: &mut [isize]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = first.wrapping_add((i as isize).wrapping_mul(step));
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn even_avx512(first: isize, step: isize, out: &mut [isize]) {
    even(first, step, out);
}

/// The first entry that is not in `0..len`, if any.
///
/// # Safety
/// The machine has `isa`; the table has `count` entries.
pub unsafe fn first_invalid(isa: Isa, table: TableRef, count: usize, len: usize) -> Option<Invalid> {
    // Blocks are checked as a whole, without branches; only a bad one is searched.
    const BLOCK: usize = 1024;
    for first in (0..count).step_by(BLOCK) {
        let block = table.skip(first);
        let n = BLOCK.min(count - first);
        let valid = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => all_valid_avx512(block, n, len),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => all_valid_avx2(block, n, len),
            _ => with_entry!(block, E, stride => all_valid::<E>(block.ptr.cast(), stride, n, len)),
        };
        if !valid {
            let (position, value) = with_entry!(block, E, stride => search::<E>(block.ptr.cast(), stride, n, len))?;
            return Some(Invalid { position: first + position, value, len });
        }
    }
    None
}

/// The largest valid entry; −1 where the axis is empty.
#[inline(always)]
fn last(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX) - 1
}

/// Negative if and only if `value` is not in `0..=last`.
#[inline(always)]
fn badness(value: i64, last: i64) -> i64 {
    value | last.wrapping_sub(value)
}

#[inline(always)]
unsafe fn offsets<E: Entry>(p: *const E, stride: isize, len: usize, row_stride: isize, out: &mut [isize]) -> bool {
    let last = last(len);
    let mut bad = 0;
    if last <= i64::from(i32::MAX) && i32::try_from(row_stride).is_ok() {
        // A 32-bit product, which AVX2 has; what it makes of an invalid entry is of no interest.
        for (i, out) in out.iter_mut().enumerate() {
            let value = p.offset(i as isize * stride).read_unaligned().wide();
            bad |= badness(value, last);
            *out = (i64::from(value as i32) * i64::from(row_stride as i32)) as isize;
        }
    } else {
        for (i, out) in out.iter_mut().enumerate() {
            let value = p.offset(i as isize * stride).read_unaligned().wide();
            bad |= badness(value, last);
            *out = (value as isize).wrapping_mul(row_stride);
        }
    }
    bad >= 0
}

/// Entries from `first` on, appended to the `n` that are already out.
#[inline(always)]
unsafe fn skip<E: Entry>(
    p: *const E,
    stride: isize,
    first: usize,
    len: usize,
    row_stride: isize,
    mut n: usize,
    out: &mut [isize],
    at: &mut [u32],
) -> usize {
    let last = last(len);
    for i in first..out.len() {
        let value = p.offset(i as isize * stride).read_unaligned().wide();
        // Written always, kept if valid: `n` never passes `i`.
        out[n] = (value as isize).wrapping_mul(row_stride);
        at[n] = i as u32;
        n += usize::from(badness(value, last) >= 0);
    }
    n
}

#[inline(always)]
unsafe fn all_valid<E: Entry>(p: *const E, stride: isize, count: usize, len: usize) -> bool {
    let last = last(len);
    let mut bad = 0;
    for i in 0..count {
        bad |= badness(p.offset(i as isize * stride).read_unaligned().wide(), last);
    }
    bad >= 0
}

unsafe fn search<E: Entry>(p: *const E, stride: isize, count: usize, len: usize) -> Option<(usize, i128)> {
    (0..count).find_map(|i| {
        // SAFETY: the table has `count` entries.
        let entry = unsafe { p.offset(i as isize * stride).read_unaligned() };
        (badness(entry.wide(), last(len)) < 0).then(|| (i, entry.exact()))
    })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn offsets_avx512(table: TableRef, len: usize, row_stride: isize, out: &mut [isize]) -> bool {
    with_entry!(table, E, stride => offsets::<E>(table.ptr.cast(), stride, len, row_stride, out))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn offsets_avx2(table: TableRef, len: usize, row_stride: isize, out: &mut [isize]) -> bool {
    with_entry!(table, E, stride => offsets::<E>(table.ptr.cast(), stride, len, row_stride, out))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn all_valid_avx512(table: TableRef, count: usize, len: usize) -> bool {
    with_entry!(table, E, stride => all_valid::<E>(table.ptr.cast(), stride, count, len))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn all_valid_avx2(table: TableRef, count: usize, len: usize) -> bool {
    with_entry!(table, E, stride => all_valid::<E>(table.ptr.cast(), stride, count, len))
}

/// Contiguous runs, eight entries at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,popcnt")]
unsafe fn skip_avx512(table: TableRef, len: usize, row_stride: isize, out: &mut [isize], at: &mut [u32]) -> usize {
    use std::arch::x86_64::*;
    let limit = _mm512_set1_epi64(last(len) + 1);
    let factor = _mm512_set1_epi64(row_stride as i64);
    let mut position = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let whole = out.len() / 8 * 8;
    let mut n = 0;
    with_entry!(table, E, stride => {
        let p = table.ptr.cast::<E>();
        for i in (0..whole).step_by(8) {
            let value = E::wide_8(p.add(i));
            // Unsigned: a negative entry is above every limit.
            let valid = _mm512_cmplt_epu64_mask(value, limit);
            let offsets = _mm512_maskz_compress_epi64(valid, _mm512_mullo_epi64(value, factor));
            let positions = _mm256_maskz_compress_epi32(valid, position);
            // Eight lanes are stored, of which some are kept: `n <= i`, so they end within the outputs.
            _mm512_storeu_epi64(out.as_mut_ptr().add(n).cast(), offsets);
            _mm256_storeu_si256(at.as_mut_ptr().add(n).cast(), positions);
            position = _mm256_add_epi32(position, _mm256_set1_epi32(8));
            n += valid.count_ones() as usize;
        }
        skip::<E>(p, stride, whole, len, row_stride, n, out, at)
    })
}
