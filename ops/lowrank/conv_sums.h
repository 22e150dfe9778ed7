/* SPDX-License-Identifier: Apache-2.0
 * conv_sums.h - gradients of the weights of one stage: sums over all pixels of all images.
 *
 *   d_weight[k][c, i, j] = sum over n, h, l of  output[k][h, l]  input[c][h stride - pad + i dilation, l stride_w - pad_left + j ...]
 *   d_bias[k]            = sum over n, h, l of  output[k][h, l]
 *
 * with `output` the gradient of what the stage gives and `input` what it takes. One of the two is thin, of `rank` channels, and is
 * turned strip by strip into the panel side of a product; the other one is read where it lies or in its copies. Threads share the
 * channels of the wide one, so every sum is one chain over pixels in their order, whatever the number of threads. */
#ifndef LATH_LOWRANK_CONV_SUMS_H
#define LATH_LOWRANK_CONV_SUMS_H

#include "core/arena.h"
#include "lowrank/conv_slots.h"
#include "lowrank/conv_strips.h"

struct lath_sums {
  const struct lath_kernels *kernels;
  const struct lath_conv_rows *stage;
  struct lath_columns columns;       /* of the stage */
  int64_t batch, groups, wide, rank; /* channels of one group */
  int wide_is_input;                 /* 1: sums over x and dz; 0: over z and dy, where the stage has no horizontal taps */
  lath_dtype wide_dtype;
  struct lath_images input, output; /* the thin one is float */
  /* Sums, or NULL. 1: (groups rank, wide taps columns.taps); 0: (groups wide, rank taps). */
  float *d_weight;
  float *d_bias; /* of the output's channels */
  /* set by lath_sums_take */
  int64_t workers, images, pitch, rows, block;
  int64_t wide_plane, thin_plane, s_turned;
  int in_place;                                /* the wide one is read where it lies */
  int dots;                                    /* inner products along pixels instead of panels of the thin one */
  struct lath_conv_rows output_rows;           /* each met once */
  struct lath_slots input_slots, output_slots; /* of the strip's input and output rows */
  int64_t *wide_rows, *thin_rows;
  float *sums; /* per group (wide taps columns.taps, rank), before they are turned to d_weight */
  float *copies, *planes, *thin, *turned, *scratch; /* per worker */
  int64_t copies_size, planes_size, thin_size, turned_size, scratch_size;
};

void lath_sums_take(struct lath_sums *s, const struct lath_host *host, int64_t macs, struct lath_arena *arena);
lath_status lath_sums_run(struct lath_sums *s, const struct lath_host *host);

#endif
