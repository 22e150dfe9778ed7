/* SPDX-License-Identifier: Apache-2.0
 * fibers.cc - a stack for each CUDA thread, with a page without access below it, and the switch between stacks. */
#include <stdlib.h>
#include <sys/mman.h>

#include "sanitizers.h"
#include "state.h"

#if !defined(__x86_64__)
#error "the stack switch is written for x86-64 only"
#endif

enum { STACK = 64 * 1024, GUARD = 4096, SAVED_REGISTERS = 6 };

struct fiber {
  void *top;   /* stack pointer while it is not running */
  char *stack; /* lowest usable byte; mapped once, kept for the next block */
  void *asan, *tsan;
};

static struct fiber fibers[EMULATOR_MAX_THREADS];
static struct {
  void *top, *asan, *tsan;
  const void *stack;
  size_t stack_bytes;
} scheduler;

/* Saves what a called function must keep, and continues on the other stack. */
extern "C" void emulator_switch_stack(void **save, void *load);
asm(R"(
    .text
    .type emulator_switch_stack, @function
emulator_switch_stack:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
    .size emulator_switch_stack, . - emulator_switch_stack
)");

static void fiber_main(void) {
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.stack_bytes);
  emulator_begin_thread();
  emulator_leave_fiber();
  abort(); /* a thread that has returned is not entered again */
}

static void map_stack(struct fiber *fiber) {
  void *base = mmap(nullptr, GUARD + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED || mprotect(base, GUARD, PROT_NONE)) abort();
  fiber->stack = (char *)base + GUARD;
}

static void start(struct fiber *fiber) {
  if (!fiber->stack) map_stack(fiber);
  void **top = (void **)(fiber->stack + STACK) - 2; /* where ret finds fiber_main, with the alignment of a call */
  *top = (void *)fiber_main;
  fiber->top = top - SAVED_REGISTERS;
  emulator_forget(fiber->stack, STACK);
  if (emulator_grid.tracked) fiber->tsan = __tsan_create_fiber(0);
}

void emulator_start_fibers(void) {
  if (emulator_grid.tracked) scheduler.tsan = __tsan_get_current_fiber();
  for (unsigned i = 0; i < emulator_grid.threads; i++) start(&fibers[i]);
}

/* The sanitizer gives the name of a fiber that ended to a new one, and takes what both do for ordered. A random order keeps
 * thread i of the next block from being thread i of this one. */
void emulator_end_fibers(void) {
  uint32_t order[EMULATOR_MAX_THREADS];
  if (!emulator_grid.tracked) return;
  for (uint32_t i = 0; i < emulator_grid.threads; i++) order[i] = i;
  for (uint32_t i = emulator_grid.threads; i > 0; i--) {
    const uint32_t j = emulator_random(i), thread = order[j];
    order[j] = order[i - 1];
    __tsan_destroy_fiber(fibers[thread].tsan);
  }
}

bool emulator_is_stack_guard(const void *address) {
  for (unsigned i = 0; i < EMULATOR_MAX_THREADS; i++)
    if (fibers[i].stack && address >= fibers[i].stack - GUARD && address < fibers[i].stack) return true;
  return false;
}

void emulator_enter_fiber(unsigned thread) {
  struct fiber *fiber = &fibers[thread];
  emulator_grid.current = thread;
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&scheduler.asan, fiber->stack, STACK);
  if (emulator_grid.tracked) __tsan_switch_to_fiber(fiber->tsan, 1); /* 1: the switch orders nothing */
  emulator_switch_stack(&scheduler.top, fiber->top);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(scheduler.asan, nullptr, nullptr);
}

void emulator_leave_fiber(void) {
  struct fiber *fiber = &fibers[emulator_grid.current];
  const bool returned = emulator_current()->where == EMULATOR_RETURNED;
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(returned ? nullptr : &fiber->asan, scheduler.stack, scheduler.stack_bytes);
  if (emulator_grid.tracked) __tsan_switch_to_fiber(scheduler.tsan, 1);
  emulator_switch_stack(&fiber->top, scheduler.top);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fiber->asan, nullptr, nullptr);
}
