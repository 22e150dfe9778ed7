/* SPDX-License-Identifier: Apache-2.0
 * lstm_reference.c - the `_ref` twins of the low-rank LSTM. They are the oracle of the tests and the path of F64. */
#include <math.h>

#include "core/check.h"
#include "lowrank/lstm.h"

#define T float
#define NAME(x) x##_f32
#include "lowrank/lstm_reference.inc"

#define T double
#define NAME(x) x##_f64
#include "lowrank/lstm_reference.inc"

size_t lath_lstm_reference_bytes(const struct lath_lowrank_lstm *a) {
  const int64_t wide = a->in_rank > 0 ? a->in_rank : a->in;
  return sizeof(double) * (size_t)(8 * a->hidden + 2 * wide + 2 * a->rank) + _Alignof(double);
}

lath_status lath_lowrank_lstm_ref(const struct lath_lowrank_lstm *a) {
  LATH_TRY(lath_lstm_check_forward(a));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, lath_lstm_reference_bytes(a)));
  if (a->dtype == LATH_F64) forward_f64(a, lath_doubles(a->workspace));
  if (a->dtype == LATH_F32) forward_f32(a, lath_doubles(a->workspace));
  return LATH_OK;
}

lath_status lath_lowrank_lstm_backward_ref(const struct lath_lowrank_lstm *a) {
  LATH_TRY(lath_lstm_check_backward(a));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, lath_lstm_reference_bytes(a)));
  if (a->dtype == LATH_F64) backward_f64(a, lath_doubles(a->workspace));
  if (a->dtype == LATH_F32) backward_f32(a, lath_doubles(a->workspace));
  return LATH_OK;
}
