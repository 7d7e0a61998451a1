//! Slicing: labels whose values run in an outer loop, so that intermediate results stay within a limit together.

use std::collections::BTreeMap;

use super::PlanError;
use crate::path::{Network, Path, mended, search_within};
use crate::problem::LabelId;

/// Slices labels until the intermediate results that live at the same time have at most `limit` elements together, and
/// orders the path anew for what is left. The path may change; `fixed` keeps it.
///
/// An order that does not fit is sliced beside others that need less memory; the one is taken that needs the fewest
/// multiply-adds in all its slices. Deterministic; on a tie the first.
pub(super) fn choose_slices(
    network: &Network<'_>,
    path: &mut Path,
    limit: Option<usize>,
    fixed: bool,
) -> Result<Vec<LabelId>, PlanError> {
    let Some(limit) = limit else { return Ok(Vec::new()) };
    if fixed || Steps::of(network, path).peak(network, &[]).elements <= limit as f64 {
        return Ok(slices_of(network, path.clone(), limit, fixed, f64::INFINITY)?.map_or_else(Vec::new, |it| it.sliced));
    }
    let mut best = slices_of(network, path.clone(), limit, fixed, f64::INFINITY);
    search_within(network, path, limit, |other| {
        let most = best.as_ref().ok().and_then(Option::as_ref).map_or(f64::INFINITY, |found| found.work);
        match slices_of(network, other, limit, fixed, most) {
            Ok(Some(found)) => best = Ok(Some(found)),
            Err(error) if best.is_err() => best = best.clone().or(Err(error)),
            Ok(None) | Err(_) => {}
        }
    });
    let found = best?.expect("the first order is sliced whatever it costs");
    *path = found.path;
    Ok(found.sliced)
}

/// An order with its slices.
#[derive(Clone)]
struct Sliced {
    path: Path,
    sliced: Vec<LabelId>,
    /// Multiply-adds of all slices.
    work: f64,
}

/// Slices one order; `None` once that needs `most` multiply-adds.
///
/// The label that is sliced is one of those that live where most elements do: the one that adds the least work for what
/// it saves, as in Gray and Kourtis, "Hyper-optimized tensor network contraction" (2021).
fn slices_of(
    network: &Network<'_>,
    mut path: Path,
    limit: usize,
    fixed: bool,
    most: f64,
) -> Result<Option<Sliced>, PlanError> {
    let mut sliced: Vec<LabelId> = Vec::new();
    let mut steps = Steps::of(network, &path);
    loop {
        let peak = steps.peak(network, &sliced);
        let work = steps.work(network, &sliced);
        let slices: f64 = sliced.iter().map(|&label| (network.lens)(label) as f64).product();
        // Work beyond all numbers is no reason where nothing cheaper is known.
        if most.is_finite() && work * slices >= most {
            return Ok(None);
        }
        if slices > usize::MAX as f64 {
            return Err(PlanError::TooManySlices { limit });
        }
        if peak.elements <= limit as f64 {
            let mut lens = sliced.iter().map(|&label| (network.lens)(label));
            let counted = lens.try_fold(1usize, usize::checked_mul).ok_or(PlanError::TooManySlices { limit })?;
            return Ok(Some(Sliced { path, sliced, work: work * counted as f64 }));
        }
        let mut labels: Vec<LabelId> = peak.live.iter().flat_map(|tensor| tensor.iter().copied()).collect();
        labels.sort_unstable();
        labels.dedup();
        labels.retain(|label| !sliced.contains(label) && (network.lens)(*label) > 1);
        let mut best: Option<(f64, LabelId)> = None;
        for label in labels {
            sliced.push(label);
            let saved = peak.elements / peak.live.iter().map(|tensor| size(network, &sliced, tensor)).sum::<f64>();
            let more = steps.work(network, &sliced) * (network.lens)(label) as f64 / work;
            sliced.pop();
            // More work for each halving; a label that changes nothing where it is tight has nothing to offer.
            let price = more.max(1.0).ln() / saved.ln().max(1e-9);
            if best.is_none_or(|(least, _)| price < least) {
                best = Some((price, label));
            }
        }
        let Some((_, label)) = best else {
            return Err(PlanError::MemoryLimit { needed: peak.elements as u128, limit });
        };
        sliced.push(label);
        if !fixed {
            let lens = |label: LabelId| if sliced.contains(&label) { 1 } else { (network.lens)(label) };
            let rest = Network { operands: network.operands, lens: &lens, output: network.output };
            let other = mended(&rest, &path, limit);
            let changed = Steps::of(network, &other);
            let tight = steps.peak(network, &sliced).elements.max(limit as f64);
            let fits = changed.peak(network, &sliced).elements <= tight;
            if fits && changed.work(network, &sliced) < steps.work(network, &sliced) {
                (path, steps) = (other, changed);
            }
        }
    }
}

/// Elements of a tensor in one slice.
fn size(network: &Network<'_>, sliced: &[LabelId], labels: &[LabelId]) -> f64 {
    let kept = labels.iter().filter(|label| !sliced.contains(label));
    kept.map(|&label| (network.lens)(label) as f64).product()
}

/// What the pairs of a path make, and what they read.
struct Steps {
    /// The labels of all tensors: operands, where a sum comes before they meet others, and results.
    stored: Vec<Option<Vec<LabelId>>>,
    pairs: Vec<(usize, usize)>,
    /// Labels that a pair runs over.
    loops: Vec<Vec<LabelId>>,
    operands: usize,
}

/// Where most elements live.
struct Peak<'a> {
    elements: f64,
    live: Vec<&'a Vec<LabelId>>,
}

impl Steps {
    fn of(network: &Network<'_>, path: &Path) -> Steps {
        let mut uses: BTreeMap<LabelId, usize> = BTreeMap::new();
        for &label in network.operands.iter().flatten().chain(network.output) {
            *uses.entry(label).or_default() += 1;
        }
        let operands = network.operands.len();
        let mut stored: Vec<Option<Vec<LabelId>>> = Vec::with_capacity(operands + path.pairs.len());
        let mut labels: Vec<Vec<LabelId>> = Vec::with_capacity(operands + path.pairs.len());
        for operand in network.operands {
            let lone = |label: &LabelId| uses[label] == 1 && (network.lens)(*label) != 1;
            let summed = operands > 1 && operand.iter().any(lone);
            let rest: Vec<LabelId> = operand.iter().copied().filter(|label| !lone(label)).collect();
            stored.push(summed.then(|| rest.clone()));
            labels.push(rest);
        }
        let mut loops = Vec::with_capacity(path.pairs.len());
        for (number, &(a, b)) in path.pairs.iter().enumerate() {
            let mut all = labels[a].clone();
            all.extend(&labels[b]);
            for label in &all {
                *uses.get_mut(label).expect("counted") -= 1;
            }
            all.sort_unstable();
            all.dedup();
            loops.push(all.clone());
            all.retain(|label| uses[label] > 0);
            for label in &all {
                *uses.get_mut(label).expect("counted") += 1;
            }
            // The last pair writes the output.
            stored.push((number + 1 < path.pairs.len()).then(|| all.clone()));
            labels.push(all);
        }
        Steps { stored, pairs: path.pairs.clone(), loops, operands }
    }

    /// Multiply-adds of one slice.
    fn work(&self, network: &Network<'_>, sliced: &[LabelId]) -> f64 {
        self.loops.iter().map(|labels| size(network, sliced, labels)).sum()
    }

    /// The pair during which most elements live.
    fn peak(&self, network: &Network<'_>, sliced: &[LabelId]) -> Peak<'_> {
        let sizes: Vec<f64> = self
            .stored
            .iter()
            .map(|labels| labels.as_ref().map_or(0.0, |labels| size(network, sliced, labels)))
            .collect();
        let (mut live, mut most, mut at) = (0.0, 0.0, None);
        for (number, &(a, b)) in self.pairs.iter().enumerate() {
            let result = self.operands + number;
            // Operands are summed just before they meet another.
            let made = [a, b].into_iter().filter(|&tensor| tensor < self.operands).map(|tensor| sizes[tensor]);
            live += made.sum::<f64>() + sizes[result];
            if live > most {
                (most, at) = (live, Some(number));
            }
            live -= sizes[a] + sizes[b];
        }
        let Some(at) = at else { return Peak { elements: 0.0, live: Vec::new() } };
        let mut used = vec![false; self.stored.len()];
        for &(a, b) in &self.pairs[..at] {
            (used[a], used[b]) = (true, true);
        }
        let (a, b) = self.pairs[at];
        let lives = |&tensor: &usize| match tensor {
            operand if operand < self.operands => operand == a || operand == b,
            result => result <= self.operands + at && !used[result],
        };
        let live = (0..self.stored.len()).filter(lives).filter_map(|tensor| self.stored[tensor].as_ref()).collect();
        Peak { elements: most, live }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::{Order, find_path};

    type Case = (Vec<Vec<LabelId>>, Vec<usize>);

    /// A lattice of four rows, with bonds of several lengths.
    fn strip(columns: u32) -> Case {
        let mut operands = vec![Vec::new(); 4 * columns as usize];
        let mut lens = Vec::new();
        let mut bond = |a: u32, b: u32| {
            let label = LabelId(lens.len() as u32);
            lens.push([2, 4, 3][lens.len() % 3]);
            operands[a as usize].push(label);
            operands[b as usize].push(label);
        };
        for row in 0..4 {
            for column in 0..columns {
                let at = row * columns + column;
                if column + 1 < columns {
                    bond(at, at + 1);
                }
                if row < 3 {
                    bond(at, at + columns);
                }
            }
        }
        (operands, lens)
    }

    /// A tree whose nodes have up to four neighbours, with bonds of several lengths.
    fn tree(nodes: u32) -> Case {
        let mut operands = vec![Vec::new(); nodes as usize];
        for node in 1..nodes {
            let parent = (node - 1) / 3;
            operands[node as usize].push(LabelId(node));
            operands[parent as usize].push(LabelId(node));
        }
        (operands, (0..nodes).map(|node| [7, 12, 5, 9][node as usize % 4]).collect())
    }

    /// What slicing the order found without a limit costs under this part of what lives there, and the choice.
    fn limited((operands, lens): &Case, part: f64) -> (f64, Sliced) {
        let lens = |label: LabelId| lens[label.0 as usize];
        let network = Network { operands, lens: &lens, output: &[] };
        let free = find_path(&network, &Order::Auto).expect("an order");
        let limit = (Steps::of(&network, &free).peak(&network, &[]).elements * part) as usize;
        let mut path = free.clone();
        let sliced = choose_slices(&network, &mut path, Some(limit), false).expect("it can be sliced");
        let changed = Steps::of(&network, &path);
        assert!(changed.peak(&network, &sliced).elements <= limit as f64);
        let slices: f64 = sliced.iter().map(|&label| lens(label) as f64).product();
        let work = changed.work(&network, &sliced) * slices;
        let alone = slices_of(&network, free, limit, false, f64::INFINITY);
        (alone.ok().flatten().map_or(f64::INFINITY, |found| found.work), Sliced { path, sliced, work })
    }

    #[test]
    fn orders_that_need_little_memory_are_found_again_and_again() {
        for (case, gain) in [(strip(20), 2.0), (strip(40), 3.0), (tree(40), 1.0)] {
            for part in [1.0 / 2.0, 1.0 / 4.0] {
                let (alone, found) = limited(&case, part);
                assert!(alone >= gain * found.work, "{part}: {alone} against {}", found.work);
                let again = limited(&case, part).1;
                assert_eq!((again.path, again.sliced), (found.path, found.sliced));
            }
        }
    }

    #[test]
    fn work_beyond_all_numbers_is_refused() {
        // Every operand shares labels of length 2^20 with six others, near and far.
        let nodes = 150;
        let mut operands = vec![Vec::new(); nodes];
        for (number, step) in [1, 37, 61].into_iter().enumerate() {
            for node in 0..nodes {
                let label = LabelId((number * nodes + node) as u32);
                operands[node].push(label);
                operands[(node + step) % nodes].push(label);
            }
        }
        let network = Network { operands: &operands, lens: &|_| 1 << 20, output: &[] };
        for order in [Order::Auto, Order::Thorough] {
            let mut path = find_path(&network, &order).expect("an order");
            assert!(Steps::of(&network, &path).work(&network, &[]).is_infinite());
            let error = choose_slices(&network, &mut path, Some(1000), false).expect_err("no slices are enough");
            assert!(matches!(error, PlanError::TooManySlices { .. }), "{error}");
        }
    }
}
