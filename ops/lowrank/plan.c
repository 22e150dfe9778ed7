/* SPDX-License-Identifier: Apache-2.0
 * plan.c - which route a low-rank product takes. Arithmetic on the shape only; the constants were measured (docs/planner.md). */
#include "core/check.h"
#include "gemm/gemm.h"
#include "lowrank/lowrank.h"

/* Keeping p costs a write and a read of one float; computing it again costs `in` multiply-adds. They break even about here. */
#define MIN_IN_TO_SAVE 32

static int64_t factored_macs(const struct lath_lowrank_linear *a, int backward) {
  return (backward ? 2 : 1) * a->rows * a->rank * (a->in + a->out);
}

/* Forward: u v, then the dense product. Backward: u v again, dx and dw = dy^T x, then dw v^T and u^T dw. */
static int64_t merged_macs(const struct lath_lowrank_linear *a, int backward) {
  return (backward ? 2 : 1) * a->rows * a->in * a->out + (backward ? 3 : 1) * a->rank * a->in * a->out;
}

static lath_association associate(const struct lath_lowrank_linear *a, int backward) {
  if (a->association != LATH_AUTO) return a->association;
  return merged_macs(a, backward) < factored_macs(a, backward) ? LATH_MERGED : LATH_FACTORED;
}

static lath_lowrank_kernel route(const struct lath_lowrank_linear *a, lath_association association) {
  if (a->dtype == LATH_F64) return LATH_LOWRANK_PLAIN;
  if (association == LATH_MERGED) return LATH_LOWRANK_MERGED;
  return lath_few_rows(a->rows, a->rank * (a->in + a->out)) ? LATH_LOWRANK_ROWS : LATH_LOWRANK_TILES;
}

lath_status lath_lowrank_linear_plan(const struct lath_lowrank_linear *a, int backward, struct lath_lowrank_plan *plan) {
  if (!a || !plan || a->association < LATH_AUTO || a->association > LATH_MERGED) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_check_dtype(a->dtype));
  LATH_TRY(lath_lowrank_check_extents(a));
  const lath_association association = a->dtype == LATH_F64 ? LATH_FACTORED : associate(a, backward);
  const int merged = association == LATH_MERGED;
  *plan = (struct lath_lowrank_plan){
      .association = association,
      .kernel = route(a, association),
      .macs = merged ? merged_macs(a, backward) : factored_macs(a, backward),
      .dense_macs = (backward ? 2 : 1) * a->rows * a->in * a->out,
      .save_intermediate = !merged && a->in >= MIN_IN_TO_SAVE,
  };
  return LATH_OK;
}
