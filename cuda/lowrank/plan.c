/* SPDX-License-Identifier: Apache-2.0
 * plan.c - which route a low-rank product takes on a GPU: the one with the shortest estimated time. docs/cuda.md has the
 * formulas. */
#include "core/check.h"
#include "lowrank/lowrank.h"
#include "lowrank/routes.h"

/* ---- operations ---------------------------------------------------------------------------------------------------------- */

static int64_t factored_macs(const struct lath_lowrank_linear *a, int backward) {
  return (backward ? 2 : 1) * a->rows * a->rank * (a->in + a->out);
}

/* Forward: u v, then the dense product. Backward: u v again, dx and dw = dy^T x, then dw v^T and u^T dw. */
static int64_t merged_macs(const struct lath_lowrank_linear *a, int backward) {
  return (backward ? 2 : 1) * a->rows * a->in * a->out + (backward ? 3 : 1) * a->rank * a->in * a->out;
}

/* ---- times, in nanoseconds ----------------------------------------------------------------------------------------------- */

static double merged_time(const struct lath_lowrank_linear *a, const struct lath_times *t) {
  return lath_product_time(t, a->out, a->in, a->rank) + lath_product_time(t, a->rows, a->out, a->in) +
         lath_bias_time(t, a->bias, a->rows, a->out);
}

/* The gradients of the weights are products in every factored route. */
static double factors_time(const struct lath_lowrank_linear *a, const struct lath_times *t) {
  return lath_product_time(t, a->out, a->rank, a->rows) + lath_product_time(t, a->rank, a->in, a->rows);
}

static double merged_backward_time(const struct lath_lowrank_linear *a, const struct lath_times *t) {
  return lath_product_time(t, a->out, a->in, a->rank) + lath_product_time(t, a->rows, a->in, a->out) +
         lath_product_time(t, a->out, a->in, a->rows) + lath_product_time(t, a->out, a->rank, a->in) +
         lath_product_time(t, a->rank, a->in, a->out);
}

/* ---- pairs of products --------------------------------------------------------------------------------------------------- */

struct lath_pair lath_lowrank_pair(const struct lath_lowrank_linear *a) {
  return (struct lath_pair){.dtype = a->dtype,
                            .rows = a->rows,
                            .k = a->in,
                            .rank = a->rank,
                            .n = a->out,
                            .a = a->x,
                            .s_a = a->s_x,
                            .first = a->v,
                            .s_first = a->s_v,
                            .second = a->u,
                            .s_second = a->s_u,
                            .inner_bias = a->inner_bias,
                            .bias = a->bias,
                            .keeps_p = a->p != NULL,
                            .p = a->p,
                            .c = a->y,
                            .s_c = a->s_y};
}

struct lath_pair lath_lowrank_dx_pair(const struct lath_lowrank_linear *a, void *dp) {
  return (struct lath_pair){.dtype = a->dtype,
                            .transposed = 1,
                            .rows = a->rows,
                            .k = a->out,
                            .rank = a->rank,
                            .n = a->in,
                            .a = a->dy,
                            .s_a = a->s_dy,
                            .first = a->u,
                            .s_first = a->s_u,
                            .second = a->v,
                            .s_second = a->s_v,
                            .keeps_p = a->dv || a->d_inner_bias,
                            .p = dp,
                            .c = a->dx,
                            .s_c = a->s_dx};
}

/* ---- the choice ---------------------------------------------------------------------------------------------------------- */

/* The gradients that a backward is asked for; a plan without any pointer is about all of them. */
static int wants_dx(const struct lath_lowrank_linear *a) { return a->dx || !(a->dv || a->du || a->d_inner_bias || a->d_bias); }

static struct lath_pair_plan plan_pair(const struct lath_lowrank_linear *a, const struct lath_times *t,
                                       const struct lath_device *device, int backward) {
  const struct lath_pair pair = backward ? lath_lowrank_dx_pair(a, NULL) : lath_lowrank_pair(a);
  return backward && !wants_dx(a) ? lath_pair_products(&pair, t) : lath_pair_plan(&pair, t, device);
}

static int is_merged(const struct lath_lowrank_linear *a, const struct lath_times *t, const struct lath_pair_plan *pair,
                     int backward) {
  if (a->dtype == LATH_F64 || a->association == LATH_FACTORED) return 0;
  if (a->association == LATH_MERGED || lath_cuda_forced_route() == LATH_LOWRANK_MERGED) return 1;
  if (pair->forced) return 0;
  return backward ? merged_backward_time(a, t) <= pair->time + factors_time(a, t) : merged_time(a, t) <= pair->time;
}

lath_status lath_cuda_choose(const struct lath_lowrank_linear *a, const struct lath_cuda *cuda, int backward,
                             struct lath_cuda_choice *choice) {
  if (lath_device(cuda->device, &choice->device)) return LATH_DEVICE_FAILED;
  const struct lath_times times = lath_times_of(a->dtype, cuda, &choice->device);
  choice->pair = plan_pair(a, &times, &choice->device, backward);
  const int merged = is_merged(a, &times, &choice->pair, backward);
  choice->plan = (struct lath_lowrank_plan){
      .association = merged ? LATH_MERGED : LATH_FACTORED,
      .kernel = merged ? LATH_LOWRANK_MERGED : choice->pair.kernel,
      .macs = merged ? merged_macs(a, backward) : factored_macs(a, backward),
      .dense_macs = (backward ? 2 : 1) * a->rows * a->in * a->out,
      /* Making p again reads x, which is longer than p, and writes and reads p all the same. */
      .save_intermediate = !merged,
  };
  return LATH_OK;
}

lath_status lath_cuda_lowrank_linear_plan(const struct lath_lowrank_linear *a, const struct lath_cuda *cuda, int backward,
                                          struct lath_lowrank_plan *plan) {
  struct lath_cuda_choice choice;
  if (!a || !cuda || !plan || a->association < LATH_AUTO || a->association > LATH_MERGED) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_cuda_check_dtype(a->dtype));
  LATH_TRY(lath_lowrank_check_extents(a));
  LATH_TRY(lath_cuda_choose(a, cuda, backward, &choice));
  *plan = choice.plan;
  return LATH_OK;
}
