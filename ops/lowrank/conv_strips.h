/* SPDX-License-Identifier: Apache-2.0
 * conv_strips.h - how a low-rank convolution is cut into pieces that fit the caches. */
#ifndef LATH_LOWRANK_CONV_STRIPS_H
#define LATH_LOWRANK_CONV_STRIPS_H

#include "core/integers.h"
#include "gemm/images.h"
#include "gemm/kernels.h"
#include "lowrank/conv.h"

#define LATH_STRIP_PIXELS 256   /* copies of a block of channels, z and y of a strip stay in L2 */
#define LATH_BLOCK_CHANNELS 256 /* channels of an image that is read in place are called into L2 by so many */

/* Images that are put side by side where a single one has fewer than `few` pixels: as many as make LATH_STRIP_PIXELS; else 1. */
int64_t lath_images_side_by_side(int64_t batch, int64_t pixels, int64_t few);
#define LATH_FEW_PIXELS 64 /* fill vectors, and read weights often enough */

/* Rows of a strip: of about `pixels` pixels, of equal height as far as `rows` allows. */
int64_t lath_strip_rows(int64_t rows, int64_t pitch, int64_t pixels);

/* The distance between rows of `length` floats that are read side by side: not one at which they compete for the same lines of L1. */
int64_t lath_row_stride(int64_t length);

/* Room behind a buffer for vectors that reach beyond its last plane. */
int64_t lath_with_slack(const struct lath_kernels *kernels, int64_t floats);

/* How windows move along a row of x; and a row that is taken as it is. */
struct lath_columns lath_conv_columns(const struct lath_lowrank_conv2d *args, const struct lath_conv_shape *shape);
struct lath_columns lath_plain_columns(int64_t width);

/* Windows one step apart, seen from what they meet: windows again, whose taps come in reverse. */
struct lath_columns lath_reverse_columns(const struct lath_columns *columns);
struct lath_conv_rows lath_reverse_rows(const struct lath_conv_rows *rows);

/* A buffer (batch, channels, height, width) of floats as images. */
struct lath_images lath_contiguous_images(void *data, int64_t channels, int64_t height, int64_t width);

#endif
