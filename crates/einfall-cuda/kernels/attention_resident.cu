// attention_resident: as attention_rows, with the rows of keys and values of a group in shared memory. First every list's
// scores: a lane owns a key and reads its whole row, in chunks twisted by its number, so that 8 lanes on 8 rows never meet in a
// bank. Then every list's values: LANES lanes hold a row. Scores lie in shared memory in between.
// Where both do not fit, values take the place of keys; what fits beside the keys comes early.
// Stands behind attention_rows.cu's functions. Rows of keys and of values are a multiple of 16 bytes, VECD == VECE == PER.
// Defines: LISTERS (lanes a list, of scores), P (keys in flight a lane), STAGE (0 loads, 1 cp.async, 2 bulk copies), SPLIT (how many
// of the outer loops move the rows: these come first), PAIRS.
constexpr int SIZE = sizeof(T), PER = 16 / SIZE;
constexpr int PITCH_K = D * SIZE, PITCH_V = E * SIZE, ROW_CHUNKS = PITCH_K / 16;
constexpr int TWIST = ROW_CHUNKS % 8 == 0 ? 8 : ROW_CHUNKS % 4 == 0 ? 4 : ROW_CHUNKS % 2 == 0 ? 2 : 1;
constexpr unsigned WARPS = BLOCK / 32, QUERIES = 32 / LISTERS;
extern __shared__ __align__(128) unsigned char memory[];

__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ __forceinline__ Chunk<16> load_shared(unsigned a) {
  Chunk<16> c;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(c.w[0]), "=r"(c.w[1]), "=r"(c.w[2]), "=r"(c.w[3]) : "r"(a));
  return c;
}

// Bytes from..to of the rows, that begin at `memory` in shared memory, arrive; `bar` says when.
__device__ __forceinline__ void stage(unsigned memory, unsigned bar, const T* rows, i64 row, unsigned pitch, unsigned from, unsigned to) {
#if STAGE == 2
  if (threadIdx.x == 0 && from < to) {
    asm volatile("{.reg .b64 s; mbarrier.arrive.expect_tx.shared::cta.b64 s, [%0], %1;}" :: "r"(bar), "r"(to - from) : "memory");
    for (unsigned i = from; i < to; i += 16384) {
      const unsigned part = min(16384u, to - i);
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                   :: "r"(memory + i), "l"((const char*)rows + i), "r"(part), "r"(bar) : "memory");
    }
  }
#else
  for (unsigned i = from / 16 + threadIdx.x; i < to / 16; i += BLOCK) {
    const unsigned r = i / (pitch / 16), c = i % (pitch / 16);
#if STAGE == 1
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(memory + i * 16), "l"(rows + (i64)r * row + c * PER) : "memory");
#else
    #pragma unroll
    for (int e = 0; e < PER; e++) {
      Chunk<SIZE> x = load<SIZE, 1>(rows + (i64)r * row + c * PER + e, true);
      const unsigned to_e = memory + i * 16 + e * SIZE;
      if constexpr (SIZE == 8) asm volatile("st.shared.v2.u32 [%0], {%1, %2};" :: "r"(to_e), "r"(x.w[0]), "r"(x.w[SIZE / 8]) : "memory");
      else if constexpr (SIZE == 4) asm volatile("st.shared.u32 [%0], %1;" :: "r"(to_e), "r"(x.w[0]) : "memory");
      else asm volatile("st.shared.u16 [%0], %1;" :: "r"(to_e), "h"((unsigned short)x.w[0]) : "memory");
    }
#endif
  }
#endif
}
__device__ __forceinline__ void arrived(unsigned bar, bool any) {
#if STAGE == 2
  if (any)
    asm volatile("{.reg .pred p;\nAGAIN: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0;\n@p bra DONE;\nbra AGAIN;\nDONE:\n}" :: "r"(bar) : "memory");
#else
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
#endif
}

extern "C" __global__ void __launch_bounds__(BLOCK, MINBLOCKS) attention_resident(const __grid_constant__ Params p) {
  __shared__ __align__(8) u64 barriers[3];
  const unsigned base = shared_address(memory), bar = shared_address(barriers);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned per_block = (unsigned)p.per_block, group = blockIdx.x / per_block, slot_ = blockIdx.x % per_block;
  const unsigned queries = (unsigned)(p.lists / p.groups), keys = (unsigned)p.keys, n = (unsigned)p.n;
  const unsigned q0 = (unsigned)((u64)queries * slot_ / per_block), q1 = (unsigned)((u64)queries * (slot_ + 1) / per_block);
  const unsigned bytes_k = n * PITCH_K, bytes_v = n * PITCH_V, values = (unsigned)p.at_values, late = values < bytes_k ? min(bytes_k - values, bytes_v) : 0;
  Acc* saved = (Acc*)(memory + p.at_saved);
  const unsigned pitch = keys + 1, zeros = base + (unsigned)p.at_zeros;
  Place at_group = no_place();
  add_place<0, SPLIT>(p, group, at_group);
#if STAGE == 2
  if (threadIdx.x == 0) {
    #pragma unroll
    for (int i = 0; i < 3; i++) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(bar + i * 8) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
#endif
  stage(base, bar, p.key + at_group.k, p.row_k, PITCH_K, 0, bytes_k);
  stage(base + values, bar + 8, p.value + at_group.v, p.row_v, PITCH_V, late, bytes_v);
  for (unsigned i = threadIdx.x; i < PITCH_V / 4; i += BLOCK) asm volatile("st.shared.u32 [%0], 0;" :: "r"(zeros + i * 4) : "memory");
#if STAGE == 2
  __syncthreads();                      // the barriers have been made
#endif

  // Scores.
  {
    const unsigned l = lane % LISTERS, twist = lane % TWIST * 16;
    const unsigned units = (q1 - q0 + QUERIES - 1) / QUERIES;
    bool staged = false;
    for (unsigned unit = warp; unit < units || !staged; unit += WARPS) {
      const unsigned i = unit * QUERIES + lane / LISTERS, o = q0 + i;
      const bool live = unit < units && o < q1;
      Place at = at_group;
      if (live) add_place<SPLIT, OUTER>(p, o, at);
      const unsigned last = unit < units ? keys : 0, to = live ? keys : 0;
      Index next[P];
      #pragma unroll
      for (int j = 0; j < P; j++) { const unsigned kk = j * LISTERS + l; next[j] = look(p, at, kk, kk < to); }
      Acc q[ROW_CHUNKS][PER];
      #pragma unroll
      for (int c = 0; c < ROW_CHUNKS; c++) {
        const unsigned chunk = (c & ~(TWIST - 1)) | ((c ^ lane) & (TWIST - 1));
        unpack(load<16, 0>(p.query + at.q + chunk * PER, live), q[c]);
        #pragma unroll
        for (int e = 0; e < PER; e++) q[c][e] *= (Acc)p.scale * LOG2E;
      }
      if (!staged) { arrived(bar, bytes_k > 0); staged = true; }
      Acc top = LOW;
      for (unsigned step = 0; step < last; step += LISTERS * P) {
        int r[P];
        #pragma unroll
        for (int j = 0; j < P; j++) { const unsigned kk = step + j * LISTERS + l; r[j] = row_of(p, at, next[j], kk, kk < to); }
        #pragma unroll
        for (int j = 0; j < P; j++) { const unsigned kk = step + (P + j) * LISTERS + l; next[j] = look(p, at, kk, kk < to); }
        #pragma unroll
        for (int j = 0; j < P; j++) {
          const unsigned kk = step + j * LISTERS + l;
          if (P > 1 && step + j * LISTERS >= last) break;
          const unsigned a = base + (unsigned)max(r[j], 0) * PITCH_K + twist;
          Acc acc[2] = {0, 0};
          #pragma unroll
          for (int c = 0; c < ROW_CHUNKS; c++) {
            Acc x[PER];
            unpack(load_shared((a ^ (c % TWIST * 16)) + (c & ~(TWIST - 1)) * 16), x);
            #pragma unroll
            for (int e = 0; e < PER; e++) acc[c & 1] = fused(q[c][e], x[e], acc[c & 1]);
          }
          const Acc s = r[j] < 0 ? LOW : acc[0] + acc[1] + bias_of(p, at, kk, r[j] >= 0) * LOG2E;
          top = s > top ? s : top;
          if (kk < to) saved[(u64)i * pitch + kk] = s;
        }
      }
      top = max_over_lanes<LISTERS>(top);
      if (live && l == 0) saved[(u64)i * pitch + keys] = top;
    }
  }
  __syncthreads();
  if (late) {
#if STAGE == 2
    if (threadIdx.x == 0) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    stage(base + values, bar + 16, p.value + at_group.v, p.row_v, PITCH_V, 0, late);
  }

  // Values.
  {
    const unsigned l = lane % LANES, g = lane / LANES, share = g % SHARE, mine = base + l * 16;
    const unsigned units = (q1 - q0 + LISTS - 1) / LISTS;
#if PAIRS
    const unsigned pairs = base + (unsigned)p.at_pairs + (warp * GROUPS + g) * (U * 8 + 16);
#endif
    bool staged = false;
    for (unsigned unit = warp; unit < units || !staged; unit += WARPS) {
      const unsigned i = unit * LISTS + g / SHARE, o = q0 + i;
      const bool live = unit < units && o < q1;
      Place at = at_group;
      if (live) add_place<SPLIT, OUTER>(p, o, at);
      const unsigned last = unit < units ? keys : 0, to = live ? keys : 0;
      Index next[HOLD];
      #pragma unroll
      for (int h = 0; h < HOLD; h++) { const unsigned kk = share * U + slot(l, h); next[h] = look(p, at, kk, kk < to); }
      const Acc high = live ? saved[(u64)i * pitch + keys] : LOW, top = high == LOW ? (Acc)0 : high;
      Acc acc[TURNS_E][VECE] = {};
      Acc sum = 0;
      if (!staged) { arrived(bar + 8, bytes_v > late); arrived(bar + 16, late > 0); staged = true; }
      for (unsigned step = 0; step < last; step += SHARE * U) {
        int at_row[HOLD];
        Acc w[HOLD];
        #pragma unroll
        for (int h = 0; h < HOLD; h++) {
          const unsigned kk = step + share * U + slot(l, h);
          const int r = row_of(p, at, next[h], kk, kk < to);
          w[h] = r >= 0 ? EXP2(saved[(u64)i * pitch + kk] - top) : (Acc)0;
          sum += w[h];
          // A key left out reads the row of zeros: what row 0 holds may be NaN.
          at_row[h] = r < 0 ? (int)p.at_zeros : (int)values + r * PITCH_V;
        }
        #pragma unroll
        for (int h = 0; h < HOLD; h++) { const unsigned kk = step + SHARE * U + share * U + slot(l, h); next[h] = look(p, at, kk, kk < to); }
#if PAIRS
        __syncwarp();
        #pragma unroll
        for (int h = 0; h < HOLD; h++)
          asm volatile("st.shared.v2.u32 [%0], {%1, %2};" :: "r"(pairs + slot(l, h) * 8), "r"(at_row[h]), "r"(__float_as_uint(w[h])) : "memory");
        __syncwarp();
#endif
        #pragma unroll
        for (int u = 0; u < U; u += 2) {
          int r[2]; Acc wu[2];
#if PAIRS
          Chunk<16> two = load_shared(pairs + u * 8);
          r[0] = two.w[0]; wu[0] = __uint_as_float(two.w[1]); r[1] = two.w[2]; wu[1] = __uint_as_float(two.w[3]);
#else
          #pragma unroll
          for (int j = 0; j < 2; j++) {
            r[j] = __shfl_sync(~0u, at_row[hold_of(u + j)], lane_of(u + j), LANES);
            wu[j] = __shfl_sync(~0u, w[hold_of(u + j)], lane_of(u + j), LANES);
          }
#endif
          #pragma unroll
          for (int j = 0; j < 2; j++)
            #pragma unroll
            for (int t = 0; t < TURNS_E; t++)
              if (EVEN_E || t * LANES + l < CHUNKS_E) {
                Acc x[VECE];
                unpack(load_shared(mine + r[j] + t * LANES * 16), x);
                #pragma unroll
                for (int e = 0; e < VECE; e++) acc[t][e] = fused(wu[j], x[e], acc[t][e]);
              }
        }
      }
      finish(p, at, live, lane, high, sum, acc);
    }
  }
}
