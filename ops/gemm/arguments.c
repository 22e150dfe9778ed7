/* SPDX-License-Identifier: Apache-2.0
 * arguments.c - what the entries of the linear family demand of their arguments. */
#include "core/check.h"
#include "gemm/linear.h"

lath_status lath_linear_check_operands(const struct lath_linear *a) {
  LATH_TRY(lath_check_extents((const int64_t[]){a->rows, a->in, a->out}, 3));
  LATH_TRY(lath_check_input(a->x, a->rows, a->in, a->s_x));
  LATH_TRY(lath_check_input(a->w, a->out, a->in, a->s_w));
  return lath_check_output(a->y, a->rows, a->out, a->s_y);
}

lath_status lath_linear_check(const struct lath_linear *a) {
  if (!a) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_check_dtype(a->dtype));
  return lath_linear_check_operands(a);
}
