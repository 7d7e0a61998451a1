//! Our own calls, planned once, run as users run them, with a new result each time; on a GPU, replayed as CUDA graphs.

use std::cell::Cell;
use std::time::Instant;

use einfall::{CudaDevice, Einsum, Error, Prepared, Tensor, View};

use super::rivals::Turn;

/// Launches in a graph at most, and replays in a turn: more change nothing.
const LAUNCHES: f64 = 20.0;
const REPLAYS: usize = 9;

/// A contraction with its arguments.
pub(super) struct Timed<'a> {
    einsum: Einsum<'a>,
    prepared: Prepared<'a>,
    arguments: Vec<View<'a>>,
    gpu: Option<&'a CudaDevice>,
    replays: Replays,
}

impl<'a> Timed<'a> {
    /// Plans the call.
    pub(super) fn new(
        einsum: Einsum<'a>,
        arguments: Vec<View<'a>>,
        gpu: Option<&'a CudaDevice>,
    ) -> Result<Self, Error> {
        Ok(Self { prepared: einsum.plan(&arguments)?, einsum, arguments, gpu, replays: Replays::default() })
    }

    pub(super) fn prepared(&self) -> &Prepared<'a> {
        &self.prepared
    }

    pub(super) fn run(&self) -> Result<Tensor, Error> {
        self.prepared.run(&self.arguments)
    }

    /// Seconds of calls.
    pub(super) fn time(&self, turn: Turn) -> Result<Vec<f64>, Error> {
        match self.gpu {
            Some(gpu) => self
                .replays
                .time(turn, |launches, replays| self.einsum.replay_seconds(gpu, &self.arguments, launches, replays)),
            None => calls(turn, || self.run()),
        }
    }
}

/// Seconds of calls in a row, at least one, until their number or the time is reached.
pub(super) fn calls<R>(turn: Turn, mut call: impl FnMut() -> Result<R, Error>) -> Result<Vec<f64>, Error> {
    let started = Instant::now();
    let mut seconds = Vec::new();
    while seconds.len() < turn.repeats.max(1) && (seconds.is_empty() || started.elapsed() < turn.budget) {
        let start = Instant::now();
        let result = call()?;
        seconds.push(start.elapsed().as_secs_f64());
        // Giving the memory back is not part of the call, for peers neither.
        drop(result);
    }
    Ok(seconds)
}

/// Replays of one call on a GPU.
#[derive(Default)]
pub(super) struct Replays {
    /// Seconds of a launch, once they are known.
    launch_seconds: Cell<Option<f64>>,
}

impl Replays {
    /// Seconds of a launch in each of some replays, about as long as the time says; `replay` is asked for a number of
    /// launches in a graph and a number of replays.
    pub(super) fn time(
        &self,
        turn: Turn,
        replay: impl Fn(usize, usize) -> Result<Vec<f64>, Error>,
    ) -> Result<Vec<f64>, Error> {
        let once = match self.launch_seconds.get() {
            Some(seconds) => seconds,
            None => replay(1, 1)?.into_iter().fold(f64::INFINITY, f64::min),
        };
        self.launch_seconds.set(Some(once));
        let replays = turn.repeats.clamp(1, REPLAYS);
        let launches = (turn.budget.as_secs_f64() / replays as f64 / once.max(1e-9)).clamp(1.0, LAUNCHES);
        replay(launches as usize, replays)
    }
}

/// The ways that a plan's steps were given, in order.
pub(super) fn ways(prepared: &Prepared<'_>) -> String {
    let steps = prepared.plan().steps.iter().chain(&prepared.plan().epilogue);
    steps.map(|step| step.estimate().way.to_string()).collect::<Vec<_>>().join(" + ")
}
