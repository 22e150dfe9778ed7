/* SPDX-License-Identifier: Apache-2.0
 * frobenius.h - inside the library: the element-wise steps of the Frobenius decay. */
#ifndef LATH_CUDA_LOWRANK_FROBENIUS_H
#define LATH_CUDA_LOWRANK_FROBENIUS_H

#include "lath_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* value = < a, b > over count elements. `sums` is F32 or F64, the type of all but `partial`, which holds
 * LATH_FROBENIUS_PARTS doubles. A cudaError_t, as below. */
#define LATH_FROBENIUS_PARTS 256
int lath_cuda_dot(lath_dtype sums, int64_t count, const void *a, const void *b, void *value, void *partial, void *stream);

/* scaled = 2 *scale gram */
int lath_cuda_scale(lath_dtype sums, int64_t count, const void *gram, const void *scale, void *scaled, void *stream);

#ifdef __cplusplus
}
#endif
#endif
