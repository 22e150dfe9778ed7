/* SPDX-License-Identifier: Apache-2.0
 * kernels_generic.c - the kernel templates, compiled for one instruction set. */
#include "gemm/vec_generic.h"

#include "gemm/kernels.inc"
