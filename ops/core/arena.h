/* SPDX-License-Identifier: Apache-2.0
 * arena.h - cutting one workspace into buffers.
 *
 * Each entry has one function that takes its buffers from an arena. The query runs it on an arena without memory and reports what was
 * used; the entry runs it on the caller's workspace. The two cannot disagree. */
#ifndef LATH_CORE_ARENA_H
#define LATH_CORE_ARENA_H

#include <stddef.h>
#include <stdint.h>

#define LATH_CACHE_LINE 64

struct lath_arena {
  char *base; /* NULL while counting */
  size_t used;
};

static inline struct lath_arena lath_arena_on(void *workspace) {
  return (struct lath_arena){(char *)workspace,
                             workspace ? (size_t)(-(uintptr_t)workspace % LATH_CACHE_LINE) : LATH_CACHE_LINE};
}

/* `count` floats on a cache line of their own; NULL while counting. */
static inline float *lath_take(struct lath_arena *arena, int64_t count) {
  char *at = arena->base ? arena->base + arena->used : NULL;
  arena->used += ((size_t)count * sizeof(float) + LATH_CACHE_LINE - 1) / LATH_CACHE_LINE * LATH_CACHE_LINE;
  return (float *)(void *)at;
}

#endif
