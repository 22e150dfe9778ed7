/* SPDX-License-Identifier: Apache-2.0
 * kernels_avx2.c - the kernel templates, compiled for one instruction set. */
#include "gemm/vec_avx2.h"

#include "gemm/kernels.inc"
