/* SPDX-License-Identifier: Apache-2.0
 * backward.c - the gradients of y = x (u s vh)^T + bias from dy. u and vh are frozen and have none.
 *
 *   chained   h = dy u, then the pair of products dx = (h s) vh           ds = h^T t     d_bias = sum of rows of dy
 *   folded    s vh, then the pair dx = (dy u) (s vh), which has h for its intermediate; the rest as above
 *   merged    dx = dy w and ds = u^T (dy^T x) vh^T (merged.c)
 *
 * t was kept by the forward, in the type of x, or is formed from x again. h is in that type as well. */
#include "core/check.h"
#include "gemm/product.h"
#include "gemm/rows.h"
#include "oialr/oialr.h"
#include "oialr/routes.h"

struct backward {
  const struct lath_oialr_linear *a;
  struct lath_cuda_oialr_choice choice;
  struct lath_cuda_oialr_merged merged;
  int folded;
  void *t, *h, *svh;
  struct lath_pair dx;
  struct lath_pair_room dx_room;
  void *partial;    /* of d_bias */
  int64_t ds_parts; /* without cuBLAS, which cuts a sum over many rows into parts by itself */
  void *ds_partial;
};

static void take_ds(struct backward *b, const struct lath_cuda *cuda, struct lath_arena *arena) {
  const struct lath_oialr_linear *a = b->a;
  b->ds_parts =
      lath_cuda_has_blas(cuda) ? 1 : lath_cuda_tiled_parts(a->rank, a->rank, a->rows, b->choice.device.multiprocessors);
  if (b->ds_parts > 1) b->ds_partial = lath_cuda_take(arena, lath_sum_type(a->dtype), b->ds_parts * a->rank, a->rank);
}

static void take_factors(struct backward *b, const struct lath_cuda *cuda, struct lath_arena *arena) {
  const struct lath_oialr_linear *a = b->a;
  b->folded = a->dx && b->choice.route == LATH_OIALR_FOLDED;
  b->t = a->t;
  if (a->ds) take_ds(b, cuda, arena);
  if (a->ds && !a->t) b->t = lath_cuda_take(arena, a->dtype, a->rows, a->rank);
  if (a->ds || (a->dx && !b->folded)) b->h = lath_cuda_take(arena, a->dtype, a->rows, a->rank);
  if (b->folded) b->svh = lath_cuda_take(arena, a->dtype, a->rank, a->in);
  b->dx = lath_cuda_oialr_dx_pair(a, b->choice.route, b->svh, b->h);
  if (a->dx) b->dx_room = lath_pair_take(&b->dx, &b->choice.pair, cuda, &b->choice.device, arena);
}

static lath_status prepare(struct backward *b, const struct lath_oialr_linear *a, const struct lath_cuda *cuda,
                           struct lath_arena *arena) {
  b->a = a;
  LATH_TRY(lath_cuda_oialr_choose(a, cuda, 1, &b->choice));
  if (a->d_bias)
    b->partial = lath_cuda_take(arena, lath_sum_type(a->dtype),
                                lath_cuda_sum_rows_parts(a->rows, a->out, b->choice.device.multiprocessors), a->out);
  if (b->choice.route == LATH_OIALR_MERGED)
    b->merged = lath_cuda_oialr_merged_take(a, cuda, &b->choice.device, arena);
  else
    take_factors(b, cuda, arena);
  return a->ds && (!a->t || b->choice.route == LATH_OIALR_MERGED) ? lath_oialr_check_x(a) : LATH_OK;
}

lath_status lath_cuda_oialr_linear_backward_workspace(const struct lath_oialr_linear *a, const struct lath_cuda *cuda,
                                                      size_t *bytes) {
  struct backward b = {0};
  struct lath_arena arena = lath_arena_on(NULL);
  if (!a || !cuda || !bytes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_cuda_check_dtype(a->dtype));
  LATH_TRY(lath_oialr_check_operands(a, 1));
  LATH_TRY(prepare(&b, a, cuda, &arena));
  return lath_cuda_taken(&arena, bytes);
}

/* ---- gradients ----------------------------------------------------------------------------------------------------------- */

/* dx, and h on the way where it is wanted. */
static lath_status form_dx(const struct backward *b, struct lath_cuda *cuda) {
  const struct lath_oialr_linear *a = b->a;
  if (b->folded) LATH_TRY(lath_cuda_oialr_fold_vh(a, b->svh, cuda));
  if (!b->folded && b->h) LATH_TRY(lath_cuda_oialr_form_h(a, b->h, cuda));
  return a->dx ? lath_cuda_pair(&b->dx, &b->choice.pair, &b->dx_room, &b->choice.device, cuda) : LATH_OK;
}

static lath_status form_ds(const struct backward *b, struct lath_cuda *cuda) {
  const struct lath_oialr_linear *a = b->a;
  if (!a->t) LATH_TRY(lath_cuda_oialr_form_t(a, b->t, cuda));
  struct lath_cuda_gemm gemm = lath_gemm(a->dtype, a->rank, a->rank, a->rows, a->ds, a->rank);
  gemm.a = b->h, gemm.s_a = a->rank, gemm.a_transposed = 1;
  gemm.b = b->t, gemm.s_b = a->rank;
  if (b->ds_parts == 1) return lath_cuda_product(&gemm, cuda);
  return lath_device_check(cuda, lath_cuda_tiled_in_parts(&gemm, b->ds_parts, b->ds_partial, cuda->stream));
}

static lath_status form_d_bias(const struct backward *b, struct lath_cuda *cuda) {
  const struct lath_oialr_linear *a = b->a;
  return lath_device_check(cuda, lath_cuda_sum_rows(a->dtype, a->rows, a->out, a->dy, a->s_dy, a->d_bias, b->partial,
                                                    b->choice.device.multiprocessors, cuda->stream));
}

static lath_status run_merged(const struct backward *b, struct lath_cuda *cuda) {
  if (b->a->dx) LATH_TRY(lath_cuda_oialr_merged_dx(&b->merged, cuda));
  return b->a->ds ? lath_cuda_oialr_merged_ds(&b->merged, cuda) : LATH_OK;
}

lath_status lath_cuda_oialr_linear_backward(const struct lath_oialr_linear *a, struct lath_cuda *cuda) {
  struct backward b = {0};
  size_t bytes;
  LATH_TRY(lath_cuda_oialr_linear_backward_workspace(a, cuda, &bytes));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, bytes));
  struct lath_arena arena = lath_arena_on(a->workspace);
  cuda->error = 0;
  LATH_TRY(prepare(&b, a, cuda, &arena));
  if (a->d_bias) LATH_TRY(form_d_bias(&b, cuda));
  if (b.choice.route == LATH_OIALR_MERGED) return run_merged(&b, cuda);
  LATH_TRY(form_dx(&b, cuda));
  return a->ds ? form_ds(&b, cuda) : LATH_OK;
}
