//! What a case makes use of: found by looking at the case, not at how it was made.

use std::collections::BTreeSet;

use einfall_equation::{Axis, Equation, Label, Operand};
use einfall_tensor::{DType, contiguous_strides};

use crate::case::{ArgumentSpec, Case, Fill};
use crate::oracle::Bounds;

/// Every name that [`features`] can give, besides those of the dtypes (`"f32"`, …) and the numbers of operands and
/// labels (`"3 operands"`, `"8 labels"`).
pub const FEATURES: [&str; 44] = [
    "zero size",
    "size one",
    "contiguous",
    "permuted",
    "gaps",
    "negative stride",
    "zero stride",
    "offset",
    "misaligned",
    "long storage",
    "scalar operand",
    "repeated label",
    "hyper-edge",
    "lone label",
    "label repeated beyond its size",
    "outer product",
    "ellipsis",
    "several ellipses",
    "ellipsis summed",
    "ellipsis in front",
    "ellipsis broadcast",
    "implicit output",
    "scalar output",
    "output label in no operand",
    "lookup",
    "lookup without subscripts",
    "lookup with four subscripts",
    "two lookups in an operand",
    "broadcast table",
    "strided table",
    "table with pads",
    "table with values outside",
    "scattered lookup",
    "scattered window",
    "window",
    "window with a negative coefficient",
    "window with a step",
    "window without labels",
    "window that gives a length",
    "mixed dtypes",
    "dtype asked for",
    "wrapping integers",
    "normal numbers",
    "skip",
];

/// The features of a case whose equation parses.
pub fn features(case: &Case) -> BTreeSet<String> {
    let Ok(equation) = Equation::parse(&case.equation) else { return BTreeSet::new() };
    let output = equation.explicit_output();
    let mut found = BTreeSet::new();
    let mut add = |name: &str, there: bool| {
        if there {
            found.insert(name.to_string());
        }
    };
    let (mut operands, mut tables, mut given) = (Vec::new(), Vec::new(), case.arguments.iter());
    for operand in equation.operands() {
        operands.extend(given.by_ref().take(1).map(|spec| (operand, spec)));
        tables.extend(given.by_ref().take(operand.lookups()));
    }
    tables.extend(given);
    for spec in &case.arguments {
        let strides = spec.strides();
        let long = |axis: usize| spec.shape[axis] > 1;
        let long_strides = || (0..strides.len()).filter(|&axis| long(axis)).map(|axis| strides[axis]);
        add("zero size", spec.shape.contains(&0));
        add("size one", spec.shape.contains(&1));
        add("contiguous", strides == contiguous_strides(&spec.shape).to_vec());
        add("permuted", !long_strides().map(|s| std::cmp::Reverse(s.unsigned_abs())).is_sorted());
        add("gaps", !strides.contains(&0) && span(spec) > spec.shape.iter().product());
        add("negative stride", long_strides().any(|stride| stride < 0));
        add("zero stride", long_strides().any(|stride| stride == 0));
        add("offset", spec.offset > 0);
        add("misaligned", spec.misaligned % spec.dtype.bytes() > 0);
        add("long storage", spec.storage_len.is_some());
        add("wrapping integers", spec.fill == Fill::Any);
        add("normal numbers", spec.fill == Fill::Normal);
    }
    for spec in &tables {
        add("strided table", spec.strides.is_some());
        add("table with pads", matches!(spec.fill, Fill::Padded(_)));
        add("table with values outside", matches!(spec.fill, Fill::Outside(_)));
    }
    for (operand, spec) in &operands {
        let direct = |axis: &&Axis| matches!(axis, Axis::Label(_));
        let labels: Vec<&Axis> = operand.axes.iter().filter(direct).collect();
        add("scalar operand", spec.shape.is_empty());
        add("repeated label", labels.iter().collect::<BTreeSetByText>().0.len() < labels.len());
        add("ellipsis", operand.has_ellipsis());
        add("ellipsis in front", operand.axes.len() > 1 && operand.axes[0] == Axis::Ellipsis);
        add("two lookups in an operand", operand.lookups() > 1);
        add(spec.dtype.name(), true);
    }
    let known: BTreeSet<Label> = operands.iter().flat_map(|(operand, _)| direct_labels(operand)).collect();
    for axis in operands.iter().flat_map(|(operand, _)| &operand.axes) {
        if let Axis::Lookup(labels) = axis {
            add("lookup", true);
            add("lookup without subscripts", labels.is_empty());
            add("lookup with four subscripts", labels.len() == 4);
        }
        if let Axis::Window(affine) = axis {
            let unknown = |label: &Label| !known.contains(label) && !case.sizes.contains_key(&label.to_string());
            add("window", true);
            add("window with a negative coefficient", affine.terms.iter().any(|(_, c)| *c < 0));
            add("window with a step", affine.terms.iter().any(|(_, c)| *c > 1));
            add("window without labels", affine.terms.is_empty());
            add("window that gives a length", affine.terms.iter().any(|(label, _)| unknown(label)));
        }
    }
    let uses = |label: Label| operands.iter().filter(|(operand, _)| operand.labels().any(|l| l == label)).count();
    let all: BTreeSet<Label> = operands.iter().flat_map(|(operand, _)| operand.labels()).collect();
    for &label in &all {
        let summed = output.labels().all(|other| other != label);
        add("hyper-edge", uses(label) > 2);
        add("lone label", uses(label) == 1 && summed);
        let lens = operands.iter().flat_map(|(operand, spec)| lens_of(operand, spec, label));
        let lens: BTreeSet<usize> = lens.collect();
        add("label repeated beyond its size", lens.len() > 1);
    }
    let ellipses: Vec<usize> = operands
        .iter()
        .filter(|(operand, _)| operand.has_ellipsis())
        .map(|(operand, spec)| spec.shape.len() + 1 - operand.axes.len())
        .collect();
    add("several ellipses", ellipses.len() > 1);
    add("ellipsis broadcast", ellipses.iter().any(|&count| count != ellipses[0]));
    add("ellipsis summed", ellipses.iter().any(|&count| count > 0) && !output.has_ellipsis());
    add("implicit output", equation.output().is_none());
    add("scalar output", output.axes.is_empty());
    add("outer product", operands.len() > 1 && all.iter().all(|&label| uses(label) == 1) && !all.is_empty());
    add("output label in no operand", direct_labels(&output).any(|label| !all.contains(&label)));
    add("scattered lookup", output.lookups() > 0);
    add("scattered window", output.axes.iter().any(|axis| matches!(axis, Axis::Window(_))));
    let dtypes: BTreeSet<DType> = operands.iter().map(|(_, spec)| spec.dtype).collect();
    add("mixed dtypes", dtypes.len() > 1);
    add("dtype asked for", case.out.is_some());
    add("skip", case.bounds == Bounds::Skip);
    add("broadcast table", broadcast_table(&equation, case));
    add(&format!("{} operands", operands.len()), true);
    add(&format!("{} labels", all.len()), true);
    found
}

/// Collects axes by how they print, since they have no order of their own.
struct BTreeSetByText(BTreeSet<String>);

impl<'a> FromIterator<&'a &'a Axis> for BTreeSetByText {
    fn from_iter<I: IntoIterator<Item = &'a &'a Axis>>(axes: I) -> Self {
        Self(axes.into_iter().map(|axis| axis.to_string()).collect())
    }
}

fn direct_labels(operand: &Operand) -> impl Iterator<Item = Label> + '_ {
    operand.axes.iter().filter_map(|axis| match axis {
        Axis::Label(label) => Some(*label),
        _ => None,
    })
}

/// The lengths that a label has directly in an operand without an ellipsis.
fn lens_of(operand: &Operand, spec: &ArgumentSpec, label: Label) -> Vec<usize> {
    let axes = operand.axes.iter().zip(&spec.shape).filter(|_| !operand.has_ellipsis());
    axes.filter(|(axis, _)| **axis == Axis::Label(label)).map(|(_, &len)| len).collect()
}

/// Elements from the lowest to the highest that the argument reaches.
fn span(spec: &ArgumentSpec) -> usize {
    if spec.shape.contains(&0) {
        return 0;
    }
    spec.shape.iter().zip(spec.strides()).map(|(&len, stride)| (len - 1) * stride.unsigned_abs()).sum::<usize>() + 1
}

/// Whether a table has length 1 for a subscript that another table or operand gives a longer one.
fn broadcast_table(equation: &Equation, case: &Case) -> bool {
    let (mut seen, mut next) = (Vec::new(), 0);
    let output = equation.explicit_output();
    for (operand, arrays) in equation.operands().iter().map(|operand| (operand, 1)).chain([(&output, 0)]) {
        if let Some(spec) = case.arguments.get(next).filter(|_| arrays == 1) {
            let axes = operand.axes.iter().zip(&spec.shape).take_while(|(axis, _)| **axis != Axis::Ellipsis);
            seen.extend(axes.flat_map(|(axis, &len)| match axis {
                Axis::Label(label) => Some((*label, len, false)),
                _ => None,
            }));
        }
        next += arrays;
        for axis in &operand.axes {
            if let Axis::Lookup(labels) = axis {
                let Some(table) = case.arguments.get(next) else { continue };
                seen.extend(labels.iter().zip(&table.shape).map(|(label, &len)| (*label, len, true)));
                next += 1;
            }
        }
    }
    seen.iter().any(|one| one.2 && one.1 == 1 && seen.iter().any(|other| other.0 == one.0 && other.1 > 1))
}
