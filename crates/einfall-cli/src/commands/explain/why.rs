//! Why a plan costs what it costs: the bytes that are distinct against those that would be stored, and the ways.
//!
//! In: a plan. Out: [`Why`], facts that JSON shows and a paragraph that people read. Pure.

use einfall::{DType, Estimate, LabelId, Plan, Problem, Term};
use serde::Serialize;

use crate::bench::units;
use crate::host;

/// Columns of a terminal that the text fills.
const COLUMNS: usize = 100;

/// The facts behind a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Why {
    /// Multiply-adds of the equation as written, times two.
    pub(super) flops: f64,
    /// Distinct bytes of operands, tables and result, as far as they are asked for.
    pub(super) distinct_bytes: f64,
    /// Time to move them once, from the level of memory that all of them together fit in. No bound: a way that keeps a
    /// part of them in a faster cache may take less.
    pub(super) memory_seconds: f64,
    /// Time to do the arithmetic at its peak.
    pub(super) compute_seconds: f64,
    /// What is known of each operand.
    pub(super) operands: Vec<OperandWhy>,
    /// The offers for each step, cheapest first.
    #[serde(skip)]
    ways: Vec<Vec<String>>,
    #[serde(skip)]
    read_bytes_per_second: f64,
    /// Whether the rates were measured.
    measured: bool,
    #[serde(skip)]
    is_gpu: bool,
}

/// How an operand is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Look {
    /// Every element stands for itself.
    Plain,
    /// Rows are read through a table.
    LookedUp,
    /// A window slides over an axis.
    Window,
    /// A view repeats the same elements with stride 0.
    Expanded,
}

/// One operand: what it holds and what it would hold if it were stored whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct OperandWhy {
    /// Its number, from 0.
    operand: usize,
    /// As it is written.
    text: String,
    /// How it is looked at.
    look: Look,
    /// Bytes of distinct elements that it holds.
    distinct_bytes: f64,
    /// Labels that it would have stored whole.
    whole_text: String,
    /// Bytes that it would take stored whole.
    whole_bytes: f64,
    /// Whether every element is read for one multiply-add alone.
    read_once: bool,
}

pub(super) fn explain(plan: &Plan) -> Why {
    let problem = &plan.problem;
    let machine = &plan.machine;
    let operands: Vec<OperandWhy> = (0..problem.operands.len()).map(|operand| of_operand(problem, operand)).collect();
    let tables: f64 = problem
        .tables
        .iter()
        .map(|table| distinct(problem, table.argument) * problem.arguments[table.argument].dtype.bytes() as f64)
        .sum();
    let output = &problem.output;
    let result: f64 = output.layout.shape.iter().map(|&len| len as f64).product::<f64>() * output.dtype.bytes() as f64;
    // Of a long axis a short table asks for a part only.
    let asked = operands.iter().map(|operand| operand.distinct_bytes.min(operand.whole_bytes)).sum::<f64>();
    let distinct_bytes = asked + tables + result;
    // With several steps their order decides how much there is to compute.
    let flops = if plan.steps.len() > 1 { plan.cost().flops } else { problem.flops() };
    let ways = plan.steps.iter().chain(&plan.epilogue).map(|step| {
        let mut offers: Vec<_> =
            step.candidates.iter().filter_map(|candidate| candidate.answer.as_ref().ok()).collect();
        offers.sort_by(|a, b| a.cost.seconds.total_cmp(&b.cost.seconds));
        let text = |offer: &&Estimate| {
            let (seconds, bytes) = (units::seconds(offer.cost.seconds), units::bytes(offer.cost.bytes));
            format!("{} {seconds} for {bytes}", offer.way)
        };
        offers.iter().map(text).collect()
    });
    Why {
        flops,
        distinct_bytes,
        memory_seconds: distinct_bytes / machine.bytes_per_second_within(distinct_bytes),
        compute_seconds: flops / machine.peak_flops_per_second(problem.dtype),
        operands,
        ways: ways.collect(),
        read_bytes_per_second: machine.read_bytes_per_second,
        measured: machine.measured,
        is_gpu: host::is_gpu(machine),
    }
}

/// Number of distinct elements of an argument: an axis of stride 0 repeats them.
fn distinct(problem: &Problem, argument: usize) -> f64 {
    let layout = &problem.arguments[argument].layout;
    let axes = layout.shape.iter().zip(&layout.strides);
    axes.map(|(&len, &stride)| if stride == 0 { len.min(1) } else { len } as f64).product()
}

fn of_operand(problem: &Problem, number: usize) -> OperandWhy {
    let operand = &problem.operands[number];
    let labels = operand.term.labels(&problem.tables);
    let bytes = bytes_of(operand.dtype);
    let distinct_bytes = distinct(problem, operand.argument) * bytes;
    let whole_bytes = labels.iter().map(|&label| problem.len(label) as f64).product::<f64>() * bytes;
    let look = if !operand.term.lookups.is_empty() {
        Look::LookedUp
    } else if !operand.term.windows.is_empty() {
        Look::Window
    } else if distinct_bytes < whole_bytes {
        Look::Expanded
    } else {
        Look::Plain
    };
    let every_label = problem.labels.iter().enumerate().filter(|(_, label)| label.len != 1);
    let read_once = problem.operands.len() > 1
        && look == Look::Plain
        && every_label.clone().all(|(at, _)| labels.contains(&LabelId(at as u32)))
        && every_label.count() > 2;
    OperandWhy {
        operand: number,
        text: problem.equation.operands()[number].to_string(),
        look,
        distinct_bytes,
        whole_text: whole_text(problem, &operand.term, &labels),
        whole_bytes,
        read_once,
    }
}

fn bytes_of(dtype: DType) -> f64 {
    dtype.bytes() as f64
}

/// The labels of the operand stored whole: those that stand in it in their order, then those of brackets.
fn whole_text(problem: &Problem, term: &Term, labels: &[LabelId]) -> String {
    let direct: Vec<LabelId> = term.strides.iter().map(|(label, _)| *label).collect();
    let (mut kept, indirect): (Vec<LabelId>, Vec<LabelId>) = (direct.clone(), labels.to_vec());
    // Rows stay together: what a bracket adds goes before the last direct label.
    let last = kept.pop();
    kept.extend(indirect.into_iter().filter(|label| !direct.contains(label)));
    kept.extend(last);
    kept.iter().map(|&label| problem.name(label)).collect()
}

impl Why {
    /// A short paragraph, in lines.
    pub(super) fn text(&self) -> Vec<String> {
        let mut sentences = vec![self.balance()];
        sentences.extend(self.operands.iter().filter_map(|operand| self.about(operand)));
        sentences.extend(self.choice());
        if !self.measured {
            let device = if self.is_gpu { " --device cuda" } else { "" };
            sentences.push(format!(
                "The rates of this machine are estimates; `einfall machine{device}` measures them once."
            ));
        }
        wrap(&sentences.join(" "))
    }

    /// What decides: memory or arithmetic.
    fn balance(&self) -> String {
        let (flops, bytes) = (units::flop(self.flops), units::bytes(self.distinct_bytes));
        let (memory, compute) = (units::seconds(self.memory_seconds), units::seconds(self.compute_seconds));
        let decides = if self.memory_seconds > self.compute_seconds { "memory" } else { "arithmetic" };
        format!(
            "{flops} on {bytes} of distinct data: {compute} of arithmetic at its peak and {memory} to move the data once, so \
             {decides} decides."
        )
    }

    fn about(&self, operand: &OperandWhy) -> Option<String> {
        let OperandWhy { operand: number, text, whole_text, .. } = operand;
        let (held, whole) = (units::bytes(operand.distinct_bytes), units::bytes(operand.whole_bytes));
        let reading = units::seconds(operand.whole_bytes / self.read_bytes_per_second);
        let how = match operand.look {
            Look::LookedUp => "is looked up",
            Look::Window => "is slid over",
            Look::Expanded => "repeats its elements",
            Look::Plain if operand.read_once => {
                return Some(format!(
                    "Operand {number}, `{text}`, has every label: each element of its {held} is read for one multiply-add. If its rows \
                     repeat, a lookup or a view moves the distinct ones alone."
                ));
            }
            Look::Plain => return None,
        };
        if operand.whole_bytes <= operand.distinct_bytes {
            return Some(format!(
                "Operand {number}, `{text}`, {how}: it holds {held}, of which {whole} are asked for."
            ));
        }
        let as_text = if text == whole_text { String::new() } else { format!(" as `{whole_text}`") };
        Some(format!(
            "Operand {number}, `{text}`, {how}: it holds {held}; stored whole{as_text} it would be {whole}, and only to \
             read that takes {reading}."
        ))
    }

    /// The ways of the only step, or of none: many steps are better read in the plan.
    fn choice(&self) -> Option<String> {
        let [offers] = self.ways.as_slice() else { return None };
        let (first, others) = offers.split_first()?;
        Some(match others {
            [] => format!("One way runs it: {first}."),
            others => format!("Predicted: {first}; {}.", others.join("; ")),
        })
    }
}

/// Breaks text into lines between words.
fn wrap(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("there is always a line");
        if !last.is_empty() && last.chars().count() + 1 + word.chars().count() > COLUMNS {
            lines.push(word.to_owned());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests;
