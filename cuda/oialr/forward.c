/* SPDX-License-Identifier: Apache-2.0
 * forward.c - y = x (u s vh)^T + bias, by the route that the planner picks:
 *
 *   chained   t = x vh^T, then the pair of products (t s^T) u^T + bias
 *   folded    u s, then the pair (x vh^T) (u s)^T + bias, which has t for its intermediate
 *   merged    w = u s vh, then x w^T + bias (merged.c)
 *
 * t is in the type of x. So are t s^T, u s and w, where they are stored at all: a pair may be one kernel (lowrank/pair.h). */
#include "core/check.h"
#include "oialr/oialr.h"
#include "oialr/routes.h"

struct forward {
  struct lath_cuda_oialr_choice choice;
  struct lath_cuda_oialr_merged merged;
  void *t;  /* of the caller; or where the chained route leaves it */
  void *us; /* folded */
  struct lath_pair pair;
  struct lath_pair_room room;
};

static void take_pair(struct forward *f, const struct lath_oialr_linear *a, const struct lath_cuda *cuda,
                      struct lath_arena *arena) {
  const lath_oialr_route route = f->choice.route;
  f->t = a->t;
  if (route == LATH_OIALR_CHAINED && !a->t) f->t = lath_cuda_take(arena, a->dtype, a->rows, a->rank);
  if (route == LATH_OIALR_FOLDED) f->us = lath_cuda_take(arena, a->dtype, a->out, a->rank);
  f->pair = lath_cuda_oialr_pair(a, route, f->us, f->t);
  f->room = lath_pair_take(&f->pair, &f->choice.pair, cuda, &f->choice.device, arena);
}

static lath_status prepare(struct forward *f, const struct lath_oialr_linear *a, const struct lath_cuda *cuda,
                           struct lath_arena *arena) {
  LATH_TRY(lath_cuda_oialr_choose(a, cuda, 0, &f->choice));
  if (f->choice.route == LATH_OIALR_MERGED)
    f->merged = lath_cuda_oialr_merged_take(a, cuda, &f->choice.device, arena);
  else
    take_pair(f, a, cuda, arena);
  return LATH_OK;
}

lath_status lath_cuda_oialr_linear_workspace(const struct lath_oialr_linear *a, const struct lath_cuda *cuda, size_t *bytes) {
  struct forward f = {0};
  struct lath_arena arena = lath_arena_on(NULL);
  if (!a || !cuda || !bytes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_cuda_check_dtype(a->dtype));
  LATH_TRY(lath_oialr_check_operands(a, 0));
  LATH_TRY(prepare(&f, a, cuda, &arena));
  return lath_cuda_taken(&arena, bytes);
}

lath_status lath_cuda_oialr_linear(const struct lath_oialr_linear *a, struct lath_cuda *cuda) {
  struct forward f = {0};
  size_t bytes;
  LATH_TRY(lath_cuda_oialr_linear_workspace(a, cuda, &bytes));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, bytes));
  struct lath_arena arena = lath_arena_on(a->workspace);
  cuda->error = 0;
  LATH_TRY(prepare(&f, a, cuda, &arena));
  if (f.choice.route == LATH_OIALR_MERGED) return lath_cuda_oialr_merged_y(&f.merged, cuda);
  if (f.choice.route == LATH_OIALR_CHAINED) LATH_TRY(lath_cuda_oialr_form_t(a, f.t, cuda));
  if (f.choice.route == LATH_OIALR_FOLDED) LATH_TRY(lath_cuda_oialr_fold_u(a, f.us, cuda));
  return lath_cuda_pair(&f.pair, &f.choice.pair, &f.room, &f.choice.device, cuda);
}
