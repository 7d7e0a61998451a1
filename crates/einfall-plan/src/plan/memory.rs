//! Terms as axes, and where intermediate results lie in the arena.

use einfall_tensor::{Dims, Strides, contiguous_strides};

use super::{Slot, Step, Temp};
use crate::problem::{Problem, Term};

/// Alignment of intermediate results in the arena, bytes: a cache line.
const ALIGNMENT: usize = 64;

/// No intermediate result may be larger, so that its end can be rounded up to [`ALIGNMENT`].
pub(super) const MOST_BYTES: usize = isize::MAX as usize - ALIGNMENT;

/// Gives every intermediate result its place; two that never live at the same time may share bytes.
///
/// First fit by time of birth, largest first among equals. Returns the arena's size in bytes; `None` where
/// that cannot be addressed.
pub(super) fn lay_out(
    steps: &[Step],
    epilogue: Option<&Step>,
    temps: &mut [Temp],
    slice_sum: Option<(usize, usize)>,
    sliced: bool,
) -> Option<usize> {
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
        let mut offset = 0usize;
        for (start, end) in taken {
            if offset.checked_add(bytes)? <= start {
                break;
            }
            offset = offset.max(end);
        }
        temps[at].offset_bytes = offset;
        arena = arena.max(offset.checked_add(bytes)?);
        placed.push(at);
    }
    (arena <= MOST_BYTES).then_some(arena)
}

/// The axes of a term: direct labels, then looked-up axes, then windows, each with its length and its stride.
///
/// An axis of stride 0 repeats what is there once and is left out, unless it is empty: then there is nothing to read.
pub(super) fn axes_of(problem: &Problem, term: &Term) -> (Dims, Strides) {
    let direct = term.strides.iter().map(|(label, stride)| (problem.len(*label), *stride));
    let looked_up = term.lookups.iter().map(|lookup| (lookup.len, lookup.stride));
    let windows = term.windows.iter().map(|window| (window.len, window.stride));
    direct.chain(looked_up).chain(windows).filter(|&(len, stride)| is_stored(len, stride)).unzip()
}

fn is_stored(len: usize, stride: isize) -> bool {
    stride != 0 || len == 0
}

/// Strides of a gapless copy whose axes lie in the order of `strides`, so that what is contiguous stays so.
pub(super) fn dense_strides(lens: &[usize], strides: &[isize]) -> Strides {
    let mut order: Vec<usize> = (0..lens.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(strides[at].unsigned_abs()));
    let ordered: Dims = order.iter().map(|&at| lens[at]).collect();
    let mut dense: Strides = strides.into();
    for (&at, stride) in order.iter().zip(contiguous_strides(&ordered)) {
        dense[at] = stride;
    }
    dense
}

/// The same term over new strides for the axes of [`axes_of`].
pub(super) fn with_strides(problem: &Problem, term: &Term, strides: &[isize]) -> Term {
    let mut next = strides.iter().copied();
    let mut renew = |len: usize, stride: &mut isize| {
        if is_stored(len, *stride) {
            *stride = next.next().expect("one stride an axis");
        }
    };
    let mut term = term.clone();
    term.strides.iter_mut().for_each(|(label, stride)| renew(problem.len(*label), stride));
    term.lookups.iter_mut().for_each(|lookup| renew(lookup.len, &mut lookup.stride));
    term.windows.iter_mut().for_each(|window| renew(window.len, &mut window.stride));
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
