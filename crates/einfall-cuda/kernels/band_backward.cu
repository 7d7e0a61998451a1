// Gradients of attention to a band of keys, from the log-sum-exp: one kernel for the query's, one for the key's and value's.
//
// band_query: a block has GROUPS x 64 queries and goes over key tiles; also leaves delta = sum of grad_out * out a query.
// band_key: a block has GROUPS x 64 keys and goes over query tiles, of every query head that shares them, in order.
// Nothing is added by atomics. Defines and text as of `band.cu`, and PASS (0 query, 1 key).
constexpr int THREADS = GROUPS * 128, ROWS = GROUPS * 64, KP = D / 64, VP = DV / 64, PANEL = KT * 128, R_PANEL = ROWS * 128;
constexpr int FIXED_BYTES = (KP + VP) * R_PANEL, STAGE_BYTES = (KP + VP) * PANEL + (PASS == 1 ? KT * 8 : 0);
constexpr int STAGE_PITCH = (STAGE_BYTES + 1023) / 1024 * 1024;
template <int N> __device__ __forceinline__ void clear(float (&x)[N]) {
  #pragma unroll
  for (int i = 0; i < N; i++) x[i] = 0.f;
}
template <int N> __device__ __forceinline__ void pack_all(u32 (&a)[N / 8][4], const float (&s)[N]) {
  #pragma unroll
  for (int j = 0; j < N / 8; j++)
    #pragma unroll
    for (int i = 0; i < 4; i++) a[j][i] = pack2(s[8 * j + 2 * i], s[8 * j + 2 * i + 1]);
}
template <int N> __device__ __forceinline__ void store_rows(const float (&x)[N], unsigned short* to, i64 stride, i64 row, i64 end, float factor, int lane) {
  #pragma unroll
  for (int r = 0; r < 2; r++) {
    if (row + r * 8 >= end) continue;
    unsigned short* at = to + (row + r * 8) * stride + lane % 4 * 2;
    #pragma unroll
    for (int i = 0; i < N / 4; i++) *(u32*)(at + i * 8) = pack2(x[4 * i + 2 * r] * factor, x[4 * i + 2 * r + 1] * factor);
  }
}

#if PASS == 0
extern "C" __global__ void __launch_bounds__(THREADS, MINB) band_query(const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const u32 q_at = shared_of(memory), g_at = q_at + KP * R_PANEL, ring = q_at + FIXED_BYTES;
  const int wg = threadIdx.x / 128, tid = threadIdx.x % 128, lane = tid % 32, row = tid / 32 * 16 + lane / 4;
  const i64 blocks = (p.queries + ROWS - 1) / ROWS, head = blockIdx.x / blocks, start = blockIdx.x % blocks * ROWS;
  const Place in = head_place(p, head / p.shared, head % p.shared);
  const unsigned short *kb = p.key + in.k, *vb = p.value + in.v, *gb = p.grad_out + in.o, *ob = p.saved + in.o;
  const i64 from = max(0ll, start + p.low), to = min(p.keys, start + ROWS + p.high), q_first = start + wg * 64;
  const int first = (int)(from / KT), last = from < to ? (int)((to + KT - 1) / KT) : first;
  const int mine_from = (int)max(0ll, q_first + p.low), mine_to = (int)min(p.keys, q_first + 64 + p.high);
  copy_rows<D, ROWS, THREADS>(q_at, p.query + in.q, p.query_row, start, p.queries);
  copy_rows<DV, ROWS, THREADS>(g_at, gb, p.out_row, start, p.queries);
  auto copy = [&](int tile, int stage) {
    if (tile < last) {
      const u32 at = ring + stage * STAGE_PITCH;
      copy_rows<D, KT, THREADS>(at, kb, p.key_row, (i64)tile * KT, p.keys);
      copy_rows<DV, KT, THREADS>(at + KP * PANEL, vb, p.value_row, (i64)tile * KT, p.keys);
    }
    copy_commit();
  };
  #pragma unroll
  for (int s = 0; s < STAGES - 1; s++) copy(first + s, s);
  const float scale = (float)(p.scale * 1.4426950408889634);
  float base[2], delta[2];
  #pragma unroll
  for (int r = 0; r < 2; r++) {
    const i64 query = q_first + row + r * 8;
    float sum = 0.f, lse = __int_as_float(0x7f800000);
    if (query < p.queries) {
      lse = p.lse[in.e + query * p.lse_row] * 1.4426950408889634f;
      if (lse == NINF) lse = __int_as_float(0x7f800000);
      #pragma unroll 4
      for (int c = lane % 4; c < DV / 8; c += 4) {
        const uint4 x = *(const uint4*)(ob + query * p.out_row + c * 8), y = *(const uint4*)(gb + query * p.out_row + c * 8);
        const u32 xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
        #pragma unroll
        for (int i = 0; i < 4; i++) { const float2 a = unpack2(xs[i]), b = unpack2(ys[i]); sum += a.x * b.x + a.y * b.y; }
      }
    }
    sum += __shfl_xor_sync(~0u, sum, 1); sum += __shfl_xor_sync(~0u, sum, 2);
    base[r] = lse; delta[r] = sum;
    if (query < p.queries && lane % 4 == 0) p.delta[head * p.queries + query] = sum;
  }
  float dq[D / 2];
  clear(dq);
  int stage = 0;
  for (int tile = first; tile < last; tile++) {
    copy_wait<STAGES - 2>();
    proxy_fence();
    __syncthreads();
    copy(tile + STAGES - 1, stage == 0 ? STAGES - 1 : stage - 1);
    const int k0 = tile * KT;
    if (k0 < mine_to && k0 + KT > mine_from) {
      const u32 at = ring + stage * STAGE_PITCH;
      float s[KT / 2], d[KT / 2];
      settle(dq);
      products_begin();
      #pragma unroll
      for (int step = 0; step < D / 16; step++)
        products<0>(s, descriptor(q_at + step / 4 * R_PANEL + wg * 8192 + step % 4 * 32), descriptor(at + step / 4 * PANEL + step % 4 * 32), step != 0);
      products_commit();
      #pragma unroll
      for (int step = 0; step < DV / 16; step++)
        products<0>(d, descriptor(g_at + step / 4 * R_PANEL + wg * 8192 + step % 4 * 32), descriptor(at + (KP + step / 4) * PANEL + step % 4 * 32), step != 0);
      products_commit();
      products_wait<1>();
      settle(s);
      const bool edge = k0 < q_first + 63 + p.low || k0 + KT - 1 > q_first + p.high || k0 + KT > p.keys;
      #pragma unroll
      for (int r = 0; r < 2; r++) {
        int low = -(1 << 30), high = 1 << 30;
        if (edge) { low = (int)max(0ll, q_first + row + r * 8 + p.low) - k0 - lane % 4 * 2; high = (int)min(p.keys - 1, q_first + row + r * 8 + p.high) - k0 - lane % 4 * 2; }
        #pragma unroll
        for (int j = 0; j < KT / 8; j++)
          #pragma unroll
          for (int c = 0; c < 2; c++) {
            float& x = s[4 * j + 2 * r + c];
            x = exp2_fast(fmaf(x, scale, -base[r]));
            if (edge && (j * 8 + c < low || j * 8 + c > high)) x = 0.f;
          }
      }
      products_wait<0>();
      settle(d);
      #pragma unroll
      for (int i = 0; i < KT / 2; i++) s[i] *= d[i] - delta[i / 2 % 2];
      u32 a[KT / 16][4];
      pack_all(a, s);
      products_begin();
      #pragma unroll
      for (int j = 0; j < KT / 16; j++) products<1>(dq, a[j], descriptor(at + j * 2048, PANEL), 1);
      products_commit();
      products_wait<0>();
      settle(dq);
    }
    stage = stage + 1 == STAGES ? 0 : stage + 1;
  }
  copy_wait<0>();
  if (p.grad_query) store_rows(dq, p.grad_query + in.x, p.grad_query_row, q_first + row, p.queries, (float)p.scale, lane);
}
#else
extern "C" __global__ void __launch_bounds__(THREADS, MINB) band_key(const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const u32 k_at = shared_of(memory), v_at = k_at + KP * R_PANEL, ring = k_at + FIXED_BYTES;
  const int wg = threadIdx.x / 128, tid = threadIdx.x % 128, lane = tid % 32, row = tid / 32 * 16 + lane / 4;
  const i64 blocks = (p.keys + ROWS - 1) / ROWS, head = blockIdx.x / blocks, start = blockIdx.x % blocks * ROWS;     // a key's head
  const Place own = head_place(p, head, 0);
  // Query i sees keys i + low .. i + high, so key j is seen by j - high .. j - low.
  const i64 from = max(0ll, start - p.high), to = min(p.queries, start + ROWS - p.low), k_first = start + wg * 64;
  const int first = (int)(from / KT), count = from < to ? (int)((to + KT - 1) / KT) - first : 0, all = count * (int)p.shared;
  const int mine_from = (int)max(0ll, k_first - p.high), mine_to = (int)min(p.queries, k_first + 64 - p.low);
  copy_rows<D, ROWS, THREADS>(k_at, p.key + own.k, p.key_row, start, p.keys);
  copy_rows<DV, ROWS, THREADS>(v_at, p.value + own.v, p.value_row, start, p.keys);
  auto copy = [&](int turn, int stage) {
    if (turn < all) {
      const i64 of = head * p.shared + turn / count, row0 = (i64)(first + turn % count) * KT;
      const Place in = head_place(p, head, turn / count);
      const u32 at = ring + stage * STAGE_PITCH;
      copy_rows<D, KT, THREADS>(at, p.query + in.q, p.query_row, row0, p.queries);
      copy_rows<DV, KT, THREADS>(at + KP * PANEL, p.grad_out + in.o, p.out_row, row0, p.queries);
      for (int i = threadIdx.x; i < KT; i += THREADS) {
        float lse = __int_as_float(0x7f800000), delta = 0.f;
        if (row0 + i < p.queries) {
          lse = p.lse[in.e + (row0 + i) * p.lse_row] * 1.4426950408889634f; delta = p.delta[of * p.queries + row0 + i];
          if (lse == NINF) lse = __int_as_float(0x7f800000);
        }
        store_shared(at + (KP + VP) * PANEL + i * 8, lse, delta);
      }
    }
    copy_commit();
  };
  #pragma unroll
  for (int s = 0; s < STAGES - 1; s++) copy(s, s);
  const float scale = (float)(p.scale * 1.4426950408889634);
  float dk[D / 2], dv[DV / 2];
  clear(dk); clear(dv);
  int stage = 0;
  for (int turn = 0; turn < all; turn++) {
    copy_wait<STAGES - 2>();
    proxy_fence();
    __syncthreads();
    copy(turn + STAGES - 1, stage == 0 ? STAGES - 1 : stage - 1);
    const int q0 = (first + turn % count) * KT;
    if (q0 < mine_to && q0 + KT > mine_from) {
      const u32 at = ring + stage * STAGE_PITCH;
      const float2* known = (const float2*)(memory + FIXED_BYTES + stage * STAGE_PITCH + (KP + VP) * PANEL) + lane % 4 * 2;
      float s[KT / 2], d[KT / 2];
      settle(dk); settle(dv);
      products_begin();
      #pragma unroll
      for (int step = 0; step < D / 16; step++)
        products<0>(s, descriptor(k_at + step / 4 * R_PANEL + wg * 8192 + step % 4 * 32), descriptor(at + step / 4 * PANEL + step % 4 * 32), step != 0);
      products_commit();
      #pragma unroll
      for (int step = 0; step < DV / 16; step++)
        products<0>(d, descriptor(v_at + step / 4 * R_PANEL + wg * 8192 + step % 4 * 32), descriptor(at + (KP + step / 4) * PANEL + step % 4 * 32), step != 0);
      products_commit();
      products_wait<1>();
      settle(s);
      // Key k_first + x and query q0 + y meet where low <= k_first + x - q0 - y <= high.
      const bool edge = q0 < k_first + 63 - p.high || q0 + KT - 1 > k_first - p.low;
      #pragma unroll
      for (int j = 0; j < KT / 8; j++)
        #pragma unroll
        for (int c = 0; c < 2; c++) {
          const float base = known[j * 8 + c].x;
          #pragma unroll
          for (int r = 0; r < 2; r++) {
            float& x = s[4 * j + 2 * r + c];
            x = exp2_fast(fmaf(x, scale, -base));
          }
        }
      if (edge) {
        #pragma unroll
        for (int r = 0; r < 2; r++) {
          const i64 x = k_first + row + r * 8 - q0 - lane % 4 * 2;
          const int low = (int)max(-(1ll << 30), x - p.high), high = (int)min(1ll << 30, x - p.low);
          #pragma unroll
          for (int j = 0; j < KT / 8; j++)
            #pragma unroll
            for (int c = 0; c < 2; c++)
              if (j * 8 + c < low || j * 8 + c > high) s[4 * j + 2 * r + c] = 0.f;
        }
      }
      u32 a[KT / 16][4];
      pack_all(a, s);
      products_begin();
      #pragma unroll
      for (int j = 0; j < KT / 16; j++) products<1>(dv, a[j], descriptor(at + KP * PANEL + j * 2048, PANEL), 1);
      products_commit();
      products_wait<1>();
      settle(d);
      #pragma unroll
      for (int j = 0; j < KT / 8; j++)
        #pragma unroll
        for (int c = 0; c < 2; c++) {
          const float delta = known[j * 8 + c].y;
          #pragma unroll
          for (int r = 0; r < 2; r++) s[4 * j + 2 * r + c] *= d[4 * j + 2 * r + c] - delta;
        }
      u32 b[KT / 16][4];
      pack_all(b, s);
      products_begin();
      #pragma unroll
      for (int j = 0; j < KT / 16; j++) products<1>(dk, b[j], descriptor(at + j * 2048, PANEL), 1);
      products_commit();
      products_wait<0>();
      settle(dk); settle(dv);
    }
    stage = stage + 1 == STAGES ? 0 : stage + 1;
  }
  copy_wait<0>();
  if (p.grad_key) store_rows(dk, p.grad_key + own.y, p.grad_key_row, k_first + row, p.keys, (float)p.scale, lane);
  if (p.grad_value) store_rows(dv, p.grad_value + own.z, p.grad_value_row, k_first + row, p.keys, 1.f, lane);
}
#endif
