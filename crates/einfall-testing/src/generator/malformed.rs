//! Cases that must be refused.

use super::random_case;
use crate::case::{Case, Fill};
use crate::oracle::Bounds;
use crate::random::{Choices, Random};
use einfall_equation::{Axis, Equation, Place};
use einfall_tensor::DType;

/// A case with one mistake, and the kind of mistake: a [class](crate::case::CaseError::class) of errors.
pub fn malformed_case(seed: u64) -> (Case, &'static str) {
    let mut choices = Choices::Seeded(Random::new(seed, u64::MAX - 1));
    let mistake = choices.below(MISTAKES.len());
    // Not every case has what a mistake needs, so look for the next one that has.
    let mut near = seed.wrapping_mul(1000) >> 1;
    loop {
        let mut case = random_case(near);
        let (class, spoil) = MISTAKES[mistake];
        if spoil(&mut case, &mut choices).is_some() {
            case.source = format!("malformed_case({seed})");
            return (case, class);
        }
        near += 1;
    }
}

type Spoil = fn(&mut Case, &mut Choices) -> Option<()>;

/// Each returns `None`, and may leave a spoilt case behind, where it does not apply.
const MISTAKES: [(&str, Spoil); 12] = [
    ("parse", wrong_text),
    ("arguments", one_too_few),
    ("arguments", one_too_many),
    ("rank", wrong_rank),
    ("table-rank", wrong_table_rank),
    ("table-dtype", wrong_table_type),
    ("table-value", wrong_table_value),
    ("size", two_lengths),
    ("size", sizes_disagree),
    ("no-size", no_output_size),
    ("no-size", unknown_output_label),
    ("cast", complex_to_real),
];

fn wrong_text(case: &mut Case, choices: &mut Choices) -> Option<()> {
    let wrong = choices.pick(&["->->", "[", "]", "i1", "......", "[i+]", "[i,j]", "_", "=>", "[0i+j]", "[i j 2]"]);
    case.equation.push_str(wrong);
    Some(())
}

fn one_too_few(case: &mut Case, _: &mut Choices) -> Option<()> {
    case.arguments.pop().map(|_| ())
}

fn one_too_many(case: &mut Case, _: &mut Choices) -> Option<()> {
    let last = case.arguments.last()?.clone();
    case.arguments.push(last);
    Some(())
}

/// The argument of every operand, and of every lookup of an operand.
fn numbers(case: &Case) -> Option<(Equation, Vec<usize>, Vec<usize>)> {
    let equation = Equation::parse(&case.equation).ok()?;
    let (mut operands, mut tables, mut next) = (Vec::new(), Vec::new(), 0);
    for operand in equation.operands() {
        operands.push(next);
        tables.extend(next + 1..=next + operand.lookups());
        next += 1 + operand.lookups();
    }
    Some((equation, operands, tables))
}

fn reshape(case: &mut Case, argument: usize, shape: Vec<usize>) {
    let spec = &mut case.arguments[argument];
    (spec.shape, spec.strides, spec.offset, spec.storage_len) = (shape, None, 0, None);
}

fn wrong_rank(case: &mut Case, choices: &mut Choices) -> Option<()> {
    let (equation, operands, _) = numbers(case)?;
    let fixed: Vec<usize> = (0..operands.len()).filter(|&i| !equation.operands()[i].has_ellipsis()).collect();
    let argument = operands[choices.pick(if fixed.is_empty() { return None } else { &fixed })];
    let mut shape = case.arguments[argument].shape.clone();
    if choices.percent(50) && !shape.is_empty() {
        shape.pop();
    } else {
        shape.push(2);
    }
    reshape(case, argument, shape);
    Some(())
}

fn wrong_table_rank(case: &mut Case, choices: &mut Choices) -> Option<()> {
    let (_, _, tables) = numbers(case)?;
    let table = choices.pick(if tables.is_empty() { return None } else { &tables });
    let mut shape = case.arguments[table].shape.clone();
    shape.push(1);
    reshape(case, table, shape);
    Some(())
}

fn wrong_table_type(case: &mut Case, choices: &mut Choices) -> Option<()> {
    let (_, _, tables) = numbers(case)?;
    let table = choices.pick(if tables.is_empty() { return None } else { &tables });
    case.arguments[table].dtype = choices.pick(&[DType::F32, DType::Bool, DType::C64, DType::F64]);
    Some(())
}

fn wrong_table_value(case: &mut Case, choices: &mut Choices) -> Option<()> {
    let (_, _, tables) = numbers(case)?;
    let full: Vec<usize> = tables.into_iter().filter(|&t| !case.arguments[t].shape.contains(&0)).collect();
    let table = choices.pick(if full.is_empty() { return None } else { &full });
    // Other tables may have pads, which are as wrong; a value of 100 is beyond the longest axis.
    case.arguments[table].fill = Fill::Constant(choices.pick(&[100, 127]));
    case.bounds = Bounds::Error;
    Some(())
}

/// A label that stands in two operands, in both with its whole length, gets another length in the second.
fn two_lengths(case: &mut Case, choices: &mut Choices) -> Option<()> {
    let (equation, operands, _) = numbers(case)?;
    let mut places = Vec::new();
    for (operand, term) in equation.operands().iter().enumerate().filter(|(_, term)| !term.has_ellipsis()) {
        for (at, axis) in term.axes.iter().enumerate() {
            let len = case.arguments[operands[operand]].shape[at];
            if matches!(axis, Axis::Label(_)) && len > 1 {
                places.push((axis, operand, at));
            }
        }
    }
    let twice: Vec<_> = places.iter().filter(|p| places.iter().any(|q| q.0 == p.0 && q.1 != p.1)).collect();
    let &(_, operand, at) = choices.pick(if twice.is_empty() { return None } else { &twice });
    let mut shape = case.arguments[operands[operand]].shape.clone();
    shape[at] += 1;
    reshape(case, operands[operand], shape);
    Some(())
}

fn sizes_disagree(case: &mut Case, choices: &mut Choices) -> Option<()> {
    let (equation, operands, _) = numbers(case)?;
    let labels: Vec<String> = equation.operands()[0]
        .axes
        .iter()
        .zip(&case.arguments[operands[0]].shape)
        .take_while(|(axis, _)| **axis != Axis::Ellipsis)
        .filter(|(axis, len)| matches!(axis, Axis::Label(_)) && **len > 1)
        .map(|(axis, _)| axis.to_string())
        .collect();
    let label = &labels[choices.below(if labels.is_empty() { return None } else { labels.len() })];
    // Longer than any axis.
    case.sizes.insert(label.clone(), 67);
    Some(())
}

fn no_output_size(case: &mut Case, _: &mut Choices) -> Option<()> {
    let equation = Equation::parse(&case.equation).ok()?;
    let output = equation.output()?;
    let bracket = output.axes.iter().find(|axis| matches!(axis, Axis::Lookup(_) | Axis::Window(_)))?;
    case.sizes.remove(&bracket.to_string()).map(|_| ())
}

fn unknown_output_label(case: &mut Case, _: &mut Choices) -> Option<()> {
    let equation = Equation::parse(&case.equation).ok()?;
    equation.output()?;
    // An output whose text can be added to.
    (equation.term_span(Place::Output).end == case.equation.len()).then(|| case.equation.push('Z'))
}

fn complex_to_real(case: &mut Case, choices: &mut Choices) -> Option<()> {
    let (_, operands, _) = numbers(case)?;
    let complex = operands.iter().any(|&operand| case.arguments[operand].dtype.is_complex());
    case.out = Some(choices.pick(&[DType::F32, DType::F64, DType::I32, DType::Bool]));
    complex.then_some(())
}
