/* SPDX-License-Identifier: Apache-2.0
 * conv_forward.c */
#include "core/check.h"
#include "lowrank/conv.h"

lath_status lath_lowrank_conv2d_workspace(const struct lath_lowrank_conv2d *a, const struct lath_host *host, size_t *bytes) {
  struct lath_conv_shape s;
  if (!host || !bytes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_conv_shape(a, &s));
  *bytes = lath_conv_reference_bytes(a, &s);
  return LATH_OK;
}

lath_status lath_lowrank_conv2d(const struct lath_lowrank_conv2d *a, const struct lath_host *host) {
  return host ? lath_lowrank_conv2d_ref(a) : LATH_INVALID_ARGUMENT;
}

lath_status lath_lowrank_conv2d_backward_workspace(const struct lath_lowrank_conv2d *a, const struct lath_host *host,
                                                   size_t *bytes) {
  return lath_lowrank_conv2d_workspace(a, host, bytes);
}

lath_status lath_lowrank_conv2d_backward(const struct lath_lowrank_conv2d *a, const struct lath_host *host) {
  return host ? lath_lowrank_conv2d_backward_ref(a) : LATH_INVALID_ARGUMENT;
}
