/* SPDX-License-Identifier: Apache-2.0
 * frobenius.c - the Frobenius norm of a product and its gradients, from the Gram matrices of the factors.
 *
 * || u v ||_F^2 = trace(v^T u^T u v) = < u^T u, v v^T >: rank^2 (in + out) multiply-adds instead of rank in out, and no (out, in)
 * buffer (the trace form of Khodak et al., "Initialization and regularization of factorized neural layers", ICLR 2021). */
#include "core/check.h"
#include "core/convert.h"
#include "gemm/gemm.h"
#include "lowrank/lowrank.h"

struct frobenius {
  const struct lath_frobenius *a;
  const float *v, *u;
  int64_t s_v, s_u;
  float *v_copy, *u_copy, *dv, *du, *gram; /* gram: a scaled copy for the backward */
  struct lath_arena rest;
};

static struct frobenius prepare(const struct lath_frobenius *a, struct lath_arena *arena) {
  struct frobenius f = {.a = a, .dv = a->dv, .du = a->du};
  f.gram = lath_take(arena, a->rank, a->rank);
  if (a->dtype == LATH_BF16) {
    f.v_copy = lath_take(arena, a->rank, a->in);
    f.u_copy = lath_take(arena, a->out, a->rank);
    f.dv = lath_take(arena, a->rank, a->in);
    f.du = lath_take(arena, a->out, a->rank);
  }
  f.rest = *arena;
  return f;
}

static struct lath_gemm form_gram_v(const struct frobenius *f) {
  const struct lath_frobenius *a = f->a;
  return lath_gemm_nt(a->rank, a->rank, a->in, f->v, f->s_v, f->v, f->s_v, a->gram_v, a->rank);
}

static struct lath_gemm form_gram_u(const struct frobenius *f) {
  const struct lath_frobenius *a = f->a;
  return lath_gemm_tn(a->rank, a->rank, a->out, f->u, f->s_u, f->u, f->s_u, a->gram_u, a->rank);
}

static struct lath_gemm form_du(const struct frobenius *f) {
  const struct lath_frobenius *a = f->a;
  return lath_gemm_nn(a->out, a->rank, a->rank, f->u, f->s_u, f->gram, a->rank, f->du, a->rank);
}

static struct lath_gemm form_dv(const struct frobenius *f) {
  const struct lath_frobenius *a = f->a;
  return lath_gemm_nn(a->rank, a->in, a->rank, f->gram, a->rank, f->v, f->s_v, f->dv, a->in);
}

lath_status lath_frobenius_workspace(const struct lath_frobenius *a, const struct lath_host *host, size_t *bytes) {
  if (!a || !host || !bytes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_check_dtype(a->dtype));
  LATH_TRY(lath_check_extents((const int64_t[]){a->rank, a->rank, a->in}, 3));
  LATH_TRY(lath_check_extents((const int64_t[]){a->rank, a->rank, a->out}, 3));
  struct lath_arena arena = lath_arena_on(NULL);
  const struct frobenius f = prepare(a, &arena);
  const struct lath_gemm products[] = {form_gram_v(&f), form_gram_u(&f), form_du(&f), form_dv(&f)};
  for (int i = 0; i < 4; i++) lath_gemm_reserve(products[i], host, f.rest, &arena);
  return lath_arena_bytes(&arena, 0, bytes);
}

static lath_status begin(struct frobenius *f, const struct lath_frobenius *a, const struct lath_host *host, int backward) {
  size_t bytes;
  LATH_TRY(lath_frobenius_check(a, backward));
  LATH_TRY(lath_frobenius_workspace(a, host, &bytes));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, bytes));
  struct lath_arena arena = lath_arena_on(a->workspace);
  *f = prepare(a, &arena);
  if (a->dtype == LATH_F64) return LATH_OK;
  f->v = lath_as_float(a->dtype, a->rank, a->in, a->v, a->s_v, f->v_copy, &f->s_v);
  f->u = lath_as_float(a->dtype, a->out, a->rank, a->u, a->s_u, f->u_copy, &f->s_u);
  return LATH_OK;
}

lath_status lath_frobenius(const struct lath_frobenius *a, const struct lath_host *host) {
  struct frobenius f;
  LATH_TRY(begin(&f, a, host, 0));
  if (a->dtype == LATH_F64) return lath_frobenius_ref(a);
  LATH_TRY(lath_gemm_in(form_gram_v(&f), host, f.rest));
  LATH_TRY(lath_gemm_in(form_gram_u(&f), host, f.rest));
  double value = 0.0;
  const float *gram_v = a->gram_v, *gram_u = a->gram_u;
  for (int64_t i = 0; i < a->rank * a->rank; i++) value += (double)gram_v[i] * (double)gram_u[i];
  *a->value = value;
  return LATH_OK;
}

static void scale_gram(const struct frobenius *f, const float *gram) {
  const float scale = (float)(2.0 * f->a->scale);
  for (int64_t i = 0; i < f->a->rank * f->a->rank; i++) f->gram[i] = scale * gram[i];
}

lath_status lath_frobenius_backward(const struct lath_frobenius *a, const struct lath_host *host) {
  struct frobenius f;
  LATH_TRY(begin(&f, a, host, 1));
  if (a->dtype == LATH_F64) return lath_frobenius_backward_ref(a);
  if (a->du) {
    scale_gram(&f, a->gram_v);
    LATH_TRY(lath_gemm_in(form_du(&f), host, f.rest));
    lath_from_float(a->dtype, a->out, a->rank, f.du, a->du, a->rank);
  }
  if (a->dv) {
    scale_gram(&f, a->gram_u);
    LATH_TRY(lath_gemm_in(form_dv(&f), host, f.rest));
    lath_from_float(a->dtype, a->rank, a->in, f.dv, a->dv, a->in);
  }
  return LATH_OK;
}
