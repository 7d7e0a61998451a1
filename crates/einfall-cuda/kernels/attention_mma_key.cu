// attention_mma_key: as attention_grad_key for rows of up to PART entries, a warp a row, 16 entries at a time. Rows of more are left to
// that. Stands behind attention_mma.cuh.
// Defines: those of attention.cuh, BLOCK, MINBLOCKS, GROUPED, SHARED, TERMS, PART, GRAD_KEY, GRAD_VALUE, FAR.
constexpr int AT_SHARED = GROUPED, AT_TERMS = GROUPED + SHARED, AT_HEADS = GROUPED + SHARED + TERMS;
#if FAR
typedef i64 Far;
#else
typedef int Far;
#endif

extern "C" __global__ void __launch_bounds__(BLOCK, MINBLOCKS) attention_mma_key(const __grid_constant__ Params p) {
  const unsigned lane = threadIdx.x % 32, g = lane / 4, j = lane % 4, mine = lane % 16;
  const unsigned n = (unsigned)p.n, rows = (unsigned)p.groups * n, shared = (unsigned)p.shared, keys = (unsigned)p.keys, heads = (unsigned)p.heads;
  const u64 units = (u64)rows * shared;
  for (u64 unit = (u64)blockIdx.x * (BLOCK / 32) + threadIdx.x / 32; unit < units; unit += (u64)gridDim.x * (BLOCK / 32)) {
    const unsigned turn = (unsigned)(unit / rows), v = (unsigned)(unit % rows), group = v / n, row = v - group * n;
    const unsigned from = p.begins[v], to = p.begins[v + 1], before = group * (unsigned)p.terms * keys;
    if (to - from > PART) continue;
    Place home = no_place();
    add_place<0, AT_SHARED>(p, group, home);
    add_place<AT_SHARED, AT_TERMS>(p, turn, home);
    Chunk<16> kr[COLUMNS_D], vr[COLUMNS_E];
    load_vector<D>(p.key + home.k + (i64)row * p.row_k, true, j, kr);
    load_vector<E>(p.value + home.v + (i64)row * p.row_v, true, j, vr);
    float dk[LINES_D * 8][4] = {}, dv[LINES_E * 8][4] = {};
    for (unsigned head = 0; head < heads; head++) {
      Place at = home;
      add_place<AT_HEADS, OUTER>(p, head, at);
      unsigned next = from + mine < to ? __ldg(p.positions + from + mine) : before;
      for (unsigned step = from; step < to; step += 16) {
        bool ok = step + mine < to;
        Place x = at;
        const unsigned entry = next - before;
#if RAGGED
        const unsigned t = list_of(p, entry), kk = entry;
        if (t >= (unsigned)p.terms) ok = false;
        else add_place<AT_TERMS, AT_HEADS>(p, t, x);
#else
        const unsigned t = entry / keys, kk = entry - t * keys;
        add_place<AT_TERMS, AT_HEADS>(p, t, x);
#endif
        float lse = LOW, delta = 0;
        if (ok) { lse = p.stats[2 * x.s]; delta = p.stats[2 * x.s + 1]; }
        ok = ok && lse != LOW;
        // Left out: a weight of zero.
        lse = ok ? lse - bias_of(p, x, kk, ok) * LOG2E : -LOW;
        next = step + 16 + mine < to ? __ldg(p.positions + step + 16 + mine) : before;
        const Far qo = ok ? (Far)x.q : -1, go = (Far)x.g;
        const T *qa[2], *ga[2], *qb[4], *gb[4];
        bool on[2], in[4];
        #pragma unroll
        for (int i = 0; i < 2; i++) {
          const Far a = __shfl_sync(~0u, qo, g + 8 * i), b = __shfl_sync(~0u, go, g + 8 * i);
          on[i] = a != -1; qa[i] = p.query + (i64)a; ga[i] = p.grad_out + (i64)b;
        }
        float l[4], de[4];
        #pragma unroll
        for (int i = 0; i < 4; i++) {
          const unsigned from_lane = line_of(j, i);
          const Far a = __shfl_sync(~0u, qo, from_lane), b = __shfl_sync(~0u, go, from_lane);
          in[i] = a != -1; qb[i] = p.query + (i64)a; gb[i] = p.grad_out + (i64)b;
          l[i] = __shfl_sync(~0u, lse, from_lane); de[i] = __shfl_sync(~0u, delta, from_lane);
        }
        Chunk<16> q[2][COLUMNS_D], d[2][COLUMNS_E], ql[4][LINES_D], dl[4][LINES_E];
        load_columns<D, false>(qa, on, j, q);
        load_columns<E, false>(ga, on, j, d);
        if (GRAD_KEY) load_lines<D, false>(qb, in, g, ql);
        if (GRAD_VALUE) load_lines<E, false>(gb, in, g, dl);
        float s[4], w[4];
        products(kr, q, s);
        products(vr, d, w);
        #pragma unroll
        for (int i = 0; i < 4; i++) {
          s[i] = in[i] ? EXP2(s[i] * ((float)p.scale * LOG2E) - l[i]) : 0.f;
          w[i] = s[i] * (w[i] - de[i]);
        }
        if (GRAD_VALUE) add_lines(s, dl, dv);
        if (GRAD_KEY) add_lines(w, ql, dk);
      }
    }
    if (GRAD_KEY) write_sums<D, LINES_D>(p.grad_key + home.y + (i64)row * p.row_y, g, j, (float)p.scale, dk);
    if (GRAD_VALUE) write_sums<E, LINES_E>(p.grad_value + home.z + (i64)row * p.row_z, g, j, 1.f, dv);
  }
}
