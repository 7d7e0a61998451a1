//! Random data for the experiment, and the arrays of each case.
//!
//! What the cases look at is the same numbers: stored keys are the rows that the table selects, shared and expanded
//! ones the first k rows.

use std::sync::Arc;

use einfall::{DType, Error, Tensor, View};

use super::options::Options;
use crate::bench::numbers::{Random, floats};
use crate::bench::record::{Case, Op, Sizes};

/// Data that does not depend on k.
pub(super) struct Rows {
    /// `(b, h, q, d)`.
    pub(super) query: Arc<Tensor>,
    /// `(b, h, n, d)`.
    pub(super) keys: Arc<Tensor>,
    /// `(b, h, n, d)`.
    pub(super) values: Arc<Tensor>,
}

impl Rows {
    pub(super) fn new(options: &Options) -> Result<Self, Error> {
        let Sizes { b, h, q, n, d, .. } = options.sizes;
        let normal = |stream, shape: &[usize]| {
            let mut random = Random::new(options.seed, stream);
            floats(options.dtype, shape, || random.normal()).map(Arc::new)
        };
        Ok(Self {
            query: normal(1, &[b, h, q, d])?,
            keys: normal(2, &[b, h, n, d])?,
            values: normal(3, &[b, h, n, d])?,
        })
    }

    /// Keys, or values for the operation that looks at these.
    fn of(&self, values: bool) -> &Arc<Tensor> {
        if values { &self.values } else { &self.keys }
    }
}

/// Data for one k.
pub(super) struct Lists {
    pub(super) sizes: Sizes,
    /// `(b, h, q, k)`: rows, none twice in a list.
    pub(super) table: Arc<Tensor>,
    /// The same for the oracle.
    pub(super) positions: Vec<u32>,
    /// `(b, h, q, k)`: what rows are weighted with.
    pub(super) weights: Arc<Tensor>,
}

impl Lists {
    pub(super) fn new(options: &Options, k: usize) -> Result<Self, Error> {
        let sizes = Sizes { k, ..options.sizes };
        let Sizes { b, h, q, n, .. } = sizes;
        let mut random = Random::new(options.seed, 4 + k as u64);
        let mut rows: Vec<u32> = (0..n as u32).collect();
        let mut positions = Vec::with_capacity(b * h * q * k);
        for _ in 0..b * h * q {
            // What an earlier list left behind is as good as any order.
            random.first(&mut rows, k);
            positions.extend_from_slice(&rows[..k]);
        }
        let shape = [b, h, q, k];
        let table = match options.table_dtype {
            DType::I32 => Tensor::from_slice(&positions.iter().map(|&at| at as i32).collect::<Vec<_>>(), &shape)?,
            _ => Tensor::from_slice(&positions.iter().map(|&at| i64::from(at)).collect::<Vec<_>>(), &shape)?,
        };
        let weights = floats(options.dtype, &shape, || random.uniform() * 2.0 / k as f64)?;
        Ok(Self { sizes, table: Arc::new(table), positions, weights: Arc::new(weights) })
    }
}

/// Bytes that stored keys and values take.
pub(super) fn stored_bytes(sizes: Sizes, op: Op, dtype: DType) -> u64 {
    let Sizes { b, h, q, k, d, .. } = sizes;
    let arrays = if op == Op::Attention { 2 } else { 1 };
    [b, h, q, k, d, dtype.bytes(), arrays].iter().map(|&len| len as u64).product()
}

/// Distinct bytes of input and output.
pub(super) fn distinct_bytes(sizes: Sizes, op: Op, case: Case, options: &Options) -> u64 {
    let Sizes { b, h, q, n, k, d } = sizes;
    let rows = match case {
        Case::SeparateStored => q * k,
        Case::SeparateLookup => n.min(q * k),
        Case::Window => n.min(q + k - 1),
        Case::SeparateExpanded | Case::Shared | Case::All => k,
    };
    let table = if case == Case::SeparateLookup { q * k * options.table_dtype.bytes() } else { 0 };
    let elements = match op {
        Op::Scores | Op::Values => q * d + rows * d + q * k,
        Op::Attention => 2 * q * d + 2 * rows * d,
    };
    (b * h) as u64 * (elements * options.dtype.bytes() + table) as u64
}

/// What a case looks at, in memory of its own where the case needs that.
pub(super) struct Looked<'a> {
    case: Case,
    sizes: Sizes,
    rows: &'a Rows,
    lists: &'a Lists,
    keys: Option<Arc<Tensor>>,
    values: Option<Arc<Tensor>>,
}

impl<'a> Looked<'a> {
    pub(super) fn new(op: Op, case: Case, rows: &'a Rows, lists: &'a Lists) -> Result<Self, Error> {
        let mut looked = Self { case, sizes: lists.sizes, rows, lists, keys: None, values: None };
        if op != Op::Values {
            looked.keys = looked.made(false)?;
        }
        if op != Op::Scores {
            looked.values = looked.made(true)?;
        }
        Ok(looked)
    }

    fn made(&self, values: bool) -> Result<Option<Arc<Tensor>>, Error> {
        let source = self.rows.of(values);
        let Sizes { b, h, n, k, d, .. } = self.sizes;
        let made = match self.case {
            Case::SeparateStored => {
                Some(einfall::einsum("bh[bhqk]d->bhqkd", &[source.view(), self.lists.table.view()])?)
            }
            Case::SeparateExpanded | Case::Shared => {
                let strides = [h * n * d, n * d, d, 1].map(usize::cast_signed);
                let first = View::from_bytes(source.as_bytes(), source.dtype(), &[b, h, k, d], &strides, 0)?;
                Some(einfall::einsum("bhkd->bhkd", &[first])?)
            }
            Case::SeparateLookup | Case::All | Case::Window => None,
        };
        Ok(made.map(Arc::new))
    }

    /// The arrays of an operation by role, for peers that read them where they lie.
    pub(super) fn lent(&self, op: Op) -> Vec<(&'static str, Arc<Tensor>)> {
        let keys = ("keys", self.keys.as_ref().unwrap_or(&self.rows.keys));
        let values = ("values", self.values.as_ref().unwrap_or(&self.rows.values));
        let (query, weights) = (("query", &self.rows.query), ("weights", &self.lists.weights));
        let table = (self.case == Case::SeparateLookup).then_some(("table", &self.lists.table));
        let arrays = match op {
            Op::Scores => vec![query, keys],
            Op::Values => vec![weights, values],
            Op::Attention => vec![query, keys, values],
        };
        arrays.into_iter().chain(table).map(|(role, array)| (role, Arc::clone(array))).collect()
    }

    /// The equation of one contraction, and a length that it needs.
    pub(super) fn equation(&self, values: bool) -> (String, Option<(&'static str, usize)>) {
        let k = self.sizes.k;
        let rows = match self.case {
            Case::SeparateStored | Case::SeparateExpanded => "bhqkd".to_owned(),
            Case::SeparateLookup => "bh[bhqk]d".to_owned(),
            Case::Shared => "bhkd".to_owned(),
            Case::All => "bhnd".to_owned(),
            Case::Window => format!("bh[q+w-{}]d", k / 2),
        };
        let label = match self.case {
            Case::All => 'n',
            Case::Window => 'w',
            _ => 'k',
        };
        // For the weighted sum the weights give the window its length.
        let size = (self.case == Case::Window && !values).then_some(("w", k));
        if values { (format!("bhq{label},{rows}->bhqd"), size) } else { (format!("bhqd,{rows}->bhq{label}"), size) }
    }

    /// The arguments behind the first.
    pub(super) fn arguments(&self, values: bool) -> Result<Vec<View<'_>>, Error> {
        let made = if values { &self.values } else { &self.keys };
        let source = made.as_ref().unwrap_or(self.rows.of(values));
        let Sizes { b, h, q, k, d, .. } = self.sizes;
        Ok(match self.case {
            Case::SeparateLookup => vec![source.view(), self.lists.table.view()],
            Case::SeparateExpanded => {
                let strides = [h * k * d, k * d, 0, d, 1].map(usize::cast_signed);
                vec![View::from_bytes(source.as_bytes(), source.dtype(), &[b, h, q, k, d], &strides, 0)?]
            }
            _ => vec![source.view()],
        })
    }

    /// The first argument: queries or weights.
    pub(super) fn first(&self, values: bool) -> View<'_> {
        if values { self.lists.weights.view() } else { self.rows.query.view() }
    }
}
