//! Finding the first value outside its axis: before attention, or after a kernel has said that there is one.

use einfall_plan::{AttentionPlan, Bounds, Lookup, Plan, Problem, Ragged, RunError};
use einfall_tensor::{View, element_count};

/// The first bad value of all tables, in argument order. `tables` are views of the host's memory.
pub(crate) fn first_bad_value(plan: &Plan, arguments: &[View<'_>]) -> Option<RunError> {
    first_bad_of(&plan.problem, arguments)
}

/// The first bad value of a problem's tables.
pub(crate) fn first_bad_of(problem: &Problem, arguments: &[View<'_>]) -> Option<RunError> {
    let terms = problem.operands.iter().map(|operand| &operand.term).chain([&problem.output.term]);
    terms.flat_map(|term| &term.lookups).find_map(|lookup| {
        let argument = problem.tables[lookup.table].argument;
        first_bad_in(lookup, argument, &arguments[argument])
    })
}

fn first_bad_in(lookup: &Lookup, argument: usize, table: &View<'_>) -> Option<RunError> {
    let (shape, strides) = (table.shape(), table.strides());
    let count = element_count(shape).ok()?;
    (0..count).find_map(|number| {
        let mut position = vec![0; shape.len()];
        let (mut flat, mut offset) = (number, 0);
        for at in (0..shape.len()).rev() {
            position[at] = flat % shape[at];
            offset += position[at] as isize * strides[at];
            flat /= shape[at];
        }
        // SAFETY: `span`: the coordinates lie in the view.
        let value = unsafe { entry(table, offset) };
        let inside = usize::try_from(value).is_ok_and(|value| value < lookup.len);
        (!inside).then_some(RunError::TableValue { argument, position, value, len: lookup.len })
    })
}

/// The first list of different lengths whose offsets are no range of the table's entries.
pub(crate) fn first_bad_offset(ragged: &Ragged, offsets: &View<'_>) -> Option<RunError> {
    let (shape, strides) = (offsets.shape(), offsets.strides());
    let last = shape.len().checked_sub(1)?;
    let count = element_count(shape).ok()?;
    let mut before = 0;
    for number in 0..count {
        let mut position = vec![0; shape.len()];
        let (mut flat, mut offset) = (number, 0);
        for at in (0..shape.len()).rev() {
            position[at] = flat % shape[at];
            offset += position[at] as isize * strides[at];
            flat /= shape[at];
        }
        // SAFETY: `span`: the coordinates lie in the view.
        let value = unsafe { entry(offsets, offset) };
        let least = if position[last] == 0 { 0 } else { before };
        match usize::try_from(value) {
            Ok(found) if (least..=ragged.entries).contains(&found) => before = found,
            _ => {
                let (argument, entries) = (ragged.argument, ragged.entries);
                return Some(RunError::Offset { argument, position, value, least, entries });
            }
        }
    }
    None
}

/// # Safety
/// The offset is one of the view's elements.
unsafe fn entry(table: &View<'_>, offset: isize) -> i128 {
    use einfall_tensor::DType::*;
    macro_rules! read {
        ($T:ty) => {
            // SAFETY: by the caller.
            i128::from(unsafe { table.as_ptr().cast::<$T>().offset(offset).read_unaligned() })
        };
    }
    match table.dtype() {
        I8 => read!(i8),
        I16 => read!(i16),
        I32 => read!(i32),
        I64 => read!(i64),
        U8 => read!(u8),
        U16 => read!(u16),
        U32 => read!(u32),
        U64 => read!(u64),
        other => unreachable!("binding refuses tables of {other}"),
    }
}

/// Looks for an offset, or for a value of a table that may not be, that lies outside.
pub(crate) fn lists(plan: &AttentionPlan, arguments: &[View<'_>]) -> Result<(), RunError> {
    if let Some(ragged) = &plan.attention.ragged
        && let Some(error) = first_bad_offset(ragged, &arguments[ragged.argument])
    {
        return Err(error);
    }
    if plan.problem.bounds == Bounds::Error
        && let Some(error) = first_bad_of(&plan.problem, arguments)
    {
        return Err(error);
    }
    Ok(())
}
