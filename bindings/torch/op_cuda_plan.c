/* SPDX-License-Identifier: Apache-2.0
 * op_cuda_plan.c - lath::cuda_lowrank_linear_plan, what the GPU's planner would do; touches no tensor. */
#include "device_plan.h"
#include "kernels.h"

/* Stands for operands that are there and aligned: the planner looks at addresses, never behind them. */
static char operand[64] __attribute__((aligned(64)));

/* As of a call with contiguous operands, for training: the forward with p, the backward with every gradient. */
static void set_operands(struct lath_lowrank_linear *a, bool backward) {
  a->x = a->v = a->u = operand;
  a->s_x = a->s_v = a->s_dx = a->in;
  a->s_u = a->rank;
  a->s_y = a->s_dy = a->out;
  if (!backward) {
    a->y = operand;
    return;
  }
  a->dy = operand;
  a->dx = a->dv = a->du = operand;
}

static bool cuda_lowrank_linear_plan(struct call *call) {
  enum { ROWS, IN, RANK, OUT, ASSOCIATION, BACKWARD, DTYPE, DEVICE };
  struct lath_lowrank_linear a = {0};
  struct lath_lowrank_plan plan;
  int64_t association, dtype, device;
  if (!call_int_between(call, ROWS, "rows", 0, INT64_MAX, &a.rows)) return false;
  if (!call_int_between(call, IN, "in_features", 0, INT64_MAX, &a.in)) return false;
  if (!call_int_between(call, RANK, "rank", 1, INT64_MAX, &a.rank)) return false;
  if (!call_int_between(call, OUT, "out_features", 0, INT64_MAX, &a.out)) return false;
  if (!call_int_between(call, ASSOCIATION, "association", LATH_AUTO, LATH_MERGED, &association)) return false;
  if (!call_int_between(call, DTYPE, "dtype", LATH_F32, LATH_F16, &dtype)) return false;
  if (!call_int_between(call, DEVICE, "device", 0, INT32_MAX, &device)) return false;
  const bool backward = call_bool(call, BACKWARD);
  a.association = (lath_association)association;
  a.dtype = (lath_dtype)dtype;
  call->device_index = (int32_t)device;
  set_operands(&a, backward);
  if (!device_lowrank_linear_plan(call, &a, backward, &plan)) return false;
  call_output_int(call, plan.association);
  call_output_int(call, plan.kernel);
  call_output_int(call, plan.macs);
  call_output_int(call, plan.dense_macs);
  call_output_int(call, plan.save_intermediate != 0);
  return true;
}

CALL_DEFINE_ENTRY(op_cuda_lowrank_linear_plan, "cuda_lowrank_linear_plan", cuda_lowrank_linear_plan, 0)
