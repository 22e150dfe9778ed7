/* SPDX-License-Identifier: Apache-2.0
 * reference.c - the `_ref` twins of the low-rank family. They are the oracle of the tests and the path of F64. */
#include "core/check.h"
#include "core/integers.h"
#include "lowrank/lowrank.h"

#define LOOPS "lowrank/reference.inc"
#include "core/every_type.inc"

size_t lath_lowrank_reference_bytes(const struct lath_lowrank_linear *a) {
  return 2 * sizeof(double) * (size_t)lath_larger(a->rank, a->rows) + _Alignof(double);
}

lath_status lath_lowrank_linear_ref(const struct lath_lowrank_linear *a) {
  LATH_TRY(lath_lowrank_check_forward(a));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, lath_lowrank_reference_bytes(a)));
  double *p = lath_doubles(a->workspace);
  if (a->dtype == LATH_F64) forward_f64(a, p);
  if (a->dtype == LATH_F32) forward_f32(a, p);
  if (a->dtype == LATH_BF16) forward_bf16(a, p);
  return LATH_OK;
}

lath_status lath_lowrank_linear_backward_ref(const struct lath_lowrank_linear *a) {
  LATH_TRY(lath_lowrank_check_backward(a));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, lath_lowrank_reference_bytes(a)));
  double *p = lath_doubles(a->workspace), *dp = p + lath_larger(a->rank, a->rows);
  if (a->dtype == LATH_F64) backward_f64(a, p, dp);
  if (a->dtype == LATH_F32) backward_f32(a, p, dp);
  if (a->dtype == LATH_BF16) backward_bf16(a, p, dp);
  return LATH_OK;
}

lath_status lath_frobenius_ref(const struct lath_frobenius *a) {
  LATH_TRY(lath_frobenius_check(a, 0));
  if (a->dtype == LATH_F64) frobenius_f64(a);
  if (a->dtype == LATH_F32) frobenius_f32(a);
  if (a->dtype == LATH_BF16) frobenius_bf16(a);
  return LATH_OK;
}

lath_status lath_frobenius_backward_ref(const struct lath_frobenius *a) {
  LATH_TRY(lath_frobenius_check(a, 1));
  if (a->dtype == LATH_F64) frobenius_backward_f64(a);
  if (a->dtype == LATH_F32) frobenius_backward_f32(a);
  if (a->dtype == LATH_BF16) frobenius_backward_bf16(a);
  return LATH_OK;
}
