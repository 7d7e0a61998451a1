// attention_rows: out[o, e] = sum_k softmax_k(scale * query[o] . key[row(o, k)] + bias[o, k]) * value[row(o, k), e].
// LANES lanes hold a row, U rows are in flight a lane, SHARE of a warp's lane groups work on one list. Each group keeps a
// softmax of its own as it goes along; groups that share a list join theirs at the end.
// Defines: those of attention.cuh, LANES, U (a power of two), SHARE, BLOCK, MINBLOCKS, HINT, EARLY (value rows are asked for
// before scores are known), PHASED.
// PHASED: a block takes many lists at a time, first all their keys, then all their values, so that L1 holds more of the rows
// that are in use. Scores lie in shared memory in between, p.keys + 1 numbers a list.
#if PHASED == 0
extern "C" __global__ void __launch_bounds__(BLOCK, MINBLOCKS) attention_rows(const __grid_constant__ Params p) {
  const unsigned lane = threadIdx.x % 32, l = lane % LANES, g = lane / LANES, share = g % SHARE;
  const unsigned lists = (unsigned)p.lists;
  const u64 units = ((u64)lists + LISTS - 1) / LISTS;
  for (u64 unit = (u64)blockIdx.x * (BLOCK / 32) + threadIdx.x / 32; unit < units; unit += (u64)gridDim.x * (BLOCK / 32)) {
    const u64 o = unit * LISTS + g / SHARE;
    const bool live = o < lists;
    Place at = no_place();
    if (live) add_place<0, OUTER>(p, (unsigned)o, at);
    const unsigned to = live ? length_of(p, at) : 0;
#if RAGGED
    unsigned last = to;
    if (LISTS > 1) last = __reduce_max_sync(~0u, last);
#else
    const unsigned last = (unsigned)p.keys;
#endif
    Index next[HOLD];
    #pragma unroll
    for (int h = 0; h < HOLD; h++) { const unsigned kk = share * U + slot(l, h); next[h] = look(p, at, kk, kk < to); }
    Acc q[TURNS_D][VECD];
    load_query(p.query + at.q, live, l, (Acc)p.scale * LOG2E, q);
    Acc acc[TURNS_E][VECE] = {};
    Acc high = LOW, sum = 0;
    for (unsigned step = 0; step < last; step += SHARE * U) {
      int row[HOLD];
      Acc s[HOLD], bias[HOLD];
      #pragma unroll
      for (int h = 0; h < HOLD; h++) {
        const unsigned kk = step + share * U + slot(l, h);
        row[h] = row_of(p, at, next[h], kk, kk < to);
        bias[h] = bias_of(p, at, kk, row[h] >= 0);
      }
      RowD c;
      load_rows<TURNS_D, BYTES_D, EVEN_D, CHUNKS_D, VECD>(p.key + at.k, row, p.row_k, l, c);
      RowE v;
      if (EARLY) load_rows<TURNS_E, BYTES_E, EVEN_E, CHUNKS_E, VECE>(p.value + at.v, row, p.row_v, l, v);
      #pragma unroll
      for (int h = 0; h < HOLD; h++) { const unsigned kk = step + SHARE * U + share * U + slot(l, h); next[h] = look(p, at, kk, kk < to); }
      dots<TURNS_D, VECD, BYTES_D>(q, c, lane, s);
      if (!EARLY) load_rows<TURNS_E, BYTES_E, EVEN_E, CHUNKS_E, VECE>(p.value + at.v, row, p.row_v, l, v);
      Acc top = LOW;
      #pragma unroll
      for (int h = 0; h < HOLD; h++) {
        s[h] = row[h] >= 0 ? s[h] + bias[h] * LOG2E : LOW;
        top = s[h] > top ? s[h] : top;
      }
      top = max_over_lanes<LANES>(top);
      const Acc now = top > high ? top : high, base = now == LOW ? (Acc)0 : now, factor = EXP2(high - base);
      high = now;
      sum *= factor;
      Acc w[HOLD];
      #pragma unroll
      for (int h = 0; h < HOLD; h++) { w[h] = EXP2(s[h] - base); sum += w[h]; }
      #pragma unroll
      for (int t = 0; t < TURNS_E; t++)
        #pragma unroll
        for (int i = 0; i < VECE; i++) acc[t][i] *= factor;
      add_rows<TURNS_E, VECE, BYTES_E>(w, v, acc);
    }
    finish(p, at, live, lane, high, sum, acc);
  }
}
#else
extern __shared__ __align__(16) unsigned char memory[];
extern "C" __global__ void __launch_bounds__(BLOCK, MINBLOCKS) attention_rows(const __grid_constant__ Params p) {
  constexpr unsigned AT_ONCE = LISTS * (BLOCK / 32);
  Acc* saved = (Acc*)memory;
  const unsigned lane = threadIdx.x % 32, l = lane % LANES, g = lane / LANES, share = g % SHARE;
  const unsigned lists = (unsigned)p.lists, to_all = (unsigned)p.keys, pitch = to_all + 1, packs = (unsigned)p.per_block;
  for (u64 start = (u64)blockIdx.x * packs * AT_ONCE; start < lists; start += (u64)gridDim.x * packs * AT_ONCE) {
    #pragma unroll 1
    for (unsigned pack = 0; pack < packs; pack++) {
      const unsigned i = pack * AT_ONCE + threadIdx.x / 32 * LISTS + g / SHARE;
      const bool live = start + i < lists;
      Place at = no_place();
      if (live) add_place<0, OUTER>(p, (unsigned)(start + i), at);
      const unsigned to = live ? to_all : 0;
      Index next[HOLD];
      #pragma unroll
      for (int h = 0; h < HOLD; h++) { const unsigned kk = share * U + slot(l, h); next[h] = look(p, at, kk, kk < to); }
      Acc q[TURNS_D][VECD];
      load_query(p.query + at.q, live, l, (Acc)p.scale * LOG2E, q);
      Acc top = LOW;
      for (unsigned step = 0; step < to_all; step += SHARE * U) {
        int row[HOLD];
        #pragma unroll
        for (int h = 0; h < HOLD; h++) { const unsigned kk = step + share * U + slot(l, h); row[h] = row_of(p, at, next[h], kk, kk < to); }
        RowD c;
        load_rows<TURNS_D, BYTES_D, EVEN_D, CHUNKS_D, VECD>(p.key + at.k, row, p.row_k, l, c);
        #pragma unroll
        for (int h = 0; h < HOLD; h++) { const unsigned kk = step + SHARE * U + share * U + slot(l, h); next[h] = look(p, at, kk, kk < to); }
        Acc s[HOLD];
        dots<TURNS_D, VECD, BYTES_D>(q, c, lane, s);
        #pragma unroll
        for (int h = 0; h < HOLD; h++) {
          const unsigned kk = step + share * U + slot(l, h);
          const bool on = row[h] >= 0;
          s[h] = on ? s[h] + bias_of(p, at, kk, on) * LOG2E : LOW;
          top = s[h] > top ? s[h] : top;
          if (kk < to && (SAME == 1 || l % SAME == 0)) saved[(u64)i * pitch + kk] = s[h];
        }
      }
      top = max_over_lanes<LANES * SHARE>(top);
      if (live && lane % (LANES * SHARE) == 0) saved[(u64)i * pitch + to_all] = top;
    }
    __syncthreads();
    #pragma unroll 1
    for (unsigned pack = 0; pack < packs; pack++) {
      const unsigned i = pack * AT_ONCE + threadIdx.x / 32 * LISTS + g / SHARE;
      const bool live = start + i < lists;
      Place at = no_place();
      if (live) add_place<0, OUTER>(p, (unsigned)(start + i), at);
      const unsigned to = live ? to_all : 0;
      Index next[HOLD];
      #pragma unroll
      for (int h = 0; h < HOLD; h++) { const unsigned kk = share * U + slot(l, h); next[h] = look(p, at, kk, kk < to); }
      const Acc high = live ? saved[(u64)i * pitch + to_all] : LOW, base = high == LOW ? (Acc)0 : high;
      Acc acc[TURNS_E][VECE] = {};
      Acc sum = 0;
      for (unsigned step = 0; step < to_all; step += SHARE * U) {
        int row[HOLD];
        Acc w[HOLD];
        #pragma unroll
        for (int h = 0; h < HOLD; h++) {
          const unsigned kk = step + share * U + slot(l, h);
          row[h] = row_of(p, at, next[h], kk, kk < to);
          w[h] = row[h] >= 0 ? EXP2(saved[(u64)i * pitch + kk] - base) : (Acc)0;
          sum += w[h];
        }
        RowE c;
        load_rows<TURNS_E, BYTES_E, EVEN_E, CHUNKS_E, VECE>(p.value + at.v, row, p.row_v, l, c);
        #pragma unroll
        for (int h = 0; h < HOLD; h++) { const unsigned kk = step + SHARE * U + share * U + slot(l, h); next[h] = look(p, at, kk, kk < to); }
        add_rows<TURNS_E, VECE, BYTES_E>(w, c, acc);
      }
      finish(p, at, live, lane, high, sum, acc);
    }
    __syncthreads();
  }
}
#endif
