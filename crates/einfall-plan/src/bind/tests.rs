//! Every message of binding, drawn as users see it, and what binding finds out by itself.

use einfall_equation::Equation;
use einfall_tensor::{DType, Layout};
use insta::assert_snapshot;

use super::*;

fn argument(dtype: DType, shape: &[usize]) -> Argument {
    Argument { dtype, layout: Layout::contiguous(shape) }
}

fn f32(shape: &[usize]) -> Argument {
    argument(DType::F32, shape)
}

fn i64(shape: &[usize]) -> Argument {
    argument(DType::I64, shape)
}

fn strided(shape: &[usize], strides: &[isize]) -> Argument {
    Argument { dtype: DType::F32, layout: Layout { shape: shape.into(), strides: strides.into() } }
}

fn sizes(list: &[(&str, usize)]) -> BindOptions {
    BindOptions { sizes: list.iter().map(|&(name, len)| (name.into(), len)).collect(), ..BindOptions::default() }
}

fn out(argument: Argument) -> BindOptions {
    BindOptions { out: Some(argument), ..BindOptions::default() }
}

fn bound(equation: &str, arguments: &[Argument], options: BindOptions) -> Problem {
    bind(&Equation::parse(equation).expect("an equation"), arguments, &options).unwrap_or_else(|e| panic!("{e}"))
}

#[track_caller]
fn refused(equation: &str, arguments: &[Argument], options: BindOptions) -> BindError {
    bind(&Equation::parse(equation).expect("an equation"), arguments, &options).expect_err("refused")
}

/// The message of a call that must be refused in the given way.
macro_rules! assert_refused {
    ($variant:ident, $equation:expr, $arguments:expr, $options:expr, @$snapshot:literal) => {{
        let error = refused($equation, &$arguments, $options);
        assert!(matches!(error, BindError::$variant(_)), "{error:?}");
        assert_snapshot!(error, @$snapshot);
    }};
    ($variant:ident, $equation:expr, $arguments:expr, @$snapshot:literal) => {
        assert_refused!($variant, $equation, $arguments, BindOptions::default(), @$snapshot);
    };
}

#[test]
fn argument_count() {
    assert_refused!(ArgumentCount, "ij,jk->ik", [f32(&[2, 3])], @"");
    assert_refused!(ArgumentCount, "ij->ji", [], @"");
    assert_refused!(ArgumentCount, "qd,[qk]d->qk", [f32(&[2, 3]), f32(&[7, 3])], @"");
    assert_refused!(ArgumentCount, "e,[e]d->[e]d", vec![f32(&[5]); 5], @"");
}

#[test]
fn rank() {
    assert_refused!(Rank, "ij,jk->ik", [f32(&[2, 3]), f32(&[2, 3, 5])], @"");
    assert_refused!(Rank, "i...j->...", [f32(&[2])], @"");
    assert_refused!(Rank, "qd,[qk]d->qk", [f32(&[2, 3]), f32(&[3]), i64(&[2, 5])], @"");
}

#[test]
fn table_rank() {
    assert_refused!(Rank, "qd,[qk]d->qk", [f32(&[2, 3]), f32(&[7, 3]), i64(&[2, 5, 1])], @"");
    assert_refused!(Rank, "e,d->[e]d", [f32(&[5]), f32(&[3]), i64(&[])], sizes(&[("[e]", 4)]), @"");
}

#[test]
fn size_conflict() {
    assert_refused!(SizeConflict, "bik,bkj->bij", [f32(&[64, 7, 512]), f32(&[64, 256, 128])], @"");
    assert_refused!(SizeConflict, "ii->i", [f32(&[2, 3])], @"");
    assert_refused!(SizeConflict, "...i,...i->...", [f32(&[3, 5]), f32(&[2, 5])], @"");
    assert_refused!(SizeConflict, "ij,ij->", [f32(&[0, 3]), f32(&[2, 3])], @"");
}

#[test]
fn size_conflict_with_a_table() {
    assert_refused!(SizeConflict, "qd,[qk]d->qk", [f32(&[2, 3]), f32(&[7, 3]), i64(&[5, 11])], @"");
    assert_refused!(SizeConflict, "[i],[i]->i", [f32(&[7]), i64(&[3]), f32(&[7]), i64(&[5])], @"");
}

#[test]
fn size_conflict_with_sizes() {
    assert_refused!(SizeConflict, "ij->j", [f32(&[2, 3])], sizes(&[("i", 5)]), @"");
}

#[test]
fn missing_size() {
    assert_refused!(MissingSize, "i->ij", [f32(&[2])], @"");
    assert_refused!(MissingSize, "[q+w-1]->q", [f32(&[7])], sizes(&[("q", 7)]), @"");
    assert_refused!(MissingSize, "[q+w]->q", [f32(&[7])], @"");
    assert_refused!(MissingSize, "e->[e]", [f32(&[7]), i64(&[7])], @"");
    assert_refused!(MissingSize, "bq,w->b[q+w-1]", [f32(&[2, 5]), f32(&[3])], @"");
}

#[test]
fn unknown_size() {
    assert_refused!(UnknownSize, "ij->j", [f32(&[2, 3])], sizes(&[("k", 5)]), @"");
    assert_refused!(UnknownSize, "ij->j", [f32(&[2, 3])], sizes(&[("ij", 6)]), @"");
    assert_refused!(UnknownSize, "[e]->e", [f32(&[2]), i64(&[3])], sizes(&[("[e]", 2)]), @"");
}

#[test]
fn table_type() {
    assert_refused!(DType, "qd,[qk]d->qk", [f32(&[2, 3]), f32(&[7, 3]), f32(&[2, 5])], @"");
    assert_refused!(DType, "e->[e]", [f32(&[5]), argument(DType::Bool, &[5])], sizes(&[("[e]", 2)]), @"");
}

#[test]
fn result_type() {
    let c64 = || argument(DType::C64, &[3]);
    let real = BindOptions { dtype: Some(DType::F64), ..BindOptions::default() };
    assert_refused!(DType, "i,i->", [c64(), f32(&[3])], real, @"");
    assert_refused!(DType, "i->i", [f32(&[3])], out(argument(DType::I32, &[3])), @"");
}

#[test]
fn out_of_another_shape() {
    assert_refused!(Out, "ij->ji", [f32(&[2, 3])], out(f32(&[3])), @"");
    assert_refused!(Out, "ij->ji", [f32(&[2, 3])], out(f32(&[2, 3])), @"");
    assert_refused!(Out, "ij->", [f32(&[2, 3])], out(f32(&[1])), @"");
    let both = BindOptions { out: Some(f32(&[4])), ..sizes(&[("[e]", 5)]) };
    assert_refused!(Out, "e->[e]", [f32(&[7]), i64(&[7])], both, @"");
}

#[test]
fn out_that_overlaps_itself() {
    assert_refused!(Out, "ij->ij", [f32(&[3, 3])], out(strided(&[3, 3], &[2, 1])), @"");
    assert_refused!(Out, "ij->i", [f32(&[3, 3])], out(strided(&[3], &[0])), @"");
}

#[test]
fn too_large() {
    let huge = 1 << 40;
    assert_refused!(TooLarge, "i,j->ij", [strided(&[huge], &[0]), strided(&[huge], &[0])], @"");
    assert_refused!(TooLarge, "ij->", [strided(&[huge, huge], &[0, 0])], @"");
    assert_refused!(TooLarge, "i->", [strided(&[3], &[isize::MAX])], @"");
    assert_refused!(TooLarge, "[9223372036854775807q]->q", [f32(&[3])], sizes(&[("q", 3)]), @"");
    let scattered = sizes(&[("[9223372036854775807q]", 5)]);
    assert_refused!(TooLarge, "q->[9223372036854775807q]", [f32(&[3])], scattered, @"");
}

/// Labels with their lengths, then the shape of the result.
fn lens(problem: &Problem) -> String {
    let labels: Vec<String> = problem.labels.iter().map(|label| format!("{}={}", label.name, label.len)).collect();
    format!("{} {:?}", labels.join(" "), problem.output_shape().as_slice())
}

#[test]
fn lengths_of_one_broadcast_in_operands_tables_and_sizes() {
    assert_eq!(lens(&bound("ij,ij->ij", &[f32(&[1, 3]), f32(&[2, 1])], sizes(&[]))), "i=2 j=3 [2, 3]");
    assert_eq!(lens(&bound("i->i", &[f32(&[1])], sizes(&[("i", 4)]))), "i=4 [4]");
    let table = [f32(&[2, 3]), f32(&[7, 3]), i64(&[1, 5])];
    let problem = bound("qd,[qk]d->qk", &table, sizes(&[]));
    assert_eq!(lens(&problem), "q=2 d=3 k=5 [2, 5]");
    assert_eq!(problem.tables[0].strides, [(LabelId(0), 0), (LabelId(2), 1)]);
    // One broadcasts to zero, too.
    assert_eq!(lens(&bound("i,i->i", &[f32(&[1]), f32(&[0])], sizes(&[]))), "i=0 [0]");
}

#[test]
fn ellipses_align_at_the_last_axis() {
    let problem = bound("...i,...->...i", &[f32(&[2, 3, 5]), f32(&[3])], sizes(&[]));
    assert_eq!(lens(&problem), "…0=3 …1=2 i=5 [2, 3, 5]");
    assert_eq!(lens(&bound("i...,...", &[f32(&[5, 3]), f32(&[2, 3])], sizes(&[]))), "…0=3 i=5 …1=2 [2, 3, 5]");
}

#[test]
fn windows_give_the_longest_length_that_stays_inside() {
    let image = [f32(&[10, 9]), f32(&[3, 2])];
    assert_eq!(lens(&bound("[x+u][2y+v],uv->xy", &image, sizes(&[]))), "x=8 u=3 y=4 v=2 [8, 4]");
    // Nothing fits.
    assert_eq!(lens(&bound("[x+u],u->x", &[f32(&[2]), f32(&[3])], sizes(&[]))), "x=0 u=3 [0]");
    // A chain of two.
    assert_eq!(lens(&bound("[x+u],[u+v],v->x", &[f32(&[9]), f32(&[5]), f32(&[2])], sizes(&[]))), "x=6 u=4 v=2 [6]");
}

#[test]
fn out_gives_lengths_that_nothing_else_gives() {
    assert_eq!(lens(&bound("i->ij", &[f32(&[2])], out(f32(&[2, 5])))), "i=2 j=5 [2, 5]");
    assert_eq!(lens(&bound("e->[e]", &[f32(&[7]), i64(&[7])], out(f32(&[5])))), "e=7 [5]");
}

#[test]
fn diagonals_have_the_sum_of_their_strides() {
    let problem = bound("iij->ij", &[f32(&[3, 3, 5])], sizes(&[]));
    assert_eq!(problem.operands[0].term.strides, [(LabelId(0), 20), (LabelId(1), 1)]);
}
