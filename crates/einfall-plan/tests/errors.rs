//! The messages of problems that have no plan.

mod common;

use common::{KERNELS, f32, i64, sizes, strided, try_plan};
use einfall_plan::{Argument, BindOptions, KernelSpec, Order, PlanError, PlanOptions};
use einfall_tensor::DType;
use insta::assert_snapshot;

fn refused(equation: &str, arguments: &[Argument], kernels: &[KernelSpec], options: &PlanOptions) -> PlanError {
    let scattered = if equation.ends_with("[e]") { sizes(&[("[e]", 3)]) } else { BindOptions::default() };
    try_plan(equation, arguments, &scattered, kernels, options).expect_err("refused")
}

#[test]
fn path() {
    let path = |steps: &[&[usize]]| {
        let order = Order::Given(steps.iter().map(|step| step.to_vec()).collect());
        let error = refused("i,i,i->i", &vec![f32(&[3]); 3], KERNELS, &PlanOptions { order, ..PlanOptions::default() });
        assert!(matches!(error, PlanError::Path(_)));
        error.to_string()
    };
    assert_snapshot!(path(&[&[0, 3]]), @"step 0 of the path, [0, 3], does not fit a list of 3 operands");
    assert_snapshot!(path(&[&[0, 0]]), @"step 0 of the path, [0, 0], does not fit a list of 3 operands");
    assert_snapshot!(path(&[&[]]), @"step 0 of the path, [], does not fit a list of 3 operands");
    assert_snapshot!(path(&[&[0, 1], &[0, 1], &[0, 1]]), @"step 2 of the path, [0, 1], does not fit a list of 1 operand");
}

#[test]
fn memory_limit() {
    let options = PlanOptions { memory_limit: Some(0), ..PlanOptions::default() };
    let error = refused("ij,jk,kl->il", &vec![f32(&[3, 3]); 3], KERNELS, &options);
    assert_eq!(error, PlanError::MemoryLimit { needed: 1, limit: 0 });
    assert_snapshot!(error, @"
    intermediate results need 1 element, more than the memory limit of 0
    hint: the smallest that slicing reaches is 1; raise `memory_limit`
    ");
}

#[test]
fn too_large() {
    // Every operand is a few numbers, repeated; together they span 2^60 of 8 bytes.
    let repeated = |shape: &[usize], strides: &[isize]| Argument { dtype: DType::F64, ..strided(shape, strides) };
    let arguments = [
        repeated(&[1 << 30, 2], &[0, 1]),
        repeated(&[1 << 30, 2], &[0, 1]),
        repeated(&[1 << 30, 1 << 30, 2], &[0, 0, 1]),
    ];
    let options = PlanOptions { order: Order::LeftToRight, ..PlanOptions::default() };
    let error = refused("ax,bx,aby->", &arguments, KERNELS, &options);
    assert!(matches!(error, PlanError::TooLarge { .. }));
    assert_snapshot!(error, @"
    intermediate results of 1152921504606846976 elements are larger than can be addressed
    hint: set `memory_limit` so that the contraction is sliced
    ");
}

#[test]
fn copies_too_large() {
    // 2^60 elements that share 6 MB of memory; converted, each gets a place of its own.
    let shape = [1 << 20, 1 << 20, 1 << 20];
    let folded = |dtype| Argument { dtype, ..strided(&shape, &[1, 1, 1]) };
    let repeated = |dtype| Argument { dtype, ..strided(&shape, &[0, 0, 0]) };
    for wide in [DType::F64, DType::C128] {
        let error = refused("abc,abc->", &[folded(DType::F16), repeated(wide)], KERNELS, &PlanOptions::default());
        assert_eq!(error, PlanError::TooLarge { elements: 1 << 60 }, "{wide}");
    }
    // Of two bytes the result can be addressed, its sum of four bytes cannot.
    let lens = [strided(&[1 << 31], &[0]), strided(&[1 << 30], &[0])];
    let rounded = BindOptions { dtype: Some(DType::F16), ..BindOptions::default() };
    let error = try_plan("a,b->ab", &lens, &rounded, KERNELS, &PlanOptions::default()).expect_err("refused");
    assert_eq!(error, PlanError::TooLarge { elements: 1 << 61 });
    // Each copy alone could be addressed.
    let arguments = [folded(DType::I8), folded(DType::I8), f32(&[])];
    let options = PlanOptions { order: Order::LeftToRight, ..PlanOptions::default() };
    let error = refused("abc,abc,->", &arguments, KERNELS, &options);
    assert!(matches!(error, PlanError::TooLarge { .. }), "{error}");
}

#[test]
fn more_slices_than_can_be_counted() {
    // 2^64 of them wrap to none at all, after which the result would be whatever was in memory.
    let repeated = strided(&[1 << 16, 1 << 16], &[0, 0]);
    let options = PlanOptions { memory_limit: Some(2), order: Order::LeftToRight, ..PlanOptions::default() };
    let error = refused("ab,cd,ac,bd->", &vec![repeated; 4], KERNELS, &options);
    assert_snapshot!(error, @"
    keeping the memory limit of 2 takes more slices than can be counted
    hint: raise `memory_limit`
    ");
}

#[test]
fn unknown_kernel() {
    let options = PlanOptions { kernel: Some("row".into()), ..PlanOptions::default() };
    let message = |kernels| refused("i->i", &[f32(&[3])], kernels, &options).to_string();
    assert_snapshot!(message(KERNELS), @"
    there is no kernel `row`
    hint: there are `rows`, `matrix`, `scatter` and `loops`
    ");
    assert_snapshot!(message(&KERNELS[..1]), @"
    there is no kernel `row`
    hint: there is `rows`
    ");
}

#[test]
fn no_kernel() {
    let error = refused("e->[e]", &[f32(&[5]), i64(&[5])], &KERNELS[..2], &PlanOptions::default());
    assert!(matches!(error, PlanError::NoKernel { .. }));
    assert_snapshot!(error, @"no kernel can run the step e->[e]: left e=5");
    let error = refused("ij,jk->ik", &[f32(&[5, 7]), f32(&[7, 3])], &[], &PlanOptions::default());
    assert_snapshot!(error, @"no kernel can run the step ij,jk->ik: left i=5, right k=3, contracted j=7");
}
