//! The loops that are timed: sums of rows, and multiply-adds that stay in registers.
//!
//! Each returns something that depends on all of its work, so that none of it can be left out.

use crate::isa::Isa;

/// Bytes of a row: two cache lines, 32 f32.
pub(super) const ROW: usize = 128;

/// A row of a table.
#[derive(Clone, Copy)]
#[repr(align(128))]
pub(super) struct Row(pub(super) [f32; ROW / 4]);

/// The sum of rows in order.
pub(super) fn sum_all(isa: Isa, rows: &[Row]) -> f32 {
    match isa {
        // SAFETY: `Isa`: its values promise that this machine has the instructions.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::sum_avx512(rows.iter()) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::sum_avx2(rows.iter()) },
        _ => portable_sum(rows.iter()),
    }
}

/// The sum of the rows that a list names; every position must be inside `table`.
pub(super) fn sum_rows(isa: Isa, table: &[Row], positions: &[u32]) -> f32 {
    let rows = positions.iter().map(|&at| &table[at as usize]);
    match isa {
        // SAFETY: `Isa`: its values promise that this machine has the instructions.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::sum_avx512(rows) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::sum_avx2(rows) },
        _ => portable_sum(rows),
    }
}

#[inline(always)]
fn portable_sum<'r>(rows: impl Iterator<Item = &'r Row>) -> f32 {
    let mut sums = [0f32; ROW / 4];
    for row in rows {
        for (sum, value) in sums.iter_mut().zip(&row.0) {
            *sum += value;
        }
    }
    sums.iter().sum()
}

/// Does `turns` rounds of f32 multiply-adds and returns how many a round has.
pub(super) fn multiply_adds_f32(isa: Isa, turns: usize) -> f64 {
    match isa {
        // SAFETY: `Isa`: its values promise that this machine has the instructions.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::f32_avx512(turns) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::f32_avx2(turns) },
        _ => portable_f32(turns),
    }
}

/// The same in f64.
pub(super) fn multiply_adds_f64(isa: Isa, turns: usize) -> f64 {
    match isa {
        // SAFETY: `Isa`: its values promise that this machine has the instructions.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::f64_avx512(turns) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::f64_avx2(turns) },
        _ => portable_f64(turns),
    }
}

/// Sums that are kept at once: more than the latency of a multiply-add times how many start in a cycle.
const SUMS: usize = 12;

macro_rules! portable_multiply_adds {
    ($name:ident, $type:ty, $lanes:expr) => {
        fn $name(turns: usize) -> f64 {
            // Eight vectors of 128 bits: as many as the baseline of x86-64 keeps in registers beside its constants.
            const LANES: usize = 8 * $lanes;
            let (by, plus) = (std::hint::black_box(0.999 as $type), std::hint::black_box(0.001 as $type));
            let mut sums = [1.0 as $type; LANES];
            for _ in 0..turns {
                for sum in &mut sums {
                    // Without fused instructions `mul_add` would be a call.
                    *sum = if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
                        sum.mul_add(by, plus)
                    } else {
                        *sum * by + plus
                    };
                }
            }
            std::hint::black_box(sums);
            LANES as f64
        }
    };
}

portable_multiply_adds!(portable_f32, f32, 4);
portable_multiply_adds!(portable_f64, f64, 2);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::{Row, SUMS};

    macro_rules! sum_of_rows {
        ($name:ident, $features:literal, $vectors:expr, $zero:ident, $load:ident, $add:ident, $store:ident) => {
            /// The sum of rows, two at a time in sums of their own.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name<'r>(mut rows: impl Iterator<Item = &'r Row>) -> f32 {
                const LANES: usize = 32 / $vectors;
                let mut sums = [[$zero(); $vectors]; 2];
                loop {
                    let pair = [rows.next(), rows.next()];
                    for (sums, row) in sums.iter_mut().zip(pair) {
                        let Some(row) = row else { continue };
                        for (at, sum) in sums.iter_mut().enumerate() {
                            // SAFETY: `Row` holds `$vectors * LANES` f32.
                            *sum = unsafe { $add(*sum, $load(row.0.as_ptr().add(at * LANES))) };
                        }
                    }
                    if pair[1].is_none() {
                        break;
                    }
                }
                let mut lanes = [0f32; LANES];
                let mut total = 0.0;
                for sum in sums.into_iter().flatten() {
                    // SAFETY: `lanes` has one f32 a lane.
                    unsafe { $store(lanes.as_mut_ptr(), sum) };
                    total += lanes.iter().sum::<f32>();
                }
                total
            }
        };
    }

    sum_of_rows!(sum_avx512, "avx512f", 2, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_add_ps, _mm512_storeu_ps);
    sum_of_rows!(sum_avx2, "avx2", 4, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_add_ps, _mm256_storeu_ps);

    macro_rules! multiply_adds {
        ($name:ident, $features:literal, $set:ident, $fmadd:ident, $lanes:expr) => {
            /// `turns` rounds of multiply-adds, each on a sum of its own.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(turns: usize) -> f64 {
                let (by, plus) = ($set(black_box(0.999)), $set(black_box(0.001)));
                let mut sums = [$set(1.0); SUMS];
                for _ in 0..turns {
                    for sum in &mut sums {
                        *sum = $fmadd(*sum, by, plus);
                    }
                }
                black_box(sums);
                (SUMS * $lanes) as f64
            }
        };
    }

    multiply_adds!(f32_avx512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps, 16);
    multiply_adds!(f64_avx512, "avx512f", _mm512_set1_pd, _mm512_fmadd_pd, 8);
    multiply_adds!(f32_avx2, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps, 8);
    multiply_adds!(f64_avx2, "avx2,fma", _mm256_set1_pd, _mm256_fmadd_pd, 4);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_count_every_row_once() {
        let table: Vec<Row> = (0..13).map(|at| Row([at as f32; ROW / 4])).collect();
        for isa in Isa::available() {
            assert_eq!(sum_all(isa, &table), 32.0 * 78.0, "{isa}");
            assert_eq!(sum_rows(isa, &table, &[12, 0, 12, 7, 1]), 32.0 * 32.0, "{isa}");
            assert_eq!(sum_rows(isa, &table, &[]), 0.0, "{isa}");
        }
    }
}
