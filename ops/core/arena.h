/* SPDX-License-Identifier: Apache-2.0
 * arena.h - cutting one workspace into buffers.
 *
 * Each entry has one function that takes its buffers from an arena. The query runs it on an arena without memory and reports what was
 * used; the entry runs it on the caller's workspace. The two cannot disagree. */
#ifndef LATH_CORE_ARENA_H
#define LATH_CORE_ARENA_H

#include "lath.h"

#define LATH_CACHE_LINE 64
#define LATH_ARENA_OVERFLOW SIZE_MAX

struct lath_arena {
  char *base;  /* NULL while counting */
  size_t used; /* LATH_ARENA_OVERFLOW once a size did not fit */
};

static inline struct lath_arena lath_arena_on(void *workspace) {
  return (struct lath_arena){workspace, workspace ? (size_t)(-(uintptr_t)workspace % LATH_CACHE_LINE) : LATH_CACHE_LINE};
}

/* rows * cols floats on cache lines of their own; NULL while counting. */
static inline float *lath_take(struct lath_arena *arena, int64_t rows, int64_t cols) {
  char *at = arena->base ? arena->base + arena->used : NULL;
  size_t bytes;
  if (__builtin_mul_overflow((size_t)rows, (size_t)cols, &bytes) || __builtin_mul_overflow(bytes, sizeof(float), &bytes) ||
      __builtin_add_overflow(bytes, LATH_CACHE_LINE - 1, &bytes) ||
      __builtin_add_overflow(bytes / LATH_CACHE_LINE * LATH_CACHE_LINE, arena->used, &arena->used))
    arena->used = LATH_ARENA_OVERFLOW;
  return (float *)(void *)at;
}

/* Where an output is summed up in float: itself, room for it when it is stored in another type, or NULL when it is. */
static inline float *lath_take_sum(struct lath_arena *arena, lath_dtype dtype, void *output, int64_t count) {
  return !output || dtype == LATH_F32 ? output : lath_take(arena, 1, count);
}

static inline int64_t *lath_take_integers(struct lath_arena *arena, int64_t count) {
  return (int64_t *)(void *)lath_take(arena, count, sizeof(int64_t) / sizeof(float));
}

/* Room for what `other`, a copy of an earlier state of this arena, has used since: the two share memory one after the other. */
static inline void lath_arena_cover(struct lath_arena *arena, const struct lath_arena *other) {
  if (other->used > arena->used) arena->used = other->used;
}

/* The answer of a query: what was used, but `least` or more. */
static inline lath_status lath_arena_bytes(const struct lath_arena *arena, size_t least, size_t *bytes) {
  if (arena->used > PTRDIFF_MAX) return LATH_SIZE_OVERFLOW;
  *bytes = arena->used > least ? arena->used : least;
  return LATH_OK;
}

/* The doubles that the plain loops work on: the workspace from its first address that suits them. */
static inline double *lath_doubles(void *workspace) {
  const uintptr_t mask = _Alignof(double) - 1;
  return (double *)(((uintptr_t)workspace + mask) & ~mask);
}

#endif
