/* SPDX-License-Identifier: Apache-2.0
 * op_plan.c - operators that touch no tensor: what the planner would do, and which instruction set the kernels use. */
#include "call.h"
#include "kernels.h"

static bool lowrank_linear_plan(struct call *call) {
  enum { ASSOCIATION = 4, BACKWARD };
  struct lath_lowrank_linear a = {.dtype = LATH_F32};
  struct lath_lowrank_plan plan;
  int64_t association;
  if (!call_extents(call, &a.rows, &a.in, &a.rank, &a.out)) return false;
  if (!call_int_between(call, ASSOCIATION, "association", LATH_AUTO, LATH_MERGED, &association)) return false;
  a.association = (lath_association)association;
  if (!call_check(call, lath_lowrank_linear_plan(&a, call_bool(call, BACKWARD), &plan))) return false;
  call_output_int(call, plan.association);
  call_output_int(call, plan.kernel);
  call_output_int(call, plan.macs);
  call_output_int(call, plan.dense_macs);
  call_output_int(call, plan.save_intermediate != 0);
  return true;
}

static bool oialr_linear_plan(struct call *call) {
  enum { ROUTE = 4, TRAINING };
  struct lath_oialr_linear a = {.dtype = LATH_F32};
  struct lath_oialr_plan plan;
  int64_t route;
  if (!call_extents(call, &a.rows, &a.in, &a.rank, &a.out)) return false;
  if (!call_int_between(call, ROUTE, "route", LATH_OIALR_AUTO, LATH_OIALR_MERGED, &route)) return false;
  a.route = (lath_oialr_route)route;
  if (!call_check(call, lath_oialr_linear_plan(&a, call_bool(call, TRAINING), &plan))) return false;
  call_output_int(call, plan.route);
  call_output_int(call, plan.macs);
  call_output_int(call, plan.dense_macs);
  call_output_int(call, plan.save_t != 0);
  return true;
}

static bool cpu_isa(struct call *call) {
  call_output_int(call, lath_cpu_isa());
  return true;
}

CALL_DEFINE_ENTRY(op_lowrank_linear_plan, "lowrank_linear_plan", lowrank_linear_plan, 0)
CALL_DEFINE_ENTRY(op_oialr_linear_plan, "oialr_linear_plan", oialr_linear_plan, 0)
CALL_DEFINE_ENTRY(op_cpu_isa, "cpu_isa", cpu_isa, 0)
