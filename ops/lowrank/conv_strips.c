/* SPDX-License-Identifier: Apache-2.0
 * conv_strips.c - how a low-rank convolution is cut into pieces that fit the caches. */
#include "lowrank/conv_strips.h"

/* The most images that fit, or as few as half of that, if the last group is fuller then: 8 as 4 + 4, never 6 + 2, which would cost as
 * much as 6 + 6. */
static int64_t even_groups(int64_t batch, int64_t most) {
  int64_t best = most;
  for (int64_t images = most - 1; images >= lath_ceil_div(most, 2); images--)
    if (lath_ceil_div(batch, images) * images < lath_ceil_div(batch, best) * best) best = images;
  return best;
}

int64_t lath_images_side_by_side(int64_t batch, int64_t pixels, int64_t few) {
  if (pixels >= few) return 1;
  const int64_t most = lath_smaller(lath_larger(batch, 1), lath_ceil_div(LATH_STRIP_PIXELS, lath_larger(pixels, 1)));
  return even_groups(batch, most);
}

int64_t lath_strip_rows(int64_t rows, int64_t pitch, int64_t pixels) {
  const int64_t strips = lath_larger(1, lath_smaller(rows, lath_ceil_div(rows * pitch, pixels)));
  return lath_ceil_div(rows, strips);
}

int64_t lath_row_stride(int64_t length) { return length % 512 == 0 ? length + 16 : length; }

int64_t lath_with_slack(const struct lath_kernels *kernels, int64_t floats) {
  return floats + (int64_t)LATH_MAX_VECS * kernels->lanes;
}

struct lath_columns lath_conv_columns(const struct lath_lowrank_conv2d *a, const struct lath_conv_shape *s) {
  return (struct lath_columns){.taps = a->kernel_w,
                               .stride = a->stride_w,
                               .pad = a->pad_left,
                               .dilation = a->dilation_w,
                               .in = a->width,
                               .out = s->width};
}

struct lath_columns lath_plain_columns(int64_t width) {
  return (struct lath_columns){.taps = 1, .stride = 1, .dilation = 1, .in = width, .out = width};
}

struct lath_images lath_contiguous_images(void *data, int64_t channels, int64_t height, int64_t width) {
  return (struct lath_images){.data = data, .s_n = channels * height * width, .s_c = height * width, .s_h = width, .s_w = 1};
}

struct lath_columns lath_reverse_columns(const struct lath_columns *c) {
  return (struct lath_columns){.taps = c->taps,
                               .stride = 1,
                               .pad = (c->taps - 1) * c->dilation - c->pad,
                               .dilation = c->dilation,
                               .in = c->out,
                               .out = c->in};
}

struct lath_conv_rows lath_reverse_rows(const struct lath_conv_rows *r) {
  return (struct lath_conv_rows){.taps = r->taps,
                                 .stride = 1,
                                 .pad = (r->taps - 1) * r->dilation - r->pad,
                                 .dilation = r->dilation,
                                 .in = r->out,
                                 .out = r->in};
}
