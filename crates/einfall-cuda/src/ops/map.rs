//! Products and copies without a sum, 16 bytes a load: the output is contiguous along a loop in which every input is too,
//! or does not move.
//!
//! *In*: plain accesses, nothing summed, one type.

use einfall_plan::{Access, Contraction, Cost, Estimate, Machine, Role, Way};
use einfall_tensor::DType;

use super::nest::{self, counter, task};
use super::{LAUNCH_SECONDS, THREADS, blocks_for, stream_seconds};
use crate::text::{Lowering, Memory, Miss, Task, Writer, type_name};

/// The loop along which loads and stores are wide.
fn inner(contraction: &Contraction) -> Result<usize, String> {
    if contraction.loops_of(Role::Contracted).next().is_some() || contraction.out_dtype != contraction.dtype {
        return Err("needs one type, and nothing summed".into());
    }
    if contraction.dtype.bytes() > 8 || !contraction.accesses().all(Access::is_plain) {
        return Err("needs plain strides, and elements of 8 bytes at most".into());
    }
    let inputs = || [Some(&contraction.left), contraction.right.as_ref()].into_iter().flatten();
    let moves = |at: usize| inputs().all(|access| matches!(access.strides[at], 0 | 1));
    let mut loops = (0..contraction.loops.len()).filter(|&at| contraction.out.strides[at] == 1 && moves(at));
    loops.next().ok_or_else(|| "no loop along which everything is contiguous or repeats".into())
}

/// The most elements that are loaded and stored at once: every place where that begins is a multiple of them.
fn vector(contraction: &Contraction, inner: usize, alignment: Option<[usize; 3]>) -> usize {
    let size = contraction.dtype.bytes();
    let sides = [Some(&contraction.left), contraction.right.as_ref(), Some(&contraction.out)];
    let mut vector = 16 / size;
    for (side, access) in sides.into_iter().enumerate() {
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
    let &Lowering { contraction, tables, alignment, .. } = lowering;
    let inner = inner(contraction).expect("the kernel made an offer");
    let vector = vector(contraction, inner, Some(alignment));
    if vector == 1 {
        return nest::lower(lowering);
    }
    let others: Vec<usize> = (0..contraction.loops.len()).filter(|&at| at != inner).collect();
    let len = contraction.loops[inner].len;
    let chunks = len.div_ceil(vector);
    let items = others.iter().map(|&at| contraction.loops[at].len).product::<usize>() * chunks;
    let mut w = Writer::new(contraction, tables);
    let element = type_name(contraction.dtype);
    let index = counter(items);
    let total = w.fields.int("items", items as i64);
    let per_row = w.fields.int("chunks", chunks as i64);
    let end = w.fields.int("len", len as i64);
    w.line(&format!(
        "for ({index} item = ({index})blockIdx.x * {THREADS} + threadIdx.x; item < ({index}){total}; item += ({index})gridDim.x * {THREADS}) {{"
    ));
    w.line(&format!("const {index} outer = item / ({index}){per_row};"));
    w.line(&format!("const i64 at = (i64)(item - outer * ({index}){per_row}) * {vector};"));
    w.line("bool ok = true;");
    w.start();
    if !others.is_empty() {
        w.split("outer", index, &others);
    }
    w.enter(&others, Miss::Flag, false);
    let sides = [("l", "left", Memory::Left), ("r", "right", Memory::Right)];
    let inputs = [Some(&contraction.left), contraction.right.as_ref()];
    for ((name, field, memory), access) in sides.into_iter().zip(inputs) {
        let Some(access) = access else { continue };
        let pointer = w.fields.pointer(&format!("const {element}"), field, memory);
        let offset = w.offset(name).expect("there is such an input");
        match access.strides[inner] {
            1 => w.line(&format!("Pack {name};\nload({name}, {pointer} + {offset} + at, {end} - at);")),
            _ => w.line(&format!("Pack {name};\n{name}.fill({pointer}[{offset}]);")),
        }
    }
    let term = match contraction.right {
        Some(_) => Some("N::mul(N::widen(l.of[i]), N::widen(r.of[i]))"),
        // Truth values of other libraries may be any byte.
        None => (contraction.dtype == DType::Bool).then_some("N::widen(l.of[i])"),
    };
    if let Some(term) = term {
        w.line(&format!("#pragma unroll\nfor (int i = 0; i < {vector}; i++)"));
        w.line(&format!("l.of[i] = N::narrow({term});"));
    }
    let out = w.fields.pointer(element, "out", Memory::Out);
    let offset = w.offset("o").expect("there is an output");
    w.line(&format!("store({out} + {offset} + at, l, {end} - at);\n}}"));
    let types = format!(
        "typedef {element} T;\ntypedef Number<T> N;\n#define VECTOR {vector}\n#define WHOLE {}\n{PACK}",
        i32::from(len.is_multiple_of(vector))
    );
    vec![task("map", w, types, blocks_for(items, THREADS as usize))]
}

/// Several elements, and how they are loaded and stored at once; at the end of a row there may be fewer.
const PACK: &str = "
struct __align__(VECTOR * sizeof(T)) Pack {
  T of[VECTOR];
  __device__ void fill(T x) {
    #pragma unroll
    for (int i = 0; i < VECTOR; i++) of[i] = x;
  }
};
__device__ __forceinline__ void load(Pack& to, const T* from, i64 left) {
  if (WHOLE || left >= VECTOR) to = *(const Pack*)from;
  else {
    #pragma unroll
    for (int i = 0; i < VECTOR; i++) to.of[i] = from[i < left ? i : 0];
  }
}
__device__ __forceinline__ void store(T* to, const Pack& from, i64 left) {
  if (WHOLE || left >= VECTOR) *(Pack*)to = from;
  else {
    #pragma unroll
    for (int i = 0; i < VECTOR; i++) if (i < left) to[i] = from.of[i];
  }
}
";
