//! Copies whose input is contiguous along one loop and whose output along another: through tiles in shared memory, so
//! that both are read and written in whole lines.
//!
//! *In*: one plain input, nothing summed, one type.

use einfall_plan::{Access, Contraction, Cost, Estimate, Machine, Role, Way};

use super::{LAUNCH_SECONDS, distinct_bytes};
use crate::text::{Lowering, Memory, Miss, Task, Writer};

const THREADS: usize = 256;

/// Rows and columns of a tile: what fits in the shared memory that needs no asking for.
fn tile(contraction: &Contraction) -> usize {
    if contraction.dtype.bytes() > 8 { 32 } else { 64 }
}

/// The loops along which input and output are contiguous.
fn loops(contraction: &Contraction) -> Result<(usize, usize), String> {
    if contraction.right.is_some() || contraction.loops_of(Role::Contracted).next().is_some() {
        return Err("not a copy".into());
    }
    if contraction.out_dtype != contraction.dtype || !contraction.accesses().all(Access::is_plain) {
        return Err("needs plain strides and one type".into());
    }
    let unit = |access: &Access| (0..contraction.loops.len()).find(|&at| access.strides[at] == 1);
    match (unit(&contraction.left), unit(&contraction.out)) {
        (Some(from), Some(to)) if from != to => Ok((from, to)),
        (Some(_), Some(_)) => Err("input and output are contiguous along the same loop".into()),
        _ => Err("nothing is contiguous".into()),
    }
}

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    let (from, to) = loops(contraction)?;
    let len = |at: usize| contraction.loops[at].len;
    let bytes = distinct_bytes(contraction);
    // Tiles that stick out leave threads idle.
    let filled = |at: usize| len(at) as f64 / len(at).next_multiple_of(tile(contraction)) as f64;
    let share = (filled(from) * filled(to)).max(0.02);
    let seconds = LAUNCH_SECONDS + bytes / (machine.read_bytes_per_second * 0.8 * share);
    Ok(Estimate {
        way: Way::Elementwise,
        cost: Cost { flops: contraction.flops(), bytes, seconds },
        workspace_bytes: 0,
    })
}

/// The tasks.
pub fn lower(lowering: &Lowering<'_>) -> Vec<Task> {
    let &Lowering { contraction, tables, .. } = lowering;
    let (from, to) = loops(contraction).expect("the kernel made an offer");
    let others: Vec<usize> = (0..contraction.loops.len()).filter(|&at| at != from && at != to).collect();
    let len = |at: usize| contraction.loops[at].len;
    let batch: usize = others.iter().map(|&at| len(at)).product();
    let side = tile(contraction);
    let (across, down) = (len(from).div_ceil(side), len(to).div_ceil(side));

    let mut w = Writer::new(contraction, tables);
    let element = match contraction.dtype.bytes() {
        1 => "unsigned char",
        2 => "unsigned short",
        4 => "unsigned",
        8 => "uint2",
        _ => "uint4",
    };
    let source = w.fields.pointer(&format!("const {element}"), "left", Memory::Left);
    let target = w.fields.pointer(element, "out", Memory::Out);
    let numbers = [
        ("batch", batch as i64),
        ("across", across as i64),
        ("down", down as i64),
        ("from_len", len(from) as i64),
        ("to_len", len(to) as i64),
        ("from_step", contraction.left.strides[to] as i64),
        ("to_step", contraction.out.strides[from] as i64),
    ];
    for (name, value) in numbers {
        w.fields.int(name, value);
    }
    w.line("const u64 all = (u64)p.batch * p.across * p.down;");
    w.line("for (u64 work = blockIdx.x; work < all; work += gridDim.x) {");
    w.line("const u64 item = work / ((u64)p.across * p.down), tile = work % ((u64)p.across * p.down);");
    w.line(&format!("const i64 a0 = tile % p.across * {side}, b0 = tile / p.across * {side};"));
    w.line("bool ok = true;");
    w.start();
    if !others.is_empty() {
        w.split("item", "u64", &others);
    }
    w.enter(&others, Miss::Flag, false);
    w.line(&format!(
        "const unsigned x = threadIdx.x % {side}, y = threadIdx.x / {side};
  __syncthreads();
  #pragma unroll
  for (unsigned b = y; b < {side}; b += {each})
    if (a0 + x < p.from_len && b0 + b < p.to_len) memory[b][x] = {source}[{l} + a0 + x + (b0 + b) * p.from_step];
  __syncthreads();
  #pragma unroll
  for (unsigned a = y; a < {side}; a += {each})
    if (b0 + x < p.to_len && a0 + a < p.from_len) {target}[{o} + b0 + x + (a0 + a) * p.to_step] = memory[x][a];
}}",
        each = THREADS / side,
        l = w.offset("l").expect("there is an input"),
        o = w.offset("o").expect("there is an output"),
    ));
    // Rows are a word longer, so that a column's elements lie in different banks.
    let pad = 4_usize.div_ceil(contraction.dtype.bytes());
    let text = format!(
        "{}\n{}extern \"C\" __global__ void __launch_bounds__({THREADS}) transpose(const __grid_constant__ Params p) {{\n\
         __shared__ {element} memory[{side}][{side} + {pad}];\n{}}}\n",
        super::NUMBERS,
        w.fields.declaration(),
        w.text
    );
    let blocks = (batch * across * down).clamp(1, 1 << 24) as u32;
    vec![Task {
        kernel: "transpose",
        source: text,
        blocks,
        threads: THREADS as u32,
        shared_bytes: 0,
        values: w.fields.into_values(),
    }]
}
