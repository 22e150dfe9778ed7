/* SPDX-License-Identifier: Apache-2.0
 * reference.c - the `_ref` twins of the OIALR family. They are the oracle of the tests and the path of F64. */
#include "core/check.h"
#include "oialr/oialr.h"

#define LOOPS "oialr/reference.inc"
#include "core/every_type.inc"

/* ds in double, and one row of each of three intermediates. */
size_t lath_oialr_reference_bytes(const struct lath_oialr_linear *a) {
  return sizeof(double) * (size_t)a->rank * ((size_t)a->rank + 3) + _Alignof(double);
}

lath_status lath_oialr_linear_ref(const struct lath_oialr_linear *a) {
  LATH_TRY(lath_oialr_check_forward(a));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, lath_oialr_reference_bytes(a)));
  double *work = lath_doubles(a->workspace);
  if (a->dtype == LATH_F64) forward_f64(a, work);
  if (a->dtype == LATH_F32) forward_f32(a, work);
  if (a->dtype == LATH_BF16) forward_bf16(a, work);
  return LATH_OK;
}

lath_status lath_oialr_linear_backward_ref(const struct lath_oialr_linear *a) {
  LATH_TRY(lath_oialr_check_backward(a));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, lath_oialr_reference_bytes(a)));
  double *work = lath_doubles(a->workspace);
  if (a->dtype == LATH_F64) backward_f64(a, work);
  if (a->dtype == LATH_F32) backward_f32(a, work);
  if (a->dtype == LATH_BF16) backward_bf16(a, work);
  return LATH_OK;
}
