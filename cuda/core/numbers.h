/* SPDX-License-Identifier: Apache-2.0
 * numbers.h - for kernels: element types, the type that their sums are kept in, and 16 bytes at a time. */
#ifndef LATH_CUDA_CORE_NUMBERS_H
#define LATH_CUDA_CORE_NUMBERS_H

#include "device/kernel.h"

template <class T>
struct lath_sum_of {
  typedef float type;
};
template <>
struct lath_sum_of<double> {
  typedef double type;
};

static __device__ inline float lath_number(float x) { return x; }
static __device__ inline double lath_number(double x) { return x; }
static __device__ inline float lath_number(__half x) { return __half2float(x); }
static __device__ inline float lath_number(__nv_bfloat16 x) { return __bfloat162float(x); }

/* *to = x, rounded to nearest even. */
static __device__ inline void lath_round(float x, float *to) { *to = x; }
static __device__ inline void lath_round(double x, double *to) { *to = x; }
static __device__ inline void lath_round(float x, __half *to) { *to = __float2half_rn(x); }
static __device__ inline void lath_round(float x, __nv_bfloat16 *to) { *to = __float2bfloat16_rn(x); }

/* Bytes of any type, for loads and stores at addresses that are multiples of their number. */
#ifdef __CUDACC__
typedef unsigned lath_4_bytes;
typedef uint2 lath_8_bytes;
typedef uint4 lath_16_bytes;
#else
typedef unsigned __attribute__((may_alias)) lath_4_bytes;
typedef unsigned __attribute__((may_alias, vector_size(8))) lath_8_bytes;
typedef unsigned __attribute__((may_alias, vector_size(16))) lath_16_bytes;
#endif

/* e[0 ..] = the 16 / sizeof(T) elements at `from`. */
template <class T>
static __device__ inline void lath_load_16(T *e, const T *from) {
  const lath_16_bytes bits = *reinterpret_cast<const lath_16_bytes *>(from);
  memcpy(static_cast<void *>(e), &bits, sizeof bits);
}

#endif
