/* SPDX-License-Identifier: Apache-2.0
 * merged.c - the layer with its weight formed, w = u s vh, for ranks at which the factors would cost more:
 *
 *   y = x w^T + bias     dx = dy w     dw = dy^T x     ds = u^T dw vh^T     d_bias = sum of rows of dy
 *
 * Products with the core go to the side that has fewer features. */
#include <string.h>

#include "core/check.h"
#include "core/convert.h"
#include "core/integers.h"
#include "gemm/gemm.h"
#include "oialr/oialr.h"

struct merged {
  const struct lath_oialr_linear *a;
  const struct lath_host *host;
  struct lath_oialr_weights weights;
  float *half, *w;        /* u s (out, rank) or s vh (rank, in); (out, in): w, then dw */
  float *x, *y, *dy, *dx; /* float copies of activations, for other types than float */
  float *ds, *d_bias;     /* backward: sums in float */
  struct lath_arena rest; /* what the products take, one after the other */
};

static int left_is_smaller(const struct merged *m) { return m->a->out <= m->a->in; }

/* ---- products --------------------------------------------------------------------------------------------------------------------- */

static struct lath_gemm fold(const struct merged *m) {
  const struct lath_oialr_linear *a = m->a;
  const struct lath_oialr_weights *w = &m->weights;
  return left_is_smaller(m) ? lath_gemm_nn(a->out, a->rank, a->rank, w->u, w->s_u, w->s, w->s_s, m->half, a->rank)
                            : lath_gemm_nn(a->rank, a->in, a->rank, w->s, w->s_s, w->vh, w->s_vh, m->half, a->in);
}

static struct lath_gemm form_w(const struct merged *m) {
  const struct lath_oialr_linear *a = m->a;
  const struct lath_oialr_weights *w = &m->weights;
  return left_is_smaller(m) ? lath_gemm_nn(a->out, a->in, a->rank, m->half, a->rank, w->vh, w->s_vh, m->w, a->in)
                            : lath_gemm_nn(a->out, a->in, a->rank, w->u, w->s_u, m->half, a->in, m->w, a->in);
}

static struct lath_gemm apply_w(const struct merged *m, const float *x, int64_t s_x, float *y, int64_t s_y) {
  const struct lath_oialr_linear *a = m->a;
  struct lath_gemm gemm = lath_gemm_nt(a->rows, a->out, a->in, x, s_x, m->w, a->in, y, s_y);
  gemm.bias = m->weights.bias;
  return gemm;
}

static struct lath_gemm form_dx(const struct merged *m, const float *dy, int64_t s_dy, float *dx, int64_t s_dx) {
  const struct lath_oialr_linear *a = m->a;
  return lath_gemm_nn(a->rows, a->in, a->out, dy, s_dy, m->w, a->in, dx, s_dx);
}

static struct lath_gemm form_dw(const struct merged *m, const float *dy, int64_t s_dy, const float *x, int64_t s_x) {
  const struct lath_oialr_linear *a = m->a;
  return lath_gemm_tn(a->out, a->in, a->rows, dy, s_dy, x, s_x, m->w, a->in);
}

/* dw vh^T (out, rank), or u^T dw (rank, in). */
static struct lath_gemm project_dw(const struct merged *m) {
  const struct lath_oialr_linear *a = m->a;
  const struct lath_oialr_weights *w = &m->weights;
  return left_is_smaller(m) ? lath_gemm_nt(a->out, a->rank, a->in, m->w, a->in, w->vh, w->s_vh, m->half, a->rank)
                            : lath_gemm_tn(a->rank, a->in, a->out, w->u, w->s_u, m->w, a->in, m->half, a->in);
}

static struct lath_gemm form_ds(const struct merged *m) {
  const struct lath_oialr_linear *a = m->a;
  const struct lath_oialr_weights *w = &m->weights;
  return left_is_smaller(m) ? lath_gemm_tn(a->rank, a->rank, a->out, w->u, w->s_u, m->half, a->rank, m->ds, a->rank)
                            : lath_gemm_nt(a->rank, a->rank, a->in, m->half, a->in, w->vh, w->s_vh, m->ds, a->rank);
}

/* ---- forward ------------------------------------------------------------------------------------------------------------------------ */

static struct merged prepare(const struct lath_oialr_linear *a, const struct lath_host *host, struct lath_arena *arena) {
  struct merged m = {.a = a, .host = host};
  lath_oialr_weights_take(&m.weights, a, arena);
  m.half = lath_take(arena, a->rank, lath_smaller(a->in, a->out));
  m.w = lath_take(arena, a->out, a->in);
  if (a->dtype == LATH_BF16) m.x = lath_take(arena, a->rows, a->in);
  return m;
}

static struct merged prepare_forward(const struct lath_oialr_linear *a, const struct lath_host *host,
                                     struct lath_arena *arena) {
  struct merged m = prepare(a, host, arena);
  if (a->dtype == LATH_BF16) m.y = lath_take(arena, a->rows, a->out);
  m.rest = *arena;
  return m;
}

void lath_oialr_merged_size(const struct lath_oialr_linear *a, const struct lath_host *host, struct lath_arena *arena) {
  const struct merged m = prepare_forward(a, host, arena);
  lath_gemm_reserve(fold(&m), host, m.rest, arena);
  lath_gemm_reserve(form_w(&m), host, m.rest, arena);
  lath_gemm_reserve(apply_w(&m, NULL, a->in, NULL, a->out), host, m.rest, arena);
}

lath_status lath_oialr_merged(const struct lath_oialr_linear *a, const struct lath_host *host) {
  struct lath_arena arena = lath_arena_on(a->workspace);
  struct merged m = prepare_forward(a, host, &arena);
  lath_oialr_weights_view(&m.weights, a);
  int64_t s_x;
  const float *x = lath_as_float(a->dtype, a->rows, a->in, a->x, a->s_x, m.x, &s_x);
  LATH_TRY(lath_gemm_in(fold(&m), host, m.rest));
  LATH_TRY(lath_gemm_in(form_w(&m), host, m.rest));
  LATH_TRY(lath_gemm_in(apply_w(&m, x, s_x, m.y ? m.y : a->y, m.y ? a->out : a->s_y), host, m.rest));
  if (m.y) lath_from_float(a->dtype, a->rows, a->out, m.y, a->y, a->s_y);
  return LATH_OK;
}

/* ---- backward ----------------------------------------------------------------------------------------------------------------------- */

static struct merged prepare_backward(const struct lath_oialr_linear *a, const struct lath_host *host,
                                      struct lath_arena *arena) {
  struct merged m = prepare(a, host, arena);
  m.ds = lath_take_sum(arena, a->dtype, a->ds, a->rank * a->rank);
  m.d_bias = lath_take_sum(arena, a->dtype, a->d_bias, a->out);
  if (a->dtype == LATH_BF16) {
    m.dy = lath_take(arena, a->rows, a->out);
    m.dx = a->dx ? lath_take(arena, a->rows, a->in) : NULL;
  }
  m.rest = *arena;
  return m;
}

void lath_oialr_merged_backward_size(const struct lath_oialr_linear *a, const struct lath_host *host,
                                     struct lath_arena *arena) {
  const struct merged m = prepare_backward(a, host, arena);
  lath_gemm_reserve(fold(&m), host, m.rest, arena);
  lath_gemm_reserve(form_w(&m), host, m.rest, arena);
  lath_gemm_reserve(form_dx(&m, NULL, a->out, NULL, a->in), host, m.rest, arena);
  lath_gemm_reserve(form_dw(&m, NULL, a->out, NULL, a->in), host, m.rest, arena);
  lath_gemm_reserve(project_dw(&m), host, m.rest, arena);
  lath_gemm_reserve(form_ds(&m), host, m.rest, arena);
}

static lath_status gradient_of_x(const struct merged *m, const float *dy, int64_t s_dy) {
  const struct lath_oialr_linear *a = m->a;
  LATH_TRY(lath_gemm_in(fold(m), m->host, m->rest));
  LATH_TRY(lath_gemm_in(form_w(m), m->host, m->rest));
  LATH_TRY(lath_gemm_in(form_dx(m, dy, s_dy, m->dx ? m->dx : a->dx, m->dx ? a->in : a->s_dx), m->host, m->rest));
  if (m->dx) lath_from_float(a->dtype, a->rows, a->in, m->dx, a->dx, a->s_dx);
  return LATH_OK;
}

static lath_status gradient_of_s(const struct merged *m, const float *dy, int64_t s_dy) {
  const struct lath_oialr_linear *a = m->a;
  int64_t s_x;
  const float *x = lath_as_float(a->dtype, a->rows, a->in, a->x, a->s_x, m->x, &s_x);
  LATH_TRY(lath_gemm_in(form_dw(m, dy, s_dy, x, s_x), m->host, m->rest));
  LATH_TRY(lath_gemm_in(project_dw(m), m->host, m->rest));
  LATH_TRY(lath_gemm_in(form_ds(m), m->host, m->rest));
  lath_from_float(a->dtype, a->rank, a->rank, m->ds, a->ds, a->rank);
  return LATH_OK;
}

lath_status lath_oialr_merged_backward(const struct lath_oialr_linear *a, const struct lath_host *host) {
  struct lath_arena arena = lath_arena_on(a->workspace);
  struct merged m = prepare_backward(a, host, &arena);
  lath_oialr_weights_view(&m.weights, a);
  int64_t s_dy;
  const float *dy = lath_as_float(a->dtype, a->rows, a->out, a->dy, a->s_dy, m.dy, &s_dy);
  if (m.d_bias) {
    memset(m.d_bias, 0, (size_t)a->out * sizeof *m.d_bias);
    lath_kernels()->add_rows(a->rows, a->out, dy, s_dy, m.d_bias);
    lath_from_float(a->dtype, 1, a->out, m.d_bias, a->d_bias, a->out);
  }
  if (a->dx) LATH_TRY(gradient_of_x(&m, dy, s_dy));
  return a->ds ? gradient_of_s(&m, dy, s_dy) : LATH_OK;
}
