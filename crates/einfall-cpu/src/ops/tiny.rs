//! Plain products so small that any preparation costs more than the arithmetic: a few matrices of a few elements.
//!
//! *In*: a contraction whose accesses are strides alone. One loop nest on the caller's thread, a sum at a time, terms in
//! the order of the loops; no list, no buffer, no allocation.

use einfall_plan::{Access, Contraction, Cost, Estimate, Machine, Role, Way};
use smallvec::SmallVec;

use crate::ops::{Run, with_types};
use crate::scalar::Scalar;
use crate::walk::BadTable;

/// Multiply-adds above which other kernels are faster in any case.
const TERMS: f64 = 4096.0;

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, _: &Machine) -> Result<Estimate, String> {
    super::check_out_dtype(contraction)?;
    if !contraction.accesses().all(Access::is_plain) {
        return Err("something is looked up or slid over".into());
    }
    let terms = contraction.flops() / 2.0;
    if terms > TERMS {
        return Err("not small".into());
    }
    // Measured on Zen 5: each sum, and each term of its chain of additions.
    let sums = terms / contraction.terms();
    let seconds = 40e-9 + 4e-9 * sums + 1e-9 * terms;
    let bytes = contraction.distinct_bytes();
    Ok(Estimate { way: Way::Nest, cost: Cost { flops: contraction.flops(), bytes, seconds }, workspace_bytes: 0 })
}

/// A loop: its length and the strides of left, right and output.
#[derive(Clone, Copy, Default)]
struct Turn {
    len: usize,
    strides: [isize; 3],
}

/// The loops with their counters; more than six are rare.
type Turns = SmallVec<[(Turn, usize); 6]>;

/// Runs the contraction.
///
/// # Errors
/// None: nothing is looked up.
///
/// # Safety
/// `run` keeps its invariant `bound`.
pub unsafe fn run(run: &Run<'_>) -> Result<(), BadTable> {
    with_types!(run.contraction, T, U => {
        // SAFETY: by the caller; the element types are those of the memory.
        unsafe { typed::<T, U>(run) }
    });
    Ok(())
}

/// # Safety
/// As [`run`], with `T` and `U` the element types of inputs and output.
unsafe fn typed<T: Scalar, U: Scalar<Acc = T::Acc>>(run: &Run<'_>) {
    let contraction = run.contraction;
    let strides = |access: Option<&Access>, at: usize| access.map_or(0, |access| access.strides[at]);
    let (left, right, out) = (&contraction.left, contraction.right.as_ref(), &contraction.out);
    let (mut outer, mut summed) = (Turns::new(), Turns::new());
    for (at, l) in contraction.loops.iter().enumerate() {
        let turn = Turn { len: l.len, strides: [left.strides[at], strides(right, at), out.strides[at]] };
        if l.role == Role::Contracted { summed.push((turn, 0)) } else { outer.push((turn, 0)) }
    }
    let (last, _) = summed.pop().unwrap_or((Turn { len: 1, strides: [0; 3] }, 0));
    let mut at = [left.offset, right.map_or(0, |right| right.offset), out.offset];
    let (l, r, o) = (run.left.cast::<T>(), run.right.cast::<T>(), run.out.cast::<U>());
    loop {
        let mut sum = T::ZERO;
        loop {
            for i in 0..last.len as isize {
                // SAFETY: `bound`: the counters are within the loops.
                unsafe {
                    let a = l.offset(at[0] + i * last.strides[0]).read_unaligned().widen();
                    let term = match right {
                        Some(_) => T::mul(a, r.offset(at[1] + i * last.strides[1]).read_unaligned().widen()),
                        None => a,
                    };
                    sum = T::add(sum, term);
                }
            }
            if !advance(&mut summed, &mut at) {
                break;
            }
        }
        // SAFETY: as above.
        unsafe { o.offset(at[2]).write_unaligned(U::narrow(sum)) };
        if !advance(&mut outer, &mut at) {
            break;
        }
    }
}

/// Moves to the next coordinate, the last loop fastest; after the last coordinate it is back at the first and says so.
#[inline(always)]
fn advance(turns: &mut Turns, at: &mut [isize; 3]) -> bool {
    for (turn, counter) in turns.iter_mut().rev() {
        *counter += 1;
        let back = if *counter < turn.len { 0 } else { *counter as isize };
        for (at, stride) in at.iter_mut().zip(turn.strides) {
            *at += stride * (1 - back);
        }
        if back == 0 {
            return true;
        }
        *counter = 0;
    }
    false
}
