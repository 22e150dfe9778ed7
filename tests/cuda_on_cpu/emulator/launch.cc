/* SPDX-License-Identifier: Apache-2.0
 * launch.cc - one launch: the checks that a GPU makes, then block after block; and how the engine says no. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "allocations.h"
#include "runtime.h"
#include "sanitizers.h"
#include "state.h"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

enum { SHARED_WITHOUT_ASKING = 48 * 1024, SHARED_ALIGNMENT = 128, LARGEST_GRID_YZ = 65535 };

static long launches;

long emulator_launches(void) { return launches; }

void emulator_refuse(emulator_site site, const char *format, ...) {
  va_list arguments;
  fprintf(stderr, "%s:%d: ", site.file, site.line);
  if (emulator_grid.kernel) {
    const uint3 block = blockIdx, thread = emulator_current()->index;
    fprintf(stderr, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u): ", emulator_grid.kernel, block.x, block.y, block.z,
            thread.x, thread.y, thread.z);
  }
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  abort();
}

static void check(const char *name, const void *kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  const emulator_site site = {name, 0};
  const uint64_t threads = (uint64_t)block.x * block.y * block.z;
  if (emulator_grid.kernel) emulator_refuse(site, "launched from a kernel");
  if (threads == 0 || threads % EMULATOR_LANES || threads > EMULATOR_MAX_THREADS || block.z > 64)
    emulator_refuse(site, "a block of (%u, %u, %u) threads", block.x, block.y, block.z);
  if (!grid.x || !grid.y || !grid.z || grid.x > INT32_MAX || grid.y > LARGEST_GRID_YZ || grid.z > LARGEST_GRID_YZ)
    emulator_refuse(site, "a grid of (%u, %u, %u) blocks", grid.x, grid.y, grid.z);
  if (shared_bytes > SHARED_WITHOUT_ASKING && shared_bytes > emulator_shared_limit(kernel))
    emulator_refuse(site, "%zu bytes of dynamic shared memory, not allowed by cudaFuncSetAttribute", shared_bytes);
}

/* Exactly as long as asked for, so that the address sanitizer sees its end. */
static void *allocate_shared(size_t bytes) {
  void *memory = nullptr;
  if (bytes && posix_memalign(&memory, SHARED_ALIGNMENT, bytes)) abort();
  return memory;
}

static void run_blocks(unsigned tracked) {
  const uint64_t count = (uint64_t)gridDim.x * gridDim.y * gridDim.z;
  uint32_t *order = (uint32_t *)malloc(count * sizeof(*order));
  if (!order || count > UINT32_MAX) abort();
  emulator_arrange(order, (uint32_t)count);
  for (uint64_t i = 0; i < count; i++) {
    const uint32_t block = order[i];
    blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
    emulator_grid.tracked = i < tracked;
    if (i == tracked) emulator_acquire(&emulator_grid.end_tag); /* the rest comes after what is watched */
    emulator_run_block();
  }
  free(order);
}

void emulator_run_grid(const char *name, const void *kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                       const void *body, void (*call)(const void *body)) {
  (void)stream;
  check(name, kernel, grid, block, shared_bytes);
  if (!emulator_launch_allowed()) return;
  launches++;
  emulator_grid.kernel = name;
  emulator_grid.body = body;
  emulator_grid.call = call;
  emulator_grid.threads = block.x * block.y * block.z;
  emulator_grid.dynamic = allocate_shared(shared_bytes);
  emulator_grid.dynamic_bytes = shared_bytes;
  emulator_grid.current = 0;
  blockDim = block;
  gridDim = grid;
  emulator_watch_faults();
  emulator_open_memory();
  run_blocks(emulator_blocks_to_track(kernel, grid, block, shared_bytes));
  emulator_close_memory();
  emulator_acquire(&emulator_grid.end_tag); /* what comes after the launch sees what it wrote */
  free(emulator_grid.dynamic);
  emulator_grid.dynamic = nullptr;
  emulator_grid.dynamic_bytes = 0;
  emulator_grid.kernel = nullptr;
}
