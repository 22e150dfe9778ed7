/* SPDX-License-Identifier: Apache-2.0
 * targets_cuda.h - which GPUs liblath_cuda.so holds code for; the build says so. */
#ifndef LATH_TARGETS_CUDA_H
#define LATH_TARGETS_CUDA_H

#include "lath.h"

/* As "sm_80, sm_90 and PTX of compute_90". */
LATH_API const char *lath_cuda_targets(void);

#endif
