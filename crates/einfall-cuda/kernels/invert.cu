// The inverse of a table: entries in the order of the keys they hold, equal keys in the order of the entries, and where
// the run of each key begins. A least-significant-digit radix sort, RADIX bits a pass, three kernels a pass; then the
// begins. Keys are 0..values, the last for what is left out.
// Defines: RADIX, BLOCK, ITEMS, and one of COUNT, SCAN, SCATTER (with FIRST), BEGINS
typedef unsigned long long u64;
constexpr unsigned BINS = 1u << RADIX, TILE = BLOCK * ITEMS, WARPS = BLOCK / 32;

struct Params {
  const unsigned* keys;
  const unsigned* positions;       // the entries of the keys; the first pass counts them itself
  unsigned* to_keys;
  unsigned* to_positions;
  unsigned* counts;                // [bin][tile]
  unsigned* totals;                // [bin]
  unsigned* begins;                // [values + 1]
  unsigned entries, values;
  unsigned shift, tiles;
};

#ifdef COUNT
extern "C" __global__ void __launch_bounds__(BLOCK) invert_count(const __grid_constant__ Params p) {
  __shared__ unsigned bins[BINS];
  for (unsigned b = threadIdx.x; b < BINS; b += BLOCK) bins[b] = 0;
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    const u64 at = (u64)blockIdx.x * TILE + i * BLOCK + threadIdx.x;
    if (at < p.entries) atomicAdd(&bins[(p.keys[at] >> p.shift) % BINS], 1u);
  }
  __syncthreads();
  for (unsigned b = threadIdx.x; b < BINS; b += BLOCK) p.counts[(u64)b * p.tiles + blockIdx.x] = bins[b];
}
#endif

#if defined(SCAN) || defined(SCATTER)
__device__ __forceinline__ unsigned scan_warp(unsigned v) {          // inclusive
  #pragma unroll
  for (int o = 1; o < 32; o *= 2) {
    const unsigned x = __shfl_up_sync(~0u, v, o);
    if (threadIdx.x % 32 >= o) v += x;
  }
  return v;
}
// Exclusive over a block; every thread gets the total.
__device__ __forceinline__ unsigned scan_block(unsigned v, unsigned& total) {
  __shared__ unsigned sums[33];
  const unsigned inclusive = scan_warp(v);
  __syncthreads();
  if (threadIdx.x % 32 == 31) sums[threadIdx.x / 32] = inclusive;
  __syncthreads();
  if (threadIdx.x < 32) {
    const unsigned s = threadIdx.x < WARPS ? sums[threadIdx.x] : 0, i = scan_warp(s);
    sums[threadIdx.x] = i - s;
    if (threadIdx.x == 31) sums[32] = i;
  }
  __syncthreads();
  total = sums[32];
  return sums[threadIdx.x / 32] + inclusive - v;
}
#endif

#ifdef SCAN
// One block a bin: its line of counts becomes exclusive sums, its total goes to totals[bin].
extern "C" __global__ void __launch_bounds__(BLOCK) invert_scan(const __grid_constant__ Params p) {
  unsigned* line = p.counts + (u64)blockIdx.x * p.tiles;
  unsigned before = 0;
  for (unsigned i = 0; i < p.tiles; i += BLOCK) {
    const bool on = i + threadIdx.x < p.tiles;
    unsigned total;
    const unsigned s = scan_block(on ? line[i + threadIdx.x] : 0, total);
    if (on) line[i + threadIdx.x] = before + s;
    before += total;
  }
  if (threadIdx.x == 0) p.totals[blockIdx.x] = before;
}
#endif

#ifdef SCATTER
// Ranks in the block are counted warp by warp; then the tile is put in order in shared memory, so that it leaves in runs.
extern "C" __global__ void __launch_bounds__(BLOCK) invert_scatter(const __grid_constant__ Params p) {
  constexpr unsigned COUNTERS = WARPS * BINS * 2, SORTED = TILE * 8;
  __shared__ __align__(16) unsigned char memory[COUNTERS > SORTED ? COUNTERS : SORTED];
  __shared__ unsigned base[BINS], start[BINS];
  unsigned short (*seen)[BINS] = (unsigned short (*)[BINS])memory;
  unsigned* sorted_keys = (unsigned*)memory;
  unsigned* sorted_positions = sorted_keys + TILE;
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (unsigned b = threadIdx.x; b < WARPS * BINS / 2; b += BLOCK) ((unsigned*)memory)[b] = 0;
  // Where each bin begins: the totals of the bins before it, and this bin's tiles before this one.
  unsigned before = 0;
  for (unsigned b0 = 0; b0 < BINS; b0 += BLOCK) {
    const unsigned b = b0 + threadIdx.x;
    unsigned total;
    const unsigned s = scan_block(b < BINS ? p.totals[b] : 0, total);
    if (b < BINS) base[b] = before + s + p.counts[(u64)b * p.tiles + blockIdx.x];
    before += total;
  }
  __syncthreads();
  unsigned key[ITEMS], rank[ITEMS];
  const u64 from = (u64)blockIdx.x * TILE + warp * (32 * ITEMS) + lane;
  #pragma unroll
  for (int i = 0; i < ITEMS; i++) key[i] = from + i * 32 < p.entries ? p.keys[from + i * 32] : ~0u;
  #pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    const bool on = from + i * 32 < p.entries;
    const unsigned bin = (key[i] >> p.shift) % BINS;
    unsigned peers = __ballot_sync(~0u, on);
    #pragma unroll
    for (int b = 0; b < RADIX; b++) {
      const bool bit = bin >> b & 1;
      const unsigned v = __ballot_sync(~0u, bit);
      peers &= bit ? v : ~v;
    }
    const unsigned below = __popc(peers & ((1u << lane) - 1));
    unsigned old = 0;
    if (on) old = seen[warp][bin];
    __syncwarp();
    if (on && below == 0) seen[warp][bin] = (unsigned short)(old + __popc(peers));
    __syncwarp();
    rank[i] = old + below;
  }
  __syncthreads();
  before = 0;
  for (unsigned b0 = 0; b0 < BINS; b0 += BLOCK) {
    const unsigned b = b0 + threadIdx.x;
    unsigned s = 0, total;
    if (b < BINS) {
      #pragma unroll
      for (unsigned w = 0; w < WARPS; w++) {
        const unsigned x = seen[w][b];
        seen[w][b] = (unsigned short)s;
        s += x;
      }
    }
    const unsigned at = before + scan_block(s, total);
    before += total;
    if (b < BINS) { start[b] = at; base[b] -= at; }
  }
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    const unsigned bin = (key[i] >> p.shift) % BINS;
    rank[i] += seen[warp][bin] + start[bin];
  }
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < ITEMS; i++)
    if (from + i * 32 < p.entries) {
      sorted_keys[rank[i]] = key[i];
      sorted_positions[rank[i]] = FIRST ? (unsigned)(from + i * 32) : p.positions[from + i * 32];
    }
  __syncthreads();
  const u64 left = p.entries - (u64)blockIdx.x * TILE;
  const unsigned here = left < TILE ? (unsigned)left : TILE;
  #pragma unroll
  for (unsigned i = 0; i < ITEMS; i++) {
    const unsigned j = i * BLOCK + threadIdx.x;
    if (j < here) {
      const unsigned k = sorted_keys[j], to = j + base[(k >> p.shift) % BINS];
      p.to_keys[to] = k;
      p.to_positions[to] = sorted_positions[j];
    }
  }
}
#endif

#ifdef BEGINS
// begins[v]: the first place in the sorted keys that holds at least v, for v in 0..=values.
extern "C" __global__ void __launch_bounds__(BLOCK) invert_begins(const __grid_constant__ Params p) {
  const u64 v = (u64)blockIdx.x * BLOCK + threadIdx.x;
  if (v > p.values) return;
  unsigned low = 0, high = p.entries;
  while (low < high) {
    const unsigned middle = low + (high - low) / 2;
    if (p.keys[middle] < v) low = middle + 1;
    else high = middle;
  }
  p.begins[v] = low;
}
#endif
