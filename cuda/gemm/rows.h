/* SPDX-License-Identifier: Apache-2.0
 * rows.h - inside the library: a row copied to all rows of a matrix, and the sum of the rows of a matrix. */
#ifndef LATH_CUDA_GEMM_ROWS_H
#define LATH_CUDA_GEMM_ROWS_H

#include "lath_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Each row of c (rows, cols) = row (cols). A cudaError_t, as the others. */
int lath_cuda_fill_rows(lath_dtype dtype, int64_t rows, int64_t cols, const void *row, void *c, int64_t s_c, void *stream);

/* sums (cols) = the sum of the rows of a (rows, cols). `partial` holds lath_cuda_sum_rows_parts(...) * cols elements of
 * lath_sum_type(dtype). The order of additions is fixed by the shape and by the number of multiprocessors. */
int64_t lath_cuda_sum_rows_parts(int64_t rows, int64_t cols, int multiprocessors);
int lath_cuda_sum_rows(lath_dtype dtype, int64_t rows, int64_t cols, const void *a, int64_t s_a, void *sums, void *partial,
                       int multiprocessors, void *stream);

/* The second of its two steps: sums (cols) = the sum of the rows of partial (parts, cols), of lath_sum_type(dtype), rounded to dtype. */
int lath_cuda_add_parts(lath_dtype dtype, int64_t parts, int64_t cols, const void *partial, void *sums, void *stream);

#ifdef __cplusplus
}
#endif
#endif
