// Sorts rows by the value that a table holds for each: which rows have which value, and how many tiles they fill.
//
// One block. The order of rows with one value is left open: each row's result is its own. The generated text defines
// VALUE(row): the table's entry. Rows whose value is outside come last, as those of value `values`.
// Writes order[rows], begins[values + 2], tiles[values + 2]: where a value's rows begin, and its tiles.
constexpr unsigned THREADS = 1024;
extern __shared__ unsigned counts[];       // values + 1

__device__ __forceinline__ unsigned value_of(const Params& p, u64 row) {
  const i64 value = VALUE(row);
  if ((u64)value < (u64)p.values) return (unsigned)value;
  BAD
  return (unsigned)p.values;
}

extern "C" __global__ void __launch_bounds__(THREADS) group(const __grid_constant__ Params p) {
  __shared__ unsigned rows_before[THREADS], tiles_before[THREADS];
  const unsigned groups = (unsigned)p.values + 1, each = (groups + THREADS - 1) / THREADS;
  for (unsigned g = threadIdx.x; g < groups; g += THREADS) counts[g] = 0;
  __syncthreads();
  #pragma unroll 4
  for (u64 row = threadIdx.x; row < (u64)p.rows; row += THREADS) atomicAdd(&counts[value_of(p, row)], 1u);
  __syncthreads();
  unsigned rows = 0, tiles = 0;
  for (unsigned g = threadIdx.x * each; g < min(groups, (threadIdx.x + 1) * each); g++) {
    rows += counts[g];
    tiles += (counts[g] + TILE - 1) / TILE;
  }
  rows_before[threadIdx.x] = rows;
  tiles_before[threadIdx.x] = tiles;
  for (unsigned step = 1; step < THREADS; step *= 2) {
    __syncthreads();
    const bool more = threadIdx.x >= step;
    const unsigned r = more ? rows_before[threadIdx.x - step] : 0, t = more ? tiles_before[threadIdx.x - step] : 0;
    __syncthreads();
    rows_before[threadIdx.x] += r;
    tiles_before[threadIdx.x] += t;
  }
  rows = rows_before[threadIdx.x] - rows;
  tiles = tiles_before[threadIdx.x] - tiles;
  for (unsigned g = threadIdx.x * each; g < min(groups, (threadIdx.x + 1) * each); g++) {
    const unsigned count = counts[g];
    p.begins[g] = counts[g] = rows;
    p.tiles[g] = tiles;
    rows += count;
    tiles += (count + TILE - 1) / TILE;
  }
  __syncthreads();
  if (threadIdx.x == THREADS - 1) {
    p.begins[groups] = rows_before[THREADS - 1];
    p.tiles[groups] = tiles_before[THREADS - 1];
  }
  #pragma unroll 4
  for (u64 row = threadIdx.x; row < (u64)p.rows; row += THREADS) p.order[atomicAdd(&counts[value_of(p, row)], 1u)] = (unsigned)row;
}
