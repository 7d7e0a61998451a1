//! The invariants of a plan, checked after it is made in debug builds and by the tests.

use super::{Plan, Slot};

impl Plan {
    /// Checks that every step reads what is there, that intermediate results do not share bytes while both live, and
    /// that the output is written once.
    ///
    /// # Errors
    /// A sentence that names the step.
    pub fn verify(&self) -> Result<(), String> {
        let mut written = vec![false; self.temps.len()];
        let mut outputs = 0;
        if let Some((_, sum)) = self.slice_sum {
            written[sum] = true;
        }
        for (number, step) in self.steps.iter().chain(&self.epilogue).enumerate() {
            let fail = |what: &str| Err(format!("step {number} `{}` {what}", step.text));
            if step.inputs.is_empty() || step.inputs.len() > 2 {
                return fail("must have one or two inputs");
            }
            if step.contraction.right.is_some() != (step.inputs.len() == 2) {
                return fail("and its normal form disagree on the number of inputs");
            }
            for (slot, _) in &step.inputs {
                match *slot {
                    Slot::Temp(temp) if !written[temp] => return fail("reads a result that is not there yet"),
                    Slot::Output => return fail("reads the output"),
                    Slot::Operand(operand) if operand >= self.problem.operands.len() => {
                        return fail("reads an operand that does not exist");
                    }
                    _ => {}
                }
            }
            match step.output.0 {
                Slot::Temp(temp) => {
                    written[temp] = true;
                    let sharers = step.inputs.iter().filter_map(|(slot, _)| match slot {
                        Slot::Temp(input) => Some(*input),
                        _ => None,
                    });
                    for input in sharers {
                        let bytes = |t: usize| {
                            let temp = &self.temps[t];
                            (temp.offset_bytes, temp.offset_bytes + temp.len * temp.dtype.bytes())
                        };
                        let ((a0, a1), (b0, b1)) = (bytes(temp), bytes(input));
                        if a0.max(b0) < a1.min(b1) {
                            return fail("writes over its own input");
                        }
                    }
                }
                Slot::Output => outputs += 1,
                Slot::Operand(_) => return fail("writes an operand"),
            }
            let loops = step.contraction.loops.len();
            if step.contraction.accesses().any(|access| access.strides.len() != loops) {
                return fail("has an access with the wrong number of loops");
            }
            if step.estimate().workspace_bytes + self.arena_bytes > self.workspace_bytes {
                return fail("needs more workspace than the plan says");
            }
        }
        if outputs != 1 {
            return Err(format!("the output is written {outputs} times"));
        }
        for temp in &self.temps {
            if temp.offset_bytes + temp.len * temp.dtype.bytes() > self.arena_bytes {
                return Err("an intermediate result lies outside the arena".into());
            }
        }
        Ok(())
    }
}
