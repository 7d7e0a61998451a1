//! Rows that meet one matrix of several each, which a table chooses: mixtures of experts.
//!
//! *In*: a contraction whose batch is looked up on one side. A block sorts the rows by their matrix (`group.cu`), then
//! the tiles of [`super`] multiply each group.

use einfall_plan::{Bounds, Contraction, Cost, Estimate, Machine, Role, Way};

use super::{LARGE, MIDDLE, Matrices, Sorted, Tile, half};
use crate::ops::{LAUNCH_SECONDS, NUMBERS};
use crate::text::{Lowering, Memory, Task, Writer, type_name};

/// Values that fit in the counters of one block.
const MOST_VALUES: usize = 8192;

fn matrices(contraction: &Contraction) -> Result<(Matrices<'_>, Sorted, Tile), String> {
    let right = contraction.right.as_ref().ok_or("needs two inputs")?;
    let looked_up_is_right = match (contraction.left.lookups.len(), right.lookups.len()) {
        (0, 1) => true,
        (1, 0) => false,
        _ => return Err("needs one lookup, that of a matrix".into()),
    };
    let second = if looked_up_is_right { right } else { &contraction.left };
    let lookup = &second.lookups[0];
    if !contraction.accesses().all(|access| access.windows.is_empty()) || !contraction.out.is_plain() {
        return Err("something else is looked up or slid over".into());
    }
    if ![contraction.dtype, contraction.dtype.accumulator()].contains(&contraction.out_dtype) {
        return Err(format!("does not write {}", contraction.out_dtype));
    }
    let loops = |role| contraction.loops_of(role).collect::<Vec<_>>();
    let batch = loops(Role::Batch);
    let (rows, columns) = match looked_up_is_right {
        true => (loops(Role::Left), loops(Role::Right)),
        false => (loops(Role::Right), loops(Role::Left)),
    };
    let moved = |at: &usize| lookup.table_strides[*at] != 0;
    if !rows.is_empty() || batch.is_empty() || !batch.iter().all(|at| moved(at) && second.strides[*at] == 0) {
        return Err("the matrices are not chosen row by row".into());
    }
    if columns.is_empty() || (0..contraction.loops.len()).any(|at| moved(&at) && !batch.contains(&at)) {
        return Err("the table chooses other than matrices".into());
    }
    let terms = loops(Role::Contracted);
    let matrices = Matrices { contraction, swapped: !looked_up_is_right, rows, columns, terms, batch };
    let (rows, values) = (matrices.len(&matrices.batch), lookup.len);
    if values > MOST_VALUES || rows >= 1 << 22 {
        return Err("too many matrices or rows for one block to sort".into());
    }
    let bytes = contraction.dtype.accumulator().bytes();
    let many = rows / values.max(1) >= 96;
    let tile = match half::is_half(contraction.dtype) {
        // Few experts of many rows each do not fill a GPU with large tiles.
        true => half::TILES[usize::from(!many || rows * matrices.len(&matrices.columns) < 1 << 23)],
        false if bytes <= 4 && many => LARGE,
        false => MIDDLE,
    };
    let tile = tile.for_terms(matrices.len(&matrices.terms), bytes);
    let most_tiles = rows.div_ceil(tile.rows) + values + 1;
    Ok((matrices, Sorted { values, rows, most_tiles, stride: lookup.stride }, tile))
}

/// What the kernels would cost.
///
/// # Errors
/// Why they cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    let (matrices, sorted, tile) = matrices(contraction)?;
    let tiles = sorted.rows.div_ceil(tile.rows) + sorted.values.min(sorted.rows) / 2 + 1;
    let tiles = (tiles * matrices.len(&matrices.columns).div_ceil(tile.columns)) as f64;
    let flops = 2.0 * (tile.rows * tile.columns) as f64 * (matrices.len(&matrices.terms) as f64 + 24.0);
    let peak = machine.flops_per_second(contraction.dtype) / machine.threads as f64;
    let together = (512 / tile.threads()).max(1) as f64;
    let waves = (tiles / (machine.threads as f64 * together)).ceil() * together;
    let bytes = contraction.distinct_bytes();
    let sums = match half::is_half(contraction.dtype) {
        true => half::seconds(tile, tiles as usize, matrices.len(&matrices.terms), machine),
        false => waves * flops / (peak * tile.share),
    };
    let compute = sums.max(bytes / (machine.read_bytes_per_second * 0.8));
    let seconds = 2.0 * LAUNCH_SECONDS + 4e-6 + sorted.rows as f64 * 0.4e-9 + compute;
    let cost = Cost { flops: contraction.flops(), bytes, seconds };
    Ok(Estimate { way: Way::Sorted, cost, workspace_bytes: sorted.places()[3] })
}

/// The tasks: sort, then multiply.
pub fn lower(lowering: &Lowering<'_>) -> Vec<Task> {
    let &Lowering { contraction, tables, .. } = lowering;
    let (matrices, sorted, tile) = matrices(contraction).expect("the kernel made an offer");
    let (_, second) = matrices.sides();
    let lookup = &second.lookups[0];
    let mut w = Writer::new(contraction, tables);
    w.fields.int("rows", sorted.rows as i64);
    sorted.fields(&mut w);
    let element = format!("const {}", type_name(tables[lookup.table]));
    let table = w.fields.pointer(&element, "table", Memory::Table(lookup.table));
    w.split("row", "u64", &matrices.batch);
    let mut at = w.fields.int("table_at", lookup.table_offset as i64);
    for &l in &matrices.batch {
        let stride = w.fields.int(&format!("table_s{l}"), lookup.table_strides[l] as i64);
        at += &format!(" + i{l} * {stride}");
    }
    let bad = match contraction.bounds {
        Bounds::Error => format!("report({});", w.fields.pointer("unsigned", "status", Memory::Status)),
        Bounds::Skip => String::new(),
    };
    let source = format!(
        "{NUMBERS}\n{}#define TILE {}\n#define BAD {bad}\n\
         __device__ __forceinline__ i64 entry(const Params& p, u64 row) {{\n{}return (i64){table}[{at}];\n}}\n\
         #define VALUE(row) entry(p, row)\n{GROUP}",
        w.fields.declaration(),
        tile.rows,
        w.text
    );
    let shared_bytes = (4 * (sorted.values + 1)) as u32;
    let values = w.fields.into_values();
    let group = Task { kernel: "group", source, blocks: 1, threads: 1024, shared_bytes, values };
    vec![group, matrices.task(lowering, tile, Some(&sorted))]
}

const GROUP: &str = include_str!("../../../kernels/group.cu");
