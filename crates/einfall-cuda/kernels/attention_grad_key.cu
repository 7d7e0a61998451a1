// attention_grad_key: grad_key[v] = scale * sum ds * query row, grad_value[v] = sum p * grad_out row, over the entries of row v: the
// places of lists that name it, in order. Entries come from the inverted table; scores are recomputed from the rows.
// Outer loops stand in the order: GROUPED (move rows and table), SHARED (move rows alone), TERMS (move the table alone), HEADS (move
// neither). An entry's number counts the loops that move the table, then its place in the list.
// Defines: those of attention_lanes.cuh, BLOCK, MINBLOCKS, GROUPED, SHARED, TERMS, PART, HEAVY (0: a warp's groups take rows of up to
// PART entries; 1: a block takes a row of more), GRAD_KEY, GRAD_VALUE.
constexpr int AT_SHARED = GROUPED, AT_TERMS = GROUPED + SHARED, AT_HEADS = GROUPED + SHARED + TERMS;

#if FAR
typedef i64 Far;
#else
typedef int Far;
#endif
template <int TURNS, int BYTES, bool EVEN, int CHUNKS, int VECTOR>
__device__ __forceinline__ void load_far(const T* base, const Far (&offset)[HOLD], const bool (&on)[HOLD], unsigned l, Chunk<BYTES> (&c)[U][TURNS]) {
  #pragma unroll
  for (int u = 0; u < U; u++) {
    const Far at = __shfl_sync(~0u, offset[hold_of(u)], lane_of(u), LANES);
    const bool is = __shfl_sync(~0u, (int)on[hold_of(u)], lane_of(u), LANES);
    const T* a = base + (i64)at + l * VECTOR;
    #pragma unroll
    for (int t = 0; t < TURNS; t++) c[u][t] = load<BYTES, HINT>(a + t * LANES * VECTOR, is && (EVEN || t * LANES + l < CHUNKS));
  }
}

// Adds up entries from + base + slots, then those `step` further, below `to`.
__device__ __forceinline__ void add_entries(const Params& p, const Place& home, unsigned group, unsigned lane, unsigned base, unsigned to, unsigned step,
                                            const Acc (&k)[TURNS_D][VECD], const Acc (&v)[TURNS_E][VECE], Acc (&dk)[TURNS_D][VECD], Acc (&dv)[TURNS_E][VECE]) {
  const unsigned l = lane % LANES, keys = (unsigned)p.keys, heads = (unsigned)p.heads;
  const unsigned before = group * (unsigned)p.terms * keys;
  for (unsigned head = 0; head < heads; head++) {
    Place at = home;
    add_place<AT_HEADS, OUTER>(p, head, at);
    unsigned next[HOLD];
    #pragma unroll
    for (int h = 0; h < HOLD; h++) { const unsigned e = base + slot(l, h); next[h] = e < to ? __ldg(p.positions + e) : before; }
    for (unsigned from = base; __any_sync(~0u, from < to); from += step) {
      Far q[HOLD], go[HOLD];
      bool on[HOLD];
      Acc lse[HOLD], delta[HOLD], bias[HOLD];
      #pragma unroll
      for (int h = 0; h < HOLD; h++) {
        on[h] = from + slot(l, h) < to;
        Place x = at;
        const unsigned entry = next[h] - before;
#if RAGGED
        const unsigned t = list_of(p, entry), kk = entry;
#else
        const unsigned t = entry / keys, kk = entry - t * keys;
#endif
        if (RAGGED && t >= (unsigned)p.terms) on[h] = false;
        else add_place<AT_TERMS, AT_HEADS>(p, t, x);
        q[h] = (Far)x.q; go[h] = (Far)x.g;
        lse[h] = LOW; delta[h] = 0;
        if (on[h]) { lse[h] = p.stats[2 * x.s]; delta[h] = p.stats[2 * x.s + 1]; }
        on[h] = on[h] && lse[h] != LOW;
        bias[h] = bias_of(p, x, kk, on[h]);
      }
      Chunk<BYTES_D> c[U][TURNS_D];
      Chunk<BYTES_E> d[U][TURNS_E];
      load_far<TURNS_D, BYTES_D, EVEN_D, CHUNKS_D, VECD>(p.query, q, on, l, c);
      load_far<TURNS_E, BYTES_E, EVEN_E, CHUNKS_E, VECE>(p.grad_out, go, on, l, d);
      #pragma unroll
      for (int h = 0; h < HOLD; h++) { const unsigned e = from + step + slot(l, h); next[h] = e < to ? __ldg(p.positions + e) : before; }
      Acc s[HOLD], w[HOLD];
      dots<TURNS_D, VECD, BYTES_D>(k, c, lane, s);
      dots<TURNS_E, VECE, BYTES_E>(v, d, lane, w);
      #pragma unroll
      for (int h = 0; h < HOLD; h++) {
        s[h] = on[h] ? EXP2(s[h] + bias[h] * LOG2E - lse[h]) : (Acc)0;
        w[h] = on[h] ? s[h] * (w[h] - delta[h]) : (Acc)0;
      }
      if (GRAD_VALUE) add_rows<TURNS_E, VECE, BYTES_E>(s, d, dv);
      if (GRAD_KEY) add_rows<TURNS_D, VECD, BYTES_D>(w, c, dk);
    }
  }
}

// The rows themselves.
__device__ __forceinline__ void load_home(const Params& p, const Place& at, bool live, unsigned row, unsigned l, Acc (&k)[TURNS_D][VECD], Acc (&v)[TURNS_E][VECE]) {
  load_query(p.key + at.k + (i64)row * p.row_k, live, l, (Acc)p.scale * LOG2E, k);
  #pragma unroll
  for (int t = 0; t < TURNS_E; t++)
    unpack(load<BYTES_E, 0>(p.value + at.v + (i64)row * p.row_v + (t * LANES + l) * VECE, live && (EVEN_E || t * LANES + l < CHUNKS_E)), v[t]);
}
__device__ __forceinline__ void write_home(const Params& p, const Place& at, bool live, unsigned row, unsigned lane, Acc (&dk)[TURNS_D][VECD], Acc (&dv)[TURNS_E][VECE]) {
  if (GRAD_KEY) write_row<TURNS_D, VECD, EVEN_D, CHUNKS_D>(p.grad_key + at.y + (i64)row * p.row_y, live, lane, (Acc)p.scale, dk);
  if (GRAD_VALUE) write_row<TURNS_E, VECE, EVEN_E, CHUNKS_E>(p.grad_value + at.z + (i64)row * p.row_z, live, lane, (Acc)1, dv);
}

extern "C" __global__ void __launch_bounds__(BLOCK, MINBLOCKS) attention_grad_key(const __grid_constant__ Params p) {
  const unsigned lane = threadIdx.x % 32, l = lane % LANES, g = lane / LANES;
  const unsigned n = (unsigned)p.n, rows = (unsigned)p.groups * n, shared = (unsigned)p.shared;
#if HEAVY == 0
  const u64 packs = ((u64)rows + LISTS - 1) / LISTS, units = packs * shared;
  for (u64 unit = (u64)blockIdx.x * (BLOCK / 32) + threadIdx.x / 32; unit < units; unit += (u64)gridDim.x * (BLOCK / 32)) {
    const unsigned s = (unsigned)(unit / packs);
    const u64 v = unit % packs * LISTS + g / SHARE;
    const bool live = v < rows;
    const unsigned group = live ? (unsigned)v / n : 0, row = live ? (unsigned)v - group * n : 0;
    Place at = no_place();
    add_place<0, AT_SHARED>(p, group, at);
    add_place<AT_SHARED, AT_TERMS>(p, s, at);
    unsigned from = 0, to = 0;
    if (live) { from = p.begins[v]; to = p.begins[v + 1]; }
    const bool mine = live && to - from <= PART;
    if (!mine) to = from;
    Acc k[TURNS_D][VECD], x[TURNS_E][VECE], dk[TURNS_D][VECD] = {}, dv[TURNS_E][VECE] = {};
    load_home(p, at, mine, row, l, k, x);
    add_entries(p, at, group, lane, from + (g % SHARE) * U, to, SHARE * U, k, x, dk, dv);
    write_home(p, at, mine, row, lane, dk, dv);
  }
#else
  // Heavy rows are few: each block looks for those among its own.
  constexpr unsigned WARPS = BLOCK / 32;
  constexpr int COLUMNS = (TURNS_D * VECD + TURNS_E * VECE) * LANES;
  __shared__ unsigned heavy[BLOCK], count;
  __shared__ Acc sums[WARPS][COLUMNS];
  for (u64 start = (u64)blockIdx.x * BLOCK; start < rows; start += (u64)gridDim.x * BLOCK) {
    __syncthreads();
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    const u64 v = start + threadIdx.x;
    if (v < rows && p.begins[v + 1] - p.begins[v] > PART) heavy[atomicAdd(&count, 1u)] = (unsigned)v;
    __syncthreads();
    for (unsigned i = 0; i < count * shared; i++) {
      const unsigned v = heavy[i / shared], s = i % shared, group = v / n, row = v - group * n;
      Place at = no_place();
      add_place<0, AT_SHARED>(p, group, at);
      add_place<AT_SHARED, AT_TERMS>(p, s, at);
      Acc k[TURNS_D][VECD], x[TURNS_E][VECE], dk[TURNS_D][VECD] = {}, dv[TURNS_E][VECE] = {};
      load_home(p, at, true, row, l, k, x);
      const unsigned team = threadIdx.x / 32 * GROUPS + g;
      add_entries(p, at, group, lane, p.begins[v] + team * U, p.begins[v + 1], WARPS * GROUPS * U, k, x, dk, dv);
      // The groups of a warp, then the warps, in order.
      Acc* mine = sums[threadIdx.x / 32];
      #pragma unroll
      for (int t = 0; t < TURNS_D; t++)
        #pragma unroll
        for (int j = 0; j < VECD; j++) { const Acc y = add_over_lanes<LANES, 32>(dk[t][j]); if (g == 0) mine[(t * VECD + j) * LANES + l] = y; }
      #pragma unroll
      for (int t = 0; t < TURNS_E; t++)
        #pragma unroll
        for (int j = 0; j < VECE; j++) { const Acc y = add_over_lanes<LANES, 32>(dv[t][j]); if (g == 0) mine[(TURNS_D * VECD + t * VECE + j) * LANES + l] = y; }
      __syncthreads();
      for (unsigned c = threadIdx.x; c < COLUMNS; c += BLOCK) {
        Acc sum = 0;
        for (unsigned w = 0; w < WARPS; w++) sum += sums[w][c];
        const unsigned j = c / LANES, lane_ = c % LANES;
        if (j < TURNS_D * VECD) {
          const unsigned d = (j / VECD * LANES + lane_) * VECD + j % VECD;
          if (GRAD_KEY && d < D) p.grad_key[at.y + (i64)row * p.row_y + d] = narrow(sum * (Acc)p.scale);
        } else {
          const unsigned i_ = j - TURNS_D * VECD, e = (i_ / VECE * LANES + lane_) * VECE + i_ % VECE;
          if (GRAD_VALUE && e < E) p.grad_value[at.z + (i64)row * p.row_z + e] = narrow(sum);
        }
      }
      __syncthreads();
    }
  }
#endif
}
