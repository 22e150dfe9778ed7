/* SPDX-License-Identifier: Apache-2.0
 *
 * ptx.h - one small function for each PTX instruction that kernels use; the only place where asm may stand.
 *
 * Each has two bodies, the instruction and its emulation (tests/cuda_on_cpu/emulator), with one meaning, which is stated here.
 * All need sm_80. A wrong asm string passes the emulator: when a line below changes, run the tests once on a GPU.
 * Source of instructions and register layouts: NVIDIA, "Parallel Thread Execution ISA", the sections on cp.async, ldmatrix,
 * mma and cvt. Below, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4.
 */
#ifndef LATH_CUDA_DEVICE_PTX_H
#define LATH_CUDA_DEVICE_PTX_H

#include "kernel.h"

#ifdef __CUDACC__
#define LATH_PTX static __device__ __forceinline__
#define LATH_PTX_SITE
#define LATH_PTX_BODY(gpu, cpu) gpu
#else
#define LATH_PTX static inline
#define LATH_PTX_SITE , EMULATOR_SITE
#define LATH_PTX_BODY(gpu, cpu) cpu
#endif

#ifdef __CUDACC__
LATH_PTX unsigned lath_shared_address(const void *pointer) { return (unsigned)__cvta_generic_to_shared(pointer); }
#endif

/* ---- asynchronous copies from global to shared memory -------------------------------------------------------------------- */

/* Starts the copy of `bytes` (0 to 16) bytes; the rest of the 16 at `to` becomes zero. Both addresses are multiples of 16.
 * Nothing is read when bytes is 0, but `from` must be an address in the same buffer all the same. */
LATH_PTX void lath_cp_async_16(void *to, const void *from, int bytes LATH_PTX_SITE) {
  LATH_PTX_BODY(
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(lath_shared_address(to)), "l"(from), "r"(bytes)
                   : "memory"),
      emulator_copy_start(to, from, bytes, site));
}

/* Closes the group of copies that this thread has started since the last commit. */
LATH_PTX void lath_cp_async_commit(void) {
  LATH_PTX_BODY(asm volatile("cp.async.commit_group;" ::: "memory"), emulator_copy_commit());
}

/* Returns when all groups of this thread but the newest `pending` have arrived. Other threads see them after a barrier. */
template <int pending>
LATH_PTX void lath_cp_async_wait(void) {
  LATH_PTX_BODY(asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory"), emulator_copy_wait(pending));
}

/* ---- 8x8 matrices of 16-bit elements from shared memory ------------------------------------------------------------------ */

/* Lane 8 i + j gives the address (a multiple of 16) of row j of matrix i, of 8 adjacent elements. r[i] receives elements 2 t
 * and 2 t + 1 of row g of matrix i, the first in the low half; with _trans, of the transposed matrix. A warp call. */
LATH_PTX void lath_ldmatrix_x4(unsigned r[4], const void *row LATH_PTX_SITE) {
  LATH_PTX_BODY(asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                             : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                             : "r"(lath_shared_address(row))
                             : "memory"),
                emulator_ldmatrix_x4(r, row, site));
}
LATH_PTX void lath_ldmatrix_x4_trans(unsigned r[4], const void *row LATH_PTX_SITE) {
  LATH_PTX_BODY(asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                             : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                             : "r"(lath_shared_address(row))
                             : "memory"),
                emulator_ldmatrix_x4_trans(r, row, site));
}

/* ---- tensor cores: d (16, 8) += a (16, k) b (k, 8), sums in fp32; warp calls --------------------------------------------- */

/* 16-bit operands, k = 16. Each register holds two elements with adjacent k, the lower in the low half.
 *   a[0] row g, k 2t..   a[1] row g + 8, k 2t..   a[2] row g, k 2t + 8..   a[3] row g + 8, k 2t + 8..
 *   b[0] k 2t.., column g   b[1] k 2t + 8.., column g
 *   d[0], d[1] row g, columns 2t, 2t + 1   d[2], d[3] row g + 8, the same columns */
LATH_PTX void lath_mma_m16n8k16_bf16(float d[4], const unsigned a[4], const unsigned b[2] LATH_PTX_SITE) {
  LATH_PTX_BODY(asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                             "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                             : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])),
                emulator_mma_m16n8k16_bf16(d, a, b, site));
}
LATH_PTX void lath_mma_m16n8k16_f16(float d[4], const unsigned a[4], const unsigned b[2] LATH_PTX_SITE) {
  LATH_PTX_BODY(asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                             "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                             : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])),
                emulator_mma_m16n8k16_f16(d, a, b, site));
}

/* tf32 operands, k = 8: floats whose low 13 bits are ignored.
 *   a[0] row g, k t   a[1] row g + 8, k t   a[2] row g, k t + 4   a[3] row g + 8, k t + 4
 *   b[0] k t, column g   b[1] k t + 4, column g   d as above */
LATH_PTX void lath_mma_m16n8k8_tf32(float d[4], const unsigned a[4], const unsigned b[2] LATH_PTX_SITE) {
  LATH_PTX_BODY(asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                             "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                             : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])),
                emulator_mma_m16n8k8_tf32(d, a, b, site));
}

/* The bits of the nearest tf32 (10 bits behind the point), ties away from zero; what the instruction above wants. */
LATH_PTX unsigned lath_to_tf32(float value) {
  unsigned bits;
  LATH_PTX_BODY(asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value)), bits = emulator_to_tf32(value));
  return bits;
}

#undef LATH_PTX_SITE
#undef LATH_PTX_BODY
#endif
