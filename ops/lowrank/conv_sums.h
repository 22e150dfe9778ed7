/* SPDX-License-Identifier: Apache-2.0
 * conv_sums.h - gradients of the weights of one stage: sums over all pixels of all images.
 *
 *   d_weight[k][c, i, j] = sum over n, h, l of  output[k][h, l]  input[c][h stride - pad + i dilation, l stride_w - pad_left + j ...]
 *   d_bias[k]            = sum over n, h, l of  output[k][h, l]
 *
 * with `output` the gradient of what the stage gives and `input` what it takes. One of the two is thin, of `rank` channels, and is
 * turned strip by strip into the panel side of a product; the other one is read where it lies or in its copies. Threads share the
 * channels of the wide one, so every sum is one chain over pixels in their order, whatever the number of threads.
 *
 * One of them *moves*: it is read at every tap of a pixel of the other one, which stays. The output stays by nature; where windows are one
 * step apart the input may as well, and the output moves in reverse. The wide one stays if it can: copies per tap are made of the thin
 * one then, and the wide one is read once. */
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
  int wide_moves, reversed;                              /* which one moves; the output does, in reverse */
  struct lath_conv_rows rows_of_moving, rows_of_staying; /* the first: how windows move over it; the second: each row once */
  struct lath_columns wide_columns, thin_columns;        /* one of them plain */
  struct lath_slots wide_slots, thin_slots;
  int64_t workers, images, pitch, rows,
      block; /* rows of the staying one in a strip; wide channels whose copies are made at a time */
  int64_t wide_plane, thin_plane, s_turned;
  int in_place; /* the wide one is read where it lies */
  int dots;     /* inner products along pixels instead of panels of the thin one */
  int64_t *wide_rows, *thin_rows;
  float *sums;                                      /* before they are turned to d_weight: see write_weight */
  float *copies, *planes, *thin, *turned, *scratch; /* per worker */
  int64_t copies_size, planes_size, thin_size, turned_size, scratch_size;
};

void lath_sums_take(struct lath_sums *s, const struct lath_host *host, int64_t macs, struct lath_arena *arena);
lath_status lath_sums_run(struct lath_sums *s, const struct lath_host *host);

#endif
