/* SPDX-License-Identifier: Apache-2.0
 * products.c - the products that several routes of an OIALR layer have in common. */
#include "gemm/product.h"

#include "oialr/routes.h"

lath_status lath_cuda_oialr_fold_u(const struct lath_oialr_linear *a, void *us, struct lath_cuda *cuda) {
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->out, a->rank, a->rank, us, a->rank);
  gemm.a = a->u, gemm.s_a = a->s_u;
  gemm.b = a->s, gemm.s_b = a->s_s;
  return lath_cuda_product(&gemm, cuda);
}

lath_status lath_cuda_oialr_fold_vh(const struct lath_oialr_linear *a, void *svh, struct lath_cuda *cuda) {
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->rank, a->in, a->rank, svh, a->in);
  gemm.a = a->s, gemm.s_a = a->s_s;
  gemm.b = a->vh, gemm.s_b = a->s_vh;
  return lath_cuda_product(&gemm, cuda);
}

lath_status lath_cuda_oialr_form_t(const struct lath_oialr_linear *a, void *t, struct lath_cuda *cuda) {
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->rows, a->rank, a->in, t, a->rank);
  gemm.a = a->x, gemm.s_a = a->s_x;
  gemm.b = a->vh, gemm.s_b = a->s_vh, gemm.b_transposed = 1;
  return lath_cuda_product(&gemm, cuda);
}

lath_status lath_cuda_oialr_form_h(const struct lath_oialr_linear *a, void *h, struct lath_cuda *cuda) {
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->rows, a->rank, a->out, h, a->rank);
  gemm.a = a->dy, gemm.s_a = a->s_dy;
  gemm.b = a->u, gemm.s_b = a->s_u;
  return lath_cuda_product(&gemm, cuda);
}
