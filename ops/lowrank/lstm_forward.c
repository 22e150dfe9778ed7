/* SPDX-License-Identifier: Apache-2.0
 * lstm_forward.c - a low-rank LSTM over a sequence.
 *
 * Rows of the batch do not meet, so threads share them once per call and each runs through all steps alone. A step of a block of rows is
 * [r | s] (lstm.h), then group by group of units the product that gives their gates, while its panel of weights is in L1, and at once
 * their cells. */
#include "core/check.h"
#include "core/host.h"
#include "lowrank/lstm.h"

#define BLOCK_ROWS 128 /* that run through all steps together: they read the weights of a step once */

struct forward {
  const struct lath_lowrank_lstm *a;
  struct lath_lstm_weights w;
  int64_t workers;
  float *h, *c;                  /* (batch, hidden): the state, in the outputs where they are wanted */
  float *rows, *gates, *scratch; /* per worker: [r | s] of a block; gates of a tile */
  int64_t rows_size, gates_size, scratch_size;
};

static int64_t macs_of(const struct lath_lstm_weights *w) {
  const int64_t first =
      w->hidden.factored * w->hidden.rank * w->hidden.from + w->input.factored * w->input.rank * w->input.from;
  return w->a->steps * w->a->batch * (first + w->gates * w->columns);
}

static void take(struct forward *f, const struct lath_lowrank_lstm *a, const struct lath_host *host, struct lath_arena *arena) {
  f->a = a;
  lath_lstm_weights_take(&f->w, a, 1, host, arena);
  f->workers = lath_smaller(lath_host_workers(host, macs_of(&f->w)), lath_larger(1, a->batch));
  f->h = a->hn ? a->hn : lath_take(arena, a->batch, a->hidden);
  f->c = a->cn ? a->cn : lath_take(arena, a->batch, a->hidden);
  f->rows_size = lath_smaller(BLOCK_ROWS, a->batch) * f->w.s_rows;
  f->gates_size = (int64_t)LATH_MAX_ROWS * f->w.panels.width;
  f->scratch_size = lath_product_scratch(f->w.kernels);
  f->rows = lath_take(arena, f->workers, f->rows_size);
  f->gates = lath_take(arena, f->workers, f->gates_size);
  f->scratch = lath_take(arena, f->workers, f->scratch_size);
}

/* Samples [b, b + m) of one step. */
struct step {
  const struct forward *f;
  int64_t t, row, b, m; /* `row`: number of the first row of the step */
  float *rows, *gates, *scratch;
};

static void fill_rows(const struct step *s) {
  const struct forward *f = s->f;
  const struct lath_lowrank_lstm *a = f->a;
  const float *x = (const float *)a->x + lath_lstm_x_at(a, s->t, s->row, s->b);
  lath_lstm_part_fill(&f->w, &f->w.hidden, s->m, f->h + s->b * a->hidden, a->hidden, s->rows, s->scratch);
  lath_lstm_part_fill(&f->w, &f->w.input, s->m, x, a->s_x_row, s->rows, s->scratch);
}

static void run_tile(const struct step *s, const struct lath_lstm_cells *cells, int64_t group, int64_t from, int64_t height) {
  const struct forward *f = s->f;
  const struct lath_lstm_weights *w = &f->w;
  const struct lath_tile tile = {.k = w->columns,
                                 .n = w->panels.width,
                                 .a = s->rows + from * w->s_rows,
                                 .s_a = w->s_rows,
                                 .b = w->panels.packed + group * w->columns * w->panels.width,
                                 .s_b = w->panels.width,
                                 .c = s->gates,
                                 .s_c = w->panels.width,
                                 .bias = w->bias + group * w->panels.width,
                                 .start = LATH_START_COLUMNS};
  struct lath_lstm_cells here = *cells;
  here.c += from * here.stride, here.h += from * here.stride;
  if (here.c_out) here.c_out += from * here.s_c_out;
  if (here.h_out) here.h_out += from * here.s_h_out;
  if (here.gates_out) here.gates_out += from * here.s_gates_out;
  w->kernels->panel[LATH_A_ROWS][4][height](&tile);
  w->kernels->lstm_cells(height, lath_smaller(w->kernels->lanes, f->a->hidden - group * w->kernels->lanes), s->gates, &here);
}

static void run_step(const struct step *s) {
  const struct forward *f = s->f;
  const struct lath_lowrank_lstm *a = f->a;
  const int64_t lanes = f->w.kernels->lanes, tallest = f->w.kernels->rows[4], tiles = (s->m + tallest - 1) / tallest;
  float *y = a->y ? (float *)a->y + lath_lstm_at(a, s->t, s->row, a->s_y_step, a->s_y_row) + s->b * a->s_y_row : NULL;
  float *c = a->c ? (float *)a->c + (s->row + s->b) * a->hidden : NULL;
  float *gates = a->gates ? (float *)a->gates + (s->row + s->b) * 4 * a->hidden : NULL;
  fill_rows(s);
  for (int64_t group = 0; group < f->w.groups; group++) {
    const int64_t unit = group * lanes, state = s->b * a->hidden + unit;
    const struct lath_lstm_cells cells = {.c = f->c + state,
                                          .h = f->h + state,
                                          .stride = a->hidden,
                                          .c_out = c ? c + unit : NULL,
                                          .h_out = y ? y + unit : NULL,
                                          .gates_out = gates ? gates + unit : NULL,
                                          .s_gates_out = 4 * a->hidden,
                                          .s_gate = a->hidden,
                                          .s_c_out = a->hidden,
                                          .s_h_out = a->s_y_row};
    for (int64_t i = 0; i < tiles; i++) run_tile(s, &cells, group, s->m * i / tiles, s->m * (i + 1) / tiles - s->m * i / tiles);
  }
}

/* All steps of samples [from, to). */
static void run_block(struct step *s, int64_t from, int64_t to) {
  const struct forward *f = s->f;
  const struct lath_lowrank_lstm *a = f->a;
  s->b = from;
  for (struct lath_lstm_walk walk = lath_lstm_walk(a, 0); lath_lstm_walk_on(a, &walk);) {
    s->t = walk.t, s->row = walk.row;
    s->m = lath_smaller(walk.rows, to) - from;
    if (s->m > 0) run_step(s);
  }
}

static void share_rows(void *arg, int64_t begin, int64_t end) {
  const struct forward *f = arg;
  const struct lath_lowrank_lstm *a = f->a;
  for (int64_t w = begin; w < end; w++) {
    struct step s = {.f = f,
                     .rows = f->rows + w * f->rows_size,
                     .gates = f->gates + w * f->gates_size,
                     .scratch = f->scratch + w * f->scratch_size};
    const int64_t from = a->batch * w / f->workers, to = a->batch * (w + 1) / f->workers,
                  blocks = (to - from + BLOCK_ROWS - 1) / BLOCK_ROWS;
    lath_lstm_state(a->h0, from, to - from, a->hidden, f->h + from * a->hidden);
    lath_lstm_state(a->c0, from, to - from, a->hidden, f->c + from * a->hidden);
    for (int64_t i = 0; i < blocks; i++) run_block(&s, from + (to - from) * i / blocks, from + (to - from) * (i + 1) / blocks);
  }
}

/* ---- entries ----------------------------------------------------------------------------------------------------------------------------- */

static lath_status query(const struct lath_lowrank_lstm *a, const struct lath_host *host, size_t *bytes) {
  struct forward f = {0};
  struct lath_arena arena = lath_arena_on(NULL);
  if (a->dtype == LATH_F32) take(&f, a, host, &arena);
  return lath_arena_bytes(&arena, lath_lstm_reference_bytes(a), bytes);
}

lath_status lath_lowrank_lstm_workspace(const struct lath_lowrank_lstm *a, const struct lath_host *host, size_t *bytes) {
  if (!host || !bytes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_lstm_check_forward(a));
  return query(a, host, bytes);
}

lath_status lath_lowrank_lstm(const struct lath_lowrank_lstm *a, const struct lath_host *host) {
  size_t bytes;
  LATH_TRY(lath_lowrank_lstm_workspace(a, host, &bytes));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, bytes));
  if (a->dtype != LATH_F32) return lath_lowrank_lstm_ref(a);
  struct lath_arena arena = lath_arena_on(a->workspace);
  struct forward f = {0};
  take(&f, a, host, &arena);
  LATH_TRY(lath_lstm_weights_fill(&f.w, host));
  return lath_host_run(host, f.workers, share_rows, &f);
}
