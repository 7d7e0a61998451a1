// What kernels of attention do with rows: LANES lanes hold a row, U rows are in flight a lane, SHARE of a warp's lane groups work
// on one list (or on one row's entries). Stands behind attention.cuh.
// Defines: LANES, U (a power of two), SHARE, HINT.
// Rows, held by LANES lanes: lane l has chunks l, l + LANES, ...
constexpr int BYTES_D = VECD * sizeof(T), BYTES_E = VECE * sizeof(T);
constexpr int CHUNKS_D = D / VECD, CHUNKS_E = E / VECE;
constexpr int TURNS_D = (CHUNKS_D + LANES - 1) / LANES, TURNS_E = (CHUNKS_E + LANES - 1) / LANES;
constexpr bool EVEN_D = CHUNKS_D % LANES == 0, EVEN_E = CHUNKS_E % LANES == 0;

constexpr int GROUPS = 32 / LANES, LISTS = GROUPS / SHARE;
constexpr int HOLD = U >= LANES ? U / LANES : 1, SAME = U < LANES ? LANES / U : 1;

// The number of a lane's h-th row among the U of its group, and back.
__device__ __forceinline__ unsigned slot(unsigned l, int h) { return U >= LANES ? l * HOLD + h : l / SAME; }
__device__ __forceinline__ int lane_of(int u) { return U >= LANES ? u / HOLD : u * SAME; }
__device__ __forceinline__ int hold_of(int u) { return U >= LANES ? u % HOLD : 0; }

template <int TURNS, int BYTES, bool EVEN, int CHUNKS, int VECTOR>
__device__ __forceinline__ void load_rows(const T* base, const int (&row)[HOLD], i64 stride, unsigned l, Chunk<BYTES> (&c)[U][TURNS]) {
  #pragma unroll
  for (int u = 0; u < U; u++) {
    const int r = __shfl_sync(~0u, row[hold_of(u)], lane_of(u), LANES);
    const T* a = base + (i64)r * stride + l * VECTOR;
    #pragma unroll
    for (int t = 0; t < TURNS; t++) c[u][t] = load<BYTES, HINT>(a + t * LANES * VECTOR, r >= 0 && (EVEN || t * LANES + l < CHUNKS));
  }
}

typedef Chunk<BYTES_D> RowD[U][TURNS_D];
typedef Chunk<BYTES_E> RowE[U][TURNS_E];

__device__ __forceinline__ void load_query(const T* query, bool on, unsigned l, Acc factor, Acc (&q)[TURNS_D][VECD]) {
  #pragma unroll
  for (int t = 0; t < TURNS_D; t++) {
    unpack(load<BYTES_D, 0>(query + (t * LANES + l) * VECD, on && (EVEN_D || t * LANES + l < CHUNKS_D)), q[t]);
    #pragma unroll
    for (int i = 0; i < VECD; i++) q[t][i] *= factor;
  }
}

// Products of a vector with the rows, those of its slots for each lane.
template <int TURNS, int VECTOR, int BYTES>
__device__ __forceinline__ void dots(const Acc (&q)[TURNS][VECTOR], const Chunk<BYTES> (&c)[U][TURNS], unsigned lane, Acc (&s)[HOLD]) {
  Acc acc[U];
  #pragma unroll
  for (int u = 0; u < U; u++) {
    acc[u] = 0;
    #pragma unroll
    for (int t = 0; t < TURNS; t++) {
      Acc x[VECTOR];
      unpack(c[u][t], x);
      #pragma unroll
      for (int i = 0; i < VECTOR; i++) acc[u] = fused(q[t][i], x[i], acc[u]);
    }
  }
  sum_over_lanes<U, LANES>(acc, lane);
  #pragma unroll
  for (int h = 0; h < HOLD; h++) s[h] = acc[h];
}

// Adds the rows up, each times its weight.
template <int TURNS, int VECTOR, int BYTES>
__device__ __forceinline__ void add_rows(const Acc (&w)[HOLD], const Chunk<BYTES> (&c)[U][TURNS], Acc (&acc)[TURNS][VECTOR]) {
  #pragma unroll
  for (int u = 0; u < U; u++) {
    const Acc wu = __shfl_sync(~0u, w[hold_of(u)], lane_of(u), LANES);
    #pragma unroll
    for (int t = 0; t < TURNS; t++) {
      Acc x[VECTOR];
      unpack(c[u][t], x);
      #pragma unroll
      for (int i = 0; i < VECTOR; i++) acc[t][i] = fused(wu, x[i], acc[t][i]);
    }
  }
}

// Joins what the groups of a list hold of a row, and writes it, times `factor`. Each step halves what a lane holds, until the
// lanes of a list have a piece of the row each.
template <int TURNS, int VECTOR, bool EVEN, int CHUNKS>
__device__ __forceinline__ void write_row(T* to, bool live, unsigned lane, Acc factor, Acc (&acc)[TURNS][VECTOR]) {
  const unsigned l = lane % LANES;
  constexpr int PIECE = SHARE <= VECTOR ? VECTOR / SHARE : 1;
  #pragma unroll
  for (int t = 0; t < TURNS; t++) {
    int n = VECTOR, first = 0;
    bool mine = true;
    #pragma unroll
    for (int o = LANES; o < LANES * SHARE; o *= 2) {
      const bool up = lane & o;
      if (n > 1) {
        n /= 2;
        #pragma unroll
        for (int i = 0; i < VECTOR / 2; i++)
          if (i < n) {
            const Acc keep = up ? acc[t][n + i] : acc[t][i], give = up ? acc[t][i] : acc[t][n + i];
            acc[t][i] = keep + __shfl_xor_sync(~0u, give, o);
          }
        if (up) first += n;
      } else {
        acc[t][0] += __shfl_xor_sync(~0u, acc[t][0], o);
        mine = mine && !up;
      }
    }
    if (live && mine && (EVEN || t * LANES + l < CHUNKS)) {
      #pragma unroll
      for (int i = 0; i < PIECE; i++) acc[t][i] *= factor;
      store<PIECE * sizeof(T)>(to + (t * LANES + l) * VECTOR + first, pack<PIECE * sizeof(T)>(acc[t]));
    }
  }
}

// Joins the groups of a list, and writes it.
__device__ __forceinline__ void finish(const Params& p, const Place& at, bool live, unsigned lane, Acc high, Acc sum, Acc (&acc)[TURNS_E][VECE]) {
  const unsigned l = lane % LANES;
  if (SAME > 1 && l % SAME) sum = 0;
  sum = add_over_lanes<1, LANES>(sum);
  if constexpr (SHARE > 1) {
    Acc all = high;
    #pragma unroll
    for (int o = LANES; o < LANES * SHARE; o *= 2) { const Acc x = __shfl_xor_sync(~0u, all, o); all = all > x ? all : x; }
    const Acc factor = high == all ? (Acc)1 : EXP2(high - all);
    high = all;
    sum = add_over_lanes<LANES, LANES * SHARE>(sum * factor);
    #pragma unroll
    for (int t = 0; t < TURNS_E; t++)
      #pragma unroll
      for (int i = 0; i < VECE; i++) acc[t][i] *= factor;
  }
#if LSE
  if (live && lane % (LANES * SHARE) == 0) p.lse[at.l] = sum == 0 ? LOW : (high + LOG2(sum)) * LN2;
#endif
  write_row<TURNS_E, VECE, EVEN_E, CHUNKS_E>(p.out + at.o, live, lane, sum == 0 ? (Acc)0 : (Acc)1 / sum, acc);
}

