// Tensor cores by inline PTX: fragments, copies that do not wait, packing. No includes.
// Defines: DT (0 bf16, 1 f16).
typedef long long i64;
typedef unsigned long long u64;
typedef unsigned u32;
#ifndef DT
#define DT 0
#endif

#define NINF __int_as_float(0xff800000)
__device__ __forceinline__ u32 shared_of(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ float exp2_fast(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
__device__ __forceinline__ u32 pack2(float lo, float hi) {
  u32 r;
#if DT == 0
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
#else
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
#endif
  return r;
}
__device__ __forceinline__ float2 unpack2(u32 x) {
#if DT == 0
  return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u));
#else
  float lo, hi;
  asm("{.reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}" : "=f"(lo), "=f"(hi) : "r"(x));
  return make_float2(lo, hi);
#endif
}
// 16 bytes from global to shared memory; zeros where it is left out (nothing is read then). Gathered rows go by way of the
// L1: measured on an H100, 7.5 TB/s of rows of 256 bytes, where copies past it bring 5.2.
__device__ __forceinline__ void copy16(u32 to, const void* from, bool on) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" :: "r"(to), "l"(from), "r"(on ? 16 : 0) : "memory");
}
template <int BYTES> __device__ __forceinline__ void copy_some(u32 to, const void* from, bool on) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" :: "r"(to), "l"(from), "n"(BYTES), "r"(on ? BYTES : 0) : "memory");
}
// The same past the L1, for rows that follow each other.
__device__ __forceinline__ void copy16_past(u32 to, const void* from, bool on) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" :: "r"(to), "l"(from), "r"(on ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }
__device__ __forceinline__ void store_shared(u32 at, float x) { asm volatile("st.shared.f32 [%0], %1;" :: "r"(at), "f"(x) : "memory"); }
__device__ __forceinline__ void store_shared(u32 at, u32 x) { asm volatile("st.shared.u32 [%0], %1;" :: "r"(at), "r"(x) : "memory"); }
__device__ __forceinline__ void store_shared(u32 at, unsigned short x) { asm volatile("st.shared.u16 [%0], %1;" :: "r"(at), "h"(x) : "memory"); }
__device__ __forceinline__ void store_shared(u32 at, float x, float y) { asm volatile("st.shared.v2.f32 [%0], {%1, %2};" :: "r"(at), "f"(x), "f"(y) : "memory"); }
template <int N> __device__ __forceinline__ void sync_some(int id) { asm volatile("bar.sync %0, %1;" :: "r"(id), "n"(N) : "memory"); }
__device__ __forceinline__ void ldsm4(u32 (&r)[4], u32 a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
__device__ __forceinline__ void ldsm4t(u32 (&r)[4], u32 a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
// c += a b; a is 16 x 16 row-major, b 16 x 8.
__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if DT == 0
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The same where rows 8..15 hold nothing.
__device__ __forceinline__ void mma(float (&c)[2], const u32 (&a)[4], u32 b0, u32 b1) {
  [[maybe_unused]] float x, y;
#if DT == 0
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%10,%10};"
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%10,%10};"
#endif
    : "+f"(c[0]), "+f"(c[1]), "=f"(x), "=f"(y) : "r"(a[0]), "r"(0), "r"(a[2]), "r"(0), "r"(b0), "r"(b1), "f"(0.f));
}
// Barriers in shared memory (sm_90).
__device__ __forceinline__ void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void barrier_init(u32 b, u32 count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(b), "r"(count) : "memory"); }
__device__ __forceinline__ void barrier_arrive(u32 b) { asm volatile("{.reg .b64 s; mbarrier.arrive.shared::cta.b64 s, [%0];}" :: "r"(b) : "memory"); }
__device__ __forceinline__ void barrier_arrive_copied(u32 b) { asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" :: "r"(b) : "memory"); }
__device__ __forceinline__ void barrier_wait(u32 b, u32 phase) {
  asm volatile("{.reg .pred p;\nAGAIN: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra AGAIN;\nDONE:\n}" :: "r"(b), "r"(phase) : "memory");
}
