//! Comparing a sample of a result with what it should be.
//!
//! In: values, and for each the reference with the difference that is allowed there. Out: [`Compared`], which says where
//! the difference is largest against what is allowed.

use einfall::DType;

/// Positions that are compared; every one if the result has fewer.
pub(super) const SAMPLE: usize = 64;

/// A value and how far a result may be off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounded {
    pub(super) value: f64,
    pub(super) tolerance: f64,
}

/// A comparison of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Compared {
    /// The difference that is largest against what is allowed there; NaN if a result is no number.
    pub(super) max_error: f64,
    /// What is allowed there.
    pub(super) tolerance: f64,
    /// Whether every position is right.
    pub(super) ok: bool,
}

impl Compared {
    /// What a result of another shape gets.
    pub(super) const OF_ANOTHER_SHAPE: Self = Self { max_error: f64::NAN, tolerance: 0.0, ok: false };

    /// Compares what was found with what is right.
    pub(super) fn new(pairs: impl Iterator<Item = (f64, Bounded)>) -> Self {
        let mut compared = Self { max_error: 0.0, tolerance: 0.0, ok: true };
        let mut worst = -1.0;
        for (found, Bounded { value, tolerance }) in pairs {
            let error = (found - value).abs();
            compared.ok &= error <= tolerance;
            // A NaN is the largest error of all; no error is none, even where nothing is allowed.
            let share = match error {
                0.0 => 0.0,
                error if error.is_nan() => f64::INFINITY,
                error => error / tolerance,
            };
            if share > worst {
                worst = share;
                compared = Self { max_error: error, tolerance, ..compared };
            }
        }
        compared
    }
}

/// Half the distance from 1 to the next number; 0 for integers.
pub(super) fn unit_roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::F64 | DType::C128 => f64::EPSILON / 2.0,
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        DType::F32 | DType::C64 => f64::from(f32::EPSILON) / 2.0,
        _ => 0.0,
    }
}

/// Weights `softmax(scale · score)` of scores that may be off themselves; a missing score has no weight.
///
/// A score that is off by δ changes its power, and the total, by a factor of at most e^δ each. Products with the scale,
/// powers, their sum and the quotient are rounded in the type that sums are in, scaled scores and weights in the type of
/// the data.
pub(super) fn softmax(scores: &[Option<Bounded>], scale: f64, sums_in: DType, dtype: DType) -> Vec<Bounded> {
    let there = || scores.iter().flatten();
    let most = there().map(|score| score.value).fold(f64::NEG_INFINITY, f64::max);
    let power = |score: &Bounded| ((score.value - most) * scale).exp();
    let total: f64 = there().map(power).sum();
    let off = there().map(|score| score.tolerance * scale).fold(0.0, f64::max);
    let largest = there().map(|score| score.value.abs() * scale).fold(0.0, f64::max);
    let terms = scores.len() as f64 + 16.0;
    let relative = 2.0 * off + unit_roundoff(sums_in) * terms + unit_roundoff(dtype) * (4.0 + 4.0 * largest);
    let weight = |score: &Option<Bounded>| {
        let value = score.as_ref().map_or(0.0, |score| power(score) / total);
        Bounded { value, tolerance: value * relative.exp_m1() }
    };
    scores.iter().map(weight).collect()
}

/// Positions of a sample of `total` elements, spread over them (Knuth's multiplier).
pub(super) fn positions(total: usize) -> Vec<usize> {
    if total <= SAMPLE {
        return (0..total).collect();
    }
    (0..SAMPLE as u64).map(|at| (at.wrapping_mul(2_654_435_761) % total as u64) as usize).collect()
}
