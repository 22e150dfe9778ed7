/* SPDX-License-Identifier: Apache-2.0
 * backward.c - the gradients of y = p u^T + bias, p = x v^T + inner_bias, from dy:
 *
 *   dp = dy u     dx = dp v     du = dy^T p     dv = dp^T x     d_bias = sum of rows of dy     d_inner_bias = sum of rows of dp
 *
 * Rows are taken in strips that fit L2 (one tile per thread), so that x and dy are read from memory once and not once per product:
 * untiled, the step streams six activation-sized arrays and is bound by them. In each strip threads first share the rows (p, dp, dx),
 * then, after a barrier, the columns (du, dv, biases). Each sum over rows is one chain in row order, so neither the strips nor the
 * threads change a result. With few rows there is one strip, and the weights are read in place instead of packed. */
#include <string.h>

#include "core/check.h"
#include "core/convert.h"
#include "core/host.h"
#include "gemm/gemm.h"
#include "lowrank/lowrank.h"

/* Rows in a tile: as many as the rank, within these bounds. A strip reads x and dy once more from beyond L2 when it is too long, at a
 * cost that falls with the rank; it reads and writes du and dv once per strip, at a cost that falls with its length. */
#define TILE_ROWS_MIN 64
#define TILE_ROWS_MAX 256
#define SHARE 64 /* columns are dealt out in whole panels */

struct backward {
  const struct lath_lowrank_linear *a;
  const struct lath_kernels *kernels;
  int64_t workers, strip; /* rows in a strip */
  int few;                /* few rows: one strip, weights in place */
  int wants_p, wants_dp;
  struct lath_lowrank_weights weights;
  struct lath_panels u_panels, v_panels;  /* of u (out, rank) for dp, of v (rank, in) for dx */
  struct lath_panels vt_panels;           /* of v^T for p, when it has to be computed again */
  float *p, *dp;                          /* (strip, rank) */
  float *x_copy, *dy_copy, *dx_copy;      /* (strip, in or out) when stored in another type than float */
  float *du, *dv, *d_bias, *d_inner_bias; /* sums in float: the outputs themselves, or room for them */
  float *scratch;                         /* per worker */
  int64_t scratch_size;
  int64_t row, rows; /* the strip at hand */
  const float *x, *dy;
  int64_t s_x, s_dy;
};

/* ---- buffers --------------------------------------------------------------------------------------------------------------------- */

static int64_t clamp(int64_t value, int64_t low, int64_t high) { return value < low ? low : value > high ? high : value; }

static void take_panels(struct backward *b, struct lath_arena *arena) {
  const struct lath_lowrank_linear *a = b->a;
  b->u_panels = lath_panels_take(b->kernels, arena, a->rows, a->rank, a->out);
  b->v_panels = lath_panels_take(b->kernels, arena, a->rows, a->in, a->rank);
  if (b->wants_p && !a->p) b->vt_panels = lath_panels_take(b->kernels, arena, a->rows, a->rank, a->in);
}

static void take_strip(struct backward *b, struct lath_arena *arena) {
  const struct lath_lowrank_linear *a = b->a;
  if (b->wants_p && !a->p) b->p = lath_take(arena, b->strip, a->rank);
  if (b->wants_dp) b->dp = lath_take(arena, b->strip, a->rank);
  if (a->dtype == LATH_F32) return;
  b->x_copy = lath_take(arena, b->strip, a->in);
  b->dy_copy = lath_take(arena, b->strip, a->out);
  if (a->dx) b->dx_copy = lath_take(arena, b->strip, a->in);
}

static struct backward prepare(const struct lath_lowrank_linear *a, const struct lath_host *host, lath_lowrank_kernel kernel,
                               struct lath_arena *arena) {
  struct backward b = {.a = a, .kernels = lath_kernels(), .few = kernel == LATH_LOWRANK_ROWS};
  b.workers = lath_host_workers(host, 2 * a->rows * a->rank * (a->in + a->out));
  b.strip = b.few ? a->rows : b.workers * clamp(a->rank, TILE_ROWS_MIN, TILE_ROWS_MAX);
  b.wants_p = a->du != NULL;
  b.wants_dp = a->dx || a->dv || a->d_inner_bias;
  lath_lowrank_weights_take(&b.weights, a, arena);
  if (!b.few) take_panels(&b, arena);
  take_strip(&b, arena);
  b.du = lath_take_sum(arena, a->dtype, a->du, a->out * a->rank);
  b.dv = lath_take_sum(arena, a->dtype, a->dv, a->rank * a->in);
  b.d_bias = lath_take_sum(arena, a->dtype, a->d_bias, a->out);
  b.d_inner_bias = lath_take_sum(arena, a->dtype, a->d_inner_bias, a->rank);
  const int64_t product = lath_product_scratch(b.kernels), few = b.few ? lath_few_rows_scratch(b.kernels, a->rows, a->in) : 0;
  b.scratch_size = product > few ? product : few;
  b.scratch = lath_take(arena, b.workers, b.scratch_size);
  return b;
}

static void pack_share(const struct backward *b, const struct lath_panels *panels, int64_t worker, const float *w, int64_t s_w,
                       int transposed) {
  const int64_t count = panels->width ? lath_panels_count(panels) : 0;
  lath_pack(b->kernels, panels, count * worker / b->workers, count * (worker + 1) / b->workers, w, s_w, transposed);
}

static void pack_weights(void *arg, int64_t begin, int64_t end) {
  const struct backward *b = arg;
  for (int64_t w = begin; w < end; w++) {
    if (b->wants_dp) pack_share(b, &b->u_panels, w, b->weights.u, b->weights.s_u, 0);
    if (b->a->dx) pack_share(b, &b->v_panels, w, b->weights.v, b->weights.s_v, 0);
    pack_share(b, &b->vt_panels, w, b->weights.v, b->weights.s_v, 1);
  }
}

/* ---- threads share the rows of the strip -------------------------------------------------------------------------------------------- */

static void compute_p(const struct backward *b, int64_t from, int64_t rows, float *scratch) {
  const struct lath_lowrank_linear *a = b->a;
  const struct lath_product product = {.m = rows,
                                       .a = b->x + from * b->s_x,
                                       .s_a = b->s_x,
                                       .b = &b->vt_panels,
                                       .bias = b->weights.inner_bias,
                                       .c = b->p + from * a->rank,
                                       .s_c = a->rank,
                                       .scratch = scratch};
  lath_multiply(b->kernels, &product);
}

static void compute_dx(const struct backward *b, int64_t from, int64_t rows, float *scratch) {
  const struct lath_lowrank_linear *a = b->a;
  const struct lath_product product = {.m = rows,
                                       .a = b->dp + from * a->rank,
                                       .s_a = a->rank,
                                       .b = &b->v_panels,
                                       .scratch = scratch,
                                       .c = b->dx_copy ? b->dx_copy + from * a->in : (float *)a->dx + (b->row + from) * a->s_dx,
                                       .s_c = b->dx_copy ? a->in : a->s_dx};
  lath_multiply(b->kernels, &product);
  if (!b->dx_copy) return;
  void *dx = (char *)a->dx + (b->row + from) * a->s_dx * (int64_t)lath_dtype_size(a->dtype);
  lath_from_float(a->dtype, rows, a->in, product.c, dx, a->s_dx);
}

static void read_rows(const struct backward *b, int64_t from, int64_t rows) {
  const struct lath_lowrank_linear *a = b->a;
  int64_t unused;
  if (a->dtype == LATH_F32) return;
  (void)lath_as_float(a->dtype, rows, a->in, lath_at(a->dtype, a->x, a->s_x, b->row + from, 0), a->s_x,
                      b->x_copy + from * a->in, &unused);
  (void)lath_as_float(a->dtype, rows, a->out, lath_at(a->dtype, a->dy, a->s_dy, b->row + from, 0), a->s_dy,
                      b->dy_copy + from * a->out, &unused);
}

static void share_rows(void *arg, int64_t begin, int64_t end) {
  const struct backward *b = arg;
  const struct lath_lowrank_linear *a = b->a;
  for (int64_t w = begin; w < end; w++) {
    const int64_t from = b->rows * w / b->workers, rows = b->rows * (w + 1) / b->workers - from;
    float *scratch = b->scratch + w * b->scratch_size;
    if (!b->few) read_rows(b, from, rows);
    if (!b->few && b->p && !a->p) compute_p(b, from, rows, scratch);
    if (!b->wants_dp) continue;
    const struct lath_product dp = {.m = rows,
                                    .a = b->dy + from * b->s_dy,
                                    .s_a = b->s_dy,
                                    .b = &b->u_panels,
                                    .c = b->dp + from * a->rank,
                                    .s_c = a->rank,
                                    .scratch = scratch};
    lath_multiply(b->kernels, &dp);
    if (a->dx) compute_dx(b, from, rows, scratch);
  }
}

/* ---- few rows: p as in the forward, threads share its columns (its order of additions depends on the number of rows) ---------------- */

static void few_rows_p(void *arg, int64_t begin, int64_t end) {
  const struct backward *b = arg;
  const struct lath_lowrank_linear *a = b->a;
  for (int64_t w = begin; w < end; w++) {
    const int64_t from = lath_share(a->rank, SHARE, w, b->workers), to = lath_share(a->rank, SHARE, w + 1, b->workers);
    lath_multiply_few_rows(b->kernels, a->rows, to - from, a->in, b->x, b->s_x, b->weights.v + from * b->weights.s_v,
                           b->weights.s_v, b->weights.inner_bias ? b->weights.inner_bias + from : NULL, b->p + from, a->rank,
                           b->scratch + w * b->scratch_size);
  }
}

/* ---- threads share the columns -------------------------------------------------------------------------------------------------------- */

static void sum_du(const struct backward *b, int64_t from, int64_t to, float *scratch) {
  const struct lath_panels p = lath_panels_in_place(b->kernels, b->a->rank, b->rows, b->p, b->a->rank);
  const struct lath_product product = {.m = to - from,
                                       .a = b->dy + from,
                                       .s_a = b->s_dy,
                                       .a_order = LATH_A_COLUMNS,
                                       .b = &p,
                                       .c = b->du + from * b->a->rank,
                                       .s_c = b->a->rank,
                                       .start = b->row > 0 ? LATH_START_C : LATH_START_COLUMNS,
                                       .scratch = scratch};
  lath_multiply(b->kernels, &product);
}

static void sum_dv(const struct backward *b, int64_t from, int64_t to, float *scratch) {
  const struct lath_panels x = lath_panels_in_place(b->kernels, to - from, b->rows, b->x + from, b->s_x);
  const struct lath_product product = {.m = b->a->rank,
                                       .a = b->dp,
                                       .s_a = b->a->rank,
                                       .a_order = LATH_A_COLUMNS,
                                       .b = &x,
                                       .c = b->dv + from,
                                       .s_c = b->a->in,
                                       .start = b->row > 0 ? LATH_START_C : LATH_START_COLUMNS,
                                       .scratch = scratch};
  lath_multiply(b->kernels, &product);
}

static void share_columns(void *arg, int64_t begin, int64_t end) {
  const struct backward *b = arg;
  const struct lath_lowrank_linear *a = b->a;
  for (int64_t w = begin; w < end; w++) {
    float *scratch = b->scratch + w * b->scratch_size;
    const int64_t out_from = lath_share(a->out, SHARE, w, b->workers), out_to = lath_share(a->out, SHARE, w + 1, b->workers);
    const int64_t in_from = lath_share(a->in, SHARE, w, b->workers), in_to = lath_share(a->in, SHARE, w + 1, b->workers);
    if (b->du) sum_du(b, out_from, out_to, scratch);
    if (b->dv) sum_dv(b, in_from, in_to, scratch);
    if (b->d_bias) b->kernels->add_rows(b->rows, out_to - out_from, b->dy + out_from, b->s_dy, b->d_bias + out_from);
    if (b->d_inner_bias && w == 0) b->kernels->add_rows(b->rows, a->rank, b->dp, a->rank, b->d_inner_bias);
  }
}

/* ---- strips ------------------------------------------------------------------------------------------------------------------------------ */

static void enter_strip(struct backward *b, int64_t row, int64_t rows) {
  const struct lath_lowrank_linear *a = b->a;
  b->row = row;
  b->rows = rows;
  b->x = a->dtype == LATH_F32 ? lath_at(a->dtype, a->x, a->s_x, row, 0) : b->x_copy;
  b->dy = a->dtype == LATH_F32 ? lath_at(a->dtype, a->dy, a->s_dy, row, 0) : b->dy_copy;
  b->s_x = a->dtype == LATH_F32 ? a->s_x : a->in;
  b->s_dy = a->dtype == LATH_F32 ? a->s_dy : a->out;
  if (a->p) b->p = (float *)a->p + row * a->rank;
}

static void zero(float *sum, int64_t count) {
  if (sum) memset(sum, 0, (size_t)count * sizeof *sum);
}

static lath_status run(struct backward *b, const struct lath_host *host) {
  const struct lath_lowrank_linear *a = b->a;
  if (b->few) {
    b->u_panels = lath_panels_in_place(b->kernels, a->rank, a->out, b->weights.u, b->weights.s_u);
    b->v_panels = lath_panels_in_place(b->kernels, a->in, a->rank, b->weights.v, b->weights.s_v);
  } else {
    LATH_TRY(lath_host_run(host, b->workers, pack_weights, b));
  }
  zero(b->d_bias, a->out);
  zero(b->d_inner_bias, a->rank);
  int64_t row = 0;
  do { /* once even without rows: the sums are then zero, and have to be written */
    enter_strip(b, row, b->strip < a->rows - row ? b->strip : a->rows - row);
    if (b->few) {
      read_rows(b, 0, a->rows);
      if (b->p && !a->p) LATH_TRY(lath_host_run(host, b->workers, few_rows_p, b));
    }
    LATH_TRY(lath_host_run(host, b->workers, share_rows, b));
    LATH_TRY(lath_host_run(host, b->workers, share_columns, b));
    row += b->rows;
  } while (row < a->rows);
  if (b->du) lath_from_float(a->dtype, a->out, a->rank, b->du, a->du, a->rank);
  if (b->dv) lath_from_float(a->dtype, a->rank, a->in, b->dv, a->dv, a->in);
  if (b->d_bias) lath_from_float(a->dtype, 1, a->out, b->d_bias, a->d_bias, a->out);
  if (b->d_inner_bias) lath_from_float(a->dtype, 1, a->rank, b->d_inner_bias, a->d_inner_bias, a->rank);
  return LATH_OK;
}

/* ---- entries ---------------------------------------------------------------------------------------------------------------------------- */

lath_status lath_lowrank_linear_backward_workspace(const struct lath_lowrank_linear *a, const struct lath_host *host,
                                                   size_t *bytes) {
  struct lath_lowrank_plan plan;
  if (!a || !host || !bytes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_lowrank_linear_plan(a, 1, &plan));
  struct lath_arena arena = lath_arena_on(NULL);
  if (plan.kernel == LATH_LOWRANK_MERGED)
    lath_lowrank_merged_backward_size(a, host, &arena);
  else if (plan.kernel != LATH_LOWRANK_PLAIN)
    (void)prepare(a, host, plan.kernel, &arena);
  return lath_arena_bytes(&arena, lath_lowrank_reference_bytes(a), bytes);
}

lath_status lath_lowrank_linear_backward(const struct lath_lowrank_linear *a, const struct lath_host *host) {
  struct lath_lowrank_plan plan;
  size_t bytes;
  if (!host) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_lowrank_check_backward(a));
  LATH_TRY(lath_lowrank_linear_backward_workspace(a, host, &bytes));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, bytes));
  LATH_TRY(lath_lowrank_linear_plan(a, 1, &plan));
  if (plan.kernel == LATH_LOWRANK_PLAIN) return lath_lowrank_linear_backward_ref(a);
  if (plan.kernel == LATH_LOWRANK_MERGED) return lath_lowrank_merged_backward(a, host);
  struct lath_arena arena = lath_arena_on(a->workspace);
  struct backward b = prepare(a, host, plan.kernel, &arena);
  lath_lowrank_weights_view(&b.weights, a);
  return run(&b, host);
}
