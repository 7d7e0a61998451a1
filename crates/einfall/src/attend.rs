//! Attention: an equation of query, key and value in, the weighted values out, through the stages of the pipeline.

use std::fmt;

use einfall_equation::Equation;
use einfall_plan::{
    Argument, AttentionOptions, AttentionPlan, BindOptions, Bounds, Device, Pass, RaggedOptions, Saved, bind,
};
use einfall_tensor::{Tensor, View, ViewMut};

use crate::call::describe;
use crate::error::with_meant;
use crate::{CudaDevice, Error, default_device};

/// Attention with options: softmax over the labels that keys and values have, and that query and output have not.
///
/// The operands of the equation are query, key and value, and perhaps a bias, which is added to the scaled scores. A table
/// follows the key; values stand where their keys do, so it is not given again (the same view once more is taken too).
/// Keys at positions outside their axis are left out: −1 pads a short list. A query without keys gives zeros, and the
/// log-sum-exp −∞.
///
/// Nothing of the size of lists × keys × depth is ever stored. Scores and sums are kept in `f32`, for `f64` in `f64`.
///
/// ```
/// use einfall::{Attend, View};
///
/// let (q, k) = ([1.0f32, 0.0], [0.0f32, 0.0, 9.0, 0.0]); // 1 query, 2 keys of 2 features
/// let v = [1.0f32, 2.0]; // values of 1
/// let table = [0i32, -1]; // the query looks at the first key alone
/// let out = Attend::new("qd,[qk]d,[qk]e->qe").run(&[
///     View::from_slice(&q, &[1, 2])?,
///     View::from_slice(&k, &[2, 2])?,
///     View::from_slice(&table, &[1, 2])?,
///     View::from_slice(&v, &[2, 1])?,
/// ])?;
/// assert_eq!(out.as_slice::<f32>()?, [1.0]);
/// # Ok::<(), einfall::Error>(())
/// ```
#[derive(Clone)]
pub struct Attend<'a> {
    equation: String,
    bind: BindOptions,
    options: AttentionOptions,
    offsets: Option<String>,
    device: Option<&'a dyn Device>,
}

impl<'a> Attend<'a> {
    /// An attention with the defaults: scaled by one over the root of the depth, bad positions left out, no mask.
    pub fn new(equation: &str) -> Self {
        let bind = BindOptions { bounds: Bounds::Skip, ..BindOptions::default() };
        Attend { equation: equation.into(), bind, options: AttentionOptions::default(), offsets: None, device: None }
    }

    /// Gives a length that no operand gives: that of a window's label.
    #[must_use]
    pub fn size(mut self, name: &str, len: usize) -> Self {
        self.bind.sizes.insert(name.to_string(), len);
        self
    }

    /// What scores are multiplied by.
    #[must_use]
    pub fn scale(mut self, factor: f64) -> Self {
        self.options.scale = Some(factor);
        self
    }

    /// Leaves out keys at positions above the query's: its index on the last label of the query that the output has too.
    #[must_use]
    pub fn causal(mut self, causal: bool) -> Self {
        self.options.causal = causal;
        self
    }

    /// What happens to table values outside their axis; they are left out by default.
    #[must_use]
    pub fn bounds(mut self, bounds: Bounds) -> Self {
        self.bind.bounds = bounds;
        self
    }

    /// Lists of different lengths. The table has one axis, and the last argument of the call are offsets, whose axes have
    /// these labels, `"q"` or `"bhq"`: list `q` has the entries from `offsets[q]` to `offsets[q + 1]`, so the last axis has
    /// one more than its label.
    #[must_use]
    pub fn offsets(mut self, labels: &str) -> Self {
        self.offsets = Some(labels.into());
        self
    }

    /// The kernel to prefer wherever it can run, by its name in the plan's print; for tests and experiments.
    #[must_use]
    pub fn kernel(mut self, name: &str) -> Self {
        self.options.kernel = Some(name.to_string());
        self
    }

    /// The device to run on; by default [`default_device`].
    #[must_use]
    pub fn device(mut self, device: &'a dyn Device) -> Self {
        self.device = Some(device);
        self
    }

    /// Prepares the call for arguments of these shapes, strides and types; their data is not read.
    ///
    /// # Errors
    /// [`Error`], except for what depends on the data.
    pub fn plan(&self, arguments: &[View<'_>]) -> Result<PreparedAttention<'a>, Error> {
        self.plan_for(arguments.iter().map(describe).collect())
    }

    /// The same from bare descriptions.
    ///
    /// # Errors
    /// As [`Attend::plan`].
    pub fn plan_for(&self, arguments: Vec<Argument>) -> Result<PreparedAttention<'a>, Error> {
        self.plan_pass(arguments, Pass::Forward, [false; 4])
    }

    /// Prepares the gradients of the operands that are wanted: of query, key, value and bias.
    ///
    /// # Errors
    /// As [`Attend::plan`].
    pub fn plan_gradients(&self, arguments: Vec<Argument>, wanted: [bool; 4]) -> Result<PreparedAttention<'a>, Error> {
        self.plan_pass(arguments, Pass::Backward, wanted)
    }

    fn plan_pass(
        &self,
        mut arguments: Vec<Argument>,
        pass: Pass,
        wanted: [bool; 4],
    ) -> Result<PreparedAttention<'a>, Error> {
        let device = match self.device {
            Some(device) => device,
            None => default_device()?,
        };
        let equation = Equation::parse(&self.equation)?;
        let mut options = AttentionOptions { pass, wanted, ..self.options.clone() };
        let offsets = self.offsets.as_ref().and_then(|labels| Some((labels, arguments.pop()?)));
        let given = arguments.len();
        let sources = sources(&equation, given);
        let all: Vec<Argument> = sources.iter().map(|&at| arguments[at].clone()).collect();
        if let Some((labels, argument)) = offsets {
            let labels = labels.chars().filter(|c| !c.is_whitespace()).map(String::from).collect();
            options.ragged = Some(RaggedOptions { number: all.len(), argument, labels });
        }
        // A bias of a wider type does not make the output wider.
        let bound = BindOptions {
            dtype: all.first().map(|query| query.dtype).filter(|dtype| dtype.is_float()),
            ..self.bind.clone()
        };
        let problem = bind(&equation, &all, &bound).map_err(|error| with_meant(error, &equation))?;
        let plan = AttentionPlan::new(problem, device.machine(), device.attention_kernels(), &options)?;
        Ok(PreparedAttention { plan, sources, given, device })
    }

    /// The attention's output, row-major.
    ///
    /// # Errors
    /// [`Error`]; nothing panics and nothing is undefined, whatever the arguments.
    pub fn run(&self, arguments: &[View<'_>]) -> Result<Tensor, Error> {
        self.plan(arguments)?.run(arguments)
    }

    /// The output and its log-sum-exp, base e, one for each query, which the gradients need.
    ///
    /// # Errors
    /// As [`Attend::run`].
    pub fn run_with_lse(&self, arguments: &[View<'_>]) -> Result<(Tensor, Tensor), Error> {
        self.plan(arguments)?.run_with_lse(arguments)
    }

    /// Gradients of the operands that are wanted, from the output, its log-sum-exp and its gradient, all row-major.
    ///
    /// Deterministic: the same bits for any number of threads.
    ///
    /// # Errors
    /// As [`Attend::run`].
    pub fn gradients(
        &self,
        arguments: &[View<'_>],
        saved: &Saved<'_>,
        wanted: [bool; 4],
    ) -> Result<[Option<Tensor>; 4], Error> {
        let described = arguments.iter().map(describe).collect();
        self.plan_gradients(described, wanted)?.gradients(arguments, saved)
    }

    /// How long the call takes on a GPU alone, for benchmarks: as [`Einsum::replay_seconds`](crate::Einsum). With the
    /// gradient of the output, the gradients that are wanted are part of each launch.
    ///
    /// # Errors
    /// As [`Attend::run`].
    pub fn replay_seconds(
        &self,
        gpu: &CudaDevice,
        arguments: &[View<'_>],
        backward: Option<(&View<'_>, [bool; 4])>,
        launches: usize,
        rounds: usize,
    ) -> Result<Vec<f64>, Error> {
        let here = Attend { device: Some(gpu), ..self.clone() };
        let forward = here.plan(arguments)?;
        let planned = backward.map(|(grad_out, wanted)| {
            let described = arguments.iter().map(describe).collect();
            Ok::<_, Error>((here.plan_gradients(described, wanted)?, grad_out))
        });
        let planned = planned.transpose()?;
        let backward = planned.as_ref().map(|(prepared, grad_out)| (&prepared.plan, *grad_out));
        let arguments = forward.arguments(arguments)?;
        // SAFETY: `planned`: both plans were just made for this GPU.
        #[allow(unsafe_code)]
        let seconds = unsafe { gpu.replay_attention_seconds(&forward.plan, backward, &arguments, launches, rounds)? };
        Ok(seconds)
    }
}

/// For each argument of the equation, which of those that were given it is: the key's tables stand in for the value's,
/// unless these are given too.
fn sources(equation: &Equation, given: usize) -> Vec<usize> {
    let lookups: Vec<usize> = equation.operands().iter().map(|operand| operand.lookups()).collect();
    let all: usize = lookups.iter().map(|count| count + 1).sum();
    let (Some(&of_key), Some(&of_value)) = (lookups.get(1), lookups.get(2)) else { return (0..given).collect() };
    if of_key != of_value || of_value == 0 || given + of_value != all {
        return (0..given).collect();
    }
    // Query and its tables, then the key; its tables follow.
    let tables = lookups[0] + 2;
    let value = tables + of_key;
    (0..=value).chain(tables..value).chain(value + 1..given).collect()
}

/// A planned attention, to run many times on arguments of the same shapes, strides and types.
///
/// Its `Display` says what each way of running it would take.
///
/// Invariant `planned`: the plan is what [`AttentionPlan::new`] made for a bound problem and this device.
pub struct PreparedAttention<'a> {
    plan: AttentionPlan,
    sources: Vec<usize>,
    given: usize,
    device: &'a dyn Device,
}

impl PreparedAttention<'_> {
    /// The plan.
    pub fn plan(&self) -> &AttentionPlan {
        &self.plan
    }

    /// The arguments as the plan counts them, from those of the call.
    ///
    /// # Errors
    /// There are more or fewer, or keys and values are looked up through different tables.
    pub fn arguments<'v>(&self, given: &[View<'v>]) -> Result<Vec<View<'v>>, Error> {
        let ragged = usize::from(self.plan.attention.ragged.is_some());
        if given.len() != self.given + ragged {
            let expected = self.given + ragged;
            return Err(einfall_plan::RunError::ArgumentCount { expected, given: given.len() }.into());
        }
        let last = given[self.given..].iter();
        let all: Vec<View<'v>> = self.sources.iter().map(|&at| &given[at]).chain(last).cloned().collect();
        let argument = |lookup: &einfall_plan::Lookup| self.plan.problem.tables[lookup.table].argument;
        let [key, value] = [1, 2].map(|at| &self.plan.problem.operands[at].term.lookups);
        for (key, value) in key.iter().map(argument).zip(value.iter().map(argument)) {
            let (key, value) = (&all[key], &all[value]);
            if key.as_ptr() != value.as_ptr() || key.layout() != value.layout() {
                let reason =
                    "keys and values are looked up through different tables\nhint: give the table once, after the key";
                return Err(Error::Attention(reason.into()));
            }
        }
        Ok(all)
    }

    /// The output, row-major.
    ///
    /// # Errors
    /// As [`Attend::run`]; [`RunError::Mismatch`](einfall_plan::RunError) for other shapes than were planned.
    pub fn run(&self, arguments: &[View<'_>]) -> Result<Tensor, Error> {
        Ok(self.forward(arguments, false)?.0)
    }

    /// The output and its log-sum-exp.
    ///
    /// # Errors
    /// As [`PreparedAttention::run`].
    pub fn run_with_lse(&self, arguments: &[View<'_>]) -> Result<(Tensor, Tensor), Error> {
        let (out, lse) = self.forward(arguments, true)?;
        Ok((out, lse.expect("it was asked for")))
    }

    /// Writes the output, and its log-sum-exp where that is wanted, into row-major arrays. On an error, parts of them may
    /// have been written.
    ///
    /// # Errors
    /// As [`PreparedAttention::run`].
    pub fn run_into(
        &self,
        arguments: &[View<'_>],
        out: &mut ViewMut<'_>,
        lse: Option<&mut ViewMut<'_>>,
    ) -> Result<(), Error> {
        let arguments = self.arguments(arguments)?;
        // SAFETY: `planned`: nobody changed the plan since this device's kernels made their offers for it.
        #[allow(unsafe_code)]
        unsafe {
            self.device.attend(&self.plan, &arguments, out, lse)?;
        }
        Ok(())
    }

    /// Writes the gradients that were planned for into row-major arrays of their operands' shapes. On an error, parts of
    /// them may have been written.
    ///
    /// # Errors
    /// As [`PreparedAttention::run`].
    pub fn gradients_into(
        &self,
        arguments: &[View<'_>],
        saved: &Saved<'_>,
        gradients: &mut [Option<ViewMut<'_>>; 4],
    ) -> Result<(), Error> {
        let arguments = self.arguments(arguments)?;
        // SAFETY: `planned`, as in `run_into`.
        #[allow(unsafe_code)]
        unsafe {
            self.device.attend_backward(&self.plan, &arguments, saved, gradients)?;
        }
        Ok(())
    }

    fn forward(&self, arguments: &[View<'_>], wants_lse: bool) -> Result<(Tensor, Option<Tensor>), Error> {
        let output = &self.plan.problem.output;
        // SAFETY: a device writes every element of both or fails, and then they are dropped unread.
        #[allow(unsafe_code)]
        let (mut out, mut lse) = unsafe {
            let lse = wants_lse.then(|| Tensor::uninit(self.plan.attention.accumulator, &self.plan.lse.shape));
            (Tensor::uninit(output.dtype, &output.layout.shape)?, lse.transpose()?)
        };
        let mut written = lse.as_mut().map(Tensor::view_mut);
        self.run_into(arguments, &mut out.view_mut(), written.as_mut())?;
        drop(written);
        Ok((out, lse))
    }

    /// The gradients that were planned for.
    ///
    /// # Errors
    /// As [`PreparedAttention::run`].
    pub fn gradients(&self, arguments: &[View<'_>], saved: &Saved<'_>) -> Result<[Option<Tensor>; 4], Error> {
        let wanted = self.plan.wanted;
        let mut tensors: [Option<Tensor>; 4] = [None, None, None, None];
        for (operand, tensor) in tensors.iter_mut().enumerate().filter(|(operand, _)| wanted[*operand]) {
            let Argument { dtype, layout } = &self.plan.arguments[self.plan.problem.operands[operand].argument];
            // SAFETY: as in `forward`.
            #[allow(unsafe_code)]
            let gradient = unsafe { Tensor::uninit(*dtype, &layout.shape)? };
            *tensor = Some(gradient);
        }
        let mut views = tensors.each_mut().map(|tensor| tensor.as_mut().map(Tensor::view_mut));
        self.gradients_into(arguments, saved, &mut views)?;
        drop(views);
        Ok(tensors)
    }
}

impl fmt::Display for PreparedAttention<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.plan.fmt(f)
    }
}

/// Attention in the usual shapes: query `(b, h, q, d)`, key `(b, g, n, d)`, value `(b, g, n, e)`, with h a multiple of g; out
/// `(b, h, q, e)`.
///
/// The table of positions has the shape `(b, s, q, k)`, where `s` is h for a list a head, g for one that the heads of a key
/// share, or 1 for one that all share; also without `b`, or without both. Without a table every query sees all keys.
/// [`Attend`] is the general form, with options.
///
/// # Errors
/// [`Error`]; nothing panics and nothing is undefined, whatever the arguments.
pub fn attention(
    query: &View<'_>,
    key: &View<'_>,
    value: &View<'_>,
    table: Option<&View<'_>>,
) -> Result<Tensor, Error> {
    let wrong = |text: String| Err(Error::Attention(text));
    let rank = |view: &View<'_>| view.shape().len();
    if [query, key, value].iter().any(|view| rank(view) != 4) {
        let shapes = [query, key, value].map(|view| format!("{:?}", view.shape()));
        return wrong(format!(
            "query, key and value have the shapes {}, but need four axes each: batch, heads, positions, features",
            shapes.join(", ")
        ));
    }
    let (heads, groups) = (query.shape()[1], key.shape()[1]);
    if groups == 0 || heads % groups != 0 {
        return wrong(format!("query has {heads} heads, which is no multiple of the {groups} of key"));
    }
    // Head `h` of the query is `hr`: `r` heads share the keys of one `h`.
    let shared = heads / groups;
    let query = query.split_axis(1, shared.max(1))?;
    let mut arguments = vec![query, key.clone()];
    let mut bracket = "k".to_string();
    if let Some(table) = table {
        let a_list_each = shared > 1 && rank(table) > 2 && table.shape()[rank(table) - 3] == heads;
        bracket = match (rank(table), a_list_each) {
            (2, _) => "[qk]",
            (3, false) => "[hqk]",
            (3, true) => "[hrqk]",
            (4, false) => "[bhqk]",
            (4, true) => "[bhrqk]",
            _ => {
                return wrong(format!(
                    "the table has the shape {:?}, but needs two, three or four axes",
                    table.shape()
                ));
            }
        }
        .to_string();
        arguments.push(if a_list_each { table.split_axis(rank(table) - 3, shared)? } else { table.clone() });
    }
    arguments.push(value.clone());
    let equation = format!("bhrqd,bh{bracket}d,bh{bracket}e->bhrqe");
    let out = Attend::new(&equation).run(&arguments)?;
    let shape = out.dims();
    Ok(out.reshape(&[shape[0], heads, shape[3], shape[4]])?)
}
