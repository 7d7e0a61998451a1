//! Long searches: orders annealed by turning neighbours around, for plans that are used often.
//!
//! *In*: a network of more operands than can be ordered exactly. *Out*: the cheapest order found. The length is a number of
//! moves, a fixed seed draws them, and no clock is read: the same network always gets the same order. 0.03 to 0.5 s,
//! 3 s for 2000 operands.
//!
//! Method: simulated annealing (Kirkpatrick, Gelatt and Vecchi, 1983) over contraction trees, whose moves turn a node, one of
//! its children and a grandchild around, as in Kalachev, Panteleev and Yung, "Multi-tensor contraction for XEB verification"
//! (2021); between and after, subtrees are ordered exactly.

use super::Network;
use super::greedy::{Taste, greedy, mixed};
use super::linear::{ends, linear};
use super::tree::{LARGE, Leaves, Node, SMALL, Tree};

/// Greedy orders that are looked at, and of these and the linear ones so many that are mended.
const GREEDY: usize = 48;
const MENDED: usize = 6;
/// Orders that are annealed, and moves for all of them.
const ANNEALED: usize = 2;
const MOVES: usize = 400_000;
/// Temperatures, as shares of what the whole order costs: a move that costs so much more is taken in one of e cases.
const HOT: f64 = 0.02;
const COLD: f64 = 1e-6;

/// The cheapest order that a long search finds; `first` is one that is known.
pub(super) fn search(network: &Network<'_>, first: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let leaves = Leaves::new(network);
    let greedy_orders = (0..GREEDY).map(|number| {
        let alpha = [1.0, 0.5, 0.0, 2.0][number % 4];
        let temperature = [0.0, 0.1, 0.3, 1.0][number / 4 % 4];
        greedy(&leaves, Taste { alpha, temperature, seed: number as u64 }).0
    });
    let linear_orders = ends(&leaves).map(|start| linear(&leaves, start));
    let all = std::iter::once(first.to_vec()).chain(linear_orders).chain(greedy_orders);
    let mut found: Vec<Tree> = all.map(|pairs| Tree::new(&leaves, &pairs)).collect();
    let sort = |found: &mut Vec<Tree>, most: usize| {
        found.sort_by(|a, b| a.cost().total_cmp(&b.cost()));
        found.truncate(most);
    };
    sort(&mut found, MENDED);
    found.iter_mut().for_each(|tree| settle(tree, &leaves));
    sort(&mut found, ANNEALED);
    let moves = MOVES / found.len();
    for (number, tree) in found.iter_mut().enumerate() {
        anneal(tree, &leaves, moves, number as u64);
        settle(tree, &leaves);
    }
    sort(&mut found, 1);
    found.pop().expect("the first order").pairs(&leaves)
}

/// Orders subtrees exactly until that gains less than a hundredth.
fn settle(tree: &mut Tree, leaves: &Leaves) {
    for most in [SMALL, LARGE] {
        loop {
            let before = tree.cost();
            tree.mend(leaves, most);
            if tree.cost() >= 0.99 * before {
                break;
            }
        }
    }
}

/// Turns nodes around, at first whatever that costs, and keeps the cheapest tree.
fn anneal(tree: &mut Tree, leaves: &Leaves, moves: usize, seed: u64) {
    let inner = tree.inner_nodes();
    let mut number = seed << 32;
    let mut random = || {
        number += 1;
        mixed(number)
    };
    let mut cost = tree.cost();
    let (mut best, mut least) = (tree.clone(), cost);
    let sweeps = (moves / inner.len().max(1)).max(1);
    for sweep in 0..sweeps {
        let temperature = HOT * (COLD / HOT).powf(sweep as f64 / sweeps as f64) * cost;
        for &at in &inner {
            let drawn = random();
            let uniform = (drawn >> 11) as f64 / (1u64 << 53) as f64;
            // A higher price is accepted up to here.
            let most = -temperature * uniform.max(1e-300).ln();
            tree.turn(leaves, at, drawn & 1 == 1, drawn & 2 == 2, most);
        }
        cost = tree.cost();
        if cost < least {
            (best, least) = (tree.clone(), cost);
        }
    }
    *tree = best;
}

impl Tree {
    /// Makes ((x z) y) of ((x y) z) at a node, where that costs at most `most` more. `swapped` chooses which child is opened,
    /// `other` which of its children stays there.
    fn turn(&mut self, leaves: &Leaves, at: usize, swapped: bool, other: bool, most: f64) {
        let Some((a, b)) = self.nodes[at].children else { return };
        let (opened, z) = if swapped { (b, a) } else { (a, b) };
        let Some((x, y)) = self.nodes[opened].children else { return };
        let (x, y) = if other { (y, x) } else { (x, y) };
        let [top, lx, ly, lz] = [at, x, y, z].map(|node| &self.nodes[node].labels);
        let needed = top.joined(ly, |_, _| true);
        let all = lx.joined(lz, |_, _| true);
        let labels = all.within(&needed);
        let made = leaves.size(all.iter()) + leaves.stored(leaves.size(labels.iter()));
        let above = leaves.size(labels.joined(ly, |_, _| true).iter()) + leaves.stored(leaves.size(top.iter()));
        if made + above - self.nodes[opened].cost - self.nodes[at].cost > most {
            return;
        }
        self.nodes[opened] = Node { children: Some((x, z)), labels, cost: made };
        self.nodes[at].children = Some((opened, y));
        self.nodes[at].cost = above;
    }
}
