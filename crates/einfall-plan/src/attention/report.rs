//! The plan of an attention as text: what `explain` prints.

use std::fmt;

use super::{Attention, AttentionPlan, AttentionRole, Pass};
use crate::bind::plural;
use crate::plan::{Bytes, write_candidates};

impl fmt::Display for AttentionPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problem = &self.problem;
        let lens: Vec<String> = problem.labels.iter().map(|label| format!("{}={}", label.name, label.len)).collect();
        let pass = match self.pass {
            Pass::Forward => "attention",
            Pass::Backward => "gradients of attention",
        };
        writeln!(f, "{pass} {}   {}   {}", problem.equation, lens.join(" "), self.attention.dtype)?;
        let shape = problem.output.layout.shape.as_slice();
        let threads = plural(self.machine.threads, "thread");
        writeln!(f, "result {shape:?} {}, {threads}, {}", problem.output.dtype, self.machine.isa)?;
        writeln!(f, "{}", self.attention)?;
        write_candidates(f, &self.candidates, self.chosen)?;
        write!(f, "workspace {}", Bytes(self.workspace_bytes() as f64))
    }
}

impl fmt::Display for AttentionRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AttentionRole::List => "lists",
            AttentionRole::Head => "heads",
            AttentionRole::Key => "keys",
            AttentionRole::Depth => "depth",
            AttentionRole::Width => "width",
        })
    }
}

impl fmt::Display for Attention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for role in AttentionRole::ALL {
            let mut loops = self.loops_of(role).peekable();
            if loops.peek().is_some() {
                write!(f, "{separator}{role}")?;
                separator = ", ";
                for at in loops {
                    write!(f, " {}={}", self.loops[at].name, self.loops[at].len)?;
                }
            }
        }
        if separator.is_empty() { f.write_str("one query and one key") } else { Ok(()) }
    }
}
