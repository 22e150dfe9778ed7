/* SPDX-License-Identifier: Apache-2.0
 *
 * tracking.cc - what the thread sanitizer watches.
 *
 * A fiber of the sanitizer takes 0.4 ms to make, and each thread of each block needs its own: too much for every launch of a
 * large test. So it watches some launches of each kernel at each shape, and in them some blocks. The others run as if they were
 * the host: in order with everything, so they can neither race nor hide a race between those that are watched.
 */
#include "sanitizers.h"
#include "state.h"

enum { SHAPES = 1 << 14, LAUNCHES = 2, BLOCKS = 4 };

struct shape {
  uint64_t key; /* 0: free */
  int launches;
};

static struct shape shapes[SHAPES];

static uint64_t mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
  return hash ^ hash >> 32;
}

static uint64_t key_of(const void *kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t values[] = {(uint64_t)(uintptr_t)kernel, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared_bytes};
  uint64_t key = 1;
  for (const uint64_t value : values) key = mix(key, value);
  return key | 1;
}

unsigned emulator_blocks_to_track(const void *kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t key = key_of(kernel, grid, block, shared_bytes);
  if (!__tsan_create_fiber) return 0;
  for (int i = 0; i < SHAPES; i++) {
    struct shape *shape = &shapes[(key + (uint64_t)i) % SHAPES];
    if (shape->key && shape->key != key) continue;
    shape->key = key;
    return shape->launches++ < LAUNCHES ? BLOCKS : 0;
  }
  return BLOCKS;
}
