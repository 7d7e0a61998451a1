//! Attention by tiles over all keys, of whose scores those count that a list names: for lists that name many of the keys.
//!
//! `attention_tiles.cu`. A table, windows, or all keys, of any order and with repetitions: how often a list names each key is
//! counted in shared memory first. Sums are of `f32`, and so are the products of half types. The rates come from an H100.

use einfall_plan::{Attention, Cost, Estimate, Machine, Pass, Way};
use einfall_tensor::DType;

use super::AttentionLowering;
use super::lists::{Lists, More};
use crate::ops::LAUNCH_SECONDS;
use crate::text::Task;

const THREADS: usize = 256;
/// Keys of a tile.
const KEYS: usize = 64;
/// Longest rows: a thread has what 16 threads share of it in registers.
const LONGEST: usize = 128;
/// Bytes of shared memory that are left alone.
const RESERVED: usize = 1024;

const PLACES: &str =
    concat!(include_str!("../../../kernels/elements.cuh"), include_str!("../../../kernels/attention.cuh"));

/// How the work is dealt out.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Queries of a block.
    queries: usize,
    /// Bytes of a count, and of all counts of a list.
    count: usize,
    pitch: usize,
    bytes: usize,
    /// Blocks that a multiprocessor has at a time.
    together: usize,
}

impl Shape {
    /// The most queries of a block whose counts fit in shared memory.
    fn new(lists: &Lists<'_>, machine: &Machine) -> Option<Self> {
        let count = match lists.k() {
            0..=0xff => 1,
            0x100..=0xffff => 2,
            _ => return None,
        };
        let pitch = lists.n().checked_next_multiple_of(KEYS)?.checked_mul(count)?;
        let (row_k, row_v) = (lists.d().next_multiple_of(4) + 4, lists.e().next_multiple_of(32));
        let space = machine.l1_bytes.checked_sub(RESERVED)?;
        let shape = |queries: usize| {
            let floats = (queries + KEYS) * row_k + KEYS * row_v + queries * (KEYS + 4);
            let bytes = (floats * size_of::<f32>()).checked_add(queries.checked_mul(pitch)?)?;
            let together = (space / bytes).min(2);
            (together > 0).then_some(Shape { queries, count, pitch, bytes, together })
        };
        [64, 32, 16].into_iter().find_map(shape)
    }
}

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the attention.
pub fn estimate(attention: &Attention, pass: Pass, machine: &Machine) -> Result<Estimate, String> {
    if pass == Pass::Backward {
        return Err("gradients are those of `rows`".into());
    }
    let lists = Lists::new(attention)?;
    if lists.accumulator() != 4 || attention.dtype == DType::F64 {
        return Err("sums of f32 only".into());
    }
    if attention.bias.is_some() || attention.ragged.is_some() {
        return Err("a bias, or lists of different lengths, are not counted".into());
    }
    if lists.d().max(lists.e()) > LONGEST {
        return Err(format!("rows are longer than {LONGEST} elements"));
    }
    let groups = lists.groups();
    if groups == 0 || lists.lists() < groups || lists.n() == 0 || lists.k() == 0 {
        return Err("there is nothing to choose from".into());
    }
    let Some(shape) = Shape::new(&lists, machine) else {
        return Err("the counts of keys do not fit in shared memory".into());
    };
    let blocks = groups.saturating_mul((lists.lists() / groups).div_ceil(shape.queries));
    if blocks >= 1 << 31 {
        return Err("too many blocks".into());
    }
    // Fewer queries read a tile for fewer products.
    let share = match shape.queries {
        64 => 0.54,
        32 => 0.34,
        _ => 0.18,
    };
    let lanes = machine.f32_flops_per_second / machine.threads as f64;
    let tiles = lists.n().div_ceil(KEYS) * KEYS;
    let row = (lists.d().next_multiple_of(4) + lists.e().next_multiple_of(32)) as f64;
    let flops = 2.0 * (shape.queries * tiles) as f64 * row;
    // Measured: the softmax of a score and the counting of an entry take as long as so many operations.
    let others = (shape.queries * tiles) as f64 * 182.0 + (shape.queries * lists.k()) as f64 * 140.0;
    let each = (flops / share + others) / lanes;
    let bytes = attention.distinct_bytes(pass);
    let seconds =
        LAUNCH_SECONDS + blocks.div_ceil(machine.threads) as f64 * each + bytes / machine.read_bytes_per_second;
    let cost = Cost { flops: attention.flops(pass), bytes, seconds };
    Ok(Estimate { way: Way::DenseSelect, cost, workspace_bytes: 0 })
}

/// The tasks.
pub fn lower(lowering: &AttentionLowering<'_>) -> Vec<Task> {
    let lists = Lists::new(lowering.attention).expect("the kernel made an offer");
    let shape = Shape::new(&lists, lowering.machine).expect("it fits");
    let groups = lists.groups();
    let per_block = (lists.lists() / groups).div_ceil(shape.queries);
    let source = format!(
        "{}#define QT {}\n#define SPLIT {}\n#define COUNT_BYTES {}\n#define MINBLOCKS {}\n{PLACES}{}",
        lists.definitions(lowering, lists.vectors(Some(lowering))),
        shape.queries,
        lists.moving_rows(),
        shape.count,
        shape.together,
        include_str!("../../../kernels/attention_tiles.cu")
    );
    let more = More { groups, per_block, places: [shape.pitch, 0, 0, 0], ..More::default() };
    vec![Task {
        kernel: "attention_tiles",
        source,
        blocks: (groups * per_block) as u32,
        threads: THREADS as u32,
        shared_bytes: shape.bytes as u32,
        values: lists.values(lowering, &more),
    }]
}
