/* SPDX-License-Identifier: Apache-2.0
 * operators_cuda.c - what liblath_cuda.so registers: kernels for CUDA tensors, and the planner of the GPU.
 *
 * liblath_cpu.so defines the operators and is loaded first. Low-rank convolutions are two convolutions of torch here, which the
 * Python package registers. */
#include <stddef.h>

#include "kernels.h"
#include "library.h"

#define KERNEL(name, schema, key, entry) {"lath::" #name, NULL, "CUDA", entry},
#define OPERATOR(name, schema, key, entry) {"lath::" #name, #name schema, key, entry},
static const struct registration operators[] = {LATH_CUDA_OPERATORS(OPERATOR) LATH_SHARED_OPERATORS(KERNEL)
                                                    LATH_LSTM_OPERATORS(KERNEL)};
#undef OPERATOR
#undef KERNEL

static const struct key keys[] = {
    {"CUDA", "CUDA"},
    {"SparseCUDA", "CUDA"},
    {"SparseCsrCUDA", "CUDA"},
    {"QuantizedCUDA", "CUDA"},
    {"CompositeExplicitAutograd", "CompositeExplicitAutograd"},
};

static const char *missing(void) {
#define CHECK(type, name, parameters) \
  if (!name) return #name;
  SHIM_FUNCTIONS_STABLE(CHECK)
  SHIM_CUDA_FUNCTIONS_STABLE(CHECK)
#undef CHECK
  return NULL;
}

const struct library library = {
    .operators = operators,
    .keys = keys,
    .num_operators = sizeof operators / sizeof *operators,
    .num_keys = sizeof keys / sizeof *keys,
    .missing = missing,
};
