/* SPDX-License-Identifier: Apache-2.0
 * lstm_forward.c - the steps of a low-rank LSTM; see lstm_steps.h for what is launched. */
#include "core/arena.h"
#include "core/check.h"
#include "gemm/product.h"
#include "lowrank/lstm_check.h"
#include "lowrank/lstm_steps.h"
#include "lowrank/routes.h"

struct forward {
  struct lath_cuda_lstm l;
  void *v, *u; /* rows on 16 bytes; v NULL if merged, and u is u v then. Copies, or NULL: as given */
  void *h[2];  /* (batch, s_h): the state, before and after a step; one buffer where a step has read it before it is written */
  void *p, *c; /* (batch, s_p); (batch, hidden) */
  void *start; /* (chunk, 4 hidden), unless all gates are kept: it begins in their place */
};

/* ---- buffers -------------------------------------------------------------------------------------------------------------- */

static int is_aligned(const void *data, int64_t stride) {
  return (uintptr_t)data % 16 == 0 && stride % LATH_CUDA_LSTM_VECTOR == 0;
}

static void take(struct forward *f, struct lath_arena *arena) {
  struct lath_cuda_lstm *l = &f->l;
  const struct lath_lowrank_lstm *a = l->a;
  lath_cuda_lstm_take_inputs(l, arena);
  if (l->hidden.factored && !l->resident) {
    if (!is_aligned(a->v, a->hidden)) f->v = lath_cuda_take(arena, a->dtype, a->rank, l->s_h);
    if (!is_aligned(a->u, a->rank)) f->u = lath_cuda_take(arena, a->dtype, l->gates, l->s_p);
    f->p = lath_cuda_take(arena, a->dtype, a->batch, l->s_p);
  } else if (!l->resident) {
    f->u = lath_cuda_take(arena, a->dtype, l->gates, l->s_h);
  }
  f->h[0] = f->h[1] = lath_cuda_take(arena, a->dtype, a->batch, l->s_h);
  if (!l->hidden.factored) f->h[1] = lath_cuda_take(arena, a->dtype, a->batch, l->s_h);
  f->c = a->cn ? a->cn : lath_cuda_take(arena, a->dtype, a->batch, a->hidden);
  if (!a->gates) f->start = lath_cuda_take(arena, a->dtype, l->chunk, l->gates);
}

lath_status lath_cuda_lowrank_lstm_workspace(const struct lath_lowrank_lstm *a, const struct lath_cuda *cuda, size_t *bytes) {
  struct forward f = {0};
  struct lath_arena arena = lath_arena_on(NULL);
  if (!a || !cuda || !bytes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_cuda_lstm_check(a, 0));
  LATH_TRY(lath_cuda_lstm_plan(a, cuda, 0, &f.l));
  take(&f, &arena);
  return lath_cuda_taken(&arena, bytes);
}

/* ---- once per call -------------------------------------------------------------------------------------------------------- */

static lath_status merge(const struct forward *f, struct lath_cuda *cuda) {
  const struct lath_cuda_lstm *l = &f->l;
  const struct lath_lowrank_lstm *a = l->a;
  struct lath_cuda_gemm gemm = lath_cuda_lstm_product_of(l, l->gates, a->hidden, a->rank);
  if (l->s_h != a->hidden) LATH_TRY(lath_cuda_lstm_fill(a->dtype, l->gates, 0, NULL, l->s_h, f->u, cuda));
  gemm.a = a->u, gemm.s_a = a->rank;
  gemm.b = a->v, gemm.s_b = a->hidden;
  gemm.c = f->u, gemm.s_c = l->s_h;
  return lath_cuda_product(&gemm, cuda);
}

static lath_status prepare_weights(const struct forward *f, struct lath_cuda *cuda) {
  const struct lath_cuda_lstm *l = &f->l;
  const struct lath_lowrank_lstm *a = l->a;
  LATH_TRY(lath_cuda_lstm_merge_inputs(l, cuda));
  if (l->resident) return LATH_OK;
  if (!l->hidden.factored) return merge(f, cuda);
  if (f->v) LATH_TRY(lath_cuda_lstm_fill(a->dtype, a->rank, a->hidden, a->v, l->s_h, f->v, cuda));
  if (f->u) LATH_TRY(lath_cuda_lstm_fill(a->dtype, l->gates, a->rank, a->u, l->s_p, f->u, cuda));
  return l->s_p != a->rank ? lath_cuda_lstm_fill(a->dtype, a->batch, 0, NULL, l->s_p, f->p, cuda) : LATH_OK;
}

/* Both buffers of h: a sample that begins late in a packed sequence has its h0 in either. */
static lath_status prepare_states(const struct forward *f, struct lath_cuda *cuda) {
  const struct lath_cuda_lstm *l = &f->l;
  const struct lath_lowrank_lstm *a = l->a;
  LATH_TRY(lath_cuda_lstm_fill(a->dtype, a->batch, a->hidden, a->h0, l->s_h, f->h[0], cuda));
  if (f->h[1] != f->h[0]) LATH_TRY(lath_cuda_lstm_fill(a->dtype, a->batch, a->hidden, a->h0, l->s_h, f->h[1], cuda));
  LATH_TRY(lath_cuda_lstm_fill(a->dtype, a->batch, a->hidden, a->c0, a->hidden, f->c, cuda));
  return a->steps == 0 && a->hn ? lath_cuda_lstm_fill(a->dtype, a->batch, a->hidden, a->h0, a->hidden, a->hn, cuda) : LATH_OK;
}

/* ---- steps ---------------------------------------------------------------------------------------------------------------- */

static lath_status project(const struct forward *f, struct lath_cuda_lstm_step s, struct lath_cuda *cuda) {
  const struct lath_cuda_lstm *l = &f->l;
  const struct lath_lowrank_lstm *a = l->a;
  const struct lath_cuda_lstm_product product = {.m = s.rows,
                                                 .n = a->rank,
                                                 .k = a->hidden,
                                                 .a = f->h[0],
                                                 .s_a = l->s_h,
                                                 .w = f->v ? f->v : a->v,
                                                 .s_w = f->v ? l->s_h : a->hidden};
  return lath_device_check(cuda,
                           lath_cuda_lstm_project(a->dtype, &product, f->p, l->s_p, l->device.multiprocessors, cuda->stream));
}

/* `buffer` is the one of h that is read. */
static lath_status run_cells(const struct forward *f, struct lath_cuda_lstm_step s, int buffer, void *start,
                             struct lath_cuda *cuda) {
  const struct lath_cuda_lstm *l = &f->l;
  const struct lath_lowrank_lstm *a = l->a;
  const struct lath_cuda_lstm_product factored = {
      s.rows, l->gates, a->rank, f->p, f->u ? f->u : a->u, l->s_p, f->u ? l->s_p : a->rank};
  const struct lath_cuda_lstm_product merged = {s.rows, l->gates, a->hidden, f->h[buffer], f->u, l->s_h, l->s_h};
  const struct lath_cuda_lstm_cells cells = {
      .hidden = a->hidden,
      .start = start,
      .bias_in = a->bias_in,
      .bias = a->bias,
      .c = f->c,
      .h = f->h[1 - buffer],
      .s_h = l->s_h,
      .y = lath_cuda_lstm_element(a->dtype, a->y, lath_cuda_lstm_offset(a, s, a->s_y_step, a->s_y_row)),
      .s_y = a->s_y_row,
      .c_kept = lath_cuda_lstm_element(a->dtype, a->c, s.row * a->hidden),
      .gates = lath_cuda_lstm_element(a->dtype, a->gates, s.row * l->gates),
      .hn = a->hn,
      .last = lath_cuda_lstm_after(a, s).rows,
  };
  return lath_device_check(cuda, lath_cuda_lstm_cells(a->dtype, l->hidden.factored ? &factored : &merged, &cells,
                                                      l->device.multiprocessors, cuda->stream));
}

/* The steps of a chunk in one launch. */
static lath_status run_resident(const struct forward *f, const struct lath_cuda_lstm_chunk *chunk, const void *start,
                                struct lath_cuda *cuda) {
  const struct lath_cuda_lstm *l = &f->l;
  const struct lath_lowrank_lstm *a = l->a;
  const struct lath_cuda_lstm_resident resident = {
      .steps = chunk->steps,
      .batch = a->batch,
      .hidden = a->hidden,
      .rank = a->rank,
      .reverse = a->reverse,
      .v = a->v,
      .u = a->u,
      .start = start,
      .bias_in = a->bias_in,
      .bias = a->bias,
      .h = f->h[0],
      .c = f->c,
      .s_h = l->s_h,
      .y = lath_cuda_lstm_element(a->dtype, a->y, chunk->from.t * a->s_y_step),
      .s_y_step = a->s_y_step,
      .s_y_row = a->s_y_row,
      .c_kept = lath_cuda_lstm_element(a->dtype, a->c, chunk->from.row * a->hidden),
      .gates = lath_cuda_lstm_element(a->dtype, a->gates, chunk->from.row * l->gates),
      .hn = a->hn,
  };
  return lath_device_check(cuda, lath_cuda_lstm_run_resident(&resident, l->resident, cuda->device, &l->device, cuda->stream));
}

/* One after the other. `number` is that of the first one, in order. */
static lath_status run_steps(const struct forward *f, const struct lath_cuda_lstm_chunk *chunk, struct lath_cuda_lstm_step s,
                             int64_t number, void *start, struct lath_cuda *cuda) {
  const struct lath_cuda_lstm *l = &f->l;
  const struct lath_lowrank_lstm *a = l->a;
  for (int64_t i = 0; i < chunk->steps; i++, s = lath_cuda_lstm_after(a, s)) {
    void *of_step = lath_cuda_lstm_element(a->dtype, start, (s.row - chunk->from.row) * l->gates);
    if (l->hidden.factored) LATH_TRY(project(f, s, cuda));
    LATH_TRY(run_cells(f, s, (int)((number + i) % 2), of_step, cuda));
  }
  return LATH_OK;
}

static lath_status run(const struct forward *f, struct lath_cuda *cuda) {
  const struct lath_cuda_lstm *l = &f->l;
  const struct lath_lowrank_lstm *a = l->a;
  struct lath_cuda_lstm_step s = lath_cuda_lstm_first(a, 0);
  for (int64_t number = 0; s.rows > 0;) {
    const struct lath_cuda_lstm_chunk chunk = lath_cuda_lstm_chunk(a, s, l->most, 0);
    const void *x;
    int64_t s_x;
    void *start = a->gates ? lath_cuda_lstm_element(a->dtype, a->gates, chunk.from.row * l->gates) : f->start;
    LATH_TRY(lath_cuda_lstm_rows_of_x(l, &chunk, &x, &s_x, cuda));
    LATH_TRY(lath_cuda_lstm_start(l, &chunk, x, s_x, start, cuda));
    LATH_TRY(l->resident ? run_resident(f, &chunk, start, cuda) : run_steps(f, &chunk, s, number, start, cuda));
    for (int64_t i = 0; i < chunk.steps; i++, number++) s = lath_cuda_lstm_after(a, s);
  }
  return LATH_OK;
}

lath_status lath_cuda_lowrank_lstm(const struct lath_lowrank_lstm *a, struct lath_cuda *cuda) {
  struct forward f = {0};
  size_t bytes;
  LATH_TRY(lath_cuda_lowrank_lstm_workspace(a, cuda, &bytes));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, bytes));
  struct lath_arena arena = lath_arena_on(a->workspace);
  cuda->error = 0;
  LATH_TRY(lath_cuda_lstm_plan(a, cuda, 0, &f.l));
  take(&f, &arena);
  LATH_TRY(prepare_weights(&f, cuda));
  LATH_TRY(prepare_states(&f, cuda));
  return run(&f, cuda);
}
