/* SPDX-License-Identifier: Apache-2.0
 * backward.c - the gradients of y = ((x vh^T) s^T) u^T + bias from dy and t = x vh^T:
 *
 *   h = dy u     ds = h^T t     dx = (h s) vh     d_bias = sum of rows of dy
 *
 * x is not needed where t was kept. Rows are taken in strips that fit L2 (one tile per thread). In each strip threads first share the
 * rows (h, h s, dx), then, after a barrier, the rows of ds and the columns of d_bias. Each sum over rows is one chain in row order, so
 * neither the strips nor the threads change a result. Folded, s vh stands in for vh and h s is never formed. With few rows there is
 * one strip, and the weights are read in place instead of packed. */
#include <string.h>

#include "core/check.h"
#include "core/convert.h"
#include "core/host.h"
#include "core/integers.h"
#include "gemm/gemm.h"
#include "oialr/oialr.h"

/* Rows in a tile: as many as the rank, within these bounds (docs/planner.md, low-rank layers). */
#define TILE_ROWS_MIN 64
#define TILE_ROWS_MAX 256
#define CORE_SHARE 16   /* rows of ds are dealt out in whole tiles of the kernels */
#define COLUMN_SHARE 64 /* columns of d_bias in whole panels */

struct backward {
  const struct lath_oialr_linear *a;
  const struct lath_kernels *kernels;
  int64_t workers, strip; /* rows in a strip */
  int few, folded;
  int wants_h, forms_t; /* forms_t: t was not kept */
  struct lath_oialr_weights weights;
  float *svh;                                       /* folded: s vh (rank, in) */
  struct lath_panels u_panels, s_panels, vh_panels; /* of u (out, rank), of s, of vh or s vh (rank, in) */
  struct lath_panels vht_panels;                    /* of vh^T, to form t */
  float *t, *h, *hs;                                /* (strip, rank) */
  float *x_copy, *dy_copy, *dx_copy;                /* (strip, in or out) when stored in another type than float */
  float *ds, *d_bias;                               /* sums in float: the outputs themselves, or room for them */
  float *scratch;                                   /* per worker */
  int64_t scratch_size;
  int64_t row, rows; /* the strip at hand */
  const float *x, *dy;
  int64_t s_x, s_dy;
};

/* ---- buffers --------------------------------------------------------------------------------------------------------------------- */

static void take_panels(struct backward *b, struct lath_arena *arena) {
  const struct lath_oialr_linear *a = b->a;
  if (b->wants_h) b->u_panels = lath_panels_take(b->kernels, arena, a->rows, a->rank, a->out);
  if (a->dx && !b->folded) b->s_panels = lath_panels_take(b->kernels, arena, a->rows, a->rank, a->rank);
  if (a->dx) b->vh_panels = lath_panels_take(b->kernels, arena, a->rows, a->in, a->rank);
  if (a->dx && b->folded) b->svh = lath_take(arena, a->rank, a->in);
  if (b->forms_t) b->vht_panels = lath_panels_take(b->kernels, arena, a->rows, a->rank, a->in);
}

static void take_strip(struct backward *b, struct lath_arena *arena) {
  const struct lath_oialr_linear *a = b->a;
  if (b->forms_t) b->t = lath_take(arena, b->strip, a->rank);
  if (b->wants_h) b->h = lath_take(arena, b->strip, a->rank);
  if (a->dx && !b->folded) b->hs = lath_take(arena, b->strip, a->rank);
  if (a->dtype == LATH_F32) return;
  if (b->forms_t) b->x_copy = lath_take(arena, b->strip, a->in);
  b->dy_copy = lath_take(arena, b->strip, a->out);
  if (a->dx) b->dx_copy = lath_take(arena, b->strip, a->in);
}

static struct backward prepare(const struct lath_oialr_linear *a, const struct lath_host *host, lath_oialr_route route,
                               struct lath_arena *arena) {
  const int64_t weights = a->rank * (a->in + a->out + a->rank);
  struct backward b = {.a = a, .kernels = lath_kernels(), .folded = route == LATH_OIALR_FOLDED};
  b.few = !b.folded && lath_few_rows(a->rows, weights);
  b.workers = lath_host_workers(host, a->rows * weights);
  b.strip = b.few ? a->rows : b.workers * lath_larger(TILE_ROWS_MIN, lath_smaller(a->rank, TILE_ROWS_MAX));
  b.wants_h = a->dx || a->ds;
  b.forms_t = a->ds && !a->t;
  lath_oialr_weights_take(&b.weights, a, arena);
  if (!b.few) take_panels(&b, arena);
  take_strip(&b, arena);
  b.ds = lath_take_sum(arena, a->dtype, a->ds, a->rank * a->rank);
  b.d_bias = lath_take_sum(arena, a->dtype, a->d_bias, a->out);
  const int64_t product = lath_product_scratch(b.kernels), few = b.few ? lath_few_rows_scratch(b.kernels, a->rows, a->in) : 0;
  b.scratch_size = lath_larger(product, few);
  b.scratch = lath_take(arena, b.workers, b.scratch_size);
  return b;
}

/* ---- weights ---------------------------------------------------------------------------------------------------------------------- */

static void fold(void *arg, int64_t begin, int64_t end) {
  const struct backward *b = arg;
  const struct lath_oialr_linear *a = b->a;
  for (int64_t w = begin; w < end; w++) {
    const int64_t from = lath_share(a->in, COLUMN_SHARE, w, b->workers),
                  to = lath_share(a->in, COLUMN_SHARE, w + 1, b->workers);
    const struct lath_panels vh = lath_panels_in_place(b->kernels, to - from, a->rank, b->weights.vh + from, b->weights.s_vh);
    const struct lath_product product = {.m = a->rank,
                                         .a = b->weights.s,
                                         .s_a = b->weights.s_s,
                                         .b = &vh,
                                         .c = b->svh + from,
                                         .s_c = a->in,
                                         .scratch = b->scratch + w * b->scratch_size};
    lath_multiply(b->kernels, &product);
  }
}

static void pack_share(const struct backward *b, const struct lath_panels *panels, int64_t worker, const float *w, int64_t s_w,
                       int transposed) {
  const int64_t count = panels->width ? lath_panels_count(panels) : 0;
  lath_pack(b->kernels, panels, count * worker / b->workers, count * (worker + 1) / b->workers, w, s_w, transposed);
}

static void pack_weights(void *arg, int64_t begin, int64_t end) {
  const struct backward *b = arg;
  const struct lath_oialr_weights *weights = &b->weights;
  for (int64_t w = begin; w < end; w++) {
    pack_share(b, &b->u_panels, w, weights->u, weights->s_u, 0);
    pack_share(b, &b->s_panels, w, weights->s, weights->s_s, 0);
    pack_share(b, &b->vh_panels, w, b->svh ? b->svh : weights->vh, b->svh ? b->a->in : weights->s_vh, 0);
    pack_share(b, &b->vht_panels, w, weights->vh, weights->s_vh, 1);
  }
}

static void weights_in_place(struct backward *b) {
  const struct lath_oialr_linear *a = b->a;
  b->u_panels = lath_panels_in_place(b->kernels, a->rank, a->out, b->weights.u, b->weights.s_u);
  b->s_panels = lath_panels_in_place(b->kernels, a->rank, a->rank, b->weights.s, b->weights.s_s);
  b->vh_panels = lath_panels_in_place(b->kernels, a->in, a->rank, b->weights.vh, b->weights.s_vh);
}

/* ---- threads share the rows of the strip -------------------------------------------------------------------------------------------- */

/* c (rows, n) = a (rows, k) times panels, from row `from` of the strip on. */
static void multiply_rows(const struct backward *b, const struct lath_panels *panels, int64_t from, int64_t rows,
                          const float *a, int64_t s_a, float *c, int64_t s_c, float *scratch) {
  const struct lath_product product = {
      .m = rows, .a = a + from * s_a, .s_a = s_a, .b = panels, .c = c + from * s_c, .s_c = s_c, .scratch = scratch};
  lath_multiply(b->kernels, &product);
}

static void compute_dx(const struct backward *b, int64_t from, int64_t rows, float *scratch) {
  const struct lath_oialr_linear *a = b->a;
  if (!b->folded) multiply_rows(b, &b->s_panels, from, rows, b->h, a->rank, b->hs, a->rank, scratch);
  float *dx = b->dx_copy ? b->dx_copy : (float *)a->dx + b->row * a->s_dx;
  const int64_t s_dx = b->dx_copy ? a->in : a->s_dx;
  multiply_rows(b, &b->vh_panels, from, rows, b->folded ? b->h : b->hs, a->rank, dx, s_dx, scratch);
  if (!b->dx_copy) return;
  void *rounded = (char *)a->dx + (b->row + from) * a->s_dx * (int64_t)lath_dtype_size(a->dtype);
  lath_from_float(a->dtype, rows, a->in, dx + from * s_dx, rounded, a->s_dx);
}

static void read_rows(const struct backward *b, int64_t from, int64_t rows) {
  const struct lath_oialr_linear *a = b->a;
  int64_t unused;
  if (b->x_copy)
    (void)lath_as_float(a->dtype, rows, a->in, lath_at(a->dtype, a->x, a->s_x, b->row + from, 0), a->s_x,
                        b->x_copy + from * a->in, &unused);
  if (b->dy_copy)
    (void)lath_as_float(a->dtype, rows, a->out, lath_at(a->dtype, a->dy, a->s_dy, b->row + from, 0), a->s_dy,
                        b->dy_copy + from * a->out, &unused);
}

static void share_rows(void *arg, int64_t begin, int64_t end) {
  const struct backward *b = arg;
  const struct lath_oialr_linear *a = b->a;
  for (int64_t w = begin; w < end; w++) {
    const int64_t from = b->rows * w / b->workers, rows = b->rows * (w + 1) / b->workers - from;
    float *scratch = b->scratch + w * b->scratch_size;
    if (!b->few) read_rows(b, from, rows);
    if (!b->few && b->forms_t) multiply_rows(b, &b->vht_panels, from, rows, b->x, b->s_x, b->t, a->rank, scratch);
    if (b->wants_h) multiply_rows(b, &b->u_panels, from, rows, b->dy, b->s_dy, b->h, a->rank, scratch);
    if (a->dx) compute_dx(b, from, rows, scratch);
  }
}

/* ---- few rows: t as in the forward, threads share its columns (its order of additions depends on the number of rows) ---------------- */

static void few_rows_t(void *arg, int64_t begin, int64_t end) {
  const struct backward *b = arg;
  const struct lath_oialr_linear *a = b->a;
  for (int64_t w = begin; w < end; w++) {
    const int64_t from = lath_share(a->rank, CORE_SHARE, w, b->workers),
                  to = lath_share(a->rank, CORE_SHARE, w + 1, b->workers);
    lath_multiply_few_rows(b->kernels, a->rows, to - from, a->in, b->x, b->s_x, b->weights.vh + from * b->weights.s_vh,
                           b->weights.s_vh, NULL, b->t + from, a->rank, b->scratch + w * b->scratch_size);
  }
}

/* ---- threads share the rows of ds and the columns of d_bias -------------------------------------------------------------------------- */

static void sum_ds(const struct backward *b, int64_t from, int64_t to, float *scratch) {
  const struct lath_panels t = lath_panels_in_place(b->kernels, b->a->rank, b->rows, b->t, b->a->rank);
  const struct lath_product product = {.m = to - from,
                                       .a = b->h + from,
                                       .s_a = b->a->rank,
                                       .a_order = LATH_A_COLUMNS,
                                       .b = &t,
                                       .c = b->ds + from * b->a->rank,
                                       .s_c = b->a->rank,
                                       .start = b->row > 0 ? LATH_START_C : LATH_START_COLUMNS,
                                       .scratch = scratch};
  lath_multiply(b->kernels, &product);
}

static void share_sums(void *arg, int64_t begin, int64_t end) {
  const struct backward *b = arg;
  const struct lath_oialr_linear *a = b->a;
  for (int64_t w = begin; w < end; w++) {
    const int64_t row_from = lath_share(a->rank, CORE_SHARE, w, b->workers),
                  row_to = lath_share(a->rank, CORE_SHARE, w + 1, b->workers);
    const int64_t out_from = lath_share(a->out, COLUMN_SHARE, w, b->workers),
                  out_to = lath_share(a->out, COLUMN_SHARE, w + 1, b->workers);
    if (b->ds) sum_ds(b, row_from, row_to, b->scratch + w * b->scratch_size);
    if (b->d_bias) b->kernels->add_rows(b->rows, out_to - out_from, b->dy + out_from, b->s_dy, b->d_bias + out_from);
  }
}

/* ---- strips ------------------------------------------------------------------------------------------------------------------------------ */

static void enter_strip(struct backward *b, int64_t row, int64_t rows) {
  const struct lath_oialr_linear *a = b->a;
  const int in_place = a->dtype == LATH_F32;
  b->row = row;
  b->rows = rows;
  if (b->forms_t) b->x = in_place ? lath_at(a->dtype, a->x, a->s_x, row, 0) : b->x_copy;
  b->dy = in_place ? lath_at(a->dtype, a->dy, a->s_dy, row, 0) : b->dy_copy;
  b->s_x = in_place ? a->s_x : a->in;
  b->s_dy = in_place ? a->s_dy : a->out;
  if (a->t) b->t = (float *)a->t + row * a->rank;
}

static lath_status prepare_weights(struct backward *b, const struct lath_host *host) {
  if (b->few) {
    weights_in_place(b);
    return LATH_OK;
  }
  if (b->svh) LATH_TRY(lath_host_run(host, b->workers, fold, b));
  return lath_host_run(host, b->workers, pack_weights, b);
}

static lath_status run(struct backward *b, const struct lath_host *host) {
  const struct lath_oialr_linear *a = b->a;
  LATH_TRY(prepare_weights(b, host));
  if (b->d_bias) memset(b->d_bias, 0, (size_t)a->out * sizeof *b->d_bias);
  int64_t row = 0;
  do { /* once even without rows: the sums are then zero, and have to be written */
    enter_strip(b, row, lath_smaller(b->strip, a->rows - row));
    if (b->few) {
      read_rows(b, 0, a->rows);
      if (b->forms_t) LATH_TRY(lath_host_run(host, b->workers, few_rows_t, b));
    }
    LATH_TRY(lath_host_run(host, b->workers, share_rows, b));
    LATH_TRY(lath_host_run(host, b->workers, share_sums, b));
    row += b->rows;
  } while (row < a->rows);
  if (b->ds) lath_from_float(a->dtype, a->rank, a->rank, b->ds, a->ds, a->rank);
  if (b->d_bias) lath_from_float(a->dtype, 1, a->out, b->d_bias, a->d_bias, a->out);
  return LATH_OK;
}

/* ---- entries ---------------------------------------------------------------------------------------------------------------------------- */

lath_status lath_oialr_linear_backward_workspace(const struct lath_oialr_linear *a, const struct lath_host *host,
                                                 size_t *bytes) {
  if (!a || !host || !bytes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_check_dtype(a->dtype));
  LATH_TRY(lath_oialr_check_extents(a));
  struct lath_arena arena = lath_arena_on(NULL);
  const lath_oialr_route route = lath_oialr_backward_route(a);
  if (route == LATH_OIALR_MERGED && a->dtype != LATH_F64)
    lath_oialr_merged_backward_size(a, host, &arena);
  else if (a->dtype != LATH_F64)
    (void)prepare(a, host, route, &arena);
  return lath_arena_bytes(&arena, lath_oialr_reference_bytes(a), bytes);
}

lath_status lath_oialr_linear_backward(const struct lath_oialr_linear *a, const struct lath_host *host) {
  size_t bytes;
  if (!host) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_oialr_check_backward(a));
  LATH_TRY(lath_oialr_linear_backward_workspace(a, host, &bytes));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, bytes));
  const lath_oialr_route route = lath_oialr_backward_route(a);
  if (a->dtype == LATH_F64) return lath_oialr_linear_backward_ref(a);
  if (route == LATH_OIALR_MERGED) return lath_oialr_merged_backward(a, host);
  struct lath_arena arena = lath_arena_on(a->workspace);
  struct backward b = prepare(a, host, route, &arena);
  lath_oialr_weights_view(&b.weights, a);
  return run(&b, host);
}
