//! The document of a run over a suite: machine, settings, rows, what was not run, notes.
//!
//! In: whoever times something makes a [`SuiteRow`]. Out: JSON, and what tables and the page are made from.

use std::collections::BTreeMap;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

use crate::bench::record::{self, FORMAT, Machine, Measured, Run};

/// Which suite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// Contractions of dense operands.
    #[default]
    Dense,
    /// Contractions whose keys a table or a window selects.
    Lookups,
}

impl Suite {
    /// The name on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Lookups => "lookups",
        }
    }
}

/// What a call computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pass {
    /// The result.
    Forward,
    /// The result and the gradients of all that are not tables.
    Both,
}

/// One engine's time for one case; it has the fields of [`Measured`] too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SuiteRow {
    /// The case.
    pub name: String,
    /// What it is listed under.
    pub section: String,
    /// What a call computes.
    pub pass: Pass,
    /// The equation.
    pub equation: String,
    /// Lengths by label, and others by name.
    pub sizes: BTreeMap<String, usize>,
    /// What the plan predicts, seconds; of einfall.
    #[serde(default)]
    pub predicted_s: Option<f64>,
    /// The engine solves another problem, to compare with: it attends to every key.
    #[serde(default)]
    pub other: bool,
    /// Who took how long.
    #[serde(flatten)]
    pub measured: Measured,
}

impl Deref for SuiteRow {
    type Target = Measured;

    fn deref(&self) -> &Measured {
        &self.measured
    }
}

/// A case that was not run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Skipped {
    /// The case, its type, and what of it.
    pub name: String,
    /// Why not.
    pub why: String,
    /// It should have been.
    pub failed: bool,
}

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SuiteReport {
    /// The format of the document, [`FORMAT`].
    pub format: u32,
    /// What was run.
    pub suite: Suite,
    /// Where.
    pub machine: Machine,
    /// How.
    pub settings: Run,
    /// What was measured.
    pub rows: Vec<SuiteRow>,
    /// What was not.
    pub skipped: Vec<Skipped>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// The rows of one case in one type: einfall's and those of its peers.
pub struct Problem<'a> {
    /// Our own.
    pub ours: &'a SuiteRow,
    /// Peers, fastest first, those with wrong results and those that solve another problem too.
    pub peers: Vec<&'a SuiteRow>,
}

impl Problem<'_> {
    /// The fastest peer whose result is right.
    #[must_use]
    pub fn best(&self) -> Option<&SuiteRow> {
        self.peers.iter().find(|row| row.ok && !row.other && row.min_s > 0.0).copied()
    }

    /// How many times as long the fastest peer takes; above 1 einfall is faster.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        self.best().map(|best| best.min_s / self.ours.min_s)
    }

    /// The case and, where several were run, its type and pass.
    #[must_use]
    pub fn title(&self, with_dtype: bool) -> String {
        let dtype = if with_dtype { format!(" {}", self.ours.dtype) } else { String::new() };
        let pass = if self.ours.pass == Pass::Both { " fwd+bwd" } else { "" };
        format!("{}{dtype}{pass}", self.ours.name)
    }
}

impl SuiteReport {
    /// A report of nothing yet.
    #[must_use]
    pub fn new(suite: Suite, machine: Machine, settings: Run) -> Self {
        let (rows, skipped, notes) = (Vec::new(), Vec::new(), Vec::new());
        Self { format: FORMAT, suite, machine, settings, rows, skipped, notes }
    }

    /// The document as indented JSON, ending in a line end.
    #[must_use]
    pub fn to_json(&self) -> String {
        record::to_json(self)
    }

    /// Reads a document that [`SuiteReport::to_json`] wrote.
    ///
    /// # Errors
    /// Text that is no such document, or one of a later format.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        let report: Self = serde_json::from_str(text)?;
        record::check_format(report.format)?;
        Ok(report)
    }

    /// Cases with a row of ours, in order.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem<'_>> {
        let key = |row: &SuiteRow| (row.name.clone(), row.dtype.clone(), row.pass);
        let ours = self.rows.iter().filter(|row| row.is_ours());
        let problems = ours.map(|ours| {
            let mut peers: Vec<&SuiteRow> =
                self.rows.iter().filter(|row| !row.is_ours() && key(row) == key(ours)).collect();
            peers.sort_by(|a, b| a.min_s.total_cmp(&b.min_s));
            Problem { ours, peers }
        });
        problems.collect()
    }

    /// Whether a case was run in several types, so that each has to say its own.
    #[must_use]
    pub fn several_dtypes(&self) -> bool {
        let ours: Vec<&SuiteRow> = self.rows.iter().filter(|row| row.is_ours()).collect();
        ours.iter().any(|row| ours.iter().any(|other| other.name == row.name && other.dtype != row.dtype))
    }

    /// One line about where and how.
    #[must_use]
    pub fn caption(&self) -> String {
        let cases = self.problems().len();
        let s = if cases == 1 { "" } else { "s" };
        self.machine.caption(&self.settings, &format!("{cases} case{s} of the suite {}", self.suite.name()))
    }
}
