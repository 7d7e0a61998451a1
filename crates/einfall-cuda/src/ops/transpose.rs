//! Copies whose input and output run differently: through tiles in shared memory, so that both are read and written in
//! whole sectors.
//!
//! *In*: one plain input, nothing summed. A tile has a piece of as many loops as it takes: those that are fastest in the
//! input until a run of it is long, and those that are fastest in the output. All tiles of a loop are equally long, the
//! last begins where it ends with the loop, so what two tiles share is written twice, the same, and no thread ever asks
//! whether its element is there. Offsets inside a tile are the same for every tile: a thread finds those of its elements
//! once, and keeps them in registers. Elements of up to 4 bytes move in pairs where lengths and strides are even: a thread
//! exchanges two pairs along the input's loop for two along the output's.

use einfall_plan::{Access, Contraction, Cost, Estimate, Machine, Role, Way};
use einfall_tensor::DType;

use super::LAUNCH_SECONDS;
use super::nest::counter;
use crate::text::{Lowering, Memory, Task, Writer, type_name};

mod banks;

const THREADS: usize = 256;
/// Blocks that a multiprocessor has at once.
const RESIDENT: usize = 4;

/// Who copies what.
#[derive(Debug)]
struct Shape {
    /// Length of each loop's piece in a tile.
    pieces: Vec<usize>,
    /// Loops of a tile, the fastest in the input first.
    reads: Vec<usize>,
    /// The same, the fastest in the output first.
    writes: Vec<usize>,
    /// Loops along which input and output lie in pairs.
    pairs: Option<(usize, usize)>,
}

/// The loops with more than one turn, by an access's stride; one that does not move it is the last.
fn by_stride(contraction: &Contraction, access: &Access) -> Vec<usize> {
    let mut loops: Vec<usize> = (0..contraction.loops.len()).filter(|&at| contraction.loops[at].len > 1).collect();
    loops.sort_by_key(|&at| access.strides[at].unsigned_abs().wrapping_sub(1));
    loops
}

/// Whether an access's elements lie in pairs along a loop, wherever the other loops are.
fn is_paired(access: &Access, along: usize, aligned: usize) -> bool {
    let others = access.strides.iter().enumerate().filter(|&(at, _)| at != along).map(|(_, stride)| stride);
    let mut places = others.chain([&access.offset]);
    access.strides[along] == 1 && aligned.is_multiple_of(2) && places.all(|place| place % 2 == 0)
}

impl Shape {
    /// `alignment` is what the addresses of input and output are multiples of, 16 if it is not known yet.
    fn new(contraction: &Contraction, machine: &Machine, alignment: [usize; 2]) -> Result<Self, String> {
        if contraction.right.is_some() || contraction.loops_of(Role::Contracted).next().is_some() {
            return Err("not a copy".into());
        }
        if !contraction.accesses().all(Access::is_plain) {
            return Err("needs plain strides".into());
        }
        let Contraction { left, out, dtype, out_dtype, .. } = contraction;
        let len = |at: usize| contraction.loops[at].len;
        let (reads, writes) = (by_stride(contraction, left), by_stride(contraction, out));
        let (Some(&from), Some(&to)) = (reads.first(), writes.first()) else {
            return Err("copies one element".into());
        };
        let pairs = (from != to
            && dtype.bytes().max(out_dtype.bytes()) <= 4
            && len(from).is_multiple_of(2)
            && len(to).is_multiple_of(2)
            && is_paired(left, from, alignment[0] / dtype.bytes())
            && is_paired(out, to, alignment[1] / out_dtype.bytes()))
        .then_some((from, to));
        let is_even = |at: usize| pairs.is_some_and(|(from, to)| at == from || at == to);
        // Runs of so many elements on both sides, as far as a tile has room.
        let pieces_for = |wanted: usize| {
            let mut pieces = vec![1; contraction.loops.len()];
            for order in [&reads, &writes] {
                let mut run = 1;
                for &at in order {
                    let needed = wanted.div_ceil(run).min(len(at));
                    let parts = len(at).div_ceil(needed);
                    let mut piece = if parts > 8 { needed } else { len(at).div_ceil(parts) };
                    if is_even(at) {
                        piece = piece.next_multiple_of(2);
                    }
                    pieces[at] = pieces[at].max(piece);
                    run *= piece;
                    // A loop that is cut ends the run.
                    if run >= wanted || piece < len(at) {
                        break;
                    }
                }
            }
            pieces
        };
        let volume = |pieces: &[usize]| pieces.iter().product::<usize>();
        let tiles = |pieces: &[usize]| (0..pieces.len()).map(|at| len(at).div_ceil(pieces[at])).product::<usize>();
        let mut most = (16 << 10) / dtype.bytes().max(out_dtype.bytes()).max(4);
        let fitting = |most: usize| {
            let wanted = [1024, 768, 512, 384, 256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 2];
            wanted.into_iter().map(pieces_for).find(|pieces| volume(pieces) <= most).unwrap_or_else(|| pieces_for(1))
        };
        let mut pieces = fitting(most);
        // Small problems: smaller tiles for more blocks.
        while most > 512 && tiles(&pieces) < 2 * machine.threads {
            most /= 2;
            pieces = fitting(most);
        }
        let mut shape = Shape { pieces, reads, writes, pairs };
        let pieces = &shape.pieces;
        shape.reads.retain(|&at| pieces[at] > 1);
        shape.writes.retain(|&at| pieces[at] > 1);
        Ok(shape)
    }

    fn volume(&self) -> usize {
        self.pieces.iter().product()
    }

    /// How many tiles each loop has.
    fn counts(&self, contraction: &Contraction) -> Vec<usize> {
        contraction.loops.iter().zip(&self.pieces).map(|(l, &piece)| l.len.div_ceil(piece)).collect()
    }

    /// Elements that lie one after the other, of a tile.
    fn run(&self, contraction: &Contraction, access: &Access, order: &[usize]) -> usize {
        let mut run = 1;
        for &at in order {
            if access.strides[at].unsigned_abs() != run {
                break;
            }
            run *= self.pieces[at];
            if self.pieces[at] < contraction.loops[at].len {
                break;
            }
        }
        run
    }

    /// Radices of the units that a thread reads: elements, or squares of two by two.
    fn read_radices(&self) -> Vec<usize> {
        let halved = |at: usize| self.pairs.is_some_and(|(from, to)| at == from || at == to);
        self.reads.iter().map(|&at| self.pieces[at] >> usize::from(halved(at))).collect()
    }

    /// Radices of the units that a thread writes: elements, or pairs of them.
    fn write_radices(&self) -> Vec<usize> {
        let halved = |at: usize| self.pairs.is_some_and(|(_, to)| at == to);
        self.writes.iter().map(|&at| self.pieces[at] >> usize::from(halved(at))).collect()
    }
}

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    let shape = Shape::new(contraction, machine, [16; 2])?;
    let Contraction { left, out, dtype, out_dtype, .. } = contraction;
    let bytes = contraction.distinct_bytes();
    // Runs that do not fill their sectors of 32 bytes.
    let waste = |access: &Access, order: &[usize], size: usize| {
        let run = (shape.run(contraction, access, order) * size) as f64;
        if run % 32.0 == 0.0 { 1.0 } else { (run + 16.0) / run }
    };
    let elements = contraction.flops() / 2.0;
    let (read, written) = (
        contraction.distinct_elements(left) * dtype.bytes() as f64 * waste(left, &shape.reads, dtype.bytes()),
        elements * out_dtype.bytes() as f64 * waste(out, &shape.writes, out_dtype.bytes()),
    );
    // What is there twice at the ends of loops.
    let tiles: f64 = shape.counts(contraction).iter().map(|&count| count as f64).product();
    let twice = tiles * shape.volume() as f64 / elements;
    // Clocks in which loads and stores of a multiprocessor pass, an element: 2½ memory accesses and as many of shared
    // memory a square of four, or four accesses an element.
    let clocks = if shape.pairs.is_some() { 0.09 } else { 0.19 } * elements * twice;
    let idle = (machine.threads as f64 / tiles).max(1.0);
    let passed = idle * clocks / (machine.threads as f64 * 1.6e9);
    let moved = twice * (read + written) / (0.8 * machine.bytes_per_second_within(bytes));
    // Finding the offsets, and the first and last tile's way.
    let seconds = LAUNCH_SECONDS + 1e-6 + moved.max(passed);
    let cost = Cost { flops: contraction.flops(), bytes, seconds };
    Ok(Estimate { way: Way::Elementwise, cost, workspace_bytes: 0 })
}

/// The tasks.
pub fn lower(lowering: &Lowering<'_>) -> Vec<Task> {
    let &Lowering { contraction, machine, alignment: [left_at, _, out_at], .. } = lowering;
    let shape = Shape::new(contraction, machine, [left_at, out_at]).expect("the kernel made an offer");
    let Contraction { left, out, dtype, out_dtype, .. } = contraction;
    let (element, stored) = (type_name(*dtype), type_name(*out_dtype));
    let unit_bytes = out_dtype.bytes() << usize::from(shape.pairs.is_some());
    let (read_radices, write_radices) = (shape.read_radices(), shape.write_radices());
    let (pitches, span) = banks::pitches(&shape, &read_radices, &write_radices, unit_bytes);
    let units = [&read_radices, &write_radices].map(|radices| radices.iter().product::<usize>());
    let each = units.map(|units| units.div_ceil(THREADS));
    let counts = shape.counts(contraction);
    let tiles: usize = counts.iter().product();

    // The writer splits the number of a tile; its loops count tiles.
    let mut numbered = contraction.clone();
    numbered.loops.iter_mut().zip(&counts).for_each(|(l, &count)| l.len = count);
    let mut w = Writer::new(&numbered, &[]);
    let source = w.fields.pointer(&format!("const {element}"), "left", Memory::Left);
    let target = w.fields.pointer(stored, "out", Memory::Out);
    let index = counter(tiles);
    w.fields.int("tiles", tiles as i64);

    // Offsets of a thread's units.
    let reach = |access: &Access| -> f64 {
        (0..counts.len()).map(|at| access.strides[at].unsigned_abs() as f64 * shape.pieces[at] as f64).sum()
    };
    let offset = if reach(left).max(reach(out)) < i32::MAX as f64 { "int" } else { "i64" };
    w.line(&format!("{offset} from[{}], to[{}];\nunsigned place[{}];", each[0], each[1], each[0].max(each[1])));
    w.line("#pragma unroll");
    w.line(&format!("for (int k = 0; k < {}; k++) place[k] = 0;", each[0].max(each[1])));
    let phases =
        [("from", "r", left, &shape.reads, &read_radices, 0), ("to", "w", out, &shape.writes, &write_radices, 16)];
    for (number, (list, name, access, loops, radices, shift)) in phases.into_iter().enumerate() {
        let last = w.fields.int(&format!("{name}last"), units[number] as i64 - 1);
        w.line(&format!("#pragma unroll\nfor (int k = 0; k < {}; k++) {{", each[number]));
        // Threads without a unit of their own have the last one too, and do the same to it.
        w.line(&format!("unsigned rest = min(threadIdx.x + k * {THREADS}u, (unsigned){last});\n{list}[k] = 0;"));
        for (digit, (&at, &radix)) in loops.iter().zip(radices).enumerate() {
            // A unit is two elements long along the loops that lie in pairs.
            let double = if radix == shape.pieces[at] { 1 } else { 2 };
            let by = w.fields.divisor(&format!("{name}d{at}"), radix);
            let length = w.fields.int(&format!("{name}n{at}"), radix as i64);
            let stride = w.fields.int(&format!("{name}s{at}"), access.strides[at] as i64 * double);
            // Of the loop whose pairs are a unit of shared memory, a unit is one.
            let steps = if shape.pairs.is_some_and(|(_, to)| at == to) { 1 } else { double };
            let pitch = w.fields.int(&format!("{name}p{at}"), pitches[at] as i64 * steps);
            let turn = if digit + 1 < loops.len() {
                format!(
                    "const unsigned next = quotient(rest, {by}), i = rest - next * (unsigned){length}; rest = next;"
                )
            } else {
                "const unsigned i = rest;".into()
            };
            w.line(&format!("{{ {turn} {list}[k] += ({offset})i * ({offset}){stride}; place[k] += i * (unsigned){pitch} << {shift}; }}"));
        }
        w.line("}");
    }

    w.line(&format!("for ({index} work = blockIdx.x; work < ({index})p.tiles; work += gridDim.x) {{"));
    w.start();
    let moved: Vec<usize> = (0..counts.len()).filter(|&at| counts[at] > 1).collect();
    if !moved.is_empty() {
        w.split("work", index, &moved);
    }
    for &at in &moved {
        let piece = w.fields.int(&format!("piece{at}"), shape.pieces[at] as i64);
        let last = w.fields.int(&format!("last{at}"), (contraction.loops[at].len - shape.pieces[at]) as i64);
        let [ls, os] = [("ls", left), ("os", out)]
            .map(|(name, access)| w.fields.int(&format!("{name}{at}"), access.strides[at] as i64));
        w.line(&format!("{{ const i64 i = min(i{at} * {piece}, {last}); l_ += i * {ls}; o_ += i * {os}; }}"));
    }
    let (reading, writing) = (each[0], each[1]);
    let low = "place[k] & 0xffffu";
    match shape.pairs {
        None => w.line(&format!(
            "Stored x[{reading}];
  #pragma unroll
  for (int k = 0; k < {reading}; k++) x[k] = pass({source}[l_ + from[k]]);
  __syncthreads();
  #pragma unroll
  for (int k = 0; k < {reading}; k++) memory[{low}] = x[k];
  __syncthreads();
  #pragma unroll
  for (int k = 0; k < {writing}; k++) {target}[o_ + to[k]] = memory[place[k] >> 16];
}}"
        )),
        Some((from, to)) => {
            let across = w.fields.int("across", left.strides[to] as i64);
            let pitch = w.fields.int("pitch", pitches[from] as i64);
            w.line(&format!(
                "Two x[{reading}], y[{reading}];
  #pragma unroll
  for (int k = 0; k < {reading}; k++) {{
    x[k] = *(const Two*)({source} + l_ + from[k]);
    y[k] = *(const Two*)({source} + l_ + {across} + from[k]);
  }}
  __syncthreads();
  #pragma unroll
  for (int k = 0; k < {reading}; k++) {{
    memory[{low}] = {{pass(x[k].a), pass(y[k].a)}};
    memory[({low}) + (unsigned){pitch}] = {{pass(x[k].b), pass(y[k].b)}};
  }}
  __syncthreads();
  #pragma unroll
  for (int k = 0; k < {writing}; k++) store_pack({target} + o_ + to[k], memory[place[k] >> 16]);
}}"
            ));
        }
    }
    let unit = if shape.pairs.is_some() { "TwoStored" } else { "Stored" };
    let pass = match (*dtype == *out_dtype, dtype.accumulator() == *out_dtype) {
        // Truth values of other libraries may be any byte.
        (true, _) if *dtype == DType::Bool => "Number<Element>::narrow(Number<Element>::widen(x))",
        (true, _) => "x",
        (_, true) => "Number<Element>::widen(x)",
        _ => "Cast<Stored>::from(Number<Element>::widen(x))",
    };
    // Few registers a thread leave room for all blocks; many elements a thread need them.
    let blocks = if reading.max(writing) > 8 { 2 } else { RESIDENT };
    let text = format!(
        "{}\ntypedef {element} Element;\ntypedef {stored} Stored;\n\
         struct __align__({}) Two {{ Element a, b; }};\nstruct __align__({}) TwoStored {{ Stored a, b; }};\n\
         __device__ __forceinline__ Stored pass(Element x) {{ return {pass}; }}\n\
         {}extern \"C\" __global__ void __launch_bounds__({THREADS}, {blocks}) transpose(const __grid_constant__ Params p) {{\n\
         __shared__ {unit} memory[{span}];\n{}}}\n",
        super::NUMBERS,
        2 * dtype.bytes(),
        2 * out_dtype.bytes(),
        w.fields.declaration(),
        w.text
    );
    // As many tiles for each block, and no more blocks than run at once.
    let turns = tiles.div_ceil(machine.threads * RESIDENT).max(1);
    vec![Task {
        kernel: "transpose",
        source: text,
        blocks: tiles.div_ceil(turns).clamp(1, 1 << 24) as u32,
        threads: THREADS as u32,
        shared_bytes: 0,
        values: w.fields.into_values(),
    }]
}
