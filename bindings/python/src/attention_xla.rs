//! Attention that XLA has compiled into a program of JAX: what its handler does, see [`crate::xla`].
//!
//! *In*: a frame whose arguments are those of the equation, and for the backward pass the result, its log-sum-exp and the
//! gradient of the result; all row-major. *Out*: numbers in the buffers of the results: the result and its log-sum-exp, or
//! the gradients that are wanted.

use einfall::{Argument, Error, Layout, Saved, View, ViewMut};

use crate::attention::{Settings, prepare};
use crate::attention_cuda::Call;
use crate::cuda::Keeps;
use crate::run::Views;
use crate::xla::{self, Frame, Why, invalid, of_run, on_its_gpu};

/// A call, taken out of its frame.
struct Given {
    equation: String,
    settings: Settings,
    /// Those of the equation, and behind them what was saved, if the pass is backward.
    views: Views,
    operands: usize,
    wanted: Option<[bool; 4]>,
    results: Vec<(*mut u8, Argument)>,
}

impl Given {
    fn of(frame: &Frame) -> Result<Self, Why> {
        let document = xla::document(frame)?;
        let (equation, sizes) = xla::equation(&document)?;
        let settings = Settings {
            sizes,
            scale: document["scale"].as_f64(),
            bounds: xla::bounds(&document),
            causal: document["causal"] == true,
        };
        let wanted = document["wanted"].as_array().map(|wanted| {
            let mut flags = [false; 4];
            flags.iter_mut().zip(wanted).for_each(|(flag, given)| *flag = given == true);
            flags
        });
        let (views, results) = (xla::views(frame)?, xla::results(frame)?);
        let saved = if wanted.is_some() { 3 } else { 0 };
        let operands = views.len().checked_sub(saved).ok_or_else(|| invalid("what was saved is missing"))?;
        let count = wanted.map_or(2, |wanted| wanted.into_iter().filter(|&wanted| wanted).count());
        if results.len() != count {
            return Err(invalid("there are more or fewer results than the call has"));
        }
        Ok(Given { equation, settings, views, operands, wanted, results })
    }

    /// Refuses results of other types and shapes than the plan's.
    fn check(&self, expected: &[Argument]) -> Result<(), Why> {
        let same = |(found, expected): (&(*mut u8, Argument), &Argument)| {
            found.1.dtype == expected.dtype && found.1.layout.shape == expected.layout.shape
        };
        let fits = self.results.len() == expected.len() && self.results.iter().zip(expected).all(same);
        if fits { Ok(()) } else { Err(invalid("the results are of other types or shapes than the plan's")) }
    }

    /// What the plan writes.
    fn expected(&self, plan: &einfall::AttentionPlan) -> Vec<Argument> {
        let Some(wanted) = self.wanted else {
            let output = &plan.problem.output;
            let lse = Argument { dtype: plan.attention.accumulator, layout: plan.lse.clone() };
            return vec![Argument { dtype: output.dtype, layout: output.layout.clone() }, lse];
        };
        let operands = plan.problem.operands.iter().zip(wanted).filter(|(_, wanted)| *wanted);
        operands
            .map(|(operand, _)| {
                let Argument { dtype, layout } = &plan.arguments[operand.argument];
                Argument { dtype: *dtype, layout: Layout::contiguous(&layout.shape) }
            })
            .collect()
    }
}

fn of_call(error: Error) -> Why {
    match error {
        Error::Run(error) => of_run(error),
        other => invalid(other),
    }
}

pub(crate) fn run_on_cpu(frame: &Frame) -> Result<(), Why> {
    let given = Given::of(frame)?;
    let (views, saved) = given.views.split_at(given.operands);
    let ready = prepare(&given.equation, views, &given.settings, given.wanted).map_err(invalid)?;
    let prepared = &ready.prepared;
    given.check(&given.expected(prepared.plan()))?;
    let mut results = Vec::new();
    for (data, Argument { dtype, layout }) in &given.results {
        // SAFETY: XLA lets nobody else see the buffers of the results before the call is over.
        results.push(unsafe { ViewMut::from_raw_parts(*data, *dtype, layout.clone()) }.map_err(invalid)?);
    }
    let mut results = results.into_iter();
    let Some(wanted) = given.wanted else {
        let (Some(mut out), mut lse) = (results.next(), results.next()) else {
            return Err(invalid("a result is missing"));
        };
        return prepared.run_into(views, &mut out, lse.as_mut()).map_err(of_call);
    };
    let mut gradients = wanted.map(|wanted| if wanted { results.next() } else { None });
    let [out, lse, grad_out]: [View<'_>; 3] =
        saved.to_vec().try_into().map_err(|_| invalid("what was saved is missing"))?;
    prepared.gradients_into(views, &Saved { out, lse, grad_out }, &mut gradients).map_err(of_call)
}

pub(crate) fn run_on_gpu(frame: &Frame) -> Result<(), Why> {
    let given = Given::of(frame)?;
    let (views, saved) = given.views.split_at(given.operands);
    let mut addresses = given.results.iter().map(|(data, _)| *data as u64);
    let (saved, gradients) = match given.wanted {
        None => ([addresses.next().unwrap_or(0), addresses.next().unwrap_or(0), 0], [0; 4]),
        Some(wanted) => {
            let saved: Vec<u64> = saved.iter().map(|view| view.as_ptr() as u64).collect();
            let saved = saved.try_into().map_err(|_| invalid("what was saved is missing"))?;
            (saved, wanted.map(|wanted| if wanted { addresses.next().unwrap_or(0) } else { 0 }))
        }
    };
    let call = |ordinal| Call { ordinal, equation: &given.equation, views, settings: &given.settings };
    let ready = |gpu, ordinal| {
        let ready = call(ordinal).ready(gpu, saved, given.wanted, true).map_err(of_call)?;
        given.check(&given.expected(ready.prepared.plan()))?;
        Ok((ready.workspace_bytes(), (ordinal, ready)))
    };
    on_its_gpu(frame, ready, |gpu, (ordinal, ready), workspace, stream| {
        if given.wanted.is_none() && ready.prepared.plan().attention.is_empty() {
            return Ok(());
        }
        // SAFETY: XLA's buffers are of this GPU and row-major, as the plan says, and stay until its stream has passed.
        unsafe { call(ordinal).launch(gpu, &ready, saved, gradients, workspace, stream) }.map_err(of_call)
    })
}
