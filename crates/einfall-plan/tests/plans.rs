//! Plans of named problems on a machine on paper, as `explain` prints them.

mod common;

use common::{KERNELS, argument, f32, i64, sizes, strided, try_plan};
use einfall_plan::{Argument, BindOptions, Bounds, Order, Plan, PlanOptions, Slot};
use einfall_tensor::DType;
use insta::assert_snapshot;

fn plan(equation: &str, arguments: &[Argument]) -> Plan {
    plan_with(equation, arguments, &BindOptions::default(), &PlanOptions::default())
}

fn plan_with(equation: &str, arguments: &[Argument], bind: &BindOptions, options: &PlanOptions) -> Plan {
    try_plan(equation, arguments, bind, KERNELS, options).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn matrix_product() {
    assert_snapshot!(plan("ij,jk->ik", &[f32(&[20, 30]), f32(&[30, 50])]), @"");
}

#[test]
fn matrix_times_vector() {
    assert_snapshot!(plan("ij,j->i", &[f32(&[20, 30]), f32(&[30])]), @"");
}

#[test]
fn batched_product_fuses_what_lies_together() {
    let arguments = [f32(&[2, 3, 5, 7]), f32(&[2, 3, 7, 11])];
    assert_snapshot!(plan("bhij,bhjk->bhik", &arguments), @"");
}

#[test]
fn diagonal() {
    assert_snapshot!(plan("ii->i", &[f32(&[7, 7])]), @"");
}

#[test]
fn trace() {
    assert_snapshot!(plan("ii->", &[f32(&[7, 7])]), @"");
}

#[test]
fn transposition() {
    assert_snapshot!(plan("ijk->kij", &[f32(&[2, 3, 5])]), @"");
}

#[test]
fn outer_product() {
    assert_snapshot!(plan("i,j->ij", &[f32(&[20]), f32(&[30])]), @"");
}

#[test]
fn scalars() {
    assert_snapshot!(plan(",->", &[f32(&[]), f32(&[])]), @"");
}

#[test]
fn stored_keys_are_a_batched_matrix_vector_product() {
    assert_snapshot!(plan("bqd,bqkd->bqk", &[f32(&[2, 7, 5]), f32(&[2, 7, 3, 5])]), @"");
}

#[test]
fn a_label_of_stride_0_moves_out_of_the_batch() {
    let expanded = strided(&[2, 7, 3, 5], &[15, 0, 5, 1]);
    assert_snapshot!(plan("bqd,bqkd->bqk", &[f32(&[2, 7, 5]), expanded]), @"");
}

#[test]
fn looked_up_keys() {
    assert_snapshot!(plan("bqd,b[bqk]d->bqk", &[f32(&[2, 7, 5]), f32(&[2, 11, 5]), i64(&[2, 7, 3])]), @"");
}

#[test]
fn looked_up_keys_with_a_table_that_all_batches_share() {
    let table = Argument { dtype: DType::I32, ..strided(&[2, 7, 3], &[0, 3, 1]) };
    assert_snapshot!(plan("bqd,b[bqk]d->bqk", &[f32(&[2, 7, 5]), f32(&[2, 11, 5]), table]), @"");
}

#[test]
fn window_of_keys() {
    let plan =
        plan_with("qd,[q+w-1]d->qw", &[f32(&[7, 5]), f32(&[7, 5])], &sizes(&[("w", 3)]), &PlanOptions::default());
    assert_snapshot!(plan, @"");
}

#[test]
fn convolution() {
    assert_snapshot!(plan("i[x+u][y+v],oiuv->oxy", &[f32(&[2, 9, 9]), f32(&[5, 2, 3, 3])]), @"");
}

#[test]
fn scatter() {
    let arguments = [f32(&[13]), f32(&[7, 5]), i64(&[13]), i64(&[13])];
    let plan = plan_with("e,[e]d->[e]d", &arguments, &sizes(&[("[e]", 11)]), &PlanOptions::default());
    assert_snapshot!(plan, @"");
}

#[test]
fn scatter_into_another_type_collects_in_the_accumulator() {
    let arguments = [argument(DType::BF16, &[13, 5]), i64(&[13])];
    let plan = plan_with("ed->[e]d", &arguments, &sizes(&[("[e]", 11)]), &PlanOptions::default());
    assert_snapshot!(plan, @"");
}

#[test]
fn ellipsis() {
    assert_snapshot!(plan("...ij,...jk->...ik", &[f32(&[2, 3, 5, 7]), f32(&[3, 7, 11])]), @"");
}

#[test]
fn labels_of_one_operand_alone_are_summed_early() {
    assert_snapshot!(plan("aij,jkb->ik", &[f32(&[13, 5, 7]), f32(&[7, 11, 17])]), @"");
}

#[test]
fn operands_of_different_types_are_converted() {
    assert_snapshot!(plan("ij,jk->ik", &[argument(DType::I32, &[5, 7]), f32(&[7, 11])]), @"");
}

#[test]
fn broadcast_axes_are_dropped_from_converted_copies() {
    let expanded = Argument { dtype: DType::I16, ..strided(&[5, 7], &[0, 1]) };
    let plan = plan("ij,jk->ik", &[expanded, f32(&[7, 11])]);
    assert_eq!(plan.temps[0].len, 7);
    assert_snapshot!(plan, @"");
}

#[test]
fn converted_operands_keep_their_lookups() {
    let keys = argument(DType::BF16, &[11, 5]);
    assert_snapshot!(plan("qd,[qk]d->qk", &[f32(&[7, 5]), keys, i64(&[7, 3])]), @"");
}

const CHAIN: &str = "ab,bc,cd->ad";

fn chain() -> [Argument; 3] {
    [f32(&[50, 40]), f32(&[40, 3]), f32(&[3, 60])]
}

#[test]
fn three_operands_start_at_the_cheap_end() {
    assert_snapshot!(plan(CHAIN, &chain()), @"");
}

#[test]
fn the_order_may_be_given() {
    let options = PlanOptions { order: Order::Given(vec![vec![1, 2], vec![0, 1]]), ..PlanOptions::default() };
    assert_snapshot!(plan_with(CHAIN, &chain(), &BindOptions::default(), &options), @"");
}

#[test]
fn many_operands_are_ordered_greedily() {
    let arguments = vec![f32(&[3, 3]); 9];
    let plan = plan("ab,bc,cd,de,ef,fg,gh,hi,ij->aj", &arguments);
    assert_eq!(plan.method, "greedy");
    assert_eq!(plan.steps.len(), 8);
}

#[test]
fn intermediate_results_share_memory_when_they_do_not_live_together() {
    let plan = plan("ab,bc,cd,de,ef->af", &vec![f32(&[8, 8]); 5]);
    assert!(plan.temps.iter().filter(|temp| temp.len > 0).count() >= 3);
    assert_eq!(plan.arena_bytes, 2 * 8 * 8 * 4, "two live at a time");
}

#[test]
fn slices_over_a_label_of_the_output() {
    let options = PlanOptions { memory_limit: Some(200), ..PlanOptions::default() };
    let arguments = [f32(&[7, 20, 30]), f32(&[7, 30, 20]), f32(&[20, 3])];
    assert_snapshot!(plan_with("bij,bjk,kl->bil", &arguments, &BindOptions::default(), &options), @"");
}

#[test]
fn slices_over_a_summed_label_are_added_up() {
    let options = PlanOptions { memory_limit: Some(60), ..PlanOptions::default() };
    let arguments = [f32(&[20, 30]), f32(&[30, 20]), f32(&[20, 20])];
    let plan = plan_with("ij,jk,ki->", &arguments, &BindOptions::default(), &options);
    assert!(plan.slice_sum.is_some());
    assert_snapshot!(plan, @"");
}

#[test]
fn half_types_keep_their_accumulator_between_steps() {
    let half = |shape: &[usize]| argument(DType::F16, shape);
    let plan = plan(CHAIN, &[half(&[5, 7]), half(&[7, 3]), half(&[3, 11])]);
    assert!(plan.temps.iter().any(|temp| temp.dtype == DType::F32));
    assert_snapshot!(plan, @"");
}

#[test]
fn a_narrower_result_is_rounded_once_at_the_end() {
    let options = BindOptions { dtype: Some(DType::F16), ..BindOptions::default() };
    let plan = plan_with("ij,jk->ik", &[f32(&[5, 7]), f32(&[7, 11])], &options, &PlanOptions::default());
    assert_eq!(plan.epilogue.as_ref().map(|step| step.output.0), Some(Slot::Output));
    assert_snapshot!(plan, @"");
}

#[test]
fn labels_of_length_1_take_no_part() {
    assert_snapshot!(plan("abij,abjk->abik", &[f32(&[1, 1, 5, 7]), f32(&[1, 1, 7, 11])]), @"");
}

#[test]
fn labels_of_length_0() {
    assert_snapshot!(plan("ij,jk->ik", &[f32(&[5, 0]), f32(&[0, 11])]), @"");
}

#[test]
fn bounds_reach_every_step() {
    let options = BindOptions { bounds: Bounds::Skip, ..BindOptions::default() };
    let arguments = [f32(&[7, 5]), argument(DType::F64, &[11, 5]), i64(&[7, 3]), f32(&[3])];
    let plan = plan_with("qd,[qk]d,k->qk", &arguments, &options, &PlanOptions::default());
    assert!(plan.steps.iter().all(|step| step.contraction.bounds == Bounds::Skip));
}

#[test]
fn a_preferred_kernel_is_taken_where_it_can_run() {
    let options = |name: &str| PlanOptions { kernel: Some(name.into()), ..PlanOptions::default() };
    let kernel = |name| {
        let arguments = [f32(&[20, 30]), f32(&[30, 50])];
        plan_with("ij,jk->ik", &arguments, &BindOptions::default(), &options(name)).steps[0].kernel()
    };
    assert_eq!([kernel("loops"), kernel("scatter"), kernel("nothing")], ["loops", "matrix", "matrix"]);
}

#[test]
fn the_same_call_gives_the_same_plan() {
    let arguments = vec![f32(&[3, 3]); 11];
    let equation = "ab,bc,cd,de,ef,fg,gh,hi,ij,jk,ka->";
    let first = plan(equation, &arguments);
    assert!((0..20).all(|_| plan(equation, &arguments) == first));
}
