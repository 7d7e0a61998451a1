//! The gradients of attention over rows, without stored probabilities: they are recomputed from the log-sum-exp.
//!
//! First each list: its share of the softmax's slope, and the gradient of its query. Then, through the inverse of the
//! table, each row: the gradients of key and value, summed over the places that name it, in order.

use super::AttentionLowering;
use super::inverse::Inverse;
use super::lists::{Lists, More, Moves};
use super::rows::{BLOCK, LANES, Shape};
use crate::ops::{LAUNCH_SECONDS, blocks_for};
use crate::text::{Task, Value};

/// Rows of more entries are a block's work.
const PART: usize = 1024;
/// Entries of one block's strides.
const PLACES: &str =
    concat!(include_str!("../../../kernels/elements.cuh"), include_str!("../../../kernels/attention.cuh"));

/// What lies in the scratch memory: lse and slope of each list, then the inverse.
fn scratch(lists: &Lists<'_>) -> (usize, Inverse) {
    let stats = 2 * lists.lists() * lists.accumulator();
    let rows = lists.attention.gradients.key.is_some() || lists.attention.gradients.value.is_some();
    let (entries, keys) = if rows { (lists.entries(), lists.keys()) } else { (0, 0) };
    (0, Inverse::new(entries, keys, stats.next_multiple_of(256)))
}

/// Predicted time, and bytes of workspace. `visits`: that of visiting all rows once.
pub(super) fn cost(lists: &Lists<'_>, visits: f64) -> (f64, usize) {
    let gradients = &lists.attention.gradients;
    let (_, inverse) = scratch(lists);
    let by_list = if gradients.query.is_some() || gradients.bias.is_some() { visits } else { visits * 0.02 };
    let by_row = match gradients.key.is_some() || gradients.value.is_some() {
        true => 3.0 * LAUNCH_SECONDS + inverse.seconds() + 1.3 * visits,
        false => 0.0,
    };
    (LAUNCH_SECONDS + by_list + by_row, inverse.end)
}

/// The tasks.
pub(super) fn lower(lowering: &AttentionLowering<'_>, lists: &Lists<'_>) -> Vec<Task> {
    let gradients = &lists.attention.gradients;
    let (stats, inverse) = scratch(lists);
    let mut tasks = Vec::new();
    let rows = gradients.key.is_some() || gradients.value.is_some();
    if rows {
        if lists.entries() > 0 {
            tasks.push(entries(lowering, lists, &inverse));
        }
        tasks.extend(inverse.tasks());
    }
    tasks.push(by_list(lowering, lists, stats));
    if rows {
        tasks.extend(by_row(lowering, lists, stats, &inverse));
    }
    tasks
}

fn by_list(lowering: &AttentionLowering<'_>, lists: &Lists<'_>, stats: usize) -> Task {
    let gradients = &lists.attention.gradients;
    let shape = Shape::new(lists, lowering, lists.usual_k(), 4);
    let (query, bias) = (i32::from(gradients.query.is_some()), i32::from(gradients.bias.is_some()));
    let source = format!(
        "{}{}#define SUMS {}\n#define GRAD_QUERY {query}\n#define GRAD_BIAS {bias}\n{LANES}{}",
        lists.definitions(lowering, shape.vectors),
        shape.definitions(),
        query | bias,
        include_str!("../../../kernels/attention_grad_query.cu")
    );
    Task {
        kernel: "attention_grad_query",
        source,
        blocks: shape.blocks(lists.lists()),
        threads: BLOCK as u32,
        shared_bytes: 0,
        values: lists.values(lowering, &More { stats: Some(stats), ..More::default() }),
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

fn by_row(lowering: &AttentionLowering<'_>, lists: &Lists<'_>, stats: usize, inverse: &Inverse) -> Vec<Task> {
    let gradients = &lists.attention.gradients;
    let rows = lists.keys();
    let usual = lists.entries() as f64 / rows.max(1) as f64;
    let shape = Shape::new(lists, lowering, usual, 4);
    let more = More {
        stats: Some(stats),
        begins: Some(inverse.begins),
        positions: Some(inverse.positions()),
        groups: lists.product(Moves::Both),
        ..More::default()
    };
    let (key, value) = (i32::from(gradients.key.is_some()), i32::from(gradients.value.is_some()));
    let values: Vec<Value> = lists.values(lowering, &more);
    let far = i32::from(is_far(lists));
    let task = |heavy: bool, blocks: u32| {
        let shape = if heavy { Shape { least: 1, ..shape } } else { shape };
        let source = format!(
            "{}{}#define PART {PART}\n#define HEAVY {}\n#define GRAD_KEY {key}\n#define GRAD_VALUE {value}\n#define FAR {far}\n{LANES}{}",
            lists.definitions(lowering, shape.vectors),
            shape.definitions(),
            i32::from(heavy),
            include_str!("../../../kernels/attention_grad_key.cu")
        );
        let kernel = "attention_grad_key";
        Task { kernel, source, blocks, threads: BLOCK as u32, shared_bytes: 0, values: values.clone() }
    };
    let mut tasks = vec![task(false, shape.blocks(rows * lists.product(Moves::Rows)))];
    if lists.entries() > PART {
        tasks.push(task(true, blocks_for(rows, BLOCK).min(4 * lowering.machine.threads as u32)));
    }
    tasks
}
