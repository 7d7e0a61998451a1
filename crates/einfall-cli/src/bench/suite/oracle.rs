//! What an einsum's result should be at some positions: plain loops over its labels, in f64.
//!
//! In: an equation with labels and lookups, and its arguments. Out: for a sample of the result's numbers what they
//! should be, and how far a result may be off. Labels that no operand shares are summed apart: `ij,kl->` is a product of
//! two sums. Nothing is shared with the engine but the reading of the equation.
//!
//! The bound: for terms of no particular sign, sums in any order are off by about ε·√m·√Σ|term|², Higham and Mary, "A new
//! approach to probabilistic rounding error analysis" (2019), here times [`SLACK`].

use einfall::num_complex::Complex;
use einfall::{Axis, DType, Equation, Label, Tensor};

use crate::bench::compare::{self, Bounded, unit_roundoff};
use crate::bench::numbers::number;

type C64 = Complex<f64>;

/// Times that the expected error is allowed.
const SLACK: f64 = 8.0;

/// Terms that all positions together may have; then fewer positions are compared.
const MOST_TERMS: f64 = 2e8;

/// An array on a walk through the loops.
struct Walker<'a> {
    tensor: &'a Tensor,
    /// Elements that a step of each loop moves it.
    strides: Vec<usize>,
}

/// A table that is read at the loops' positions, and what its value is multiplied with.
struct Looked {
    walker: usize,
    stride: usize,
}

/// An operand.
struct Factor {
    walker: usize,
    lookups: Vec<Looked>,
    /// The loops that it or its tables depend on.
    loops: Vec<usize>,
}

/// An axis of the output.
enum OutAxis {
    Loop(usize),
    /// A table that has to hold the position.
    Scattered {
        walker: usize,
        loops: Vec<usize>,
    },
}

/// The reference of one problem.
pub(super) struct Oracle<'a> {
    lens: Vec<usize>,
    walkers: Vec<Walker<'a>>,
    factors: Vec<Factor>,
    out: Vec<OutAxis>,
    shape: Vec<usize>,
    dtype: DType,
}

/// A sum of terms.
#[derive(Clone, Copy)]
struct Sum {
    value: C64,
    squares: f64,
    terms: f64,
}

impl<'a> Oracle<'a> {
    /// The reference; `None` for what these loops do not know: windows and ellipses.
    pub(super) fn new(equation: &str, arguments: &[&'a Tensor], shape: &[usize]) -> Option<Self> {
        let equation = Equation::parse(equation).ok()?;
        let output = equation.explicit_output();
        let mut labels: Vec<Label> = Vec::new();
        for label in equation.operands().iter().chain([&output]).flat_map(|operand| operand.labels()) {
            if !labels.contains(&label) {
                labels.push(label);
            }
        }
        let at = |label: &Label| labels.iter().position(|one| one == label);
        let mut lens = vec![1; labels.len()];
        let (mut walkers, mut factors) = (Vec::new(), Vec::new());
        let mut left = arguments.iter();
        // A table's walk, its loops, and the lengths that it gives.
        let table =
            |tensor: &'a Tensor, subscripts: &[Label], lens: &mut Vec<usize>| -> Option<(Walker<'a>, Vec<usize>)> {
                let loops: Vec<usize> = subscripts.iter().map(at).collect::<Option<_>>()?;
                let mut strides = vec![0; labels.len()];
                for ((&label, &len), stride) in loops.iter().zip(tensor.shape()).zip(row_major(tensor.shape())) {
                    strides[label] += stride;
                    lens[label] = lens[label].max(len);
                }
                Some((Walker { tensor, strides }, loops))
            };
        for operand in equation.operands() {
            let tensor = *left.next()?;
            let mut strides = vec![0; labels.len()];
            let (mut loops, mut lookups) = (Vec::new(), Vec::new());
            for ((axis, &len), stride) in operand.axes.iter().zip(tensor.shape()).zip(row_major(tensor.shape())) {
                match axis {
                    Axis::Label(label) => {
                        let label = at(label)?;
                        strides[label] += if len == 1 { 0 } else { stride };
                        lens[label] = lens[label].max(len);
                        loops.push(label);
                    }
                    Axis::Lookup(subscripts) => {
                        let (walker, read) = table(left.next()?, subscripts, &mut lens)?;
                        loops.extend(read);
                        lookups.push(Looked { walker: walkers.len(), stride });
                        walkers.push(walker);
                    }
                    Axis::Window(_) | Axis::Ellipsis => return None,
                }
            }
            factors.push(Factor { walker: walkers.len(), lookups, loops });
            walkers.push(Walker { tensor, strides });
        }
        let mut out = Vec::new();
        for axis in &output.axes {
            out.push(match axis {
                Axis::Label(label) => OutAxis::Loop(at(label)?),
                Axis::Lookup(subscripts) => {
                    let (walker, loops) = table(left.next()?, subscripts, &mut lens)?;
                    walkers.push(walker);
                    OutAxis::Scattered { walker: walkers.len() - 1, loops }
                }
                Axis::Window(_) | Axis::Ellipsis => return None,
            });
        }
        let dtype = factors.first().map(|factor| walkers[factor.walker].tensor.dtype())?;
        Some(Self { lens, walkers, factors, out, shape: shape.to_vec(), dtype })
    }

    /// Shape of the result.
    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// What the result should be at these positions of its real numbers, summed in a type; of the first ones only where
    /// each takes long. Complex numbers are two real ones.
    pub(super) fn expected(&self, positions: &[usize], sums_in: DType) -> Vec<Bounded> {
        let parts = if self.dtype.is_complex() { 2 } else { 1 };
        let mut left = MOST_TERMS;
        let mut expected = Vec::new();
        for &position in positions {
            if left <= 0.0 {
                break;
            }
            let (sum, walked) = self.at(position / parts);
            left -= walked;
            let value = if position % parts == 1 { sum.value.im } else { sum.value.re };
            let sums = SLACK * unit_roundoff(sums_in) * ((sum.terms + 2.0) * sum.squares).sqrt();
            let stored = unit_roundoff(self.dtype) * (value.abs() + sums);
            expected.push(Bounded { value, tolerance: sums + 2.0 * stored });
        }
        expected
    }

    /// The sum at one position of the result, and how many terms were walked.
    fn at(&self, mut flat: usize) -> (Sum, f64) {
        let mut fixed: Vec<Option<usize>> = vec![None; self.lens.len()];
        let mut wanted: Vec<(usize, usize, &[usize])> = Vec::new();
        for (axis, &len) in self.out.iter().zip(&self.shape).rev() {
            let at = flat % len.max(1);
            flat /= len.max(1);
            match axis {
                OutAxis::Loop(label) => fixed[*label] = Some(at),
                OutAxis::Scattered { walker, loops } => wanted.push((*walker, at, loops)),
            }
        }
        let mut total = Sum { value: C64::new(1.0, 0.0), squares: 1.0, terms: 1.0 };
        let mut walked = 0.0;
        for (factors, loops) in self.parts(&fixed, &wanted) {
            let of_part = |(_, _, read): &&(usize, usize, &[usize])| read.iter().any(|label| loops.contains(label));
            let conditions: Vec<(usize, usize)> =
                wanted.iter().filter(of_part).map(|&(walker, at, _)| (walker, at)).collect();
            walked += loops.iter().map(|&label| self.lens[label] as f64).product::<f64>();
            let sum = self.sum(&factors, &loops, &conditions, &fixed);
            total = Sum {
                value: total.value * sum.value,
                squares: total.squares * sum.squares,
                terms: total.terms * sum.terms,
            };
        }
        (total, walked)
    }

    /// Operands and open loops in groups that share nothing.
    fn parts(&self, fixed: &[Option<usize>], wanted: &[(usize, usize, &[usize])]) -> Vec<(Vec<usize>, Vec<usize>)> {
        let open = |loops: &[usize]| {
            let mut open: Vec<usize> = loops.iter().copied().filter(|&label| fixed[label].is_none()).collect();
            open.sort_unstable();
            open.dedup();
            open
        };
        let mut parts: Vec<(Vec<usize>, Vec<usize>)> = Vec::new();
        let conditions = wanted.iter().map(|(_, _, loops)| (None, open(loops)));
        let factors = self.factors.iter().enumerate().map(|(at, factor)| (Some(at), open(&factor.loops)));
        for (factor, mut loops) in factors.chain(conditions) {
            let mut members: Vec<usize> = factor.into_iter().collect();
            parts.retain(|(others, shared)| {
                let apart = shared.iter().all(|label| !loops.contains(label));
                if !apart {
                    members.extend(others);
                    loops.extend(shared);
                }
                apart
            });
            loops.sort_unstable();
            loops.dedup();
            parts.push((members, loops));
        }
        parts
    }

    fn sum(&self, factors: &[usize], loops: &[usize], conditions: &[(usize, usize)], fixed: &[Option<usize>]) -> Sum {
        let mut offsets: Vec<usize> = self
            .walkers
            .iter()
            .map(|walker| walker.strides.iter().zip(fixed).map(|(stride, at)| stride * at.unwrap_or(0)).sum())
            .collect();
        let mut sum = Sum { value: C64::default(), squares: 0.0, terms: 0.0 };
        if loops.iter().any(|&label| self.lens[label] == 0) {
            return sum;
        }
        let mut at = vec![0; loops.len()];
        loop {
            let reached =
                |&(walker, wanted): &(usize, usize)| entry(self.walkers[walker].tensor, offsets[walker]) == wanted;
            if conditions.iter().all(reached) {
                let term = factors.iter().fold(C64::new(1.0, 0.0), |term, &factor| term * self.read(factor, &offsets));
                sum.value += term;
                sum.squares += term.norm_sqr();
                sum.terms += 1.0;
            }
            // The next position: the innermost loop that is not at its end steps, those inside begin again.
            let Some(level) = (0..loops.len()).rev().find(|&level| at[level] + 1 < self.lens[loops[level]]) else {
                return sum;
            };
            for (inner, position) in at.iter_mut().enumerate().skip(level + 1) {
                for (offset, walker) in offsets.iter_mut().zip(&self.walkers) {
                    *offset -= walker.strides[loops[inner]] * *position;
                }
                *position = 0;
            }
            at[level] += 1;
            for (offset, walker) in offsets.iter_mut().zip(&self.walkers) {
                *offset += walker.strides[loops[level]];
            }
        }
    }

    fn read(&self, factor: usize, offsets: &[usize]) -> C64 {
        let Factor { walker, lookups, .. } = &self.factors[factor];
        let looked =
            lookups.iter().map(|table| entry(self.walkers[table.walker].tensor, offsets[table.walker]) * table.stride);
        component(self.walkers[*walker].tensor, offsets[*walker] + looked.sum::<usize>())
    }
}

/// Elements that a step along each axis moves.
fn row_major(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect()
}

/// An entry of a table.
pub(super) fn entry(table: &Tensor, at: usize) -> usize {
    integer(table, at).try_into().unwrap_or(usize::MAX)
}

fn integer(tensor: &Tensor, at: usize) -> i64 {
    let size = tensor.dtype().bytes();
    match tensor.as_bytes()[at * size..(at + 1) * size] {
        [a, b, c, d] => i32::from_ne_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => i64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        _ => -1,
    }
}

fn component(tensor: &Tensor, at: usize) -> C64 {
    if tensor.dtype().is_complex() {
        return C64::new(part(tensor, 2 * at), part(tensor, 2 * at + 1));
    }
    C64::new(part(tensor, at), 0.0)
}

/// A real number of an array of any type; complex numbers are two.
pub(super) fn part(tensor: &Tensor, at: usize) -> f64 {
    match tensor.dtype() {
        DType::C64 => f64::from(f32::from_ne_bytes(bytes(tensor, at))),
        DType::C128 => f64::from_ne_bytes(bytes(tensor, at)),
        dtype if dtype.is_integer() => integer(tensor, at) as f64,
        _ => number(tensor, at),
    }
}

fn bytes<const N: usize>(tensor: &Tensor, at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&tensor.as_bytes()[at * N..(at + 1) * N]);
    bytes
}

/// The real numbers of a result at a sample of positions.
pub(super) fn sample(result: &Tensor) -> (Vec<usize>, Vec<f64>) {
    let parts = if result.dtype().is_complex() { 2 } else { 1 };
    let positions = compare::positions(result.shape().iter().product::<usize>() * parts);
    let values = positions.iter().map(|&at| part(result, at)).collect();
    (positions, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn expect(equation: &str, arguments: &[Tensor], shape: &[usize], wanted: &[f64]) {
        let arguments: Vec<&Tensor> = arguments.iter().collect();
        let oracle = Oracle::new(equation, &arguments, shape).unwrap();
        let positions: Vec<usize> = (0..wanted.len()).collect();
        let found: Vec<f64> = oracle.expected(&positions, DType::F64).iter().map(|one| one.value).collect();
        assert_eq!(found, wanted, "{equation}");
    }

    fn f64s(shape: &[usize], values: &[f64]) -> Tensor {
        Tensor::from_slice(values, shape).unwrap()
    }

    #[test]
    fn labels_tables_and_scatters_are_walked() {
        let a = || f64s(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        expect("ij->ji", &[a()], &[3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        expect("ij,ij->i", &[a(), a()], &[2], &[14.0, 77.0]);
        // Three sums that share nothing.
        expect("ij,k,l->", &[a(), f64s(&[2], &[1.0, 2.0]), f64s(&[1], &[5.0])], &[], &[21.0 * 3.0 * 5.0]);
        expect("ii->", &[f64s(&[2, 2], &[1.0, 7.0, 9.0, 2.0])], &[], &[3.0]);
        let table = Tensor::from_slice(&[1i32, 0, 1], &[3]).unwrap();
        expect("[e]j->ej", &[a(), table], &[3, 3], &[4.0, 5.0, 6.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let to = Tensor::from_slice(&[2i64, 0], &[2]).unwrap();
        expect("ej->[e]j", &[a(), to], &[3, 3], &[4.0, 5.0, 6.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0]);
    }

    #[test]
    fn complex_numbers_are_two() {
        let i = || Tensor::from_slice(&[Complex::new(0.0f32, 1.0), Complex::new(3.0, 0.5)], &[2]).unwrap();
        expect("i,i->i", &[i(), i()], &[2], &[-1.0, 0.0, 8.75, 3.0]);
    }

    #[test]
    fn integers_have_to_be_exact_and_others_nearly() {
        let ints = Tensor::from_slice(&[3i32, -4], &[2]).unwrap();
        let oracle = Oracle::new("i,i->", &[&ints, &ints], &[]).unwrap();
        let [one] = oracle.expected(&[0], DType::I32)[..] else { unreachable!() };
        assert_eq!((one.value, one.tolerance), (25.0, 0.0));
        let floats = Tensor::from_slice(&[3f32, -4.0], &[2]).unwrap();
        let oracle = Oracle::new("i,i->", &[&floats, &floats], &[]).unwrap();
        let [one] = oracle.expected(&[0], DType::F32)[..] else { unreachable!() };
        assert!(one.value == 25.0 && one.tolerance > 0.0 && one.tolerance < 1e-4, "{one:?}");
    }
}
