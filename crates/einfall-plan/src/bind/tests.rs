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
    assert_refused!(ArgumentCount, "ij,jk->ik", [f32(&[2, 3])], @"
    the equation takes 2 arguments but 1 was given
      ij,jk->ik
    ");
    assert_refused!(ArgumentCount, "ij->ji", [], @"
    the equation takes 1 argument but 0 were given
      ij->ji
    ");
    assert_refused!(ArgumentCount, "qd,[qk]d->qk", [f32(&[2, 3]), f32(&[7, 3])], @"
    the equation takes 3 arguments but 2 were given
      qd,[qk]d->qk
    hint: 2 operands and 1 table: a table goes right after its operand, in the order of the brackets; those of the output last
    ");
    assert_refused!(ArgumentCount, "e,[e]d->[e]d", vec![f32(&[5]); 5], @"
    the equation takes 4 arguments but 5 were given
      e,[e]d->[e]d
    hint: 2 operands and 2 tables: a table goes right after its operand, in the order of the brackets; those of the output last
    ");
}

#[test]
fn rank() {
    assert_refused!(Rank, "ij,jk->ik", [f32(&[2, 3]), f32(&[2, 3, 5])], @"
    operand 1 has 3 axes but `jk` names 2
      ij,jk->ik
         ^^
    hint: its shape is [2, 3, 5]
    ");
    assert_refused!(Rank, "i...j->...", [f32(&[2])], @"
    operand 0 has 1 axis but `i...j` names at least 2
      i...j->...
      ^^^^^
    hint: its shape is [2]
    ");
    assert_refused!(Rank, "qd,[qk]d->qk", [f32(&[2, 3]), f32(&[3]), i64(&[2, 5])], @"
    operand 1 has 1 axis but `[qk]d` names 2
      qd,[qk]d->qk
         ^^^^^
    hint: its shape is [3]
    ");
}

#[test]
fn one_stride_an_axis() {
    assert_refused!(Rank, "ij->i", [strided(&[2, 3], &[1])], @"
    argument 0 has 2 axes but 1 stride
      ij->i
    ");
    assert_refused!(Rank, "i->i", [f32(&[2])], out(strided(&[2], &[1, 1])), @"
    `out` has 1 axis but 2 strides
      i->i
    ");
}

#[test]
fn long_terms_are_quoted_in_part() {
    assert_refused!(Rank, &"ij".repeat(50_000), [f32(&[2])], @"
    operand 0 has 1 axis but `ijijijijijijijijijijijijijijij…jijijijijijijijijijijijijijij` names 100000
      ijijijijijijijiji…jijijijijijijijij
      ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    hint: its shape is [2]
    ");
}

#[test]
fn table_rank() {
    assert_refused!(Rank, "qd,[qk]d->qk", [f32(&[2, 3]), f32(&[7, 3]), i64(&[2, 5, 1])], @"
    the table of `[qk]`, argument 2, has 3 axes but 2 subscripts
      qd,[qk]d->qk
         ^^^^
    hint: its shape is [2, 5, 1]
    ");
    assert_refused!(Rank, "e,d->[e]d", [f32(&[5]), f32(&[3]), i64(&[])], sizes(&[("[e]", 4)]), @"
    the table of `[e]`, argument 2, has 0 axes but 1 subscript
      e,d->[e]d
           ^^^
    hint: its shape is []
    ");
}

#[test]
fn size_conflict() {
    assert_refused!(SizeConflict, "bik,bkj->bij", [f32(&[64, 7, 512]), f32(&[64, 256, 128])], @"
    label `k` is 512 in operand 0 but 256 in operand 1
      bik,bkj->bij
        ^  ^
    hint: operand 1 has shape [64, 256, 128]
    ");
    assert_refused!(SizeConflict, "ii->i", [f32(&[2, 3])], @"
    label `i` is 2 in operand 0 but 3 in operand 0
      ii->i
      ^^
    hint: operand 0 has shape [2, 3]
    ");
    assert_refused!(SizeConflict, "...i,...i->...", [f32(&[3, 5]), f32(&[2, 5])], @"
    an axis of `...` is 3 in operand 0 but 2 in operand 1
      ...i,...i->...
      ^^^  ^^^
    hint: operand 1 has shape [2, 5]
    ");
    assert_refused!(SizeConflict, "ij,ij->", [f32(&[0, 3]), f32(&[2, 3])], @"
    label `i` is 0 in operand 0 but 2 in operand 1
      ij,ij->
      ^  ^
    hint: operand 1 has shape [2, 3]
    ");
}

#[test]
fn size_conflict_with_a_table() {
    assert_refused!(SizeConflict, "qd,[qk]d->qk", [f32(&[2, 3]), f32(&[7, 3]), i64(&[5, 11])], @"
    label `q` is 2 in operand 0 but 5 in table argument 2
      qd,[qk]d->qk
      ^  ^^^^
    hint: table argument 2 has shape [5, 11]
    ");
    assert_refused!(SizeConflict, "[i],[i]->i", [f32(&[7]), i64(&[3]), f32(&[7]), i64(&[5])], @"
    label `i` is 3 in table argument 1 but 5 in table argument 3
      [i],[i]->i
      ^^^ ^^^
    hint: table argument 3 has shape [5]
    ");
}

#[test]
fn a_size_conflict_suggests_what_would_fit() {
    assert_refused!(SizeConflict, "bik,bkj->bij", [f32(&[64, 7, 512]), f32(&[64, 128, 512])], @"
    label `k` is 512 in operand 0 but 128 in operand 1
      bik,bkj->bij
        ^  ^
    hint: operand 1 has shape [64, 128, 512]; did you mean `bjk`?
    ");
    // Of several orders the one that moves least.
    assert_refused!(SizeConflict, "abc,cab->", [f32(&[2, 3, 5]), f32(&[3, 2, 5])], @"
    label `c` is 5 in operand 0 but 3 in operand 1
      abc,cab->
        ^ ^
    hint: operand 1 has shape [3, 2, 5]; did you mean `bac`?
    ");
    // Two orders fit equally well: none is named.
    assert_refused!(SizeConflict, "a,abc->bc", [f32(&[2]), f32(&[3, 2, 2])], @"
    label `a` is 2 in operand 0 but 3 in operand 1
      a,abc->bc
      ^ ^
    hint: operand 1 has shape [3, 2, 2]
    ");
    // Another letter.
    assert_refused!(SizeConflict, "ij,ji,ki->k", [f32(&[2, 3]), f32(&[3, 2]), f32(&[5, 3])], @"
    label `i` is 2 in operand 0 but 3 in operand 2
      ij,ji,ki->k
      ^      ^
    hint: operand 2 has shape [5, 3]; did you mean `kj`?
    ");
    // The first operand is the odd one.
    assert_refused!(SizeConflict, "dq,[qk]d->qk", [f32(&[2, 3]), f32(&[7, 3]), i64(&[2, 11])], @"
    label `d` is 2 in operand 0 but 3 in operand 1
      dq,[qk]d->qk
      ^      ^
    hint: operand 0 has shape [2, 3]; did you mean `qd`?
    ");
    // What stands in brackets stays.
    assert_refused!(SizeConflict, "qd,d[qk]->qk", [f32(&[2, 3]), f32(&[7, 3]), i64(&[2, 11])], @"
    label `d` is 3 in operand 0 but 7 in operand 1
      qd,d[qk]->qk
       ^ ^
    hint: operand 1 has shape [7, 3]
    ");
    // Nothing fits.
    assert_refused!(SizeConflict, "ij,jk->ik", [f32(&[2, 3]), f32(&[5, 7])], @"
    label `j` is 3 in operand 0 but 5 in operand 1
      ij,jk->ik
       ^ ^
    hint: operand 1 has shape [5, 7]
    ");
}

#[test]
fn size_conflict_with_sizes() {
    assert_refused!(SizeConflict, "ij->j", [f32(&[2, 3])], sizes(&[("i", 5)]), @"
    label `i` is 2 in operand 0 but 5 in `sizes`
      ij->j
      ^
    ");
}

#[test]
fn missing_size() {
    assert_refused!(MissingSize, "i->ij", [f32(&[2])], @"
    nothing gives label `j` a length
      i->ij
          ^
    hint: name it in `sizes`, as in `j=4`
    ");
    assert_refused!(MissingSize, "[q+w-1]->q", [f32(&[7])], sizes(&[("q", 7)]), @"
    nothing gives label `w` a length
      [q+w-1]->q
      ^^^^^^^
    hint: name it in `sizes`, as in `w=4`
    ");
    assert_refused!(MissingSize, "[q+w]->q", [f32(&[7])], @"
    nothing gives label `q` a length
      [q+w]->q
      ^^^^^
    hint: name it in `sizes`, as in `q=4`
    ");
    assert_refused!(MissingSize, "e->[e]", [f32(&[7]), i64(&[7])], @"
    nothing gives the output axis `[e]` a length
      e->[e]
         ^^^
    hint: name it in `sizes`, as in `[e]=1000`
    ");
    assert_refused!(MissingSize, "bq,w->b[q+w-1]", [f32(&[2, 5]), f32(&[3])], @"
    nothing gives the output axis `[q+w-1]` a length
      bq,w->b[q+w-1]
             ^^^^^^^
    hint: name it in `sizes`, as in `[q+w-1]=1000`
    ");
}

#[test]
fn unknown_size() {
    assert_refused!(UnknownSize, "ij->j", [f32(&[2, 3])], sizes(&[("k", 5)]), @"
    `sizes` names `k`, which the equation does not have
      ij->j
    hint: a key is a label, or a whole bracket of the output such as `[e]`
    ");
    assert_refused!(UnknownSize, "ij->j", [f32(&[2, 3])], sizes(&[("ij", 6)]), @"
    `sizes` names `ij`, which the equation does not have
      ij->j
    hint: a key is a label, or a whole bracket of the output such as `[e]`
    ");
    assert_refused!(UnknownSize, "[e]->e", [f32(&[2]), i64(&[3])], sizes(&[("[e]", 2)]), @"
    `sizes` names `[e]`, which the equation does not have
      [e]->e
    hint: a key is a label, or a whole bracket of the output such as `[e]`
    ");
}

#[test]
fn table_type() {
    assert_refused!(DType, "qd,[qk]d->qk", [f32(&[2, 3]), f32(&[7, 3]), f32(&[2, 5])], @"
    the table of `[qk]`, argument 2, is f32, not an integer type
      qd,[qk]d->qk
         ^^^^
    ");
    assert_refused!(DType, "e->[e]", [f32(&[5]), argument(DType::Bool, &[5])], sizes(&[("[e]", 2)]), @"
    the table of `[e]`, argument 1, is bool, not an integer type
      e->[e]
         ^^^
    ");
}

#[test]
fn result_type() {
    let c64 = || argument(DType::C64, &[3]);
    let real = BindOptions { dtype: Some(DType::F64), ..BindOptions::default() };
    assert_refused!(DType, "i,i->", [c64(), f32(&[3])], real, @"
    operands of type c64 cannot give a result of type f64
      i,i->
    ");
    assert_refused!(DType, "i->i", [f32(&[3])], out(argument(DType::I32, &[3])), @"
    a result of type f32 cannot be stored in `out` of type i32
      i->i
         ^
    ");
}

#[test]
fn out_of_another_shape() {
    assert_refused!(Out, "ij->ji", [f32(&[2, 3])], out(f32(&[3])), @"
    `out` has 1 axis but the result has 2
      ij->ji
          ^^
    ");
    assert_refused!(Out, "ij->ji", [f32(&[2, 3])], out(f32(&[2, 3])), @"
    `out` has shape [2, 3] but the result has shape [3, 2]
      ij->ji
          ^^
    ");
    assert_refused!(Out, "ij->", [f32(&[2, 3])], out(f32(&[1])), @"
    `out` has 1 axis but the result has 0
      ij->
          ^
    ");
    let both = BindOptions { out: Some(f32(&[4])), ..sizes(&[("[e]", 5)]) };
    assert_refused!(Out, "e->[e]", [f32(&[7]), i64(&[7])], both, @"
    axis `[e]` is 4 in `out` but 5 in `sizes`
      e->[e]
         ^^^
    ");
}

#[test]
fn out_that_overlaps_itself() {
    assert_refused!(Out, "ij->ij", [f32(&[3, 3])], out(strided(&[3, 3], &[2, 1])), @"
    `out` with strides [2, 1] overlaps itself
      ij->ij
          ^^
    ");
    assert_refused!(Out, "ij->i", [f32(&[3, 3])], out(strided(&[3], &[0])), @"
    `out` with strides [0] overlaps itself
      ij->i
          ^
    ");
}

#[test]
fn too_large() {
    let huge = 1 << 40;
    assert_refused!(TooLarge, "i,j->ij", [strided(&[huge], &[0]), strided(&[huge], &[0])], @"
    the result would have shape [1099511627776, 1099511627776], more than can be addressed
      i,j->ij
           ^^
    ");
    assert_refused!(TooLarge, "ij->", [strided(&[huge, huge], &[0, 0])], @"
    operand 0: shape [1099511627776, 1099511627776] needs more elements than can be addressed
      ij->
      ^^
    ");
    assert_refused!(TooLarge, "i->", [strided(&[3], &[isize::MAX])], @"
    operand 0: shape [3] needs more elements than can be addressed
      i->
      ^
    ");
    assert_refused!(TooLarge, "[9223372036854775807q]->q", [f32(&[3])], sizes(&[("q", 3)]), @"
    operand 0: a window position does not fit 64 bits
      [9223372036854775807q]->q
      ^^^^^^^^^^^^^^^^^^^^^^
    ");
    let scattered = sizes(&[("[9223372036854775807q]", 5)]);
    assert_refused!(TooLarge, "q->[9223372036854775807q]", [f32(&[3])], scattered, @"
    a window position of the output does not fit 64 bits
      q->[9223372036854775807q]
         ^^^^^^^^^^^^^^^^^^^^^^
    ");
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
    assert_eq!(lens(&bound("i...,...", &[f32(&[5, 3]), f32(&[2, 3])], sizes(&[]))), "i=5 …0=3 …1=2 [2, 3, 5]");
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
