// segments: out[v, d] += sum over the entries of key v of weight[e] * rows[e, d]. The entries of a key lie in a run, in
// order, so that every sum has one order: no atomics. Keys of more than PART entries are left to segment_parts, which
// sums each PART entries, wherever such a key's run lies there, and to segment_joins, which adds these up.
// Stands behind elements.cuh, the parameter, and
//   share(p, s, row, weight, out)  the offsets' moves for turn s of the loops that share the table
//   home(p, v)                     where the sums of key v go
// Defines: D, VEC, LANES (of a warp hold a row), TURNS (chunks each), SLICES (of a row), U (rows in flight), SHARE (groups
// of lanes share a key), BLOCK, PART, WEIGHTED, WIDE (places of 64 bits), VOUT (sums stored at once), and one of SEGMENTS,
// PARTS, JOINS
constexpr int BYTES = VEC * sizeof(T), CHUNKS = D / VEC;
constexpr int GROUPS = 32 / LANES, KEYS = GROUPS / SHARE;
constexpr int HOLD = (U + LANES - 1) / LANES;
constexpr bool EVEN = CHUNKS % (LANES * TURNS) == 0;

#if WIDE
typedef i64 Place;
typedef longlong2 Places;
constexpr Place LEFT_OUT = -0x7fffffffffffffffll - 1;
#else
typedef int Place;
typedef int2 Places;
constexpr Place LEFT_OUT = -0x7fffffff - 1;
#endif

// Adds up entries base, base + 1, ... base + U - 1, then those a step further, below `to`. All lanes of a warp call it;
// those of a group with the same numbers. `chunk` is the lane's first chunk of the row.
__device__ __forceinline__ void add_up(const void* places, const T* rows, const T* weights, unsigned chunk, unsigned base,
                                       unsigned to, unsigned step, Acc (&acc)[TURNS][VEC]) {
  const unsigned l = threadIdx.x % LANES;
  // An entry that is left out has a row of zeros, and a weight that is finite.
  Place r[HOLD];
  Acc w[HOLD];
  auto bring = [&](unsigned base) {
    #pragma unroll
    for (int h = 0; h < HOLD; h++) {
      const unsigned i = base + h * LANES + l;
      r[h] = LEFT_OUT;
      w[h] = 0;
      if ((U % LANES == 0 || h * LANES + l < U) && i < to) {
#if WEIGHTED
        const Places place = __ldcs((const Places*)places + i);
        r[h] = place.x;
        if (r[h] != LEFT_OUT) w[h] = widen(weights[place.y]);
#else
        r[h] = __ldcs((const Place*)places + i);
        w[h] = 1;
#endif
      }
    }
  };
  bring(base);
  while (__any_sync(~0u, base < to)) {
    const T* a[U];
    bool on[U];
    Acc wu[U];
    #pragma unroll
    for (int u = 0; u < U; u++) {
      const Place x = __shfl_sync(~0u, r[u / LANES], u % LANES, LANES);
      wu[u] = __shfl_sync(~0u, w[u / LANES], u % LANES, LANES);
      on[u] = x != LEFT_OUT;
      a[u] = rows + (on[u] ? (i64)x : 0) + (i64)chunk * VEC;
    }
    base += step;
    bring(base);
    #pragma unroll
    for (int t = 0; t < TURNS; t++) {
      Chunk<BYTES> c[U];
      #pragma unroll
      for (int u = 0; u < U; u++)
        c[u] = load<BYTES, 0>(a[u] + t * LANES * VEC, on[u] && (EVEN || chunk + t * LANES < CHUNKS));
      #pragma unroll
      for (int u = 0; u < U; u++) {
        Acc x[VEC];
        unpack(c[u], x);
        #pragma unroll
        for (int i = 0; i < VEC; i++) acc[t][i] = fused(wu[u], x[i], acc[t][i]);
      }
    }
  }
}

// Adds up what the groups of a warp hold, `groups` of them together.
__device__ __forceinline__ void join_groups(Acc (&acc)[TURNS][VEC], int groups) {
  #pragma unroll
  for (int s = LANES; s < 32; s *= 2)
    if (s < LANES * groups) {
      #pragma unroll
      for (int t = 0; t < TURNS; t++)
        #pragma unroll
        for (int i = 0; i < VEC; i++) acc[t][i] += __shfl_xor_sync(~0u, acc[t][i], s);
    }
}

#ifdef SEGMENTS
struct __align__(VOUT * sizeof(Acc)) Sums { Acc v[VOUT]; };

extern "C" __global__ void __launch_bounds__(BLOCK) segments(const __grid_constant__ Params p) {
  const unsigned lane = threadIdx.x % 32, g = lane / LANES;
  const u64 unit = (u64)blockIdx.x * (BLOCK / 32) + threadIdx.x / 32, turn = unit / SLICES;
  const unsigned chunk = (unsigned)(unit % SLICES) * (TURNS * LANES) + lane % LANES;
  const u64 v = turn / (unsigned)p.shared * KEYS + g / SHARE;
  i64 row = 0, weight = 0, to_out = 0;
  share(p, (unsigned)(turn % (unsigned)p.shared), row, weight, to_out);
  unsigned from = 0, to = 0;
  if (v < (u64)p.values) {
    from = p.begins[v];
    to = p.begins[v + 1];
    if (to - from > PART) to = from;
  }
  Acc acc[TURNS][VEC] = {};
  add_up(p.places, p.rows + row, p.weights + weight, chunk, from + (g % SHARE) * U, to, SHARE * U, acc);
  join_groups(acc, SHARE);
  if (from == to || g % SHARE != 0) return;
  to_out += home(p, (unsigned)v);
  #pragma unroll
  for (int t = 0; t < TURNS; t++) {
    const unsigned c = chunk + t * LANES;
    if (EVEN || c < CHUNKS) {
      #pragma unroll
      for (int i = 0; i < VEC; i += VOUT) {
        Sums* at = (Sums*)(p.out + to_out + (i64)(c * VEC + i) * p.column);
        Sums sums = *at;
        #pragma unroll
        for (int j = 0; j < VOUT; j++) sums.v[j] += acc[t][i + j];
        *at = sums;
      }
    }
  }
}
#endif

#ifdef PARTS
// partials[s][part][side][d]: side 0 for the key of the part's first entry, 1 for that of its last one where it is
// another. A run of more than PART entries has the first or the last entry of each part that it lies in.
extern "C" __global__ void __launch_bounds__(BLOCK) segment_parts(const __grid_constant__ Params p) {
  constexpr unsigned WARPS = BLOCK / 32, COLUMNS = TURNS * LANES * VEC;
  __shared__ Acc sums[WARPS][COLUMNS];
  const unsigned lane = threadIdx.x % 32, l = lane % LANES, g = lane / LANES, warp = threadIdx.x / 32;
  const unsigned slice = blockIdx.x % SLICES, turn = blockIdx.x / SLICES;
  const unsigned s = turn % (unsigned)p.shared, part = turn / (unsigned)p.shared;
  const unsigned start = part * PART, end = min(start + PART, (unsigned)p.entries);
  const unsigned first = p.keys[start];
  i64 row = 0, weight = 0, to_out = 0;
  share(p, s, row, weight, to_out);
  for (unsigned side = 0; side < 2; side++) {
    const unsigned v = side ? p.keys[end - 1] : first;
    if (v >= (unsigned)p.values || (side && v == first)) return;
    const unsigned from = p.begins[v], to = p.begins[v + 1];
    if (to - from <= PART) continue;
    Acc acc[TURNS][VEC] = {};
    add_up(p.places, p.rows + row, p.weights + weight, slice * (TURNS * LANES) + l, max(from, start) + (warp * GROUPS + g) * U,
           min(to, end), WARPS * GROUPS * U, acc);
    join_groups(acc, GROUPS);
    __syncthreads();
    if (g == 0) {
      #pragma unroll
      for (int t = 0; t < TURNS; t++)
        #pragma unroll
        for (int i = 0; i < VEC; i++) sums[warp][(t * LANES + l) * VEC + i] = acc[t][i];
    }
    __syncthreads();
    Acc* partial = p.partials + (((u64)s * (unsigned)p.parts + part) * 2 + side) * D;
    for (unsigned c = threadIdx.x; c < COLUMNS; c += BLOCK)
      if (slice * COLUMNS + c < D) {
        Acc sum = 0;
        #pragma unroll
        for (unsigned w = 0; w < WARPS; w++) sum += sums[w][c];
        partial[slice * COLUMNS + c] = sum;
      }
  }
}
#endif

#ifdef JOINS
// The block of the part in which a long run begins adds up the run's partial sums, WIDTH columns of them.
extern "C" __global__ void __launch_bounds__(BLOCK) segment_joins(const __grid_constant__ Params p) {
  constexpr unsigned STRIPS = (D + WIDTH - 1) / WIDTH, LISTS = BLOCK / WIDTH;
  __shared__ Acc sums[BLOCK];
  const unsigned strip = blockIdx.x % STRIPS, turn = blockIdx.x / STRIPS;
  const unsigned s = turn % (unsigned)p.shared, part = turn / (unsigned)p.shared;
  const unsigned start = part * PART, end = min(start + PART, (unsigned)p.entries);
  const unsigned v = p.keys[end - 1];
  if (v >= (unsigned)p.values) return;
  const unsigned from = p.begins[v], to = p.begins[v + 1];
  if (to - from <= PART || from < start) return;
  const unsigned column = strip * WIDTH + threadIdx.x % WIDTH, list = threadIdx.x / WIDTH, last = (to - 1) / PART;
  const Acc* partials = p.partials + (u64)s * (unsigned)p.parts * 2 * D + column;
  Acc sum = 0;
  if (column < D) {
    #pragma unroll 8
    for (unsigned at = part + list; at <= last; at += LISTS)
      sum += partials[((u64)at * 2 + (at == part && from > start)) * D];
  }
  sums[threadIdx.x] = sum;
  for (unsigned half = LISTS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (list < half) sums[threadIdx.x] += sums[threadIdx.x + half * WIDTH];
  }
  if (list == 0 && column < D) {
    i64 row = 0, weight = 0, to_out = 0;
    share(p, s, row, weight, to_out);
    p.out[to_out + home(p, v) + (i64)column * p.column] += sums[threadIdx.x];
  }
}
#endif
