/* SPDX-License-Identifier: Apache-2.0
 * lt.h - inside the library: a product and its bias in one kernel of cuBLASLt, which adds the bias to the sums before they are
 * rounded and stored. Source: NVIDIA's cuBLAS documentation, "Using the cuBLASLt API". */
#ifndef LATH_CUDA_GEMM_LT_H
#define LATH_CUDA_GEMM_LT_H

#include "core/device.h"
#include "gemm/product.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whether products of this type can have their bias added by cuBLASLt, if their operands suit it. */
int lath_lt_adds_bias(lath_dtype dtype, const struct lath_cuda *cuda);

/* Bytes of workspace that such a product makes use of, for parts of sums that several blocks share; 0 where none is made. One
 * workspace serves all products of a call, one after the other. 4 MiB for Hopper and newer, 1 MiB before. */
#define LATH_LT_WORKSPACE ((size_t)1 << 20)
#define LATH_LT_WORKSPACE_HOPPER ((size_t)4 << 20)
#define LATH_LT_ALIGNMENT 256
size_t lath_lt_workspace(lath_dtype dtype, const struct lath_cuda *cuda, const struct lath_device *device);

struct lath_arena;

/* That much of an arena, for products with one of these biases (NULL: none); nothing where no bias is there. */
struct lath_lt_room {
  void *data;
  size_t bytes;
};
struct lath_lt_room lath_lt_take(struct lath_arena *arena, lath_dtype dtype, const void *bias, const void *other_bias,
                                 const struct lath_cuda *cuda, const struct lath_device *device);

/* c = op(a) op(b) + bias of a product that has a bias and that cuBLAS would take (see lath_cuda_product), where all of it has
 * one type: F32 (in TF32 where the handle says so), F16 or BF16. Sums are in fp32. *done = 0: cuBLASLt is not there or has no
 * kernel for these operands, and nothing was enqueued. LATH_DEVICE_FAILED when it accepted the product and then failed. */
lath_status lath_lt_product(const struct lath_cuda_gemm *product, struct lath_cuda *cuda, int *done);

#ifdef __cplusplus
}
#endif
#endif
