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

/// Positions of a sample of `total` elements, spread over them (Knuth's multiplier).
pub(super) fn positions(total: usize) -> Vec<usize> {
    if total <= SAMPLE {
        return (0..total).collect();
    }
    (0..SAMPLE as u64).map(|at| (at.wrapping_mul(2_654_435_761) % total as u64) as usize).collect()
}
