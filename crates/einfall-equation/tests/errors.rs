//! The message of every mistake, drawn as users see it.

use einfall_equation::{Affine, Axis, Equation, Label, Operand, ParseErrorKind as Kind};
use insta::assert_snapshot;

/// The rendered error of a text that has the given mistake.
#[track_caller]
fn refused(text: &str, kind: Kind) -> String {
    let error = Equation::parse(text).expect_err("refused");
    assert_eq!(error.kind(), kind, "{error}");
    assert_eq!(error.diagnostic().text, text);
    error.to_string()
}

#[test]
fn unexpected_character() {
    assert_snapshot!(refused("row_col->row", Kind::UnexpectedCharacter), @r"
    unexpected `_` in operand 0
      row_col->row
         ^
    hint: a label is one letter, and space does not separate names: write `ij`, not `row col`
    ");
    assert_snapshot!(refused("ij;jk->ik", Kind::UnexpectedCharacter), @r"
    unexpected `;` in operand 0
      ij;jk->ik
        ^
    hint: operands are separated by `,`
    ");
    assert_snapshot!(refused("ij,jk->i|k", Kind::UnexpectedCharacter), @r"
    unexpected `|` in the output
      ij,jk->i|k
              ^
    hint: operands are separated by `,`
    ");
    assert_snapshot!(refused("bq[q−1]->b", Kind::UnexpectedCharacter), @r"
    unexpected `−` in operand 0
      bq[q−1]->b
          ^
    hint: the minus sign of a window is `-`, and the arrow is `->`
    ");
    assert_snapshot!(refused("ij,j×k", Kind::UnexpectedCharacter), @r"
    unexpected `×` in operand 1
      ij,j×k
          ^
    hint: operands are separated by `,`
    ");
    assert_snapshot!(refused("i\"j\"", Kind::UnexpectedCharacter), @r#"
    unexpected `"` in operand 0
      i"j"
       ^
    hint: quotation marks and backslashes are no part of an equation
    "#);
    assert_snapshot!(refused("i²j", Kind::UnexpectedCharacter), @r"
    unexpected `²` in operand 0
      i²j
       ^
    hint: numbers are written with the digits 0 to 9, inside brackets
    ");
    assert_snapshot!(refused("ij\u{7}k", Kind::UnexpectedCharacter), @r"
    unexpected `\u{7}` in operand 0
      ij\u{7}k
        ^^^^^
    hint: the character cannot be seen: delete it
    ");
    assert_snapshot!(refused("i🦀j->i", Kind::UnexpectedCharacter), @r"
    unexpected `🦀` in operand 0
      i🦀j->i
       ^^
    hint: a label is one letter
    ");
    assert_snapshot!(refused("b【q】->b", Kind::UnexpectedCharacter), @r"
    unexpected `【` in operand 0
      b【q】->b
       ^^
    hint: brackets are `[` and `]`
    ");
    assert_snapshot!(refused("ij<jk", Kind::UnexpectedCharacter), @r"
    unexpected `<` in operand 0
      ij<jk
        ^
    hint: write `->` before the output
    ");
    assert_snapshot!(refused("[q;w]", Kind::UnexpectedCharacter), @r"
    unexpected `;` in operand 0
      [q;w]
        ^
    hint: operands are separated by `,`
    ");
    assert_snapshot!(refused("i\u{202e}j->ji", Kind::UnexpectedCharacter), @r"
    unexpected `\u{202e}` in operand 0
      i\u{202e}j->ji
       ^^^^^^^^
    hint: the character cannot be seen: delete it
    ");
}

#[test]
fn combining_mark() {
    assert_snapshot!(refused("a\u{301}b->b", Kind::CombiningMark), @r"
    combining mark `\u{301}` in operand 0
      a\u{301}b->b
       ^^^^^^^
    hint: a label is one character: use a letter without a mark, or one in which the mark is built in
    ");
}

#[test]
fn number_outside_brackets() {
    assert_snapshot!(refused("i1,i2->i1", Kind::NumberOutsideBrackets), @r"
    a number outside brackets in operand 0
      i1,i2->i1
       ^
    hint: a label is one letter; a fixed position is written `[3]`
    ");
    assert_snapshot!(refused("bq3[q+w]", Kind::NumberOutsideBrackets), @r"
    a number outside brackets in operand 0
      bq3[q+w]
        ^
    hint: a label is one letter; a fixed position is written `[3]`
    ");
}

#[test]
fn sign_outside_brackets() {
    assert_snapshot!(refused("i-j", Kind::SignOutsideBrackets), @r"
    `-` outside brackets in operand 0
      i-j
       ^
    hint: `->` stands before the output, and a window is written `[i-j]`
    ");
    assert_snapshot!(refused("ij+jk", Kind::SignOutsideBrackets), @r"
    `+` outside brackets in operand 0
      ij+jk
        ^
    hint: a window is written `[i+j]`, and an equation has one product, so add the results of two
    ");
    assert_snapshot!(refused("ij*jk->ik", Kind::SignOutsideBrackets), @r"
    `*` outside brackets in operand 0
      ij*jk->ik
        ^
    hint: operands are separated by `,`
    ");
    assert_snapshot!(refused("ij,jk-ik", Kind::SignOutsideBrackets), @r"
    `-` outside brackets in operand 1
      ij,jk-ik
           ^
    hint: `->` stands before the output, and a window is written `[i-j]`
    ");
}

#[test]
fn wrong_arrow() {
    assert_snapshot!(refused("ij=>i", Kind::WrongArrow), @r"
    `=>` where `->` is meant
      ij=>i
        ^^
    hint: `->` stands before the output
    ");
    assert_snapshot!(refused("ij→i", Kind::WrongArrow), @r"
    `→` where `->` is meant
      ij→i
        ^
    hint: `->` stands before the output
    ");
    assert_snapshot!(refused("ij>i", Kind::WrongArrow), @r"
    `>` where `->` is meant
      ij>i
        ^
    hint: `->` stands before the output
    ");
    assert_snapshot!(refused("λ⇒", Kind::WrongArrow), @r"
    `⇒` where `->` is meant
      λ⇒
       ^
    hint: `->` stands before the output
    ");
    assert_snapshot!(refused("ij = i", Kind::WrongArrow), @r"
    `=` where `->` is meant
      ij = i
         ^
    hint: `->` stands before the output
    ");
}

#[test]
fn second_arrow() {
    assert_snapshot!(refused("ij->i->j", Kind::SecondArrow), @r"
    a second `->`
      ij->i->j
        ^^ ^^
    hint: an equation has one output: bind the first result to a name and give it to a second equation
    ");
}

#[test]
fn comma_in_output() {
    assert_snapshot!(refused("ij->i,j", Kind::CommaInOutput), @r"
    `,` after `->`
      ij->i,j
           ^
    hint: an equation has one output: write one equation for each
    ");
}

#[test]
fn wrong_ellipsis() {
    assert_snapshot!(refused(".ij", Kind::WrongEllipsis), @r"
    `.` in operand 0 is not an ellipsis
      .ij
      ^
    hint: write three full stops: `...`
    ");
    assert_snapshot!(refused("i..j->j", Kind::WrongEllipsis), @r"
    `..` in operand 0 is not an ellipsis
      i..j->j
       ^^
    hint: write three full stops: `...`
    ");
    assert_snapshot!(refused(". . . .i", Kind::WrongEllipsis), @r"
    `. . . .` in operand 0 is not an ellipsis
      . . . .i
      ^^^^^^^
    hint: write three full stops: `...`
    ");
    assert_snapshot!(refused("…ij->ji", Kind::WrongEllipsis), @r"
    `…` in operand 0 is not an ellipsis
      …ij->ji
      ^
    hint: write three full stops: `...`
    ");
}

#[test]
fn second_ellipsis() {
    assert_snapshot!(refused("i,j...k...->k", Kind::SecondEllipsis), @r"
    a second `...` in operand 1
      i,j...k...->k
         ^^^ ^^^
    hint: `...` stands for all axes that have no label, so once is enough
    ");
    assert_snapshot!(refused("......", Kind::SecondEllipsis), @r"
    a second `...` in operand 0
      ......
      ^^^^^^
    hint: `...` stands for all axes that have no label, so once is enough
    ");
}

#[test]
fn wrong_bracket() {
    assert_snapshot!(refused("b (h w) c -> b c", Kind::WrongBracket), @r"
    round bracket in operand 0
      b (h w) c -> b c
        ^
    hint: axes are not grouped: write their labels one after the other and reshape outside
    ");
    assert_snapshot!(refused("b{hw}", Kind::WrongBracket), @r"
    curly bracket in operand 0
      b{hw}
       ^
    hint: a lookup is written `[ij]`, a window `[i+j]`
    ");
    assert_snapshot!(refused("b[(h)]", Kind::WrongBracket), @r"
    round bracket in operand 0
      b[(h)]
        ^
    hint: axes are not grouped: write their labels one after the other and reshape outside
    ");
}

#[test]
fn unclosed_bracket() {
    assert_snapshot!(refused("bhqd,bh[bhqkd->bhqk", Kind::UnclosedBracket), @r"
    `[` without `]` in operand 1
      bhqd,bh[bhqkd->bhqk
             ^
    hint: a lookup is written `[ij]`, a window `[i+j]`
    ");
    assert_snapshot!(refused("e,[ed,d->d", Kind::UnclosedBracket), @r"
    `[` without `]` in operand 1
      e,[ed,d->d
        ^
    hint: a lookup is written `[ij]`, a window `[i+j]`
    ");
    assert_snapshot!(refused("b[q[k]", Kind::UnclosedBracket), @r"
    `[` without `]` in operand 0
      b[q[k]
       ^
    hint: a lookup is written `[ij]`, a window `[i+j]`
    ");
    assert_snapshot!(refused("[", Kind::UnclosedBracket), @r"
    `[` without `]` in operand 0
      [
      ^
    hint: a lookup is written `[ij]`, a window `[i+j]`
    ");
    assert_snapshot!(refused("b[q->b", Kind::UnclosedBracket), @r"
    `[` without `]` in operand 0
      b[q->b
       ^
    hint: a lookup is written `[ij]`, a window `[i+j]`
    ");
}

#[test]
fn unopened_bracket() {
    assert_snapshot!(refused("bhqd,bhbhqk]d->bhqk", Kind::UnopenedBracket), @r"
    `]` without `[` in operand 1
      bhqd,bhbhqk]d->bhqk
                 ^
    hint: a lookup is written `[ij]`, a window `[i+j]`
    ");
}

#[test]
fn nested_bracket() {
    assert_snapshot!(refused("b[q[k]]d->bd", Kind::NestedBracket), @r"
    `[` inside brackets in operand 0
      b[q[k]]d->bd
       ^ ^
    hint: a table is looked up with labels only; look its own entries up beforehand
    ");
}

#[test]
fn ellipsis_in_brackets() {
    assert_snapshot!(refused("b[...k]d", Kind::EllipsisInBrackets), @r"
    `...` inside brackets in operand 0
      b[...k]d
        ^^^
    hint: name the axes of the table, each by its label
    ");
}

#[test]
fn comma_in_brackets() {
    assert_snapshot!(refused("b[b,q,k]d->bqk", Kind::CommaInBrackets), @r"
    `,` inside brackets in operand 0
      b[b,q,k]d->bqk
         ^
    hint: the labels of a table follow each other: `[bq]`
    ");
}

#[test]
fn missing_sign() {
    assert_snapshot!(refused("b[qw+1]d", Kind::MissingSign), @r"
    no sign between `q` and `w` in operand 0
      b[qw+1]d
        ^^
    hint: brackets hold labels only (a lookup) or a sum with `+` and `-` (a window)
    ");
    assert_snapshot!(refused("b[q2]d", Kind::MissingSign), @r"
    number after label `q` in a window of operand 0
      b[q2]d
        ^^
    hint: a coefficient stands before its label, `2q`; a sum has a sign, `q+2`
    ");
    assert_snapshot!(refused("b[3 q + 2 w 4]", Kind::MissingSign), @r"
    number after label `w` in a window of operand 0
      b[3 q + 2 w 4]
                ^^^
    hint: a coefficient stands before its label, `4w`; a sum has a sign, `w+4`
    ");
    assert_snapshot!(refused("[1*q 2*w]", Kind::MissingSign), @r"
    number after label `q` in a window of operand 0
      [1*q 2*w]
         ^^^
    hint: a coefficient stands before its label, `2q`; a sum has a sign, `q+2`
    ");
    assert_snapshot!(refused("[q+w3]", Kind::MissingSign), @r"
    number after label `w` in a window of operand 0
      [q+w3]
         ^^
    hint: a coefficient stands before its label, `3w`; a sum has a sign, `w+3`
    ");
}

#[test]
fn missing_term() {
    assert_snapshot!(refused("b[q+]d", Kind::MissingTerm), @r"
    sign without a term in operand 0
      b[q+]d
         ^
    hint: a window is a sum such as `[q+w-3]` or `[-2q+5]`
    ");
    assert_snapshot!(refused("b[q--w]", Kind::MissingTerm), @r"
    sign without a term in operand 0
      b[q--w]
         ^^
    hint: a window is a sum such as `[q+w-3]` or `[-2q+5]`
    ");
    assert_snapshot!(refused("[-]", Kind::MissingTerm), @r"
    sign without a term in operand 0
      [-]
       ^
    hint: a window is a sum such as `[q+w-3]` or `[-2q+5]`
    ");
    assert_snapshot!(refused(" [ + ] ", Kind::MissingTerm), @r"
    sign without a term in operand 0
       [ + ]
         ^
    hint: a window is a sum such as `[q+w-3]` or `[-2q+5]`
    ");
}

#[test]
fn product() {
    assert_snapshot!(refused("[q*w]", Kind::Product), @r"
    `*` in operand 0 is not between an integer and a label
      [q*w]
        ^
    hint: only an integer can multiply a label, from the left: `[2q]` or `[2*q]`
    ");
    assert_snapshot!(refused("[2*3]", Kind::Product), @r"
    `*` in operand 0 is not between an integer and a label
      [2*3]
        ^
    hint: only an integer can multiply a label, from the left: `[2q]` or `[2*q]`
    ");
    assert_snapshot!(refused("[*q]", Kind::Product), @r"
    `*` in operand 0 is not between an integer and a label
      [*q]
       ^
    hint: only an integer can multiply a label, from the left: `[2q]` or `[2*q]`
    ");
    assert_snapshot!(refused("[q*2]", Kind::Product), @r"
    `*` in operand 0 is not between an integer and a label
      [q*2]
        ^
    hint: only an integer can multiply a label, from the left: `[2q]` or `[2*q]`
    ");
    assert_snapshot!(refused("[2**q]", Kind::Product), @r"
    `*` in operand 0 is not between an integer and a label
      [2**q]
        ^
    hint: only an integer can multiply a label, from the left: `[2q]` or `[2*q]`
    ");
    assert_snapshot!(refused("[1+*q]", Kind::Product), @r"
    `*` in operand 0 is not between an integer and a label
      [1+*q]
         ^
    hint: only an integer can multiply a label, from the left: `[2q]` or `[2*q]`
    ");
}

#[test]
fn overflow() {
    assert_snapshot!(refused("[9223372036854775808]", Kind::Overflow), @r"
    number out of range in operand 0
      [9223372036854775808]
      ^^^^^^^^^^^^^^^^^^^^^
    hint: coefficients and offsets lie between -9223372036854775808 and 9223372036854775807
    ");
    assert_snapshot!(refused("[q+99999999999999999999999]", Kind::Overflow), @r"
    number out of range in operand 0
      [q+99999999999999999999999]
         ^^^^^^^^^^^^^^^^^^^^^^^
    hint: coefficients and offsets lie between -9223372036854775808 and 9223372036854775807
    ");
    assert_snapshot!(refused("[9223372036854775807q+q]", Kind::Overflow), @r"
    number out of range in operand 0
      [9223372036854775807q+q]
      ^^^^^^^^^^^^^^^^^^^^^^^^
    hint: coefficients and offsets lie between -9223372036854775808 and 9223372036854775807
    ");
    assert_snapshot!(refused("b[-9223372036854775809+i]", Kind::Overflow), @r"
    number out of range in operand 0
      b[-9223372036854775809+i]
       ^^^^^^^^^^^^^^^^^^^^^^^^
    hint: coefficients and offsets lie between -9223372036854775808 and 9223372036854775807
    ");
}

#[test]
fn no_effect() {
    assert_snapshot!(refused("bh[0q+w]d", Kind::NoEffect), @r"
    label `q` has coefficient 0 in operand 0
      bh[0q+w]d
        ^^^^^^
    hint: it has no effect on the position: leave it out
    ");
    assert_snapshot!(refused("[q-q+3]", Kind::NoEffect), @r"
    label `q` has coefficient 0 in operand 0
      [q-q+3]
      ^^^^^^^
    hint: it has no effect on the position: leave it out
    ");
}

#[test]
fn repeated_output_label() {
    assert_snapshot!(refused("ij->iji", Kind::RepeatedOutputLabel), @r"
    label `i` stands in the output twice
      ij->iji
          ^ ^
    hint: to write a diagonal, make the second a window: `i[i+0]`
    ");
    assert_snapshot!(refused("i->ii", Kind::RepeatedOutputLabel), @r"
    label `i` stands in the output twice
      i->ii
         ^^
    hint: to write a diagonal, make the second a window: `i[i+0]`
    ");
    assert_snapshot!(refused("bh,bqq->hqbqh", Kind::RepeatedOutputLabel), @r"
    label `q` stands in the output twice
      bh,bqq->hqbqh
               ^ ^
    hint: to write a diagonal, make the second a window: `q[q+0]`
    ");
    assert_snapshot!(refused("batch head, head dim -> batch head", Kind::RepeatedOutputLabel), @r"
    label `h` stands in the output twice
      batch head, head dim -> batch head
                                  ^ ^
    hint: a label is one letter, and space does not separate names: write `ij`, not `row col`
    ");
}
fn direct(letters: &str) -> Operand {
    letters.chars().map(|c| Axis::Label(Label::new(c).expect("a letter"))).collect()
}

fn window(terms: &[(char, i64)], offset: i64) -> Operand {
    let terms = terms.iter().map(|&(c, size)| (Label::new(c).expect("a letter"), size)).collect();
    [Axis::Window(Affine { terms, offset })].into_iter().collect()
}

#[test]
fn no_operand() {
    let error = Equation::from_parts(vec![], Some(direct("i"))).expect_err("refused");
    assert_eq!(error.kind(), Kind::NoOperand);
    assert_snapshot!(error, @r"
    an equation has at least one operand
      ->i
    ");
    let error = Equation::from_parts(vec![], None).expect_err("refused");
    assert_snapshot!(error, @"an equation has at least one operand");
}

#[test]
fn mistakes_in_parts_are_drawn_in_the_text_written_for_them() {
    let kind = |operand: Operand| Equation::from_parts(vec![operand], None).expect_err("refused");
    let error = kind([Axis::Ellipsis, Axis::Ellipsis].into_iter().collect());
    assert_eq!(error.kind(), Kind::SecondEllipsis);
    let error = kind(window(&[('q', 1), ('w', 0)], -3));
    assert_eq!(error.kind(), Kind::NoEffect);
    assert_snapshot!(error, @r"
    label `w` has coefficient 0 in operand 0
      [q+0w-3]
      ^^^^^^^^
    hint: it has no effect on the position: leave it out
    ");
    let error = kind(window(&[('q', i64::MIN), ('q', -1)], 0));
    assert_eq!(error.kind(), Kind::Overflow);
    let error = Equation::from_parts(vec![direct("ij")], Some(direct("jj"))).expect_err("refused");
    assert_eq!(error.kind(), Kind::RepeatedOutputLabel);
}

#[test]
fn wide_letters_get_wide_carets() {
    assert_snapshot!(refused("問鍵,鍵値->問値値", Kind::RepeatedOutputLabel), @r"
    label `値` stands in the output twice
      問鍵,鍵値->問値値
                   ^^^^
    hint: to write a diagonal, make the second a window: `値[値+0]`
    ");
    assert_snapshot!(refused("λ𝐱,한;é", Kind::UnexpectedCharacter), @r"
    unexpected `;` in operand 1
      λ𝐱,한;é
           ^
    hint: operands are separated by `,`
    ");
}

#[test]
fn white_space_and_the_invisible_are_drawn_in_place() {
    assert_snapshot!(refused("i\tj\n->\u{3000}i;\u{1b}[31m", Kind::UnexpectedCharacter), @r"
    unexpected `;` in the output
      i\tj\n->\u{3000}i;\u{1b}[31m
                       ^
    hint: operands are separated by `,`
    ");
}

#[test]
fn long_equations_are_cut_around_the_mistake() {
    let text = format!("{}a;b{}->ij", "ij,".repeat(2000), ",ij".repeat(2000));
    assert_snapshot!(refused(&text, Kind::UnexpectedCharacter), @r"
    unexpected `;` in operand 2000
      …ij,ij,ij,ij,ij,a;b,ij,ij,ij,ij,ij…
                       ^
    hint: operands are separated by `,`
    ");
    let text = format!("{}->{}i{}", "ij", "λ".repeat(300), "κ".repeat(300));
    let drawn = refused(&text, Kind::RepeatedOutputLabel);
    assert_snapshot!(drawn, @r"
    label `λ` stands in the output 300 times
      ij->λλλλλλλλλλλλλλλλλλλλ…
          ^^^^
    hint: to write a diagonal, make the second a window: `λ[λ+0]`
    ");
    let text = format!("{}[i", "i".repeat(99));
    assert_snapshot!(refused(&text, Kind::UnclosedBracket), @r"
    `[` without `]` in operand 0
      …iiiiiiiiiiiiiiii[i
                       ^
    hint: a lookup is written `[ij]`, a window `[i+j]`
    ");
}
