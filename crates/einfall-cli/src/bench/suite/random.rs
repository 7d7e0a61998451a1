//! Einsums that nobody thought of: equations, lengths and types drawn at random.
//!
//! In: how many, and a seed. Out: as many cases of dense operands, the same for the same seed on every machine, and the
//! first ones the same however many are asked for.

use std::collections::BTreeMap;

use einfall::DType;

use super::cases::Dense;
use crate::bench::numbers::Random;

/// An array has at most so many elements: 16 MB of f32.
const MOST_ELEMENTS: u64 = 1 << 22;
/// All labels together take at most so many values: 2 GFLOP of two operands.
const MOST_VALUES: u64 = 1 << 30;
/// And, by turns, at least so many: small problems measure the call, large ones the loops.
const LEAST_VALUES: [u64; 4] = [1, 1 << 14, 1 << 18, 1 << 22];
/// Lengths go up to 4096, small ones as often as large ones.
const MOST_BITS: f64 = 12.0;
/// Labels that a drawn equation has at most, of one, two and three operands.
const MOST_LABELS: [usize; 3] = [5, 7, 7];

/// The cases, named `random/0` and so on.
pub(super) fn cases(count: usize, seed: u64) -> Vec<Dense> {
    (0..count).map(|number| case(number, seed)).collect()
}

fn case(number: usize, seed: u64) -> Dense {
    let mut random = Random::new(seed, number as u64);
    loop {
        if let Some((equation, sizes)) = drawn(&mut random, LEAST_VALUES[number % LEAST_VALUES.len()]) {
            let dtype = match random.below(20) {
                0..14 => DType::F32,
                14 | 15 => DType::F64,
                16 => DType::BF16,
                17 => DType::F16,
                18 => DType::C64,
                _ => DType::I32,
            };
            return Dense { name: format!("random/{number}"), equation, sizes, dtype, source: "random".into() };
        }
    }
}

/// An equation and the lengths of its labels, unless they came out too large or too small, or a term has no label.
fn drawn(random: &mut Random, least: u64) -> Option<(String, BTreeMap<String, usize>)> {
    let operands = [1, 1, 2, 2, 2, 2, 2, 3][random.below(8)];
    let labels: Vec<char> = ('a'..='z').take(1 + random.below(MOST_LABELS[operands - 1])).collect();
    let mut terms = vec![Vec::new(); operands];
    let (mut output, mut sizes, mut values) = (Vec::new(), BTreeMap::new(), 1);
    for &label in &labels {
        let len = (random.uniform() * MOST_BITS).exp2() as usize;
        sizes.insert(label.to_string(), len);
        values = u64::saturating_mul(values, len as u64);
        // Which operands have it, at least one; two share most of theirs.
        let holders = match random.below(3) {
            0 => (1 << operands) - 1,
            _ => 1 + random.below((1 << operands) - 1),
        };
        (0..operands).filter(|at| holders >> at & 1 == 1).for_each(|at| terms[at].push(label));
        // A label of one operand is seldom summed alone.
        let summed =
            if operands > 1 && holders.is_power_of_two() { random.below(8) == 0 } else { random.below(2) == 0 };
        if !summed {
            output.push(label);
        }
    }
    // Now and then a diagonal.
    if operands == 1 && random.below(8) == 0 {
        terms[0].push(labels[0]);
    }
    for term in terms.iter_mut().chain([&mut output]) {
        let count = term.len();
        random.first(term, count);
    }
    let elements = |term: &Vec<char>| term.iter().map(|label| sizes[&label.to_string()] as u64).product::<u64>();
    let fits = (least..=MOST_VALUES).contains(&values)
        && terms.iter().chain([&output]).all(|term| elements(term) <= MOST_ELEMENTS);
    let text = |term: &Vec<char>| term.iter().collect::<String>();
    let inputs: Vec<String> = terms.iter().map(text).collect();
    let equation = format!("{}->{}", inputs.join(","), text(&output));
    (fits && terms.iter().all(|term| !term.is_empty())).then_some((equation, sizes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_cases_of_every_kind() {
        let (many, few) = (cases(500, 3), cases(20, 3));
        let told = |case: &Dense| (case.equation.clone(), case.sizes.clone(), case.dtype);
        assert!(many.iter().zip(&few).all(|(a, b)| told(a) == told(b)));
        assert!(cases(20, 4).iter().zip(&few).any(|(a, b)| told(a) != told(b)));
        let count = |is: &dyn Fn(&Dense) -> bool| many.iter().filter(|case| is(case)).count();
        for operands in 1..=3 {
            assert!(count(&|case| case.equation.matches(',').count() + 1 == operands) > 20, "{operands}");
        }
        for dtype in [DType::F32, DType::F64, DType::BF16, DType::C64, DType::I32] {
            assert!(count(&|case| case.dtype == dtype) > 5, "{dtype}");
        }
        let largest = many.iter().flat_map(|case| case.sizes.values()).max();
        assert!(largest.is_some_and(|&len| (2048..=4096).contains(&len)), "{largest:?}");
    }
}
