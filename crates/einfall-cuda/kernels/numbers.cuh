// Element types and their arithmetic: what `scalar.rs` is to the CPU. No includes, so that NVRTC needs no headers.
//
// Each element type has an accumulator, `Number<T>::Acc`, exact `widen`, `narrow` rounded to nearest even, and `add` and
// `mul` of accumulators. Integers wrap; truth values are joined by "or" and "and".

typedef long long i64;
typedef unsigned long long u64;

// Division of numbers below 2^31 by a number that the host knew: `Fields::divisor`.
struct Divisor { unsigned factor, shift; };
__device__ __forceinline__ unsigned quotient(unsigned x, Divisor by) { return (__umulhi(x, by.factor) + x) >> by.shift; }

struct half16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };
struct truth8 { unsigned char value; };
template <class R> struct complex { R re, im; };

__device__ __forceinline__ float widen_half(half16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
__device__ __forceinline__ half16 narrow_half(float x) {
  half16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
__device__ __forceinline__ float widen_bfloat(bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ __forceinline__ bfloat16 narrow_bfloat(float x) {
  bfloat16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
// The nearest f32 towards zero, its last bit set if anything was cut off: rounding it again to a half type gives what
// rounding the f64 once would (Boldo and Melquiond, 2005).
__device__ __forceinline__ float to_odd(double x) {
  float near = __double2float_rz(x);
  if ((double)near == x || x != x) return near;
  return __uint_as_float(__float_as_uint(near) | 1u);
}

template <class T> struct Number {
  typedef T Acc;
  static __device__ __forceinline__ T zero() { return T(0); }
  static __device__ __forceinline__ T widen(T x) { return x; }
  static __device__ __forceinline__ T narrow(T x) { return x; }
  static __device__ __forceinline__ T add(T a, T b) { return a + b; }
  static __device__ __forceinline__ T mul(T a, T b) { return a * b; }
};
// What is summed in f32.
struct InFloat {
  typedef float Acc;
  static __device__ __forceinline__ float zero() { return 0.f; }
  static __device__ __forceinline__ float add(float a, float b) { return a + b; }
  static __device__ __forceinline__ float mul(float a, float b) { return a * b; }
};
template <> struct Number<half16> : InFloat {
  static __device__ __forceinline__ float widen(half16 x) { return widen_half(x); }
  static __device__ __forceinline__ half16 narrow(float x) { return narrow_half(x); }
};
template <> struct Number<bfloat16> : InFloat {
  static __device__ __forceinline__ float widen(bfloat16 x) { return widen_bfloat(x); }
  static __device__ __forceinline__ bfloat16 narrow(float x) { return narrow_bfloat(x); }
};
template <> struct Number<truth8> {
  typedef truth8 Acc;
  static __device__ __forceinline__ truth8 zero() { return {0}; }
  static __device__ __forceinline__ truth8 widen(truth8 x) { return {(unsigned char)(x.value != 0)}; }
  static __device__ __forceinline__ truth8 narrow(truth8 x) { return x; }
  static __device__ __forceinline__ truth8 add(truth8 a, truth8 b) { return {(unsigned char)(a.value | b.value)}; }
  static __device__ __forceinline__ truth8 mul(truth8 a, truth8 b) { return {(unsigned char)(a.value & b.value)}; }
};
template <class R> struct Number<complex<R>> {
  typedef complex<R> C;
  typedef C Acc;
  static __device__ __forceinline__ C zero() { return {R(0), R(0)}; }
  static __device__ __forceinline__ C widen(C x) { return x; }
  static __device__ __forceinline__ C narrow(C x) { return x; }
  static __device__ __forceinline__ C add(C a, C b) { return {a.re + b.re, a.im + b.im}; }
  static __device__ __forceinline__ C mul(C a, C b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
};

// A store of a whole pack: where it is not named, compilers store some packs element by element.
template <class P> __device__ __forceinline__ void store_pack(void* to, const P& from) {
  if constexpr (sizeof(P) == 16) {
    const uint4 w = *(const uint4*)&from;
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" :: "l"(to), "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w) : "memory");
  } else if constexpr (sizeof(P) == 8) {
    const uint2 w = *(const uint2*)&from;
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" :: "l"(to), "r"(w.x), "r"(w.y) : "memory");
  } else *(P*)to = from;
}

// An accumulator as any element type, as NumPy casts: real parts of complex numbers, fractions cut off.
template <class R> __device__ __forceinline__ R real_of(R x) { return x; }
template <class R> __device__ __forceinline__ R real_of(complex<R> x) { return x.re; }
__device__ __forceinline__ int real_of(truth8 x) { return x.value; }
template <class R> __device__ __forceinline__ R imaginary_of(complex<R> x) { return x.im; }
template <class R> __device__ __forceinline__ int imaginary_of(R) { return 0; }

template <class I> struct Whole { static constexpr bool value = false; };
template <> struct Whole<signed char> { static constexpr bool value = true; };
template <> struct Whole<short> { static constexpr bool value = true; };
template <> struct Whole<int> { static constexpr bool value = true; };
template <> struct Whole<i64> { static constexpr bool value = true; };
template <> struct Whole<unsigned char> { static constexpr bool value = true; };
template <> struct Whole<unsigned short> { static constexpr bool value = true; };
template <> struct Whole<unsigned> { static constexpr bool value = true; };
template <> struct Whole<u64> { static constexpr bool value = true; };

template <class U> struct Cast {
  template <class A> static __device__ __forceinline__ U from(A a) {
    auto x = real_of(a);
    if constexpr (Whole<U>::value && !Whole<decltype(x)>::value) {
      if constexpr (U(-1) > U(0) && sizeof(U) == 8) return x < 0 ? (U)(i64)x : (U)x;
      else return (U)(i64)x;
    } else return (U)x;
  }
};
template <> struct Cast<half16> {
  template <class A> static __device__ __forceinline__ half16 from(A a) {
    if constexpr (sizeof(real_of(a)) > 4) return narrow_half(to_odd((double)real_of(a)));
    else return narrow_half((float)real_of(a));
  }
};
template <> struct Cast<bfloat16> {
  template <class A> static __device__ __forceinline__ bfloat16 from(A a) {
    if constexpr (sizeof(real_of(a)) > 4) return narrow_bfloat(to_odd((double)real_of(a)));
    else return narrow_bfloat((float)real_of(a));
  }
};
template <> struct Cast<truth8> {
  template <class A> static __device__ __forceinline__ truth8 from(A a) {
    return {(unsigned char)(real_of(a) != 0 || imaginary_of(a) != 0)};
  }
};
template <class R> struct Cast<complex<R>> {
  template <class A> static __device__ __forceinline__ complex<R> from(A a) {
    return {(R)real_of(a), (R)imaginary_of(a)};
  }
};

// Says that a table holds a value outside its axis; read by the host when it next waits.
__device__ __forceinline__ void report(unsigned* status) { *(volatile unsigned*)status = 1u; }
