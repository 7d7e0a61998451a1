//! The subcommands: each takes its arguments and a place to write to.

mod explain;
mod machine;
mod run;

use std::io::Write;

use clap::CommandFactory;
use einfall::{Einsum, View};

use crate::Surroundings;
use crate::arguments::{Cli, Command, Experiment};
use crate::bench::keys;
use crate::bench::suite::{self, record::Suite};
use crate::failure::Failure;
use crate::files::StoredArray;

/// Does what the command line says.
///
/// # Errors
/// [`Failure`], with the exit code.
pub fn run(cli: &Cli, surroundings: &Surroundings<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    match &cli.command {
        Command::Run(args) => run::run(args, out),
        Command::Explain(args) => explain::run(args, out),
        Command::Machine(args) => machine::run(args, out),
        Command::Bench(args) => match &args.experiment {
            Experiment::Keys(args) => keys::run(args, surroundings, out),
            Experiment::Dense(args) => suite::run(Suite::Dense, &args.suite(), surroundings, out),
            Experiment::Lookups(args) => suite::run(Suite::Lookups, args, surroundings, out),
        },
        Command::Completions { shell } => {
            // Generated into memory first: the generator panics where it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "einfall", &mut script);
            Ok(out.write_all(&script)?)
        }
    }
}

/// The elements of an array in a file.
fn view(array: &StoredArray) -> Result<View<'_>, Failure> {
    let dtype = array.dtype.parse().map_err(Failure::bad_input)?;
    let view = View::from_bytes(array.bytes(), dtype, &array.shape, &array.strides_elems, 0);
    view.map_err(|error| Failure::from(einfall::Error::from(error)))
}

/// An einsum with the lengths of `-s`.
fn with_sizes<'e>(einsum: Einsum<'e>, sizes: &[(&str, usize)]) -> Einsum<'e> {
    sizes.iter().fold(einsum, |einsum, (key, len)| einsum.size(key, *len))
}

/// A JSON document, indented, with a line end.
fn write_json(out: &mut dyn Write, document: &serde_json::Value) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(document).map_err(|error| Failure::internal(error.to_string()))?;
    Ok(writeln!(out, "{text}")?)
}
