/* SPDX-License-Identifier: Apache-2.0
 * conv_plan.c - which route a low-rank convolution takes. Arithmetic on the extents only; the constants were measured
 * (docs/planner.md). */
#include "core/check.h"
#include "lowrank/conv.h"

/* Keeping an element of the intermediate costs a write and a read; computing it again costs this many multiply-adds and more. */
#define MIN_TAPS_TO_SAVE 32
#define PAIR_MIN_MACS (INT64_C(1) << 22)
#define CHANNELS_TO_TURN 16
#define FULL_VECTOR 16
#define HALF_VECTOR 8
#define MANY_CHANNELS 128
#define TINY_IMAGE 16
#define LARGE_IMAGE 1024

/* One window of all channels of a group, for both stages. Without a window, rows between strides are not computed. */
static int64_t factored_macs(const struct lath_lowrank_conv2d *a, const struct lath_conv_shape *s) {
  const int64_t rows = lath_conv_has_no_window(a) ? s->out_height : s->p_height;
  const int64_t first = s->in * s->first.taps * a->kernel_w * rows, second = s->out * s->second.taps * s->out_height;
  return a->batch * a->groups * s->rank * s->width * (first + second);
}

static int64_t dense_macs(const struct lath_lowrank_conv2d *a, const struct lath_conv_shape *s) {
  return a->batch * a->groups * s->in * s->out * a->kernel_h * a->kernel_w * s->out_height * s->width;
}

/* Forming the dense weight first. */
static int64_t merged_macs(const struct lath_lowrank_conv2d *a, const struct lath_conv_shape *s) {
  return dense_macs(a, s) + a->out * s->rank * s->in * a->kernel_h * a->kernel_w;
}

/* A multiply-add of the dense convolution costs a tenth less: there is nothing between two products. */
static int dense_pays(const struct lath_lowrank_conv2d *a, const struct lath_conv_shape *s) {
  return factored_macs(a, s) / 10 * 11 > merged_macs(a, s);
}

/* Channels-last images whose ranks fill vectors: a library has nothing to pad, and nothing to turn. Half filled ones where rows of images
 * leave our vectors half filled, too. Many channels are more to turn, with any rank of more than half a vector. */
static int suits_a_library(const struct lath_lowrank_conv2d *a, const struct lath_conv_shape *s, int backward) {
  if (a->kernel_h * a->kernel_w == 1) return 0;
  if (a->form == LATH_POINTWISE && !backward && s->in >= MANY_CHANNELS && s->rank > HALF_VECTOR) return 1;
  if (s->rank % FULL_VECTOR == 0) return a->form == LATH_POINTWISE || !backward || s->out_height * s->width < LARGE_IMAGE;
  return a->form == LATH_SEPARABLE && s->rank % HALF_VECTOR == 0 && s->width % HALF_VECTOR != 0;
}

/* What two library convolutions do better: bf16 on processors that multiply it, once the work outweighs two calls; channels-last images of
 * too few channels to be turned, or whose rank suits a library; and in training windows of the pointwise form whose rank fills vectors,
 * on tiny images. */
static int pair_pays(const struct lath_lowrank_conv2d *a, const struct lath_conv_shape *s, int backward) {
  if (a->dtype == LATH_BF16) return lath_cpu_multiplies_bf16() && factored_macs(a, s) > PAIR_MIN_MACS;
  if (a->x.s_c == 1 && a->in > 1) return s->in < CHANNELS_TO_TURN || suits_a_library(a, s, backward);
  const int full_windows = a->form == LATH_POINTWISE && a->kernel_h * a->kernel_w > 1 && s->rank % FULL_VECTOR == 0;
  return backward && full_windows && s->out_height * s->width <= TINY_IMAGE;
}

static lath_conv_kernel route(const struct lath_lowrank_conv2d *a, const struct lath_conv_shape *s, int backward) {
  if (a->dtype == LATH_F64) return LATH_CONV_PLAIN;
  if (dense_pays(a, s)) return LATH_CONV_MERGED;
  if (a->dtype == LATH_F32 && lath_conv_has_no_window(a) && a->groups == 1 && a->x.s_c == 1 && a->in > 1)
    return LATH_CONV_LINEAR;
  return pair_pays(a, s, backward) ? LATH_CONV_PAIR : LATH_CONV_FUSED;
}

lath_status lath_lowrank_conv2d_plan(const struct lath_lowrank_conv2d *a, int backward, struct lath_conv_plan *plan) {
  struct lath_conv_shape s;
  if (!plan) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_conv_shape(a, &s));
  LATH_TRY(lath_check_dtype(a->dtype));
  const int64_t passes = backward ? 2 : 1;
  const lath_conv_kernel kernel = route(a, &s, backward);
  *plan = (struct lath_conv_plan){
      .kernel = kernel,
      .macs = passes * (kernel == LATH_CONV_MERGED ? merged_macs(a, &s) : factored_macs(a, &s)),
      .dense_macs = passes * dense_macs(a, &s),
      .save_intermediate = s.in * s.first.taps * a->kernel_w >= MIN_TAPS_TO_SAVE,
  };
  return LATH_OK;
}
