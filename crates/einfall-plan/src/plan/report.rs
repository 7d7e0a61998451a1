//! The plan as text: what `explain` prints.

use std::fmt;

use super::{Plan, Step};
use crate::bind::plural;
use crate::kernel::{Candidate, Cost};
use crate::problem::Term;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problem = &self.problem;
        let lens: Vec<String> = problem.labels.iter().map(|label| format!("{}={}", label.name, label.len)).collect();
        writeln!(f, "{}   {}   {}", problem.equation, lens.join(" "), problem.dtype)?;
        let shape = problem.output.layout.shape.as_slice();
        writeln!(
            f,
            "result {shape:?} {}, {}, {}",
            problem.output.dtype,
            plural(self.machine.threads, if self.machine.isa.starts_with("sm_") { "multiprocessor" } else { "thread" }),
            self.machine.isa
        )?;
        if self.steps.len() > 1 {
            writeln!(f, "order: {}", self.method)?;
        }
        if !self.slices.is_empty() {
            let names: Vec<&str> = self.slices.iter().map(|&label| problem.name(label)).collect();
            writeln!(f, "sliced over {}: {} times", names.join(", "), self.slice_count())?;
        }
        for (number, step) in self.steps.iter().chain(&self.epilogue).enumerate() {
            write_step(f, number + 1, step)?;
        }
        let cost = self.cost();
        write!(f, "total {}; workspace {}", Priced(cost), Bytes(self.workspace_bytes as f64))
    }
}

fn write_step(f: &mut fmt::Formatter<'_>, number: usize, step: &Step) -> fmt::Result {
    writeln!(f, "{number}. {}   {}", step.text, step.contraction)?;
    if let Some(why) = step.why {
        writeln!(f, "   why: {why}")?;
    }
    write_candidates(f, &step.candidates, step.chosen)
}

/// What every kernel answered, a line each.
pub(crate) fn write_candidates(f: &mut fmt::Formatter<'_>, candidates: &[Candidate], chosen: usize) -> fmt::Result {
    for (at, candidate) in candidates.iter().enumerate() {
        let mark = if at == chosen { '*' } else { ' ' };
        match &candidate.answer {
            Ok(offer) => {
                writeln!(f, " {mark} {:<12} {:<13} {}", candidate.kernel, offer.way, Priced(offer.cost))?;
            }
            Err(reason) => writeln!(f, " {mark} {:<12} {:<13} {reason}", candidate.kernel, "-")?,
        }
    }
    Ok(())
}

/// A cost in three columns.
struct Priced(Cost);

impl fmt::Display for Priced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>9}  {:>12}  {:>10}",
            Seconds(self.0.seconds).to_string(),
            Flops(self.0.flops).to_string(),
            Bytes(self.0.bytes).to_string()
        )
    }
}

/// A time for people: `12.3 µs`.
pub struct Seconds(pub f64);
/// A number of operations for people: `25.6 MFLOP`.
pub struct Flops(pub f64);
/// A number of bytes for people: `3.20 MB` (powers of ten).
pub struct Bytes(pub f64);

fn scaled(f: &mut fmt::Formatter<'_>, value: f64, units: &[(f64, &str)]) -> fmt::Result {
    let &(scale, unit) = units.iter().find(|(scale, _)| value >= *scale).unwrap_or(units.last().expect("units"));
    let number = value / scale;
    let digits = if number >= 99.95 || number == number.trunc() && scale == 1.0 {
        0
    } else if number >= 9.995 {
        1
    } else {
        2
    };
    write!(f, "{number:.digits$} {unit}")
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(f, self.0, &[(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")])
    }
}

impl fmt::Display for Flops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(f, self.0, &[(1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"), (1.0, "FLOP")])
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(f, self.0, &[(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")])
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.strides)
    }
}
