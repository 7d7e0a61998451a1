//! Every row kernel of every instruction set of this machine against naive loops, bit for bit.
#![allow(unsafe_code)]

mod common;

use common::{Exact, Guarded, Random, bits};
use einfall_cpu::isa::Isa;
use einfall_cpu::kernels::rows::{
    AxpyList, DotList, MultiAxpys, MultiDots, PairedDots, RowElement, RowWeight, ScatterList, StridedDots, paired_dots,
    row_axpys, row_axpys_multi, row_dots, row_dots_multi, row_dots_strided, row_scatter,
};
use einfall_tensor::Bool8;
use einfall_tensor::half::{bf16, f16};
use einfall_tensor::num_complex::Complex;

const LENGTHS: [usize; 22] = [0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 100, 127, 129, 257];

/// Every short count, and for some lengths a long one.
fn counts(d: usize) -> impl Iterator<Item = usize> {
    (0..=40).chain((d % 2 == 1).then_some(257))
}

/// Rows of `d` elements with poison between them, at the very end of readable memory.
struct Table<T> {
    memory: Guarded<T>,
    d: usize,
    stride: usize,
    len: usize,
}

impl<T: Exact> Table<T> {
    fn new(len: usize, d: usize, shift: usize, random: &mut Random) -> Table<T> {
        let stride = d + 3;
        let mut values = vec![T::POISON; (len - 1) * stride + d];
        for row in 0..len {
            for j in 0..d {
                values[row * stride + j] = T::exact(random);
            }
        }
        Table { memory: Guarded::new(&values, shift), d, stride, len }
    }

    fn offsets(&self, count: usize, random: &mut Random) -> Guarded<isize> {
        // Row 1 is never referred to; see `poisoned_row`.
        let rows: Vec<isize> = (0..count)
            .map(|_| match random.below(self.len) {
                1 => 0,
                row => (row * self.stride) as isize,
            })
            .collect();
        Guarded::new(&rows, 0)
    }

    fn poison_row(&self, row: usize) {
        for j in 0..self.d {
            self.memory.set(row * self.stride + j, T::POISON);
        }
    }
}

fn naive_dot<T: Exact>(x: &Guarded<T>, at: usize, table: &Table<T>, offset: isize) -> T::Acc {
    (0..table.d).fold(T::ZERO, |acc, j| {
        let row = table.memory.get(offset as usize + j);
        T::add(acc, T::mul(x.get(at + j).widen(), row.widen()))
    })
}

fn vectors<T: Exact>(len: usize, shift: usize, random: &mut Random) -> Guarded<T> {
    let values: Vec<T> = (0..len).map(|_| T::exact(random)).collect();
    Guarded::new(&values, shift)
}

fn sums<T: Exact>(len: usize, shift: usize, random: &mut Random) -> Guarded<T::Acc> {
    let values: Vec<T::Acc> = (0..len).map(|_| T::exact(random).widen()).collect();
    Guarded::new(&values, shift)
}

fn poisoned<T: Exact>(len: usize, shift: usize) -> Guarded<T::Acc> {
    Guarded::new(&vec![T::ACC_POISON; len], shift)
}

fn for_every_case(mut check: impl FnMut(Isa, usize, usize, usize, &mut Random)) {
    for isa in Isa::available() {
        for d in LENGTHS {
            for count in counts(d) {
                // Most pointers are as misaligned as they can be, the others end exactly where memory ends.
                let shift = usize::from((d + count) % 2 == 0);
                let mut random = Random::new((d * 1000 + count) as u64);
                check(isa, d, count, shift, &mut random);
            }
        }
    }
}

fn dots_are_exact<T: Exact>() {
    for_every_case(|isa, d, count, shift, random| {
        let table = Table::<T>::new(11, d, shift, random);
        table.poison_row(1);
        let x = vectors::<T>(2 * d, shift, random);
        let offsets = table.offsets(count, random);
        let out = poisoned::<T>(2 * count, shift);
        let split = random.below(count + 1);
        let list = |x_at: usize, from: usize, to: usize, out_at: usize| DotList {
            x: x.at(x_at),
            rows: table.memory.at(0),
            offsets: offsets.at(from),
            count: to - from,
            out: out.at_mut(out_at + from),
        };
        let lists = [list(0, 0, split, 0), list(0, split, count, 0), list(d, 0, count, count)];
        // SAFETY: the lists lie within `x`, `offsets` and `out`, the offsets within `table`.
        unsafe { row_dots(isa, d, &lists) };
        for i in 0..2 * count {
            let expected = naive_dot(&x, i / count * d, &table, offsets.get(i % count));
            assert_eq!(bits(out.get(i)), bits(expected), "{isa} d={d} count={count} shift={shift} i={i}");
        }
    });
}

fn strided_and_paired_dots_are_exact<T: Exact>() {
    for_every_case(|isa, d, count, shift, random| {
        let table = Table::<T>::new(count.max(2), d, shift, random);
        let x = vectors::<T>(5 * d, shift, random);
        let out = poisoned::<T>(count, shift);
        // SAFETY: the table has `count` rows that far apart.
        unsafe {
            let list = StridedDots { x: x.at(0), rows: table.memory.at(0), count, out: out.at_mut(0) };
            row_dots_strided(isa, d, table.stride as isize, true, &[list]);
        }
        for i in 0..count {
            let expected = naive_dot(&x, 0, &table, (i * table.stride) as isize);
            assert_eq!(bits(out.get(i)), bits(expected), "strided {isa} d={d} count={count} shift={shift} i={i}");
        }
        table.poison_row(1);
        let offsets = table.offsets(count, random);
        let which: Vec<isize> = (0..count).map(|_| (random.below(5) * d) as isize).collect();
        let which = Guarded::new(&which, 0);
        let out = poisoned::<T>(count, shift);
        let call = PairedDots {
            x: x.at(0),
            x_offsets: which.at(0),
            rows: table.memory.at(0),
            offsets: offsets.at(0),
            count,
            d,
            out: out.at_mut(0),
        };
        // SAFETY: all offsets lie within `x` and `table`.
        unsafe { paired_dots(isa, &call) };
        for i in 0..count {
            let expected = naive_dot(&x, which.get(i) as usize, &table, offsets.get(i));
            assert_eq!(bits(out.get(i)), bits(expected), "paired {isa} d={d} count={count} shift={shift} i={i}");
        }
    });
}

fn multi_dots_are_exact<T: Exact>() {
    for_every_case(|isa, d, count, shift, random| {
        let m = 1 + (d + 3 * count) % 9;
        let table = Table::<T>::new(7, d, shift, random);
        table.poison_row(1);
        let x = vectors::<T>(m * (d + 1), shift, random);
        let offsets = table.offsets(count, random);
        let out_stride = count + 2;
        let out = poisoned::<T>(m * out_stride, shift);
        let call = MultiDots {
            x: x.at(0),
            x_stride: d as isize + 1,
            m,
            rows: table.memory.at(0),
            offsets: offsets.at(0),
            count,
            d,
            out: out.at_mut(0),
            out_stride: out_stride as isize,
        };
        // SAFETY: `x` and `out` have room for `m` vectors, the offsets lie within `table`.
        unsafe { row_dots_multi(isa, &call) };
        for k in 0..m {
            for i in 0..out_stride {
                let expected = match i < count {
                    true => naive_dot(&x, k * (d + 1), &table, offsets.get(i)),
                    false => T::ACC_POISON,
                };
                let found = out.get(k * out_stride + i);
                assert_eq!(bits(found), bits(expected), "{isa} d={d} count={count} m={m} k={k} i={i}");
            }
        }
    });
}

fn naive_axpy<T: Exact>(
    before: T::Acc,
    weight: impl Fn(usize) -> T::Acc,
    offsets: &[isize],
    table: &Table<T>,
    j: usize,
) -> T::Acc {
    offsets
        .iter()
        .enumerate()
        .fold(before, |acc, (i, &offset)| T::add(acc, T::mul(weight(i), table.memory.get(offset as usize + j).widen())))
}

fn axpys_are_exact<T: Exact, W: Exact<Acc = T::Acc> + RowWeight<T>>() {
    for_every_case(|isa, d, count, shift, random| {
        let table = Table::<T>::new(11, d, shift, random);
        table.poison_row(1);
        let offsets = table.offsets(count, random);
        let weights = vectors::<W>(count, shift, random);
        for accumulate in [false, true] {
            // Up to nine lists of any lengths share the offsets and the weights.
            let ends: Vec<usize> = (0..random.below(9)).map(|_| random.below(count + 1)).chain([count]).collect();
            let before = sums::<T>(ends.len() * d, shift, random);
            let acc = match accumulate {
                true => Guarded::new(&before.to_vec(), shift),
                false => poisoned::<T>(ends.len() * d, shift),
            };
            let lists: Vec<AxpyList<T, W>> = ends
                .iter()
                .enumerate()
                .map(|(l, &end)| AxpyList {
                    weights: weights.at(0),
                    rows: table.memory.at(0),
                    offsets: offsets.at(0),
                    count: end,
                    acc: acc.at_mut(l * d),
                })
                .collect();
            // SAFETY: `acc` has a row for each list, the offsets lie within `table`.
            unsafe { row_axpys(isa, d, &lists, accumulate) };
            for (l, &end) in ends.iter().enumerate() {
                for j in 0..d {
                    let from = if accumulate { before.get(l * d + j) } else { T::ZERO };
                    let used = &offsets.to_vec()[..end];
                    let expected = naive_axpy(from, |i| weights.get(i).widen(), used, &table, j);
                    assert_eq!(
                        bits(acc.get(l * d + j)),
                        bits(expected),
                        "{isa} d={d} count={count} shift={shift} accumulate={accumulate} list {l} of {ends:?} j={j}"
                    );
                }
            }
        }
    });
}

fn multi_axpys_are_exact<T: Exact, W: Exact<Acc = T::Acc> + RowWeight<T>>() {
    for_every_case(|isa, d, count, shift, random| {
        let m = 1 + (d + 3 * count) % 9;
        let accumulate = count % 2 == 1;
        let table = Table::<T>::new(7, d, shift, random);
        table.poison_row(1);
        let offsets = table.offsets(count, random);
        let weights = vectors::<W>(m * (count + 1), shift, random);
        let (weight_stride, acc_stride) = (count + 1, d + 2);
        let before = sums::<T>(m * acc_stride, shift, random);
        let acc = Guarded::new(&before.to_vec(), shift);
        let call = MultiAxpys {
            weights: weights.at(0),
            weight_stride: weight_stride as isize,
            m,
            rows: table.memory.at(0),
            offsets: offsets.at(0),
            count,
            d,
            acc: acc.at_mut(0),
            acc_stride: acc_stride as isize,
            accumulate,
        };
        // SAFETY: `weights` and `acc` have room for `m` vectors, the offsets lie within `table`.
        unsafe { row_axpys_multi(isa, &call) };
        for k in 0..m {
            for j in 0..acc_stride {
                let from = if accumulate || j >= d { before.get(k * acc_stride + j) } else { T::ZERO };
                let used = if j < d { offsets.to_vec() } else { Vec::new() };
                let expected = naive_axpy(from, |i| weights.get(k * weight_stride + i).widen(), &used, &table, j);
                let found = acc.get(k * acc_stride + j);
                assert_eq!(bits(found), bits(expected), "{isa} d={d} count={count} m={m} k={k} j={j}");
            }
        }
    });
}

macro_rules! exact {
    ($($name:ident: $T:ty;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn dots() {
                dots_are_exact::<$T>();
            }

            #[test]
            fn strided_and_paired_dots() {
                strided_and_paired_dots_are_exact::<$T>();
            }

            #[test]
            fn multi_dots() {
                multi_dots_are_exact::<$T>();
            }

            #[test]
            fn axpys() {
                axpys_are_exact::<$T, $T>();
                axpys_are_exact::<$T, <$T as RowElement>::Acc>();
            }

            #[test]
            fn multi_axpys() {
                multi_axpys_are_exact::<$T, $T>();
                multi_axpys_are_exact::<$T, <$T as RowElement>::Acc>();
            }
        }
    )*};
}

exact! {
    float_32: f32;
    float_64: f64;
    float_16: f16;
    brain_16: bf16;
    integer_8: i8;
    unsigned_64: u64;
    boolean: Bool8;
    complex: Complex<f32>;
}

/// The bits of a dot depend on its row and `x` alone, and those of an axpy on its list alone.
fn bits_do_not_depend_on_the_split<T: Exact>() {
    for isa in Isa::available() {
        for d in LENGTHS {
            let mut random = Random::new(d as u64);
            let rows: Vec<T> = (0..37 * d).map(|_| T::real(&mut random)).collect();
            let x: Vec<T> = (0..4 * d).map(|_| T::real(&mut random)).collect();
            let weights: Vec<T> = (0..37).map(|_| T::real(&mut random)).collect();
            let offsets: Vec<isize> = (0..37).map(|i| (i * 11 % 37 * d) as isize).collect();
            let list = |k: usize, from: usize, to: usize, out: &mut [T::Acc]| DotList {
                x: x[k * d..].as_ptr(),
                rows: rows.as_ptr(),
                offsets: offsets[from..].as_ptr(),
                count: to - from,
                out: out[from..].as_mut_ptr(),
            };
            let mut whole = vec![T::ZERO; 4 * 37];
            for (k, out) in whole.chunks_exact_mut(37).enumerate() {
                // SAFETY: 37 offsets of rows of `d` elements.
                unsafe { row_dots(isa, d, &[list(k, 0, 37, out)]) };
            }
            let bits_of = |values: &[T::Acc]| values.iter().map(|&v| bits(v)).collect::<Vec<_>>();
            for length in 1..37 {
                let mut out = vec![T::ZERO; 37];
                for from in (0..37).step_by(length) {
                    let lists = [list(0, from, 37.min(from + length), &mut out)];
                    // SAFETY: as above.
                    unsafe { row_dots(isa, d, &lists) };
                }
                assert_eq!(bits_of(&out), bits_of(&whole[..37]), "{isa} d={d} lists of {length}");
            }
            let mut out = vec![T::ZERO; 4 * 37];
            let call = MultiDots {
                x: x.as_ptr(),
                x_stride: d as isize,
                m: 4,
                rows: rows.as_ptr(),
                offsets: offsets.as_ptr(),
                count: 37,
                d,
                out: out.as_mut_ptr(),
                out_stride: 37,
            };
            // SAFETY: as above.
            unsafe { row_dots_multi(isa, &call) };
            assert_eq!(bits_of(&out), bits_of(&whole), "{isa} d={d} several vectors");
            let mut out = vec![T::ZERO; 37];
            let call = PairedDots {
                x: x.as_ptr(),
                x_offsets: [0; 37].as_ptr(),
                rows: rows.as_ptr(),
                offsets: offsets.as_ptr(),
                count: 37,
                d,
                out: out.as_mut_ptr(),
            };
            // SAFETY: as above.
            unsafe { paired_dots(isa, &call) };
            assert_eq!(bits_of(&out), bits_of(&whole[..37]), "{isa} d={d} pairs");

            let axpy = |from: usize, to: usize, acc: &mut [T::Acc]| AxpyList::<T> {
                weights: weights[from..].as_ptr(),
                rows: rows.as_ptr(),
                offsets: offsets[from..].as_ptr(),
                count: to - from,
                acc: acc.as_mut_ptr(),
            };
            let mut whole = vec![T::ZERO; d];
            // SAFETY: as above.
            unsafe { row_axpys(isa, d, &[axpy(0, 37, &mut whole)], false) };
            for length in 1..37 {
                // Several copies of the list side by side must not differ either.
                let mut accs = vec![vec![T::ZERO; d]; 7];
                for from in (0..37).step_by(length) {
                    let lists: Vec<_> = accs.iter_mut().map(|acc| axpy(from, 37.min(from + length), acc)).collect();
                    // SAFETY: as above.
                    unsafe { row_axpys(isa, d, &lists, from > 0) };
                }
                for acc in accs {
                    assert_eq!(bits_of(&acc), bits_of(&whole), "{isa} d={d} axpys of {length}");
                }
            }
            let mut acc = vec![T::ZERO; d];
            let call = MultiAxpys::<T> {
                weights: weights.as_ptr(),
                weight_stride: 0,
                m: 2,
                rows: rows.as_ptr(),
                offsets: offsets.as_ptr(),
                count: 37,
                d,
                acc: acc.as_mut_ptr(),
                acc_stride: 0,
                accumulate: false,
            };
            // SAFETY: as above; both weight vectors are the same, and so are the sums they are stored to.
            unsafe { row_axpys_multi(isa, &call) };
            assert_eq!(bits_of(&acc), bits_of(&whole), "{isa} d={d} several weight vectors");
            // The other way round: each row goes to two, and passes the first by.
            let mut acc = vec![T::ZERO; 3 * d];
            let to = [2 * d as isize, d as isize];
            for (&offset, weight) in offsets.iter().zip(&weights) {
                let weights = [weight.widen(); 2];
                let list = ScatterList {
                    weights: weights.as_ptr(),
                    x: rows[offset as usize..].as_ptr(),
                    rows: acc.as_mut_ptr(),
                    offsets: to.as_ptr(),
                    count: 2,
                };
                // SAFETY: as above; there are three rows to add to.
                unsafe { row_scatter(isa, d, &list) };
            }
            let expected = [vec![T::ZERO; d], whole.clone(), whole.clone()].concat();
            assert_eq!(bits_of(&acc), bits_of(&expected), "{isa} d={d} scattered");
        }
    }
}

/// A sum that starts at +0 stays +0 however many −0 are added; one without a start would not.
fn dots_of_negative_zeros_are_zero<T: Exact>(zero: T, minus_one: T) {
    for isa in Isa::available() {
        for d in LENGTHS {
            for count in [1, 3, 4, 37] {
                let (x, rows) = (vec![zero; 2 * d], vec![minus_one; d]);
                let offsets = vec![0_isize; count];
                let mut out = vec![T::ACC_POISON; 2 * count];
                let list = DotList {
                    x: x.as_ptr(),
                    rows: rows.as_ptr(),
                    offsets: offsets.as_ptr(),
                    count,
                    out: out.as_mut_ptr(),
                };
                // SAFETY: one row of `d` elements, referred to `count` times.
                unsafe { row_dots(isa, d, &[list]) };
                let zeros = vec![T::ZERO; 2 * count];
                let bits_of = |values: &[T::Acc]| values.iter().map(|&v| bits(v)).collect::<Vec<_>>();
                assert_eq!(bits_of(&out[..count]), bits_of(&zeros[..count]), "{isa} d={d} count={count}");
                let call = MultiDots {
                    x: x.as_ptr(),
                    x_stride: d as isize,
                    m: 2,
                    rows: rows.as_ptr(),
                    offsets: offsets.as_ptr(),
                    count,
                    d,
                    out: out.as_mut_ptr(),
                    out_stride: count as isize,
                };
                // SAFETY: as above.
                unsafe { row_dots_multi(isa, &call) };
                assert_eq!(bits_of(&out), bits_of(&zeros), "{isa} d={d} count={count} several vectors");
            }
        }
    }
}

#[test]
fn negative_zeros() {
    dots_of_negative_zeros_are_zero(0.0_f32, -1.0);
    dots_of_negative_zeros_are_zero(0.0_f64, -1.0);
    dots_of_negative_zeros_are_zero(f16::ZERO, f16::NEG_ONE);
    dots_of_negative_zeros_are_zero(bf16::ZERO, bf16::NEG_ONE);
}

#[test]
fn splits_leave_the_bits_of_f32() {
    bits_do_not_depend_on_the_split::<f32>();
}

#[test]
fn splits_leave_the_bits_of_f64() {
    bits_do_not_depend_on_the_split::<f64>();
}

#[test]
fn splits_leave_the_bits_of_f16() {
    bits_do_not_depend_on_the_split::<f16>();
}

#[test]
fn splits_leave_the_bits_of_bf16() {
    bits_do_not_depend_on_the_split::<bf16>();
}
