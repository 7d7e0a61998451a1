//! A plan as plain Python objects: what `explain` and `contract_path` return.

use std::collections::HashMap;

use einfall::{AttentionPlan, Candidate, Cost, Device, Plan, Slot, Step};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

/// The text of a plan and a dictionary of what it says.
pub(crate) fn report<'py>(py: Python<'py>, plan: &Plan) -> PyResult<(String, Bound<'py, PyDict>)> {
    let problem = &plan.problem;
    let dict = PyDict::new(py);
    dict.set_item("equation", problem.equation.to_string())?;
    let labels = PyDict::new(py);
    for label in &problem.labels {
        labels.set_item(&label.name, label.len)?;
    }
    dict.set_item("labels", labels)?;
    dict.set_item("shape", PyTuple::new(py, &problem.output.layout.shape)?)?;
    dict.set_item("dtype", problem.output.dtype.name())?;
    dict.set_item("order", plan.method)?;
    dict.set_item("path", path(py, plan)?)?;
    dict.set_item("slices", plan.slices.iter().map(|&label| problem.name(label)).collect::<Vec<_>>())?;
    let steps = plan.steps.iter().chain(&plan.epilogue).map(|one| step(py, one));
    dict.set_item("steps", steps.collect::<PyResult<Vec<_>>>()?)?;
    dict.set_item("total", cost(py, plan.cost())?)?;
    dict.set_item("workspace_bytes", plan.workspace_bytes)?;
    dict.set_item("machine", plan.machine.name.as_str())?;
    dict.set_item("threads", plan.machine.threads)?;
    Ok((plan.to_string(), dict))
}

/// The same of an attention, which is one step.
pub(crate) fn attention<'py>(py: Python<'py>, plan: &AttentionPlan) -> PyResult<(String, Bound<'py, PyDict>)> {
    let problem = &plan.problem;
    let dict = PyDict::new(py);
    dict.set_item("equation", problem.equation.to_string())?;
    let labels = PyDict::new(py);
    for label in &problem.labels {
        labels.set_item(&label.name, label.len)?;
    }
    dict.set_item("labels", labels)?;
    dict.set_item("shape", PyTuple::new(py, &problem.output.layout.shape)?)?;
    dict.set_item("lse_shape", PyTuple::new(py, &plan.lse.shape)?)?;
    dict.set_item("dtype", problem.output.dtype.name())?;
    dict.set_item("scale", plan.attention.scale.get())?;
    let step = PyDict::new(py);
    step.set_item("equation", problem.equation.to_string())?;
    step.set_item("contraction", plan.attention.to_string())?;
    step.set_item("kernel", plan.kernel())?;
    step.set_item("way", plan.estimate().way.to_string())?;
    step.update(cost(py, plan.cost())?.as_mapping())?;
    step.set_item("candidates", candidates(py, &plan.candidates)?)?;
    dict.set_item("steps", [step])?;
    dict.set_item("total", cost(py, plan.cost())?)?;
    dict.set_item("workspace_bytes", plan.workspace_bytes())?;
    dict.set_item("machine", plan.machine.name.as_str())?;
    dict.set_item("threads", plan.machine.threads)?;
    Ok((plan.to_string(), dict))
}

fn step<'py>(py: Python<'py>, step: &Step) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("equation", &step.text)?;
    dict.set_item("contraction", step.contraction.to_string())?;
    dict.set_item("why", step.why)?;
    dict.set_item("kernel", step.kernel())?;
    dict.set_item("way", step.estimate().way.to_string())?;
    dict.update(cost(py, step.estimate().cost)?.as_mapping())?;
    dict.set_item("candidates", candidates(py, &step.candidates)?)?;
    Ok(dict)
}

/// What every kernel answered.
fn candidates<'py>(py: Python<'py>, candidates: &[Candidate]) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let describe = |candidate: &Candidate| {
        let dict = PyDict::new(py);
        dict.set_item("kernel", candidate.kernel)?;
        match &candidate.answer {
            Ok(offer) => {
                dict.set_item("way", offer.way.to_string())?;
                dict.update(cost(py, offer.cost)?.as_mapping())?;
            }
            Err(reason) => dict.set_item("reason", reason)?,
        }
        Ok(dict)
    };
    candidates.iter().map(describe).collect()
}

fn cost<'py>(py: Python<'py>, cost: Cost) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("seconds", cost.seconds)?;
    dict.set_item("flops", cost.flops)?;
    dict.set_item("bytes", cost.bytes)?;
    Ok(dict)
}

/// The order of the pairs in NumPy's form: positions in a list, from which they are taken, the result going to its end.
fn path<'py>(py: Python<'py>, plan: &Plan) -> PyResult<Bound<'py, PyList>> {
    let mut list: Vec<usize> = (0..plan.problem.operands.len()).collect();
    let mut names: HashMap<Slot, usize> = list.iter().map(|&at| (Slot::Operand(at), at)).collect();
    let mut pairs: Vec<Vec<usize>> = Vec::new();
    for step in &plan.steps {
        let inputs: Vec<usize> = step.inputs.iter().map(|(slot, _)| names[slot]).collect();
        // A step of one input prepares it: it stays what it is.
        let name = match inputs[..] {
            [only] => only,
            _ => {
                let mut positions: Vec<usize> =
                    inputs.iter().filter_map(|input| list.iter().position(|at| at == input)).collect();
                positions.sort_unstable();
                positions.iter().rev().for_each(|&at| {
                    list.remove(at);
                });
                let name = plan.problem.operands.len() + pairs.len();
                list.push(name);
                pairs.push(positions);
                name
            }
        };
        names.insert(step.output.0, name);
    }
    if pairs.is_empty() {
        pairs.push(vec![0]);
    }
    PyList::new(py, pairs.into_iter().map(|pair| PyTuple::new(py, pair)).collect::<PyResult<Vec<_>>>()?)
}

/// Sizes and rates of the machine that plans are made for.
pub(crate) fn machine(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    let device = crate::device::device().map_err(|error| crate::error::to_python(py, error))?;
    let text = serde_json::to_string(device.machine())
        .map_err(|error| pyo3::exceptions::PyRuntimeError::new_err(error.to_string()))?;
    py.import("json")?.call_method1("loads", (text,))
}
