//! The loop itself.

use num_complex::Complex;

use super::lengths::{Lengths, Name, Source, sources};
use super::{Array, Term};
use crate::number::Scalar;

/// The arithmetic of one kind of number.
pub(super) trait Ring: Copy {
    const ZERO: Self;
    fn from_scalar(value: Scalar) -> Self;
    fn scalar(self) -> Scalar;
    fn times(self, other: Self) -> Self;
    fn plus(self, other: Self) -> Self;
    /// The size of a factor in an error bound; exact kinds have none.
    fn magnitude(self) -> f64 {
        0.0
    }
}

/// Truth values: the product is "and", the sum is "or".
#[derive(Clone, Copy)]
pub(super) struct And(bool);

impl Ring for And {
    const ZERO: Self = And(false);
    fn from_scalar(value: Scalar) -> Self {
        And(value.int() != 0)
    }
    fn scalar(self) -> Scalar {
        Scalar::Int(self.0 as i128)
    }
    fn times(self, other: Self) -> Self {
        And(self.0 && other.0)
    }
    fn plus(self, other: Self) -> Self {
        And(self.0 || other.0)
    }
}

/// Wraps at 2^128, which every narrower width divides.
impl Ring for i128 {
    const ZERO: Self = 0;
    fn from_scalar(value: Scalar) -> Self {
        value.int()
    }
    fn scalar(self) -> Scalar {
        Scalar::Int(self)
    }
    fn times(self, other: Self) -> Self {
        self.wrapping_mul(other)
    }
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}

impl Ring for f64 {
    const ZERO: Self = 0.0;
    fn from_scalar(value: Scalar) -> Self {
        value.real()
    }
    fn scalar(self) -> Scalar {
        Scalar::Real(self)
    }
    fn times(self, other: Self) -> Self {
        self * other
    }
    fn plus(self, other: Self) -> Self {
        self + other
    }
    fn magnitude(self) -> f64 {
        self.abs()
    }
}

impl Ring for Complex<f64> {
    const ZERO: Self = Complex::ZERO;
    fn from_scalar(value: Scalar) -> Self {
        value.complex()
    }
    fn scalar(self) -> Scalar {
        Scalar::Complex(self)
    }
    fn times(self, other: Self) -> Self {
        self * other
    }
    fn plus(self, other: Self) -> Self {
        self + other
    }
    fn magnitude(self) -> f64 {
        self.norm()
    }
}

/// How an axis finds its position in the loop; numbers index the loop's variables.
enum Position {
    Variable(usize),
    Table { shape: Vec<usize>, values: Vec<i128>, subscripts: Vec<usize> },
    Window { terms: Vec<(usize, i128)>, offset: i128 },
}

/// An operand, or the output, with its axes.
struct Place {
    axes: Vec<(Position, usize)>,
}

impl Place {
    fn new(term: &Term, reached: &[usize], arrays: &[Array], names: &[Name]) -> Self {
        let hidden = (reached.len() + 1).saturating_sub(term.axes.len());
        let index = |name: Name| names.iter().position(|&other| other == name).expect("every name has a length");
        let label = |label| index(Name::Label(label));
        let positions = sources(term, hidden).into_iter().map(|source| match source {
            Source::Name(name) => Position::Variable(index(name)),
            Source::Table(labels, table) => Position::Table {
                shape: arrays[table].shape.clone(),
                values: arrays[table].values.iter().map(|value| value.int()).collect(),
                subscripts: labels.iter().map(|&l| label(l)).collect(),
            },
            Source::Window(affine) => Position::Window {
                terms: affine.terms.iter().map(|&(l, coefficient)| (label(l), i128::from(coefficient))).collect(),
                offset: i128::from(affine.offset),
            },
        });
        Place { axes: positions.zip(reached.iter().copied()).collect() }
    }

    /// The row-major number of the element at these values of the variables; `None` where there is none.
    fn flat(&self, at: &[usize]) -> Option<usize> {
        self.axes.iter().try_fold(0, |flat, (position, len)| {
            let here = match position {
                // A length of 1 is repeated for every value.
                Position::Variable(variable) => Some(if *len == 1 { 0 } else { at[*variable] }),
                Position::Table { shape, values, subscripts } => {
                    let entry = subscripts
                        .iter()
                        .zip(shape)
                        .fold(0, |entry, (&variable, &len)| entry * len + if len == 1 { 0 } else { at[variable] });
                    usize::try_from(values[entry]).ok()
                }
                Position::Window { terms, offset } => {
                    let sum = terms.iter().fold(*offset, |sum, &(variable, c)| sum + c * at[variable] as i128);
                    usize::try_from(sum).ok()
                }
            };
            here.filter(|here| here < len).map(|here| flat * len + here)
        })
    }
}

/// The sums, and the sums of magnitudes, of every element of the output.
pub(super) fn contract<R: Ring>(
    terms: &[Term],
    output: &Term,
    arrays: &[Array],
    lengths: &Lengths,
    reached: &[Vec<usize>],
) -> (Vec<R>, Vec<f64>) {
    let names: Vec<Name> = lengths.0.keys().copied().collect();
    let lens: Vec<usize> = lengths.0.values().copied().collect();
    let places: Vec<Place> = terms.iter().zip(reached).map(|(t, axes)| Place::new(t, axes, arrays, &names)).collect();
    let values: Vec<Vec<R>> = terms
        .iter()
        .filter_map(|term| term.array)
        .map(|array| arrays[array].values.iter().map(|&value| R::from_scalar(value)).collect())
        .collect();
    let shape = reached.last().map_or(&[][..], |shape| shape);
    let target = Place::new(output, shape, arrays, &names);
    let count = shape.iter().product();
    let (mut sums, mut magnitudes) = (vec![R::ZERO; count], vec![0.0; count]);
    let mut at = vec![0; lens.len()];
    if lens.contains(&0) {
        return (sums, magnitudes);
    }
    loop {
        let factors = places.iter().zip(&values).map(|(place, values)| place.flat(&at).map(|flat| values[flat]));
        // A term with a position outside is left out, so nothing of it may be multiplied.
        if let (Some(to), Some(factors)) = (target.flat(&at), factors.collect::<Option<Vec<R>>>()) {
            let product = factors.iter().copied().reduce(R::times).expect("an equation has an operand");
            sums[to] = sums[to].plus(product);
            magnitudes[to] += factors.iter().map(|factor| factor.magnitude()).product::<f64>();
        }
        if !advance(&mut at, &lens) {
            return (sums, magnitudes);
        }
    }
}

/// The next coordinate in row-major order; false after the last.
fn advance(at: &mut [usize], lens: &[usize]) -> bool {
    for (position, &len) in at.iter_mut().zip(lens).rev() {
        *position += 1;
        if *position < len {
            return true;
        }
        *position = 0;
    }
    false
}
