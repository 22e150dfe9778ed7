/* SPDX-License-Identifier: Apache-2.0
 * lstm_inputs.c - what x adds to the gates of a low-rank LSTM, for all rows of a chunk at once. */
#include "core/arena.h"
#include "core/check.h"
#include "gemm/product.h"
#include "lowrank/lstm_steps.h"
#include "lowrank/routes.h"

struct lath_cuda_gemm lath_cuda_lstm_product_of(const struct lath_cuda_lstm *l, int64_t m, int64_t n, int64_t k) {
  const lath_dtype dtype = l->a->dtype;
  return (struct lath_cuda_gemm){.a_type = dtype, .b_type = dtype, .c_type = dtype, .m = m, .n = n, .k = k, .s_c = n};
}

/* ---- x -------------------------------------------------------------------------------------------------------------------- */

int lath_cuda_lstm_lies_in_rows(const struct lath_lowrank_lstm *a, int64_t s_step, int64_t s_row) {
  return a->batch_sizes || a->batch == 1 || a->steps == 1 || s_step == a->batch * s_row;
}

static int lies_in_rows(const struct lath_lowrank_lstm *a) { return lath_cuda_lstm_lies_in_rows(a, a->s_x_step, a->s_x_row); }

void lath_cuda_lstm_take_inputs(struct lath_cuda_lstm *l, struct lath_arena *arena) {
  const struct lath_lowrank_lstm *a = l->a;
  if (!lies_in_rows(a)) l->x = lath_cuda_take(arena, a->dtype, l->chunk, a->in);
  if (l->input.factored) l->px = lath_cuda_take(arena, a->dtype, l->chunk, a->in_rank);
  if (lath_cuda_lstm_is_merged(&l->input)) l->dense_x = lath_cuda_take(arena, a->dtype, l->gates, a->in);
}

static lath_status bring_together(const struct lath_cuda_lstm *l, const struct lath_cuda_lstm_chunk *chunk,
                                  struct lath_cuda *cuda) {
  const struct lath_lowrank_lstm *a = l->a;
  struct lath_cuda_lstm_move move = {
      .cols = a->in, .width = a->in, .from = a->x, .s_from = a->s_x_row, .to = l->x, .s_to = a->in};
  struct lath_cuda_lstm_step s = chunk->from;
  for (int64_t i = 0; i < chunk->steps; i += move.steps) {
    for (move.steps = 0; move.steps < LATH_CUDA_LSTM_MOVES && i + move.steps < chunk->steps; move.steps++) {
      move.step[move.steps].from = s.t * a->s_x_step;
      move.step[move.steps].to = (s.row - chunk->from.row) * a->in;
      move.step[move.steps].rows = move.step[move.steps].present = s.rows;
      s = lath_cuda_lstm_later(a, s);
    }
    LATH_TRY(lath_device_check(cuda, lath_cuda_lstm_move(a->dtype, &move, cuda->stream)));
  }
  return LATH_OK;
}

lath_status lath_cuda_lstm_rows_of_x(const struct lath_cuda_lstm *l, const struct lath_cuda_lstm_chunk *chunk, const void **x,
                                     int64_t *s_x, struct lath_cuda *cuda) {
  const struct lath_lowrank_lstm *a = l->a;
  *x = l->x, *s_x = a->in;
  if (a->in == 0 || chunk->rows == 0) return LATH_OK;
  if (!lies_in_rows(a)) return bring_together(l, chunk, cuda);
  *s_x = !a->batch_sizes && a->batch == 1 ? a->s_x_step : a->s_x_row;
  *x = lath_cuda_lstm_element(a->dtype, a->x, chunk->from.row * *s_x);
  return LATH_OK;
}

/* ---- copies ----------------------------------------------------------------------------------------------------------------- */

lath_status lath_cuda_lstm_fill(lath_dtype dtype, int64_t rows, int64_t cols, const void *from, int64_t width, void *to,
                                struct lath_cuda *cuda) {
  const struct lath_cuda_lstm_move move = {
      .cols = cols, .width = width, .rest = from, .to = to, .s_to = width, .steps = 1, .step = {{.rows = rows}}};
  return lath_device_check(cuda, lath_cuda_lstm_move(dtype, &move, cuda->stream));
}

/* ---- products ------------------------------------------------------------------------------------------------------------- */

lath_status lath_cuda_lstm_merge_inputs(const struct lath_cuda_lstm *l, struct lath_cuda *cuda) {
  const struct lath_lowrank_lstm *a = l->a;
  struct lath_cuda_gemm gemm = lath_cuda_lstm_product_of(l, l->gates, a->in, a->in_rank);
  if (!lath_cuda_lstm_is_merged(&l->input)) return LATH_OK;
  gemm.a = a->u_in, gemm.s_a = a->in_rank;
  gemm.b = a->v_in, gemm.s_b = a->in;
  gemm.c = l->dense_x;
  return lath_cuda_product(&gemm, cuda);
}

lath_status lath_cuda_lstm_form_px(const struct lath_cuda_lstm *l, const struct lath_cuda_lstm_chunk *chunk, const void *x,
                                   int64_t s_x, struct lath_cuda *cuda) {
  const struct lath_lowrank_lstm *a = l->a;
  struct lath_cuda_gemm gemm = lath_cuda_lstm_product_of(l, chunk->rows, a->in_rank, a->in);
  gemm.a = x, gemm.s_a = s_x;
  gemm.b = a->v_in, gemm.s_b = a->in, gemm.b_transposed = 1;
  gemm.c = l->px;
  return lath_cuda_product(&gemm, cuda);
}

lath_status lath_cuda_lstm_start(const struct lath_cuda_lstm *l, const struct lath_cuda_lstm_chunk *chunk, const void *x,
                                 int64_t s_x, void *start, struct lath_cuda *cuda) {
  const struct lath_lowrank_lstm *a = l->a;
  const int64_t width = l->input.factored ? a->in_rank : a->in;
  struct lath_cuda_gemm gemm = lath_cuda_lstm_product_of(l, chunk->rows, l->gates, width);
  if (l->input.factored) LATH_TRY(lath_cuda_lstm_form_px(l, chunk, x, s_x, cuda));
  gemm.a = l->input.factored ? l->px : x;
  gemm.s_a = l->input.factored ? width : s_x;
  gemm.b = lath_cuda_lstm_is_merged(&l->input) ? l->dense_x : a->u_in;
  gemm.s_b = width, gemm.b_transposed = 1;
  gemm.c = start;
  return lath_cuda_product(&gemm, cuda);
}
