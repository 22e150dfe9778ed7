/* SPDX-License-Identifier: Apache-2.0
 * columns.h - inside the library: row-major operands as cuBLAS and cuBLASLt see them, which know column-major matrices only.
 *
 * A row-major matrix is the transpose of the column-major one at the same place. So what we call c = op(a) op(b) is to them
 * c^T = op(b)^T op(a)^T: the operands change places and nothing is moved. */
#ifndef LATH_CUDA_GEMM_COLUMNS_H
#define LATH_CUDA_GEMM_COLUMNS_H

#include <cublas_v2.h>
#include <limits.h>

#include "gemm/product.h"

struct lath_columns {
  int64_t rows, cols; /* column-major */
  int64_t ld;         /* of a single column it is ours to choose; it is checked all the same */
  cublasOperation_t op;
  int apart; /* columns do not overlap. Those of an expanded tensor, row stride 0, do, and the libraries refuse them. */
};

/* Of op(m) (rows, cols), row-major, where m is stored transposed or not. */
static inline struct lath_columns lath_columns(int64_t rows, int64_t cols, int64_t stride, int transposed) {
  const int64_t length = transposed ? rows : cols, count = transposed ? cols : rows, least = length > 1 ? length : 1;
  return (struct lath_columns){.rows = length,
                               .cols = count,
                               .ld = count > 1 && stride > least ? stride : least,
                               .op = transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                               .apart = count <= 1 || stride >= length};
}

struct lath_product_columns {
  struct lath_columns a, b, c;
};

static inline struct lath_product_columns lath_product_columns(const struct lath_cuda_gemm *p) {
  return (struct lath_product_columns){.a = lath_columns(p->m, p->k, p->s_a, p->a_transposed),
                                       .b = lath_columns(p->k, p->n, p->s_b, p->b_transposed),
                                       .c = lath_columns(p->m, p->n, p->s_c, 0)};
}

/* Whether every extent and leading dimension fits an int. */
static inline int lath_columns_fit_int(const struct lath_product_columns *m) {
  const struct lath_columns all[] = {m->a, m->b, m->c};
  for (int i = 0; i < 3; i++)
    if (all[i].rows > INT_MAX || all[i].cols > INT_MAX || all[i].ld > INT_MAX) return 0;
  return 1;
}

static inline cudaDataType_t lath_blas_type(lath_dtype dtype) {
  switch (dtype) {
    case LATH_F64:
      return CUDA_R_64F;
    case LATH_F16:
      return CUDA_R_16F;
    case LATH_BF16:
      return CUDA_R_16BF;
    case LATH_F32:
      break;
  }
  return CUDA_R_32F;
}

#endif
