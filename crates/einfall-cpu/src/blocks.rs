//! Products of many operands a block at a time, so that what one step writes is still in the cache when the next reads it.
//!
//! *In*: a plan whose steps all run over one label of the output. *Out*: the range of that label that goes through all steps
//! before the next range begins; each thread has ranges of its own. *Callers*: the device. `bi,bi,bi->b` is two steps with
//! an intermediate result as large as an operand: in blocks of `b`, that result never leaves the cache.

use std::ops::Range;

use einfall_plan::{Access, Contraction, Machine, Plan, Role, Slot};

/// Kernels whose time is that of the bytes they move, however few rows they are given.
const STREAMING: [&str; 4] = ["nest", "dots", "axpys", "copies"];

/// Blocks at least, so that there are some for every thread. The number of threads must not matter: sums are split by the
/// size of a block.
const FEWEST: usize = 16;

/// A label along which a plan is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    /// For each step the loop that the label begins, and how many iterations of it a value of the label has.
    loops: Vec<(usize, usize)>,
    /// Length of the label.
    len: usize,
    /// Number of blocks.
    pub(crate) count: usize,
}

impl Blocks {
    /// How to cut a plan, if that pays: depends on the plan and the caches alone.
    pub(crate) fn of(plan: &Plan, machine: &Machine) -> Option<Blocks> {
        let bytes: usize = plan.temps.iter().map(|temp| temp.len.saturating_mul(temp.dtype.bytes())).sum();
        let simple = plan.steps.len() > 1 && plan.slices.is_empty() && plan.epilogue.is_none();
        if !simple || bytes <= machine.l2_bytes {
            return None;
        }
        let streams = plan.steps.iter().all(|step| {
            STREAMING.contains(&step.kernel())
                && !step.contraction.is_empty()
                && step.contraction.accesses().all(Access::is_plain)
        });
        if !streams {
            return None;
        }
        // The output's labels, the one with the largest stride first.
        let mut labels = plan.problem.output.term.strides.clone();
        labels.sort_by_key(|&(label, stride)| (std::cmp::Reverse(stride.unsigned_abs()), label));
        labels.into_iter().find_map(|(label, _)| {
            let (name, len) = (plan.problem.name(label).to_string(), plan.problem.len(label));
            let loops = plan.steps.iter().map(|step| begun_by(&step.contraction, &name, len)).collect::<Option<_>>()?;
            // A third of the second cache for intermediate results, the rest for what streams by.
            let count = bytes.div_ceil(machine.l2_bytes / 3).max(FEWEST);
            (count <= len / 2).then_some(Blocks { loops, len, count })
        })
    }

    /// The values of the label in a block.
    fn range(&self, block: usize) -> Range<usize> {
        self.len * block / self.count..self.len * (block + 1) / self.count
    }

    /// A step's contraction cut to a block; intermediate results lie where those of block `slot` would.
    pub(crate) fn cut(&self, plan: &Plan, step: usize, block: usize, slot: usize) -> Contraction {
        let (at, inner) = self.loops[step];
        let range = self.range(block);
        let step = &plan.steps[step];
        let mut contraction = step.contraction.clone();
        contraction.loops[at].len = range.len() * inner;
        let start = |of: Slot| match of {
            // Ranges differ by one value in length, so slots are as long as the longest.
            Slot::Temp(_) => slot * self.len.div_ceil(self.count),
            _ => range.start,
        };
        let shift = |access: &mut Access, of: Slot| access.offset += access.strides[at] * (start(of) * inner) as isize;
        let Contraction { left, right, out, .. } = &mut contraction;
        shift(left, step.inputs[0].0);
        if let (Some(right), Some(input)) = (right, step.inputs.get(1)) {
            shift(right, input.0);
        }
        shift(out, step.output.0);
        contraction
    }

    /// How many blocks may be under way at a time: their intermediate results lie side by side.
    pub(crate) fn slots(&self) -> usize {
        self.len / self.len.div_ceil(self.count)
    }
}

/// The loop of the output that a label begins, and the iterations of it for each of the label's values.
fn begun_by(contraction: &Contraction, name: &str, len: usize) -> Option<(usize, usize)> {
    let at = contraction.loops.iter().position(|l| l.name.starts_with(name))?;
    let own = &contraction.loops[at];
    let fits = own.role != Role::Contracted && contraction.out.strides[at] != 0 && own.len.is_multiple_of(len);
    fits.then_some((at, own.len / len))
}
