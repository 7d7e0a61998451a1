//! Binding: an equation meets shapes, strides and element types.
//!
//! *In*: an [`Equation`], what is known of each argument (in call order: operand 0, its tables, operand 1, …, the
//! tables of the output), and [`BindOptions`]. *Out*: a [`Problem`]. *Callers*: the facade. Pure; no data is read.

mod measure;
mod output;
mod scope;
mod sizes;
mod suggest;

use std::collections::BTreeMap;

use einfall_equation::{Axis, Diagnostic, Equation, Operand as Written, Place, quoted};
use einfall_tensor::{DType, Layout, element_count};

use crate::problem::{Bounds, LabelId, LabelInfo, Lookup, Operand, Problem, Table, Term, Window};
use measure::Axes;
use output::bind_output;
use scope::Scope;

/// What is known of an argument before its data is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Argument {
    /// Element type.
    pub dtype: DType,
    /// Shape and strides.
    pub layout: Layout,
}

/// Lengths by the text that names them: `w`, or the whole bracket of an output axis, `[e]` or `[q+w-4]`.
pub type Sizes = BTreeMap<String, usize>;

/// Choices of the caller that a problem depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct BindOptions {
    /// Lengths that no operand gives.
    pub sizes: Sizes,
    /// What happens to table values outside their axis.
    pub bounds: Bounds,
    /// The type of the result; by default the promotion of all operands, which is also what is computed in.
    pub dtype: Option<DType>,
    /// The array to write, when there is one.
    pub out: Option<Argument>,
}

/// Why an equation does not fit its arguments.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The number of arguments is not the number of operands and tables.
    #[error("{0}")]
    ArgumentCount(Box<Diagnostic>),
    /// An argument has more or fewer axes than its term.
    #[error("{0}")]
    Rank(Box<Diagnostic>),
    /// Two places give a label different lengths.
    #[error("{0}")]
    SizeConflict(Box<Diagnostic>),
    /// No place gives a label or an output axis its length.
    #[error("{0}")]
    MissingSize(Box<Diagnostic>),
    /// `sizes` names something that the equation does not have.
    #[error("{0}")]
    UnknownSize(Box<Diagnostic>),
    /// A table is not of integers, or types cannot be converted.
    #[error("{0}")]
    DType(Box<Diagnostic>),
    /// `out` does not have the shape of the result, or overlaps itself.
    #[error("{0}")]
    Out(Box<Diagnostic>),
    /// A size or an offset is larger than can be addressed.
    #[error("{0}")]
    TooLarge(Box<Diagnostic>),
}

/// Binds an equation to its arguments. Time is linear in the axes of all terms.
///
/// # Errors
/// Every variant of [`BindError`]; each names operand, label and both sizes.
pub fn bind(equation: &Equation, arguments: &[Argument], options: &BindOptions) -> Result<Problem, BindError> {
    let written_output = equation.explicit_output();
    let mut scope = Scope::new(equation);
    let assigned = assign_arguments(equation, &written_output, arguments.len())?;
    check_strides(&scope, arguments, options)?;

    // Expand ellipses, intern labels, check ranks and table types.
    let mut tables = Vec::new();
    let mut operands = Vec::new();
    for (number, (written, assigned)) in equation.operands().iter().zip(&assigned).enumerate() {
        let place = Place::Operand(number);
        let operand_axes = scope.ellipsis_axes(written, place, &arguments[assigned.operand].layout.shape)?;
        operands.push(expand(&mut scope, written, place, operand_axes, &assigned.tables, arguments, &mut tables)?);
    }
    let ellipsis_rank = if written_output.has_ellipsis() { scope.ellipsis_rank() } else { 0 };
    let output_tables: Vec<usize> = (arguments.len() - written_output.lookups()..arguments.len()).collect();
    let output_axes =
        expand(&mut scope, &written_output, Place::Output, ellipsis_rank, &output_tables, arguments, &mut tables)?;

    // Lengths: direct axes of operands and tables first, then `sizes`, then windows.
    let (operands, assigned) = (operands.as_slice(), assigned.as_slice());
    Axes { equation, operands, assigned, tables: &tables, arguments }.measure(&mut scope)?;
    sizes::apply(&mut scope, &options.sizes, &written_output)?;
    let windows = operands.iter().zip(assigned).flat_map(|(axes, assigned)| {
        axes.iter().zip(&arguments[assigned.operand].layout.shape).filter_map(|(axis, &len)| match &axis.kind {
            AxisKind::Window { terms, offset } => Some((terms.as_slice(), *offset, len)),
            _ => None,
        })
    });
    sizes::infer_from_windows(&mut scope, &windows.collect::<Vec<_>>());
    let output_labels = output_axes.iter().filter_map(|axis| match axis.kind {
        AxisKind::Label(label) => Some(label),
        _ => None,
    });
    sizes::infer_from_out(&mut scope, output_labels, &output_axes, options.out.as_ref());
    let labels = scope.labels()?;

    // Build the terms.
    let bound_tables: Vec<Table> = tables
        .iter()
        .map(|table| {
            let layout = &arguments[table.argument].layout;
            let mut strides = Vec::new();
            for ((&label, &len), &stride) in table.labels.iter().zip(&layout.shape).zip(&layout.strides) {
                add_stride(&mut strides, label, effective_stride(len, stride, labels[label.0 as usize].len));
            }
            Table { argument: table.argument, dtype: arguments[table.argument].dtype, strides }
        })
        .collect();
    let mut bound_operands = Vec::with_capacity(operands.len());
    for (number, (axes, assigned)) in operands.iter().zip(assigned).enumerate() {
        let argument = &arguments[assigned.operand];
        let too_large =
            |message: String| BindError::TooLarge(scope.diagnose(message, &[(Place::Operand(number), None)]));
        let elements = element_count(&argument.layout.shape)
            .and_then(|count| argument.layout.span().map(|_| count))
            .map_err(|error| too_large(format!("operand {number}: {error}")))?;
        // Views of nothing may have any strides; no offset of theirs is worth an overflow.
        let empty = || Layout { shape: argument.layout.shape.clone(), strides: vec![0; axes.len()].into() };
        let layout = if elements == 0 { &empty() } else { &argument.layout };
        let term = build_term(axes, layout, &labels)
            .ok_or_else(|| too_large(format!("operand {number}: a window position does not fit 64 bits")))?;
        bound_operands.push(Operand { argument: assigned.operand, dtype: argument.dtype, term, elements });
    }
    let (dtype, result_dtype) = dtypes(&scope, &bound_operands, options)?;
    let output = bind_output(&scope, &output_axes, &labels, result_dtype, options, &written_output)?;
    Ok(Problem {
        equation: equation.clone(),
        arguments: arguments.to_vec(),
        labels,
        operands: bound_operands,
        tables: bound_tables,
        output,
        dtype,
        bounds: options.bounds,
    })
}

/// The arguments of one operand: itself, then a table a lookup.
pub(crate) struct Assigned {
    operand: usize,
    tables: Vec<usize>,
}

/// Deals the arguments out to operands and tables, or says how many there should be.
fn assign_arguments(equation: &Equation, output: &Written, given: usize) -> Result<Vec<Assigned>, BindError> {
    let mut next = 0;
    let assigned: Vec<Assigned> = equation
        .operands()
        .iter()
        .map(|operand| {
            let first = next;
            next += 1 + operand.lookups();
            Assigned { operand: first, tables: (first + 1..next).collect() }
        })
        .collect();
    let expected = next + output.lookups();
    if expected == given {
        return Ok(assigned);
    }
    let operands = equation.operands().len();
    let hint = match expected - operands {
        0 => None,
        tables => Some(format!(
            "{} and {}: a table goes right after its operand, in the order of the brackets; those of the output last",
            plural(operands, "operand"),
            plural(tables, "table")
        )),
    };
    Err(BindError::ArgumentCount(Box::new(Diagnostic {
        message: format!("the equation takes {} but {} given", plural(expected, "argument"), were(given)),
        text: equation.text().to_string(),
        spans: Vec::new(),
        hint,
    })))
}

/// `1 axis`, `2 axes`, `0 arguments`: a number with its noun.
pub(crate) fn plural<N: std::fmt::Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    match noun {
        noun if count == N::from(1) => format!("1 {noun}"),
        "axis" => format!("{count} axes"),
        noun => format!("{count} {noun}s"),
    }
}

/// `1 was`, `2 were`: a number as the subject of a sentence.
pub(crate) fn were(count: usize) -> String {
    format!("{count} {}", if count == 1 { "was" } else { "were" })
}

/// There must be one stride an axis; views have that, descriptions may not.
fn check_strides(scope: &Scope<'_>, arguments: &[Argument], options: &BindOptions) -> Result<(), BindError> {
    let described = arguments.iter().enumerate().map(|(number, argument)| (format!("argument {number}"), argument));
    for (name, Argument { layout, .. }) in described.chain(options.out.iter().map(|out| ("`out`".to_string(), out))) {
        let (axes, strides) = (layout.shape.len(), layout.strides.len());
        if axes != strides {
            let message = format!("{name} has {} but {}", plural(axes, "axis"), plural(strides, "stride"));
            return Err(BindError::Rank(scope.diagnose(message, &[])));
        }
    }
    Ok(())
}

/// An axis of a term after its ellipsis is expanded.
pub(crate) struct BoundAxis {
    /// Position in the written term, for messages.
    written: usize,
    kind: AxisKind,
}

pub(crate) enum AxisKind {
    Label(LabelId),
    Lookup { table: usize },
    Window { terms: Vec<(LabelId, i64)>, offset: i64 },
}

/// A table before lengths are known.
pub(crate) struct UnboundTable {
    argument: usize,
    labels: Vec<LabelId>,
    place: (Place, usize),
}

fn expand(
    scope: &mut Scope<'_>,
    term: &Written,
    place: Place,
    ellipsis_axes: usize,
    table_arguments: &[usize],
    arguments: &[Argument],
    tables: &mut Vec<UnboundTable>,
) -> Result<Vec<BoundAxis>, BindError> {
    let mut axes = Vec::new();
    let mut table_arguments = table_arguments.iter();
    for (written, axis) in term.axes.iter().enumerate() {
        match axis {
            Axis::Label(label) => axes.push(BoundAxis { written, kind: AxisKind::Label(scope.intern(*label)) }),
            Axis::Ellipsis => {
                for label in scope.ellipsis_labels(ellipsis_axes) {
                    axes.push(BoundAxis { written, kind: AxisKind::Label(label) });
                }
            }
            Axis::Lookup(labels) => {
                let argument = *table_arguments.next().expect("one table argument a lookup");
                let Argument { dtype, layout } = &arguments[argument];
                let (at, axis) = ([(place, Some(written))], quoted(&axis.to_string()));
                if !dtype.is_integer() {
                    let message =
                        format!("the table of `{axis}`, argument {argument}, is {dtype}, not an integer type");
                    return Err(BindError::DType(scope.diagnose(message, &at)));
                }
                if layout.shape.len() != labels.len() {
                    let message = format!(
                        "the table of `{axis}`, argument {argument}, has {} but {}",
                        plural(layout.shape.len(), "axis"),
                        plural(labels.len(), "subscript")
                    );
                    let hint = format!("its shape is {:?}", layout.shape.as_slice());
                    return Err(BindError::Rank(scope.diagnose_with_hint(message, &at, hint)));
                }
                let labels = labels.iter().map(|&label| scope.intern(label)).collect();
                axes.push(BoundAxis { written, kind: AxisKind::Lookup { table: tables.len() } });
                tables.push(UnboundTable { argument, labels, place: (place, written) });
            }
            Axis::Window(affine) => {
                let terms = affine.terms.iter().map(|&(label, by)| (scope.intern(label), by)).collect();
                axes.push(BoundAxis { written, kind: AxisKind::Window { terms, offset: affine.offset } });
            }
        }
    }
    Ok(axes)
}

/// Stride of an axis for a label: none where an axis of length one meets a longer label.
fn effective_stride(axis_len: usize, stride: isize, label_len: usize) -> isize {
    if axis_len == 1 && label_len != 1 { 0 } else { stride }
}

/// Adds a stride; a label that stands twice walks along the diagonal.
fn add_stride(strides: &mut Vec<(LabelId, isize)>, label: LabelId, stride: isize) {
    match strides.iter_mut().find(|(known, _)| *known == label) {
        // Both axes are as long as the label, so the sum stays within the span that the view has proved.
        Some((_, sum)) => *sum = sum.wrapping_add(stride),
        None => strides.push((label, stride)),
    }
}

/// Collects the axes of a term; `None` when a window position could overflow.
pub(crate) fn build_term(axes: &[BoundAxis], layout: &Layout, labels: &[LabelInfo]) -> Option<Term> {
    let mut term = Term::default();
    for ((axis, &len), &stride) in axes.iter().zip(&layout.shape).zip(&layout.strides) {
        match &axis.kind {
            AxisKind::Label(label) => {
                let stride = effective_stride(len, stride, labels[label.0 as usize].len);
                add_stride(&mut term.strides, *label, stride);
            }
            AxisKind::Lookup { table } => term.lookups.push(Lookup { table: *table, len, stride }),
            AxisKind::Window { terms, offset } => {
                let reach = terms.iter().try_fold(offset.checked_abs()?, |reach, (label, by)| {
                    let steps = i64::try_from(labels[label.0 as usize].len.saturating_sub(1)).ok()?;
                    reach.checked_add(by.checked_abs()?.checked_mul(steps)?)
                })?;
                // Kernels add up positions of neighbouring windows before they look whether these exist.
                reach.checked_mul(64)?;
                term.windows.push(Window { terms: terms.clone(), offset: *offset, len, stride });
            }
        }
    }
    Some(term)
}

/// The type to compute in, and the type of the result. A narrower result is rounded once, at the end.
fn dtypes(scope: &Scope<'_>, operands: &[Operand], options: &BindOptions) -> Result<(DType, DType), BindError> {
    let promoted = operands.iter().map(|operand| operand.dtype).reduce(DType::promote).expect("at least one operand");
    let result = options.dtype.unwrap_or(promoted);
    if !promoted.can_cast_same_kind(result) {
        let message = format!("operands of type {promoted} cannot give a result of type {result}");
        return Err(BindError::DType(scope.diagnose(message, &[])));
    }
    Ok((promoted.promote(result), result))
}

#[cfg(test)]
mod tests;
