//! The best keys of each query, against a sort of all scores.

mod common;

use common::devices;
use einfall::half::bf16;
use einfall::{CpuDevice, View, topk_keys};
use einfall_testing::random::Random;

/// The table that a stable sort of all scores gives.
fn sorted(query: &[f64], key: &[f64], shape: [usize; 6], count: usize, causal: bool) -> Vec<i32> {
    let [batches, heads, groups, queries, keys, depth] = shape;
    let mut table = Vec::new();
    for row in 0..batches * heads * queries {
        let (batch, head, at) = (row / queries / heads, row / queries % heads, row % queries);
        let list = batch * groups + head / (heads / groups);
        let seen = if causal { keys.min(at + 1) } else { keys };
        let score =
            |n: usize| -> f64 { (0..depth).map(|d| query[row * depth + d] * key[(list * keys + n) * depth + d]).sum() };
        let mut order: Vec<(usize, f64)> = (0..seen).map(|n| (n, score(n))).collect();
        order.sort_by(|a, b| {
            a.1.is_nan().cmp(&b.1.is_nan()).then(b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal))
        });
        table.extend((0..count).map(|place| order.get(place).map_or(-1, |(n, _)| *n as i32)));
    }
    table
}

/// Small integers, so that many scores are equal and all are exact.
fn integers(count: usize, random: &mut Random) -> Vec<f64> {
    (0..count).map(|_| random.between(-3, 3) as f64).collect()
}

#[test]
fn tables_are_those_of_a_sort() {
    let devices = devices();
    for seed in 0..60u64 {
        let mut random = Random::new(seed, 3);
        let mut pick = |from: &[usize]| from[random.between(0, from.len() as i64 - 1) as usize];
        let (groups, shared) = (pick(&[1, 2, 3]), pick(&[1, 1, 2, 4]));
        let shape = [
            pick(&[1, 2]),
            groups * shared,
            groups,
            pick(&[1, 7, 33, 70, 0]),
            pick(&[1, 5, 64, 513, 1100, 0]),
            pick(&[1, 3, 16, 40]),
        ];
        let (count, causal) = (pick(&[1, 2, 5, 33, 200, 0]), seed % 3 == 0);
        let [batches, heads, _, queries, keys, depth] = shape;
        let query = integers(batches * heads * queries * depth, &mut random);
        let mut key = integers(batches * groups * keys * depth, &mut random);
        if seed % 7 == 0 {
            key.iter_mut().step_by(11).for_each(|x| *x = f64::NAN);
        }
        let expected = sorted(&query, &key, shape, count, causal);
        let device = &devices[seed as usize % devices.len()];
        let shapes = [[batches, heads, queries, depth], [batches, groups, keys, depth]];
        let table = match seed % 3 {
            0 => {
                let [query, key] = [&query, &key].map(|x| x.iter().map(|&x| x as f32).collect::<Vec<_>>());
                let (query, key) = (View::from_slice(&query, &shapes[0]), View::from_slice(&key, &shapes[1]));
                device.best_keys(&query.unwrap(), &key.unwrap(), count, causal)
            }
            1 => {
                let [query, key] = [&query, &key].map(|x| x.iter().map(|&x| bf16::from_f64(x)).collect::<Vec<_>>());
                let (query, key) = (View::from_slice(&query, &shapes[0]), View::from_slice(&key, &shapes[1]));
                device.best_keys(&query.unwrap(), &key.unwrap(), count, causal)
            }
            _ => {
                let (query, key) = (View::from_slice(&query, &shapes[0]), View::from_slice(&key, &shapes[1]));
                device.best_keys(&query.unwrap(), &key.unwrap(), count, causal)
            }
        };
        let table = table.unwrap();
        assert_eq!(table.shape(), [batches, heads, queries, count]);
        assert_eq!(table.as_slice::<i32>().unwrap(), expected, "seed {seed}: {shape:?}, {count} keys, {causal}");
    }
}

#[test]
fn strides_and_threads_do_not_matter() {
    let mut random = Random::new(5, 5);
    let numbers: Vec<f32> = (0..2 * 300 * 24 * 2).map(|_| random.normal() as f32).collect();
    // Backwards, with gaps, heads innermost.
    let strided = View::from_slice_strided(&numbers, &[1, 2, 300, 24], &[0, 1, -96, 4], 299 * 96 + 2).unwrap();
    let plain: Vec<f32> = strided.to_vec().unwrap();
    let plain = View::from_slice(&plain, &[1, 2, 300, 24]).unwrap();
    let expected = topk_keys(&plain, &plain, 20, false).unwrap();
    for threads in [1, 2, 5] {
        let device = CpuDevice::new(threads).unwrap();
        let table = device.best_keys(&strided, &strided, 20, false).unwrap();
        assert_eq!(table.as_bytes(), expected.as_bytes());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let numbers = [0.0f32; 24];
    let of = |shape: &[usize]| View::from_slice(&numbers, shape).unwrap();
    let error = |query: &View<'_>, key: &View<'_>| topk_keys(query, key, 1, false).unwrap_err().to_string();
    assert_eq!(
        error(&of(&[2, 3, 2, 2]), &of(&[2, 2, 3, 2])),
        "query has the shape [2, 3, 2, 2] and key [2, 2, 3, 2]\nhint: they are (b, h, q, d) and (b, g, n, d), where g divides h"
    );
    assert!(error(&of(&[4, 6]), &of(&[2, 2, 3, 2])).starts_with("query has the shape [4, 6]"));
    let integers = [1i32; 24];
    assert!(
        error(&View::from_slice(&integers, &[2, 3, 2, 2]).unwrap(), &of(&[2, 3, 2, 2])).starts_with("query is i32")
    );
}
