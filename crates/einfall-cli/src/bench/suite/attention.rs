//! What attention and the gradient of its keys should be at some positions: plain loops in f64.
//!
//! In: a problem of the kind `attention` and its arrays. Out: numbers and how far a result may be off, which follows from
//! the rounding of scores, powers and sums, each to first order.

use einfall::{DType, Tensor};

use super::data::Data;
use super::oracle::{entry, part};
use super::problem::Problem;
use super::record::Pass;
use crate::bench::compare::{self, Bounded, unit_roundoff};

/// Multiply-adds that all positions together may take; then fewer positions are compared.
const MOST: f64 = 2e8;

/// The reference of one problem.
pub(super) struct AttentionOracle<'a> {
    problem: &'a Problem,
    query: &'a Tensor,
    keys: &'a Tensor,
    values: &'a Tensor,
    table: Option<&'a Tensor>,
    grad_out: Option<&'a Tensor>,
    scale: f64,
}

/// A query's list and what became of it.
struct Attended {
    /// Positions of keys; none outside of a window.
    rows: Vec<Option<usize>>,
    weights: Vec<Bounded>,
}

impl<'a> AttentionOracle<'a> {
    /// The reference; `None` where an array is missing.
    pub(super) fn new(problem: &'a Problem, data: &'a Data) -> Option<Self> {
        Some(Self {
            problem,
            query: data.get("query")?,
            keys: data.get("keys")?,
            values: data.get("values")?,
            table: data.get("table"),
            grad_out: data.get("grad_out"),
            scale: 1.0 / (problem.len("d") as f64).sqrt(),
        })
    }

    /// Shape of what is compared: the output, or the gradient of the keys.
    pub(super) fn shape(&self) -> &[usize] {
        if self.problem.pass == Pass::Both { self.keys.shape() } else { &self.problem.output }
    }

    /// What should stand at these positions, as far as there is time, where an engine sums in a type.
    pub(super) fn expected(&self, positions: &[usize], sums_in: DType) -> Vec<Bounded> {
        let mut left = MOST;
        let mut expected = Vec::new();
        for &position in positions {
            if left <= 0.0 {
                break;
            }
            let (bounded, took) = if self.problem.pass == Pass::Both {
                self.key_gradient(position, sums_in)
            } else {
                self.output(position, sums_in)
            };
            left -= took;
            expected.push(bounded);
        }
        expected
    }

    /// Where the list of a query of a head stands in the table.
    fn list(&self, [b, h, q]: [usize; 3]) -> usize {
        let len = |name: &str| self.problem.len(name);
        let g = h / (len("h") / len("g"));
        match self.problem.scope.as_str() {
            "bhqk" => (b * len("h") + h) * len("q") + q,
            "bgqk" => (b * len("g") + g) * len("q") + q,
            "bqk" => b * len("q") + q,
            _ => q,
        }
    }

    /// The position of a key of a list.
    fn row(&self, at: [usize; 3], key: usize) -> Option<usize> {
        let k = self.problem.len("k");
        match self.table {
            Some(table) => Some(entry(table, self.list(at) * k + key)),
            None => (at[2] + key).checked_sub(k / 2).filter(|&row| row < self.problem.len("n")),
        }
    }

    /// The first element of a row of keys or values.
    fn start(&self, rows: &Tensor, [b, h, _]: [usize; 3], row: usize) -> usize {
        let [_, g, n, width] = rows.shape() else { return 0 };
        let group = h / (self.problem.len("h") / g);
        ((b * g + group) * n + row) * width
    }

    /// The first element of a query's row in an array of `(b, h, q, width)`.
    fn query_start(&self, [b, h, q]: [usize; 3], width: usize) -> usize {
        ((b * self.problem.len("h") + h) * self.problem.len("q") + q) * width
    }

    /// Σ a·b over `len` elements from two places, and Σ |a·b|.
    fn dot(a: (&Tensor, usize), b: (&Tensor, usize), len: usize) -> (f64, f64) {
        (0..len).fold((0.0, 0.0), |(sum, absolute), at| {
            let product = part(a.0, a.1 + at) * part(b.0, b.1 + at);
            (sum + product, absolute + product.abs())
        })
    }

    fn attended(&self, at: [usize; 3], sums_in: DType) -> Attended {
        let d = self.problem.len("d");
        let query = (self.query, self.query_start(at, d));
        let rows: Vec<Option<usize>> = (0..self.problem.len("k")).map(|key| self.row(at, key)).collect();
        let scores: Vec<Option<Bounded>> = rows
            .iter()
            .map(|row| {
                let (value, absolute) = Self::dot(query, (self.keys, self.start(self.keys, at, (*row)?)), d);
                let tolerance = unit_roundoff(sums_in) * (d as f64 + 2.0) * absolute
                    + unit_roundoff(self.problem.dtype) * value.abs();
                Some(Bounded { value, tolerance })
            })
            .collect();
        Attended { weights: compare::softmax(&scores, self.scale, sums_in, self.problem.dtype), rows }
    }

    fn output(&self, position: usize, sums_in: DType) -> (Bounded, f64) {
        let [h, q, width, k] = ["h", "q", "dv", "k"].map(|name| self.problem.len(name));
        let (list, column) = (position / width, position % width);
        let at = [list / (h * q), list / q % h, list % q];
        let Attended { rows, weights } = self.attended(at, sums_in);
        let (mut value, mut absolute, mut off) = (0.0, 0.0, 0.0);
        for (row, weight) in rows.iter().zip(&weights) {
            let Some(row) = row else { continue };
            let element = part(self.values, self.start(self.values, at, *row) + column);
            value += weight.value * element;
            absolute += (weight.value * element).abs();
            off += weight.tolerance * element.abs();
        }
        let sums = unit_roundoff(sums_in) * (k as f64 + 2.0) * absolute;
        let stored = unit_roundoff(self.problem.dtype) * (value.abs() + sums);
        let bounded = Bounded { value, tolerance: off + sums + stored + f64::MIN_POSITIVE };
        (bounded, (k * self.problem.len("d")) as f64)
    }

    /// The gradient of a key: over all lists that name its row, `weight · (grad_out·value − δ) · scale · query`, where `δ` is
    /// the weighted mean of the `grad_out·value` of the list.
    fn key_gradient(&self, position: usize, sums_in: DType) -> (Bounded, f64) {
        let Some(grad_out) = self.grad_out else { return (Bounded { value: f64::NAN, tolerance: 0.0 }, 0.0) };
        let [g, h, q, n, k, d, width] = ["g", "h", "q", "n", "k", "d", "dv"].map(|name| self.problem.len(name));
        let (list, column) = (position / d, position % d);
        let (b, group, row) = (list / (g * n), list / n % g, list % n);
        let (u, stored) = (unit_roundoff(sums_in), unit_roundoff(self.problem.dtype));
        let (mut value, mut off, mut absolute, mut count) = (0.0, 0.0, 0.0, 0.0);
        let heads = group * (h / g)..(group + 1) * (h / g);
        for at in heads.flat_map(|head| (0..q).map(move |query| [b, head, query])) {
            if !(0..k).any(|key| self.row(at, key) == Some(row)) {
                continue;
            }
            let Attended { rows, weights } = self.attended(at, sums_in);
            let gradient = (grad_out, self.query_start(at, width));
            let changes: Vec<(f64, f64)> = rows
                .iter()
                .map(|row| match row {
                    Some(row) => Self::dot(gradient, (self.values, self.start(self.values, at, *row)), width),
                    None => (0.0, 0.0),
                })
                .collect();
            let mean: f64 = weights.iter().zip(&changes).map(|(weight, change)| weight.value * change.0).sum();
            let spread: f64 = weights.iter().zip(&changes).map(|(weight, change)| weight.value * change.1).sum();
            // A change and the mean of them are sums, each is perhaps stored, and the mean has the weights' errors.
            let of_sums = u * (width + k + 8) as f64 + 4.0 * stored;
            let of_weights: f64 =
                weights.iter().zip(&changes).map(|(weight, change)| weight.tolerance * change.0.abs()).sum();
            for ((there, weight), change) in rows.iter().zip(&weights).zip(&changes) {
                if *there != Some(row) {
                    continue;
                }
                let factor = self.scale * part(self.query, self.query_start(at, d) + column);
                let term = weight.value * (change.0 - mean) * factor;
                value += term;
                absolute += term.abs();
                let error = weight.tolerance * (change.0 - mean).abs()
                    + weight.value * (of_sums * (change.1 + spread) + of_weights);
                off += error * factor.abs();
                count += 1.0;
            }
        }
        let sums = (u * (count + 4.0) + 2.0 * stored) * absolute;
        let tolerance = off + sums + stored * value.abs() + f64::MIN_POSITIVE;
        (Bounded { value, tolerance }, (h / g * q * k) as f64 + count * (2 * k * d) as f64)
    }
}
