/* SPDX-License-Identifier: Apache-2.0
 * merged.c - the weight of an OIALR layer as one matrix, w = u s vh, and dense products with it.
 *
 *   y = x w^T + bias     dx = dy w     dw = dy^T x     ds = u^T dw vh^T
 *
 * The core goes into the smaller basis on the way to w, and dw is taken to the smaller side first on the way to ds. In 16-bit types w,
 * dw and that half way product are rounded to the type: the matrix units read nothing else. */
#include "core/check.h"
#include "gemm/product.h"
#include "oialr/routes.h"

static int left_is_smaller(const struct lath_oialr_linear *a) { return a->out <= a->in; }

struct lath_cuda_oialr_merged lath_cuda_oialr_merged_take(const struct lath_oialr_linear *a, const struct lath_cuda *cuda,
                                                          const struct lath_device *device, struct lath_arena *arena) {
  struct lath_cuda_oialr_merged m = {.a = a};
  if (a->dy && !a->dx && !a->ds) return m;
  m.w = lath_cuda_take(arena, a->dtype, a->out, a->in);
  m.half = lath_cuda_take(arena, a->dtype, a->rank, left_is_smaller(a) ? a->out : a->in);
  if (!a->dy) m.room = lath_lt_take(arena, a->dtype, a->bias, NULL, cuda, device);
  return m;
}

static lath_status form_w(const struct lath_cuda_oialr_merged *m, struct lath_cuda *cuda) {
  const struct lath_oialr_linear *a = m->a;
  const int left = left_is_smaller(a);
  LATH_TRY(left ? lath_cuda_oialr_fold_u(a, m->half, cuda) : lath_cuda_oialr_fold_vh(a, m->half, cuda));
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->out, a->in, a->rank, m->w, a->in);
  gemm.a = left ? m->half : a->u, gemm.s_a = left ? a->rank : a->s_u;
  gemm.b = left ? a->vh : m->half, gemm.s_b = left ? a->s_vh : a->in;
  return lath_cuda_product(&gemm, cuda);
}

lath_status lath_cuda_oialr_merged_y(const struct lath_cuda_oialr_merged *m, struct lath_cuda *cuda) {
  const struct lath_oialr_linear *a = m->a;
  LATH_TRY(form_w(m, cuda));
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->rows, a->out, a->in, a->y, a->s_y);
  gemm.a = a->x, gemm.s_a = a->s_x;
  gemm.b = m->w, gemm.s_b = a->in, gemm.b_transposed = 1;
  gemm.bias = a->bias;
  gemm.workspace = m->room.data, gemm.workspace_bytes = m->room.bytes;
  return lath_cuda_product(&gemm, cuda);
}

lath_status lath_cuda_oialr_merged_dx(const struct lath_cuda_oialr_merged *m, struct lath_cuda *cuda) {
  const struct lath_oialr_linear *a = m->a;
  LATH_TRY(form_w(m, cuda));
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->rows, a->in, a->out, a->dx, a->s_dx);
  gemm.a = a->dy, gemm.s_a = a->s_dy;
  gemm.b = m->w, gemm.s_b = a->in;
  return lath_cuda_product(&gemm, cuda);
}

static lath_status form_dw(const struct lath_cuda_oialr_merged *m, struct lath_cuda *cuda) {
  const struct lath_oialr_linear *a = m->a;
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->out, a->in, a->rows, m->w, a->in);
  gemm.a = a->dy, gemm.s_a = a->s_dy, gemm.a_transposed = 1;
  gemm.b = a->x, gemm.s_b = a->s_x;
  return lath_cuda_product(&gemm, cuda);
}

/* ds = u^T (dw vh^T) */
static lath_status project_from_the_right(const struct lath_cuda_oialr_merged *m, struct lath_cuda *cuda) {
  const struct lath_oialr_linear *a = m->a;
  struct lath_cuda_gemm half = lath_gemm(a->dtype, a->out, a->rank, a->in, m->half, a->rank);
  half.a = m->w, half.s_a = a->in;
  half.b = a->vh, half.s_b = a->s_vh, half.b_transposed = 1;
  LATH_TRY(lath_cuda_product(&half, cuda));
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->rank, a->rank, a->out, a->ds, a->rank);
  gemm.a = a->u, gemm.s_a = a->s_u, gemm.a_transposed = 1;
  gemm.b = m->half, gemm.s_b = a->rank;
  return lath_cuda_product(&gemm, cuda);
}

/* ds = (u^T dw) vh^T */
static lath_status project_from_the_left(const struct lath_cuda_oialr_merged *m, struct lath_cuda *cuda) {
  const struct lath_oialr_linear *a = m->a;
  struct lath_cuda_gemm half = lath_gemm(a->dtype, a->rank, a->in, a->out, m->half, a->in);
  half.a = a->u, half.s_a = a->s_u, half.a_transposed = 1;
  half.b = m->w, half.s_b = a->in;
  LATH_TRY(lath_cuda_product(&half, cuda));
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->rank, a->rank, a->in, a->ds, a->rank);
  gemm.a = m->half, gemm.s_a = a->in;
  gemm.b = a->vh, gemm.s_b = a->s_vh, gemm.b_transposed = 1;
  return lath_cuda_product(&gemm, cuda);
}

lath_status lath_cuda_oialr_merged_ds(const struct lath_cuda_oialr_merged *m, struct lath_cuda *cuda) {
  LATH_TRY(form_dw(m, cuda));
  return left_is_smaller(m->a) ? project_from_the_right(m, cuda) : project_from_the_left(m, cuda);
}
