//! Descriptions of arguments that are not there: from lengths, from shapes, from the headers of files.

use einfall::{Argument, Axis, DType, Diagnostic, Equation, Label, Layout, Place, View};

use crate::arguments::{Expand, Shape};
use crate::failure::Failure;
use crate::sizes::Lengths;

/// Element types of what has no file.
#[derive(Clone, Copy)]
pub(super) struct DTypes {
    pub(super) operand: DType,
    pub(super) table: DType,
}

/// What is known of an array in a file.
pub(super) fn of_view(view: &View<'_>) -> Argument {
    Argument { dtype: view.dtype(), layout: view.layout().clone() }
}

/// Row-major arguments in call order, from the lengths of labels and brackets.
pub(super) fn from_lengths(equation: &Equation, lengths: &Lengths, dtypes: DTypes) -> Result<Vec<Argument>, Failure> {
    let mut arguments = Vec::new();
    for (number, operand) in equation.operands().iter().enumerate() {
        let axes = operand.axes.iter().enumerate();
        let lens = axes.map(|(at, axis)| axis_len(equation, lengths, number, at, axis));
        let shape = lens.collect::<Result<Vec<_>, _>>()?;
        arguments.push(Argument { dtype: dtypes.operand, layout: Layout::contiguous(&shape) });
        push_tables(equation, lengths, &operand.axes, Place::Operand(number), dtypes, &mut arguments)?;
    }
    push_tables(equation, lengths, &equation.explicit_output().axes, Place::Output, dtypes, &mut arguments)?;
    Ok(arguments)
}

fn push_tables(
    equation: &Equation,
    lengths: &Lengths,
    axes: &[Axis],
    place: Place,
    dtypes: DTypes,
    arguments: &mut Vec<Argument>,
) -> Result<(), Failure> {
    for (at, axis) in axes.iter().enumerate() {
        let Axis::Lookup(labels) = axis else { continue };
        let len = |label: &Label| {
            let label = label.to_string();
            lengths.label(&label).ok_or_else(|| missing(equation, place, at, &format!("label `{label}`"), &label))
        };
        let shape = labels.iter().map(len).collect::<Result<Vec<_>, _>>()?;
        arguments.push(Argument { dtype: dtypes.table, layout: Layout::contiguous(&shape) });
    }
    Ok(())
}

fn axis_len(equation: &Equation, lengths: &Lengths, operand: usize, at: usize, axis: &Axis) -> Result<usize, Failure> {
    let place = Place::Operand(operand);
    let key = axis.to_string();
    match axis {
        Axis::Label(_) => {
            lengths.label(&key).ok_or_else(|| missing(equation, place, at, &format!("label `{key}`"), &key))
        }
        Axis::Ellipsis => Err(Failure::bad_input(
            Diagnostic {
                message: "labels do not say how many axes `...` stands for".into(),
                text: equation.text().into(),
                spans: vec![equation.span(place, at)],
                hint: Some("give the shapes instead: `--shape 8,1000,32`, once an argument".into()),
            }
            .to_string(),
        )),
        Axis::Lookup(_) | Axis::Window(_) => lengths
            .bracket(operand, &key)
            .ok_or_else(|| missing(equation, place, at, &format!("axis `{key}` of operand {operand}"), &key)),
    }
}

fn missing(equation: &Equation, place: Place, at: usize, what: &str, key: &str) -> Failure {
    let quoted = if key.starts_with('[') { format!("'{key}=1000'") } else { format!("{key}=1000") };
    let diagnostic = Diagnostic {
        message: format!("nothing gives {what} a length"),
        text: equation.text().into(),
        spans: vec![equation.span(place, at)],
        hint: Some(format!("give it with `-s`, as in `-s {quoted}`")),
    };
    Failure::bad_input(diagnostic.to_string())
}

/// Row-major arguments in call order, from their shapes. A number that is wrong is refused when they are bound.
pub(super) fn from_shapes(equation: &Equation, shapes: &[Shape], dtypes: DTypes) -> Vec<Argument> {
    let mut is_table = Vec::new();
    for operand in equation.operands() {
        is_table.push(false);
        is_table.extend(std::iter::repeat_n(true, operand.lookups()));
    }
    is_table.resize(shapes.len().max(is_table.len()), true);
    let argument = |(Shape(shape), is_table): (&Shape, bool)| Argument {
        dtype: if is_table { dtypes.table } else { dtypes.operand },
        layout: Layout::contiguous(shape),
    };
    shapes.iter().zip(is_table).map(argument).collect()
}

/// Gives operands stride 0 over labels, as a broadcast view has.
pub(super) fn expand(equation: &Equation, arguments: &mut [Argument], views: &[Expand]) -> Result<(), Failure> {
    for Expand { operand, labels } in views {
        let Some(term) = equation.operands().get(*operand) else {
            let count = equation.operands().len();
            return Err(Failure::bad_input(format!(
                "`--expand` names operand {operand} of {count}\nhint: counted from 0"
            )));
        };
        let position: usize = equation.operands()[..*operand].iter().map(|term| 1 + term.lookups()).sum();
        let Some(argument) = arguments.get_mut(position) else { continue };
        let repeated = |axis: &Axis| labels.contains(&axis.to_string()) && matches!(axis, Axis::Label(_));
        if let Some(label) =
            labels.chars().find(|label| !term.axes.iter().any(|axis| axis.to_string() == label.to_string()))
        {
            return Err(Failure::bad_input(format!("`--expand`: operand {operand}, `{term}`, has no label `{label}`")));
        }
        // What is left is row-major; an ellipsis or a wrong rank keeps its strides and is dealt with when it is bound.
        if term.axes.len() != argument.layout.shape.len() {
            continue;
        }
        let kept: Vec<usize> = term
            .axes
            .iter()
            .zip(&argument.layout.shape)
            .map(|(axis, &len)| if repeated(axis) { 1 } else { len })
            .collect();
        let mut layout = Layout::contiguous(&kept);
        layout.shape = argument.layout.shape.clone();
        for (stride, axis) in layout.strides.iter_mut().zip(&term.axes) {
            if repeated(axis) {
                *stride = 0;
            }
        }
        argument.layout = layout;
    }
    Ok(())
}
