/* SPDX-License-Identifier: Apache-2.0
 * forward.c - y = ((x vh^T) s^T) u^T + bias, on the route that the planner names.
 *
 * Few rows: the three products read the weights in place, once; threads share the columns of each.
 * Row tiles: the weights are turned into panels once per call, u s in the place of u where that was folded; then each thread takes
 * rows, and carries each tile of them through all products while it lies in the cache. */
#include "core/check.h"
#include "core/convert.h"
#include "core/host.h"
#include "gemm/gemm.h"
#include "oialr/oialr.h"

#define TILE_ROWS 96     /* t, z and the tiles of x and y they meet stay in L2 */
#define COLUMNS_SHARE 16 /* columns are dealt out in whole cache lines */

struct forward {
  const struct lath_oialr_linear *a;
  const struct lath_kernels *kernels;
  int64_t workers;
  int few, folded;
  struct lath_oialr_weights weights;
  float *us; /* folded: u s (out, rank) */
  struct lath_panels vh_panels, s_panels, u_panels;
  float *t, *z, *x, *y; /* few: of all rows. Row tiles: TILE_ROWS rows per worker. x and y: only for other types than float */
  float *scratch;       /* per worker */
  int64_t scratch_size;
};

/* ---- buffers --------------------------------------------------------------------------------------------------------------------- */

static void take_rows(struct forward *f, struct lath_arena *arena, int64_t rows) {
  const struct lath_oialr_linear *a = f->a;
  f->t = lath_take(arena, rows, a->rank);
  if (!f->folded) f->z = lath_take(arena, rows, a->rank);
  if (a->dtype == LATH_F32) return;
  f->x = lath_take(arena, rows, a->in);
  f->y = lath_take(arena, rows, a->out);
}

static void take_panels(struct forward *f, struct lath_arena *arena) {
  const struct lath_oialr_linear *a = f->a;
  f->vh_panels = lath_panels_take(f->kernels, arena, a->rows, a->rank, a->in);
  f->u_panels = lath_panels_take(f->kernels, arena, a->rows, a->out, a->rank);
  if (f->folded)
    f->us = lath_take(arena, a->out, a->rank);
  else
    f->s_panels = lath_panels_take(f->kernels, arena, a->rows, a->rank, a->rank);
}

static struct forward prepare(const struct lath_oialr_linear *a, const struct lath_host *host, lath_oialr_route route,
                              struct lath_arena *arena) {
  const int64_t weights = a->rank * (a->in + a->out + a->rank);
  struct forward f = {.a = a, .kernels = lath_kernels(), .folded = route == LATH_OIALR_FOLDED};
  f.few = !f.folded && lath_few_rows(a->rows, weights);
  f.workers = lath_host_workers(host, a->rows * weights);
  lath_oialr_weights_take(&f.weights, a, arena);
  if (!f.few) take_panels(&f, arena);
  take_rows(&f, arena, f.few ? a->rows : f.workers * TILE_ROWS);
  const int64_t narrow = lath_few_rows_scratch(f.kernels, a->rows, a->in),
                wide = lath_few_rows_scratch(f.kernels, a->rows, a->rank);
  f.scratch_size = !f.few ? lath_product_scratch(f.kernels) : narrow > wide ? narrow : wide;
  f.scratch = lath_take(arena, f.workers, f.scratch_size);
  return f;
}

/* ---- few rows ---------------------------------------------------------------------------------------------------------------------- */

/* c (rows, n) = b (rows, k) w^T + bias, one of the three. */
struct link {
  const struct forward *f;
  int64_t n, k;
  const float *b, *w, *bias;
  int64_t s_b, s_w;
  float *c;
  int64_t s_c;
};

static void share_link(void *arg, int64_t begin, int64_t end) {
  const struct link *l = arg;
  const struct forward *f = l->f;
  for (int64_t w = begin; w < end; w++) {
    const int64_t from = lath_share(l->n, COLUMNS_SHARE, w, f->workers),
                  to = lath_share(l->n, COLUMNS_SHARE, w + 1, f->workers);
    lath_multiply_few_rows(f->kernels, f->a->rows, to - from, l->k, l->b, l->s_b, l->w + from * l->s_w, l->s_w,
                           l->bias ? l->bias + from : NULL, l->c + from, l->s_c, f->scratch + w * f->scratch_size);
  }
}

static lath_status run_few_rows(const struct forward *f, const struct lath_host *host) {
  const struct lath_oialr_linear *a = f->a;
  const struct lath_oialr_weights *w = &f->weights;
  float *t = a->t ? a->t : f->t, *y = f->y ? f->y : a->y;
  int64_t s_x;
  const float *x = lath_as_float(a->dtype, a->rows, a->in, a->x, a->s_x, f->x, &s_x);
  const int64_t s_y = f->y ? a->out : a->s_y;
  struct link chain[] = {
      {f, a->rank, a->in, x, w->vh, NULL, s_x, w->s_vh, t, a->rank},
      {f, a->rank, a->rank, t, w->s, NULL, a->rank, w->s_s, f->z, a->rank},
      {f, a->out, a->rank, f->z, w->u, w->bias, a->rank, w->s_u, y, s_y},
  };
  for (int i = 0; i < 3; i++) LATH_TRY(lath_host_run(host, f->workers, share_link, &chain[i]));
  if (f->y) lath_from_float(a->dtype, a->rows, a->out, f->y, a->y, a->s_y);
  return LATH_OK;
}

/* ---- row tiles ------------------------------------------------------------------------------------------------------------------------ */

static void fold(void *arg, int64_t begin, int64_t end) {
  const struct forward *f = arg;
  const struct lath_oialr_linear *a = f->a;
  const struct lath_panels s = lath_panels_in_place(f->kernels, a->rank, a->rank, f->weights.s, f->weights.s_s);
  for (int64_t w = begin; w < end; w++) {
    const int64_t from = a->out * w / f->workers, to = a->out * (w + 1) / f->workers;
    const struct lath_product product = {.m = to - from,
                                         .a = f->weights.u + from * f->weights.s_u,
                                         .s_a = f->weights.s_u,
                                         .b = &s,
                                         .c = f->us + from * a->rank,
                                         .s_c = a->rank,
                                         .scratch = f->scratch + w * f->scratch_size};
    lath_multiply(f->kernels, &product);
  }
}

static void pack_share(const struct forward *f, const struct lath_panels *panels, int64_t w, const float *weight, int64_t s) {
  const int64_t count = lath_panels_count(panels);
  lath_pack(f->kernels, panels, count * w / f->workers, count * (w + 1) / f->workers, weight, s, 1);
}

static void pack_weights(void *arg, int64_t begin, int64_t end) {
  const struct forward *f = arg;
  for (int64_t w = begin; w < end; w++) {
    pack_share(f, &f->vh_panels, w, f->weights.vh, f->weights.s_vh);
    pack_share(f, &f->u_panels, w, f->folded ? f->us : f->weights.u, f->folded ? f->a->rank : f->weights.s_u);
    if (!f->folded) pack_share(f, &f->s_panels, w, f->weights.s, f->weights.s_s);
  }
}

static void run_tile(const void *arg, int64_t worker, int64_t row, int64_t rows) {
  const struct forward *f = arg;
  const struct lath_oialr_linear *a = f->a;
  float *scratch = f->scratch + worker * f->scratch_size;
  float *t = a->t ? (float *)a->t + row * a->rank : f->t + worker * TILE_ROWS * a->rank;
  float *z = f->folded ? t : f->z + worker * TILE_ROWS * a->rank;
  float *y = f->y ? f->y + worker * TILE_ROWS * a->out : (float *)a->y + row * a->s_y;
  int64_t s_x;
  const float *x = lath_as_float(a->dtype, rows, a->in, lath_at(a->dtype, a->x, a->s_x, row, 0), a->s_x,
                                 f->x ? f->x + worker * TILE_ROWS * a->in : NULL, &s_x);
  const struct lath_product narrow = {
      .m = rows, .a = x, .s_a = s_x, .b = &f->vh_panels, .c = t, .s_c = a->rank, .scratch = scratch};
  const struct lath_product core = {
      .m = rows, .a = t, .s_a = a->rank, .b = &f->s_panels, .c = z, .s_c = a->rank, .scratch = scratch};
  const struct lath_product wide = {.m = rows,
                                    .a = z,
                                    .s_a = a->rank,
                                    .b = &f->u_panels,
                                    .bias = f->weights.bias,
                                    .c = y,
                                    .s_c = f->y ? a->out : a->s_y,
                                    .scratch = scratch};
  lath_multiply(f->kernels, &narrow);
  if (!f->folded) lath_multiply(f->kernels, &core);
  lath_multiply(f->kernels, &wide);
  if (f->y)
    lath_from_float(a->dtype, rows, a->out, y, (char *)a->y + row * a->s_y * (int64_t)lath_dtype_size(a->dtype), a->s_y);
}

static void run_tiles(void *arg, int64_t begin, int64_t end) {
  const struct forward *f = arg;
  for (int64_t w = begin; w < end; w++) lath_host_tiles(f->a->rows, TILE_ROWS, w, f->workers, run_tile, f);
}

static lath_status run_row_tiles(struct forward *f, const struct lath_host *host) {
  if (f->folded) LATH_TRY(lath_host_run(host, f->workers, fold, f));
  LATH_TRY(lath_host_run(host, f->workers, pack_weights, f));
  return lath_host_run(host, f->workers, run_tiles, f);
}

/* ---- entries ---------------------------------------------------------------------------------------------------------------------------- */

lath_status lath_oialr_linear_workspace(const struct lath_oialr_linear *a, const struct lath_host *host, size_t *bytes) {
  if (!a || !host || !bytes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_check_dtype(a->dtype));
  LATH_TRY(lath_oialr_check_extents(a));
  struct lath_arena arena = lath_arena_on(NULL);
  const lath_oialr_route route = lath_oialr_forward_route(a);
  if (route == LATH_OIALR_MERGED && a->dtype != LATH_F64)
    lath_oialr_merged_size(a, host, &arena);
  else if (a->dtype != LATH_F64)
    (void)prepare(a, host, route, &arena);
  return lath_arena_bytes(&arena, lath_oialr_reference_bytes(a), bytes);
}

lath_status lath_oialr_linear(const struct lath_oialr_linear *a, const struct lath_host *host) {
  size_t bytes;
  if (!host) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_oialr_check_forward(a));
  LATH_TRY(lath_oialr_linear_workspace(a, host, &bytes));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, bytes));
  const lath_oialr_route route = lath_oialr_forward_route(a);
  if (a->dtype == LATH_F64) return lath_oialr_linear_ref(a);
  if (route == LATH_OIALR_MERGED) return lath_oialr_merged(a, host);
  struct lath_arena arena = lath_arena_on(a->workspace);
  struct forward f = prepare(a, host, route, &arena);
  lath_oialr_weights_view(&f.weights, a);
  return f.few ? run_few_rows(&f, host) : run_row_tiles(&f, host);
}
