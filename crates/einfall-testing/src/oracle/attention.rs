//! The oracle of attention: softmax and its gradients in the slowest and plainest way, in `f64`.
//!
//! *In*: an equation of query, key, value and perhaps a bias, its arguments as a call has them (the key's tables once, or
//! again after the value), and [`AttentionCall`]. *Out*: [`Attended`]: numbers, and by how much a result that is summed in
//! the accumulator of its type may differ from them. *Callers*: tests. No code is shared with the engine.
//!
//! Tolerances: a score of `D` products is off by `(D + 4) u Σ|scale q k| + …`, a weight by the exponential of twice the
//! largest such error, a sum of `K` terms by `K u` of its magnitudes. Half types may round weights and slopes once, as
//! matrix units do.

use std::collections::BTreeMap;

use einfall_equation::{Axis, Equation, Label};
use einfall_tensor::{DType, View};

use super::lengths::{Lengths, Name, Source, label_lengths, sources};
use super::{Array, Bounds, OracleError, Term, assign, check_values};
use crate::number::{Scalar, scalars, unit_roundoff};

/// How an attention is called.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttentionCall {
    /// Lengths that no argument gives.
    pub sizes: BTreeMap<String, usize>,
    /// What happens to table values outside their axis.
    pub bounds: Bounds,
    /// Whether keys after the query are left out.
    pub causal: bool,
    /// What scores are multiplied by.
    pub scale: Option<f64>,
    /// The labels of the offsets, which are the last argument, if lists differ in length.
    pub offsets: Option<String>,
}

/// Numbers, row-major, and by how much each may be off.
#[derive(Clone, Debug, PartialEq)]
pub struct Near {
    /// Axis lengths.
    pub shape: Vec<usize>,
    /// The type that a result has.
    pub dtype: DType,
    /// What each element should be.
    pub values: Vec<f64>,
    /// By how much it may differ.
    pub tolerances: Vec<f64>,
}

/// What an attention is.
#[derive(Clone, Debug, PartialEq)]
pub struct Attended {
    /// The output.
    pub out: Near,
    /// The log of the sum of exponentials of each query's scores.
    pub lse: Near,
    /// Gradients of query, key, value and bias.
    pub gradients: Vec<Near>,
}

/// Sums with the errors that they may have.
#[derive(Clone, Copy, Default)]
struct Sum {
    value: f64,
    magnitude: f64,
    error: f64,
    terms: f64,
}

impl Sum {
    fn add(&mut self, value: f64, error: f64) {
        self.value += value;
        self.magnitude += value.abs();
        self.error += error;
        self.terms += 1.0;
    }
}

impl Near {
    fn of(shape: Vec<usize>, dtype: DType, sums: Vec<Sum>) -> Near {
        let (unit, rounded) = (unit_roundoff(dtype.accumulator()), unit_roundoff(dtype));
        let tolerance = |sum: &Sum| {
            let summed = sum.error + (sum.terms + 2.0) * unit * sum.magnitude;
            // What is below the normal numbers of a half type is rounded to a multiple of its least one.
            let least = if dtype == DType::F16 { 2f64.powi(-25) } else { 1e-38 };
            1.01 * summed + rounded * (sum.value.abs() + summed) + least
        };
        Near {
            shape,
            dtype,
            tolerances: sums.iter().map(tolerance).collect(),
            values: sums.iter().map(|s| s.value).collect(),
        }
    }

    /// Compares a result.
    ///
    /// # Errors
    /// What differs.
    pub fn compare(&self, found: &View) -> Result<(), String> {
        if (found.shape(), found.dtype()) != (&self.shape[..], self.dtype) {
            return Err(format!("{} {:?}, not {} {:?}", found.dtype(), found.shape(), self.dtype, self.shape));
        }
        let got: Vec<f64> = scalars(found).into_iter().map(Scalar::real).collect();
        let wrong = |&at: &usize| {
            let (got, expected) = (got[at], self.values[at]);
            !(got == expected || (got - expected).abs() <= self.tolerances[at])
        };
        let all: Vec<usize> = (0..got.len()).filter(wrong).collect();
        let Some(&at) = all.first() else { return Ok(()) };
        let at_shape = super::coordinate(&self.shape, at);
        Err(format!(
            "at {at_shape:?} {}, not {} ± {:e}; {} of {} wrong",
            got[at],
            self.values[at],
            self.tolerances[at],
            all.len(),
            got.len()
        ))
    }
}

/// Everything that the loops read.
struct Problem<'p> {
    terms: &'p [Term],
    arrays: &'p [Array],
    lengths: &'p Lengths,
    call: &'p AttentionCall,
    /// Labels of the offsets, and the argument that they are.
    offsets: Option<(Vec<Label>, usize)>,
    /// The label that is the query's position, and the one that is the key's where nothing is looked up.
    positions: (Option<Label>, Option<Label>),
}

type At = BTreeMap<Name, usize>;

impl Problem<'_> {
    /// The element of a term, and the positions on its brackets; `None` where it is left out.
    fn element(&self, term: usize, at: &At) -> Option<(usize, Vec<i128>)> {
        let term = &self.terms[term];
        let array = &self.arrays[term.array.expect("an operand")];
        let hidden = (array.shape.len() + 1).saturating_sub(term.axes.len());
        let (mut flat, mut positions) = (0, Vec::new());
        for (source, &len) in sources(term, hidden).into_iter().zip(&array.shape) {
            let position = match source {
                // Features that are not there are no reason to leave a key out.
                Source::Name(name) => {
                    flat = flat * len + if len == 1 { 0 } else { at[&name] };
                    continue;
                }
                Source::Table(labels, table) => {
                    let table = &self.arrays[table];
                    let flat = labels.iter().zip(&table.shape).fold(0, |flat, (label, &len)| {
                        flat * len + if len == 1 { 0 } else { at[&Name::Label(*label)] }
                    });
                    positions.push(table.values[flat].int());
                    table.values[flat].int()
                }
                Source::Window(affine) => {
                    let steps =
                        affine.terms.iter().map(|(label, by)| i128::from(*by) * at[&Name::Label(*label)] as i128);
                    let position = i128::from(affine.offset) + steps.sum::<i128>();
                    positions.push(position);
                    position
                }
            };
            if position < 0 || position >= len as i128 {
                return None;
            }
            flat = flat * len + position as usize;
        }
        Some((flat, positions))
    }

    fn value(&self, term: usize, flat: usize) -> f64 {
        self.arrays[self.terms[term].array.expect("an operand")].values[flat].real()
    }

    /// Whether a key counts that stands at these positions.
    fn is_seen(&self, positions: &[i128], at: &At) -> bool {
        if let Some((labels, offsets)) = &self.offsets {
            let Array { shape, values, .. } = &self.arrays[*offsets];
            let list = labels.iter().zip(shape).fold(0, |flat, (label, &len)| flat * len + at[&Name::Label(*label)]);
            let entry = self.entry(at) as i128;
            if entry < values[list].int() || entry >= values[list + 1].int() {
                return false;
            }
        }
        let (Some(query), true) = (self.positions.0, self.call.causal) else { return true };
        let position = match (positions, self.positions.1) {
            ([position, ..], _) => *position,
            ([], Some(label)) => at[&Name::Label(label)] as i128,
            ([], None) => 0,
        };
        position <= at[&Name::Label(query)] as i128
    }

    /// The entry of the table at which a key of a list stands.
    fn entry(&self, at: &At) -> usize {
        let label = self.terms[1].axes.iter().find_map(|axis| match axis {
            Axis::Lookup(labels) => labels.first(),
            _ => None,
        });
        at[&Name::Label(*label.expect("a bracket with a label"))]
    }
}

/// All values of some names together.
fn each(names: &[(Name, usize)], at: &mut At, visit: &mut dyn FnMut(&At)) {
    let Some((&(name, len), rest)) = names.split_first() else { return visit(at) };
    for value in 0..len {
        at.insert(name, value);
        each(rest, at, visit);
    }
    at.insert(name, 0);
}

/// The names in a term, those in brackets included.
fn names(term: &Term, rank: usize) -> Vec<Name> {
    let hidden = (rank + 1).saturating_sub(term.axes.len());
    sources(term, hidden)
        .into_iter()
        .flat_map(|source| match source {
            Source::Name(name) => vec![name],
            Source::Table(labels, _) => labels.iter().map(|&label| Name::Label(label)).collect(),
            Source::Window(affine) => affine.terms.iter().map(|&(label, _)| Name::Label(label)).collect(),
        })
        .collect()
}

/// A key of a query.
struct Key {
    at: At,
    score: f64,
    /// By how much the score may be off.
    error: f64,
}

/// Evaluates an attention. `grad_out` is the gradient of the output, row-major and of its size, or nothing.
///
/// # Errors
/// [`OracleError`], but for what makes an equation no attention, which is not asked here.
pub fn attend(
    equation: &Equation,
    arguments: &[View],
    call: &AttentionCall,
    grad_out: Option<&[f64]>,
) -> Result<Attended, OracleError> {
    let mut views: Vec<&View> = arguments.iter().collect();
    let offsets = call.offsets.as_ref().and_then(|labels| Some((labels, views.pop()?)));
    let brackets = |operand: usize| equation.operands().get(operand).map_or(0, |operand| operand.lookups());
    let expected = equation.operands().len() + (0..equation.operands().len()).map(brackets).sum::<usize>();
    let tables = brackets(1);
    if views.len() + tables == expected {
        let repeated: Vec<&View> = views[2..2 + tables].to_vec();
        views.splice(3 + tables..3 + tables, repeated);
    }
    let (terms, output) = assign(equation, views.len())?;
    views.extend(offsets.iter().map(|(_, view)| *view));
    let array = |view: &&View| Array { shape: view.shape().to_vec(), dtype: view.dtype(), values: scalars(view) };
    let arrays: Vec<Array> = views.iter().map(array).collect();
    let lengths = label_lengths(&terms, &output, &arrays, &call.sizes)?;
    let reached = lengths.axes(&terms, &output, &arrays, &call.sizes)?;
    if call.bounds == Bounds::Error {
        for (term, axes) in terms.iter().zip(&reached) {
            check_values(term, axes, &arrays)?;
        }
    }
    let rank = |term: usize| terms.get(term).map_or(0, |term| arrays[term.array.expect("an operand")].shape.len());
    let named: Vec<Vec<Name>> = (0..terms.len()).map(|term| names(&terms[term], rank(term))).collect();
    let out_shape = reached.last().cloned().unwrap_or_default();
    let in_out = names(&output, out_shape.len());
    let scored = |name: &Name| {
        named[0].contains(name) || named[1].contains(name) || named.get(3).is_some_and(|n| n.contains(name))
    };
    let len = |name: &Name| (*name, lengths.0[name]);
    let (widths, queries): (Vec<Name>, Vec<Name>) =
        in_out.iter().partition(|name| !scored(name) && named[2].contains(name));
    let left = |name: &&Name| !in_out.contains(name);
    let mut keys: Vec<(Name, usize)> =
        named[1].iter().chain(&named[2]).filter(left).filter(|name| !named[0].contains(name)).map(len).collect();
    keys.sort_unstable();
    keys.dedup();
    let mut depths: Vec<(Name, usize)> = named[0].iter().filter(left).map(len).collect();
    depths.sort_unstable();
    depths.dedup();
    let label = |name: &Name| if let Name::Label(label) = name { Some(*label) } else { None };
    let letters = |labels: &str| labels.chars().filter_map(Label::new).collect();
    let problem = Problem {
        terms: &terms,
        arrays: &arrays,
        lengths: &lengths,
        call,
        offsets: offsets.map(|(labels, _)| (letters(labels), arrays.len() - 1)),
        positions: (
            named[0].iter().rfind(|name| in_out.contains(name)).and_then(label),
            keys.first().and_then(|(name, _)| label(name)),
        ),
    };
    let query_lens: Vec<(Name, usize)> = queries.iter().map(len).collect();
    let width_lens: Vec<(Name, usize)> = widths.iter().map(len).collect();
    problem.run(&query_lens, &keys, &depths, &width_lens, &in_out, grad_out)
}

impl Problem<'_> {
    fn run(
        &self,
        queries: &[(Name, usize)],
        keys: &[(Name, usize)],
        depths: &[(Name, usize)],
        widths: &[(Name, usize)],
        in_out: &[Name],
        grad_out: Option<&[f64]>,
    ) -> Result<Attended, OracleError> {
        let dtype = self.arrays[self.terms[0].array.expect("an operand")].dtype;
        let (unit, half) =
            (unit_roundoff(dtype.accumulator()), if dtype.bytes() == 2 { unit_roundoff(dtype) } else { 0.0 });
        let depth: usize = depths.iter().map(|(_, len)| len).product();
        let scale = self.call.scale.unwrap_or(if depth > 0 { 1.0 / (depth as f64).sqrt() } else { 1.0 });
        let out_shape: Vec<usize> = in_out.iter().map(|name| self.lengths.0[name]).collect();
        let lse_shape: Vec<usize> = queries.iter().map(|(_, len)| *len).collect();
        let flat = |names: &mut dyn Iterator<Item = Name>, at: &At| {
            names.fold(0, |flat, name| flat * self.lengths.0[&name] + at[&name])
        };
        let elements = |shape: &[usize]| shape.iter().product::<usize>();
        let mut out = vec![Sum::default(); elements(&out_shape)];
        let mut lse = vec![Sum::default(); elements(&lse_shape)];
        let gradient = |term: &Term| {
            let shape = &self.arrays[term.array.expect("an operand")].shape;
            (shape.clone(), vec![Sum::default(); elements(shape)])
        };
        let mut gradients: Vec<(Vec<usize>, Vec<Sum>)> = self.terms.iter().map(gradient).collect();
        let mut at: At = self.lengths.0.keys().map(|&name| (name, 0)).collect();
        each(queries, &mut at, &mut |query| {
            let found = self.keys_of(query, keys, depths, scale, unit);
            let most = found.iter().map(|key| key.score).fold(f64::NEG_INFINITY, f64::max);
            let error =
                found.iter().filter(|key| key.score > f64::NEG_INFINITY).map(|key| key.error).fold(0.0, f64::max);
            let sum: f64 = found.iter().map(|key| (key.score - most).exp()).sum();
            let total = if most > f64::NEG_INFINITY { most + sum.ln() } else { f64::NEG_INFINITY };
            let count = found.len() as f64;
            let to = &mut lse[flat(&mut queries.iter().map(|(name, _)| *name), query)];
            to.value = total;
            // Of the log-sum-exp itself, which the gradients read rounded.
            let lse_error =
                if total.is_finite() { error + unit * (count + 6.0 + 2.0 * total.abs() + most.abs()) } else { 0.0 };
            to.error = lse_error;
            let weight = |key: &Key| if total.is_finite() { (key.score - total).exp() } else { 0.0 };
            // Of weights, relative: of both scores, of what is subtracted, of the exponential and of the sum.
            let weight_error = |key: &Key| {
                let apart = if key.score > f64::NEG_INFINITY {
                    (key.score - most).abs() + most.abs().max(total.abs())
                } else {
                    0.0
                };
                (2.0 * error + unit * (count + 12.0 + 3.0 * apart)).exp_m1() + 2.0 * half
            };
            for key in found.iter().filter(|_| total.is_finite()) {
                each(widths, &mut key.at.clone(), &mut |wide| {
                    let to = &mut out[flat(&mut in_out.iter().copied(), wide)];
                    let value = self.value(2, self.element(2, wide).expect("the value is there").0);
                    to.add(weight(key) * value, weight(key) * value.abs() * weight_error(key));
                });
            }
            let Some(grad_out) = grad_out.filter(|_| total.is_finite()) else { return };
            let (mut delta, mut delta_error) = (0.0, 0.0);
            each(widths, &mut query.clone(), &mut |wide| {
                let flat = flat(&mut in_out.iter().copied(), wide);
                let (grad, sum) = (grad_out[flat], &out[flat]);
                delta += grad * sum.value;
                let rounded = unit_roundoff(dtype) * sum.value.abs() + sum.error + (count + 2.0) * unit * sum.magnitude;
                delta_error += grad.abs()
                    * (rounded + (widths.iter().map(|w| w.1).product::<usize>() as f64 + 2.0) * unit * sum.value.abs());
            });
            for key in &found {
                let weight = weight(key);
                let weight_error = weight_error(key) + 2.0 * lse_error;
                let (mut slope, mut magnitude, mut terms) = (0.0, 0.0, 0.0);
                each(widths, &mut key.at.clone(), &mut |wide| {
                    let grad = grad_out[flat(&mut in_out.iter().copied(), wide)];
                    let (value, _) = self.element(2, wide).expect("the value is there");
                    slope += grad * self.value(2, value);
                    magnitude += (grad * self.value(2, value)).abs();
                    terms += 1.0;
                    gradients[2].1[value].add(weight * grad, weight * grad.abs() * weight_error);
                });
                let off = delta_error + unit * (terms + 2.0) * magnitude;
                let value = weight * (slope - delta);
                let error = weight * (off + (weight_error + 2.0 * half + 3.0 * unit) * (magnitude + delta.abs()));
                if self.terms.len() > 3 {
                    let (bias, _) = self.element(3, &key.at).expect("a bias has no brackets");
                    gradients[3].1[bias].add(value, error);
                }
                each(depths, &mut key.at.clone(), &mut |deep| {
                    let (q, _) = self.element(0, deep).expect("a query has no brackets");
                    let (k, _) = self.element(1, deep).expect("the key is there");
                    let (from_query, from_key) = (scale * self.value(0, q), scale * self.value(1, k));
                    gradients[0].1[q]
                        .add(value * from_key, error * from_key.abs() + 4.0 * unit * (value * from_key).abs());
                    gradients[1].1[k]
                        .add(value * from_query, error * from_query.abs() + 4.0 * unit * (value * from_query).abs());
                });
            }
        });
        let bias_dtype = |term: usize| self.arrays[self.terms[term].array.expect("an operand")].dtype;
        let gradients = gradients.into_iter().enumerate();
        Ok(Attended {
            out: Near::of(out_shape, dtype, out),
            lse: Near::of(lse_shape, dtype.accumulator(), lse),
            gradients: gradients.map(|(term, (shape, sums))| Near::of(shape, bias_dtype(term), sums)).collect(),
        })
    }

    fn keys_of(&self, query: &At, keys: &[(Name, usize)], depths: &[(Name, usize)], scale: f64, unit: f64) -> Vec<Key> {
        let mut found = Vec::new();
        let mut at = query.clone();
        each(keys, &mut at, &mut |at| {
            let (Some((_, positions)), Some(_)) = (self.element(1, at), self.element(2, at)) else { return };
            if !self.is_seen(&positions, at) {
                return;
            }
            let (mut sum, mut magnitude, mut terms) = (0.0, 0.0, 0.0);
            let mut deep = at.clone();
            each(depths, &mut deep, &mut |deep| {
                let (q, _) = self.element(0, deep).expect("a query has no brackets");
                let (k, _) = self.element(1, deep).expect("the key is there");
                sum += self.value(0, q) * self.value(1, k);
                magnitude += (self.value(0, q) * self.value(1, k)).abs();
                terms += 1.0;
            });
            let bias = (self.terms.len() > 3).then(|| self.value(3, self.element(3, at).expect("no brackets").0));
            let score = sum * scale + bias.unwrap_or(0.0);
            let finite = bias.filter(|bias| bias.is_finite()).map_or(0.0, f64::abs);
            let error = unit * ((terms + 4.0) * magnitude * scale.abs() + 2.0 * finite);
            found.push(Key { at: at.clone(), score, error });
        });
        found
    }
}
