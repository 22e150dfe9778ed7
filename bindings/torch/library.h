/* SPDX-License-Identifier: Apache-2.0
 * library.h - what an object registers when it is loaded: tables that operators_cpu.c or operators_cuda.c fill. */
#ifndef LATH_LIBRARY_H
#define LATH_LIBRARY_H

#include <stdbool.h>

#include "shim.h"

struct registration {
  const char *name;   /* "lath::linear" */
  const char *schema; /* NULL: another object defines the operator, this one adds a kernel */
  const char *key;
  ShimKernel entry;
};

/* A dispatch key, and the operators whose entries it gets: those whose `key` is `entries_of`. */
struct key {
  const char *key, *entries_of;
};

struct library {
  const struct registration *operators;
  const struct key *keys;
  int num_operators, num_keys;
  /* The name of a function that this torch lacks although the object cannot do without it, or NULL. */
  const char *(*missing)(void);
};

enum { LIBRARY_MAX_KEYS = 8 };

extern const struct library library;

#endif
