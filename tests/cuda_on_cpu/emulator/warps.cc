/* SPDX-License-Identifier: Apache-2.0
 * warps.cc - the one primitive behind every warp operation: lanes meet, and the last to arrive computes for all. */
#include <string.h>

#include "sanitizers.h"
#include "state.h"

unsigned emulator_lane(void) { return emulator_grid.current % EMULATOR_LANES; }

static bool equal(const char *a, const char *b) { return a == b || !strcmp(a, b); }

static bool same(const struct emulator_thread *a, const struct emulator_thread *b) {
  return a->mask == b->mask && a->site.line == b->site.line && equal(a->operation, b->operation) &&
         equal(a->site.file, b->site.file);
}

static void check(const struct emulator_thread *mine, const struct emulator_thread *lanes, unsigned lane) {
  const struct emulator_thread *other = &lanes[lane];
  if (!same(other, mine))
    emulator_refuse(mine->site, "%s of mask %08x, but lane %u is in %s of mask %08x at %s:%d", mine->operation, mine->mask,
                    lane, other->operation, other->mask, other->site.file, other->site.line);
}

/* True when every lane of the mask waits here. Until then one of them is compared, then all. */
static bool complete(const struct emulator_warp *warp, const struct emulator_thread *lanes,
                     const struct emulator_thread *mine) {
  const unsigned mask = mine->mask, waiting = warp->waiting & mask, returned = warp->returned & mask;
  if (returned)
    emulator_refuse(mine->site, "%s of mask %08x, but lane %d has returned", mine->operation, mask, __builtin_ctz(returned));
  check(mine, lanes, (unsigned)__builtin_ctz(waiting));
  if (waiting != mask) return false;
  for (unsigned i = 0; i < EMULATOR_LANES; i++)
    if (mask >> i & 1) check(mine, lanes, i);
  return true;
}

static void finish(struct emulator_warp *warp, struct emulator_thread *lanes, unsigned mask, emulator_combine combine) {
  void *argument[EMULATOR_LANES] = {nullptr};
  for (unsigned i = 0; i < EMULATOR_LANES; i++)
    if (mask >> i & 1) argument[i] = lanes[i].argument;
  emulator_registers_begin();
  combine(argument, mask);
  emulator_registers_end();
  warp->waiting &= ~mask;
  for (unsigned i = 0; i < EMULATOR_LANES; i++)
    if (mask >> i & 1) lanes[i].where = EMULATOR_READY;
}

void emulator_warp(unsigned mask, const char *operation, void *mine, emulator_combine combine, bool fence, emulator_site site) {
  const unsigned lane = emulator_lane(), number = emulator_grid.current / EMULATOR_LANES;
  struct emulator_warp *warp = &emulator_grid.warp[number];
  struct emulator_thread *lanes = &emulator_threads[number * EMULATOR_LANES], *self = &lanes[lane];
  if (!(mask >> lane & 1)) emulator_refuse(site, "%s: lane %u is not in its own mask %08x", operation, lane, mask);
  if (fence) emulator_release(&warp->tag);
  self->where = EMULATOR_AT_WARP;
  self->operation = operation;
  self->mask = mask;
  self->argument = mine;
  self->site = site;
  warp->waiting |= 1u << lane;
  if (complete(warp, lanes, self))
    finish(warp, lanes, mask, combine);
  else
    emulator_leave_fiber();
  if (fence) emulator_acquire(&warp->tag);
}

/* ---- shuffles ------------------------------------------------------------------------------------------------------------ */

enum { WIDEST = 16 };

struct exchange {
  unsigned char value[WIDEST], received[WIDEST];
  unsigned source;
  emulator_site site;
};

static void pass_values(void *const lane[32], unsigned mask) {
  for (unsigned i = 0; i < EMULATOR_LANES; i++) {
    if (!(mask >> i & 1)) continue;
    struct exchange *mine = (struct exchange *)lane[i];
    if (mine->source >= EMULATOR_LANES || !(mask >> mine->source & 1))
      emulator_refuse(mine->site, "lane %u reads lane %u, which is not in mask %08x", i, mine->source, mask);
    memcpy(mine->received, ((struct exchange *)lane[mine->source])->value, WIDEST);
  }
}

void emulator_exchange(unsigned mask, const char *operation, void *value, size_t bytes, unsigned source, emulator_site site) {
  struct exchange mine = {{0}, {0}, source, site};
  emulator_registers_begin();
  memcpy(mine.value, value, bytes);
  emulator_registers_end();
  emulator_warp(mask, operation, &mine, pass_values, false, site);
  emulator_registers_begin();
  memcpy(value, mine.received, bytes);
  emulator_registers_end();
}
