//! Orders that take one operand after the other, each a neighbour of what was taken before.
//!
//! *In*: a network and the operand to start with. *Out*: pairs of positions. Only one intermediate result lives at a time
//! besides the new one, so chains, ladders and narrow lattices are contracted in little memory, whatever that costs.
//! Always taken is the neighbour that leaves the smallest result, on a tie the earliest. Time O(operands · neighbours).

use std::collections::{BTreeSet, VecDeque};

use super::tree::Leaves;

/// Operands by label.
fn holders(leaves: &Leaves) -> Vec<Vec<usize>> {
    let mut holders = vec![Vec::new(); leaves.lens.len()];
    for (at, labels) in leaves.sets.iter().enumerate() {
        labels.iter().for_each(|label| holders[label as usize].push(at));
    }
    holders
}

/// Two operands that are far from each other, and one between them.
pub(super) fn ends(leaves: &Leaves) -> [usize; 3] {
    let holders = holders(leaves);
    // The last operand that a search in breadth comes to, and the one half-way.
    let reached = |start: usize| {
        let mut seen = vec![false; leaves.sets.len()];
        seen[start] = true;
        let (mut queue, mut order) = (VecDeque::from([start]), Vec::new());
        while let Some(at) = queue.pop_front() {
            order.push(at);
            for &other in leaves.sets[at].iter().flat_map(|label| &holders[label as usize]) {
                if !std::mem::replace(&mut seen[other], true) {
                    queue.push_back(other);
                }
            }
        }
        (order[order.len() - 1], order[order.len() / 2])
    };
    let (one, _) = reached(0);
    let (other, between) = reached(one);
    [one, other, between]
}

/// The order from one operand on.
pub(super) fn linear(leaves: &Leaves, start: usize) -> Vec<(usize, usize)> {
    let operands = leaves.sets.len();
    let holders = holders(leaves);
    let mut left: Vec<usize> = holders.iter().map(Vec::len).collect();
    let mut unused: BTreeSet<usize> = (0..operands).filter(|&at| at != start).collect();
    let mut current = leaves.sets[start].clone();
    current.iter().for_each(|label| left[label as usize] -= 1);
    let mut pairs = Vec::with_capacity(operands);
    let mut last = start;
    while !unused.is_empty() {
        let mut neighbours: Vec<usize> = current
            .iter()
            .flat_map(|label| &holders[label as usize])
            .copied()
            .filter(|at| unused.contains(at))
            .collect();
        neighbours.sort_unstable();
        neighbours.dedup();
        // `left` counts operands that are not taken; the new one is still among them.
        let product = |next: usize| {
            let new = &leaves.sets[next];
            let has = |label: u32| new.iter().any(|other| other == label);
            current.joined(new, |label, _| leaves.is_kept(label) || left[label as usize] > usize::from(has(label)))
        };
        let sizes = neighbours.into_iter().map(|next| (leaves.size(product(next).iter()), next));
        let next = sizes.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).map(|(_, next)| next);
        let next = next.or_else(|| unused.first().copied()).expect("some are unused");
        let made = product(next);
        leaves.sets[next].iter().for_each(|label| left[label as usize] -= 1);
        current = made;
        unused.remove(&next);
        pairs.push((last.min(next), last.max(next)));
        last = operands + pairs.len() - 1;
    }
    pairs
}
