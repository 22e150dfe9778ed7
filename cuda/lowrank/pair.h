/* SPDX-License-Identifier: Apache-2.0
 * pair.h - inside the library: two products in a row, c = (a first + inner_bias) second + bias.
 *
 * What families with two or more factors are made of: the low-rank product, its gradient with respect to x, and the factors of an
 * OIALR weight two at a time. Three routes: two products (pair.c), the fused kernel (fused.cu), few rows (few.cu). */
#ifndef LATH_CUDA_LOWRANK_PAIR_H
#define LATH_CUDA_LOWRANK_PAIR_H

#include "gemm/lt.h"
#include "gemm/times.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A forward: a = x, first = v^T, second = u^T. For dx: a = dy, first = u, second = v, no biases; `transposed` is 1. */
struct lath_pair {
  lath_dtype dtype;
  int transposed; /* 0: first is stored as (rank, k) and second as (n, rank); 1: as (k, rank) and (rank, n) */
  int64_t rows, k, rank, n;
  const void *a; /* (rows, k) */
  int64_t s_a;
  const void *first;
  int64_t s_first;
  const void *second;
  int64_t s_second;
  const void *inner_bias; /* (rank) or NULL; NULL when transposed */
  const void *bias;       /* (n) or NULL; NULL when transposed */
  int keeps_p;            /* 1: the intermediate is for the caller, too */
  void *p; /* (rows, rank) contiguous: there it goes, rounded. NULL: nowhere, or the workspace is not there yet */
  void *c; /* (rows, n) */
  int64_t s_c;
};

/* ---- the fused kernel (fused.cu), 16-bit types ----------------------------------------------------------------------------- */

/* All extents at least 1, the rank at most this; k, rank and n multiples of 8; strides multiples of 8, and data on 16 bytes, except
 * biases. */
#define LATH_FUSED_RANK 256

/* A block takes 64 rows, or 128 where the rank leaves room for that: `tile_rows` below. */
int lath_fused_has_tile(const struct lath_pair *pair, int tile_rows);
int lath_fused_shared_bytes(const struct lath_pair *pair, int tile_rows); /* dynamic shared memory of a block */

/* Blocks that share the columns of one tile of rows, each of which makes the intermediate anew. */
int lath_fused_shares(const struct lath_pair *pair, int tile_rows, int multiprocessors);

int lath_cuda_fused(const struct lath_pair *pair, int tile_rows, int multiprocessors, int ordinal,
                    void *stream); /* cudaError_t */

/* ---- few rows (few.cu), not transposed --------------------------------------------------------------------------------------- */

#define LATH_FEW_ROWS 16 /* at most, and at least 1; all extents at least 1 */

/* `partial` holds lath_few_splits(...) * rows * rank elements of lath_sum_type(dtype). */
int lath_few_splits(const struct lath_pair *pair, int multiprocessors);
int lath_cuda_few(const struct lath_pair *pair, void *partial, int splits, void *stream); /* cudaError_t */

/* ---- any of them (pair.c) ---------------------------------------------------------------------------------------------------- */

struct lath_pair_plan {
  lath_lowrank_kernel kernel; /* PRODUCTS, FUSED or FEW */
  int tile_rows;              /* of the fused kernel */
  int forced;                 /* by lath_cuda_force_route() */
  double time;                /* nanoseconds */
};

/* The route with the shortest estimated time. Looks at addresses, never behind them; what a workspace gives suits every kernel, and
 * may be NULL here. */
struct lath_pair_plan lath_pair_plan(const struct lath_pair *pair, const struct lath_times *times,
                                     const struct lath_device *device);
struct lath_pair_plan lath_pair_products(const struct lath_pair *pair, const struct lath_times *times); /* always these */

struct lath_arena;

/* What a plan needs beside its operands. */
struct lath_pair_room {
  void *p;       /* PRODUCTS, where the caller keeps none */
  void *partial; /* FEW */
  struct lath_lt_room lt;
};

struct lath_pair_room lath_pair_take(const struct lath_pair *pair, const struct lath_pair_plan *plan,
                                     const struct lath_cuda *cuda, const struct lath_device *device, struct lath_arena *arena);
lath_status lath_cuda_pair(const struct lath_pair *pair, const struct lath_pair_plan *plan, const struct lath_pair_room *room,
                           const struct lath_device *device, struct lath_cuda *cuda);

/* What lath_cuda_force_route() was called with in this thread. */
int lath_cuda_forced_route(void);

#ifdef __cplusplus
}
#endif
#endif
