//! Greedy order for many operands: always the pair whose contraction frees the most memory.
//!
//! The cost of a pair is size(result) − size(a) − size(b), as in opt_einsum's greedy path. Only pairs that share a label
//! are candidates; what is left is joined by outer products, smallest first. Ties go to the earliest operands, so the
//! order does not depend on hashing. Time O(pairs · log pairs) for labels of bounded degree.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::Network;
use crate::problem::LabelId;

/// Above this many tensors on one label, only neighbours in order of position are paired on it.
const MOST_PER_LABEL: usize = 64;

#[derive(PartialEq)]
struct Candidate {
    cost: f64,
    a: usize,
    b: usize,
}

impl Eq for Candidate {}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.cost.total_cmp(&other.cost).then_with(|| (self.a, self.b).cmp(&(other.a, other.b)))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

struct Search<'a> {
    network: &'a Network<'a>,
    /// Labels of each tensor; `None` once it is used.
    tensors: Vec<Option<BTreeSet<LabelId>>>,
    /// Tensors that have a label.
    holders: BTreeMap<LabelId, BTreeSet<usize>>,
    kept: BTreeSet<LabelId>,
    heap: BinaryHeap<Reverse<Candidate>>,
}

pub(super) fn greedy(network: &Network<'_>) -> Vec<(usize, usize)> {
    let mut search = Search {
        network,
        tensors: Vec::new(),
        holders: BTreeMap::new(),
        kept: network.output.iter().copied().collect(),
        heap: BinaryHeap::new(),
    };
    for labels in network.operands {
        search.add(labels.iter().copied().collect());
    }
    let mut pairs = Vec::new();
    while let Some(Reverse(Candidate { a, b, .. })) = search.heap.pop() {
        if search.tensors[a].is_some() && search.tensors[b].is_some() {
            search.join(a, b, &mut pairs);
        }
    }
    // Nothing shares a label any more: outer products, smallest first.
    let mut rest: BinaryHeap<Reverse<Candidate>> = BinaryHeap::new();
    let entry = |search: &Search<'_>, at: usize| {
        let labels = search.tensors[at].as_ref().expect("unused");
        Reverse(Candidate { cost: search.size(labels), a: at, b: at })
    };
    for at in 0..search.tensors.len() {
        if search.tensors[at].is_some() {
            rest.push(entry(&search, at));
        }
    }
    while let (Some(Reverse(first)), Some(Reverse(second))) = (rest.pop(), rest.pop()) {
        let joined = search.join(first.a.min(second.a), first.a.max(second.a), &mut pairs);
        rest.push(entry(&search, joined));
    }
    pairs
}

impl Search<'_> {
    fn size(&self, labels: &BTreeSet<LabelId>) -> f64 {
        labels.iter().map(|&label| (self.network.lens)(label).max(1) as f64).product()
    }

    /// Labels of the product of two tensors that somebody else, or the output, still needs.
    fn product(&self, a: usize, b: usize) -> BTreeSet<LabelId> {
        let labels = |at: usize| self.tensors[at].as_ref().expect("unused");
        let needed = |label: &LabelId| {
            self.kept.contains(label) || self.holders[label].iter().any(|&holder| holder != a && holder != b)
        };
        labels(a).union(labels(b)).copied().filter(needed).collect()
    }

    /// Adds a tensor and its candidates.
    fn add(&mut self, labels: BTreeSet<LabelId>) -> usize {
        let at = self.tensors.len();
        self.tensors.push(Some(labels.clone()));
        let mut neighbours = BTreeSet::new();
        for &label in &labels {
            let holders = self.holders.entry(label).or_default();
            neighbours.extend(holders.iter().rev().take(MOST_PER_LABEL));
            holders.insert(at);
        }
        for other in neighbours {
            let [a, b] = [other, at];
            let size = |at: usize| self.size(self.tensors[at].as_ref().expect("unused"));
            let cost = self.size(&self.product(a, b)) - size(a) - size(b);
            self.heap.push(Reverse(Candidate { cost, a, b }));
        }
        at
    }

    fn join(&mut self, a: usize, b: usize, pairs: &mut Vec<(usize, usize)>) -> usize {
        let labels = self.product(a, b);
        for used in [a, b] {
            for label in self.tensors[used].take().expect("unused") {
                self.holders.get_mut(&label).expect("held").remove(&used);
            }
        }
        pairs.push((a, b));
        self.add(labels)
    }
}
