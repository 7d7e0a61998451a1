//! Times each kernel of attention, forward and backward, against what the planner predicts.
//!
//! `cargo run --release -p einfall --example attend -- [shape] [threads]`, where a shape is one of `thread`, `thread-k`
//! (k from 1 to 1000), `heads`, `points`, `image`, `window`, `band`, `dense`. Times are minima of repeats, in milliseconds.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use einfall::{Argument, Attend, CpuDevice, Saved, Tensor, View};

struct Random(u64);

impl Random {
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((u128::from(self.0 ^ (self.0 >> 33)) * count as u128) >> 64) as usize
    }

    fn floats(&mut self, shape: &[usize]) -> (Vec<f32>, Vec<usize>) {
        let count = shape.iter().product();
        ((0..count).map(|_| self.below(4001) as f32 / 1000.0 - 2.0).collect(), shape.to_vec())
    }
}

struct Case {
    name: String,
    equation: &'static str,
    sizes: Vec<(&'static str, usize)>,
    query: Vec<usize>,
    key: Vec<usize>,
    table: Option<(Vec<i32>, Vec<usize>)>,
}

fn cases(which: &str, random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    let is = |name: &str| which == "all" || which == name;
    let mut drawn = |lists: usize, n: usize, k: usize| -> Vec<i32> {
        let mut all: Vec<i32> = (0..n as i32).collect();
        let mut table = Vec::new();
        for _ in 0..lists {
            for at in 0..k {
                let other = at + random.below(n - at);
                all.swap(at, other);
            }
            table.extend_from_slice(&all[..k]);
        }
        table
    };
    let each = "bhqd,bh[bhqk]d,bh[bhqk]e->bhqe";
    let counts: &[usize] = if is("thread-k") { &[1, 3, 10, 30, 100, 300, 1000] } else { &[100] };
    if is("thread") || is("thread-k") {
        for &k in counts {
            let shape = vec![8, 1, 1000, 32];
            let table = Some((drawn(8000, 1000, k), vec![8, 1, 1000, k]));
            cases.push(Case {
                name: format!("thread k={k}"),
                equation: each,
                sizes: vec![],
                query: shape.clone(),
                key: shape,
                table,
            });
        }
    }
    if is("heads") {
        let shape = vec![1, 8, 2048, 64];
        let table = Some((drawn(8 * 2048, 2048, 64), vec![1, 8, 2048, 64]));
        cases.push(Case {
            name: "heads".into(),
            equation: each,
            sizes: vec![],
            query: shape.clone(),
            key: shape,
            table,
        });
    }
    if is("points") {
        let (n, k) = (20_000, 16);
        let table = (0..n * k).map(|at| ((at / k + n + random.below(256) - 128) % n) as i32).collect();
        let shape = vec![1, 4, n, 32];
        cases.push(Case {
            name: "points".into(),
            equation: "bhqd,bh[bqk]d,bh[bqk]e->bhqe",
            sizes: vec![],
            query: shape.clone(),
            key: shape,
            table: Some((table, vec![1, n, k])),
        });
    }
    if is("image") {
        let near = |at: usize| {
            let (query, key) = (at / 49, at % 49);
            let (y, x) = ((query / 56 + key / 7) as i32 - 3, (query % 56 + key % 7) as i32 - 3);
            if (0..56).contains(&y) && (0..56).contains(&x) { y * 56 + x } else { -1 }
        };
        let shape = vec![4, 2, 3136, 32];
        cases.push(Case {
            name: "image".into(),
            equation: "bhqd,bh[qk]d,bh[qk]e->bhqe",
            sizes: vec![],
            query: shape.clone(),
            key: shape,
            table: Some(((0..3136 * 49).map(near).collect(), vec![3136, 49])),
        });
    }
    if is("window") {
        let shape = vec![4, 2, 56, 56, 32];
        cases.push(Case {
            name: "window".into(),
            equation: "bhyxd,bh[y+v-3][x+w-3]d,bh[y+v-3][x+w-3]e->bhyxe",
            sizes: vec![("v", 7), ("w", 7)],
            query: shape.clone(),
            key: shape,
            table: None,
        });
    }
    if is("band") {
        let shape = vec![1, 4, 8192, 64];
        cases.push(Case {
            name: "band".into(),
            equation: "bhqd,bh[q+w-64]d,bh[q+w-64]e->bhqe",
            sizes: vec![("w", 128)],
            query: shape.clone(),
            key: shape,
            table: None,
        });
    }
    if is("dense") {
        let shape = vec![8, 1, 1000, 32];
        let equation = "bhqd,bhkd,bhke->bhqe";
        cases.push(Case {
            name: "dense".into(),
            equation,
            sizes: vec![],
            query: shape.clone(),
            key: shape,
            table: None,
        });
    }
    cases
}

/// The least time of some repeats, in milliseconds.
fn least(mut run: impl FnMut()) -> f64 {
    run();
    let start = Instant::now();
    let mut best = f64::INFINITY;
    for repeat in 0..20 {
        let from = Instant::now();
        run();
        best = best.min(from.elapsed().as_secs_f64());
        if repeat > 1 && start.elapsed().as_secs_f64() > 0.25 {
            break;
        }
    }
    best * 1e3
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let which = arguments.first().map_or("all", String::as_str);
    let threads = arguments.get(1).map_or(Ok(2), |text| text.parse())?;
    let device = CpuDevice::new(threads)?;
    let mut random = Random(7);
    for case in cases(which, &mut random) {
        let (query, key, value) = (random.floats(&case.query), random.floats(&case.key), random.floats(&case.key));
        let mut views = vec![View::from_slice(&query.0, &query.1)?, View::from_slice(&key.0, &key.1)?];
        if let Some((table, shape)) = &case.table {
            views.push(View::from_slice(table, shape)?);
        }
        views.push(View::from_slice(&value.0, &value.1)?);
        let call = |kernel: Option<&str>| {
            let mut call = Attend::new(case.equation).device(&device);
            for &(name, len) in &case.sizes {
                call = call.size(name, len);
            }
            if let Some(kernel) = kernel { call.kernel(kernel) } else { call }
        };
        let described: Vec<Argument> =
            views.iter().map(|view| Argument { dtype: view.dtype(), layout: view.layout().clone() }).collect();
        let (out, lse) = call(None).run_with_lse(&views)?;
        let ones = vec![1.0_f32; query.0.len()];
        let saved = Saved { out: out.view(), lse: lse.view(), grad_out: View::from_slice(&ones, &query.1)? };
        for back in [false, true] {
            let plan = |kernel: Option<&str>| {
                let wanted = [true, true, true, false];
                let call = call(kernel);
                if back { call.plan_gradients(described.clone(), wanted) } else { call.plan_for(described.clone()) }
            };
            let free = plan(None)?;
            let chosen = free.plan().candidates[free.plan().chosen].kernel.to_string();
            let mut line = format!("{:14} {} ", case.name, if back { "backward" } else { "forward " });
            let mut times: Vec<(String, f64)> = Vec::new();
            for candidate in &free.plan().candidates {
                let Ok(estimate) = &candidate.answer else { continue };
                if candidate.kernel == "nest" && free.plan().candidates.iter().filter(|c| c.answer.is_ok()).count() > 1
                {
                    continue;
                }
                let forced = plan(Some(candidate.kernel))?;
                let time = if back {
                    let mut room = forced.gradients(&views, &saved)?;
                    least(|| {
                        let mut views_mut = room.each_mut().map(|room| room.as_mut().map(Tensor::view_mut));
                        forced.gradients_into(&views, &saved, &mut views_mut).expect("ran before");
                    })
                } else {
                    let (mut out, mut lse) = forced.run_with_lse(&views)?;
                    least(|| {
                        forced.run_into(&views, &mut out.view_mut(), Some(&mut lse.view_mut())).expect("ran before");
                    })
                };
                line += &format!(" {} {time:.3} (predicted {:.3})", candidate.kernel, estimate.cost.seconds * 1e3);
                times.push((candidate.kernel.to_string(), time));
            }
            let best = times.iter().map(|(_, time)| *time).fold(f64::INFINITY, f64::min);
            let ours = times.iter().find(|(name, _)| *name == chosen).map_or(f64::NAN, |(_, time)| *time);
            println!("{line}; chosen {chosen}, {:.2} of the best", ours / best);
        }
    }
    Ok(())
}
