/* SPDX-License-Identifier: Apache-2.0
 * conv_forward.h - inside the library: the intermediate on its own, for a backward that did not get it. */
#ifndef LATH_LOWRANK_CONV_FORWARD_H
#define LATH_LOWRANK_CONV_FORWARD_H

#include "core/arena.h"
#include "lowrank/conv.h"

/* What it takes from the workspace; then, with an arena in the same state: z (batch, groups rank, p_height, width). */
void lath_conv_first_stage_take(const struct lath_lowrank_conv2d *args, const struct lath_conv_shape *shape,
                                const struct lath_host *host, struct lath_arena *arena);
lath_status lath_conv_first_stage(const struct lath_lowrank_conv2d *args, const struct lath_conv_shape *shape,
                                  const struct lath_host *host, struct lath_arena arena, float *z);

#endif
