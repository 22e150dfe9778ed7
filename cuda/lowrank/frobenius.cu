/* SPDX-License-Identifier: Apache-2.0
 * frobenius.cu - the inner product of two Gram matrices, and a Gram matrix times a number that lies on the device. */
#include "lowrank/frobenius.h"

#include "core/numbers.h"

enum { THREADS = 256, MOST_BLOCKS = 1 << 16 };

/* The sum over the block of one number per thread, in thread 0, which alone may read it; the order is that of a binary tree. */
static __device__ double block_sum(double *shared, double mine) {
  const int i = (int)threadIdx.x;
  shared[i] = mine;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (i < half) shared[i] += shared[i + half];
  }
  return i == 0 ? shared[0] : 0.0;
}

/* launch: dot_parts threads=256 shared=0 */
template <class S>
static __global__ void __launch_bounds__(THREADS) dot_parts(int64_t count, const S *a, const S *b, double *partial) {
  __shared__ double shared[THREADS];
  double sum = 0;
  for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += (int64_t)gridDim.x * THREADS)
    sum += (double)a[i] * (double)b[i];
  sum = block_sum(shared, sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

/* launch: add_parts threads=256 shared=0 */
template <class S>
static __global__ void __launch_bounds__(THREADS) add_parts(int parts, const double *partial, S *value) {
  __shared__ double shared[THREADS];
  const double sum = block_sum(shared, (int)threadIdx.x < parts ? partial[threadIdx.x] : 0.0);
  if (threadIdx.x == 0) *value = (S)sum;
}

/* launch: scale_gram threads=256 shared=0 */
template <class S>
static __global__ void __launch_bounds__(THREADS) scale_gram(int64_t count, const S *gram, const S *scale, S *scaled) {
  const S factor = 2 * *scale;
  for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += (int64_t)gridDim.x * THREADS)
    scaled[i] = factor * gram[i];
}

/* ---- host ---------------------------------------------------------------------------------------------------------------- */

static int64_t blocks(int64_t count, int64_t most) {
  const int64_t wanted = (count + THREADS - 1) / THREADS;
  return wanted < 1 ? 1 : wanted < most ? wanted : most;
}

template <class S>
static void dot(int64_t count, const void *a, const void *b, void *value, double *partial, void *stream) {
  const int parts = (int)blocks(count, LATH_FROBENIUS_PARTS);
  LATH_LAUNCH((dot_parts<S>), dim3((unsigned)parts), dim3(THREADS), 0, stream, count, static_cast<const S *>(a),
              static_cast<const S *>(b), partial);
  LATH_LAUNCH((add_parts<S>), dim3(1), dim3(THREADS), 0, stream, parts, static_cast<const double *>(partial),
              static_cast<S *>(value));
}

extern "C" int lath_cuda_dot(lath_dtype sums, int64_t count, const void *a, const void *b, void *value, void *partial,
                             void *stream) {
  if (sums == LATH_F64)
    dot<double>(count, a, b, value, static_cast<double *>(partial), stream);
  else
    dot<float>(count, a, b, value, static_cast<double *>(partial), stream);
  return cudaGetLastError();
}

template <class S>
static void scale_all(int64_t count, const void *gram, const void *scale, void *scaled, void *stream) {
  LATH_LAUNCH((scale_gram<S>), dim3((unsigned)blocks(count, MOST_BLOCKS)), dim3(THREADS), 0, stream, count,
              static_cast<const S *>(gram), static_cast<const S *>(scale), static_cast<S *>(scaled));
}

extern "C" int lath_cuda_scale(lath_dtype sums, int64_t count, const void *gram, const void *scale, void *scaled,
                               void *stream) {
  if (count == 0) return cudaSuccess;
  if (sums == LATH_F64)
    scale_all<double>(count, gram, scale, scaled, stream);
  else
    scale_all<float>(count, gram, scale, scaled, stream);
  return cudaGetLastError();
}
