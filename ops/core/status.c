/* SPDX-License-Identifier: Apache-2.0
 * status.c - what a status code means, in words. */
#include "lath.h"

const char *lath_status_text(lath_status status) {
  switch (status) {
    case LATH_OK:
      return "success";
    case LATH_INVALID_ARGUMENT:
      return "invalid argument: a null pointer, a negative extent, or a stride shorter than a row";
    case LATH_SIZE_OVERFLOW:
      return "size overflow: a product of extents does not fit the address space";
    case LATH_UNSUPPORTED_DTYPE:
      return "unsupported dtype";
    case LATH_SMALL_WORKSPACE:
      return "workspace smaller than the query answers";
    case LATH_HOST_FAILED:
      return "the host's parallel_for failed";
    case LATH_DEVICE_FAILED:
      return "the GPU's runtime or its BLAS reported a failure";
  }
  return "unknown status";
}

size_t lath_dtype_size(lath_dtype dtype) {
  switch (dtype) {
    case LATH_F32:
      return 4;
    case LATH_F64:
      return 8;
    case LATH_BF16:
    case LATH_F16:
      return 2;
  }
  return 0;
}
