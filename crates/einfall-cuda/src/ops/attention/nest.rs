//! Attention as written: runs everything, any strides, tables and windows. A block takes a list, 128 keys at a time.
//!
//! `attention_nest.cu` stands behind functions that are written here, one for each access. Backward, a block takes what one
//! gradient's own strides divide, and adds the rest in order, in the accumulator's type.

use std::fmt::Write;

use einfall_plan::{Access, Attention, AttentionRole, Bounds, Cost, Estimate, Machine, Pass, Way};
use einfall_tensor::DType;

use super::AttentionLowering;
use crate::ops::{LAUNCH_SECONDS, NUMBERS, blocks_for};
use crate::text::{Fields, Memory, Task, Value, type_name};

/// Threads of a block, and keys at a time.
const BLOCK: usize = 128;

/// What the kernel would cost.
///
/// # Errors
/// Never: it runs everything.
pub fn estimate(attention: &Attention, pass: Pass, machine: &Machine) -> Result<Estimate, String> {
    let flops = attention.flops(pass);
    let slices = attention.len_of(AttentionRole::Width).div_ceil(BLOCK).max(1) as f64;
    // Loads of a lane lie apart, and each waits for the one before.
    let steps = (attention.pairs() * 40.0 + flops * 4.0) * slices;
    let lists = attention.len_of(AttentionRole::List) as f64 * attention.len_of(AttentionRole::Head) as f64;
    let rate = machine.threads as f64 * 128.0 * 1.5e9 / 8.0;
    let (passes, parallel) = match pass {
        Pass::Forward => (1.0, lists),
        Pass::Backward => (attention.gradients.wanted().count() as f64 * 8.0, lists.sqrt()),
    };
    let idle = (8.0 * machine.threads as f64 / parallel.max(1.0)).max(1.0);
    let seconds = LAUNCH_SECONDS + steps * passes * idle / rate;
    let workspace_bytes = workspace_bytes(attention);
    let cost = Cost { flops, bytes: attention.distinct_bytes(pass), seconds };
    Ok(Estimate { way: Way::Nest, cost, workspace_bytes })
}

/// Elements from the first to the last that a row-major access reaches.
fn span(attention: &Attention, access: &Access) -> usize {
    let axes = access.lookups.iter().map(|lookup| (lookup.len, lookup.stride));
    let axes = axes.chain(access.windows.iter().map(|window| (window.len, window.stride)));
    let loops = attention.loops.iter().zip(&access.strides).map(|(l, &stride)| (l.len, stride));
    let all: Vec<(usize, isize)> = loops.chain(axes).filter(|&(_, stride)| stride != 0).collect();
    if all.iter().any(|&(len, _)| len == 0) {
        return 0;
    }
    1 + all.iter().map(|&(len, stride)| (len - 1) * stride.unsigned_abs()).sum::<usize>()
}

fn gradients(attention: &Attention) -> [Option<&Access>; 4] {
    let wanted = &attention.gradients;
    [&wanted.query, &wanted.key, &wanted.value, &wanted.bias].map(Option::as_ref)
}

fn dtype_of(attention: &Attention, operand: usize) -> DType {
    if operand == 3 { attention.bias_dtype } else { attention.dtype }
}

/// Bytes of the sums of gradients that have another type than the accumulator's.
pub(super) fn workspace_bytes(attention: &Attention) -> usize {
    scratch(attention).1
}

/// Where the sums of gradients lie that have another type than the accumulator's; and all bytes.
fn scratch(attention: &Attention) -> ([usize; 4], usize) {
    let (mut places, mut end) = ([0; 4], 0);
    for (operand, access) in gradients(attention).into_iter().enumerate() {
        let Some(access) = access.filter(|_| dtype_of(attention, operand) != attention.accumulator) else { continue };
        places[operand] = end;
        end += (span(attention, access).saturating_mul(attention.accumulator.bytes())).next_multiple_of(256);
    }
    (places, end)
}

/// Writes the functions that tell where things are.
struct Places<'a> {
    attention: &'a Attention,
    tables: &'a [DType],
    fields: Fields,
    text: String,
}

impl Places<'_> {
    /// `bool NAME(const Params& p, const i64* i, i64& at)`: false where it is left out.
    fn access(&mut self, name: &str, access: &Access) {
        let sum = |fields: &mut Fields, prefix: &str, strides: &mut dyn Iterator<Item = (usize, i64)>| {
            strides.fold(String::new(), |mut text, (at, stride)| {
                let stride = fields.int(&format!("{prefix}{at}"), stride);
                let _ = write!(text, " + i[{at}] * {stride}");
                text
            })
        };
        let used = |strides: &[isize]| -> Vec<(usize, i64)> {
            strides
                .iter()
                .enumerate()
                .filter(|(_, stride)| **stride != 0)
                .map(|(at, &stride)| (at, stride as i64))
                .collect()
        };
        let mut body = String::new();
        let start = self.fields.int(&format!("{name}o"), access.offset as i64);
        let plain = sum(&mut self.fields, &format!("{name}s"), &mut used(&access.strides).into_iter());
        let _ = writeln!(body, "  at = {start}{plain};");
        for (which, lookup) in access.lookups.iter().enumerate() {
            let kind = type_name(self.tables[lookup.table]);
            let table = self.fields.pointer(
                &format!("const {kind}"),
                &format!("t{}", lookup.table),
                Memory::Table(lookup.table),
            );
            let from = self.fields.int(&format!("{name}t{which}o"), lookup.table_offset as i64);
            let steps =
                sum(&mut self.fields, &format!("{name}t{which}s"), &mut used(&lookup.table_strides).into_iter());
            let len = self.fields.int(&format!("{name}t{which}n"), lookup.len as i64);
            let stride = self.fields.int(&format!("{name}t{which}j"), lookup.stride as i64);
            let bad = match self.attention.bounds {
                Bounds::Error => {
                    let status = self.fields.pointer("unsigned", "status", Memory::Status);
                    format!("report({status}); ")
                }
                Bounds::Skip => String::new(),
            };
            let _ = writeln!(
                body,
                "  {{ const i64 e = (i64){table}[{from}{steps}]; if ((u64)e >= (u64){len}) {{ {bad}return false; }} at += e * {stride}; position = e; }}"
            );
        }
        for (which, window) in access.windows.iter().enumerate() {
            let from = self.fields.int(&format!("{name}w{which}o"), window.offset);
            let moved: Vec<(usize, i64)> =
                window.coefficients.iter().enumerate().filter(|(_, by)| **by != 0).map(|(at, &by)| (at, by)).collect();
            let steps = sum(&mut self.fields, &format!("{name}w{which}s"), &mut moved.into_iter());
            let len = self.fields.int(&format!("{name}w{which}n"), window.len as i64);
            let stride = self.fields.int(&format!("{name}w{which}j"), window.stride as i64);
            let _ = writeln!(
                body,
                "  {{ const i64 e = {from}{steps}; if ((u64)e >= (u64){len}) return false; at += e * {stride}; position = e; }}"
            );
        }
        let mut row = "0".to_string();
        for (at, stride) in used(&access.strides) {
            if matches!(self.attention.loops[at].role, AttentionRole::Depth | AttentionRole::Width) {
                let stride = self.fields.int(&format!("{name}s{at}"), stride);
                let _ = write!(row, " + i[{at}] * {stride}");
            }
        }
        let _ = writeln!(
            self.text,
            "__device__ __forceinline__ i64 {name}_row(const Params& p, const i64* i) {{ return {row}; }}"
        );
        let _ = writeln!(
            self.text,
            "__device__ __forceinline__ bool {name}_at(const Params& p, const i64* i, i64& at, i64& position) {{\n{body}  return true;\n}}"
        );
    }

    /// `void NAME(i64 flat, i64* i)`: sets the counters of these loops, the last one fastest; and how many there are.
    fn split(&mut self, name: &str, loops: &[usize]) {
        let mut body = String::new();
        for &at in loops.iter().rev() {
            let len = self.fields.int(&format!("n{at}"), self.attention.loops[at].len as i64);
            let _ = writeln!(body, "  i[{at}] = flat % {len}; flat /= {len};");
        }
        let count: usize = loops.iter().map(|&at| self.attention.loops[at].len).product();
        let total = self.fields.int(&format!("{name}_all"), count as i64);
        let _ = writeln!(
            self.text,
            "__device__ __forceinline__ void {name}_split(const Params& p, i64 flat, i64* i) {{\n{body}}}\n\
             __device__ __forceinline__ i64 {name}_count(const Params& p) {{ return {total}; }}"
        );
    }

    /// Which keys a list has, and which of them a mask lets it see.
    fn lists(&mut self) {
        let attention = self.attention;
        let mut range = "from = 0; to = keys_count(p);".to_string();
        if let Some(ragged) = &attention.ragged {
            let kind = type_name(ragged.dtype);
            let offsets = self.fields.pointer(&format!("const {kind}"), "offsets", Memory::Offsets);
            let status = self.fields.pointer("unsigned", "status", Memory::Status);
            let mut at = "0".to_string();
            for (l, &stride) in ragged.strides.iter().enumerate().filter(|(_, stride)| **stride != 0) {
                let stride = self.fields.int(&format!("r{l}"), stride as i64);
                let _ = write!(at, " + i[{l}] * {stride}");
            }
            let (step, entries) =
                (self.fields.int("rstep", ragged.step as i64), self.fields.int("rentries", ragged.entries as i64));
            range = format!(
                "const i64 at = {at}; from = (i64){offsets}[at]; to = (i64){offsets}[at + {step}];\n  \
                 if (from < 0 || from > to || to > {entries}) {{ report({status}); from = to = 0; }}"
            );
        }
        let mut seen = "true".to_string();
        if let Some(limit) = &attention.limit {
            seen = format!("position <= {}", self.fields.int("limit", limit.offset));
            for (l, &stride) in limit.strides.iter().enumerate().filter(|(_, stride)| **stride != 0) {
                let stride = self.fields.int(&format!("limit{l}"), stride);
                let _ = write!(seen, " + i[{l}] * {stride}");
            }
        }
        let _ = writeln!(
            self.text,
            "__device__ __forceinline__ void range_of(const Params& p, const i64* i, i64& from, i64& to) {{\n  {range}\n}}\n\
             __device__ __forceinline__ bool is_seen(const Params& p, const i64* i, i64 position) {{ return {seen}; }}"
        );
    }
}

/// The loops with some roles for which a condition holds.
fn loops(attention: &Attention, roles: &[AttentionRole], of: impl Fn(usize) -> bool) -> Vec<usize> {
    (0..attention.loops.len()).filter(|&at| roles.contains(&attention.loops[at].role) && of(at)).collect()
}

/// One task of the kernel: forward, or one gradient.
fn task(lowering: &AttentionLowering<'_>, what: Option<usize>, blocks: u32) -> Task {
    use AttentionRole::{Depth, Head, Key, List, Width};
    let attention = lowering.attention;
    let (fields, text) = (Fields::default(), String::new());
    let mut places = Places { attention, tables: lowering.tables, fields, text };
    let around = |of: &dyn Fn(usize) -> bool| loops(attention, &[List, Head], of);
    let owned = owned(attention, what);
    places.split("own", &owned);
    places.split("rest", &around(&|at| !owned.contains(&at)));
    places.split("keys", &loops(attention, &[Key], |_| true));
    places.split("depth", &loops(attention, &[Depth], |_| true));
    places.split("width", &loops(attention, &[Width], |_| true));
    places.access("query", &attention.query);
    places.access("key", &attention.key);
    places.access("value", &attention.value);
    places.access("out", &attention.out);
    places.access("lse", &attention.lse);
    if let Some(bias) = &attention.bias {
        places.access("bias", bias);
    }
    places.lists();
    let fields = &mut places.fields;
    let (element, sum) = (type_name(attention.dtype), type_name(attention.accumulator));
    for (at, name) in ["query", "key", "value"].iter().enumerate() {
        fields.pointer(&format!("const {element}"), name, Memory::Operand(at));
    }
    if attention.bias.is_some() {
        fields.pointer(&format!("const {}", type_name(attention.bias_dtype)), "bias", Memory::Operand(3));
    }
    fields.pointer(element, "out", Memory::Out);
    let log_sum = if lowering.wants_lse { Value::Pointer(Memory::LogSum, 0) } else { Value::Int(0) };
    fields.value(&format!("{sum}*"), "lse", log_sum);
    fields.value("double", "scale", Value::Int(attention.scale.get().to_bits() as i64));
    let mut defines = String::new();
    if let Some(operand) = what {
        let access = gradients(attention)[operand].expect("it is wanted");
        fields.pointer(&format!("const {element}"), "grad_out", Memory::GradOut);
        let (memory, offset) = sums(attention, operand);
        fields.pointer_at(sum, "sums", memory, offset as i64);
        places.access("grad", access);
        // Where rows of a gradient are summed along themselves, threads would add to the same element.
        let row = if operand == 2 { Width } else { Depth };
        let serial = operand < 3 && attention.loops_of(row).any(|at| access.strides[at] == 0);
        let _ = writeln!(defines, "#define WHAT {operand}\n#define SERIAL {}", i32::from(serial));
    }
    let loops = attention.loops.len().max(1);
    let bias = i32::from(attention.bias.is_some());
    let source = format!(
        "{NUMBERS}\n#define LOOPS {loops}\n#define BIAS {bias}\n#define BLOCK {BLOCK}\n{defines}typedef {element} T;\ntypedef {sum} A;\ntypedef {} Bias;\n{}{}{}",
        type_name(attention.bias_dtype),
        places.fields.declaration(),
        places.text,
        include_str!("../../../kernels/attention_nest.cu")
    );
    let (threads, values) = (BLOCK as u32, places.fields.into_values());
    Task { kernel: "attention_nest", source, blocks, threads, shared_bytes: 0, values }
}

/// The loops that blocks divide: of a gradient, those that alone decide where it is written.
fn owned(attention: &Attention, what: Option<usize>) -> Vec<usize> {
    use AttentionRole::{Head, List};
    loops(attention, &[List, Head], |at| {
        let Some(access) = what.map(|operand| gradients(attention)[operand].expect("it is wanted")) else {
            return true;
        };
        access.strides[at] != 0 && !access.is_indirect_in(at)
    })
}

/// Where the sums of a gradient are kept.
fn sums(attention: &Attention, operand: usize) -> (Memory, usize) {
    match dtype_of(attention, operand) == attention.accumulator {
        true => (Memory::Gradient(operand), 0),
        false => (Memory::Scratch, scratch(attention).0[operand]),
    }
}

/// Sets a gradient to zero.
pub(super) fn clear(attention: &Attention, operand: usize) -> Option<Task> {
    let len = span(attention, gradients(attention)[operand]?);
    let mut fields = Fields::default();
    let element = type_name(dtype_of(attention, operand));
    let to = fields.pointer(element, "to", Memory::Gradient(operand));
    let items = fields.int("items", len as i64);
    let source = over(&fields, "attention_clear", &items, &format!("{to}[item] = Number<{element}>::narrow(0);"));
    let (blocks, values) = (blocks_for(len, 256), fields.into_values());
    Some(Task { kernel: "attention_clear", source, blocks, threads: 256, shared_bytes: 0, values })
}

/// A kernel that does something with every item.
fn over(fields: &Fields, kernel: &str, items: &str, body: &str) -> String {
    format!(
        "{NUMBERS}\n{}extern \"C\" __global__ void {kernel}(const __grid_constant__ Params p) {{\n  \
         for (u64 item = (u64)blockIdx.x * 256 + threadIdx.x; item < (u64){items}; item += (u64)gridDim.x * 256) {body}\n}}\n",
        fields.declaration()
    )
}

/// Sets `len` elements to zero, or makes a gradient of the sums.
fn pass_over(attention: &Attention, operand: usize, len: usize, narrows: bool) -> Task {
    let mut fields = Fields::default();
    let (memory, offset) = sums(attention, operand);
    let (sum, element) = (type_name(attention.accumulator), type_name(dtype_of(attention, operand)));
    let from = fields.pointer_at(sum, "sums", memory, offset as i64);
    let items = fields.int("items", len as i64);
    let (kernel, body) = match narrows {
        true => {
            let to = fields.pointer(element, "to", Memory::Gradient(operand));
            ("attention_narrow", format!("{to}[item] = Number<{element}>::narrow({from}[item]);"))
        }
        false => ("attention_zero", format!("{from}[item] = 0;")),
    };
    let source = over(&fields, kernel, &items, &body);
    Task { kernel, source, blocks: blocks_for(len, 256), threads: 256, shared_bytes: 0, values: fields.into_values() }
}

/// The tasks.
pub fn lower(lowering: &AttentionLowering<'_>) -> Vec<Task> {
    let attention = lowering.attention;
    let blocks = |what| {
        let own = owned(attention, what);
        blocks_for(own.iter().map(|&at| attention.loops[at].len).product(), 1)
    };
    if lowering.pass == Pass::Forward {
        return vec![task(lowering, None, blocks(None))];
    }
    let mut tasks = Vec::new();
    for (operand, access) in gradients(attention).into_iter().enumerate() {
        let Some(access) = access else { continue };
        let len = span(attention, access);
        if len == 0 {
            continue;
        }
        tasks.push(pass_over(attention, operand, len, false));
        tasks.push(task(lowering, Some(operand), blocks(Some(operand))));
        if sums(attention, operand).0 == Memory::Scratch {
            tasks.push(pass_over(attention, operand, len, true));
        }
    }
    tasks
}
