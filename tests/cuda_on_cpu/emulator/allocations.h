/* SPDX-License-Identifier: Apache-2.0
 * allocations.h - inside the engine: device memory, which the host may not touch. */
#ifndef LATH_TESTS_CUDA_ON_CPU_ALLOCATIONS_H
#define LATH_TESTS_CUDA_ON_CPU_ALLOCATIONS_H

#include <stddef.h>

void *emulator_allocate(size_t bytes); /* NULL: no memory */
bool emulator_free(void *data);        /* false: not allocated */

/* Between the two, device memory is accessible; they nest. Stand-ins of libraries look them up by name. */
extern "C" void emulator_open_memory(void);
extern "C" void emulator_close_memory(void);

void emulator_watch_faults(void);

#endif
