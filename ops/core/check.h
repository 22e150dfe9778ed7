/* SPDX-License-Identifier: Apache-2.0
 * check.h - inside the library: argument checks that every entry shares. */
#ifndef LATH_CORE_CHECK_H
#define LATH_CORE_CHECK_H

#include "lath.h"

#define LATH_TRY(expression)                      \
  do {                                            \
    const lath_status try_status = (expression);  \
    if (try_status != LATH_OK) return try_status; \
  } while (0)

/* LATH_UNSUPPORTED_DTYPE unless the processor's entries compute with this type. */
lath_status lath_check_dtype(lath_dtype dtype);

/* LATH_SIZE_OVERFLOW unless the product of the extents, times 8 bytes, fits a ptrdiff_t. Negative: LATH_INVALID_ARGUMENT. */
lath_status lath_check_extents(const int64_t *extents, int count);

/* A (rows, cols) matrix: pointer present when there is something to read, stride 0 (inputs) or at least cols, span in range. */
lath_status lath_check_input(const void *data, int64_t rows, int64_t cols, int64_t stride);
lath_status lath_check_output(const void *data, int64_t rows, int64_t cols, int64_t stride);
lath_status lath_check_workspace(const void *workspace, size_t have, size_t need);

#endif
