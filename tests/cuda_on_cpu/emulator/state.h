/* SPDX-License-Identifier: Apache-2.0
 * state.h - inside the engine: the threads of the block that runs, and what the files of the engine ask of each other. */
#ifndef LATH_TESTS_CUDA_ON_CPU_STATE_H
#define LATH_TESTS_CUDA_ON_CPU_STATE_H

#include <stdint.h>

#include "control.h"
#include "engine.h"

enum { EMULATOR_LANES = 32, EMULATOR_MAX_THREADS = 1024, EMULATOR_MAX_WARPS = 32, EMULATOR_MAX_COPIES = 256 };

enum emulator_where { EMULATOR_READY, EMULATOR_AT_BARRIER, EMULATOR_AT_WARP, EMULATOR_RETURNED };

struct emulator_copy {
  unsigned char *to;
  const unsigned char *from;
  int bytes;
  long group; /* the commit that closes it, counted from 0 */
};

/* One CUDA thread. */
struct emulator_thread {
  uint3 index;
  emulator_where where;
  emulator_site site; /* of the barrier or warp operation that it waits at */
  const char *operation;
  unsigned mask;
  void *argument;
  long commits;
  int copies; /* in flight */
  struct emulator_copy copy[EMULATOR_MAX_COPIES];
};

struct emulator_warp {
  uint64_t tag;               /* what orders memory */
  unsigned waiting, returned; /* lanes */
};

/* The grid that runs. One at a time: a kernel cannot launch another. */
struct emulator_grid {
  const char *kernel; /* its name; NULL between launches */
  const void *body;
  void (*call)(const void *body);
  unsigned threads; /* in a block */
  bool tracked;     /* the thread sanitizer watches this block */
  unsigned current; /* the thread that runs */
  unsigned returned, at_barrier;
  unsigned phase;    /* barriers alternate between two counters */
  int predicates[2]; /* true ones at the barrier */
  void *dynamic;     /* dynamic shared memory */
  size_t dynamic_bytes;
  uint64_t barrier_tag[2], end_tag, fence_tag; /* what orders memory; forgotten 8 bytes at a time */
  struct emulator_warp warp[EMULATOR_MAX_WARPS];
};

extern struct emulator_grid emulator_grid;
extern struct emulator_thread emulator_threads[EMULATOR_MAX_THREADS];

static inline struct emulator_thread *emulator_current(void) { return &emulator_threads[emulator_grid.current]; }

/* fibers.cc: a stack for each thread. */
void emulator_start_fibers(void);           /* for a new block; each begins at the top of the kernel */
void emulator_enter_fiber(unsigned thread); /* runs it until it waits or returns */
void emulator_leave_fiber(void);            /* called on a fiber: back to the scheduler, until it is entered again */
void emulator_end_fibers(void);
bool emulator_is_stack_guard(const void *address);

/* scheduler.cc */
void emulator_run_block(void);
void emulator_begin_thread(void); /* the first thing on a fiber: the kernel, then the checks at its end */
uint32_t emulator_random(uint32_t below);
void emulator_arrange(uint32_t *order, uint32_t n);

/* tracking.cc: how many blocks of this launch the thread sanitizer watches. */
unsigned emulator_blocks_to_track(const void *kernel, dim3 grid, dim3 block, size_t shared_bytes);

/* shared_arrays.cc: the __shared__ arrays of all kernels in the program, and what lies between them. */
struct emulator_range {
  unsigned char *begin;
  size_t bytes;
};
struct emulator_range emulator_find_shared_arrays(void);

/* barriers.cc, warps.cc, copies.cc, memory.cc */
void emulator_release_barrier(void);
void emulator_check_copies(void);
void emulator_prepare_shared(void);                   /* NaN everywhere, and unknown to the thread sanitizer */
void emulator_forget(void *memory, size_t bytes);     /* for the thread sanitizer: nobody has touched this yet */
void emulator_forget_order(void *tags, size_t bytes); /* nothing was released to these tags yet */
size_t emulator_shared_limit(const void *kernel);

#endif
