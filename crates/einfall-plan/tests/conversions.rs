//! Operands of different types: what is copied, and how the copies lie.

mod common;

use common::{KERNELS, argument, f32, i64, strided, try_plan};
use einfall_plan::{Argument, BindOptions, Plan, PlanOptions, Slot};
use einfall_tensor::DType;
use insta::assert_snapshot;

fn plan(equation: &str, arguments: &[Argument]) -> Plan {
    let planned = try_plan(equation, arguments, &BindOptions::default(), KERNELS, &PlanOptions::default());
    planned.unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn operands_of_different_types_are_converted() {
    assert_snapshot!(plan("ij,jk->ik", &[argument(DType::I32, &[5, 7]), f32(&[7, 11])]), @"
    ij,jk->ik   i=5 j=7 k=11   f64
    result [5, 11] f64, 2 threads, avx2
    order: pair
    1. i32 to f64   left 01=35
       why: operands of different types meet in one
       rows         -             needs two inputs
       matrix       -             needs two plain inputs
       scatter      -             the output is not scattered by a table
     * loops        elementwise      350 ns       70 FLOP       280 B
    2. f32 to f64   left 01=77
       why: operands of different types meet in one
       rows         -             needs two inputs
       matrix       -             needs two plain inputs
       scatter      -             the output is not scattered by a table
     * loops        elementwise      770 ns      154 FLOP       616 B
    3. ij,jk->ik   left i=5, right k=11, contracted j=7
       rows         -             the summed loop is not contiguous in both inputs
     * matrix       gemm             385 ns      770 FLOP     1.34 kB
       scatter      -             the output is not scattered by a table
       loops        nest            3.85 µs      770 FLOP     1.34 kB
    total   1.51 µs      994 FLOP     2.23 kB; workspace 5.06 kB
    ");
}

#[test]
fn broadcast_axes_are_dropped_from_converted_copies() {
    let expanded = Argument { dtype: DType::I16, ..strided(&[5, 7], &[0, 1]) };
    let plan = plan("ij,jk->ik", &[expanded, f32(&[7, 11])]);
    assert_eq!(plan.temps[0].len, 7);
    assert_snapshot!(plan, @"
    ij,jk->ik   i=5 j=7 k=11   f32
    result [5, 11] f32, 2 threads, avx2
    order: pair
    1. i16 to f32   left 0=7
       why: operands of different types meet in one
       rows         -             needs two inputs
       matrix       -             needs two plain inputs
       scatter      -             the output is not scattered by a table
     * loops        elementwise     70.0 ns       14 FLOP        28 B
    2. ji,jk->ik   left i=5, right k=11, contracted j=7
       rows         -             the summed loop is not contiguous in both inputs
     * matrix       gemm             385 ns      770 FLOP       556 B
       scatter      -             the output is not scattered by a table
       loops        nest            3.85 µs      770 FLOP       556 B
    total    455 ns      784 FLOP       584 B; workspace 4.16 kB
    ");
}

#[test]
fn converted_operands_keep_their_lookups() {
    let keys = argument(DType::BF16, &[11, 5]);
    assert_snapshot!(plan("qd,[qk]d->qk", &[f32(&[7, 5]), keys, i64(&[7, 3])]), @"
    qd,[qk]d->qk   q=7 d=5 k=3   f32
    result [7, 3] f32, 2 threads, avx2
    order: pair
    1. bf16 to f32   left 10=55
       why: operands of different types meet in one
       rows         -             needs two inputs
       matrix       -             needs two plain inputs
       scatter      -             the output is not scattered by a table
     * loops        elementwise      550 ns      110 FLOP       220 B
    2. qd,d[qk]->qk   batch q=7, right k=3, contracted d=5
     * rows         gather           210 ns      210 FLOP       444 B
       matrix       -             needs two plain inputs
       scatter      -             the output is not scattered by a table
       loops        nest            1.05 µs      210 FLOP       444 B
    total    760 ns      320 FLOP       664 B; workspace 256 B
    ");
}

/// Elements of the first converted copy, and the strides of the operand of the last step that reads it.
fn converted(equation: &str, arguments: &[Argument]) -> (usize, Vec<isize>, Vec<isize>) {
    let plan = plan(equation, arguments);
    let last = plan.steps.last().expect("a step");
    let (_, term) = last.inputs.iter().find(|(slot, _)| *slot == Slot::Temp(0)).expect("the copy is read");
    let direct = term.strides.iter().map(|(_, stride)| *stride).collect();
    let chosen = term.lookups.iter().map(|l| l.stride).chain(term.windows.iter().map(|w| w.stride)).collect();
    (plan.temps[0].len, direct, chosen)
}

#[test]
fn converted_operands_keep_the_order_of_their_axes() {
    let half = |shape: &[usize], strides: &[isize]| Argument { dtype: DType::BF16, ..strided(shape, strides) };
    let queries = || f32(&[2, 7, 5]);
    let table = || i64(&[2, 7, 3]);
    // Rows stay contiguous, gaps go.
    let keys = half(&[2, 11, 5], &[200, 10, 1]);
    assert_eq!(converted("bqd,b[bqk]d->bqk", &[queries(), keys, table()]), (110, vec![55, 1], vec![5]));
    // Columns stay contiguous where they were, and whatever ran backwards runs forwards.
    let keys = half(&[2, 11, 5], &[55, 1, -11]);
    assert_eq!(converted("bqd,b[bqk]d->bqk", &[queries(), keys, table()]), (110, vec![55, 11], vec![1]));
    assert_eq!(converted("ij,jk->ik", &[half(&[5, 7], &[1, 5]), f32(&[7, 3])]), (35, vec![1, 5], vec![]));
    // The rows of a window.
    let keys = half(&[7, 5], &[5, 1]);
    assert_eq!(converted("qd,[q+w]d->qw", &[f32(&[5, 5]), keys]), (35, vec![1], vec![5]));
    // Rows that repeat are kept once, labelled or looked up.
    let keys = half(&[2, 11, 5], &[5, 0, 1]);
    assert_eq!(converted("bqd,b[bqk]d->bqk", &[queries(), keys, table()]), (10, vec![5, 1], vec![0]));
}

#[test]
fn nothing_is_read_of_an_empty_operand_to_be_converted() {
    // No element, so nothing may be read, whatever the strides.
    for strides in [[0, 1], [0, 0], [5, 1]] {
        let half = |shape: &[usize]| Argument { dtype: DType::BF16, ..strided(shape, &strides) };
        assert!(plan("ij,ij->ij", &[f32(&[0, 5]), half(&[0, 5])]).temps.is_empty());
        assert_eq!(converted("id,[i]d->id", &[f32(&[3, 5]), half(&[0, 5]), i64(&[3])]).0, 0);
    }
}
