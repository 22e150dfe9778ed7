/* SPDX-License-Identifier: Apache-2.0
 * targets_cuda.c - which GPUs liblath_cuda.so holds code for. */
#include "targets_cuda.h"

const char *lath_cuda_targets(void) { return LATH_CUDA_TARGETS; }
