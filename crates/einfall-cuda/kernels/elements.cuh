// Element types, chunks of up to 16 bytes, loads and stores. No includes: everything NVRTC has built in.
// Defines expected: DTYPE (F32|F64|BF16|F16), VEC (elements a global load).
#define F32 0
#define F64 1
#define BF16 2
#define F16 3

#if DTYPE == F32
typedef float T;
typedef float Acc;
#elif DTYPE == F64
typedef double T;
typedef double Acc;
#else
typedef unsigned short T;
typedef float Acc;
#endif

#ifndef VEC
#define VEC (16 / sizeof(T))
#endif
typedef unsigned long long u64;
typedef long long i64;

// A chunk is what one load brings: BYTES of 2, 4, 8 or 16.
template <int BYTES> struct Chunk { unsigned w[(BYTES + 3) / 4]; };

template <int BYTES> __device__ __forceinline__ void unpack(const Chunk<BYTES>& c, Acc* x) {
#if DTYPE == F32
  #pragma unroll
  for (int i = 0; i < BYTES / 4; i++) x[i] = __uint_as_float(c.w[i]);
#elif DTYPE == F64
  #pragma unroll
  for (int i = 0; i < BYTES / 8; i++) x[i] = __hiloint2double(c.w[2 * i + 1], c.w[2 * i]);
#elif DTYPE == BF16
  #pragma unroll
  for (int i = 0; i < BYTES / 2; i++) x[i] = __uint_as_float((i & 1) ? (c.w[i / 2] & 0xffff0000u) : (c.w[i / 2] << 16));
#else
  #pragma unroll
  for (int i = 0; i < BYTES / 2; i++) {
    unsigned short h = (unsigned short)((i & 1) ? (c.w[i / 2] >> 16) : c.w[i / 2]);
    asm("cvt.f32.f16 %0, %1;" : "=f"(x[i]) : "h"(h));
  }
#endif
}

__device__ __forceinline__ T narrow(Acc x) {
#if DTYPE == BF16
  unsigned short h; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x)); return h;
#elif DTYPE == F16
  unsigned short h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x)); return h;
#else
  return x;
#endif
}
__device__ __forceinline__ Acc widen(T x) {
#if DTYPE == BF16
  return __uint_as_float((unsigned)x << 16);
#elif DTYPE == F16
  float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x)); return f;
#else
  return x;
#endif
}
template <int BYTES> __device__ __forceinline__ Chunk<BYTES> pack(const Acc* x) {
  Chunk<BYTES> c;
#if DTYPE == F32
  #pragma unroll
  for (int i = 0; i < BYTES / 4; i++) c.w[i] = __float_as_uint(x[i]);
#elif DTYPE == F64
  #pragma unroll
  for (int i = 0; i < BYTES / 8; i++) { c.w[2 * i] = __double2loint(x[i]); c.w[2 * i + 1] = __double2hiint(x[i]); }
#else
  if (BYTES == 2) c.w[0] = narrow(x[0]);
  else {
    #pragma unroll
    for (int i = 0; i < BYTES / 4; i++) c.w[i] = (unsigned)narrow(x[2 * i]) | ((unsigned)narrow(x[2 * i + 1]) << 16);
  }
#endif
  return c;
}

__device__ __forceinline__ Acc fused(Acc a, Acc b, Acc c) {
#if DTYPE == F64
  return __fma_rn(a, b, c);
#else
  return __fmaf_rn(a, b, c);
#endif
}

// Global loads, each under a predicate; a load left out yields zeros. HINT: 0 cached everywhere, 1 not kept in L1,
// 2 streaming: not kept in L1 and first to leave L2.
__device__ __forceinline__ u64 evict_first() {
  u64 p; asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p)); return p;
}
template <int BYTES, int KEEP> __device__ __forceinline__ Chunk<BYTES> load(const void* a, bool on, u64 policy = 0) {
  Chunk<BYTES> c;
  if constexpr (BYTES == 16) {
    if constexpr (KEEP == 0)
      asm("{.reg .pred p; setp.ne.u32 p, %5, 0; mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
          "@p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];}"
          : "=&r"(c.w[0]), "=&r"(c.w[1]), "=&r"(c.w[2]), "=&r"(c.w[3]) : "l"(a), "r"((unsigned)on));
    else if constexpr (KEEP == 1)
      asm("{.reg .pred p; setp.ne.u32 p, %5, 0; mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
          "@p ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];}"
          : "=&r"(c.w[0]), "=&r"(c.w[1]), "=&r"(c.w[2]), "=&r"(c.w[3]) : "l"(a), "r"((unsigned)on));
    else
      asm("{.reg .pred p; setp.ne.u32 p, %5, 0; mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
          "@p ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %6;}"
          : "=&r"(c.w[0]), "=&r"(c.w[1]), "=&r"(c.w[2]), "=&r"(c.w[3]) : "l"(a), "r"((unsigned)on), "l"(policy));
  } else if constexpr (BYTES == 8) {
    asm("{.reg .pred p; setp.ne.u32 p, %3, 0; mov.u32 %0, 0; mov.u32 %1, 0;\n"
        "@p ld.global.nc.v2.u32 {%0, %1}, [%2];}"
        : "=&r"(c.w[0]), "=&r"(c.w[1]) : "l"(a), "r"((unsigned)on));
  } else if constexpr (BYTES == 4) {
    asm("{.reg .pred p; setp.ne.u32 p, %2, 0; mov.u32 %0, 0;\n@p ld.global.nc.u32 %0, [%1];}"
        : "=&r"(c.w[0]) : "l"(a), "r"((unsigned)on));
  } else {
    asm("{.reg .pred p; .reg .u16 h; setp.ne.u32 p, %2, 0; mov.u16 h, 0;\n@p ld.global.nc.u16 h, [%1]; cvt.u32.u16 %0, h;}"
        : "=&r"(c.w[0]) : "l"(a), "r"((unsigned)on));
  }
  return c;
}

template <int BYTES> __device__ __forceinline__ void store(void* a, const Chunk<BYTES>& c) {
  if constexpr (BYTES == 16) *(uint4*)a = make_uint4(c.w[0], c.w[1], c.w[2], c.w[3]);
  else if constexpr (BYTES == 8) *(uint2*)a = make_uint2(c.w[0], c.w[1]);
  else if constexpr (BYTES == 4) *(unsigned*)a = c.w[0];
  else *(unsigned short*)a = (unsigned short)c.w[0];
}

// The same for what is written once and not read again soon.
template <int BYTES> __device__ __forceinline__ void store_stream(void* a, const Chunk<BYTES>& c) {
  if constexpr (BYTES == 16) __stcs((uint4*)a, make_uint4(c.w[0], c.w[1], c.w[2], c.w[3]));
  else if constexpr (BYTES == 8) __stcs((uint2*)a, make_uint2(c.w[0], c.w[1]));
  else if constexpr (BYTES == 4) __stcs((unsigned*)a, c.w[0]);
  else __stcs((unsigned short*)a, (unsigned short)c.w[0]);
}
