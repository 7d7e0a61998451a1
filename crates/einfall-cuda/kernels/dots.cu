// dots: out[o, k] = sum_d query[o, d] * rows[table[o, k], d], rows gathered from global memory (L2), slid over, or, with
// TABLE == 0, rows[o, k, d] streamed. LANES lanes hold a row, U rows are in flight a lane, SHARE of a warp's lane groups
// work on one query.
// Defines: LANES, U, SHARE, BLOCK, MINBLOCKS, HINT

constexpr int BYTES = VEC * sizeof(T);
constexpr int CHUNKS = (D + VEC - 1) / VEC;
constexpr int TURNS = (CHUNKS + LANES - 1) / LANES;      // chunks of a row a lane takes
constexpr int GROUPS = 32 / LANES, QUERIES = GROUPS / SHARE;
constexpr int HOLD = (U + LANES - 1) / LANES;            // table values a lane holds
constexpr bool EVEN = CHUNKS % LANES == 0;

extern "C" __global__ void __launch_bounds__(BLOCK, MINBLOCKS)
dots(const __grid_constant__ Params a_) {
  const T* query = a_.other; const T* rows = a_.rows; T* out = a_.out;
  const Problem& p = a_.problem;
#if TABLE
  const Index* table = a_.table; unsigned* status = a_.status;
#endif
  const unsigned lane = threadIdx.x % 32, l = lane % LANES, g = lane / LANES;
  const unsigned outer = p.groups * p.queries;
  const u64 units = (u64)((outer + QUERIES - 1) / QUERIES) * p.parts;
  u64 unit = (u64)blockIdx.x * p.per_block + threadIdx.x / 32;
  const u64 end = min(units, (u64)(blockIdx.x + 1) * p.per_block);
  const u64 policy = HINT == 2 ? evict_first() : 0;

  for (; unit < end; unit += BLOCK / 32) {
    const unsigned o = (unsigned)(unit / p.parts) * QUERIES + g / SHARE;
    const unsigned from = (unsigned)(unit % p.parts) * p.part + (g % SHARE) * U;
    const unsigned to = o < outer ? min(p.k, (unsigned)(unit % p.parts + 1) * p.part) : 0;
    const unsigned last = min(p.k, (unsigned)(unit % p.parts + 1) * p.part);
    Place at = {0, 0, 0, 0};
    if (o < outer) add_place<0, OUTER>(p, o, at);
    const T* row0 = rows + at.rows + l * VEC;
#if TABLE
    Index next[HOLD];
    #pragma unroll
    for (int h = 0; h < HOLD; h++) {
      const unsigned k = from + h * LANES + l;
      next[h] = entry(table, at, k, (U % LANES == 0 || h * LANES + l < U) && k < to, p);
    }
#endif
    Acc q[TURNS][VEC];
    #pragma unroll
    for (int t = 0; t < TURNS; t++)
      unpack(load<BYTES, 0>(query + at.query + (t * LANES + l) * VEC, o < outer && (EVEN || t * LANES + l < CHUNKS)), q[t]);

    for (unsigned step = 0; from - (g % SHARE) * U + step < last; step += SHARE * U) {
      const unsigned base = from + step;
#if TABLE
      int at_row[HOLD];
      #pragma unroll
      for (int h = 0; h < HOLD; h++) {
        const unsigned k = base + h * LANES + l;
        at_row[h] = row_of(next[h], (U % LANES == 0 || h * LANES + l < U) && k < to, p.n, status);
      }
      #pragma unroll
      for (int h = 0; h < HOLD; h++) {
        const unsigned k = base + SHARE * U + h * LANES + l;
        next[h] = entry(table, at, k, (U % LANES == 0 || h * LANES + l < U) && k < to, p);
      }
#endif
      const T* a[U]; bool on[U];
      #pragma unroll
      for (int u = 0; u < U; u++) {
#if TABLE
        const int r = __shfl_sync(~0u, at_row[u / LANES], u % LANES, LANES);
        on[u] = r >= 0; a[u] = row0 + (i64)r * p.row;
#else
        on[u] = base + u < to; a[u] = row0 + (i64)(base + u) * p.row;
#endif
      }
      Acc acc[U];
      #pragma unroll
      for (int u = 0; u < U; u++) acc[u] = 0;
      #pragma unroll
      for (int t = 0; t < TURNS; t++) {
        Chunk<BYTES> c[U];
        #pragma unroll
        for (int u = 0; u < U; u++) c[u] = load<BYTES, HINT>(a[u] + t * LANES * VEC, on[u] && (EVEN || t * LANES + l < CHUNKS), policy);
        #pragma unroll
        for (int u = 0; u < U; u++) {
          Acc x[VEC]; unpack(c[u], x);
          #pragma unroll
          for (int v = 0; v < VEC; v++) acc[u] = fused(q[t][v], x[v], acc[u]);
        }
      }
      // A row that is left out counts as zero, whatever the query holds.
      #pragma unroll
      for (int u = 0; u < U; u++) if (!on[u]) acc[u] = 0;
      sum_over_lanes<U, LANES>(acc, lane);
      if constexpr (U >= LANES) {
        #pragma unroll
        for (int i = 0; i < U / LANES; i++) {
          const unsigned k = base + l * (U / LANES) + i;
          if (k < to) out[at.out + k * p.out_k] = narrow(acc[i]);
        }
      } else {
        constexpr int SAME = U < LANES ? LANES / U : 1;
        const unsigned k = base + l / SAME;
        if (l % SAME == 0 && k < to) out[at.out + k * p.out_k] = narrow(acc[0]);
      }
    }
  }
}
