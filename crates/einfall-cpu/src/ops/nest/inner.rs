//! The innermost loops of the nest: one loop at fixed strides, compiled for each instruction set.

use crate::isa::Isa;
use crate::scalar::Scalar;

/// Runs a body compiled with the instructions of an ISA, so that the compiler may vectorise it with them.
macro_rules! for_isa {
    ($isa:expr, $body:expr) => {{
        #[cfg(target_arch = "x86_64")]
        #[allow(unused_unsafe)] // most callers are inside an unsafe block already
        {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2<R>(body: impl FnOnce() -> R) -> R {
                body()
            }
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
            fn avx512<R>(body: impl FnOnce() -> R) -> R {
                body()
            }
            match $isa {
                // SAFETY: an `Isa` is only made for a machine that has its instructions.
                Isa::Avx512 => unsafe { avx512(|| $body) },
                // SAFETY: as above.
                Isa::Avx2 => unsafe { avx2(|| $body) },
                _ => $body,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = $isa;
            $body
        }
    }};
}

/// Partial sums that run side by side; fixed, so that every instruction set adds in the same order.
const LANES: usize = 16;

/// Σ l·r over `count` elements.
///
/// # Safety
/// Both runs lie in readable memory.
pub(super) unsafe fn dot<T: Scalar>(
    isa: Isa,
    count: usize,
    l: *const T,
    left_stride: isize,
    r: *const T,
    right_stride: isize,
) -> T::Acc {
    if count < LANES {
        // SAFETY: by the caller.
        return unsafe { strided_dot(count, l, left_stride, r, right_stride) };
    }
    // SAFETY: by the caller; equal strides of one are given to the compiler as constants.
    unsafe {
        match (left_stride, right_stride) {
            (1, 1) => for_isa!(isa, lanes_dot(count, l, 1, r, 1)),
            (1, 0) => for_isa!(isa, lanes_dot(count, l, 1, r, 0)),
            (0, 1) => for_isa!(isa, lanes_dot(count, l, 0, r, 1)),
            _ => lanes_dot(count, l, left_stride, r, right_stride),
        }
    }
}

#[inline(always)]
unsafe fn strided_dot<T: Scalar>(count: usize, l: *const T, ls: isize, r: *const T, rs: isize) -> T::Acc {
    let mut sum = T::ZERO;
    for i in 0..count as isize {
        // SAFETY: by the caller of `dot`.
        let (a, b) = unsafe { (l.offset(i * ls).read_unaligned(), r.offset(i * rs).read_unaligned()) };
        sum = T::add(sum, T::mul(a.widen(), b.widen()));
    }
    sum
}

#[inline(always)]
unsafe fn lanes_dot<T: Scalar>(count: usize, l: *const T, ls: isize, r: *const T, rs: isize) -> T::Acc {
    let mut lanes = [T::ZERO; LANES];
    let whole = count / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            let i = (start + lane) as isize;
            // SAFETY: by the caller of `dot`.
            let (a, b) = unsafe { (l.offset(i * ls).read_unaligned(), r.offset(i * rs).read_unaligned()) };
            *sum = T::add(*sum, T::mul(a.widen(), b.widen()));
        }
    }
    for (lane, i) in (whole..count).enumerate() {
        let i = i as isize;
        // SAFETY: by the caller of `dot`.
        let (a, b) = unsafe { (l.offset(i * ls).read_unaligned(), r.offset(i * rs).read_unaligned()) };
        lanes[lane] = T::add(lanes[lane], T::mul(a.widen(), b.widen()));
    }
    join::<T>(lanes)
}

/// Σ l over `count` elements.
///
/// # Safety
/// The run lies in readable memory.
pub(super) unsafe fn sum<T: Scalar>(isa: Isa, count: usize, l: *const T, stride: isize) -> T::Acc {
    // SAFETY: by the caller.
    unsafe {
        match stride {
            1 => for_isa!(isa, lanes_sum(count, l, 1)),
            _ => lanes_sum(count, l, stride),
        }
    }
}

#[inline(always)]
unsafe fn lanes_sum<T: Scalar>(count: usize, l: *const T, stride: isize) -> T::Acc {
    let mut lanes = [T::ZERO; LANES];
    let whole = count / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            // SAFETY: by the caller of `sum`.
            let a = unsafe { l.offset((start + lane) as isize * stride).read_unaligned() };
            *sum = T::add(*sum, a.widen());
        }
    }
    for (lane, i) in (whole..count).enumerate() {
        // SAFETY: by the caller of `sum`.
        let a = unsafe { l.offset(i as isize * stride).read_unaligned() };
        lanes[lane] = T::add(lanes[lane], a.widen());
    }
    join::<T>(lanes)
}

/// Adds the lanes as a tree, always the same one.
#[inline(always)]
fn join<T: Scalar>(mut lanes: [T::Acc; LANES]) -> T::Acc {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = T::add(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// `sums[i] = l[i]·r[i]`, or `+=` unless `fresh`; without `r`, the product is `l[i]`.
///
/// # Safety
/// The runs lie in readable memory for `sums.len()` elements.
pub(super) unsafe fn multiply_add<T: Scalar>(
    isa: Isa,
    sums: &mut [T::Acc],
    fresh: bool,
    l: *const T,
    left_stride: isize,
    r: Option<*const T>,
    right_stride: isize,
) {
    // SAFETY: by the caller, in every arm.
    unsafe {
        let Some(r) = r else {
            match left_stride {
                1 => for_isa!(isa, update::<T>(sums, fresh, |i| l.offset(i).read_unaligned().widen())),
                0 => {
                    let value = l.read_unaligned().widen();
                    for_isa!(isa, update::<T>(sums, fresh, |_| value));
                }
                _ => update::<T>(sums, fresh, |i| l.offset(i * left_stride).read_unaligned().widen()),
            }
            return;
        };
        let product = |a: T, b: T| T::mul(a.widen(), b.widen());
        match (left_stride, right_stride) {
            (1, 1) => for_isa!(
                isa,
                update::<T>(sums, fresh, |i| product(l.offset(i).read_unaligned(), r.offset(i).read_unaligned()))
            ),
            (1, 0) => {
                let b = r.read_unaligned();
                for_isa!(isa, update::<T>(sums, fresh, |i| product(l.offset(i).read_unaligned(), b)));
            }
            (0, 1) => {
                let a = l.read_unaligned();
                for_isa!(isa, update::<T>(sums, fresh, |i| product(a, r.offset(i).read_unaligned())));
            }
            _ => update::<T>(sums, fresh, |i| {
                product(l.offset(i * left_stride).read_unaligned(), r.offset(i * right_stride).read_unaligned())
            }),
        }
    }
}

#[inline(always)]
fn update<T: Scalar>(sums: &mut [T::Acc], fresh: bool, term: impl Fn(isize) -> T::Acc) {
    if fresh {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = term(i as isize);
        }
    } else {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = T::add(*sum, term(i as isize));
        }
    }
}

/// Stores finished sums.
///
/// # Safety
/// The run lies in writable memory that nobody else touches.
pub(super) unsafe fn store<T: Scalar, U: Scalar<Acc = T::Acc>>(isa: Isa, sums: &[T::Acc], to: *mut U, stride: isize) {
    // SAFETY: by the caller.
    unsafe {
        if stride == 1 {
            for_isa!(isa, {
                for (i, &sum) in sums.iter().enumerate() {
                    to.add(i).write_unaligned(U::narrow(sum));
                }
            });
        } else {
            for (i, &sum) in sums.iter().enumerate() {
                to.offset(i as isize * stride).write_unaligned(U::narrow(sum));
            }
        }
    }
}
