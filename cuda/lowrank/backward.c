/* SPDX-License-Identifier: Apache-2.0
 * backward.c - the gradients of y = p u^T + bias, p = x v^T + inner_bias, from dy:
 *
 *   dp = dy u     dx = dp v     du = dy^T p     dv = dp^T x     d_bias = sum of rows of dy     d_inner_bias = sum of rows of dp
 *
 * p and dp are in the type of x. dp and dx are a pair of products (pair.h); the rest are products and sums of rows. */
#include "core/check.h"
#include "gemm/lt.h"
#include "gemm/product.h"
#include "gemm/rows.h"
#include "lowrank/lowrank.h"
#include "lowrank/routes.h"

struct backward {
  const struct lath_lowrank_linear *a;
  struct lath_cuda_choice choice;
  struct lath_pair dx; /* dp and dx */
  struct lath_pair_room dx_room;
  void *p, *dp, *partial;
  struct lath_lt_room room; /* where p is made again */
};

static int64_t partial_size(const struct backward *b, const void *sums, int64_t cols) {
  return sums ? lath_cuda_sum_rows_parts(b->a->rows, cols, b->choice.device.multiprocessors) * cols : 0;
}

static void take(struct backward *b, const struct lath_cuda *cuda, struct lath_arena *arena) {
  const struct lath_lowrank_linear *a = b->a;
  const int64_t outer = partial_size(b, a->d_bias, a->out), inner = partial_size(b, a->d_inner_bias, a->rank);
  b->p = a->p;
  if (a->du && !a->p) {
    b->p = lath_cuda_take(arena, a->dtype, a->rows, a->rank);
    b->room = lath_lt_take(arena, a->dtype, a->inner_bias, NULL, cuda, &b->choice.device);
  }
  if (a->dv || a->d_inner_bias) b->dp = lath_cuda_take(arena, a->dtype, a->rows, a->rank);
  b->dx = lath_lowrank_dx_pair(a, b->dp);
  if (a->dx) b->dx_room = lath_pair_take(&b->dx, &b->choice.pair, cuda, &b->choice.device, arena);
  if (outer || inner) b->partial = lath_cuda_take(arena, lath_sum_type(a->dtype), 1, outer > inner ? outer : inner);
}

static lath_status prepare(struct backward *b, const struct lath_lowrank_linear *a, const struct lath_cuda *cuda,
                           struct lath_arena *arena) {
  b->a = a;
  LATH_TRY(lath_cuda_choose(a, cuda, 1, &b->choice));
  if (b->choice.plan.kernel == LATH_LOWRANK_MERGED)
    lath_cuda_merged_backward_size(a, &b->choice.device, arena);
  else
    take(b, cuda, arena);
  return LATH_OK;
}

lath_status lath_cuda_lowrank_linear_backward_workspace(const struct lath_lowrank_linear *a, const struct lath_cuda *cuda,
                                                        size_t *bytes) {
  struct backward b = {0};
  struct lath_arena arena = lath_arena_on(NULL);
  if (!a || !cuda || !bytes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_cuda_check_dtype(a->dtype));
  LATH_TRY(lath_lowrank_check_operands(a, 1));
  LATH_TRY(prepare(&b, a, cuda, &arena));
  return lath_cuda_taken(&arena, bytes);
}

/* ---- products ------------------------------------------------------------------------------------------------------------ */

static lath_status form_p(const struct backward *b, struct lath_cuda *cuda) {
  const struct lath_lowrank_linear *a = b->a;
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->rows, a->rank, a->in, b->p, a->rank);
  gemm.a = a->x, gemm.s_a = a->s_x;
  gemm.b = a->v, gemm.s_b = a->s_v, gemm.b_transposed = 1;
  gemm.bias = a->inner_bias;
  gemm.workspace = b->room.data, gemm.workspace_bytes = b->room.bytes;
  return lath_cuda_product(&gemm, cuda);
}

static lath_status form_dp(const struct backward *b, struct lath_cuda *cuda) {
  const struct lath_lowrank_linear *a = b->a;
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->rows, a->rank, a->out, b->dp, a->rank);
  gemm.a = a->dy, gemm.s_a = a->s_dy;
  gemm.b = a->u, gemm.s_b = a->s_u;
  return lath_cuda_product(&gemm, cuda);
}

static lath_status form_du(const struct backward *b, struct lath_cuda *cuda) {
  const struct lath_lowrank_linear *a = b->a;
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->out, a->rank, a->rows, a->du, a->rank);
  gemm.a = a->dy, gemm.s_a = a->s_dy, gemm.a_transposed = 1;
  gemm.b = b->p, gemm.s_b = a->rank;
  return lath_cuda_product(&gemm, cuda);
}

static lath_status form_dv(const struct backward *b, struct lath_cuda *cuda) {
  const struct lath_lowrank_linear *a = b->a;
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->rank, a->in, a->rows, a->dv, a->in);
  gemm.a = b->dp, gemm.s_a = a->rank, gemm.a_transposed = 1;
  gemm.b = a->x, gemm.s_b = a->s_x;
  return lath_cuda_product(&gemm, cuda);
}

static lath_status sum_rows(const struct backward *b, int64_t cols, const void *of, int64_t stride, void *sums,
                            struct lath_cuda *cuda) {
  return lath_device_check(cuda, lath_cuda_sum_rows(b->a->dtype, b->a->rows, cols, of, stride, sums, b->partial,
                                                    b->choice.device.multiprocessors, cuda->stream));
}

/* ---- the entry ----------------------------------------------------------------------------------------------------------- */

static lath_status run(const struct backward *b, struct lath_cuda *cuda) {
  const struct lath_lowrank_linear *a = b->a;
  if (a->dx) LATH_TRY(lath_cuda_pair(&b->dx, &b->choice.pair, &b->dx_room, &b->choice.device, cuda));
  if (!a->dx && b->dp) LATH_TRY(form_dp(b, cuda));
  if (a->dv) LATH_TRY(form_dv(b, cuda));
  if (a->du && !a->p) LATH_TRY(form_p(b, cuda));
  if (a->du) LATH_TRY(form_du(b, cuda));
  if (a->d_inner_bias) LATH_TRY(sum_rows(b, a->rank, b->dp, a->rank, a->d_inner_bias, cuda));
  return a->d_bias ? sum_rows(b, a->out, a->dy, a->s_dy, a->d_bias, cuda) : LATH_OK;
}

lath_status lath_cuda_lowrank_linear_backward(const struct lath_lowrank_linear *a, struct lath_cuda *cuda) {
  struct backward b = {0};
  size_t bytes;
  LATH_TRY(lath_cuda_lowrank_linear_backward_workspace(a, cuda, &bytes));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, bytes));
  struct lath_arena arena = lath_arena_on(a->workspace);
  cuda->error = 0;
  LATH_TRY(prepare(&b, a, cuda, &arena));
  return b.choice.plan.kernel == LATH_LOWRANK_MERGED ? lath_cuda_merged_backward(a, cuda, &b.choice.device) : run(&b, cuda);
}
