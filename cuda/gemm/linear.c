/* SPDX-License-Identifier: Apache-2.0
 * linear.c - the dense product y = x w^T + bias. */
#include "gemm/linear.h"

#include "core/check.h"
#include "core/device.h"
#include "gemm/lt.h"
#include "gemm/product.h"

lath_status lath_cuda_linear_workspace(const struct lath_linear *a, const struct lath_cuda *cuda, size_t *bytes) {
  if (!a || !cuda || !bytes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_cuda_check_dtype(a->dtype));
  LATH_TRY(lath_linear_check_operands(a));
  struct lath_device device;
  if (lath_device(cuda->device, &device)) return LATH_DEVICE_FAILED;
  *bytes = a->bias ? lath_lt_workspace(a->dtype, cuda, &device) : 0;
  return LATH_OK;
}

lath_status lath_cuda_linear(const struct lath_linear *a, struct lath_cuda *cuda) {
  size_t bytes;
  LATH_TRY(lath_cuda_linear_workspace(a, cuda, &bytes));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, bytes));
  cuda->error = 0;
  const struct lath_cuda_gemm product = {.a_type = a->dtype,
                                         .b_type = a->dtype,
                                         .c_type = a->dtype,
                                         .m = a->rows,
                                         .n = a->out,
                                         .k = a->in,
                                         .a = a->x,
                                         .s_a = a->s_x,
                                         .b = a->w,
                                         .s_b = a->s_w,
                                         .b_transposed = 1,
                                         .bias = a->bias,
                                         .c = a->y,
                                         .s_c = a->s_y,
                                         .workspace = a->workspace,
                                         .workspace_bytes = bytes};
  return lath_cuda_product(&product, cuda);
}
