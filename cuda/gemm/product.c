/* SPDX-License-Identifier: Apache-2.0
 * product.c - one product: cuBLAS where it can (cuBLASLt with a bias), our own kernel where it cannot. */
#include "gemm/product.h"

#include "core/blas.h"
#include "core/check.h"
#include "core/device.h"
#include "gemm/columns.h"
#include "gemm/lt.h"
#include "gemm/rows.h"

int lath_cuda_has_blas(const struct lath_cuda *cuda) { return cuda->blas && lath_blas()->name; }

static int suits_blas(const struct lath_cuda_gemm *p, const struct lath_cuda *cuda) {
  if (!lath_cuda_has_blas(cuda) || p->k == 0 || p->a_type != p->b_type) return 0;
  if (p->c_type != p->a_type && !(p->c_type == LATH_F32 && lath_is_16_bit(p->a_type))) return 0;
  const struct lath_product_columns m = lath_product_columns(p);
  return m.a.apart && m.b.apart && (lath_blas()->gemm_64 || lath_columns_fit_int(&m));
}

static cublasStatus_t call_blas(const struct lath_cuda_gemm *p, void *handle, int accumulate) {
  const struct lath_blas *blas = lath_blas();
  const struct lath_product_columns m = lath_product_columns(p);
  const cudaDataType_t type = lath_blas_type(p->a_type), c_type = lath_blas_type(p->c_type);
  const double one = 1.0, start = accumulate;
  const float one_f = 1.f, start_f = (float)accumulate;
  const int f64 = p->c_type == LATH_F64;
  const void *alpha = f64 ? (const void *)&one : &one_f, *beta = f64 ? (const void *)&start : &start_f;
  const cublasComputeType_t compute = f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
  if (lath_columns_fit_int(&m))
    return blas->gemm(handle, m.b.op, m.a.op, (int)p->n, (int)p->m, (int)p->k, alpha, p->b, type, (int)m.b.ld, p->a, type,
                      (int)m.a.ld, beta, p->c, c_type, (int)m.c.ld, compute, CUBLAS_GEMM_DEFAULT);
  return blas->gemm_64(handle, m.b.op, m.a.op, p->n, p->m, p->k, alpha, p->b, type, m.b.ld, p->a, type, m.a.ld, beta, p->c,
                       c_type, m.c.ld, compute, CUBLAS_GEMM_DEFAULT);
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

/* c starts as the bias, so that the sum is rounded once. Costs a write and a read of c. */
static lath_status multiply_onto_bias(const struct lath_cuda_gemm *p, struct lath_cuda *cuda) {
  LATH_TRY(lath_device_check(cuda, lath_cuda_fill_rows(p->c_type, p->m, p->n, p->bias, p->c, p->s_c, cuda->stream)));
  return multiply_by_blas(p, cuda, 1);
}

lath_status lath_cuda_product(const struct lath_cuda_gemm *p, struct lath_cuda *cuda) {
  int done = 0;
  if (p->m == 0 || p->n == 0) return LATH_OK;
  if (!suits_blas(p, cuda)) return lath_device_check(cuda, lath_cuda_tiled(p, cuda->stream));
  if (!p->bias) return multiply_by_blas(p, cuda, p->accumulate);
  LATH_TRY(lath_lt_product(p, cuda, &done));
  return done ? LATH_OK : multiply_onto_bias(p, cuda);
}
