// Attention over lists of rows: places, tables, windows and limits. Stands behind elements.cuh.
// Defines expected: D (depth), E (width of a value), VECD, VECE (elements a load of key, value rows takes), TABLE (0|4|8 bytes
// of a value), WINDOWS (0..3, axes slid over; then no table), OUTER (1..8 loops around a list), KEYS (1..3 loops along it),
// BIAS (0|1|2), CAUSAL, RAGGED (0|4|8 bytes of an offset), STATUS, LSE.
#if DTYPE == F64
#define EXP2(x) exp2(x)
#define LOG2(x) log2(x)
#define LOW __longlong_as_double(0xfff0000000000000ll)
#else
__device__ __forceinline__ float fast_exp2(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
#define EXP2(x) fast_exp2(x)
#define LOG2(x) __log2f(x)
#define LOW __int_as_float(0xff800000)
#endif
constexpr Acc LOG2E = (Acc)1.4426950408889634, LN2 = (Acc)0.6931471805599453;

#if TABLE == 4
typedef int Index;
#else
typedef long long Index;
#endif
#if RAGGED == 4
typedef int Offset;
#else
typedef long long Offset;
#endif

// A bias is of the elements' type or, BIAS == 2, of their accumulator.
#if BIAS == 2
typedef Acc Bias;
__device__ __forceinline__ Acc widen_bias(Acc x) { return x; }
__device__ __forceinline__ Acc narrow_bias(Acc x) { return x; }
#else
typedef T Bias;
__device__ __forceinline__ Acc widen_bias(T x) { return widen(x); }
__device__ __forceinline__ T narrow_bias(Acc x) { return narrow(x); }
#endif

// Fields of 8 bytes. Strides in elements, one for each loop around a list: of size, query, key, value, table, bias, out, lse, the
// limit, the offsets of ragged lists, then of the backward pass: grad_out, stats, gradients of query, key, value.
struct Params {
  const T* query; const T* key; const T* value; const Index* table; const Bias* bias; const Offset* offsets;
  T* out; Acc* lse; unsigned* status;
  const T* grad_out; Acc* stats; T* grad_query; Bias* grad_bias;
  T* grad_key; T* grad_value; const unsigned* begins; const unsigned* positions; unsigned* to_keys;
  double scale;
  i64 lists;                       // product of size
  i64 keys;                        // length of a list
  i64 n;                           // rows to choose from
  i64 row_k, row_v;                // from one row to the next
  i64 limit, ragged_stride;
  i64 groups, per_block;           // lists that share no rows; blocks each (packs of lists a block where there are phases)
  i64 at_values, at_saved, at_zeros, at_pairs;     // bytes in shared memory
  i64 row_y, row_z;                // from one row of the gradients of keys and values to the next
  i64 entries, terms, shared, heads;
  i64 size[OUTER], q[OUTER], k[OUTER], v[OUTER], t[OUTER], b[OUTER], o[OUTER], l[OUTER], m[OUTER], r[OUTER], g[OUTER], s[OUTER], u[OUTER],
      y[OUTER], z[OUTER];
  i64 key_size[3], key_t[3], key_b[3];             // loops along a list: lengths, strides of table and bias
  i64 window_len[3], window_offset[3], window_key[9], window_list[3 * OUTER];
};

struct Place {
  i64 q, k, v, t, b, o, l, m, g, s, u, y, z;
#if RAGGED
  i64 r;
#endif
#if WINDOWS
  i64 w[WINDOWS];
#endif
};

// Where a list stands.
template <int FROM, int TO> __device__ __forceinline__ void add_place(const Params& p, unsigned i, Place& at) {
  #pragma unroll
  for (int d = TO - 1; d >= FROM; d--) {
    unsigned x = i;
    if (d > FROM) { const unsigned size = (unsigned)p.size[d], next = i / size; x = i - next * size; i = next; }
    at.q += x * p.q[d]; at.k += x * p.k[d]; at.v += x * p.v[d]; at.o += x * p.o[d]; at.g += x * p.g[d]; at.s += x * p.s[d];
    at.u += x * p.u[d]; at.y += x * p.y[d]; at.z += x * p.z[d];
#if TABLE
    at.t += x * p.t[d];
#endif
#if BIAS
    at.b += x * p.b[d];
#endif
    at.l += x * p.l[d];
#if CAUSAL
    at.m += x * p.m[d];
#endif
#if RAGGED
    at.r += x * p.r[d];
#endif
#if WINDOWS
    #pragma unroll
    for (int w = 0; w < WINDOWS; w++) at.w[w] += x * p.window_list[w * OUTER + d];
#endif
  }
}
__device__ __forceinline__ Place no_place() {
  Place at = {};
  return at;
}
__device__ __forceinline__ void report(unsigned* status) { *(volatile unsigned*)status = 1u; }

// The keys of a list; of a ragged one, table and bias then begin with its own.
__device__ __forceinline__ unsigned length_of(const Params& p, Place& at) {
#if RAGGED
  const u64 from = (u64)(i64)p.offsets[at.r], to = (u64)(i64)p.offsets[at.r + p.ragged_stride];
  if (from > to || to > (u64)p.entries) { report(p.status); return 0; }
  at.t += (i64)from * p.key_t[0];
#if BIAS
  at.b += (i64)from * p.key_b[0];
#endif
  return (unsigned)(to - from);
#else
  return (unsigned)p.keys;
#endif
}

#if RAGGED
// Which list an entry belongs to, p.terms where it is in none.
__device__ __forceinline__ unsigned list_of(const Params& p, unsigned entry) {
  unsigned low = 0, high = (unsigned)p.terms;
  while (low < high) {
    const unsigned middle = low + (high - low) / 2;
    if ((u64)(i64)p.offsets[(middle + 1) * p.ragged_stride] <= entry) low = middle + 1;
    else high = middle;
  }
  const bool begun = low < (unsigned)p.terms && (u64)(i64)p.offsets[low * p.ragged_stride] <= entry;
  return begun ? low : (unsigned)p.terms;
}
#endif

// Place kk of a list, split into its loops.
__device__ __forceinline__ void split_key(const Params& p, unsigned kk, unsigned (&x)[KEYS]) {
  #pragma unroll
  for (int i = KEYS - 1; i > 0; i--) { const unsigned size = (unsigned)p.key_size[i], next = kk / size; x[i] = kk - next * size; kk = next; }
  x[0] = kk;
}

// The table's value at place kk of a list, 0 where the load is off; without a table nothing.
__device__ __forceinline__ Index look(const Params& p, const Place& at, unsigned kk, bool on) {
#if TABLE
  unsigned x[KEYS];
  split_key(p, kk, x);
  i64 offset = at.t;
  #pragma unroll
  for (int i = 0; i < KEYS; i++) offset += x[i] * p.key_t[i];
  const Index* a = p.table + offset;
#if TABLE == 4
  int v; asm("{.reg .pred p; setp.ne.u32 p, %2, 0; mov.u32 %0, 0; @p ld.global.nc.L1::no_allocate.u32 %0, [%1];}" : "=&r"(v) : "l"(a), "r"((unsigned)on));
#else
  i64 v; asm("{.reg .pred p; setp.ne.u32 p, %2, 0; mov.u64 %0, 0; @p ld.global.nc.L1::no_allocate.u64 %0, [%1];}" : "=&l"(v) : "l"(a), "r"((unsigned)on));
#endif
  return v;
#else
  return 0;
#endif
}

// The row at place kk of a list, or -1 where there is none.
__device__ __forceinline__ int row_of(const Params& p, const Place& at, Index value, unsigned kk, bool on) {
#if TABLE
#if TABLE == 4
  const bool in = (unsigned)value < (unsigned)p.n;
#else
  const bool in = (u64)value < (u64)p.n;
#endif
#if STATUS
  if (on && !in) report(p.status);
#endif
  int row = on && in ? (int)value : -1;
#elif WINDOWS
  unsigned x[KEYS];
  split_key(p, kk, x);
  i64 row = 0;
  #pragma unroll
  for (int w = 0; w < WINDOWS; w++) {
    i64 e = p.window_offset[w] + at.w[w];
    #pragma unroll
    for (int i = 0; i < KEYS; i++) e += x[i] * p.window_key[w * KEYS + i];
    on = on && (u64)e < (u64)p.window_len[w];
    row = row * p.window_len[w] + e;
  }
  if (!on) row = -1;
#else
  int row = on ? (int)kk : -1;
#endif
#if CAUSAL
  if ((i64)row > p.limit + at.m) row = -1;
#endif
  return (int)row;
}

#if BIAS
// Where the bias of place kk lies, from that of the list.
__device__ __forceinline__ i64 bias_place(const Params& p, unsigned kk) {
  unsigned x[KEYS];
  split_key(p, kk, x);
  i64 offset = 0;
  #pragma unroll
  for (int i = 0; i < KEYS; i++) offset += x[i] * p.key_b[i];
  return offset;
}
#endif
// The bias of place kk, 0 without one.
__device__ __forceinline__ Acc bias_of(const Params& p, const Place& at, unsigned kk, bool on) {
#if BIAS
  return on ? (Acc)widen_bias(p.bias[at.b + bias_place(p, kk)]) : (Acc)0;
#else
  return 0;
#endif
}

// Sums U values over the LANES lanes of a group with few shuffles. Afterwards lane l holds, for U >= LANES, the sums
// of values l*(U/LANES)..; for U < LANES, that of value l/(LANES/U).
template <int COUNT, int WIDTH> __device__ __forceinline__ void sum_over_lanes(Acc (&v)[COUNT], unsigned lane) {
  constexpr int log = WIDTH == 1 ? 0 : WIDTH == 2 ? 1 : WIDTH == 4 ? 2 : WIDTH == 8 ? 3 : WIDTH == 16 ? 4 : 5;
  int n = COUNT;
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
template <int WIDTH> __device__ __forceinline__ Acc max_over_lanes(Acc v) {
  #pragma unroll
  for (int o = WIDTH / 2; o > 0; o /= 2) { const Acc x = __shfl_xor_sync(~0u, v, o); v = v > x ? v : x; }
  return v;
}
template <int FROM, int WIDTH> __device__ __forceinline__ Acc add_over_lanes(Acc v) {
  #pragma unroll
  for (int o = WIDTH / 2; o >= FROM; o /= 2) v += __shfl_xor_sync(~0u, v, o);
  return v;
}
