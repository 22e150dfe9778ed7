/* SPDX-License-Identifier: Apache-2.0
 * check.c - argument checks that every entry shares. */
#include "core/check.h"

#include <stdbool.h>

/* Room for the widest element and for the sum of a few such buffers in one workspace. */
#define LARGEST_ELEMENT 64

static bool multiply(int64_t *product, int64_t factor) { return !__builtin_mul_overflow(*product, factor, product); }

lath_status lath_check_dtype(lath_dtype dtype) {
  return dtype == LATH_F32 || dtype == LATH_F64 || dtype == LATH_BF16 ? LATH_OK : LATH_UNSUPPORTED_DTYPE;
}

lath_status lath_check_extents(const int64_t *extents, int count) {
  int64_t product = LARGEST_ELEMENT;
  for (int i = 0; i < count; i++)
    if (extents[i] < 0) return LATH_INVALID_ARGUMENT;
  for (int i = 0; i < count; i++)
    if (extents[i] > 0 && !multiply(&product, extents[i])) return LATH_SIZE_OVERFLOW;
  return LATH_OK;
}

static lath_status check_span(int64_t rows, int64_t stride) {
  int64_t span = LARGEST_ELEMENT;
  return multiply(&span, rows) && multiply(&span, stride) ? LATH_OK : LATH_SIZE_OVERFLOW;
}

lath_status lath_check_input(const void *data, int64_t rows, int64_t cols, int64_t stride) {
  LATH_TRY(lath_check_extents((const int64_t[]){rows, cols}, 2));
  if (rows == 0 || cols == 0) return LATH_OK;
  if (!data) return LATH_INVALID_ARGUMENT;
  if (rows > 1 && stride != 0 && stride < cols) return LATH_INVALID_ARGUMENT;
  return rows > 1 ? check_span(rows, stride) : LATH_OK;
}

lath_status lath_check_output(const void *data, int64_t rows, int64_t cols, int64_t stride) {
  LATH_TRY(lath_check_input(data, rows, cols, stride));
  return rows > 1 && cols > 0 && stride < cols ? LATH_INVALID_ARGUMENT : LATH_OK;
}

lath_status lath_check_workspace(const void *workspace, size_t have, size_t need) {
  if (have < need) return LATH_SMALL_WORKSPACE;
  return need > 0 && !workspace ? LATH_INVALID_ARGUMENT : LATH_OK;
}
