/* SPDX-License-Identifier: Apache-2.0
 * lstm_arguments.c - what the entries of the low-rank LSTM demand of their arguments. */
#include "core/check.h"
#include "lowrank/lstm.h"

/* The number of rows of all steps. */
static lath_status count_rows(const struct lath_lowrank_lstm *a, int64_t *rows) {
  *rows = 0;
  if (!a->batch_sizes) {
    LATH_TRY(lath_check_extents((const int64_t[]){a->steps, a->batch}, 2));
    *rows = a->steps * a->batch;
    return LATH_OK;
  }
  if (a->steps > 0 && a->batch_sizes[0] != a->batch) return LATH_INVALID_ARGUMENT;
  for (int64_t t = 0; t < a->steps; t++) {
    if (a->batch_sizes[t] < 1 || (t > 0 && a->batch_sizes[t] > a->batch_sizes[t - 1])) return LATH_INVALID_ARGUMENT;
    if (__builtin_add_overflow(*rows, a->batch_sizes[t], rows)) return LATH_SIZE_OVERFLOW;
  }
  return LATH_OK;
}

/* Gates of a group of units are counted as one group more than there may be. */
static lath_status check_extents(const struct lath_lowrank_lstm *a, int64_t rows) {
  int64_t gates, columns, from;
  if (a->steps < 0 || a->batch < 0 || a->in < 0 || a->hidden < 1 || a->in_rank < 0 || a->rank < 1) return LATH_INVALID_ARGUMENT;
  if (__builtin_add_overflow(a->hidden, 64, &gates) || __builtin_mul_overflow(gates, 4, &gates)) return LATH_SIZE_OVERFLOW;
  if (__builtin_add_overflow(a->rank, a->in_rank, &columns) || __builtin_add_overflow(a->hidden, a->in, &from) ||
      __builtin_add_overflow(columns, from, &columns))
    return LATH_SIZE_OVERFLOW;
  LATH_TRY(lath_check_extents((const int64_t[]){gates, columns}, 2));
  LATH_TRY(lath_check_extents((const int64_t[]){gates, a->rank, a->hidden}, 3)); /* multiply-adds that merge the factors */
  LATH_TRY(lath_check_extents((const int64_t[]){gates, a->in_rank, a->in}, 3));
  LATH_TRY(lath_check_extents((const int64_t[]){rows, a->in_rank, a->in}, 3));
  return lath_check_extents((const int64_t[]){rows, gates, columns}, 3);
}

static lath_status check_sequence(const void *data, const struct lath_lowrank_lstm *a, int64_t rows, int64_t cols,
                                  int64_t s_step, int64_t s_row, int output) {
  if (rows == 0 || cols == 0) return LATH_OK;
  if (!data || s_row < 0 || (!a->batch_sizes && s_step < 0)) return LATH_INVALID_ARGUMENT;
  if (output && s_row < cols && (a->batch_sizes ? rows : a->batch) > 1) return LATH_INVALID_ARGUMENT;
  if (output && !a->batch_sizes && a->steps > 1 && s_step < cols) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_check_extents((const int64_t[]){a->batch_sizes ? rows : a->batch, s_row}, 2));
  return a->batch_sizes ? LATH_OK : lath_check_extents((const int64_t[]){a->steps, s_step}, 2);
}

static lath_status check_weights(const struct lath_lowrank_lstm *a) {
  const int64_t wide = a->in_rank > 0 ? a->in_rank : a->in;
  if (!a->u || !a->v || (wide > 0 && !a->u_in)) return LATH_INVALID_ARGUMENT;
  return a->in_rank > 0 && a->in > 0 && !a->v_in ? LATH_INVALID_ARGUMENT : LATH_OK;
}

static lath_status check_common(const struct lath_lowrank_lstm *a, int64_t *rows) {
  if (!a) return LATH_INVALID_ARGUMENT;
  if (a->dtype != LATH_F32 && a->dtype != LATH_F64) return LATH_UNSUPPORTED_DTYPE;
  if (a->association < LATH_AUTO || a->association > LATH_MERGED) return LATH_INVALID_ARGUMENT;
  LATH_TRY(count_rows(a, rows));
  LATH_TRY(check_extents(a, *rows));
  LATH_TRY(check_weights(a));
  return check_sequence(a->x, a, *rows, a->in, a->s_x_step, a->s_x_row, 0);
}

lath_status lath_lstm_check_forward(const struct lath_lowrank_lstm *a) {
  int64_t rows;
  LATH_TRY(check_common(a, &rows));
  return a->y ? check_sequence(a->y, a, rows, a->hidden, a->s_y_step, a->s_y_row, 1) : LATH_OK;
}

lath_status lath_lstm_check_backward(const struct lath_lowrank_lstm *a) {
  int64_t rows;
  LATH_TRY(check_common(a, &rows));
  LATH_TRY(check_sequence(a->y, a, rows, a->hidden, a->s_y_step, a->s_y_row, 0));
  if (rows > 0 && !a->c) return LATH_INVALID_ARGUMENT;
  if (a->dy) LATH_TRY(check_sequence(a->dy, a, rows, a->hidden, a->s_dy_step, a->s_dy_row, 0));
  return a->dx ? check_sequence(a->dx, a, rows, a->in, a->s_dx_step, a->s_dx_row, 1) : LATH_OK;
}
