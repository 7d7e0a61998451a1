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
    an intermediate result of 1152921504606846976 elements is larger than can be addressed
    hint: set `memory_limit` so that the contraction is sliced
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
