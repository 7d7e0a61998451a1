//! Dots of vectors with rows: looked up or slid over where they lie, looked up in shared memory, or streamed.
//!
//! `dots.cu`: a group of lanes holds a row. `dots_resident.cu`: all rows of a group lie in shared memory, and a lane owns
//! a lookup. The parameters come from measurements on an H100.

use einfall_plan::pattern::row_dots;
use einfall_plan::{Contraction, Cost, Estimate, Machine};

use super::rows::{Launch, ROWS, Rows, TURNS, lanes_for};
use crate::text::{Lowering, Task};

fn rows(contraction: &Contraction) -> Result<Rows<'_>, String> {
    let pattern = row_dots(contraction)?;
    // Pairs of rows: those that are looked up are the rows.
    let swapped = pattern.row_loop.is_none() && !contraction.left.is_plain();
    let side = if swapped { pattern.rows.other() } else { pattern.rows };
    let rows = Rows::new(contraction, side, pattern.inner, pattern.row_loop)?;
    Ok(rows)
}

/// Slices of the rows that fit in shared memory one at a time, and pay.
fn resident_slices(rows: &Rows<'_>, machine: &Machine) -> Option<usize> {
    let bytes = rows.d() * rows.size();
    if rows.lookup.is_none() || rows.n() == 0 || bytes > 512 || rows.size() * rows.d() < 16 {
        return None;
    }
    let sliced = |slices: usize| bytes.is_multiple_of(16 * slices) && rows.size() >= 4;
    [1, 2].into_iter().find(|&slices| (slices == 1 || sliced(slices)) && rows.fits(machine, 0, slices))
}

fn resident_seconds(rows: &Rows<'_>, machine: &Machine) -> Option<f64> {
    resident_slices(rows, machine).map(|slices| rows.resident_seconds(machine, 0.72 / slices as f64))
}

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    let rows = rows(contraction)?;
    let vector = rows.vector(None, false, true);
    if rows.d().div_ceil(vector * lanes_for(rows.d(), vector, rows.size())) > TURNS {
        return Err("rows are too long for the registers".into());
    }
    let gather = rows.gather_seconds(machine);
    let seconds = resident_seconds(&rows, machine).map_or(gather, |resident| resident.min(gather));
    let cost = Cost { flops: contraction.flops(), bytes: contraction.distinct_bytes(), seconds };
    Ok(Estimate { way: rows.way(), cost, workspace_bytes: 0 })
}

/// The tasks.
pub fn lower(lowering: &Lowering<'_>) -> Vec<Task> {
    let rows = rows(lowering.contraction).expect("the kernel made an offer");
    let gather = rows.gather_seconds(lowering.machine);
    let resident = resident_seconds(&rows, lowering.machine).filter(|&seconds| seconds < gather);
    vec![if resident.is_some() { lower_resident(lowering, &rows) } else { lower_gather(lowering, &rows) }]
}

fn lower_gather(lowering: &Lowering<'_>, rows: &Rows<'_>) -> Task {
    const BLOCK: usize = 256;
    let machine = lowering.machine;
    let vector = rows.vector(Some(lowering), false, true);
    let lanes = lanes_for(rows.d(), vector, rows.size());
    let turns = rows.d().div_ceil(vector * lanes);
    let k = rows.k();
    let distinct = rows.n() * rows.d() * rows.size();
    let (flight, least) = if turns <= 4 && k > 12 { (8, 2) } else { (4, 2) };
    let flight = flight.min(k.next_power_of_two()).max(1);
    // Rows that come from memory: all lanes of a warp on one query.
    let far = !rows.is_chosen() || distinct > machine.l2_bytes / 2;
    let mut share = if k <= 4 * flight { 1 } else { 32 / lanes };
    if rows.is_chosen() && !far && k <= 16 * flight {
        share = share.min(2);
    }
    let flight = if far && rows.is_chosen() { flight.min(4) } else { flight };
    let step = share * flight;
    let queries = 32 / lanes / share;
    let packs = rows.lists().div_ceil(queries);
    // Few lists that are long are cut, so that all multiprocessors have something to do. Short ones keep a warp for a few
    // steps only, and every part reads its vector again: whole ones were faster from 15 warps a multiprocessor on.
    let warps = if rows.is_chosen() && k <= 4 * step { 12 } else { 32 };
    let wanted = (machine.threads * warps).div_ceil(packs.max(1)).clamp(1, k.div_ceil(step).max(1));
    let parts = if !rows.is_chosen() { wanted.max(4.min(k.div_ceil(step))) } else { wanted };
    let part = k.div_ceil(parts).next_multiple_of(step).max(step);
    let units = packs * k.div_ceil(part);
    let hint = if !rows.is_chosen() { 1 } else { 0 };
    let source = format!(
        "{}#define LANES {lanes}\n#define U {flight}\n#define SHARE {share}\n#define BLOCK {BLOCK}\n\
         #define MINBLOCKS {least}\n#define HINT {hint}\n{ROWS}{DOTS}",
        rows.definitions(lowering, vector)
    );
    let per_block = BLOCK / 32;
    let launch = Launch { blocks: units.div_ceil(per_block), threads: BLOCK, shared_bytes: 0, part, per_block };
    rows.task("dots", source, launch)
}

fn lower_resident(lowering: &Lowering<'_>, rows: &Rows<'_>) -> Task {
    let machine = lowering.machine;
    let slices = resident_slices(rows, machine).expect("offered");
    let k = rows.k();
    let vector = rows.vector(Some(lowering), false, true);
    let pairs = slices == 1 && k >= 200 && rows.is_paired(lowering);
    let short = if pairs { 2 } else { 1 };
    let listers = if k <= 16 { 2 } else { 8 };
    let loads = if pairs {
        3
    } else if k <= 16 {
        5
    } else {
        k.div_ceil(listers).clamp(1, 3)
    };
    let stage = if slices > 1 { rows.stage(lowering).min(1) } else { rows.stage(lowering) };
    let threads = if rows.d() * rows.size() > 256 { 256 } else { 512 };
    let source = format!(
        "{}#define LISTERS {listers}\n#define P {loads}\n#define BLOCK {threads}\n#define MINBLOCKS 1\n#define STAGE {stage}\n\
         #define CLUSTER 1\n#define SHORT {short}\n#define SLICES {slices}\n{ROWS}{STAGING}{RESIDENT}",
        rows.definitions(lowering, vector)
    );
    let per_block = rows.blocks_per_group(machine);
    let launch = Launch {
        blocks: rows.groups().0 * per_block,
        threads,
        shared_bytes: rows.n() * rows.pitch(slices),
        part: k.max(1),
        per_block,
    };
    rows.task("dots_resident", source, launch)
}

const STAGING: &str = include_str!("../../kernels/staging.cuh");
const DOTS: &str = include_str!("../../kernels/dots.cu");
const RESIDENT: &str = include_str!("../../kernels/dots_resident.cu");
