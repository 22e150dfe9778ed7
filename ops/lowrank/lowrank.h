/* SPDX-License-Identifier: Apache-2.0
 * lowrank.h - inside the library: what the files of the low-rank family share. */
#ifndef LATH_LOWRANK_LOWRANK_H
#define LATH_LOWRANK_LOWRANK_H

#include "core/arena.h"
#include "lath.h"

lath_status lath_lowrank_check_forward(const struct lath_lowrank_linear *args);
lath_status lath_lowrank_check_backward(const struct lath_lowrank_linear *args);
lath_status lath_frobenius_check(const struct lath_frobenius *args, int backward);

/* The same for any element type and without the host's scalars. */
lath_status lath_lowrank_check_extents(const struct lath_lowrank_linear *args);
lath_status lath_lowrank_check_operands(const struct lath_lowrank_linear *args, int backward);
lath_status lath_frobenius_check_operands(const struct lath_frobenius *args);

/* Workspace of the `_ref` twins; every query answers at least this. */
size_t lath_lowrank_reference_bytes(const struct lath_lowrank_linear *args);

/* The weights as float: the tensors themselves, or copies in the workspace when they are stored in another type. */
struct lath_lowrank_weights {
  const float *v, *u, *bias, *inner_bias; /* biases may be NULL */
  int64_t s_v, s_u;
  float *copies[4];
};

void lath_lowrank_weights_take(struct lath_lowrank_weights *weights, const struct lath_lowrank_linear *args,
                               struct lath_arena *arena);
void lath_lowrank_weights_view(struct lath_lowrank_weights *weights, const struct lath_lowrank_linear *args);

/* The merged routes; `size` adds what they take from the workspace. */
void lath_lowrank_merged_size(const struct lath_lowrank_linear *args, const struct lath_host *host, struct lath_arena *arena);
lath_status lath_lowrank_merged(const struct lath_lowrank_linear *args, const struct lath_host *host);
void lath_lowrank_merged_backward_size(const struct lath_lowrank_linear *args, const struct lath_host *host,
                                       struct lath_arena *arena);
lath_status lath_lowrank_merged_backward(const struct lath_lowrank_linear *args, const struct lath_host *host);

#endif
