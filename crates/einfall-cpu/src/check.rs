//! Checking whole tables: the first value outside its axis, in argument order.

use einfall_plan::{Lookup, Problem, Ragged, RunError};
use einfall_tensor::{View, element_count};

use crate::isa::Isa;
use crate::load::{TableDType, first_invalid};
use crate::walk::TablePointer;

/// The first bad value of all tables, or `None`. Cost: one read of every table.
pub(crate) fn first_bad_value(isa: Isa, problem: &Problem, arguments: &[View<'_>]) -> Option<RunError> {
    let terms = problem.operands.iter().map(|operand| &operand.term).chain([&problem.output.term]);
    terms.flat_map(|term| &term.lookups).find_map(|lookup| {
        let argument = problem.tables[lookup.table].argument;
        first_bad_in(isa, lookup, argument, &arguments[argument])
    })
}

/// The first list of different lengths whose offsets are no range of the table's entries.
pub(crate) fn first_bad_offset(ragged: &Ragged, offsets: &View<'_>) -> Option<RunError> {
    let (shape, strides) = (offsets.shape(), offsets.strides());
    let (&ends, lists) = shape.split_last()?;
    let pointer = TablePointer { pointer: offsets.as_ptr(), dtype: TableDType::of(offsets.dtype())? };
    let count: usize = lists.iter().product();
    (0..count).find_map(|number| {
        let mut position = vec![0; shape.len()];
        let mut flat = number;
        for (coordinate, &len) in position.iter_mut().zip(lists).rev() {
            (*coordinate, flat) = (flat % len, flat / len);
        }
        let mut least = 0;
        (0..ends).find_map(|end| {
            position[shape.len() - 1] = end;
            let at = position.iter().zip(strides).map(|(&i, &stride)| i as isize * stride).sum();
            // SAFETY: `span`: the coordinates are within the view.
            let value = unsafe { pointer.value(at, ragged.entries + 1) };
            if value.is_some_and(|value| value >= least) {
                least = value?;
                return None;
            }
            // SAFETY: as above.
            let value =
                value.map_or_else(|| unsafe { pointer.value(at, usize::MAX) }.map_or(-1, |v| v as i128), |v| v as i128);
            let (argument, position) = (ragged.argument, position.clone());
            Some(RunError::Offset { argument, position, value, least, entries: ragged.entries })
        })
    })
}

fn first_bad_in(isa: Isa, lookup: &Lookup, argument: usize, table: &View<'_>) -> Option<RunError> {
    let (shape, strides) = (table.shape(), table.strides());
    let count = element_count(shape).ok().filter(|&count| count > 0)?;
    let pointer = TablePointer { pointer: table.as_ptr(), dtype: TableDType::of(table.dtype())? };
    // A gapless table is one run; otherwise each run of the last axis is checked by itself.
    let contiguous = table.layout().is_contiguous();
    let (run, stride) = match (contiguous, shape.last(), strides.last()) {
        (false, Some(&len), Some(&stride)) => (len, stride),
        _ => (count, 1),
    };
    (0..count / run).find_map(|number| {
        let mut flat = number * run;
        let mut offset = 0;
        for (&len, &stride) in shape.iter().zip(strides).rev() {
            offset += (flat % len) as isize * stride;
            flat /= len;
        }
        // SAFETY: `span`: the run lies inside the table's view.
        let bad = unsafe { first_invalid(isa, pointer.run(offset, stride), run, lookup.len) }?;
        let mut flat = number * run + bad.position;
        let mut position = vec![0; shape.len()];
        for (coordinate, &len) in position.iter_mut().zip(shape).rev() {
            *coordinate = flat % len;
            flat /= len;
        }
        Some(RunError::TableValue { argument, position, value: bad.value, len: lookup.len })
    })
}
