//! The gradient is the adjoint: `⟨forward(x), g⟩ = ⟨x, gradient(g)⟩` exactly, in integers, with every axis, table and
//! diagonal in its place. The evaluator here goes through all values of all labels and knows nothing else.

use std::collections::{BTreeMap, BTreeSet};

use einfall_equation::{Axis, Equation, GradientError, Label, Operand, gradient};

type Labels = BTreeMap<Label, i64>;

/// A term's axis lengths, and its tables in the order of its brackets.
#[derive(Clone)]
struct Data {
    lengths: Vec<i64>,
    tables: Vec<Table>,
    values: Vec<i64>,
}

/// Entries that depend on the subscripts and on which table it is; some of them lie outside the axis and are skipped.
#[derive(Clone, Copy)]
struct Table(i64);

impl Table {
    fn read(self, subscripts: impl Iterator<Item = i64>) -> i64 {
        (subscripts.fold(self.0, |sum, at| (sum * 3 + at * 5 + 1) % 101)) % 7 - 1
    }
}

/// 2, 3, 4, ... for the labels of an equation in alphabetical order.
fn lengths(equation: &Equation) -> Labels {
    let labels: BTreeSet<Label> =
        equation.operands().iter().chain(equation.output()).flat_map(Operand::labels).collect();
    labels.into_iter().zip(2..).collect()
}

/// Data for a term whose every axis has a length of its own; `seed` makes values and tables differ between terms.
fn data(term: &Operand, lengths: &Labels, seed: i64) -> Data {
    let lengths: Vec<i64> = term
        .axes
        .iter()
        .enumerate()
        .map(|(i, axis)| match axis {
            Axis::Label(label) => lengths[label],
            _ => 5 + i as i64,
        })
        .collect();
    let tables = (0..term.lookups() as i64).map(|i| Table(seed * 7 + i + 3)).collect();
    let values = (0..lengths.iter().product()).map(|i: i64| (i * 37 + seed * 11) % 17 * 2 - 15).collect();
    Data { lengths, tables, values }
}

/// The element of a term that the labels point at, or `None` where a position lies outside its axis.
fn element(term: &Operand, data: &Data, labels: &Labels) -> Option<usize> {
    let mut tables = data.tables.iter();
    let mut element = 0;
    for (axis, &length) in term.axes.iter().zip(&data.lengths) {
        let at = match axis {
            Axis::Label(label) => labels[label],
            Axis::Lookup(subscripts) => {
                tables.next().expect("a table").read(subscripts.iter().map(|label| labels[label]))
            }
            Axis::Window(affine) => {
                affine.terms.iter().map(|(label, size)| size * labels[label]).sum::<i64>() + affine.offset
            }
            Axis::Ellipsis => unreachable!("no ellipsis in these tests"),
        };
        element = element * length + (0..length).contains(&at).then_some(at)?;
    }
    Some(element as usize)
}

/// Adds every product of operands to the output element it belongs to.
fn evaluate(equation: &Equation, lengths: &Labels, operands: &[Data], output: &Data) -> Vec<i64> {
    let term = equation.explicit_output();
    let mut sums = vec![0; output.lengths.iter().product::<i64>() as usize];
    for number in 0..lengths.values().product::<i64>() {
        let mut rest = number;
        let digit = |(&label, &length): (&Label, &i64)| {
            let at = rest % length;
            rest /= length;
            (label, at)
        };
        let labels: Labels = lengths.iter().map(digit).collect();
        let factors = equation.operands().iter().zip(operands).map(|(term, data)| {
            let at = element(term, data, &labels)?;
            Some(data.values[at])
        });
        if let (Some(at), Some(product)) = (element(&term, output, &labels), factors.product::<Option<i64>>()) {
            sums[at] += product;
        }
    }
    sums
}

fn dot(a: &[i64], b: &[i64]) -> i64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn the_gradient_is_the_adjoint() {
    for text in [
        "ij,jk->ik",
        "ij,jk",
        "ij->i",
        "->",
        "i->ij",
        "iij->ij",
        "iii,i->",
        "ijij,jk->k",
        "qd,[qk]d->qk",
        "qk,[qk]d->qd",
        "e,[e]d->[e]d",
        "[e]d,[e]d->e",
        "[e][e]d,e[de]->[d]e[e]",
        "qd,[q+w-2]d->qw",
        "[x+u][y-v],[2u]v->xy[3]",
        "i[i]i[j]i->j[i+0]",
        "[],[k],k->[]",
    ] {
        let equation = Equation::parse(text).expect("an equation");
        let lengths = lengths(&equation);
        let operands: Vec<Data> =
            equation.operands().iter().zip(1..).map(|(term, i)| data(term, &lengths, i)).collect();
        let cotangent = data(&equation.explicit_output(), &lengths, 9);
        let forward = dot(&evaluate(&equation, &lengths, &operands, &cotangent), &cotangent.values);
        assert_ne!(forward, 0, "{text}: a sum of nothing shows nothing");
        for i in 0..operands.len() {
            // Exactly what the documentation says: only the argument at position `i` changes.
            let mut arguments = operands.clone();
            let own = std::mem::replace(&mut arguments[i], cotangent.clone());
            let backward = gradient(&equation, i).expect("an operand");
            let result = evaluate(&backward, &lengths, &arguments, &own);
            assert_eq!(dot(&result, &own.values), forward, "{text}, operand {i}: {backward}");
        }
    }
}

#[test]
fn gradients_as_text() {
    let text = |equation: &str, operand| gradient(&Equation::parse(equation).unwrap(), operand).unwrap().to_string();
    assert_eq!(text("bhqd,bh[bhqk]d->bhqk", 0), "bhqk,bh[bhqk]d->bhqd");
    assert_eq!(text("bhqd,bh[bhqk]d->bhqk", 1), "bhqd,bhqk->bh[bhqk]d");
    assert_eq!(text("e,[e]d->[e]d", 0), "[e]d,[e]d->e");
    assert_eq!(text("...ij,...jk", 1), "...ij,...ik->...jk");
    assert_eq!(text("ii", 0), "->i[i+0]");
    assert_eq!(text("iii->i", 0), "i->i[i+0][i+0]");
    assert_eq!(text("i[i]", 0), "->i[i]");
    assert_eq!(text("ij->i", 0), "i->ij");
    assert_eq!(text("", 0), "->");
}

#[test]
fn an_operand_that_is_not_there_is_refused() {
    let refused = |text: &str, operand| gradient(&Equation::parse(text).unwrap(), operand).unwrap_err();
    let error = refused("ij,jk", 2);
    assert_eq!(error, GradientError::NoSuchOperand { operand: 2, operands: 2, equation: "ij,jk".into() });
    insta::assert_snapshot!(error, @r"
    no operand 2: the equation has 2 operands
      ij,jk
    hint: they are 0 to 1
    ");
    insta::assert_snapshot!(refused("ij->", 7), @r"
    no operand 7: the equation has 1 operand
      ij->
    hint: the only one is 0
    ");
}
