//! Orders of many operands as trees: what one costs, and how it is mended, a few neighbours at a time.
//!
//! *In*: a [`Network`] of more operands than can be ordered exactly. *Out*: the cheapest of some greedy orders, whose
//! subtrees are ordered exactly, as cotengra's "subtree reconfiguration" does (Gray and Kourtis, "Hyper-optimized tensor
//! network contraction", 2021). How long it searches depends on what the first order would cost to run: the search should
//! not take longer than a few runs, and it reads no clock.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use super::Network;
use super::greedy::{Taste, greedy};
use super::linear::{ends, linear};
use crate::problem::LabelId;

/// Labels of a tensor as small numbers, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Labels(SmallVec<[u32; 12]>);

impl Labels {
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// Those that the other has too.
    pub(super) fn within(&self, other: &Labels) -> Labels {
        Labels(self.iter().filter(|label| other.0.binary_search(label).is_ok()).collect())
    }

    /// The labels of either that are `kept`, which is told whether both have one.
    pub(super) fn joined(&self, other: &Labels, kept: impl Fn(u32, bool) -> bool) -> Labels {
        let (mut a, mut b) = (self.0.as_slice(), other.0.as_slice());
        let mut labels = SmallVec::new();
        loop {
            let (label, both) = match (a.first(), b.first()) {
                (Some(&x), Some(&y)) => (x.min(y), x == y),
                (Some(&x), None) | (None, Some(&x)) => (x, false),
                (None, None) => return Labels(labels),
            };
            a = &a[usize::from(a.first() == Some(&label))..];
            b = &b[usize::from(b.first() == Some(&label))..];
            if kept(label, both) {
                labels.push(label);
            }
        }
    }
}

/// The operands of a network, their labels renumbered.
pub(super) struct Leaves {
    /// Labels of each operand that are not summed before it meets another.
    pub(super) sets: Vec<Labels>,
    /// Length by label.
    pub(super) lens: Vec<f64>,
    kept: Vec<bool>,
    /// Elements that an intermediate result should not exceed.
    limit: f64,
}

impl Leaves {
    pub(super) fn new(network: &Network<'_>) -> Leaves {
        let mut ids: BTreeMap<LabelId, u32> = BTreeMap::new();
        let mut lens = Vec::new();
        let mut uses: Vec<usize> = Vec::new();
        for &label in network.operands.iter().flatten().chain(network.output) {
            let id = *ids.entry(label).or_insert_with(|| {
                lens.push((network.lens)(label).max(1) as f64);
                uses.push(0);
                uses.len() as u32 - 1
            });
            uses[id as usize] += 1;
        }
        let mut kept = vec![false; lens.len()];
        network.output.iter().for_each(|label| kept[ids[label] as usize] = true);
        let set = |labels: &Vec<LabelId>| {
            let mut set: SmallVec<[u32; 12]> =
                labels.iter().map(|label| ids[label]).filter(|&id| uses[id as usize] > 1).collect();
            set.sort_unstable();
            set.dedup();
            Labels(set)
        };
        Leaves { sets: network.operands.iter().map(set).collect(), lens, kept, limit: f64::INFINITY }
    }

    fn within(network: &Network<'_>, limit: f64) -> Leaves {
        Leaves { limit: limit.max(1.0), ..Leaves::new(network) }
    }

    /// What a result of so many elements costs, apart from the work to make it.
    pub(super) fn stored(&self, size: f64) -> f64 {
        WRITTEN * size * (1.0 + OVER * (size / self.limit).min(1e60).powi(2))
    }

    /// Whether the output has a label.
    pub(super) fn is_kept(&self, label: u32) -> bool {
        self.kept[label as usize]
    }

    pub(super) fn size(&self, labels: impl Iterator<Item = u32>) -> f64 {
        labels.map(|label| self.lens[label as usize]).product()
    }
}

/// What an element that is written, and read again later, costs in multiply-adds. Measured: 8 bytes through a cache take
/// as long as four multiply-adds of a matrix product.
const WRITTEN: f64 = 4.0;
/// How much more an element costs in a result as large as the memory limit; it grows with the square of the size, for what
/// is larger is cut into slices, each of which repeats other work.
const OVER: f64 = 16.0;
/// Seconds of a multiply-add, for the length of the search: what networks take, between the rates of one core's matrix
/// product and of its memory.
const MULTIPLY_ADD_SECONDS: f64 = 4e-11;
/// Runs that a search may take as long as: an order is found once, and often used once.
const RUNS: f64 = 1.5;
/// Seconds of a greedy search for each pair that it looks at, and of ordering a subtree of [`LARGE`] or [`SMALL`] leaves.
const CANDIDATE_SECONDS: f64 = 0.25e-6;
const LARGE_SECONDS: f64 = 40e-6;
const SMALL_SECONDS: f64 = 5e-6;
/// Leaves of a subtree that is ordered exactly, where there is much time for it, and where there is little.
pub(super) const LARGE: usize = 8;
pub(super) const SMALL: usize = 6;
/// Greedy orders at most, and so many of them in a row that are no better.
const MOST_TRIALS: usize = 64;
const PATIENCE: usize = 8;
/// Orders that are mended at most.
const MENDED: usize = 4;
/// Greedy orders that are tried under a memory limit at most, and operands of all of them together.
const MOST_WITHIN: usize = 12;
const TRIED_OPERANDS: usize = 3000;

/// The cheapest order that a search of suitable length finds.
///
/// The better the best order so far, the less there is to win: the search ends when it has taken as long as some runs.
pub(super) fn search(network: &Network<'_>) -> Vec<(usize, usize)> {
    let leaves = Leaves::new(network);
    let mut spent = 0.0;
    let trial = |number: usize| {
        let alpha = [1.0, 0.5, 0.0, 2.0][number % 4];
        let temperature = [0.0, 0.1, 0.3, 1.0][number / 4 % 4];
        let (pairs, candidates) = greedy(&leaves, Taste { alpha, temperature, seed: number as u64 });
        (Tree::new(&leaves, &pairs), candidates as f64 * CANDIDATE_SECONDS)
    };
    let enough = |cost: f64, spent: f64| spent > RUNS * cost * MULTIPLY_ADD_SECONDS;
    let mut found = vec![trial(0).0];
    let mut idle = 0;
    for number in 1..MOST_TRIALS {
        if enough(found[0].cost(), spent) || idle == PATIENCE {
            break;
        }
        let (tree, seconds) = trial(number);
        spent += seconds;
        idle = if tree.cost() < 0.99 * found[0].cost() { 0 } else { idle + 1 };
        let place = found.partition_point(|other| other.cost() <= tree.cost());
        found.insert(place, tree);
        found.truncate(MENDED);
    }
    // A search for orders and one to mend them take half of the time each; an order that is mended may overtake another.
    let least = found[0].cost();
    for tree in &mut found {
        if !enough(least, spent / 2.0) {
            spent += tree.mend(&leaves, SMALL);
        }
    }
    let mut best = found.into_iter().reduce(|best, tree| if tree.cost() < best.cost() { tree } else { best });
    let best = best.as_mut().expect("the first order");
    while !enough(best.cost(), spent / 2.0) {
        let before = best.cost();
        spent += best.mend(&leaves, LARGE);
        if best.cost() >= 0.99 * before {
            break;
        }
    }
    best.pairs(&leaves)
}

/// The same order with subtrees mended, for about as long as one run takes, with results of at most `limit` elements
/// preferred.
pub(super) fn mended(network: &Network<'_>, pairs: &[(usize, usize)], limit: f64) -> Vec<(usize, usize)> {
    let leaves = Leaves::within(network, limit);
    let mut tree = Tree::new(&leaves, pairs);
    tree.mend(&leaves, SMALL);
    tree.pairs(&leaves)
}

/// Orders under a limit: the cheapest found without one, greedy ones, and some that take one operand after the other;
/// each mended with results of at most `limit` elements preferred, and of at most an eighth of that.
pub(super) fn search_within(
    network: &Network<'_>,
    pairs: &[(usize, usize)],
    limit: f64,
    mut visit: impl FnMut(Vec<(usize, usize)>),
) {
    let plain = Leaves::new(network);
    let trials = (TRIED_OPERANDS / plain.sets.len()).clamp(2, MOST_WITHIN);
    let greedy_orders = (0..trials).map(|number| {
        let (alpha, temperature) = ([0.0, 1.0, 0.5, 2.0][number % 4], [0.0, 0.1, 0.3][number / 4 % 3]);
        greedy(&plain, Taste { alpha, temperature, seed: number as u64 }).0
    });
    let linear_orders = ends(&plain).into_iter().map(|start| linear(&plain, start));
    let first = std::iter::once(pairs.to_vec());
    for pairs in first.chain(linear_orders).chain(greedy_orders) {
        visit(Tree::new(&plain, &pairs).pairs(&plain));
        for part in [1.0, 8.0] {
            let leaves = Leaves::within(network, limit / part);
            let mut tree = Tree::new(&leaves, &pairs);
            for most in [SMALL, LARGE] {
                tree.mend(&leaves, most);
            }
            visit(tree.pairs(&leaves));
        }
    }
}

/// A node: a leaf without children, or the product of two others.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) children: Option<(usize, usize)>,
    pub(super) labels: Labels,
    /// Multiply-adds of its own step and what its elements cost; nothing for a leaf.
    pub(super) cost: f64,
}

/// An order as a tree; the leaves come first, the root last.
#[derive(Clone)]
pub(super) struct Tree {
    pub(super) nodes: Vec<Node>,
    root: usize,
    operands: usize,
}

impl Tree {
    pub(super) fn new(leaves: &Leaves, pairs: &[(usize, usize)]) -> Tree {
        let mut left: Vec<u32> = vec![0; leaves.lens.len()];
        leaves.sets.iter().flat_map(Labels::iter).for_each(|label| left[label as usize] += 1);
        let leaf = |labels: &Labels| Node { children: None, labels: labels.clone(), cost: 0.0 };
        let mut nodes: Vec<Node> = leaves.sets.iter().map(leaf).collect();
        for &(a, b) in pairs {
            let all = nodes[a].labels.joined(&nodes[b].labels, |_, _| true);
            let labels = nodes[a].labels.joined(&nodes[b].labels, |label, both| {
                leaves.is_kept(label) || left[label as usize] > 1 + u32::from(both)
            });
            for at in [a, b] {
                nodes[at].labels.iter().for_each(|label| left[label as usize] -= 1);
            }
            labels.iter().for_each(|label| left[label as usize] += 1);
            let cost = leaves.size(all.iter()) + leaves.stored(leaves.size(labels.iter()));
            nodes.push(Node { children: Some((a, b)), labels, cost });
        }
        Tree { root: nodes.len() - 1, operands: leaves.sets.len(), nodes }
    }

    pub(super) fn cost(&self) -> f64 {
        self.nodes.iter().map(|node| node.cost).sum()
    }

    /// Orders every subtree of at most so many leaves that matters exactly, from the leaves to the root. Returns about how
    /// many seconds that took.
    pub(super) fn mend(&mut self, leaves: &Leaves, most: usize) -> f64 {
        let (matters, mut seconds) = (self.cost() * 1e-4, 0.0);
        for root in self.inner_nodes() {
            // The subtree's leaves: what is most expensive to make is opened first.
            let mut frontier: SmallVec<[usize; LARGE]> = SmallVec::from_slice(&[root]);
            let mut opened: SmallVec<[usize; LARGE]> = SmallVec::new();
            while frontier.len() < most {
                let inner = frontier.iter().enumerate().filter(|(_, at)| self.nodes[**at].children.is_some());
                let Some((place, &at)) =
                    inner.max_by(|a, b| self.nodes[*a.1].cost.total_cmp(&self.nodes[*b.1].cost).then(a.1.cmp(b.1)))
                else {
                    break;
                };
                let (a, b) = self.nodes[at].children.expect("an inner node");
                frontier[place] = a;
                frontier.push(b);
                opened.push(at);
            }
            let before: f64 = opened.iter().map(|&at| self.nodes[at].cost).sum();
            if frontier.len() > 2 && before > matters {
                self.reorder(leaves, root, &frontier, &opened, before);
                seconds += if frontier.len() > SMALL { LARGE_SECONDS } else { SMALL_SECONDS };
            }
        }
        seconds
    }

    /// Makes a subtree over these leaves the cheapest there is, in place of the opened nodes, the root first among them.
    fn reorder(&mut self, leaves: &Leaves, root: usize, frontier: &[usize], opened: &[usize], before: f64) {
        let mut ids: SmallVec<[u32; 64]> =
            frontier.iter().flat_map(|&at| self.nodes[at].labels.iter()).collect::<SmallVec<_>>();
        ids.sort_unstable();
        ids.dedup();
        if ids.len() > 128 {
            return;
        }
        let bit = |label: u32| 1u128 << ids.binary_search(&label).expect("a label of a leaf");
        let set = |at: usize| self.nodes[at].labels.iter().fold(0u128, |set, label| set | bit(label));
        let sets: SmallVec<[u128; LARGE]> = frontier.iter().map(|&at| set(at)).collect();
        let lens: SmallVec<[f64; 64]> = ids.iter().map(|&label| leaves.lens[label as usize]).collect();
        let best = cheapest(&sets, set(root), &lens, &|size| leaves.stored(size));
        let full = best.len() - 1;
        if best[full].cost >= before * (1.0 - 1e-9) {
            return;
        }
        // Places of the opened nodes are filled anew, the root first; a node may come before its children then.
        let mut places = opened.iter().copied();
        let mut open = vec![(full, places.next().expect("the root"))];
        while let Some((subset, at)) = open.pop() {
            let mut child = |subset: usize| {
                if subset.is_power_of_two() {
                    return frontier[subset.trailing_zeros() as usize];
                }
                let place = places.next().expect("as many inner nodes as before");
                open.push((subset, place));
                place
            };
            let part = best[subset].part;
            let (a, b) = (child(part), child(subset & !part));
            let kept = best[subset].labels;
            let labels =
                Labels(ids.iter().enumerate().filter(|(at, _)| kept >> at & 1 == 1).map(|(_, &l)| l).collect());
            let own = best[subset].cost - best[part].cost - best[subset & !part].cost;
            self.nodes[at] = Node { children: Some((a, b)), labels, cost: own };
        }
    }

    /// Inner nodes, children before parents.
    pub(super) fn inner_nodes(&self) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.operands);
        let mut open = vec![self.root];
        while let Some(at) = open.pop() {
            if let Some((a, b)) = self.nodes[at].children {
                order.push(at);
                open.extend([a, b]);
            }
        }
        order.reverse();
        order
    }

    /// Pairs of positions; of two subtrees the one comes first that lets fewer elements live at a time.
    pub(super) fn pairs(&self, leaves: &Leaves) -> Vec<(usize, usize)> {
        let inner = self.inner_nodes();
        let size = |at: usize| match self.nodes[at].children {
            Some(_) => leaves.size(self.nodes[at].labels.iter()),
            None => 0.0,
        };
        // Most elements that live while a subtree is contracted (Sethi and Ullman's numbers, 1970).
        let mut peaks = vec![0.0f64; self.nodes.len()];
        let mut sorted = vec![None; self.nodes.len()];
        for &at in &inner {
            let (a, b) = self.nodes[at].children.expect("an inner node");
            let (size_a, size_b) = (size(a), size(b));
            let (a_first, b_first) = (peaks[a].max(size_a + peaks[b]), peaks[b].max(size_b + peaks[a]));
            peaks[at] = a_first.min(b_first).max(size_a + size_b + size(at));
            sorted[at] = Some(if b_first < a_first { (b, a) } else { (a, b) });
        }
        let mut position: Vec<usize> = (0..self.nodes.len()).collect();
        let mut pairs = Vec::with_capacity(inner.len());
        let mut open = vec![(self.root, false)];
        while let Some((at, ready)) = open.pop() {
            let Some((first, second)) = sorted[at] else { continue };
            if !ready {
                open.extend([(at, true), (second, false), (first, false)]);
                continue;
            }
            position[at] = self.operands + pairs.len();
            let (a, b) = (position[first], position[second]);
            pairs.push((a.min(b), a.max(b)));
        }
        pairs
    }
}

/// The cheapest way to contract a subset of leaves.
#[derive(Clone, Copy)]
struct Subset {
    cost: f64,
    /// One of its two parts.
    part: usize,
    /// The labels that others still need.
    labels: u128,
}

/// Dynamic programming over all subsets of at most [`LARGE`] leaves.
fn cheapest(sets: &[u128], output: u128, lens: &[f64], stored: &dyn Fn(f64) -> f64) -> Vec<Subset> {
    let full = (1usize << sets.len()) - 1;
    let size = |mut labels: u128| {
        let mut size = 1.0;
        while labels != 0 {
            size *= lens[labels.trailing_zeros() as usize];
            labels &= labels - 1;
        }
        size
    };
    let mut unions = vec![0u128; full + 1];
    for subset in 1..=full {
        unions[subset] = unions[subset & (subset - 1)] | sets[subset.trailing_zeros() as usize];
    }
    let mut best = vec![Subset { cost: 0.0, part: 0, labels: 0 }; full + 1];
    for subset in 1..=full {
        if subset.is_power_of_two() {
            best[subset].labels = unions[subset];
            continue;
        }
        let labels = unions[subset] & (unions[full & !subset] | output);
        let written = stored(size(labels));
        let mut found = Subset { cost: f64::INFINITY, part: 0, labels };
        let mut part = (subset - 1) & subset;
        while part > subset & !part {
            let (a, b) = (&best[part], &best[subset & !part]);
            let before = a.cost + b.cost + written;
            if before < found.cost {
                let cost = before + size(a.labels | b.labels);
                if cost < found.cost {
                    found = Subset { cost, part, labels };
                }
            }
            part = (part - 1) & subset;
        }
        best[subset] = found;
    }
    best
}
