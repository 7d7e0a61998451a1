//! A problem as a call of ours: an einsum, or attention with or without its gradients.

use einfall::{Argument, Attend, Cost, CudaDevice, DType, Einsum, Error, PreparedAttention, Saved, Tensor, View};

use super::cases::Kind;
use super::data::Data;
use super::problem::Problem;
use super::record::Pass;
use crate::bench::clock::{self, Replays, Timed};
use crate::bench::rivals::Turn;
use crate::host::Opened;

/// A planned call.
pub(super) enum Call<'a> {
    Einsum(Box<Timed<'a>>),
    Attention(Box<Attending<'a>>),
}

/// Attention, and what its gradients are made from.
pub(super) struct Attending<'a> {
    attend: Attend<'a>,
    forward: PreparedAttention<'a>,
    backward: Option<(PreparedAttention<'a>, View<'a>)>,
    arguments: Vec<View<'a>>,
    /// Shape of the output, and of the keys, with heads on one axis.
    shapes: [Vec<usize>; 2],
    gpu: Option<&'a CudaDevice>,
    replays: Replays,
}

/// Of query, key, value and bias, whose gradients are made.
const WANTED: [bool; 4] = [true, true, true, false];

impl<'a> Call<'a> {
    /// Plans a problem.
    pub(super) fn new(problem: &'a Problem, data: &'a Data, opened: &'a Opened) -> Result<Self, Error> {
        let device = opened.device();
        let mut arguments: Vec<View<'a>> = data.arrays.iter().map(|(_, tensor)| tensor.view()).collect();
        if problem.kind != Kind::Attention {
            let einsum = Einsum::new(&problem.equation).device(device);
            let einsum = problem.size.iter().fold(einsum, |einsum, (key, len)| einsum.size(key, *len));
            let timed = Timed::new(einsum, arguments, opened.gpu())?;
            return Ok(Self::Einsum(Box::new(timed)));
        }
        let attend = Attend::new(&problem.equation).device(device);
        let attend = problem.size.iter().fold(attend, |attend, (key, len)| attend.size(key, *len));
        let shapes = [problem.output.clone(), arguments[1].shape().to_vec()];
        let heads = |view: &View<'a>| view.split_axis(1, problem.len("h") / problem.len("g"));
        let grad_out = match problem.pass {
            Pass::Both => arguments.pop().map(|grad_out| heads(&grad_out)).transpose()?,
            Pass::Forward => None,
        };
        arguments[0] = heads(&arguments[0])?;
        // The table follows the key.
        let value = arguments.remove(2);
        arguments.push(value);
        let described = |view: &View<'_>| Argument { dtype: view.dtype(), layout: view.layout().clone() };
        let backward = |grad_out| -> Result<_, Error> {
            let described = arguments.iter().map(described).collect();
            Ok((attend.plan_gradients(described, WANTED)?, grad_out))
        };
        let backward = grad_out.map(backward).transpose()?;
        let forward = attend.plan(&arguments)?;
        let (gpu, replays) = (opened.gpu(), Replays::default());
        Ok(Self::Attention(Box::new(Attending { attend, forward, backward, arguments, shapes, gpu, replays })))
    }

    /// The result; of both passes the gradient of the keys.
    pub(super) fn run(&self) -> Result<Tensor, Error> {
        match self {
            Self::Einsum(timed) => timed.run(),
            Self::Attention(attending) => attending.run(),
        }
    }

    /// Seconds of calls.
    pub(super) fn time(&self, turn: Turn) -> Result<Vec<f64>, Error> {
        match self {
            Self::Einsum(timed) => timed.time(turn),
            Self::Attention(attending) => attending.time(turn),
        }
    }

    /// The ways that were chosen.
    pub(super) fn ways(&self) -> String {
        match self {
            Self::Einsum(timed) => clock::ways(timed.prepared()),
            Self::Attention(attending) => {
                let ways = attending.plans().map(|plan| format!("{} ({})", plan.estimate().way, plan.kernel()));
                ways.collect::<Vec<_>>().join(" + ")
            }
        }
    }

    /// The half type that intermediate results are rounded to, if they are.
    pub(super) fn rounds_to(&self) -> Option<DType> {
        match self {
            Self::Einsum(timed) => timed.prepared().plan().rounded().map(|(dtype, _)| dtype),
            Self::Attention(_) => None,
        }
    }

    /// What the plans predict.
    pub(super) fn cost(&self) -> Cost {
        match self {
            Self::Einsum(timed) => timed.prepared().plan().cost(),
            Self::Attention(attending) => {
                let nothing = Cost { flops: 0.0, bytes: 0.0, seconds: 0.0 };
                attending.plans().map(einfall::AttentionPlan::cost).fold(nothing, |sum, cost| Cost {
                    flops: sum.flops + cost.flops,
                    bytes: sum.bytes + cost.bytes,
                    seconds: sum.seconds + cost.seconds,
                })
            }
        }
    }
}

impl Attending<'_> {
    fn plans(&self) -> impl Iterator<Item = &einfall::AttentionPlan> {
        [&self.forward]
            .into_iter()
            .chain(self.backward.iter().map(|(backward, _)| backward))
            .map(PreparedAttention::plan)
    }

    fn time(&self, turn: Turn) -> Result<Vec<f64>, Error> {
        let Some(gpu) = self.gpu else { return clock::calls(turn, || self.run()) };
        let backward = self.backward.as_ref().map(|(_, grad_out)| (grad_out, WANTED));
        self.replays.time(turn, |launches, replays| {
            self.attend.replay_seconds(gpu, &self.arguments, backward, launches, replays)
        })
    }

    fn run(&self) -> Result<Tensor, Error> {
        let [out_shape, keys_shape] = &self.shapes;
        let Some((backward, grad_out)) = &self.backward else {
            return Ok(self.forward.run(&self.arguments)?.reshape(out_shape)?);
        };
        let (out, lse) = self.forward.run_with_lse(&self.arguments)?;
        let saved = Saved { out: out.view(), lse: lse.view(), grad_out: grad_out.clone() };
        let [query, keys, values, _] = backward.gradients(&self.arguments, &saved)?;
        drop((query, values));
        match keys {
            Some(keys) => Ok(keys.reshape(keys_shape)?),
            None => Ok(out),
        }
    }
}
