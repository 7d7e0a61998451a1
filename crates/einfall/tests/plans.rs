//! Which kernel runs which equation, and in which way: the real kernels on a fixed machine.
//!
//! Predicted times are left out, so that a better cost model changes a line here only where it changes a decision.

use einfall::{CpuDevice, DType, Einsum, Isa, Layout, Machine, Way};
use einfall_plan::Argument;
use insta::assert_snapshot;

fn device() -> CpuDevice {
    CpuDevice::with_isa(2, Isa::Portable).unwrap().with_machine(Machine::example())
}

fn of(dtype: DType, shape: &[usize]) -> Argument {
    Argument { dtype, layout: Layout::contiguous(shape) }
}

fn f32(shape: &[usize]) -> Argument {
    of(DType::F32, shape)
}

fn i64(shape: &[usize]) -> Argument {
    of(DType::I64, shape)
}

fn strided(shape: &[usize], strides: &[isize]) -> Argument {
    Argument { dtype: DType::F32, layout: Layout { shape: shape.into(), strides: strides.into() } }
}

/// The steps of a plan: labels, loops, kernel and way.
fn steps(call: &Einsum<'_>, arguments: &[Argument]) -> String {
    let device = device();
    let prepared = call.clone().device(&device).plan_for(arguments.to_vec(), None);
    let prepared = prepared.unwrap_or_else(|error| panic!("{error}"));
    let plan = prepared.plan();
    plan.verify().expect("a plan keeps its invariants");
    let steps = plan.steps.iter().chain(&plan.epilogue);
    let lines =
        steps.map(|step| format!("{}   {}\n  {}: {}", step.text, step.contraction, step.kernel(), step.estimate().way));
    lines.collect::<Vec<_>>().join("\n")
}

fn plan(equation: &str, arguments: &[Argument]) -> String {
    steps(&Einsum::new(equation), arguments)
}

/// The way of the last step.
fn way(equation: &str, arguments: &[Argument]) -> Way {
    let device = device();
    let prepared = Einsum::new(equation).device(&device).plan_for(arguments.to_vec(), None);
    let prepared = prepared.unwrap_or_else(|error| panic!("{error}"));
    prepared.plan().steps.last().expect("a step").estimate().way
}

const B: usize = 8;
const N: usize = 1000;
const D: usize = 32;

fn queries() -> Argument {
    f32(&[B, 1, N, D])
}

#[test]
fn shared_keys_are_a_matrix_product() {
    assert_eq!(way("bhqd,bhkd->bhqk", &[queries(), f32(&[B, 1, 100, D])]), Way::Gemm);
}

#[test]
fn expanded_keys_are_a_matrix_product() {
    let expanded = strided(&[B, 1, N, 100, D], &[100 * D as isize, 100 * D as isize, 0, D as isize, 1]);
    assert_eq!(way("bhqd,bhqkd->bhqk", &[queries(), expanded.clone()]), Way::Gemm);
    assert_snapshot!(plan("bhqd,bhqkd->bhqk", &[queries(), expanded]), @"");
}

#[test]
fn stored_keys_are_read_once() {
    assert_eq!(way("bhqd,bhqkd->bhqk", &[queries(), f32(&[B, 1, N, 100, D])]), Way::Stream);
}

#[test]
fn looked_up_keys_are_gathered() {
    for k in [1, 10, 100] {
        let arguments = [queries(), f32(&[B, 1, N, D]), i64(&[B, 1, N, k])];
        assert_eq!(way("bhqd,bh[bhqk]d->bhqk", &arguments), Way::Gather, "k={k}");
    }
}

#[test]
fn looked_up_values_are_gathered() {
    for k in [1, 10, 100] {
        let arguments = [f32(&[B, 1, N, k]), f32(&[B, 1, N, D]), i64(&[B, 1, N, k])];
        assert_eq!(way("bhqk,bh[bhqk]d->bhqd", &arguments), Way::Gather, "k={k}");
    }
}

#[test]
fn the_equations_of_the_notation() {
    let table = i64(&[2, 4, 100, 10]);
    assert_snapshot!(plan("bhqd,bh[bhqk]d->bhqk", &[f32(&[2, 4, 100, 64]), f32(&[2, 4, 300, 64]), table.clone()]), @"");
    assert_snapshot!(plan("bhqk,bh[bhqk]d->bhqd", &[f32(&[2, 4, 100, 10]), f32(&[2, 4, 300, 64]), table]), @"");
    assert_snapshot!(plan("bhqd,b[bqk]d->bhqk", &[f32(&[2, 4, 100, 64]), f32(&[2, 300, 64]), i64(&[2, 100, 10])]), @"");
    let window = Einsum::new("bhqd,bh[q+w-4]d->bhqw").size("w", 9);
    assert_snapshot!(steps(&window, &[f32(&[2, 4, 100, 64]), f32(&[2, 4, 100, 64])]), @"");
    assert_snapshot!(plan("bi[x+u][y+v],oiuv->boxy", &[f32(&[2, 3, 34, 36]), f32(&[5, 3, 3, 3])]), @"");
    let sparse = Einsum::new("e,[e]d->[e]d").size("[e]", 300);
    assert_snapshot!(steps(&sparse, &[f32(&[5000]), f32(&[300, 32]), i64(&[5000]), i64(&[5000])]), @"");
    assert_snapshot!(plan("[e]d,[e]d->e", &[f32(&[300, 32]), i64(&[5000]), f32(&[300, 32]), i64(&[5000])]), @"");
    assert_snapshot!(plan("td,[t]df->tf", &[f32(&[500, 64]), f32(&[8, 64, 128]), i64(&[500])]), @"");
    assert_snapshot!(plan("bk,[bk]d->bd", &[f32(&[128, 20]), f32(&[10_000, 64]), i64(&[128, 20])]), @"");
}

#[test]
fn products() {
    assert_snapshot!(plan("ij,jk->ik", &[f32(&[128, 256]), f32(&[256, 512])]), @"");
    assert_snapshot!(plan("bij,bjk->bik", &[f32(&[8, 64, 32]), f32(&[8, 32, 48])]), @"");
    assert_snapshot!(plan("bhij,bhkj->bhik", &[f32(&[2, 3, 64, 32]), f32(&[2, 3, 48, 32])]), @"");
    assert_snapshot!(plan("ijk,jil->kl", &[f32(&[16, 24, 64]), f32(&[24, 16, 48])]), @"");
    assert_snapshot!(plan("ij,j->i", &[f32(&[512, 256]), f32(&[256])]), @"");
    assert_snapshot!(plan("ij,i->j", &[f32(&[512, 256]), f32(&[512])]), @"");
    assert_snapshot!(plan("i,i->", &[f32(&[4096]), f32(&[4096])]), @"");
    assert_snapshot!(plan("i,j->ij", &[f32(&[512]), f32(&[256])]), @"");
    assert_snapshot!(plan("bi,bi->b", &[f32(&[64, 256]), f32(&[64, 256])]), @"");
}

#[test]
fn sums_and_copies() {
    assert_snapshot!(plan("ij->ji", &[f32(&[512, 256])]), @"");
    assert_snapshot!(plan("ij->i", &[f32(&[512, 256])]), @"");
    assert_snapshot!(plan("ij->j", &[f32(&[512, 256])]), @"");
    assert_snapshot!(plan("ij->", &[f32(&[512, 256])]), @"");
    assert_snapshot!(plan("ii->i", &[f32(&[512, 512])]), @"");
    assert_snapshot!(plan("[i]d->id", &[f32(&[512, 64]), i64(&[100])]), @"");
    assert_snapshot!(plan("ij,ij->ij", &[f32(&[512, 256]), f32(&[512, 256])]), @"");
}

#[test]
fn several_steps() {
    assert_snapshot!(plan("ab,bc,cd->ad", &[f32(&[512, 256]), f32(&[256, 8]), f32(&[8, 128])]), @"");
    let half = |shape: &[usize]| of(DType::BF16, shape);
    assert_snapshot!(plan("ij,jk->ik", &[half(&[128, 256]), half(&[256, 64])]), @"");
    assert_snapshot!(plan("ij,jk->ik", &[half(&[128, 256]), f32(&[256, 64])]), @"");
    let arguments = [f32(&[2, 100, 64]), f32(&[2, 300, 64]), i64(&[2, 100, 10]), f32(&[10, 5])];
    assert_snapshot!(plan("bqd,b[bqk]d,kf->bqf", &arguments), @"");
}
