// Products of matrices: a block computes a tile of BM x BN sums, BK terms at a time, a thread TM x TN of them.
//
// "First" is the side whose loops are the tile's rows, "second" the side whose are its columns. Where an element lies is
// the sum of an offset of its row or column and one of its term, which the block works out once: so rows may be looked
// up, and strides may be any. Macros that the generated text defines: FIRST, SECOND (pointers), BATCH(code), and the
// bodies that fill offsets. What is left out has the offset MISSED and counts as zero on both sides.
// Defines: BM BN BK TM TN; ONCE: all terms are there at once; F_UNIT, S_UNIT: where terms follow each other in memory 2, or 3 if only
// those of the last of several loops do, 1 where rows (columns) do, 0 else;
// F_VEC, S_VEC, O_VEC: elements that are loaded and stored at once (O_VEC: columns follow each other in the output).

constexpr int THREADS = (BM / TM) * (BN / TN);
constexpr int MIN_BLOCKS = sizeof(A) <= 4 ? 512 / THREADS : 1;
constexpr int PAD = 16 / (sizeof(A) < 16 ? sizeof(A) : 16);
constexpr i64 MISSED = -0x7fffffffffffffffll - 1;
constexpr int GROUP = 4;                    // neighbours that a thread has side by side

template <class V, int N> struct alignas(sizeof(V) * N) Run { V x[N]; };

struct Shared {
  alignas(16) A first[BK][BM + PAD];
  alignas(16) A second[BK][BN + PAD];
  i64 first_at[BM], second_at[BN], out_m[BM], out_n[BN], first_k[2][BK], second_k[2][BK];
};

// The part of a side's tile that a thread brings: ROWS rows, UNIT and VEC as above.
template <int ROWS, int UNIT, int VEC> struct Part {
  static constexpr int RUNS = ROWS * BK / VEC, EACH = (RUNS + THREADS - 1) / THREADS;
  A value[EACH][VEC];

  static __device__ __forceinline__ void place(int run, int& row, int& k) {
    if constexpr (UNIT == 1) { row = run % (ROWS / VEC) * VEC; k = run / (ROWS / VEC); }
    else { k = run % (BK / VEC) * VEC; row = run / (BK / VEC); }
  }
  __device__ __forceinline__ void load(const T* data, const i64* at, const i64* k_at, i64 k0, i64 terms) {
    #pragma unroll
    for (int e = 0; e < EACH; e++) {
      const int run = e * THREADS + threadIdx.x;
      #pragma unroll
      for (int v = 0; v < VEC; v++) value[e][v] = N::zero();
      if (RUNS % THREADS != 0 && run >= RUNS) continue;
      int row, k;
      place(run, row, k);
      // A run is there as a whole or not at all: the length of what it lies along is a multiple of VEC.
      const i64 base = at[row];
      if (base == MISSED) continue;
      if constexpr (UNIT == 0) {
        #pragma unroll
        for (int v = 0; v < VEC; v++)
          if (k_at[k + v] != MISSED) value[e][v] = N::widen(data[base + k_at[k + v]]);
      } else {
        const i64 along = UNIT == 2 ? k0 + k : k_at[k];
        if (UNIT == 2 ? along >= terms : along == MISSED) continue;
        const Run<T, VEC> r = *(const Run<T, VEC>*)(data + base + along);
        #pragma unroll
        for (int v = 0; v < VEC; v++) value[e][v] = N::widen(r.x[v]);
      }
    }
  }
  template <int WIDE> __device__ __forceinline__ void store(A (&to)[BK][WIDE]) const {
    #pragma unroll
    for (int e = 0; e < EACH; e++) {
      const int run = e * THREADS + threadIdx.x;
      if (RUNS % THREADS != 0 && run >= RUNS) continue;
      int row, k;
      place(run, row, k);
      #pragma unroll
      for (int v = 0; v < VEC; v++) {
        if constexpr (UNIT == 1) to[k][row + v] = value[e][v];
        else to[k + v][row] = value[e][v];
      }
    }
  }
};

template <int COUNT, int WIDE> __device__ __forceinline__ void fragment(A (&x)[COUNT], const A (&from)[WIDE], int which, int span) {
  #pragma unroll
  for (int g = 0; g < COUNT / GROUP; g++) {
    const Run<A, GROUP> r = *(const Run<A, GROUP>*)&from[g * span + which * GROUP];
    #pragma unroll
    for (int i = 0; i < GROUP; i++) x[g * GROUP + i] = r.x[i];
  }
}

__device__ __forceinline__ A multiply_add(A a, A b, A sum) { return N::add(sum, N::mul(a, b)); }

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) tile(const __grid_constant__ Params p) {
  __shared__ Shared s;
  const unsigned tx = threadIdx.x % (BN / TN), ty = threadIdx.x / (BN / TN);
  // PLACE_OF_TILE
    auto offsets_of_terms = [&](i64 k0, int half) {
#if F_UNIT != 2 || S_UNIT != 2
      for (int i = threadIdx.x; i < BK; i += THREADS) {
        const i64 k = k0 + i;
        bool ok = k < p.terms;
        i64 first = MISSED, second = MISSED;
        if (ok) { OFFSETS_OF_TERM }
        s.first_k[half][i] = first; s.second_k[half][i] = second;
      }
#endif
    };
    offsets_of_terms(0, 0);
    __syncthreads();

    Part<BM, F_UNIT, F_VEC> first;
    Part<BN, S_UNIT, S_VEC> second;
    A sum[TM][TN];
    #pragma unroll
    for (int i = 0; i < TM; i++)
      #pragma unroll
      for (int j = 0; j < TN; j++) sum[i][j] = N::zero();
    first.load(FIRST, s.first_at, s.first_k[0], 0, p.terms);
    second.load(SECOND, s.second_at, s.second_k[0], 0, p.terms);
    int half = 0;
    for (i64 k0 = 0; k0 < p.terms; k0 += BK, half ^= 1) {
      first.store(s.first);
      second.store(s.second);
      const bool more = !ONCE && k0 + BK < p.terms;
      if (more) offsets_of_terms(k0 + BK, half ^ 1);
      __syncthreads();
      if (more) {
        first.load(FIRST, s.first_at, s.first_k[half ^ 1], k0 + BK, p.terms);
        second.load(SECOND, s.second_at, s.second_k[half ^ 1], k0 + BK, p.terms);
      }
      #pragma unroll 16
      for (int k = 0; k < BK; k++) {
        A a[TM], b[TN];
        fragment(a, s.first[k], ty, BM / (TM / GROUP));
        fragment(b, s.second[k], tx, BN / (TN / GROUP));
        #pragma unroll
        for (int i = 0; i < TM; i++)
          #pragma unroll
          for (int j = 0; j < TN; j++) sum[i][j] = multiply_add(a[i], b[j], sum[i][j]);
      }
      __syncthreads();
    }

    bool there[TN];
    i64 out_n[TN / O_VEC];
    #pragma unroll
    for (int j = 0; j < TN; j++) {
      const int column = j / GROUP * (BN / (TN / GROUP)) + tx * GROUP + j % GROUP;
      there[j] = s.second_at[column] != MISSED;
      if (j % O_VEC == 0) out_n[j / O_VEC] = s.out_n[column];
    }
    #pragma unroll
    for (int i = 0; i < TM; i++) {
      const int row = i / GROUP * (BM / (TM / GROUP)) + ty * GROUP + i % GROUP;
      const i64 m = s.out_m[row];
      if (m == MISSED) continue;
      const bool row_ok = s.first_at[row] != MISSED;
      #pragma unroll
      for (int j = 0; j < TN; j += O_VEC) {
        if (out_n[j / O_VEC] == MISSED) continue;
        Run<U, O_VEC> r;
        #pragma unroll
        for (int v = 0; v < O_VEC; v++) r.x[v] = NARROW(row_ok && there[j + v] ? sum[i][j + v] : N::zero());
        *(Run<U, O_VEC>*)(p.out + m + out_n[j / O_VEC]) = r;
      }
    }
  }
}
