//! What holds for every equation and for every text.

use std::collections::HashSet;

use einfall_equation::{Affine, Axis, Equation, Label, Operand, Place, gradient};
use proptest::collection::vec;
use proptest::prelude::*;

fn labels() -> impl Strategy<Value = Label> {
    let letters = prop::sample::select(vec!['i', 'j', 'k', 'A', 'λ', 'é', '鍵', '한', '𝐱', '𠀀']);
    prop_oneof![
        4 => letters.prop_map(|c| Label::new(c).expect("a letter")),
        1 => (0usize..100_000).prop_map(|i| Label::from_index(i).expect("a letter")),
    ]
}

/// Small integers mostly, and both ends of the range.
fn integers() -> impl Strategy<Value = i64> {
    prop_oneof![8 => -12i64..=12, 1 => any::<i64>(), 1 => Just(i64::MIN), 1 => Just(i64::MAX)]
}

fn windows() -> impl Strategy<Value = Axis> {
    (vec((labels(), integers()), 0..4), integers()).prop_map(|(mut terms, offset)| {
        let mut seen = HashSet::new();
        terms.retain(|&(label, coefficient)| coefficient != 0 && seen.insert(label));
        Axis::Window(Affine { terms, offset })
    })
}

fn operands() -> impl Strategy<Value = Operand> {
    let axis = prop_oneof![
        6 => labels().prop_map(Axis::Label),
        2 => vec(labels(), 0..4).prop_map(Axis::Lookup),
        2 => windows(),
    ];
    (vec(axis, 0..6), prop::option::of(any::<prop::sample::Index>())).prop_map(|(mut axes, ellipsis)| {
        if let Some(place) = ellipsis {
            axes.insert(place.index(axes.len() + 1), Axis::Ellipsis);
        }
        Operand { axes }
    })
}

/// An operand without direct labels that stand twice.
fn outputs() -> impl Strategy<Value = Operand> {
    operands().prop_map(|mut output| {
        let mut seen = HashSet::new();
        output.axes.retain(|axis| !matches!(axis, Axis::Label(label) if !seen.insert(*label)));
        output
    })
}

fn equations() -> impl Strategy<Value = (Vec<Operand>, Option<Operand>)> {
    (vec(operands(), 1..5), prop::option::of(outputs()))
}

fn build((operands, output): (Vec<Operand>, Option<Operand>)) -> Equation {
    Equation::from_parts(operands, output).unwrap_or_else(|error| panic!("{error}"))
}

/// Texts that are nearly equations.
fn near_equations() -> impl Strategy<Value = String> {
    let pieces = vec![
        "i",
        "j",
        "λ",
        "𝐱",
        "[",
        "]",
        "[i]",
        "[i+",
        "+",
        "-",
        "*",
        "0",
        "2",
        "99999999999999999999",
        ",",
        "->",
        ">",
        "=",
        ".",
        "...",
        " ",
        "\n",
        "\u{301}",
        "(",
        "_",
        "\0",
        "…",
    ];
    vec(prop::sample::select(pieces), 0..30).prop_map(|pieces| pieces.concat())
}

/// Whatever holds for every text; panics where it does not.
fn check_text(text: &str) {
    match Equation::parse(text) {
        Ok(equation) => {
            let again = Equation::parse(&equation.to_string()).expect("what is printed is an equation");
            assert_eq!(again, equation);
            assert_eq!(again.to_string(), equation.to_string());
        }
        Err(error) => {
            let length = error.diagnostic().text.len();
            assert!(error.diagnostic().spans.iter().all(|span| span.start < span.end && span.end <= length));
            assert!(!error.to_string().contains('\0'));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn printing_and_parsing_gives_the_same_terms(parts in equations()) {
        let equation = build(parts.clone());
        prop_assert_eq!(equation.operands(), &parts.0[..]);
        prop_assert_eq!(equation.output(), parts.1.as_ref());
        prop_assert_eq!(equation.text(), equation.to_string());
        prop_assert_eq!(Equation::parse(equation.text()).expect("printed"), equation);
    }

    #[test]
    fn white_space_changes_nothing_and_places_follow_it(
        parts in equations(),
        blanks in vec(prop::sample::select(vec!["", "", " ", "\t ", "\u{3000}"]), 400),
    ) {
        let equation = build(parts);
        let mut blanks = blanks.iter().cycle();
        let spaced: String = equation.text().chars().map(|c| format!("{}{c}", blanks.next().expect("endless"))).collect();
        let again = Equation::parse(&spaced).expect("an equation");
        prop_assert_eq!(&again, &equation);

        let output = again.output().map(|output| (Place::Output, output));
        let terms = again.operands().iter().enumerate().map(|(i, operand)| (Place::Operand(i), operand)).chain(output);
        for (place, operand) in terms {
            let bare = |span: einfall_equation::Span| spaced[span.start..span.end].split_whitespace().collect::<String>();
            prop_assert_eq!(bare(again.term_span(place)), operand.to_string());
            for (i, axis) in operand.axes.iter().enumerate() {
                prop_assert_eq!(bare(again.span(place, i)), axis.to_string());
            }
        }
    }

    #[test]
    fn the_gradient_of_the_gradient_is_the_equation(parts in equations()) {
        let equation = build(parts);
        let explicit = Equation::from_parts(equation.operands().to_vec(), Some(equation.explicit_output())).expect("explicit");
        for (i, operand) in equation.operands().iter().enumerate() {
            let once = gradient(&equation, i).expect("an operand");
            prop_assert_eq!(&once.operands()[i], &equation.explicit_output());
            let tables = |e: &Equation| e.operands().iter().chain(e.output()).map(Operand::lookups).sum::<usize>();
            prop_assert_eq!(tables(&once), tables(&equation));
            if once.output() == Some(operand) {
                prop_assert_eq!(gradient(&once, i).expect("an operand"), explicit.clone());
            } else {
                let direct = operand.axes.iter().filter(|axis| matches!(axis, Axis::Label(_)));
                let distinct: HashSet<&Axis> = direct.clone().collect();
                prop_assert!(distinct.len() < direct.count(), "only a diagonal changes the term");
            }
        }
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        check_text(&text);
    }

    #[test]
    fn nothing_that_is_nearly_an_equation_panics(text in near_equations()) {
        check_text(&text);
    }
}
