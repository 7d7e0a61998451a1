//! The comparer: it must be able to fail.

use einfall_tensor::{DType, Element, View};
use einfall_testing::case::{ArgumentSpec, Case, Fill};
use einfall_testing::oracle::{Mismatch, OracleArray, Tier, compare};
use half::{bf16, f16};
use num_complex::Complex;

/// What the oracle says of a product of two matrices, 3 by 5 and 5 by 7.
fn product(dtype: DType, fill: Fill) -> OracleArray {
    let spec = |shape: &[usize]| ArgumentSpec::contiguous(dtype, shape, fill.clone());
    let case = Case {
        equation: "ij,jk->ik".to_string(),
        arguments: vec![spec(&[3, 5]), spec(&[5, 7])],
        sizes: Default::default(),
        bounds: Default::default(),
        out: None,
        seed: 11,
        source: String::new(),
    };
    case.expected().unwrap()
}

/// Every element replaced, one at a time: each must be noticed, at its place.
fn notices_every_element<T: Element>(good: &[T], expected: &OracleArray, tier: Tier, wrong: impl Fn(T) -> T) {
    compare(&View::from_slice(good, &[3, 7]).unwrap(), expected, tier).unwrap();
    for at in 0..good.len() {
        let mut bad = good.to_vec();
        bad[at] = wrong(bad[at]);
        match compare(&View::from_slice(&bad, &[3, 7]).unwrap(), expected, tier) {
            Err(Mismatch::Value { coordinate, wrong: 1, of: 21, .. }) => assert_eq!(coordinate, [at / 7, at % 7]),
            other => panic!("element {at} of {}: {other:?}", T::DTYPE),
        }
    }
}

#[test]
fn one_wrong_value_is_noticed_wherever_it_stands() {
    let reals = |dtype| product(dtype, Fill::Integers(9)).reals();
    let next_f32 = |v: f32| if v == 0.0 { f32::from_bits(1) } else { f32::from_bits(v.to_bits() ^ 1) };
    let of = |dtype| product(dtype, Fill::Integers(9));
    let good: Vec<f32> = reals(DType::F32).into_iter().map(|v| v as f32).collect();
    notices_every_element(&good, &of(DType::F32), Tier::Exact, next_f32);
    notices_every_element(&reals(DType::F64), &of(DType::F64), Tier::Exact, |v| v + 1.0);
    let good: Vec<f16> = reals(DType::F16).into_iter().map(f16::from_f64).collect();
    notices_every_element(&good, &of(DType::F16), Tier::Exact, |v| f16::from_bits(v.to_bits() + 1));
    let good: Vec<bf16> = reals(DType::BF16).into_iter().map(bf16::from_f64).collect();
    notices_every_element(&good, &of(DType::BF16), Tier::Exact, |_| bf16::NAN);
    let good: Vec<i16> = reals(DType::I16).into_iter().map(|v| v as i16).collect();
    notices_every_element(&good, &of(DType::I16), Tier::Exact, |v| v ^ 1);
    let good: Vec<bool> = reals(DType::Bool).into_iter().map(|v| v != 0.0).collect();
    notices_every_element(&good, &of(DType::Bool), Tier::Exact, |v| !v);
    let expected = of(DType::C64);
    let good: Vec<Complex<f32>> =
        expected.values.iter().map(|v| Complex::new(v.complex().re as f32, v.complex().im as f32)).collect();
    notices_every_element(&good, &expected, Tier::Exact, |v| v.conj() + Complex::new(0.0, 0.5));
}

#[test]
fn a_bound_lets_rounding_pass_and_nothing_more() {
    let expected = product(DType::F32, Fill::Normal);
    let tier = expected.bound();
    assert_eq!(tier, Tier::Bound { terms: 7, dtype: DType::F32, accumulator: DType::F32 });
    let good: Vec<f32> = expected.reals().into_iter().map(|v| v as f32).collect();
    let largest = expected.magnitudes.iter().fold(0f64, |a, &b| a.max(b)) as f32;
    notices_every_element(&good, &expected, tier, |v| v + largest * 20.0 * f32::EPSILON);
    notices_every_element(&good, &expected, tier, |_| f32::NAN);
    notices_every_element(&good, &expected, tier, |_| f32::INFINITY);
    let last_place: Vec<f32> = good.iter().map(|v| f32::from_bits(v.to_bits() ^ 1)).collect();
    let view = View::from_slice(&last_place, &[3, 7]).unwrap();
    assert_eq!(compare(&view, &expected, tier), Ok(()));
    assert!(compare(&view, &expected, Tier::Exact).is_err());
}

#[test]
fn integers_are_exact_under_a_bound_too() {
    let tier = Tier::Bound { terms: 1000, dtype: DType::I32, accumulator: DType::I32 };
    let expected = product(DType::I32, Fill::Integers(9));
    let good: Vec<i32> = expected.reals().into_iter().map(|v| v as i32).collect();
    notices_every_element(&good, &expected, tier, |v| v + 1);
}

#[test]
fn shape_and_type_must_agree() {
    let expected = product(DType::F64, Fill::Integers(9));
    let values = expected.reals();
    let turned = View::from_slice(&values, &[7, 3]).unwrap();
    assert!(matches!(compare(&turned, &expected, Tier::Exact), Err(Mismatch::Shape { .. })));
    let narrow: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    let narrow = View::from_slice(&narrow, &[3, 7]).unwrap();
    assert!(matches!(compare(&narrow, &expected, Tier::Exact), Err(Mismatch::DType { .. })));
}

#[test]
fn a_mismatch_says_where_and_by_how_much() {
    let expected = product(DType::I32, Fill::Integers(9));
    let mut values: Vec<i32> = expected.reals().into_iter().map(|v| v as i32).collect();
    let right = values[8];
    values[8] = 12345;
    let error = compare(&View::from_slice(&values, &[3, 7]).unwrap(), &expected, Tier::Exact).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("at [1, 1] got Int(12345), expected Int({right}), tolerance 0e0; 1 of 21 wrong")
    );
}

#[test]
fn zeros_of_either_sign_and_nans_are_equal() {
    let case =
        "{ equation = \"i->i\", arguments = [{ dtype = \"f64\", shape = [3], fill = { values = [0, nan, inf] } }] }";
    let expected = case.parse::<Case>().unwrap().expected().unwrap();
    let good = [-0.0, -f64::NAN, f64::INFINITY];
    assert_eq!(compare(&View::from_slice(&good, &[3]).unwrap(), &expected, Tier::Exact), Ok(()));
    let bad = [0.0, f64::NAN, -f64::INFINITY];
    assert!(compare(&View::from_slice(&bad, &[3]).unwrap(), &expected, Tier::Exact).is_err());
}
