//! Drawings that no parse error asks for, but other crates may.

use einfall_equation::{Diagnostic, Equation, Place, Span};
use insta::assert_snapshot;

#[test]
fn a_span_longer_than_the_line_is_cut_inside() {
    let text = format!("ij,{},k", "ab".repeat(90));
    let spans = vec![Span { start: 0, end: 2 }, Span { start: 3, end: 183 }];
    let diagnostic = Diagnostic { message: "the lengths differ".into(), text, spans, hint: None };
    assert_snapshot!(diagnostic, @r"
    the lengths differ
      ij,ababababababababa…babababababababab,k
      ^^ ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
}

#[test]
fn places_that_are_not_there_are_drawn_at_the_end() {
    let draw = |text: &str, spans: &[(usize, usize)]| {
        let spans = spans.iter().map(|&(start, end)| Span { start, end }).collect();
        Diagnostic { message: "message".into(), text: text.into(), spans, hint: None }.to_string()
    };
    assert_eq!(draw("ij", &[(2, 2)]), "message\n  ij\n    ^");
    assert_eq!(draw("ij", &[(9, 3)]), "message\n  ij\n    ^");
    assert_eq!(draw("", &[(0, 0)]), "message\n  \n  ^");
    assert_eq!(draw("", &[]), "message");
    assert_eq!(draw("ij", &[]), "message\n  ij");
    // In the middle of a letter, and empty before one.
    assert_eq!(draw("aλb", &[(2, 3)]), "message\n  aλb\n   ^");
    assert_eq!(draw("aλb", &[(3, 3)]), "message\n  aλb\n    ^");
    assert_eq!(draw("ij", &[(usize::MAX, usize::MAX)]), "message\n  ij\n    ^");
}

#[test]
fn places_of_an_equation_point_at_its_axes() {
    let equation = Equation::parse(" b h q d , b h [b h q k] d -> b h q k").expect("an equation");
    let spans = vec![equation.span(Place::Operand(1), 2), equation.span(Place::Output, 3)];
    let diagnostic = Diagnostic {
        message: "table value 17 at [0, 0, 3, 5] is outside 0..11".into(),
        text: equation.text().into(),
        spans,
        hint: Some("bounds `skip` leaves such a term out".into()),
    };
    assert_snapshot!(diagnostic, @"
    table value 17 at [0, 0, 3, 5] is outside 0..11
       b h q d , b h [b h q k] d -> b h q k
                     ^^^^^^^^^            ^
    hint: bounds `skip` leaves such a term out
    ");
}
