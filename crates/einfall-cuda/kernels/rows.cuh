// Element types, chunks of up to 16 bytes, loads and stores, places. No includes: everything NVRTC has built in.
// Defines expected: DTYPE (F32|F64|BF16|F16), D, VEC (elements a global load), TABLE (0 none|4 int32|8 int64),
// OUTER (outer dimensions, 0..4), SPLIT (how many of them the rows depend on: these come first).
#define F32 0
#define F64 1
#define BF16 2
#define F16 3

#if DTYPE == F32
typedef float T;
typedef float Acc;
#elif DTYPE == F64
typedef double T;
typedef double Acc;
#else
typedef unsigned short T;
typedef float Acc;
#endif

#if TABLE == 4
typedef int Index;
#else
typedef long long Index;
#endif

#ifndef VEC
#define VEC (16 / sizeof(T))
#endif
#ifndef OUTER
#define OUTER 2
#endif
#ifndef SPLIT
#define SPLIT 1
#endif
#ifndef STATUS
#define STATUS 0
#endif

typedef unsigned long long u64;
typedef long long i64;

// A chunk is what one load brings: BYTES of 2, 4, 8 or 16.
template <int BYTES> struct Chunk { unsigned w[(BYTES + 3) / 4]; };

template <int BYTES> __device__ __forceinline__ void unpack(const Chunk<BYTES>& c, Acc* x) {
#if DTYPE == F32
  #pragma unroll
  for (int i = 0; i < BYTES / 4; i++) x[i] = __uint_as_float(c.w[i]);
#elif DTYPE == F64
  #pragma unroll
  for (int i = 0; i < BYTES / 8; i++) x[i] = __hiloint2double(c.w[2 * i + 1], c.w[2 * i]);
#elif DTYPE == BF16
  #pragma unroll
  for (int i = 0; i < BYTES / 2; i++) x[i] = __uint_as_float((i & 1) ? (c.w[i / 2] & 0xffff0000u) : (c.w[i / 2] << 16));
#else
  #pragma unroll
  for (int i = 0; i < BYTES / 2; i++) {
    unsigned short h = (unsigned short)((i & 1) ? (c.w[i / 2] >> 16) : c.w[i / 2]);
    asm("cvt.f32.f16 %0, %1;" : "=f"(x[i]) : "h"(h));
  }
#endif
}

__device__ __forceinline__ T narrow(Acc x) {
#if DTYPE == BF16
  unsigned short h; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x)); return h;
#elif DTYPE == F16
  unsigned short h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x)); return h;
#else
  return x;
#endif
}
__device__ __forceinline__ Acc widen(T x) {
#if DTYPE == BF16
  return __uint_as_float((unsigned)x << 16);
#elif DTYPE == F16
  float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x)); return f;
#else
  return x;
#endif
}
template <int BYTES> __device__ __forceinline__ Chunk<BYTES> pack(const Acc* x) {
  Chunk<BYTES> c;
#if DTYPE == F32
  #pragma unroll
  for (int i = 0; i < BYTES / 4; i++) c.w[i] = __float_as_uint(x[i]);
#elif DTYPE == F64
  #pragma unroll
  for (int i = 0; i < BYTES / 8; i++) { c.w[2 * i] = __double2loint(x[i]); c.w[2 * i + 1] = __double2hiint(x[i]); }
#else
  if (BYTES == 2) c.w[0] = narrow(x[0]);
  else {
    #pragma unroll
    for (int i = 0; i < BYTES / 4; i++) c.w[i] = (unsigned)narrow(x[2 * i]) | ((unsigned)narrow(x[2 * i + 1]) << 16);
  }
#endif
  return c;
}

__device__ __forceinline__ Acc fused(Acc a, Acc b, Acc c) {
#if DTYPE == F64
  return __fma_rn(a, b, c);
#else
  return __fmaf_rn(a, b, c);
#endif
}

// Global loads, each under a predicate; a load left out yields zeros. HINT: 0 cached everywhere, 1 not kept in L1,
// 2 streaming: not kept in L1 and first to leave L2.
__device__ __forceinline__ u64 evict_first() {
  u64 p; asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p)); return p;
}
template <int BYTES, int KEEP> __device__ __forceinline__ Chunk<BYTES> load(const void* a, bool on, u64 policy = 0) {
  Chunk<BYTES> c;
  if constexpr (BYTES == 16) {
    if constexpr (KEEP == 0)
      asm("{.reg .pred p; setp.ne.u32 p, %5, 0; mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
          "@p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];}"
          : "=&r"(c.w[0]), "=&r"(c.w[1]), "=&r"(c.w[2]), "=&r"(c.w[3]) : "l"(a), "r"((unsigned)on));
    else if constexpr (KEEP == 1)
      asm("{.reg .pred p; setp.ne.u32 p, %5, 0; mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
          "@p ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];}"
          : "=&r"(c.w[0]), "=&r"(c.w[1]), "=&r"(c.w[2]), "=&r"(c.w[3]) : "l"(a), "r"((unsigned)on));
    else
      asm("{.reg .pred p; setp.ne.u32 p, %5, 0; mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
          "@p ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %6;}"
          : "=&r"(c.w[0]), "=&r"(c.w[1]), "=&r"(c.w[2]), "=&r"(c.w[3]) : "l"(a), "r"((unsigned)on), "l"(policy));
  } else if constexpr (BYTES == 8) {
    asm("{.reg .pred p; setp.ne.u32 p, %3, 0; mov.u32 %0, 0; mov.u32 %1, 0;\n"
        "@p ld.global.nc.v2.u32 {%0, %1}, [%2];}"
        : "=&r"(c.w[0]), "=&r"(c.w[1]) : "l"(a), "r"((unsigned)on));
  } else if constexpr (BYTES == 4) {
    asm("{.reg .pred p; setp.ne.u32 p, %2, 0; mov.u32 %0, 0;\n@p ld.global.nc.u32 %0, [%1];}"
        : "=&r"(c.w[0]) : "l"(a), "r"((unsigned)on));
  } else {
    asm("{.reg .pred p; .reg .u16 h; setp.ne.u32 p, %2, 0; mov.u16 h, 0;\n@p ld.global.nc.u16 h, [%1]; cvt.u32.u16 %0, h;}"
        : "=&r"(c.w[0]) : "l"(a), "r"((unsigned)on));
  }
  return c;
}

template <int BYTES> __device__ __forceinline__ void store(void* a, const Chunk<BYTES>& c) {
  if constexpr (BYTES == 16) *(uint4*)a = make_uint4(c.w[0], c.w[1], c.w[2], c.w[3]);
  else if constexpr (BYTES == 8) *(uint2*)a = make_uint2(c.w[0], c.w[1]);
  else if constexpr (BYTES == 4) *(unsigned*)a = c.w[0];
  else *(unsigned short*)a = (unsigned short)c.w[0];
}

// The same for what is written once and not read again soon.
template <int BYTES> __device__ __forceinline__ void store_stream(void* a, const Chunk<BYTES>& c) {
  if constexpr (BYTES == 16) __stcs((uint4*)a, make_uint4(c.w[0], c.w[1], c.w[2], c.w[3]));
  else if constexpr (BYTES == 8) __stcs((uint2*)a, make_uint2(c.w[0], c.w[1]));
  else if constexpr (BYTES == 4) __stcs((unsigned*)a, c.w[0]);
  else __stcs((unsigned short*)a, (unsigned short)c.w[0]);
}

// A table value, or 0 where the load is off. Read once: not kept in L1.
__device__ __forceinline__ Index look(const Index* a, bool on) {
#if TABLE == 4
  int v; asm("{.reg .pred p; setp.ne.u32 p, %2, 0; mov.u32 %0, 0; @p ld.global.nc.L1::no_allocate.u32 %0, [%1];}" : "=&r"(v) : "l"(a), "r"((unsigned)on));
#else
  i64 v; asm("{.reg .pred p; setp.ne.u32 p, %2, 0; mov.u64 %0, 0; @p ld.global.nc.L1::no_allocate.u64 %0, [%1];}" : "=&l"(v) : "l"(a), "r"((unsigned)on));
#endif
  return v;
}

// Shared memory by its 32-bit address.
__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ __forceinline__ Chunk<16> load_shared(unsigned a) {
  Chunk<16> c;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(c.w[0]), "=r"(c.w[1]), "=r"(c.w[2]), "=r"(c.w[3]) : "r"(a));
  return c;
}

// The shape of a problem: sizes of the outer dimensions, and the strides (in elements) of each array along them.
struct Problem {
  unsigned size[4];
  unsigned groups, queries;        // products of size[0..SPLIT) and size[SPLIT..OUTER)
  i64 query[4], rows[4], table[4], out[4];
  i64 row;                         // from one row to the next
  i64 table_k, out_k, query_k;     // along the list (query_k: the weights of axpys)
  u64 n;                           // rows to choose from
  unsigned k;                      // length of a list
  unsigned parts, part;            // a list is cut in so many parts of this length
  unsigned per_block;              // units a block takes (dots, axpys), blocks a group (resident)
};
struct Place { i64 query, rows, table, out; };

template <int FROM, int TO> __device__ __forceinline__ void add_place(const Problem& p, unsigned i, Place& at) {
  #pragma unroll
  for (int d = TO - 1; d >= FROM; d--) {
    unsigned x = i;
    if (d > FROM) { unsigned next = i / p.size[d]; x = i - next * p.size[d]; i = next; }
    at.query += x * p.query[d]; at.rows += x * p.rows[d]; at.table += x * p.table[d]; at.out += x * p.out[d];
  }
}

// What a kernel is called with.
struct Params {
  const T* other;                  // the vectors of dots, the weights of axpys
  const T* rows;
  const Index* table;
  T* out;
  unsigned* status;                // set when a table's value names no row
  Problem problem;
};

__device__ __forceinline__ void report(unsigned* status) { *(volatile unsigned*)status = 1u; }

// SHORT neighbouring table values in one load (SHORT > 1: stride 1, 16-byte aligned, lists a multiple of SHORT long).
#ifndef SHORT
#define SHORT 1
#endif
struct Some { Index v[SHORT]; };
__device__ __forceinline__ Some look_some(const Index* list, unsigned k, unsigned to, const Problem& p) {
  Some s;
#if SHORT == 1
  s.v[0] = look(list + k * p.table_k, k < to);
#else
  Chunk<SHORT * sizeof(Index)> c = load<SHORT * sizeof(Index), 1>(list + k, k < to);
  #pragma unroll
  for (int i = 0; i < SHORT; i++)
#if TABLE == 4
    s.v[i] = (int)c.w[i];
#else
    s.v[i] = (i64)((u64)c.w[2 * i] | ((u64)c.w[2 * i + 1] << 32));
#endif
#endif
  return s;
}

// The row a table value names, or -1 where it names none.
__device__ __forceinline__ int row_of(Index v, bool on, u64 n, unsigned* status) {
#if TABLE == 4
  bool in = (unsigned)v < (unsigned)n;
#else
  bool in = (u64)v < n;
#endif
#if STATUS
  if (on && !in) report(status);
#endif
  return on && in ? (int)v : -1;
}

// Sums U values over the LANES lanes of a group with few shuffles. Afterwards lane l holds, for U >= LANES, the sums
// of values l*(U/LANES)..; for U < LANES, that of value l/(LANES/U).
template <int COUNT, int WIDTH> __device__ __forceinline__ void sum_over_lanes(Acc (&v)[COUNT], unsigned lane) {
  constexpr int log = WIDTH == 1 ? 0 : WIDTH == 2 ? 1 : WIDTH == 4 ? 2 : WIDTH == 8 ? 3 : WIDTH == 16 ? 4 : 5;
  int n = U;
  #pragma unroll
  for (int s = log - 1; s >= 0; s--) {
    const int o = 1 << s;
    if (n > 1) {
      n /= 2;
      const bool up = lane & o;
      #pragma unroll
      for (int i = 0; i < COUNT / 2; i++)
        if (i < n) {
          Acc keep = up ? v[n + i] : v[i], give = up ? v[i] : v[n + i];
          v[i] = keep + __shfl_xor_sync(~0u, give, o);
        }
    } else v[0] += __shfl_xor_sync(~0u, v[0], o);
  }
}
