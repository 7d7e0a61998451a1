//! Attention over rows where they lie: a group of lanes holds a row, several rows in flight, the softmax as it goes along.
//!
//! `attention_rows.cu`. Any table, windows, all keys; any length of list. The parameters come from measurements on an H100.

use einfall_plan::{Attention, Cost, Estimate, Machine, Pass, Way};

use super::lists::{Lists, More, lanes_of};
use super::{AttentionLowering, backward};
use crate::ops::{LAUNCH_SECONDS, blocks_for};
use crate::text::Task;

/// Element types, places, rows.
pub(super) const LANES: &str = concat!(
    include_str!("../../../kernels/elements.cuh"),
    include_str!("../../../kernels/attention.cuh"),
    include_str!("../../../kernels/attention_lanes.cuh")
);
/// Threads of a block.
pub(super) const BLOCK: usize = 256;
/// Chunks of a row that a lane holds at most before a row takes more lanes.
const USUAL_TURNS: usize = 3;

/// What the kernels would cost.
///
/// # Errors
/// Why they cannot run the attention.
pub fn estimate(attention: &Attention, pass: Pass, machine: &Machine) -> Result<Estimate, String> {
    let lists = Lists::new(attention)?;
    lanes_of(&lists, lists.vectors(None), USUAL_TURNS)?;
    let forward = visit_seconds(&lists, machine);
    let way = if lists.lookup.is_some() { Way::Gather } else { Way::Stream };
    let (seconds, workspace_bytes) = match pass {
        Pass::Forward => (LAUNCH_SECONDS + forward, 0),
        Pass::Backward => {
            lists.check_backward()?;
            backward::cost(&lists, forward)
        }
    };
    let cost = Cost { flops: attention.flops(pass), bytes: attention.distinct_bytes(pass), seconds };
    Ok(Estimate { way, cost, workspace_bytes })
}

/// Predicted time of visiting the rows of all lists once.
pub(super) fn visit_seconds(lists: &Lists<'_>, machine: &Machine) -> f64 {
    let attention = lists.attention;
    let row = |elements: usize| ((elements * lists.size()).max(32)) as f64;
    let visits = lists.lists() as f64 * lists.usual_k();
    let visited = visits * (row(lists.d()) + row(lists.e()));
    let distinct = (attention.distinct_elements(&attention.key) + attention.distinct_elements(&attention.value))
        * lists.size() as f64;
    // Part of what the L2 would give comes from the L1 already; of rows twice as many as it holds much is there all the same.
    let l2 = machine.l2_bytes as f64;
    let rate = match distinct {
        _ if distinct < 0.7 * l2 => machine.l2_bytes_per_second * 1.25,
        _ if distinct < 2.5 * l2 => machine.l2_bytes_per_second * 0.95,
        _ => machine.read_bytes_per_second * 1.4,
    };
    // Short rows cost instructions, not bytes.
    let issued = visits * 3.0 * (lists.d() + lists.e()) as f64 / machine.f32_flops_per_second;
    let read = attention.distinct_bytes(Pass::Forward) / machine.read_bytes_per_second;
    (visited / rate).max(issued).max(read)
}

/// How lanes are divided.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) vectors: (usize, usize),
    pub(super) lanes: usize,
    /// Rows in flight for each group of lanes.
    pub(super) flight: usize,
    /// Groups of lanes on one list.
    pub(super) share: usize,
    pub(super) least: usize,
}

impl Shape {
    /// For lists of about so many keys, `flight` rows at a time.
    pub(super) fn new(lists: &Lists<'_>, lowering: &AttentionLowering<'_>, usual: f64, flight: usize) -> Self {
        let vectors = lists.vectors(Some(lowering));
        let lanes = lanes_of(lists, vectors, USUAL_TURNS).unwrap_or(32);
        let turns = (lists.d() / vectors.0).max(lists.e() / vectors.1).div_ceil(lanes);
        // Registers: a row in flight takes 4 a turn, of f64 as much; sums and vectors as many numbers as a chunk has.
        let room = if turns == 1 { flight } else { (flight * 2 / (turns + 1)).max(1) };
        // Measured: a quarter of the list at a time.
        let wanted = (usual / 4.0).ceil().clamp(1.0, 1024.0) as usize;
        let flight = (1 << room.ilog2()).min(wanted.next_power_of_two());
        // A group of lanes a list: nothing to join. Few long lists keep more lanes busy together.
        let busy = lowering.machine.threads * 48 * 32;
        let mut share = 1;
        while share * lanes < 32 && lists.lists() * lanes * share < busy && (share * 2 * flight) as f64 <= usual {
            share *= 2;
        }
        let least = if turns > 1 || lists.size() == 8 { 1 } else { 2 };
        Shape { vectors, lanes, flight, share, least }
    }

    /// For blocks of so many threads.
    pub(super) fn definitions(&self, block: usize) -> String {
        let Shape { lanes, flight, share, least, .. } = self;
        format!(
            "#define LANES {lanes}\n#define U {flight}\n#define SHARE {share}\n#define BLOCK {block}\n#define MINBLOCKS {least}\n"
        )
    }

    /// Lists (or rows) that a warp has at a time.
    fn lists_of_warp(&self) -> usize {
        32 / self.lanes / self.share
    }

    /// Blocks for so many lists (or rows).
    pub(super) fn blocks(&self, lists: usize) -> u32 {
        blocks_for(lists, self.lists_of_warp() * (BLOCK / 32))
    }
}

/// The tasks.
pub fn lower(lowering: &AttentionLowering<'_>) -> Vec<Task> {
    let lists = Lists::new(lowering.attention).expect("the kernel made an offer");
    match lowering.pass {
        Pass::Forward => vec![forward(lowering, &lists)],
        Pass::Backward => backward::lower(lowering, &lists),
    }
}

fn forward(lowering: &AttentionLowering<'_>, lists: &Lists<'_>) -> Task {
    let shape = Shape::new(lists, lowering, lists.usual_k(), 8);
    let phases = Phases::new(lists, &shape, lowering.machine);
    let block = phases.as_ref().map_or(BLOCK, |phases| phases.block);
    let source = format!(
        "{}{}#define EARLY 1\n#define PHASED {}\n{LANES}{}",
        lists.definitions(lowering, shape.vectors),
        Shape { least: phases.as_ref().map_or(shape.least, |phases| phases.least), ..shape }.definitions(block),
        usize::from(phases.is_some()),
        include_str!("../../../kernels/attention_rows.cu")
    );
    let at_once = shape.lists_of_warp() * (block / 32);
    Task {
        kernel: "attention_rows",
        source,
        blocks: blocks_for(lists.lists(), at_once),
        threads: block as u32,
        // A score for each key of a list, and their maximum.
        shared_bytes: phases.map_or(0, |_| (at_once * (lists.k() + 1) * size_of::<f32>()) as u32),
        values: lists.values(lowering, &More { per_block: 1, ..More::default() }),
    }
}

/// All keys of a block's lists first, then all their values: the L1 holds more of the rows that are in use.
struct Phases {
    block: usize,
    least: usize,
}

impl Phases {
    /// None where rows come one list at a time. Measured on an H100: lists of 7 keys lose by two phases, from 16 on they gain
    /// 5 to 15 %, the more so the larger the share of a head's keys that the L1 holds.
    fn new(lists: &Lists<'_>, shape: &Shape, machine: &Machine) -> Option<Self> {
        let keys = lists.k();
        let usual = shape.least == 2 && (16..=128).contains(&keys) && lists.attention.ragged.is_none();
        let busy = lists.lists() >= machine.threads * 2048 / shape.lanes;
        let looked_up = lists.lookup.as_ref()?;
        let of_a_head = looked_up.len * lists.d() * lists.size();
        let phases = match of_a_head <= 3 * machine.l1_bytes {
            true => Phases { block: 1024, least: 1 },
            false => Phases { block: BLOCK, least: 3 },
        };
        (usual && busy).then_some(phases)
    }
}
