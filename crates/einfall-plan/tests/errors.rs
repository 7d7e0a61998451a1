//! The messages of problems that have no plan.

mod common;

use common::{KERNELS, f32, i64, sizes, strided, try_plan};
use einfall_plan::{Argument, BindOptions, KernelSpec, Order, PlanError, PlanOptions};
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
    assert_snapshot!(path(&[&[0, 3]]), @"");
    assert_snapshot!(path(&[&[0, 0]]), @"");
    assert_snapshot!(path(&[&[]]), @"");
    assert_snapshot!(path(&[&[0, 1], &[0, 1], &[0, 1]]), @"");
}

#[test]
fn memory_limit() {
    let options = PlanOptions { memory_limit: Some(0), ..PlanOptions::default() };
    let error = refused("ij,jk,kl->il", &vec![f32(&[3, 3]); 3], KERNELS, &options);
    assert_eq!(error, PlanError::MemoryLimit { needed: 1, limit: 0 });
    assert_snapshot!(error, @"");
}

#[test]
fn too_large() {
    let long = |axis: usize| strided(&[1 << 31, 2], if axis == 0 { &[0, 1] } else { &[0, 0] });
    let options = PlanOptions { order: Order::LeftToRight, ..PlanOptions::default() };
    let error =
        refused("ax,bx,aby->", &[long(0), long(0), strided(&[1 << 31, 1 << 31, 2], &[0, 0, 1])], KERNELS, &options);
    assert!(matches!(error, PlanError::TooLarge { .. }));
    assert_snapshot!(error, @"");
}

#[test]
fn no_kernel() {
    let error = refused("e->[e]", &[f32(&[5]), i64(&[5])], &KERNELS[..2], &PlanOptions::default());
    assert!(matches!(error, PlanError::NoKernel { .. }));
    assert_snapshot!(error, @"");
    let error = refused("ij,jk->ik", &[f32(&[5, 7]), f32(&[7, 3])], &[], &PlanOptions::default());
    assert_snapshot!(error, @"");
}
