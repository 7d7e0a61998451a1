// attention_mma: as attention_rows, a warp a list, 16 keys at a time. Stands behind attention_mma.cuh.
// Defines: those of attention.cuh, BLOCK, MINBLOCKS.
struct State { float high, sum, acc[LINES_E * 8][4]; };

template <bool ALL> __device__ __forceinline__ void step_of(const Params& p, const Place& at, const Chunk<16> (&q)[COLUMNS_D], int row, float bias, unsigned g, unsigned j, State& x) {
  Rows r;
  rows_of(p, at, row, g, j, r);
  Chunk<16> k[2][COLUMNS_D], v[4][LINES_E];
  load_columns<D, ALL>(r.ka, r.on, j, k);
  load_lines<E, ALL>(r.vb, r.in, g, v);
  float w[4];
  products(q, k, w);
  #pragma unroll
  for (int i = 0; i < 4; i++) {
    w[i] *= (float)p.scale * LOG2E;
#if BIAS
    w[i] += __shfl_sync(~0u, bias, line_of(j, i));
#endif
    if (!ALL && !r.in[i]) w[i] = LOW;
  }
  float top = fmaxf(fmaxf(w[0], w[1]), fmaxf(w[2], w[3]));
  top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
  top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
  const float now = fmaxf(top, x.high), base = now == LOW ? 0.f : now;
  if (now > x.high) {
    const float factor = EXP2(x.high - base);
    x.sum *= factor;
    #pragma unroll
    for (int t = 0; t < LINES_E * 8; t++) { x.acc[t][0] *= factor; x.acc[t][1] *= factor; }
  }
  x.high = now;
  #pragma unroll
  for (int i = 0; i < 4; i++) { w[i] = EXP2(w[i] - base); x.sum += w[i]; }
  add_lines(w, v, x.acc);
}

extern "C" __global__ void __launch_bounds__(BLOCK, MINBLOCKS) attention_mma(const __grid_constant__ Params p) {
  const unsigned lane = threadIdx.x % 32, g = lane / 4, j = lane % 4;
  const unsigned lists = (unsigned)p.lists;
  for (u64 o = (u64)blockIdx.x * (BLOCK / 32) + threadIdx.x / 32; o < lists; o += (u64)gridDim.x * (BLOCK / 32)) {
    Place at = no_place();
    add_place<0, OUTER>(p, (unsigned)o, at);
    const unsigned to = length_of(p, at), mine = lane % 16;
    Index next = look(p, at, mine, mine < to);
    Chunk<16> q[COLUMNS_D];
    load_vector<D>(p.query + at.q, true, j, q);
    State x = {};
    x.high = LOW;
    for (unsigned step = 0; step < to; step += 16) {
      const unsigned kk = step + mine;
      const int row = row_of(p, at, next, kk, kk < to);
      const float bias = bias_of(p, at, kk, row >= 0) * LOG2E;
      next = look(p, at, kk + 16, kk + 16 < to);
      if (__all_sync(~0u, row >= 0)) step_of<true>(p, at, q, row, bias, g, j, x);
      else step_of<false>(p, at, q, row, bias, g, j, x);
    }
    x.sum += __shfl_xor_sync(~0u, x.sum, 1);
    x.sum += __shfl_xor_sync(~0u, x.sum, 2);
#if LSE
    if (lane == 0) p.lse[at.l] = x.sum == 0 ? LOW : (x.high + LOG2(x.sum)) * LN2;
#endif
    write_sums<E, LINES_E>(p.out + at.o, g, j, x.sum == 0 ? 0.f : 1.f / x.sum, x.acc);
  }
}
