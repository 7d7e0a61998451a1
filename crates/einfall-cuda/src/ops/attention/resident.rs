//! Attention with the rows of a group in shared memory: first all scores, then all values.
//!
//! `attention_resident.cu`. Values take the place of keys where both do not fit. The parameters come from an H100.

use einfall_plan::{Attention, Cost, Estimate, Machine, Pass, Way};

use super::AttentionLowering;
use super::lists::{Lists, More};
use super::rows::LANES;
use crate::ops::{LAUNCH_SECONDS, capability};
use crate::text::{Memory, Task};

const BLOCK: usize = 512;
/// Rows of values in flight for each group of lanes.
const FLIGHT: usize = 8;
/// Bytes of shared memory that the kernel declares itself, and that are left alone.
const RESERVED: usize = 1024;

/// Where everything lies in shared memory.
#[derive(Clone, Copy, Debug)]
struct Layout {
    per_block: usize,
    /// Values, scores, zeros, pairs.
    places: [usize; 4],
    bytes: usize,
}

fn layout(lists: &Lists<'_>, machine: &Machine) -> Option<Layout> {
    let up = |bytes: usize| bytes.next_multiple_of(128);
    let (row_k, row_v) = (lists.d() * lists.size(), lists.e() * lists.size());
    let groups = lists.groups();
    let (queries, lanes) = (lists.lists() / groups.max(1), lanes(lists));
    let per_block = (machine.threads / groups.max(1)).clamp(1, queries.max(1));
    let saved = up(queries.div_ceil(per_block).checked_mul((lists.k() + 1) * lists.accumulator())?);
    let pairs = if lists.size() == 8 { 0 } else { up(BLOCK / lanes * (FLIGHT * 8 + 16)) };
    let (keys, values) = (up(lists.n().checked_mul(row_k)?), up(lists.n().checked_mul(row_v)?));
    let zeros = up(row_v);
    let space = machine.l1_bytes.checked_sub(RESERVED.checked_add(saved)?.checked_add(pairs + zeros)?)? / 128 * 128;
    if keys.max(values) > space {
        return None;
    }
    // What fits beside the keys comes early.
    let at_values = keys.min(space - values);
    let at_saved = keys.max(at_values + values);
    let places = [at_values, at_saved, at_saved + saved, at_saved + saved + zeros];
    Some(Layout { per_block, places, bytes: at_saved + saved + zeros + pairs })
}

/// Lanes that hold a row of values.
fn lanes(lists: &Lists<'_>) -> usize {
    (lists.e() * lists.size() / 16).max(1).next_power_of_two().min(8)
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
    let whole = |elements: usize| (elements * lists.size()).is_multiple_of(16);
    if lists.lookup.is_none()
        || attention.ragged.is_some()
        || lists.vectors(None) != (16 / lists.size(), 16 / lists.size())
    {
        return Err("needs a table, lists of one length, and rows of whole chunks of 16 bytes".into());
    }
    if !whole(lists.d())
        || !whole(lists.e())
        || lists.d() > 64
        || lists.e() * lists.size() > 1024
        || lists.groups() == 0
    {
        return Err("rows do not fit in the registers".into());
    }
    if lists.lists() < lists.groups() || lists.n() == 0 || lists.k() == 0 {
        return Err("there is nothing to look up".into());
    }
    let Some(layout) = layout(&lists, machine) else {
        return Err("the rows of a group do not fit in shared memory".into());
    };
    let groups = lists.groups();
    if groups.saturating_mul(layout.per_block) >= 1 << 31 {
        return Err("too many groups".into());
    }
    let (row_k, row_v) = ((lists.d() * lists.size()) as f64, (lists.e() * lists.size()) as f64);
    let visits = lists.lists() as f64 * lists.k() as f64;
    // Measured: 14.7 us for k=100, 32.5 for k=300; of half types 13.0 for k=100, which instructions decide.
    let rate = machine.threads as f64 * 128.0 * 1.95e9 * 0.7;
    let blocks = groups * layout.per_block;
    let rounds = blocks.div_ceil(machine.threads) as f64 * machine.threads as f64 / blocks as f64;
    let staged = blocks as f64 * lists.n() as f64 * (row_k + row_v);
    let each = if lists.size() == 2 { 4.0 } else { 2.0 };
    let operations = 96.0 + each * (lists.d() + lists.e()) as f64;
    let issued = visits * operations / (machine.threads as f64 * 128.0 * 1.9e9);
    let busy = (visits * (row_k + row_v) / rate).max(issued) * rounds;
    let seconds = LAUNCH_SECONDS + staged / (machine.l2_bytes_per_second * 1.2) + busy;
    let cost = Cost { flops: attention.flops(pass), bytes: attention.distinct_bytes(pass), seconds };
    Ok(Estimate { way: Way::Gather, cost, workspace_bytes: 0 })
}

/// The tasks.
pub fn lower(lowering: &AttentionLowering<'_>) -> Vec<Task> {
    let lists = Lists::new(lowering.attention).expect("the kernel made an offer");
    let chunk = 16 / lists.size();
    if lists.vectors(Some(lowering)) != (chunk, chunk) {
        return super::rows::lower(lowering);
    }
    let layout = layout(&lists, lowering.machine).expect("it fits");
    let aligned = |operand| (lowering.alignment)(Memory::Operand(operand)) >= 16;
    let stage = match lists.is_packed() && aligned(1) && aligned(2) && capability(lowering.machine) >= 90 {
        true => 2,
        false => 1,
    };
    let (lanes, pairs) = (lanes(&lists), i32::from(lists.size() < 8));
    let split = lists.moving_rows();
    let source = format!(
        "{}#define LANES {lanes}\n#define U {FLIGHT}\n#define SHARE 1\n#define BLOCK {BLOCK}\n#define MINBLOCKS 1\n\
         #define LISTERS 8\n#define P 3\n#define STAGE {stage}\n#define SPLIT {split}\n#define PAIRS {pairs}\n{LANES}{}",
        lists.definitions(lowering, (chunk, chunk)),
        include_str!("../../../kernels/attention_resident.cu")
    );
    let groups = lists.groups();
    let more = More { groups, per_block: layout.per_block, places: layout.places, ..More::default() };
    vec![Task {
        kernel: "attention_resident",
        source,
        blocks: (groups * layout.per_block) as u32,
        threads: BLOCK as u32,
        shared_bytes: layout.bytes as u32,
        values: lists.values(lowering, &more),
    }]
}
