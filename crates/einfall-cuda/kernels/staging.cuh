// Staging: all rows of a group into shared memory, once a block (or once a cluster).
// STAGE: 0 element loads (any stride and alignment), 1 cp.async of 16 bytes, 2 bulk copies (sm_90: rows contiguous and a
// multiple of 16 bytes), 3 bulk copies, each block of a cluster of CLUSTER sends its share to all.
#ifndef CLUSTER
#define CLUSTER 1
#endif
#ifndef SLICES
#define SLICES 1
#endif
constexpr int SLICE = D / SLICES;                                // elements of a row staged at a time
constexpr int SIZE = sizeof(T);
constexpr int PER = 16 / SIZE;                                   // elements of a 16-byte chunk
constexpr int ROW_CHUNKS = (SLICE * SIZE + 15) / 16;                 // of a row
constexpr int PITCH = ROW_CHUNKS * 16;
// Lanes read a row's chunks in an order of their own, so that 8 lanes on 8 rows meet in no bank:
// chunk c is read as c ^ (lane % TWIST).
constexpr int TWIST = ROW_CHUNKS % 8 == 0 ? 8 : ROW_CHUNKS % 4 == 0 ? 4 : ROW_CHUNKS % 2 == 0 ? 2 : 1;

__device__ __forceinline__ void barrier_init(unsigned b) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(b) : "memory");
#if STAGE == 3
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void barrier_expect(unsigned b, unsigned bytes) {
  asm volatile("{.reg .b64 s; mbarrier.arrive.expect_tx.shared::cta.b64 s, [%0], %1;}" :: "r"(b), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_wait(unsigned b, unsigned phase) {
  asm volatile("{.reg .pred p;\nAGAIN: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra AGAIN;\nDONE:\n}"
               :: "r"(b), "r"(phase) : "memory");
}

// Starts it. Every thread of the block calls this, then stage_finish. n rows, row stride in elements.
__device__ __forceinline__ void stage_start(unsigned memory, unsigned barrier, const T* from, unsigned n, i64 row, unsigned threads) {
#if STAGE >= 2
  const unsigned bytes = n * PITCH;
  if (threadIdx.x == 0) {
    barrier_init(barrier);
    if (bytes) barrier_expect(barrier, bytes);
  }
#if STAGE == 3
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
  if (threadIdx.x == 0) {
    unsigned rank; asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    const unsigned first = (unsigned)((u64)n * rank / CLUSTER) * PITCH, last = (unsigned)((u64)n * (rank + 1) / CLUSTER) * PITCH;
    for (unsigned i = first; i < last; i += 16384) {
      const unsigned part = min(16384u, last - i);
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;"
                   :: "r"(memory + i), "l"((const char*)from + i), "r"(part), "r"(barrier), "h"((unsigned short)((1 << CLUSTER) - 1)) : "memory");
    }
  }
#else
  if (threadIdx.x == 0)
    for (unsigned i = 0; i < bytes; i += 16384) {
      const unsigned part = min(16384u, bytes - i);
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                   :: "r"(memory + i), "l"((const char*)from + i), "r"(part), "r"(barrier) : "memory");
    }
#endif
#elif STAGE == 1
  for (unsigned i = threadIdx.x; i < n * ROW_CHUNKS; i += threads) {
    const unsigned r = i / ROW_CHUNKS, c = i % ROW_CHUNKS;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(memory + i * 16), "l"(from + (i64)r * row + c * PER) : "memory");
  }
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  for (unsigned i = threadIdx.x; i < n * (PITCH / SIZE); i += threads) {
    const unsigned r = i / (PITCH / SIZE), d = i % (PITCH / SIZE);
    Chunk<SIZE> c = load<SIZE, 1>(from + (i64)r * row + d, d < SLICE);
    if constexpr (SIZE == 8) asm volatile("st.shared.v2.u32 [%0], {%1, %2};" :: "r"(memory + i * 8), "r"(c.w[0]), "r"(c.w[SIZE / 8]) : "memory");
    else if constexpr (SIZE == 4) asm volatile("st.shared.u32 [%0], %1;" :: "r"(memory + i * 4), "r"(c.w[0]) : "memory");
    else asm volatile("st.shared.u16 [%0], %1;" :: "r"(memory + i * 2), "h"((unsigned short)c.w[0]) : "memory");
  }
#endif
}
__device__ __forceinline__ void stage_finish(unsigned barrier, unsigned n) {
#if STAGE >= 2
  __syncthreads();                      // the barrier has been made
  if (n) barrier_wait(barrier, 0);
#else
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
#endif
}
