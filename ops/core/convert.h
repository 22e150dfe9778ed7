/* SPDX-License-Identifier: Apache-2.0
 * convert.h - inside the library: between storage types and the float that the engine works on. */
#ifndef LATH_CORE_CONVERT_H
#define LATH_CORE_CONVERT_H

#include "lath.h"

/* The address of element (row, col) of a row-major matrix. */
const void *lath_at(lath_dtype dtype, const void *data, int64_t stride, int64_t row, int64_t col);

/* copy (rows, cols), with its own row stride, = data. */
void lath_to_float(lath_dtype dtype, int64_t rows, int64_t cols, const void *data, int64_t stride, float *copy, int64_t s_copy);

/* Rows as float: `data` itself for F32, else a copy in `copy` (rows, cols) contiguous. *s is the stride of what is returned. */
const float *lath_as_float(lath_dtype dtype, int64_t rows, int64_t cols, const void *data, int64_t stride, float *copy,
                           int64_t *s);

/* data (rows, cols) = a (rows, cols) contiguous, rounded; nothing to do when they are the same buffer. */
void lath_from_float(lath_dtype dtype, int64_t rows, int64_t cols, const float *a, void *data, int64_t stride);

#endif
