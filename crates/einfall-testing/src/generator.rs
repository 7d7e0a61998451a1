//! Random cases, each of which has a result.
//!
//! *In*: a seed, or the list of choices that a shrinking test holds. *Out*: a [`Case`] that draws on all of the
//! notation, with every kind of stride. *Callers*: tests.
//!
//! ```
//! use einfall_testing::generator::random_case;
//!
//! let case = random_case(42);
//! assert_eq!(case, random_case(42));
//! assert!(case.expected().is_ok(), "{case}");
//! ```

mod draft;
mod layout;
mod malformed;

use std::collections::BTreeMap;

use einfall_equation::{Axis, Equation, Operand};
use einfall_tensor::DType;
use proptest::prelude::*;

use crate::case::{ArgumentSpec, Case, Fill};
use crate::oracle::Bounds;
use crate::random::{Choices, Random};
use draft::{Draft, Role};
pub(crate) use layout::arrange;
pub use malformed::malformed_case;

/// Most values that all labels of a case have together.
pub const MOST_TERMS: usize = 200_000;

/// Most elements of an argument or a result.
const MOST_ELEMENTS: usize = 300_000;

/// Lengths, the simplest first: around powers of two, where kernels change, and 0.
const LENGTHS: [usize; 15] = [2, 3, 1, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 0];

/// The case of a seed; the same one on every machine.
pub fn random_case(seed: u64) -> Case {
    let mut case = generate(&mut Choices::Seeded(Random::new(seed, u64::MAX)));
    case.source = format!("random_case({seed})");
    case
}

/// Cases for proptest, which shrink towards one small contiguous operand.
pub fn cases() -> impl Strategy<Value = Case> {
    // A choice that the list lacks is the simplest one, so dropping and lessening numbers makes a case simpler.
    prop::collection::vec(any::<u32>(), 0..=300).prop_map(|list| generate(&mut Choices::Listed(list.into_iter())))
}

/// The case whose choices are these bytes, four a choice; a choice that is missing is the simplest one.
pub fn case_from_bytes(bytes: &[u8]) -> Case {
    let list: Vec<u32> = bytes.chunks_exact(4).map(|four| u32::from_be_bytes(four.try_into().expect("four"))).collect();
    generate(&mut Choices::Listed(list.into_iter()))
}

fn generate(choices: &mut Choices) -> Case {
    let mut draft = Draft::new(choices);
    let count = 1 + draft.choices.below(5);
    for _ in 0..count {
        draft.operand();
    }
    let output = draft.output();
    draft.settle_lengths(output.as_ref());
    let out = out_dtype(&mut draft);
    let fills = fills(&mut draft, output.as_ref(), out);
    let Draft { choices, operands, arguments, sizes, bounds, .. } = &mut draft;
    let mut specs = Vec::new();
    for (argument, fill) in arguments.iter().zip(fills) {
        let shape: Vec<usize> = argument.dims.iter().map(|dim| dim.len()).collect();
        let spec = ArgumentSpec::contiguous(argument.dtype, &shape, fill);
        specs.push(arrange(choices, spec));
    }
    let equation = Equation::from_parts(std::mem::take(operands), output).expect("drafts are well formed");
    Case {
        equation: equation.to_string(),
        arguments: specs,
        sizes: std::mem::take(sizes),
        bounds: *bounds,
        out,
        seed: choices.below(1 << 30) as u64,
        source: String::new(),
    }
}

/// Now and then a result type to which the promoted one may be cast.
fn out_dtype(draft: &mut Draft) -> Option<DType> {
    let promoted = draft.promoted();
    let narrow_integer = promoted == DType::Bool || promoted.is_integer();
    // Whether an integer sum wraps before or after it is widened is no part of the contract.
    if narrow_integer || !draft.choices.percent(10) {
        return None;
    }
    let wanted = draft.choices.pick(&[DType::F32, DType::F64, DType::C64, DType::F16, DType::C128]);
    promoted.can_cast_same_kind(wanted).then_some(wanted)
}

/// What every argument holds: numbers small enough for every partial sum to be exact.
fn fills(draft: &mut Draft, output: Option<&Operand>, out: Option<DType>) -> Vec<Fill> {
    let promoted = draft.promoted();
    let operands = draft.operands.len() as i32;
    let explicit = match output {
        Some(output) => output.clone(),
        None => Equation::from_parts(draft.operands.clone(), None).expect("drafts are well formed").explicit_output(),
    };
    let summed = |label| !explicit.axes.contains(&Axis::Label(label));
    let labels = draft.used_labels().into_iter().filter(|&(label, _)| summed(label)).map(|(_, len)| len);
    let dots = if explicit.has_ellipsis() { 1 } else { draft.dots.iter().map(|&len| len.max(1)).product() };
    let terms = labels.map(|len| len.max(1)).product::<usize>() * dots;
    let limit = [promoted, out.unwrap_or(promoted)].map(exact_below).into_iter().fold(f64::MAX, f64::min);
    // Each complex product adds two real ones.
    let doubled =
        if promoted.is_complex() || out.is_some_and(DType::is_complex) { 2f64.powi(operands - 1) } else { 1.0 };
    let most = (limit / terms as f64 / doubled).powf(1.0 / f64::from(operands)).floor().clamp(1.0, 2000.0) as i64;
    // Truth values are neither all false nor all true in the end if one product in all terms is true.
    let once_in = (terms as f64).powf(1.0 / f64::from(operands)).round().max(2.0) as usize;
    let normal = (promoted.is_float() || promoted.is_complex()) && draft.choices.percent(15);
    let wrapping = promoted.is_integer() && draft.choices.percent(40);
    let fill = |argument: &draft::ArgumentDraft| match &argument.role {
        Role::Table(fill) => fill.clone(),
        Role::Operand if argument.dtype == DType::Bool => Fill::Truth(once_in),
        Role::Operand if normal => Fill::Normal,
        Role::Operand if wrapping => Fill::Any,
        Role::Operand => Fill::Integers(most.min(match argument.dtype {
            DType::I8 => 127,
            dtype if dtype.is_integer() => 255,
            dtype => exact_below(dtype) as i64 - 1,
        })),
    };
    draft.arguments.iter().map(fill).collect()
}

/// Whole numbers below this are exact, and so is the result of adding them up.
fn exact_below(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 256.0,
        DType::F16 => 2048.0,
        DType::F32 | DType::C64 => 16_777_216.0,
        _ => 9_007_199_254_740_992.0,
    }
}

/// The choice of lengths, shared by everything that has one.
fn length(choices: &mut Choices, most: usize) -> usize {
    let fitting: Vec<usize> = LENGTHS.into_iter().filter(|&len| len <= most.max(1)).collect();
    match choices.pick(&fitting) {
        // Too many empty results would test nothing.
        0 if choices.percent(80) => 1,
        len => len,
    }
}

/// A rule for a table whose values are positions on an axis of this length.
fn table_fill(choices: &mut Choices, len: usize, bounds: Bounds) -> Fill {
    let kinds = if bounds == Bounds::Skip { 6 } else { 4 };
    match choices.below(kinds) {
        0 => Fill::Random(len),
        1 => Fill::Identity(len),
        2 => Fill::Reversed(len),
        3 => Fill::Constant(len.max(1) as i64 - 1),
        4 => Fill::Padded(len),
        _ => Fill::Outside(len),
    }
}

/// The lengths that no argument gives.
type Sizes = BTreeMap<String, usize>;
