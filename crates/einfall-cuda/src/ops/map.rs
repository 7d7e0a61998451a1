//! Products, copies and conversions without a sum, 16 bytes a load or store: the output is contiguous along a loop in
//! which every input is too, or does not move. A thread has several packs, and loads all before it stores the first.
//!
//! *In*: plain accesses, nothing summed.

use einfall_plan::{Access, Contraction, Cost, Estimate, Machine, Role, Way};
use einfall_tensor::DType;

use super::nest::{self, counter, task};
use super::{LAUNCH_SECONDS, THREADS, blocks_for, stream_seconds};
use crate::text::{Lowering, Memory, Miss, Task, Writer, type_name};

/// Packs of a thread.
const FLIGHT: usize = 4;

/// The loop along which loads and stores are wide.
fn inner(contraction: &Contraction) -> Result<usize, String> {
    let Contraction { dtype, out_dtype, right, .. } = contraction;
    if contraction.loops_of(Role::Contracted).next().is_some() {
        return Err("there is a sum".into());
    }
    if right.is_some() && ![*dtype, dtype.accumulator()].contains(out_dtype) {
        return Err("writes one type or its accumulator".into());
    }
    if dtype.bytes().max(out_dtype.bytes()) > 8 || !contraction.accesses().all(Access::is_plain) {
        return Err("needs plain strides, and elements of 8 bytes at most".into());
    }
    let inputs = || [Some(&contraction.left), right.as_ref()].into_iter().flatten();
    let moves = |at: usize| inputs().all(|access| matches!(access.strides[at], 0 | 1));
    let mut loops = (0..contraction.loops.len()).filter(|&at| contraction.out.strides[at] == 1 && moves(at));
    loops.next().ok_or_else(|| "no loop along which everything is contiguous or repeats".into())
}

/// The most elements that are loaded and stored at once: every place where that begins is a multiple of them.
fn vector(contraction: &Contraction, inner: usize, alignment: Option<[usize; 3]>) -> usize {
    let (size, out_size) = (contraction.dtype.bytes(), contraction.out_dtype.bytes());
    let sides =
        [(Some(&contraction.left), size), (contraction.right.as_ref(), size), (Some(&contraction.out), out_size)];
    let mut vector = 16 / size.max(out_size);
    for (side, (access, size)) in sides.into_iter().enumerate() {
        let Some(access) = access.filter(|access| access.strides[inner] == 1) else { continue };
        let others = access.strides.iter().enumerate().filter(|&(at, _)| at != inner).map(|(_, stride)| stride);
        let mut places: Vec<usize> = others.chain([&access.offset]).map(|place| place.unsigned_abs()).collect();
        places.extend(alignment.map(|alignment| alignment[side] / size));
        while vector > 1 && !places.iter().all(|place| place.is_multiple_of(vector)) {
            vector /= 2;
        }
    }
    while vector > contraction.loops[inner].len.max(1) {
        vector /= 2;
    }
    vector
}

/// What the kernel would cost.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    let vector = vector(contraction, inner(contraction)?, None);
    if vector == 1 {
        return Err("strides that let no two elements be loaded at once".into());
    }
    let bytes = contraction.distinct_bytes();
    let issued = contraction.flops() / vector as f64 * 30.0 / (machine.threads as f64 * 128.0 * 1.5e9);
    let seconds = LAUNCH_SECONDS + issued.max(stream_seconds(bytes, machine));
    let cost = Cost { flops: contraction.flops(), bytes, seconds };
    Ok(Estimate { way: Way::Elementwise, cost, workspace_bytes: 0 })
}

/// The tasks.
pub fn lower(lowering: &Lowering<'_>) -> Vec<Task> {
    let &Lowering { contraction, tables, alignment, machine, .. } = lowering;
    let inner = inner(contraction).expect("the kernel made an offer");
    let vector = vector(contraction, inner, Some(alignment));
    if vector == 1 {
        return nest::lower(lowering);
    }
    let others: Vec<usize> = (0..contraction.loops.len()).filter(|&at| at != inner).collect();
    let len = contraction.loops[inner].len;
    let chunks = len.div_ceil(vector);
    let items = others.iter().map(|&at| contraction.loops[at].len).product::<usize>() * chunks;
    let threads = THREADS as usize;
    // Few packs: a thread each, so that all of the GPU has some.
    let mut flight = FLIGHT;
    while flight > 1 && items < 4 * flight * threads * machine.threads {
        flight /= 2;
    }
    let mut w = Writer::new(contraction, tables);
    let (element, stored) = (type_name(contraction.dtype), type_name(contraction.out_dtype));
    let index = counter(items + flight * threads);
    let total = w.fields.int("items", items as i64);
    let per_row = w.fields.int("chunks", chunks as i64);
    let end = w.fields.int("len", len as i64);
    let block = flight * threads;
    w.line(&format!(
        "for ({index} first = ({index})blockIdx.x * {block} + threadIdx.x; first < ({index}){total}; first += ({index})gridDim.x * {block}) {{"
    ));
    let sides = [("l", "left", Memory::Left), ("r", "right", Memory::Right)];
    let inputs = [Some(&contraction.left), contraction.right.as_ref()];
    for ((name, ..), access) in sides.into_iter().zip(inputs) {
        let Some(access) = access else { continue };
        let kind = if access.strides[inner] == 1 { "Pack<T>" } else { "T" };
        w.line(&format!("{kind} {name}x[{flight}];"));
    }
    w.line(&format!("i64 place[{flight}], left[{flight}];\n#pragma unroll\nfor (int u = 0; u < {flight}; u++) {{"));
    // Past the end a thread loads the last pack, and does not store it.
    w.line(&format!("const {index} item = min(first + u * {threads}, ({index}){total} - 1);"));
    match index {
        "unsigned" => {
            let by = w.fields.divisor("row", chunks);
            w.line(&format!("const unsigned outer = quotient(item, {by});"));
        }
        _ => w.line(&format!("const {index} outer = item / ({index}){per_row};")),
    }
    w.line(&format!("const i64 at = (i64)(item - outer * ({index}){per_row}) * {vector};"));
    w.start();
    if !others.is_empty() {
        w.split("outer", index, &others);
    }
    w.enter(&others, Miss::Flag, false);
    w.line(&format!("left[u] = {end} - at;"));
    for ((name, field, memory), access) in sides.into_iter().zip(inputs) {
        let Some(access) = access else { continue };
        let pointer = w.fields.pointer(&format!("const {element}"), field, memory);
        let offset = w.offset(name).expect("there is such an input");
        match access.strides[inner] {
            1 => w.line(&format!("load({name}x[u], {pointer} + {offset} + at, left[u]);")),
            _ => w.line(&format!("{name}x[u] = {pointer}[{offset}];")),
        }
    }
    let offset = w.offset("o").expect("there is an output");
    w.line(&format!("place[u] = {offset} + at;\n}}"));
    let of = |name: &str, access: &Access| match access.strides[inner] {
        1 => format!("{name}x[u].of[i]"),
        _ => format!("{name}x[u]"),
    };
    let left = of("l", &contraction.left);
    let is_same = contraction.dtype == contraction.out_dtype;
    let narrowed = |value: String| if is_same { format!("N::narrow({value})") } else { value };
    let term = match &contraction.right {
        Some(right) => narrowed(format!("N::mul(N::widen({left}), N::widen({}))", of("r", right))),
        // Truth values of other libraries may be any byte.
        None if is_same && contraction.dtype != DType::Bool => left,
        None if is_same || contraction.dtype.accumulator() == contraction.out_dtype => {
            narrowed(format!("N::widen({left})"))
        }
        None => format!("Cast<{stored}>::from(N::widen({left}))"),
    };
    let out = w.fields.pointer(stored, "out", Memory::Out);
    w.line(&format!(
        "#pragma unroll
for (int u = 0; u < {flight}; u++) if (first + u * {threads} < ({index}){total}) {{
  Pack<{stored}> result;
  #pragma unroll
  for (int i = 0; i < {vector}; i++) result.of[i] = {term};
  store({out} + place[u], result, left[u]);
}}
}}"
    ));
    let types = format!(
        "typedef {element} T;\ntypedef Number<T> N;\n#define VECTOR {vector}\n#define WHOLE {}\n{PACK}",
        i32::from(len.is_multiple_of(vector))
    );
    vec![task("map", w, types, blocks_for(items, block))]
}

/// Several elements, and how they are loaded and stored at once; at the end of a row there may be fewer.
const PACK: &str = "
template <class E> struct __align__(VECTOR * sizeof(E)) Pack { E of[VECTOR]; };
template <class E> __device__ __forceinline__ void load(Pack<E>& to, const E* from, i64 left) {
  if (WHOLE || left >= VECTOR) to = *(const Pack<E>*)from;
  else {
    #pragma unroll
    for (int i = 0; i < VECTOR; i++) to.of[i] = from[i < left ? i : 0];
  }
}
template <class E> __device__ __forceinline__ void store(E* to, const Pack<E>& from, i64 left) {
  if (WHOLE || left >= VECTOR) store_pack(to, from);
  else {
    #pragma unroll
    for (int i = 0; i < VECTOR; i++) if (i < left) to[i] = from.of[i];
  }
}
";
