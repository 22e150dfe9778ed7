/* SPDX-License-Identifier: Apache-2.0
 * control.h - what a test may ask of the emulator. On a GPU (LATH_TESTS_ON_GPU) these calls do nothing. */
#ifndef LATH_TESTS_CUDA_ON_CPU_CONTROL_H
#define LATH_TESTS_CUDA_ON_CPU_CONTROL_H

/* The order in which blocks, warps and lanes run from now on: 0 ascending, 1 descending, else a random one that the seed
 * decides and that is drawn anew at each barrier. A correct kernel gives the same bits in all of them, but for float atomics. */
void emulator_order(unsigned seed);

/* How many seeds, from 0 on, a test should run: one under the thread sanitizer, which is slow and needs no second order. */
int emulator_orders(void);

/* The device that the runtime calls describe. */
struct emulator_device {
  int multiprocessors; /* 132 */
  int major, minor;    /* 9.0 */
  int shared_bytes;    /* 227 KiB: the most that a block may ask for */
};
extern struct emulator_device emulator_device;

/* The n-th launch from now (1: the next one) does not run and reports this error (a cudaError_t). */
void emulator_fail_launch(int n, int error);

/* How many launches have run. */
long emulator_launches(void);

#ifdef LATH_TESTS_ON_GPU
inline void emulator_order(unsigned) {}
inline int emulator_orders(void) { return 1; }
#endif

#endif
