/* SPDX-License-Identifier: Apache-2.0
 * plan.c - which route an OIALR layer takes on a GPU: the one with the shortest estimated time. docs/cuda.md has the formulas.
 *
 * Chained or folded is settled for each call. Merged concerns a training step as a whole, because it keeps x and the others keep t. */
#include "core/check.h"
#include "oialr/oialr.h"
#include "oialr/routes.h"

/* ---- pairs of products --------------------------------------------------------------------------------------------------- */

struct lath_pair lath_cuda_oialr_pair(const struct lath_oialr_linear *a, lath_oialr_route route, const void *folded, void *t) {
  struct lath_pair pair = {
      .dtype = a->dtype, .rows = a->rows, .rank = a->rank, .n = a->out, .bias = a->bias, .c = a->y, .s_c = a->s_y};
  if (route == LATH_OIALR_FOLDED) {
    pair.a = a->x, pair.s_a = a->s_x, pair.k = a->in;
    pair.first = a->vh, pair.s_first = a->s_vh;
    pair.second = folded, pair.s_second = a->rank;
    pair.keeps_p = a->t != NULL, pair.p = t;
  } else {
    pair.a = t, pair.s_a = a->rank, pair.k = a->rank;
    pair.first = a->s, pair.s_first = a->s_s;
    pair.second = a->u, pair.s_second = a->s_u;
  }
  return pair;
}

struct lath_pair lath_cuda_oialr_dx_pair(const struct lath_oialr_linear *a, lath_oialr_route route, const void *folded,
                                         void *h) {
  struct lath_pair pair = {
      .dtype = a->dtype, .transposed = 1, .rows = a->rows, .rank = a->rank, .n = a->in, .c = a->dx, .s_c = a->s_dx};
  if (route == LATH_OIALR_FOLDED) {
    pair.a = a->dy, pair.s_a = a->s_dy, pair.k = a->out;
    pair.first = a->u, pair.s_first = a->s_u;
    pair.second = folded, pair.s_second = a->in;
    pair.keeps_p = a->ds != NULL, pair.p = h;
  } else {
    pair.a = h, pair.s_a = a->rank, pair.k = a->rank;
    pair.first = a->s, pair.s_first = a->s_s;
    pair.second = a->vh, pair.s_second = a->s_vh;
  }
  return pair;
}

/* ---- times, in nanoseconds ----------------------------------------------------------------------------------------------- */

struct estimate {
  lath_oialr_route route;
  struct lath_pair_plan pair;
  int forced; /* by lath_cuda_force_route() */
  double time;
};

struct planner {
  struct lath_times times;
  struct lath_device device;
};

static double product_time(const struct planner *p, int64_t m, int64_t n, int64_t k) {
  return lath_product_time(&p->times, m, n, k);
}

/* w = u s vh, the core into the smaller side first. */
static double weight_time(const struct planner *p, const struct lath_oialr_linear *a) {
  return product_time(p, a->out < a->in ? a->out : a->in, a->rank, a->rank) + product_time(p, a->out, a->in, a->rank);
}

static struct estimate merged(double time) {
  return (struct estimate){.route = LATH_OIALR_MERGED, .forced = lath_cuda_forced_route() == LATH_LOWRANK_MERGED, .time = time};
}

static struct estimate estimate_forward(const struct planner *p, const struct lath_oialr_linear *a, lath_oialr_route route) {
  if (route == LATH_OIALR_MERGED)
    return merged(weight_time(p, a) + product_time(p, a->rows, a->out, a->in) +
                  lath_bias_time(&p->times, a->bias, a->rows, a->out));
  const struct lath_pair pair = lath_cuda_oialr_pair(a, route, NULL, a->t);
  const struct lath_pair_plan plan = lath_pair_plan(&pair, &p->times, &p->device);
  const double before = route == LATH_OIALR_FOLDED ? product_time(p, a->out, a->rank, a->rank) /* u s */
                                                   : product_time(p, a->rows, a->rank, a->in); /* t */
  return (struct estimate){route, plan, plan.forced, before + plan.time};
}

static double merged_backward_time(const struct planner *p, const struct lath_oialr_linear *a) {
  const int64_t smaller = a->out < a->in ? a->out : a->in, larger = a->out < a->in ? a->in : a->out;
  double time = 0.0;
  if (a->dx) time += weight_time(p, a) + product_time(p, a->rows, a->in, a->out);
  if (a->ds)
    time += product_time(p, a->out, a->in, a->rows) + product_time(p, smaller, a->rank, larger) +
            product_time(p, a->rank, a->rank, smaller);
  return time;
}

static struct estimate estimate_backward(const struct planner *p, const struct lath_oialr_linear *a, lath_oialr_route route) {
  if (route == LATH_OIALR_MERGED) return merged(merged_backward_time(p, a));
  const struct lath_pair pair = lath_cuda_oialr_dx_pair(a, route, NULL, NULL);
  const struct lath_pair_plan plan = lath_pair_plan(&pair, &p->times, &p->device);
  const double h = product_time(p, a->rows, a->rank, a->out), svh = product_time(p, a->rank, a->in, a->rank);
  double time = a->dx && route == LATH_OIALR_FOLDED ? svh : h;
  if (a->dx) time += plan.time;
  if (a->ds) time += product_time(p, a->rank, a->rank, a->rows);
  if (a->ds && !a->t) time += product_time(p, a->rows, a->rank, a->in);
  return (struct estimate){route, plan, plan.forced && a->dx, time};
}

static struct estimate estimate(const struct planner *p, const struct lath_oialr_linear *a, lath_oialr_route route,
                                int backward) {
  return backward ? estimate_backward(p, a, route) : estimate_forward(p, a, route);
}

/* ---- the choice ---------------------------------------------------------------------------------------------------------- */

static int is_better(const struct estimate *a, const struct estimate *b) {
  return a->forced != b->forced ? a->forced : a->time < b->time;
}

/* The better one of those that use t; in double precision chained. */
static struct estimate factored(const struct planner *p, const struct lath_oialr_linear *a, int backward) {
  const struct estimate chained = estimate(p, a, LATH_OIALR_CHAINED, backward);
  const struct estimate folded = estimate(p, a, LATH_OIALR_FOLDED, backward);
  return a->dtype != LATH_F64 && is_better(&folded, &chained) ? folded : chained;
}

static struct estimate choose(const struct planner *p, const struct lath_oialr_linear *a, int backward) {
  if (a->route != LATH_OIALR_AUTO) return estimate(p, a, a->route, backward);
  const struct estimate thin = factored(p, a, backward), whole = estimate(p, a, LATH_OIALR_MERGED, backward);
  return !a->t && a->dtype != LATH_F64 && is_better(&whole, &thin) ? whole : thin;
}

static int make_planner(struct planner *p, lath_dtype dtype, const struct lath_cuda *cuda) {
  if (lath_device(cuda->device, &p->device)) return 0;
  p->times = lath_times_of(dtype, cuda, &p->device);
  return 1;
}

lath_status lath_cuda_oialr_choose(const struct lath_oialr_linear *a, const struct lath_cuda *cuda, int backward,
                                   struct lath_cuda_oialr_choice *choice) {
  struct planner p;
  if (!make_planner(&p, a->dtype, cuda)) return LATH_DEVICE_FAILED;
  const struct estimate best = choose(&p, a, backward);
  *choice = (struct lath_cuda_oialr_choice){best.route, best.pair, p.device};
  return LATH_OK;
}

/* ---- the plan of a layer ------------------------------------------------------------------------------------------------- */

struct step {
  struct estimate forward, backward;
};

/* Forward and backward with every gradient; `operand` stands for what is there. */
static struct step plan_step(const struct planner *p, const struct lath_oialr_linear *a, lath_oialr_route route) {
  static char operand[64] __attribute__((aligned(64)));
  const int keeps_t = route != LATH_OIALR_MERGED;
  struct lath_oialr_linear forward = *a, backward = *a;
  forward.route = backward.route = route;
  forward.t = backward.t = keeps_t ? operand : NULL;
  backward.dx = backward.ds = operand;
  return (struct step){choose(p, &forward, 0), choose(p, &backward, 1)};
}

static struct step choose_step(const struct planner *p, const struct lath_oialr_linear *a) {
  const struct step thin = plan_step(p, a, a->route), whole = plan_step(p, a, LATH_OIALR_MERGED);
  const struct estimate thin_sum = {.forced = thin.forward.forced || thin.backward.forced,
                                    .time = thin.forward.time + thin.backward.time};
  const struct estimate whole_sum = {.forced = whole.forward.forced, .time = whole.forward.time + whole.backward.time};
  return a->route == LATH_OIALR_AUTO && a->dtype != LATH_F64 && is_better(&whole_sum, &thin_sum) ? whole : thin;
}

/* As the CPU counts a layer that takes this route: of the forward, or of the whole step. */
static struct lath_oialr_plan count(const struct lath_oialr_linear *a, lath_oialr_route route, int training) {
  struct lath_oialr_linear counted = *a;
  struct lath_oialr_plan plan = {0};
  counted.route = route;
  counted.dtype = LATH_F32; /* which makes no difference */
  (void)lath_oialr_linear_plan(&counted, training, &plan);
  return plan;
}

lath_status lath_cuda_oialr_linear_plan(const struct lath_oialr_linear *a, const struct lath_cuda *cuda, int training,
                                        struct lath_oialr_plan *plan) {
  struct planner p;
  if (!a || !cuda || !plan) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_cuda_check_dtype(a->dtype));
  LATH_TRY(lath_oialr_check_extents(a));
  if (!make_planner(&p, a->dtype, cuda)) return LATH_DEVICE_FAILED;
  struct lath_oialr_linear alone = *a;
  alone.t = NULL;
  const struct step step = training ? choose_step(&p, a) : (struct step){.forward = choose(&p, &alone, 0)};
  *plan = count(a, step.forward.route, training);
  if (training)
    plan->macs =
        count(a, step.forward.route, 0).macs + count(a, step.backward.route, 1).macs - count(a, step.backward.route, 0).macs;
  return LATH_OK;
}
