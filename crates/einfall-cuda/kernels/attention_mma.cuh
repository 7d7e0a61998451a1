// Attention of half types with the matrix units: 16 rows at a time against one vector. All 16 rows of operand A are the same vector, so
// its layout needs no exchange between lanes: products come out where weights are read. Stands behind attention.cuh.
//
// As columns (for products), lane 4 g + j holds of rows g and g + 8 the chunks j, j + 4, ...; the vector in the same way. As lines
// (for sums), it holds chunks g, g + 8, ... of the rows 2 j, 2 j + 1, 2 j + 8, 2 j + 9, whose elements are paired by row.
// D and E are multiples of 8, rows and vectors 16-byte aligned.
#if DTYPE == BF16
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
__device__ __forceinline__ unsigned pair(float low, float high) { unsigned y; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low)); return y; }
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
__device__ __forceinline__ unsigned pair(float low, float high) { unsigned y; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low)); return y; }
#endif
constexpr int COLUMNS_D = (D + 31) / 32, COLUMNS_E = (E + 31) / 32, LINES_D = (D + 63) / 64, LINES_E = (E + 63) / 64;

__device__ __forceinline__ void multiply(float (&c)[4], unsigned a0, unsigned a2, unsigned b0, unsigned b1) {
  asm(MMA " {%0, %1, %2, %3}, {%4, %4, %5, %5}, {%6, %7}, {%0, %1, %2, %3};" : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a2), "r"(b0), "r"(b1));
}
template <bool ALL> __device__ __forceinline__ Chunk<16> fetch(const T* a, bool on) {
  if constexpr (ALL) {
    const uint4 x = __ldg((const uint4*)a);
    return {{x.x, x.y, x.z, x.w}};
  } else return load<16, 0>(a, on);
}
// Which of the 16 a lane's i-th line is.
__device__ __forceinline__ unsigned line_of(unsigned j, int i) { return 2 * j + (i & 1) + (i & 2) * 4; }

template <int LEN, int COUNT> __device__ __forceinline__ void load_vector(const T* a, bool on, unsigned j, Chunk<16> (&q)[COUNT]) {
  #pragma unroll
  for (int c = 0; c < COUNT; c++) q[c] = load<16, 0>(a + (c * 4 + j) * 8, on && (LEN % 32 == 0 || (c * 4 + j) * 8 < LEN));
}
template <int LEN, bool ALL, int COUNT> __device__ __forceinline__ void load_columns(const T* const (&a)[2], const bool (&on)[2], unsigned j, Chunk<16> (&k)[2][COUNT]) {
  #pragma unroll
  for (int i = 0; i < 2; i++)
    #pragma unroll
    for (int c = 0; c < COUNT; c++) k[i][c] = fetch<ALL && LEN % 32 == 0>(a[i] + (c * 4 + j) * 8, on[i] && (c * 4 + j) * 8 < LEN);
}
template <int LEN, bool ALL, int COUNT> __device__ __forceinline__ void load_lines(const T* const (&a)[4], const bool (&on)[4], unsigned g, Chunk<16> (&v)[4][COUNT]) {
  #pragma unroll
  for (int i = 0; i < 4; i++)
    #pragma unroll
    for (int c = 0; c < COUNT; c++) v[i][c] = fetch<ALL && LEN % 64 == 0>(a[i] + (c * 8 + g) * 8, on[i] && (c * 8 + g) * 8 < LEN);
}

// The products of the vector with lines line_of(j, 0..4).
template <int COUNT> __device__ __forceinline__ void products(const Chunk<16> (&q)[COUNT], const Chunk<16> (&k)[2][COUNT], float (&w)[4]) {
  float s[2][4] = {};
  #pragma unroll
  for (int i = 0; i < 2; i++)
    #pragma unroll
    for (int c = 0; c < COUNT; c++) {
      multiply(s[i], q[c].w[0], q[c].w[1], k[i][c].w[0], k[i][c].w[1]);
      multiply(s[i], q[c].w[2], q[c].w[3], k[i][c].w[2], k[i][c].w[3]);
    }
  w[0] = s[0][0]; w[1] = s[0][1]; w[2] = s[1][0]; w[3] = s[1][1];
}
// Adds the lines, each times its weight: acc[c * 8 + t] has element t of chunks c * 8 + 2 j and c * 8 + 2 j + 1.
template <int COUNT> __device__ __forceinline__ void add_lines(const float (&w)[4], const Chunk<16> (&v)[4][COUNT], float (&acc)[COUNT * 8][4]) {
  const unsigned a0 = pair(w[0], w[1]), a2 = pair(w[2], w[3]);
  #pragma unroll
  for (int c = 0; c < COUNT; c++)
    #pragma unroll
    for (int t = 0; t < 8; t++) {
      const unsigned take = t & 1 ? 0x7632 : 0x5410;
      multiply(acc[c * 8 + t], a0, a2, __byte_perm(v[0][c].w[t / 2], v[1][c].w[t / 2], take), __byte_perm(v[2][c].w[t / 2], v[3][c].w[t / 2], take));
    }
}
// Every g has the same sums: each lane writes a pair of elements.
template <int LEN, int COUNT> __device__ __forceinline__ void write_sums(T* to, unsigned g, unsigned j, float factor, const float (&acc)[COUNT * 8][4]) {
  #pragma unroll
  for (int c = 0; c < COUNT; c++) {
    float low = 0, high = 0;
    #pragma unroll
    for (int t = 0; t < 8; t += 2)
      if (t / 2 == (int)(g % 4)) {
        low = g < 4 ? acc[c * 8 + t][0] : acc[c * 8 + t][1];
        high = g < 4 ? acc[c * 8 + t + 1][0] : acc[c * 8 + t + 1][1];
      }
    const unsigned chunk = c * 8 + 2 * j + g / 4;
    if (LEN % 64 == 0 || chunk * 8 < LEN) *(unsigned*)(to + chunk * 8 + 2 * (g % 4)) = pair(low * factor, high * factor);
  }
}

// Rows of 16 places of a list as columns and lines; `row` is that of place lane % 16.
struct Rows {
  const T *ka[2], *kb[4], *va[2], *vb[4];
  bool on[2], in[4];
};
__device__ __forceinline__ void rows_of(const Params& p, const Place& at, int row, unsigned g, unsigned j, Rows& r) {
  #pragma unroll
  for (int i = 0; i < 2; i++) {
    const int x = __shfl_sync(~0u, row, g + 8 * i);
    r.on[i] = x >= 0; r.ka[i] = p.key + at.k + (i64)x * p.row_k; r.va[i] = p.value + at.v + (i64)x * p.row_v;
  }
  #pragma unroll
  for (int i = 0; i < 4; i++) {
    const int x = __shfl_sync(~0u, row, line_of(j, i));
    r.in[i] = x >= 0; r.kb[i] = p.key + at.k + (i64)x * p.row_k; r.vb[i] = p.value + at.v + (i64)x * p.row_v;
  }
}
