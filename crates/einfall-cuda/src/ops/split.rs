//! Long sums into few outputs: a summed loop is cut, pieces of it are summed as if they were other outputs, and a second
//! contraction adds up what they found, in the accumulator's type and in a fixed order.
//!
//! *In*: any contraction with few outputs, looked up or not. The parts run on whatever kernel takes least time.

use einfall_plan::{Access, Contraction, Estimate, Loop, Machine, Role, Way};

use super::parts::{Draft, Sequence, unshifted};
use crate::text::{Lowering, Memory, Task};

/// Fewer terms are summed by a block in as much time as a launch takes.
const SHORT: f64 = 4096.0;
/// So many outputs keep a GPU busy.
const MANY: f64 = (1 << 18) as f64;
/// Pieces to try: some for each multiprocessor, or rows for the kernels that hold one in registers.
const PIECES: [usize; 6] = [8, 32, 128, 512, 2048, 16384];

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    sequence(&unshifted(contraction), machine).map(|sequence| sequence.estimate)
}

/// The tasks.
pub fn lower(lowering: &Lowering<'_>) -> Vec<Task> {
    super::parts::lower("split", lowering)
}

/// The parts: sums of pieces, of what is left over, and of both.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn sequence(contraction: &Contraction, machine: &Machine) -> Result<Sequence, String> {
    let (dtype, out_dtype) = (contraction.dtype, contraction.out_dtype);
    if contraction.right.is_none() || !contraction.out.is_plain() {
        return Err("needs two inputs and a plain output".into());
    }
    if ![dtype, dtype.accumulator()].contains(&out_dtype) {
        return Err(format!("does not write {out_dtype}"));
    }
    let terms = contraction.terms();
    if terms < SHORT || contraction.flops() / 2.0 / terms > MANY {
        return Err("sums are short, or there are many of them".into());
    }
    let mut summed: Vec<usize> = contraction.loops_of(Role::Contracted).collect();
    summed.sort_by_key(|&at| std::cmp::Reverse(contraction.loops[at].len));
    summed.truncate(2);
    let cuts = summed.iter().flat_map(|&at| {
        let len = contraction.loops[at].len;
        let mut pieces: Vec<usize> = PIECES.iter().filter_map(|&near| pieces(len, near)).collect();
        pieces.dedup();
        pieces.into_iter().map(move |pieces| (at, pieces))
    });
    let sequences = cuts.filter_map(|(at, pieces)| cut(contraction, at, pieces, machine));
    let best = sequences.min_by(|a, b| a.estimate.cost.seconds.total_cmp(&b.estimate.cost.seconds));
    best.ok_or_else(|| "no loop can be cut".into())
}

/// How many pieces to cut a loop in: about so many, of one length if there is such a number.
fn pieces(len: usize, near: usize) -> Option<usize> {
    if len < 2 * near {
        return None;
    }
    let even = (near..2 * near).find(|pieces| len.is_multiple_of(*pieces));
    Some(
        even.or_else(|| (near / 2..near).rev().find(|&pieces| pieces > 1 && len.is_multiple_of(pieces)))
            .unwrap_or(near),
    )
}

/// Moves an access along a loop.
fn advance(access: &mut Access, at: usize, steps: usize) {
    access.offset += access.strides[at] * steps as isize;
    access.lookups.iter_mut().for_each(|lookup| lookup.table_offset += lookup.table_strides[at] * steps as isize);
    access.windows.iter_mut().for_each(|window| window.offset += window.coefficients[at] * steps as i64);
}

/// Adds a loop, the outermost, that moves an access as so many steps of another do.
fn add_loop(access: &mut Access, at: usize, steps: usize) {
    access.strides.insert(0, access.strides[at] * steps as isize);
    for lookup in &mut access.lookups {
        lookup.table_strides.insert(0, lookup.table_strides[at] * steps as isize);
    }
    for window in &mut access.windows {
        window.coefficients.insert(0, window.coefficients[at] * steps as i64);
    }
}

fn cut(contraction: &Contraction, at: usize, pieces: usize, machine: &Machine) -> Option<Sequence> {
    let long = contraction.loops[at].len / pieces;
    let rest = contraction.loops[at].len - pieces * long;
    let found = pieces + usize::from(rest > 0);
    let sums = contraction.dtype.accumulator();

    // What the pieces find: contiguous, a piece after the other.
    let kept = |at: &usize| contraction.loops[*at].role != Role::Contracted;
    let mut partial = vec![0; contraction.loops.len()];
    let mut items = 1;
    for at in (0..contraction.loops.len()).rev().filter(kept) {
        partial[at] = items as isize;
        items *= contraction.loops[at].len;
    }
    let bytes = (found * items * sums.bytes()).next_multiple_of(256);
    let mut whole = contraction.clone();
    whole.out_dtype = sums;
    whole.out = Access { strides: partial.clone(), ..Access::default() };

    let mut first = whole.clone();
    first.loops[at].len = long;
    let right = contraction.right.as_ref()?;
    let role = match (contraction.left.depends_on(at), right.depends_on(at)) {
        (true, true) => Role::Batch,
        (false, true) => Role::Right,
        _ => Role::Left,
    };
    first.loops.insert(0, Loop { name: "·".into(), len: pieces, role });
    add_loop(&mut first.left, at, long);
    add_loop(first.right.as_mut()?, at, long);
    first.out.strides.insert(0, items as isize);

    let scratch = (Memory::Scratch, 0);
    let places = [(Memory::Left, 0), (Memory::Right, 0), scratch];
    let mut drafts = vec![Draft { contraction: first, places }];
    if rest > 0 {
        whole.loops[at].len = rest;
        advance(&mut whole.left, at, pieces * long);
        advance(whole.right.as_mut()?, at, pieces * long);
        whole.out.offset = (pieces * items) as isize;
        drafts.push(Draft { contraction: whole, places });
    }

    let loops: Vec<usize> = (0..contraction.loops.len()).filter(kept).collect();
    let own = |strides: &[isize], piece: isize| Access {
        strides: loops.iter().map(|&at| strides[at]).chain([piece]).collect(),
        ..Access::default()
    };
    let kept_loops = loops.iter().map(|&at| Loop { role: Role::Left, ..contraction.loops[at].clone() });
    let join = Contraction {
        loops: kept_loops.chain([Loop { name: "·".into(), len: found, role: Role::Contracted }]).collect(),
        left: own(&partial, items as isize),
        right: None,
        out: own(&contraction.out.strides, 0),
        dtype: sums,
        out_dtype: contraction.out_dtype,
        bounds: contraction.bounds,
    };
    drafts.push(Draft { contraction: join.fused(), places: [scratch, scratch, (Memory::Out, 0)] });
    Sequence::new(drafts, bytes, Way::Nest, machine)
}
