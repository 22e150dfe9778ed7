/* SPDX-License-Identifier: Apache-2.0
 * op_linear.c - lath::linear, the dense product: y = x weight^T + bias. */
#include "device.h"
#include "kernels.h"
#include "unpack.h"

static bool linear(struct call *call) {
  enum { X, WEIGHT, BIAS };
  struct tensor x;
  struct lead lead;
  struct matrix rows, weight;
  struct lath_linear a = {0};
  if (!unpack_input(call, X, "x", &x, &lead, &rows)) return false;
  if (!unpack_weight(call, WEIGHT, "weight", &lead, "out_features", rows.cols, "the last dimension of x", &weight))
    return false;
  if (!unpack_optional_vector(call, BIAS, "bias", &lead, weight.rows, "the rows of weight", &a.bias)) return false;
  a.dtype = lead.dtype;
  a.rows = rows.rows, a.in = rows.cols, a.out = weight.rows;
  a.x = rows.data, a.s_x = rows.stride;
  a.w = weight.data, a.s_w = weight.stride;
  a.s_y = a.out;
  if (!output_like(call, "output", &x, a.out, a.dtype, &a.y)) return false;
  return device_linear(call, &a);
}

CALL_DEFINE_ENTRY(op_linear, "linear", linear, 3)
