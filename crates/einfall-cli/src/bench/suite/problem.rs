//! A case as a problem to be run: equation, arguments, and the work that it is at least.
//!
//! In: a case of a suite, a type to run it in instead of its own, and whether to shrink it. Out: a [`Problem`], which
//! says everything but the numbers in the arrays.

use std::collections::{BTreeMap, BTreeSet};

use einfall::DType;

use super::cases::{Dense, Kind, Lookup, Named};
use super::record::Pass;

/// What stands in an array.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fill {
    /// Of variance 1; small integers for integer types.
    Normal,
    /// From 0 to 2/k: what rows are weighted with.
    Weights { k: usize },
    /// Rows below n, none twice in a list of the last axis.
    Distinct { n: usize },
    /// Rows below n, each for itself.
    Any { n: usize },
    /// The rows nearest to a query's own, after the rows of each `block` of them have been shuffled.
    Near { n: usize, block: usize },
    /// The neighbourhood of a query's own row in a square image.
    Image { n: usize },
}

/// An argument.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Array {
    /// What peers know it by.
    pub(super) role: &'static str,
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
    pub(super) fill: Fill,
}

impl Array {
    fn new(role: &'static str, shape: &[usize], dtype: DType, fill: Fill) -> Self {
        Self { role, shape: shape.to_vec(), dtype, fill }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.shape.iter().map(|&len| len as u64).product::<u64>() * self.dtype.bytes() as u64
    }
}

/// A problem.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) name: String,
    pub(super) section: String,
    pub(super) kind: Kind,
    pub(super) pass: Pass,
    pub(super) equation: String,
    /// A length that no argument gives.
    pub(super) size: Option<(String, usize)>,
    pub(super) sizes: BTreeMap<String, usize>,
    pub(super) scope: String,
    pub(super) dtype: DType,
    pub(super) arguments: Vec<Array>,
    /// Shape of the result.
    pub(super) output: Vec<usize>,
    /// Multiply-adds × 2, real ones; `None` where the order of operands decides.
    pub(super) flops: Option<u64>,
    /// Bytes of distinct input and output.
    pub(super) bytes: u64,
}

/// Roles of dense operands.
const OPERANDS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

fn product(lens: impl IntoIterator<Item = usize>) -> u64 {
    lens.into_iter().map(|len| len as u64).product()
}

impl Problem {
    /// A dense case in a type, small where `quick`.
    pub(super) fn dense(case: &Dense, dtype: DType, quick: bool) -> Self {
        // However many labels there are, a result has a few thousand elements.
        let most = [64, 64, 64, 32, 12, 8, 6, 5, 4].get(case.sizes.len()).copied().unwrap_or(3);
        let cap = |&len: &usize| if quick { len.min(most) } else { len };
        let sizes: BTreeMap<String, usize> = case.sizes.iter().map(|(label, len)| (label.clone(), cap(len))).collect();
        let (inputs, output) = case.equation.split_once("->").unwrap_or((&case.equation, ""));
        let shape = |term: &str| -> Vec<usize> { term.chars().map(|label| sizes[&label.to_string()]).collect() };
        let terms: Vec<&str> = inputs.split(',').collect();
        let arguments: Vec<Array> = terms
            .iter()
            .zip(OPERANDS)
            .map(|(term, role)| Array::new(role, &shape(term), dtype, Fill::Normal))
            .collect();
        let output_shape = shape(output);
        let labels: BTreeSet<char> = inputs.chars().filter(|label| *label != ',').collect();
        let all = product(labels.iter().map(|label| sizes[&label.to_string()]));
        let complex = if dtype.is_complex() { 4 } else { 1 };
        let flops = match terms.len() {
            1 if labels.len() == output.chars().count() => Some(0),
            1 => Some(all),
            2 => Some(2 * all * complex),
            _ => None,
        };
        // Of a diagonal only the diagonal is read.
        let read = terms.iter().map(|term| {
            let distinct: BTreeSet<char> = term.chars().collect();
            product(distinct.iter().map(|label| sizes[&label.to_string()]))
        });
        let elements = read.sum::<u64>() + product(output_shape.iter().copied());
        Self {
            name: case.name.clone(),
            section: case.section().to_owned(),
            kind: Kind::Dense,
            pass: Pass::Forward,
            equation: case.equation.clone(),
            size: None,
            sizes,
            scope: String::new(),
            dtype,
            arguments,
            output: output_shape,
            flops,
            bytes: elements * dtype.bytes() as u64,
        }
    }

    /// A lookup in a type, with tables of a type, small where `quick`.
    pub(super) fn lookup(case: &Lookup, dtype: DType, table_dtype: DType, pass: Pass, quick: bool) -> Self {
        let mut sizes = case.sizes.clone();
        if quick {
            shrink(&mut sizes);
        }
        let mut problem = Self {
            name: case.name.clone(),
            section: case.kind.name().to_owned(),
            kind: case.kind,
            pass,
            equation: String::new(),
            size: None,
            sizes,
            scope: case.scope.clone(),
            dtype,
            arguments: Vec::new(),
            output: Vec::new(),
            flops: None,
            bytes: 0,
        };
        match case.kind {
            Kind::Spmm => problem.spmm(table_dtype),
            Kind::Moe => problem.moe(table_dtype),
            _ => problem.rows(table_dtype),
        }
        problem
    }

    pub(super) fn len(&self, name: &str) -> usize {
        // A key's and a value's width are the same unless the case says otherwise, and each head has keys of its own.
        let found = |name: &str| self.sizes.get(name).copied();
        match name {
            "dv" => found("dv").unwrap_or_else(|| self.len("d")),
            "g" => found("g").unwrap_or_else(|| self.len("h")),
            name => found(name).unwrap_or(1),
        }
    }

    fn shape(&self, labels: &[&str]) -> Vec<usize> {
        labels.iter().map(|label| self.len(label)).collect()
    }

    /// Scores, values and attention.
    fn rows(&mut self, table_dtype: DType) {
        let dtype = self.dtype;
        let window = self.scope == "window";
        let [b, h, g, q, n, k, d, dv] = ["b", "h", "g", "q", "n", "k", "d", "dv"].map(|name| self.len(name));
        let normal = |role, shape: &[usize]| Array::new(role, shape, dtype, Fill::Normal);
        let (query, keys) = (normal("query", &[b, h, q, d]), normal("keys", &[b, g, n, d]));
        let weights = Array::new("weights", &[b, h, q, k], dtype, Fill::Weights { k });
        let values = normal("values", &[b, g, n, dv]);
        let bracket = if window { format!("q+w-{}", k / 2) } else { self.scope.clone() };
        let scores = 2 * product([b, h, q, k, d]);
        let (equation, mut arguments, output, flops) = match self.kind {
            Kind::Scores => (format!("bhqd,bh[{bracket}]d->bhqk"), vec![query, keys], vec![b, h, q, k], scores),
            Kind::Values => (format!("bhqk,bh[{bracket}]d->bhqd"), vec![weights, values], vec![b, h, q, d], scores),
            _ => {
                let flops = scores + 2 * product([b, h, q, k, dv]);
                // Of `r` heads of the query each group of keys has, one of them where every head has its own.
                let bracket = bracket.replace('h', "g");
                let equation = format!("bgrqd,bg[{bracket}]d,bg[{bracket}]e->bgrqe");
                self.size = window.then(|| ("w".to_owned(), k));
                (equation, vec![query, keys, values], vec![b, h, q, dv], flops)
            }
        };
        if !window {
            let scope: Vec<String> = self.scope.chars().map(String::from).collect();
            let labels: Vec<&str> = scope.iter().map(String::as_str).collect();
            let fill = match self.name.split(['-', '/']).next() {
                Some("points") => Fill::Near { n, block: 256 },
                Some("image") => Fill::Image { n },
                _ => Fill::Distinct { n },
            };
            arguments.push(Array::new("table", &self.shape(&labels), table_dtype, fill));
        }
        // Rows that no list names are not read.
        let named = if window { n } else { n.min(q * k * if self.scope.contains('h') { h / g } else { 1 }) };
        let read = |array: &Array| match array.role {
            "keys" | "values" => array.bytes() / n.max(1) as u64 * named as u64,
            _ => array.bytes(),
        };
        let result = product(output.iter().copied()) * dtype.bytes() as u64;
        self.bytes = arguments.iter().map(read).sum::<u64>() + result;
        self.flops = Some(flops);
        if self.pass == Pass::Both {
            // Scores once more, and four products of the same size: with the gradient of the result, and with the rows.
            self.flops = Some(flops / 2 * 7);
            let gradients: u64 = arguments[..3].iter().map(Array::bytes).sum();
            let grad_out = Array::new("grad_out", &output, dtype, Fill::Normal);
            self.bytes += gradients + grad_out.bytes();
            arguments.push(grad_out);
        }
        (self.equation, self.arguments, self.output) = (equation, arguments, output);
    }

    fn spmm(&mut self, table_dtype: DType) {
        let [e, rows, n, d] = ["e", "rows", "n", "d"].map(|name| self.len(name));
        self.equation = "e,[e]d->[e]d".to_owned();
        self.size = Some(("[e]".to_owned(), rows));
        self.output = vec![rows, d];
        self.arguments = vec![
            Array::new("values", &[e], self.dtype, Fill::Normal),
            Array::new("dense", &[n, d], self.dtype, Fill::Normal),
            Array::new("column", &[e], table_dtype, Fill::Any { n }),
            Array::new("row", &[e], table_dtype, Fill::Any { n: rows }),
        ];
        self.count(2 * product([e, d]));
    }

    fn moe(&mut self, table_dtype: DType) {
        let [t, n, d, f] = ["t", "n", "d", "f"].map(|name| self.len(name));
        self.equation = "td,[t]df->tf".to_owned();
        self.output = vec![t, f];
        self.arguments = vec![
            Array::new("tokens", &[t, d], self.dtype, Fill::Normal),
            Array::new("weights", &[n, d, f], self.dtype, Fill::Normal),
            Array::new("expert", &[t], table_dtype, Fill::Any { n }),
        ];
        self.count(2 * product([t, d, f]));
    }

    fn count(&mut self, flops: u64) {
        let result = product(self.output.iter().copied()) * self.dtype.bytes() as u64;
        self.bytes = self.arguments.iter().map(Array::bytes).sum::<u64>() + result;
        self.flops = Some(flops);
    }

    /// Bytes of all arguments and the result.
    pub(super) fn memory_bytes(&self) -> u64 {
        let result = product(self.output.iter().copied()) * self.dtype.bytes() as u64;
        self.arguments.iter().map(Array::bytes).sum::<u64>() + result
    }

    /// The name with what else tells it from others.
    pub(super) fn title(&self) -> String {
        let pass = if self.pass == Pass::Both { ", forward and backward" } else { "" };
        format!("{} {}{pass}", self.name, self.dtype)
    }
}

/// Lengths with which anything is done in no time.
fn shrink(sizes: &mut BTreeMap<String, usize>) {
    for (name, len) in sizes.iter_mut() {
        let most = match name.as_str() {
            "b" | "g" => 2,
            "h" => 4,
            "k" => 9,
            "q" | "n" => 49,
            "e" => 500,
            "t" | "rows" => 40,
            _ => 16,
        };
        *len = most.min(*len);
    }
}
