/* SPDX-License-Identifier: Apache-2.0
 * kernels.c - from the instruction set in force to its kernels. */
#include "gemm/kernels.h"

const struct lath_kernels *lath_kernels(void) {
#if defined(__x86_64__)
  const lath_isa isa = lath_cpu_isa();
  if (isa == LATH_ISA_AVX512) return &lath_kernels_avx512;
  if (isa == LATH_ISA_AVX2) return &lath_kernels_avx2;
#endif
  return &lath_kernels_generic;
}
