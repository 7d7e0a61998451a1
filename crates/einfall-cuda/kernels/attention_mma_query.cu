// attention_mma_query: as attention_grad_query, a warp a list, 16 keys at a time. Stands behind attention_mma.cuh.
// Defines: those of attention.cuh, BLOCK, MINBLOCKS, SUMS, GRAD_QUERY, GRAD_BIAS.
template <bool ALL> __device__ __forceinline__ void step_of(const Params& p, const Place& at, const Chunk<16> (&q)[COLUMNS_D], const Chunk<16> (&go)[COLUMNS_E], int row, float bias,
                                                            float lse, float delta, unsigned step, unsigned to, unsigned g, unsigned j, float (&acc)[LINES_D * 8][4]) {
  Rows r;
  rows_of(p, at, row, g, j, r);
  Chunk<16> k[2][COLUMNS_D], v[2][COLUMNS_E];
  load_columns<D, ALL>(r.ka, r.on, j, k);
  load_columns<E, ALL>(r.va, r.on, j, v);
  Chunk<16> x[4][LINES_D];
  if (GRAD_QUERY) load_lines<D, ALL>(r.kb, r.in, g, x);
  float s[4], d[4];
  products(q, k, s);
  products(go, v, d);
  #pragma unroll
  for (int i = 0; i < 4; i++) {
    s[i] = s[i] * ((float)p.scale * LOG2E) - lse;
#if BIAS
    s[i] += __shfl_sync(~0u, bias, line_of(j, i));
#endif
    s[i] = r.in[i] && lse != LOW ? EXP2(s[i]) * (d[i] - delta) : 0.f;
#if GRAD_BIAS
    const unsigned kk = step + line_of(j, i);
    if (g == 0 && kk < to) p.grad_bias[at.b + bias_place(p, kk)] = narrow_bias(s[i]);
#endif
  }
  if (GRAD_QUERY) add_lines(s, x, acc);
}

extern "C" __global__ void __launch_bounds__(BLOCK, MINBLOCKS) attention_mma_query(const __grid_constant__ Params p) {
  const unsigned lane = threadIdx.x % 32, g = lane / 4, j = lane % 4;
  const unsigned lists = (unsigned)p.lists;
  for (u64 o = (u64)blockIdx.x * (BLOCK / 32) + threadIdx.x / 32; o < lists; o += (u64)gridDim.x * (BLOCK / 32)) {
    Place at = no_place();
    add_place<0, OUTER>(p, (unsigned)o, at);
    const unsigned to = SUMS ? length_of(p, at) : 0, mine = lane % 16;
    Index next = look(p, at, mine, mine < to);
    Chunk<16> q[COLUMNS_D], go[COLUMNS_E];
    load_vector<D>(p.query + at.q, true, j, q);
    load_vector<E>(p.grad_out + at.g, true, j, go);
    float delta = 0;
    #pragma unroll
    for (int c = 0; c < COLUMNS_E; c++) {
      Acc a[8], b[8];
      unpack(go[c], a);
      unpack(load<16, 0>(p.out + at.o + (c * 4 + j) * 8, E % 32 == 0 || (c * 4 + j) * 8 < E), b);
      #pragma unroll
      for (int i = 0; i < 8; i++) delta = fused(a[i], b[i], delta);
    }
    delta += __shfl_xor_sync(~0u, delta, 1);
    delta += __shfl_xor_sync(~0u, delta, 2);
    const float lse = p.lse[at.l] * LOG2E;
    if (lane == 0) { p.stats[2 * at.s] = lse; p.stats[2 * at.s + 1] = delta; }
    float acc[LINES_D * 8][4] = {};
    for (unsigned step = 0; step < to; step += 16) {
      const unsigned kk = step + mine;
      const int row = row_of(p, at, next, kk, kk < to);
      const float bias = bias_of(p, at, kk, row >= 0) * LOG2E;
      next = look(p, at, kk + 16, kk + 16 < to);
      if (__all_sync(~0u, row >= 0)) step_of<true>(p, at, q, go, row, bias, lse, delta, step, to, g, j, acc);
      else step_of<false>(p, at, q, go, row, bias, lse, delta, step, to, g, j, acc);
    }
    if (SUMS && GRAD_QUERY) write_sums<D, LINES_D>(p.grad_query + at.u, g, j, (float)p.scale, acc);
  }
}
