/* SPDX-License-Identifier: Apache-2.0
 * arguments.c - what the entries of the OIALR family demand of their arguments, and the weights as float. */
#include "core/check.h"
#include "core/convert.h"
#include "oialr/oialr.h"

lath_status lath_oialr_check_extents(const struct lath_oialr_linear *a) {
  if (a->route < LATH_OIALR_AUTO || a->route > LATH_OIALR_MERGED) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_check_extents((const int64_t[]){a->rows, a->in, a->rank}, 3));
  LATH_TRY(lath_check_extents((const int64_t[]){a->rows, a->rank, a->out}, 3));
  LATH_TRY(lath_check_extents((const int64_t[]){a->rows, a->in, a->out}, 3));
  LATH_TRY(lath_check_extents((const int64_t[]){a->rows, a->rank, a->rank}, 3));
  LATH_TRY(lath_check_extents((const int64_t[]){a->in, a->rank, a->rank}, 3));
  LATH_TRY(lath_check_extents((const int64_t[]){a->out, a->rank, a->rank}, 3));
  return lath_check_extents((const int64_t[]){a->in, a->rank, a->out}, 3);
}

static lath_status check_weights(const struct lath_oialr_linear *a) {
  LATH_TRY(lath_check_input(a->vh, a->rank, a->in, a->s_vh));
  LATH_TRY(lath_check_input(a->s, a->rank, a->rank, a->s_s));
  return lath_check_input(a->u, a->out, a->rank, a->s_u);
}

lath_status lath_oialr_check_x(const struct lath_oialr_linear *a) { return lath_check_input(a->x, a->rows, a->in, a->s_x); }

lath_status lath_oialr_check_operands(const struct lath_oialr_linear *a, int backward) {
  LATH_TRY(lath_oialr_check_extents(a));
  LATH_TRY(check_weights(a));
  if (!backward) {
    LATH_TRY(lath_oialr_check_x(a));
    return a->dy ? LATH_INVALID_ARGUMENT : lath_check_output(a->y, a->rows, a->out, a->s_y);
  }
  LATH_TRY(lath_check_input(a->dy, a->rows, a->out, a->s_dy));
  return a->dx ? lath_check_output(a->dx, a->rows, a->in, a->s_dx) : LATH_OK;
}

lath_status lath_oialr_check_forward(const struct lath_oialr_linear *a) {
  if (!a) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_check_dtype(a->dtype));
  return lath_oialr_check_operands(a, 0);
}

lath_status lath_oialr_check_backward(const struct lath_oialr_linear *a) {
  if (!a) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_check_dtype(a->dtype));
  LATH_TRY(lath_oialr_check_operands(a, 1));
  return lath_oialr_backward_reads_x(a) ? lath_oialr_check_x(a) : LATH_OK;
}

void lath_oialr_weights_take(struct lath_oialr_weights *w, const struct lath_oialr_linear *a, struct lath_arena *arena) {
  if (a->dtype == LATH_F32) return;
  const int64_t sizes[4] = {a->rank * a->in, a->rank * a->rank, a->out * a->rank, a->out};
  for (int i = 0; i < 4; i++) w->copies[i] = lath_take(arena, 1, sizes[i]);
}

void lath_oialr_weights_view(struct lath_oialr_weights *w, const struct lath_oialr_linear *a) {
  int64_t unused;
  w->vh = lath_as_float(a->dtype, a->rank, a->in, a->vh, a->s_vh, w->copies[0], &w->s_vh);
  w->s = lath_as_float(a->dtype, a->rank, a->rank, a->s, a->s_s, w->copies[1], &w->s_s);
  w->u = lath_as_float(a->dtype, a->out, a->rank, a->u, a->s_u, w->copies[2], &w->s_u);
  w->bias = lath_as_float(a->dtype, 1, a->out, a->bias, a->out, w->copies[3], &unused);
}
