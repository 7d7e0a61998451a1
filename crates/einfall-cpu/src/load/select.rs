//! Picking listed results out of a row of all, and placing listed weights into one, straight from the table.
//!
//! *In*: a run of table entries and a row of `len` elements that lies in the first or second cache. *Out*: the listed
//! elements in the order of the list, or the row with the weights added. *Callers*: the ops that compute a tile over all
//! rows. Entries outside the row are left out, and reported.
#![allow(unsafe_op_in_unsafe_fn)] // the invariants are those of `pick` and `place`

use super::{Entry, STRIP, TableDType, TableRef, badness, fetch_ahead, last, with_entry};
use crate::isa::Isa;
use crate::scalar::Scalar;

/// Writes `to[i] = from[table[i]]` for the first `count` entries, zero for those outside `0..len`; true if there are none
/// of these.
///
/// Costs about one and a half cycles an entry.
///
/// # Panics
/// `len` is 0.
///
/// # Safety
/// The machine has `isa`; the table has `count` entries; `from` is valid for `len` elements and `to` for `count`.
pub unsafe fn pick<A: Scalar<Acc = A>>(
    isa: Isa,
    table: TableRef,
    count: usize,
    len: usize,
    from: *const A,
    to: *mut A,
) -> bool {
    assert!(len > 0, "there is a row to pick from");
    let mut valid = true;
    for first in (0..count).step_by(STRIP) {
        let strip = table.skip(first);
        let (n, to) = (STRIP.min(count - first), to.add(first));
        fetch_ahead(strip, n);
        valid &= match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if strip.stride_elems == 1 && size_of::<A>() == 4 && i32::try_from(len).is_ok() => {
                pick_avx512(strip, n, len, from, to)
            }
            _ => with_entry!(strip, E, stride => pick_each::<E, A>(strip.ptr.cast(), stride, n, len, from, to)),
        };
    }
    valid
}

#[inline(always)]
unsafe fn pick_each<E: Entry, A: Scalar<Acc = A>>(
    p: *const E,
    stride: isize,
    count: usize,
    len: usize,
    from: *const A,
    to: *mut A,
) -> bool {
    let (last, mut bad) = (last(len), 0);
    for i in 0..count {
        let value = p.offset(i as isize * stride).read_unaligned().wide();
        let badness = badness(value, last);
        bad |= badness;
        // Read always, kept if valid.
        let there = badness >= 0;
        let element = *from.add(if there { value as usize } else { 0 });
        to.add(i).write_unaligned(if there { element } else { A::ZERO });
    }
    bad >= 0
}

/// Elements of 4 bytes, contiguous entries.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn pick_avx512<A: Scalar<Acc = A>>(
    table: TableRef,
    count: usize,
    len: usize,
    from: *const A,
    to: *mut A,
) -> bool {
    use std::arch::x86_64::*;
    let limit = _mm512_set1_epi64(len as i64);
    let whole = count / 16 * 16;
    let mut all = !0;
    with_entry!(table, E, stride => {
        let p = table.ptr.cast::<E>();
        for i in (0..whole).step_by(16) {
            let (low, high) = (E::wide_8(p.add(i)), E::wide_8(p.add(i + 8)));
            // Unsigned: a negative entry is above every limit.
            let (valid_low, valid_high) = (_mm512_cmplt_epu64_mask(low, limit), _mm512_cmplt_epu64_mask(high, limit));
            let valid = u16::from(valid_low) | u16::from(valid_high) << 8;
            let low = _mm512_castsi256_si512(_mm512_cvtepi64_epi32(low));
            let at = _mm512_inserti64x4::<1>(low, _mm512_cvtepi64_epi32(high));
            let picked = _mm512_mask_i32gather_ps::<4>(_mm512_setzero_ps(), valid, at, from.cast());
            _mm512_storeu_ps(to.add(i).cast(), picked);
            all &= valid;
        }
        let rest = pick_each::<E, A>(p.add(whole), stride, count - whole, len, from, to.add(whole));
        all == !0 && rest
    })
}

/// Adds `weights[i]` to `to[table[i]]` for the first `count` entries, in order, those outside `0..len` left out; true if
/// there are none of these.
///
/// Costs about two cycles an entry.
///
/// # Panics
/// `len` is 0.
///
/// # Safety
/// The table has `count` entries; `weights` is valid for `count` elements that lie
/// `weight_stride` apart, and `to` for `len`.
pub unsafe fn place<A: Scalar<Acc = A>>(
    table: TableRef,
    count: usize,
    len: usize,
    weights: *const A,
    weight_stride: isize,
    to: *mut A,
) -> bool {
    assert!(len > 0, "there is a row to place into");
    let (last, mut bad) = (last(len), 0);
    for first in (0..count).step_by(STRIP) {
        let strip = table.skip(first);
        let n = STRIP.min(count - first);
        let weights = weights.offset(first as isize * weight_stride);
        fetch_ahead(strip, n);
        with_entry!(strip, E, stride => {
            let p = strip.ptr.cast::<E>();
            for i in 0..n as isize {
                let value = p.offset(i * stride).read_unaligned().wide();
                let badness = badness(value, last);
                bad |= badness;
                let there = badness >= 0;
                let weight = weights.offset(i * weight_stride).read_unaligned();
                // Nothing is added to the first element for an entry that is left out.
                let place = to.add(if there { value as usize } else { 0 });
                *place = A::add(*place, if there { weight } else { A::ZERO });
            }
        });
    }
    bad >= 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(count: usize, len: usize) -> Vec<i64> {
        (0..count as i64)
            .map(|i| if i % 11 == 7 { [-1, len as i64, i64::MIN][i as usize % 3] } else { i * 37 % len as i64 })
            .collect()
    }

    #[test]
    fn picked_and_placed_elements_are_those_of_the_list() {
        let len = 53;
        let row: Vec<f32> = (0..len).map(|i| i as f32 + 0.5).collect();
        let wide: Vec<f64> = row.iter().map(|&x| x.into()).collect();
        for isa in Isa::available() {
            for count in [0, 1, 7, 15, 16, 17, 127, 128, 129, 300] {
                let entries = tables(count, len);
                let narrow: Vec<i16> = entries.iter().map(|&e| e.clamp(-3, 999) as i16).collect();
                let there = |i: usize| (0..len as i64).contains(&entries[i]);
                for (ptr, dtype) in
                    [(entries.as_ptr().cast::<u8>(), TableDType::I64), (narrow.as_ptr().cast(), TableDType::I16)]
                {
                    for stride_elems in [1, -1] {
                        let order = |i: usize| if stride_elems == 1 { i } else { count - 1 - i };
                        let start = if stride_elems == 1 { 0 } else { count.saturating_sub(1) * dtype.bytes() };
                        let table = TableRef { ptr: ptr.wrapping_add(start), dtype, stride_elems };
                        let (mut to, mut to_wide) = (vec![9.0_f32; count], vec![9.0_f64; count]);
                        // SAFETY: the table has `count` entries, the row `len` elements.
                        let valid = unsafe {
                            pick(isa, table, count, len, row.as_ptr(), to.as_mut_ptr())
                                & pick(isa, table, count, len, wide.as_ptr(), to_wide.as_mut_ptr())
                        };
                        assert_eq!(valid, (0..count).all(there), "{isa} {count}");
                        for i in 0..count {
                            let from = order(i);
                            let expected = if there(from) { row[entries[from] as usize] } else { 0.0 };
                            assert_eq!((to[i], to_wide[i]), (expected, expected.into()), "{isa} {count} {i}");
                        }
                        let weights: Vec<f32> = (0..2 * count).map(|i| i as f32).collect();
                        let (mut placed, mut expected) = (vec![1.0_f32; len], vec![1.0_f32; len]);
                        // SAFETY: as above; the weights are two apart.
                        let valid = unsafe { place(table, count, len, weights.as_ptr(), 2, placed.as_mut_ptr()) };
                        assert_eq!(valid, (0..count).all(there), "{isa} {count}");
                        (0..count)
                            .filter(|&i| there(order(i)))
                            .for_each(|i| expected[entries[order(i)] as usize] += weights[2 * i]);
                        assert_eq!(placed, expected, "{isa} {count}");
                    }
                }
            }
        }
    }
}
