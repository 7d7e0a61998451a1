//! The types of a sum as CUDA C++, and how its threads join what they found.

use einfall_plan::Contraction;

use crate::text::type_name;

/// How an input moves along the loop whose elements are loaded together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Element by element: one load.
    Pack,
    /// Not at all: one element for all.
    Same,
    /// With a stride: a load each.
    Apart,
}

impl Side {
    pub(super) fn of(stride: isize, vector: usize) -> Self {
        match stride {
            0 => Side::Same,
            1 => Side::Pack,
            _ if vector == 1 => Side::Pack,
            _ => Side::Apart,
        }
    }
}

/// The element types as text.
pub(super) struct Types {
    pub(super) text: String,
    pub(super) element: &'static str,
    pub(super) out: &'static str,
    /// Element `v` of pack `u`, as an accumulator.
    pub(super) term: String,
    /// Sum `v` as it is stored.
    pub(super) stored: &'static str,
}

impl Types {
    /// For packs of `vector` elements of each input, and `own` outputs of a thread.
    pub(super) fn of(contraction: &Contraction, sides: &[Side], vector: usize, own: usize) -> Self {
        let (element, out) = (type_name(contraction.dtype), type_name(contraction.out_dtype));
        // Another type: terms are converted before they are added.
        let converts = ![contraction.dtype, contraction.dtype.accumulator()].contains(&contraction.out_dtype);
        let narrows = converts || contraction.out_dtype == contraction.dtype;
        let mut text = format!("typedef Number<{}> N;\ntypedef N::Acc A;\n", if converts { out } else { element });
        let mut factors = Vec::new();
        for (name, side) in ["l", "r"].into_iter().zip(sides) {
            let (count, at) = if *side == Side::Same { (1, "0") } else { (vector, "v") };
            let bytes = if *side == Side::Pack { vector } else { 1 } * contraction.dtype.bytes();
            text.push_str(&format!("struct __align__({bytes}) Some_{name} {{ {element} v[{count}]; }};\n"));
            factors.push(format!("{name}x[u].v[{at}]"));
        }
        if own * contraction.out_dtype.bytes() <= 16 {
            let bytes = own * contraction.out_dtype.bytes();
            text.push_str(&format!("struct __align__({bytes}) Stored {{ {out} v[{own}]; }};\n"));
        }
        text.push_str(JOIN);
        let term = match &factors[..] {
            [left, right] => format!("N::mul(N::widen({left}), N::widen({right}))"),
            [left] if converts => format!("Cast<A>::from(Number<{element}>::widen({left}))"),
            [left] => format!("N::widen({left})"),
            _ => String::new(),
        };
        Types { text, element, out, term, stored: if narrows { "N::narrow(sum[v])" } else { "sum[v]" } }
    }
}

/// `join<lanes, step>` adds the sums of `lanes` threads that are `step` threads apart, in a fixed order; lane 0 has the
/// result. Neighbours of a warp use registers, others shared memory.
const JOIN: &str = "
__device__ __forceinline__ A of_other(A x, unsigned by) {
  __align__(16) unsigned words[(sizeof(A) + 3) / 4] = {};
  *(A*)words = x;
  #pragma unroll
  for (int i = 0; i < (sizeof(A) + 3) / 4; i++) words[i] = __shfl_xor_sync(~0u, words[i], by);
  return *(A*)words;
}
template <int LANES, int STEP, int OWN> __device__ __forceinline__ void join(A (&sum)[OWN], unsigned lane) {
  if constexpr (STEP == 1) {
    #pragma unroll
    for (int v = 0; v < OWN; v++) {
      #pragma unroll
      for (int by = (LANES < 32 ? LANES : 32) / 2; by > 0; by /= 2) sum[v] = N::add(sum[v], of_other(sum[v], by));
    }
    if constexpr (LANES > 32) {
      __shared__ A sums[256 / 32][OWN];
      if (lane % 32 == 0) {
        #pragma unroll
        for (int v = 0; v < OWN; v++) sums[threadIdx.x / 32][v] = sum[v];
      }
      __syncthreads();
      if (lane == 0) {
        #pragma unroll
        for (int v = 0; v < OWN; v++) {
          #pragma unroll
          for (int warp = 1; warp < LANES / 32; warp++) sum[v] = N::add(sum[v], sums[threadIdx.x / 32 + warp][v]);
        }
      }
    }
  } else {
    __shared__ A sums[OWN][256];
    #pragma unroll
    for (int v = 0; v < OWN; v++) sums[v][threadIdx.x] = sum[v];
    for (unsigned half = LANES / 2; half > 0; half /= 2) {
      __syncthreads();
      if (lane < half) {
        #pragma unroll
        for (int v = 0; v < OWN; v++) {
          sum[v] = N::add(sum[v], sums[v][threadIdx.x + half * STEP]);
          sums[v][threadIdx.x] = sum[v];
        }
      }
    }
  }
}
";
