// Attention to a band of keys, or to all: query i sees keys i + low .. i + high. Products by warpgroups (sm_90a).
//
// A block has GROUPS x 64 queries of a head; tiles of KT keys and values are copied STAGES deep by all threads.
// Defines: D DV KT STAGES GROUPS MINB DT; D and DV multiples of 64. The generated text defines Params and head_place: where the rows
// of a head lie, keys' heads outermost.
constexpr int THREADS = GROUPS * 128, ROWS = GROUPS * 64, KP = D / 64, VP = DV / 64, PANEL = KT * 128, Q_PANEL = ROWS * 128;
constexpr int Q_BYTES = KP * Q_PANEL, STAGE_BYTES = (KP + VP) * PANEL;
extern "C" __global__ void __launch_bounds__(THREADS, MINB) band(const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const u32 q_at = shared_of(memory), ring = q_at + Q_BYTES;
  const int wg = threadIdx.x / 128, tid = threadIdx.x % 128, lane = tid % 32, row = tid / 32 * 16 + lane / 4;
  const i64 blocks = (p.queries + ROWS - 1) / ROWS, head = blockIdx.x / blocks, start = blockIdx.x % blocks * ROWS;
  const Place in = head_place(p, head / p.shared, head % p.shared);
  const unsigned short *kb = p.key + in.k, *vb = p.value + in.v;
  const int from = (int)max(0ll, start + p.low), to = (int)min(p.keys, start + ROWS + p.high);       // keys of the block
  const int first = from / KT, last = from < to ? (to + KT - 1) / KT : first;
  const int mine_from = (int)max(0ll, start + wg * 64 + p.low), mine_to = (int)min(p.keys, start + wg * 64 + 64 + p.high);
  copy_rows<D, ROWS, THREADS>(q_at, p.query + in.q, p.query_row, start, p.queries);
  auto copy = [&](int tile, int stage) {
    if (tile < last) {
      const u32 at = ring + stage * STAGE_BYTES;
      copy_rows<D, KT, THREADS>(at, kb, p.key_row, (i64)tile * KT, p.keys);
      copy_rows<DV, KT, THREADS>(at + KP * PANEL, vb, p.value_row, (i64)tile * KT, p.keys);
    }
    copy_commit();
  };
  #pragma unroll
  for (int s = 0; s < STAGES - 1; s++) copy(first + s, s);
  const float scale = (float)(p.scale * 1.4426950408889634);
  float o[DV / 2], m[2] = {NINF, NINF}, l[2] = {0.f, 0.f};
  #pragma unroll
  for (int i = 0; i < DV / 2; i++) o[i] = 0.f;
  int stage = 0;
  for (int tile = first; tile < last; tile++) {
    copy_wait<STAGES - 2>();
    proxy_fence();
    __syncthreads();
    copy(tile + STAGES - 1, stage == 0 ? STAGES - 1 : stage - 1);
    const int k0 = tile * KT;
    if (k0 < mine_to && k0 + KT > mine_from) {
      const u32 at = ring + stage * STAGE_BYTES;
      float s[KT / 2];
      products_begin();
      #pragma unroll
      for (int step = 0; step < D / 16; step++)
        products<0>(s, descriptor(q_at + step / 4 * Q_PANEL + wg * 8192 + step % 4 * 32), descriptor(at + step / 4 * PANEL + step % 4 * 32), step != 0);
      products_commit();
      products_wait<0>();
      settle(s);
      const i64 q_first = start + wg * 64;
      if (k0 < q_first + 63 + p.low || k0 + KT - 1 > q_first + p.high || k0 + KT > p.keys) {
        #pragma unroll
        for (int r = 0; r < 2; r++) {
          const int low = (int)max(0ll, q_first + row + r * 8 + p.low) - k0 - lane % 4 * 2, high = (int)min(p.keys - 1, q_first + row + r * 8 + p.high) - k0 - lane % 4 * 2;
          #pragma unroll
          for (int j = 0; j < KT / 8; j++) {
            if (j * 8 < low || j * 8 > high) s[4 * j + 2 * r] = NINF;
            if (j * 8 + 1 < low || j * 8 + 1 > high) s[4 * j + 2 * r + 1] = NINF;
          }
        }
      }
      float keep[2];
      bool moved = false;
      #pragma unroll
      for (int r = 0; r < 2; r++) {
        float top = NINF;
        #pragma unroll
        for (int j = 0; j < KT / 8; j++) top = fmaxf(top, fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        top = fmaxf(top * scale, m[r]);
        moved |= top != m[r];
        keep[r] = top == m[r] ? 1.f : exp2_fast(m[r] - top);
        m[r] = top; l[r] *= keep[r];
        const float base = top == NINF ? 0.f : top;
        #pragma unroll
        for (int j = 0; j < KT / 8; j++) {
          s[4 * j + 2 * r] = exp2_fast(fmaf(s[4 * j + 2 * r], scale, -base)); s[4 * j + 2 * r + 1] = exp2_fast(fmaf(s[4 * j + 2 * r + 1], scale, -base));
          l[r] += s[4 * j + 2 * r] + s[4 * j + 2 * r + 1];
        }
      }
      if (__any_sync(~0u, moved)) {
        #pragma unroll
        for (int i = 0; i < DV / 2; i++) o[i] *= keep[i / 2 % 2];
      }
      u32 a[KT / 16][4];
      #pragma unroll
      for (int j = 0; j < KT / 16; j++)
        #pragma unroll
        for (int i = 0; i < 4; i++) a[j][i] = pack2(s[8 * j + 2 * i], s[8 * j + 2 * i + 1]);
      settle(o);
      products_begin();
      #pragma unroll
      for (int j = 0; j < KT / 16; j++) products<1>(o, a[j], descriptor(at + KP * PANEL + j * 2048, PANEL), 1);
      products_commit();
      products_wait<0>();
      settle(o);
    }
    stage = stage + 1 == STAGES ? 0 : stage + 1;
  }
  copy_wait<0>();
  #pragma unroll
  for (int r = 0; r < 2; r++) {
    l[r] += __shfl_xor_sync(~0u, l[r], 1); l[r] += __shfl_xor_sync(~0u, l[r], 2);
    const float inv = l[r] > 0.f ? 1.f / l[r] : 0.f, lse = l[r] > 0.f ? (m[r] + log2f(l[r])) * 0.6931471805599453f : NINF;
    const i64 query = start + wg * 64 + row + r * 8;
    if (query >= p.queries) continue;
    unsigned short* to = p.out + in.o + query * p.out_row + lane % 4 * 2;
    #pragma unroll
    for (int i = 0; i < DV / 8; i++) *(u32*)(to + i * 8) = pack2(o[4 * i + 2 * r] * inv, o[4 * i + 2 * r + 1] * inv);
    if (lane % 4 == 0 && p.lse) p.lse[in.e + query * p.lse_row] = lse;
  }
}
