/* SPDX-License-Identifier: Apache-2.0
 * forward.c - y = p u^T + bias, p = x v^T + inner_bias, by the route that the planner picks. */
#include "core/arena.h"
#include "core/check.h"
#include "gemm/lt.h"
#include "gemm/product.h"
#include "lowrank/lowrank.h"
#include "lowrank/routes.h"

void *lath_cuda_take(struct lath_arena *arena, lath_dtype dtype, int64_t rows, int64_t cols) {
  const int64_t bytes = rows * cols * (int64_t)lath_dtype_size(dtype); /* fits: the extents were checked */
  return lath_take(arena, 1, lath_blocks(bytes, sizeof(float)));
}

lath_status lath_cuda_taken(const struct lath_arena *arena, size_t *bytes) {
  const struct lath_arena untouched = lath_arena_on(NULL);
  if (arena->used != untouched.used) return lath_arena_bytes(arena, 0, bytes);
  *bytes = 0;
  return LATH_OK;
}

struct forward {
  struct lath_cuda_choice choice;
  void *p;       /* of the caller, or room */
  void *partial; /* LATH_LOWRANK_FEW */
  struct lath_lt_room room;
  int splits;
};

static void take_few(struct forward *f, const struct lath_lowrank_linear *a, struct lath_arena *arena) {
  f->splits = lath_few_splits(a, f->choice.device.multiprocessors);
  f->partial = lath_cuda_take(arena, lath_sum_type(a->dtype), f->splits * a->rows, a->rank);
}

static lath_status prepare(struct forward *f, const struct lath_lowrank_linear *a, const struct lath_cuda *cuda,
                           struct lath_arena *arena) {
  LATH_TRY(lath_cuda_choose(a, cuda, 0, &f->choice));
  const lath_lowrank_kernel kernel = f->choice.plan.kernel;
  f->p = a->p;
  if (kernel == LATH_LOWRANK_PRODUCTS && !a->p) f->p = lath_cuda_take(arena, a->dtype, a->rows, a->rank);
  if (kernel == LATH_LOWRANK_PRODUCTS) f->room = lath_lt_take(arena, a->dtype, a->inner_bias, a->bias, cuda, &f->choice.device);
  if (kernel == LATH_LOWRANK_FEW) take_few(f, a, arena);
  if (kernel == LATH_LOWRANK_MERGED) lath_cuda_merged_size(a, cuda, &f->choice.device, arena);
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

static lath_status products(const struct forward *f, const struct lath_lowrank_linear *a, struct lath_cuda *cuda) {
  const struct lath_cuda_gemm first = {.a_type = a->dtype,
                                       .b_type = a->dtype,
                                       .c_type = a->dtype,
                                       .m = a->rows,
                                       .n = a->rank,
                                       .k = a->in,
                                       .a = a->x,
                                       .s_a = a->s_x,
                                       .b = a->v,
                                       .s_b = a->s_v,
                                       .b_transposed = 1,
                                       .bias = a->inner_bias,
                                       .c = f->p,
                                       .s_c = a->rank,
                                       .workspace = f->room.data,
                                       .workspace_bytes = f->room.bytes};
  const struct lath_cuda_gemm second = {.a_type = a->dtype,
                                        .b_type = a->dtype,
                                        .c_type = a->dtype,
                                        .m = a->rows,
                                        .n = a->out,
                                        .k = a->rank,
                                        .a = f->p,
                                        .s_a = a->rank,
                                        .b = a->u,
                                        .s_b = a->s_u,
                                        .b_transposed = 1,
                                        .bias = a->bias,
                                        .c = a->y,
                                        .s_c = a->s_y,
                                        .workspace = f->room.data,
                                        .workspace_bytes = f->room.bytes};
  LATH_TRY(lath_cuda_product(&first, cuda));
  return lath_cuda_product(&second, cuda);
}

lath_status lath_cuda_lowrank_linear(const struct lath_lowrank_linear *a, struct lath_cuda *cuda) {
  struct forward f = {0};
  size_t bytes;
  LATH_TRY(lath_cuda_lowrank_linear_workspace(a, cuda, &bytes));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, bytes));
  struct lath_arena arena = lath_arena_on(a->workspace);
  cuda->error = 0;
  LATH_TRY(prepare(&f, a, cuda, &arena));
  const lath_lowrank_kernel kernel = f.choice.plan.kernel;
  if (kernel == LATH_LOWRANK_MERGED) return lath_cuda_merged(a, cuda, &f.choice.device);
  if (kernel == LATH_LOWRANK_FEW) return lath_device_check(cuda, lath_cuda_few(a, f.partial, f.splits, cuda->stream));
  if (kernel == LATH_LOWRANK_PRODUCTS) return products(&f, a, cuda);
  const struct lath_fused fused = lath_fused_forward(a);
  return lath_device_check(
      cuda, lath_cuda_fused(&fused, f.choice.tile_rows, f.choice.device.multiprocessors, cuda->device, cuda->stream));
}
