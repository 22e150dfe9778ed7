/* SPDX-License-Identifier: Apache-2.0
 * lstm.h - inside the library: what the files of the low-rank LSTM share.
 *
 * The gates of a row are one product: a = [r | s] w^T + bias, where r is v h_before or, merged, h_before itself, s is v_in x or x, and w
 * has the columns of both. So neither part is ever written out to 4 hidden numbers a row. Rows of w are *interleaved*: group by group of
 * `lanes` units, first their i, then f, g and o, so that a tile of the product holds whole cells. */
#ifndef LATH_LOWRANK_LSTM_H
#define LATH_LOWRANK_LSTM_H

#include <string.h>

#include "core/arena.h"
#include "core/integers.h"
#include "gemm/gemm.h"
#include "lath.h"

lath_status lath_lstm_check_forward(const struct lath_lowrank_lstm *args);
lath_status lath_lstm_check_backward(const struct lath_lowrank_lstm *args);

/* Workspace of the `_ref` twins; every query answers at least this. */
size_t lath_lstm_reference_bytes(const struct lath_lowrank_lstm *args);

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------ */

static inline int64_t lath_lstm_rows(const struct lath_lowrank_lstm *a, int64_t t) {
  return a->batch_sizes ? a->batch_sizes[t] : a->batch;
}

/* Where the rows of a step begin, in elements: `row` is the number of its first row. */
static inline int64_t lath_lstm_at(const struct lath_lowrank_lstm *a, int64_t t, int64_t row, int64_t s_step, int64_t s_row) {
  return a->batch_sizes ? row * s_row : t * s_step;
}

/* The same of x, which may be NULL where there are no numbers to read. */
static inline int64_t lath_lstm_x_at(const struct lath_lowrank_lstm *a, int64_t t, int64_t row, int64_t b) {
  return a->in == 0 ? 0 : lath_lstm_at(a, t, row, a->s_x_step, a->s_x_row) + b * a->s_x_row;
}

/* Samples [b, b + m) of an initial state or of its gradient, which is zero where there is none. */
static inline void lath_lstm_state(const float *state, int64_t b, int64_t m, int64_t hidden, float *to) {
  const size_t bytes = (size_t)(m * hidden) * sizeof *to;
  if (state)
    memcpy(to, state + b * hidden, bytes);
  else
    memset(to, 0, bytes);
}

/* Steps one after the other: step t has `rows` rows, of which the first is number `row`. */
struct lath_lstm_walk {
  int64_t done, t, row, rows;
  int ascending;
};

/* In the order of the recurrence, or against it as gradients go. */
static inline struct lath_lstm_walk lath_lstm_walk(const struct lath_lowrank_lstm *a, int against) {
  struct lath_lstm_walk walk = {.ascending = !a->reverse == !against};
  for (int64_t t = 0; !walk.ascending && t < a->steps; t++) walk.row += lath_lstm_rows(a, t);
  return walk;
}

/* On to the next step; 0 after the last one. */
static inline int lath_lstm_walk_on(const struct lath_lowrank_lstm *a, struct lath_lstm_walk *walk) {
  if (walk->done == a->steps) return 0;
  if (walk->ascending) walk->row += walk->rows;
  walk->t = walk->ascending ? walk->done : a->steps - 1 - walk->done;
  walk->rows = lath_lstm_rows(a, walk->t);
  if (!walk->ascending) walk->row -= walk->rows;
  walk->done++;
  return 1;
}

/* ---- weights (lstm_weights.c) ---------------------------------------------------------------------------------------------------------- */

/* One of the two parts, of h or of x. */
struct lath_lstm_part {
  int64_t from, width;       /* numbers that come in, and columns of [r | s] */
  int64_t column;            /* the first of these */
  int factored;              /* first with v, then u; else with the dense weight u or u v */
  const float *v, *u;        /* (rank, from), (4 hidden, rank); dense as given: v NULL */
  int64_t rank;              /* of the factors as given; 0: dense as given */
  float *merged;             /* (4 hidden, from): u v, if factors are given but not used */
  struct lath_panels panels; /* of v, for h v^T; if factored */
  struct lath_gemm merge;    /* forms `merged` */
};

/* Whether factors are given, and their product is used. */
static inline int lath_lstm_is_merged(const struct lath_lstm_part *p) { return p->rank > 0 && !p->factored; }

struct lath_lstm_weights {
  const struct lath_lowrank_lstm *a;
  const struct lath_kernels *kernels;
  int64_t groups, gates, columns; /* of units; 4 lanes groups; width of [r | s] */
  int64_t s_rows;                 /* floats between rows of [r | s] */
  struct lath_lstm_part hidden, input;
  float *interleaved, *bias; /* (gates, columns), (gates) */
  struct lath_panels panels; /* of w^T, one group wide each */
};

/* `for_gates`: with the panels of w^T, which a backward that has the gates does without. */
void lath_lstm_weights_take(struct lath_lstm_weights *weights, const struct lath_lowrank_lstm *args, int for_gates,
                            const struct lath_host *host, struct lath_arena *arena);
lath_status lath_lstm_weights_fill(struct lath_lstm_weights *weights, const struct lath_host *host);

/* Row of the interleaved weight that holds gate `gate` of a unit. */
static inline int64_t lath_lstm_interleaved(const struct lath_lstm_weights *w, int64_t gate, int64_t unit) {
  const int64_t lanes = w->kernels->lanes;
  return (unit / lanes * 4 + gate) * lanes + unit % lanes;
}

/* [r | s], rows `s_rows` floats apart, of m rows of h or x with the given distance. */
void lath_lstm_part_fill(const struct lath_lstm_weights *weights, const struct lath_lstm_part *part, int64_t m,
                         const float *from, int64_t s_from, float *a, float *scratch);

#endif
