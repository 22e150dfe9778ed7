/* SPDX-License-Identifier: Apache-2.0
 * linear.c - the dense product y = x w^T + bias on the packed engine. */
#include "gemm/linear.h"

#include "core/check.h"
#include "core/convert.h"
#include "gemm/gemm.h"

struct buffers {
  float *x, *w, *bias, *y; /* float copies, for other types than float */
  struct lath_gemm gemm;
};

static struct buffers prepare(const struct lath_linear *a, const struct lath_host *host, struct lath_arena *arena) {
  struct buffers b = {.gemm = {.m = a->rows, .n = a->out, .k = a->in, .a_order = LATH_A_ROWS, .b_transposed = 1}};
  if (a->dtype == LATH_BF16) {
    b.x = lath_take(arena, a->rows, a->in);
    b.w = lath_take(arena, a->out, a->in);
    b.bias = lath_take(arena, 1, a->out);
    b.y = lath_take(arena, a->rows, a->out);
  }
  lath_gemm_take(&b.gemm, host, arena);
  return b;
}

lath_status lath_linear_workspace(const struct lath_linear *a, const struct lath_host *host, size_t *bytes) {
  if (!host || !bytes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_linear_check(a));
  struct lath_arena arena = lath_arena_on(NULL);
  if (a->dtype != LATH_F64) (void)prepare(a, host, &arena);
  return lath_arena_bytes(&arena, 0, bytes);
}

lath_status lath_linear(const struct lath_linear *a, const struct lath_host *host) {
  size_t bytes;
  LATH_TRY(lath_linear_workspace(a, host, &bytes));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, bytes));
  if (a->dtype == LATH_F64) return lath_linear_ref(a);
  struct lath_arena arena = lath_arena_on(a->workspace);
  struct buffers b = prepare(a, host, &arena);
  int64_t unused;
  b.gemm.a = lath_as_float(a->dtype, a->rows, a->in, a->x, a->s_x, b.x, &b.gemm.s_a);
  b.gemm.b = lath_as_float(a->dtype, a->out, a->in, a->w, a->s_w, b.w, &b.gemm.s_b);
  b.gemm.bias = lath_as_float(a->dtype, 1, a->out, a->bias, a->out, b.bias, &unused);
  b.gemm.c = b.y ? b.y : a->y;
  b.gemm.s_c = b.y ? a->out : a->s_y;
  LATH_TRY(lath_gemm_run(&b.gemm, host));
  if (b.y) lath_from_float(a->dtype, a->rows, a->out, b.y, a->y, a->s_y);
  return LATH_OK;
}
