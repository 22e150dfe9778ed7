/* SPDX-License-Identifier: Apache-2.0
 *
 * sanitizers.h - what the engine tells the address and thread sanitizers: which stack is in use, which fiber runs, what orders
 * memory, what is touched.
 *
 * The engine itself is built without them; the hooks are weak, and null where no sanitizer is linked. For the thread sanitizer
 * each CUDA thread of each block is a fiber of its own, so accesses of two blocks, too, are ordered only by what CUDA says
 * orders them. Interfaces: sanitizer/common_interface_defs.h, tsan_interface.h, asan_interface.h of the compiler.
 */
#ifndef LATH_TESTS_CUDA_ON_CPU_SANITIZERS_H
#define LATH_TESTS_CUDA_ON_CPU_SANITIZERS_H

#include <stddef.h>

#define EMULATOR_WEAK __attribute__((weak))
extern "C" {
EMULATOR_WEAK void __sanitizer_start_switch_fiber(void **save, const void *bottom, size_t size);
EMULATOR_WEAK void __sanitizer_finish_switch_fiber(void *save, const void **bottom, size_t *size);
EMULATOR_WEAK void __asan_loadN(size_t address, size_t bytes);
EMULATOR_WEAK void __asan_storeN(size_t address, size_t bytes);
EMULATOR_WEAK void *__tsan_get_current_fiber(void);
EMULATOR_WEAK void *__tsan_create_fiber(unsigned flags);
EMULATOR_WEAK void __tsan_destroy_fiber(void *fiber);
EMULATOR_WEAK void __tsan_switch_to_fiber(void *fiber, unsigned flags);
EMULATOR_WEAK void __tsan_acquire(void *tag);
EMULATOR_WEAK void __tsan_release(void *tag);
EMULATOR_WEAK void __tsan_read_range(void *address, size_t bytes);
EMULATOR_WEAK void __tsan_write_range(void *address, size_t bytes);
EMULATOR_WEAK void __tsan_java_alloc(void *address, size_t bytes); /* forgets the accesses to this memory so far */
EMULATOR_WEAK void __tsan_java_free(void *address, size_t bytes);  /* and what was ordered through it */
EMULATOR_WEAK void AnnotateIgnoreReadsBegin(const char *file, int line);
EMULATOR_WEAK void AnnotateIgnoreReadsEnd(const char *file, int line);
EMULATOR_WEAK void AnnotateIgnoreWritesBegin(const char *file, int line);
EMULATOR_WEAK void AnnotateIgnoreWritesEnd(const char *file, int line);
}

/* What was done before a release of the tag is visible to whoever acquires it later. */
static inline void emulator_release(void *tag) {
  if (__tsan_release) __tsan_release(tag);
}
static inline void emulator_acquire(void *tag) {
  if (__tsan_acquire) __tsan_acquire(tag);
}

/* The current thread reads or writes memory by way of the engine. */
static inline void emulator_reads(const void *address, size_t bytes) {
  if (__asan_loadN && bytes) __asan_loadN((size_t)address, bytes);
  if (__tsan_read_range && bytes) __tsan_read_range(const_cast<void *>(address), bytes);
}
static inline void emulator_writes(void *address, size_t bytes) {
  if (__asan_storeN && bytes) __asan_storeN((size_t)address, bytes);
  if (__tsan_write_range && bytes) __tsan_write_range(address, bytes);
}

/* Accesses between begin and end are of registers, not of memory. */
static inline void emulator_registers_begin(void) {
  if (!AnnotateIgnoreReadsBegin) return;
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}
static inline void emulator_registers_end(void) {
  if (!AnnotateIgnoreReadsEnd) return;
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}

#endif
