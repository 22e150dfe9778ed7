/* SPDX-License-Identifier: Apache-2.0
 *
 * allocations.cc - device memory.
 *
 * Without a sanitizer each allocation ends at a page without access, and all of them are closed to the host except while a
 * kernel, a copy or a library runs: what touches them then, or passes their end, is named by the signal handler. A sanitizer
 * has its own means, so there they come from the heap. New memory is NaN.
 */
#include "allocations.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sanitizers.h"
#include "state.h"

enum { HEAP_ALIGNMENT = 256, ALIGNMENT = 16, PAGE = 4096, MOST = 4096, SIGNAL_STACK = 64 * 1024 };

struct allocation {
  unsigned char *pages; /* then the page without access */
  size_t pages_bytes;
  unsigned char *data;
  size_t bytes;
};

static struct allocation allocations[MOST];
static int count, opened;

static bool on_heap(void) { return __asan_loadN || __tsan_create_fiber; }

static void protect(const struct allocation *a, int access) {
  if (mprotect(a->pages, a->pages_bytes, access)) abort();
}

void emulator_open_memory(void) {
  if (opened++ == 0)
    for (int i = 0; i < count; i++) protect(&allocations[i], PROT_READ | PROT_WRITE);
}

void emulator_close_memory(void) {
  if (--opened == 0)
    for (int i = 0; i < count; i++) protect(&allocations[i], PROT_NONE);
}

/* ---- faults -------------------------------------------------------------------------------------------------------------- */

static void explain(const unsigned char *address) {
  const emulator_site site = {"device memory", 0};
  for (int i = 0; i < count; i++) {
    const struct allocation *a = &allocations[i];
    if (address < a->pages || address >= a->pages + a->pages_bytes + PAGE) continue;
    if (address >= a->data + a->bytes)
      emulator_refuse(site, "access %zd bytes past the end of %zu bytes", address - (a->data + a->bytes), a->bytes);
    emulator_refuse(site, "the host touches byte %zd of %zu bytes", address - a->data, a->bytes);
  }
  if (emulator_is_stack_guard(address)) emulator_refuse(site, "the thread needs more stack than it has");
}

static void on_fault(int number, siginfo_t *info, void *) {
  signal(number, SIG_DFL);
  explain((const unsigned char *)info->si_addr);
}

void emulator_watch_faults(void) {
  static unsigned char stack[SIGNAL_STACK];
  static bool watching;
  struct sigaction action;
  if (watching || on_heap()) return;
  watching = true;
  const stack_t signal_stack = {stack, 0, sizeof(stack)};
  memset(&action, 0, sizeof(action));
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  if (sigaltstack(&signal_stack, nullptr) || sigaction(SIGSEGV, &action, nullptr)) abort();
}

/* ---- allocation ---------------------------------------------------------------------------------------------------------- */

static bool map(struct allocation *a, size_t bytes) {
  const size_t whole = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  a->pages_bytes = (whole + PAGE - 1) / PAGE * PAGE;
  void *pages = mmap(nullptr, a->pages_bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) return false;
  a->pages = (unsigned char *)pages;
  a->data = a->pages + a->pages_bytes - whole;
  a->bytes = bytes;
  memset(pages, 0xff, a->pages_bytes);
  if (mprotect(a->pages + a->pages_bytes, PAGE, PROT_NONE)) abort();
  return true;
}

void *emulator_allocate(size_t bytes) {
  void *heap = nullptr;
  if (on_heap()) return posix_memalign(&heap, HEAP_ALIGNMENT, bytes) ? nullptr : memset(heap, 0xff, bytes);
  emulator_watch_faults();
  if (count == MOST || !map(&allocations[count], bytes)) return nullptr;
  struct allocation *a = &allocations[count++];
  if (!opened) protect(a, PROT_NONE);
  return a->data;
}

/* The bytes around the data are as they were. */
static void check_surroundings(const struct allocation *a) {
  protect(a, PROT_READ);
  for (unsigned char *byte = a->pages; byte < a->pages + a->pages_bytes; byte++)
    if (*byte != 0xff && (byte < a->data || byte >= a->data + a->bytes))
      emulator_refuse({"cudaFree", 0}, "somebody wrote %zd bytes from the beginning of %zu bytes", byte - a->data, a->bytes);
}

bool emulator_free(void *data) {
  if (on_heap() || !data) {
    free(data);
    return true;
  }
  for (int i = 0; i < count; i++) {
    struct allocation *a = &allocations[i];
    if (a->data != data) continue;
    check_surroundings(a);
    munmap(a->pages, a->pages_bytes + PAGE);
    *a = allocations[--count];
    return true;
  }
  return false;
}
