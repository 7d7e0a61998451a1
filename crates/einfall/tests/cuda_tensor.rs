//! Attention on tensor cores: that its kernels take what they are made for and compile, on any machine that has NVRTC, and
//! that they are right, on one with a GPU.

use einfall::half::bf16;
use einfall::{AbsentGpu, Attend, CudaDevice, DType, Device, Layout, Machine, Saved, Tensor, View, example_gpu};
use einfall_cuda::ops::attention::attention_named;
use einfall_cuda::{AttentionLowering, compile};
use einfall_plan::{Argument, AttentionPlan, Pass};

/// An attention that a kernel is made for.
struct Shape {
    kernel: &'static str,
    equation: &'static str,
    /// Of query, key, table (if there is one) and value.
    shapes: &'static [&'static [usize]],
    sizes: &'static [(&'static str, usize)],
    causal: bool,
    backward: bool,
}

const fn shape(kernel: &'static str, equation: &'static str, shapes: &'static [&'static [usize]]) -> Shape {
    Shape { kernel, equation, shapes, sizes: &[], causal: false, backward: false }
}

const WINDOW: &str = "bhqd,bh[q+w-20]d,bh[q+w-20]e->bhqe";
const ALL: &str = "bgrqd,bgkd,bgke->bgrqe";
const HEADS: &str = "bgrqd,bg[bgqk]d,bg[bgqk]e->bgrqe";

const SHAPES: &[Shape] = &[
    shape("grouped", HEADS, &[&[1, 2, 4, 9, 128], &[1, 2, 70, 128], &[1, 2, 9, 45], &[1, 2, 70, 128]]),
    shape("grouped", HEADS, &[&[2, 1, 1, 300, 40], &[2, 1, 70, 40], &[2, 1, 300, 33], &[2, 1, 70, 24]]),
    shape("grouped", HEADS, &[&[1, 1, 16, 3, 64], &[1, 1, 400, 64], &[1, 1, 3, 1000], &[1, 1, 400, 128]]),
    shape("grouped", "bhqd,b[bqk]d,b[bqk]e->bhqe", &[&[1, 30, 5, 192], &[1, 90, 192], &[1, 5, 77], &[1, 90, 128]]),
    shape("grouped", "bqhd,b[bqk]d,b[bqk]e->bqhe", &[&[1, 5, 8, 576], &[1, 90, 576], &[1, 5, 77], &[1, 90, 512]]),
    shape("grouped", "bqhd,b[bqk]d,b[bqk]e->bqhe", &[&[2, 4, 70, 576], &[2, 90, 576], &[2, 4, 177], &[2, 90, 512]]),
    shape("grouped", "bqhd,b[bqk]d,b[bqk]e->bqhe", &[&[1, 5, 128, 128], &[1, 90, 128], &[1, 5, 300], &[1, 90, 128]]),
    Shape {
        causal: true,
        ..shape("grouped", "bhqd,b[bqk]d,b[bqk]e->bhqe", &[&[1, 8, 60, 64], &[1, 90, 64], &[1, 60, 50], &[1, 90, 64]])
    },
    shape("grouped", ALL, &[&[1, 2, 3, 9, 128], &[1, 2, 70, 128], &[1, 2, 70, 128]]),
    shape("band", ALL, &[&[2, 2, 3, 150, 128], &[2, 2, 170, 128], &[2, 2, 170, 128]]),
    Shape { causal: true, ..shape("band", ALL, &[&[1, 1, 2, 150, 64], &[1, 1, 150, 64], &[1, 1, 150, 128]]) },
    Shape { sizes: &[("w", 41)], ..shape("band", WINDOW, &[&[2, 2, 200, 128], &[2, 2, 200, 128], &[2, 2, 200, 128]]) },
    Shape {
        sizes: &[("w", 41)],
        causal: true,
        ..shape("band", WINDOW, &[&[1, 2, 200, 64], &[1, 2, 170, 64], &[1, 2, 170, 64]])
    },
    Shape { backward: true, ..shape("band", ALL, &[&[1, 2, 3, 150, 128], &[1, 2, 170, 128], &[1, 2, 170, 128]]) },
    Shape {
        sizes: &[("w", 41)],
        backward: true,
        ..shape("band", WINDOW, &[&[1, 2, 200, 64], &[1, 2, 200, 64], &[1, 2, 200, 128]])
    },
];

impl Shape {
    fn attend<'a>(&self, device: &'a dyn Device) -> Attend<'a> {
        let sized = |attend: Attend<'a>, (name, len): &(&'static str, usize)| attend.size(name, *len);
        self.sizes.iter().fold(Attend::new(self.equation).causal(self.causal).device(device), sized)
    }

    fn has_table(&self) -> bool {
        self.shapes.len() == 4
    }

    fn arguments(&self, dtype: DType, table: DType) -> Vec<Argument> {
        let of = |(at, shape): (usize, &&[usize])| {
            let dtype = if self.has_table() && at == 2 { table } else { dtype };
            Argument { dtype, layout: Layout::contiguous(shape) }
        };
        self.shapes.iter().enumerate().map(of).collect()
    }
}

fn plan(shape: &Shape, device: &dyn Device, dtype: DType, table: DType) -> AttentionPlan {
    let attend = shape.attend(device).kernel(shape.kernel);
    let arguments = shape.arguments(dtype, table);
    let plan = match shape.backward {
        false => attend.plan_for(arguments),
        true => attend.plan_gradients(arguments, [true, true, true, false]),
    };
    plan.expect("a plan").plan().clone()
}

#[test]
#[ignore = "needs NVRTC, which `cargo xtask kernels` fetches"]
fn every_kernel_compiles_of_tensor_cores() {
    for (isa, capability) in [("sm_90", (9, 0)), ("sm_80", (8, 0)), ("sm_100", (10, 0))] {
        let device = AbsentGpu::new(Machine { isa: isa.into(), ..example_gpu() });
        for (number, shape) in SHAPES.iter().enumerate() {
            let dtype = if number % 3 == 1 { DType::F16 } else { DType::BF16 };
            let table = if number % 2 == 1 { DType::I64 } else { DType::I32 };
            if shape.kernel == "band" && isa != "sm_90" {
                continue;
            }
            let plan = plan(shape, &device, dtype, table);
            assert_eq!(plan.kernel(), shape.kernel, "{plan}");
            let tables: Vec<DType> = plan.problem.tables.iter().map(|table| table.dtype).collect();
            for values_in_keys in [false, true] {
                let tasks = (attention_named(plan.kernel()).expect("one of the table").lower)(&AttentionLowering {
                    attention: &plan.attention,
                    pass: plan.pass,
                    tables: &tables,
                    machine: device.machine(),
                    wants_lse: true,
                    values_in_keys,
                    alignment: &|_| 16,
                });
                assert!(tasks.iter().all(|task| task.shared_bytes <= 227 << 10), "{plan}");
                for task in tasks {
                    if let Err(error) = compile::compile(task.kernel, &task.source, capability) {
                        panic!("{isa}: {error}\n{plan}");
                    }
                }
            }
        }
    }
}

/// Halves of numbers in −1..1 that look random.
fn halves(count: usize, seed: u64) -> Vec<bf16> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f32 / (1u64 << 52) as f32 - 1.0
    };
    (0..count).map(|_| bf16::from_f32(next() * 1.5)).collect()
}

/// Either type as numbers.
fn widened(tensor: &Tensor) -> Vec<f32> {
    match tensor.dtype() {
        DType::BF16 => tensor.as_slice::<bf16>().expect("of this type").iter().map(|&x| f32::from(x)).collect(),
        _ => tensor.as_slice::<f32>().expect("of this type").to_vec(),
    }
}

fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f32, what: &str) {
    let (found, expected) = (widened(found), widened(expected));
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!((found - expected).abs() <= tolerance || found == expected, "{what} at {at}: {found}, not {expected}");
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn kernels_of_tensor_cores_match_the_cpu() {
    let device = CudaDevice::new(0).expect("a GPU");
    let pass = |shape: &Shape| if shape.backward { Pass::Backward } else { Pass::Forward };
    for (number, shape) in SHAPES.iter().enumerate() {
        let count = |at: usize| shape.shapes[at].iter().product::<usize>();
        let last = shape.shapes.len() - 1;
        let data = [halves(count(0), 1), halves(count(1), 2), halves(count(last), 3)];
        let wide: Vec<Vec<f32>> = data.iter().map(|data| data.iter().map(|&x| f32::from(x)).collect()).collect();
        let rows = shape.shapes[1][shape.shapes[1].len() - 2] as i64;
        let entry = |at: usize| match at % 11 {
            3 => -1,
            7 => rows,
            _ => (at as i64 * 7919 + at as i64 / 13) % rows,
        };
        let mut table: Vec<i64> = if shape.has_table() { (0..count(2)).map(entry).collect() } else { Vec::new() };
        let keys = shape.shapes.get(2).map_or(0, |shape| shape[shape.len() - 1]).min(table.len());
        table[..keys].fill(-1);
        let table = shape.has_table().then(|| View::from_slice(&table, shape.shapes[2]).expect("a view"));
        let half = |at: usize, of: usize| View::from_slice(&data[at], shape.shapes[of]).expect("a view");
        let full = |at: usize, of: usize| View::from_slice(&wide[at], shape.shapes[of]).expect("a view");
        let joined = |query, key, value| [Some(query), Some(key), table.clone(), Some(value)].into_iter().flatten();
        let given: Vec<View<'_>> = joined(half(0, 0), half(1, 1), half(2, last)).collect();
        let exact: Vec<View<'_>> = joined(full(0, 0), full(1, 1), full(2, last)).collect();
        let cpu = einfall::default_device().expect("the CPU");
        let what = format!("{number}: {} {:?}", shape.equation, pass(shape));
        let on_gpu = shape.attend(&device).kernel(shape.kernel);
        if !shape.backward {
            let (out, lse) = on_gpu.run_with_lse(&given).expect("attended");
            let (expected, sums) = shape.attend(cpu).run_with_lse(&exact).expect("attended");
            assert_close(&out, &expected, 0.02, &what);
            assert_close(&lse, &sums, 0.002, &what);
            continue;
        }
        let (out, lse) = on_gpu.run_with_lse(&given).expect("attended");
        let (expected, sums) = shape.attend(cpu).run_with_lse(&exact).expect("attended");
        let grad = halves(widened(&out).len(), 4);
        let grad_wide: Vec<f32> = grad.iter().map(|&x| f32::from(x)).collect();
        let out_shape = out.shape().to_vec();
        let saved =
            Saved { out: out.view(), lse: lse.view(), grad_out: View::from_slice(&grad, &out_shape).expect("a view") };
        let exact_saved = Saved {
            out: expected.view(),
            lse: sums.view(),
            grad_out: View::from_slice(&grad_wide, &out_shape).expect("a view"),
        };
        let wanted = [true, true, true, false];
        let found = on_gpu.gradients(&given, &saved, wanted).expect("gradients");
        let right = shape.attend(cpu).gradients(&exact, &exact_saved, wanted).expect("gradients");
        for (operand, (found, right)) in found.iter().zip(&right).enumerate().take(3) {
            let (found, right) = (found.as_ref().expect("wanted"), right.as_ref().expect("wanted"));
            assert_close(found, right, 0.05, &format!("{what}, gradient {operand}"));
        }
    }
}
