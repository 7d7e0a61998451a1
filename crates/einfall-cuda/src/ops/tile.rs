//! Products of matrices by tiles: any strides, rows that are looked up, every element type.
//!
//! *In*: a contraction with loops on both sides, whose offsets are sums of one for a row and one for a term. A block
//! works out the offsets of its rows, columns and terms once, so a lookup costs a read of its table a tile.

mod half;
pub mod sorted;

use einfall_plan::{Access, Contraction, Cost, Estimate, Machine, Role, Way};

use super::nest::counter;
use super::{LAUNCH_SECONDS, NUMBERS, stream_seconds};
use crate::text::{Lowering, Memory, Miss, Task, Writer, type_name};

/// A shape of tile, and the share of the peak that it reaches in `f32`.
#[derive(Clone, Copy, Debug)]
struct Tile {
    rows: usize,
    columns: usize,
    terms: usize,
    each: (usize, usize),
    /// Warps down and across of a tile of half types on tensor cores; none for other tiles.
    warps: (usize, usize),
    share: f64,
}

impl Tile {
    /// With as many terms at a time as fit a sum of so many: few steps for short sums, nothing wasted.
    fn for_terms(self, terms: usize, bytes: usize) -> Self {
        if self.is_half() {
            return Tile { terms: if terms <= 32 { 32 } else { self.terms }, ..self };
        }
        let at_once = match terms {
            0..=8 => 8,
            17..=32 if bytes <= 4 || (bytes == 8 && self.rows < 128) => 32,
            _ => self.terms,
        };
        Tile { terms: at_once, ..self }
    }

    fn is_half(&self) -> bool {
        self.warps.0 > 0
    }

    fn threads(&self) -> usize {
        if self.is_half() {
            return self.warps.0 * self.warps.1 * 32;
        }
        self.rows / self.each.0 * (self.columns / self.each.1)
    }
}

const LARGE: Tile = Tile { rows: 128, columns: 128, terms: 16, each: (8, 8), warps: (0, 0), share: 0.53 };
const MIDDLE: Tile = Tile { rows: 64, columns: 64, terms: 16, each: (4, 4), warps: (0, 0), share: 0.33 };
/// For few rows, or few columns.
const FLAT: Tile = Tile { rows: 32, columns: 128, terms: 16, each: (4, 8), warps: (0, 0), share: 0.4 };
const TALL: Tile = Tile { rows: 128, columns: 32, terms: 16, each: (8, 4), warps: (0, 0), share: 0.4 };
const SMALL: Tile = Tile { rows: 32, columns: 32, terms: 16, each: (4, 4), warps: (0, 0), share: 0.2 };

/// Measured on an H100: until a block knows its offsets and has its first elements.
const START_SECONDS: f64 = 0.6e-6;

/// What a contraction is as a product of matrices.
struct Matrices<'c> {
    contraction: &'c Contraction,
    /// Rows are the loops of the right input: the output's columns follow each other along the left one's.
    swapped: bool,
    batch: Vec<usize>,
    rows: Vec<usize>,
    columns: Vec<usize>,
    terms: Vec<usize>,
}

impl<'c> Matrices<'c> {
    fn new(contraction: &'c Contraction) -> Result<Self, String> {
        let right = contraction.right.as_ref().ok_or("needs two inputs")?;
        if !contraction.out.is_plain() {
            return Err("the output is scattered".into());
        }
        if ![contraction.dtype, contraction.dtype.accumulator()].contains(&contraction.out_dtype) {
            return Err(format!("does not write {}", contraction.out_dtype));
        }
        let loops = |role| contraction.loops_of(role).collect::<Vec<_>>();
        let [left, columns] = [Role::Left, Role::Right].map(loops);
        for (access, side) in [(&contraction.left, Role::Left), (right, Role::Right)] {
            if !separable(contraction, access, side) {
                return Err("a lookup or window joins kept and summed labels".into());
            }
        }
        // The loop along which the output is contiguous counts columns.
        let swapped = left.iter().any(|&at| contraction.out.strides[at] == 1);
        let (rows, columns) = if swapped { (columns, left) } else { (left, columns) };
        // The fastest loop comes last, where neighbours are neighbours in memory.
        let sorted = |mut loops: Vec<usize>, access: &Access| {
            loops.sort_by_key(|&at| std::cmp::Reverse(access.strides[at].unsigned_abs()));
            loops
        };
        let (first, _) = if swapped { (right, &contraction.left) } else { (&contraction.left, right) };
        let (rows, columns) = (sorted(rows, first), sorted(columns, &contraction.out));
        let terms = sorted(loops(Role::Contracted), &contraction.left);
        Ok(Matrices { contraction, swapped, batch: loops(Role::Batch), rows, columns, terms })
    }

    fn sides(&self) -> (&'c Access, &'c Access) {
        let right = self.contraction.right.as_ref().expect("checked by `new`");
        if self.swapped { (right, &self.contraction.left) } else { (&self.contraction.left, right) }
    }

    fn len(&self, loops: &[usize]) -> usize {
        loops.iter().map(|&at| self.contraction.loops[at].len).product()
    }

    /// The tile that takes least time.
    fn tile(&self, machine: &Machine) -> (Tile, f64) {
        let choices: &[Tile] = match self.contraction.dtype.accumulator().bytes() {
            _ if half::is_half(self.contraction.dtype) => half::TILES,
            0..=4 => &[LARGE, MIDDLE, FLAT, TALL, SMALL],
            _ => &[MIDDLE, SMALL],
        };
        let seconds = |tile: &Tile| {
            let across = |len: usize, tile: usize| len.div_ceil(tile);
            let tiles = self.len(&self.batch)
                * across(self.len(&self.rows), tile.rows)
                * across(self.len(&self.columns), tile.columns);
            if tile.is_half() {
                return half::seconds(*tile, tiles, self.len(&self.terms), machine);
            }
            // A multiprocessor has several tiles at a time, and begins them together; a small one alone is no faster.
            let together = (512 / tile.threads()).max(1);
            let waves = tiles.div_ceil(machine.threads * together) as f64;
            let terms = self.len(&self.terms).next_multiple_of(tile.terms) as f64;
            let peak = machine.flops_per_second(self.contraction.dtype) / machine.threads as f64;
            let flops = 2.0 * (tile.rows * tile.columns) as f64 * terms;
            let alone = waves * 256.0 / tile.threads() as f64;
            alone.max(tiles.div_ceil(machine.threads) as f64) * flops / (peak * tile.share) + waves * START_SECONDS
        };
        let bytes = self.contraction.dtype.accumulator().bytes();
        let fitted = choices.iter().map(|tile| tile.for_terms(self.len(&self.terms), bytes));
        let best = fitted.map(|tile| (tile, seconds(&tile))).min_by(|a, b| a.1.total_cmp(&b.1));
        best.expect("there are tiles")
    }
}

/// Whether every lookup and window depends on loops that are kept or on loops that are summed, not on both.
fn separable(contraction: &Contraction, access: &Access, side: Role) -> bool {
    let mixed = |depends: &dyn Fn(usize) -> bool| {
        let on = |role| contraction.loops_of(role).any(depends);
        on(Role::Contracted) && on(side)
    };
    let lookups = access.lookups.iter().any(|lookup| mixed(&|at| lookup.table_strides[at] != 0));
    let windows = access.windows.iter().any(|window| mixed(&|at| window.coefficients[at] != 0));
    !(lookups || windows)
}

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    let matrices = Matrices::new(contraction)?;
    let (tile, compute) = matrices.tile(machine);
    let bytes = contraction.distinct_bytes();
    let moved = stream_seconds(bytes, machine) / 0.8;
    let loads = matrices.load_seconds(tile, machine);
    // A few steps do not overlap.
    let few = matrices.len(&matrices.terms) <= 2 * tile.terms;
    let busy = if few { compute + loads.max(moved) } else { compute.max(loads).max(moved) };
    let seconds = LAUNCH_SECONDS + busy + matrices.scattered_bytes() / machine.l2_bytes_per_second;
    Ok(Estimate { way: Way::Gemm, cost: Cost { flops: contraction.flops(), bytes, seconds }, workspace_bytes: 0 })
}

/// What the caches bring at least: a sector.
const SECTOR: f64 = 32.0;

impl Matrices<'_> {
    /// Bringing the tiles from the cache: by whole sectors, though a single element of each is wanted.
    fn load_seconds(&self, tile: Tile, machine: &Machine) -> f64 {
        let Matrices { contraction, rows, columns, terms, .. } = self;
        let size = contraction.dtype.bytes() as f64;
        let (first, second) = self.sides();
        let units = [(first, rows), (second, columns)].map(|(access, rows)| unit(contraction, access, 16, rows, terms));
        let brought = |access: &Access, (kind, _): (usize, usize), rows: &[usize]| match kind {
            0 => terms.last().map_or(size, |&at| (access.strides[at].unsigned_abs() as f64 * size).clamp(size, SECTOR)),
            _ => {
                let along = if kind == 1 { rows } else { terms };
                let run = along.last().map_or(1.0, |&at| contraction.loops[at].len as f64 * size);
                size * (SECTOR / run).max(1.0)
            }
        };
        let of = |len: usize, tile: usize| (len.div_ceil(tile), len as f64);
        let ((down, row_count), (across, column_count)) =
            (of(self.len(rows), tile.rows), of(self.len(columns), tile.columns));
        let lines = brought(first, units[0], rows) * row_count * across as f64
            + brought(second, units[1], columns) * column_count * down as f64;
        let (batch, term_count) = (self.len(&self.batch), self.len(terms));
        let rate = machine.bytes_per_second_within(
            contraction.distinct_elements(first).max(contraction.distinct_elements(second)) * size,
        );
        let traffic = batch as f64 * term_count as f64 * lines / rate;
        // Half types that are loaded one by one wait for each handful.
        let one_by_one =
            |(kind, vector): (usize, usize), rows: usize| match tile.is_half() && (kind == 0 || vector == 1) {
                true => rows * tile.terms / tile.threads(),
                false => 0,
            };
        let waits = (one_by_one(units[0], tile.rows) + one_by_one(units[1], tile.columns)).div_ceil(4);
        let together = (512 / tile.threads()).max(1) * machine.threads;
        let waves = (batch * down * across).div_ceil(together);
        traffic.max((waves * term_count.div_ceil(tile.terms) * waits) as f64 * 0.7e-6)
    }

    /// Bytes by which outputs that are written one by one, far apart, burden the cache: sectors, as often as was measured.
    fn scattered_bytes(&self) -> f64 {
        let out = &self.contraction.out;
        match self.columns.last() {
            Some(&at) if out.strides[at] == 1 => 0.0,
            _ => 4.0 * SECTOR * self.contraction.distinct_elements(out),
        }
    }
}

/// How a side lies in memory: terms follow each other, of one loop (2) or of the last of several (3), rows do (1), or
/// neither (0); and how many elements may be loaded at once.
fn unit(
    contraction: &Contraction,
    access: &Access,
    alignment: usize,
    rows: &[usize],
    terms: &[usize],
) -> (usize, usize) {
    let loops = &contraction.loops;
    let fastest =
        |loops: &[usize]| loops.last().copied().filter(|&at| access.strides[at] == 1 && !access.is_indirect_in(at));
    // Where the other side may leave terms out, each term is asked for.
    let others = |at: &usize| contraction.accesses().any(|access| access.is_indirect_in(*at));
    let kind = match (fastest(terms).filter(|at| !others(at)), fastest(rows)) {
        (Some(at), _) => Some((if terms.len() == 1 { 2 } else { 3 }, at)),
        (_, Some(at)) => Some((1, at)),
        _ => None,
    };
    let Some((unit, along)) = kind else { return (0, 1) };
    let size = contraction.dtype.bytes();
    let mut vector = (16 / size).max(1);
    let mut fits = |number: usize| {
        while vector > 1 && !number.is_multiple_of(vector) {
            vector /= 2;
        }
    };
    fits(loops[along].len);
    fits(access.offset.unsigned_abs());
    (0..loops.len()).filter(|&at| at != along).for_each(|at| fits(access.strides[at].unsigned_abs()));
    access.lookups.iter().for_each(|lookup| fits(lookup.stride.unsigned_abs()));
    access.windows.iter().for_each(|window| fits(window.stride.unsigned_abs()));
    fits(alignment / size);
    (unit, vector)
}

/// The tasks.
pub fn lower(lowering: &Lowering<'_>) -> Vec<Task> {
    let matrices = Matrices::new(lowering.contraction).expect("the kernel made an offer");
    let (tile, _) = matrices.tile(lowering.machine);
    vec![matrices.task(lowering, tile, None)]
}

impl Matrices<'_> {
    /// The task. With `sorted` the batch's items are the rows, in the order that `group` has left in scratch memory.
    fn task(&self, lowering: &Lowering<'_>, tile: Tile, sorted: Option<&Sorted>) -> Task {
        let &Lowering { contraction, tables, alignment, .. } = lowering;
        let Matrices { batch, rows, columns, terms, swapped, .. } = self;
        let (first, second) = self.sides();
        let (first_name, second_name) = if *swapped { ("r", "l") } else { ("l", "r") };
        let (first_place, second_place) = if *swapped { (1, 0) } else { (0, 1) };

        let mut w = Writer::new(contraction, tables);
        for (name, loops) in [("batches", batch), ("rows", rows), ("columns", columns), ("terms", terms)] {
            w.fields.int(name, self.len(loops) as i64);
        }
        let section = |w: &mut Writer<'_>, index: &str, loops: &[usize], fresh: bool| {
            if !loops.is_empty() {
                w.split(index, counter(self.len(loops)), loops);
            }
            w.enter(loops, Miss::Flag, fresh);
        };
        w.start();
        if let Some(sorted) = sorted {
            sorted.fields(&mut w);
            // The value is known, so the table is not read again.
            let stride = w.fields.int("value_step", sorted.stride as i64);
            w.line(&format!("{second_name}_ += value * {stride};"));
            w.lookups_are_read();
        } else {
            section(&mut w, "batch", batch, false);
        }
        let state = w.state();
        let offset = |w: &Writer<'_>, name: &str| w.offset(name).expect("there are three accesses");
        let base = |name: &str| format!("{name}_");
        let mut bodies = vec![("OFFSETS_OF_BATCH", std::mem::take(&mut w.text))];

        section(&mut w, "m", if sorted.is_some() { batch } else { rows }, true);
        let ends = format!("if (ok) at = {};\nout = {} - {};\n", offset(&w, first_name), offset(&w, "o"), base("o"));
        w.line(&ends);
        bodies.push(("OFFSETS_OF_ROW", std::mem::take(&mut w.text)));
        w.restore(&state);

        section(&mut w, "n", columns, true);
        let ends = format!("if (ok) at = {};\nout = {};\n", offset(&w, second_name), offset(&w, "o"));
        w.line(&ends);
        bodies.push(("OFFSETS_OF_COLUMN", std::mem::take(&mut w.text)));
        w.restore(&state);

        section(&mut w, "k", terms, true);
        let from = |w: &Writer<'_>, name: &str| format!("{} - {}", offset(w, name), base(name));
        let ends = format!("if (ok) {{ first = {}; second = {}; }}\n", from(&w, first_name), from(&w, second_name));
        w.line(&ends);
        bodies.push(("OFFSETS_OF_TERM", std::mem::take(&mut w.text)));

        let element = type_name(contraction.dtype);
        let pointers = [("left", Memory::Left), ("right", Memory::Right)]
            .map(|(name, memory)| w.fields.pointer(&format!("const {element}"), name, memory));
        let out = type_name(contraction.out_dtype);
        w.fields.pointer(out, "out", Memory::Out);
        let (f_unit, f_vec) =
            unit(contraction, first, alignment[first_place], if sorted.is_some() { &[] } else { rows }, terms);
        let (s_unit, s_vec) = unit(contraction, second, alignment[second_place], columns, terms);
        let o_vec = out_vector(lowering, columns);
        let narrow = if contraction.out_dtype == contraction.dtype { "N::narrow" } else { "" };

        let across = self.len(columns).div_ceil(tile.columns);
        let tiles = match sorted {
            Some(sorted) => sorted.most_tiles * across,
            None => self.len(batch) * self.len(rows).div_ceil(tile.rows) * across,
        };
        let mut source = format!(
            "{NUMBERS}\ntypedef {element} T;\ntypedef {out} U;\ntypedef Number<T> N;\ntypedef N::Acc A;\ntypedef {} Work;\n{}",
            counter(tiles),
            w.fields.declaration()
        );
        let mut numbers = vec![
            ("BM", tile.rows),
            ("BN", tile.columns),
            ("BK", tile.terms),
            ("SORTED", usize::from(sorted.is_some())),
            ("F_UNIT", f_unit),
            ("F_VEC", f_vec),
            ("S_UNIT", s_unit),
            ("S_VEC", s_vec),
            ("O_VEC", o_vec),
        ];
        if tile.is_half() {
            numbers.extend(half::numbers(tile, contraction.dtype));
        } else {
            let once = usize::from(self.len(terms) <= tile.terms);
            numbers.extend([("TM", tile.each.0), ("TN", tile.each.1), ("ONCE", once)]);
        }
        for (name, value) in numbers {
            source += &format!("#define {name} {value}\n");
        }
        source += &format!("#define FIRST {}\n#define SECOND {}\n", pointers[first_place], pointers[second_place]);
        source += &format!("#define NARROW(x) {narrow}(x)\n");
        for (name, body) in bodies {
            source += &format!("#define {name} {}\n", body.trim_end().replace('\n', " \\\n"));
        }
        let text = if tile.is_half() { half::TILE } else { TILE };
        source += &text.replace("  // PLACE_OF_TILE\n", PLACE);
        let blocks = tiles.clamp(1, 1 << 24) as u32;
        let (threads, values) = (tile.threads() as u32, w.fields.into_values());
        let (kernel, shared_bytes) = match tile.is_half() {
            true => ("tile_half", half::shared_bytes(tile, f_unit, s_unit)),
            false => ("tile", 0),
        };
        Task { kernel, source, blocks, threads, shared_bytes, values }
    }
}

/// Columns that can be stored at once.
fn out_vector(lowering: &Lowering<'_>, columns: &[usize]) -> usize {
    let out = &lowering.contraction.out;
    let Some(along) = columns.last() else { return 1 };
    if out.strides[*along] != 1 {
        return 1;
    }
    let size = lowering.contraction.out_dtype.bytes();
    let mut vector = (16 / size).clamp(1, 4);
    let others =
        (0..lowering.contraction.loops.len()).filter(|at| at != along).map(|at| out.strides[at].unsigned_abs());
    let len = lowering.contraction.loops[*along].len;
    for number in others.chain([len, out.offset.unsigned_abs(), lowering.alignment[2] / size]) {
        while vector > 1 && !number.is_multiple_of(vector) {
            vector /= 2;
        }
    }
    vector
}

/// Rows in the order of a table's values, as `group` leaves them in scratch memory.
#[derive(Clone, Copy, Debug)]
struct Sorted {
    /// Values that the table may hold.
    values: usize,
    /// Number of rows.
    rows: usize,
    /// Tiles at most, whatever the table holds.
    most_tiles: usize,
    /// From one value's matrix to the next, elements.
    stride: isize,
}

impl Sorted {
    /// The arrays of `group`, and how long they are.
    fn fields(&self, w: &mut Writer<'_>) {
        w.fields.int("values", self.values as i64);
        w.fields.int("most_tiles", self.most_tiles as i64);
        let [order, begins, tiles, _] = self.places();
        for (name, at) in [("order", order), ("begins", begins), ("tiles", tiles)] {
            w.fields.scratch("unsigned", name, at);
        }
    }

    /// Byte offsets of the arrays, and the end.
    fn places(&self) -> [usize; 4] {
        let begins = (4 * self.rows).next_multiple_of(256);
        let tiles = begins + (4 * (self.values + 2)).next_multiple_of(256);
        [0, begins, tiles, tiles + (4 * (self.values + 2)).next_multiple_of(256)]
    }
}

const TILE: &str = include_str!("../../kernels/tile.cu");
/// Which tile a block works on: the same for both kinds of cores.
const PLACE: &str = include_str!("../../kernels/tile_place.cuh");
