//! The loop nest as written: runs every contraction, for every element type.
//!
//! A thread owns an output, or a block does where outputs are few and sums are long. Scattered outputs: a thread owns
//! what loops move plainly, and adds the terms that tables bring there in the order of the loops.

use einfall_plan::{Access, Contraction, Cost, Estimate, Machine, Role, Way};
use einfall_tensor::DType;

use super::{LAUNCH_SECONDS, NUMBERS, THREADS, blocks_for, stream_seconds};
use crate::text::{Lowering, Memory, Miss, Task, Writer, type_name};

/// Sums so long are a block's work where outputs are few.
const LONG: usize = 128;
/// So many outputs keep the GPU busy with a thread each.
const MANY: usize = 1 << 15;

/// What the nest would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    let accumulator = contraction.dtype.accumulator();
    if contraction.right.is_some() && ![contraction.dtype, accumulator].contains(&contraction.out_dtype) {
        return Err(format!("writes {} or its accumulator, not {}", contraction.dtype, contraction.out_dtype));
    }
    let scattered = !contraction.out.is_plain();
    if scattered && contraction.out_dtype != accumulator {
        return Err("a scattered output accumulates in place".into());
    }
    let shape = Shape::of(contraction);
    let terms = contraction.flops() / 2.0;
    let threads = if shape.by_block { shape.items() * THREADS as usize } else { shape.items() };
    // Each thread waits for its loads in turn; enough of them hide that, and then the address arithmetic counts.
    let mut waiting = terms / threads.max(1) as f64 * 300e-9 / 4.0;
    if shape.by_block {
        // Measured: a block starts, joins its sums and ends while few others run, and loads one term a turn.
        let waves = (shape.items() as f64 / (machine.threads * 8) as f64).max(1.0);
        waiting = waves * (0.8e-6 + shape.terms().div_ceil(THREADS as usize) as f64 * 0.1e-6);
    }
    let issued = (terms * 14.0 + shape.items() as f64 * 26.0) / (machine.threads as f64 * 128.0 * 1.5e9);
    let bytes = contraction.distinct_bytes();
    // Neighbouring threads that touch elements far apart move whole lines for each.
    let fastest = if shape.by_block { shape.inner.last() } else { shape.owned.last() };
    let apart = |at: &usize| contraction.accesses().any(|access| access.strides[*at].unsigned_abs() > 1);
    // Measured on an H100: loads of single elements reach 2.3 of 3.0 TB/s.
    let moved = if fastest.is_some_and(apart) { 4.0 * bytes } else { 1.3 * bytes };
    // The threads of a block that walk an input in large steps bring a sector for each element.
    let sectors = |access: &Access| {
        let step = shape.inner.last().map_or(1, |&at| access.strides[at].unsigned_abs());
        (step * contraction.dtype.bytes()).min(32) as f64
    };
    let inputs = [Some(&contraction.left), contraction.right.as_ref()].into_iter().flatten();
    let brought = if shape.by_block { inputs.map(sectors).sum::<f64>() * terms } else { 0.0 };
    let busy = waiting.max(issued).max(brought / machine.l2_bytes_per_second);
    let seconds = LAUNCH_SECONDS + busy.max(stream_seconds(moved, machine));
    let elementwise = contraction.loops_of(Role::Contracted).next().is_none() && !scattered;
    let way = if elementwise { Way::Elementwise } else { Way::Nest };
    Ok(Estimate { way, cost: Cost { flops: contraction.flops(), bytes, seconds }, workspace_bytes: 0 })
}

/// Who does what.
struct Shape<'c> {
    contraction: &'c Contraction,
    /// Loops divided among threads or blocks, the last one fastest.
    owned: Vec<usize>,
    /// The others, in order.
    inner: Vec<usize>,
    /// A block an item, its threads dividing the sum.
    by_block: bool,
}

impl<'c> Shape<'c> {
    fn of(contraction: &'c Contraction) -> Self {
        let scattered = !contraction.out.is_plain();
        let out = &contraction.out;
        let owns = |at: usize| match scattered {
            // Whatever its table says, an output that is moved plainly too has rows of its own for each turn.
            true => out.strides[at] != 0,
            false => contraction.loops[at].role != Role::Contracted,
        };
        let (owned, inner): (Vec<usize>, Vec<usize>) = (0..contraction.loops.len()).partition(|&at| owns(at));
        let mut shape = Shape { contraction, owned, inner, by_block: false };
        shape.by_block = !scattered && shape.items() < MANY && shape.terms() >= LONG;
        shape
    }

    fn items(&self) -> usize {
        self.owned.iter().map(|&at| self.contraction.loops[at].len).product()
    }

    fn terms(&self) -> usize {
        self.inner.iter().map(|&at| self.contraction.loops[at].len).product()
    }
}

/// The integer type that counts so many items fastest.
pub(super) fn counter(items: usize) -> &'static str {
    if items < 1 << 31 { "unsigned" } else { "u64" }
}

/// The tasks.
pub fn lower(lowering: &Lowering<'_>) -> Vec<Task> {
    let &Lowering { contraction, tables, .. } = lowering;
    let shape = Shape::of(contraction);
    let (items, terms) = (shape.items(), shape.terms());
    let mut w = Writer::new(contraction, tables);
    let (left, out) = (type_name(contraction.dtype), type_name(contraction.out_dtype));
    let index = counter(items);
    let total = w.fields.int("items", items as i64);
    let count = w.fields.int("terms", terms as i64);
    let (first, step) = match shape.by_block {
        true => ("blockIdx.x".to_string(), "gridDim.x".to_string()),
        false => (format!("({index})blockIdx.x * {THREADS} + threadIdx.x"), format!("({index})gridDim.x * {THREADS}")),
    };
    w.line(&format!("for ({index} item = {first}; item < ({index}){total}; item += {step}) {{"));
    w.line("bool ok = true;");
    w.start();
    if !shape.owned.is_empty() {
        w.split("item", index, &shape.owned);
    }
    w.enter(&shape.owned, Miss::Flag, false);
    let scattered = !contraction.out.is_plain();
    // Another type: a single term is converted once, terms of a sum before they are added.
    let converts = ![contraction.dtype, contraction.dtype.accumulator()].contains(&contraction.out_dtype);
    let once = converts && terms == 1;
    if once {
        w.line(&format!("{out} sum = N::narrow(N::zero());"));
    } else if !scattered {
        w.line("A sum = N::zero();");
    }
    w.line("if (ok) {");
    if shape.by_block {
        let index = counter(terms);
        w.line(&format!("for ({index} term = threadIdx.x; term < ({index}){count}; term += {THREADS}) {{"));
        w.split("term", index, &shape.inner);
        w.enter(&shape.inner, Miss::Continue, true);
    } else {
        for &at in &shape.inner {
            let len = w.len(at);
            w.line(&format!("for (i64 i{at} = 0; i{at} < {len}; ++i{at}) {{"));
            w.enter(&[at], Miss::Continue, true);
        }
    }
    let l = w.fields.pointer(&format!("const {left}"), "left", Memory::Left);
    let o = w.fields.pointer(out, "out", Memory::Out);
    let place = w.offset("l").expect("there is a left input");
    let mut term = match converts {
        true => format!("Cast<{}>::from(Number<{left}>::widen({l}[{place}]))", if once { out } else { "A" }),
        false => format!("N::widen({l}[{place}])"),
    };
    if let Some(offset) = w.offset("r") {
        let r = w.fields.pointer(&format!("const {left}"), "right", Memory::Right);
        term = format!("N::mul({term}, N::widen({r}[{offset}]))");
    }
    let at = w.offset("o").expect("there is an output");
    match scattered {
        _ if once => w.line(&format!("sum = {term};")),
        true => w.line(&format!("{o}[{at}] = N::add({o}[{at}], {term});")),
        false => w.line(&format!("sum = N::add(sum, {term});")),
    }
    let loops = if shape.by_block { 1 } else { shape.inner.len() };
    w.line(&"}".repeat(loops));
    w.line("}");
    if !scattered {
        let stored = if once {
            "sum"
        } else if converts || contraction.out_dtype == contraction.dtype {
            "N::narrow(sum)"
        } else {
            "sum"
        };
        if shape.by_block {
            w.line("sum = sum_of_block(sum);");
            w.line(&format!("if (threadIdx.x == 0) {o}[{at}] = {stored};"));
        } else {
            w.line(&format!("{o}[{at}] = {stored};"));
        }
    }
    w.line("}");
    let summed = if converts { out } else { left };
    let mut source = format!("typedef Number<{summed}> N;\ntypedef N::Acc A;\n");
    if shape.by_block {
        source.push_str(SUM_OF_BLOCK);
    }
    let blocks = if shape.by_block { blocks_for(items, 1) } else { blocks_for(items, THREADS as usize) };
    vec![task("nest", w, source, blocks)]
}

/// A task of what was written, `types` before it.
pub(super) fn task(kernel: &'static str, w: Writer<'_>, types: String, blocks: u32) -> Task {
    let source = format!(
        "{NUMBERS}\n{types}{}extern \"C\" __global__ void __launch_bounds__({THREADS}) {kernel}(const __grid_constant__ Params p) {{\n{}}}\n",
        w.fields.declaration(),
        w.text
    );
    Task { kernel, source, blocks, threads: THREADS, shared_bytes: 0, values: w.fields.into_values() }
}

/// Joins the sums of a block's threads in a fixed order; thread 0 has the result.
const SUM_OF_BLOCK: &str = "
__device__ A sum_of_block(A sum) {
  __shared__ A sums[256];
  __syncthreads();
  sums[threadIdx.x] = sum;
  for (unsigned half = 128; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] = N::add(sums[threadIdx.x], sums[threadIdx.x + half]);
  }
  return sums[0];
}
";

/// Writes zeros wherever the output of `contraction` lies.
pub(crate) fn fill(contraction: &Contraction, dtype: DType) -> Task {
    let loops: Vec<usize> = (0..contraction.loops.len()).collect();
    let items: usize = contraction.loops.iter().map(|l| l.len).product();
    let mut w = Writer::new(contraction, &[]);
    w.cursors.retain(|cursor| cursor.name == "o");
    let total = w.fields.int("items", items as i64);
    w.line(&format!("for (u64 item = (u64)blockIdx.x * {THREADS} + threadIdx.x; item < (u64){total}; item += (u64)gridDim.x * {THREADS}) {{"));
    w.start();
    if !loops.is_empty() {
        w.split("item", "u64", &loops);
    }
    w.enter(&loops, Miss::Flag, false);
    let out = type_name(dtype);
    let o = w.fields.pointer(out, "out", Memory::Out);
    let at = w.cursors[0].offset.clone();
    w.line(&format!("{o}[{at}] = Number<{out}>::narrow(Number<{out}>::zero());\n}}"));
    task("fill", w, String::new(), blocks_for(items, THREADS as usize))
}

/// `right += left`, `len` elements that follow each other.
pub(crate) fn add(len: usize, dtype: DType) -> Task {
    let empty = Contraction {
        loops: Vec::new(),
        left: Access::default(),
        right: None,
        out: Access::default(),
        dtype,
        out_dtype: dtype,
        bounds: einfall_plan::Bounds::Skip,
    };
    let mut w = Writer::new(&empty, &[]);
    let element = type_name(dtype);
    let total = w.fields.int("items", len as i64);
    let a = w.fields.pointer(&format!("const {element}"), "left", Memory::Left);
    let b = w.fields.pointer(element, "out", Memory::Out);
    w.line(&format!("for (u64 item = (u64)blockIdx.x * {THREADS} + threadIdx.x; item < (u64){total}; item += (u64)gridDim.x * {THREADS})"));
    w.line(&format!("{b}[item] = N::narrow(N::add(N::widen({b}[item]), N::widen({a}[item])));"));
    task("add", w, format!("typedef Number<{element}> N;\n"), blocks_for(len, THREADS as usize))
}
