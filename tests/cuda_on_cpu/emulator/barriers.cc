/* SPDX-License-Identifier: Apache-2.0
 * barriers.cc - __syncthreads and __threadfence, and the refusal of a barrier that not every thread of the block reaches. */
#include <string.h>

#include "sanitizers.h"
#include "state.h"

int emulator_barrier(bool predicate, emulator_site site) {
  struct emulator_thread *thread = emulator_current();
  const unsigned phase = emulator_grid.phase;
  emulator_release(&emulator_grid.barrier_tag[phase]);
  emulator_grid.predicates[phase] += predicate;
  emulator_grid.at_barrier++;
  thread->where = EMULATOR_AT_BARRIER;
  thread->site = site;
  emulator_leave_fiber();
  emulator_acquire(&emulator_grid.barrier_tag[phase]);
  return emulator_grid.predicates[phase];
}

static void check(const struct emulator_thread *thread, const struct emulator_thread *waiting) {
  const emulator_site site = waiting->site;
  if (thread->where == EMULATOR_RETURNED)
    emulator_refuse(site, "barrier, but thread (%u, %u, %u) has returned", thread->index.x, thread->index.y, thread->index.z);
  if (thread->site.line != site.line || strcmp(thread->site.file, site.file))
    emulator_refuse(site, "barrier, but thread (%u, %u, %u) is at another one, %s:%d", thread->index.x, thread->index.y,
                    thread->index.z, thread->site.file, thread->site.line);
}

void emulator_release_barrier(void) {
  unsigned first = 0;
  while (emulator_threads[first].where != EMULATOR_AT_BARRIER) first++;
  emulator_grid.current = first;
  for (unsigned i = 0; i < emulator_grid.threads; i++) check(&emulator_threads[i], &emulator_threads[first]);
  for (unsigned i = 0; i < emulator_grid.threads; i++) emulator_threads[i].where = EMULATOR_READY;
  emulator_grid.at_barrier = 0;
  emulator_grid.phase ^= 1;
  emulator_grid.predicates[emulator_grid.phase] = 0;
}

/* One tag for all fences of a grid: two threads that both pass a fence are ordered, whatever they did between. Weaker than the
 * hardware's rule, which also wants a store seen by a load; so it can hide a race, and never invents one. */
void emulator_fence(void) {
  emulator_acquire(&emulator_grid.fence_tag);
  emulator_release(&emulator_grid.fence_tag);
}
