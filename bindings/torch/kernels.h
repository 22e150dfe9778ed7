/* SPDX-License-Identifier: Apache-2.0
 * kernels.h - the boxed entries of every operator of operators.h: what operators_*.c register and the op_*.c files define. */
#ifndef LATH_KERNELS_H
#define LATH_KERNELS_H

#include "operators.h"
#include "shim.h"

#define KERNELS_DECLARE(name, schema, key, entry) void entry(StableIValue *, uint64_t, uint64_t);
LATH_OPERATORS(KERNELS_DECLARE)
LATH_CUDA_OPERATORS(KERNELS_DECLARE)
#undef KERNELS_DECLARE

#endif
