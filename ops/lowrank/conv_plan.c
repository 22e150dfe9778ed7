/* SPDX-License-Identifier: Apache-2.0
 * conv_plan.c - which route a low-rank convolution takes. Arithmetic on the extents only; the constants were measured
 * (docs/planner.md). */
#include "core/check.h"
#include "lowrank/conv.h"

/* Keeping an element of the intermediate costs a write and a read; computing it again costs this many multiply-adds and more. */
#define MIN_TAPS_TO_SAVE 32

/* One window of all channels of a group, for both stages. */
static int64_t factored_macs(const struct lath_lowrank_conv2d *a, const struct lath_conv_shape *s) {
  const int64_t first = s->in * s->first.taps * a->kernel_w * s->p_height, second = s->out * s->second.taps * s->out_height;
  return a->batch * a->groups * s->rank * s->width * (first + second);
}

static int64_t dense_macs(const struct lath_lowrank_conv2d *a, const struct lath_conv_shape *s) {
  return a->batch * a->groups * s->in * s->out * a->kernel_h * a->kernel_w * s->out_height * s->width;
}

static lath_conv_kernel route(const struct lath_lowrank_conv2d *a) {
  if (a->dtype == LATH_F64) return LATH_CONV_PLAIN;
  return LATH_CONV_FUSED;
}

lath_status lath_lowrank_conv2d_plan(const struct lath_lowrank_conv2d *a, int backward, struct lath_conv_plan *plan) {
  struct lath_conv_shape s;
  if (!plan) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_conv_shape(a, &s));
  if (!lath_dtype_size(a->dtype)) return LATH_UNSUPPORTED_DTYPE;
  const int64_t passes = backward ? 2 : 1;
  *plan = (struct lath_conv_plan){
      .kernel = route(a),
      .macs = passes * factored_macs(a, &s),
      .dense_macs = passes * dense_macs(a, &s),
      .save_intermediate = s.in * s.first.taps * a->kernel_w >= MIN_TAPS_TO_SAVE,
  };
  return LATH_OK;
}
