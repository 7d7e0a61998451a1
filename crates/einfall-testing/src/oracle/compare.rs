//! Comparing a result with what the oracle expects.

use std::fmt;

use einfall_tensor::{DType, View};
use num_complex::Complex;

use super::{OracleArray, coordinate};
use crate::number::{Scalar, scalars, unit_roundoff};

/// How equal a result must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tier {
    /// Bit for bit the exact sum rounded once; 0 equals -0 and NaN equals NaN.
    Exact,
    /// Component-wise `|c - ref| <= γ_K · Σ|a||b| + u_out · |ref|`, where `γ_K = K·u/(1 - K·u)`.
    ///
    /// Integers and `bool` must be exact here too. The f64 sums of the oracle have an error as well, which is allowed for.
    Bound {
        /// K: the number of roundings that an element may see, which is the number of its terms plus that of its factors.
        terms: u64,
        /// The type in which the result is stored: gives `u_out`.
        dtype: DType,
        /// The type in which products are summed: gives `u`.
        accumulator: DType,
    },
}

/// Where a result is not what it should be.
#[derive(Clone, Debug, PartialEq)]
pub enum Mismatch {
    /// Another shape.
    Shape {
        /// The shape of the result.
        got: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// Another element type.
    DType {
        /// The type of the result.
        got: DType,
        /// The type it should have.
        expected: DType,
    },
    /// Another value; this is the first one, in row-major order.
    Value {
        /// Coordinate of the element.
        coordinate: Vec<usize>,
        /// What the result holds.
        got: Scalar,
        /// What it should hold.
        expected: Scalar,
        /// By how much it may differ.
        tolerance: f64,
        /// The number of elements that differ by too much.
        wrong: usize,
        /// The number of elements.
        of: usize,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mismatch::Shape { got, expected } => write!(f, "shape {got:?}, expected {expected:?}"),
            Mismatch::DType { got, expected } => write!(f, "dtype {got}, expected {expected}"),
            Mismatch::Value { coordinate, got, expected, tolerance, wrong, of } => write!(
                f,
                "at {coordinate:?} got {got:?}, expected {expected:?}, tolerance {tolerance:e}; {wrong} of {of} wrong"
            ),
        }
    }
}

impl std::error::Error for Mismatch {}

/// Compares a result with the oracle's.
///
/// # Errors
/// The first difference.
pub fn compare(result: &View, expected: &OracleArray, tier: Tier) -> Result<(), Mismatch> {
    if result.shape() != expected.shape {
        return Err(Mismatch::Shape { got: result.shape().to_vec(), expected: expected.shape.clone() });
    }
    if result.dtype() != expected.dtype {
        return Err(Mismatch::DType { got: result.dtype(), expected: expected.dtype });
    }
    let got = scalars(result);
    let wrong: Vec<usize> = (0..got.len())
        .filter(|&flat| {
            let near = |tolerance| within(got[flat], expected.values[flat], tolerance);
            !got[flat].same(expected.rounded(flat)) && !tolerance(expected, flat, tier).is_some_and(near)
        })
        .collect();
    let Some(&flat) = wrong.first() else { return Ok(()) };
    Err(Mismatch::Value {
        coordinate: coordinate(&expected.shape, flat),
        got: got[flat],
        expected: expected.rounded(flat),
        tolerance: tolerance(expected, flat, tier).unwrap_or(0.0),
        wrong: wrong.len(),
        of: got.len(),
    })
}

/// By how much an element may differ from its unrounded value; `None` where it must be the rounded one.
fn tolerance(expected: &OracleArray, flat: usize, tier: Tier) -> Option<f64> {
    let Tier::Bound { terms, dtype, accumulator } = tier else { return None };
    let gamma = |unit: f64| {
        // A complex product takes two more roundings than a real one.
        let roundings = (terms + if expected.dtype.is_complex() { 2 } else { 0 }) as f64;
        let error = roundings * unit;
        if error < 1.0 { error / (1.0 - error) } else { f64::INFINITY }
    };
    let Complex { re, im } = expected.values[flat].complex();
    let size = expected.magnitudes[flat];
    let bound = (gamma(unit_roundoff(accumulator)) + gamma(unit_roundoff(DType::F64))) * size;
    let tolerance = bound + unit_roundoff(dtype) * re.abs().max(im.abs());
    (!matches!(expected.values[flat], Scalar::Int(_)) && tolerance.is_finite()).then_some(tolerance)
}

fn within(got: Scalar, expected: Scalar, tolerance: f64) -> bool {
    let (got, expected) = (got.complex(), expected.complex());
    // False for NaN.
    (got.re - expected.re).abs() <= tolerance && (got.im - expected.im).abs() <= tolerance
}
