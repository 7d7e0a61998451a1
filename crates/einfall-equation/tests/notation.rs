//! What texts mean: the grammar, the implicit output, the places and the interleaved form.

use einfall_equation::{Affine, Axis, Equation, Label, Operand, Place, Span};

fn parse(text: &str) -> Equation {
    Equation::parse(text).unwrap_or_else(|error| panic!("{error}"))
}

fn label(c: char) -> Label {
    Label::new(c).expect("a letter")
}

fn printed(text: &str) -> String {
    parse(text).to_string()
}

fn window(terms: &[(char, i64)], offset: i64) -> Axis {
    Axis::Window(Affine { terms: terms.iter().map(|&(c, size)| (label(c), size)).collect(), offset })
}

#[test]
fn every_example_of_the_manual_prints_back() {
    for text in [
        "bhqd,bh[bhqk]d->bhqk",
        "bhqk,bh[bhqk]d->bhqd",
        "bhqd,b[bqk]d->bhqk",
        "bhqd,bh[q+w-4]d->bhqw",
        "bi[x+u][y+v],oiuv->boxy",
        "e,[e]d->[e]d",
        "[e]d,[e]d->e",
        "td,[t]df->tf",
        "bk,[bk]d->bd",
        "i->i[i+0]",
        "...ij,...jk->...ik",
        "iij->ij",
        "[2q+w],[-q+w+5],[q+w-3],[3],[-3],[0],[]",
    ] {
        assert_eq!(printed(text), text);
    }
}

#[test]
fn scalars_and_empty_terms() {
    let shape = |text| {
        let equation = parse(text);
        (equation.operands().len(), equation.output().map(|output| output.axes.len()))
    };
    assert_eq!(shape(""), (1, None));
    assert_eq!(shape(" \n "), (1, None));
    assert_eq!(shape(","), (2, None));
    assert_eq!(shape("->"), (1, Some(0)));
    assert_eq!(shape(" , -> "), (2, Some(0)));
    assert_eq!(shape("i,,j"), (3, None));
    assert_eq!(shape("i->"), (1, Some(0)));
}

#[test]
fn a_bracket_of_labels_is_a_lookup_and_any_other_a_window() {
    let axis = |text| parse(text).operands()[0].axes[0].clone();
    assert_eq!(axis("[bq]"), Axis::Lookup(vec![label('b'), label('q')]));
    assert_eq!(axis("[bb]"), Axis::Lookup(vec![label('b'), label('b')]));
    assert_eq!(axis("[ ]"), Axis::Lookup(vec![]));
    assert_eq!(axis("[q+0]"), window(&[('q', 1)], 0));
    assert_eq!(axis("[1q]"), window(&[('q', 1)], 0));
    assert_eq!(axis("[-q]"), window(&[('q', -1)], 0));
    assert_eq!(axis("[+q]"), window(&[('q', 1)], 0));
    assert_eq!(axis("[q+w-3]"), window(&[('q', 1), ('w', 1)], -3));
    assert_eq!(axis("[5-q+2*w]"), window(&[('q', -1), ('w', 2)], 5));
    assert_eq!(axis("[007q-00]"), window(&[('q', 7)], 0));
    assert_eq!(axis("[q+3w-2q+1-4+q+q]"), window(&[('q', 1), ('w', 3)], -3), "terms merge, 1-2+1+1");
    assert_eq!(axis("[q-q+w+q]"), window(&[('q', 1), ('w', 1)], 0), "only the sum has to differ from 0");
    assert_eq!(axis("[λ-𝐱]"), window(&[('λ', 1), ('𝐱', -1)], 0));
}

#[test]
fn numbers_reach_both_ends_of_i64() {
    for text in ["[-9223372036854775808q-9223372036854775808]", "[9223372036854775807q+9223372036854775807]"] {
        assert_eq!(printed(text), text);
    }
    assert_eq!(printed("[9223372036854775808q-q]"), "[9223372036854775807q]", "only the sum has to fit");
}

#[test]
fn windows_print_shortest() {
    assert_eq!(printed("[1q+1*w-0]"), "[q+w]");
    assert_eq!(printed("[-1q+0]"), "[-q]");
    assert_eq!(printed("[1q]"), "[q+0]");
    assert_eq!(printed("[2*q]"), "[2q]");
    assert_eq!(printed("[3+q]"), "[q+3]");
    assert_eq!(printed("[-0]"), "[0]");
}

#[test]
fn all_sixteen_spacings_of_an_ellipsis() {
    for spaces in 0..16 {
        let blank = |bit: u32| if spaces >> bit & 1 == 1 { " " } else { "" };
        let text = format!("{}...a{}->{}...a{}", blank(0), blank(1), blank(2), blank(3));
        assert_eq!(printed(&text), "...a->...a", "{text:?}");
    }
    assert_eq!(printed(" . . . a - > a . .\t. "), "...a->a...");
}

#[test]
fn every_kind_of_white_space_is_ignored_everywhere() {
    let plain = "bλ[q+12w-3]...,[bq]d->b...d";
    for blank in ['\t', '\n', '\u{b}', '\r', ' ', '\u{85}', '\u{a0}', '\u{1680}', '\u{2003}', '\u{2028}', '\u{3000}'] {
        let spaced: String = plain.chars().flat_map(|c| [blank, c]).chain([blank]).collect();
        assert_eq!(printed(&spaced), plain, "{blank:?}");
    }
}

#[test]
fn letters_of_all_planes_are_labels() {
    let text = "αβ,βγ->αγ";
    assert_eq!(printed(text), text);
    assert_eq!(parse("問鍵[問値]->問𝐱𠀀").explicit_output().to_string(), "問𝐱𠀀");
    assert_eq!(printed("Éé,éñ"), "Éé,éñ");
}

#[test]
fn implicit_output_is_numpys() {
    let output = |text| parse(text).explicit_output().to_string();
    assert_eq!(output("ij,jk"), "ik");
    assert_eq!(output("ba"), "ab");
    assert_eq!(output("bA"), "Ab", "upper case sorts first");
    assert_eq!(output("ii"), "");
    assert_eq!(output("i...j,...jk"), "...ik");
    assert_eq!(output("𝐱α,a"), "aα𝐱");
    assert_eq!(output("bhqd,bh[bhqk]d"), "k", "labels in brackets count");
    assert_eq!(output("q,[q+w-1]"), "w");
    assert_eq!(output("[2q+2]"), "q");
    assert_eq!(output("ij->ji"), "ji");
    assert_eq!(output("->[e]"), "[e]");
    assert_eq!(output(""), "");
}

#[test]
fn operands_know_their_labels_and_tables() {
    let operand = parse("b[bk][q-w]...b[]").operands()[0].clone();
    assert_eq!(operand.labels().map(Label::as_char).collect::<String>(), "bbkqwb");
    assert_eq!(operand.lookups(), 2);
    assert!(operand.has_ellipsis());
    assert!(!parse("b[q+1]").operands()[0].has_ellipsis());
}

#[test]
fn places_are_ranges_of_the_text() {
    let equation = parse(" λ [ q + 1 ] . . ., 鍵 ,,->\tb [q] ");
    let text = |span: Span| &equation.text()[span.start..span.end];
    let first = Place::Operand(0);
    assert_eq!([0, 1, 2].map(|axis| text(equation.span(first, axis))), ["λ", "[ q + 1 ]", ". . ."]);
    assert_eq!(text(equation.term_span(first)), "λ [ q + 1 ] . . .");
    assert_eq!(text(equation.span(Place::Operand(1), 0)), "鍵");
    assert_eq!(text(equation.term_span(Place::Output)), "b [q]");
    assert_eq!(text(equation.span(Place::Output, 1)), "[q]");
    // A scalar is empty, just before what ends it; what is not there is at its term, or at the end.
    let comma = equation.text().find(",,").expect("two commas");
    assert_eq!(equation.term_span(Place::Operand(2)), Span { start: comma + 1, end: comma + 1 });
    assert_eq!(equation.span(Place::Operand(2), 0), equation.term_span(Place::Operand(2)));
    let end = equation.text().len();
    assert_eq!(equation.term_span(Place::Operand(4)), Span { start: end, end });
    assert_eq!(parse("i,j").span(Place::Output, 1), Span { start: 3, end: 3 });
}

#[test]
fn an_operand_that_is_missing_is_never_the_output() {
    let equation = parse("i,j->ij");
    assert_eq!(equation.term_span(Place::Operand(2)), Span { start: 7, end: 7 });
    assert_eq!(equation.term_span(Place::Output), Span { start: 5, end: 7 });
}

#[test]
fn equality_ignores_the_text_but_not_the_form() {
    assert_eq!(parse("i j , [ 1*q ] -> j"), parse("ij,[q+0]->j"));
    assert_ne!(parse("ij,jk"), parse("ij,jk->ik"));
    assert_ne!(parse("[q]"), parse("[q+0]"));
    assert_ne!(parse("ij"), parse("ji"));
}

#[test]
fn interleaved_form() {
    let sublist = |indices: &[usize]| -> Operand {
        indices.iter().map(|&i| Axis::Label(Label::from_index(i).expect("a letter"))).collect()
    };
    let operands = vec![sublist(&[0, 26]), sublist(&[26, 51, 52])];
    let equation = Equation::from_parts(operands, None).expect("an equation");
    assert_eq!(equation.text(), "Aa,azα");
    assert_eq!(equation.explicit_output(), sublist(&[0, 51, 52]));
    assert_eq!(equation.span(Place::Operand(1), 2), Span { start: 5, end: 7 });

    let many = Equation::from_parts(vec![sublist(&(0..70_000).collect::<Vec<_>>())], None).expect("an equation");
    assert_eq!(many.explicit_output(), many.operands()[0], "a larger integer is a larger label");

    let unmerged = Operand { axes: vec![window(&[('q', 1), ('w', 1), ('q', 1)], 0)] };
    let merged = Equation::from_parts(vec![unmerged], Some(Operand::default())).expect("an equation");
    assert_eq!(merged.operands()[0].axes[0], window(&[('q', 2), ('w', 1)], 0));
    assert_eq!(merged.to_string(), "[2q+w]->");
}

#[test]
fn large_equations_are_read_in_linear_time() {
    // Each of these takes minutes where something is quadratic.
    let letters: Vec<String> = (0..100_000).map(|i| Label::from_index(i).expect("a letter").to_string()).collect();
    assert_eq!(parse(&vec!["ij"; 300_000].join(",")).operands().len(), 300_000);
    assert_eq!(parse(&format!("[{}]", letters.join("+"))).operands()[0].labels().count(), 100_000);
    assert_eq!(parse(&format!("->{}", letters.concat())).explicit_output().axes.len(), 100_000);
    assert_eq!(parse(&"[ij]".repeat(200_000)).operands()[0].lookups(), 200_000);
    for text in ["[".repeat(500_000), "[,".repeat(300_000), "i,".repeat(300_000) + "[", "q+".repeat(300_000)] {
        let error = Equation::parse(&text).expect_err("refused");
        assert!(error.to_string().len() < 1000, "{error}");
    }
}
