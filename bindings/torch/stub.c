/* SPDX-License-Identifier: Apache-2.0
 *
 * stub.c - what the plugin is linked against instead of torch: a library with the SONAME libtorch_cpu.so that defines every
 * name of shim.h and nothing else. It makes the link fail on a name outside the list, is never installed and never runs, except
 * in the tests that play a torch which is too old:
 *
 *   STUB_RETURN   what each function answers (0)
 *   STUB_LIST     the names to define (SHIM_FUNCTIONS; SHIM_CUDA_FUNCTIONS makes the stand-in for libtorch_cuda.so)
 */
#define SHIM_LIST_ONLY
#include "shim.h"

#ifndef STUB_RETURN
#define STUB_RETURN 0
#endif
#ifndef STUB_LIST
#define STUB_LIST SHIM_FUNCTIONS
#endif

/* The linker looks at names only, so one signature serves all. */
#define STUB(type, name, parameters) \
  uint64_t name(void);               \
  uint64_t name(void) { return STUB_RETURN; }

STUB_LIST(STUB)
