//! Attention against itself written out, and its gradients against differences.

use einfall::{Attend, Bounds, Saved, View, attention};

/// Numbers in −1..1 that look random.
fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

const B: usize = 2;
const H: usize = 3;
const Q: usize = 5;
const N: usize = 7;
const K: usize = 4;
const D: usize = 6;
const E: usize = 3;

struct Data {
    query: Vec<f64>,
    key: Vec<f64>,
    value: Vec<f64>,
    table: Vec<i64>,
}

fn data() -> Data {
    let entry = |at: usize| if at % 5 == 3 { -1 } else { (at * 5 + at / 7) as i64 % N as i64 };
    Data {
        query: numbers(B * H * Q * D, 1),
        key: numbers(B * H * N * D, 2),
        value: numbers(B * H * N * E, 3),
        table: (0..B * H * Q * K).map(entry).collect(),
    }
}

fn expected(data: &Data) -> (Vec<f64>, Vec<f64>) {
    let (mut out, mut lse) = (vec![0.0; B * H * Q * E], vec![0.0; B * H * Q]);
    for (list, to) in out.chunks_mut(E).enumerate() {
        let head = list / Q;
        let row = |j: i64| head * N + j as usize;
        let keys: Vec<usize> = data.table[list * K..(list + 1) * K]
            .iter()
            .filter(|&&j| (0..N as i64).contains(&j))
            .map(|&j| row(j))
            .collect();
        let score = |&j: &usize| {
            let dot: f64 = (0..D).map(|d| data.query[list * D + d] * data.key[j * D + d]).sum();
            dot / (D as f64).sqrt()
        };
        let scores: Vec<f64> = keys.iter().map(score).collect();
        let sum: f64 = scores.iter().map(|score| score.exp()).sum();
        lse[list] = sum.ln();
        for (e, to) in to.iter_mut().enumerate() {
            *to = keys.iter().zip(&scores).map(|(&j, score)| score.exp() / sum * data.value[j * E + e]).sum();
        }
    }
    (out, lse)
}

const EQUATION: &str = "bhqd,bh[bhqk]d,bh[bhqk]e->bhqe";

fn views(data: &Data) -> [View<'_>; 4] {
    [
        View::from_slice(&data.query, &[B, H, Q, D]).unwrap(),
        View::from_slice(&data.key, &[B, H, N, D]).unwrap(),
        View::from_slice(&data.table, &[B, H, Q, K]).unwrap(),
        View::from_slice(&data.value, &[B, H, N, E]).unwrap(),
    ]
}

fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance || found == expected, "at {at}: {found}, not {expected}");
    }
}

#[test]
fn looked_up_keys_are_weighed_by_their_scores() {
    let data = data();
    let (out, lse) = Attend::new(EQUATION).run_with_lse(&views(&data)).unwrap();
    let (expected_out, expected_lse) = expected(&data);
    assert_close(out.as_slice().unwrap(), &expected_out, 1e-12);
    assert_close(lse.as_slice().unwrap(), &expected_lse, 1e-12);
    assert_eq!((out.shape(), lse.shape()), (&[B, H, Q, E][..], &[B, H, Q][..]));
    let [query, key, table, value] = views(&data);
    let usual = attention(&query, &key, &value, Some(&table)).unwrap();
    assert_eq!(usual.as_slice::<f64>().unwrap(), out.as_slice::<f64>().unwrap());
}

#[test]
fn gradients_are_slopes() {
    let mut data = data();
    let weights = numbers(B * H * Q * E, 4);
    let loss = |data: &Data| -> f64 {
        let (out, _) = expected(data);
        out.iter().zip(&weights).map(|(out, weight)| out * weight).sum()
    };
    let (out, lse) = Attend::new(EQUATION).run_with_lse(&views(&data)).unwrap();
    let grad_out = View::from_slice(&weights, &[B, H, Q, E]).unwrap();
    let saved = Saved { out: out.view(), lse: lse.view(), grad_out };
    let gradients = Attend::new(EQUATION).gradients(&views(&data), &saved, [true, true, true, false]).unwrap();
    assert!(gradients[3].is_none());
    for operand in 0..3 {
        let slopes = gradients[operand].as_ref().unwrap().as_slice::<f64>().unwrap().to_vec();
        for at in (0..slopes.len()).step_by(7) {
            let mut moved = |by: f64| {
                let operands = [&mut data.query, &mut data.key, &mut data.value];
                operands.into_iter().nth(operand).unwrap()[at] += by;
                loss(&data)
            };
            let step = 1e-5;
            let (up, down) = (moved(step), moved(-2.0 * step));
            moved(step);
            let slope = (up - down) / (2.0 * step);
            assert!((slope - slopes[at]).abs() < 1e-8, "operand {operand} at {at}: {} is not {slope}", slopes[at]);
        }
    }
}

#[test]
fn a_query_without_keys_is_zero() {
    let (query, rows) = ([1.0f32, 2.0], [f32::NAN, f32::NAN]);
    let table = [-1i32, 2];
    let arguments = [
        View::from_slice(&query, &[1, 2]).unwrap(),
        View::from_slice(&rows, &[1, 2]).unwrap(),
        View::from_slice(&table, &[1, 2]).unwrap(),
        View::from_slice(&rows, &[1, 2]).unwrap(),
    ];
    let (out, lse) = Attend::new("qd,[qk]d,[qk]e->qe").run_with_lse(&arguments).unwrap();
    assert_eq!(out.as_slice::<f32>().unwrap(), [0.0, 0.0]);
    assert_eq!(lse.as_slice::<f32>().unwrap(), [f32::NEG_INFINITY]);
    let error = Attend::new("qd,[qk]d,[qk]e->qe").bounds(Bounds::Error).run(&arguments).unwrap_err();
    assert!(error.to_string().contains("holds -1 at [0, 0]"), "{error}");
}

#[test]
fn lists_of_different_lengths_are_padded_ones() {
    let data = data();
    let [query, key, _, value] = views(&data);
    // Lists of 4, 0, 3, 1 and 2 entries, the same for every batch and head; padded with −1.
    let entries = [3i32, 0, 6, 2, 5, 5, 1, 4, 0, 2];
    let offsets = [0i64, 4, 4, 7, 8, 10];
    let mut padded = [-1i32; Q * K];
    for list in 0..Q {
        let (from, to) = (offsets[list] as usize, offsets[list + 1] as usize);
        padded[list * K..list * K + to - from].copy_from_slice(&entries[from..to]);
    }
    let expected = attention(&query, &key, &value, Some(&View::from_slice(&padded, &[Q, K]).unwrap())).unwrap();
    let ragged = |offsets: &[i64]| {
        let entries = View::from_slice(&entries, &[10]).unwrap();
        let offsets = View::from_slice(offsets, &[offsets.len()]).unwrap();
        let arguments = [query.clone(), key.clone(), entries, value.clone(), offsets];
        Attend::new("bhqd,bh[k]d,bh[k]e->bhqe").offsets("q").run(&arguments)
    };
    assert_close(ragged(&offsets).unwrap().as_slice().unwrap(), expected.as_slice().unwrap(), 1e-14);
    let falling = ragged(&[0, 4, 3, 7, 8, 10]).unwrap_err().to_string();
    assert!(falling.contains("holds 3 at [2], which is not in 4..=10"), "{falling}");
    let long = ragged(&[0, 4, 4, 7, 8, 11]).unwrap_err().to_string();
    assert!(long.contains("holds 11 at [5], which is not in 8..=10"), "{long}");
    assert!(ragged(&[0, 4]).unwrap_err().to_string().contains("label `q` is 5"));
}

#[test]
fn windows_and_masks_are_tables() {
    let data = data();
    let [query, key, _, value] = views(&data);
    let value = &value;
    let of = |entry: &dyn Fn(i64, i64) -> i64, count: usize| {
        let table: Vec<i64> = (0..Q * count).map(|at| entry((at / count) as i64, (at % count) as i64)).collect();
        attention(&query, &key, value, Some(&View::from_slice(&table, &[Q, count]).unwrap())).unwrap()
    };
    let arguments = [query.clone(), key.clone(), value.clone()];
    let windowed =
        |causal| Attend::new("bhqd,bh[q+2w-2]d,bh[q+2w-2]e->bhqe").size("w", 3).causal(causal).run(&arguments);
    assert_close(windowed(false).unwrap().as_slice().unwrap(), of(&|q, w| q + 2 * w - 2, 3).as_slice().unwrap(), 1e-14);
    let seen = |q, j| if j <= q { j } else { -1 };
    let expected = of(&|q, w| seen(q, q + 2 * w - 2), 3);
    assert_close(windowed(true).unwrap().as_slice().unwrap(), expected.as_slice().unwrap(), 1e-14);
    let dense = |causal| Attend::new("bhqd,bhkd,bhke->bhqe").causal(causal).run(&arguments).unwrap();
    assert_close(dense(false).as_slice().unwrap(), of(&|_, j| j, N).as_slice().unwrap(), 1e-14);
    assert_close(dense(true).as_slice().unwrap(), of(&seen, N).as_slice().unwrap(), 1e-14);
}

#[test]
fn what_is_no_attention_is_refused() {
    let data = data();
    let [query, key, table, value] = views(&data);
    let run = |equation: &str, arguments: &[View<'_>]| Attend::new(equation).run(arguments).unwrap_err().to_string();
    let all = [query.clone(), key.clone(), table.clone(), value.clone()];
    assert!(run("bhqd,bh[bhqk]d->bhqk", &all[..3]).contains("but there are 2"));
    assert!(run("bhqd,bh[bhqk]d,bhje->bhqe", &all).contains("looked up differently"));
    assert!(
        run("bhqd,bhnc,bhne->bhqe", &[query.clone(), key.clone(), value.clone()])
            .contains("label `d` stands in the query alone")
    );
    let other = data.table.clone();
    let other = View::from_slice(&other, &[B, H, Q, K]).unwrap();
    let error = run(EQUATION, &[query.clone(), key.clone(), table.clone(), value.clone(), other]);
    assert!(error.contains("different tables"), "{error}");
    let twice = Attend::new(EQUATION).run(&[query, key, table.clone(), value.clone(), table]);
    assert!(twice.is_ok());
}
