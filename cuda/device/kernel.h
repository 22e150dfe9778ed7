/* SPDX-License-Identifier: Apache-2.0
 *
 * kernel.h - what every .cu file includes: the CUDA language under nvcc, its emulation under a host compiler.
 *
 * The same kernel source is compiled twice: by nvcc for the GPU, and as C++ for tests/cuda_on_cpu, where one fiber stands for
 * each CUDA thread. cuda/README.md has the rules that make this possible.
 *
 *   LATH_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)   a launch; template kernels go in parentheses
 *   LATH_DYNAMIC_SHARED(type, name)                                        `type *name`, aligned to 128 bytes
 */
#ifndef LATH_CUDA_DEVICE_KERNEL_H
#define LATH_CUDA_DEVICE_KERNEL_H

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#define LATH_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, (cudaStream_t)(stream)>>>(__VA_ARGS__)

#define LATH_DYNAMIC_SHARED(type, name)                                 \
  extern __shared__ __align__(128) unsigned char lath_dynamic_shared[]; \
  type *name = reinterpret_cast<type *>(lath_dynamic_shared)

#else

#include "emulator.h"

#define LATH_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  emulator_launch(#kernel, grid, block, (size_t)(shared_bytes), (cudaStream_t)(stream), kernel, __VA_ARGS__)

#define LATH_DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(emulator_dynamic_shared())

#endif
#endif
