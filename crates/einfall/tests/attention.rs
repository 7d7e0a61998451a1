//! Attention against itself written out, and its gradients against differences.

use einfall::half::{bf16, f16};
use einfall::{Attend, Bounds, CpuDevice, Element, Isa, Saved, View, attention};

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
    for (operand, gradient) in gradients[..3].iter().enumerate() {
        let slopes = gradient.as_ref().unwrap().as_slice::<f64>().unwrap().to_vec();
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

/// A call that kernels are compared on: sizes of b, h, q, n, k, d, e, and what is special about it.
#[derive(Clone, Copy, Debug)]
struct Case {
    sizes: [usize; 7],
    equation: &'static str,
    /// Shapes of query, key, table, value and bias, as labels.
    shapes: [&'static str; 5],
    causal: bool,
}

const CASES: [Case; 15] = [
    Case {
        sizes: [2, 3, 5, 7, 4, 6, 3],
        equation: EQUATION,
        shapes: ["bhqd", "bhnd", "bhqk", "bhne", ""],
        causal: false,
    },
    Case {
        sizes: [2, 2, 33, 40, 17, 32, 32],
        equation: EQUATION,
        shapes: ["bhqd", "bhnd", "bhqk", "bhne", ""],
        causal: true,
    },
    Case {
        sizes: [2, 3, 9, 11, 5, 20, 7],
        equation: "bhqd,bh[bqk]d,bh[bqk]e->bhqe",
        shapes: ["bhqd", "bhnd", "bqk", "bhne", ""],
        causal: false,
    },
    Case {
        sizes: [2, 3, 9, 11, 5, 20, 7],
        equation: "bhqd,b[bqk]d,b[bqk]e->bhqe",
        shapes: ["bhqd", "bnd", "bqk", "bne", ""],
        causal: false,
    },
    Case {
        sizes: [1, 2, 12, 30, 1300, 8, 5],
        equation: "bhqd,bh[qk]d,bh[qk]e->bhqe",
        shapes: ["bhqd", "bhnd", "qk", "bhne", ""],
        causal: false,
    },
    Case {
        sizes: [2, 2, 13, 13, 6, 8, 8],
        equation: "bhqd,bh[bhqk]d,bh[bhqk]e,bhqk->bhqe",
        shapes: ["bhqd", "bhnd", "bhqk", "bhne", "bhqk"],
        causal: true,
    },
    Case {
        sizes: [2, 2, 13, 13, 6, 8, 8],
        equation: "bhqd,bh[q+2k-4]d,bh[q+2k-4]e->bhqe",
        shapes: ["bhqd", "bhnd", "", "bhne", ""],
        causal: true,
    },
    Case {
        // Windows on two axes: some queries have theirs inside, others at an edge.
        sizes: [2, 3, 9, 11, 5, 20, 7],
        equation: "bqnd,b[q+k-2][n+2h-2]d,b[q+k-2][n+2h-2]e->bqne",
        shapes: ["bqnd", "bqnd", "", "bqne", ""],
        causal: false,
    },
    Case {
        // The same for one batch whose axes lie the other way round.
        sizes: [1, 2, 12, 7, 4, 17, 16],
        equation: "bqnd,[n-2h+1]b[q+k-2]d,[n-2h+1]b[q+k-2]e->bqne",
        shapes: ["bqnd", "nbqd", "", "nbqe", ""],
        causal: false,
    },
    Case {
        sizes: [2, 2, 13, 19, 19, 8, 9],
        equation: "bhqd,bhkd,bhke->bhqe",
        shapes: ["bhqd", "bhkd", "", "bhke", ""],
        causal: true,
    },
    Case {
        sizes: [2, 2, 5, 1500, 1500, 8, 9],
        equation: "bhqd,bhkd,bhke,hqk->bhqe",
        shapes: ["bhqd", "bhkd", "", "bhke", "hqk"],
        causal: false,
    },
    Case {
        // Out in another order, keys with their depth outermost of all but the last axis.
        sizes: [3, 2, 7, 9, 5, 16, 4],
        equation: "qbhd,nhbd,nhbe->qhbe",
        shapes: ["qbhd", "nhbd", "", "nhbe", ""],
        causal: false,
    },
    Case {
        sizes: [2, 2, 0, 7, 4, 6, 3],
        equation: EQUATION,
        shapes: ["bhqd", "bhnd", "bhqk", "bhne", ""],
        causal: false,
    },
    Case {
        sizes: [2, 2, 3, 0, 4, 6, 3],
        equation: EQUATION,
        shapes: ["bhqd", "bhnd", "bhqk", "bhne", ""],
        causal: false,
    },
    Case {
        sizes: [2, 2, 3, 4, 0, 6, 3],
        equation: EQUATION,
        shapes: ["bhqd", "bhnd", "bhqk", "bhne", ""],
        causal: false,
    },
];

impl Case {
    fn shape(&self, labels: &str) -> Vec<usize> {
        let of = |label| self.sizes["bhqnkde".find(label).unwrap()];
        labels.chars().map(of).collect()
    }

    fn numbers<T: Element>(&self, operand: usize, of: impl Fn(f64) -> T) -> Vec<T> {
        let count = self.shape(self.shapes[operand]).iter().product();
        numbers(count, operand as u64 + 7).into_iter().map(of).collect()
    }

    /// Output, log-sum-exp and gradients, as f64.
    fn run<T: Element>(&self, kernel: &str, device: &CpuDevice, of: impl Fn(f64) -> T + Copy) -> Vec<Vec<f64>> {
        let wide = |tensor: &einfall::Tensor| {
            let copy = einfall::Einsum::new("...->...").dtype(einfall::DType::F64).run(&[tensor.view()]).unwrap();
            copy.as_slice::<f64>().unwrap().to_vec()
        };
        let data: Vec<Vec<T>> = (0..5).map(|at| if at == 2 { Vec::new() } else { self.numbers(at, of) }).collect();
        let (keys, count) = (self.sizes[3] as i64, self.shape(self.shapes[2]).iter().product::<usize>());
        // Bad values on both sides, a list without any good one, and rows that many look at.
        let entry = |at: usize| match at % 11 {
            3 => -1,
            7 => keys,
            _ if self.sizes[4] > 0 && (at / self.sizes[4]).is_multiple_of(9) => -5,
            _ => ((at * at + at / 3) as i64 % (keys + 1)).min(keys - 1),
        };
        let table: Vec<i32> = (0..count).map(|at| entry(at) as i32).collect();
        let mut arguments = Vec::new();
        for (at, shape) in self.shapes.iter().enumerate() {
            let shape = self.shape(shape);
            match at {
                2 if !self.shapes[2].is_empty() => arguments.push(View::from_slice(&table, &shape).unwrap()),
                2 => {}
                4 if self.shapes[4].is_empty() => {}
                _ => arguments.push(View::from_slice(&data[at], &shape).unwrap()),
            }
        }
        let mut call = Attend::new(self.equation).causal(self.causal).kernel(kernel).device(device);
        if self.equation.contains('+') {
            call = call.size("k", self.sizes[4]);
        }
        if self.equation.contains("2h") {
            call = call.size("h", self.sizes[1]);
        }
        let prepared = call.plan(&arguments).unwrap();
        // Arrays without elements have no strides to go by.
        assert!(prepared.plan().kernel() == kernel || self.sizes.contains(&0), "{prepared}");
        let (out, lse) = prepared.run_with_lse(&arguments).unwrap();
        let slopes: Vec<T> = numbers(out.shape().iter().product(), 99).into_iter().map(of).collect();
        let grad_out = View::from_slice(&slopes, out.shape()).unwrap();
        let saved = Saved { out: out.view(), lse: lse.view(), grad_out };
        let mut wanted = [true, true, true, !self.shapes[4].is_empty()];
        // A bias that batches share has a sum for its gradient, which only the loops as written have.
        wanted[3] &= self.shapes[4].len() == 4;
        let described =
            arguments.iter().map(|view| einfall::Argument { dtype: view.dtype(), layout: view.layout().clone() });
        let backward = call.plan_gradients(described.collect(), wanted).unwrap();
        let usable = backward.plan().kernel() == kernel;
        assert!(usable || self.equation.starts_with("qbhd") || self.sizes.contains(&0), "{backward}");
        let gradients = backward.gradients(&arguments, &saved).unwrap();
        let mut all = vec![wide(&out), wide(&lse)];
        all.extend(gradients.iter().flatten().map(wide));
        all
    }
}

fn agree(case: &Case, found: &[Vec<f64>], expected: &[Vec<f64>], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (part, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.len(), expected.len());
        for (at, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            let close = (found - expected).abs() <= tolerance * (1.0 + expected.abs());
            assert!(close || found == expected, "{case:?}: part {part} at {at}: {found}, not {expected}");
        }
    }
}

#[test]
fn gathered_rows_give_what_loops_give() {
    for isa in Isa::available() {
        let device = CpuDevice::with_isa(2, isa).unwrap();
        for case in &CASES {
            agree(case, &case.run("gather", &device, |x| x), &case.run("nest", &device, |x| x), 1e-12);
            agree(case, &case.run("gather", &device, |x| x as f32), &case.run("nest", &device, |x| x as f32), 3e-5);
            let expected = case.run("nest", &device, bf16::from_f64);
            agree(case, &case.run("gather", &device, bf16::from_f64), &expected, 3e-2);
            agree(case, &case.run("gather", &device, f16::from_f64), &case.run("nest", &device, f16::from_f64), 4e-3);
        }
    }
}

#[test]
fn results_have_the_same_bits_for_any_number_of_threads() {
    let [one, three] = [1, 3].map(|count| CpuDevice::new(count).unwrap());
    for case in &CASES {
        let expected = case.run("gather", &one, |x| x as f32);
        for _ in 0..5 {
            assert_eq!(case.run("gather", &three, |x| x as f32), expected, "{case:?}");
        }
    }
}
