/* SPDX-License-Identifier: Apache-2.0
 * device.h - inside the library: what is known about a GPU, and how its errors become a status. */
#ifndef LATH_CUDA_CORE_DEVICE_H
#define LATH_CUDA_CORE_DEVICE_H

#include "lath_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

struct lath_device {
  int multiprocessors;
  int shared_bytes; /* that one block may have, after cudaFuncSetAttribute */
  int capability;   /* 10 major + minor */
};

#define LATH_MAX_DEVICES 64

/* Asks the driver at the first call for this device, then remembers. */
int lath_device(int ordinal, struct lath_device *device); /* cudaError_t */

/* More dynamic shared memory than 48 KiB has to be asked for, once for each kernel and device: `allowed`, zero at first, has
 * LATH_MAX_DEVICES places and belongs to the kernel. Two threads at once set the same limit twice. */
int lath_device_allow_shared(const void *kernel, int bytes, int ordinal, int *allowed); /* cudaError_t */

lath_status lath_device_check(struct lath_cuda *cuda, int error); /* of the runtime */
lath_status lath_blas_check(struct lath_cuda *cuda, int status);  /* of cuBLAS */

lath_status lath_cuda_check_dtype(lath_dtype dtype);

/* The type that sums, Gram matrices and partial sums are kept in. */
static inline lath_dtype lath_sum_type(lath_dtype dtype) { return dtype == LATH_F64 ? LATH_F64 : LATH_F32; }

static inline int lath_is_16_bit(lath_dtype dtype) { return dtype == LATH_F16 || dtype == LATH_BF16; }

/* blocks of `size` that cover `count` */
static inline int64_t lath_blocks(int64_t count, int64_t size) { return count / size + (count % size != 0); }

#ifdef __cplusplus
}
#endif
#endif
