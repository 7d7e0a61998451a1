// Lists of rows: places and tables. Stands behind elements.cuh.
// Defines expected: D, TABLE (0 none|1 a window|4 int32|8 int64), OUTER (outer dimensions, 0..4), SPLIT (how many of them the rows
// depend on: these come first).
#if TABLE == 4
typedef int Index;
#else
typedef long long Index;
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
  i64 row;                         // from one row to the next (of a window: from one position to the next; table: its steps)
  i64 table_k, out_k, query_k;     // along the list (query_k: the weights of axpys)
  u64 n;                           // rows to choose from
  i64 start;                       // where a window begins
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

// Which row is k-th in a list: what the table says, a window's position, or without either they follow each other.
__device__ __forceinline__ Index entry(const Index* table, const Place& at, unsigned k, bool on, const Problem& p) {
#if TABLE > 1
  return look(table + at.table + k * p.table_k, on);
#elif TABLE
  return p.start + at.table + (i64)k * p.table_k;
#else
  return k;
#endif
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
