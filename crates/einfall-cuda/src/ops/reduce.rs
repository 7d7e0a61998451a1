//! Sums of one input: blocks divide both the outputs and the terms of each, so that all of the GPU reads even where there
//! is but one output. Where the terms are divided, a second launch adds up what the blocks found, in a fixed order.
//!
//! Threads that are neighbours read what is neighbours in memory: terms where the summed loop runs along it, several at
//! once, else outputs. Floor: the input once at memory speed.

use einfall_plan::{Contraction, Cost, Estimate, Machine, Role, Way};

use super::nest::{counter, task};
use super::{LAUNCH_SECONDS, THREADS, distinct_bytes, stream_seconds};
use crate::text::{Lowering, Memory, Miss, Task, Writer, type_name};

/// Shorter sums are not worth dividing.
const SHORT: usize = 16;
/// So many terms of each thread pay for a part of its own.
const PART: usize = 16;
/// Blocks that keep a multiprocessor busy.
const BLOCKS: usize = 8;

/// Who does what.
struct Shape {
    /// Loops that count outputs, the last one fastest in the input.
    owned: Vec<usize>,
    /// Loops that are summed, the last one fastest in the input.
    summed: Vec<usize>,
    items: usize,
    terms: usize,
    /// Neighbouring threads have neighbouring terms, not outputs.
    along: bool,
    /// From a thread's element to its neighbour's.
    stride: usize,
    /// Threads that share an output.
    lanes: usize,
    /// Outputs of a block.
    width: usize,
    /// Parts that the terms are cut in.
    parts: usize,
}

impl Shape {
    fn new(contraction: &Contraction, machine: &Machine) -> Result<Self, String> {
        if contraction.right.is_some() || !contraction.left.is_plain() || !contraction.out.is_plain() {
            return Err("needs one input, and nothing looked up".into());
        }
        let strides = &contraction.left.strides;
        let by_stride = |contracted: bool| {
            let is_asked = |&at: &usize| (contraction.loops[at].role == Role::Contracted) == contracted;
            let mut loops: Vec<usize> = (0..contraction.loops.len()).filter(is_asked).collect();
            // A loop that the input does not move with counts as the farthest.
            loops.sort_by_key(|&at| std::cmp::Reverse(strides[at].unsigned_abs().wrapping_sub(1)));
            loops
        };
        let (owned, summed) = (by_stride(false), by_stride(true));
        let count = |loops: &[usize]| loops.iter().map(|&at| contraction.loops[at].len).product::<usize>();
        let (items, terms) = (count(&owned), count(&summed));
        if terms < SHORT {
            return Err("sums are short".into());
        }
        if items >= 1 << 31 {
            return Err("too many outputs".into());
        }
        let step = |loops: &[usize]| loops.last().map_or(usize::MAX, |&at| strides[at].unsigned_abs().wrapping_sub(1));
        let along = step(&summed) <= step(&owned);
        let stride = step(&summed).min(step(&owned)).saturating_add(1);
        let threads = THREADS as usize;
        let (lanes, width) = if along {
            let lanes = (terms / 8).next_power_of_two().clamp(8, threads);
            (lanes, threads / lanes)
        } else {
            let width = (128 / contraction.dtype.bytes()).clamp(32, 128).min(items.next_power_of_two());
            (threads / width, width)
        };
        let parts = (machine.threads * BLOCKS / items.div_ceil(width).max(1)).min(terms / (lanes * PART)).max(1);
        Ok(Shape { owned, summed, items, terms, along, stride, lanes, width, parts })
    }
}

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    let shape = Shape::new(contraction, machine)?;
    let bytes = distinct_bytes(contraction);
    // Memory comes in sectors of 32 bytes.
    let wasted = shape.stride.min((32 / contraction.dtype.bytes()).max(1)) as f64;
    let blocks = (shape.items.div_ceil(shape.width) * shape.parts) as f64;
    let idle = (machine.threads as f64 * 2.0 / blocks).max(1.0);
    let launches = if shape.parts > 1 { 2.0 } else { 1.0 };
    // A guess: what a block takes beside its loads.
    let starting = blocks * 1.5e-6 / (machine.threads * BLOCKS) as f64;
    let seconds = launches * LAUNCH_SECONDS + starting + 1.15 * idle * wasted * stream_seconds(bytes, machine);
    let partials = if shape.parts > 1 { shape.parts * shape.items * 16 } else { 0 };
    let cost = Cost { flops: contraction.flops(), bytes, seconds };
    Ok(Estimate { way: Way::Elementwise, cost, workspace_bytes: partials })
}

/// Terms that a thread reads at once.
fn vector(contraction: &Contraction, shape: &Shape, alignment: usize) -> usize {
    let (fast, size) = (*shape.summed.last().expect("there are terms"), contraction.dtype.bytes());
    let left = &contraction.left;
    let mut vector = if shape.along && left.strides[fast] == 1 { (16 / size).max(1) } else { 1 };
    let others = (0..left.strides.len()).filter(|&at| at != fast).map(|at| left.strides[at]);
    let numbers = others.chain([left.offset]).map(isize::unsigned_abs);
    for number in numbers.chain([contraction.loops[fast].len, alignment / size]) {
        while !number.is_multiple_of(vector) {
            vector /= 2;
        }
    }
    vector
}

/// The tasks.
pub fn lower(lowering: &Lowering<'_>) -> Vec<Task> {
    let contraction = lowering.contraction;
    let shape = Shape::new(contraction, lowering.machine).expect("the kernel made an offer");
    let vector = vector(contraction, &shape, lowering.alignment[0]);
    // Several terms are one long step of the fastest loop.
    let mut steps = contraction.clone();
    let fast = *shape.summed.last().expect("there are terms");
    steps.loops[fast].len /= vector;
    steps.left.strides[fast] *= vector as isize;
    let terms = shape.terms / vector;
    let length = terms.div_ceil(shape.parts).next_multiple_of(shape.lanes);
    let parts = terms.div_ceil(length);

    let types = Types::of(contraction, vector);
    let Shape { items, lanes, width, .. } = shape;
    let (index, number) = (counter(items), counter(terms));
    let mut w = Writer::new(&steps, &[]);
    let total = w.fields.int("items", items as i64);
    let last = w.fields.int("terms", terms as i64);
    let count = w.fields.int("parts", parts as i64);
    let long = w.fields.int("length", length as i64);
    let (lane, column) = match shape.along {
        true => (format!("threadIdx.x % {lanes}"), format!("threadIdx.x / {lanes}")),
        false => (format!("threadIdx.x / {width}"), format!("threadIdx.x % {width}")),
    };
    w.line(&format!("const unsigned lane = {lane}, part = blockIdx.x % (unsigned){count};"));
    w.line(&format!("const {index} item = ({index})(blockIdx.x / (unsigned){count}) * {width} + {column};"));
    w.line("A sum = N::zero();");
    w.start();
    w.line(&format!("if (item < ({index}){total}) {{"));
    if !shape.owned.is_empty() {
        w.split("item", index, &shape.owned);
    }
    w.enter(&shape.owned, Miss::Flag, false);
    w.line(&format!("const {number} from = ({number})part * ({number}){long};"));
    w.line(&format!("const {number} to = min(from + ({number}){long}, ({number}){last});"));
    w.line(&format!("#pragma unroll 4\nfor ({number} term = from + lane; term < to; term += {lanes}) {{"));
    w.split("term", number, &shape.summed);
    w.enter(&shape.summed, Miss::Continue, true);
    let left = w.fields.pointer(&format!("const {}", types.left), "left", Memory::Left);
    let offset = w.cursors[0].offset.clone();
    w.line(&format!("const Some some = *(const Some*)({left} + {offset});"));
    w.line(&format!("#pragma unroll\nfor (int v = 0; v < {vector}; v++) sum = N::add(sum, {});\n}}\n}}", types.term));
    w.line(&format!("sum = join(sum, lane, {lanes}, {});", if shape.along { 1 } else { width }));
    if parts == 1 {
        let out = w.fields.pointer(types.out, "out", Memory::Out);
        w.line(&format!("if (lane == 0 && item < ({index}){total}) {out}[o_] = {};", types.stored));
    } else {
        let partials = w.fields.pointer("A", "partials", Memory::Scratch);
        w.line(&format!("if (lane == 0 && item < ({index}){total}) {partials}[(u64)part * {total} + item] = sum;"));
    }
    let blocks = (items.div_ceil(width) * parts) as u32;
    let mut tasks = vec![task("reduce", w, types.text.clone(), blocks)];
    if parts > 1 {
        tasks.push(join(contraction, &shape, parts, types));
    }
    tasks
}

/// The element types as text.
struct Types {
    text: String,
    left: &'static str,
    out: &'static str,
    /// Element `v` of what was read, as an accumulator.
    term: String,
    /// The sum as it is stored.
    stored: &'static str,
}

impl Types {
    fn of(contraction: &Contraction, vector: usize) -> Self {
        let (left, out) = (type_name(contraction.dtype), type_name(contraction.out_dtype));
        // Another type: terms are converted before they are added.
        let converts = ![contraction.dtype, contraction.dtype.accumulator()].contains(&contraction.out_dtype);
        let narrows = converts || contraction.out_dtype == contraction.dtype;
        let bytes = vector * contraction.dtype.bytes();
        let text = format!(
            "typedef Number<{}> N;\ntypedef N::Acc A;\nstruct __align__({bytes}) Some {{ {left} v[{vector}]; }};\n{JOIN}",
            if converts { out } else { left }
        );
        let term = match converts {
            true => format!("Cast<A>::from(Number<{left}>::widen(some.v[v]))"),
            false => "N::widen(some.v[v])".into(),
        };
        Types { text, left, out, term, stored: if narrows { "N::narrow(sum)" } else { "sum" } }
    }
}

/// Adds up the parts of each output.
fn join(contraction: &Contraction, shape: &Shape, parts: usize, types: Types) -> Task {
    let (items, index) = (shape.items, counter(shape.items));
    let width = items.next_power_of_two().min(32);
    let lanes = THREADS as usize / width;
    let mut w = Writer::new(contraction, &[]);
    w.cursors.retain(|cursor| cursor.name == "o");
    let total = w.fields.int("items", items as i64);
    let count = w.fields.int("parts", parts as i64);
    let partials = w.fields.pointer("const A", "partials", Memory::Scratch);
    let out = w.fields.pointer(types.out, "out", Memory::Out);
    w.line(&format!("const unsigned lane = threadIdx.x / {width};"));
    w.line(&format!("const {index} item = ({index})blockIdx.x * {width} + threadIdx.x % {width};"));
    w.line("A sum = N::zero();");
    w.line(&format!("const unsigned to = item < ({index}){total} ? (unsigned){count} : 0;"));
    w.line("#pragma unroll 4");
    w.line(&format!("for (unsigned part = lane; part < to; part += {lanes})"));
    w.line(&format!("sum = N::add(sum, {partials}[(u64)part * {total} + item]);"));
    w.line(&format!("sum = join(sum, lane, {lanes}, {width});"));
    w.line(&format!("if (lane != 0 || item >= ({index}){total}) return;"));
    w.start();
    if !shape.owned.is_empty() {
        w.split("item", index, &shape.owned);
    }
    w.enter(&shape.owned, Miss::Flag, false);
    w.line(&format!("{out}[o_] = {};", types.stored));
    task("reduce_join", w, types.text, items.div_ceil(width) as u32)
}

/// Joins the sums of `lanes` threads that are `step` threads apart, in a fixed order; lane 0 has the result.
const JOIN: &str = "
__device__ A join(A sum, unsigned lane, unsigned lanes, unsigned step) {
  __shared__ A sums[256];
  sums[threadIdx.x] = sum;
  for (unsigned half = lanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) sums[threadIdx.x] = N::add(sums[threadIdx.x], sums[threadIdx.x + half * step]);
  }
  return sums[threadIdx.x];
}
";
