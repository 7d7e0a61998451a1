//! Why a problem has no result.

use std::fmt;

use einfall_tensor::DType;

/// Why the oracle refuses a problem. [`class`](Self::class) names the kind of mistake in one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OracleError {
    /// Too many or too few operands and tables.
    ArgumentCount {
        /// Operands and tables that the equation takes.
        expected: usize,
        /// Arguments given.
        given: usize,
    },
    /// An operand has another number of axes than its term.
    Rank {
        /// `operand 0`, say.
        term: String,
        /// The axes as written.
        axes: String,
        /// The shape given.
        shape: Vec<usize>,
    },
    /// A table has another number of axes than its lookup has subscripts.
    TableRank {
        /// The lookup as written.
        axis: String,
        /// Where it stands.
        term: String,
        /// Number of subscripts.
        subscripts: usize,
        /// Shape of the table.
        shape: Vec<usize>,
    },
    /// A table holds no integers.
    TableType {
        /// The lookup as written.
        axis: String,
        /// Where it stands.
        term: String,
        /// What it holds.
        dtype: DType,
    },
    /// A table value outside its axis, under [`Bounds::Error`](super::Bounds::Error).
    TableValue {
        /// Number of the argument, tables counted.
        table: usize,
        /// The lookup as written.
        axis: String,
        /// Where it stands.
        term: String,
        /// Coordinate of the value in its table.
        position: Vec<usize>,
        /// The value.
        value: i128,
        /// Length of the axis.
        len: usize,
    },
    /// A label, or an axis of the ellipses, with two lengths neither of which is 1.
    Size {
        /// `` label `k` ``, say.
        name: String,
        /// A length and where it is from.
        one: (usize, String),
        /// Another length and where it is from.
        other: (usize, String),
    },
    /// A label or an output axis whose length nothing gives.
    NoSize {
        /// `` label `w` `` or `` axis `[e]` ``.
        name: String,
        /// The key to add to the sizes.
        key: String,
    },
    /// The result cannot have the type asked for.
    Cast {
        /// The type to which the operands promote.
        from: DType,
        /// The type asked for.
        to: DType,
    },
}

impl OracleError {
    /// One word for the kind of mistake: `arguments`, `rank`, `table-rank`, `table-dtype`, `table-value`, `size`,
    /// `no-size` or `cast`.
    pub fn class(&self) -> &'static str {
        match self {
            Self::ArgumentCount { .. } => "arguments",
            Self::Rank { .. } => "rank",
            Self::TableRank { .. } => "table-rank",
            Self::TableType { .. } => "table-dtype",
            Self::TableValue { .. } => "table-value",
            Self::Size { .. } => "size",
            Self::NoSize { .. } => "no-size",
            Self::Cast { .. } => "cast",
        }
    }
}

impl fmt::Display for OracleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ArgumentCount { expected, given } => {
                write!(f, "the equation takes {expected} arguments, tables included, but {given} were given")
            }
            Self::Rank { term, axes, shape } => {
                write!(f, "{term} is written `{axes}` but has shape {shape:?} of {} axes", shape.len())
            }
            Self::TableRank { axis, term, subscripts, shape } => {
                write!(f, "the table of `{axis}` in {term} needs {subscripts} axes but has shape {shape:?}")
            }
            Self::TableType { axis, term, dtype } => {
                write!(f, "the table of `{axis}` in {term} holds {dtype}, not integers")
            }
            Self::TableValue { table, axis, term, position, value, len } => write!(
                f,
                "the table of `{axis}` in {term} (argument {table}) holds {value} at {position:?}, outside 0..{len}"
            ),
            Self::Size { name, one, other } => {
                write!(f, "{name} is {} in {} but {} in {}", one.0, one.1, other.0, other.1)
            }
            Self::NoSize { name, key } => write!(f, "{name} has no length\nhint: give it in sizes as \"{key}\""),
            Self::Cast { from, to } => write!(f, "a result of {from} cannot be stored as {to}"),
        }
    }
}

impl std::error::Error for OracleError {}
