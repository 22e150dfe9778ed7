/* SPDX-License-Identifier: Apache-2.0
 *
 * scheduler.cc - the order in which the threads of a block run.
 *
 * Each warp runs as far ahead of the others as it can, so that a missing barrier meets the worst case: other warps have not
 * begun, or are done. A lockstep order would hide such bugs. Seeds permute lanes, warps and blocks.
 */
#include <string.h>

#include "sanitizers.h"
#include "state.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

struct emulator_grid emulator_grid;
struct emulator_thread emulator_threads[EMULATOR_MAX_THREADS];

static uint32_t seed;
static uint64_t random_state;
static uint32_t warp_order[EMULATOR_MAX_WARPS], lane_order[EMULATOR_LANES];

void emulator_order(unsigned new_seed) {
  seed = new_seed;
  random_state = new_seed;
}

int emulator_orders(void) { return __tsan_create_fiber ? 1 : 4; }

/* A linear congruential generator; its high bits are good enough to shuffle with. */
uint32_t emulator_random(uint32_t below) {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)((random_state >> 32) * below >> 32);
}

void emulator_arrange(uint32_t *order, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) order[i] = seed == 1 ? n - 1 - i : i;
  if (seed <= 1) return;
  for (uint32_t i = n; i > 1; i--) {
    const uint32_t j = emulator_random(i), last = order[i - 1];
    order[i - 1] = order[j];
    order[j] = last;
  }
}

static void arrange_threads(void) {
  emulator_arrange(warp_order, emulator_grid.threads / EMULATOR_LANES);
  emulator_arrange(lane_order, EMULATOR_LANES);
}

void emulator_begin_thread(void) {
  emulator_grid.call(emulator_grid.body);
  emulator_check_copies();
  emulator_release(&emulator_grid.end_tag);
  emulator_current()->where = EMULATOR_RETURNED;
  emulator_grid.warp[emulator_grid.current / EMULATOR_LANES].returned |= 1u << emulator_lane();
  emulator_grid.returned++;
}

static void run_warp(unsigned warp) {
  bool progress = true;
  while (progress) {
    progress = false;
    for (unsigned i = 0; i < EMULATOR_LANES; i++) {
      const unsigned thread = warp * EMULATOR_LANES + lane_order[i];
      if (emulator_threads[thread].where != EMULATOR_READY) continue;
      threadIdx = emulator_threads[thread].index;
      emulator_enter_fiber(thread);
      progress = true;
    }
  }
}

/* No thread can run. Where all that are left wait at a barrier, it opens; else nobody will ever complete a warp operation. */
static void resolve(void) {
  const unsigned left = emulator_grid.threads - emulator_grid.returned;
  if (emulator_grid.at_barrier == left) {
    emulator_release_barrier();
    arrange_threads();
    return;
  }
  for (unsigned i = 0; i < emulator_grid.threads; i++) {
    const struct emulator_thread *thread = &emulator_threads[i];
    if (thread->where != EMULATOR_AT_WARP) continue;
    emulator_grid.current = i;
    emulator_refuse(thread->site, "deadlock: %s of mask %08x never completes", thread->operation, thread->mask);
  }
}

static void reset_threads(void) {
  for (unsigned i = 0; i < emulator_grid.threads; i++) {
    struct emulator_thread *thread = &emulator_threads[i];
    thread->index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    thread->where = EMULATOR_READY;
    thread->commits = thread->copies = 0;
  }
}

void emulator_run_block(void) {
  emulator_grid.returned = emulator_grid.at_barrier = emulator_grid.phase = 0;
  emulator_grid.predicates[0] = 0;
  emulator_forget_order(emulator_grid.barrier_tag, sizeof(emulator_grid.barrier_tag));
  emulator_forget_order(emulator_grid.warp, sizeof(emulator_grid.warp));
  memset(emulator_grid.warp, 0, sizeof(emulator_grid.warp));
  emulator_prepare_shared();
  reset_threads();
  emulator_start_fibers();
  arrange_threads();
  for (;;) {
    for (unsigned i = 0; i < emulator_grid.threads / EMULATOR_LANES; i++) run_warp(warp_order[i]);
    if (emulator_grid.returned == emulator_grid.threads) break;
    resolve();
  }
  emulator_end_fibers();
}
