/* SPDX-License-Identifier: Apache-2.0
 * codes.h - torch's numbers for dtypes, layouts and devices, asked for once when the library is loaded. */
#ifndef LATH_CODES_H
#define LATH_CODES_H

#include <stdbool.h>
#include <stdint.h>

#include "lath.h"

struct codes {
  int32_t device; /* the type of device that this object serves */
  int32_t strided;
  int32_t dtype[4]; /* indexed by lath_dtype */
};

extern struct codes codes; /* constant once codes_load() has run, which is before any operator can be called */

void codes_load(void);

/* False when this object has no kernel for torch's dtype `code`. */
bool codes_to_dtype(int32_t code, lath_dtype *dtype);

/* As torch prints it: "torch.float32". An unusual dtype is described instead. */
const char *codes_dtype_name(int32_t code);

/* The type that sums over `dtype` are kept in. */
lath_dtype codes_sum_dtype(lath_dtype dtype);

#endif
