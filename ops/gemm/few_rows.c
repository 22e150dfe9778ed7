/* SPDX-License-Identifier: Apache-2.0
 * few_rows.c - products with few rows, which are bound by reading the weights: each weight is read once, where it lies. */
#include "gemm/gemm.h"

/* From this length on, folding the partial sums of an inner product costs less than turning the tiles of `expand`. */
#define LONG_K 128
#define FEWEST_TO_EXPAND 12

/* Rows up to which weights stay where they are: those that fit the caches, and those that do not (here from 8 MiB). */
#define FEW_ROWS 32
#define FEW_ROWS_OF_MANY 64
#define MANY_WEIGHTS (INT64_C(1) << 21)

int lath_few_rows(int64_t rows, int64_t weights) { return rows <= (weights < MANY_WEIGHTS ? FEW_ROWS : FEW_ROWS_OF_MANY); }

static int uses_dot(int64_t m, int64_t k) { return k >= LONG_K || m < FEWEST_TO_EXPAND; }

static int64_t padded_rows(const struct lath_kernels *kernels, int64_t m) {
  return (m + kernels->lanes - 1) / kernels->lanes * kernels->lanes;
}

int64_t lath_few_rows_scratch(const struct lath_kernels *kernels, int64_t m, int64_t k) {
  return uses_dot(m, k) ? 0 : padded_rows(kernels, m) * k;
}

void lath_multiply_few_rows(const struct lath_kernels *kernels, int64_t m, int64_t n, int64_t k, const float *a, int64_t s_a,
                            const float *w, int64_t s_w, const float *bias, float *c, int64_t s_c, float *scratch) {
  if (uses_dot(m, k)) {
    kernels->dot(m, n, k, a, s_a, w, s_w, bias, c, s_c);
    return;
  }
  kernels->pack_transposed(m, k, a, s_a, padded_rows(kernels, m), scratch);
  kernels->expand(m, n, k, scratch, w, s_w, bias, c, s_c);
}
