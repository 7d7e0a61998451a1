//! Slicing: labels whose values run in an outer loop, so that intermediate results stay within a limit.

use std::collections::BTreeMap;

use super::PlanError;
use crate::path::{Network, Path};
use crate::problem::LabelId;

/// Slices labels, largest saving first, until every intermediate result has at most `limit` elements.
///
/// Deterministic: among labels of the largest intermediate result, the longest; on a tie, the first.
pub(super) fn choose_slices(
    network: &Network<'_>,
    path: &Path,
    limit: Option<usize>,
) -> Result<Vec<LabelId>, PlanError> {
    let Some(limit) = limit else { return Ok(Vec::new()) };
    let intermediates = intermediates(network, path);
    let mut sliced: Vec<LabelId> = Vec::new();
    loop {
        let elements = |labels: &Vec<LabelId>| -> u128 {
            let lens =
                labels.iter().filter(|label| !sliced.contains(label)).map(|&label| (network.lens)(label) as u128);
            lens.fold(1, u128::saturating_mul)
        };
        let Some((needed, largest)) = intermediates.iter().map(|labels| (elements(labels), labels)).max_by_key(|e| e.0)
        else {
            return Ok(sliced);
        };
        if needed <= limit as u128 {
            let mut lens = sliced.iter().map(|&label| (network.lens)(label));
            let slices = lens.try_fold(1usize, usize::checked_mul);
            return slices.map(|_| sliced).ok_or(PlanError::TooManySlices { limit });
        }
        let candidates = largest.iter().filter(|label| !sliced.contains(label) && (network.lens)(**label) > 1);
        let longest = candidates.max_by_key(|&&label| ((network.lens)(label), std::cmp::Reverse(label))).copied();
        sliced.push(longest.ok_or(PlanError::MemoryLimit { needed, limit })?);
    }
}

/// Labels of every intermediate result of a path; the last pair writes the output and is not one.
fn intermediates(network: &Network<'_>, path: &Path) -> Vec<Vec<LabelId>> {
    let mut uses: BTreeMap<LabelId, usize> = BTreeMap::new();
    for &label in network.operands.iter().flatten().chain(network.output) {
        *uses.entry(label).or_default() += 1;
    }
    let mut list: Vec<Vec<LabelId>> = network.operands.to_vec();
    for &(a, b) in &path.pairs {
        let mut labels = list[a].clone();
        labels.extend(&list[b]);
        for label in &labels {
            *uses.get_mut(label).expect("counted") -= 1;
        }
        labels.sort_unstable();
        labels.dedup();
        labels.retain(|label| uses[label] > 0);
        for label in &labels {
            *uses.get_mut(label).expect("counted") += 1;
        }
        list.push(labels);
    }
    list.pop();
    list.split_off(network.operands.len().min(list.len()))
}
