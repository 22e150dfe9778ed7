/* SPDX-License-Identifier: Apache-2.0
 * kernels_avx512.c - the kernel templates, compiled for one instruction set. */
#include "gemm/vec_avx512.h"

#include "gemm/kernels.inc"
