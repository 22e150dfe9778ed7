/* SPDX-License-Identifier: Apache-2.0
 * convert.c - between storage types and the float that the engine works on. */
#include "core/convert.h"

#include <string.h>

#include "core/bf16.h"

const void *lath_at(lath_dtype dtype, const void *data, int64_t stride, int64_t row, int64_t col) {
  return (const char *)data + (row * stride + col) * (int64_t)lath_dtype_size(dtype);
}

void lath_to_float(lath_dtype dtype, int64_t rows, int64_t cols, const void *data, int64_t stride, float *copy,
                   int64_t s_copy) {
  for (int64_t i = 0; i < rows; i++) {
    if (dtype == LATH_F32)
      memcpy(copy + i * s_copy, (const float *)data + i * stride, (size_t)cols * sizeof(float));
    else
      for (int64_t j = 0; j < cols; j++) copy[i * s_copy + j] = lath_bf16_to_f32(((const uint16_t *)data)[i * stride + j]);
  }
}

const float *lath_as_float(lath_dtype dtype, int64_t rows, int64_t cols, const void *data, int64_t stride, float *copy,
                           int64_t *s) {
  if (dtype == LATH_F32 || !data) {
    *s = stride;
    return data;
  }
  lath_to_float(dtype, rows, cols, data, stride, copy, cols);
  *s = cols;
  return copy;
}

void lath_from_float(lath_dtype dtype, int64_t rows, int64_t cols, const float *a, void *data, int64_t stride) {
  if (a == data) return;
  for (int64_t i = 0; i < rows; i++) {
    if (dtype == LATH_F32)
      memcpy((float *)data + i * stride, a + i * cols, (size_t)cols * sizeof(float));
    else
      for (int64_t j = 0; j < cols; j++) ((uint16_t *)data)[i * stride + j] = lath_f32_to_bf16(a[i * cols + j]);
  }
}
