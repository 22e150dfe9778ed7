/* SPDX-License-Identifier: Apache-2.0
 * merged.c - the low-rank product with its factors associated the other way: w = u v first, then one dense product.
 *
 *   y = x w^T + (bias + u inner_bias)
 *   dx = dy w     dw = dy^T x     du = d_bias inner_bias^T + dw v^T     dv = u^T dw     d_inner_bias = u^T d_bias
 *
 * In 16-bit types w, dw, d_bias and the bracket are rounded to that type on the way: the matrix units read nothing else. */
#include "core/check.h"
#include "gemm/lt.h"
#include "gemm/product.h"
#include "gemm/rows.h"
#include "lowrank/routes.h"

struct merged {
  const struct lath_lowrank_linear *a;
  void *w;     /* (out, in) */
  void *shift; /* forward: (out), NULL without inner_bias */
  struct lath_lt_room room;
  void *dw, *d_bias; /* backward: (out, in), (out) */
  void *partial;     /* of the sum of the rows of dy */
};

static lath_status form_w(const struct merged *m, struct lath_cuda *cuda) {
  const struct lath_lowrank_linear *a = m->a;
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->out, a->in, a->rank, m->w, a->in);
  gemm.a = a->u, gemm.s_a = a->s_u;
  gemm.b = a->v, gemm.s_b = a->s_v;
  return lath_cuda_product(&gemm, cuda);
}

/* ---- forward ------------------------------------------------------------------------------------------------------------- */

static struct merged prepare_forward(const struct lath_lowrank_linear *a, const struct lath_cuda *cuda,
                                     const struct lath_device *device, struct lath_arena *arena) {
  struct merged m = {.a = a};
  m.w = lath_cuda_take(arena, a->dtype, a->out, a->in);
  if (a->inner_bias) m.shift = lath_cuda_take(arena, a->dtype, 1, a->out);
  m.room = lath_lt_take(arena, a->dtype, a->inner_bias, a->bias, cuda, device);
  return m;
}

void lath_cuda_merged_size(const struct lath_lowrank_linear *a, const struct lath_cuda *cuda, const struct lath_device *device,
                           struct lath_arena *arena) {
  (void)prepare_forward(a, cuda, device, arena);
}

static void add_bias(struct lath_cuda_gemm *gemm, const struct merged *m, const void *bias) {
  gemm->bias = bias;
  gemm->workspace = m->room.data, gemm->workspace_bytes = m->room.bytes;
}

/* shift = bias + inner_bias u^T */
static lath_status form_shift(const struct merged *m, struct lath_cuda *cuda) {
  const struct lath_lowrank_linear *a = m->a;
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, 1, a->out, a->rank, m->shift, a->out);
  gemm.a = a->inner_bias, gemm.s_a = a->rank;
  gemm.b = a->u, gemm.s_b = a->s_u, gemm.b_transposed = 1;
  add_bias(&gemm, m, a->bias);
  return lath_cuda_product(&gemm, cuda);
}

lath_status lath_cuda_merged(const struct lath_lowrank_linear *a, struct lath_cuda *cuda, const struct lath_device *device) {
  struct lath_arena arena = lath_arena_on(a->workspace);
  const struct merged m = prepare_forward(a, cuda, device, &arena);
  LATH_TRY(form_w(&m, cuda));
  if (m.shift) LATH_TRY(form_shift(&m, cuda));
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->rows, a->out, a->in, a->y, a->s_y);
  gemm.a = a->x, gemm.s_a = a->s_x;
  gemm.b = m.w, gemm.s_b = a->in, gemm.b_transposed = 1;
  add_bias(&gemm, &m, m.shift ? m.shift : a->bias);
  return lath_cuda_product(&gemm, cuda);
}

/* ---- backward ------------------------------------------------------------------------------------------------------------ */

static struct merged prepare_backward(const struct lath_lowrank_linear *a, const struct lath_device *device,
                                      struct lath_arena *arena) {
  struct merged m = {.a = a, .d_bias = a->d_bias};
  const int sums = a->d_bias || a->d_inner_bias || (a->du && a->inner_bias);
  if (a->dx) m.w = lath_cuda_take(arena, a->dtype, a->out, a->in);
  if (a->du || a->dv) m.dw = lath_cuda_take(arena, a->dtype, a->out, a->in);
  if (sums && !a->d_bias) m.d_bias = lath_cuda_take(arena, a->dtype, 1, a->out);
  if (sums)
    m.partial = lath_cuda_take(arena, lath_sum_type(a->dtype),
                               lath_cuda_sum_rows_parts(a->rows, a->out, device->multiprocessors), a->out);
  return m;
}

void lath_cuda_merged_backward_size(const struct lath_lowrank_linear *a, const struct lath_device *device,
                                    struct lath_arena *arena) {
  (void)prepare_backward(a, device, arena);
}

static lath_status form_dx(const struct merged *m, struct lath_cuda *cuda) {
  const struct lath_lowrank_linear *a = m->a;
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->rows, a->in, a->out, a->dx, a->s_dx);
  LATH_TRY(form_w(m, cuda));
  gemm.a = a->dy, gemm.s_a = a->s_dy;
  gemm.b = m->w, gemm.s_b = a->in;
  return lath_cuda_product(&gemm, cuda);
}

static lath_status form_dw(const struct merged *m, struct lath_cuda *cuda) {
  const struct lath_lowrank_linear *a = m->a;
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->out, a->in, a->rows, m->dw, a->in);
  gemm.a = a->dy, gemm.s_a = a->s_dy, gemm.a_transposed = 1;
  gemm.b = a->x, gemm.s_b = a->s_x;
  return lath_cuda_product(&gemm, cuda);
}

static lath_status form_du(const struct merged *m, struct lath_cuda *cuda) {
  const struct lath_lowrank_linear *a = m->a;
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->out, a->rank, 1, a->du, a->rank);
  if (a->inner_bias) {
    gemm.a = m->d_bias, gemm.s_a = a->out, gemm.a_transposed = 1;
    gemm.b = a->inner_bias, gemm.s_b = a->rank;
    LATH_TRY(lath_cuda_product(&gemm, cuda));
  }
  gemm.k = a->in, gemm.accumulate = a->inner_bias != NULL;
  gemm.a = m->dw, gemm.s_a = a->in, gemm.a_transposed = 0;
  gemm.b = a->v, gemm.s_b = a->s_v, gemm.b_transposed = 1;
  return lath_cuda_product(&gemm, cuda);
}

static lath_status form_dv(const struct merged *m, struct lath_cuda *cuda) {
  const struct lath_lowrank_linear *a = m->a;
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->rank, a->in, a->out, a->dv, a->in);
  gemm.a = a->u, gemm.s_a = a->s_u, gemm.a_transposed = 1;
  gemm.b = m->dw, gemm.s_b = a->in;
  return lath_cuda_product(&gemm, cuda);
}

static lath_status form_d_inner_bias(const struct merged *m, struct lath_cuda *cuda) {
  const struct lath_lowrank_linear *a = m->a;
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, 1, a->rank, a->out, a->d_inner_bias, a->rank);
  gemm.a = m->d_bias, gemm.s_a = a->out;
  gemm.b = a->u, gemm.s_b = a->s_u;
  return lath_cuda_product(&gemm, cuda);
}

lath_status lath_cuda_merged_backward(const struct lath_lowrank_linear *a, struct lath_cuda *cuda,
                                      const struct lath_device *device) {
  struct lath_arena arena = lath_arena_on(a->workspace);
  const struct merged m = prepare_backward(a, device, &arena);
  if (m.d_bias)
    LATH_TRY(lath_device_check(cuda, lath_cuda_sum_rows(a->dtype, a->rows, a->out, a->dy, a->s_dy, m.d_bias, m.partial,
                                                        device->multiprocessors, cuda->stream)));
  if (a->dx) LATH_TRY(form_dx(&m, cuda));
  if (m.dw) LATH_TRY(form_dw(&m, cuda));
  if (a->du) LATH_TRY(form_du(&m, cuda));
  if (a->dv) LATH_TRY(form_dv(&m, cuda));
  return a->d_inner_bias ? form_d_inner_bias(&m, cuda) : LATH_OK;
}
