/* SPDX-License-Identifier: Apache-2.0
 * weights.c - the weights of a low-rank layer as float. */
#include "core/convert.h"
#include "lowrank/lowrank.h"

void lath_lowrank_weights_take(struct lath_lowrank_weights *w, const struct lath_lowrank_linear *a, struct lath_arena *arena) {
  if (a->dtype == LATH_F32) return;
  const int64_t sizes[4] = {a->rank * a->in, a->out * a->rank, a->out, a->rank};
  for (int i = 0; i < 4; i++) w->copies[i] = lath_take(arena, 1, sizes[i]);
}

void lath_lowrank_weights_view(struct lath_lowrank_weights *w, const struct lath_lowrank_linear *a) {
  int64_t unused;
  w->v = lath_as_float(a->dtype, a->rank, a->in, a->v, a->s_v, w->copies[0], &w->s_v);
  w->u = lath_as_float(a->dtype, a->out, a->rank, a->u, a->s_u, w->copies[1], &w->s_u);
  w->bias = lath_as_float(a->dtype, 1, a->out, a->bias, a->out, w->copies[2], &unused);
  w->inner_bias = lath_as_float(a->dtype, 1, a->rank, a->inner_bias, a->rank, w->copies[3], &unused);
}
