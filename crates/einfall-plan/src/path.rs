//! The order in which operands are contracted, two at a time.
//!
//! *In*: the labels of each operand, their lengths, and the labels that must survive. *Out*: a [`Path`]: pairs of
//! positions in a growing list, the result of pair `i` being operand `operands + i`. Few operands are ordered exactly
//! (dynamic programming over subsets, minimising multiply-adds); more by greedy searches, whose
//! cheapest order is then mended a few neighbours at a time. Both are deterministic: the same equation always gets the same order, hence the same bits.

mod anneal;
mod greedy;
mod linear;
mod tree;

use std::collections::BTreeMap;

use crate::bind::plural;
use crate::problem::LabelId;

/// How to find the order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Order {
    /// Exact for few operands, else greedy.
    #[default]
    Auto,
    /// Left to right.
    LeftToRight,
    /// Greedy search.
    Greedy,
    /// Exact search, whatever it takes.
    Exact,
    /// Exact for few operands, else a long search by annealing, 0.03 to 0.5 s, 3 s for 2000 operands: for plans that are used
    /// often.
    Thorough,
    /// NumPy's form: each step takes these positions out of the list and appends its result.
    Given(Vec<Vec<usize>>),
}

/// Pairs of positions; the result of pair `i` has position `operands + i`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// The pairs in order.
    pub pairs: Vec<(usize, usize)>,
    /// How it was found: `exact`, `greedy`, `annealed`, `left to right` or `given`.
    pub method: &'static str,
}

/// Labels of each operand, the lengths of all labels, and the labels that must survive.
pub struct Network<'a> {
    /// Labels of each operand, each once.
    pub operands: &'a [Vec<LabelId>],
    /// Length by label.
    pub lens: &'a dyn Fn(LabelId) -> usize,
    /// Labels of the output, those of its tables included.
    pub output: &'a [LabelId],
}

/// Up to so many operands are ordered exactly: at most 3^8 splits.
const MOST_EXACT: usize = 8;

/// Finds an order.
///
/// # Errors
/// A sentence when a given path does not fit the operands.
pub fn find_path(network: &Network<'_>, order: &Order) -> Result<Path, String> {
    let operands = network.operands.len();
    match order {
        Order::Given(steps) => given(operands, steps),
        _ if operands <= 2 => Ok(left_to_right(operands, "pair")),
        Order::LeftToRight => Ok(left_to_right(operands, "left to right")),
        Order::Auto | Order::Thorough if operands <= MOST_EXACT => Ok(exact(network)),
        Order::Exact if operands <= 16 => Ok(exact(network)),
        Order::Thorough => Ok(Path { pairs: anneal::search(network, &tree::search(network)), method: "annealed" }),
        Order::Auto | Order::Greedy | Order::Exact => Ok(Path { pairs: tree::search(network), method: "greedy" }),
    }
}

/// The same order, its subtrees of a few operands ordered anew for other lengths, small results preferred.
pub(crate) fn mended(network: &Network<'_>, path: &Path, limit: usize) -> Path {
    Path { pairs: tree::mended(network, &path.pairs, limit as f64), method: path.method }
}

/// Shows orders that may need few elements at a time, some of them near the given one.
pub(crate) fn search_within(network: &Network<'_>, path: &Path, limit: usize, mut visit: impl FnMut(Path)) {
    tree::search_within(network, &path.pairs, limit as f64, |pairs| visit(Path { pairs, method: path.method }));
}

fn left_to_right(operands: usize, method: &'static str) -> Path {
    let pairs = (1..operands).map(|next| (if next == 1 { 0 } else { operands + next - 2 }, next)).collect();
    Path { pairs, method }
}

fn given(operands: usize, steps: &[Vec<usize>]) -> Result<Path, String> {
    let mut list: Vec<usize> = (0..operands).collect();
    let mut pairs = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let mut positions = step.clone();
        positions.sort_unstable();
        positions.dedup();
        let last = positions.last().copied();
        if positions.len() != step.len() || last.is_none_or(|last| last >= list.len()) {
            let left = plural(list.len(), "operand");
            return Err(format!("step {number} of the path, {step:?}, does not fit a list of {left}"));
        }
        let mut taken: Vec<usize> = positions.iter().map(|&at| list[at]).collect();
        list = (0..list.len()).filter(|at| !positions.contains(at)).map(|at| list[at]).collect();
        // A step of several operands is contracted left to right; of one, it is a no-op (a later step sums it).
        let mut result = taken.remove(0);
        for next in taken {
            pairs.push((result, next));
            result = operands + pairs.len() - 1;
        }
        list.push(result);
    }
    while list.len() > 1 {
        let (first, second) = (list.remove(0), list.remove(0));
        pairs.push((first, second));
        list.insert(0, operands + pairs.len() - 1);
    }
    Ok(Path { pairs, method: "given" })
}

/// Dynamic programming over subsets: the cheapest way to contract each subset, by multiply-adds.
fn exact(network: &Network<'_>) -> Path {
    let operands = network.operands.len();
    let full = (1usize << operands) - 1;
    let mut ids = BTreeMap::new();
    for &label in network.operands.iter().flatten().chain(network.output) {
        let next = ids.len();
        ids.entry(label).or_insert(next);
    }
    let words = ids.len().div_ceil(64);
    let set = |labels: &[LabelId]| {
        let mut bits = vec![0u64; words];
        labels.iter().for_each(|label| bits[ids[label] / 64] |= 1 << (ids[label] % 64));
        bits
    };
    let lens: Vec<f64> = {
        let mut lens = vec![1.0; ids.len()];
        ids.iter().for_each(|(&label, &at)| lens[at] = (network.lens)(label).max(1) as f64);
        lens
    };
    let size = |bits: &[u64]| -> f64 {
        (0..lens.len()).filter(|at| bits[at / 64] >> (at % 64) & 1 == 1).map(|at| lens[at]).product()
    };
    let sets: Vec<Vec<u64>> = network.operands.iter().map(|labels| set(labels)).collect();
    let output = set(network.output);
    let union_of = |subset: usize| {
        (0..operands).filter(|at| subset >> at & 1 == 1).fold(vec![0u64; words], |mut bits, at| {
            bits.iter_mut().zip(&sets[at]).for_each(|(b, s)| *b |= s);
            bits
        })
    };
    let unions: Vec<Vec<u64>> = (0..=full).map(union_of).collect();
    // What survives of a subset: labels that the rest or the output still needs.
    let kept: Vec<Vec<u64>> = (0..=full)
        .map(|subset| {
            let rest = &unions[full & !subset];
            (0..words).map(|w| unions[subset][w] & (rest[w] | output[w])).collect()
        })
        .collect();
    let mut best: Vec<(f64, usize)> = vec![(f64::INFINITY, 0); full + 1];
    (0..operands).for_each(|at| best[1 << at] = (0.0, 0));
    for subset in 1..=full {
        if subset.count_ones() < 2 {
            continue;
        }
        let mut part = (subset - 1) & subset;
        while part > subset & !part {
            let other = subset & !part;
            let loops: Vec<u64> = {
                let of = |s: usize| if s.count_ones() == 1 { &sets[s.trailing_zeros() as usize] } else { &kept[s] };
                of(part).iter().zip(of(other)).map(|(a, b)| a | b).collect()
            };
            // Multiply-adds, and a little for writing the result, so that equal work prefers small intermediates.
            let cost = best[part].0 + best[other].0 + size(&loops) + 0.5 * size(&kept[subset]);
            if cost < best[subset].0 {
                best[subset] = (cost, part);
            }
            part = (part - 1) & subset;
        }
    }
    let mut pairs = Vec::new();
    emit_exact(full, &best, operands, &mut pairs);
    Path { pairs, method: "exact" }
}

fn emit_exact(subset: usize, best: &[(f64, usize)], operands: usize, pairs: &mut Vec<(usize, usize)>) -> usize {
    if subset.count_ones() == 1 {
        return subset.trailing_zeros() as usize;
    }
    let part = best[subset].1;
    let (a, b) = (emit_exact(part, best, operands, pairs), emit_exact(subset & !part, best, operands, pairs));
    pairs.push((a.min(b), a.max(b)));
    operands + pairs.len() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(operands: &[&str], output: &str, order: Order) -> Path {
        let ids = |text: &str| text.bytes().map(|b| LabelId(u32::from(b))).collect::<Vec<_>>();
        let operands: Vec<Vec<LabelId>> = operands.iter().map(|text| ids(text)).collect();
        // `a` is long, later letters are shorter.
        let lens = |label: LabelId| 2 + 4 * (b'h' as usize - label.0 as usize);
        find_path(&Network { operands: &operands, lens: &lens, output: &ids(output) }, &order).unwrap()
    }

    #[test]
    fn exact_search_contracts_the_small_end_of_a_chain_first() {
        let path = network(&["ab", "bc", "cd", "dh"], "ah", Order::Auto);
        assert_eq!(path.pairs, [(2, 3), (1, 4), (0, 5)]);
        assert_eq!(path.method, "exact");
    }

    #[test]
    fn every_order_uses_each_operand_once() {
        let operands = ["ab", "bc", "cd", "de", "ef", "fg", "ga", "ae", "bf", "h", ""];
        for order in [Order::Auto, Order::Greedy, Order::LeftToRight, Order::Given(vec![vec![1, 3, 5], vec![0]])] {
            let path = network(&operands, "ah", order);
            let mut used: Vec<usize> = path.pairs.iter().flat_map(|&(a, b)| [a, b]).collect();
            used.sort_unstable();
            assert_eq!(used, (0..2 * operands.len() - 2).collect::<Vec<_>>(), "{path:?}");
            for (at, &(a, b)) in path.pairs.iter().enumerate() {
                assert!(a.max(b) < operands.len() + at, "pair {at} uses a later result: {path:?}");
            }
        }
    }

    #[test]
    fn given_paths_are_checked() {
        let operands = vec![vec![], vec![], vec![]];
        let network = Network { operands: &operands, lens: &|_| 1, output: &[] };
        for bad in [vec![vec![0, 3]], vec![vec![0, 0]], vec![vec![]], vec![vec![0, 1], vec![0, 1], vec![1]]] {
            assert!(find_path(&network, &Order::Given(bad.clone())).is_err(), "{bad:?}");
        }
        let good = find_path(&network, &Order::Given(vec![vec![1, 2], vec![0, 1]])).unwrap();
        assert_eq!(good.pairs, [(1, 2), (0, 3)]);
    }

    /// A matrix chain whose sizes are far from even.
    fn chain(matrices: usize) -> (Vec<Vec<LabelId>>, Vec<LabelId>) {
        let operands = (0..matrices as u32).map(|at| vec![LabelId(at), LabelId(at + 1)]).collect();
        (operands, vec![LabelId(0), LabelId(matrices as u32)])
    }

    fn multiply_adds(
        operands: &[Vec<LabelId>],
        output: &[LabelId],
        lens: &dyn Fn(LabelId) -> usize,
        path: &Path,
    ) -> f64 {
        let mut list: Vec<Vec<LabelId>> = operands.to_vec();
        let mut gone = vec![false; list.len()];
        let mut total = 0.0;
        for &(a, b) in &path.pairs {
            (gone[a], gone[b]) = (true, true);
            let mut all: Vec<LabelId> = list[a].iter().chain(&list[b]).copied().collect();
            all.sort_unstable();
            all.dedup();
            total += all.iter().map(|&label| lens(label) as f64).product::<f64>();
            let needed = |label: &LabelId| {
                output.contains(label) || list.iter().zip(&gone).any(|(labels, gone)| !gone && labels.contains(label))
            };
            let kept = all.into_iter().filter(needed).collect();
            list.push(kept);
            gone.push(false);
        }
        total
    }

    #[test]
    fn searched_chains_are_nearly_as_cheap_as_the_best() {
        let lens = |label: LabelId| 8 << ((label.0.wrapping_mul(2_654_435_761) >> 20) % 6);
        for matrices in [10, 25, 60] {
            let (operands, output) = chain(matrices);
            // The textbook's dynamic programming over intervals gives the cheapest order of a chain.
            let size = |at: usize| lens(LabelId(at as u32)) as f64;
            let mut best = vec![vec![0.0f64; matrices + 1]; matrices + 1];
            for width in 2..=matrices {
                for from in 0..=matrices - width {
                    let to = from + width;
                    let split = |at: usize| best[from][at] + best[at][to] + size(from) * size(at) * size(to);
                    best[from][to] = (from + 1..to).map(split).fold(f64::INFINITY, f64::min);
                }
            }
            let network = Network { operands: &operands, lens: &lens, output: &output };
            let path = find_path(&network, &Order::Greedy).unwrap();
            let found = multiply_adds(&operands, &output, &lens, &path);
            assert!(found <= 1.1 * best[0][matrices], "{matrices}: {found} against {}", best[0][matrices]);
        }
    }

    #[test]
    fn a_long_search_finds_cheaper_orders_and_always_the_same() {
        // A grid whose neighbours share labels of lengths 2 to 4.
        let (rows, columns) = (7, 8);
        let down = |row: u32, column: u32| LabelId(row * columns + column);
        let right = |row: u32, column: u32| LabelId(1000 + row * columns + column);
        let mut operands = Vec::new();
        for row in 0..rows {
            for column in 0..columns {
                let mut labels = vec![down(row, column), right(row, column)];
                labels.extend((row > 0).then(|| down(row - 1, column)));
                labels.extend((column > 0).then(|| right(row, column - 1)));
                operands.push(labels);
            }
        }
        let lens = |label: LabelId| 2 + label.0 as usize * 7919 % 3;
        let network = Network { operands: &operands, lens: &lens, output: &[] };
        let find = |order: Order| find_path(&network, &order).unwrap();
        let (short, long) = (find(Order::Auto), find(Order::Thorough));
        let work = |path: &Path| multiply_adds(&operands, &[], &lens, path);
        assert!(work(&long) < 0.9 * work(&short), "{} against {}", work(&long), work(&short));
        assert_eq!((find(Order::Thorough).pairs, long.method), (long.pairs, "annealed"));
    }

    #[test]
    fn orders_of_thousands_of_operands_use_each_once() {
        let (operands, output) = chain(2000);
        let network = Network { operands: &operands, lens: &|label| 2 + label.0 as usize % 3, output: &output };
        let path = find_path(&network, &Order::Auto).unwrap();
        let mut used: Vec<usize> = path.pairs.iter().flat_map(|&(a, b)| [a, b]).collect();
        used.sort_unstable();
        assert_eq!(used, (0..2 * operands.len() - 2).collect::<Vec<_>>());
        assert!(path.pairs.iter().enumerate().all(|(at, &(a, b))| a.max(b) < operands.len() + at));
    }

    #[test]
    fn greedy_is_the_same_every_time() {
        let operands = ["ab", "bc", "cd", "de", "ef", "fg", "ga", "ae", "bf", "ch", "hd"];
        let first = network(&operands, "", Order::Greedy);
        for _ in 0..50 {
            assert_eq!(network(&operands, "", Order::Greedy), first);
        }
    }
}
