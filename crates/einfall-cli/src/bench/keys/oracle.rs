//! What results should be: plain loops in f64 over the data that the engines were given, for a sample of positions.
//!
//! The bound on the difference is derived for each position from the sum of absolute products, as in Higham, "Accuracy
//! and Stability of Numerical Algorithms", chapter 3: a sum of m terms is off by at most m·ε·Σ|term|, in any order.

use einfall::{DType, Tensor};

use super::data::{Lists, Rows};
use crate::bench::compare::{self, Bounded, Compared, unit_roundoff};
use crate::bench::numbers::number;
use crate::bench::record::{Case, Op, Sizes};

/// The reference for one problem.
pub(super) struct Oracle<'a> {
    pub(super) op: Op,
    pub(super) case: Case,
    pub(super) rows: &'a Rows,
    pub(super) lists: &'a Lists,
    /// The type in which the engine sums; the data's own for engines that we know nothing of.
    pub(super) sums_in: DType,
}

impl Oracle<'_> {
    /// Shape of the result.
    pub(super) fn shape(&self) -> [usize; 4] {
        let Sizes { b, h, q, k, d, .. } = self.lists.sizes;
        [b, h, q, if self.op == Op::Scores { k } else { d }]
    }

    /// Positions of a sample, spread over the result.
    pub(super) fn positions(&self) -> Vec<usize> {
        compare::positions(self.shape().iter().product())
    }

    /// Compares a result on the sample.
    pub(super) fn check(&self, result: &Tensor) -> Compared {
        if result.shape() != self.shape() {
            return Compared::OF_ANOTHER_SHAPE;
        }
        let positions = self.positions();
        let values: Vec<f64> = positions.iter().map(|&at| number(result, at)).collect();
        self.compare(&positions, &values)
    }

    /// Compares values at some positions.
    pub(super) fn compare(&self, positions: &[usize], values: &[f64]) -> Compared {
        Compared::new(values.iter().zip(positions).map(|(&found, &at)| (found, self.at(at))))
    }

    fn at(&self, flat: usize) -> Bounded {
        let last = self.shape()[3];
        let (list, at) = (flat / last, flat % last);
        match self.op {
            Op::Scores => self.score(list, at),
            Op::Values => self.weighted(list, at, |key| {
                let weight = number(&self.lists.weights, list * self.lists.sizes.k + key);
                Bounded { value: weight, tolerance: 0.0 }
            }),
            Op::Attention => self.attention(list, at),
        }
    }

    /// The row that a list names, as a position in keys and values; none outside of a window.
    fn row(&self, list: usize, key: usize) -> Option<usize> {
        let Sizes { q, n, k, .. } = self.lists.sizes;
        let (head, query) = (list / q, list % q);
        let row = match self.case {
            Case::SeparateStored | Case::SeparateLookup => self.lists.positions[list * k + key] as usize,
            Case::SeparateExpanded | Case::Shared | Case::All => key,
            Case::Window => (query + key).checked_sub(k / 2).filter(|&row| row < n)?,
        };
        Some(head * n + row)
    }

    fn bounded(&self, value: f64, absolute: f64, terms: usize) -> Bounded {
        let sums = unit_roundoff(self.sums_in) * (terms + 2) as f64 * absolute;
        let stored = unit_roundoff(self.rows.query.dtype()) * (value.abs() + sums);
        Bounded { value, tolerance: sums + stored + f64::MIN_POSITIVE }
    }

    fn score(&self, list: usize, key: usize) -> Bounded {
        let d = self.lists.sizes.d;
        let Some(row) = self.row(list, key) else { return Bounded { value: 0.0, tolerance: 0.0 } };
        let (mut sum, mut absolute) = (0.0, 0.0);
        for at in 0..d {
            let product = number(&self.rows.query, list * d + at) * number(&self.rows.keys, row * d + at);
            sum += product;
            absolute += product.abs();
        }
        self.bounded(sum, absolute, d)
    }

    /// Σ weight · value over a list; a weight may be off itself.
    fn weighted(&self, list: usize, at: usize, weight: impl Fn(usize) -> Bounded) -> Bounded {
        let Sizes { k, d, .. } = self.lists.sizes;
        let (mut sum, mut absolute, mut off) = (0.0, 0.0, 0.0);
        for key in 0..k {
            let Some(row) = self.row(list, key) else { continue };
            let (weight, value) = (weight(key), number(&self.rows.values, row * d + at));
            sum += weight.value * value;
            absolute += (weight.value * value).abs();
            off += weight.tolerance * value.abs();
        }
        let bounded = self.bounded(sum, absolute, k);
        Bounded { tolerance: bounded.tolerance + off, ..bounded }
    }

    fn attention(&self, list: usize, at: usize) -> Bounded {
        let Sizes { k, d, .. } = self.lists.sizes;
        let scores: Vec<Option<Bounded>> = (0..k).map(|key| Some(self.score(list, key))).collect();
        let weights = compare::softmax(&scores, 1.0 / (d as f64).sqrt(), self.sums_in, self.rows.query.dtype());
        self.weighted(list, at, |key| weights[key])
    }
}

#[cfg(test)]
mod tests;
