//! Several heads that share a list of looked-up keys: they are the rows of the tensor cores' products.
//!
//! Rows are gathered into shared memory once for all heads of a list. Up to 32 heads, or anywhere but on Hopper, warps
//! multiply (`grouped.cu`); from there on warpgroups do (`wide.cu`). Long lists of few queries are split over blocks, whose
//! results are joined in order (`join.cu`). Keys that nothing looks up are rows like others.

use einfall_plan::{Access, Attention, Bounds, Cost, Estimate, LookupAccess, Machine, Pass, Way};
use einfall_tensor::DType;

use super::{MMA, Moved, Rows, WARPGROUPS, defines, product_seconds, walk};
use crate::ops::attention::{AttentionLowering, nest, rows};
use crate::ops::{LAUNCH_SECONDS, capability};
use crate::text::{Fields, Memory, Task, type_name};

const GROUPED: &str = include_str!("../../../../kernels/grouped.cu");
const WIDE: &str = include_str!("../../../../kernels/wide.cu");
const JOIN: &str = include_str!("../../../../kernels/join.cu");

/// Shared memory that a block of this kernel takes at most.
const MOST_SHARED: usize = 227 << 10;

/// How the work is dealt out.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shape {
    /// Products by warpgroups.
    wide: bool,
    /// Rows of a team (64 of a wide block).
    rows: usize,
    /// Keys of a tile.
    keys: usize,
    head_warps: usize,
    value_warps: usize,
    lists: usize,
    parts: usize,
    splits: usize,
    /// Blocks that a multiprocessor has at a time.
    together: usize,
    shared_bytes: usize,
}

impl Shape {
    fn threads(&self) -> usize {
        match self.wide {
            true => 384,
            false => 32 * self.head_warps * self.value_warps * self.lists * self.parts,
        }
    }
}

struct Grouped<'a> {
    rows: Rows<'a>,
    lookup: Option<&'a LookupAccess>,
    /// Queries that share a list.
    heads: usize,
    lists: usize,
}

impl<'a> Grouped<'a> {
    fn new(attention: &'a Attention) -> Result<Self, String> {
        let rows = Rows::new(attention)?;
        let Attention { key, value, limit, .. } = attention;
        if !key.windows.is_empty() || !value.windows.is_empty() || key.lookups.len() > 1 {
            return Err("rows are chosen by more than one table, or by a window".into());
        }
        let lookup = key.lookups.first();
        if let (Some(lookup), Some(at)) = (lookup, rows.key)
            && (![4, 8].contains(&lookup.entry_bytes) || key.strides[at] != 0 || value.strides[at] != 0)
        {
            return Err("the rows of a list are not those of a table of 32 or 64 bits".into());
        }
        if limit.as_ref().is_some_and(|limit| rows.heads.iter().chain(&rows.key).any(|&at| limit.strides[at] != 0)) {
            return Err("queries that share a list see different keys of it".into());
        }
        if attention.ragged.as_ref().is_some_and(|ragged| ![4, 8].contains(&ragged.dtype.bytes())) {
            return Err("offsets of 32 and 64 bits only".into());
        }
        let (heads, lists) = (rows.len(&rows.heads), rows.len(&rows.lists));
        if rows.depth > 576 || rows.width > 512 {
            return Err("rows are longer than 576 and 512 elements".into());
        }
        if lists.saturating_mul(heads) >= 1 << 31 || lookup.is_some_and(|lookup| lookup.len >= 1 << 31) {
            return Err("more queries or rows than are counted with 31 bits".into());
        }
        Ok(Grouped { rows, lookup, heads, lists })
    }

    /// Whether values may be the first elements of the keys' rows; whether they are is known by their addresses.
    fn may_share(&self) -> bool {
        let Attention { key, value, .. } = self.rows.attention;
        let row = |access: &Access| access.lookups.first().map(|lookup| lookup.stride);
        let moved = |at: &usize| key.strides[*at] == value.strides[*at];
        self.rows.width <= self.rows.depth
            && key.offset == value.offset
            && row(key) == row(value)
            && self.rows.lists.iter().chain(&self.rows.key).all(moved)
    }

    /// The shape for values that lie in the keys' rows, or elsewhere.
    fn shape(&self, shared: bool, machine: &Machine) -> Result<Shape, String> {
        let Rows { depth, width, .. } = self.rows;
        let most = MOST_SHARED.min(machine.l1_bytes);
        let blocks = depth.is_multiple_of(64) && width.is_multiple_of(128);
        if self.heads > 32 && blocks && capability(machine) == 90 && machine.isa == "sm_90" {
            let row = depth + if shared { 0 } else { width };
            let bytes = |keys: usize| depth * 128 + 2 * row * 2 * keys + 128 * keys.max(64) + 8 * keys + 2048;
            if let Some(keys) = [64, 32].into_iter().find(|&keys| bytes(keys) <= most) {
                let shape = Shape {
                    wide: true,
                    rows: 64,
                    keys,
                    head_warps: 0,
                    value_warps: 0,
                    lists: 1,
                    parts: 1,
                    splits: 1,
                    together: 1,
                    shared_bytes: bytes(keys),
                };
                return Ok(self.split(shape, machine));
            }
        }
        let head_warps = self.heads.div_ceil(16).min(if width > 256 {
            2
        } else if width > 128 {
            4
        } else {
            8
        });
        let value_warps = width.div_ceil(128).next_power_of_two();
        let (padded_depth, padded_width) = (depth.next_multiple_of(16), width.next_multiple_of(16 * value_warps));
        if padded_width != width.next_multiple_of(16) {
            return Err("the values' rows cannot be shared out among warps".into());
        }
        let pitch = |elements: usize| ((elements / 8) | 1) * 16;
        let row = pitch(padded_depth) + if shared { 0 } else { pitch(padded_width) } + 4;
        let in_registers = padded_depth <= 128 && value_warps == 1;
        let tiles: &[usize] = match (head_warps, value_warps) {
            (1, 1) => &[16],
            (_, 1) => &[64, 32, 16],
            (_, 2) => &[32],
            _ => &[32, 64],
        };
        for &keys in tiles {
            let of_a_key_tile = keys / 8 / value_warps;
            if keys % (8 * value_warps) != 0 || (of_a_key_tile % 2 != 0 && (in_registers || padded_depth % 32 != 0)) {
                continue;
            }
            let team = if in_registers { 0 } else { head_warps * 16 * pitch(padded_depth) }
                + if value_warps > 1 { head_warps * 16 * (keys + 4) * 4 } else { 0 }
                + 2 * keys * row;
            if team > most {
                continue;
            }
            let warps = head_warps * value_warps;
            let teams = (most / (team + 1024)).min(12 / warps).max(1);
            let one = Shape {
                wide: false,
                rows: self.heads.min(16 * head_warps),
                keys,
                head_warps,
                value_warps,
                lists: 1,
                parts: 1,
                splits: 1,
                together: teams,
                shared_bytes: team,
            };
            return Ok(self.split(one, machine));
        }
        Err("a tile of rows does not fit in shared memory".into())
    }

    /// Shares long lists out among teams and blocks, where there are too few of them.
    fn split(&self, shape: Shape, machine: &Machine) -> Shape {
        let units = self.lists * self.heads.div_ceil(shape.rows);
        let tiles = (self.rows.attention.keys_of_list() / shape.keys as f64).ceil().max(1.0) as usize;
        let mut shape = shape;
        let teams = shape.together;
        let spare = (machine.threads * teams) / units.max(1);
        if shape.wide || teams < 4 {
            shape.splits = spare.clamp(1, tiles.div_ceil(4));
            return shape;
        }
        // Blocks of four teams.
        shape.together = teams / 4;
        if spare <= 1 {
            shape.lists = 4;
        } else {
            shape.parts = 4.min(tiles);
            shape.splits = (spare / 4).clamp(1, tiles.div_ceil(shape.parts * 4).max(1));
        }
        let results = if shape.parts > 1 { shape.parts * shape.rows * (self.rows.width + 6) * 4 } else { 0 };
        shape.shared_bytes = (shape.shared_bytes * shape.lists * shape.parts).max(results);
        if shape.shared_bytes > MOST_SHARED {
            shape.shared_bytes /= shape.parts;
            shape.parts = 1;
        }
        shape
    }

    fn scratch_bytes(&self, shape: &Shape) -> usize {
        if shape.splits > 1 { self.lists * self.heads * shape.splits * (self.rows.width + 2) * 4 } else { 0 }
    }
}

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the attention.
pub fn estimate(attention: &Attention, pass: Pass, machine: &Machine) -> Result<Estimate, String> {
    let grouped = Grouped::new(attention)?;
    if pass == Pass::Backward {
        return Err("gradients are summed elsewhere".into());
    }
    if capability(machine) < 80 {
        return Err("needs tensor cores of sm_80".into());
    }
    let shape = grouped.shape(grouped.may_share(), machine)?;
    let unshared = grouped.shape(false, machine)?;
    let workspace_bytes = grouped.scratch_bytes(&shape).max(grouped.scratch_bytes(&unshared));
    let teams = grouped.heads.div_ceil(shape.rows);
    let padded = if shape.wide { 64 } else { 16 * shape.head_warps } * teams;
    let keys = grouped.lists as f64 * attention.keys_of_list();
    let Rows { depth, width, .. } = grouped.rows;
    let flops = 2.0 * keys * padded as f64 * (depth + width) as f64;
    let compute = product_seconds(flops, if shape.wide { 0.6 } else { 0.25 }, machine);
    // Every team brings all rows of its list, from the cache or from memory. Values that may lie in the keys' rows do so where
    // they are shorter; an array of whole rows that is keys and values at once is seldom.
    let shared = grouped.may_share() && width < depth;
    let row = (depth + if shared { 0 } else { width }) as f64 * 2.0;
    let size = attention.dtype.bytes() as f64;
    let rows_bytes =
        size * (attention.distinct_elements(&attention.key) + attention.distinct_elements(&attention.value));
    let rate = if rows_bytes > 0.7 * machine.l2_bytes as f64 {
        machine.read_bytes_per_second * 0.9
    } else {
        machine.l2_bytes_per_second * 1.8
    };
    // Measured: a key of a list takes as long as so many operations, however short its row.
    let issued = 1600.0 / machine.f32_flops_per_second;
    let gathered = keys * teams as f64 * (issued + row / rate);
    let bytes = attention.distinct_bytes(pass);
    let others = (bytes - rows_bytes).max(0.0) / machine.read_bytes_per_second;
    // Blocks come in waves.
    let units = grouped.lists * teams * shape.splits;
    let at_once = machine.threads * if shape.wide { 1 } else { shape.together * shape.lists * shape.parts };
    let waves = (units * shape.parts).div_ceil(at_once) as f64 / ((units * shape.parts) as f64 / at_once as f64);
    let launches = if shape.splits > 1 { 2.0 } else { 1.0 };
    let seconds = launches * LAUNCH_SECONDS + 3e-6 + compute.max(gathered).max(others) * waves.min(4.0) + 0.3 * others;
    Ok(Estimate {
        way: if attention.is_dense() { Way::Gemm } else { Way::GroupedHeads },
        cost: Cost { flops: attention.flops(pass), bytes, seconds },
        workspace_bytes,
    })
}

/// The tasks.
pub fn lower(lowering: &AttentionLowering<'_>) -> Vec<Task> {
    let &AttentionLowering { attention, alignment, .. } = lowering;
    let grouped = Grouped::new(attention).expect("the kernel made an offer");
    let aligned = [Memory::Operand(0), Memory::Operand(1), Memory::Operand(2), Memory::Out];
    if !aligned.into_iter().all(|memory| alignment(memory).is_multiple_of(Rows::ALIGNMENT)) {
        return match rows::estimate(attention, lowering.pass, lowering.machine) {
            Ok(_) => rows::lower(lowering),
            Err(_) => nest::lower(lowering),
        };
    }
    // Whether values are the first elements of the keys' rows is known now, and checked by the kernels: where it is not so
    // in a later call, the second of two launches does the work.
    let mut tasks = Vec::new();
    if lowering.values_in_keys && grouped.may_share() {
        tasks.extend(grouped.tasks(lowering, true, true));
    }
    let guarded = !tasks.is_empty();
    tasks.extend(grouped.tasks(lowering, false, guarded));
    tasks
}

impl Grouped<'_> {
    /// The tasks for values that lie in the keys' rows, or elsewhere; with `guarded` they do nothing where it is otherwise.
    fn tasks(&self, lowering: &AttentionLowering<'_>, shared: bool, guarded: bool) -> Vec<Task> {
        let &AttentionLowering { attention, tables, machine, wants_lse, .. } = lowering;
        let shape = self.shape(shared, machine).expect("the kernel made an offer");
        let Grouped { rows, lookup, heads, lists } = self;

        let mut fields = Fields::default();
        let row_of = |access: &Access| match (access.lookups.first(), rows.key) {
            (Some(lookup), _) => lookup.stride as i64,
            (None, Some(at)) => access.strides[at] as i64,
            (None, None) => 0,
        };
        for (name, operand, access) in
            [("query", 0, &attention.query), ("key", 1, &attention.key), ("value", 2, &attention.value)]
        {
            fields.pointer_at("const unsigned short", name, Memory::Operand(operand), 2 * access.offset as i64);
        }
        fields.pointer_at("unsigned short", "out", Memory::Out, 2 * attention.out.offset as i64);
        match wants_lse {
            true => fields.pointer_at("float", "lse", Memory::LogSum, 4 * attention.lse.offset as i64),
            false => fields.null("float", "lse"),
        };
        fields.scratch("float", "part", 0);
        let keys = rows.key.map_or(1, |at| attention.loops[at].len);
        for (name, value) in [
            ("lists", *lists as i64),
            ("rows", *heads as i64),
            ("keys", keys as i64),
            ("n", lookup.map_or(keys, |lookup| lookup.len) as i64),
            ("splits", shape.splits as i64),
            ("key_row", row_of(&attention.key)),
            ("value_row", row_of(&attention.value)),
        ] {
            fields.int(name, value);
        }
        fields.double("scale", attention.scale.get());

        let moved = [("q", &attention.query), ("k", &attention.key), ("v", &attention.value), ("o", &attention.out)];
        let mut moved: Vec<Moved> = moved.into_iter().map(|(member, access)| Moved::by(member, access)).collect();
        moved.push(Moved::by("e", &attention.lse));
        let in_row = walk(&mut fields, attention, "row", &rows.heads, &moved);
        let (mut index, mut entry_bytes, mut ends) = ("int", 0, String::new());
        if let Some(lookup) = lookup {
            (index, entry_bytes) = (type_name(tables[lookup.table]), lookup.entry_bytes);
            let offset = lookup.table_offset as i64 * entry_bytes as i64;
            fields.pointer_at(&format!("const {index}"), "table", Memory::Table(lookup.table), offset);
            fields.int("entry", rows.key.map_or(0, |at| lookup.table_strides[at] as i64));
            let strides = lookup.table_strides.iter().map(|&stride| stride as i64).collect();
            moved.push(Moved { member: "t", strides });
        }
        if let Some(limit) = &attention.limit {
            moved.push(Moved { member: "limit", strides: limit.strides.clone() });
            let offset = fields.int("limit_offset", limit.offset);
            ends += &format!("  at.limit += {offset};\n");
        }
        if let Some(ragged) = &attention.ragged {
            let kind = type_name(ragged.dtype);
            let offsets = fields.pointer(&format!("const {kind}"), "offsets", Memory::Offsets);
            let (step, most) =
                (fields.int("offset_step", ragged.step as i64), fields.int("entries", ragged.entries as i64));
            moved.push(Moved { member: "r", strides: ragged.strides.iter().map(|&stride| stride as i64).collect() });
            ends += &format!(
                "  const i64 from = (i64){offsets}[at.r], to = (i64){offsets}[at.r + {step}];\n  \
             at.keys = from >= 0 && to > from && to <= {most} ? to - from : 0;\n  \
             at.t += at.keys ? from * p.entry : 0;\n"
            );
        } else {
            ends += "  at.keys = p.keys;\n";
        }
        let in_list = walk(&mut fields, attention, "list", &rows.lists, &moved);
        let status = usize::from(attention.bounds == Bounds::Error && lookup.is_some());
        if status == 1 {
            fields.pointer("unsigned", "status", Memory::Status);
        }
        let around = format!(
            "{}\ntypedef {index} Index;\n{}struct Place {{ i64 q, k, v, t, o, e, r, keys, limit; }};\n\
         __device__ __forceinline__ Place list_place(const Params& p, i64 list) {{\n  Place at = {{}};\n{in_list}{ends}  return at;\n}}\n\
         __device__ __forceinline__ Place row_place(const Params& p, i64 row) {{\n  Place at = {{}};\n{in_row}  return at;\n}}\n",
            if shape.wide { WARPGROUPS } else { "" },
            fields.declaration(),
        );
        let mut numbers = defines(&[
            ("D", rows.depth),
            ("DV", rows.width),
            ("DT", usize::from(attention.dtype == DType::F16)),
            ("TABLE", entry_bytes),
            ("SHARED", usize::from(shared)),
            ("GUARD", usize::from(guarded)),
            ("STATUS", status),
            ("LIMIT", usize::from(attention.limit.is_some())),
            ("KT", shape.keys),
        ]);
        if !shape.wide {
            numbers += &defines(&[
                ("R", shape.rows),
                ("HB", heads.div_ceil(shape.rows)),
                ("STAGES", 2),
                ("HW", shape.head_warps),
                ("VW", shape.value_warps),
                ("LISTS", shape.lists),
                ("PARTS", shape.parts),
                ("MINB", shape.together),
            ]);
        }
        let values = fields.into_values();
        let task = |kernel, body: &str, blocks: usize, threads: usize, shared_bytes: usize| Task {
            kernel,
            source: format!("{numbers}{MMA}{around}{body}"),
            blocks: blocks as u32,
            threads: threads as u32,
            shared_bytes: shared_bytes as u32,
            values: values.clone(),
        };
        let blocks = (lists * heads.div_ceil(shape.rows)).div_ceil(shape.lists) * shape.splits;
        let (kernel, body) = if shape.wide { ("wide", WIDE) } else { ("grouped", GROUPED) };
        let mut tasks = vec![task(kernel, body, blocks, shape.threads(), shape.shared_bytes)];
        if shape.splits > 1 {
            tasks.push(task("join", JOIN, lists * heads, 128, 0));
        }
        tasks
    }
}
