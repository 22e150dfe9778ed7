/* SPDX-License-Identifier: Apache-2.0
 * oialr.h - inside the library: what the files of the OIALR family share. */
#ifndef LATH_OIALR_OIALR_H
#define LATH_OIALR_OIALR_H

#include "core/arena.h"
#include "lath.h"

lath_status lath_oialr_check_extents(const struct lath_oialr_linear *args);
lath_status lath_oialr_check_forward(const struct lath_oialr_linear *args);
lath_status lath_oialr_check_backward(const struct lath_oialr_linear *args);

/* The same for any element type. Whether a backward reads x depends on the route, so it is checked apart. */
lath_status lath_oialr_check_operands(const struct lath_oialr_linear *args, int backward);
lath_status lath_oialr_check_x(const struct lath_oialr_linear *args);

/* The route of one call, of the forward or of the backward. */
lath_oialr_route lath_oialr_forward_route(const struct lath_oialr_linear *args);
lath_oialr_route lath_oialr_backward_route(const struct lath_oialr_linear *args);

/* Whether the backward reads x: for the merged route, or where t was not kept. */
int lath_oialr_backward_reads_x(const struct lath_oialr_linear *args);

/* Workspace of the `_ref` twins; every query answers at least this. */
size_t lath_oialr_reference_bytes(const struct lath_oialr_linear *args);

/* The weights as float: the tensors themselves, or copies in the workspace when they are stored in another type. */
struct lath_oialr_weights {
  const float *vh, *s, *u, *bias; /* bias may be NULL */
  int64_t s_vh, s_s, s_u;
  float *copies[4];
};

void lath_oialr_weights_take(struct lath_oialr_weights *weights, const struct lath_oialr_linear *args,
                             struct lath_arena *arena);
void lath_oialr_weights_view(struct lath_oialr_weights *weights, const struct lath_oialr_linear *args);

/* The merged routes; `size` adds what they take from the workspace. */
void lath_oialr_merged_size(const struct lath_oialr_linear *args, const struct lath_host *host, struct lath_arena *arena);
lath_status lath_oialr_merged(const struct lath_oialr_linear *args, const struct lath_host *host);
void lath_oialr_merged_backward_size(const struct lath_oialr_linear *args, const struct lath_host *host,
                                     struct lath_arena *arena);
lath_status lath_oialr_merged_backward(const struct lath_oialr_linear *args, const struct lath_host *host);

#endif
