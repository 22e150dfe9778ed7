/* SPDX-License-Identifier: Apache-2.0
 * arguments.c - what the entries of the low-rank family demand of their arguments. */
#include "core/check.h"
#include "lowrank/lowrank.h"

static lath_status check_vector(const void *data, int64_t n, int required) {
  return required && n > 0 && !data ? LATH_INVALID_ARGUMENT : LATH_OK;
}

lath_status lath_lowrank_check_extents(const struct lath_lowrank_linear *a) {
  LATH_TRY(lath_check_extents((const int64_t[]){a->rows, a->in, a->rank}, 3));
  LATH_TRY(lath_check_extents((const int64_t[]){a->rows, a->rank, a->out}, 3));
  LATH_TRY(lath_check_extents((const int64_t[]){a->rows, a->in, a->out}, 3));
  return lath_check_extents((const int64_t[]){a->in, a->rank, a->out}, 3);
}

static lath_status check_common(const struct lath_lowrank_linear *a) {
  if (a->association < LATH_AUTO || a->association > LATH_MERGED) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_lowrank_check_extents(a));
  LATH_TRY(lath_check_input(a->x, a->rows, a->in, a->s_x));
  LATH_TRY(lath_check_input(a->v, a->rank, a->in, a->s_v));
  return lath_check_input(a->u, a->out, a->rank, a->s_u);
}

lath_status lath_lowrank_check_operands(const struct lath_lowrank_linear *a, int backward) {
  LATH_TRY(check_common(a));
  if (!backward) return a->dy ? LATH_INVALID_ARGUMENT : lath_check_output(a->y, a->rows, a->out, a->s_y);
  LATH_TRY(lath_check_input(a->dy, a->rows, a->out, a->s_dy));
  return a->dx ? lath_check_output(a->dx, a->rows, a->in, a->s_dx) : LATH_OK;
}

lath_status lath_lowrank_check_forward(const struct lath_lowrank_linear *a) {
  if (!a) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_check_dtype(a->dtype));
  return lath_lowrank_check_operands(a, 0);
}

lath_status lath_lowrank_check_backward(const struct lath_lowrank_linear *a) {
  if (!a) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_check_dtype(a->dtype));
  return lath_lowrank_check_operands(a, 1);
}

lath_status lath_frobenius_check_operands(const struct lath_frobenius *a) {
  LATH_TRY(lath_check_extents((const int64_t[]){a->rank, a->rank, a->in}, 3));
  LATH_TRY(lath_check_extents((const int64_t[]){a->rank, a->rank, a->out}, 3));
  LATH_TRY(lath_check_input(a->v, a->rank, a->in, a->s_v));
  LATH_TRY(lath_check_input(a->u, a->out, a->rank, a->s_u));
  LATH_TRY(check_vector(a->gram_v, a->rank, 1));
  return check_vector(a->gram_u, a->rank, 1);
}

lath_status lath_frobenius_check(const struct lath_frobenius *a, int backward) {
  if (!a) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_check_dtype(a->dtype));
  LATH_TRY(lath_frobenius_check_operands(a));
  return check_vector(a->value, 1, !backward);
}
