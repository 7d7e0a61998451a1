//! Our own calls: planned once, run as users run them, with a new result each time; on a GPU, replayed.

use einfall::{Einsum, Error, Prepared, Tensor, View};

use super::data::Looked;
use super::softmax::softmax;
use crate::bench::clock::{self, Timed};
use crate::bench::record::Op;
use crate::bench::rivals::Turn;
use crate::host::Opened;

/// The equations of a case; they must outlive the plans.
pub(super) struct Equations {
    scores: (String, Option<(&'static str, usize)>),
    values: (String, Option<(&'static str, usize)>),
}

impl Equations {
    pub(super) fn new(looked: &Looked<'_>) -> Self {
        Self { scores: looked.equation(false), values: looked.equation(true) }
    }
}

/// A planned call.
pub(super) struct Call<'a> {
    first: Timed<'a>,
    /// For attention the weighted sum, whose first argument is made in the call.
    second: Option<(Prepared<'a>, Vec<View<'a>>)>,
    scale: f64,
    pool: &'a rayon::ThreadPool,
}

impl<'a> Call<'a> {
    pub(super) fn new(
        op: Op,
        looked: &'a Looked<'_>,
        equations: &'a Equations,
        opened: &'a Opened,
        pool: &'a rayon::ThreadPool,
        d: usize,
    ) -> Result<Self, Error> {
        let einsum = |values: bool| {
            let (equation, size) = if values { &equations.values } else { &equations.scores };
            let einsum = size.iter().fold(Einsum::new(equation), |einsum, (key, len)| einsum.size(key, *len));
            einsum.device(opened.device())
        };
        let arguments = |values: bool| -> Result<Vec<View<'a>>, Error> {
            let mut arguments = vec![looked.first(values)];
            arguments.extend(looked.arguments(values)?);
            Ok(arguments)
        };
        let values = op == Op::Values;
        let first = Timed::new(einsum(values), arguments(values)?, opened.gpu())?;
        let second = match op {
            Op::Attention => {
                // Weights have the shape and the type of those that the values alone are timed with.
                let all = arguments(true)?;
                Some((einsum(true).plan(&all)?, all[1..].to_vec()))
            }
            _ => None,
        };
        Ok(Self { first, second, scale: 1.0 / (d as f64).sqrt(), pool })
    }

    pub(super) fn run(&self) -> Result<Tensor, Error> {
        let result = self.first.run()?;
        let Some((values, arguments)) = &self.second else { return Ok(result) };
        let scale = self.scale;
        let weights = self.pool.install(|| softmax(&result, scale))?;
        drop(result);
        let mut all = vec![weights.view()];
        all.extend(arguments.iter().cloned());
        values.run(&all)
    }

    /// The ways that were chosen, in order.
    pub(super) fn way(&self) -> String {
        let first = clock::ways(self.first.prepared());
        match &self.second {
            None => first,
            Some((values, _)) => format!("{first}, softmax, {}", clock::ways(values)),
        }
    }

    /// Seconds of calls in a row, at least one, until their number or the time is reached.
    pub(super) fn time(&self, turn: Turn) -> Result<Vec<f64>, Error> {
        match self.second {
            None => self.first.time(turn),
            Some(_) => clock::calls(turn, || self.run()),
        }
    }
}
