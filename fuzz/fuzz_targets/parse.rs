//! Any bytes: parsing never panics, what is printed parses to an equal equation, every place lies in the text, and
//! every error can be drawn. `cargo +nightly fuzz run parse`.
#![no_main]

use einfall_equation::{Equation, Place, gradient};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    match Equation::parse(&text) {
        Ok(equation) => check(&equation),
        Err(error) => {
            assert!(error.diagnostic().spans.iter().all(|span| text.get(span.start..span.end).is_some()));
            assert!(!error.to_string().is_empty());
        }
    }
});

fn check(equation: &Equation) {
    let again = Equation::parse(&equation.to_string()).expect("what is printed is an equation");
    assert_eq!(&again, equation);
    let rebuilt = Equation::from_parts(equation.operands().to_vec(), equation.output().cloned());
    assert_eq!(rebuilt.expect("terms of an equation"), again);

    let output = equation.output().map(|output| (Place::Output, output));
    let operands = equation.operands().iter().enumerate().map(|(i, operand)| (Place::Operand(i), operand));
    for (place, operand) in operands.chain(output) {
        for axis in 0..operand.axes.len() {
            let span = equation.span(place, axis);
            assert!(equation.text().get(span.start..span.end).is_some_and(|text| !text.trim().is_empty()));
        }
    }
    // A few operands only, so that a long equation does not take quadratic time.
    for operand in 0..equation.operands().len().min(4) {
        let gradient = gradient(equation, operand).expect("an operand");
        assert_eq!(Equation::parse(gradient.text()).expect("a gradient is an equation"), gradient);
    }
}
