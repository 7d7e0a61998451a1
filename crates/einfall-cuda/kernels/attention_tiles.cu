// attention_tiles: all scores of a group's queries by tiles of products; of them count those that a list names, as often as it
// does. How often each key is named is counted first, in shared memory: all that tables, windows and limits say is in the counts.
// A block has QT queries of a group; tiles of 64 keys and values come by way of registers, the next ones while these are
// multiplied. A thread has QT / 16 queries by 4 keys of the scores, and by E / 16 columns of the sums.
// Stands behind attention.cuh. Defines: those of attention.cuh, QT, SPLIT (how many of the outer loops move the rows: these come
// first), COUNT_BYTES (bytes of a count: a list is at most so long), MINBLOCKS. p.per_block: blocks a group; p.at_values: bytes of the
// counts of a list.
constexpr int KT = 64, THREADS = 256, R = QT / 16;
constexpr int BYTES_D = VECD * sizeof(T), BYTES_E = VECE * sizeof(T), CHUNKS_D = D / VECD, CHUNKS_E = E / VECE;
constexpr int DP = (D + 3) / 4 * 4, PITCH_D = DP + 4, PITCH_E = (E + 31) / 32 * 32, PITCH_P = KT + 4, PAIRS_E = PITCH_E / 32;
constexpr int HOLD_D = (KT * CHUNKS_D + THREADS - 1) / THREADS, HOLD_E = (KT * CHUNKS_E + THREADS - 1) / THREADS;
extern __shared__ __align__(16) unsigned char memory[];

#if COUNT_BYTES == 1
typedef unsigned char Count;
#else
typedef unsigned short Count;
#endif

// A tile of rows in registers, zeros behind the last one.
template <int BYTES, int CHUNKS, int VECTOR, int HOLD>
__device__ __forceinline__ void fetch(const T* rows, i64 stride, unsigned first, unsigned n, Chunk<BYTES> (&c)[HOLD]) {
  #pragma unroll
  for (int h = 0; h < HOLD; h++) {
    const unsigned i = h * THREADS + threadIdx.x, row = first + i / CHUNKS;
    c[h] = load<BYTES, 0>(rows + (i64)row * stride + i % CHUNKS * VECTOR, i < KT * CHUNKS && row < n);
  }
}
// The same into shared memory; whether something in it is no finite number.
template <int BYTES, int CHUNKS, int VECTOR, int HOLD>
__device__ __forceinline__ bool put(float* to, int pitch, const Chunk<BYTES> (&c)[HOLD]) {
  bool odd = false;
  #pragma unroll
  for (int h = 0; h < HOLD; h++) {
    const unsigned i = h * THREADS + threadIdx.x;
    float x[VECTOR];
    unpack(c[h], x);
    if (i < KT * CHUNKS) {
      #pragma unroll
      for (int e = 0; e < VECTOR; e++) {
        to[i / CHUNKS * pitch + i % CHUNKS * VECTOR + e] = x[e];
        odd |= !(fabsf(x[e]) <= 3.4028235e38f);
      }
    }
  }
  return odd;
}

// Adds a tile's values, each times its weight. A weight of -1 stands for a key that no list names: it is left out where a value
// is no finite number, and is no weight at all elsewhere.
template <bool ODD> __device__ __forceinline__ void add_values(const float* weights, const float* values, float (&acc)[R][PAIRS_E][2]) {
  #pragma unroll 4
  for (int k = 0; k < KT; k += 4) {
    float4 w[R];
    #pragma unroll
    for (int i = 0; i < R; i++) w[i] = *(const float4*)(weights + i * PITCH_P + k);
    #pragma unroll
    for (int u = 0; u < 4; u++)
      #pragma unroll
      for (int j = 0; j < PAIRS_E; j++) {
        const float2 v = *(const float2*)(values + (k + u) * PITCH_E + j * 32);
        #pragma unroll
        for (int i = 0; i < R; i++) {
          const float x = u == 0 ? w[i].x : u == 1 ? w[i].y : u == 2 ? w[i].z : w[i].w;
          if (!ODD || !(x == -1.f)) {
            acc[i][j][0] = fused(x, v.x, acc[i][j][0]);
            acc[i][j][1] = fused(x, v.y, acc[i][j][1]);
          }
        }
      }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, MINBLOCKS) attention_tiles(const __grid_constant__ Params p) {
  float* queries = (float*)memory;
  float* keys = queries + QT * PITCH_D;
  float* values = keys + KT * PITCH_D;
  float* weights = values + KT * PITCH_E;
  unsigned char* counts = (unsigned char*)(weights + QT * PITCH_P);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const unsigned per_block = (unsigned)p.per_block, group = blockIdx.x / per_block, n = (unsigned)p.n, pitch = (unsigned)p.at_values;
  const unsigned of_group = (unsigned)(p.lists / p.groups), first = blockIdx.x % per_block * QT;
  const unsigned live = min((unsigned)QT, of_group - first);
  Place at_group = no_place();
  add_place<0, SPLIT>(p, group, at_group);
  const T* key = p.key + at_group.k;
  const T* value = p.value + at_group.v;
  Chunk<BYTES_D> next_k[HOLD_D];
  Chunk<BYTES_E> next_v[HOLD_E];
  fetch<BYTES_D, CHUNKS_D, VECD>(key, p.row_k, 0, n, next_k);
  fetch<BYTES_E, CHUNKS_E, VECE>(value, p.row_v, 0, n, next_v);

  // What lies behind the rows' ends is zero, and stays so.
  for (unsigned i = threadIdx.x; i < QT * pitch / 4; i += THREADS) ((unsigned*)counts)[i] = 0;
  for (unsigned i = threadIdx.x; i < (QT + KT) * PITCH_D + KT * PITCH_E; i += THREADS) queries[i] = 0;
  __syncthreads();
  for (unsigned i = warp; i < live; i += THREADS / 32) {
    Place at = at_group;
    add_place<SPLIT, OUTER>(p, first + i, at);
    const unsigned many = (unsigned)p.keys;
    for (unsigned step = lane; step < many; step += 128) {
      Index found[4];
      #pragma unroll
      for (int u = 0; u < 4; u++) found[u] = look(p, at, step + u * 32, step + u * 32 < many);
      #pragma unroll
      for (int u = 0; u < 4; u++) {
        const unsigned kk = step + u * 32;
        const int row = row_of(p, at, found[u], kk, kk < many);
        if (row >= 0) {
          const unsigned byte = i * pitch + row * COUNT_BYTES;
          atomicAdd((unsigned*)(counts + (byte & ~3u)), 1u << (byte & 3u) * 8);
        }
      }
    }
    for (unsigned c = lane; c < D; c += 32) queries[i * PITCH_D + c] = widen(p.query[at.q + c]) * (float)p.scale * LOG2E;
  }
  __syncthreads();

  float acc[R][PAIRS_E][2] = {}, high[R], sum[R] = {};
  #pragma unroll
  for (int i = 0; i < R; i++) high[i] = LOW;
  const float* my_queries = queries + ty * R * PITCH_D;
  float* my_weights = weights + ty * R * PITCH_P;
  for (unsigned tile = 0; tile < n; tile += KT) {
    unsigned named[R][4];
    bool any = false;
    #pragma unroll
    for (int i = 0; i < R; i++)
      #pragma unroll
      for (int j = 0; j < 4; j++) {
        named[i][j] = *(const Count*)(counts + (ty * R + i) * pitch + (tile + tx + j * 16) * COUNT_BYTES);
        any |= named[i][j] != 0;
      }
    const bool is_named = __syncthreads_or(any);           // and all are done with the tile before
    bool odd = false;
    if (is_named) {
      put<BYTES_D, CHUNKS_D, VECD>(keys, PITCH_D, next_k);
      odd = put<BYTES_E, CHUNKS_E, VECE>(values, PITCH_E, next_v);
    }
    fetch<BYTES_D, CHUNKS_D, VECD>(key, p.row_k, tile + KT, n, next_k);
    fetch<BYTES_E, CHUNKS_E, VECE>(value, p.row_v, tile + KT, n, next_v);
    if (!is_named) continue;
    odd = __syncthreads_or(odd);
    float s[R][4] = {};
    #pragma unroll 8
    for (int d = 0; d < DP; d += 4) {
      float4 a[R], b[4];
      #pragma unroll
      for (int i = 0; i < R; i++) a[i] = *(const float4*)(my_queries + i * PITCH_D + d);
      #pragma unroll
      for (int j = 0; j < 4; j++) b[j] = *(const float4*)(keys + (tx + j * 16) * PITCH_D + d);
      #pragma unroll
      for (int i = 0; i < R; i++)
        #pragma unroll
        for (int j = 0; j < 4; j++)
          s[i][j] = fused(a[i].w, b[j].w, fused(a[i].z, b[j].z, fused(a[i].y, b[j].y, fused(a[i].x, b[j].x, s[i][j]))));
    }
    #pragma unroll
    for (int i = 0; i < R; i++) {
      float top = LOW;
      #pragma unroll
      for (int j = 0; j < 4; j++) top = named[i][j] && s[i][j] > top ? s[i][j] : top;
      #pragma unroll
      for (int o = 8; o > 0; o /= 2) { const float x = __shfl_xor_sync(~0u, top, o); top = top > x ? top : x; }
      const float now = top > high[i] ? top : high[i], base = now == LOW ? 0.f : now, factor = EXP2(high[i] - base);
      high[i] = now;
      sum[i] *= factor;
      #pragma unroll
      for (int j = 0; j < 4; j++) {
        const float w = named[i][j] ? (float)named[i][j] * EXP2(s[i][j] - base) : 0.f;
        sum[i] += w;
        my_weights[i * PITCH_P + tx + j * 16] = odd && !named[i][j] ? -1.f : w;
      }
      #pragma unroll
      for (int j = 0; j < PAIRS_E; j++) { acc[i][j][0] *= factor; acc[i][j][1] *= factor; }
    }
    __syncwarp();                                          // 16 threads of a warp have a query's weights
    if (odd) add_values<true>(my_weights, values + tx * 2, acc);
    else add_values<false>(my_weights, values + tx * 2, acc);
  }
  #pragma unroll
  for (int i = 0; i < R; i++) {
    #pragma unroll
    for (int o = 8; o > 0; o /= 2) sum[i] += __shfl_xor_sync(~0u, sum[i], o);
    const unsigned number = ty * R + i;
    if (number >= live) continue;
    Place at = at_group;
    add_place<SPLIT, OUTER>(p, first + number, at);
    const float inverse = sum[i] == 0 ? 0.f : 1.f / sum[i];
#if LSE
    if (tx == 0) p.lse[at.l] = sum[i] == 0 ? LOW : (high[i] + LOG2(sum[i])) * LN2;
#endif
    #pragma unroll
    for (int j = 0; j < PAIRS_E; j++)
      #pragma unroll
      for (int e = 0; e < 2; e++) {
        const unsigned column = j * 32 + tx * 2 + e;
        if (column < E) p.out[at.o + column] = narrow(acc[i][j][e] * inverse);
      }
  }
}
