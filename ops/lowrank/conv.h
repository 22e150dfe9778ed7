/* SPDX-License-Identifier: Apache-2.0
 * conv.h - inside the library: what the files of the low-rank convolution share.
 *
 * Both forms are one thing seen from here. The horizontal taps are always in the first stage; the vertical ones are in the first
 * (pointwise) or in the second (separable):
 *
 *   z[q][t, l]  = inner_bias[q] + sum over c, i, j of  v[q][c, i, j]  x[c][t stride - pad + i dilation, l stride_w - pad_left + j dilation_w]
 *   y[o][h, l]  = bias[o]       + sum over q, i    of  u[o][q, i]     z[q][h stride - pad + i dilation, l]
 *
 * where taps, stride, pad and dilation are those of the stage's `struct lath_conv_rows`, and terms outside of x or z are zero. */
#ifndef LATH_LOWRANK_CONV_H
#define LATH_LOWRANK_CONV_H

#include "core/arena.h"
#include "lath.h"

/* How a stage moves over the rows of its input. */
struct lath_conv_rows {
  int64_t taps, stride, pad, dilation;
  int64_t in, out; /* rows of its input and output */
};

struct lath_conv_shape {
  int64_t in, rank, out;               /* channels of one group */
  int64_t width, p_height, out_height; /* of y and z */
  struct lath_conv_rows first, second;
};

/* Checks the extents as lath_lowrank_conv2d_sizes does. */
lath_status lath_conv_shape(const struct lath_lowrank_conv2d *args, struct lath_conv_shape *shape);

/* Whether the plain loops carry out the call: F64, and sums over nothing. */
int lath_conv_is_plain(const struct lath_lowrank_conv2d *args);

/* A 1 x 1 convolution without padding; and one that meets every pixel, having no stride. */
int lath_conv_has_no_window(const struct lath_lowrank_conv2d *args);
int lath_conv_is_1x1(const struct lath_lowrank_conv2d *args);

/* Whether any window of the stage meets row `row` of its input. */
int lath_conv_row_is_met(const struct lath_conv_rows *stage, int64_t row);

lath_status lath_conv_check_forward(const struct lath_lowrank_conv2d *args, struct lath_conv_shape *shape);
lath_status lath_conv_check_backward(const struct lath_lowrank_conv2d *args, struct lath_conv_shape *shape);

/* Workspace of the `_ref` twins; every query answers at least this. */
size_t lath_conv_reference_bytes(const struct lath_lowrank_conv2d *args, const struct lath_conv_shape *shape);

#endif
