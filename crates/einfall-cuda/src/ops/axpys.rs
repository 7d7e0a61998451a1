//! Weighted sums of rows: looked up where they lie, or in shared memory.
//!
//! A group of lanes holds a row, and its sum while the list passes. The parameters come from measurements on an H100.

use einfall_plan::pattern::row_axpys;
use einfall_plan::{Contraction, Cost, Estimate, Machine, Role};
use einfall_tensor::DType;

use super::rows::{Launch, ROWS, Rows, TURNS, lanes_for};
use crate::text::{Lowering, Task};

const RESIDENT_BLOCK: usize = 512;
const RESIDENT_FLIGHT: usize = 16;

fn rows(contraction: &Contraction) -> Result<Rows<'_>, String> {
    let pattern = row_axpys(contraction)?;
    if contraction.loops_of(Role::Contracted).count() > 1 {
        return Err("more than one summed loop".into());
    }
    if contraction.out.strides[pattern.inner] != 1 {
        return Err("sums are not contiguous in the output".into());
    }
    let rows = Rows::new(contraction, pattern.rows, pattern.inner, Some(pattern.row_loop))?;
    Ok(rows)
}

/// Lanes that hold a row in shared memory.
fn resident_lanes(rows: &Rows<'_>) -> usize {
    rows.pitch(1).div_ceil(16).next_power_of_two().min(8)
}

/// Pairs of a row and its weight pass through shared memory too.
fn pair_bytes(rows: &Rows<'_>) -> usize {
    RESIDENT_BLOCK / resident_lanes(rows) * (RESIDENT_FLIGHT * 8 + 16)
}

fn resident_seconds(rows: &Rows<'_>, machine: &Machine) -> Option<f64> {
    let fits = rows.pitch(1) / 16 <= 8 * resident_lanes(rows) && rows.fits(machine, pair_bytes(rows), 1);
    fits.then(|| rows.resident_seconds(machine, 0.55))
}

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    let rows = rows(contraction)?;
    let vector = rows.vector(None, true, false);
    if rows.d().div_ceil(vector * lanes_for(rows.d(), vector, rows.size())) > TURNS {
        return Err("rows are too long for the registers".into());
    }
    let gather = gather_seconds(&rows, machine);
    let seconds = resident_seconds(&rows, machine).map_or(gather, |resident| resident.min(gather));
    let cost = Cost { flops: contraction.flops(), bytes: contraction.distinct_bytes(), seconds };
    Ok(Estimate { way: rows.way(), cost, workspace_bytes: 0 })
}

fn gather_seconds(rows: &Rows<'_>, machine: &Machine) -> f64 {
    // Lists are not divided, so few of them leave multiprocessors idle.
    let lanes = lanes_for(rows.d(), rows.vector(None, true, false), rows.size());
    let warps = (rows.lists() * lanes).div_ceil(32) as f64;
    rows.gather_seconds(machine) * (machine.threads as f64 * 4.0 / warps).max(1.0)
}

/// The tasks.
pub fn lower(lowering: &Lowering<'_>) -> Vec<Task> {
    let rows = rows(lowering.contraction).expect("the kernel made an offer");
    let gather = gather_seconds(&rows, lowering.machine);
    let resident = resident_seconds(&rows, lowering.machine).filter(|&seconds| seconds < gather);
    let is_resident = resident.is_some();
    let vector = rows.vector(Some(lowering), true, false);
    let mut source = rows.definitions(lowering, vector);
    let per_block;
    let launch = if is_resident {
        let stage = rows.stage(lowering);
        let pairs = i32::from(lowering.contraction.dtype != DType::F64);
        source += &format!(
            "#define LANES {}\n#define U {RESIDENT_FLIGHT}\n#define SHARE 1\n#define BLOCK {RESIDENT_BLOCK}\n\
             #define MINBLOCKS 1\n#define HINT 0\n#define RESIDENT 1\n#define STAGE {stage}\n#define CLUSTER 1\n\
             #define PAIRS {pairs}\n{ROWS}{STAGING}{AXPYS}",
            resident_lanes(&rows)
        );
        per_block = rows.blocks_per_group(lowering.machine);
        let shared_bytes = (rows.n() + 1) * rows.pitch(1) + pair_bytes(&rows);
        Launch {
            blocks: rows.groups().0 * per_block,
            threads: RESIDENT_BLOCK,
            shared_bytes,
            part: rows.k().max(1),
            per_block,
        }
    } else {
        const BLOCK: usize = 256;
        let lanes = lanes_for(rows.d(), vector, rows.size());
        let turns = rows.d().div_ceil(vector * lanes);
        let flight = if turns > 2 {
            4
        } else if rows.k() <= 48 && turns == 1 {
            16
        } else {
            8
        };
        let flight: usize = flight.min(rows.k().next_power_of_two());
        // Rows that are read once need not stay in the L1.
        let hint = i32::from(!rows.is_chosen());
        source += &format!(
            "#define LANES {lanes}\n#define U {flight}\n#define SHARE 1\n#define BLOCK {BLOCK}\n#define MINBLOCKS 2\n\
             #define HINT {hint}\n#define RESIDENT 0\n{ROWS}{AXPYS}"
        );
        per_block = BLOCK / 32;
        let units = rows.lists().div_ceil(32 / lanes);
        Launch { blocks: units.div_ceil(per_block), threads: BLOCK, shared_bytes: 0, part: rows.k().max(1), per_block }
    };
    vec![rows.task("axpys", source, launch)]
}

const STAGING: &str = include_str!("../../kernels/staging.cuh");
const AXPYS: &str = include_str!("../../kernels/axpys.cu");
