//! Long sums of one input, or of the product of two: blocks divide both the outputs and the terms of each, so that all of
//! the GPU reads even where there is but one output. Where the terms are divided, a second launch adds up what the blocks
//! found, in a fixed order.
//!
//! Threads that are neighbours read what is neighbours in memory, in the larger input where there are two: terms where a
//! summed loop runs along it, else outputs; up to 16 bytes at once, and several loads before the first is waited for.
//! Floor: the inputs once at memory speed.

use einfall_plan::{Access, Contraction, Cost, Estimate, Machine, Role, Way};

use super::nest::{counter, task};
use super::{LAUNCH_SECONDS, THREADS};
use crate::text::{Lowering, Memory, Miss, Task, Writer};

mod text;
use text::{Side, Types};

/// Shorter sums are not worth dividing.
const SHORT: usize = 16;
/// Blocks of a multiprocessor that together keep enough bytes in flight.
const BLOCKS: usize = 4;
/// Bytes that a thread asks for before it waits.
const FLIGHT: usize = 128;

/// Who does what.
struct Shape {
    /// Loops that count outputs, the last one fastest in the input.
    owned: Vec<usize>,
    /// Loops that are summed, the last one fastest in the input.
    summed: Vec<usize>,
    /// Outputs, or packs of them that a thread has together.
    items: usize,
    /// Terms of an output, or packs of them that are loaded together.
    terms: usize,
    /// The loop along which neighbouring threads lie: of terms or of outputs.
    fast: usize,
    along: bool,
    /// Elements of a pack.
    vector: usize,
    /// Threads that share an item.
    lanes: usize,
    /// Items of a block.
    width: usize,
    /// Packs that a thread asks for before it waits.
    flight: usize,
    /// Parts that the terms are cut in.
    parts: usize,
    /// Predicted time.
    seconds: f64,
}

fn inputs(contraction: &Contraction) -> impl Iterator<Item = &Access> {
    [Some(&contraction.left), contraction.right.as_ref()].into_iter().flatten()
}

/// Whether packs of `vector` elements along a loop begin at multiples of their size, wherever the other loops are.
fn is_packed(access: &Access, along: usize, vector: usize, aligned: usize) -> bool {
    let others = access.strides.iter().enumerate().filter(|&(at, _)| at != along).map(|(_, stride)| stride);
    let mut places = others.chain([&access.offset]).map(|place| place.unsigned_abs());
    access.strides[along] == 1 && aligned.is_multiple_of(vector) && places.all(|place| place.is_multiple_of(vector))
}

impl Shape {
    /// `alignment` is what the inputs' addresses are multiples of, 16 if it is not known yet.
    fn new(contraction: &Contraction, machine: &Machine, alignment: [usize; 2]) -> Result<Self, String> {
        if !contraction.accesses().all(Access::is_plain) {
            return Err("needs plain strides".into());
        }
        if contraction.right.is_some()
            && ![contraction.dtype, contraction.dtype.accumulator()].contains(&contraction.out_dtype)
        {
            return Err("writes one type or its accumulator".into());
        }
        let size = contraction.dtype.bytes();
        let len = |at: usize| contraction.loops[at].len;
        let count = |loops: &[usize]| loops.iter().map(|&at| len(at)).product::<usize>();
        // The larger input decides who is whose neighbour.
        let mut sides: Vec<&Access> = inputs(contraction).collect();
        sides.sort_by(|a, b| contraction.distinct_elements(b).total_cmp(&contraction.distinct_elements(a)));
        // A loop that an input does not move with counts as the farthest.
        let far = |access: &Access, at: usize| access.strides[at].unsigned_abs().wrapping_sub(1);
        let key = |at: usize| sides.iter().map(|access| far(access, at)).collect::<Vec<_>>();
        let by_stride = |contracted: bool| {
            let is_asked = |&at: &usize| (contraction.loops[at].role == Role::Contracted) == contracted;
            let mut loops: Vec<usize> = (0..contraction.loops.len()).filter(is_asked).collect();
            loops.sort_by_key(|&at| std::cmp::Reverse(key(at)));
            loops
        };
        let (owned, summed) = (by_stride(false), by_stride(true));
        let (outputs, all_terms) = (count(&owned), count(&summed));
        if all_terms < SHORT {
            return Err("sums are short".into());
        }
        if outputs >= 1 << 31 {
            return Err("too many outputs".into());
        }
        let (along, fast) = match (owned.last(), summed.last()) {
            (Some(&own), Some(&sum)) if key(own) < key(sum) => (false, own),
            (_, Some(&sum)) => (true, sum),
            _ => return Err("nothing is summed".into()),
        };
        let unit = || inputs(contraction).zip(alignment).filter(|(access, _)| access.strides[fast] == 1);
        let mut vector = if unit().next().is_some() { (16 / size).max(1) } else { 1 };
        while !(len(fast).is_multiple_of(vector)
            && unit().all(|(access, alignment)| is_packed(access, fast, vector, alignment / size)))
        {
            vector /= 2;
        }
        let (items, terms) = if along { (outputs, all_terms / vector) } else { (outputs / vector, all_terms) };
        let threads = THREADS as usize;
        let moved = inputs(contraction).filter(|access| access.strides[fast] != 0).count().max(1);
        let (lanes, width) = if along {
            let few = (64 / (vector * size)).clamp(1, 32).min(terms.next_power_of_two());
            let fill = (machine.threads * BLOCKS * threads / items.max(1)).max(1).next_power_of_two();
            let lanes = (terms / 8).max(1).next_power_of_two().max(fill.min(terms.next_power_of_two()));
            (lanes.clamp(few, threads), threads / lanes.clamp(few, threads))
        } else {
            let most = (512 / (vector * size)).clamp(8, threads);
            let width = most.min(items.next_power_of_two());
            (threads / width, width)
        };
        let own = terms.div_ceil(lanes);
        let flight = (FLIGHT / (vector * size * moved)).clamp(1, 8).min(own.next_power_of_two());
        let mut shape =
            Shape { owned, summed, items, terms, fast, along, vector, lanes, width, flight, parts: 1, seconds: 0.0 };
        let blocks = items.div_ceil(width).max(1);
        let most = (machine.threads * BLOCKS / blocks).min(own / 2).max(1);
        shape.seconds = shape.seconds_in(1, contraction, machine);
        let divided = shape.seconds_in(most, contraction, machine);
        if divided < shape.seconds {
            (shape.parts, shape.seconds) = (most, divided);
        }
        Ok(shape)
    }

    /// Predicted time with the terms cut in so many parts.
    fn seconds_in(&self, parts: usize, contraction: &Contraction, machine: &Machine) -> f64 {
        let size = contraction.dtype.bytes() as f64;
        let multiprocessors = machine.threads as f64;
        // Memory comes in sectors of 32 bytes, so loads that are apart bring more than they ask for.
        let apart =
            |access: &Access| (access.strides[self.fast].unsigned_abs().max(1) as f64).min(32.0 / size).max(1.0);
        let (mut bytes, mut far) = (0.0, 0.0);
        let loads = contraction.flops() / 2.0 * size;
        for access in inputs(contraction) {
            let distinct = contraction.distinct_elements(access) * size;
            bytes += distinct * apart(access);
            // What is read again comes from a cache, a little at twice the speed of the L2.
            let again = if distinct < 1e5 { 0.5 } else { 1.0 };
            far += if loads > 1.5 * distinct { loads * again * apart(access) } else { 0.0 };
        }
        let rate = machine.bytes_per_second_within(bytes);
        // A load takes so long, and a thread waits for as many as it has asked for.
        let wait = if rate > machine.read_bytes_per_second { 0.35e-6 } else { 0.7e-6 };
        let blocks = (self.items.div_ceil(self.width).max(1) * parts) as f64;
        let turns = self.terms.div_ceil(self.lanes * parts).div_ceil(self.flight) as f64;
        let waves = (blocks / (multiprocessors * BLOCKS as f64)).max(1.0);
        let waiting = waves * (0.4e-6 + turns * wait);
        let packs = contraction.flops() / 2.0 / self.vector as f64;
        let each = 12.0 + 4.0 * inputs(contraction).count() as f64 * self.vector as f64;
        let issued = packs * each / (multiprocessors * 128.0 * 1.5e9);
        let moving = (1.08 * bytes / rate).max(far / machine.l2_bytes_per_second);
        let launches = if parts > 1 { 2.0 } else { 1.0 };
        launches * LAUNCH_SECONDS + moving.max(waiting).max(issued)
    }
}

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    let shape = Shape::new(contraction, machine, [16; 2])?;
    // Addresses that are less aligned mean other shapes; the scratch memory is enough for each.
    let partials = |alignment: usize| {
        let shape = Shape::new(contraction, machine, [alignment; 2]).expect("alignment decides nothing else");
        let outputs = if shape.along { shape.items } else { shape.items * shape.vector };
        if shape.parts > 1 { shape.parts * outputs * 16 } else { 0 }
    };
    let workspace_bytes = [1, 2, 4, 8, 16].into_iter().map(partials).max().unwrap_or(0);
    let cost = Cost { flops: contraction.flops(), bytes: contraction.distinct_bytes(), seconds: shape.seconds };
    let way = if contraction.right.is_some() { Way::Stream } else { Way::Elementwise };
    Ok(Estimate { way, cost, workspace_bytes })
}

/// The tasks.
pub fn lower(lowering: &Lowering<'_>) -> Vec<Task> {
    let contraction = lowering.contraction;
    let [left, right, _] = lowering.alignment;
    let shape = Shape::new(contraction, lowering.machine, [left, right]).expect("the kernel made an offer");
    let Shape { items, terms, fast, vector, lanes, width, flight, .. } = shape;
    // A pack is one long step of the fastest loop.
    let mut steps = contraction.clone();
    steps.loops[fast].len /= vector;
    for access in [Some(&mut steps.left), steps.right.as_mut(), Some(&mut steps.out)].into_iter().flatten() {
        access.strides[fast] *= vector as isize;
    }
    let length = terms.div_ceil(shape.parts).next_multiple_of(lanes);
    let parts = terms.div_ceil(length);
    // Outputs of a thread.
    let own = if shape.along { 1 } else { vector };
    let sides: Vec<Side> = inputs(contraction).map(|access| Side::of(access.strides[fast], vector)).collect();
    let types = Types::of(contraction, &sides, vector, own);
    let (index, number) = (counter(items), counter(terms));
    let mut w = Writer::new(&steps, &[]);
    let total = w.fields.int("items", items as i64);
    let last = w.fields.int("terms", terms as i64);
    let count = w.fields.divisor("cuts", parts);
    let count_int = w.fields.int("parts", parts as i64);
    let long = w.fields.int("length", length as i64);
    let (lane, column) = match shape.along {
        true => (format!("threadIdx.x % {lanes}"), format!("threadIdx.x / {lanes}")),
        false => (format!("threadIdx.x / {width}"), format!("threadIdx.x % {width}")),
    };
    w.line(&format!(
        "const unsigned group = quotient(blockIdx.x, {count}), part = blockIdx.x - group * (unsigned){count_int};"
    ));
    w.line(&format!("const unsigned lane = {lane};"));
    w.line(&format!("const {index} item = ({index})group * {width} + {column};"));
    w.line(&format!("A sum[{own}];\n#pragma unroll\nfor (int v = 0; v < {own}; v++) sum[v] = N::zero();"));
    w.start();
    w.line(&format!("if (item < ({index}){total}) {{"));
    if !shape.owned.is_empty() {
        w.split("item", index, &shape.owned);
    }
    w.enter(&shape.owned, Miss::Flag, false);
    w.line(&format!("const {number} from = ({number})part * ({number}){long};"));
    w.line(&format!("const {number} to = min(from + ({number}){long}, ({number}){last});"));
    w.line(&format!("for ({number} first = from + lane; first < to; first += {}) {{", flight * lanes));
    let names = ["l", "r"];
    for (name, _) in names.iter().zip(&sides) {
        w.line(&format!("Some_{name} {name}x[{flight}];"));
    }
    w.line(&format!("#pragma unroll\nfor (int u = 0; u < {flight}; u++) {{"));
    // Past the end a thread loads its part's last term again, and leaves it out.
    w.line(&format!("const {number} term = min(first + u * {lanes}, to - 1);"));
    w.split("term", number, &shape.summed);
    w.enter(&shape.summed, Miss::Continue, true);
    for ((name, side), (field, memory)) in
        names.into_iter().zip(&sides).zip([("left", Memory::Left), ("right", Memory::Right)])
    {
        let pointer = w.fields.pointer(&format!("const {}", types.element), field, memory);
        let offset = w.offset(name).expect("there is such an input");
        let line = match side {
            Side::Pack => format!("{name}x[u] = *(const Some_{name}*)({pointer} + {offset});"),
            Side::Same => format!("{name}x[u].v[0] = {pointer}[{offset}];"),
            Side::Apart => {
                let access = if name == "l" { Some(&contraction.left) } else { contraction.right.as_ref() };
                let stride = access.expect("there is such an input").strides[fast];
                let stride = w.fields.int(&format!("{name}apart"), stride as i64);
                format!(
                    "#pragma unroll\nfor (int v = 0; v < {vector}; v++) {name}x[u].v[v] = {pointer}[{offset} + v * {stride}];"
                )
            }
        };
        w.line(&line);
    }
    w.line(&format!("}}\n#pragma unroll\nfor (int u = 0; u < {flight}; u++) if (first + u * {lanes} < to) {{"));
    let at = if own > 1 { "v" } else { "0" };
    w.line(&format!(
        "#pragma unroll\nfor (int v = 0; v < {vector}; v++) sum[{at}] = N::add(sum[{at}], {});",
        types.term
    ));
    w.line("}\n}\n}");
    w.line(&format!("join<{lanes}, {}>(sum, lane);", if shape.along { 1 } else { width }));
    w.line(&format!("if (lane != 0 || item >= ({index}){total}) return;"));
    if parts == 1 {
        let out = w.fields.pointer(types.out, "out", Memory::Out);
        let stored = types.stored;
        let stride = contraction.out.strides[fast];
        let is_pack = own > 1
            && own * contraction.out_dtype.bytes() <= 16
            && is_packed(&contraction.out, fast, own, lowering.alignment[2] / contraction.out_dtype.bytes());
        if is_pack {
            w.line(&format!("Stored some;\n#pragma unroll\nfor (int v = 0; v < {own}; v++) some.v[v] = {stored};"));
            w.line(&format!("store_pack({out} + o_, some);"));
        } else {
            let stride = w.fields.int("oapart", stride as i64);
            w.line(&format!("#pragma unroll\nfor (int v = 0; v < {own}; v++) {out}[o_ + v * {stride}] = {stored};"));
        }
    } else {
        let partials = w.fields.pointer("A", "partials", Memory::Scratch);
        w.line(&format!(
            "#pragma unroll\nfor (int v = 0; v < {own}; v++) {partials}[((u64)part * {total} + item) * {own} + v] = sum[v];"
        ));
    }
    let blocks = (items.div_ceil(width) * parts) as u32;
    let mut tasks = vec![task("reduce", w, types.text.clone(), blocks)];
    if parts > 1 {
        // What was read one after the other is stored so: the loops of the outputs, the fastest in the input last.
        tasks.push(join(contraction, &shape.owned, parts, Types::of(contraction, &[], 1, 1)));
    }
    tasks
}

/// Adds up the parts of each output.
fn join(contraction: &Contraction, owned: &[usize], parts: usize, types: Types) -> Task {
    let items: usize = owned.iter().map(|&at| contraction.loops[at].len).product();
    let index = counter(items);
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
    w.line("A sum[1] = {N::zero()};");
    w.line(&format!("const unsigned to = item < ({index}){total} ? (unsigned){count} : 0;"));
    w.line("#pragma unroll 4");
    w.line(&format!("for (unsigned part = lane; part < to; part += {lanes})"));
    w.line(&format!("sum[0] = N::add(sum[0], {partials}[(u64)part * {total} + item]);"));
    w.line(&format!("join<{lanes}, {width}>(sum, lane);"));
    w.line(&format!("if (lane != 0 || item >= ({index}){total}) return;\nconst int v = 0;"));
    w.start();
    if !owned.is_empty() {
        w.split("item", index, owned);
    }
    w.enter(owned, Miss::Flag, false);
    w.line(&format!("{out}[o_] = {};", types.stored));
    task("reduce_join", w, types.text, items.div_ceil(width) as u32)
}
