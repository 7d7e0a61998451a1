//! A plan as JSON: everything that its print says, for programs.

use einfall::{Plan, Step};
use serde_json::{Value, json};

use super::why::Why;

/// Version of the document; it rises when a field changes its meaning.
const FORMAT: u32 = 1;

pub(super) fn json(plan: &Plan, why: &Why, note: Option<&str>) -> Value {
    let problem = &plan.problem;
    let labels: serde_json::Map<String, Value> =
        problem.labels.iter().map(|label| (label.name.clone(), label.len.into())).collect();
    let slices: Vec<&str> = plan.slices.iter().map(|&label| problem.name(label)).collect();
    let arguments = problem.arguments.iter().map(|argument| {
        let layout = &argument.layout;
        json!({
            "dtype": argument.dtype.name(),
            "shape": layout.shape.as_slice(),
            "strides": layout.strides.as_slice(),
        })
    });
    json!({
        "format": FORMAT,
        "equation": problem.equation.to_string(),
        "labels": labels,
        "arguments": arguments.collect::<Vec<_>>(),
        "result": {"dtype": problem.output.dtype.name(), "shape": problem.output.layout.shape.as_slice()},
        "dtype": problem.dtype.name(),
        "machine": plan.machine,
        "note": note,
        "why": why,
        "text": why.text().join(" "),
        "order": plan.method,
        "slices": slices,
        "steps": plan.steps.iter().map(step).collect::<Vec<_>>(),
        "epilogue": plan.epilogue.as_ref().map(step),
        "cost": plan.cost(),
        "workspace_bytes": plan.workspace_bytes,
    })
}

fn step(step: &Step) -> Value {
    let candidates = step.candidates.iter().map(|candidate| match &candidate.answer {
        Ok(offer) => json!({
            "kernel": candidate.kernel,
            "way": offer.way,
            "cost": offer.cost,
            "workspace_bytes": offer.workspace_bytes,
        }),
        Err(reason) => json!({"kernel": candidate.kernel, "refused": reason}),
    });
    json!({
        "text": step.text,
        "contraction": step.contraction.to_string(),
        "why": step.why,
        "candidates": candidates.collect::<Vec<_>>(),
        "chosen": step.chosen,
        "way": step.estimate().way,
    })
}
