//! The command line: what may be typed, and its help.
#![allow(rustdoc::broken_intra_doc_links)] // these comments are help texts, in which `[e]` is an axis

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use einfall::{Bounds, DType};

use crate::bench::record::{Case, Op};
use crate::device::DeviceArg;
use crate::host::parse_threads;
use crate::sizes::Length;

/// Einsum at the speed of the hardware, whose axes can be looked up through a table or slid over a window.
#[derive(Debug, Parser)]
#[command(
    name = "einfall",
    version,
    max_term_width = 100,
    propagate_version = true,
    after_help = "\
Examples:
  einfall run 'ij,jk->ik' a.npy b.npy -o c.npy
  einfall explain 'bhqd,bh[bhqk]d->bhqk' -s b=8,h=1,q=1000,k=100,d=32 -s '[bhqk]=1000'
  einfall bench keys --peers
  einfall bench dense --peers
  einfall machine

Exit codes: 0 done, 1 failed or found a wrong result, 2 cannot work with what was given.
Environment: EINFALL_THREADS sets the number of threads, EINFALL_ISA the instructions."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Evaluate an einsum on arrays in files
    Run(RunArgs),
    /// Say what an einsum costs, which ways there are to run it, and why one was chosen
    Explain(ExplainArgs),
    /// Time einfall on this machine, beside what else is installed
    Bench(BenchArgs),
    /// Measure the rates of this machine, which plans are then made for
    Machine(MachineArgs),
    /// Write a completion script for a shell to standard output
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// What happens to table values outside their axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BoundsArg {
    /// It is an error, and nothing is written
    #[default]
    Error,
    /// The term is left out, so that -1 pads a short list
    Skip,
}

impl From<BoundsArg> for Bounds {
    fn from(bounds: BoundsArg) -> Self {
        match bounds {
            BoundsArg::Error => Bounds::Error,
            BoundsArg::Skip => Bounds::Skip,
        }
    }
}

/// Reads an element type out of those that `fits`; others are refused with `wrong` and what there is.
fn parse_dtype_of(text: &str, fits: impl Fn(DType) -> bool, wrong: impl Fn(DType) -> String) -> Result<DType, String> {
    let message = match text.parse::<DType>() {
        Ok(dtype) if fits(dtype) => return Ok(dtype),
        Ok(dtype) => wrong(dtype),
        Err(unknown) => unknown,
    };
    let names = DType::ALL.into_iter().filter(|&dtype| fits(dtype)).map(DType::name);
    Err(format!("{message}\nhint: one of {}", names.collect::<Vec<_>>().join(", ")))
}

fn parse_dtype(text: &str) -> Result<DType, String> {
    parse_dtype_of(text, |_| true, |dtype| dtype.to_string())
}

fn parse_integer_dtype(text: &str) -> Result<DType, String> {
    parse_dtype_of(text, DType::is_integer, |dtype| format!("a table holds integers, not {dtype}"))
}

/// Arguments of `einfall run`.
#[derive(Debug, Args)]
#[command(after_help = "\
FILES are the operands in order, each followed by the tables of its lookups; tables of the output \
come last. They are mapped into memory, not read whole. A file is `a.npy`, `arrays.npz:NAME` or \
`model.safetensors:NAME`; the name may be left out where there is one array only.

The result is written under its name only when it is complete, and over one of FILES only with --force. \
Without -o up to 1000 values are printed.

Examples:
  einfall run 'ij,jk->ik' a.npy b.npy -o c.npy
  einfall run 'bhqd,bh[bhqk]d->bhqk' model.safetensors:query model.safetensors:keys table.npy -o scores.npz:scores
  einfall run 'qd,[q+w-4]d->qw' q.npy k.npy -s w=9
  einfall run 'e,[e]d->[e]d' -s '[e]=2708' weights.npy x.npy source.npy target.npy
  einfall run 'ij,jk->ik' a.npy b.npy -o c.npy --device cuda")]
pub struct RunArgs {
    /// The equation, such as 'ij,jk->ik'
    pub equation: String,
    /// Arrays: operands, each followed by its tables
    #[arg(required = true, value_name = "FILES")]
    pub files: Vec<String>,
    /// Where to write the result: c.npy, c.npz:NAME or c.safetensors:NAME
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<String>,
    /// Let the result take the place of a file that it is made of
    #[arg(long, requires = "output")]
    pub force: bool,
    /// Lengths that no array gives: of labels, w=9, or of output axes under their bracket, '[e]=1000'
    #[arg(short, long, value_name = "KEY=LEN", value_delimiter = ',')]
    pub size: Vec<Length>,
    /// What happens to table values outside their axis
    #[arg(long, value_enum, default_value_t)]
    pub bounds: BoundsArg,
    /// Type of the result [default: that of the operands together]
    #[arg(long, value_parser = parse_dtype)]
    pub dtype: Option<DType>,
    /// Most elements that intermediate results may have together at any time
    #[arg(long, value_name = "ELEMENTS")]
    pub memory_limit: Option<usize>,
    /// Where to run: cpu, or an NVIDIA GPU, cuda or cuda:1
    #[arg(long, default_value_t)]
    pub device: DeviceArg,
    /// Threads to use [default: all cores]
    #[arg(long, value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// Print one JSON document instead of text
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `einfall explain`.
#[derive(Debug, Args)]
#[command(after_help = "\
The arguments of the equation are described in one of three ways: by the lengths of its labels \
(-s), by --shape once an argument, or by FILES, of which only the headers are read.

With -s, a looked-up or window axis has no label: its length is given under its bracket, as it is \
written in the equation. Where the same bracket has other lengths in other operands, the operand's \
number, counted from 0, goes before it: '1:[e]=500'. The bracket of an output axis gives the length \
of that axis.

Examples:
  einfall explain 'bik,bkj->bij' -s b=64,i=128,j=256,k=512
  einfall explain 'bhqd,bh[bhqk]d->bhqk' -s b=8,h=1,q=1000,k=100,d=32 -s '[bhqk]=1000'
  einfall explain 'bhqd,bhqkd->bhqk' -s b=8,h=1,q=1000,k=100,d=32 --expand 1:q
  einfall explain 'bhqd,bh[q+w-4]d->bhqw' -s b=1,h=8,q=4096,d=64,w=9 -s '[q+w-4]=4096'
  einfall explain 'e,[e]d->[e]d' --shape 5000 --shape 300,32 --shape 5000 --shape 5000 -s '[e]=300'
  einfall explain 'ij,jk->ik' a.npy b.npy
  einfall explain 'bqd,b[bqk]d->bqk' -s b=8,q=1000,k=100,d=32 -s '[bqk]=1000' --device cuda:h100")]
pub struct ExplainArgs {
    /// The equation, such as 'bik,bkj->bij'
    pub equation: String,
    /// Arrays whose shapes and types are taken, instead of -s or --shape
    #[arg(value_name = "FILES", conflicts_with_all = ["shape", "expand"])]
    pub files: Vec<String>,
    /// Lengths: of labels, b=8, or of axes under their bracket, '[bhqk]=1000'
    #[arg(short, long, value_name = "KEY=LEN", value_delimiter = ',')]
    pub size: Vec<Length>,
    /// The shape of one argument, 8,1000,32; once for each operand and table, '' for a scalar
    #[arg(long, value_name = "LENS", value_parser = parse_shape)]
    pub shape: Vec<Shape>,
    /// A view that repeats itself: operand 1 has stride 0 over q
    #[arg(long, value_name = "OPERAND:LABELS", value_parser = parse_expand)]
    pub expand: Vec<Expand>,
    /// Element type of the operands
    #[arg(long, default_value = "f32", value_parser = parse_dtype)]
    pub dtype: DType,
    /// Element type of the tables
    #[arg(long, default_value = "i64", value_parser = parse_integer_dtype)]
    pub table_dtype: DType,
    /// What happens to table values outside their axis
    #[arg(long, value_enum, default_value_t)]
    pub bounds: BoundsArg,
    /// Most elements that intermediate results may have together at any time
    #[arg(long, value_name = "ELEMENTS")]
    pub memory_limit: Option<usize>,
    /// What to plan for: cpu, an NVIDIA GPU, cuda or cuda:1, or an H100 on paper, cuda:h100, which cuda means too
    /// where there is no GPU
    #[arg(long, default_value_t)]
    pub device: DeviceArg,
    /// Threads to plan for [default: all cores]
    #[arg(long, value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// Print one JSON document instead of text
    #[arg(long)]
    pub json: bool,
    /// A description to plan for, as `einfall machine --json` prints it under `machine`
    #[arg(long, hide = true, value_name = "FILE")]
    pub machine: Option<PathBuf>,
}

/// Lengths of the axes of one argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape(pub Vec<usize>);

fn parse_shape(text: &str) -> Result<Shape, String> {
    if text.trim().is_empty() {
        return Ok(Shape(Vec::new()));
    }
    let wrong = |len: &str| format!("`{}` is not a length\nhint: write a shape as `8,1000,32`", len.trim());
    text.split(',').map(|len| len.trim().parse().map_err(|_| wrong(len))).collect::<Result<_, _>>().map(Shape)
}

/// Labels over which an operand has stride 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expand {
    /// The operand, counted from 0.
    pub operand: usize,
    /// The labels.
    pub labels: String,
}

fn parse_expand(text: &str) -> Result<Expand, String> {
    let parsed = text.split_once(':').and_then(|(operand, labels)| {
        let labels: String = labels.chars().filter(|c| !c.is_whitespace()).collect();
        Some(Expand { operand: operand.trim().parse().ok()?, labels })
    });
    parsed
        .filter(|expand| !expand.labels.is_empty())
        .ok_or_else(|| format!("`{text}` is not an operand's number and labels\nhint: write it as `1:q`"))
}

/// Arguments of `einfall machine`.
#[derive(Debug, Args)]
#[command(after_help = "\
Takes about 4 seconds. The rates are kept in $XDG_CACHE_HOME/einfall or ~/.cache/einfall, for this \
processor, these instructions and this number of threads; every later plan uses them. Each is the \
best of many samples, so other work on the machine does little harm.

Of an NVIDIA GPU sizes and clocks are read and rates estimated from them; nothing is kept.

Examples:
  einfall machine
  einfall machine --device cuda
  einfall machine --threads 1 --no-save --json")]
pub struct MachineArgs {
    /// What to describe: cpu, or an NVIDIA GPU, cuda or cuda:1
    #[arg(long, default_value_t)]
    pub device: DeviceArg,
    /// Threads to measure with [default: all cores]
    #[arg(long, value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// Print one JSON document instead of text
    #[arg(long)]
    pub json: bool,
    /// Measure only, keep nothing
    #[arg(long)]
    pub no_save: bool,
    /// Seconds that measuring may take
    #[arg(long, hide = true, default_value_t = 3.5, value_parser = parse_seconds)]
    pub budget: f64,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.0..=3600.0).contains(seconds));
    seconds.ok_or_else(|| format!("`{text}` is not a number of seconds from 0 to 3600"))
}

/// Arguments of `einfall bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to time
    #[command(subcommand)]
    pub experiment: Experiment,
}

/// The experiments.
#[derive(Debug, Subcommand)]
pub enum Experiment {
    /// Each query attends to k keys of its own: how time grows with k, and what it depends on
    Keys(KeysArgs),
    /// Einsums of dense arrays, from benchmarks, textbooks and other projects' issues
    #[command(after_help = DENSE_HELP)]
    Dense(DenseArgs),
    /// Einsums whose keys a table or a window selects: attention, graphs, experts, embedding bags
    #[command(after_help = LOOKUPS_HELP)]
    Lookups(SuiteArgs),
}

const DENSE_HELP: &str = "\
Every case runs in its own type, which is f32 for most; --dtype runs those of f32 in others. Peers are \
torch.einsum, the same under torch.compile, numpy.einsum(optimize=True), opt_einsum and jax.jit; on a GPU \
torch's two. Engines take turns on each case. A sample of each result is compared with plain f64 loops; a \
wrong one of ours ends the run with exit code 1. With all peers and compilers it takes a quarter of an hour.

The floor is the least time that this machine could take: the distinct bytes at memory speed, or the \
arithmetic at its peak. The summary says how einfall compares with the fastest peer of each case, where it \
loses, how near the floor it is, and how far predicted times are off.

--random draws equations of one to three operands, lengths up to 4096, arrays of up to four million elements, and types; the same \
seed draws the same.

Files: dense.json and dense.html, in --out.

Examples:
  einfall bench dense
  einfall bench dense --peers --out results
  einfall bench dense --only tccg,matmul --threads 1
  einfall bench dense --device cuda --peers --dtype f32,bf16
  einfall bench dense --random 500 --peers --no-compile --budget 0.05
  einfall bench dense --list";

const LOOKUPS_HELP: &str = "\
Cases are those of the suite that are meant for the device. Peers are what one would write in torch: rows \
selected by indexing and then an einsum, multiply-and-sum under torch.compile, all scores and then a gather, \
embedding_bag, sparse products, a loop over experts or sorted groups, SDPA with a mask, and FlexAttention for \
windows on a GPU. SDPA over all keys solves another problem and is no best peer. Engines take turns on each \
case. A sample of each result is compared with plain f64 loops; a wrong one of ours ends the run with exit \
code 1.

Attention is timed forward and, where such shapes are trained, forward and backward.

Files: lookups.json and lookups.html, in --out.

Examples:
  einfall bench lookups
  einfall bench lookups --peers --out results
  einfall bench lookups --only scores,spmm-coo
  einfall bench lookups --device cuda --peers
  einfall bench lookups --list";

/// Arguments of `einfall bench dense`.
#[derive(Debug, Args)]
pub struct DenseArgs {
    /// What both suites have.
    #[command(flatten)]
    pub suite: SuiteArgs,
    /// So many equations drawn at random from --seed, random/0 and so on, instead of the suite
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub random: Option<u32>,
}

impl DenseArgs {
    /// All of them in one.
    #[must_use]
    pub fn suite(&self) -> SuiteArgs {
        SuiteArgs { random: self.random, ..self.suite.clone() }
    }
}

/// Arguments of `einfall bench dense` and `einfall bench lookups`.
#[derive(Clone, Debug, Args)]
pub struct SuiteArgs {
    /// Cases, or sections that stand for all their cases [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',', num_args = 1..)]
    pub only: Vec<String>,
    /// Print the cases with their sections and lengths, and time nothing
    #[arg(long)]
    pub list: bool,
    /// Element types to run cases of f32 and bf16 in: f32, f64, bf16 or f16 [default: each its own]
    #[arg(long, value_name = "DTYPE", value_delimiter = ',', value_parser = parse_float_dtype)]
    pub dtype: Vec<DType>,
    /// Element type of tables: i64, as torch has it, or i32
    #[arg(long, default_value = "i64", value_parser = parse_table_dtype)]
    pub table_dtype: DType,
    /// Where to run: cpu, or an NVIDIA GPU, cuda or cuda:1
    #[arg(long, default_value_t)]
    pub device: DeviceArg,
    /// Threads each engine may use [default: all cores]
    #[arg(long, value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// Most timed calls of an engine on a case [default: 1000]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: Option<u32>,
    /// Seconds that an engine may take for a case, compiling apart [default: 0.5]
    #[arg(long, visible_alias = "seconds", value_name = "SECONDS", value_parser = parse_seconds)]
    pub budget: Option<f64>,
    /// Time what else is installed too: torch, NumPy, opt_einsum, JAX
    #[arg(long)]
    pub peers: bool,
    /// Leave out peers that compile, which takes longer than timing them
    #[arg(long, requires = "peers")]
    pub no_compile: bool,
    /// The Python to look for peers in [default: that of $VIRTUAL_ENV, else python3]
    #[arg(long, value_name = "PATH", requires = "peers")]
    pub python: Option<PathBuf>,
    /// Start of the random numbers
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print the JSON document instead of tables
    #[arg(long)]
    pub json: bool,
    /// Folder to write the JSON document and the HTML page to
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub out: PathBuf,
    /// Replace the files of an earlier run
    #[arg(long)]
    pub force: bool,
    /// Small lengths and few calls: does it work at all
    #[arg(long)]
    pub quick: bool,
    /// A description of the machine, instead of measuring it
    #[arg(long, hide = true, value_name = "FILE")]
    pub machine: Option<PathBuf>,
    /// So many random equations instead of the suite.
    #[arg(skip)]
    pub random: Option<u32>,
}

/// Arguments of `einfall bench keys`.
#[derive(Debug, Args)]
#[command(after_help = "\
Cases, each the same arithmetic for the same k:
  separate-stored    bhqd,bhqkd->bhqk          every key of every query in memory of its own
  separate-expanded  bhqd,bhqkd->bhqk          the same equation, keys with stride 0 over q
  separate-lookup    bhqd,bh[bhqk]d->bhqk      k of n rows for each query, selected by a table
  shared             bhqd,bhkd->bhqk           one key list for all queries
  all                bhqd,bhnd->bhqn           all n rows; k is n
  window             bhqd,bh[q+w-k/2]d->bhqw   the k rows around the query's own; only if asked for

A call is timed as users make it: the result is new memory each time, the plan is made once. \
Engines take turns, and so do cases, so that a change of the machine's speed meets all. A sample of \
each result is compared with plain f64 loops; a wrong one ends the run with exit code 1.

On a GPU data and results stay there, and a call takes what a launch takes in replays of a CUDA \
graph, without the host; scores and values only.

Files: keys.json, keys.html and one keys-OP.svg an operation, in --out.

Examples:
  einfall bench keys
  einfall bench keys --peers --python ~/venv/bin/python --out results
  einfall bench keys --op scores --k 10,100 -s b=1,h=8,q=4096,n=4096,d=64 --dtype bf16
  einfall bench keys --device cuda --peers
  einfall bench keys --quick --json")]
pub struct KeysArgs {
    /// Lengths of b, h, q, n and d [default: b=8,h=1,q=1000,n=1000,d=32]
    #[arg(short, long, value_name = "KEY=LEN", value_delimiter = ',')]
    pub size: Vec<Length>,
    /// Keys of a query [default: 1,3,10,30,100,300,1000, those up to n]
    #[arg(short, long, value_name = "LENS", value_delimiter = ',')]
    pub k: Vec<usize>,
    /// scores, values, or attention: scores, a plain softmax, values [default: all three]
    #[arg(long, value_name = "OP", value_delimiter = ',')]
    pub op: Vec<Op>,
    /// Cases to time [default: all but window]
    #[arg(long, value_name = "CASE", value_delimiter = ',')]
    pub case: Vec<Case>,
    /// Element type: f32, f64, bf16 or f16
    #[arg(long, default_value = "f32", value_parser = parse_float_dtype)]
    pub dtype: DType,
    /// Element type of the table: i64, as torch has it, or i32
    #[arg(long, default_value = "i64", value_parser = parse_table_dtype)]
    pub table_dtype: DType,
    /// Where to run: cpu, or an NVIDIA GPU, cuda or cuda:1
    #[arg(long, default_value_t)]
    pub device: DeviceArg,
    /// Threads each engine may use [default: all cores]
    #[arg(long, value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// Most timed calls of an engine on a problem [default: 1000]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: Option<u32>,
    /// Seconds that an engine may take for a problem [default: 0.5]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub budget: Option<f64>,
    /// Time torch, NumPy and opt_einsum too, as far as they are installed
    #[arg(long)]
    pub peers: bool,
    /// The Python to look for peers in [default: that of $VIRTUAL_ENV, else python3]
    #[arg(long, value_name = "PATH", requires = "peers")]
    pub python: Option<PathBuf>,
    /// Start of the random numbers
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print the JSON document instead of tables
    #[arg(long)]
    pub json: bool,
    /// Folder to write keys.json, keys.html and the SVGs to
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub out: PathBuf,
    /// Small lengths and few calls: does it work at all
    #[arg(long)]
    pub quick: bool,
    /// A description of the machine, instead of measuring it
    #[arg(long, hide = true, value_name = "FILE")]
    pub machine: Option<PathBuf>,
}

fn parse_float_dtype(text: &str) -> Result<DType, String> {
    parse_dtype_of(text, DType::is_float, |dtype| format!("{dtype} is not a floating-point type"))
}

fn parse_table_dtype(text: &str) -> Result<DType, String> {
    let timed = |dtype| matches!(dtype, DType::I32 | DType::I64);
    parse_dtype_of(text, timed, |dtype| format!("{dtype} is neither i64 nor i32"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn shapes_and_expansions_are_read() {
        assert_eq!(parse_shape("8, 1000,32").unwrap(), Shape(vec![8, 1000, 32]));
        assert_eq!(parse_shape("").unwrap(), Shape(vec![]));
        assert!(parse_shape("8,,3").unwrap_err().contains("hint"));
        assert_eq!(parse_expand("1:qk").unwrap(), Expand { operand: 1, labels: "qk".into() });
        assert!(parse_expand("q").is_err() && parse_expand("1:").is_err());
    }
}
