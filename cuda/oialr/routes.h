/* SPDX-License-Identifier: Apache-2.0
 * routes.h - inside the library: what the files of the OIALR family share. */
#ifndef LATH_CUDA_OIALR_ROUTES_H
#define LATH_CUDA_OIALR_ROUTES_H

#include "core/take.h"
#include "lowrank/pair.h"

/* ---- planner (plan.c) ---------------------------------------------------------------------------------------------------- */

struct lath_cuda_oialr_choice {
  lath_oialr_route route;     /* never LATH_OIALR_AUTO */
  struct lath_pair_plan pair; /* of the two products that end in y, or in dx; unless merged */
  struct lath_device device;
};

/* Arguments have been checked. */
lath_status lath_cuda_oialr_choose(const struct lath_oialr_linear *args, const struct lath_cuda *cuda, int backward,
                                   struct lath_cuda_oialr_choice *choice);

/* The pair of products that ends in y: (t s^T) u^T chained, (x vh^T) (u s)^T folded. `t` is what the one reads, and what the other
 * keeps where the caller gave it; `folded` is u s. Both may be NULL while a workspace is counted. */
struct lath_pair lath_cuda_oialr_pair(const struct lath_oialr_linear *args, lath_oialr_route route, const void *folded,
                                      void *t);

/* The one that ends in dx: (h s) vh chained, (dy u) (s vh) folded, which keeps h where ds is wanted. */
struct lath_pair lath_cuda_oialr_dx_pair(const struct lath_oialr_linear *args, lath_oialr_route route, const void *folded,
                                         void *h);

/* ---- products (products.c); results are contiguous ------------------------------------------------------------------------ */

lath_status lath_cuda_oialr_fold_u(const struct lath_oialr_linear *args, void *us, struct lath_cuda *cuda);   /* u s */
lath_status lath_cuda_oialr_fold_vh(const struct lath_oialr_linear *args, void *svh, struct lath_cuda *cuda); /* s vh */
lath_status lath_cuda_oialr_form_t(const struct lath_oialr_linear *args, void *t, struct lath_cuda *cuda);    /* x vh^T */
lath_status lath_cuda_oialr_form_h(const struct lath_oialr_linear *args, void *h, struct lath_cuda *cuda);    /* dy u */

/* ---- merged (merged.c): as the CPU's, the weight u s vh is formed first --------------------------------------------------- */

struct lath_cuda_oialr_merged {
  const struct lath_oialr_linear *a;
  void *w;    /* (out, in): the weight, then its gradient */
  void *half; /* a product of w, or of its gradient, with one basis; of the smaller side */
  struct lath_lt_room room;
};

struct lath_cuda_oialr_merged lath_cuda_oialr_merged_take(const struct lath_oialr_linear *args, const struct lath_cuda *cuda,
                                                          const struct lath_device *device, struct lath_arena *arena);
lath_status lath_cuda_oialr_merged_y(const struct lath_cuda_oialr_merged *merged, struct lath_cuda *cuda);
lath_status lath_cuda_oialr_merged_dx(const struct lath_cuda_oialr_merged *merged, struct lath_cuda *cuda);
lath_status lath_cuda_oialr_merged_ds(const struct lath_cuda_oialr_merged *merged, struct lath_cuda *cuda);

#endif
