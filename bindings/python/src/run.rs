//! Runs a plan on memory of Python's arrays.

use std::sync::Arc;

use einfall::{Argument, DType, Device, Error, Tensor, View, ViewMut};
use pyo3::prelude::*;
use smallvec::SmallVec;

use crate::cache::{Prepared, prepare};
use crate::device::device;
use crate::error::to_python;
use crate::options::Options;

/// Views of a call's arguments.
pub(crate) type Views = SmallVec<[View<'static>; 4]>;

/// Finds or makes the plan of a call.
pub(crate) fn prepared(
    py: Python<'_>,
    equation: &str,
    views: &[View<'_>],
    options: &Options,
) -> PyResult<Arc<Prepared>> {
    prepare(equation, views, options).map_err(|error| to_python(py, error))
}

/// Runs a plan; the device compares the arguments with it.
fn execute(prepared: &Prepared, views: &[View<'_>], out: &mut ViewMut<'_>) -> Result<(), Error> {
    // SAFETY: plans are made by `cache::plan` for this processor, whose threads alone differ after a fork, and nobody
    // changes them.
    unsafe { device()?.run(&prepared.plan, views, out)? };
    Ok(())
}

/// Writes a result that nobody has seen yet. Where it fails, some of it may have been written.
///
/// # Safety
/// Every offset of the plan's output layout must be writable from `out`, and belong to nobody else.
pub(crate) unsafe fn run_fresh(py: Python<'_>, prepared: &Prepared, views: &[View<'_>], out: *mut u8) -> PyResult<()> {
    let output = &prepared.plan.problem.output;
    // SAFETY: by the caller.
    let out = unsafe { ViewMut::from_raw_parts(out, output.dtype, output.layout.clone()) };
    let run = |mut out: ViewMut<'_>| execute(prepared, views, &mut out);
    let result = match out {
        Err(error) => Err(error.into()),
        Ok(out) if prepared.long => py.detach(|| run(out)),
        Ok(out) => run(out),
    };
    result.map_err(|error| to_python(py, error))
}

/// Writes an array of the caller's: on an error nothing is written, and it may overlap the arguments.
pub(crate) fn run_into(
    py: Python<'_>,
    equation: &str,
    views: &[View<'_>],
    options: &Options,
    out: &mut ViewMut<'_>,
) -> PyResult<()> {
    let prepared = prepared(py, equation, views, options)?;
    let mut run = || -> Result<(), Error> {
        prepared.plan.check_arguments(views, out)?;
        device()?.check_tables(&prepared.plan, views)?;
        let overlaps = |view: &View<'_>| match (view.byte_range(), out.byte_range()) {
            (Some((start, end)), Some((out_start, out_end))) => start < out_end && out_start < end,
            _ => false,
        };
        if !views.iter().any(overlaps) {
            return execute(&prepared, views, out);
        }
        // Computed apart, then copied.
        let (dtype, shape) = prepared.result();
        let mut result = Tensor::zeros(dtype, shape)?;
        let apart = Argument { dtype, layout: result.view().layout().clone() };
        let apart = prepare(equation, views, &Options { out: Some(apart), ..options.clone() })?;
        execute(&apart, views, &mut result.view_mut())?;
        let to = Options { out: options.out.clone(), ..Options::default() };
        let copy = prepare("...->...", &[result.view()], &to)?;
        execute(&copy, &[result.view()], out)
    };
    let result = if prepared.long { py.detach(run) } else { run() };
    result.map_err(|error| to_python(py, error))
}

/// The type that torch gives to operands of two types: the wider kind decides, `i64` with `f32` is `f32`.
pub(crate) fn promote_like_torch(a: DType, b: DType) -> DType {
    let category = |dtype: DType| match dtype {
        DType::Bool => 0,
        dtype if dtype.is_complex() => 3,
        dtype if dtype.is_float() => 2,
        _ => 1,
    };
    match category(a).cmp(&category(b)) {
        std::cmp::Ordering::Equal => a.promote(b),
        std::cmp::Ordering::Less if category(b) == 3 && a == DType::F64 => DType::C128,
        std::cmp::Ordering::Greater if category(a) == 3 && b == DType::F64 => DType::C128,
        std::cmp::Ordering::Less => b,
        std::cmp::Ordering::Greater => a,
    }
}
