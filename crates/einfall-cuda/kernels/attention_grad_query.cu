// attention_grad_query: delta[o] = sum_e grad_out[o, e] * out[o, e], stats[o] = (lse[o] in powers of two, delta[o]), and
// grad_query[o] = scale * sum_k ds[o, k] * key[row(o, k)] with ds = p * (grad_out . value row - delta), p = exp(score - lse).
// Defines: those of attention_lanes.cuh, BLOCK, MINBLOCKS, SUMS (0: the stats alone), GRAD_QUERY, GRAD_BIAS (ds goes where the bias'
// strides say).
extern "C" __global__ void __launch_bounds__(BLOCK, MINBLOCKS) attention_grad_query(const __grid_constant__ Params p) {
  const unsigned lane = threadIdx.x % 32, l = lane % LANES, g = lane / LANES, share = g % SHARE;
  const unsigned lists = (unsigned)p.lists;
  const u64 units = ((u64)lists + LISTS - 1) / LISTS;
  for (u64 unit = (u64)blockIdx.x * (BLOCK / 32) + threadIdx.x / 32; unit < units; unit += (u64)gridDim.x * (BLOCK / 32)) {
    const u64 o = unit * LISTS + g / SHARE;
    const bool live = o < lists;
    Place at = no_place();
    if (live) add_place<0, OUTER>(p, (unsigned)o, at);
    const unsigned to = live && SUMS ? length_of(p, at) : 0;
#if RAGGED
    const unsigned last = LISTS > 1 ? __reduce_max_sync(~0u, to) : to;
#else
    const unsigned last = SUMS ? (unsigned)p.keys : 0;
#endif
    Index next[HOLD];
    #pragma unroll
    for (int h = 0; h < HOLD; h++) { const unsigned kk = share * U + slot(l, h); next[h] = look(p, at, kk, kk < to); }
    Acc q[TURNS_D][VECD], go[TURNS_E][VECE];
    load_query(p.query + at.q, live, l, (Acc)p.scale * LOG2E, q);
    Acc delta = 0;
    #pragma unroll
    for (int t = 0; t < TURNS_E; t++) {
      const bool on = live && (EVEN_E || t * LANES + l < CHUNKS_E);
      Acc x[VECE];
      unpack(load<BYTES_E, 0>(p.grad_out + at.g + (t * LANES + l) * VECE, on), go[t]);
      unpack(load<BYTES_E, 0>(p.out + at.o + (t * LANES + l) * VECE, on), x);
      #pragma unroll
      for (int i = 0; i < VECE; i++) delta = fused(go[t][i], x[i], delta);
    }
    delta = add_over_lanes<1, LANES>(delta);
    const Acc lse = live ? p.lse[at.l] * LOG2E : LOW;
    if (live && lane % (LANES * SHARE) == 0) {
      p.stats[2 * at.s] = lse;
      p.stats[2 * at.s + 1] = delta;
    }
    Acc acc[TURNS_D][VECD] = {};
    for (unsigned step = 0; step < last; step += SHARE * U) {
      int row[HOLD];
      #pragma unroll
      for (int h = 0; h < HOLD; h++) { const unsigned kk = step + share * U + slot(l, h); row[h] = row_of(p, at, next[h], kk, kk < to); }
      RowD c;
      load_rows<TURNS_D, BYTES_D, EVEN_D, CHUNKS_D, VECD>(p.key + at.k, row, p.row_k, l, c);
      RowE v;
      load_rows<TURNS_E, BYTES_E, EVEN_E, CHUNKS_E, VECE>(p.value + at.v, row, p.row_v, l, v);
      #pragma unroll
      for (int h = 0; h < HOLD; h++) { const unsigned kk = step + SHARE * U + share * U + slot(l, h); next[h] = look(p, at, kk, kk < to); }
      Acc s[HOLD], d[HOLD], w[HOLD];
      dots<TURNS_D, VECD, BYTES_D>(q, c, lane, s);
      dots<TURNS_E, VECE, BYTES_E>(go, v, lane, d);
      #pragma unroll
      for (int h = 0; h < HOLD; h++) {
        const unsigned kk = step + share * U + slot(l, h);
        const bool on = row[h] >= 0 && lse != LOW;
        w[h] = on ? EXP2(s[h] + bias_of(p, at, kk, on) * LOG2E - lse) * (d[h] - delta) : (Acc)0;
#if GRAD_BIAS
        if (kk < to && (SAME == 1 || l % SAME == 0)) p.grad_bias[at.b + bias_place(p, kk)] = narrow_bias(w[h]);
#endif
      }
      if (GRAD_QUERY) add_rows<TURNS_D, VECD, BYTES_D>(w, c, acc);
    }
    if (SUMS && GRAD_QUERY) write_row<TURNS_D, VECD, EVEN_D, CHUNKS_D>(p.grad_query + at.u, live, lane, (Acc)p.scale, acc);
  }
}
