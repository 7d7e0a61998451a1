//! An output scattered through one table: the table is inverted by a stable sort, so that each row of the output is the
//! weighted sum of a list of rows, added up in a fixed order. No atomics: the same bits every time.
//!
//! *Entries* are the iterations that read the table of their own or add to the same row; *keys* are the rows of the output
//! that a table may name, those of a batch behind those of the one before. The sort moves entries; then each entry's
//! offsets in the inputs are written in the order of the keys, and groups of lanes add up the rows of a key each. Keys of
//! very many entries are cut into parts, which are added up at the end.

mod scratch;

use einfall_plan::pattern::{ScatteredRows, Side, scattered_rows};
use einfall_plan::{Access, Contraction, Cost, Estimate, Machine, Way};
use einfall_tensor::DType;

use self::scratch::Scratch;
use super::nest::task;
use super::rows::{ELEMENTS, TURNS, lanes_for};
use super::{LAUNCH_SECONDS, THREADS, blocks_for};
use crate::text::{Fields, Lowering, Memory, Miss, Task, Value, Writer};

/// Keys of more entries are cut in parts of so many.
const PART: usize = 512;
/// Threads of a block that sorts.
const SORT_BLOCK: usize = 512;
/// Bits that one pass of the sort takes at most.
const RADIX: usize = 9;
/// Rows in flight for each group of lanes.
const FLIGHT: usize = 4;
/// Workspace beside the data that is always granted, bytes.
const LEAST_WORKSPACE: f64 = 256e6;

/// What each loop does.
struct Scatter<'c> {
    contraction: &'c Contraction,
    side: Side,
    rows: &'c Access,
    weights: Option<&'c Access>,
    /// The loop along a row; without one, rows are single elements.
    inner: Option<usize>,
    /// Loops that move the output plainly and its table: each of their iterations has keys of its own.
    tables: Vec<usize>,
    /// Loops whose terms meet in the rows of the output, in the order in which they are added.
    terms: Vec<usize>,
    /// Loops that move the output plainly and not its table: they share the inverse.
    shared: Vec<usize>,
}

impl<'c> Scatter<'c> {
    fn new(contraction: &'c Contraction) -> Result<Self, String> {
        use DType::{BF16, F16, F32, F64};
        let Contraction { dtype, out_dtype, out, .. } = contraction;
        if ![F32, F64, F16, BF16].contains(dtype) || *out_dtype != dtype.accumulator() {
            return Err(format!("not for {dtype} into {out_dtype}"));
        }
        let ([lookup], []) = (out.lookups.as_slice(), out.windows.as_slice()) else {
            return Err("the output is not scattered by one table alone".into());
        };
        let (side, inner) = match scattered_rows(contraction) {
            Ok(ScatteredRows { rows, inner }) => (rows, Some(inner)),
            Err(_) => (Side::Left, None),
        };
        let rows = side.of(contraction).expect("the pattern matched");
        let weights = contraction.right.as_ref().and_then(|_| side.other().of(contraction));
        let (tables, terms, shared) = (Vec::new(), Vec::new(), Vec::new());
        let mut scatter = Scatter { contraction, side, rows, weights, inner, tables, terms, shared };
        for at in (0..contraction.loops.len()).filter(|&at| Some(at) != inner) {
            let part = match (out.strides[at] != 0, lookup.table_strides[at] != 0) {
                (true, true) => &mut scatter.tables,
                (true, false) => &mut scatter.shared,
                (false, _) => &mut scatter.terms,
            };
            part.push(at);
        }
        if scatter.terms.is_empty() || lookup.len == 0 {
            return Err("nothing is added up".into());
        }
        let moved = |&at: &usize| [Some(rows), weights].into_iter().flatten().any(|access| access.is_indirect_in(at));
        if scatter.shared.iter().any(moved) {
            return Err("rows are looked up for each of the loops that share the table".into());
        }
        let count = |loops: &[usize]| loops.iter().map(|&at| contraction.loops[at].len as f64).product::<f64>();
        let entries = count(&scatter.tables) * count(&scatter.terms);
        let keys = count(&scatter.tables) * lookup.len as f64;
        // Blocks, too, are counted with 31 bits.
        let most = keys.max(entries / PART as f64) * count(&scatter.shared) * (1 + scatter.d() / 32) as f64;
        if entries.max(keys).max(most) >= (1_u64 << 31) as f64 {
            return Err("too many entries or rows to be counted with 31 bits".into());
        }
        Ok(scatter)
    }

    fn len(&self, at: usize) -> usize {
        self.contraction.loops[at].len
    }

    fn count(&self, loops: &[usize]) -> usize {
        loops.iter().map(|&at| self.len(at)).product()
    }

    /// Loops that count entries, the last one fastest.
    fn entry_loops(&self) -> Vec<usize> {
        [&self.tables[..], &self.terms[..]].concat()
    }

    fn entries(&self) -> usize {
        self.count(&self.tables) * self.count(&self.terms)
    }

    /// Rows of the output in a batch.
    fn n(&self) -> usize {
        self.contraction.out.lookups[0].len
    }

    fn keys(&self) -> usize {
        self.count(&self.tables) * self.n()
    }

    /// Elements of a row.
    fn d(&self) -> usize {
        self.inner.map_or(1, |at| self.len(at))
    }

    fn size(&self) -> usize {
        self.contraction.dtype.bytes()
    }

    fn out_size(&self) -> usize {
        self.contraction.out_dtype.bytes()
    }

    /// Passes of the sort, and the bits that each takes. What is left out sorts behind all keys.
    fn passes(&self) -> (usize, usize) {
        let bits = (usize::BITS - self.keys().leading_zeros()) as usize;
        let passes = bits.div_ceil(RADIX).max(1);
        (passes, bits.div_ceil(passes).max(1))
    }

    /// Keys that one thread of a block sorts: fewer where that keeps more multiprocessors busy.
    fn items(&self) -> usize {
        match self.entries() {
            0..0x40000 => 2,
            0x40000..0x100000 => 4,
            _ => 8,
        }
    }

    /// Whether offsets of entries need 64 bits. Slices do not matter: they shift where the accesses begin.
    fn is_wide(&self) -> bool {
        let far = |access: &Access| {
            let plain = access.strides.iter().zip(&self.contraction.loops).map(|(&stride, l)| (stride, l.len));
            let lookups = access.lookups.iter().map(|lookup| (lookup.stride, lookup.len));
            let windows = access.windows.iter().map(|window| (window.stride, window.len));
            let reach = |(stride, len): (isize, usize)| stride.unsigned_abs() as f64 * len as f64;
            plain.chain(lookups).chain(windows).map(reach).sum::<f64>() >= i32::MAX as f64
        };
        far(self.rows) || self.weights.is_some_and(far)
    }

    /// Bytes of an entry's offsets.
    fn place_bytes(&self) -> usize {
        (if self.is_wide() { 8 } else { 4 }) * (1 + usize::from(self.weights.is_some()))
    }

    /// Whether a key may have so many entries that it is cut.
    fn has_parts(&self) -> bool {
        self.entries() > PART
    }

    fn scratch(&self) -> Scratch {
        let tiles = self.entries().div_ceil(SORT_BLOCK * self.items());
        let partials = match self.has_parts() {
            true => self.entries().div_ceil(PART) * 2 * self.count(&self.shared) * self.d() * self.out_size(),
            false => 0,
        };
        Scratch::new(self.entries(), self.keys(), self.place_bytes(), tiles << self.passes().1, partials)
    }
}

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    let scatter = Scatter::new(contraction)?;
    let workspace_bytes = scatter.scratch().bytes;
    let bytes = contraction.distinct_bytes();
    if workspace_bytes as f64 > LEAST_WORKSPACE + 8.0 * bytes {
        return Err("the inverted table would be much larger than the data".into());
    }
    let (entries, passes) = (scatter.entries() as f64, scatter.passes().0 as f64);
    let launches = 4.0 + 3.0 * passes + if scatter.has_parts() { 2.0 } else { 0.0 };
    // Measured: 105 us for 2e6 entries in two passes.
    let sort = entries * (15e-12 + 15e-12 * passes) + scatter.keys() as f64 * 2e-12;
    // Memory comes in sectors of 32 bytes.
    let row = (scatter.d() * scatter.size()).max(32) as f64;
    let weight = if scatter.weights.is_some() { 32.0 } else { 0.0 };
    let visits = entries * scatter.count(&scatter.shared) as f64;
    let visited = visits * (row + weight + scatter.place_bytes() as f64);
    let distinct = contraction.distinct_elements(scatter.rows) * scatter.size() as f64;
    let rate = match distinct < 0.6 * machine.l2_bytes as f64 {
        true => machine.l2_bytes_per_second,
        false => machine.read_bytes_per_second * 1.2,
    };
    let stored = (scatter.keys() * scatter.count(&scatter.shared) * scatter.d() * scatter.out_size()) as f64;
    let sums = (visited / rate).max(bytes / machine.read_bytes_per_second) + stored / machine.write_bytes_per_second;
    let seconds = launches * LAUNCH_SECONDS + sort + sums;
    let cost = Cost { flops: contraction.flops(), bytes, seconds };
    Ok(Estimate { way: Way::Inverted, cost, workspace_bytes })
}

/// The tasks.
pub fn lower(lowering: &Lowering<'_>) -> Vec<Task> {
    let scatter = Scatter::new(lowering.contraction).expect("the kernel made an offer");
    let scratch = scatter.scratch();
    let mut tasks = vec![keys(&scatter, &scratch, lowering.tables)];
    let last = sort(&scatter, &scratch, &mut tasks);
    tasks.push(places(&scatter, &scratch, lowering.tables, last));
    tasks.extend(sums(&scatter, &scratch, lowering, last));
    tasks
}

/// Writes the key of each entry.
fn keys(scatter: &Scatter<'_>, scratch: &Scratch, tables: &[DType]) -> Task {
    // An output in which each element is its own offset.
    let mut numbers = scatter.contraction.clone();
    numbers.out.offset = 0;
    numbers.out.lookups[0].stride = 1;
    numbers.out.strides.fill(0);
    let mut stride = scatter.n();
    for &at in scatter.tables.iter().rev() {
        numbers.out.strides[at] = stride as isize;
        stride *= scatter.len(at);
    }
    let mut w = Writer::new(&numbers, tables);
    w.cursors.retain(|cursor| cursor.name == "o");
    let entries = w.fields.int("entries", scatter.entries() as i64);
    let outside = w.fields.int("outside", scatter.keys() as i64);
    let to = w.fields.pointer_at("unsigned", "keys", Memory::Kept, scratch.keys[0]);
    w.line(&over_entries(&entries));
    w.line("bool ok = true;");
    w.start();
    w.split("item", "unsigned", &scatter.entry_loops());
    w.enter(&scatter.entry_loops(), Miss::Flag, false);
    w.line(&format!("{to}[item] = ok ? (unsigned)o_ : (unsigned){outside};\n}}"));
    task("invert_keys", w, String::new(), blocks_for(scatter.entries(), THREADS as usize))
}

/// Begins a loop that goes over all entries.
fn over_entries(entries: &str) -> String {
    format!(
        "for (unsigned item = blockIdx.x * {THREADS} + threadIdx.x; item < (unsigned){entries}; item += gridDim.x * {THREADS}) {{"
    )
}

/// Sorts, and finds where keys begin; returns which of the two buffers has the result.
fn sort(scatter: &Scatter<'_>, scratch: &Scratch, tasks: &mut Vec<Task>) -> usize {
    let (passes, radix) = scatter.passes();
    let (items, entries, keys) = (scatter.items(), scatter.entries(), scatter.keys());
    let tiles = entries.div_ceil(SORT_BLOCK * items);
    let mut push = |kernel, what: &str, from: usize, pass: usize, blocks: usize| {
        let source = format!(
            "#define {what}\n#define RADIX {radix}\n#define ITEMS {items}\n#define BLOCK {SORT_BLOCK}\n{}",
            include_str!("../../kernels/invert.cu")
        );
        let kept = |offset| Value::Pointer(Memory::Kept, offset);
        let passing = |offset| Value::Pointer(Memory::Scratch, offset);
        let values = vec![
            kept(scratch.keys[from]),
            kept(scratch.positions[from]),
            kept(scratch.keys[1 - from]),
            kept(scratch.positions[1 - from]),
            passing(scratch.counts),
            passing(scratch.totals),
            kept(scratch.begins),
            Value::Pair(entries as u32, keys as u32),
            Value::Pair((pass * radix) as u32, tiles as u32),
        ];
        let (blocks, threads) = (blocks as u32, SORT_BLOCK as u32);
        tasks.push(Task { kernel, source, blocks, threads, shared_bytes: 0, values });
    };
    for pass in 0..passes {
        let from = pass % 2;
        push("invert_count", "COUNT", from, pass, tiles);
        push("invert_scan", "SCAN", from, pass, 1 << radix);
        let first = if pass == 0 { "SCATTER\n#define FIRST 1" } else { "SCATTER\n#define FIRST 0" };
        push("invert_scatter", first, from, pass, tiles);
    }
    push("invert_begins", "BEGINS", passes % 2, 0, (keys + 1).div_ceil(SORT_BLOCK));
    passes % 2
}

/// The name that a writer has for an input.
fn cursor(side: Side) -> &'static str {
    if side == Side::Left { "l" } else { "r" }
}

/// Writes where each entry's row and weight are, in the order of the keys.
fn places(scatter: &Scatter<'_>, scratch: &Scratch, tables: &[DType], last: usize) -> Task {
    // The kernel that reads them begins at the accesses' offsets.
    let mut moves = scatter.contraction.clone();
    moves.left.offset = 0;
    moves.right.iter_mut().for_each(|right| right.offset = 0);
    let mut w = Writer::new(&moves, tables);
    w.cursors.retain(|cursor| cursor.name != "o");
    let entries = w.fields.int("entries", scatter.entries() as i64);
    let from = w.fields.pointer_at("const unsigned", "positions", Memory::Kept, scratch.positions[last]);
    let (place, pair) = if scatter.is_wide() { ("i64", "longlong2") } else { ("int", "int2") };
    let left_out = if scatter.is_wide() { "(-0x7fffffffffffffffll - 1)" } else { "(-0x7fffffff - 1)" };
    let element = if scatter.weights.is_some() { pair } else { place };
    let to = w.fields.pointer_at(element, "places", Memory::Kept, scratch.places[last]);
    w.line(&over_entries(&entries));
    w.line("bool ok = true;");
    w.line(&format!("const unsigned entry = {from}[item];"));
    w.start();
    w.split("entry", "unsigned", &scatter.entry_loops());
    w.enter(&scatter.entry_loops(), Miss::Flag, false);
    let row = format!("ok ? ({place}){}_ : {left_out}", cursor(scatter.side));
    match scatter.weights {
        Some(_) => w.line(&format!("{to}[item] = make_{pair}({row}, ({place}){}_);", cursor(scatter.side.other()))),
        None => w.line(&format!("{to}[item] = {row};")),
    }
    w.line("}");
    task("invert_places", w, String::new(), blocks_for(scatter.entries(), THREADS as usize))
}

/// The most elements of a row that a load may take at once, and of the output that a store may.
fn vectors(scatter: &Scatter<'_>, lowering: &Lowering<'_>) -> (usize, usize) {
    let fitting = |start: usize, numbers: &mut dyn Iterator<Item = usize>| {
        numbers.fold(start, |mut vector, number| {
            while !number.is_multiple_of(vector) {
                vector /= 2;
            }
            vector
        })
    };
    let moves = |access: &Access| -> Vec<usize> {
        let plain = access.strides.iter().enumerate().filter(|&(at, _)| Some(at) != scatter.inner).map(|(_, &s)| s);
        let lookups = access.lookups.iter().map(|lookup| lookup.stride);
        let windows = access.windows.iter().map(|window| window.stride);
        let all = plain.chain(lookups).chain(windows).chain([access.offset]);
        all.map(isize::unsigned_abs).chain([scatter.d()]).collect()
    };
    let out = &scatter.contraction.out;
    let side = if scatter.side == Side::Left { 0 } else { 1 };
    let aligned = [lowering.alignment[side] / scatter.size(), lowering.alignment[2] / scatter.out_size()];
    let vector = fitting(16 / scatter.size(), &mut moves(scatter.rows).into_iter().chain([aligned[0]]));
    let stored = match scatter.inner {
        Some(inner) if out.strides[inner] == 1 => {
            let start = vector.min(16 / scatter.out_size());
            fitting(start, &mut moves(out).into_iter().chain([aligned[1]]))
        }
        _ => 1,
    };
    (vector, stored)
}

/// Writes how offsets move with the loops that `flat` counts, the last one fastest.
fn moves(scatter: &Scatter<'_>, fields: &mut Fields, loops: &[usize], targets: &[(&str, &Access)]) -> String {
    let mut text = String::new();
    for (place, &at) in loops.iter().enumerate().rev() {
        let len = fields.int(&format!("n{at}"), scatter.len(at) as i64);
        match place {
            0 => text += &format!("  const i64 i{at} = rest;\n"),
            _ => text += &format!("  const i64 i{at} = rest % (unsigned){len}; rest /= (unsigned){len};\n"),
        }
        for (name, access) in targets.iter().filter(|(_, access)| access.strides[at] != 0) {
            let stride = fields.int(&format!("{name}_s{at}"), access.strides[at] as i64);
            text += &format!("  {name} += i{at} * {stride};\n");
        }
    }
    text
}

/// Adds up the rows of each key.
fn sums(scatter: &Scatter<'_>, scratch: &Scratch, lowering: &Lowering<'_>, last: usize) -> Vec<Task> {
    let &Scatter { contraction, rows, weights, .. } = scatter;
    let (d, shared, out) = (scatter.d(), scatter.count(&scatter.shared), &contraction.out);
    let mut fields = Fields::default();
    let memory = |side| if side == Side::Left { Memory::Left } else { Memory::Right };
    let bytes = |access: &Access, size: usize| access.offset as i64 * size as i64;
    fields.pointer_at("const T", "rows", memory(scatter.side), bytes(rows, scatter.size()));
    // Without weights nothing is read there.
    let weight_side = if weights.is_some() { scatter.side.other() } else { scatter.side };
    fields.pointer_at("const T", "weights", memory(weight_side), weights.map_or(0, |w| bytes(w, scatter.size())));
    fields.pointer_at("Acc", "out", Memory::Out, bytes(out, scatter.out_size()));
    fields.pointer_at("const unsigned", "keys", Memory::Kept, scratch.keys[last]);
    fields.pointer_at("const unsigned", "begins", Memory::Kept, scratch.begins);
    fields.pointer_at("const void", "places", Memory::Kept, scratch.places[last]);
    fields.pointer_at("Acc", "partials", Memory::Scratch, scratch.partials);
    let parts = scatter.entries().div_ceil(PART);
    fields.int("entries", scatter.entries() as i64);
    fields.int("values", scatter.keys() as i64);
    fields.int("shared", shared as i64);
    fields.int("parts", parts as i64);
    fields.int("column", scatter.inner.map_or(0, |inner| out.strides[inner]) as i64);
    let n = fields.int("n", scatter.n() as i64);
    let step = fields.int("step", out.lookups[0].stride as i64);
    let mut targets = vec![("row", rows), ("to_out", out)];
    targets.extend(weights.map(|weights| ("weight", weights)));
    let share = moves(scatter, &mut fields, &scatter.shared, &targets);
    let home = moves(scatter, &mut fields, &scatter.tables, &[("to_out", out)]);
    let functions = format!(
        "{}__device__ __forceinline__ void share(const Params& p, unsigned rest, i64& row, i64& weight, i64& to_out) {{\n\
         {share}}}\n__device__ __forceinline__ i64 home(const Params& p, unsigned v) {{\n  unsigned rest = v / (unsigned){n};\n  \
         i64 to_out = (i64)(v - rest * (unsigned){n}) * {step};\n{home}  return to_out;\n}}\n",
        fields.declaration()
    );

    let (vector, stored) = vectors(scatter, lowering);
    let lanes = lanes_for(d, vector, scatter.size());
    let chunks = d / vector;
    let slices = chunks.div_ceil(lanes * TURNS);
    let turns = chunks.div_ceil(lanes * slices);
    let groups = 32 / lanes;
    let usual = scatter.entries() / scatter.keys();
    let mut share = 1;
    while share < groups && share * 2 * FLIGHT * 2 <= usual {
        share *= 2;
    }
    let dtype = match contraction.dtype {
        DType::F32 => 0,
        DType::F64 => 1,
        DType::BF16 => 2,
        _ => 3,
    };
    let (weighted, wide) = (i32::from(weights.is_some()), i32::from(scatter.is_wide()));
    let width = d.next_power_of_two().min(32);
    let task = |kernel, what: &str, block: usize, blocks: usize| {
        let source = format!(
            "#define {what}\n#define DTYPE {dtype}\n#define D {d}\n#define VEC {vector}\n#define LANES {lanes}\n\
             #define TURNS {turns}\n#define SLICES {slices}\n#define U {FLIGHT}\n#define SHARE {share}\n#define BLOCK {block}\n\
             #define PART {PART}\n#define WEIGHTED {weighted}\n#define WIDE {wide}\n#define VOUT {stored}\n\
             #define WIDTH {width}\n{ELEMENTS}{functions}{}",
            include_str!("../../kernels/segments.cu")
        );
        let (blocks, threads) = (blocks as u32, block as u32);
        Task { kernel, source, blocks, threads, shared_bytes: 0, values: fields.values().to_vec() }
    };
    let units = scatter.keys().div_ceil(groups / share) * shared * slices;
    let mut tasks = vec![task("segments", "SEGMENTS", 64, units.div_ceil(2))];
    if scatter.has_parts() {
        tasks.push(task("segment_parts", "PARTS", 128, parts * shared * slices));
        tasks.push(task("segment_joins", "JOINS", 256, parts * shared * d.div_ceil(width)));
    }
    tasks
}
