// axpys: out[o, d] = sum_k weight[o, k] * rows[table[o, k], d]. RESIDENT 0: rows from global memory; 1: the rows of a
// group staged in shared memory. LANES lanes hold a row, U rows are in flight a lane, SHARE groups of a warp share a query.
// Defines: LANES, U, SHARE, BLOCK, MINBLOCKS, HINT, RESIDENT, STAGE, CLUSTER
// The weights take p.query strides (p.query_k along the list).
#if RESIDENT
extern __shared__ __align__(128) unsigned char memory[];
constexpr int WIDE = PER;
#else
#define CLUSTER 1
constexpr int WIDE = VEC;
#endif

constexpr int BYTES = WIDE * sizeof(T);
constexpr int CHUNKS = (D + WIDE - 1) / WIDE;
constexpr int TURNS = (CHUNKS + LANES - 1) / LANES;
constexpr int GROUPS = 32 / LANES, QUERIES = GROUPS / SHARE;
constexpr int HOLD = (U + LANES - 1) / LANES;
constexpr bool EVEN = CHUNKS % LANES == 0;

#if CLUSTER > 1
#define CLUSTERED __cluster_dims__(CLUSTER, 1, 1)
#else
#define CLUSTERED
#endif
// A weight; 1 where there is but one input.
__device__ __forceinline__ T weight_of(const T* weights, i64 at) {
#if WEIGHTED
  return weights[at];
#elif DTYPE == BF16
  return 0x3f80;
#elif DTYPE == F16
  return 0x3c00;
#else
  return 1;
#endif
}

extern "C" __global__ void CLUSTERED __launch_bounds__(BLOCK, MINBLOCKS)
axpys(const __grid_constant__ Params a_) {
  const T* weight = a_.other; const T* rows = a_.rows; const Index* table = a_.table; T* out = a_.out;
  unsigned* status = a_.status;
  const Problem& p = a_.problem;
  const unsigned lane = threadIdx.x % 32, l = lane % LANES, g = lane / LANES, warp = threadIdx.x / 32;
#if RESIDENT
  __shared__ __align__(8) u64 barrier_;
  const unsigned base = shared_address(memory), barrier = shared_address(&barrier_);
  const unsigned group = blockIdx.x / p.per_block, slot = blockIdx.x % p.per_block;
  const unsigned q0 = (unsigned)((u64)p.queries * slot / p.per_block), q1 = (unsigned)((u64)p.queries * (slot + 1) / p.per_block);
  const unsigned units = (q1 - q0 + QUERIES - 1) / QUERIES;
  Place at_group = {0, 0, 0, 0};
  add_place<0, SPLIT>(p, group, at_group);
  stage_start(base, barrier, rows + at_group.rows, (unsigned)p.n, p.row, BLOCK);
  for (unsigned i = threadIdx.x; i < PITCH / 4; i += BLOCK)
    asm volatile("st.shared.u32 [%0], 0;" :: "r"(base + (unsigned)p.n * PITCH + i * 4) : "memory");
  const unsigned mine = base + l * 16;
#if PAIRS
  const unsigned pairs = base + ((unsigned)p.n + 1) * PITCH + (warp * GROUPS + g) * (U * 8 + 16);
#endif
  bool staged = false;
  for (unsigned unit = warp; unit < units || !staged; unit += BLOCK / 32) {
    const unsigned o = q0 + unit * QUERIES + g / SHARE;
    const bool live = unit < units && o < q1;
    Place at = at_group;
    if (live) add_place<SPLIT, OUTER>(p, o, at);
    const unsigned last = unit < units ? p.k : 0;
#else
  const unsigned outer = p.groups * p.queries;
  const u64 units = (outer + QUERIES - 1) / QUERIES;
  const u64 end = min(units, (u64)(blockIdx.x + 1) * p.per_block);
  for (u64 unit = (u64)blockIdx.x * p.per_block + warp; unit < end; unit += BLOCK / 32) {
    const unsigned o = (unsigned)unit * QUERIES + g / SHARE;
    const bool live = o < outer;
    Place at = {0, 0, 0, 0};
    if (live) add_place<0, OUTER>(p, o, at);
    const unsigned last = p.k;
    const T* row0 = rows + at.rows + l * WIDE;
#endif
    const unsigned to = live ? p.k : 0, from = (g % SHARE) * U;
    const T* weights = weight + at.query;
    Index next[HOLD]; T next_w[HOLD];
    #pragma unroll
    for (int h = 0; h < HOLD; h++) {
      const unsigned k = from + h * LANES + l;
      const bool on = (U % LANES == 0 || h * LANES + l < U) && k < to;
      next[h] = entry(table, at, k, on, p);
      next_w[h] = 0; if (on) next_w[h] = weight_of(weights, k * p.query_k);
    }
    Acc acc[TURNS][WIDE];
    #pragma unroll
    for (int t = 0; t < TURNS; t++)
      #pragma unroll
      for (int v = 0; v < WIDE; v++) acc[t][v] = 0;
#if RESIDENT
    if (!staged) { stage_finish(barrier, (unsigned)p.n); staged = true; }
#endif
    for (unsigned step = 0; step < last; step += SHARE * U) {
      int at_row[HOLD]; Acc w[HOLD];
      #pragma unroll
      for (int h = 0; h < HOLD; h++) {
        const unsigned k = from + step + h * LANES + l;
        at_row[h] = row_of(next[h], (U % LANES == 0 || h * LANES + l < U) && k < to, TABLE ? p.n : p.k, status);
        w[h] = at_row[h] < 0 ? (Acc)0 : widen(next_w[h]);
      }
      #pragma unroll
      for (int h = 0; h < HOLD; h++) {
        const unsigned k = from + step + SHARE * U + h * LANES + l;
        const bool on = (U % LANES == 0 || h * LANES + l < U) && k < to;
        next[h] = entry(table, at, k, on, p);
        next_w[h] = 0; if (on) next_w[h] = weight_of(weights, k * p.query_k);
      }
#if RESIDENT
      // A term left out reads the row of zeros behind the others: what row 0 holds may be NaN.
      #pragma unroll
      for (int h = 0; h < HOLD; h++) at_row[h] = (at_row[h] < 0 ? (int)p.n : at_row[h]) * PITCH;
#if PAIRS
      __syncwarp();
      #pragma unroll
      for (int h = 0; h < HOLD; h++)
        if (U % LANES == 0 || h * LANES + l < U)
          asm volatile("st.shared.v2.u32 [%0], {%1, %2};" :: "r"(pairs + (h * LANES + l) * 8), "r"(at_row[h]), "r"(__float_as_uint(w[h])) : "memory");
      __syncwarp();
#endif
      #pragma unroll
      for (int u = 0; u < U; u += 2) {
        int r[2]; Acc wu[2];
#if PAIRS
        Chunk<16> two = load_shared(pairs + u * 8);
        r[0] = two.w[0]; wu[0] = __uint_as_float(two.w[1]); r[1] = two.w[2]; wu[1] = __uint_as_float(two.w[3]);
#else
        #pragma unroll
        for (int i = 0; i < 2; i++) {
          r[i] = __shfl_sync(~0u, at_row[(u + i) / LANES], (u + i) % LANES, LANES);
          wu[i] = __shfl_sync(~0u, w[(u + i) / LANES], (u + i) % LANES, LANES);
        }
#endif
        #pragma unroll
        for (int i = 0; i < 2; i++)
          #pragma unroll
          for (int t = 0; t < TURNS; t++)
            if (EVEN || t * LANES + l < CHUNKS) {
              Acc x[WIDE]; unpack(load_shared(mine + r[i] + t * LANES * 16), x);
              #pragma unroll
              for (int v = 0; v < WIDE; v++) acc[t][v] = fused(wu[i], x[v], acc[t][v]);
            }
      }
#else
      const T* a[U]; bool on[U]; Acc wu[U];
      #pragma unroll
      for (int u = 0; u < U; u++) {
        const int r = __shfl_sync(~0u, at_row[u / LANES], u % LANES, LANES);
        wu[u] = __shfl_sync(~0u, w[u / LANES], u % LANES, LANES);
        on[u] = r >= 0; a[u] = row0 + (i64)r * p.row;
      }
      #pragma unroll
      for (int t = 0; t < TURNS; t++) {
        Chunk<BYTES> c[U];
        #pragma unroll
        for (int u = 0; u < U; u++) c[u] = load<BYTES, HINT>(a[u] + t * LANES * WIDE, on[u] && (EVEN || t * LANES + l < CHUNKS));
        #pragma unroll
        for (int u = 0; u < U; u++) {
          Acc x[WIDE]; unpack(c[u], x);
          #pragma unroll
          for (int v = 0; v < WIDE; v++) acc[t][v] = fused(wu[u], x[v], acc[t][v]);
        }
      }
#endif
    }
    #pragma unroll
    for (int s = LANES; s < LANES * SHARE; s *= 2)
      #pragma unroll
      for (int t = 0; t < TURNS; t++)
        #pragma unroll
        for (int v = 0; v < WIDE; v++) acc[t][v] += __shfl_xor_sync(~0u, acc[t][v], s);
    if (live && g % SHARE == 0) {
      T* to_out = out + at.out;
      #pragma unroll
      for (int t = 0; t < TURNS; t++) {
        const unsigned c = t * LANES + l;
        if (EVEN || c < CHUNKS) {
#if RESIDENT
          if constexpr (VEC * sizeof(T) != 16) {
            #pragma unroll
            for (int v = 0; v < WIDE; v++) if (c * WIDE + v < D) to_out[c * WIDE + v] = narrow(acc[t][v]);
          } else
#endif
          store<BYTES>(to_out + c * WIDE, pack<BYTES>(acc[t]));
        }
      }
    }
  }
#if CLUSTER > 1
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
