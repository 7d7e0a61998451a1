//! The innermost loops of the nest: one loop at fixed strides, compiled for each instruction set.

use super::plain::Turn;
use crate::isa::Isa;
use crate::scalar::Scalar;

/// Runs a body compiled with the instructions of an ISA, so that the compiler may vectorise it with them. What the body names
/// is moved into it: behind references, every store might change it, and nothing would be vectorised.
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
                Isa::Avx512 => unsafe { avx512(move || $body) },
                // SAFETY: as above.
                Isa::Avx2 => unsafe { avx2(move || $body) },
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

/// Lanes of a set of partial sums; fixed, so that every instruction set adds in the same order.
const LANES: usize = 16;
/// How far ahead of a long run its memory is asked for, bytes: a page, where the processor's own guesses end.
const AHEAD: isize = 4096;

/// Sets of [`LANES`] that run side by side, so that no addition waits for the one before: as many as registers hold.
const fn sets<A>() -> usize {
    match size_of::<A>() {
        0..=4 => 4,
        5..=8 => 2,
        _ => 1,
    }
}

/// Runs a body with the number of sets of an accumulator as a constant.
macro_rules! with_sets {
    ($A:ty, $K:ident => $body:expr) => {
        match sets::<$A>() {
            4 => {
                const $K: usize = 4;
                $body
            }
            2 => {
                const $K: usize = 2;
                $body
            }
            _ => {
                const $K: usize = 1;
                $body
            }
        }
    };
}

/// Asks for the line that is [`AHEAD`] of an element; it need not exist.
#[inline(always)]
fn fetch<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing that a program could notice, wherever it points.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(p.cast::<i8>().wrapping_offset(AHEAD));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Σ l·r over `count` elements; `far` if they come from memory.
///
/// # Safety
/// Both runs lie in readable memory.
pub(super) unsafe fn dot<T: Scalar>(
    isa: Isa,
    count: usize,
    far: bool,
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
    with_sets!(T::Acc, K => unsafe {
        match (left_stride, right_stride) {
            (1, 1) if far => for_isa!(isa, lanes_dot::<T, K, true>(count, l, 1, r, 1)),
            (1, 1) => for_isa!(isa, lanes_dot::<T, K, false>(count, l, 1, r, 1)),
            (1, 0) => for_isa!(isa, lanes_dot::<T, K, false>(count, l, 1, r, 0)),
            (0, 1) => for_isa!(isa, lanes_dot::<T, K, false>(count, l, 0, r, 1)),
            _ => lanes_dot::<T, K, false>(count, l, left_stride, r, right_stride),
        }
    })
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
unsafe fn lanes_dot<T: Scalar, const K: usize, const FAR: bool>(
    count: usize,
    l: *const T,
    ls: isize,
    r: *const T,
    rs: isize,
) -> T::Acc {
    // SAFETY: by the caller of `dot`: `i` is below `count`.
    let term = |i: usize| unsafe {
        let (a, b) = (l.offset(i as isize * ls).read_unaligned(), r.offset(i as isize * rs).read_unaligned());
        T::mul(a.widen(), b.widen())
    };
    let ahead = |i: usize| {
        fetch(l.wrapping_add(i));
        fetch(r.wrapping_add(i));
    };
    summed_lanes::<T, K, FAR>(count, term, ahead)
}

/// Σ term(i) for `i` in `0..count`, in `K` sets of lanes.
#[inline(always)]
fn summed_lanes<T: Scalar, const K: usize, const FAR: bool>(
    count: usize,
    term: impl Fn(usize) -> T::Acc,
    ahead: impl Fn(usize),
) -> T::Acc {
    let mut sets = [[T::ZERO; LANES]; K];
    let wide = count / (K * LANES) * (K * LANES);
    for start in (0..wide).step_by(K * LANES) {
        if FAR {
            for byte in (0..K * LANES * size_of::<T>()).step_by(64) {
                ahead(start + byte / size_of::<T>());
            }
        }
        for (set, lanes) in sets.iter_mut().enumerate() {
            for (lane, sum) in lanes.iter_mut().enumerate() {
                *sum = T::add(*sum, term(start + set * LANES + lane));
            }
        }
    }
    // Joined before the rest, so that the sets need no addresses and stay in registers.
    let mut lanes = sets[0];
    for set in &sets[1..] {
        for (sum, &more) in lanes.iter_mut().zip(set) {
            *sum = T::add(*sum, more);
        }
    }
    let whole = count / LANES * LANES;
    for start in (wide..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum = T::add(*sum, term(start + lane));
        }
    }
    for (lane, i) in (whole..count).enumerate() {
        lanes[lane] = T::add(lanes[lane], term(i));
    }
    join::<T>(lanes)
}

/// Σ l over `count` elements; `far` if they come from memory.
///
/// # Safety
/// The run lies in readable memory.
pub(super) unsafe fn sum<T: Scalar>(isa: Isa, count: usize, far: bool, l: *const T, stride: isize) -> T::Acc {
    // SAFETY: by the caller.
    with_sets!(T::Acc, K => unsafe {
        match stride {
            1 if far => for_isa!(isa, lanes_sum::<T, K, true>(count, l, 1)),
            1 => for_isa!(isa, lanes_sum::<T, K, false>(count, l, 1)),
            _ => lanes_sum::<T, K, false>(count, l, stride),
        }
    })
}

#[inline(always)]
unsafe fn lanes_sum<T: Scalar, const K: usize, const FAR: bool>(count: usize, l: *const T, stride: isize) -> T::Acc {
    // SAFETY: by the caller of `sum`: `i` is below `count`.
    let term = |i: usize| unsafe { l.offset(i as isize * stride).read_unaligned().widen() };
    summed_lanes::<T, K, FAR>(count, term, |i| fetch(l.wrapping_add(i)))
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

/// `o[i, j] = l[i, j]·r[i, j]`, or `l[i, j]` without `r`, for `rows` rows of `count` elements; strides along a row and
/// across rows are those of left, right and output.
///
/// # Safety
/// The runs lie in readable and writable memory; nobody else touches the output's.
#[allow(clippy::too_many_arguments)] // two loops over three pointers
pub(super) unsafe fn products<T: Scalar, U: Scalar<Acc = T::Acc>>(
    isa: Isa,
    rows: usize,
    count: usize,
    l: *const T,
    r: Option<*const T>,
    o: *mut U,
    along: [isize; 3],
    across: [isize; 3],
) {
    let product = |a: T, b: T| T::mul(a.widen(), b.widen());
    // SAFETY: by the caller, in every arm; what does not move along a row is read once a row.
    unsafe {
        for row in 0..rows as isize {
            let (l, o) = (l.offset(row * across[0]), o.offset(row * across[2]));
            let Some(r) = r.map(|r| r.offset(row * across[1])) else {
                match (along[0], along[2]) {
                    (1, 1) => for_isa!(isa, fill::<T, U>(count, o, 1, |i| l.offset(i).read_unaligned().widen())),
                    (step, stride) => {
                        for_isa!(isa, fill::<T, U>(count, o, stride, |i| l.offset(i * step).read_unaligned().widen()))
                    }
                }
                continue;
            };
            match along {
                [1, 1, 1] => for_isa!(
                    isa,
                    fill::<T, U>(count, o, 1, |i| product(l.offset(i).read_unaligned(), r.offset(i).read_unaligned()))
                ),
                [1, 0, 1] => {
                    let b = r.read_unaligned();
                    for_isa!(isa, fill::<T, U>(count, o, 1, |i| product(l.offset(i).read_unaligned(), b)));
                }
                [0, 1, 1] => {
                    let a = l.read_unaligned();
                    for_isa!(isa, fill::<T, U>(count, o, 1, |i| product(a, r.offset(i).read_unaligned())));
                }
                [ls, rs, os] => for_isa!(
                    isa,
                    fill::<T, U>(count, o, os, |i| {
                        product(l.offset(i * ls).read_unaligned(), r.offset(i * rs).read_unaligned())
                    })
                ),
            }
        }
    }
}

/// # Safety
/// The run lies in writable memory that nobody else touches.
#[inline(always)]
unsafe fn fill<T: Scalar, U: Scalar<Acc = T::Acc>>(
    count: usize,
    o: *mut U,
    stride: isize,
    value: impl Fn(isize) -> T::Acc,
) {
    for i in 0..count as isize {
        // SAFETY: by the caller.
        unsafe { o.offset(i * stride).write_unaligned(U::narrow(value(i))) };
    }
}

/// Σ l·r, or Σ l without `r`, over two loops, the second one innermost; `far` if they come from memory.
///
/// # Safety
/// The runs lie in readable memory.
pub(super) unsafe fn plane<T: Scalar>(
    isa: Isa,
    far: bool,
    outer: Turn,
    inner: Turn,
    l: *const T,
    r: Option<*const T>,
) -> T::Acc {
    let (rows, count) = (outer.len, inner.len);
    // SAFETY: by the caller, in every arm.
    unsafe {
        if rows > 1 && count <= RUN_IN_LANES {
            return match (r, inner.strides[0], inner.strides[1]) {
                (None, 1, _) => for_isa!(
                    isa,
                    lanes_plane::<T>(rows, count, |row, i| {
                        l.offset(row * outer.strides[0] + i).read_unaligned().widen()
                    })
                ),
                (Some(r), 1, 1) => for_isa!(
                    isa,
                    lanes_plane::<T>(rows, count, |row, i| T::mul(
                        l.offset(row * outer.strides[0] + i).read_unaligned().widen(),
                        r.offset(row * outer.strides[1] + i).read_unaligned().widen()
                    ))
                ),
                (None, step, _) => lanes_plane::<T>(rows, count, |row, i| {
                    l.offset(row * outer.strides[0] + i * step).read_unaligned().widen()
                }),
                (Some(r), left, right) => lanes_plane::<T>(rows, count, |row, i| {
                    T::mul(
                        l.offset(row * outer.strides[0] + i * left).read_unaligned().widen(),
                        r.offset(row * outer.strides[1] + i * right).read_unaligned().widen(),
                    )
                }),
            };
        }
        let mut total = T::ZERO;
        for row in 0..rows as isize {
            let l = l.offset(row * outer.strides[0]);
            let r = r.map(|r| r.offset(row * outer.strides[1]));
            // Long runs in parts, which keeps long sums precise.
            for done in (0..count).step_by(super::RUN) {
                let (part, done) = (super::RUN.min(count - done), done as isize);
                let l = l.offset(done * inner.strides[0]);
                let sum = match r {
                    Some(r) => {
                        let r = r.offset(done * inner.strides[1]);
                        dot(isa, part, far, l, inner.strides[0], r, inner.strides[1])
                    }
                    None if part < LANES => short_sum(part, l, inner.strides[0]),
                    None => sum(isa, part, far, l, inner.strides[0]),
                };
                total = if rows == 1 && done == 0 { sum } else { T::add(total, sum) };
            }
        }
        total
    }
}

/// Rows up to this length share their lanes, which are joined once.
const RUN_IN_LANES: usize = 64;

/// Terms of many short rows: element `i` of every row goes to lane `i` of [`LANES`].
#[inline(always)]
fn lanes_plane<T: Scalar>(rows: usize, count: usize, term: impl Fn(isize, isize) -> T::Acc) -> T::Acc {
    let mut total = T::ZERO;
    // Parts as long as a run, which keeps long sums precise.
    let most = (super::RUN / count.max(1)).max(1);
    for first in (0..rows).step_by(most) {
        let mut lanes = [T::ZERO; LANES];
        for row in first..rows.min(first + most) {
            let whole = count / LANES * LANES;
            for start in (0..whole).step_by(LANES) {
                for (lane, sum) in lanes.iter_mut().enumerate() {
                    *sum = T::add(*sum, term(row as isize, (start + lane) as isize));
                }
            }
            for (lane, sum) in lanes.iter_mut().enumerate().take(count - whole) {
                *sum = T::add(*sum, term(row as isize, (whole + lane) as isize));
            }
        }
        total = T::add(total, join::<T>(lanes));
    }
    total
}

#[inline(always)]
unsafe fn short_sum<T: Scalar>(count: usize, l: *const T, stride: isize) -> T::Acc {
    let mut sum = T::ZERO;
    for i in 0..count as isize {
        // SAFETY: by the caller of `plane`.
        sum = T::add(sum, unsafe { l.offset(i * stride).read_unaligned() }.widen());
    }
    sum
}

/// `o[n, m, i] = Σ_j l[n, m, j, i]·r[n, m, j, i]`: rows of as many outputs as one of `plain::WIDTHS`, kept in registers.
///
/// # Safety
/// The runs lie in readable and writable memory; nobody else touches the output's. Strides along a row are 0 or 1.
pub(super) unsafe fn rows<T: Scalar, U: Scalar<Acc = T::Acc>>(
    isa: Isa,
    long: Turn,
    turns: [Turn; 3],
    l: *const T,
    r: *const T,
    o: *mut U,
) {
    /// The loops for a row of a fixed length.
    macro_rules! widths {
        ($($width:literal)*) => {
            match turns[2].len {
                $($width => for_isa!(isa, rows_of::<T, U, $width>(long, turns, l, r, o)),)*
                width => unreachable!("{width} outputs do not fit in registers"),
            }
        };
    }
    // SAFETY: by the caller.
    unsafe { widths!(2 3 4 8 16) }
}

/// # Safety
/// As [`rows`], of rows of `W` outputs.
#[inline(always)]
unsafe fn rows_of<T: Scalar, U: Scalar<Acc = T::Acc>, const W: usize>(
    long: Turn,
    [other, summed, row]: [Turn; 3],
    l: *const T,
    r: *const T,
    o: *mut U,
) {
    // SAFETY: by the caller, for all loops together.
    unsafe {
        for n in 0..long.len as isize {
            for m in 0..other.len as isize {
                let at = |which: usize| n * long.strides[which] + m * other.strides[which];
                let (l, r, o) = (l.offset(at(0)), r.offset(at(1)), o.offset(at(2)));
                let mut sums = [T::ZERO; W];
                for j in 0..summed.len as isize {
                    let (l, r) = (l.offset(j * summed.strides[0]), r.offset(j * summed.strides[1]));
                    if row.strides[0] == 0 {
                        let (a, b) = (l.read_unaligned().widen(), r.cast::<[T; W]>());
                        if row.strides[1] == 1 {
                            let b = b.read_unaligned();
                            for (sum, b) in sums.iter_mut().zip(b) {
                                *sum = T::add(*sum, T::mul(a, b.widen()));
                            }
                        } else {
                            let b = r.read_unaligned().widen();
                            sums.iter_mut().for_each(|sum| *sum = T::add(*sum, T::mul(a, b)));
                        }
                    } else {
                        let a = l.cast::<[T; W]>().read_unaligned();
                        if row.strides[1] == 1 {
                            let b = r.cast::<[T; W]>().read_unaligned();
                            for (sum, (a, b)) in sums.iter_mut().zip(a.into_iter().zip(b)) {
                                *sum = T::add(*sum, T::mul(a.widen(), b.widen()));
                            }
                        } else {
                            let b = r.read_unaligned().widen();
                            for (sum, a) in sums.iter_mut().zip(a) {
                                *sum = T::add(*sum, T::mul(a.widen(), b));
                            }
                        }
                    }
                }
                o.cast::<[U; W]>().write_unaligned(sums.map(U::narrow));
            }
        }
    }
}
