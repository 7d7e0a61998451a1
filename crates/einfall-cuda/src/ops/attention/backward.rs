//! The gradients of attention over rows, without stored probabilities: they are recomputed from the log-sum-exp.
//!
//! First the inverse of the table, which depends on nothing else. Then each list: its share of the softmax's slope, and the
//! gradient of its query. Then, through the inverse, each row: the gradients of key and value, summed over the places that
//! name it, in order.

use super::inverse::Inverse;
use super::lists::{Lists, More, Moves};
use super::rows::{BLOCK, LANES, Shape};
use super::{AttentionLowering, nest};
use crate::ops::{LAUNCH_SECONDS, blocks_for};
use crate::text::Task;

/// Rows of more entries are a block's work.
pub(super) const PART: usize = 1024;
/// Places of lists alone.
const PLACES: &str =
    concat!(include_str!("../../../kernels/elements.cuh"), include_str!("../../../kernels/attention.cuh"));

/// What lies in the scratch memory: lse and slope of each list from its start on, then the inverse.
fn inverse(lists: &Lists<'_>) -> Inverse {
    let stats = 2 * lists.lists() * lists.accumulator();
    let (entries, keys) = if wants_rows(lists) { (lists.entries(), lists.keys()) } else { (0, 0) };
    Inverse::new(entries, keys, stats.next_multiple_of(256))
}

fn wants_rows(lists: &Lists<'_>) -> bool {
    lists.attention.gradients.key.is_some() || lists.attention.gradients.value.is_some()
}

/// Predicted time, and bytes of workspace. `visits`: that of visiting all rows once, forward.
pub(super) fn cost(lists: &Lists<'_>, visits: f64) -> (f64, usize) {
    let gradients = &lists.attention.gradients;
    let inverse = inverse(lists);
    let by_list = if gradients.query.is_some() || gradients.bias.is_some() { 1.25 * visits } else { visits * 0.02 };
    let by_row = match wants_rows(lists) {
        true => 3.0 * LAUNCH_SECONDS + inverse.seconds() + 1.75 * visits,
        false => 0.0,
    };
    (LAUNCH_SECONDS + by_list + by_row, inverse.end)
}

/// What a kernel of rows is given.
pub(super) struct Rows<'a> {
    /// Definitions: which gradients, and how far queries lie.
    pub(super) defines: String,
    /// Number of rows.
    pub(super) count: usize,
    /// Entries of a row on average.
    pub(super) usual: f64,
    pub(super) more: &'a More,
}

/// Writes the task that goes over lists, from definitions and places.
pub(super) type ByList<'f> = &'f dyn Fn(&AttentionLowering<'_>, &Lists<'_>, &str, &More) -> Task;
/// Writes the task that goes over rows of up to [`PART`] entries.
pub(super) type ByRow<'f> = &'f dyn Fn(&AttentionLowering<'_>, &Lists<'_>, &Rows<'_>) -> Task;

/// The tasks, by groups of lanes.
pub(super) fn lower(lowering: &AttentionLowering<'_>, lists: &Lists<'_>) -> Vec<Task> {
    lower_with(lowering, lists, &by_list, &|lowering, lists, rows| by_row(lowering, lists, rows, false))
}

/// The tasks, with the kernels of the caller.
pub(super) fn lower_with(
    lowering: &AttentionLowering<'_>,
    lists: &Lists<'_>,
    over_lists: ByList<'_>,
    over_rows: ByRow<'_>,
) -> Vec<Task> {
    let gradients = &lists.attention.gradients;
    let inverse = inverse(lists);
    let mut tasks = Vec::new();
    if wants_rows(lists) {
        if lists.entries() > 0 {
            tasks.push(entries(lowering, lists, &inverse));
        }
        tasks.extend(inverse.tasks());
    }
    if lists.attention.ragged.is_some() {
        // Entries may be in no list.
        tasks.extend(nest::clear(lists.attention, 3));
    }
    let (query, bias) = (i32::from(gradients.query.is_some()), i32::from(gradients.bias.is_some()));
    let defines = format!("#define SUMS {}\n#define GRAD_QUERY {query}\n#define GRAD_BIAS {bias}\n", query | bias);
    tasks.push(over_lists(lowering, lists, &defines, &More { stats: Some(0), ..More::default() }));
    if wants_rows(lists) {
        let more = More {
            stats: Some(0),
            begins: Some(inverse.begins),
            positions: Some(inverse.positions()),
            groups: lists.product(Moves::Both),
            ..More::default()
        };
        let (key, value) = (i32::from(gradients.key.is_some()), i32::from(gradients.value.is_some()));
        let far = i32::from(is_far(lists));
        let rows = Rows {
            defines: format!("#define GRAD_KEY {key}\n#define GRAD_VALUE {value}\n#define FAR {far}\n"),
            count: lists.keys() * lists.product(Moves::Rows),
            usual: lists.entries() as f64 / lists.keys().max(1) as f64,
            more: &more,
        };
        tasks.push(over_rows(lowering, lists, &rows));
        if lists.entries() > PART {
            tasks.push(by_row(lowering, lists, &rows, true));
        }
    }
    tasks
}

fn by_list(lowering: &AttentionLowering<'_>, lists: &Lists<'_>, defines: &str, more: &More) -> Task {
    let shape = Shape::new(lists, lowering, lists.usual_k(), 4);
    let source = format!(
        "{}{}{defines}{LANES}{}",
        lists.definitions(lowering, shape.vectors),
        shape.definitions(BLOCK),
        include_str!("../../../kernels/attention_grad_query.cu")
    );
    Task {
        kernel: "attention_grad_query",
        source,
        blocks: shape.blocks(lists.lists()),
        threads: BLOCK as u32,
        shared_bytes: 0,
        values: lists.values(lowering, more),
    }
}

fn entries(lowering: &AttentionLowering<'_>, lists: &Lists<'_>, inverse: &Inverse) -> Task {
    let source = format!(
        "{}#define BLOCK {BLOCK}\n{PLACES}{}",
        lists.definitions(lowering, lists.vectors(Some(lowering))),
        include_str!("../../../kernels/attention_entries.cu")
    );
    let more = More { to_keys: Some(inverse.to_keys()), groups: lists.product(Moves::Both), ..More::default() };
    Task {
        kernel: "attention_entries",
        source,
        blocks: blocks_for(lists.entries(), BLOCK),
        threads: BLOCK as u32,
        shared_bytes: 0,
        values: lists.values(lowering, &more),
    }
}

/// Whether offsets of queries need 64 bits.
fn is_far(lists: &Lists<'_>) -> bool {
    let attention = lists.attention;
    let reach = |strides: &[isize]| -> f64 {
        let loops = attention.loops.iter().zip(strides);
        loops.map(|(l, &stride)| l.len as f64 * stride.unsigned_abs() as f64).sum()
    };
    reach(&attention.query.strides).max(reach(&attention.out.strides)) >= i32::MAX as f64
}

fn by_row(lowering: &AttentionLowering<'_>, lists: &Lists<'_>, rows: &Rows<'_>, heavy: bool) -> Task {
    let shape = Shape::new(lists, lowering, rows.usual, 4);
    let shape = if heavy { Shape { least: 1, ..shape } } else { shape };
    // The warps of a block leave their sums of a row in its shared memory.
    let row =
        (lists.d() + shape.vectors.0 * shape.lanes + lists.e() + shape.vectors.1 * shape.lanes) * lists.accumulator();
    let threads = if heavy { (32 * (40960 / row).max(1)).min(BLOCK) } else { BLOCK };
    let source = format!(
        "{}{}{}#define PART {PART}\n#define HEAVY {}\n{LANES}{}",
        lists.definitions(lowering, shape.vectors),
        shape.definitions(threads),
        rows.defines,
        i32::from(heavy),
        include_str!("../../../kernels/attention_grad_key.cu")
    );
    let blocks = match heavy {
        true => blocks_for(lists.keys(), threads).min(4 * lowering.machine.threads as u32),
        false => shape.blocks(rows.count),
    };
    let values = lists.values(lowering, rows.more);
    Task { kernel: "attention_grad_key", source, blocks, threads: threads as u32, shared_bytes: 0, values }
}
