// Attention where 64 or more heads share a list of looked-up keys: gathered tiles, products by warpgroups (sm_90a).
//
// A block has 64 heads of a list. One warpgroup copies rows (two tiles deep), two compute: each the scores of half the tile's
// keys, then, with all of the tile's weights, half the value's columns.
// Defines: D DV TABLE KT (64 or 128) SHARED DT STATUS GUARD LIMIT, as in `grouped.cu`, with the same text around them. D is a multiple of
// 64, DV of 128 and at most 512.
constexpr int STAGES = 2, PANEL = KT * 128, KP = D / 64, VP = SHARED ? 0 : DV / 64;
constexpr int Q_BYTES = KP * 64 * 128, P_BYTES = 64 * (KT > 64 ? KT : 64) * 2, STAGE_BYTES = (KP + VP) * PANEL;
constexpr int NS = KT / 2, NV = DV / 2;              // columns of a warpgroup's products
struct Small { u64 full[STAGES], empty[STAGES]; float mask[STAGES][KT], top[2][64], sum[2][64]; };

extern "C" __global__ void __launch_bounds__(384, 1) wide(const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) unsigned char memory[];
#if GUARD
  if ((p.key == p.value) != (SHARED != 0)) return;
#endif
  const u32 q_at = shared_of(memory), ring = q_at + Q_BYTES, p_at = ring + STAGES * STAGE_BYTES;
  Small& small = *(Small*)(memory + Q_BYTES + STAGES * STAGE_BYTES + P_BYTES);
  const int group = threadIdx.x / 128, tid = threadIdx.x % 128;
  const u32 split = blockIdx.x % (u32)p.splits, shares = (u32)((p.rows + 63) / 64);
  const i64 list = blockIdx.x / (u32)p.splits / shares, row0 = (i64)(blockIdx.x / (u32)p.splits % shares) * 64;
  const int rows = (int)min(64ll, p.rows - row0);
  const Place at = list_place(p, list);
  const int tiles = (int)((at.keys + KT - 1) / KT), per = (tiles + (int)p.splits - 1) / (int)p.splits;
  const int first = (int)split * per, last = min(tiles, first + per);
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) { barrier_init(shared_of(&small.full[s]), 256); barrier_init(shared_of(&small.empty[s]), 8); }
  }
  for (int i = threadIdx.x; i < 64 * KP * 8; i += 384) {
    const int row = i / (KP * 8), c = i % (KP * 8);
    const bool on = row < rows;
    copy16(q_at + c / 8 * 8192 + row * 128 + ((c % 8) ^ (row % 8)) * 16, p.query + (on ? at.q + row_place(p, row0 + row).q + c * 8 : 0), on);
  }
  copy_commit(); copy_wait<0>(); proxy_fence();
  __syncthreads();

  if (group == 2) {
    registers_fewer<40>();
    const unsigned short *kb = p.key + at.k, *vb = p.value + at.v;
    const int line = tid / 8, c = tid % 8;
    const u32 to0 = ring + line * 128 + ((c ^ (line % 8)) * 16);
    Index next[KT / 16];
    auto look = [&](int tile) {
      #pragma unroll
      for (int s = 0; s < KT / 16; s++) {
        const i64 key = (i64)tile * KT + s * 16 + line;
        const bool on = tile < last && key < at.keys;
#if TABLE
        next[s] = on ? p.table[at.t + key * p.entry] : (Index)-1;
#else
        next[s] = on ? (Index)key : (Index)-1;
#endif
      }
    };
    look(first);
    for (int tile = first, t = 0; tile < last; tile++, t++) {
      const int stage = t % STAGES;
      if (t >= STAGES) barrier_wait(shared_of(&small.empty[stage]), (t / STAGES - 1) % 2);
      #pragma unroll
      for (int s = 0; s < KT / 16; s++) {
        bool on = (u64)(i64)next[s] < (u64)p.n;
#if STATUS
        if (!on && (i64)tile * KT + s * 16 + line < at.keys) *(volatile u32*)p.status = 1u;
#endif
#if LIMIT
        on = on && (i64)next[s] <= at.limit;
#endif
        const i64 index = on ? (i64)next[s] : 0;
        const unsigned short* kr = kb + index * p.key_row + c * 8;
        const u32 to = to0 + stage * STAGE_BYTES + s * 2048;
        #pragma unroll
        for (int panel = 0; panel < KP; panel++) copy16(to + panel * PANEL, kr + panel * 64, on);
        if constexpr (VP > 0) {
          const unsigned short* vr = vb + index * p.value_row + c * 8;
          #pragma unroll
          for (int panel = 0; panel < VP; panel++) copy16(to + (KP + panel) * PANEL, vr + panel * 64, on);
        }
        if (c == 0) small.mask[stage][s * 16 + line] = on ? 0.f : NINF;
      }
      barrier_arrive_copied(shared_of(&small.full[stage]));
      barrier_arrive(shared_of(&small.full[stage]));
      look(tile + 1);
    }
  } else {
    registers_more<232>();
    const int lane = tid % 32, row = tid / 32 * 16 + lane / 4;
    const float scale = (float)(p.scale * 1.4426950408889634);
    float o[NV / 2], m[2] = {NINF, NINF}, l[2] = {0.f, 0.f};
    #pragma unroll
    for (int i = 0; i < NV / 2; i++) o[i] = 0.f;
    for (int tile = first, t = 0; tile < last; tile++, t++) {
      const int stage = t % STAGES;
      const u32 tile_at = ring + stage * STAGE_BYTES;
      barrier_wait(shared_of(&small.full[stage]), t / STAGES % 2);
      proxy_fence();
      float s[NS / 2];
      products_begin();
      #pragma unroll
      for (int step = 0; step < D / 16; step++)
        products<0>(s, descriptor(q_at + step / 4 * 8192 + step % 4 * 32), descriptor(tile_at + step / 4 * PANEL + group * (NS * 128) + step % 4 * 32), step != 0);
      products_commit();
      products_wait<0>();
      settle(s);
      float top[2] = {NINF, NINF};
      #pragma unroll
      for (int j = 0; j < NS / 8; j++) {
        const float2 off = *(const float2*)&small.mask[stage][group * NS + j * 8 + lane % 4 * 2];
        #pragma unroll
        for (int r = 0; r < 2; r++) {
          s[4 * j + 2 * r] = off.x == 0.f ? s[4 * j + 2 * r] * scale : NINF;
          s[4 * j + 2 * r + 1] = off.y == 0.f ? s[4 * j + 2 * r + 1] * scale : NINF;
          top[r] = fmaxf(top[r], fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]));
        }
      }
      #pragma unroll
      for (int r = 0; r < 2; r++) {
        top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
        top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
        if (lane % 4 == 0) small.top[group][row + r * 8] = top[r];
      }
      sync_some<256>(1);
      float keep[2];
      bool moved = false;
      #pragma unroll
      for (int r = 0; r < 2; r++) {
        top[r] = fmaxf(m[r], fmaxf(top[r], small.top[group ^ 1][row + r * 8]));
        moved |= top[r] != m[r];
        keep[r] = top[r] == m[r] ? 1.f : exp2_fast(m[r] - top[r]);
        m[r] = top[r]; l[r] *= keep[r];
        const float base = m[r] == NINF ? 0.f : m[r];
        #pragma unroll
        for (int j = 0; j < NS / 8; j++) {
          const float x = exp2_fast(s[4 * j + 2 * r] - base), y = exp2_fast(s[4 * j + 2 * r + 1] - base);
          l[r] += x + y;
          const int chunk = group * (NS / 8) + j;
          store_shared(p_at + chunk / 8 * 8192 + (row + r * 8) * 128 + ((chunk % 8) ^ (row % 8)) * 16 + lane % 4 * 4, pack2(x, y));
        }
      }
      if (__any_sync(~0u, moved)) {
        #pragma unroll
        for (int i = 0; i < NV / 2; i++) o[i] *= keep[i / 2 % 2];
      }
      proxy_fence();
      sync_some<256>(2);
      settle(o);
      products_begin();
      #pragma unroll
      for (int step = 0; step < KT / 16; step++)
        products<1>(o, descriptor(p_at + step / 4 * 8192 + step % 4 * 32),
                    descriptor(tile_at + (SHARED ? 0 : KP) * PANEL + group * (NV / 64) * PANEL + step * 2048, PANEL), 1);
      products_commit();
      products_wait<0>();
      settle(o);
      __syncwarp();
      if (lane == 0) barrier_arrive(shared_of(&small.empty[stage]));
    }
    #pragma unroll
    for (int r = 0; r < 2; r++) {
      l[r] += __shfl_xor_sync(~0u, l[r], 1); l[r] += __shfl_xor_sync(~0u, l[r], 2);
      if (lane % 4 == 0) small.sum[group][row + r * 8] = l[r];
    }
    sync_some<256>(1);
    #pragma unroll
    for (int r = 0; r < 2; r++) {
      const float all = small.sum[0][row + r * 8] + small.sum[1][row + r * 8];
      const float inv = all > 0.f ? 1.f / all : 0.f, lse = all > 0.f ? (m[r] + log2f(all)) * 0.6931471805599453f : NINF;
      if (row + r * 8 >= rows) continue;
      const Place in = row_place(p, row0 + row + r * 8);
      if (p.splits == 1) {
        unsigned short* to = p.out + at.o + in.o + group * NV + lane % 4 * 2;
        #pragma unroll
        for (int i = 0; i < NV / 8; i++) *(u32*)(to + i * 8) = pack2(o[4 * i + 2 * r] * inv, o[4 * i + 2 * r + 1] * inv);
        if (group == 0 && lane % 4 == 0 && p.lse) p.lse[at.e + in.e] = lse;
      } else {
        float* to = p.part + ((list * p.splits + split) * p.rows + row0 + row + r * 8) * (DV + 2);
        #pragma unroll
        for (int i = 0; i < NV / 8; i++) *(float2*)(to + group * NV + i * 8 + lane % 4 * 2) = make_float2(o[4 * i + 2 * r] * inv, o[4 * i + 2 * r + 1] * inv);
        if (group == 0 && lane % 4 == 0) to[DV] = lse;
      }
    }
  }
}
