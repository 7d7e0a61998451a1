//! The loading of tables, for every instruction set of this machine, dtype and stride.
#![allow(unsafe_code)]

mod common;

use common::{Guarded, Random};
use einfall_cpu::isa::Isa;
use einfall_cpu::load::{Invalid, TableDType, TableRef, first_invalid, load_offsets, load_offsets_skip};
use einfall_tensor::DType;

const LEN: usize = 101;
const ROW_STRIDE: isize = -37;

/// `value(i)` for each entry `0..count`, laid out `stride` apart, and nothing readable behind.
fn check<T: Copy>(
    dtype: TableDType,
    count: usize,
    stride: isize,
    shift: usize,
    values: &[i128],
    convert: fn(i128) -> T,
    filler: T,
) {
    let span = (count.max(1) - 1) * stride.unsigned_abs() + usize::from(count > 0);
    let mut memory = vec![filler; span];
    let first = if stride < 0 { span.saturating_sub(1) } else { 0 };
    for (i, &value) in values.iter().enumerate() {
        memory[first.wrapping_add_signed(i as isize * stride)] = convert(value);
    }
    let memory = Guarded::new(&memory, shift);
    let at = if count == 0 { 0 } else { first };
    let table = TableRef { ptr: memory.at(at).cast(), dtype, stride_elems: stride };
    let is_valid = |value: i128| (0..LEN as i128).contains(&value);
    let bad = values.iter().position(|&value| !is_valid(value));
    let bad = bad.map(|position| Invalid { position, value: values[position], len: LEN });
    for isa in Isa::available() {
        let context = format!("{isa} {dtype:?} count={count} stride={stride} {values:?}");
        let mut offsets = vec![7_isize; count + 1];
        // SAFETY: `memory` holds `count` entries that far apart.
        let result = unsafe { load_offsets(isa, table, count, LEN, ROW_STRIDE, &mut offsets) };
        // SAFETY: as above.
        assert_eq!(unsafe { first_invalid(isa, table, count, LEN) }, bad, "{context}");
        assert_eq!(result.err(), bad, "{context}");
        if bad.is_none() {
            let expected: Vec<isize> = values.iter().map(|&value| value as isize * ROW_STRIDE).collect();
            assert_eq!(offsets[..count], expected, "{context}");
        }
        assert_eq!(offsets[count], 7, "{context}");

        let mut offsets = vec![7_isize; count];
        let mut positions = vec![9_u32; count];
        // SAFETY: as above.
        let n = unsafe { load_offsets_skip(isa, table, count, LEN, ROW_STRIDE, &mut offsets, &mut positions) };
        let kept: Vec<u32> = (0..count as u32).filter(|&i| is_valid(values[i as usize])).collect();
        assert_eq!(positions[..n], kept, "{context}");
        let expected: Vec<isize> = kept.iter().map(|&i| values[i as usize] as isize * ROW_STRIDE).collect();
        assert_eq!(offsets[..n], expected, "{context}");
    }
}

fn check_dtype<T: Copy>(dtype: TableDType, convert: fn(i128) -> T, invalid: &[i128]) {
    let mut random = Random::new(dtype.bytes() as u64);
    for count in (0..35).chain([100, 1023, 1025, 2049]) {
        for stride in [1, 2, 5, -1, -3] {
            let shift = count % 2;
            let valid: Vec<i128> = (0..count).map(|_| random.below(LEN) as i128).collect();
            // Entries between those of a strided run are not looked at.
            check(dtype, count, stride, shift, &valid, convert, convert(invalid[0]));
            if count == 0 {
                continue;
            }
            for &value in invalid {
                for position in [0, count / 2, count - 1, random.below(count)] {
                    let mut values = valid.clone();
                    values[position] = value;
                    values[random.below(count)] = invalid[random.below(invalid.len())];
                    check(dtype, count, stride, shift, &values, convert, convert(0));
                }
            }
        }
    }
}

#[test]
fn signed_8() {
    check_dtype(TableDType::I8, |v| v as i8, &[-1, 101, 127, -128]);
}

#[test]
fn signed_16() {
    check_dtype(TableDType::I16, |v| v as i16, &[-1, 101, 32767, -32768, 256]);
}

#[test]
fn signed_32() {
    check_dtype(TableDType::I32, |v| v as i32, &[-1, 101, i32::MAX.into(), i32::MIN.into(), 1 << 16]);
}

#[test]
fn signed_64() {
    check_dtype(TableDType::I64, |v| v as i64, &[-1, 101, i64::MAX.into(), i64::MIN.into(), 1 << 32, (1 << 32) + 5]);
}

#[test]
fn unsigned_8() {
    check_dtype(TableDType::U8, |v| v as u8, &[101, 255, 128]);
}

#[test]
fn unsigned_16() {
    check_dtype(TableDType::U16, |v| v as u16, &[101, 65535, 32768]);
}

#[test]
fn unsigned_32() {
    check_dtype(TableDType::U32, |v| v as u32, &[101, u32::MAX.into(), 1 << 31]);
}

#[test]
fn unsigned_64() {
    check_dtype(TableDType::U64, |v| v as u64, &[101, u64::MAX.into(), 1 << 63, (1 << 63) + 5, 1 << 32]);
}

#[test]
fn every_entry_is_invalid_on_an_empty_axis() {
    let entries = [0_i64; 9];
    let table = TableRef { ptr: entries.as_ptr().cast(), dtype: TableDType::I64, stride_elems: 1 };
    for isa in Isa::available() {
        let mut offsets = [0; 9];
        // SAFETY: the table has nine entries.
        let error = unsafe { load_offsets(isa, table, 9, 0, 1, &mut offsets) }.unwrap_err();
        assert_eq!(error.to_string(), "table entry 0 is 0, outside an axis of length 0");
        // SAFETY: as above.
        assert_eq!(unsafe { load_offsets_skip(isa, table, 9, 0, 1, &mut offsets, &mut [0; 9]) }, 0);
        // SAFETY: as above; no entry is read.
        assert_eq!(unsafe { load_offsets(isa, table, 0, 0, 1, &mut offsets) }, Ok(()));
    }
}

/// Offsets and lengths past 2³¹, which must not be computed in 32 bits.
#[test]
fn long_axes_and_strides() {
    let entries: [i64; 11] = [0, 1, 2, 1 << 31, (1 << 31) - 1, (1 << 31) + 1, 1 << 32, 5, 6, 7, (1 << 33) - 1];
    let table = TableRef { ptr: entries.as_ptr().cast(), dtype: TableDType::I64, stride_elems: 1 };
    for isa in Isa::available() {
        for (len, row_stride) in [(1 << 33, 3), (1 << 33, -(1 << 28)), (1 << 33, 1 << 29)] {
            let expected = entries.map(|entry| entry as isize * row_stride);
            let mut offsets = [0; 11];
            // SAFETY: the table has eleven entries.
            unsafe { load_offsets(isa, table, 11, len, row_stride, &mut offsets) }.unwrap();
            assert_eq!(offsets, expected, "{isa}");
            let mut offsets = [0; 11];
            // SAFETY: as above.
            let n = unsafe { load_offsets_skip(isa, table, 11, len, row_stride, &mut offsets, &mut [0; 11]) };
            assert_eq!((n, offsets), (11, expected), "{isa}");
        }
        // A short axis with a long stride, and an axis one shorter than what 32 bits hold.
        let mut offsets = [0; 3];
        // SAFETY: as above.
        unsafe { load_offsets(isa, table, 3, 3, 1 << 40, &mut offsets) }.unwrap();
        assert_eq!(offsets, [0, 1 << 40, 2 << 40], "{isa}");
        let mut offsets = [0; 11];
        // SAFETY: as above.
        let error = unsafe { load_offsets(isa, table, 11, 1 << 31, 1, &mut offsets) }.unwrap_err();
        assert_eq!(error, Invalid { position: 3, value: 1 << 31, len: 1 << 31 }, "{isa}");
    }
}

#[test]
fn only_integers_index_rows() {
    assert_eq!(TableDType::of(DType::I16), Some(TableDType::I16));
    for dtype in DType::ALL {
        match TableDType::of(dtype) {
            Some(table) => assert!(dtype.is_integer() && table.bytes() == dtype.bytes()),
            None => assert!(!dtype.is_integer()),
        }
    }
}
