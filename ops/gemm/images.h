/* SPDX-License-Identifier: Apache-2.0
 * images.h - inside the library: between images of any layout and type, and the planes of floats that the engine multiplies.
 *
 * A convolution is a product C (channels out, pixels) = W (channels out, taps) X (taps, pixels). X is never formed as a whole: a
 * strip of rows is copied once for every horizontal tap, shifted and padded, and the vertical taps read the same copy some rows
 * further on. So a row of X is an address in the copy, and the rows of a strip follow each other without gaps: vectors run from one
 * image row into the next. */
#ifndef LATH_GEMM_IMAGES_H
#define LATH_GEMM_IMAGES_H

#include "core/arena.h"
#include "gemm/kernels.h"

/* Some rows of some channels of one image, as floats: element (c, h, w) at data[c s_c + h s_h + w]. */
struct lath_planes {
  const float *data;
  int64_t s_c, s_h;
};

/* Which part of the images of a batch. Row r of the part is row first_row + r step of the image. */
struct lath_part {
  int64_t n, channel, channels, first_row, rows, step, width;
};

/* Floats that lath_read_planes may need for its copy; 0 where it reads in place. */
int64_t lath_planes_copy(lath_dtype dtype, const struct lath_images *images, int64_t channels, int64_t rows, int64_t width);

/* The part as planes: in place, or in `copy` (channels, rows, width). */
struct lath_planes lath_read_planes(const struct lath_kernels *kernels, lath_dtype dtype, const struct lath_images *images,
                                    const struct lath_part *part, float *copy);

/* The part of the images := planes, rounded. */
void lath_write_planes(const struct lath_kernels *kernels, lath_dtype dtype, const struct lath_images *images,
                       const struct lath_part *part, const struct lath_planes *planes);

/* Whether rows of the images lie one after the other as floats, so that a product can be written there. */
int lath_images_are_planes(lath_dtype dtype, const struct lath_images *images, int64_t width);

/* Asks for rows that are read soon: a few short pieces of memory are no stream that the hardware would see. */
void lath_fetch_rows(int64_t rows, int64_t width, const float *data, int64_t stride);

/* How windows move along a row: output pixel l and tap j meet pixel l stride - pad + j dilation. */
struct lath_columns {
  int64_t taps, stride, pad, dilation;
  int64_t in, out; /* pixels in a row */
  /* Where rows of x and of y are equally long and one step apart, each tap is a shift of the whole plane but for the pixels that
   * would come from the row before or behind: per tap, the lanes to take of each vector; NULL: not listed. */
  uint32_t *lanes_of;
  int64_t vectors; /* per tap */
};

/* The list for planes of up to `rows` rows. */
void lath_columns_take(struct lath_columns *columns, const struct lath_kernels *kernels, int64_t rows,
                       struct lath_arena *arena);
void lath_columns_fill(const struct lath_columns *columns, const struct lath_kernels *kernels);

/* Where the copies lie: (c, j, h) at data + c s_c + j s_tap + h s_h. */
struct lath_copies {
  float *data;
  int64_t s_c, s_tap, s_h;
};

/* `count` images from part->n on, side by side: for each of them the part is read and spread, columns->out floats after the one
 * before. `planes`: room for lath_planes_copy. */
void lath_load_images(const struct lath_kernels *kernels, lath_dtype dtype, const struct lath_images *images,
                      const struct lath_part *part, int64_t count, const struct lath_columns *columns, int64_t ahead,
                      float *planes, const struct lath_copies *to);

/* Zeroes slots [slot, slot + slots) of `count` planes. */
void lath_zero_slots(float *planes, int64_t count, int64_t plane, int64_t pitch, int64_t slot, int64_t slots);

/* An odd number of cache lines that holds `floats`: planes a power of two apart would compete for the same lines of L1. */
int64_t lath_plane_size(int64_t floats);

/* One copy of the rows per horizontal tap. `ahead`: meanwhile the rows so many floats further on are called into the caches; 0: none. */
void lath_spread_columns(const struct lath_kernels *kernels, const struct lath_columns *columns,
                         const struct lath_planes *planes, int64_t channels, int64_t rows, int64_t ahead,
                         const struct lath_copies *to);

/* The way back: planes (c, h, w) = the sum of what the copies hold for that pixel. */
void lath_gather_columns(const struct lath_kernels *kernels, const struct lath_columns *columns, const struct lath_copies *from,
                         int64_t channels, int64_t rows, float *planes, int64_t s_c, int64_t s_h);

#endif
