//! Where the elements of an argument lie.

use crate::case::ArgumentSpec;
use crate::random::Choices;

/// Gives a row-major argument another layout: contiguous, permuted, with gaps, backwards, expanded, padded, or off.
pub(crate) fn arrange(choices: &mut Choices, mut spec: ArgumentSpec) -> ArgumentSpec {
    let rank = spec.shape.len();
    let kind = choices.below(9);
    let mixed = kind == 8;
    let mut order: Vec<usize> = (0..rank).collect();
    if kind == 2 || mixed {
        order = choices.order(rank);
    }
    let gap = if kind == 3 || mixed { choices.pick(&[2, 3]) } else { 1 };
    let padded = if kind == 4 || mixed { choices.below(rank.max(1)) } else { rank };
    if kind == 5 || mixed {
        spec.offset = choices.pick(&[1, 2, 3, 5]);
        if choices.percent(40) {
            spec.misaligned = 1 + choices.below(spec.dtype.bytes());
        }
    }
    let backwards: Vec<bool> = (0..rank).map(|_| (kind == 6 || mixed) && choices.percent(60)).collect();
    let expanded: Vec<bool> = (0..rank).map(|_| (kind == 7 || mixed && rank > 2) && choices.percent(50)).collect();
    if kind < 2 {
        return spec;
    }
    let mut strides = vec![0isize; rank];
    let mut step = gap as isize;
    for &axis in order.iter().rev() {
        if expanded[axis] {
            continue;
        }
        strides[axis] = step;
        let len = spec.shape[axis].max(1);
        step *= (len + if axis == padded { 1 + choices.below(3) } else { 0 }) as isize;
        if backwards[axis] {
            strides[axis] = -strides[axis];
            spec.offset += -strides[axis] as usize * (len - 1);
        }
    }
    spec.strides = Some(strides);
    if choices.percent(30) {
        spec.storage_len = Some(spec.storage() + 1 + choices.below(7));
    }
    spec
}
