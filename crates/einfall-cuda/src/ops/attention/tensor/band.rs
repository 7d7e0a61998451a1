//! Attention to a band of keys around each query, or to all keys, forward and backward, by warpgroups of Hopper.
//!
//! Tiles of keys follow each other in memory, so nothing is gathered; keys outside the band are masked in the tiles at its
//! edges. Backward makes two passes from the log-sum-exp, one over key tiles for the query's gradient and one over query
//! tiles for those of keys and values: each sum has one owner, which adds in order.

use einfall_plan::{Access, Attention, AttentionRole, Cost, Estimate, Machine, Pass, Way};
use einfall_tensor::DType;

use super::{MMA, Moved, Rows, WARPGROUPS, defines, product_seconds, walk};
use crate::ops::attention::{AttentionLowering, nest, rows as lists};
use crate::ops::{LAUNCH_SECONDS, capability};
use crate::text::{Fields, Memory, Task};

const BAND: &str = include_str!("../../../../kernels/band.cu");
const BACKWARD: &str = include_str!("../../../../kernels/band_backward.cu");

/// Keys of a tile, and queries of a warpgroup.
const TILE: usize = 64;
/// Further than any key lies from any query.
const FAR: i64 = 1 << 40;

struct Band<'a> {
    rows: Rows<'a>,
    /// The loop of queries that follow each other.
    query: usize,
    /// Keys that a query sees, counted from its own index.
    low: i64,
    high: i64,
    keys: usize,
    /// Loops of heads with keys of their own, and of heads that share keys.
    outer: Vec<usize>,
    inner: Vec<usize>,
}

impl<'a> Band<'a> {
    fn new(attention: &'a Attention) -> Result<Self, String> {
        let rows = Rows::new(attention)?;
        let Attention { key, value, limit, .. } = attention;
        if !key.lookups.is_empty() || attention.ragged.is_some() {
            return Err("keys are looked up".into());
        }
        let along = rows.key.ok_or("there is one key")?;
        let (query, mut low, mut high, keys) = match (key.windows.as_slice(), value.windows.as_slice()) {
            ([], []) => {
                let longest = rows.heads.iter().filter(|&&at| attention.query.strides[at] != 0);
                let query = *longest.max_by_key(|&&at| attention.loops[at].len).ok_or("queries share no keys")?;
                (query, -FAR, FAR, attention.loops[along].len)
            }
            ([window], [_]) => {
                let moved: Vec<usize> = (0..attention.loops.len()).filter(|&at| window.coefficients[at] != 0).collect();
                let &[a, b] = moved.as_slice() else { return Err("a window over more than one axis".into()) };
                let query = if a == along { b } else { a };
                let role = attention.loops[query].role;
                if ![a, b].contains(&along) || role != AttentionRole::List || key.strides[along] != 0 {
                    return Err("a window that does not slide along queries".into());
                }
                if window.coefficients[along] != 1 || window.coefficients[query] != 1 || key.strides[query] != 0 {
                    return Err("a window with gaps, or that slides by more than one".into());
                }
                let last = attention.loops[along].len as i64 - 1;
                (query, window.offset, window.offset + last, window.len)
            }
            _ => return Err("windows over more than one axis".into()),
        };
        if let Some(limit) = limit {
            let moves = |at: usize| limit.strides[at] != i64::from(at == query);
            if (0..attention.loops.len()).any(moves) {
                return Err("what queries see does not follow their order".into());
            }
            high = high.min(limit.offset);
        }
        low = low.max(-FAR);
        let queries = attention.loops[query].len;
        if ![rows.depth, rows.width].into_iter().all(|len| [64, 128].contains(&len)) {
            return Err("rows are not of 64 or 128 elements".into());
        }
        if queries < TILE || keys.max(queries) >= 1 << 30 {
            return Err("too few queries for a tile".into());
        }
        let outer: Vec<usize> = rows.lists.iter().copied().filter(|&at| at != query).collect();
        let inner: Vec<usize> = rows.heads.iter().copied().filter(|&at| at != query).collect();
        let heads = rows.len(&outer).saturating_mul(rows.len(&inner));
        if heads.saturating_mul(keys.max(queries).div_ceil(TILE)) >= 1 << 31 {
            return Err("more tiles than are counted with 31 bits".into());
        }
        Ok(Band { rows, query, low, high, keys, outer, inner })
    }

    fn queries(&self) -> usize {
        self.rows.attention.loops[self.query].len
    }

    /// From one key to the next.
    fn key_row(&self, access: &Access) -> i64 {
        let along = self.rows.key.expect("checked by `new`");
        access.windows.first().map_or(access.strides[along], |window| window.stride) as i64
    }

    /// Keys in tiles that a block of queries meets, for cost.
    fn tiles_of_keys(&self) -> f64 {
        let band = (self.high.saturating_sub(self.low)).saturating_add(1).max(0) as f64;
        (band + 2.0 * TILE as f64).min(self.keys as f64)
    }

    fn check_backward(&self) -> Result<(), String> {
        let gradients = &self.rows.attention.gradients;
        let moved = |access: &Option<Access>, loops: &[usize]| {
            access.as_ref().is_none_or(|access| loops.iter().all(|&at| access.strides[at] != 0))
        };
        let queries = [&self.outer[..], &self.inner, &[self.query]].concat();
        if !moved(&gradients.query, &queries)
            || !moved(&gradients.key, &self.outer)
            || !moved(&gradients.value, &self.outer)
        {
            return Err("a gradient is summed over a loop".into());
        }
        Ok(())
    }
}

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the attention.
pub fn estimate(attention: &Attention, pass: Pass, machine: &Machine) -> Result<Estimate, String> {
    if machine.isa != "sm_90" || capability(machine) != 90 {
        return Err("warpgroups multiply on sm_90 alone".into());
    }
    let band = Band::new(attention)?;
    let Rows { depth, width, .. } = band.rows;
    let heads = (band.rows.len(&band.outer) * band.rows.len(&band.inner)) as f64;
    let pairs = heads * band.queries() as f64 * band.tiles_of_keys();
    let (sums, launches, workspace_bytes) = match pass {
        Pass::Forward => (depth + width, 1.0, 0),
        Pass::Backward => {
            band.check_backward()?;
            // What is less aligned than the plan's strides runs elsewhere, in the same workspace.
            let elsewhere = nest::workspace_bytes(attention);
            (4 * depth + 3 * width, 2.0, (heads as usize * band.queries() * 4).max(elsewhere))
        }
    };
    let bytes = attention.distinct_bytes(pass);
    let seconds = launches * LAUNCH_SECONDS
        + 2e-6
        + product_seconds(2.0 * pairs * sums as f64, 0.45, machine).max(bytes / machine.read_bytes_per_second);
    let way = if attention.is_dense() { Way::Gemm } else { Way::Band };
    Ok(Estimate { way, cost: Cost { flops: attention.flops(pass), bytes, seconds }, workspace_bytes })
}

/// The tasks.
pub fn lower(lowering: &AttentionLowering<'_>) -> Vec<Task> {
    let &AttentionLowering { attention, pass, machine, wants_lse, alignment, .. } = lowering;
    let band = Band::new(attention).expect("the kernel made an offer");
    let backward = pass == Pass::Backward;
    let mut read = vec![Memory::Operand(0), Memory::Operand(1), Memory::Operand(2), Memory::Out];
    if backward {
        read.extend([Memory::GradOut, Memory::Gradient(0), Memory::Gradient(1), Memory::Gradient(2)]);
    }
    if !read.into_iter().all(|memory| alignment(memory).is_multiple_of(Rows::ALIGNMENT)) {
        return match lists::estimate(attention, pass, machine) {
            Ok(offer)
                if offer.workspace_bytes <= estimate(attention, pass, machine).map_or(0, |own| own.workspace_bytes) =>
            {
                lists::lower(lowering)
            }
            _ => nest::lower(lowering),
        };
    }
    let Band { rows, query, low, high, keys, outer, inner } = &band;
    let gradients = &attention.gradients;

    let mut fields = Fields::default();
    for (name, operand, access) in
        [("query", 0, &attention.query), ("key", 1, &attention.key), ("value", 2, &attention.value)]
    {
        fields.pointer_at("const unsigned short", name, Memory::Operand(operand), 2 * access.offset as i64);
    }
    let out_at = 2 * attention.out.offset as i64;
    let lse_at = 4 * attention.lse.offset as i64;
    let written =
        [("grad_query", 0, &gradients.query), ("grad_key", 1, &gradients.key), ("grad_value", 2, &gradients.value)];
    if backward {
        fields.pointer_at("const unsigned short", "saved", Memory::Out, out_at);
        fields.pointer_at("const unsigned short", "grad_out", Memory::GradOut, out_at);
        fields.pointer_at("const float", "lse", Memory::LogSum, lse_at);
        fields.scratch("float", "delta", 0);
        for (name, operand, access) in written {
            match access {
                Some(access) => {
                    fields.pointer_at("unsigned short", name, Memory::Gradient(operand), 2 * access.offset as i64)
                }
                None => fields.null("unsigned short", name),
            };
        }
    } else {
        fields.pointer_at("unsigned short", "out", Memory::Out, out_at);
        match wants_lse {
            true => fields.pointer_at("float", "lse", Memory::LogSum, lse_at),
            false => fields.null("float", "lse"),
        };
    }
    let (outer_len, shared) = (rows.len(outer), rows.len(inner));
    let row_of = |access: &Option<Access>, of: &dyn Fn(&Access) -> i64| access.as_ref().map_or(0, of);
    for (name, value) in [
        ("heads", (outer_len * shared) as i64),
        ("shared", shared as i64),
        ("queries", band.queries() as i64),
        ("keys", *keys as i64),
        ("low", *low),
        ("high", *high),
        ("query_row", attention.query.strides[*query] as i64),
        ("key_row", band.key_row(&attention.key)),
        ("value_row", band.key_row(&attention.value)),
        ("out_row", attention.out.strides[*query] as i64),
        ("lse_row", attention.lse.strides[*query] as i64),
        ("grad_query_row", row_of(&gradients.query, &|access| access.strides[*query] as i64)),
        ("grad_key_row", row_of(&gradients.key, &|access| band.key_row(access))),
        ("grad_value_row", row_of(&gradients.value, &|access| band.key_row(access))),
    ] {
        fields.int(name, value);
    }
    fields.double("scale", attention.scale.get());
    let mut moved = vec![
        Moved::by("q", &attention.query),
        Moved::by("k", &attention.key),
        Moved::by("v", &attention.value),
        Moved::by("o", &attention.out),
        Moved::by("e", &attention.lse),
    ];
    for (member, (_, _, access)) in ["x", "y", "z"].into_iter().zip(written) {
        moved.extend(access.as_ref().map(|access| Moved::by(member, access)));
    }
    let in_outer = walk(&mut fields, attention, "outer", outer, &moved);
    let in_inner = walk(&mut fields, attention, "inner", inner, &moved);
    let around = format!(
        "{WARPGROUPS}{}struct Place {{ i64 q, k, v, o, e, x, y, z; }};\n\
         __device__ __forceinline__ Place head_place(const Params& p, i64 outer, i64 inner) {{\n  Place at = {{}};\n{in_outer}{in_inner}  return at;\n}}\n",
        fields.declaration(),
    );
    let values = fields.into_values();
    let (depth, width) = (rows.depth, rows.width);
    // One warpgroup a block, two or three blocks a multiprocessor: measured best of what was tried, but for windows.
    let task = |kernel: &'static str,
                body: &str,
                groups: usize,
                keys: usize,
                together: usize,
                backward: Option<usize>,
                items: usize| {
        let numbers = defines(&[
            ("D", depth),
            ("DV", width),
            ("DT", usize::from(attention.dtype == DType::F16)),
            ("KT", keys),
            ("STAGES", 2),
            ("GROUPS", groups),
            ("MINB", together),
            ("PASS", backward.unwrap_or(0)),
        ]);
        let tile = 2 * (depth + width) * keys + if backward == Some(1) { 8 * keys } else { 0 };
        let fixed = 2 * TILE * groups * if backward.is_some() { depth + width } else { depth };
        Task {
            kernel,
            source: format!("{numbers}{MMA}{around}{body}"),
            blocks: items.div_ceil(TILE * groups) as u32,
            threads: (groups * 128) as u32,
            shared_bytes: (fixed + 2 * tile.next_multiple_of(1024)) as u32,
            values: values.clone(),
        }
    };
    let heads = outer_len * shared;
    let blocks = |mut task: Task, heads: usize| {
        task.blocks *= heads as u32;
        task
    };
    if backward {
        let query = task("band_query", BACKWARD, 1, 64, 2, Some(0), band.queries());
        let key = task("band_key", BACKWARD, 1, 64, 2, Some(1), *keys);
        let mut tasks = vec![blocks(query, heads)];
        if gradients.key.is_some() || gradients.value.is_some() {
            tasks.push(blocks(key, outer_len));
        }
        return tasks;
    }
    let few = band.tiles_of_keys() <= 1024.0;
    let forward = match few {
        true => task("band", BAND, 2, 64, 2, None, band.queries()),
        false => task("band", BAND, 2, 128, 1, None, band.queries()),
    };
    vec![blocks(forward, heads)]
}
