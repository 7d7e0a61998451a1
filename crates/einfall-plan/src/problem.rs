//! A bound equation: every label has a length, every operand says how labels address its elements.
//!
//! *In*: made by [`bind`](crate::bind()). *Out*: read by the contraction order and by [`classify`](crate::classify).
//! Diagonals, broadcasts and ellipses are gone: a repeated label has the sum of its strides, an axis of length one that
//! meets a longer one has none.

use einfall_equation::Equation;
use einfall_tensor::{DType, Dims, Layout};

use crate::bind::Argument;

/// Position of a label in [`Problem::labels`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelId(pub u32);

/// A label with its length.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LabelInfo {
    /// The label's letter, or `…0`, `…1`, … for the axes of an ellipsis.
    pub name: String,
    /// Number of values: it runs over `0..len`.
    pub len: usize,
}

/// What happens where a table holds a value outside the axis that it looks up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Bounds {
    /// An error that names the table, the position and the value; nothing is written.
    #[default]
    Error,
    /// The term is left out of the sum (never multiplied by zero).
    Skip,
}

/// An integer table that is read to find positions on a looked-up axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Table {
    /// Which argument of the call it is.
    pub argument: usize,
    /// Any integer type.
    pub dtype: DType,
    /// Stride of each label in the table, in elements; zero for a broadcast axis.
    pub strides: Vec<(LabelId, isize)>,
}

/// An axis of an operand that is looked up: its position is a table's value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lookup {
    /// Position in [`Problem::tables`].
    pub table: usize,
    /// Length of the axis: valid values are `0..len`.
    pub len: usize,
    /// Stride of the axis, in elements.
    pub stride: isize,
}

/// An axis of an operand whose position is an affine expression of labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Labels with their coefficients.
    pub terms: Vec<(LabelId, i64)>,
    /// The constant.
    pub offset: i64,
    /// Length of the axis: positions outside `0..len` are left out.
    pub len: usize,
    /// Stride of the axis, in elements.
    pub stride: isize,
}

/// How labels address the elements of one operand, or of the output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Term {
    /// Stride of each label that stands directly in the term, in elements. Zero where the axis is broadcast: the
    /// label belongs to the term but the elements do not depend on it.
    pub strides: Vec<(LabelId, isize)>,
    /// Looked-up axes.
    pub lookups: Vec<Lookup>,
    /// Windows.
    pub windows: Vec<Window>,
}

impl Term {
    /// The stride of a label that stands directly in the term.
    pub fn stride(&self, label: LabelId) -> isize {
        self.strides.iter().find(|(l, _)| *l == label).map_or(0, |(_, stride)| *stride)
    }

    /// Every label on which the term depends or that it names, each once.
    pub fn labels(&self, tables: &[Table]) -> Vec<LabelId> {
        let direct = self.strides.iter().map(|(label, _)| *label);
        let looked_up = self.lookups.iter().flat_map(|l| tables[l.table].strides.iter().map(|(label, _)| *label));
        let windowed = self.windows.iter().flat_map(|w| w.terms.iter().map(|(label, _)| *label));
        let mut labels: Vec<LabelId> = direct.chain(looked_up).chain(windowed).collect();
        labels.sort_unstable();
        labels.dedup();
        labels
    }

    /// True when no axis is looked up or slid over.
    pub fn is_plain(&self) -> bool {
        self.lookups.is_empty() && self.windows.is_empty()
    }
}

/// An operand of the call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Operand {
    /// Which argument of the call it is.
    pub argument: usize,
    /// Its element type.
    pub dtype: DType,
    /// How labels address it.
    pub term: Term,
    /// Number of elements that its memory spans, for the cost of reading it.
    pub elements: usize,
}

/// The output of the call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Output {
    /// Its element type.
    pub dtype: DType,
    /// Its shape and strides.
    pub layout: Layout,
    /// How labels address it; an axis that is looked up or slid over accumulates.
    pub term: Term,
    /// How labels would address it if it were row-major: for results that are converted or added up before they are
    /// written.
    pub row_major: Term,
}

/// An equation bound to shapes, strides and element types.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// The equation as it was given.
    pub equation: Equation,
    /// What every argument of the call was.
    pub arguments: Vec<Argument>,
    /// Every label.
    pub labels: Vec<LabelInfo>,
    /// The operands, in order.
    pub operands: Vec<Operand>,
    /// The tables, in the order of their brackets.
    pub tables: Vec<Table>,
    /// The output.
    pub output: Output,
    /// The type in which products are formed: the promotion of all operands.
    pub dtype: DType,
    /// What happens where a table's value is outside its axis.
    pub bounds: Bounds,
}

impl Problem {
    /// Length of a label.
    pub fn len(&self, label: LabelId) -> usize {
        self.labels[label.0 as usize].len
    }

    /// Name of a label.
    pub fn name(&self, label: LabelId) -> &str {
        &self.labels[label.0 as usize].name
    }

    /// Shape of the output.
    pub fn output_shape(&self) -> Dims {
        self.output.layout.shape.clone()
    }

    /// Multiply-adds of the equation as written, times two: the product of all label lengths.
    pub fn flops(&self) -> f64 {
        2.0 * self.labels.iter().map(|label| label.len as f64).product::<f64>()
    }
}
