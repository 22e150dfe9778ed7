/* SPDX-License-Identifier: Apache-2.0
 * times.h - inside the library: how long products are expected to take. What the planners of all families count with.
 *
 * The time of a kernel is its launch plus the longest of what it moves and what it computes. The rates are those of an H100-class
 * GPU, from its data sheet and taken at what such kernels commonly reach. NOT MEASURED: no GPU was at hand. docs/cuda.md has
 * the formulas. */
#ifndef LATH_CUDA_GEMM_TIMES_H
#define LATH_CUDA_GEMM_TIMES_H

#include "core/device.h"

/* One kernel after another on a stream: about 2 us from the end of one to the first loads of the next. */
#define LATH_LAUNCH_NS 2200.0

/* Bytes per nanosecond and multiprocessor: memory 3.35 TB/s over 132, L2 5.5 TB/s over 132. */
#define LATH_MEMORY_RATE 25.0
#define LATH_CACHE_RATE 40.0

/* Of one call: on which device, with which library, in which type. */
struct lath_times {
  double multiprocessors, product_rate, bytes; /* of an element */
  int bias_is_free;                            /* added by the kernel of the product that it belongs to */
};

struct lath_times lath_times_of(lath_dtype dtype, const struct lath_cuda *cuda, const struct lath_device *device);

/* All in nanoseconds: a product (m, k) (k, n), and what its bias takes beside it. */
double lath_product_time(const struct lath_times *times, int64_t m, int64_t n, int64_t k);
double lath_bias_time(const struct lath_times *times, const void *bias, int64_t rows, int64_t cols);

static inline double lath_longest(double a, double b) { return a > b ? a : b; }

#endif
