/* SPDX-License-Identifier: Apache-2.0
 * forward.c - y = p u^T + bias, p = x v^T + inner_bias, by the route that the planner picks. */
#include "core/check.h"
#include "lowrank/lowrank.h"
#include "lowrank/routes.h"

struct forward {
  struct lath_cuda_choice choice;
  struct lath_pair pair;
  struct lath_pair_room room;
};

static lath_status prepare(struct forward *f, const struct lath_lowrank_linear *a, const struct lath_cuda *cuda,
                           struct lath_arena *arena) {
  LATH_TRY(lath_cuda_choose(a, cuda, 0, &f->choice));
  f->pair = lath_lowrank_pair(a);
  if (f->choice.plan.kernel == LATH_LOWRANK_MERGED)
    lath_cuda_merged_size(a, cuda, &f->choice.device, arena);
  else
    f->room = lath_pair_take(&f->pair, &f->choice.pair, cuda, &f->choice.device, arena);
  return LATH_OK;
}

lath_status lath_cuda_lowrank_linear_workspace(const struct lath_lowrank_linear *a, const struct lath_cuda *cuda,
                                               size_t *bytes) {
  struct forward f = {0};
  struct lath_arena arena = lath_arena_on(NULL);
  if (!a || !cuda || !bytes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_cuda_check_dtype(a->dtype));
  LATH_TRY(lath_lowrank_check_operands(a, 0));
  LATH_TRY(prepare(&f, a, cuda, &arena));
  return lath_cuda_taken(&arena, bytes);
}

lath_status lath_cuda_lowrank_linear(const struct lath_lowrank_linear *a, struct lath_cuda *cuda) {
  struct forward f = {0};
  size_t bytes;
  LATH_TRY(lath_cuda_lowrank_linear_workspace(a, cuda, &bytes));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, bytes));
  struct lath_arena arena = lath_arena_on(a->workspace);
  cuda->error = 0;
  LATH_TRY(prepare(&f, a, cuda, &arena));
  if (f.choice.plan.kernel == LATH_LOWRANK_MERGED) return lath_cuda_merged(a, cuda, &f.choice.device);
  return lath_cuda_pair(&f.pair, &f.choice.pair, &f.room, &f.choice.device, cuda);
}
