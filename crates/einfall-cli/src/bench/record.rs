//! The one document of a benchmark run: machine, settings, rows and notes.
//!
//! In: whoever times something makes a [`BenchRow`]. Out: JSON (`--json`), and what the table and the charts are drawn
//! from, so that an old run can be drawn again.
//!
//! ```
//! use einfall_cli::bench::record::{BenchReport, Case};
//!
//! let report = BenchReport::default();
//! let again = BenchReport::from_json(&report.to_json()).unwrap();
//! assert_eq!(report, again);
//! assert_eq!("separate-lookup".parse(), Ok(Case::SeparateLookup));
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::str::FromStr;

use einfall::{DType, Machine as Planned};
use serde::{Deserialize, Serialize};

use super::compare::Compared;
use super::write;

/// Name under which our own rows stand in a report.
pub const EINFALL: &str = "einfall";

/// Name of our rows for attention that is put together from two einsums with a softmax between them.
pub const EINFALL_COMPOSED: &str = "einfall, 2 einsums";

/// Whether an engine of that name is einfall.
#[must_use]
pub fn is_ours(engine: &str) -> bool {
    matches!(engine, EINFALL | EINFALL_COMPOSED)
}

/// Version of the JSON document; it rises when a field changes its meaning.
pub const FORMAT: u32 = 1;

/// How the keys of a query are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// A key list for each query, every key stored: `(b, h, q, k, d)` distinct elements.
    SeparateStored,
    /// A key list for each query in shape only: `(b, h, k, d)` elements, expanded with stride 0 over the queries.
    SeparateExpanded,
    /// A key list for each query, selected by a table of row numbers from `(b, h, n, d)` elements.
    SeparateLookup,
    /// One key list for all queries: `(b, h, k, d)`.
    Shared,
    /// All n keys for every query: `(b, h, n, d)`; k is n.
    All,
    /// The k of n keys around each query's own position; those before the first and behind the last are left out.
    Window,
}

impl Case {
    /// Every case, in the order in which reports show them.
    pub const ALL: [Self; 6] =
        [Self::SeparateStored, Self::SeparateExpanded, Self::SeparateLookup, Self::Shared, Self::All, Self::Window];

    /// The name on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SeparateStored => "separate-stored",
            Self::SeparateExpanded => "separate-expanded",
            Self::SeparateLookup => "separate-lookup",
            Self::Shared => "shared",
            Self::All => "all",
            Self::Window => "window",
        }
    }

    /// The same in a few words, for headings.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::SeparateStored => "separate keys, stored whole",
            Self::SeparateExpanded => "separate keys, an expanded view",
            Self::SeparateLookup => "separate keys, looked up",
            Self::Shared => "one key list shared by all queries",
            Self::All => "all keys",
            Self::Window => "a window of keys around each query",
        }
    }
}

/// What is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// `bhqd,bhqkd->bhqk`: the dot product of each query with its keys.
    Scores,
    /// `bhqk,bhqkd->bhqd`: the weighted sum of each query's rows.
    Values,
    /// Scores, softmax with scale 1/√d, values; also called `both`.
    #[serde(alias = "both")]
    Attention,
}

impl Op {
    /// Every operation, in the order in which reports show them.
    pub const ALL: [Self; 3] = [Self::Scores, Self::Values, Self::Attention];

    /// The name on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scores => "scores",
            Self::Values => "values",
            Self::Attention => "attention",
        }
    }

    /// The same in a few words, for headings.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Scores => "scores: each query with its keys, bhqd,bhqkd->bhqk",
            Self::Values => "values: weighted sums of each query's rows, bhqk,bhqkd->bhqd",
            Self::Attention => "attention: scores, softmax, values",
        }
    }
}

/// A name that is none of a closed list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {kind} `{found}`\nhint: one of {allowed}")]
pub struct UnknownName {
    kind: &'static str,
    found: String,
    allowed: String,
}

fn by_name<T: Copy>(
    kind: &'static str,
    all: &[T],
    name: impl Fn(T) -> &'static str,
    text: &str,
) -> Result<T, UnknownName> {
    all.iter().copied().find(|&one| name(one) == text).ok_or_else(|| UnknownName {
        kind,
        found: text.to_owned(),
        allowed: all.iter().map(|&one| name(one)).collect::<Vec<_>>().join(", "),
    })
}

impl FromStr for Case {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        by_name("case", &Self::ALL, Self::name, text)
    }
}

impl FromStr for Op {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        if text == "both" { Ok(Self::Attention) } else { by_name("operation", &Self::ALL, Self::name, text) }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The lengths of the experiment's labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Sizes {
    /// Batches.
    pub b: usize,
    /// Heads.
    pub h: usize,
    /// Queries of a head.
    pub q: usize,
    /// Rows that keys are looked up in.
    pub n: usize,
    /// Keys of a query.
    pub k: usize,
    /// Elements of a key.
    pub d: usize,
}

impl Sizes {
    /// Multiply-adds of the operation, times two; attention counts both contractions and not the softmax.
    #[must_use]
    pub fn flops(&self, op: Op) -> u64 {
        let one = [self.b, self.h, self.q, self.k, self.d].iter().map(|&len| len as u64).product::<u64>() * 2;
        if op == Op::Attention { 2 * one } else { one }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { b, h, q, n, k, d } = self;
        write!(f, "b={b} h={h} q={q} n={n} k={k} d={d}")
    }
}

/// What the machine cannot go below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FloorKind {
    /// The distinct bytes at the measured memory speed.
    Memory,
    /// The multiply-adds at the measured peak.
    Compute,
}

impl FloorKind {
    /// `memory` or `compute`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Compute => "compute",
        }
    }
}

/// One engine's time for one problem, whatever the problem is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Who computed it: `einfall`, `torch.einsum`, `torch.matmul`, `torch mul-sum compiled`, ...
    pub engine: String,
    /// Element type of the data.
    pub dtype: String,
    /// Where it ran: `cpu`, `cuda:0`, ...
    #[serde(default = "cpu")]
    pub device: String,
    /// Threads it might use; multiprocessors of a GPU.
    pub threads: usize,
    /// Shortest time of a call, seconds.
    pub min_s: f64,
    /// Median time of a call, seconds.
    pub median_s: f64,
    /// Number of timed calls; on a GPU of replays, each of several.
    pub repeats: usize,
    /// Multiply-adds × 2.
    pub flops: u64,
    /// Bytes of distinct input and output.
    pub bytes_distinct: u64,
    /// Least time this machine could take, seconds.
    #[serde(default)]
    pub floor_s: Option<f64>,
    /// What sets that least time.
    #[serde(default)]
    pub floor_kind: Option<FloorKind>,
    /// The way einfall chose, in the words of `einfall explain`.
    #[serde(default)]
    pub way: Option<String>,
    /// Most memory that a call took beyond its inputs, bytes: the result and whatever it was computed in. Counted for
    /// einfall only.
    #[serde(default)]
    pub peak_bytes: Option<u64>,
    /// Time spent compiling before the first call, seconds; not part of the other times.
    #[serde(default)]
    pub compile_s: Option<f64>,
    /// The difference from the reference that is largest against what is allowed there, if compared.
    #[serde(default)]
    pub max_error: Option<f64>,
    /// The difference that is allowed there.
    #[serde(default)]
    pub tolerance: Option<f64>,
    /// Whether the result is right, as far as it was compared.
    pub ok: bool,
}

/// Where older documents ran.
fn cpu() -> String {
    "cpu".to_owned()
}

impl Measured {
    /// The work of a problem and its floor on a machine; not measured yet.
    #[must_use]
    pub fn new(engine: &str, dtype: DType, device: String, flops: u64, bytes_distinct: u64, machine: &Planned) -> Self {
        let memory = bytes_distinct as f64 / machine.bytes_per_second_within(bytes_distinct as f64);
        let compute = flops as f64 / machine.peak_flops_per_second(dtype);
        Self {
            engine: engine.to_owned(),
            dtype: dtype.name().to_owned(),
            device,
            threads: machine.threads,
            min_s: 0.0,
            median_s: 0.0,
            repeats: 0,
            flops,
            bytes_distinct,
            floor_s: Some(memory.max(compute)),
            floor_kind: Some(if memory > compute { FloorKind::Memory } else { FloorKind::Compute }),
            way: None,
            peak_bytes: None,
            compile_s: None,
            max_error: None,
            tolerance: None,
            ok: true,
        }
    }

    /// The same with the times of calls.
    #[must_use]
    pub fn timed(self, mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let middle = seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN);
        let least = seconds.first().copied().unwrap_or(f64::NAN);
        Self { min_s: least, median_s: middle, repeats: seconds.len(), ..self }
    }

    /// The same with what became of comparing its result.
    #[must_use]
    pub(super) fn compared(self, compared: &Compared) -> Self {
        Self {
            max_error: Some(compared.max_error).filter(|error| error.is_finite()),
            tolerance: Some(compared.tolerance),
            ok: compared.ok,
            ..self
        }
    }

    /// Billions of operations a second (a multiply-add is two), by the shortest time.
    #[must_use]
    pub fn gflops(&self) -> f64 {
        self.flops as f64 / self.min_s / 1e9
    }

    /// Distinct bytes a second in units of 10⁹, by the shortest time. Data that is read again is not counted again.
    #[must_use]
    pub fn gbytes_per_s(&self) -> f64 {
        self.bytes_distinct as f64 / self.min_s / 1e9
    }

    /// The least possible time over the shortest measured one; 1 is as fast as the machine allows.
    #[must_use]
    pub fn share_of_floor(&self) -> Option<f64> {
        self.floor_s.map(|floor| floor / self.min_s)
    }

    /// Whether the engine is einfall.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        is_ours(&self.engine)
    }
}

/// One engine's time for one problem of `einfall bench keys`; it has the fields of [`Measured`] too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// How the keys are given.
    pub case: Case,
    /// What is computed.
    pub op: Op,
    /// Keys of a query; for [`Case::All`] n.
    pub k: usize,
    /// The problem's lengths.
    pub sizes: Sizes,
    /// Who took how long.
    #[serde(flatten)]
    pub measured: Measured,
}

impl Deref for BenchRow {
    type Target = Measured;

    fn deref(&self) -> &Measured {
        &self.measured
    }
}

impl DerefMut for BenchRow {
    fn deref_mut(&mut self) -> &mut Measured {
        &mut self.measured
    }
}

/// The machine a run was made on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Instruction sets in use, such as `avx2 fma`.
    #[serde(default)]
    pub isa: String,
    /// Cores that the process may use.
    #[serde(default)]
    pub cores: usize,
    /// Main memory, bytes.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// Measured speed of reading memory, bytes a second.
    #[serde(default)]
    pub read_bytes_per_s: Option<f64>,
    /// Measured peak of multiply-adds × 2 a second, in the dtype of the run.
    #[serde(default)]
    pub flops_per_s: Option<f64>,
}

impl Machine {
    /// One line about where and how: processor, threads, dtype, what was timed.
    pub(super) fn caption(&self, run: &Run, what: &str) -> String {
        let Run { threads, dtype, version, .. } = run;
        let unit = if self.isa.starts_with("sm_") { "multiprocessor" } else { "thread" };
        let s = if *threads == 1 { "" } else { "s" };
        let cpu = if self.cpu.is_empty() { "unknown processor" } else { &self.cpu };
        format!("{cpu}, {threads} {unit}{s}, {dtype}, {what}, einfall {version}")
    }
}

/// How a run was made, whatever it timed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Version of einfall.
    pub version: String,
    /// Seconds since 1970, UTC; 0 if unknown.
    #[serde(default)]
    pub unix_time: u64,
    /// Threads each engine might use.
    pub threads: usize,
    /// Element type of the data.
    pub dtype: String,
    /// Element type of lookup tables.
    #[serde(default)]
    pub table_dtype: String,
    /// Versions of the peers, by package; with `python` itself.
    #[serde(default)]
    pub peers: BTreeMap<String, String>,
    /// The command that makes this run again.
    #[serde(default)]
    pub command: String,
}

impl Run {
    /// A run that begins now, without peers.
    #[must_use]
    pub fn new(threads: usize, dtype: &str, table_dtype: &str, words: &[OsString]) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            unix_time: write::unix_time(),
            threads,
            dtype: dtype.to_owned(),
            table_dtype: table_dtype.to_owned(),
            peers: BTreeMap::new(),
            command: write::command(words.iter().cloned()),
        }
    }
}

/// How a run of `einfall bench keys` was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// What is said of every run.
    #[serde(flatten)]
    pub run: Run,
    /// Lengths that all rows have in common; `k` is that of the first row.
    pub sizes: Sizes,
}

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// [`FORMAT`].
    pub format: u32,
    /// Where.
    pub machine: Machine,
    /// How.
    pub settings: Settings,
    /// What was measured.
    pub rows: Vec<BenchRow>,
    /// What was left out, and why; what a reader should know.
    pub notes: Vec<String>,
}

/// A document of a run as indented JSON, ending in a line end.
pub(super) fn to_json(document: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(document).expect("names and numbers are always valid JSON");
    text.push('\n');
    text
}

/// Refuses documents of a later format.
pub(super) fn check_format(format: u32) -> Result<(), serde_json::Error> {
    if format > FORMAT {
        return Err(serde::de::Error::custom(format!("format {format} is newer than {FORMAT}")));
    }
    Ok(())
}

impl Default for BenchReport {
    fn default() -> Self {
        Self {
            format: FORMAT,
            machine: Machine::default(),
            settings: Settings::default(),
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }
}

impl BenchReport {
    /// The document as indented JSON, ending in a line end.
    #[must_use]
    pub fn to_json(&self) -> String {
        to_json(self)
    }

    /// Reads a document that [`BenchReport::to_json`] wrote.
    ///
    /// # Errors
    /// Text that is no such document, or one of a later format.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        let report: Self = serde_json::from_str(text)?;
        check_format(report.format)?;
        Ok(report)
    }

    /// The operations that have rows, in the order of [`Op::ALL`].
    #[must_use]
    pub fn ops(&self) -> Vec<Op> {
        Op::ALL.into_iter().filter(|&op| self.rows.iter().any(|row| row.op == op)).collect()
    }

    /// The rows of one problem, fastest first.
    #[must_use]
    pub fn problem(&self, op: Op, case: Case, k: usize) -> Vec<&BenchRow> {
        let mut rows: Vec<_> = self.rows.iter().filter(|row| (row.op, row.case, row.k) == (op, case, k)).collect();
        rows.sort_by(|a, b| a.min_s.total_cmp(&b.min_s));
        rows
    }

    /// All problems that have rows: operations and cases in their order, then k rising.
    #[must_use]
    pub fn problems(&self) -> Vec<(Op, Case, usize)> {
        let mut all: Vec<_> = self.rows.iter().map(|row| (row.op, row.case, row.k)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// One line about where and how: processor, threads, dtype, sizes.
    #[must_use]
    pub fn caption(&self) -> String {
        let Settings { run, sizes } = &self.settings;
        let Sizes { b, h, q, n, d, .. } = sizes;
        self.machine.caption(run, &format!("b={b} h={h} q={q} n={n} d={d}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fixture;

    #[test]
    fn json_comes_back_the_same_and_keeps_its_names() {
        let report = fixture::report();
        let text = report.to_json();
        assert!(BenchReport::from_json(&text).unwrap() == report, "{text}");
        for name in ["\"separate-lookup\"", "\"attention\"", "\"min_s\"", "\"floor_kind\": \"memory\"", "\"format\": 1"]
        {
            assert!(text.contains(name), "{name}");
        }
        assert!(BenchReport::from_json(&text.replace("\"format\": 1", "\"format\": 2")).is_err());
    }

    #[test]
    fn rates_follow_from_the_shortest_time() {
        let mut row = fixture::report().rows[0].clone();
        row.flops = 51_200_000;
        row.bytes_distinct = 102_400_000;
        row.min_s = 4e-3;
        row.floor_s = Some(1e-3);
        assert_eq!((row.gflops(), row.gbytes_per_s(), row.share_of_floor()), (12.8, 25.6, Some(0.25)));
        let sizes = Sizes { b: 8, h: 1, q: 1000, n: 1000, k: 100, d: 32 };
        assert_eq!((sizes.flops(Op::Scores), sizes.flops(Op::Attention)), (51_200_000, 102_400_000));
    }

    #[test]
    fn names_are_a_closed_list() {
        for case in Case::ALL {
            assert_eq!(case.name().parse(), Ok(case));
            assert_eq!(serde_json::to_string(&case).unwrap(), format!("\"{case}\""));
        }
        assert_eq!("both".parse(), Ok(Op::Attention));
        assert_eq!(serde_json::from_str::<Op>("\"both\"").unwrap(), Op::Attention);
        let error = "separate".parse::<Case>().unwrap_err().to_string();
        assert!(error.starts_with("unknown case `separate`\nhint: one of separate-stored, "), "{error}");
    }
}
