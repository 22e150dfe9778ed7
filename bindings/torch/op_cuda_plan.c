/* SPDX-License-Identifier: Apache-2.0
 * op_cuda_plan.c - lath::cuda_lowrank_linear_plan and lath::cuda_oialr_linear_plan, what the GPU's planner would do; they touch no
 * tensor. */
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

/* Where the arguments of both operators are, after the extents; the one called CHOICE has another name and other values in each. */
enum { CHOICE = 4, DIRECTION, DTYPE, DEVICE };

static bool take_device(struct call *call, lath_dtype *dtype) {
  int64_t number, device;
  if (!call_int_between(call, DTYPE, "dtype", LATH_F32, LATH_F16, &number)) return false;
  if (!call_int_between(call, DEVICE, "device", 0, INT32_MAX, &device)) return false;
  *dtype = (lath_dtype)number;
  call->device_index = (int32_t)device;
  return true;
}

static bool cuda_lowrank_linear_plan(struct call *call) {
  struct lath_lowrank_linear a = {0};
  struct lath_lowrank_plan plan;
  int64_t association;
  if (!call_extents(call, &a.rows, &a.in, &a.rank, &a.out)) return false;
  if (!call_int_between(call, CHOICE, "association", LATH_AUTO, LATH_MERGED, &association)) return false;
  if (!take_device(call, &a.dtype)) return false;
  const bool backward = call_bool(call, DIRECTION);
  a.association = (lath_association)association;
  set_operands(&a, backward);
  if (!device_lowrank_linear_plan(call, &a, backward, &plan)) return false;
  call_output_int(call, plan.association);
  call_output_int(call, plan.kernel);
  call_output_int(call, plan.macs);
  call_output_int(call, plan.dense_macs);
  call_output_int(call, plan.save_intermediate != 0);
  return true;
}

/* As of a call with contiguous operands. */
static bool cuda_oialr_linear_plan(struct call *call) {
  struct lath_oialr_linear a = {0};
  struct lath_oialr_plan plan;
  int64_t route;
  if (!call_extents(call, &a.rows, &a.in, &a.rank, &a.out)) return false;
  if (!call_int_between(call, CHOICE, "route", LATH_OIALR_AUTO, LATH_OIALR_MERGED, &route)) return false;
  if (!take_device(call, &a.dtype)) return false;
  a.route = (lath_oialr_route)route;
  a.x = a.vh = a.s = a.u = a.dy = operand;
  a.y = operand;
  a.s_x = a.s_vh = a.s_dx = a.in;
  a.s_s = a.s_u = a.rank;
  a.s_y = a.s_dy = a.out;
  if (!device_oialr_linear_plan(call, &a, call_bool(call, DIRECTION), &plan)) return false;
  call_output_int(call, plan.route);
  call_output_int(call, plan.macs);
  call_output_int(call, plan.dense_macs);
  call_output_int(call, plan.save_t != 0);
  return true;
}

CALL_DEFINE_ENTRY(op_cuda_oialr_linear_plan, "cuda_oialr_linear_plan", cuda_oialr_linear_plan, 0)
CALL_DEFINE_ENTRY(op_cuda_lowrank_linear_plan, "cuda_lowrank_linear_plan", cuda_lowrank_linear_plan, 0)
