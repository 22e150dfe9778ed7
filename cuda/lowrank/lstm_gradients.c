/* SPDX-License-Identifier: Apache-2.0
 * lstm_gradients.c - the large products of the backward of a low-rank LSTM, over all rows of a chunk.
 *
 *   before the steps   p = h_before v^T     gates = start + p u^T, where the forward kept none
 *   after them         du += da^T p   dv += dp^T h_before   dpx = da u_in   dx = dpx v_in   du_in += da^T px   dv_in += dpx^T x
 *
 * With merged factors dw takes the place of du and dv until the last chunk is done. Chunks add up in their order. */
#include "lowrank/lstm_gradients.h"

#include "core/arena.h"
#include "core/check.h"
#include "gemm/product.h"
#include "gemm/rows.h"
#include "lowrank/routes.h"

/* ---- buffers -------------------------------------------------------------------------------------------------------------- */

static int needs_h(const struct lath_lowrank_lstm *a) { return !a->gates || a->du || a->dv; }

static int dx_lies_in_rows(const struct lath_lowrank_lstm *a) {
  return lath_cuda_lstm_lies_in_rows(a, a->s_dx_step, a->s_dx_row);
}

static void take_once(struct lath_cuda_lstm_gradients *g, struct lath_arena *arena) {
  const struct lath_cuda_lstm *l = &g->l;
  const struct lath_lowrank_lstm *a = l->a;
  const int64_t parts = lath_cuda_sum_rows_parts(l->chunk, l->gates, l->device.multiprocessors),
                of_chunks = lath_cuda_sum_rows_parts(g->chunks, l->gates, l->device.multiprocessors);
  if (!l->hidden.factored && (a->du || a->dv)) g->dw = lath_cuda_take(arena, a->dtype, l->gates, a->hidden);
  if (lath_cuda_lstm_is_merged(&l->input) && (a->du_in || a->dv_in))
    g->dw_in = lath_cuda_take(arena, a->dtype, l->gates, a->in);
  if (a->d_bias) g->partial = lath_cuda_take(arena, a->dtype, parts > of_chunks ? parts : of_chunks, l->gates);
  if (a->d_bias && g->chunks > 1) g->sums = lath_cuda_take(arena, a->dtype, g->chunks, l->gates);
}

void lath_cuda_lstm_take_products(struct lath_cuda_lstm_gradients *g, struct lath_arena *arena) {
  struct lath_cuda_lstm *l = &g->l;
  const struct lath_lowrank_lstm *a = l->a;
  lath_cuda_lstm_take_inputs(l, arena);
  take_once(g, arena);
  g->da[0] = g->da[1] = lath_cuda_take(arena, a->dtype, l->chunk, l->gates);
  if (!l->hidden.factored && g->chunks > 1) g->da[1] = lath_cuda_take(arena, a->dtype, l->chunk, l->gates);
  if (needs_h(a)) g->h = lath_cuda_take(arena, a->dtype, l->chunk, a->hidden);
  if (l->hidden.factored && (!a->gates || a->du)) g->p = lath_cuda_take(arena, a->dtype, l->chunk, a->rank);
  if (l->hidden.factored) g->dp = lath_cuda_take(arena, a->dtype, l->chunk, l->s_p);
  if (l->input.factored && (a->dx || a->dv_in)) g->dpx = lath_cuda_take(arena, a->dtype, l->chunk, a->in_rank);
  if (a->dx && !dx_lies_in_rows(a)) g->dx = lath_cuda_take(arena, a->dtype, l->chunk, a->in);
}

/* ---- before the steps ------------------------------------------------------------------------------------------------------ */

/* h of the step before, or h0. */
static lath_status bring_h(const struct lath_cuda_lstm_gradients *g, const struct lath_cuda_lstm_chunk *chunk,
                           struct lath_cuda *cuda) {
  const struct lath_lowrank_lstm *a = g->l.a;
  struct lath_cuda_lstm_move move = {
      .cols = a->hidden, .width = a->hidden, .from = a->y, .s_from = a->s_y_row, .rest = a->h0, .to = g->h, .s_to = a->hidden};
  struct lath_cuda_lstm_step s = chunk->from;
  for (int64_t i = 0; i < chunk->steps; i += move.steps) {
    for (move.steps = 0; move.steps < LATH_CUDA_LSTM_MOVES && i + move.steps < chunk->steps; move.steps++) {
      const struct lath_cuda_lstm_step before = lath_cuda_lstm_before(a, s);
      move.step[move.steps].from = before.rows > 0 ? lath_cuda_lstm_offset(a, before, a->s_y_step, a->s_y_row) : 0;
      move.step[move.steps].to = (s.row - chunk->from.row) * a->hidden;
      move.step[move.steps].rows = s.rows, move.step[move.steps].present = before.rows;
      s = lath_cuda_lstm_later(a, s);
    }
    LATH_TRY(lath_device_check(cuda, lath_cuda_lstm_move(a->dtype, &move, cuda->stream)));
  }
  return LATH_OK;
}

static lath_status form_p(const struct lath_cuda_lstm_gradients *g, int64_t rows, struct lath_cuda *cuda) {
  const struct lath_lowrank_lstm *a = g->l.a;
  struct lath_cuda_gemm gemm = lath_cuda_lstm_product_of(&g->l, rows, a->rank, a->hidden);
  gemm.a = g->h, gemm.s_a = a->hidden;
  gemm.b = a->v, gemm.s_b = a->hidden, gemm.b_transposed = 1;
  gemm.c = g->p;
  return lath_cuda_product(&gemm, cuda);
}

/* What h adds to the gates. */
static lath_status add_to_gates(const struct lath_cuda_lstm_gradients *g, const struct lath_cuda_lstm_part_of *part,
                                struct lath_cuda *cuda) {
  const struct lath_cuda_lstm *l = &g->l;
  const struct lath_lowrank_lstm *a = l->a;
  const int64_t width = l->hidden.factored ? a->rank : a->hidden;
  struct lath_cuda_gemm gemm = lath_cuda_lstm_product_of(l, part->chunk.rows, l->gates, width);
  gemm.a = l->hidden.factored ? g->p : g->h, gemm.s_a = width;
  gemm.b = l->hidden.factored ? a->u : g->w_t;
  gemm.s_b = l->hidden.factored ? a->rank : l->gates, gemm.b_transposed = l->hidden.factored;
  gemm.c = part->da, gemm.accumulate = 1;
  return lath_cuda_product(&gemm, cuda);
}

lath_status lath_cuda_lstm_begin_chunk(const struct lath_cuda_lstm_gradients *g, struct lath_cuda_lstm_part_of *part,
                                       struct lath_cuda *cuda) {
  const struct lath_cuda_lstm *l = &g->l;
  const struct lath_lowrank_lstm *a = l->a;
  LATH_TRY(lath_cuda_lstm_rows_of_x(l, &part->chunk, &part->x, &part->s_x, cuda));
  if (g->h) LATH_TRY(bring_h(g, &part->chunk, cuda));
  if (g->p) LATH_TRY(form_p(g, part->chunk.rows, cuda));
  if (a->gates)
    return l->input.factored && a->du_in ? lath_cuda_lstm_form_px(l, &part->chunk, part->x, part->s_x, cuda) : LATH_OK;
  LATH_TRY(lath_cuda_lstm_start(l, &part->chunk, part->x, part->s_x, part->da, cuda));
  return add_to_gates(g, part, cuda);
}

/* ---- after the steps ------------------------------------------------------------------------------------------------------- */

/* to (m, n) += a^T b over the rows of the chunk. */
static lath_status add_outer(const struct lath_cuda_lstm_gradients *g, const struct lath_cuda_lstm_part_of *part, int64_t m,
                             const void *a, int64_t s_a, int64_t n, const void *b, int64_t s_b, void *to,
                             struct lath_cuda *cuda) {
  struct lath_cuda_gemm gemm = lath_cuda_lstm_product_of(&g->l, m, n, part->chunk.rows);
  if (!to) return LATH_OK;
  gemm.a = a, gemm.s_a = s_a, gemm.a_transposed = 1;
  gemm.b = b, gemm.s_b = s_b;
  gemm.c = to, gemm.accumulate = part->number > 0;
  return lath_cuda_product(&gemm, cuda);
}

static lath_status add_recurrent(const struct lath_cuda_lstm_gradients *g, const struct lath_cuda_lstm_part_of *part,
                                 struct lath_cuda *cuda) {
  const struct lath_cuda_lstm *l = &g->l;
  const struct lath_lowrank_lstm *a = l->a;
  if (!l->hidden.factored) return add_outer(g, part, l->gates, part->da, l->gates, a->hidden, g->h, a->hidden, g->dw, cuda);
  LATH_TRY(add_outer(g, part, l->gates, part->da, l->gates, a->rank, g->p, a->rank, a->du, cuda));
  return add_outer(g, part, a->rank, g->dp, l->s_p, a->hidden, g->h, a->hidden, a->dv, cuda);
}

static lath_status form_dpx(const struct lath_cuda_lstm_gradients *g, const struct lath_cuda_lstm_part_of *part,
                            struct lath_cuda *cuda) {
  const struct lath_lowrank_lstm *a = g->l.a;
  struct lath_cuda_gemm gemm = lath_cuda_lstm_product_of(&g->l, part->chunk.rows, a->in_rank, g->l.gates);
  if (!g->dpx) return LATH_OK;
  gemm.a = part->da, gemm.s_a = g->l.gates;
  gemm.b = a->u_in, gemm.s_b = a->in_rank;
  gemm.c = g->dpx;
  return lath_cuda_product(&gemm, cuda);
}

static lath_status add_inputs(const struct lath_cuda_lstm_gradients *g, const struct lath_cuda_lstm_part_of *part,
                              struct lath_cuda *cuda) {
  const struct lath_cuda_lstm *l = &g->l;
  const struct lath_lowrank_lstm *a = l->a;
  void *const dense = lath_cuda_lstm_is_merged(&l->input) ? g->dw_in : a->du_in;
  if (!l->input.factored) return add_outer(g, part, l->gates, part->da, l->gates, a->in, part->x, part->s_x, dense, cuda);
  LATH_TRY(form_dpx(g, part, cuda));
  LATH_TRY(add_outer(g, part, l->gates, part->da, l->gates, a->in_rank, l->px, a->in_rank, a->du_in, cuda));
  return add_outer(g, part, a->in_rank, g->dpx, a->in_rank, a->in, part->x, part->s_x, a->dv_in, cuda);
}

static lath_status scatter_dx(const struct lath_cuda_lstm_gradients *g, const struct lath_cuda_lstm_chunk *chunk,
                              struct lath_cuda *cuda) {
  const struct lath_lowrank_lstm *a = g->l.a;
  struct lath_cuda_lstm_move move = {
      .cols = a->in, .width = a->in, .from = g->dx, .s_from = a->in, .to = a->dx, .s_to = a->s_dx_row};
  struct lath_cuda_lstm_step s = chunk->from;
  for (int64_t i = 0; i < chunk->steps; i += move.steps) {
    for (move.steps = 0; move.steps < LATH_CUDA_LSTM_MOVES && i + move.steps < chunk->steps; move.steps++) {
      move.step[move.steps].from = (s.row - chunk->from.row) * a->in;
      move.step[move.steps].to = s.t * a->s_dx_step;
      move.step[move.steps].rows = move.step[move.steps].present = s.rows;
      s = lath_cuda_lstm_later(a, s);
    }
    LATH_TRY(lath_device_check(cuda, lath_cuda_lstm_move(a->dtype, &move, cuda->stream)));
  }
  return LATH_OK;
}

static lath_status form_dx(const struct lath_cuda_lstm_gradients *g, const struct lath_cuda_lstm_part_of *part,
                           struct lath_cuda *cuda) {
  const struct lath_cuda_lstm *l = &g->l;
  const struct lath_lowrank_lstm *a = l->a;
  struct lath_cuda_gemm gemm = lath_cuda_lstm_product_of(l, part->chunk.rows, a->in, l->input.factored ? a->in_rank : l->gates);
  gemm.a = l->input.factored ? g->dpx : part->da, gemm.s_a = gemm.k;
  gemm.b = l->input.factored ? a->v_in : lath_cuda_lstm_is_merged(&l->input) ? l->dense_x : a->u_in, gemm.s_b = a->in;
  gemm.c = g->dx;
  if (!g->dx) {
    gemm.s_c = !a->batch_sizes && a->batch == 1 ? a->s_dx_step : a->s_dx_row;
    gemm.c = lath_cuda_lstm_element(a->dtype, a->dx, part->chunk.from.row * gemm.s_c);
  }
  LATH_TRY(lath_cuda_product(&gemm, cuda));
  return g->dx ? scatter_dx(g, &part->chunk, cuda) : LATH_OK;
}

static lath_status sum_rows(const struct lath_cuda_lstm_gradients *g, int64_t rows, const void *from, void *to,
                            struct lath_cuda *cuda) {
  const struct lath_cuda_lstm *l = &g->l;
  return lath_device_check(cuda, lath_cuda_sum_rows(l->a->dtype, rows, l->gates, from, l->gates, to, g->partial,
                                                    l->device.multiprocessors, cuda->stream));
}

lath_status lath_cuda_lstm_end_chunk(const struct lath_cuda_lstm_gradients *g, const struct lath_cuda_lstm_part_of *part,
                                     struct lath_cuda *cuda) {
  const struct lath_lowrank_lstm *a = g->l.a;
  LATH_TRY(add_recurrent(g, part, cuda));
  LATH_TRY(add_inputs(g, part, cuda));
  if (a->dx && part->chunk.rows > 0) LATH_TRY(form_dx(g, part, cuda));
  if (!a->d_bias) return LATH_OK;
  void *const to = g->sums ? lath_cuda_lstm_element(a->dtype, g->sums, part->number * g->l.gates) : a->d_bias;
  return sum_rows(g, part->chunk.rows, part->da, to, cuda);
}

/* ---- after all chunks ------------------------------------------------------------------------------------------------------- */

/* du = dw v^T, dv = u^T dw */
static lath_status unmerge(const struct lath_cuda_lstm_gradients *g, const struct lath_cuda_lstm_part *part, const void *dw,
                           void *du, void *dv, struct lath_cuda *cuda) {
  const int64_t gates = g->l.gates;
  struct lath_cuda_gemm of_u = lath_cuda_lstm_product_of(&g->l, gates, part->rank, part->from),
                        of_v = lath_cuda_lstm_product_of(&g->l, part->rank, part->from, gates);
  of_u.a = dw, of_u.s_a = part->from;
  of_u.b = part->v, of_u.s_b = part->from, of_u.b_transposed = 1;
  of_u.c = du;
  of_v.a = part->u, of_v.s_a = part->rank, of_v.a_transposed = 1;
  of_v.b = dw, of_v.s_b = part->from;
  of_v.c = dv;
  if (du) LATH_TRY(lath_cuda_product(&of_u, cuda));
  return dv ? lath_cuda_product(&of_v, cuda) : LATH_OK;
}

lath_status lath_cuda_lstm_end(const struct lath_cuda_lstm_gradients *g, struct lath_cuda *cuda) {
  const struct lath_lowrank_lstm *a = g->l.a;
  if (g->dw) LATH_TRY(unmerge(g, &g->l.hidden, g->dw, a->du, a->dv, cuda));
  if (g->dw_in) LATH_TRY(unmerge(g, &g->l.input, g->dw_in, a->du_in, a->dv_in, cuda));
  return g->sums ? sum_rows(g, g->chunks, g->sums, a->d_bias, cuda) : LATH_OK;
}
