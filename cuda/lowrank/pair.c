/* SPDX-License-Identifier: Apache-2.0
 * pair.c - two products in a row: which route, and one after the other by the library. */
#include "lowrank/pair.h"

#include "core/check.h"
#include "core/take.h"
#include "gemm/product.h"

/* Operations per nanosecond and multiprocessor, see times.h. mma.sync has about 0.6 of the peak of tensor cores, and our loop two
 * thirds of that. Few rows use half of the arithmetic units. NOT MEASURED. */
#define FUSED_RATE 3000.0
#define FEW_RATE 250.0

static _Thread_local int forced = -1;

void lath_cuda_force_route(int kernel) { forced = kernel; }
int lath_cuda_forced_route(void) { return forced; }

/* ---- times --------------------------------------------------------------------------------------------------------------- */

static double products_time(const struct lath_pair *q, const struct lath_times *t) {
  return lath_product_time(t, q->rows, q->rank, q->k) + lath_bias_time(t, q->inner_bias, q->rows, q->rank) +
         lath_product_time(t, q->rows, q->n, q->rank) + lath_bias_time(t, q->bias, q->rows, q->n);
}

/* The weights are read once; rows beyond the next power of two cost as much as rows. */
static double few_time(const struct lath_pair *q, const struct lath_times *t) {
  const double numbers = (double)q->rank * (double)(q->k + q->n);
  int64_t rows = 1;
  while (rows < q->rows) rows *= 2;
  return 2.0 * LATH_LAUNCH_NS +
         lath_longest(numbers * t->bytes / LATH_MEMORY_RATE, 2.0 * (double)rows * numbers / FEW_RATE) / t->multiprocessors;
}

static int64_t padded_rank(int64_t rank) {
  if (rank <= 64) return 64;
  return rank <= 128 ? 128 : 256;
}

/* Blocks come in waves of one per multiprocessor. Each reads its rows from memory and all weights through L2. */
static double fused_time(const struct lath_pair *q, const struct lath_times *t, int tile_rows) {
  const int64_t tiles = lath_blocks(q->rows, tile_rows), shares = lath_fused_shares(q, tile_rows, (int)t->multiprocessors);
  const int64_t waves = lath_blocks(tiles * shares, (int64_t)t->multiprocessors), rank = padded_rank(q->rank);
  const double first = (double)q->k, second = (double)q->n / (double)shares, rows = (double)tile_rows;
  const double block_operations = 2.0 * rows * (double)rank * (first + second);
  const double block_weights = (double)q->rank * (first + second) * t->bytes;
  const double block_rows = rows * (first + second + (q->keeps_p ? (double)q->rank : 0.0)) * t->bytes;
  return LATH_LAUNCH_NS + (double)waves * lath_longest(lath_longest(block_operations / FUSED_RATE,
                                                                    (block_weights + block_rows) / LATH_CACHE_RATE),
                                                       block_rows / LATH_MEMORY_RATE);
}

/* ---- what each route can do ---------------------------------------------------------------------------------------------- */

static int on_16_bytes(const void *data, int64_t stride) { return (uintptr_t)data % 16 == 0 && stride % 8 == 0; }

static int can_fuse(const struct lath_pair *q, int tile_rows, const struct lath_device *device) {
  return lath_is_16_bit(q->dtype) && device->capability >= 80 && q->rank <= LATH_FUSED_RANK && q->rows > 0 && q->k > 0 &&
         q->rank > 0 && q->n > 0 && q->k % 8 == 0 && q->rank % 8 == 0 && q->n % 8 == 0 && on_16_bytes(q->a, q->s_a) &&
         on_16_bytes(q->first, q->s_first) && on_16_bytes(q->second, q->s_second) && on_16_bytes(q->c, q->s_c) &&
         on_16_bytes(q->p, 0) && lath_fused_has_tile(q, tile_rows) &&
         lath_fused_shared_bytes(q, tile_rows) <= device->shared_bytes;
}

static int can_few(const struct lath_pair *q) {
  return !q->transposed && q->rows >= 1 && q->rows <= LATH_FEW_ROWS && q->k > 0 && q->rank > 0 && q->n > 0;
}

/* ---- the choice ---------------------------------------------------------------------------------------------------------- */

static struct lath_pair_plan plan_of(lath_lowrank_kernel kernel, int tile_rows, double time) {
  return (struct lath_pair_plan){kernel, tile_rows, (int)kernel == forced, time};
}

static void consider(struct lath_pair_plan *best, struct lath_pair_plan other) {
  if (other.forced != best->forced ? other.forced : other.time < best->time) *best = other;
}

struct lath_pair_plan lath_pair_products(const struct lath_pair *q, const struct lath_times *t) {
  return plan_of(LATH_LOWRANK_PRODUCTS, 0, products_time(q, t));
}

struct lath_pair_plan lath_pair_plan(const struct lath_pair *q, const struct lath_times *t, const struct lath_device *device) {
  struct lath_pair_plan best = lath_pair_products(q, t);
  for (int tile_rows = 64; tile_rows <= 128; tile_rows += 64)
    if (can_fuse(q, tile_rows, device)) consider(&best, plan_of(LATH_LOWRANK_FUSED, tile_rows, fused_time(q, t, tile_rows)));
  if (can_few(q)) consider(&best, plan_of(LATH_LOWRANK_FEW, 0, few_time(q, t)));
  return best;
}

/* ---- the call ------------------------------------------------------------------------------------------------------------ */

struct lath_pair_room lath_pair_take(const struct lath_pair *q, const struct lath_pair_plan *plan, const struct lath_cuda *cuda,
                                     const struct lath_device *device, struct lath_arena *arena) {
  struct lath_pair_room room = {0};
  if (plan->kernel == LATH_LOWRANK_PRODUCTS) {
    if (!q->keeps_p) room.p = lath_cuda_take(arena, q->dtype, q->rows, q->rank);
    room.lt = lath_lt_take(arena, q->dtype, q->inner_bias, q->bias, cuda, device);
  }
  if (plan->kernel == LATH_LOWRANK_FEW)
    room.partial =
        lath_cuda_take(arena, lath_sum_type(q->dtype), lath_few_splits(q, device->multiprocessors) * q->rows, q->rank);
  return room;
}

static lath_status products(const struct lath_pair *q, const struct lath_pair_room *room, struct lath_cuda *cuda) {
  void *const p = q->keeps_p ? q->p : room->p;
  struct lath_cuda_gemm first = lath_gemm(q->dtype, q->rows, q->rank, q->k, p, q->rank);
  first.a = q->a, first.s_a = q->s_a;
  first.b = q->first, first.s_b = q->s_first, first.b_transposed = !q->transposed;
  first.bias = q->inner_bias;
  first.workspace = room->lt.data, first.workspace_bytes = room->lt.bytes;
  struct lath_cuda_gemm second = lath_gemm(q->dtype, q->rows, q->n, q->rank, q->c, q->s_c);
  second.a = p, second.s_a = q->rank;
  second.b = q->second, second.s_b = q->s_second, second.b_transposed = !q->transposed;
  second.bias = q->bias;
  second.workspace = room->lt.data, second.workspace_bytes = room->lt.bytes;
  LATH_TRY(lath_cuda_product(&first, cuda));
  return lath_cuda_product(&second, cuda);
}

lath_status lath_cuda_pair(const struct lath_pair *q, const struct lath_pair_plan *plan, const struct lath_pair_room *room,
                           const struct lath_device *device, struct lath_cuda *cuda) {
  const int multiprocessors = device->multiprocessors;
  if (plan->kernel == LATH_LOWRANK_PRODUCTS) return products(q, room, cuda);
  if (plan->kernel == LATH_LOWRANK_FEW)
    return lath_device_check(cuda, lath_cuda_few(q, room->partial, lath_few_splits(q, multiprocessors), cuda->stream));
  return lath_device_check(cuda, lath_cuda_fused(q, plan->tile_rows, multiprocessors, cuda->device, cuda->stream));
}
