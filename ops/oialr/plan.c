/* SPDX-License-Identifier: Apache-2.0
 * plan.c - which route a layer in an orthogonal basis takes. Arithmetic on the shape only.
 *
 * Chained or folded is settled for each call: the core is multiplied into the basis on the far side, u in the forward and vh in the
 * backward, where that side has fewer features than there are rows. Merged concerns a training step as a whole, because it keeps x
 * and the others keep t. */
#include "core/check.h"
#include "core/integers.h"
#include "gemm/gemm.h"
#include "oialr/oialr.h"

static int is_few(const struct lath_oialr_linear *a) { return lath_few_rows(a->rows, a->rank * (a->in + a->out + a->rank)); }

/* Of few rows weights are read where they lie, once; a folded basis would be written and read again. */
static lath_oialr_route factored(const struct lath_oialr_linear *a, int64_t features) {
  return a->dtype != LATH_F64 && !is_few(a) && features < a->rows ? LATH_OIALR_FOLDED : LATH_OIALR_CHAINED;
}

/* The core, applied to each row or once to a basis. */
static int64_t core_macs(const struct lath_oialr_linear *a, lath_oialr_route route, int64_t features) {
  return a->rank * a->rank * (route == LATH_OIALR_FOLDED ? features : a->rows);
}

/* Forming w: the core goes into the smaller basis. */
static int64_t w_macs(const struct lath_oialr_linear *a) {
  return a->rank * a->rank * lath_smaller(a->in, a->out) + a->rank * a->in * a->out;
}

static int64_t forward_macs(const struct lath_oialr_linear *a, lath_oialr_route route) {
  if (route == LATH_OIALR_MERGED) return a->rows * a->in * a->out + w_macs(a);
  return a->rows * a->rank * (a->in + a->out) + core_macs(a, route, a->out);
}

/* Merged: w again, dx and dw, then ds from dw by as much as forming w. */
static int64_t backward_macs(const struct lath_oialr_linear *a, lath_oialr_route route) {
  if (route == LATH_OIALR_MERGED) return 2 * a->rows * a->in * a->out + 2 * w_macs(a);
  return a->rows * a->rank * (a->in + a->out) + a->rows * a->rank * a->rank + core_macs(a, route, a->in);
}

static lath_oialr_route cheaper(const struct lath_oialr_linear *a, lath_oialr_route route, int training) {
  if (a->dtype == LATH_F64) return LATH_OIALR_CHAINED;
  const int64_t merged = forward_macs(a, LATH_OIALR_MERGED) + (training ? backward_macs(a, LATH_OIALR_MERGED) : 0);
  const int64_t thin = forward_macs(a, route) + (training ? backward_macs(a, factored(a, a->in)) : 0);
  return merged < thin ? LATH_OIALR_MERGED : route;
}

lath_oialr_route lath_oialr_forward_route(const struct lath_oialr_linear *a) {
  if (a->route != LATH_OIALR_AUTO) return a->route;
  const lath_oialr_route route = factored(a, a->out);
  return a->t ? route : cheaper(a, route, 0);
}

lath_oialr_route lath_oialr_backward_route(const struct lath_oialr_linear *a) {
  if (a->route != LATH_OIALR_AUTO) return a->route;
  return a->t                                                      ? factored(a, a->in)
         : cheaper(a, factored(a, a->out), 1) == LATH_OIALR_MERGED ? LATH_OIALR_MERGED
                                                                   : factored(a, a->in);
}

int lath_oialr_backward_reads_x(const struct lath_oialr_linear *a) {
  return a->ds && (!a->t || lath_oialr_backward_route(a) == LATH_OIALR_MERGED);
}

lath_status lath_oialr_linear_plan(const struct lath_oialr_linear *a, int training, struct lath_oialr_plan *plan) {
  if (!a || !plan) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_check_dtype(a->dtype));
  LATH_TRY(lath_oialr_check_extents(a));
  const lath_oialr_route forward = a->route != LATH_OIALR_AUTO ? a->route : cheaper(a, factored(a, a->out), training);
  const lath_oialr_route backward = a->route != LATH_OIALR_AUTO || forward == LATH_OIALR_MERGED ? forward : factored(a, a->in);
  *plan = (struct lath_oialr_plan){
      .route = forward,
      .macs = forward_macs(a, forward) + (training ? backward_macs(a, backward) : 0),
      .dense_macs = (training ? 3 : 1) * a->rows * a->in * a->out,
      .save_t = forward != LATH_OIALR_MERGED,
  };
  return LATH_OK;
}
