/* SPDX-License-Identifier: Apache-2.0
 * arithmetic.h - intrinsic functions on numbers. The fast ones are exact here, so tolerances must come from their
 * documentation. */
#ifndef LATH_TESTS_CUDA_ON_CPU_ARITHMETIC_H
#define LATH_TESTS_CUDA_ON_CPU_ARITHMETIC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }

template <class To, class From>
To emulator_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits keep their number");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}
inline float __uint_as_float(unsigned x) { return emulator_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return emulator_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulator_bits<float>(x); }
inline int __float_as_int(float x) { return emulator_bits<int>(x); }

template <class T>
T __ldg(const T *address) {
  return *address;
}

#endif
