/* SPDX-License-Identifier: Apache-2.0
 * times.c - how long products are expected to take. */
#include "gemm/times.h"

#include "core/blas.h"
#include "gemm/lt.h"
#include "gemm/product.h"

/* Operations (a multiply-add is two) per nanosecond and multiprocessor. Tensor cores 989 TFLOP/s in 16 bits, half of it in
 * TF32; the library reaches two thirds. Arithmetic units: 67 TFLOP/s. */
#define LIBRARY_16_BIT_RATE 5000.0
#define LIBRARY_TF32_RATE 2500.0
#define LIBRARY_F32_RATE 380.0
#define LIBRARY_F64_RATE 300.0
#define TILED_RATE 150.0

/* The handle tells whether floats may be cut to TF32. */
static double product_rate(lath_dtype dtype, const struct lath_cuda *cuda) {
  if (!lath_cuda_has_blas(cuda)) return TILED_RATE;
  if (lath_is_16_bit(dtype)) return LIBRARY_16_BIT_RATE;
  if (dtype == LATH_F64) return LIBRARY_F64_RATE;
  return lath_blas_math(cuda->blas) == CUBLAS_TF32_TENSOR_OP_MATH ? LIBRARY_TF32_RATE : LIBRARY_F32_RATE;
}

struct lath_times lath_times_of(lath_dtype dtype, const struct lath_cuda *cuda, const struct lath_device *device) {
  return (struct lath_times){.multiprocessors = device->multiprocessors,
                             .product_rate = product_rate(dtype, cuda),
                             .bytes = (double)lath_dtype_size(dtype),
                             .bias_is_free = !lath_cuda_has_blas(cuda) || lath_lt_adds_bias(dtype, cuda)};
}

double lath_product_time(const struct lath_times *t, int64_t m, int64_t n, int64_t k) {
  const double bytes = ((double)m * (double)k + (double)k * (double)n + (double)m * (double)n) * t->bytes;
  const double operations = 2.0 * (double)m * (double)n * (double)k;
  return LATH_LAUNCH_NS + lath_longest(bytes / LATH_MEMORY_RATE, operations / t->product_rate) / t->multiprocessors;
}

/* cuBLAS without cuBLASLt starts from the bias: the output is written and read once more. */
double lath_bias_time(const struct lath_times *t, const void *bias, int64_t rows, int64_t cols) {
  if (!bias || t->bias_is_free) return 0.0;
  return LATH_LAUNCH_NS + 2.0 * (double)rows * (double)cols * t->bytes / (LATH_MEMORY_RATE * t->multiprocessors);
}
