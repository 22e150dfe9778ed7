/* SPDX-License-Identifier: Apache-2.0
 *
 * emulator.h - the CUDA kernel language on the CPU: what cuda/device/kernel.h includes where nvcc is not the compiler.
 *
 * A kernel runs with one fiber for each CUDA thread, one block after the other, on the thread that launches it. Types (float4,
 * dim3, __half, __nv_bfloat16) and prototypes of the runtime are those of the CUDA toolkit; nothing of its libraries is used.
 * What a GPU leaves undefined is refused with a message and abort(), poisoned, or visible to a sanitizer: docs/cuda.md.
 */
#ifndef LATH_TESTS_CUDA_ON_CPU_EMULATOR_H
#define LATH_TESTS_CUDA_ON_CPU_EMULATOR_H

#include "arithmetic.h"
#include "atomics.h"
#include "control.h"
#include "engine.h"
#include "language.h"
#include "matrices.h"
#include "warps.h"

#endif
