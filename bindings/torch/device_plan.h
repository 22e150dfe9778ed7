/* SPDX-License-Identifier: Apache-2.0
 * device_plan.h - the planner of a GPU, which depends on the device and on torch's BLAS handle; of liblath_cuda.so alone. */
#ifndef LATH_DEVICE_PLAN_H
#define LATH_DEVICE_PLAN_H

#include "call.h"

/* Of cuda:<call->device_index>. */
bool device_lowrank_linear_plan(struct call *call, const struct lath_lowrank_linear *args, bool backward,
                                struct lath_lowrank_plan *plan);
bool device_oialr_linear_plan(struct call *call, const struct lath_oialr_linear *args, bool training,
                              struct lath_oialr_plan *plan);

#endif
