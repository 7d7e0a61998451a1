// Products of matrices of half types on tensor cores, summed in f32: `tile.cu` with the same offsets, another inside.
//
// A block computes BM x BN sums, BK terms at a time, its tiles STAGES deep in shared memory; WM x WN warps share them.
// Sides whose terms or rows follow each other are copied 4 to 16 bytes at once without waiting, others one by one.
// Defines: BM BN BK WM WN STAGES DT (0 bf16, 1 f16); SORTED, F_UNIT, S_UNIT, F_VEC, S_VEC, O_VEC as in `tile.cu`.

constexpr int THREADS = WM * WN * 32;
constexpr i64 MISSED = -0x7fffffffffffffffll - 1;
constexpr int TM = BM / WM / 16, TN = BN / WN / 8;          // products of a warp
static_assert(BM % (WM * 16) == 0 && BN % (WN * 16) == 0 && BK % 16 == 0 && sizeof(T) == 2, "");

// How a side lies in shared memory: lines of terms, or of rows where these follow each other.
template <int ROWS, int UNIT, int VEC> struct Side {
  static constexpr bool BY_ROWS = UNIT == 1, WIDE = UNIT != 0 && VEC > 1;
  static constexpr int LINES = BY_ROWS ? BK : ROWS, LENGTH = BY_ROWS ? ROWS : BK;
  static constexpr int PITCH = LENGTH * 2 + 16, BYTES = LINES * PITCH;
  static constexpr int CHUNKS = LENGTH / VEC;

  static __device__ __forceinline__ void load(unsigned to, const T* data, const i64* at, const i64* k_at, i64 k0, i64 terms) {
    if constexpr (WIDE) {
      #pragma unroll
      for (int i0 = 0; i0 < LINES * CHUNKS; i0 += THREADS) {
        const int i = i0 + threadIdx.x;
        if (LINES * CHUNKS % THREADS != 0 && i >= LINES * CHUNKS) break;
        const int line = i / CHUNKS, c = i % CHUNKS * VEC;
        const i64 base = at[BY_ROWS ? c : line], along = UNIT == 2 ? k0 + c : k_at[BY_ROWS ? line : c];
        const bool on = base != MISSED && (UNIT == 2 ? along < terms : along != MISSED);
        copy_some<VEC * 2>(to + line * PITCH + c * 2, on ? data + base + along : data, on);
      }
    } else {
      #pragma unroll 4
      for (int i = threadIdx.x; i < ROWS * BK; i += THREADS) {
        const int row = BY_ROWS ? i % ROWS : i / BK, k = BY_ROWS ? i / ROWS : i % BK;
        const i64 base = at[row], along = UNIT == 2 ? k0 + k : k_at[k];
        const bool on = base != MISSED && (UNIT == 2 ? along < terms : along != MISSED);
        const unsigned short bits = on ? data[base + along].bits : (unsigned short)0;
        store_shared(to + (BY_ROWS ? k * PITCH + row * 2 : row * PITCH + k * 2), bits);
      }
    }
  }
  // 16 rows and 16 terms as an operand of the tensor cores: first operand's order of the four parts, or second's.
  template <bool FIRST_OPERAND> static __device__ __forceinline__ void fragment(unsigned (&r)[4], unsigned from, int row, int k) {
    const int lane = threadIdx.x % 32, inner = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
    const int rows = FIRST_OPERAND ? low : high, terms = FIRST_OPERAND ? high : low;
    if constexpr (BY_ROWS) ldsm4t(r, from + (k + terms + inner) * PITCH + (row + rows) * 2);
    else ldsm4(r, from + (row + rows + inner) * PITCH + (k + terms) * 2);
  }
};
typedef Side<BM, F_UNIT, F_VEC> First;
typedef Side<BN, S_UNIT, S_VEC> Second;
constexpr int STAGE_BYTES = First::BYTES + Second::BYTES;
constexpr bool TERM_OFFSETS = F_UNIT != 2 || S_UNIT != 2;
struct Offsets { i64 first_at[BM], second_at[BN], out_m[BM], out_n[BN], first_k[STAGES + 1][BK], second_k[STAGES + 1][BK]; };

extern "C" __global__ void __launch_bounds__(THREADS) tile_half(const __grid_constant__ Params p) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Offsets s;
  const unsigned ring = shared_of(memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, wm = warp / WN * (BM / WM), wn = warp % WN * (BN / WN);
  // PLACE_OF_TILE
    const int steps = (int)((p.terms + BK - 1) / BK);
    // A step's offsets are worked out one step before its copies begin.
    auto offsets_of_terms = [&](int step) {
      if constexpr (TERM_OFFSETS)
        for (int i = threadIdx.x; i < BK; i += THREADS) {
          const i64 k = (i64)step * BK + i;
          bool ok = k < p.terms;
          i64 first = MISSED, second = MISSED;
          if (ok) { OFFSETS_OF_TERM }
          s.first_k[step % (STAGES + 1)][i] = first; s.second_k[step % (STAGES + 1)][i] = second;
        }
    };
    auto start = [&](int step) {
      if (step < steps) {
        const unsigned to = ring + step % STAGES * STAGE_BYTES;
        First::load(to, FIRST, s.first_at, s.first_k[step % (STAGES + 1)], (i64)step * BK, p.terms);
        Second::load(to + First::BYTES, SECOND, s.second_at, s.second_k[step % (STAGES + 1)], (i64)step * BK, p.terms);
      }
      copy_commit();
    };
    for (int step = 0; step < STAGES; step++) offsets_of_terms(step);
    __syncthreads();
    for (int step = 0; step < STAGES - 1; step++) start(step);

    float sum[TM][TN][4];
    #pragma unroll
    for (int i = 0; i < TM; i++)
      #pragma unroll
      for (int j = 0; j < TN; j++)
        #pragma unroll
        for (int c = 0; c < 4; c++) sum[i][j][c] = 0.f;
    for (int step = 0; step < steps; step++) {
      copy_wait<STAGES - 2>();
      __syncthreads();
      start(step + STAGES - 1);
      offsets_of_terms(step + STAGES);
      const unsigned first = ring + step % STAGES * STAGE_BYTES, second = first + First::BYTES;
      #pragma unroll
      for (int k = 0; k < BK; k += 16) {
        unsigned a[TM][4], b[TN / 2][4];
        #pragma unroll
        for (int i = 0; i < TM; i++) First::template fragment<true>(a[i], first, wm + i * 16, k);
        #pragma unroll
        for (int j = 0; j < TN / 2; j++) Second::template fragment<false>(b[j], second, wn + j * 16, k);
        #pragma unroll
        for (int i = 0; i < TM; i++)
          #pragma unroll
          for (int j = 0; j < TN; j++) mma(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
    copy_wait<0>();

    #pragma unroll
    for (int i = 0; i < TM; i++)
      #pragma unroll
      for (int r = 0; r < 2; r++) {
        const int row = wm + i * 16 + r * 8 + lane / 4;
        const i64 m = s.out_m[row];
        if (m == MISSED) continue;
        const bool row_ok = s.first_at[row] != MISSED;
        #pragma unroll
        for (int j = 0; j < TN; j++) {
          const int column = wn + j * 8 + lane % 4 * 2;
          const i64 n = s.out_n[column];
          if (n == MISSED) continue;
          const float x = row_ok && s.second_at[column] != MISSED ? sum[i][j][2 * r] : 0.f;
          const float y = row_ok && s.second_at[column + 1] != MISSED ? sum[i][j][2 * r + 1] : 0.f;
          if constexpr (O_VEC > 1) {
            struct alignas(2 * sizeof(U)) Two { U x, y; };
            *(Two*)(p.out + m + n) = Two{NARROW(x), NARROW(y)};
          } else {
            p.out[m + n] = NARROW(x);
            const i64 next = s.out_n[column + 1];
            if (next != MISSED) p.out[m + next] = NARROW(y);
          }
        }
      }
  }
}
