/* SPDX-License-Identifier: Apache-2.0
 *
 * limits.c - what one core of this machine can do: multiply-adds per second for each instruction set, and the rates at which
 * it reads and writes a buffer of a given size. machine.py compiles it at run time and calls it through ctypes:
 *
 *     cc -O2 -ffp-contract=fast -shared -fPIC limits.c
 *
 * Loops are written once, with vector types of the compiler, and instantiated per instruction set. Every function answers the
 * best of several passes: a limit is what the core does when nothing disturbs it.
 */
#define _POSIX_C_SOURCE 200809L

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

enum isa { GENERIC, AVX2, AVX512 };

static double cpu_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Twelve independent chains hide the latency of a multiply-add (4 cycles at 2 per cycle) and fit 16 registers. */
#define CHAINS 12
#define EACH_CHAIN(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define DECLARE_CHAIN(i) floats a##i = factor + (float)i;
#define STEP_CHAIN(i) a##i = a##i * factor + addend;
#define SUM_CHAIN(i) sum += a##i;

#define UNROLLED 8
#define EACH_WORD(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define DECLARE_WORD(i) words s##i = {0};
#define READ_WORD(i) s##i ^= p[k + i];
#define WRITE_WORD(i) p[k + i] = value;
#define SUM_WORD(i) sum ^= s##i;

#define DEFINE_LOOPS(NAME, TARGET, BYTES)                                       \
  TARGET static void multiply_add_##NAME(int64_t steps) {                       \
    typedef float floats __attribute__((vector_size(BYTES)));                   \
    static volatile float one = 0.999999f, small = 1e-6f;                       \
    floats factor = (floats){0} + one, addend = (floats){0} + small, sum = {0}; \
    EACH_CHAIN(DECLARE_CHAIN)                                                   \
    for (int64_t k = 0; k < steps; k++) {                                       \
      EACH_CHAIN(STEP_CHAIN)                                                    \
    }                                                                           \
    EACH_CHAIN(SUM_CHAIN)                                                       \
    __asm__ volatile("" : : "m"(sum));                                          \
  }                                                                             \
  TARGET static void read_##NAME(void *buffer, size_t bytes) {                  \
    typedef uint64_t words __attribute__((vector_size(BYTES)));                 \
    const words *p = buffer;                                                    \
    words sum = {0};                                                            \
    EACH_WORD(DECLARE_WORD)                                                     \
    for (size_t k = 0; k < bytes / BYTES; k += UNROLLED) {                      \
      EACH_WORD(READ_WORD)                                                      \
    }                                                                           \
    EACH_WORD(SUM_WORD)                                                         \
    __asm__ volatile("" : : "m"(sum));                                          \
  }                                                                             \
  TARGET static void write_##NAME(void *buffer, size_t bytes) {                 \
    typedef uint64_t words __attribute__((vector_size(BYTES)));                 \
    static volatile uint64_t content = 0x0123456789abcdefu;                     \
    words *p = buffer, value = (words){0} + content;                            \
    for (size_t k = 0; k < bytes / BYTES; k += UNROLLED) {                      \
      EACH_WORD(WRITE_WORD)                                                     \
    }                                                                           \
    __asm__ volatile("" : : "r"(buffer) : "memory");                            \
  }

DEFINE_LOOPS(generic, , 16)
#if defined(__x86_64__)
DEFINE_LOOPS(avx2, __attribute__((target("avx2,fma"))), 32)
DEFINE_LOOPS(avx512, __attribute__((target("avx512f,fma"))), 64)
#endif

struct loops {
  size_t vector_bytes;
  void (*multiply_add)(int64_t steps);
  void (*read)(void *buffer, size_t bytes);
  void (*write)(void *buffer, size_t bytes);
};

static const struct loops LOOPS[] = {
    {16, multiply_add_generic, read_generic, write_generic},
#if defined(__x86_64__)
    {32, multiply_add_avx2, read_avx2, write_avx2},
    {64, multiply_add_avx512, read_avx512, write_avx512},
#endif
};

/* The best instruction set of this processor, an index of LOOPS. */
int limits_best_isa(void) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return AVX512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
  return GENERIC;
}

/* GFLOP/s of fp32 multiply-adds (two operations each) in registers, tried for about `seconds`. */
double limits_multiply_add(int isa, double seconds) {
  const struct loops *loops = &LOOPS[isa];
  const int64_t steps = 1000000;
  const double operations = 2.0 * CHAINS * (double)(loops->vector_bytes / sizeof(float)) * (double)steps;
  double best = 0.0;
  for (double spent = 0.0; spent < seconds;) {
    const double start = cpu_seconds();
    loops->multiply_add(steps);
    const double taken = cpu_seconds() - start;
    if (taken <= 0.0) continue;
    if (operations / taken > best) best = operations / taken;
    spent += taken;
  }
  return 1e-9 * best;
}

/* GB/s (10^9 bytes) of reading or writing one buffer of `bytes` again and again, tried for about `seconds`; 0 if there is no
 * memory for it. */
double limits_bandwidth(int isa, size_t bytes, int writing, double seconds) {
  const struct loops *loops = &LOOPS[isa];
  const size_t step = UNROLLED * 64;
  bytes = (bytes + step - 1) / step * step;
  void *buffer = aligned_alloc(64, bytes);
  if (!buffer) return 0.0;
  loops->write(buffer, bytes);          /* the pages exist from here on */
  const size_t batch = (size_t)1 << 28; /* long against the grain of the clock */
  const int passes = bytes < batch ? (int)(batch / bytes) : 1;
  double best = 0.0;
  for (double spent = 0.0; spent < seconds;) {
    const double start = cpu_seconds();
    for (int pass = 0; pass < passes; pass++) {
      if (writing) {
        loops->write(buffer, bytes);
      } else {
        loops->read(buffer, bytes);
      }
    }
    const double taken = cpu_seconds() - start;
    if (taken <= 0.0) continue;
    const double rate = (double)bytes * passes / taken;
    if (rate > best) best = rate;
    spent += taken;
  }
  free(buffer);
  return 1e-9 * best;
}
