/* SPDX-License-Identifier: Apache-2.0
 * memory.cc - shared memory: NaN before each block, and without a past. */
#include "sanitizers.h"
#include "state.h"

static const struct emulator_range *arrays(void) {
  static const struct emulator_range range = emulator_find_shared_arrays();
  return &range;
}

void *emulator_dynamic_shared(void) { return emulator_grid.dynamic; }

static bool inside(const void *begin, size_t bytes, const void *outer, size_t outer_bytes) {
  const uintptr_t first = (uintptr_t)begin, outer_first = (uintptr_t)outer;
  return outer && first >= outer_first && first - outer_first <= outer_bytes && outer_bytes - (first - outer_first) >= bytes;
}

bool emulator_is_shared(const void *begin, size_t bytes) {
  return inside(begin, bytes, arrays()->begin, arrays()->bytes) ||
         inside(begin, bytes, emulator_grid.dynamic, emulator_grid.dynamic_bytes);
}

void emulator_forget(void *memory, size_t bytes) {
  if (!bytes || !__tsan_java_alloc) return;
  __tsan_java_alloc(memory, bytes);
}

void emulator_forget_order(void *tags, size_t bytes) {
  if (__tsan_java_free) __tsan_java_free(tags, bytes);
}

/* Through volatile: between the arrays lie red zones, which memset of a sanitizer would not pass. */
static void poison(void *memory, size_t bytes) {
  volatile unsigned char *byte = (unsigned char *)memory;
  emulator_forget(memory, bytes);
  for (; bytes && (uintptr_t)byte % sizeof(uint64_t); bytes--) *byte++ = 0xff;
  volatile uint64_t *word = (volatile uint64_t *)byte;
  for (; bytes >= sizeof(uint64_t); bytes -= sizeof(uint64_t)) *word++ = UINT64_MAX;
  for (byte = (volatile unsigned char *)word; bytes; bytes--) *byte++ = 0xff;
}

void emulator_prepare_shared(void) {
  poison(arrays()->begin, arrays()->bytes);
  poison(emulator_grid.dynamic, emulator_grid.dynamic_bytes);
}
