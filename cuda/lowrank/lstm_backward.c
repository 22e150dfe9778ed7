/* SPDX-License-Identifier: Apache-2.0
 * lstm_backward.c - the steps of the backward of a low-rank LSTM, the last one first; see lstm_steps.h for what is launched, and
 * lstm_gradients.c for what is done before and after them. */
#include "core/arena.h"
#include "core/check.h"
#include "gemm/product.h"
#include "lowrank/lstm_check.h"
#include "lowrank/lstm_gradients.h"
#include "lowrank/routes.h"

/* ---- buffers -------------------------------------------------------------------------------------------------------------- */

static int64_t count_chunks(const struct lath_lowrank_lstm *a, int64_t most) {
  int64_t chunks = 0;
  for (struct lath_cuda_lstm_step s = lath_cuda_lstm_first(a, 1); s.rows > 0; chunks++) {
    const struct lath_cuda_lstm_chunk chunk = lath_cuda_lstm_chunk(a, s, most, 1);
    for (int64_t i = 0; i < chunk.steps; i++) s = lath_cuda_lstm_before(a, s);
  }
  return chunks > 0 ? chunks : 1;
}

static void take(struct lath_cuda_lstm_gradients *g, struct lath_arena *arena) {
  const struct lath_cuda_lstm *l = &g->l;
  const struct lath_lowrank_lstm *a = l->a;
  if (l->resident) {
    g->dh = lath_cuda_take(arena, a->dtype, a->batch, a->hidden);
  } else if (l->hidden.factored) {
    g->u_t = lath_cuda_take(arena, a->dtype, a->rank, l->gates);
    g->v_t = lath_cuda_take(arena, a->dtype, a->hidden, l->s_p);
  } else {
    g->w_t = lath_cuda_take(arena, a->dtype, a->hidden, l->gates);
  }
  g->dc = a->dc0 ? a->dc0 : lath_cuda_take(arena, a->dtype, a->batch, a->hidden);
  lath_cuda_lstm_take_products(g, arena);
}

static lath_status prepare(struct lath_cuda_lstm_gradients *g, const struct lath_lowrank_lstm *a, const struct lath_cuda *cuda,
                           struct lath_arena *arena) {
  LATH_TRY(lath_cuda_lstm_plan(a, cuda, 1, &g->l));
  g->chunks = count_chunks(a, g->l.most);
  take(g, arena);
  return LATH_OK;
}

lath_status lath_cuda_lowrank_lstm_backward_workspace(const struct lath_lowrank_lstm *a, const struct lath_cuda *cuda,
                                                      size_t *bytes) {
  struct lath_cuda_lstm_gradients g = {0};
  struct lath_arena arena = lath_arena_on(NULL);
  if (!a || !cuda || !bytes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_cuda_lstm_check(a, 1));
  LATH_TRY(prepare(&g, a, cuda, &arena));
  return lath_cuda_taken(&arena, bytes);
}

/* ---- once per call -------------------------------------------------------------------------------------------------------- */

/* (u v)^T = v^T u^T */
static lath_status merge(const struct lath_cuda_lstm_gradients *g, struct lath_cuda *cuda) {
  const struct lath_lowrank_lstm *a = g->l.a;
  struct lath_cuda_gemm gemm = lath_cuda_lstm_product_of(&g->l, a->hidden, g->l.gates, a->rank);
  gemm.a = a->v, gemm.s_a = a->hidden, gemm.a_transposed = 1;
  gemm.b = a->u, gemm.s_b = a->rank, gemm.b_transposed = 1;
  gemm.c = g->w_t;
  return lath_cuda_product(&gemm, cuda);
}

static lath_status prepare_weights(const struct lath_cuda_lstm_gradients *g, struct lath_cuda *cuda) {
  const struct lath_cuda_lstm *l = &g->l;
  const struct lath_lowrank_lstm *a = l->a;
  LATH_TRY(lath_cuda_lstm_merge_inputs(l, cuda));
  if (l->resident) return LATH_OK;
  if (!l->hidden.factored) return merge(g, cuda);
  LATH_TRY(lath_device_check(
      cuda, lath_cuda_lstm_transpose(a->dtype, l->gates, a->rank, a->u, l->gates, g->u_t, l->gates, cuda->stream)));
  LATH_TRY(lath_device_check(
      cuda, lath_cuda_lstm_transpose(a->dtype, a->rank, a->hidden, a->v, l->s_p, g->v_t, l->s_p, cuda->stream)));
  return l->s_p != a->rank ? lath_cuda_lstm_fill(a->dtype, l->chunk, 0, NULL, l->s_p, g->dp, cuda) : LATH_OK;
}

/* ---- steps ---------------------------------------------------------------------------------------------------------------- */

/* The gradients that come back from a step: rows of dp, or of da where factors are merged. */
struct incoming {
  const void *from;
  int64_t rows;
};

static lath_status run_cells(const struct lath_cuda_lstm_gradients *g, struct lath_cuda_lstm_step s, void *da,
                             const struct incoming *after, struct lath_cuda *cuda) {
  const struct lath_cuda_lstm *l = &g->l;
  const struct lath_lowrank_lstm *a = l->a;
  const struct lath_cuda_lstm_step before = lath_cuda_lstm_before(a, s);
  const int64_t width = l->hidden.factored ? l->s_p : l->gates;
  const struct lath_cuda_lstm_product product = {.m = after->rows,
                                                 .n = a->hidden,
                                                 .k = l->hidden.factored ? a->rank : l->gates,
                                                 .a = after->from,
                                                 .s_a = width,
                                                 .w = l->hidden.factored ? g->v_t : g->w_t,
                                                 .s_w = width};
  const struct lath_cuda_lstm_cells_back cells = {
      .hidden = a->hidden,
      .m = s.rows,
      .known = after->rows,
      .dhn = a->dhn,
      .dcn = a->dcn,
      .dy = lath_cuda_lstm_element(a->dtype, a->dy, lath_cuda_lstm_offset(a, s, a->s_dy_step, a->s_dy_row)),
      .s_dy = a->s_dy_row,
      .gates = a->gates ? lath_cuda_lstm_element(a->dtype, a->gates, s.row * l->gates) : da,
      .activated = a->gates != NULL,
      .bias_in = a->bias_in,
      .bias = a->bias,
      .c = lath_cuda_lstm_element(a->dtype, a->c, s.row * a->hidden),
      .c_before = lath_cuda_lstm_element(a->dtype, a->c, before.row * a->hidden),
      .before = before.rows,
      .c0 = a->c0,
      .da = da,
      .dc = g->dc,
      .dh0 = a->dh0,
      .dc0 = a->dc0,
  };
  return lath_device_check(cuda,
                           lath_cuda_lstm_cells_back(a->dtype, &product, &cells, l->device.multiprocessors, cuda->stream));
}

/* dp = da u */
static lath_status project(const struct lath_cuda_lstm_gradients *g, int64_t rows, const void *da, void *dp,
                           struct lath_cuda *cuda) {
  const struct lath_cuda_lstm *l = &g->l;
  const struct lath_lowrank_lstm *a = l->a;
  const struct lath_cuda_lstm_product product = {
      .m = rows, .n = a->rank, .k = l->gates, .a = da, .s_a = l->gates, .w = g->u_t, .s_w = l->gates};
  return lath_device_check(cuda,
                           lath_cuda_lstm_project(a->dtype, &product, dp, l->s_p, l->device.multiprocessors, cuda->stream));
}

/* The steps of a chunk; `s` is the next one. */
static lath_status run_steps(const struct lath_cuda_lstm_gradients *g, const struct lath_cuda_lstm_part_of *part,
                             struct lath_cuda_lstm_step *s, struct incoming *after, struct lath_cuda *cuda) {
  const struct lath_cuda_lstm *l = &g->l;
  const lath_dtype dtype = l->a->dtype;
  for (int64_t i = 0; i < part->chunk.steps; i++, *s = lath_cuda_lstm_before(l->a, *s)) {
    const int64_t at = s->row - part->chunk.from.row;
    void *da = lath_cuda_lstm_element(dtype, part->da, at * l->gates), *dp = lath_cuda_lstm_element(dtype, g->dp, at * l->s_p);
    LATH_TRY(run_cells(g, *s, da, after, cuda));
    if (l->hidden.factored) LATH_TRY(project(g, s->rows, da, dp, cuda));
    *after = (struct incoming){l->hidden.factored ? dp : da, s->rows};
  }
  return LATH_OK;
}

/* The steps of a chunk in one launch; `s` is the next one. */
static lath_status run_resident(const struct lath_cuda_lstm_gradients *g, const struct lath_cuda_lstm_part_of *part,
                                struct lath_cuda_lstm_step *s, struct incoming *after, struct lath_cuda *cuda) {
  const struct lath_cuda_lstm *l = &g->l;
  const struct lath_lowrank_lstm *a = l->a;
  const int64_t row = part->chunk.from.row, first_of_all = after->rows == 0;
  for (int64_t i = 0; i < part->chunk.steps; i++) *s = lath_cuda_lstm_before(a, *s);
  const int last_of_all = s->rows == 0;
  *after = (struct incoming){NULL, a->batch};
  const struct lath_cuda_lstm_resident_back resident = {
      .steps = part->chunk.steps,
      .batch = a->batch,
      .hidden = a->hidden,
      .rank = a->rank,
      .reverse = a->reverse,
      .v = a->v,
      .u = a->u,
      .gates = a->gates ? lath_cuda_lstm_element(a->dtype, a->gates, row * l->gates) : part->da,
      .activated = a->gates != NULL,
      .bias_in = a->bias_in,
      .bias = a->bias,
      .c = lath_cuda_lstm_element(a->dtype, a->c, row * a->hidden),
      .c_first = last_of_all ? a->c0 : lath_cuda_lstm_element(a->dtype, a->c, s->row * a->hidden),
      .dy = lath_cuda_lstm_element(a->dtype, a->dy, part->chunk.from.t * a->s_dy_step),
      .s_dy_step = a->s_dy_step,
      .s_dy_row = a->s_dy_row,
      .da = part->da,
      .dp = g->dp,
      .s_p = l->s_p,
      .dh_in = first_of_all ? a->dhn : g->dh,
      .dc_in = first_of_all ? a->dcn : g->dc,
      .dh_out = last_of_all ? a->dh0 : g->dh,
      .dc_out = last_of_all ? a->dc0 : g->dc,
  };
  return lath_device_check(cuda,
                           lath_cuda_lstm_run_resident_back(&resident, l->resident, cuda->device, &l->device, cuda->stream));
}

/* What is left when there is no step any more. */
static lath_status finish(const struct lath_cuda_lstm_gradients *g, struct lath_cuda_lstm_step none,
                          const struct incoming *after, struct lath_cuda *cuda) {
  const struct lath_lowrank_lstm *a = g->l.a;
  if (after->rows > 0 && g->l.resident) return LATH_OK;
  if (after->rows > 0) return a->dh0 || a->dc0 ? run_cells(g, none, NULL, after, cuda) : LATH_OK;
  if (a->dh0) LATH_TRY(lath_cuda_lstm_fill(a->dtype, a->batch, a->hidden, a->dhn, a->hidden, a->dh0, cuda));
  return a->dc0 ? lath_cuda_lstm_fill(a->dtype, a->batch, a->hidden, a->dcn, a->hidden, a->dc0, cuda) : LATH_OK;
}

static lath_status run(const struct lath_cuda_lstm_gradients *g, struct lath_cuda *cuda) {
  struct lath_cuda_lstm_step s = lath_cuda_lstm_first(g->l.a, 1);
  struct incoming after = {NULL, 0};
  for (int64_t number = 0; number < g->chunks; number++) {
    struct lath_cuda_lstm_part_of part = {
        .chunk = lath_cuda_lstm_chunk(g->l.a, s, g->l.most, 1), .number = number, .da = g->da[number % 2]};
    LATH_TRY(lath_cuda_lstm_begin_chunk(g, &part, cuda));
    if (part.chunk.steps > 0)
      LATH_TRY(g->l.resident ? run_resident(g, &part, &s, &after, cuda) : run_steps(g, &part, &s, &after, cuda));
    LATH_TRY(lath_cuda_lstm_end_chunk(g, &part, cuda));
  }
  LATH_TRY(finish(g, s, &after, cuda));
  return lath_cuda_lstm_end(g, cuda);
}

lath_status lath_cuda_lowrank_lstm_backward(const struct lath_lowrank_lstm *a, struct lath_cuda *cuda) {
  struct lath_cuda_lstm_gradients g = {0};
  size_t bytes;
  LATH_TRY(lath_cuda_lowrank_lstm_backward_workspace(a, cuda, &bytes));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, bytes));
  struct lath_arena arena = lath_arena_on(a->workspace);
  cuda->error = 0;
  LATH_TRY(prepare(&g, a, cuda, &arena));
  LATH_TRY(prepare_weights(&g, cuda));
  return run(&g, cuda);
}
