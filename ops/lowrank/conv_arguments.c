/* SPDX-License-Identifier: Apache-2.0
 * conv_arguments.c - the extents of a low-rank convolution, and what the entries demand of their arguments. */
#include "core/check.h"
#include "lowrank/conv.h"

/* ---- extents ------------------------------------------------------------------------------------------------------------------------- */

/* How often a window of `taps` fits `in` pixels with their padding: 1 or more. */
static lath_status count_windows(int64_t in, int64_t before, int64_t after, int64_t taps, int64_t stride, int64_t dilation,
                                 int64_t *out) {
  int64_t padded, window;
  if (in < 0 || before < 0 || after < 0 || taps < 1 || stride < 1 || dilation < 1) return LATH_INVALID_ARGUMENT;
  if (__builtin_add_overflow(before, after, &padded) || __builtin_add_overflow(padded, in, &padded) ||
      __builtin_mul_overflow(taps - 1, dilation, &window))
    return LATH_SIZE_OVERFLOW;
  if (window >= padded) return LATH_INVALID_ARGUMENT;
  *out = (padded - window - 1) / stride + 1;
  return LATH_OK;
}

static lath_status check_channels(const struct lath_lowrank_conv2d *a) {
  if (a->batch < 0 || a->groups < 1 || a->in < 0 || a->out < 0 || a->rank < 0) return LATH_INVALID_ARGUMENT;
  return a->in % a->groups || a->out % a->groups ? LATH_INVALID_ARGUMENT : LATH_OK;
}

/* Every buffer of a call, the weights of all groups included, fits the address space, and the multiply-adds of every route can be
 * counted. */
static lath_status check_sizes(const struct lath_lowrank_conv2d *a, const struct lath_conv_shape *s) {
  LATH_TRY(lath_check_extents((const int64_t[]){a->batch, a->in, a->height, a->width}, 4));
  LATH_TRY(lath_check_extents((const int64_t[]){a->batch, a->out, s->out_height, s->width}, 4));
  LATH_TRY(lath_check_extents((const int64_t[]){a->batch, a->groups, a->rank, s->p_height, s->width}, 5));
  LATH_TRY(lath_check_extents((const int64_t[]){a->in, a->rank, a->kernel_h, a->kernel_w}, 4));
  LATH_TRY(lath_check_extents((const int64_t[]){a->out, a->rank, a->kernel_h}, 3));
  LATH_TRY(
      lath_check_extents((const int64_t[]){a->batch, a->in, a->rank, s->first.taps, a->kernel_w, s->p_height, s->width}, 7));
  LATH_TRY(lath_check_extents((const int64_t[]){a->batch, a->out, a->rank, s->second.taps, s->out_height, s->width}, 6));
  LATH_TRY(lath_check_extents((const int64_t[]){a->out, a->rank, s->in, a->kernel_h, a->kernel_w}, 5));
  return lath_check_extents((const int64_t[]){a->batch, a->in, a->out, s->out_height, s->width, a->kernel_h, a->kernel_w}, 7);
}

lath_status lath_conv_shape(const struct lath_lowrank_conv2d *a, struct lath_conv_shape *s) {
  if (!a || !s || (a->form != LATH_SEPARABLE && a->form != LATH_POINTWISE)) return LATH_INVALID_ARGUMENT;
  LATH_TRY(check_channels(a));
  int64_t out_height, out_width;
  LATH_TRY(count_windows(a->height, a->pad_top, a->pad_bottom, a->kernel_h, a->stride_h, a->dilation_h, &out_height));
  LATH_TRY(count_windows(a->width, a->pad_left, a->pad_right, a->kernel_w, a->stride_w, a->dilation_w, &out_width));
  const int separable = a->form == LATH_SEPARABLE;
  const int64_t p_height = separable ? a->height : out_height;
  const struct lath_conv_rows rows = {.taps = a->kernel_h,
                                      .stride = a->stride_h,
                                      .pad = a->pad_top,
                                      .dilation = a->dilation_h,
                                      .in = a->height,
                                      .out = out_height},
                              none = {.taps = 1, .stride = 1, .dilation = 1, .in = p_height, .out = p_height};
  *s = (struct lath_conv_shape){.in = a->in / a->groups,
                                .rank = a->rank,
                                .out = a->out / a->groups,
                                .width = out_width,
                                .p_height = p_height,
                                .out_height = out_height,
                                .first = separable ? none : rows,
                                .second = separable ? rows : none};
  return check_sizes(a, s);
}

int lath_conv_is_plain(const struct lath_lowrank_conv2d *a) {
  return a->dtype == LATH_F64 || a->in == 0 || a->rank == 0 || a->height == 0 || a->width == 0;
}

int lath_conv_has_no_window(const struct lath_lowrank_conv2d *a) {
  return a->kernel_h == 1 && a->kernel_w == 1 && a->pad_top == 0 && a->pad_bottom == 0 && a->pad_left == 0 && a->pad_right == 0;
}

int lath_conv_is_1x1(const struct lath_lowrank_conv2d *a) {
  return lath_conv_has_no_window(a) && a->stride_h == 1 && a->stride_w == 1;
}

int lath_conv_row_is_met(const struct lath_conv_rows *stage, int64_t row) {
  for (int64_t i = 0; i < stage->taps; i++) {
    const int64_t t = row + stage->pad - i * stage->dilation;
    if (t >= 0 && t % stage->stride == 0 && t / stage->stride < stage->out) return 1;
  }
  return 0;
}

lath_status lath_lowrank_conv2d_sizes(const struct lath_lowrank_conv2d *a, struct lath_conv_sizes *sizes) {
  struct lath_conv_shape s;
  if (!sizes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_conv_shape(a, &s));
  *sizes = (struct lath_conv_sizes){.out_height = s.out_height, .out_width = s.width, .p_height = s.p_height};
  return LATH_OK;
}

/* ---- operands ------------------------------------------------------------------------------------------------------------------------ */

static lath_status check_images(const struct lath_images *images, int64_t batch, int64_t channels, int64_t height,
                                int64_t width) {
  const int64_t extents[] = {batch, channels, height, width}, strides[] = {images->s_n, images->s_c, images->s_h, images->s_w};
  for (int i = 0; i < 4; i++)
    if (extents[i] == 0) return LATH_OK;
  if (!images->data) return LATH_INVALID_ARGUMENT;
  for (int i = 0; i < 4; i++) {
    if (extents[i] > 1 && strides[i] < 0) return LATH_INVALID_ARGUMENT;
    if (extents[i] > 1) LATH_TRY(lath_check_extents((const int64_t[]){extents[i], strides[i]}, 2));
  }
  return LATH_OK;
}

/* Images that are written: no two pixels may share their place. */
static lath_status check_outputs(const struct lath_images *images, int64_t batch, int64_t channels, int64_t height,
                                 int64_t width) {
  const int64_t extents[] = {batch, channels, height, width}, strides[] = {images->s_n, images->s_c, images->s_h, images->s_w};
  LATH_TRY(check_images(images, batch, channels, height, width));
  for (int i = 0; i < 4; i++)
    if (extents[i] == 0) return LATH_OK;
  for (int i = 0; i < 4; i++)
    if (extents[i] > 1 && strides[i] == 0) return LATH_INVALID_ARGUMENT;
  return LATH_OK;
}

static lath_status check_operands(const struct lath_lowrank_conv2d *a, struct lath_conv_shape *s) {
  LATH_TRY(lath_conv_shape(a, s));
  LATH_TRY(lath_check_dtype(a->dtype));
  LATH_TRY(check_images(&a->x, a->batch, a->in, a->height, a->width));
  if (a->rank > 0 && a->in > 0 && !a->v) return LATH_INVALID_ARGUMENT;
  return a->rank > 0 && a->out > 0 && !a->u ? LATH_INVALID_ARGUMENT : LATH_OK;
}

lath_status lath_conv_check_forward(const struct lath_lowrank_conv2d *a, struct lath_conv_shape *s) {
  LATH_TRY(check_operands(a, s));
  if (a->dy.data) return LATH_INVALID_ARGUMENT;
  return check_outputs(&a->y, a->batch, a->out, s->out_height, s->width);
}

lath_status lath_conv_check_backward(const struct lath_lowrank_conv2d *a, struct lath_conv_shape *s) {
  LATH_TRY(check_operands(a, s));
  LATH_TRY(check_images(&a->dy, a->batch, a->out, s->out_height, s->width));
  return a->dx.data ? check_outputs(&a->dx, a->batch, a->in, a->height, a->width) : LATH_OK;
}
