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
    assert_snapshot!(plan("ij,jk->ik", &[f32(&[20, 30]), f32(&[30, 50])]), @"
    ij,jk->ik   i=20 j=30 k=50   f32
    result [20, 50] f32, 2 threads, avx2
    1. ij,jk->ik   left i=20, right k=50, contracted j=30
       rows         -             the summed loop is not contiguous in both inputs
     * matrix       gemm            30.0 µs    60.0 kFLOP     12.4 kB
       scatter      -             the output is not scattered by a table
       loops        nest             300 µs    60.0 kFLOP     12.4 kB
    total   30.0 µs    60.0 kFLOP     12.4 kB; workspace 4.10 kB
    ");
}

#[test]
fn matrix_times_vector() {
    assert_snapshot!(plan("ij,j->i", &[f32(&[20, 30]), f32(&[30])]), @"
    ij,j->i   i=20 j=30   f32
    result [20] f32, 2 threads, avx2
    1. ij,j->i   left i=20, contracted j=30
     * rows         stream          1.20 µs    1.20 kFLOP     2.60 kB
       matrix       -             a vector on one side
       scatter      -             the output is not scattered by a table
       loops        nest            6.00 µs    1.20 kFLOP     2.60 kB
    total   1.20 µs    1.20 kFLOP     2.60 kB; workspace 0 B
    ");
}

#[test]
fn batched_product_fuses_what_lies_together() {
    let arguments = [f32(&[2, 3, 5, 7]), f32(&[2, 3, 7, 11])];
    assert_snapshot!(plan("bhij,bhjk->bhik", &arguments), @"
    bhij,bhjk->bhik   b=2 h=3 i=5 j=7 k=11   f32
    result [2, 3, 5, 11] f32, 2 threads, avx2
    1. bhij,bhjk->bhik   batch bh=6, left i=5, right k=11, contracted j=7
       rows         -             the summed loop is not contiguous in both inputs
     * matrix       gemm            2.31 µs    4.62 kFLOP     4.01 kB
       scatter      -             the output is not scattered by a table
       loops        nest            23.1 µs    4.62 kFLOP     4.01 kB
    total   2.31 µs    4.62 kFLOP     4.01 kB; workspace 4.10 kB
    ");
}

#[test]
fn diagonal() {
    assert_snapshot!(plan("ii->i", &[f32(&[7, 7])]), @"
    ii->i   i=7   f32
    result [7] f32, 2 threads, avx2
    1. i->i   left i=7
       rows         -             needs two inputs
       matrix       -             needs two plain inputs
       scatter      -             the output is not scattered by a table
     * loops        elementwise     70.0 ns       14 FLOP        56 B
    total   70.0 ns       14 FLOP        56 B; workspace 0 B
    ");
}

#[test]
fn trace() {
    assert_snapshot!(plan("ii->", &[f32(&[7, 7])]), @"
    ii->   i=7   f32
    result [] f32, 2 threads, avx2
    1. i->   contracted i=7
       rows         -             needs two inputs
       matrix       -             needs two plain inputs
       scatter      -             the output is not scattered by a table
     * loops        nest            70.0 ns       14 FLOP        32 B
    total   70.0 ns       14 FLOP        32 B; workspace 0 B
    ");
}

#[test]
fn transposition() {
    assert_snapshot!(plan("ijk->kij", &[f32(&[2, 3, 5])]), @"
    ijk->kij   i=2 j=3 k=5   f32
    result [5, 2, 3] f32, 2 threads, avx2
    1. ijk->kij   left k=5 ij=6
       rows         -             needs two inputs
       matrix       -             needs two plain inputs
       scatter      -             the output is not scattered by a table
     * loops        elementwise      300 ns       60 FLOP       240 B
    total    300 ns       60 FLOP       240 B; workspace 0 B
    ");
}

#[test]
fn outer_product() {
    assert_snapshot!(plan("i,j->ij", &[f32(&[20]), f32(&[30])]), @"
    i,j->ij   i=20 j=30   f32
    result [20, 30] f32, 2 threads, avx2
    1. i,j->ij   left i=20, right j=30
       rows         -             needs exactly one summed loop
     * matrix       gemm             600 ns    1.20 kFLOP     2.60 kB
       scatter      -             the output is not scattered by a table
       loops        elementwise     6.00 µs    1.20 kFLOP     2.60 kB
    total    600 ns    1.20 kFLOP     2.60 kB; workspace 4.10 kB
    ");
}

#[test]
fn scalars() {
    assert_snapshot!(plan(",->", &[f32(&[]), f32(&[])]), @"
    ,->      f32
    result [] f32, 2 threads, avx2
    1. ,->   one product
       rows         -             needs exactly one summed loop
       matrix       -             a vector on one side
       scatter      -             the output is not scattered by a table
     * loops        elementwise     10.0 ns        2 FLOP        12 B
    total   10.0 ns        2 FLOP        12 B; workspace 0 B
    ");
}

#[test]
fn stored_keys_are_a_batched_matrix_vector_product() {
    assert_snapshot!(plan("bqd,bqkd->bqk", &[f32(&[2, 7, 5]), f32(&[2, 7, 3, 5])]), @"
    bqd,bqkd->bqk   b=2 q=7 d=5 k=3   f32
    result [2, 7, 3] f32, 2 threads, avx2
    1. bqd,bqkd->bqk   batch bq=14, right k=3, contracted d=5
     * rows         stream           420 ns      420 FLOP     1.29 kB
       matrix       -             a vector on one side
       scatter      -             the output is not scattered by a table
       loops        nest            2.10 µs      420 FLOP     1.29 kB
    total    420 ns      420 FLOP     1.29 kB; workspace 0 B
    ");
}

#[test]
fn a_label_of_stride_0_moves_out_of_the_batch() {
    let expanded = strided(&[2, 7, 3, 5], &[15, 0, 5, 1]);
    assert_snapshot!(plan("bqd,bqkd->bqk", &[f32(&[2, 7, 5]), expanded]), @"
    bqd,bqkd->bqk   b=2 q=7 d=5 k=3   f32
    result [2, 7, 3] f32, 2 threads, avx2
    1. bqd,bkdq->bqk   batch b=2, left q=7, right k=3, contracted d=5
       rows         stream           420 ns      420 FLOP       568 B
     * matrix       gemm             210 ns      420 FLOP       568 B
       scatter      -             the output is not scattered by a table
       loops        nest            2.10 µs      420 FLOP       568 B
    total    210 ns      420 FLOP       568 B; workspace 4.10 kB
    ");
}

#[test]
fn looked_up_keys() {
    assert_snapshot!(plan("bqd,b[bqk]d->bqk", &[f32(&[2, 7, 5]), f32(&[2, 11, 5]), i64(&[2, 7, 3])]), @"
    bqd,b[bqk]d->bqk   b=2 q=7 d=5 k=3   f32
    result [2, 7, 3] f32, 2 threads, avx2
    1. bqd,bd[bqk]->bqk   batch b=2 q=7, right k=3, contracted d=5
     * rows         gather           420 ns      420 FLOP       888 B
       matrix       -             needs two plain inputs
       scatter      -             the output is not scattered by a table
       loops        nest            2.10 µs      420 FLOP       888 B
    total    420 ns      420 FLOP       888 B; workspace 0 B
    ");
}

#[test]
fn looked_up_keys_with_a_table_that_all_batches_share() {
    let table = Argument { dtype: DType::I32, ..strided(&[2, 7, 3], &[0, 3, 1]) };
    assert_snapshot!(plan("bqd,b[bqk]d->bqk", &[f32(&[2, 7, 5]), f32(&[2, 11, 5]), table]), @"
    bqd,b[bqk]d->bqk   b=2 q=7 d=5 k=3   f32
    result [2, 7, 3] f32, 2 threads, avx2
    1. bqd,bd[bqk]->bqk   batch b=2 q=7, right k=3, contracted d=5
     * rows         gather           420 ns      420 FLOP       888 B
       matrix       -             needs two plain inputs
       scatter      -             the output is not scattered by a table
       loops        nest            2.10 µs      420 FLOP       888 B
    total    420 ns      420 FLOP       888 B; workspace 0 B
    ");
}

#[test]
fn window_of_keys() {
    let plan =
        plan_with("qd,[q+w-1]d->qw", &[f32(&[7, 5]), f32(&[7, 5])], &sizes(&[("w", 3)]), &PlanOptions::default());
    assert_snapshot!(plan, @"
    qd,[q+w-1]d->qw   q=7 d=5 w=3   f32
    result [7, 3] f32, 2 threads, avx2
    1. qd,d[q+w-1]->qw   batch q=7, right w=3, contracted d=5
     * rows         gather           210 ns      210 FLOP       364 B
       matrix       -             needs two plain inputs
       scatter      -             the output is not scattered by a table
       loops        nest            1.05 µs      210 FLOP       364 B
    total    210 ns      210 FLOP       364 B; workspace 0 B
    ");
}

#[test]
fn convolution() {
    assert_snapshot!(plan("i[x+u][y+v],oiuv->oxy", &[f32(&[2, 9, 9]), f32(&[5, 2, 3, 3])]), @"
    i[x+u][y+v],oiuv->oxy   i=2 x=7 u=3 y=7 v=3 o=5   f32
    result [5, 7, 7] f32, 2 threads, avx2
    1. i[x+u][y+v],oiuv->oxy   left x=7 y=7, right o=5, contracted i=2 u=3 v=3
       rows         -             needs exactly one summed loop
     * matrix       gemm            4.41 µs    8.82 kFLOP     1.99 kB
       scatter      -             the output is not scattered by a table
       loops        nest            44.1 µs    8.82 kFLOP     1.99 kB
    total   4.41 µs    8.82 kFLOP     1.99 kB; workspace 4.10 kB
    ");
}

#[test]
fn scatter() {
    let arguments = [f32(&[13]), f32(&[7, 5]), i64(&[13]), i64(&[13])];
    let plan = plan_with("e,[e]d->[e]d", &arguments, &sizes(&[("[e]", 11)]), &PlanOptions::default());
    assert_snapshot!(plan, @"
    e,[e]d->[e]d   e=13 d=5   f32
    result [11, 5] f32, 2 threads, avx2
    1. e,d[e]->d[e]   batch e=13, right d=5
       rows         -             the output is scattered
       matrix       -             needs two plain inputs
     * scatter      inverted         195 ns      130 FLOP       412 B
       loops        nest             650 ns      130 FLOP       412 B
    total    195 ns      130 FLOP       412 B; workspace 1.00 kB
    ");
}

#[test]
fn scatter_into_another_type_collects_in_the_accumulator() {
    let arguments = [argument(DType::BF16, &[13, 5]), i64(&[13])];
    let plan = plan_with("ed->[e]d", &arguments, &sizes(&[("[e]", 11)]), &PlanOptions::default());
    assert_snapshot!(plan, @"
    ed->[e]d   e=13 d=5   bf16
    result [11, 5] bf16, 2 threads, avx2
    1. ed->d[e]   left d=5 e=13
       rows         -             needs two inputs
       matrix       -             needs two plain inputs
     * scatter      inverted         195 ns      130 FLOP       240 B
       loops        nest             650 ns      130 FLOP       240 B
    2. f32 to bf16   left 01=55
       why: the result is added up in its accumulator before it is stored
       rows         -             needs two inputs
       matrix       -             needs two plain inputs
       scatter      -             the output is not scattered by a table
     * loops        elementwise      550 ns      110 FLOP       440 B
    total    745 ns      240 FLOP       680 B; workspace 1.26 kB
    ");
}

#[test]
fn ellipsis() {
    assert_snapshot!(plan("...ij,...jk->...ik", &[f32(&[2, 3, 5, 7]), f32(&[3, 7, 11])]), @"
    ...ij,...jk->...ik   …0=3 …1=2 i=5 j=7 k=11   f32
    result [2, 3, 5, 11] f32, 2 threads, avx2
    1. …1…0ij,…0jk->…1…0ik   batch …0=3, left …1=2 i=5, right k=11, contracted j=7
       rows         -             the summed loop is not contiguous in both inputs
     * matrix       gemm            2.31 µs    4.62 kFLOP     3.08 kB
       scatter      -             the output is not scattered by a table
       loops        nest            23.1 µs    4.62 kFLOP     3.08 kB
    total   2.31 µs    4.62 kFLOP     3.08 kB; workspace 4.10 kB
    ");
}

#[test]
fn labels_of_one_operand_alone_are_summed_early() {
    assert_snapshot!(plan("aij,jkb->ik", &[f32(&[13, 5, 7]), f32(&[7, 11, 17])]), @"
    aij,jkb->ik   a=13 i=5 j=7 k=11 b=17   f32
    result [5, 11] f32, 2 threads, avx2
    order: pair
    1. aij->ij   left ij=35, contracted a=13
       why: labels of one operand alone are summed first
       rows         -             needs two inputs
       matrix       -             needs two plain inputs
       scatter      -             the output is not scattered by a table
     * loops        nest            4.55 µs      910 FLOP     1.96 kB
    2. jkb->jk   left jk=77, contracted b=17
       why: labels of one operand alone are summed first
       rows         -             needs two inputs
       matrix       -             needs two plain inputs
       scatter      -             the output is not scattered by a table
     * loops        nest            13.1 µs    2.62 kFLOP     5.54 kB
    3. ij,jk->ik   left i=5, right k=11, contracted j=7
       rows         -             the summed loop is not contiguous in both inputs
     * matrix       gemm             385 ns      770 FLOP       668 B
       scatter      -             the output is not scattered by a table
       loops        nest            3.85 µs      770 FLOP       668 B
    total   18.0 µs    4.30 kFLOP     8.17 kB; workspace 4.61 kB
    ");
}

const CHAIN: &str = "ab,bc,cd->ad";

fn chain() -> [Argument; 3] {
    [f32(&[50, 40]), f32(&[40, 3]), f32(&[3, 60])]
}

#[test]
fn three_operands_start_at_the_cheap_end() {
    assert_snapshot!(plan(CHAIN, &chain()), @"
    ab,bc,cd->ad   a=50 b=40 c=3 d=60   f32
    result [50, 60] f32, 2 threads, avx2
    order: exact
    1. ab,bc->ac   left a=50, right c=3, contracted b=40
       rows         -             the summed loop is not contiguous in both inputs
     * matrix       gemm            6.00 µs    12.0 kFLOP     9.08 kB
       scatter      -             the output is not scattered by a table
       loops        nest            60.0 µs    12.0 kFLOP     9.08 kB
    2. cd,ac->ad   left d=60, right a=50, contracted c=3
       rows         -             the summed loop is not contiguous in both inputs
     * matrix       gemm            9.00 µs    18.0 kFLOP     13.3 kB
       scatter      -             the output is not scattered by a table
       loops        nest            90.0 µs    18.0 kFLOP     13.3 kB
    total   15.0 µs    30.0 kFLOP     22.4 kB; workspace 4.74 kB
    ");
}

#[test]
fn the_order_may_be_given() {
    let options = PlanOptions { order: Order::Given(vec![vec![1, 2], vec![0, 1]]), ..PlanOptions::default() };
    assert_snapshot!(plan_with(CHAIN, &chain(), &BindOptions::default(), &options), @"
    ab,bc,cd->ad   a=50 b=40 c=3 d=60   f32
    result [50, 60] f32, 2 threads, avx2
    order: given
    1. bc,cd->bd   left b=40, right d=60, contracted c=3
       rows         -             the summed loop is not contiguous in both inputs
     * matrix       gemm            7.20 µs    14.4 kFLOP     10.8 kB
       scatter      -             the output is not scattered by a table
       loops        nest            72.0 µs    14.4 kFLOP     10.8 kB
    2. ab,bd->ad   left a=50, right d=60, contracted b=40
       rows         -             the summed loop is not contiguous in both inputs
     * matrix       gemm             120 µs     240 kFLOP     29.6 kB
       scatter      -             the output is not scattered by a table
       loops        nest            1.20 ms     240 kFLOP     29.6 kB
    total    127 µs     254 kFLOP     40.4 kB; workspace 13.7 kB
    ");
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
    assert_snapshot!(plan_with("bij,bjk,kl->bil", &arguments, &BindOptions::default(), &options), @"
    bij,bjk,kl->bil   b=7 i=20 j=30 k=20 l=3   f32
    result [7, 20, 3] f32, 2 threads, avx2
    order: exact
    sliced over b: 7 times
    1. bjk,kl->jl   left j=30, right l=3, contracted k=20
       rows         -             the summed loop is not contiguous in both inputs
     * matrix       gemm            1.80 µs    3.60 kFLOP     3.00 kB
       scatter      -             the output is not scattered by a table
       loops        nest            18.0 µs    3.60 kFLOP     3.00 kB
    2. bij,jl->bil   left i=20, right l=3, contracted j=30
       rows         -             the summed loop is not contiguous in both inputs
     * matrix       gemm            1.80 µs    3.60 kFLOP     3.00 kB
       scatter      -             the output is not scattered by a table
       loops        nest            18.0 µs    3.60 kFLOP     3.00 kB
    total   25.2 µs    50.4 kFLOP     42.0 kB; workspace 4.48 kB
    ");
}

#[test]
fn slices_over_a_summed_label_are_added_up() {
    let options = PlanOptions { memory_limit: Some(60), ..PlanOptions::default() };
    let arguments = [f32(&[20, 30]), f32(&[30, 20]), f32(&[20, 20])];
    let plan = plan_with("ij,jk,ki->", &arguments, &BindOptions::default(), &options);
    assert!(plan.slice_sum.is_some());
    assert_snapshot!(plan, @"
    ij,jk,ki->   i=20 j=30 k=20   f32
    result [] f32, 2 threads, avx2
    order: exact
    sliced over i: 20 times
    1. ij,jk->k   right k=20, contracted j=30
       rows         -             the summed loop is not contiguous in both inputs
       matrix       -             a vector on one side
       scatter      -             the output is not scattered by a table
     * loops        nest            6.00 µs    1.20 kFLOP     2.60 kB
    2. ki,k->   contracted k=20
       rows         -             the summed loop is not contiguous in both inputs
       matrix       -             a vector on one side
       scatter      -             the output is not scattered by a table
     * loops        nest             200 ns       40 FLOP       164 B
    3. f32 to f32   one product
       why: the result is added up in its accumulator before it is stored
       rows         -             needs two inputs
       matrix       -             needs two plain inputs
       scatter      -             the output is not scattered by a table
     * loops        elementwise     10.0 ns        2 FLOP         8 B
    total    124 µs    24.8 kFLOP     55.3 kB; workspace 256 B
    ");
}

#[test]
fn half_types_keep_their_accumulator_between_steps() {
    let half = |shape: &[usize]| argument(DType::F16, shape);
    let plan = plan(CHAIN, &[half(&[5, 7]), half(&[7, 3]), half(&[3, 11])]);
    assert!(plan.temps.iter().any(|temp| temp.dtype == DType::F32));
    assert_snapshot!(plan, @"
    ab,bc,cd->ad   a=5 b=7 c=3 d=11   f16
    result [5, 11] f16, 2 threads, avx2
    order: exact
    1. ab,bc->ac   left a=5, right c=3, contracted b=7
       rows         -             the summed loop is not contiguous in both inputs
     * matrix       gemm             105 ns      210 FLOP       142 B
       scatter      -             the output is not scattered by a table
       loops        nest            1.05 µs      210 FLOP       142 B
    2. f16 to f32   left 01=33
       why: operands of different types meet in one
       rows         -             needs two inputs
       matrix       -             needs two plain inputs
       scatter      -             the output is not scattered by a table
     * loops        elementwise      330 ns       66 FLOP       132 B
    3. cd,ac->ad   left d=11, right a=5, contracted c=3
       rows         -             the summed loop is not contiguous in both inputs
     * matrix       gemm             165 ns      330 FLOP       412 B
       scatter      -             the output is not scattered by a table
       loops        nest            1.65 µs      330 FLOP       412 B
    4. f32 to f16   left 01=55
       why: the result is added up in its accumulator before it is stored
       rows         -             needs two inputs
       matrix       -             needs two plain inputs
       scatter      -             the output is not scattered by a table
     * loops        elementwise      550 ns      110 FLOP       440 B
    total   1.15 µs      716 FLOP     1.13 kB; workspace 4.61 kB
    ");
}

#[test]
fn a_narrower_result_is_rounded_once_at_the_end() {
    let options = BindOptions { dtype: Some(DType::F16), ..BindOptions::default() };
    let plan = plan_with("ij,jk->ik", &[f32(&[5, 7]), f32(&[7, 11])], &options, &PlanOptions::default());
    assert_eq!(plan.epilogue.as_ref().map(|step| step.output.0), Some(Slot::Output));
    assert_snapshot!(plan, @"
    ij,jk->ik   i=5 j=7 k=11   f32
    result [5, 11] f16, 2 threads, avx2
    1. ij,jk->ik   left i=5, right k=11, contracted j=7
       rows         -             the summed loop is not contiguous in both inputs
     * matrix       gemm             385 ns      770 FLOP       668 B
       scatter      -             the output is not scattered by a table
       loops        nest            3.85 µs      770 FLOP       668 B
    2. f32 to f16   left 01=55
       why: the result is added up in its accumulator before it is stored
       rows         -             needs two inputs
       matrix       -             needs two plain inputs
       scatter      -             the output is not scattered by a table
     * loops        elementwise      550 ns      110 FLOP       440 B
    total    935 ns      880 FLOP     1.11 kB; workspace 4.35 kB
    ");
}

#[test]
fn labels_of_length_1_take_no_part() {
    assert_snapshot!(plan("abij,abjk->abik", &[f32(&[1, 1, 5, 7]), f32(&[1, 1, 7, 11])]), @"
    abij,abjk->abik   a=1 b=1 i=5 j=7 k=11   f32
    result [1, 1, 5, 11] f32, 2 threads, avx2
    1. abij,abjk->abik   left i=5, right k=11, contracted j=7
       rows         -             the summed loop is not contiguous in both inputs
     * matrix       gemm             385 ns      770 FLOP       668 B
       scatter      -             the output is not scattered by a table
       loops        nest            3.85 µs      770 FLOP       668 B
    total    385 ns      770 FLOP       668 B; workspace 4.10 kB
    ");
}

#[test]
fn labels_of_length_0() {
    assert_snapshot!(plan("ij,jk->ik", &[f32(&[5, 0]), f32(&[0, 11])]), @"
    ij,jk->ik   i=5 j=0 k=11   f32
    result [5, 11] f32, 2 threads, avx2
    1. ij,jk->ik   contracted j=0
       why: a label of length 0 leaves nothing to add up
       rows         -             needs two inputs
       matrix       -             needs two plain inputs
       scatter      -             the output is not scattered by a table
     * loops        nest            0.00 ns        0 FLOP         8 B
    total   0.00 ns        0 FLOP         8 B; workspace 0 B
    ");
}

#[test]
fn beside_a_label_of_length_0_others_may_be_as_long_as_they_like() {
    const MOST: usize = usize::MAX;
    let wild = [isize::MIN, isize::MAX, 1 << 40];
    let first = strided(&[0, MOST, MOST - 1], &wild);
    let arguments = [first, strided(&[0, MOST - 1, 1 << 62], &wild), strided(&[1 << 62, 1], &[0, 1])];
    for memory_limit in [None, Some(0)] {
        let options = PlanOptions { memory_limit, ..PlanOptions::default() };
        let plan = plan_with("bij,bjk,kl->bil", &arguments, &BindOptions::default(), &options);
        assert_eq!((plan.steps.len(), plan.workspace_bytes, plan.slice_count()), (1, 0, 1.0));
        assert_eq!(plan.cost().flops, 0.0);
    }
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
    assert_eq!([kernel("loops"), kernel("scatter")], ["loops", "matrix"]);
}

#[test]
fn the_same_call_gives_the_same_plan() {
    let arguments = vec![f32(&[3, 3]); 11];
    let equation = "ab,bc,cd,de,ef,fg,gh,hi,ij,jk,ka->";
    let first = plan(equation, &arguments);
    assert!((0..20).all(|_| plan(equation, &arguments) == first));
}
