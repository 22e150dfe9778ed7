/* SPDX-License-Identifier: Apache-2.0
 * product.c - one product: cuBLAS where it can, our own kernel where it cannot. */
#include "gemm/product.h"

#include <cublas_v2.h>
#include <limits.h>

#include "core/blas.h"
#include "core/check.h"
#include "core/device.h"
#include "gemm/rows.h"

int lath_cuda_has_blas(const struct lath_cuda *cuda) { return cuda->blas && lath_blas()->name; }

/* cuBLAS has no matrices whose rows overlap, such as an expanded tensor with row stride 0. */
static int has_rows_apart(int64_t rows, int64_t cols, int64_t stride) { return rows <= 1 || stride >= cols; }

/* The leading dimension; that of a single row is ours to choose, and cuBLAS checks it all the same. */
static int64_t leading(int64_t rows, int64_t cols, int64_t stride) {
  const int64_t least = cols > 1 ? cols : 1;
  return rows > 1 && stride > least ? stride : least;
}

struct matrix {
  int64_t rows, cols, stride;
};

static struct matrix stored(int64_t rows, int64_t cols, int64_t stride, int transposed) {
  return transposed ? (struct matrix){cols, rows, stride} : (struct matrix){rows, cols, stride};
}

static int fits_int(const struct lath_cuda_gemm *p, int64_t lda, int64_t ldb, int64_t ldc) {
  const int64_t numbers[] = {p->m, p->n, p->k, lda, ldb, ldc};
  for (int i = 0; i < 6; i++)
    if (numbers[i] > INT_MAX) return 0;
  return 1;
}

static int suits_blas(const struct lath_cuda_gemm *p, const struct lath_cuda *cuda) {
  if (!lath_cuda_has_blas(cuda) || p->k == 0 || p->a_type != p->b_type) return 0;
  if (p->c_type != p->a_type && !(p->c_type == LATH_F32 && lath_is_16_bit(p->a_type))) return 0;
  const struct matrix a = stored(p->m, p->k, p->s_a, p->a_transposed), b = stored(p->k, p->n, p->s_b, p->b_transposed);
  if (!has_rows_apart(a.rows, a.cols, a.stride) || !has_rows_apart(b.rows, b.cols, b.stride)) return 0;
  return lath_blas()->gemm_64 || fits_int(p, leading(a.rows, a.cols, a.stride), leading(b.rows, b.cols, b.stride),
                                          leading(p->m, p->n, p->s_c));
}

static cudaDataType_t blas_type(lath_dtype dtype) {
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

/* cuBLAS is column-major: what we call c it calls c^T = op(b)^T op(a)^T, so the operands change places and nothing is moved. */
static cublasStatus_t call_blas(const struct lath_cuda_gemm *p, void *handle, int accumulate) {
  const struct lath_blas *blas = lath_blas();
  const struct matrix a = stored(p->m, p->k, p->s_a, p->a_transposed), b = stored(p->k, p->n, p->s_b, p->b_transposed);
  const int64_t lda = leading(a.rows, a.cols, a.stride), ldb = leading(b.rows, b.cols, b.stride);
  const int64_t ldc = leading(p->m, p->n, p->s_c);
  const cublasOperation_t op_a = p->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, op_b = p->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cudaDataType_t type = blas_type(p->a_type), c_type = blas_type(p->c_type);
  const double one = 1.0, start = accumulate;
  const float one_f = 1.f, start_f = (float)accumulate;
  const int f64 = p->c_type == LATH_F64;
  const void *alpha = f64 ? (const void *)&one : &one_f, *beta = f64 ? (const void *)&start : &start_f;
  const cublasComputeType_t compute = f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
  if (fits_int(p, lda, ldb, ldc))
    return blas->gemm(handle, op_b, op_a, (int)p->n, (int)p->m, (int)p->k, alpha, p->b, type, (int)ldb, p->a, type, (int)lda, beta,
                      p->c, c_type, (int)ldc, compute, CUBLAS_GEMM_DEFAULT);
  return blas->gemm_64(handle, op_b, op_a, p->n, p->m, p->k, alpha, p->b, type, ldb, p->a, type, lda, beta, p->c, c_type, ldc,
                       compute, CUBLAS_GEMM_DEFAULT);
}

/* The handle's own mode says whether floats may be cut to TF32. For 16-bit operands we ask that parts of a sum which several blocks
 * share be added in fp32 too, and give the handle back as it was. */
static lath_status multiply_by_blas(const struct lath_cuda_gemm *p, struct lath_cuda *cuda, int accumulate) {
  const struct lath_blas *blas = lath_blas();
  cublasMath_t mode = CUBLAS_DEFAULT_MATH;
  const int switches = blas->set_math_mode && lath_is_16_bit(p->a_type);
  if (switches) {
    LATH_TRY(lath_blas_check(cuda, (int)blas->get_math_mode(cuda->blas, &mode)));
    const cublasMath_t wanted = (cublasMath_t)((unsigned)mode | (unsigned)CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
    LATH_TRY(lath_blas_check(cuda, (int)blas->set_math_mode(cuda->blas, wanted)));
  }
  const lath_status status = lath_blas_check(cuda, (int)call_blas(p, cuda->blas, accumulate));
  if (switches) LATH_TRY(lath_blas_check(cuda, (int)blas->set_math_mode(cuda->blas, mode)));
  return status;
}

lath_status lath_cuda_product(const struct lath_cuda_gemm *p, struct lath_cuda *cuda) {
  if (p->m == 0 || p->n == 0) return LATH_OK;
  if (!suits_blas(p, cuda)) return lath_device_check(cuda, lath_cuda_tiled(p, cuda->stream));
  if (!p->bias) return multiply_by_blas(p, cuda, p->accumulate);
  /* c starts as the bias, so that the sum is rounded once. Costs a write and a read of c. */
  LATH_TRY(lath_device_check(cuda, lath_cuda_fill_rows(p->c_type, p->m, p->n, p->bias, p->c, p->s_c, cuda->stream)));
  return multiply_by_blas(p, cuda, 1);
}
