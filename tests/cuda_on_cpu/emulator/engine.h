/* SPDX-License-Identifier: Apache-2.0
 * engine.h - what the kernel language is built on: sites, launches, barriers, the warp primitive, copies, refusals. */
#ifndef LATH_TESTS_CUDA_ON_CPU_ENGINE_H
#define LATH_TESTS_CUDA_ON_CPU_ENGINE_H

#include <cuda_runtime_api.h>
#include <stddef.h>

/* A place in a kernel. As the default of a last parameter it is the place of the call. */
struct emulator_site {
  const char *file;
  int line;
};
#define EMULATOR_SITE emulator_site site = {__builtin_FILE(), __builtin_LINE()}

/* Ends the program with what went wrong, in which kernel, block and thread, and where. */
[[noreturn]] void emulator_refuse(emulator_site site, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A type that is not deduced. */
template <class T>
struct emulator_plain {
  typedef T type;
};

/* ---- launches (launch.cc) --------------------------------------------------------------------------------------------- */

void emulator_run_grid(const char *name, const void *kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                       const void *body, void (*call)(const void *body));

/* The arguments are evaluated and converted once, where the launch stands; each thread gets a copy. */
template <class... Parameters>
void emulator_launch(const char *name, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                     void (*kernel)(Parameters...), const typename emulator_plain<Parameters>::type &...arguments) {
  const auto body = [&] { kernel(arguments...); };
  emulator_run_grid(name, (const void *)kernel, grid, block, shared_bytes, stream, &body,
                    [](const void *erased) { (*static_cast<decltype(&body)>(erased))(); });
}

/* ---- what a thread may call (barriers.cc, copies.cc, memory.cc) ---------------------------------------------------------- */

/* All threads of the block; answers how many came with a true predicate. */
int emulator_barrier(bool predicate, emulator_site site);

/* Each lane of the mask leaves `mine`; the last to arrive calls combine for all of them. Lanes that wait at another operation,
 * mask or line, have returned or never come are refused. A fence orders memory between the lanes, as __syncwarp does. */
typedef void (*emulator_combine)(void *const lane[32], unsigned mask);
void emulator_warp(unsigned mask, const char *operation, void *mine, emulator_combine combine, bool fence, emulator_site site);
unsigned emulator_lane(void);

/* The value that lane `source` of the mask passes in, for every lane; up to 16 bytes. */
void emulator_exchange(unsigned mask, const char *operation, void *value, size_t bytes, unsigned source, emulator_site site);

void emulator_fence(void);

/* The copy is done by the wait, at the latest moment that CUDA allows; until then the 16 bytes are NaN. */
void emulator_copy_start(void *to, const void *from, int bytes, emulator_site site);
void emulator_copy_commit(void);
void emulator_copy_wait(int pending);

void *emulator_dynamic_shared(void);
bool emulator_is_shared(const void *begin, size_t bytes);

#endif
