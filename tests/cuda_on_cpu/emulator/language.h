/* SPDX-License-Identifier: Apache-2.0
 * language.h - keywords, built-in variables, barriers and fences of CUDA C. */
#ifndef LATH_TESTS_CUDA_ON_CPU_LANGUAGE_H
#define LATH_TESTS_CUDA_ON_CPU_LANGUAGE_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <vector_functions.h>

#include "engine.h"

/* Host compilation makes __global__ and __device__ empty already. Blocks run one after the other, so a shared array is a static
 * one. All lie in one section, so that the engine can fill them with NaN before each block. GCC forgets a section attribute
 * when it instantiates a template, but not noinit, which means the section of that name. */
#undef __shared__
#ifdef __clang__
#define __shared__ static __attribute__((section(".noinit")))
#else
#define __shared__ static __attribute__((noinit))
#endif
#undef __launch_bounds__
#define __launch_bounds__(...)

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
enum { warpSize = 32 };

inline void __syncthreads(EMULATOR_SITE) { emulator_barrier(false, site); }
inline int __syncthreads_count(int predicate, EMULATOR_SITE) { return emulator_barrier(predicate != 0, site); }
inline int __syncthreads_or(int predicate, EMULATOR_SITE) { return emulator_barrier(predicate != 0, site) != 0; }
inline int __syncthreads_and(int predicate, EMULATOR_SITE) { return emulator_barrier(predicate == 0, site) == 0; }

inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_SITE) {
  emulator_warp(
      mask, "__syncwarp", nullptr, [](void *const *, unsigned) {}, true, site);
}

inline void __threadfence() { emulator_fence(); }
inline void __threadfence_block() { emulator_fence(); }

#endif
