/* SPDX-License-Identifier: Apache-2.0
 *
 * copies.cc - cp.async: the target is poisoned at once, and filled by the wait.
 *
 * Both are the worst that CUDA allows: whoever reads before the wait, or writes the source in between, does not get away with
 * it.
 */
#include <string.h>

#include "sanitizers.h"
#include "state.h"

enum { WHOLE = 16 };

static bool aligned(const void *address) { return (uintptr_t)address % WHOLE == 0; }

void emulator_copy_start(void *to, const void *from, int bytes, emulator_site site) {
  struct emulator_thread *thread = emulator_current();
  if (!aligned(to) || !aligned(from)) emulator_refuse(site, "cp.async: %p to %p is not aligned to %d bytes", from, to, WHOLE);
  if (bytes < 0 || bytes > WHOLE) emulator_refuse(site, "cp.async of %d bytes", bytes);
  if (!emulator_is_shared(to, WHOLE)) emulator_refuse(site, "cp.async: %p is not in shared memory", to);
  if (thread->copies == EMULATOR_MAX_COPIES) emulator_refuse(site, "more than %d cp.async in flight", EMULATOR_MAX_COPIES);
  emulator_writes(to, WHOLE);
  memset(to, 0xff, WHOLE);
  thread->copy[thread->copies++] = {(unsigned char *)to, (const unsigned char *)from, bytes, thread->commits};
}

void emulator_copy_commit(void) { emulator_current()->commits++; }

static void perform(const struct emulator_copy *copy) {
  emulator_reads(copy->from, (size_t)copy->bytes);
  emulator_writes(copy->to, WHOLE);
  for (int i = 0; i < WHOLE; i++) copy->to[i] = i < copy->bytes ? copy->from[i] : 0;
}

void emulator_copy_wait(int pending) {
  struct emulator_thread *thread = emulator_current();
  int kept = 0;
  for (int i = 0; i < thread->copies; i++) {
    if (thread->copy[i].group < thread->commits - pending)
      perform(&thread->copy[i]);
    else
      thread->copy[kept++] = thread->copy[i];
  }
  thread->copies = kept;
}

void emulator_check_copies(void) {
  if (emulator_current()->copies) emulator_refuse({emulator_grid.kernel, 0}, "returns with cp.async in flight");
}
