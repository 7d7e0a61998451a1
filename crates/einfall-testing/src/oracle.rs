//! The oracle: what an equation means, in the slowest and plainest way.
//!
//! *In*: an [`Equation`], its arguments as views in call order (each operand followed by its tables in bracket order, the
//! tables of the output last), lengths that no argument gives, and what to do with table values outside their axis.
//! *Out*: an [`OracleArray`] of exact numbers. One loop runs over the values of all labels together; nothing is
//! reordered, classified or planned, and no code is shared with the engine. *Callers*: tests.
//!
//! ```
//! use einfall_testing::oracle::{Bounds, evaluate};
//! use einfall_tensor::View;
//!
//! let (rows, table) = ([1.0_f32, 2.0, 3.0], [2_i32, 0]);
//! let arguments = [View::from_slice(&rows, &[3])?, View::from_slice(&table, &[2])?];
//! let picked = evaluate(&"[k]->k".parse()?, &arguments, &Default::default(), Bounds::Error, None)?;
//! assert_eq!(picked.reals(), [3.0, 1.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod attention;
mod compare;
mod error;
mod lengths;
mod sum;

use std::collections::BTreeMap;

use einfall_equation::{Axis, Equation, Operand};
use einfall_tensor::{DType, View};
use num_complex::Complex;
use serde::{Deserialize, Serialize};

use crate::number::{Scalar, scalars, unit_roundoff};
pub use compare::{Mismatch, Tier, compare};
pub use error::OracleError;
use lengths::{Lengths, label_lengths};
use sum::{And, Ring, contract};

/// What happens to a term whose table value lies outside its axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bounds {
    /// Every table is checked as a whole before anything else; a value outside is an error.
    #[default]
    Error,
    /// The term is left out of the sum.
    Skip,
}

/// The result of an equation, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct OracleArray {
    /// Axis lengths.
    pub shape: Vec<usize>,
    /// The type that the result has.
    pub dtype: DType,
    /// Integers are wrapped to `dtype`; reals are sums in f64 that are not rounded to `dtype` yet.
    pub values: Vec<Scalar>,
    /// `Σ |a||b|…` of every element, from which error bounds are made; 0 for integers and `bool`.
    pub magnitudes: Vec<f64>,
    /// The most roundings that an element can see in any order of summation: its terms and its factors.
    pub roundings: u64,
    /// The less precise of the accumulators of the operands' type and of `dtype`.
    pub accumulator: DType,
}

impl OracleArray {
    /// Element `flat` as its dtype holds it.
    pub fn rounded(&self, flat: usize) -> Scalar {
        self.values[flat].round_to(self.dtype)
    }

    /// The tier for inexact data, for a result that is computed in any order without intermediate rounding.
    pub fn bound(&self) -> Tier {
        Tier::Bound { terms: self.roundings, dtype: self.dtype, accumulator: self.accumulator }
    }

    /// The same where so many intermediate results are rounded to a half type on the way.
    pub fn bound_rounding(&self, results: u64, half: DType) -> Tier {
        // Sums in f32 have 2^13 roundings before they weigh as much as one to a half type.
        Tier::Bound { terms: results + 1 + (self.roundings >> 13), dtype: self.dtype, accumulator: half }
    }

    /// The elements as their dtype holds them, real parts only.
    pub fn reals(&self) -> Vec<f64> {
        (0..self.values.len()).map(|flat| self.rounded(flat).real()).collect()
    }
}

/// An argument, copied out of its view.
struct Array {
    shape: Vec<usize>,
    dtype: DType,
    values: Vec<Scalar>,
}

/// An operand, or the output, with the numbers of the arguments that belong to it.
struct Term {
    name: String,
    axes: Vec<Axis>,
    /// `None` for the output.
    array: Option<usize>,
    /// One for each lookup, in order.
    tables: Vec<usize>,
}

/// Evaluates an equation.
///
/// `sizes` holds the lengths that no argument gives: of labels (`"w"`), and of the output's lookups and windows in the
/// form in which an axis prints (`"[e]"`, `"[q+w-4]"`). The numbers are computed in the type to which the operands and
/// `result` promote, and the result has the type `result`, or else the one to which the operands promote.
///
/// # Errors
/// [`OracleError`] lists them.
pub fn evaluate(
    equation: &Equation,
    arguments: &[View],
    sizes: &BTreeMap<String, usize>,
    bounds: Bounds,
    result: Option<DType>,
) -> Result<OracleArray, OracleError> {
    let (terms, output) = assign(equation, arguments.len())?;
    let arrays: Vec<Array> = arguments
        .iter()
        .map(|view| Array { shape: view.shape().to_vec(), dtype: view.dtype(), values: scalars(view) })
        .collect();
    for term in terms.iter().chain([&output]) {
        check_tables(term, &arrays)?;
    }
    let promoted = terms.iter().filter_map(|term| term.array).map(|array| arrays[array].dtype);
    let promoted = promoted.reduce(DType::promote).expect("an equation has an operand");
    let dtype = result.unwrap_or(promoted);
    if !promoted.can_cast_same_kind(dtype) {
        return Err(OracleError::Cast { from: promoted, to: dtype });
    }
    let lengths = label_lengths(&terms, &output, &arrays, sizes)?;
    let reached = lengths.axes(&terms, &output, &arrays, sizes)?;
    if bounds == Bounds::Error {
        for (term, axes) in terms.iter().chain([&output]).zip(&reached) {
            check_values(term, axes, &arrays)?;
        }
    }
    let parts = (&terms[..], &output, &arrays[..], &lengths, &reached[..]);
    let accumulators = [promoted.accumulator(), dtype.accumulator()];
    let coarser = accumulators.into_iter().max_by(|a, b| unit_roundoff(*a).total_cmp(&unit_roundoff(*b)));
    let accumulator = coarser.unwrap_or(dtype);
    let computed = promoted.promote(dtype);
    let (values, magnitudes) = match computed {
        DType::Bool => run::<And>(parts, dtype),
        _ if computed.is_complex() => run::<Complex<f64>>(parts, dtype),
        _ if computed.is_float() => run::<f64>(parts, dtype),
        _ => run::<i128>(parts, dtype),
    };
    let shape = reached.last().cloned().unwrap_or_default();
    let roundings = lengths.summed(&output) + terms.len() as u64;
    Ok(OracleArray { shape, dtype, values, magnitudes, roundings, accumulator })
}

type Parts<'p> = (&'p [Term], &'p Term, &'p [Array], &'p Lengths, &'p [Vec<usize>]);

fn run<R: Ring>((terms, output, arrays, lengths, reached): Parts, dtype: DType) -> (Vec<Scalar>, Vec<f64>) {
    let (sums, magnitudes) = contract::<R>(terms, output, arrays, lengths, reached);
    let values = sums.into_iter().map(|sum| match sum.scalar() {
        Scalar::Int(value) => Scalar::Int(value).round_to(dtype),
        inexact => inexact,
    });
    (values.collect(), magnitudes)
}

/// Gives every operand, and the output, its arguments.
fn assign(equation: &Equation, given: usize) -> Result<(Vec<Term>, Term), OracleError> {
    let mut next = 0;
    let mut take = |name: String, operand: &Operand, has_array: bool| {
        let first = next;
        next += has_array as usize + operand.lookups();
        let array = has_array.then_some(first);
        Term { name, axes: operand.axes.clone(), array, tables: (first + has_array as usize..next).collect() }
    };
    let named = equation.operands().iter().enumerate();
    let terms: Vec<Term> = named.map(|(i, operand)| take(format!("operand {i}"), operand, true)).collect();
    let output = take("the output".to_string(), &equation.explicit_output(), false);
    if next != given {
        return Err(OracleError::ArgumentCount { expected: next, given });
    }
    Ok((terms, output))
}

/// The tables of a term are integers and have an axis for every subscript.
fn check_tables(term: &Term, arrays: &[Array]) -> Result<(), OracleError> {
    let lookups = term.axes.iter().filter_map(|axis| match axis {
        Axis::Lookup(subscripts) => Some((axis.to_string(), subscripts.len())),
        _ => None,
    });
    for ((axis, subscripts), &table) in lookups.zip(&term.tables) {
        let (axis, term) = (axis.clone(), term.name.clone());
        let Array { shape, dtype, .. } = &arrays[table];
        if !dtype.is_integer() {
            return Err(OracleError::TableType { axis, term, dtype: *dtype });
        }
        if shape.len() != subscripts {
            return Err(OracleError::TableRank { axis, term, subscripts, shape: shape.clone() });
        }
    }
    Ok(())
}

/// Every value of every table of a term is a position on its axis.
fn check_values(term: &Term, reached: &[usize], arrays: &[Array]) -> Result<(), OracleError> {
    // An ellipsis stands for as many axes as the term has beyond those that are written.
    let hidden = (reached.len() + 1).saturating_sub(term.axes.len());
    let mut at = 0;
    let mut tables = term.tables.iter();
    for axis in &term.axes {
        if let Axis::Lookup(_) = axis {
            let Some(&table) = tables.next() else { break };
            let Array { shape, values, .. } = &arrays[table];
            let len = reached[at];
            let outside = |value: &Scalar| usize::try_from(value.int()).map_or(true, |position| position >= len);
            if let Some(flat) = values.iter().position(outside) {
                return Err(OracleError::TableValue {
                    table,
                    axis: axis.to_string(),
                    term: term.name.clone(),
                    position: coordinate(shape, flat),
                    value: values[flat].int(),
                    len,
                });
            }
        }
        at += if *axis == Axis::Ellipsis { hidden } else { 1 };
    }
    Ok(())
}

/// The coordinate of a row-major element number.
fn coordinate(shape: &[usize], mut flat: usize) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for (position, &len) in at.iter_mut().zip(shape).rev() {
        *position = flat % len;
        flat /= len;
    }
    at
}
