//! Which kernel runs which equation, and in which way: the real kernels on a fixed machine.
//!
//! Predicted times are left out, so that a better cost model changes a line here only where it changes a decision.

use einfall::{AbsentGpu, Argument, CpuDevice, DType, Device, Einsum, Isa, Layout, Machine, Way, example_gpu};
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
    assert_snapshot!(plan("bhqd,bhqkd->bhqk", &[queries(), expanded]), @"
    bhqd,bhkdq->bhqk   batch b=8, left q=1000, right k=100, contracted d=32
      gemm: gemm
    ");
}

#[test]
fn stored_keys_are_read_once() {
    assert_eq!(way("bhqd,bhqkd->bhqk", &[queries(), f32(&[B, 1, N, 100, D])]), Way::Stream);
}

#[test]
fn looked_up_keys_are_gathered() {
    for k in [2, 10, 100] {
        let arguments = [queries(), f32(&[B, 1, N, D]), i64(&[B, 1, N, k])];
        assert_eq!(way("bhqd,bh[bhqk]d->bhqk", &arguments), Way::Gather, "k={k}");
    }
}

#[test]
fn looked_up_values_are_gathered() {
    // With one key a query nothing is summed, and rows are copied and scaled.
    for k in [2, 10, 100] {
        let arguments = [f32(&[B, 1, N, k]), f32(&[B, 1, N, D]), i64(&[B, 1, N, k])];
        assert_eq!(way("bhqk,bh[bhqk]d->bhqd", &arguments), Way::Gather, "k={k}");
    }
}

#[test]
fn the_equations_of_the_notation() {
    let table = i64(&[2, 4, 100, 10]);
    assert_snapshot!(plan("bhqd,bh[bhqk]d->bhqk", &[f32(&[2, 4, 100, 64]), f32(&[2, 4, 300, 64]), table.clone()]), @"
    bhqd,bhd[bhqk]->bhqk   batch bh=8 q=100, right k=10, contracted d=64
      dots: gather
    ");
    assert_snapshot!(plan("bhqk,bh[bhqk]d->bhqd", &[f32(&[2, 4, 100, 10]), f32(&[2, 4, 300, 64]), table]), @"
    bhqk,bhd[bhqk]->bhqd   batch bh=8 q=100, right d=64, contracted k=10
      axpys: gather
    ");
    assert_snapshot!(plan("bhqd,b[bqk]d->bhqk", &[f32(&[2, 4, 100, 64]), f32(&[2, 300, 64]), i64(&[2, 100, 10])]), @"
    bhqd,bd[bqk]->bhqk   batch b=2 q=100, left h=4, right k=10, contracted d=64
      dots: gather
    ");
    let window = Einsum::new("bhqd,bh[q+w-4]d->bhqw").size("w", 9);
    assert_snapshot!(steps(&window, &[f32(&[2, 4, 100, 64]), f32(&[2, 4, 100, 64])]), @"
    bhqd,bhd[q+w-4]->bhqw   batch bh=8 q=100, right w=9, contracted d=64
      dots: gather
    ");
    assert_snapshot!(plan("bi[x+u][y+v],oiuv->boxy", &[f32(&[2, 3, 34, 36]), f32(&[5, 3, 3, 3])]), @"
    bi[x+u][y+v],oiuv->boxy   left b=2 x=32 y=34, right o=5, contracted i=3 u=3 v=3
      gemm: gemm
    ");
    let sparse = Einsum::new("e,[e]d->[e]d").size("[e]", 300);
    assert_snapshot!(steps(&sparse, &[f32(&[5000]), f32(&[300, 32]), i64(&[5000]), i64(&[5000])]), @"
    e,d[e]->d[e]   batch e=5000, right d=32
      inverted: inverted
    ");
    assert_snapshot!(plan("[e]d,[e]d->e", &[f32(&[300, 32]), i64(&[5000]), f32(&[300, 32]), i64(&[5000])]), @"
    d[e],d[e]->e   batch e=5000, contracted d=32
      dots: gather
    ");
    assert_snapshot!(plan("td,[t]df->tf", &[f32(&[500, 64]), f32(&[8, 64, 128]), i64(&[500])]), @"
    td,df[t]->tf   batch t=500, right f=128, contracted d=64
      sorted: sorted
    ");
    assert_snapshot!(plan("bk,[bk]d->bd", &[f32(&[128, 20]), f32(&[10_000, 64]), i64(&[128, 20])]), @"
    bk,d[bk]->bd   batch b=128, right d=64, contracted k=20
      axpys: gather
    ");
}

#[test]
fn products() {
    assert_snapshot!(plan("ij,jk->ik", &[f32(&[128, 256]), f32(&[256, 512])]), @"
    ij,jk->ik   left i=128, right k=512, contracted j=256
      gemm: gemm
    ");
    assert_snapshot!(plan("bij,bjk->bik", &[f32(&[8, 64, 32]), f32(&[8, 32, 48])]), @"
    bij,bjk->bik   batch b=8, left i=64, right k=48, contracted j=32
      gemm: gemm
    ");
    assert_snapshot!(plan("bhij,bhkj->bhik", &[f32(&[2, 3, 64, 32]), f32(&[2, 3, 48, 32])]), @"
    bhij,bhkj->bhik   batch bh=6, left i=64, right k=48, contracted j=32
      gemm: gemm
    ");
    assert_snapshot!(plan("ijk,jil->kl", &[f32(&[16, 24, 64]), f32(&[24, 16, 48])]), @"
    ijk,jil->kl   left k=64, right l=48, contracted i=16 j=24
      gemm: gemm
    ");
    assert_snapshot!(plan("ij,j->i", &[f32(&[512, 256]), f32(&[256])]), @"
    ij,j->i   left i=512, contracted j=256
      dots: stream
    ");
    assert_snapshot!(plan("ij,i->j", &[f32(&[512, 256]), f32(&[512])]), @"
    ij,i->j   left j=256, contracted i=512
      axpys: stream
    ");
    assert_snapshot!(plan("i,i->", &[f32(&[4096]), f32(&[4096])]), @"
    i,i->   contracted i=4096
      dots: stream
    ");
    assert_snapshot!(plan("i,j->ij", &[f32(&[512]), f32(&[256])]), @"
    i,j->ij   left i=512, right j=256
      nest: elementwise
    ");
    assert_snapshot!(plan("bi,bi->b", &[f32(&[64, 256]), f32(&[64, 256])]), @"
    bi,bi->b   batch b=64, contracted i=256
      dots: stream
    ");
}

#[test]
fn sums_and_copies() {
    assert_snapshot!(plan("ij->ji", &[f32(&[512, 256])]), @"
    ij->ji   left j=256 i=512
      nest: elementwise
    ");
    assert_snapshot!(plan("ij->i", &[f32(&[512, 256])]), @"
    ij->i   left i=512, contracted j=256
      nest: nest
    ");
    assert_snapshot!(plan("ij->j", &[f32(&[512, 256])]), @"
    ij->j   left j=256, contracted i=512
      axpys: stream
    ");
    assert_snapshot!(plan("ij->", &[f32(&[512, 256])]), @"
    ij->   contracted ij=131072
      nest: nest
    ");
    assert_snapshot!(plan("ii->i", &[f32(&[512, 512])]), @"
    i->i   left i=512
      nest: elementwise
    ");
    assert_snapshot!(plan("[i]d->id", &[f32(&[512, 64]), i64(&[100])]), @"
    d[i]->id   left i=100 d=64
      nest: elementwise
    ");
    assert_snapshot!(plan("ij,ij->ij", &[f32(&[512, 256]), f32(&[512, 256])]), @"
    ij,ij->ij   batch ij=131072
      nest: elementwise
    ");
}

#[test]
fn several_steps() {
    assert_snapshot!(plan("ab,bc,cd->ad", &[f32(&[512, 256]), f32(&[256, 8]), f32(&[8, 128])]), @"
    ab,bc->ac   left a=512, right c=8, contracted b=256
      gemm: gemm
    cd,ac->ad   left d=128, right a=512, contracted c=8
      gemm: gemm
    ");
    let half = |shape: &[usize]| of(DType::BF16, shape);
    assert_snapshot!(plan("ij,jk->ik", &[half(&[128, 256]), half(&[256, 64])]), @"
    ij,jk->ik   left i=128, right k=64, contracted j=256
      gemm: gemm
    ");
    assert_snapshot!(plan("ij,jk->ik", &[half(&[128, 256]), f32(&[256, 64])]), @"
    bf16 to f32   left 01=32768
      nest: elementwise
    ij,jk->ik   left i=128, right k=64, contracted j=256
      gemm: gemm
    ");
    let keys = half(&[2, 300, 64]);
    assert_snapshot!(plan("bqd,b[bqk]d->bqk", &[f32(&[2, 100, 64]), keys, i64(&[2, 100, 10])]), @"
    bf16 to f32   left 021=38400
      nest: elementwise
    bqd,bd[bqk]->bqk   batch b=2 q=100, right k=10, contracted d=64
      dots: gather
    ");
    let arguments = [f32(&[2, 100, 64]), f32(&[2, 300, 64]), i64(&[2, 100, 10]), f32(&[10, 5])];
    assert_snapshot!(plan("bqd,b[bqk]d,kf->bqf", &arguments), @"
    bqd,bd[bqk]->bqk   batch b=2 q=100, right k=10, contracted d=64
      dots: gather
    kf,bqk->bqf   left f=5, right bq=200, contracted k=10
      gemm: gemm
    ");
}

#[test]
fn half_types_are_rounded_between_products_only_where_units_of_their_own_multiply_them() {
    let chain = [of(DType::BF16, &[512, 512]), of(DType::BF16, &[512, 512]), of(DType::BF16, &[512, 512])];
    let temps = |device: &dyn Device| {
        let prepared = Einsum::new("ij,jk,kl->il").device(device).plan_for(chain.to_vec(), None).unwrap();
        prepared.plan().verify().expect("a plan keeps its invariants");
        (prepared.plan().temps.iter().map(|temp| temp.dtype).collect::<Vec<_>>(), prepared.plan().rounded())
    };
    assert_eq!(temps(&AbsentGpu::new(example_gpu())), (vec![DType::BF16], Some((DType::BF16, 1))));
    let (on_processor, rounded) = temps(&device());
    assert!(!on_processor.contains(&DType::BF16) && rounded.is_none());
}
