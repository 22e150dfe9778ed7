/* SPDX-License-Identifier: Apache-2.0
 * operators_cpu.c - what liblath_cpu.so registers: every operator with its schema, and the kernels for the CPU. */
#include <stddef.h>

#include "kernels.h"
#include "library.h"

#define OPERATOR(name, schema, key, entry) {"lath::" #name, #name schema, key, entry},
static const struct registration operators[] = {LATH_OPERATORS(OPERATOR)};
#undef OPERATOR

/* The kernels refuse what a CPU key with a special layout or dtype brings, but in their own words: without an entry there, torch
 * answers with a list of every backend that it knows. */
static const struct key keys[] = {
    {"CPU", "CPU"},          {"SparseCPU", "CPU"}, {"SparseCsrCPU", "CPU"},
    {"QuantizedCPU", "CPU"}, {"MkldnnCPU", "CPU"}, {"CompositeExplicitAutograd", "CompositeExplicitAutograd"},
};

static const char *missing(void) {
#define CHECK(type, name, parameters) \
  if (!name) return #name;
  SHIM_FUNCTIONS_STABLE(CHECK)
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
