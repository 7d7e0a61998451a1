//! Memory that ends where reading is forbidden, and values whose sums are exact.
#![allow(dead_code)] // each test file uses a part

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;

use einfall_cpu::kernels::rows::RowElement;
use einfall_tensor::Bool8;
use einfall_tensor::half::{bf16, f16};
use einfall_tensor::num_complex::Complex;

/// A small reproducible generator (SplitMix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In −1..1.
    pub fn real(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }
}

/// Values whose sums of products are exact in the accumulator.
pub trait Exact: RowElement {
    /// What must not be read: NaN where there is one.
    const POISON: Self;
    /// The same for results.
    const ACC_POISON: Self::Acc;

    fn exact(random: &mut Random) -> Self;
    /// A value with rounding errors to come.
    fn real(random: &mut Random) -> Self;
}

macro_rules! exact {
    ($($T:ty: $poison:expr, $acc_poison:expr, |$v:ident| $exact:expr, |$r:ident| $real:expr;)*) => {$(
        impl Exact for $T {
            const POISON: $T = $poison;
            const ACC_POISON: Self::Acc = $acc_poison;

            fn exact(random: &mut Random) -> $T {
                let $v = random.below(7) as i8 - 3;
                $exact
            }

            fn real(random: &mut Random) -> $T {
                let $r = random.real();
                $real
            }
        }
    )*};
}

exact! {
    f32: f32::NAN, f32::NAN, |v| v as f32, |r| r as f32;
    f64: f64::NAN, f64::NAN, |v| v as f64, |r| r;
    f16: f16::NAN, f32::NAN, |v| f16::from_f32(v as f32), |r| f16::from_f64(r);
    bf16: bf16::NAN, f32::NAN, |v| bf16::from_f32(v as f32), |r| bf16::from_f64(r);
    i8: 77, 77, |v| v, |r| r as i8;
    u64: 1 << 60, 1 << 60, |v| (v + 3) as u64, |r| r as u64;
    Bool8: Bool8(1), Bool8(1), |v| Bool8(if v == 0 { 5 } else { 0 }), |r| Bool8(u8::from(r > 0.5));
    Complex<f32>: Complex::new(f32::NAN, f32::NAN), Complex::new(f32::NAN, f32::NAN), |v| Complex::new(v as f32, (v * v % 3) as f32),
        |r| Complex::new(r as f32, 1.0 - r as f32);
}

/// The bytes of a value; all zeros are +0.
pub fn bits<A: Copy>(value: A) -> Vec<u8> {
    // SAFETY: the types under test have no padding.
    unsafe { std::slice::from_raw_parts((&raw const value).cast::<u8>(), size_of::<A>()) }.to_vec()
}

const PAGE: usize = 4096;

#[cfg(target_os = "linux")]
unsafe extern "C" {
    fn mprotect(address: *mut c_void, len: usize, protection: c_int) -> c_int;
}

/// Elements that end `shift` bytes before a page that cannot be read, so that a read past them ends the test.
pub struct Guarded<T> {
    base: *mut u8,
    layout: Layout,
    first: *mut u8,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Copy> Guarded<T> {
    pub fn new(values: &[T], shift: usize) -> Guarded<T> {
        let bytes = size_of_val(values) + shift;
        let usable = bytes.div_ceil(PAGE).max(1) * PAGE;
        let layout = Layout::from_size_align(usable + PAGE, PAGE).unwrap();
        // SAFETY: the layout is not empty; the last page belongs to the allocation; the elements end before it.
        unsafe {
            let base = alloc(layout);
            assert!(!base.is_null());
            base.write_bytes(0xff, usable);
            #[cfg(target_os = "linux")]
            assert_eq!(mprotect(base.add(usable).cast(), PAGE, 0), 0);
            let first = base.add(usable - bytes);
            let guarded = Guarded { base, layout, first, len: values.len(), element: PhantomData };
            for (i, &value) in values.iter().enumerate() {
                guarded.set(i, value);
            }
            guarded
        }
    }

    pub fn at(&self, i: usize) -> *const T {
        self.at_mut(i)
    }

    pub fn at_mut(&self, i: usize) -> *mut T {
        assert!(i <= self.len);
        self.first.cast::<T>().wrapping_add(i)
    }

    pub fn get(&self, i: usize) -> T {
        assert!(i < self.len);
        // SAFETY: inside, as asserted.
        unsafe { self.at(i).read_unaligned() }
    }

    pub fn set(&self, i: usize, value: T) {
        assert!(i < self.len);
        // SAFETY: inside, as asserted.
        unsafe { self.at_mut(i).write_unaligned(value) }
    }

    pub fn to_vec(&self) -> Vec<T> {
        (0..self.len).map(|i| self.get(i)).collect()
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: `base` and `layout` are those of `new`; the page is made usable again before it is given back.
        unsafe {
            #[cfg(target_os = "linux")]
            assert_eq!(mprotect(self.base.add(self.layout.size() - PAGE).cast(), PAGE, 3), 0);
            dealloc(self.base, self.layout);
        }
    }
}
