//! Terms as axes, and where intermediate results lie in the arena.

use einfall_tensor::{Dims, Strides};

use super::{Slot, Step, Temp};
use crate::problem::{Operand, Problem, Term};

/// Alignment of intermediate results in the arena, bytes: a cache line.
const ALIGNMENT: usize = 64;

/// Gives every intermediate result its place; two that never live at the same time may share bytes.
///
/// First fit by time of birth, largest first among equals. Returns the arena's size in bytes.
pub(super) fn lay_out(
    steps: &[Step],
    epilogue: Option<&Step>,
    temps: &mut [Temp],
    slice_sum: Option<(usize, usize)>,
    sliced: bool,
) -> usize {
    let mut lives = vec![(usize::MAX, 0usize); temps.len()];
    for (at, step) in steps.iter().chain(epilogue).enumerate() {
        let slots = step.inputs.iter().map(|(slot, _)| *slot).chain([step.output.0]);
        for slot in slots {
            if let Slot::Temp(temp) = slot {
                let life = &mut lives[temp];
                *life = (life.0.min(at), life.1.max(at));
            }
        }
    }
    if let Some((part, sum)) = slice_sum {
        // The sum lives through every slice; a slice's result from when it is zeroed until it is added.
        lives[sum] = (0, usize::MAX);
        lives[part] = (0, usize::MAX);
    }
    // What outlives the slices collects something from each of them.
    for step in epilogue.iter().filter(|_| sliced) {
        if let Slot::Temp(temp) = step.inputs[0].0 {
            lives[temp] = (0, usize::MAX);
        }
    }
    let mut order: Vec<usize> = (0..temps.len()).collect();
    order.sort_by_key(|&at| (std::cmp::Reverse(temps[at].len * temps[at].dtype.bytes()), at));
    let mut placed: Vec<usize> = Vec::new();
    let mut arena = 0usize;
    for at in order {
        let bytes = (temps[at].len * temps[at].dtype.bytes()).next_multiple_of(ALIGNMENT);
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .filter(|&&other| lives[other].0 <= lives[at].1 && lives[at].0 <= lives[other].1)
            .map(|&other| {
                let start = temps[other].offset_bytes;
                (start, start + (temps[other].len * temps[other].dtype.bytes()).next_multiple_of(ALIGNMENT))
            })
            .collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (start, end) in taken {
            if offset + bytes <= start {
                break;
            }
            offset = offset.max(end);
        }
        temps[at].offset_bytes = offset;
        arena = arena.max(offset + bytes);
        placed.push(at);
    }
    arena
}

/// Strides of all axes of a term: direct labels, then looked-up axes, then windows. Broadcast axes have none.
pub(super) fn axes_of(term: &Term) -> Strides {
    let direct = term.strides.iter().map(|(_, stride)| *stride).filter(|&stride| stride != 0);
    direct.chain(term.lookups.iter().map(|l| l.stride)).chain(term.windows.iter().map(|w| w.stride)).collect()
}

/// Lengths of the axes of [`axes_of`].
pub(super) fn axis_lens(problem: &Problem, term: &Term, _operand: &Operand) -> Dims {
    let direct = term.strides.iter().filter(|(_, stride)| *stride != 0).map(|(label, _)| problem.len(*label));
    direct.chain(term.lookups.iter().map(|l| l.len)).chain(term.windows.iter().map(|w| w.len)).collect()
}

/// The same term over new strides for the axes of [`axes_of`].
pub(super) fn with_strides(term: &Term, strides: &[isize]) -> Term {
    let mut next = strides.iter().copied();
    let mut take = || next.next().expect("one stride an axis");
    let mut term = term.clone();
    term.strides.iter_mut().filter(|(_, stride)| *stride != 0).for_each(|(_, stride)| *stride = take());
    term.lookups.iter_mut().for_each(|lookup| lookup.stride = take());
    term.windows.iter_mut().for_each(|window| window.stride = take());
    term
}

/// A term in the notation, its labels in memory order.
pub(super) fn term_text(problem: &Problem, term: &Term) -> String {
    let mut direct: Vec<_> = term.strides.clone();
    direct.sort_by_key(|(label, stride)| (std::cmp::Reverse(stride.unsigned_abs()), *label));
    let mut text: String = direct.iter().map(|(label, _)| problem.name(*label)).collect();
    for lookup in &term.lookups {
        let labels = problem.tables[lookup.table].strides.iter().map(|(label, _)| problem.name(*label));
        text.push_str(&format!("[{}]", labels.collect::<String>()));
    }
    for window in &term.windows {
        let terms: Vec<String> = window
            .terms
            .iter()
            .map(|(label, by)| match by {
                1 => format!("+{}", problem.name(*label)),
                -1 => format!("-{}", problem.name(*label)),
                by => format!("{by:+}{}", problem.name(*label)),
            })
            .collect();
        let offset =
            if window.offset == 0 && window.terms.len() > 1 { String::new() } else { format!("{:+}", window.offset) };
        text.push_str(&format!("[{}]", format!("{}{offset}", terms.concat()).trim_start_matches('+')));
    }
    text
}
