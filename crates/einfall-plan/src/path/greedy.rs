//! Greedy order for many operands: always the pair whose contraction frees the most memory.
//!
//! The cost of a pair is size(result) − α (size(a) + size(b)), as in opt_einsum's greedy path (α = 1) and cotengra's, and it
//! may be shaken by noise, whose strength is called temperature there. Only pairs that share a label are candidates; what
//! is left is joined by outer products, smallest first. The noise is a hash of its seed and the pair, ties go to the
//! earliest operands, and nothing is hashed by address, so the same network always gets the same order. Time
//! O(pairs · log pairs) for labels of bounded degree.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::tree::{Labels, Leaves};

/// Above this many tensors on one label, only neighbours in order of position are paired on it.
const MOST_PER_LABEL: usize = 64;

/// What a search prefers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taste {
    /// Weight of the sizes of what a pair uses up.
    pub(super) alpha: f64,
    /// Strength of the noise.
    pub(super) temperature: f64,
    /// Which noise.
    pub(super) seed: u64,
}

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
    leaves: &'a Leaves,
    taste: Taste,
    /// Labels of each tensor, and their number of elements; `None` once it is used.
    tensors: Vec<Option<(Labels, f64)>>,
    /// Tensors that have a label, by position.
    holders: Vec<Vec<usize>>,
    heap: BinaryHeap<Reverse<Candidate>>,
    /// Pairs that were looked at.
    candidates: usize,
}

/// Pairs of positions, as in [`Path`](super::Path), and how many pairs were looked at.
pub(super) fn greedy(leaves: &Leaves, taste: Taste) -> (Vec<(usize, usize)>, usize) {
    let mut search = Search {
        leaves,
        taste,
        tensors: Vec::with_capacity(2 * leaves.sets.len()),
        holders: vec![Vec::new(); leaves.lens.len()],
        heap: BinaryHeap::new(),
        candidates: 0,
    };
    for labels in &leaves.sets {
        search.add(labels.clone());
    }
    let mut pairs = Vec::with_capacity(leaves.sets.len());
    while let Some(Reverse(Candidate { a, b, .. })) = search.heap.pop() {
        if search.tensors[a].is_some() && search.tensors[b].is_some() {
            search.join(a, b, &mut pairs);
        }
    }
    // Nothing shares a label any more: outer products, smallest first.
    let size = |search: &Search<'_>, at: usize| search.tensors[at].as_ref().expect("unused").1;
    let entry = |search: &Search<'_>, at: usize| Reverse(Candidate { cost: size(search, at), a: at, b: at });
    let unused = (0..search.tensors.len()).filter(|&at| search.tensors[at].is_some());
    let mut rest: BinaryHeap<Reverse<Candidate>> = unused.map(|at| entry(&search, at)).collect();
    while let (Some(Reverse(first)), Some(Reverse(second))) = (rest.pop(), rest.pop()) {
        let joined = search.join(first.a.min(second.a), first.a.max(second.a), &mut pairs);
        rest.push(entry(&search, joined));
    }
    (pairs, search.candidates)
}

impl Search<'_> {
    /// Labels of the product of two tensors that somebody else, or the output, still needs.
    fn product(&self, a: usize, b: usize) -> Labels {
        let labels = |at: usize| &self.tensors[at].as_ref().expect("unused").0;
        let holders = |label: u32| &self.holders[label as usize];
        labels(a)
            .joined(labels(b), |label, both| self.leaves.is_kept(label) || holders(label).len() > 1 + usize::from(both))
    }

    /// Adds a tensor and its candidates.
    fn add(&mut self, labels: Labels) -> usize {
        let at = self.tensors.len();
        let size = self.leaves.size(labels.iter());
        let mut neighbours: smallvec::SmallVec<[usize; 16]> = smallvec::SmallVec::new();
        for label in labels.iter() {
            let holders = &mut self.holders[label as usize];
            neighbours.extend(holders.iter().rev().take(MOST_PER_LABEL).copied());
            holders.push(at);
        }
        self.tensors.push(Some((labels, size)));
        neighbours.sort_unstable();
        neighbours.dedup();
        self.candidates += neighbours.len();
        for other in neighbours {
            let used = size + self.tensors[other].as_ref().expect("holders are unused").1;
            let made = self.leaves.size(self.product(other, at).iter());
            let cost = self.shaken(made - self.taste.alpha * used, other, at);
            self.heap.push(Reverse(Candidate { cost, a: other, b: at }));
        }
        at
    }

    /// A cost with noise: as its logarithm, minus a number from Gumbel's distribution.
    fn shaken(&self, cost: f64, a: usize, b: usize) -> f64 {
        if self.taste.temperature == 0.0 {
            return cost;
        }
        let uniform = (mixed(self.taste.seed ^ ((a as u64) << 32 | b as u64)) >> 11) as f64 / (1u64 << 53) as f64;
        let gumbel = -(-(uniform.max(1e-300)).ln()).ln();
        cost.signum() * cost.abs().ln_1p() - self.taste.temperature * gumbel
    }

    fn join(&mut self, a: usize, b: usize, pairs: &mut Vec<(usize, usize)>) -> usize {
        let labels = self.product(a, b);
        for used in [a, b] {
            for label in self.tensors[used].take().expect("unused").0.iter() {
                self.holders[label as usize].retain(|&holder| holder != used);
            }
        }
        pairs.push((a, b));
        self.add(labels)
    }
}

/// Scatters the bits of a number (the finaliser of Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
/// 2014).
pub(super) fn mixed(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
