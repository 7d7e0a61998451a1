//! The call: an equation and arguments in, a tensor out, through every stage of the pipeline.

use std::fmt;

use einfall_equation::Equation;
use einfall_plan::{Argument, BindOptions, Bounds, Device, Order, Plan, PlanOptions, bind};
use einfall_tensor::{DType, Layout, Tensor, View, ViewMut};

use crate::error::with_meant;
use crate::{CudaDevice, Error, default_device};

/// Evaluates an einsum: `einsum("ij,jk->ik", &[a, b])`.
///
/// Arguments are the operands in order, each followed by the tables of its lookups. The result is row-major, of the
/// operands' promoted type. [`Einsum`] is the same with options.
///
/// # Errors
/// [`Error`]; nothing panics and nothing is undefined, whatever the arguments.
pub fn einsum(equation: &str, arguments: &[View<'_>]) -> Result<Tensor, Error> {
    Einsum::new(equation).run(arguments)
}

/// Evaluates an einsum into an array of any strides, which may overlap the arguments.
///
/// # Errors
/// As [`einsum`], and where `out` has not the shape of the result or a type that it cannot be stored in. On an error
/// nothing is written.
pub fn einsum_into(equation: &str, arguments: &[View<'_>], out: &mut ViewMut<'_>) -> Result<(), Error> {
    Einsum::new(equation).run_into(arguments, out)
}

/// An einsum with options; each has the default that [`einsum`] uses.
///
/// ```
/// use einfall::{Bounds, Einsum, View};
///
/// // A sliding sum over a window of 3: positions outside are left out.
/// let x = [1.0f64, 2.0, 3.0, 4.0];
/// let sums = Einsum::new("[q+w-1]->q").size("q", 4).size("w", 3).run(&[View::from_slice(&x, &[4])?])?;
/// assert_eq!(sums.as_slice::<f64>()?, [3.0, 6.0, 9.0, 7.0]);
///
/// // A padded list: −1 is left out.
/// let table = [0i32, -1];
/// let picked = Einsum::new("[i]->i")
///     .bounds(Bounds::Skip)
///     .run(&[View::from_slice(&x, &[4])?, View::from_slice(&table, &[2])?])?;
/// assert_eq!(picked.as_slice::<f64>()?, [1.0, 0.0]);
/// # Ok::<(), einfall::Error>(())
/// ```
#[derive(Clone)]
pub struct Einsum<'a> {
    equation: &'a str,
    bind: BindOptions,
    plan: PlanOptions,
    device: Option<&'a dyn Device>,
}

impl<'a> Einsum<'a> {
    /// An einsum with the defaults of [`einsum`].
    pub fn new(equation: &'a str) -> Self {
        Einsum { equation, bind: BindOptions::default(), plan: PlanOptions::default(), device: None }
    }

    /// Gives a length that no operand gives: of a label, or of an output axis under its bracket, `"[e]"`.
    #[must_use]
    pub fn size(mut self, name: &str, len: usize) -> Self {
        self.bind.sizes.insert(name.to_string(), len);
        self
    }

    /// What happens to table values outside their axis; an error by default.
    #[must_use]
    pub fn bounds(mut self, bounds: Bounds) -> Self {
        self.bind.bounds = bounds;
        self
    }

    /// The type of the result; by default the promotion of all operands. A narrower one is rounded once, at the end.
    #[must_use]
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.bind.dtype = Some(dtype);
        self
    }

    /// How more than two operands are ordered.
    #[must_use]
    pub fn order(mut self, order: Order) -> Self {
        self.plan.order = order;
        self
    }

    /// The most elements that intermediate results may have together at any time; labels are sliced until it holds.
    #[must_use]
    pub fn memory_limit(mut self, elements: usize) -> Self {
        self.plan.memory_limit = Some(elements);
        self
    }

    /// A kernel to prefer wherever it can run, by its name in [`Plan`]'s print; for tests and experiments.
    #[must_use]
    pub fn kernel(mut self, name: &str) -> Self {
        self.plan.kernel = Some(name.to_string());
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
    /// As [`einsum`], except for what depends on the data.
    pub fn plan(&self, arguments: &[View<'_>]) -> Result<Prepared<'a>, Error> {
        self.plan_for(arguments.iter().map(describe).collect(), None)
    }

    /// The same from bare descriptions, for explaining a call without data.
    ///
    /// # Errors
    /// As [`Einsum::plan`].
    pub fn plan_for(&self, arguments: Vec<Argument>, out: Option<Argument>) -> Result<Prepared<'a>, Error> {
        let device = match self.device {
            Some(device) => device,
            None => default_device()?,
        };
        let equation = Equation::parse(self.equation)?;
        let options = BindOptions { out, ..self.bind.clone() };
        Prepared::new(&equation, &arguments, options, self.plan.clone(), device)
    }

    /// Evaluates into a new tensor.
    ///
    /// # Errors
    /// As [`einsum`].
    pub fn run(&self, arguments: &[View<'_>]) -> Result<Tensor, Error> {
        self.plan(arguments)?.run(arguments)
    }

    /// How long the call takes on a GPU alone, for benchmarks: seconds of a launch in each of `rounds` replays of a CUDA
    /// graph of `launches`, after one that is not counted. The arguments are copied once, and every launch reads the
    /// same ones, so what fits in the GPU's cache stays there. The result is thrown away.
    ///
    /// # Errors
    /// As [`einsum`].
    pub fn replay_seconds(
        &self,
        gpu: &CudaDevice,
        arguments: &[View<'_>],
        launches: usize,
        rounds: usize,
    ) -> Result<Vec<f64>, Error> {
        let prepared = Einsum { device: Some(gpu), ..self.clone() }.plan(arguments)?;
        // SAFETY: `planned`: the plan was just made for this GPU.
        #[allow(unsafe_code)]
        let seconds = unsafe { gpu.replay_seconds(&prepared.plan, arguments, launches, rounds)? };
        Ok(seconds)
    }

    /// Evaluates into an array. See [`einsum_into`].
    ///
    /// # Errors
    /// As [`einsum_into`].
    pub fn run_into(&self, arguments: &[View<'_>], out: &mut ViewMut<'_>) -> Result<(), Error> {
        let written = Argument { dtype: out.dtype(), layout: out.layout().clone() };
        self.plan_for(arguments.iter().map(describe).collect(), Some(written))?.run_into(arguments, out)
    }
}

pub(crate) fn describe(view: &View<'_>) -> Argument {
    Argument { dtype: view.dtype(), layout: view.layout().clone() }
}

/// A planned call, to run many times on arguments of the same shapes, strides and types.
///
/// Its `Display` says what each step costs, and why it is run the way it is.
///
/// Invariant `planned`: the plan is what [`Plan::new`] made for a bound problem and this device.
pub struct Prepared<'a> {
    plan: Plan,
    /// What the plan was made with, to make it again for a result apart from `out`.
    bind_options: BindOptions,
    plan_options: PlanOptions,
    device: &'a dyn Device,
}

impl<'a> Prepared<'a> {
    fn new(
        equation: &Equation,
        arguments: &[Argument],
        bind_options: BindOptions,
        plan_options: PlanOptions,
        device: &'a dyn Device,
    ) -> Result<Self, Error> {
        let problem = bind(equation, arguments, &bind_options).map_err(|error| with_meant(error, equation))?;
        let plan = Plan::new(problem, device.machine(), device.kernels(), &plan_options)?;
        Ok(Prepared { plan, bind_options, plan_options, device })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Evaluates into a new tensor.
    ///
    /// # Errors
    /// As [`einsum`]; [`RunError::Mismatch`](einfall_plan::RunError) for other shapes than were planned.
    pub fn run(&self, arguments: &[View<'_>]) -> Result<Tensor, Error> {
        let output = &self.plan.problem.output;
        // SAFETY: a device writes every element of `out` or fails, and then the tensor is dropped unread.
        #[allow(unsafe_code)]
        let mut result = unsafe { Tensor::uninit(output.dtype, &output.layout.shape)? };
        self.plan.check_arguments(arguments, &result.view_mut())?;
        // SAFETY: `planned`: nobody changed the plan since this device's kernels made their offers for it.
        #[allow(unsafe_code)]
        unsafe {
            self.device.run(&self.plan, arguments, &mut result.view_mut())?;
        }
        Ok(result)
    }

    /// Evaluates into an array of the layout that was planned for. It may overlap the arguments: then the result is
    /// computed apart and copied.
    ///
    /// # Errors
    /// As [`einsum_into`].
    pub fn run_into(&self, arguments: &[View<'_>], out: &mut ViewMut<'_>) -> Result<(), Error> {
        self.plan.check_arguments(arguments, out)?;
        self.device.check_tables(&self.plan, arguments)?;
        let overlaps = |view: &View<'_>| match (view.byte_range(), out.byte_range()) {
            (Some((start, end)), Some((out_start, out_end))) => start < out_end && out_start < end,
            _ => false,
        };
        if !arguments.iter().any(overlaps) {
            // SAFETY: as above.
            #[allow(unsafe_code)]
            unsafe {
                self.device.run(&self.plan, arguments, out)?;
            }
            return Ok(());
        }
        let result = self.apart()?.run(arguments)?;
        Einsum::new("...->...").device(self.device).run_into(&[result.view()], out)
    }

    /// The same call for a row-major `out`: the same lengths, types and options, hence the same bits.
    fn apart(&self) -> Result<Prepared<'a>, Error> {
        let problem = &self.plan.problem;
        let row_major = Layout::contiguous(&problem.output.layout.shape);
        let out = Some(Argument { dtype: problem.output.dtype, layout: row_major });
        let options = BindOptions { out, ..self.bind_options.clone() };
        Prepared::new(&problem.equation, &problem.arguments, options, self.plan_options.clone(), self.device)
    }
}

impl fmt::Display for Prepared<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.plan.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_apart_keeps_every_option() {
        let square = || Argument { dtype: DType::F32, layout: Layout::contiguous(&[3, 3]) };
        let out =
            Argument { dtype: DType::F64, layout: Layout { shape: [3, 3][..].into(), strides: [1, 3][..].into() } };
        let call = Einsum::new("ij,jk,[k]l->il").order(Order::LeftToRight).memory_limit(5).kernel("nest");
        let call = call.bounds(Bounds::Skip);
        let table = Argument { dtype: DType::I8, layout: Layout::contiguous(&[3]) };
        let prepared = call.plan_for(vec![square(), square(), square(), table], Some(out)).expect("a plan");
        let apart = prepared.apart().expect("a plan");
        assert_eq!(apart.plan.problem.output.layout, Layout::contiguous(&[3, 3]));
        assert_eq!(apart.plan.problem.output.dtype, DType::F64);
        assert_eq!((apart.plan.problem.dtype, apart.plan.problem.bounds), (DType::F32, Bounds::Skip));
        assert_eq!((apart.plan.method, &apart.plan.slices), ("left to right", &prepared.plan.slices));
        assert!(!apart.plan.slices.is_empty() && apart.plan.steps.iter().all(|step| step.kernel() == "nest"));
    }
}
