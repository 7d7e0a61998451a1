//! `einfall explain`: describes the arguments, plans, and says why the plan is what it is.

mod describe;
mod report;
mod why;

use std::io::Write;

use einfall::{Einsum, Equation};

use super::{view, with_sizes, write_json};
use crate::arguments::ExplainArgs;
use crate::failure::Failure;
use crate::files;
use crate::host::{self, Opened};
use crate::sizes::Lengths;

pub(super) fn run(args: &ExplainArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let equation = Equation::parse(&args.equation).map_err(einfall::Error::from)?;
    let lengths = Lengths::new(&args.size).map_err(Failure::bad_input)?;
    let arguments = if !args.files.is_empty() {
        let arrays = args.files.iter().map(|file| files::read(file)).collect::<Result<Vec<_>, _>>()?;
        arrays.iter().map(|array| Ok(describe::of_view(&view(array)?))).collect::<Result<Vec<_>, Failure>>()?
    } else {
        let dtypes = describe::DTypes { operand: args.dtype, table: args.table_dtype };
        let mut arguments = if args.shape.is_empty() {
            describe::from_lengths(&equation, &lengths, dtypes)?
        } else {
            describe::from_shapes(&equation, &args.shape, dtypes)
        };
        describe::expand(&equation, &mut arguments, &args.expand)?;
        arguments
    };
    let opened = host::open_to_plan(args.device, args.threads, args.machine.as_deref())?;
    let einsum = with_sizes(Einsum::new(&args.equation), &lengths.for_library(&equation));
    let einsum = einsum.bounds(args.bounds.into()).device(opened.device());
    let einsum = args.memory_limit.into_iter().fold(einsum, Einsum::memory_limit);
    let prepared = einsum.plan_for(arguments, None)?;
    let why = why::explain(prepared.plan());
    let note = if let Opened::Absent(_, note) = &opened { Some(note.as_str()) } else { None };
    if args.json {
        return write_json(out, &report::json(prepared.plan(), &why, note));
    }
    if let Some(note) = note {
        writeln!(out, "{note}\n")?;
    }
    for paragraph in why.text() {
        writeln!(out, "{paragraph}")?;
    }
    Ok(writeln!(out, "\n{prepared}")?)
}
