//! The matrix product against a naive loop, bit for bit: small integers, so that every order of summation is exact.

#![allow(unsafe_code)]

mod element;

use std::mem::MaybeUninit;

use einfall_cpu::isa::Isa;
use einfall_cpu::kernels::tile::{Accumulator, TileElement};
use einfall_cpu::ops::gemm::{
    Accum, Blocking, Caches, Scratch, gemm, gemm_prepacked, pack_right, packed_right_len, scratch_bytes,
};
use einfall_cpu::pack::{Matrix, MatrixMut, Offsets};
use half::{bf16, f16};
use num_complex::Complex;

use element::{Element, Exact};

/// Where the elements of a matrix lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Row,
    Col,
    Padded,
    PaddedCol,
    General,
    NegativeRows,
    NegativeCols,
    ScatteredRows,
    ScatteredCols,
    ScatteredBoth,
    BroadcastRows,
    BroadcastCols,
}
use Place::*;

const INJECTIVE: [Place; 10] =
    [Row, Col, Padded, PaddedCol, General, NegativeRows, NegativeCols, ScatteredRows, ScatteredCols, ScatteredBoth];
const ALL: [Place; 12] = [
    Row,
    Col,
    Padded,
    PaddedCol,
    General,
    NegativeRows,
    NegativeCols,
    ScatteredRows,
    ScatteredCols,
    ScatteredBoth,
    BroadcastRows,
    BroadcastCols,
];

/// A matrix with room for holes, and guards on both sides.
struct Laid<T> {
    data: Vec<T>,
    base: isize,
    rows: Vec<isize>,
    cols: Vec<isize>,
    strides: (Option<isize>, Option<isize>),
}

const GUARD: isize = 7;

fn shuffled(count: usize, stride: isize) -> Vec<isize> {
    // Multiplication by a number prime to the count visits every position once; 1009 is prime and above every count.
    let factor = 1009;
    (0..count).map(|i| (i * factor + 1) as isize % count as isize * stride).collect()
}

fn lay<T: Element>(place: Place, rows: usize, cols: usize, value: impl Fn(usize, usize) -> T) -> Laid<T> {
    let (m, n) = (rows as isize, cols as isize);
    let line = |count: usize, stride: isize| (0..count).map(|i| i as isize * stride).collect::<Vec<_>>();
    let (rs, cs) = match place {
        Row | ScatteredRows | NegativeRows | NegativeCols => (n, 1),
        Col => (1, m),
        Padded => (n + 3, 1),
        PaddedCol => (1, m + 5),
        General => (2 * n + 5, 2),
        ScatteredCols => (1, m),
        ScatteredBoth => (n + 1, 1),
        BroadcastRows => (0, 1),
        BroadcastCols => (1, 0),
    };
    let (mut row_list, mut col_list) = (line(rows, rs), line(cols, cs));
    let mut strides = (Some(rs), Some(cs));
    match place {
        NegativeRows => {
            row_list = line(rows, -rs);
            strides.0 = Some(-rs);
        }
        NegativeCols => {
            col_list = line(cols, -cs);
            strides.1 = Some(-cs);
        }
        ScatteredRows => {
            row_list = shuffled(rows, rs);
            strides.0 = None;
        }
        ScatteredCols => {
            col_list = shuffled(cols, cs);
            strides.1 = None;
        }
        ScatteredBoth => {
            (row_list, col_list) = (shuffled(rows, rs), shuffled(cols, cs));
            strides = (None, None);
        }
        _ => {}
    }
    let extent = |list: &[isize]| (list.iter().copied().min().unwrap_or(0), list.iter().copied().max().unwrap_or(0));
    let ((low_row, high_row), (low_col, high_col)) = (extent(&row_list), extent(&col_list));
    let base = GUARD - low_row - low_col;
    let len = base + high_row + high_col + 1 + GUARD;
    let mut data = vec![T::poison(); len as usize];
    for i in 0..rows {
        for j in 0..cols {
            data[(base + row_list[i] + col_list[j]) as usize] = value(i, j);
        }
    }
    Laid { data, base, rows: row_list, cols: col_list, strides }
}

impl<T: Element> Laid<T> {
    fn offsets(&self) -> (Offsets<'_>, Offsets<'_>) {
        (
            self.strides.0.map_or(Offsets::Scattered(&self.rows), Offsets::Strided),
            self.strides.1.map_or(Offsets::Scattered(&self.cols), Offsets::Strided),
        )
    }
    fn matrix(&self) -> Matrix<'_, T> {
        let (rows, cols) = self.offsets();
        Matrix { ptr: self.data.as_ptr().wrapping_offset(self.base), rows, cols }
    }
    fn at(&self, i: usize, j: usize) -> T {
        self.data[(self.base + self.rows[i] + self.cols[j]) as usize]
    }
}

fn small(seed: usize, i: usize, j: usize) -> Exact {
    let mix = |x: usize| (x.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as i64 % 7 - 2;
    let x = seed * 1_000_003 + i * 1009 + j + 1;
    Complex::new(mix(x), mix(x + 500_009))
}

struct Case {
    isa: Isa,
    blocking: Blocking,
    size: (usize, usize, usize),
    places: (Place, Place, Place),
    accum: Accum,
}

fn check<T: Element, U: Element + TileElement<Acc = T::Acc>>(case: &Case) {
    let (m, n, k) = case.size;
    let (pa, pb, pc) = case.places;
    let a = lay::<T>(pa, m, k, |i, p| T::of(small(1, i, p)));
    let b = lay::<T>(pb, k, n, |p, j| T::of(small(2, p, j)));
    let old = |i, j| match case.accum {
        Accum::Replace => U::poison(),
        Accum::Add => U::of(small(3, i, j)),
    };
    let fresh = lay::<U>(pc, m, n, old);
    let mut expected = fresh.data.clone();
    for i in 0..m {
        for j in 0..n {
            let start = match case.accum {
                Accum::Replace => Complex::new(0, 0),
                Accum::Add => fresh.at(i, j).exact(),
            };
            let sum = (0..k).fold(start, |sum, p| T::fold(sum, a.at(i, p).exact(), b.at(p, j).exact()));
            expected[(fresh.base + fresh.rows[i] + fresh.cols[j]) as usize] = U::of(sum);
        }
    }
    let most = scratch_bytes::<T>(case.isa, &case.blocking, m, n, k);
    let mut scratch = Scratch::new();
    let mut compare = |name: &str, run: &dyn Fn(MatrixMut<'_, U>, &mut Scratch)| {
        let mut c = lay::<U>(pc, m, n, old);
        let ptr = c.data.as_mut_ptr().wrapping_offset(c.base);
        let (rows, cols) = c.offsets();
        run(MatrixMut { ptr, rows, cols }, &mut scratch);
        assert!(scratch.bytes() <= most, "{name} {:?} {:?} {:?}", case.isa, case.size, case.places);
        for (at, (got, want)) in c.data.iter().zip(&expected).enumerate() {
            assert!(
                got.bits() == want.bits(),
                "{name} {:?} {:?} {}x{} {:?}: at {at} got {got:?}, want {want:?}",
                case.isa,
                case.size,
                std::any::type_name::<T>(),
                std::any::type_name::<U>(),
                (case.places, case.accum, case.blocking)
            );
        }
    };
    let (isa, blocking) = (case.isa, &case.blocking);
    compare("gemm", &|c, scratch| {
        // SAFETY: `lay` made every offset fall into its buffer; the isa is from `available`.
        unsafe { gemm(isa, blocking, m, n, k, a.matrix(), b.matrix(), c, case.accum, scratch) }
    });
    compare("prepacked", &|c, scratch| {
        let mut packed = vec![MaybeUninit::uninit(); packed_right_len::<T>(isa, n, k)];
        // SAFETY: as above.
        unsafe {
            pack_right::<T, T>(isa, blocking, n, k, b.matrix(), &mut packed);
            let packed = packed.as_ptr().cast();
            gemm_prepacked(isa, blocking, m, n, k, a.matrix(), packed, c, case.accum, scratch);
        }
    });
}

const ACCUMS: [Accum; 2] = [Accum::Replace, Accum::Add];

/// A small cache, so that small sizes have several blocks on every loop.
fn tiny(isa: Isa) -> Blocking {
    let kernel = f32::kernel(isa);
    Blocking { mc: 2 * kernel.max_height(kernel.max_width()), kc: 32, nc: 2 * kernel.max_width() * kernel.lanes }
}

fn natural<T: TileElement>(isa: Isa) -> Blocking {
    Blocking::new::<T>(isa, Caches::default())
}

/// Thins a long list of cases: 1 in `one_in`, the same ones every time.
struct Sieve {
    count: usize,
    one_in: usize,
}

impl Sieve {
    fn keeps(&mut self) -> bool {
        self.count += 1;
        self.count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & 0xffff < 0x10000 / self.one_in
    }
}

fn small_sizes<T: Element, U: Element + TileElement<Acc = T::Acc>>(one_in: usize) {
    for isa in Isa::available() {
        let mut sieve = Sieve { count: 0, one_in };
        for m in 0..=9 {
            for n in 0..=9 {
                for k in 0..=9 {
                    for (x, pa) in ALL.into_iter().enumerate() {
                        for (y, pb) in ALL.into_iter().enumerate() {
                            let pc = INJECTIVE[(x * 5 + y * 3 + m + n) % INJECTIVE.len()];
                            let accum = ACCUMS[(x + y + m + k) % 2];
                            if sieve.keeps() {
                                let blocking = natural::<T>(isa);
                                check::<T, U>(&Case { isa, blocking, size: (m, n, k), places: (pa, pb, pc), accum });
                            }
                        }
                    }
                }
            }
        }
    }
}

fn block_edges<T: Element, U: Element + TileElement<Acc = T::Acc>>(one_in: usize) {
    let sizes = [1, 2, 13, 14, 15, 16, 17, 28, 29, 31, 32, 33, 47, 63, 64, 65, 97, 130];
    let lengths = [0, 1, 7, 31, 32, 33, 64, 65, 96, 257];
    for isa in Isa::available() {
        let mut sieve = Sieve { count: 0, one_in };
        for m in sizes {
            for n in sizes {
                for k in lengths {
                    for (x, pa) in ALL.into_iter().enumerate() {
                        for (y, pb) in ALL.into_iter().enumerate() {
                            if sieve.keeps() {
                                let pc = INJECTIVE[(x * 3 + y * 7 + m + n) % INJECTIVE.len()];
                                let accum = ACCUMS[(x + y + m + k) % 2];
                                let blocking = if (m + n + x) % 3 == 0 { natural::<T>(isa) } else { tiny(isa) };
                                check::<T, U>(&Case { isa, blocking, size: (m, n, k), places: (pa, pb, pc), accum });
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Every place of C with every size around a tile, both ways to accumulate.
fn every_output<T: Element, U: Element + TileElement<Acc = T::Acc>>() {
    for isa in Isa::available() {
        for (m, n, k) in
            [(1, 1, 5), (1, 37, 3), (37, 1, 3), (14, 32, 40), (15, 33, 70), (5, 66, 33), (66, 5, 33), (29, 16, 0)]
        {
            for pc in INJECTIVE {
                for accum in ACCUMS {
                    for blocking in [tiny(isa), natural::<T>(isa)] {
                        for (pa, pb) in [(Row, Row), (Col, Col), (Row, Col), (ScatteredRows, ScatteredCols)] {
                            check::<T, U>(&Case { isa, blocking, size: (m, n, k), places: (pa, pb, pc), accum });
                        }
                    }
                }
            }
        }
    }
}

macro_rules! suite {
    ($($name:ident: $type:ty, $out:ty, $one_in:literal, $edges_one_in:literal;)+) => {$(
        mod $name {
            use super::*;

            #[test]
            fn sizes_up_to_nine() {
                small_sizes::<$type, $out>($one_in);
            }
            #[test]
            fn around_tiles_and_blocks() {
                block_edges::<$type, $out>($edges_one_in);
            }
            #[test]
            fn every_place_of_the_output() {
                every_output::<$type, $out>();
            }
        }
    )+};
}
suite! {
    single: f32, f32, 7, 151;
    double: f64, f64, 17, 307;
    half_16: f16, f16, 23, 499;
    brain: bf16, bf16, 23, 307;
    brain_to_single: bf16, f32, 23, 499;
    single_to_brain: f32, bf16, 23, 499;
    int_8: i8, i8, 41, 997;
    uint_8: u8, u8, 41, 997;
    int_8_to_32: i8, i32, 41, 997;
    int_16: i16, i16, 41, 997;
    uint_16: u16, u16, 41, 997;
    int_32: i32, i32, 23, 499;
    uint_32: u32, u32, 41, 997;
    int_64: i64, i64, 23, 499;
    uint_64: u64, u64, 41, 997;
    boolean: bool, bool, 23, 499;
    complex_64: Complex<f32>, Complex<f32>, 23, 499;
    complex_128: Complex<f64>, Complex<f64>, 23, 499;
}

/// Ones in a half type sum to a number that it rounds only once: 4096 + 1 blocks of k would lose every one after 256.
#[test]
fn halves_round_once() {
    for isa in Isa::available() {
        let (k, blocking) = (1027, tiny(isa));
        let ones = vec![bf16::ONE; k];
        let row = Matrix { ptr: ones.as_ptr(), rows: Offsets::Strided(0), cols: Offsets::Strided(1) };
        let mut c = vec![bf16::NAN; 40 * 40];
        let out = MatrixMut { ptr: c.as_mut_ptr(), rows: Offsets::Strided(40), cols: Offsets::Strided(1) };
        // SAFETY: A and B are k long with stride 0 across; C is 40 × 40.
        unsafe {
            gemm(isa, &blocking, 40, 40, k, row, row.transposed(), out, Accum::Replace, &mut Scratch::new());
        }
        assert!(c.iter().all(|&x| x == bf16::from_f32(1027.0)), "{isa:?} {:?}", c[0]);
    }
}

/// Real data: the bits of an element do not depend on how rows and columns are split.
#[test]
fn bits_do_not_depend_on_the_split() {
    let (m, n, k) = (61, 75, 301);
    let value = |x: usize| ((x * 7919 + 13) % 1009) as f32 / 97.0 - 5.0;
    let a: Vec<f32> = (0..m * k).map(value).collect();
    let b: Vec<f32> = (0..k * n).map(|x| value(x + 5)).collect();
    for isa in Isa::available() {
        let blocking = Blocking { kc: 64, ..tiny(isa) };
        let run = |cuts_m: &[usize], cuts_n: &[usize]| {
            let mut c = vec![f32::NAN; m * n];
            for i in cuts_m.windows(2) {
                for j in cuts_n.windows(2) {
                    let left =
                        Matrix { ptr: &a[i[0] * k], rows: Offsets::Strided(k as isize), cols: Offsets::Strided(1) };
                    let right = Matrix { ptr: &b[j[0]], rows: Offsets::Strided(n as isize), cols: Offsets::Strided(1) };
                    let out = MatrixMut {
                        ptr: &mut c[i[0] * n + j[0]] as *mut f32,
                        rows: Offsets::Strided(n as isize),
                        cols: Offsets::Strided(1),
                    };
                    let (rows, cols) = (i[1] - i[0], j[1] - j[0]);
                    // SAFETY: the parts lie within the matrices.
                    unsafe {
                        gemm(isa, &blocking, rows, cols, k, left, right, out, Accum::Replace, &mut Scratch::new());
                    }
                }
            }
            c.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let whole = run(&[0, m], &[0, n]);
        assert_eq!(whole, run(&[0, 1, 17, m], &[0, n]), "{isa:?}");
        assert_eq!(whole, run(&[0, 30, m], &[0, 3, 20, 21, n]), "{isa:?}");
    }
}
