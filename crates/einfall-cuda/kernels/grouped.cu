// Attention where a few heads share a list of looked-up keys: the heads are the rows of the tensor cores' products.
//
// A team of HW x VW warps has a list, or PARTS teams a share of it each: tiles of KT looked-up rows go to shared memory STAGES deep.
// HW: warps of 16 heads each. VW > 1: scores are split by keys among VW warps, meet in shared memory; values split by columns.
// Defines: D DV R (rows of a team at most) TABLE (bytes of an entry; 0: key i is row i) KT STAGES HW VW LISTS PARTS SHARED (values are
// the first DV columns of the keys) DT STATUS MINB GUARD (do nothing unless SHARED is so) HB (teams that share the rows of a list) LIMIT (keys above it are left out).
// The generated text defines Params, Index, Place, LIST_PLACE and ROW_PLACE: where a list lies, where a row of it.
constexpr int up(int x, int to) { return (x + to - 1) / to * to; }
constexpr int DK = up(D, 16), CH = D / 8, PITCH = ((DK / 8) | 1) * 16;
constexpr int DW = up(DV, 16), CV = DV / 8, VPITCH = SHARED ? PITCH : ((DW / 8) | 1) * 16;
constexpr int TEAM = HW * VW * 32, TEAMS = LISTS * PARTS, THREADS = TEAM * TEAMS;
constexpr bool HALF = R <= 8;                        // rows 8..15 are empty
constexpr int WC = up(DW / 8, VW) / VW;              // 8-column tiles of a warp; even
constexpr int K_BYTES = KT * PITCH, V_BYTES = SHARED ? 0 : KT * VPITCH, MASK_BYTES = KT * 4;
constexpr int STAGE_BYTES = K_BYTES + V_BYTES + MASK_BYTES;
constexpr bool QREG = DK <= 128 && VW == 1;
constexpr int Q_BYTES = QREG ? 0 : HW * 16 * PITCH;
constexpr int S_PITCH = KT + 4;                      // floats
constexpr int S_BYTES = VW > 1 ? HW * 16 * S_PITCH * 4 : 0;
constexpr int TEAM_BYTES = Q_BYTES + S_BYTES + STAGES * STAGE_BYTES;
constexpr int LPR = CH >= 8 ? 8 : CH >= 4 ? 4 : CH >= 2 ? 2 : 1;       // lanes of a row
constexpr int RPI = TEAM / LPR, STEPS = (KT + RPI - 1) / RPI;          // rows copied at once
constexpr int NK = KT / 8 / VW;                      // 8-key tiles of a warp's scores
static_assert((NK % 2 == 0 || (NK == 1 && DK % 32 == 0 && !QREG)) && KT % (8 * VW) == 0 && (DW / 8) % (2 * VW) == 0, "");

__device__ __forceinline__ void team_sync(int team) {
  if constexpr (TEAM == 32) __syncwarp();
  else if constexpr (TEAMS == 1) __syncthreads();
  else sync_some<TEAM>(team + 1);
}

extern "C" __global__ void __launch_bounds__(THREADS, MINB) grouped(const __grid_constant__ Params p) {
  extern __shared__ __align__(128) unsigned char memory[];
#if GUARD
  if ((p.key == p.value) != (SHARED != 0)) return;
#endif
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, team = warp / (HW * VW), tid = threadIdx.x % TEAM;
  const int hw = warp % (HW * VW) / VW, vw = warp % VW, part = team % PARTS;
  const u32 split = blockIdx.x % (u32)p.splits;
  const i64 unit = (i64)(blockIdx.x / (u32)p.splits) * LISTS + team / PARTS, list = unit / HB, row0 = unit % HB * R;
  const bool there = list < p.lists;
  const int rows = there ? (int)min((i64)R, p.rows - row0) : 0;
  const Place at = list_place(p, there ? list : 0);
  const unsigned short *kb = p.key + at.k, *vb = p.value + at.v;
  unsigned char* mine = memory + team * TEAM_BYTES;
  const u32 q_at = shared_of(mine), s_at = q_at + Q_BYTES, ring = s_at + S_BYTES;
  float* s_mem = (float*)(mine + Q_BYTES);
  const float scale = (float)(p.scale * 1.4426950408889634);

  // This team's tiles: first, first + step, ... below the last.
  const int tiles = there ? (int)((at.keys + KT - 1) / KT) : 0;
  const int per = (tiles + (int)p.splits * PARTS - 1) / ((int)p.splits * PARTS);
  const int first = ((int)split * PARTS + part) * per, last = min(tiles, first + per);

  u32 qf[QREG ? DK / 16 : 1][HALF ? 2 : 4];
  if constexpr (QREG) {
    i64 q_row[2];
    for (int half = 0; half < (HALF ? 1 : 2); half++) q_row[half] = at.q + row_place(p, row0 + hw * 16 + lane / 4 + half * 8).q;
    #pragma unroll
    for (int s = 0; s < DK / 16; s++)
      #pragma unroll
      for (int i = 0; i < (HALF ? 2 : 4); i++) {
        const int half = HALF ? 0 : i % 2, col = s * 16 + lane % 4 * 2 + (HALF ? i : i / 2) * 8;
        qf[s][i] = hw * 16 + lane / 4 + half * 8 < rows && col < D ? *(const u32*)(p.query + q_row[half] + col) : 0u;
      }
  } else {
    for (int i = tid; i < HW * 16 * (DK / 8); i += TEAM) {
      const int row = i / (DK / 8), c = i % (DK / 8);
      const bool on = row < rows && c < CH;
      copy16(q_at + row * PITCH + c * 16, on ? p.query + at.q + row_place(p, row0 + row).q + c * 8 : p.query, on);
    }
  }
  if constexpr (DK != D) {       // columns that only round up
    for (int i = tid; i < STAGES * KT; i += TEAM) {
      *(uint4*)(mine + Q_BYTES + S_BYTES + i / KT * STAGE_BYTES + i % KT * PITCH + CH * 16) = make_uint4(0, 0, 0, 0);
      if constexpr (!SHARED && DW != DV) *(uint4*)(mine + Q_BYTES + S_BYTES + i / KT * STAGE_BYTES + K_BYTES + i % KT * VPITCH + CV * 16) = make_uint4(0, 0, 0, 0);
    }
  } else if constexpr (!SHARED && DW != DV)
    for (int i = tid; i < STAGES * KT; i += TEAM)
      *(uint4*)(mine + Q_BYTES + S_BYTES + i / KT * STAGE_BYTES + K_BYTES + i % KT * VPITCH + CV * 16) = make_uint4(0, 0, 0, 0);

  // Copies: lane % LPR is a chunk, the rest a row.
  const int copy_row = tid / LPR, copy_chunk = tid % LPR;
  Index next[STEPS];
  auto look = [&](int tile) {
    #pragma unroll
    for (int s = 0; s < STEPS; s++) {
      const int row = s * RPI + copy_row;
      const i64 key = (i64)tile * KT + row;
      const bool on = (KT % RPI == 0 || row < KT) && tile < last && key < at.keys;
#if TABLE
      next[s] = on ? p.table[at.t + key * p.entry] : (Index)-1;
#else
      next[s] = on ? (Index)key : (Index)-1;
#endif
    }
  };
  auto start = [&](int tile, int stage) {
    const u32 to = ring + stage * STAGE_BYTES;
    if (tile < last) {
      #pragma unroll
      for (int s = 0; s < STEPS; s++) {
        const int row = s * RPI + copy_row;
        if (KT % RPI != 0 && row >= KT) break;
        bool on = (u64)(i64)next[s] < (u64)p.n;
#if STATUS
        if (!on && (i64)tile * KT + row < at.keys) *(volatile u32*)p.status = 1u;
#endif
#if LIMIT
        on = on && (i64)next[s] <= at.limit;
#endif
        const i64 index = on ? (i64)next[s] : 0;
        const unsigned short* kr = kb + index * p.key_row;
        #pragma unroll
        for (int c = 0; c < (CH + LPR - 1) / LPR; c++) {
          const int chunk = c * LPR + copy_chunk;
          if (CH % LPR == 0 || chunk < CH) copy16(to + row * PITCH + chunk * 16, kr + chunk * 8, on);
        }
        if constexpr (!SHARED) {
          const unsigned short* vr = vb + index * p.value_row;
          #pragma unroll
          for (int c = 0; c < (CV + LPR - 1) / LPR; c++) {
            const int chunk = c * LPR + copy_chunk;
            if (CV % LPR == 0 || chunk < CV) copy16(to + K_BYTES + row * VPITCH + chunk * 16, vr + chunk * 8, on);
          }
        }
        if (copy_chunk == 0) store_shared(to + K_BYTES + V_BYTES + row * 4, on ? 0.f : NINF);
      }
    }
    copy_commit();
  };

  float o[WC][HALF ? 2 : 4];
  #pragma unroll
  for (int i = 0; i < WC; i++)
    #pragma unroll
    for (int j = 0; j < (HALF ? 2 : 4); j++) o[i][j] = 0.f;
  constexpr int ROWS = HALF ? 1 : 2;
  float m[ROWS], l[ROWS];
  #pragma unroll
  for (int r = 0; r < ROWS; r++) { m[r] = NINF; l[r] = 0.f; }

  look(first);
  #pragma unroll
  for (int s = 0; s < STAGES - 1; s++) { start(first + s, s); look(first + s + 1); }

  int stage = 0;
  for (int tile = first; tile < last; tile++) {
    copy_wait<STAGES - 2>();
    team_sync(team);
    start(tile + STAGES - 1, stage == 0 ? STAGES - 1 : stage - 1);
    look(tile + STAGES);
    const u32 tile_at = ring + stage * STAGE_BYTES;
    const float* mask = (const float*)(mine + Q_BYTES + S_BYTES + stage * STAGE_BYTES + K_BYTES + V_BYTES);

    float s[NK][HALF ? 2 : 4];
    #pragma unroll
    for (int j = 0; j < NK; j++)
      #pragma unroll
      for (int i = 0; i < (HALF ? 2 : 4); i++) s[j][i] = 0.f;
    const u32 k_lane = tile_at + (vw * NK * 8 + lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 16;
    const u32 q_lane = q_at + (hw * 16 + lane % 16) * PITCH + lane / 16 * 16;
    if constexpr (NK == 1) {
      const u32 k_one = tile_at + (vw * 8 + lane % 8) * PITCH + lane / 8 * 16;
      #pragma unroll 4
      for (int step = 0; step < DK / 16; step += 2) {
        u32 a[4], b[4];
        ldsm4(b, k_one + step * 32);
        ldsm4(a, q_lane + step * 32);
        mma(s[0], a, b[0], b[1]);
        ldsm4(a, q_lane + step * 32 + 32);
        mma(s[0], a, b[2], b[3]);
      }
    } else {
      #pragma unroll (QREG ? DK / 16 : 4)
      for (int step = 0; step < DK / 16; step++) {
        u32 a[4];
        if constexpr (QREG) {
          a[0] = qf[step][0]; a[2] = qf[step][HALF ? 1 : 2]; a[1] = qf[step][1]; a[3] = qf[step][HALF ? 1 : 3];
        } else ldsm4(a, q_lane + step * 32);
        #pragma unroll
        for (int j = 0; j < NK; j += 2) {
          u32 b[4];
          ldsm4(b, k_lane + j * 8 * PITCH + step * 32);
          mma(s[j], a, b[0], b[1]); mma(s[j + 1], a, b[2], b[3]);
        }
      }
    }
    // Scores in powers of two, left-out keys at minus infinity.
    constexpr int ALL = KT / 8;
    float x[VW > 1 ? ALL : NK][HALF ? 2 : 4];
    if constexpr (VW > 1) {
      #pragma unroll
      for (int j = 0; j < NK; j++) {
        const int key = (vw * NK + j) * 8 + lane % 4 * 2;
        const float2 off = *(const float2*)(mask + key);
        #pragma unroll
        for (int r = 0; r < ROWS; r++)
          *(float2*)(s_mem + (hw * 16 + lane / 4 + r * 8) * S_PITCH + key) =
            make_float2(off.x == 0.f ? s[j][2 * r] * scale : NINF, off.y == 0.f ? s[j][2 * r + 1] * scale : NINF);
      }
      team_sync(team);
      #pragma unroll
      for (int j = 0; j < ALL; j++)
        #pragma unroll
        for (int r = 0; r < ROWS; r++) {
          const float2 y = *(const float2*)(s_mem + (hw * 16 + lane / 4 + r * 8) * S_PITCH + j * 8 + lane % 4 * 2);
          x[j][2 * r] = y.x; x[j][2 * r + 1] = y.y;
        }
    } else {
      #pragma unroll
      for (int j = 0; j < NK; j++) {
        const float2 off = *(const float2*)(mask + j * 8 + lane % 4 * 2);
        #pragma unroll
        for (int r = 0; r < ROWS; r++) {
          x[j][2 * r] = off.x == 0.f ? s[j][2 * r] * scale : NINF;
          x[j][2 * r + 1] = off.y == 0.f ? s[j][2 * r + 1] * scale : NINF;
        }
      }
    }
    float top[ROWS], keep[ROWS];
    bool moved = false;
    #pragma unroll
    for (int r = 0; r < ROWS; r++) {
      top[r] = m[r];
      #pragma unroll
      for (int j = 0; j < ALL; j++) top[r] = fmaxf(top[r], fmaxf(x[j][2 * r], x[j][2 * r + 1]));
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
      moved |= top[r] != m[r];
    }
    if (__any_sync(~0u, moved)) {
      #pragma unroll
      for (int r = 0; r < ROWS; r++) {
        keep[r] = m[r] == top[r] ? 1.f : exp2_fast(m[r] - top[r]);
        m[r] = top[r]; l[r] *= keep[r];
      }
      #pragma unroll
      for (int i = 0; i < WC; i++)
        #pragma unroll
        for (int j = 0; j < (HALF ? 2 : 4); j++) o[i][j] *= keep[HALF ? 0 : j / 2];
    }
    #pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const float base = m[r] == NINF ? 0.f : m[r];
      #pragma unroll
      for (int j = 0; j < ALL; j++) {
        x[j][2 * r] = exp2_fast(x[j][2 * r] - base); x[j][2 * r + 1] = exp2_fast(x[j][2 * r + 1] - base);
        l[r] += x[j][2 * r] + x[j][2 * r + 1];
      }
    }
    const u32 v_lane = tile_at + (SHARED ? 0 : K_BYTES) + (lane % 16) * VPITCH + lane / 16 * 16 + vw * WC * 16;
    #pragma unroll
    for (int j = 0; j < KT / 16; j++) {
      u32 a[4];
      a[0] = pack2(x[2 * j][0], x[2 * j][1]); a[2] = pack2(x[2 * j + 1][0], x[2 * j + 1][1]);
      if constexpr (!HALF) { a[1] = pack2(x[2 * j][HALF ? 0 : 2], x[2 * j][HALF ? 1 : 3]); a[3] = pack2(x[2 * j + 1][HALF ? 0 : 2], x[2 * j + 1][HALF ? 1 : 3]); }
      #pragma unroll
      for (int i = 0; i < WC; i += 2) {
        u32 b[4];
        ldsm4t(b, v_lane + j * 16 * VPITCH + i * 16);
        mma(o[i], a, b[0], b[1]); mma(o[i + 1], a, b[2], b[3]);
      }
    }
    stage = stage + 1 == STAGES ? 0 : stage + 1;
  }
  copy_wait<0>();
  #pragma unroll
  for (int r = 0; r < ROWS; r++) { l[r] += __shfl_xor_sync(~0u, l[r], 1); l[r] += __shfl_xor_sync(~0u, l[r], 2); }

  if constexpr (PARTS > 1) {
    // Parts of a list are joined in order, through the memory of the ring.
    __syncthreads();
    constexpr int O_PITCH = DV + 4;
    float* all = (float*)memory + (team / PARTS) * PARTS * R * O_PITCH;
    float* ml = (float*)memory + LISTS * PARTS * R * O_PITCH + (team / PARTS) * PARTS * R * 2;
    #pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const int row = hw * 16 + lane / 4 + r * 8;
      if (row >= R) continue;
      if (vw == 0 && lane % 4 == 0) { ml[(part * R + row) * 2] = m[r]; ml[(part * R + row) * 2 + 1] = l[r]; }
      #pragma unroll
      for (int i = 0; i < WC; i++) {
        const int col = (vw * WC + i) * 8 + lane % 4 * 2;
        if (col < DV) *(float2*)(all + (part * R + row) * O_PITCH + col) = make_float2(o[i][2 * r], o[i][2 * r + 1]);
      }
    }
    __syncthreads();
    if (!there) return;
    for (int i = part * TEAM + tid; i < R * (DV / 2); i += PARTS * TEAM) {
      const int row = i / (DV / 2), col = i % (DV / 2) * 2;
      if (row >= rows) break;
      float top = NINF, sum = 0.f, x = 0.f, y = 0.f;
      #pragma unroll
      for (int q = 0; q < PARTS; q++) top = fmaxf(top, ml[(q * R + row) * 2]);
      #pragma unroll
      for (int q = 0; q < PARTS; q++) {
        const float w = top == NINF ? 0.f : exp2_fast(ml[(q * R + row) * 2] - top);
        const float2 v = *(const float2*)(all + (q * R + row) * O_PITCH + col);
        sum += w * ml[(q * R + row) * 2 + 1]; x += w * v.x; y += w * v.y;
      }
      const float inv = sum > 0.f ? 1.f / sum : 0.f, lse = sum > 0.f ? (top + log2f(sum)) * 0.6931471805599453f : NINF;
      if (p.splits == 1) {
        const Place to = row_place(p, row0 + row);
        *(u32*)(p.out + at.o + to.o + col) = pack2(x * inv, y * inv);
        if (col == 0 && p.lse) p.lse[at.e + to.e] = lse;
      } else {
        float* to = p.part + ((list * p.splits + split) * p.rows + row0 + row) * (DV + 2);
        to[col] = x * inv; to[col + 1] = y * inv;
        if (col == 0) to[DV] = lse;
      }
    }
  } else {
    if (!there) return;
    #pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const int row = hw * 16 + lane / 4 + r * 8;
      if (row >= rows) continue;
      const float inv = l[r] > 0.f ? 1.f / l[r] : 0.f, lse = l[r] > 0.f ? (m[r] + log2f(l[r])) * 0.6931471805599453f : NINF;
      if (p.splits == 1) {
        const Place to = row_place(p, row0 + row);
        #pragma unroll
        for (int i = 0; i < WC; i++) {
          const int col = (vw * WC + i) * 8 + lane % 4 * 2;
          if (col < DV) *(u32*)(p.out + at.o + to.o + col) = pack2(o[i][2 * r] * inv, o[i][2 * r + 1] * inv);
        }
        if (vw == 0 && lane % 4 == 0 && p.lse) p.lse[at.e + to.e] = lse;
      } else {
        float* to = p.part + ((list * p.splits + split) * p.rows + row0 + row) * (DV + 2);
        #pragma unroll
        for (int i = 0; i < WC; i++) {
          const int col = (vw * WC + i) * 8 + lane % 4 * 2;
          if (col < DV) *(float2*)(to + col) = make_float2(o[i][2 * r] * inv, o[i][2 * r + 1] * inv);
        }
        if (vw == 0 && lane % 4 == 0) to[DV] = lse;
      }
    }
  }
}
