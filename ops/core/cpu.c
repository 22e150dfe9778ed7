/* SPDX-License-Identifier: Apache-2.0
 * cpu.c - which kernels this machine may run.
 *
 * CPUID alone is not enough: it tells what the processor can do, not whether the operating system saves the wide registers when it
 * switches threads. XGETBV reads XCR0, where the system declares that: bits 1 and 2 for SSE and AVX state, 5 to 7 for the AVX-512
 * masks and registers (Intel SDM volume 1, section 14.3 and 15.2). */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "lath.h"

#if defined(__x86_64__)
#include <cpuid.h>

#define XCR0_AVX 0x06u
#define XCR0_AVX512 0xe6u

static uint64_t read_xcr0(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

static lath_isa detect(void) {
  uint32_t a, b, c, d;
  const uint32_t fma_osxsave_avx = 1u << 12 | 1u << 27 | 1u << 28;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & fma_osxsave_avx) != fma_osxsave_avx) return LATH_ISA_GENERIC;
  const uint64_t saved = read_xcr0();
  if ((saved & XCR0_AVX) != XCR0_AVX || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return LATH_ISA_GENERIC;
  const uint32_t avx2 = 1u << 5;
  const uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
  if (!(b & avx2)) return LATH_ISA_GENERIC;
  if ((b & avx512) != avx512 || (saved & XCR0_AVX512) != XCR0_AVX512) return LATH_ISA_AVX2;
  return LATH_ISA_AVX512;
}
int lath_cpu_multiplies_bf16(void) {
  uint32_t a, b, c, d;
  return detect() == LATH_ISA_AVX512 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 5 & 1u; /* AVX512_BF16 */
}
#else
static lath_isa detect(void) { return LATH_ISA_GENERIC; }

int lath_cpu_multiplies_bf16(void) { return 0; }
#endif

static lath_isa at_most(lath_isa wish, lath_isa best) { return wish < best ? wish : best; }

static lath_isa wished(lath_isa best) {
  const char *name = getenv("LATH_ISA");
  if (!name) return best;
  for (int isa = LATH_ISA_GENERIC; isa <= LATH_ISA_AVX512; isa++)
    if (strcmp(name, lath_isa_name((lath_isa)isa)) == 0) return at_most((lath_isa)isa, best);
  return best;
}

/* -1 until decided. Two threads that race here write the same value. */
static atomic_int in_force = -1;

lath_isa lath_cpu_best_isa(void) { return detect(); }

lath_isa lath_cpu_isa(void) {
  int isa = atomic_load_explicit(&in_force, memory_order_relaxed);
  if (isa < 0) {
    isa = (int)wished(detect());
    atomic_store_explicit(&in_force, isa, memory_order_relaxed);
  }
  return (lath_isa)isa;
}

lath_isa lath_cpu_force_isa(lath_isa wish) {
  const lath_isa isa = at_most(wish, detect());
  atomic_store_explicit(&in_force, (int)isa, memory_order_relaxed);
  return isa;
}

const char *lath_isa_name(lath_isa isa) {
  switch (isa) {
    case LATH_ISA_GENERIC:
      return "generic";
    case LATH_ISA_AVX2:
      return "avx2";
    case LATH_ISA_AVX512:
      return "avx512";
  }
  return "unknown";
}
