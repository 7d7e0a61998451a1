//! The suites in `testdata/`: regressions with what must come of them, and the problems that benches run.
//!
//! *In*: files that are part of the build, so no path is needed. *Out*: typed lists. *Callers*: tests and benches.
//!
//! ```
//! use einfall_testing::suite;
//!
//! let bug = suite::regressions().into_iter().find(|entry| entry.case.source == "numpy#10343").unwrap();
//! assert_eq!(bug.expect, suite::Expectation::Ok);
//! assert_eq!(suite::contractions()[0].labels().len(), 6);
//! ```

use std::collections::BTreeMap;

use einfall_tensor::DType;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::case::{ArgumentSpec, Case, Fill};
use crate::oracle::Bounds;

/// A bug that somebody had, or a hazard, as a case.
#[derive(Clone, Debug)]
pub struct Regression {
    /// What went wrong, or could.
    pub about: String,
    /// The problem; its `source` says who had the bug.
    pub case: Case,
    /// What must come of it.
    pub expect: Expectation,
    /// The result worked out by hand, for some.
    pub result: Option<Literal>,
}

/// What must come of a case.
#[derive(Clone, Debug, PartialEq)]
pub enum Expectation {
    /// What the oracle says.
    Ok,
    /// A refusal whose message holds this text.
    Error(String),
}

/// A result worked out by hand.
#[derive(Clone, Debug, PartialEq)]
pub struct Literal {
    /// Axis lengths.
    pub shape: Vec<usize>,
    /// Row-major; of complex numbers, real and imaginary parts alternate.
    pub values: Vec<f64>,
}

/// A contraction of dense operands, to be timed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contraction {
    /// What it is called in reports.
    pub name: String,
    /// The equation, whose operands have labels only.
    pub equation: String,
    /// The length of every label.
    pub sizes: BTreeMap<String, usize>,
    /// Element type.
    #[serde(with = "crate::case::dtype_text")]
    pub dtype: DType,
    /// Where the problem is from.
    pub source: String,
}

impl Contraction {
    /// Its labels in ascending order.
    pub fn labels(&self) -> Vec<&str> {
        self.sizes.keys().map(String::as_str).collect()
    }
}

/// A contraction with keys that a table or a window selects, to be timed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lookup {
    /// What it is called in reports.
    pub name: String,
    /// What is computed.
    pub kind: Kind,
    /// The subscripts of the table (`g` numbers groups of query heads that share their keys), or `window`.
    pub scope: String,
    /// Element type.
    #[serde(with = "crate::case::dtype_text")]
    pub dtype: DType,
    /// The lengths of the labels, and `n`, the number of keys to choose from.
    pub sizes: BTreeMap<String, usize>,
    /// On what it is timed.
    #[serde(rename = "where")]
    pub machines: Vec<Machine>,
    /// Where the problem is from.
    pub source: String,
}

/// What a [`Lookup`] computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `bhqd,bh[...]d->bhqk`.
    Scores,
    /// `bhqk,bh[...]d->bhqd`.
    Values,
    /// Scores, softmax, values.
    Attention,
    /// `e,[e]d->[e]d`, from `n` rows to `rows` rows: a sparse matrix in coordinate form times a dense one.
    Spmm,
    /// `td,[t]df->tf`: for each token the weights of one of `n` experts.
    Moe,
}

/// On what a [`Lookup`] is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Machine {
    /// A CPU.
    Cpu,
    /// A GPU.
    Gpu,
}

/// The regressions of `testdata/regressions.toml`.
pub fn regressions() -> Vec<Regression> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        case: Vec<Entry>,
    }
    let file: File =
        toml::from_str(include_str!("../../../testdata/regressions.toml")).unwrap_or_else(|error| panic!("{error}"));
    file.case.into_iter().map(Entry::regression).collect()
}

/// The contractions of `testdata/suites/contractions.json`.
pub fn contractions() -> Vec<Contraction> {
    cases(include_str!("../../../testdata/suites/contractions.json"))
}

/// The lookups of `testdata/suites/lookups.json`.
pub fn lookups() -> Vec<Lookup> {
    cases(include_str!("../../../testdata/suites/lookups.json"))
}

/// An entry as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    source: String,
    about: String,
    equation: String,
    arguments: Vec<Argument>,
    #[serde(default)]
    sizes: BTreeMap<String, usize>,
    #[serde(default)]
    bounds: Bounds,
    #[serde(default, with = "crate::case::dtype_or_none")]
    out: Option<DType>,
    #[serde(default)]
    expect: Option<String>,
    #[serde(default)]
    shape: Vec<usize>,
    #[serde(default)]
    result: Option<Vec<f64>>,
}

/// `"i32[2,5] random 7"`, or all that an [`ArgumentSpec`] can say.
#[derive(Deserialize)]
#[serde(untagged)]
enum Argument {
    Short(String),
    Full(ArgumentSpec),
}

impl Entry {
    fn regression(self) -> Regression {
        let expect = match self.expect.as_deref() {
            None | Some("ok") => Expectation::Ok,
            Some(text) => {
                let text = text.strip_prefix("error: ").unwrap_or_else(|| panic!("{}: expect {text:?}", self.about));
                Expectation::Error(text.to_string())
            }
        };
        let spec = |argument| match argument {
            Argument::Full(spec) => spec,
            Argument::Short(text) => short(&text).unwrap_or_else(|| panic!("{}: argument {text:?}", self.about)),
        };
        let arguments = self.arguments.into_iter().map(spec).collect();
        let result = self.result.map(|values| Literal { shape: self.shape, values });
        let Entry { source, about, equation, sizes, bounds, out, .. } = self;
        Regression { about, expect, result, case: Case { equation, arguments, sizes, bounds, out, seed: 0, source } }
    }
}

/// Reads `dtype[lengths]`, and a fill with its number.
fn short(text: &str) -> Option<ArgumentSpec> {
    let (array, fill) = text.split_once(' ').unwrap_or((text, ""));
    let (dtype, shape) = array.strip_suffix(']')?.split_once('[')?;
    let shape: Result<Vec<usize>, _> = shape.split(',').filter(|len| !len.is_empty()).map(str::parse).collect();
    let fill = match fill.split_once(' ') {
        None if fill.is_empty() => Fill::default(),
        None if fill == "any" => Fill::Any,
        None if fill == "normal" => Fill::Normal,
        Some(("integers", most)) => Fill::Integers(most.parse().ok()?),
        Some(("constant", value)) => Fill::Constant(value.parse().ok()?),
        Some(("identity", len)) => Fill::Identity(len.parse().ok()?),
        Some(("reversed", len)) => Fill::Reversed(len.parse().ok()?),
        Some(("random", len)) => Fill::Random(len.parse().ok()?),
        Some(("padded", len)) => Fill::Padded(len.parse().ok()?),
        Some(("outside", len)) => Fill::Outside(len.parse().ok()?),
        _ => return None,
    };
    Some(ArgumentSpec::contiguous(dtype.parse().ok()?, &shape.ok()?, fill))
}

/// The list named `cases` of a JSON text without nulls.
fn cases<T: DeserializeOwned>(json: &str) -> Vec<T> {
    #[derive(Deserialize)]
    struct File<T> {
        cases: Vec<T>,
    }
    // But for nulls and the colon, an object of JSON is an inline table of TOML, which is read here anyway.
    let (mut toml, mut quoted, mut escaped) = (String::with_capacity(json.len()), false, false);
    for c in json.trim().chars() {
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        toml.push(if c == ':' && !quoted { '=' } else { c });
    }
    let value = toml::de::ValueDeserializer::parse(&toml).unwrap_or_else(|error| panic!("{error}"));
    File::deserialize(value).unwrap_or_else(|error| panic!("{error}")).cases
}
