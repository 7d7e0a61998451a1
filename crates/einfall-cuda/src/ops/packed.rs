//! Products of matrices whose loops do not fuse as they lie: inputs are copied into matrices where they have to be, and an
//! output that is none comes by way of one.
//!
//! *In*: plain strides. Loops of a role are walked in the order of either tensor that has them; without loops common to
//! all three, some of one side's may count matrices instead, which the other side repeats. Of all that, what predicts
//! least time. The copies and the product run on the other kernels, so the product mostly goes to the vendor's library.

use einfall_plan::{Access, Contraction, Estimate, Loop, Machine, Role, Way};
use einfall_tensor::DType;

use super::gemm;
use super::parts::{Draft, Sequence, unshifted, walk};
use crate::text::{Lowering, Memory, Task};

/// So many ways are priced, those that copy least.
const PRICED: usize = 12;
/// Loops of one role, so that there are not too many ways.
const LOOPS: usize = 4;

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    sequence(&unshifted(contraction), machine).map(|sequence| sequence.estimate)
}

/// The tasks.
pub fn lower(lowering: &Lowering<'_>) -> Vec<Task> {
    super::parts::lower("packed", lowering)
}

/// The parts: copies, the product, a copy.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn sequence(contraction: &Contraction, machine: &Machine) -> Result<Sequence, String> {
    let right = contraction.right.as_ref().ok_or("needs two inputs")?;
    if ![contraction.dtype, contraction.dtype.accumulator()].contains(&contraction.out_dtype) {
        return Err(format!("does not write {}", contraction.out_dtype));
    }
    if !contraction.accesses().all(Access::is_plain) {
        return Err("something is looked up or slid over".into());
    }
    let of = |role| contraction.loops_of(role).collect::<Vec<usize>>();
    let roles = [Role::Batch, Role::Left, Role::Right, Role::Contracted].map(of);
    if roles.iter().any(|loops| loops.len() > LOOPS) {
        return Err(format!("more than {LOOPS} loops with one role"));
    }
    let [_, kept_left, kept_right, terms] = &roles;
    if kept_left.is_empty() || kept_right.is_empty() || terms.is_empty() {
        return Err("not a product of two matrices".into());
    }
    let belongs = |at: usize| match contraction.loops[at].role {
        Role::Left => right.strides[at] == 0 && contraction.left.strides[at] != 0,
        Role::Right => contraction.left.strides[at] == 0 && right.strides[at] != 0,
        Role::Batch | Role::Contracted => contraction.left.strides[at] != 0 && right.strides[at] != 0,
    };
    if !(0..contraction.loops.len()).all(belongs) {
        return Err("something is repeated".into());
    }
    if gemm::estimate(contraction, machine).is_ok() && !gemm::wants_copies(contraction) {
        return Err("these are matrices".into());
    }
    let mut ways = ways(contraction, right, &roles);
    ways.sort_by_key(|way| way.copied_bytes(contraction));
    ways.truncate(PRICED);
    let sequences = ways.iter().flat_map(|way| way.sequences(contraction, machine));
    let best = sequences.min_by(|a, b| a.estimate.cost.seconds.total_cmp(&b.estimate.cost.seconds));
    best.ok_or_else(|| "no kernel for the matrices".into())
}

/// A tensor as matrices: `batch` of them, `rows` and `columns` of loops walked as one.
#[derive(Clone)]
struct Side {
    access: Access,
    batch: Vec<usize>,
    rows: Vec<usize>,
    columns: Vec<usize>,
    /// Whether it is one as it lies.
    lies: bool,
}

/// An order of the loops: left, right, output.
struct Plan {
    sides: [Side; 3],
    batch: Vec<usize>,
    kept: [Vec<usize>; 2],
    terms: Vec<usize>,
}

/// Orders of loops in which they are nested in memory, in any of some tensors.
fn orders(loops: &[usize], accesses: &[&Access]) -> Vec<Vec<usize>> {
    let mut orders: Vec<Vec<usize>> = Vec::new();
    for access in accesses {
        let mut order = loops.to_vec();
        order.sort_by_key(|&at| std::cmp::Reverse(access.strides[at].unsigned_abs()));
        if !orders.contains(&order) {
            orders.push(order);
        }
    }
    orders
}

fn ways(contraction: &Contraction, right: &Access, roles: &[Vec<usize>; 4]) -> Vec<Plan> {
    let (left, out) = (&contraction.left, &contraction.out);
    let [batch, kept_left, kept_right, terms] = roles;
    // What counts matrices: the loops that all have, or some of one side's.
    let mut splits = vec![(batch.clone(), kept_left.clone(), kept_right.clone())];
    if batch.is_empty() {
        let some = |loops: &[usize], subset: usize, inside: bool| -> Vec<usize> {
            let chosen = |number: &usize| (subset >> number & 1 == 1) == inside;
            (0..loops.len()).filter(chosen).map(|number| loops[number]).collect()
        };
        for subset in 1..(1 << kept_left.len()) - 1 {
            splits.push((some(kept_left, subset, true), some(kept_left, subset, false), kept_right.clone()));
        }
        for subset in 1..(1 << kept_right.len()) - 1 {
            splits.push((some(kept_right, subset, true), kept_left.clone(), some(kept_right, subset, false)));
        }
    }
    let mut ways = Vec::new();
    for (batch, kept_left, kept_right) in splits {
        for batch in orders(&batch, &[out, left, right]) {
            for rows in orders(&kept_left, &[out, left]) {
                for columns in orders(&kept_right, &[out, right]) {
                    for terms in orders(terms, &[left, right]) {
                        let side = |access: &Access, rows: &[usize], columns: &[usize]| Side {
                            lies: lies(contraction, access, [&batch, rows, columns]),
                            access: access.clone(),
                            // Loops that the tensor repeats are none of its own.
                            batch: batch.iter().copied().filter(|&at| access.strides[at] != 0).collect(),
                            rows: rows.to_vec(),
                            columns: columns.to_vec(),
                        };
                        ways.push(Plan {
                            sides: [
                                side(left, &rows, &terms),
                                side(right, &terms, &columns),
                                side(out, &rows, &columns),
                            ],
                            batch: batch.clone(),
                            kept: [rows.clone(), columns.clone()],
                            terms,
                        });
                    }
                }
            }
        }
    }
    ways
}

/// Whether a tensor is a matrix, or a batch of them: one stride a side, one of them 1, columns that do not overlap.
fn lies(contraction: &Contraction, access: &Access, [batch, rows, columns]: [&[usize]; 3]) -> bool {
    let len = |loops: &[usize]| loops.iter().map(|&at| contraction.loops[at].len).product::<usize>() as isize;
    let fits = |down: isize, across: isize, rows: isize| down == 1 && across >= rows && across < 1 << 31;
    let batch_ok = batch.is_empty() || walk(contraction, access, batch).is_some_and(|stride| stride >= 0);
    match (walk(contraction, access, rows), walk(contraction, access, columns)) {
        (Some(down), Some(across)) => batch_ok && (fits(down, across, len(rows)) || fits(across, down, len(columns))),
        _ => false,
    }
}

impl Side {
    fn elements(&self, contraction: &Contraction) -> usize {
        let loops = self.batch.iter().chain(&self.rows).chain(&self.columns);
        loops.map(|&at| contraction.loops[at].len).product()
    }

    /// Whether it is of half types and its lines, or its matrices, do not begin at multiples of 16 bytes, or its lines are
    /// no multiples of them.
    fn is_misaligned(&self, contraction: &Contraction) -> bool {
        let len = |loops: &[usize]| loops.iter().map(|&at| contraction.loops[at].len).product::<usize>();
        let apart = |loops: &Vec<usize>| match walk(contraction, &self.access, loops) {
            Some(1) => !len(loops).is_multiple_of(8),
            Some(step) => step % 8 != 0,
            None => false,
        };
        contraction.dtype.bytes() == 2 && [&self.batch, &self.rows, &self.columns].into_iter().any(apart)
    }

    /// The tensor in scratch memory, with its rows or its columns contiguous and a whole number of loads long; and how
    /// many elements it takes.
    fn packed(&self, contraction: &Contraction, by_rows: bool, dtype: DType) -> (Access, usize) {
        let (slow, fast) = if by_rows { (&self.columns, &self.rows) } else { (&self.rows, &self.columns) };
        let mut strides = vec![0; contraction.loops.len()];
        let mut step = 1;
        for (number, loops) in [fast, slow, &self.batch].into_iter().enumerate() {
            if number == 1 {
                step = usize::next_multiple_of(step, (16 / dtype.bytes()).max(1));
            }
            for &at in loops.iter().rev() {
                strides[at] = step as isize;
                step *= contraction.loops[at].len;
            }
        }
        (Access { strides, ..Access::default() }, step)
    }
}

impl Plan {
    fn dtypes(contraction: &Contraction) -> [DType; 3] {
        [contraction.dtype, contraction.dtype, contraction.out_dtype]
    }

    fn copied_bytes(&self, contraction: &Contraction) -> usize {
        let sides = self.sides.iter().zip(Self::dtypes(contraction)).filter(|(side, _)| !side.lies);
        sides.map(|(side, dtype)| side.elements(contraction) * dtype.bytes()).sum()
    }

    /// Every sequence of this order: with each matrix as it lies, if it does, or in scratch memory one way or the other.
    fn sequences(&self, contraction: &Contraction, machine: &Machine) -> Vec<Sequence> {
        let ways = |side: &Side| match side.lies {
            false => vec![Some(false), Some(true)],
            true if side.is_misaligned(contraction) => vec![None, Some(false), Some(true)],
            true => vec![None],
        };
        let [left, right, out] = self.sides.each_ref().map(ways);
        let mut sequences = Vec::new();
        for &left in &left {
            for &right in &right {
                for by_rows in out.iter().map(|&out| [left, right, out]) {
                    // Without a copy it is a product alone, which needs no sequence.
                    if by_rows != [None; 3] {
                        sequences.extend(self.sequence(contraction, by_rows, machine));
                    }
                }
            }
        }
        sequences
    }

    fn sequence(&self, contraction: &Contraction, by_rows: [Option<bool>; 3], machine: &Machine) -> Option<Sequence> {
        let memories = [Memory::Left, Memory::Right, Memory::Out];
        let (mut drafts, mut after, mut bytes) = (Vec::new(), None, 0);
        let mut places = memories.map(|memory| (memory, 0));
        let mut accesses = [0, 1, 2].map(|at: usize| self.sides[at].access.clone());
        for (at, dtype) in Self::dtypes(contraction).into_iter().enumerate() {
            let (side, Some(by_rows)) = (&self.sides[at], by_rows[at]) else { continue };
            let (packed, elements) = side.packed(contraction, by_rows, dtype);
            let scratch = (Memory::Scratch, bytes as i64);
            bytes += (elements * dtype.bytes()).next_multiple_of(256);
            let copy = |from: &Access, to: &Access| copy(contraction, side, from, to, dtype);
            match at {
                2 => {
                    let places = [scratch, scratch, (Memory::Out, 0)];
                    after = Some(Draft { contraction: copy(&packed, &side.access), places });
                }
                _ => {
                    let places = [places[at], places[at], scratch];
                    drafts.push(Draft { contraction: copy(&side.access, &packed), places });
                }
            }
            places[at] = scratch;
            accesses[at] = packed;
        }
        drafts.push(Draft { contraction: self.product(contraction, &accesses)?, places });
        drafts.extend(after);
        Sequence::new(drafts, bytes, Way::Gemm, machine)
    }

    /// The product of the matrices: a loop a role.
    fn product(&self, contraction: &Contraction, accesses: &[Access; 3]) -> Option<Contraction> {
        let [rows, columns] = &self.kept;
        let groups =
            [(&self.batch, Role::Batch), (rows, Role::Left), (columns, Role::Right), (&self.terms, Role::Contracted)];
        let mut loops = Vec::new();
        let mut walked = [const { Vec::new() }; 3];
        for (group, role) in groups.into_iter().filter(|(group, _)| !group.is_empty()) {
            let name = group.iter().map(|&at| contraction.loops[at].name.as_str()).collect();
            let len = group.iter().map(|&at| contraction.loops[at].len).product();
            loops.push(Loop { name, len, role });
            for (strides, access) in walked.iter_mut().zip(accesses) {
                strides.push(walk(contraction, access, group)?);
            }
        }
        let [left, right, out] = walked.map(|strides| Access { strides, ..Access::default() });
        Some(Contraction { loops, left, right: Some(right), out, ..contraction.clone() })
    }
}

/// A copy of one tensor.
fn copy(contraction: &Contraction, side: &Side, from: &Access, to: &Access, dtype: DType) -> Contraction {
    let loops: Vec<usize> = side.batch.iter().chain(&side.rows).chain(&side.columns).copied().collect();
    let own =
        |access: &Access| Access { strides: loops.iter().map(|&at| access.strides[at]).collect(), ..Access::default() };
    let as_left = |at: &usize| Loop { role: Role::Left, ..contraction.loops[*at].clone() };
    Contraction {
        loops: loops.iter().map(as_left).collect(),
        left: own(from),
        right: None,
        out: own(to),
        dtype,
        out_dtype: dtype,
        bounds: contraction.bounds,
    }
    .fused()
}
