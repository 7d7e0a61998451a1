//! The generator: cases are valid, reproducible, and use everything.

use std::collections::BTreeMap;

use einfall_equation::{Equation, Operand};
use einfall_tensor::DType;
use einfall_testing::features::{FEATURES, features};
use einfall_testing::generator::{MOST_TERMS, case_from_bytes, cases, malformed_case, random_case};
use einfall_testing::number::unit_roundoff;
use einfall_testing::random::Random;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

#[test]
fn every_case_has_a_result_and_prints_as_a_line_that_reads_back() {
    for seed in 0..400 {
        let case = random_case(seed);
        assert_eq!(case, random_case(seed));
        let line = case.to_string();
        assert!(!line.contains('\n'));
        assert_eq!(line.parse(), Ok(case.clone()), "{line}");
        if let Err(error) = case.expected() {
            panic!("{error}\n{line}");
        }
    }
}

#[test]
fn malformed_cases_are_refused_for_their_mistake() {
    for seed in 0..300 {
        let (case, class) = malformed_case(seed);
        match case.expected() {
            Ok(_) => panic!("no {class} error\n{case}"),
            Err(error) => assert_eq!(error.class(), class, "{error}\n{case}"),
        }
    }
}

#[test]
fn two_thousand_cases_use_every_feature() {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 0..2000 {
        for feature in features(&random_case(seed)) {
            *counts.entry(feature).or_default() += 1;
        }
    }
    let dtypes = DType::ALL.map(DType::name);
    let numbers = (1..=5).map(|n| format!("{n} operands")).chain((1..=8).map(|n| format!("{n} labels")));
    let wanted = FEATURES.iter().chain(&dtypes).map(|name| name.to_string()).chain(numbers);
    let rare: Vec<(String, usize)> = wanted
        .map(|name| (name.clone(), counts.get(&name).copied().unwrap_or(0)))
        .filter(|(_, count)| *count < 10)
        .collect();
    assert!(rare.is_empty(), "{rare:?}\nof {counts:?}");
}

#[test]
fn malformed_cases_have_every_mistake() {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..300 {
        *counts.entry(malformed_case(seed).1).or_default() += 1;
    }
    let classes = ["arguments", "cast", "no-size", "parse", "rank", "size", "table-dtype", "table-rank", "table-value"];
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), classes);
}

#[test]
fn cases_stay_small() {
    for seed in 0..2000 {
        let case = random_case(seed);
        let elements = case.arguments.iter().map(|spec| spec.shape.iter().product::<usize>()).max();
        assert!(elements <= Some(2 * MOST_TERMS), "{case}");
    }
}

#[test]
fn sizes_name_nothing_that_the_equation_lacks() {
    for seed in 0..2000 {
        let case = random_case(seed);
        let equation = Equation::parse(&case.equation).unwrap();
        let terms = || equation.operands().iter().chain(equation.output());
        for key in case.sizes.keys() {
            let label = terms().flat_map(Operand::labels).any(|label| label.to_string() == *key);
            let axis = equation.output().is_some_and(|output| output.axes.iter().any(|axis| axis.to_string() == *key));
            assert!(label || axis, "{case}");
        }
    }
}

/// What makes a comparison bit for bit fair: no order of summation can leave the whole numbers that are exact.
#[test]
fn sums_of_exact_cases_are_exact() {
    let mut checked = 0;
    for seed in 0..400 {
        let case = random_case(seed);
        let expected = case.expected().unwrap();
        let inexact = expected.dtype.is_float() || expected.dtype.is_complex();
        if case.is_exact() && inexact {
            let limit = 1.0 / unit_roundoff(expected.accumulator);
            assert!(expected.magnitudes.iter().all(|&size| size <= limit), "{case}");
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked}");
}

#[test]
fn exact_data_tells_elements_apart() {
    let constant = |seed: &u64| {
        let expected = random_case(*seed).expected().unwrap();
        expected.values.len() > 8 && expected.values.windows(2).all(|pair| pair[0].same(pair[1]))
    };
    let constant: Vec<u64> = (0..300).filter(constant).collect();
    // Empty sums, positions that are all left out, labels that are only broadcast.
    assert!(constant.len() < 45, "{}: {constant:?}", constant.len());
}

#[test]
fn failing_cases_shrink() {
    let mut runner = TestRunner::deterministic();
    let fails = |case: &einfall_testing::case::Case| case.equation.contains('[');
    let mut tree = std::iter::repeat_with(|| cases().new_tree(&mut runner).unwrap())
        .find(|tree| fails(&tree.current()) && tree.current().to_string().len() > 600)
        .unwrap();
    for _ in 0..20_000 {
        if !(if fails(&tree.current()) { tree.simplify() } else { tree.complicate() }) {
            break;
        }
    }
    let after = tree.current();
    assert!(after.arguments.len() <= 3 && after.to_string().len() < 250, "{after}");
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 100, failure_persistence: None, ..Default::default() })]
    #[test]
    fn shrinkable_cases_have_results(case in cases()) {
        if let Err(error) = case.expected() {
            panic!("{error}\n{case}");
        }
    }
}

#[test]
fn any_bytes_are_a_case_with_a_result() {
    let mut random = Random::new(11, 0);
    for len in 0..400 {
        let bytes: Vec<u8> = (0..len).map(|_| random.bits() as u8).collect();
        let case = case_from_bytes(&bytes);
        assert!(case.expected().is_ok(), "{case}");
        assert_eq!(case, case_from_bytes(&bytes));
    }
}
