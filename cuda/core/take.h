/* SPDX-License-Identifier: Apache-2.0
 * take.h - inside the library: buffers of a workspace in device memory, in any element type. */
#ifndef LATH_CUDA_CORE_TAKE_H
#define LATH_CUDA_CORE_TAKE_H

#include "core/arena.h"
#include "core/device.h"

/* (rows, cols) elements on a cache line of their own; NULL while counting. Their bytes fit: the extents were checked. */
static inline void *lath_cuda_take(struct lath_arena *arena, lath_dtype dtype, int64_t rows, int64_t cols) {
  const int64_t bytes = rows * cols * (int64_t)lath_dtype_size(dtype);
  return lath_take(arena, 1, lath_blocks(bytes, sizeof(float)));
}

/* The answer of a query; 0 when nothing was taken. */
static inline lath_status lath_cuda_taken(const struct lath_arena *arena, size_t *bytes) {
  const struct lath_arena untouched = lath_arena_on(NULL);
  if (arena->used != untouched.used) return lath_arena_bytes(arena, 0, bytes);
  *bytes = 0;
  return LATH_OK;
}

#endif
