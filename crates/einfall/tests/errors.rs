//! What a call says when its data, or the arguments of a prepared call, are wrong; and what `out` may be.

mod common;

use einfall::{
    Bounds, CpuDevice, DType, Einsum, Equation, Error, Layout, RunError, TensorError, View, ViewMut, einsum,
    einsum_into,
};
use einfall_testing::case::Buffer;
use einfall_testing::generator::malformed_case;
use insta::assert_snapshot;

fn count(n: usize) -> Vec<f32> {
    (1..=n).map(|value| value as f32).collect()
}

fn refused<T>(result: Result<T, Error>) -> Error {
    match result {
        Ok(_) => panic!("accepted"),
        Err(error) => error,
    }
}

#[test]
fn table_values_outside_their_axis_are_named() {
    let (queries, keys) = (count(4), count(6));
    let scores = |table: &View<'_>| {
        let queries = View::from_slice(&queries, &[2, 2])?;
        einsum("qd,[qk]d->qk", &[queries, View::from_slice(&keys, &[3, 2])?, table.clone()])
    };
    let error = refused(scores(&View::from_slice(&[0i32, 2, 3, 1, 2, -1], &[2, 3]).unwrap()));
    assert!(matches!(error, Error::Run(RunError::TableValue { argument: 2, value: 3, len: 3, .. })));
    assert_snapshot!(error, @"
    table argument 2 holds 3 at [0, 2], outside the axis of length 3
    hint: bounds `skip` leaves such terms out
    ");
    assert_snapshot!(refused(scores(&View::from_slice(&[0i8, -1], &[2, 1]).unwrap())), @"
    table argument 2 holds -1 at [1, 0], outside the axis of length 3
    hint: bounds `skip` leaves such terms out
    ");
    assert_snapshot!(refused(scores(&View::from_slice(&[0, u64::MAX], &[2, 1]).unwrap())), @"
    table argument 2 holds 18446744073709551615 at [1, 0], outside the axis of length 3
    hint: bounds `skip` leaves such terms out
    ");
    assert_snapshot!(refused(scores(&View::from_slice(&[i64::MIN, 0], &[2, 1]).unwrap())), @"
    table argument 2 holds -9223372036854775808 at [0, 0], outside the axis of length 3
    hint: bounds `skip` leaves such terms out
    ");
    // A transposed table: the position is the one that the caller sees.
    let strided = View::from_slice_strided(&[0i64, 1, 2, 7, 0, 1], &[2, 3], &[1, 2], 0).unwrap();
    assert_snapshot!(refused(scores(&strided)), @"
    table argument 2 holds 7 at [1, 1], outside the axis of length 3
    hint: bounds `skip` leaves such terms out
    ");
}

#[test]
fn the_value_of_a_table_points_at_its_bracket() {
    let (x, table) = (count(3), [0i64, 5, 1]);
    let arguments = [View::from_slice(&x, &[3]).unwrap(), View::from_slice(&table, &[3]).unwrap()];
    let error = refused(Einsum::new("e->[e]").size("[e]", 5).run(&arguments));
    assert_snapshot!(error.diagnostic(&Equation::parse("e -> [e]").unwrap()).unwrap(), @"
    table argument 1 holds 5 at [1], outside the axis of length 5
      e -> [e]
           ^^^
    hint: bounds `skip` leaves such terms out
    ");
    // Another equation may have no such table: then there is no place to point at.
    assert!(error.diagnostic(&Equation::parse("e->e").unwrap()).is_none());
}

#[test]
fn a_label_of_the_output_alone_may_be_a_slip() {
    let x = count(6);
    let x = |shape: &[usize]| View::from_slice(&x[..shape.iter().product()], shape).unwrap();
    assert_snapshot!(refused(einsum("ij,jk->iz", &[x(&[2, 3]), x(&[3, 2])])), @"
    nothing gives label `z` a length
      ij,jk->iz
              ^
    hint: did you mean the output `ik`? no operand has `z`: to repeat the result along it, name it in `sizes`, as in `z=4`
    ");
    assert_snapshot!(refused(einsum("ij->ijz", &[x(&[2, 3])])), @"
    nothing gives label `z` a length
      ij->ijz
            ^
    hint: no operand has `z`: to repeat the result along it, name it in `sizes`, as in `z=4`
    ");
    // What an operand has, though without a length, is no slip.
    assert_snapshot!(refused(einsum("[q+w]->q", &[x(&[3])])), @"
    nothing gives label `q` a length
      [q+w]->q
      ^^^^^
    hint: name it in `sizes`, as in `q=4`
    ");
    let repeated = Einsum::new("ij,jk->iz").size("z", 2).run(&[x(&[2, 3]), x(&[3, 2])]).unwrap();
    assert_eq!(repeated.as_slice::<f32>().unwrap(), [50.0, 50.0, 113.0, 113.0]);
}

#[test]
fn the_first_of_several_tables_is_named() {
    let x = count(3);
    let x = || View::from_slice(&x, &[3]).unwrap();
    let table = |values| View::from_slice(values, &[2]).unwrap();
    let (good, bad) = ([0i64, 2], [1i64, 3]);
    let product = |first, second| einsum("[e],[e]->e", &[x(), table(first), x(), table(second)]);
    assert_snapshot!(refused(product(&good, &bad)), @"
    table argument 3 holds 3 at [1], outside the axis of length 3
    hint: bounds `skip` leaves such terms out
    ");
    assert_snapshot!(refused(product(&bad, &bad)), @"
    table argument 1 holds 3 at [1], outside the axis of length 3
    hint: bounds `skip` leaves such terms out
    ");
}

#[test]
fn a_scattered_axis_is_checked_too() {
    let (x, table) = (count(3), [0i64, 5, 1]);
    let arguments = [View::from_slice(&x, &[3]).unwrap(), View::from_slice(&table, &[3]).unwrap()];
    assert_snapshot!(refused(Einsum::new("e->[e]").size("[e]", 5).run(&arguments)), @"
    table argument 1 holds 5 at [1], outside the axis of length 5
    hint: bounds `skip` leaves such terms out
    ");
    let kept = Einsum::new("e->[e]").size("[e]", 5).bounds(Bounds::Skip).run(&arguments).unwrap();
    assert_eq!(kept.as_slice::<f32>().unwrap(), [1.0, 3.0, 0.0, 0.0, 0.0]);
}

#[test]
fn tables_are_checked_even_where_nothing_is_summed() {
    let (x, table) = (count(0), [9i64]);
    let arguments = [View::from_slice(&x, &[3, 0]).unwrap(), View::from_slice(&table, &[1]).unwrap()];
    assert_snapshot!(refused(einsum("[k]d->k", &arguments)), @"
    table argument 1 holds 9 at [0], outside the axis of length 3
    hint: bounds `skip` leaves such terms out
    ");
}

#[test]
fn nothing_is_written_when_a_table_is_wrong() {
    let (x, table) = (count(3), [0i64, 1, 3]);
    let arguments = [View::from_slice(&x, &[3]).unwrap(), View::from_slice(&table, &[3]).unwrap()];
    let mut out = [7.0f32; 3];
    let mut view = ViewMut::from_slice(&mut out, &[3]).unwrap();
    assert!(einsum_into("[k]->k", &arguments, &mut view).is_err());
    assert_eq!(out, [7.0; 3]);
}

#[test]
fn skipped_terms_are_left_out_even_where_row_0_is_nan() {
    let rows = [f32::NAN, f32::INFINITY, 3.0, 4.0];
    let (weights, table) = ([f32::INFINITY, 2.0, f32::NAN], [-1i64, 1, 2]);
    let arguments = [
        View::from_slice(&weights, &[3]).unwrap(),
        View::from_slice(&rows, &[2, 2]).unwrap(),
        View::from_slice(&table, &[3]).unwrap(),
    ];
    let sum = Einsum::new("k,[k]d->d").bounds(Bounds::Skip).run(&arguments).unwrap();
    assert_eq!(sum.as_slice::<f32>().unwrap(), [6.0, 8.0]);
    let dots = Einsum::new("k,[k]d->kd").bounds(Bounds::Skip).run(&arguments).unwrap();
    assert_eq!(dots.as_slice::<f32>().unwrap(), [0.0, 0.0, 6.0, 8.0, 0.0, 0.0]);
}

#[test]
fn a_prepared_call_takes_only_what_it_was_planned_for() {
    let (a, wide) = (count(6), [1.0f64; 6]);
    let planned = |shape: &[usize]| View::from_slice(&a, shape).unwrap();
    let prepared = Einsum::new("ij,jk->ik").plan(&[planned(&[2, 3]), planned(&[3, 2])]).unwrap();
    let run = |left, right| refused(prepared.run(&[left, right]));
    assert_snapshot!(run(planned(&[3, 2]), planned(&[3, 2])), @"argument 0 is f32 [3, 2] with strides [2, 1] but the plan was made for f32 [2, 3] with strides [3, 1]");
    assert_snapshot!(run(planned(&[2, 3]), View::from_slice(&wide, &[3, 2]).unwrap()), @"argument 1 is f64 [3, 2] with strides [2, 1] but the plan was made for f32 [3, 2] with strides [2, 1]");
    let transposed = View::from_slice_strided(&a, &[3, 2], &[1, 3], 0).unwrap();
    assert_snapshot!(run(planned(&[2, 3]), transposed), @"argument 1 is f32 [3, 2] with strides [1, 3] but the plan was made for f32 [3, 2] with strides [2, 1]");
    assert_snapshot!(refused(prepared.run(&[planned(&[2, 3])])), @"the plan was made for 2 arguments but 1 was given");
    let mut out = [0.0f32; 4];
    let mut out = ViewMut::from_slice(&mut out, &[4, 1]).unwrap();
    assert_snapshot!(refused(prepared.run_into(&[planned(&[2, 3]), planned(&[3, 2])], &mut out)), @"`out` is f32 [4, 1] with strides [1, 1] but the plan was made for f32 [2, 2] with strides [2, 1]");
}

#[test]
fn out_must_have_the_shape_and_a_type_of_the_result() {
    let a = count(6);
    let transpose = |out: &mut ViewMut<'_>| einsum_into("ij->ji", &[View::from_slice(&a, &[2, 3]).unwrap()], out);
    let mut data = [0.0f32; 6];
    assert_snapshot!(refused(transpose(&mut ViewMut::from_slice(&mut data, &[2, 3]).unwrap())), @"
    `out` has shape [2, 3] but the result has shape [3, 2]
      ij->ji
          ^^
    ");
    assert_snapshot!(refused(transpose(&mut ViewMut::from_slice(&mut data, &[6]).unwrap())), @"
    `out` has 1 axis but the result has 2
      ij->ji
          ^^
    ");
    assert_snapshot!(refused(transpose(&mut ViewMut::from_slice(&mut [0i64; 6], &[3, 2]).unwrap())), @"
    a result of type f32 cannot be stored in `out` of type i64
      ij->ji
          ^^
    ");
    transpose(&mut ViewMut::from_slice(&mut data, &[3, 2]).unwrap()).unwrap();
    assert_eq!(data, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
}

#[test]
fn out_must_not_overlap_itself() {
    let mut data = [0.0f32; 5];
    let error = ViewMut::from_slice_strided(&mut data, &[3, 3], &[1, 1], 0).unwrap_err();
    assert!(matches!(error, TensorError::SelfOverlap { .. }));
    assert_snapshot!(error, @"shape [3, 3] with strides [1, 1] overlaps itself and cannot be written");
}

/// A view to read and one to write of the same numbers.
fn aliased(data: &mut [f32], read: Layout, write: Layout) -> (View<'_>, ViewMut<'_>) {
    let pointer = data.as_mut_ptr().cast::<u8>();
    // SAFETY: both layouts lie inside the slice, which stays borrowed; overlapping arguments are allowed.
    #[allow(unsafe_code)]
    unsafe {
        let out = ViewMut::from_raw_parts(pointer, DType::F32, write).expect("no overlap with itself");
        (View::from_raw_parts(pointer, DType::F32, read), out)
    }
}

#[test]
fn out_may_overlap_an_input() {
    let square = || Layout::contiguous(&[3, 3]);
    let mut data = count(9);
    let (x, mut out) = aliased(&mut data, square(), square());
    einsum_into("ij->ji", &[x], &mut out).unwrap();
    assert_eq!(data, [1.0, 4.0, 7.0, 2.0, 5.0, 8.0, 3.0, 6.0, 9.0]);

    let mut data = count(9);
    let (x, mut out) = aliased(&mut data, square(), square());
    einsum_into("ij,jk->ik", &[x.clone(), x], &mut out).unwrap();
    assert_eq!(data, [30.0, 36.0, 42.0, 66.0, 81.0, 96.0, 102.0, 126.0, 150.0]);

    // Into the first row, the rest stays.
    let mut data = count(9);
    let (x, mut out) = aliased(&mut data, square(), Layout::contiguous(&[3]));
    einsum_into("ij->j", &[x], &mut out).unwrap();
    assert_eq!(data, [12.0, 15.0, 18.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
}

#[test]
fn out_may_overlap_the_rows_that_are_scattered_into_it() {
    let table = [2i64, 0, 2];
    let mut data = count(6);
    let (x, mut out) = aliased(&mut data, Layout::contiguous(&[3, 2]), Layout::contiguous(&[3, 2]));
    let table = View::from_slice(&table, &[3]).unwrap();
    Einsum::new("ed->[e]d").run_into(&[x, table], &mut out).unwrap();
    assert_eq!(data, [3.0, 4.0, 0.0, 0.0, 6.0, 8.0]);
}

#[test]
fn out_may_overlap_an_input_under_an_ellipsis() {
    let table = [2i64, 0, 2];
    let mut data = count(6);
    let (x, mut out) = aliased(&mut data, Layout::contiguous(&[2, 3]), Layout::contiguous(&[2, 3]));
    let table = View::from_slice(&table, &[3]).unwrap();
    Einsum::new("...e->...[e]").run_into(&[x, table], &mut out).unwrap();
    assert_eq!(data, [2.0, 0.0, 4.0, 5.0, 0.0, 10.0]);
}

#[test]
fn an_overlap_changes_no_bit() {
    // 2²⁴ + 1 is no f32: in f32 the first sum is 2²⁴, in f64, the type of `out`, it would be one more.
    let (numbers, ones) = ([16_777_216.0f32, 1.0, 3.0, 5.0], [1.0f32, 1.0]);
    let ones = View::from_slice(&ones, &[2]).unwrap();
    let mut apart = [0.0f64; 2];
    let arguments = [View::from_slice(&numbers, &[2, 2]).unwrap(), ones.clone()];
    einsum_into("ij,j->i", &arguments, &mut ViewMut::from_slice(&mut apart, &[2]).unwrap()).unwrap();
    assert_eq!(apart, [16_777_216.0, 8.0]);
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_ne_bytes()).collect();
    let pointer = bytes.as_mut_ptr();
    // SAFETY: both layouts lie inside the 16 bytes, which stay borrowed; overlapping arguments are allowed.
    #[allow(unsafe_code)]
    let (x, mut out) = unsafe {
        let out = ViewMut::from_raw_parts(pointer, DType::F64, Layout::contiguous(&[2])).expect("regular");
        (View::from_raw_parts(pointer, DType::F32, Layout::contiguous(&[2, 2])), out)
    };
    einsum_into("ij,j->i", &[x, ones], &mut out).unwrap();
    assert_eq!(out.as_view().to_vec::<f64>().unwrap(), apart);
}

#[test]
fn lengths_that_only_out_gives_survive_an_overlap() {
    let mut data = count(6);
    let (x, mut out) = aliased(&mut data, Layout::contiguous(&[2]), Layout::contiguous(&[2, 3]));
    einsum_into("i->ij", &[x], &mut out).unwrap();
    assert_eq!(data, [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
}

#[test]
fn a_prepared_call_refuses_other_arguments_before_it_reads_them() {
    let (x, table) = (count(3), [0i64, 2]);
    let arguments = [View::from_slice(&x, &[3]).unwrap(), View::from_slice(&table, &[2]).unwrap()];
    let prepared = Einsum::new("[i]->i").plan(&arguments).unwrap();
    let mut data = count(2);
    let mut out = ViewMut::from_slice(&mut data, &[2]).unwrap();
    assert_snapshot!(refused(prepared.run_into(&arguments[..1], &mut out)), @"the plan was made for 2 arguments but 1 was given");
    assert_snapshot!(refused(prepared.run(&arguments[..1])), @"the plan was made for 2 arguments but 1 was given");
    // The same where `out` overlaps.
    let mut data = count(9);
    let (x, mut out) =
        aliased(&mut data, Layout::contiguous(&[3]), Layout { shape: [2][..].into(), strides: [3][..].into() });
    assert_snapshot!(refused(prepared.run_into(&[x, arguments[1].clone()], &mut out)), @"`out` is f32 [2] with strides [3] but the plan was made for f32 [2] with strides [1]");
}

#[test]
fn mistakes_of_every_stage_have_one_error_type() {
    let x = count(3);
    let x = || View::from_slice(&x, &[3]).unwrap();
    assert!(matches!(refused(einsum("i->ii", &[x()])), Error::Parse(_)));
    assert!(matches!(refused(einsum("ij->i", &[x()])), Error::Bind(_)));
    let limited = Einsum::new("i,j,k->ijk").memory_limit(0);
    assert!(matches!(refused(limited.run(&[x(), x(), x()])), Error::Plan(_)));
    assert!(matches!(Error::from(View::from_slice(&[1.0f32], &[2]).unwrap_err()), Error::Tensor(_)));
}

#[test]
fn malformed_problems_are_refused() {
    let device = CpuDevice::new(1).unwrap();
    for seed in 0..400 {
        let (case, class) = malformed_case(seed);
        // A layout that leaves its storage is refused before there is a call.
        let Ok(buffers) = case.materialise() else { continue };
        let views: Vec<View<'_>> = buffers.iter().map(Buffer::view).collect();
        let result = common::call(&case, &device).run(&views);
        assert!(result.is_err(), "accepted in spite of a mistake of class {class}\n{case}");
    }
}
