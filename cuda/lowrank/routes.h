/* SPDX-License-Identifier: Apache-2.0
 * routes.h - inside the library: what the files of the low-rank family share. */
#ifndef LATH_CUDA_LOWRANK_ROUTES_H
#define LATH_CUDA_LOWRANK_ROUTES_H

#include "core/take.h"
#include "lowrank/pair.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- planner (plan.c) ---------------------------------------------------------------------------------------------------- */

struct lath_cuda_choice {
  struct lath_lowrank_plan plan;
  struct lath_pair_plan pair; /* of both products of a forward, or of dp and dx; unless merged */
  struct lath_device device;
};

/* Arguments have been checked. */
lath_status lath_cuda_choose(const struct lath_lowrank_linear *args, const struct lath_cuda *cuda, int backward,
                             struct lath_cuda_choice *choice);

/* The two pairs of products that a low-rank layer is made of. */
struct lath_pair lath_lowrank_pair(const struct lath_lowrank_linear *args);
struct lath_pair lath_lowrank_dx_pair(const struct lath_lowrank_linear *args, void *dp);

/* ---- merged (merged.c): as the CPU's, the weight u v is formed first ----------------------------------------------------- */

void lath_cuda_merged_size(const struct lath_lowrank_linear *args, const struct lath_cuda *cuda,
                           const struct lath_device *device, struct lath_arena *arena);
lath_status lath_cuda_merged(const struct lath_lowrank_linear *args, struct lath_cuda *cuda, const struct lath_device *device);
void lath_cuda_merged_backward_size(const struct lath_lowrank_linear *args, const struct lath_device *device,
                                    struct lath_arena *arena);
lath_status lath_cuda_merged_backward(const struct lath_lowrank_linear *args, struct lath_cuda *cuda,
                                      const struct lath_device *device);

#ifdef __cplusplus
}
#endif
#endif
