/* SPDX-License-Identifier: Apache-2.0
 * merged.c - the low-rank product with its factors associated the other way: w = u v first, then one dense product. Cheaper when
 * rank (in + out) > in out and there are rows enough to carry the forming of w. Same function, same gradients:
 *
 *   y = x w^T + (bias + u inner_bias)
 *   dx = dy w     dw = dy^T x     du = dw v^T + d_bias inner_bias^T     dv = u^T dw     d_inner_bias = u^T d_bias */
#include <string.h>

#include "core/check.h"
#include "core/convert.h"
#include "gemm/gemm.h"
#include "lowrank/lowrank.h"

struct merged {
  const struct lath_lowrank_linear *a;
  const struct lath_host *host;
  struct lath_lowrank_weights weights;
  float *w, *shift;         /* (out, in), (out) */
  float *x, *y, *dy, *dx;   /* float copies of activations, for other types than float */
  float *dw, *d_bias;       /* backward: (out, in), (out) */
  float *du, *dv, *d_inner; /* backward: sums in float */
  struct lath_arena rest;   /* what the products take, one after the other */
};

/* ---- products --------------------------------------------------------------------------------------------------------------------- */

static struct lath_gemm form_w(const struct merged *m) {
  const struct lath_lowrank_linear *a = m->a;
  const struct lath_lowrank_weights *w = &m->weights;
  return lath_gemm_nn(a->out, a->in, a->rank, w->u, w->s_u, w->v, w->s_v, m->w, a->in);
}

static struct lath_gemm apply_w(const struct merged *m, const float *x, int64_t s_x, float *y, int64_t s_y) {
  const struct lath_lowrank_linear *a = m->a;
  struct lath_gemm gemm = lath_gemm_nt(a->rows, a->out, a->in, x, s_x, m->w, a->in, y, s_y);
  gemm.bias = m->shift;
  return gemm;
}

static struct lath_gemm form_dx(const struct merged *m, const float *dy, int64_t s_dy, float *dx, int64_t s_dx) {
  const struct lath_lowrank_linear *a = m->a;
  return lath_gemm_nn(a->rows, a->in, a->out, dy, s_dy, m->w, a->in, dx, s_dx);
}

static struct lath_gemm form_dw(const struct merged *m, const float *dy, int64_t s_dy, const float *x, int64_t s_x) {
  const struct lath_lowrank_linear *a = m->a;
  return lath_gemm_tn(a->out, a->in, a->rows, dy, s_dy, x, s_x, m->dw, a->in);
}

static struct lath_gemm form_du(const struct merged *m) {
  const struct lath_lowrank_linear *a = m->a;
  return lath_gemm_nt(a->out, a->rank, a->in, m->dw, a->in, m->weights.v, m->weights.s_v, m->du, a->rank);
}

static struct lath_gemm form_dv(const struct merged *m) {
  const struct lath_lowrank_linear *a = m->a;
  return lath_gemm_tn(a->rank, a->in, a->out, m->weights.u, m->weights.s_u, m->dw, a->in, m->dv, a->in);
}

/* ---- forward ------------------------------------------------------------------------------------------------------------------------ */

static struct merged prepare(const struct lath_lowrank_linear *a, const struct lath_host *host, struct lath_arena *arena) {
  struct merged m = {.a = a, .host = host};
  lath_lowrank_weights_take(&m.weights, a, arena);
  m.w = lath_take(arena, a->out, a->in);
  if (a->dtype == LATH_BF16) m.x = lath_take(arena, a->rows, a->in);
  return m;
}

static struct merged prepare_forward(const struct lath_lowrank_linear *a, const struct lath_host *host,
                                     struct lath_arena *arena) {
  struct merged m = prepare(a, host, arena);
  m.shift = lath_take(arena, 1, a->out);
  if (a->dtype == LATH_BF16) m.y = lath_take(arena, a->rows, a->out);
  m.rest = *arena;
  return m;
}

void lath_lowrank_merged_size(const struct lath_lowrank_linear *a, const struct lath_host *host, struct lath_arena *arena) {
  struct merged m = prepare_forward(a, host, arena);
  lath_gemm_reserve(form_w(&m), host, m.rest, arena);
  lath_gemm_reserve(apply_w(&m, NULL, a->in, NULL, a->out), host, m.rest, arena);
}

/* shift = bias + u inner_bias */
static void form_shift(struct merged *m) {
  const struct lath_lowrank_weights *w = &m->weights;
  for (int64_t o = 0; o < m->a->out; o++) {
    float sum = w->bias ? w->bias[o] : 0.f;
    for (int64_t j = 0; w->inner_bias && j < m->a->rank; j++) sum += w->u[o * w->s_u + j] * w->inner_bias[j];
    m->shift[o] = sum;
  }
}

lath_status lath_lowrank_merged(const struct lath_lowrank_linear *a, const struct lath_host *host) {
  struct lath_arena arena = lath_arena_on(a->workspace);
  struct merged m = prepare_forward(a, host, &arena);
  lath_lowrank_weights_view(&m.weights, a);
  form_shift(&m);
  int64_t s_x;
  const float *x = lath_as_float(a->dtype, a->rows, a->in, a->x, a->s_x, m.x, &s_x);
  LATH_TRY(lath_gemm_in(form_w(&m), m.host, m.rest));
  LATH_TRY(lath_gemm_in(apply_w(&m, x, s_x, m.y ? m.y : a->y, m.y ? a->out : a->s_y), m.host, m.rest));
  if (m.y) lath_from_float(a->dtype, a->rows, a->out, m.y, a->y, a->s_y);
  return LATH_OK;
}

/* ---- backward ----------------------------------------------------------------------------------------------------------------------- */

static struct merged prepare_backward(const struct lath_lowrank_linear *a, const struct lath_host *host,
                                      struct lath_arena *arena) {
  struct merged m = prepare(a, host, arena);
  m.d_bias = lath_take(arena, 1, a->out);
  m.du = lath_take_sum(arena, a->dtype, a->du, a->out * a->rank);
  m.dv = lath_take_sum(arena, a->dtype, a->dv, a->rank * a->in);
  if (a->du || a->dv) m.dw = lath_take(arena, a->out, a->in);
  if (a->d_inner_bias) m.d_inner = lath_take(arena, 1, a->rank);
  if (a->dtype == LATH_BF16) {
    m.dy = lath_take(arena, a->rows, a->out);
    m.dx = a->dx ? lath_take(arena, a->rows, a->in) : NULL;
  }
  m.rest = *arena;
  return m;
}

void lath_lowrank_merged_backward_size(const struct lath_lowrank_linear *a, const struct lath_host *host,
                                       struct lath_arena *arena) {
  struct merged m = prepare_backward(a, host, arena);
  lath_gemm_reserve(form_w(&m), host, m.rest, arena);
  lath_gemm_reserve(form_dx(&m, NULL, a->out, NULL, a->in), host, m.rest, arena);
  lath_gemm_reserve(form_dw(&m, NULL, a->out, NULL, a->in), host, m.rest, arena);
  lath_gemm_reserve(form_du(&m), host, m.rest, arena);
  lath_gemm_reserve(form_dv(&m), host, m.rest, arena);
}

static lath_status factors_from_dw(const struct merged *m) {
  const struct lath_lowrank_linear *a = m->a;
  if (m->dv) LATH_TRY(lath_gemm_in(form_dv(m), m->host, m->rest));
  if (!m->du) return LATH_OK;
  LATH_TRY(lath_gemm_in(form_du(m), m->host, m->rest));
  for (int64_t o = 0; m->weights.inner_bias && o < a->out; o++)
    for (int64_t j = 0; j < a->rank; j++) m->du[o * a->rank + j] += m->d_bias[o] * m->weights.inner_bias[j];
  return LATH_OK;
}

static void bias_gradients(const struct merged *m, const float *dy, int64_t s_dy) {
  const struct lath_lowrank_linear *a = m->a;
  memset(m->d_bias, 0, (size_t)a->out * sizeof(float));
  lath_kernels()->add_rows(a->rows, a->out, dy, s_dy, m->d_bias);
  if (!m->d_inner) return;
  memset(m->d_inner, 0, (size_t)a->rank * sizeof(float));
  for (int64_t o = 0; o < a->out; o++)
    for (int64_t j = 0; j < a->rank; j++) m->d_inner[j] += m->weights.u[o * m->weights.s_u + j] * m->d_bias[o];
}

static void write_back(const struct merged *m) {
  const struct lath_lowrank_linear *a = m->a;
  if (m->dx) lath_from_float(a->dtype, a->rows, a->in, m->dx, a->dx, a->s_dx);
  if (m->du) lath_from_float(a->dtype, a->out, a->rank, m->du, a->du, a->rank);
  if (m->dv) lath_from_float(a->dtype, a->rank, a->in, m->dv, a->dv, a->in);
  if (a->d_bias) lath_from_float(a->dtype, 1, a->out, m->d_bias, a->d_bias, a->out);
  if (m->d_inner) lath_from_float(a->dtype, 1, a->rank, m->d_inner, a->d_inner_bias, a->rank);
}

lath_status lath_lowrank_merged_backward(const struct lath_lowrank_linear *a, const struct lath_host *host) {
  struct lath_arena arena = lath_arena_on(a->workspace);
  struct merged m = prepare_backward(a, host, &arena);
  lath_lowrank_weights_view(&m.weights, a);
  int64_t s_x, s_dy;
  const float *x = lath_as_float(a->dtype, a->rows, a->in, a->x, a->s_x, m.x, &s_x);
  const float *dy = lath_as_float(a->dtype, a->rows, a->out, a->dy, a->s_dy, m.dy, &s_dy);
  bias_gradients(&m, dy, s_dy);
  if (a->dx) {
    LATH_TRY(lath_gemm_in(form_w(&m), m.host, m.rest));
    LATH_TRY(lath_gemm_in(form_dx(&m, dy, s_dy, m.dx ? m.dx : a->dx, m.dx ? a->in : a->s_dx), m.host, m.rest));
  }
  if (m.dw) {
    LATH_TRY(lath_gemm_in(form_dw(&m, dy, s_dy, x, s_x), m.host, m.rest));
    LATH_TRY(factors_from_dw(&m));
  }
  write_back(&m);
  return LATH_OK;
}
