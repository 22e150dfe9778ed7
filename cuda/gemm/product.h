/* SPDX-License-Identifier: Apache-2.0
 * product.h - inside the library: c = op(a) op(b) + bias, or c += op(a) op(b), on row-major matrices in device memory. */
#ifndef LATH_CUDA_GEMM_PRODUCT_H
#define LATH_CUDA_GEMM_PRODUCT_H

#include <string.h>

#include "lath_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

struct lath_cuda_gemm {
  lath_dtype a_type, b_type, c_type;
  int64_t m, n, k;
  const void *a; /* (m, k), or (k, m) when a_transposed */
  int64_t s_a;
  int a_transposed;
  const void *b; /* (k, n), or (n, k) when b_transposed */
  int64_t s_b;
  int b_transposed;
  const void *bias; /* (n) in c_type, added to each row; NULL: none, and always so with `accumulate` */
  void *c;          /* (m, n); not read unless `accumulate` */
  int64_t s_c;
  int accumulate;
  void *workspace; /* with a bias: lath_lt_workspace(...) bytes, see lt.h. Less, or none, is slower and not an error. */
  size_t workspace_bytes;
};

/* op(a) (m, k) times op(b) (k, n), all of one type; a and b are for the caller to set. */
static inline struct lath_cuda_gemm lath_gemm(lath_dtype dtype, int64_t m, int64_t n, int64_t k, void *c, int64_t s_c) {
  struct lath_cuda_gemm gemm;
  memset(&gemm, 0, sizeof gemm);
  gemm.a_type = gemm.b_type = gemm.c_type = dtype;
  gemm.m = m, gemm.n = n, gemm.k = k;
  gemm.c = c, gemm.s_c = s_c;
  return gemm;
}

/* By cuBLAS where there is a handle and the operands suit it, else by lath_cuda_tiled. Empty sums give the bias or zeros. */
lath_status lath_cuda_product(const struct lath_cuda_gemm *product, struct lath_cuda *cuda);

/* Whether cuBLAS would be asked, if the strides suit it. */
int lath_cuda_has_blas(const struct lath_cuda *cuda);

/* tiled.cu: the same on a kernel of our own, as a cudaError_t. Types: all three equal; or a and b equal and 16-bit with c float; or
 * one of a and b float and the other two 16-bit. Every sum is one chain in the order of k. */
int lath_cuda_tiled(const struct lath_cuda_gemm *product, void *stream);

/* The same with k cut into parts, so that a small c with a long k keeps the GPU busy: all of one type, c without a gap, no bias, nothing
 * accumulated. `partial` holds parts m n elements of lath_sum_type(c_type). How many parts depends on the shape and on the number of
 * multiprocessors alone, and they are added in order. */
int64_t lath_cuda_tiled_parts(int64_t m, int64_t n, int64_t k, int multiprocessors);
int lath_cuda_tiled_in_parts(const struct lath_cuda_gemm *product, int64_t parts, void *partial, void *stream);

#ifdef __cplusplus
}
#endif
#endif
