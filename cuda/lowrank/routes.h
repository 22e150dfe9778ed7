/* SPDX-License-Identifier: Apache-2.0
 * routes.h - inside the library: what the files of the low-rank family share. */
#ifndef LATH_CUDA_LOWRANK_ROUTES_H
#define LATH_CUDA_LOWRANK_ROUTES_H

#include "core/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the fused kernel (fused.cu): c = (a first + inner_bias) second + bias, 16-bit types --------------------------------- */

/* Forward: a = x, first = v^T, second = u^T. For dx: a = dy, first = u, second = v, no biases; `transposed` is 1. */
struct lath_fused {
  lath_dtype dtype;
  int transposed;           /* 0: first is stored as (rank, k) and second as (n, rank); 1: as (k, rank) and (rank, n) */
  int64_t rows, k, rank, n; /* all at least 1; rank at most LATH_FUSED_RANK; k, rank and n multiples of 8 */
  const void *a;            /* (rows, k) */
  int64_t s_a;              /* strides are multiples of 8 and data lie on 16 bytes, except biases */
  const void *first;
  int64_t s_first;
  const void *second;
  int64_t s_second;
  const void *inner_bias; /* (rank) or NULL */
  const void *bias;       /* (n) or NULL */
  void *p;                /* (rows, rank) contiguous, or NULL: the intermediate, rounded */
  void *c;                /* (rows, n) */
  int64_t s_c;
};

#define LATH_FUSED_RANK 256

/* A block takes 64 rows, or 128 where the rank leaves room for that: `tile_rows` below. */
int lath_fused_has_tile(const struct lath_fused *fused, int tile_rows);
int lath_fused_shared_bytes(const struct lath_fused *fused, int tile_rows); /* dynamic shared memory of a block */

/* Blocks that share the columns of one tile of rows, each of which makes the intermediate anew. */
int lath_fused_shares(const struct lath_fused *fused, int tile_rows, int multiprocessors);

int lath_cuda_fused(const struct lath_fused *fused, int tile_rows, int multiprocessors, int ordinal,
                    void *stream); /* cudaError_t */

/* ---- few rows (few.cu): y = (x v^T + inner_bias) u^T + bias -------------------------------------------------------------- */

#define LATH_FEW_ROWS 16 /* at most */

/* `partial` holds lath_few_splits(...) * rows * rank elements of lath_sum_type(dtype). */
int lath_few_splits(const struct lath_lowrank_linear *args, int multiprocessors);
int lath_cuda_few(const struct lath_lowrank_linear *args, void *partial, int splits, void *stream); /* cudaError_t */

/* ---- planner (plan.c) ---------------------------------------------------------------------------------------------------- */

struct lath_cuda_choice {
  struct lath_lowrank_plan plan;
  int tile_rows; /* of the fused kernel */
  struct lath_device device;
};

/* Arguments have been checked. */
lath_status lath_cuda_choose(const struct lath_lowrank_linear *args, const struct lath_cuda *cuda, int backward,
                             struct lath_cuda_choice *choice);

/* What lath_cuda_force_route() was called with in this thread. */
int lath_cuda_forced_route(void);

/* The two calls of the fused kernel that a low-rank layer makes. */
struct lath_fused lath_fused_forward(const struct lath_lowrank_linear *args);
struct lath_fused lath_fused_dx(const struct lath_lowrank_linear *args, void *dp);

/* ---- workspace ----------------------------------------------------------------------------------------------------------- */

struct lath_arena;

/* (rows, cols) elements on a cache line of their own; NULL while counting. */
void *lath_cuda_take(struct lath_arena *arena, lath_dtype dtype, int64_t rows, int64_t cols);

/* The answer of a query; 0 when nothing was taken. */
lath_status lath_cuda_taken(const struct lath_arena *arena, size_t *bytes);

/* ---- merged (merged.c): as the CPU's, the weight u v is formed first ----------------------------------------------------- */

void lath_cuda_merged_size(const struct lath_lowrank_linear *args, const struct lath_cuda *cuda,
                           const struct lath_device *device, struct lath_arena *arena);
lath_status lath_cuda_merged(const struct lath_lowrank_linear *args, struct lath_cuda *cuda, const struct lath_device *device);
void lath_cuda_merged_backward_size(const struct lath_lowrank_linear *args, const struct lath_device *device,
                                    struct lath_arena *arena);
lath_status lath_cuda_merged_backward(const struct lath_lowrank_linear *args, struct lath_cuda *cuda,
                                      const struct lath_device *device);

#ifdef __cplusplus
}
#endif
#endif
