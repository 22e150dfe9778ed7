/* SPDX-License-Identifier: Apache-2.0
 * forward.c - y = (x v^T + inner_bias) u^T + bias, on the route that the planner names.
 *
 * Few rows: both products read the weights in place, once; threads share the columns of each product.
 * Row tiles: v and u are turned into panels once per call; then each thread takes rows, and for each tile computes p (rows, rank) and
 * at once expands it, so that p never leaves the cache. No barrier stands between the two products. */
#include "core/check.h"
#include "core/convert.h"
#include "core/host.h"
#include "gemm/gemm.h"
#include "lowrank/lowrank.h"

#define TILE_ROWS 96     /* p and the tiles of x and y it touches stay in L2 */
#define COLUMNS_SHARE 16 /* columns are dealt out in whole cache lines */

struct forward {
  const struct lath_lowrank_linear *a;
  const struct lath_kernels *kernels;
  int64_t workers;
  struct lath_lowrank_weights weights;
  struct lath_panels v_panels, u_panels;
  float *p, *x, *y; /* few rows: of all rows. Row tiles: TILE_ROWS rows per worker. x and y: only for other types than float */
  float *scratch;   /* per worker */
  int64_t scratch_size;
};

/* ---- buffers --------------------------------------------------------------------------------------------------------------------- */

static void take_rows(struct forward *f, struct lath_arena *arena, int64_t rows) {
  const struct lath_lowrank_linear *a = f->a;
  f->p = lath_take(arena, rows, a->rank);
  if (a->dtype == LATH_F32) return;
  f->x = lath_take(arena, rows, a->in);
  f->y = lath_take(arena, rows, a->out);
}

static struct forward prepare(const struct lath_lowrank_linear *a, const struct lath_host *host, lath_lowrank_kernel kernel,
                              struct lath_arena *arena) {
  struct forward f = {.a = a, .kernels = lath_kernels()};
  f.workers = lath_host_workers(host, a->rows * a->rank * (a->in + a->out));
  lath_lowrank_weights_take(&f.weights, a, arena);
  if (kernel == LATH_LOWRANK_ROWS) {
    take_rows(&f, arena, a->rows);
    const int64_t narrow = lath_few_rows_scratch(f.kernels, a->rows, a->in),
                  wide = lath_few_rows_scratch(f.kernels, a->rows, a->rank);
    f.scratch_size = narrow > wide ? narrow : wide;
  } else {
    f.v_panels = lath_panels_take(f.kernels, arena, a->rows, a->rank, a->in);
    f.u_panels = lath_panels_take(f.kernels, arena, a->rows, a->out, a->rank);
    take_rows(&f, arena, f.workers * TILE_ROWS);
    f.scratch_size = lath_product_scratch(f.kernels);
  }
  f.scratch = lath_take(arena, f.workers, f.scratch_size);
  return f;
}

/* ---- few rows ---------------------------------------------------------------------------------------------------------------------- */

static void few_rows_narrow(void *arg, int64_t begin, int64_t end) {
  const struct forward *f = arg;
  const struct lath_lowrank_linear *a = f->a;
  for (int64_t w = begin; w < end; w++) {
    const int64_t from = lath_share(a->rank, COLUMNS_SHARE, w, f->workers),
                  to = lath_share(a->rank, COLUMNS_SHARE, w + 1, f->workers);
    const int64_t s_x = f->x ? a->in : a->s_x;
    lath_multiply_few_rows(f->kernels, a->rows, to - from, a->in, f->x ? f->x : a->x, s_x, f->weights.v + from * f->weights.s_v,
                           f->weights.s_v, f->weights.inner_bias ? f->weights.inner_bias + from : NULL, f->p + from, a->rank,
                           f->scratch + w * f->scratch_size);
  }
}

static void few_rows_wide(void *arg, int64_t begin, int64_t end) {
  const struct forward *f = arg;
  const struct lath_lowrank_linear *a = f->a;
  for (int64_t w = begin; w < end; w++) {
    const int64_t from = lath_share(a->out, COLUMNS_SHARE, w, f->workers),
                  to = lath_share(a->out, COLUMNS_SHARE, w + 1, f->workers);
    const int64_t s_y = f->y ? a->out : a->s_y;
    lath_multiply_few_rows(f->kernels, a->rows, to - from, a->rank, f->p, a->rank, f->weights.u + from * f->weights.s_u,
                           f->weights.s_u, f->weights.bias ? f->weights.bias + from : NULL,
                           (f->y ? f->y : (float *)a->y) + from, s_y, f->scratch + w * f->scratch_size);
  }
}

static lath_status run_few_rows(struct forward *f, const struct lath_host *host) {
  const struct lath_lowrank_linear *a = f->a;
  int64_t unused;
  if (f->x) (void)lath_as_float(a->dtype, a->rows, a->in, a->x, a->s_x, f->x, &unused);
  if (a->p) f->p = a->p;
  LATH_TRY(lath_host_run(host, f->workers, few_rows_narrow, f));
  LATH_TRY(lath_host_run(host, f->workers, few_rows_wide, f));
  if (f->y) lath_from_float(a->dtype, a->rows, a->out, f->y, a->y, a->s_y);
  return LATH_OK;
}

/* ---- row tiles ------------------------------------------------------------------------------------------------------------------------ */

static void pack_weights(void *arg, int64_t begin, int64_t end) {
  const struct forward *f = arg;
  const int64_t v_count = lath_panels_count(&f->v_panels), u_count = lath_panels_count(&f->u_panels);
  for (int64_t w = begin; w < end; w++) {
    lath_pack(f->kernels, &f->v_panels, v_count * w / f->workers, v_count * (w + 1) / f->workers, f->weights.v, f->weights.s_v,
              1);
    lath_pack(f->kernels, &f->u_panels, u_count * w / f->workers, u_count * (w + 1) / f->workers, f->weights.u, f->weights.s_u,
              1);
  }
}

static void run_tile(const void *arg, int64_t worker, int64_t row, int64_t rows) {
  const struct forward *f = arg;
  const struct lath_lowrank_linear *a = f->a;
  float *scratch = f->scratch + worker * f->scratch_size;
  float *p = a->p ? (float *)a->p + row * a->rank : f->p + worker * TILE_ROWS * a->rank;
  float *y = f->y ? f->y + worker * TILE_ROWS * a->out : (float *)a->y + row * a->s_y;
  int64_t s_x;
  const float *x = lath_as_float(a->dtype, rows, a->in, lath_at(a->dtype, a->x, a->s_x, row, 0), a->s_x,
                                 f->x ? f->x + worker * TILE_ROWS * a->in : NULL, &s_x);
  const struct lath_product narrow = {.m = rows,
                                      .a = x,
                                      .s_a = s_x,
                                      .b = &f->v_panels,
                                      .bias = f->weights.inner_bias,
                                      .c = p,
                                      .s_c = a->rank,
                                      .scratch = scratch};
  const struct lath_product wide = {.m = rows,
                                    .a = p,
                                    .s_a = a->rank,
                                    .b = &f->u_panels,
                                    .bias = f->weights.bias,
                                    .c = y,
                                    .s_c = f->y ? a->out : a->s_y,
                                    .scratch = scratch};
  lath_multiply(f->kernels, &narrow);
  lath_multiply(f->kernels, &wide);
  if (f->y)
    lath_from_float(a->dtype, rows, a->out, y, (char *)a->y + row * a->s_y * (int64_t)lath_dtype_size(a->dtype), a->s_y);
}

static void run_tiles(void *arg, int64_t begin, int64_t end) {
  const struct forward *f = arg;
  for (int64_t w = begin; w < end; w++) lath_host_tiles(f->a->rows, TILE_ROWS, w, f->workers, run_tile, f);
}

static lath_status run_row_tiles(struct forward *f, const struct lath_host *host) {
  LATH_TRY(lath_host_run(host, f->workers, pack_weights, f));
  return lath_host_run(host, f->workers, run_tiles, f);
}

/* ---- entries ---------------------------------------------------------------------------------------------------------------------------- */

lath_status lath_lowrank_linear_workspace(const struct lath_lowrank_linear *a, const struct lath_host *host, size_t *bytes) {
  struct lath_lowrank_plan plan;
  if (!a || !host || !bytes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_lowrank_linear_plan(a, 0, &plan));
  struct lath_arena arena = lath_arena_on(NULL);
  if (plan.kernel == LATH_LOWRANK_MERGED)
    lath_lowrank_merged_size(a, host, &arena);
  else if (plan.kernel != LATH_LOWRANK_PLAIN)
    (void)prepare(a, host, plan.kernel, &arena);
  return lath_arena_bytes(&arena, lath_lowrank_reference_bytes(a), bytes);
}

lath_status lath_lowrank_linear(const struct lath_lowrank_linear *a, const struct lath_host *host) {
  struct lath_lowrank_plan plan;
  size_t bytes;
  if (!host) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_lowrank_check_forward(a));
  LATH_TRY(lath_lowrank_linear_workspace(a, host, &bytes));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, bytes));
  LATH_TRY(lath_lowrank_linear_plan(a, 0, &plan));
  if (plan.kernel == LATH_LOWRANK_PLAIN) return lath_lowrank_linear_ref(a);
  if (plan.kernel == LATH_LOWRANK_MERGED) return lath_lowrank_merged(a, host);
  struct lath_arena arena = lath_arena_on(a->workspace);
  struct forward f = prepare(a, host, plan.kernel, &arena);
  lath_lowrank_weights_view(&f.weights, a);
  return plan.kernel == LATH_LOWRANK_ROWS ? run_few_rows(&f, host) : run_row_tiles(&f, host);
}
