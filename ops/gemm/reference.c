/* SPDX-License-Identifier: Apache-2.0
 * reference.c - lath_linear_ref: y = x w^T + bias in plain loops, sums in double. */
#include "core/bf16.h"
#include "core/check.h"
#include "gemm/linear.h"

static double get(lath_dtype dtype, const void *data, int64_t i) {
  if (dtype == LATH_F64) return ((const double *)data)[i];
  if (dtype == LATH_F32) return (double)((const float *)data)[i];
  return (double)lath_bf16_to_f32(((const uint16_t *)data)[i]);
}

static void put(lath_dtype dtype, void *data, int64_t i, double value) {
  if (dtype == LATH_F64) ((double *)data)[i] = value;
  if (dtype == LATH_F32) ((float *)data)[i] = (float)value;
  if (dtype == LATH_BF16) ((uint16_t *)data)[i] = lath_f32_to_bf16((float)value);
}

lath_status lath_linear_ref(const struct lath_linear *a) {
  LATH_TRY(lath_linear_check(a));
  for (int64_t i = 0; i < a->rows; i++)
    for (int64_t o = 0; o < a->out; o++) {
      double sum = a->bias ? get(a->dtype, a->bias, o) : 0.0;
      for (int64_t k = 0; k < a->in; k++) sum += get(a->dtype, a->x, i * a->s_x + k) * get(a->dtype, a->w, o * a->s_w + k);
      put(a->dtype, a->y, i * a->s_y + o, sum);
    }
  return LATH_OK;
}
