/* SPDX-License-Identifier: Apache-2.0
 * workspace.c - scratch memory for one call, kept for the next. */
#include "workspace.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "pages.h"

/* A larger block goes back to the system at once. */
#define LARGEST_KEPT ((size_t)128 << 20)

/* Stands before the memory that is handed out. */
struct block {
  _Alignas(64) size_t bytes;
};

/* Threads exchange the whole pointer, so a block has one owner at any time. */
static _Atomic(struct block *) kept;

static struct block *allocate(size_t bytes) {
  size_t all;
  if (__builtin_add_overflow(bytes, 2 * sizeof(struct block) - 1, &all)) return NULL;
  struct block *block = aligned_alloc(_Alignof(struct block), all / sizeof *block * sizeof *block);
  if (!block) return NULL;
  pages_advise(block, bytes);
  block->bytes = bytes;
  return block;
}

void *workspace_take(size_t bytes) {
  struct block *block = atomic_exchange(&kept, NULL);
  if (!block || block->bytes < bytes) {
    free(block);
    block = allocate(bytes);
  }
  return block ? block + 1 : NULL;
}

void workspace_give(void *workspace) {
  if (!workspace) return;
  struct block *block = (struct block *)workspace - 1;
  free(block->bytes <= LARGEST_KEPT ? atomic_exchange(&kept, block) : block);
}
