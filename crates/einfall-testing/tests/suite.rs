//! The suites, and the oracle against results worked out by hand.

use std::collections::BTreeSet;

use einfall_equation::Equation;
use einfall_testing::number::Scalar;
use einfall_testing::suite::{Expectation, Kind, contractions, lookups, regressions};

#[test]
fn the_oracle_meets_every_expectation() {
    let entries = regressions();
    assert!(entries.len() >= 200, "{}", entries.len());
    for entry in entries {
        let outcome = entry.case.expected();
        match (&outcome, &entry.expect) {
            (Ok(_), Expectation::Ok) => {}
            (Err(error), Expectation::Error(text)) if error.to_string().contains(text) => {}
            _ => panic!("{}\n{}\nexpected {:?}, got {outcome:?}", entry.about, entry.case, entry.expect),
        }
    }
}

#[test]
fn the_oracle_agrees_with_results_worked_out_by_hand() {
    let mut checked = 0;
    for entry in regressions() {
        let Some(literal) = entry.result else { continue };
        let array = entry.case.expected().unwrap();
        let values: Vec<f64> = (0..array.values.len())
            .flat_map(|flat| match array.rounded(flat) {
                Scalar::Complex(value) => vec![value.re, value.im],
                other => vec![other.real()],
            })
            .collect();
        assert_eq!(array.shape, literal.shape, "{}", entry.about);
        let same = |(a, b): (&f64, &f64)| a == b || a.is_nan() && b.is_nan();
        let all = values.len() == literal.values.len() && values.iter().zip(&literal.values).all(same);
        assert!(all, "{}: {values:?}, by hand {:?}", entry.about, literal.values);
        checked += 1;
    }
    assert!(checked >= 40, "{checked}");
}

#[test]
fn entries_are_told_apart_and_read_back() {
    let mut seen = BTreeSet::new();
    for entry in regressions() {
        assert!(seen.insert((entry.case.source.clone(), entry.about.clone())), "twice: {}", entry.about);
        let line = entry.case.to_string();
        let back = line.parse::<einfall_testing::case::Case>().unwrap();
        assert_eq!(back.to_string(), line);
    }
}

#[test]
fn the_timed_suites_are_complete() {
    let contractions = contractions();
    assert_eq!(contractions.len(), 71);
    for contraction in &contractions {
        let equation = Equation::parse(&contraction.equation).unwrap();
        let labels = equation.operands().iter().flat_map(|operand| operand.labels());
        assert!(labels.into_iter().all(|label| contraction.sizes.contains_key(&label.to_string())));
    }
    let lookups = lookups();
    assert_eq!(lookups.len(), 30);
    assert!(lookups.iter().all(|lookup| lookup.sizes.contains_key("n") && !lookup.machines.is_empty()));
    assert_eq!((lookups[0].name.as_str(), lookups[0].kind, lookups[0].sizes["k"]), ("thread/k10", Kind::Scores, 10));
}
