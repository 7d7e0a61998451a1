//! Attention of half types over rows where they lie, with the matrix units: a warp takes a list (or, backward, a row), 16
//! rows at a time.
//!
//! `attention_mma.cuh` says how rows lie in the operands. Weights and slopes are rounded to the half type once.

use einfall_plan::{Attention, Cost, Estimate, Machine, Pass, Way};

use super::AttentionLowering;
use super::backward::{self, PART, Rows};
use super::lists::{Lists, More};
use super::rows::visit_seconds;
use crate::ops::{LAUNCH_SECONDS, blocks_for, capability};
use crate::text::Task;

const BLOCK: usize = 128;
/// Elements of a row at most: registers hold its sums.
const LONGEST: usize = 128;

const TEXT: &str = concat!(
    include_str!("../../../kernels/elements.cuh"),
    include_str!("../../../kernels/attention.cuh"),
    include_str!("../../../kernels/attention_mma.cuh")
);

/// What the kernels would cost.
///
/// # Errors
/// Why they cannot run the attention.
pub fn estimate(attention: &Attention, pass: Pass, machine: &Machine) -> Result<Estimate, String> {
    let lists = Lists::new(attention)?;
    if lists.size() != 2 || capability(machine) < 80 {
        return Err("needs matrix units, for f16 or bf16".into());
    }
    if lists.vectors(None) != (8, 8) || lists.d() > LONGEST || lists.e() > LONGEST {
        return Err(format!("needs rows of whole chunks of 16 bytes, of {LONGEST} elements at most"));
    }
    // Lists are filled up to 16 keys.
    let filled = (lists.usual_k() / 16.0).ceil().max(1.0) * 16.0 / lists.usual_k().max(1.0);
    let forward = FORWARD * visit_seconds(&lists, machine) * filled.sqrt();
    let (seconds, workspace_bytes) = match pass {
        Pass::Forward => (LAUNCH_SECONDS + forward, 0),
        Pass::Backward => {
            lists.check_backward()?;
            backward::cost(&lists, BACKWARD * forward)
        }
    };
    let cost = Cost { flops: attention.flops(pass), bytes: attention.distinct_bytes(pass), seconds };
    Ok(Estimate { way: Way::Gather, cost, workspace_bytes })
}

/// Time beside that of `rows`. More, as long as it was not measured: then it runs where it is named.
const FORWARD: f64 = 1.1;
/// The same backward.
const BACKWARD: f64 = 1.1;

/// The tasks.
pub fn lower(lowering: &AttentionLowering<'_>) -> Vec<Task> {
    let lists = Lists::new(lowering.attention).expect("the kernel made an offer");
    if lists.vectors(Some(lowering)) != (8, 8) {
        return super::rows::lower(lowering);
    }
    match lowering.pass {
        Pass::Forward => {
            let text = include_str!("../../../kernels/attention_mma.cu");
            vec![task(lowering, &lists, "attention_mma", text, "", (4, lists.lists()), &More::default())]
        }
        Pass::Backward => backward::lower_with(lowering, &lists, &by_list, &by_row),
    }
}

fn by_list(lowering: &AttentionLowering<'_>, lists: &Lists<'_>, defines: &str, more: &More) -> Task {
    let text = include_str!("../../../kernels/attention_mma_query.cu");
    task(lowering, lists, "attention_mma_query", text, defines, (3, lists.lists()), more)
}

fn by_row(lowering: &AttentionLowering<'_>, lists: &Lists<'_>, rows: &Rows<'_>) -> Task {
    let text = include_str!("../../../kernels/attention_mma_key.cu");
    let defines = format!("{}#define PART {PART}\n", rows.defines);
    task(lowering, lists, "attention_mma_key", text, &defines, (2, rows.count), rows.more)
}

/// One task; `(least, items)`: blocks for each multiprocessor at least, and items, a warp each.
fn task(
    lowering: &AttentionLowering<'_>,
    lists: &Lists<'_>,
    kernel: &'static str,
    text: &str,
    defines: &str,
    (least, items): (usize, usize),
    more: &More,
) -> Task {
    // Long rows take more registers.
    let least = if lists.d().max(lists.e()) > 64 { 1 } else { least };
    let source = format!(
        "{}#define BLOCK {BLOCK}\n#define MINBLOCKS {least}\n{defines}{TEXT}{text}",
        lists.definitions(lowering, (8, 8))
    );
    let blocks = blocks_for(items, BLOCK / 32);
    let values = lists.values(lowering, more);
    Task { kernel, source, blocks, threads: BLOCK as u32, shared_bytes: 0, values }
}
