/* SPDX-License-Identifier: Apache-2.0
 * lstm_weights.c - the weights of a low-rank LSTM, prepared once per call for all of its steps. */
#include <string.h>

#include "core/check.h"
#include "lowrank/lstm.h"

/* Whether a step goes through the factors, or through their product, which is formed once per call. Two products after each other cost some
 * 3 % more than one of as many multiply-adds (docs/planner.md). */
static int is_factored(const struct lath_lowrank_lstm *a, int64_t from, int64_t rank) {
  if (rank == 0) return 0;
  if (a->association != LATH_AUTO) return a->association == LATH_FACTORED;
  const double rows = (double)a->steps * (double)a->batch, gates = 4.0 * (double)a->hidden;
  const double factored = rows * (double)rank * ((double)from + gates), merged = (rows + (double)rank) * gates * (double)from;
  return 1.03 * factored <= merged;
}

static void take_part(struct lath_lstm_part *p, const struct lath_lstm_weights *w, const struct lath_host *host,
                      struct lath_arena *arena) {
  const int64_t gates = 4 * w->a->hidden;
  p->factored = is_factored(w->a, p->from, p->rank);
  p->width = p->factored ? p->rank : p->from;
  if (p->factored) p->panels = lath_panels_take(w->kernels, arena, w->a->batch, p->rank, p->from);
  if (!lath_lstm_is_merged(p)) return;
  p->merged = lath_take(arena, gates, p->from);
  p->merge = (struct lath_gemm){.m = gates, .n = p->from, .k = p->rank};
  struct lath_arena rest = *arena;
  lath_gemm_take(&p->merge, host, &rest);
  lath_arena_cover(arena, &rest);
}

/* Rows that are read side by side, and across: not at a distance at which they compete for the same lines of L1. */
static int64_t row_stride(int64_t length) { return length % 64 == 0 ? length + 16 : length; }

void lath_lstm_weights_take(struct lath_lstm_weights *w, const struct lath_lowrank_lstm *a, int for_gates,
                            const struct lath_host *host, struct lath_arena *arena) {
  const int64_t lanes = lath_kernels()->lanes;
  *w = (struct lath_lstm_weights){.a = a, .kernels = lath_kernels(), .groups = (a->hidden + lanes - 1) / lanes};
  w->gates = 4 * lanes * w->groups;
  w->hidden = (struct lath_lstm_part){.from = a->hidden, .rank = a->rank, .v = a->v, .u = a->u};
  w->input = (struct lath_lstm_part){.from = a->in, .rank = a->in_rank, .v = a->v_in, .u = a->u_in};
  take_part(&w->hidden, w, host, arena);
  take_part(&w->input, w, host, arena);
  w->input.column = w->hidden.width;
  w->columns = w->hidden.width + w->input.width;
  w->s_rows = row_stride(w->columns);
  w->interleaved = lath_take(arena, w->gates, w->columns);
  w->bias = lath_take(arena, 1, w->gates);
  w->panels = (struct lath_panels){.n = w->gates, .k = w->columns, .width = 4 * lanes, .vecs = 4};
  if (for_gates) w->panels.packed = lath_take(arena, w->gates, w->columns);
}

static void interleave(const struct lath_lstm_weights *w, const struct lath_lstm_part *p) {
  const float *from = lath_lstm_is_merged(p) ? p->merged : p->u;
  if (p->width == 0) return; /* inputs of no numbers, whose weight may be NULL */
  for (int64_t gate = 0; gate < 4; gate++)
    for (int64_t unit = 0; unit < w->a->hidden; unit++)
      memcpy(w->interleaved + lath_lstm_interleaved(w, gate, unit) * w->columns + p->column,
             from + (gate * w->a->hidden + unit) * p->width, (size_t)p->width * sizeof(float));
}

static void interleave_bias(const struct lath_lstm_weights *w) {
  const float *one = w->a->bias_in, *other = w->a->bias;
  memset(w->bias, 0, (size_t)w->gates * sizeof(float));
  for (int64_t gate = 0; gate < 4; gate++)
    for (int64_t unit = 0; unit < w->a->hidden; unit++) {
      const int64_t at = gate * w->a->hidden + unit;
      w->bias[lath_lstm_interleaved(w, gate, unit)] = (one ? one[at] : 0.f) + (other ? other[at] : 0.f);
    }
}

static lath_status fill_part(struct lath_lstm_weights *w, struct lath_lstm_part *p, const struct lath_host *host) {
  if (p->factored) lath_pack(w->kernels, &p->panels, 0, lath_panels_count(&p->panels), p->v, p->from, 1);
  if (lath_lstm_is_merged(p)) {
    p->merge.a = p->u, p->merge.s_a = p->rank;
    p->merge.b = p->v, p->merge.s_b = p->from;
    p->merge.c = p->merged, p->merge.s_c = p->from;
    LATH_TRY(lath_gemm_run(&p->merge, host));
  }
  interleave(w, p);
  return LATH_OK;
}

lath_status lath_lstm_weights_fill(struct lath_lstm_weights *w, const struct lath_host *host) {
  memset(w->interleaved, 0, (size_t)(w->gates * w->columns) * sizeof(float)); /* units that fill up the last group */
  LATH_TRY(fill_part(w, &w->hidden, host));
  LATH_TRY(fill_part(w, &w->input, host));
  interleave_bias(w);
  if (w->panels.packed) lath_pack(w->kernels, &w->panels, 0, w->groups, w->interleaved, w->columns, 1);
  return LATH_OK;
}

void lath_lstm_part_fill(const struct lath_lstm_weights *w, const struct lath_lstm_part *p, int64_t m, const float *from,
                         int64_t s_from, float *a, float *scratch) {
  if (p->from == 0 && !p->factored) return;
  if (!p->factored) {
    for (int64_t r = 0; r < m; r++) memcpy(a + r * w->s_rows + p->column, from + r * s_from, (size_t)p->width * sizeof(float));
    return;
  }
  const struct lath_product product = {
      .m = m, .a = from, .s_a = s_from, .b = &p->panels, .c = a + p->column, .s_c = w->s_rows, .scratch = scratch};
  lath_multiply(w->kernels, &product);
}
