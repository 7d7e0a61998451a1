//! Our own calls: planned once, run as users run them, with a new result each time; on a GPU, replayed.

use std::cell::Cell;
use std::time::{Duration, Instant};

use einfall::{CudaDevice, Einsum, Error, Prepared, Tensor, View};

use super::data::Looked;
use super::softmax::softmax;
use crate::bench::record::Op;
use crate::host::Opened;

/// Launches in a graph at most, and replays in a turn: more change nothing.
const LAUNCHES: f64 = 20.0;
const REPLAYS: usize = 9;

/// One contraction with its arguments.
struct Contracting<'a> {
    einsum: Einsum<'a>,
    prepared: Prepared<'a>,
    arguments: Vec<View<'a>>,
}

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
    first: Contracting<'a>,
    /// For attention the weighted sum, whose first argument is made in the call.
    second: Option<(Prepared<'a>, Vec<View<'a>>)>,
    scale: f64,
    pool: &'a rayon::ThreadPool,
    gpu: Option<&'a CudaDevice>,
    /// Seconds of a launch on the GPU, once they are known.
    launch_seconds: Cell<Option<f64>>,
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
        let all = arguments(values)?;
        let einsum_first = einsum(values);
        let first = Contracting { prepared: einsum_first.plan(&all)?, einsum: einsum_first, arguments: all };
        let second = match op {
            Op::Attention => {
                // Weights have the shape and the type of those that the values alone are timed with.
                let all = arguments(true)?;
                Some((einsum(true).plan(&all)?, all[1..].to_vec()))
            }
            _ => None,
        };
        let (scale, gpu) = (1.0 / (d as f64).sqrt(), opened.gpu());
        Ok(Self { first, second, scale, pool, gpu, launch_seconds: Cell::new(None) })
    }

    pub(super) fn run(&self) -> Result<Tensor, Error> {
        let result = self.first.prepared.run(&self.first.arguments)?;
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
        let ways = |prepared: &Prepared<'_>| {
            let steps = prepared.plan().steps.iter().chain(&prepared.plan().epilogue);
            steps.map(|step| step.estimate().way.to_string()).collect::<Vec<_>>().join(" + ")
        };
        match &self.second {
            None => ways(&self.first.prepared),
            Some((values, _)) => format!("{}, softmax, {}", ways(&self.first.prepared), ways(values)),
        }
    }

    /// Seconds of calls in a row, at least one, until their number or the time is reached.
    pub(super) fn time(&self, repeats: usize, budget: Duration) -> Result<Vec<f64>, Error> {
        if let Some(gpu) = self.gpu {
            return self.replay(gpu, repeats, budget);
        }
        let started = Instant::now();
        let mut seconds = Vec::new();
        while seconds.len() < repeats.max(1) && (seconds.is_empty() || started.elapsed() < budget) {
            let start = Instant::now();
            let result = self.run()?;
            seconds.push(start.elapsed().as_secs_f64());
            // Giving the memory back is not part of the call, for peers neither.
            drop(result);
        }
        Ok(seconds)
    }

    /// Seconds of a launch in each of some replays of a CUDA graph, about as long as the time says.
    fn replay(&self, gpu: &CudaDevice, repeats: usize, budget: Duration) -> Result<Vec<f64>, Error> {
        let Contracting { einsum, arguments, .. } = &self.first;
        let once = match self.launch_seconds.get() {
            Some(seconds) => seconds,
            None => einsum.replay_seconds(gpu, arguments, 1, 1)?.into_iter().fold(f64::INFINITY, f64::min),
        };
        self.launch_seconds.set(Some(once));
        let replays = repeats.clamp(1, REPLAYS);
        let launches = (budget.as_secs_f64() / replays as f64 / once.max(1e-9)).clamp(1.0, LAUNCHES);
        einsum.replay_seconds(gpu, arguments, launches as usize, replays)
    }
}
