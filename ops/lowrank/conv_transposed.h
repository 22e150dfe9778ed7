/* SPDX-License-Identifier: Apache-2.0
 * conv_transposed.h - one stage of a low-rank convolution run backwards: from gradients of its output to gradients of its input.
 *
 *   target[c][t stride_in_rows, w] = sum over taps (i, j) and sources k of  weight[k][c, i, j]  source[k][h, l]
 *
 * for all h and l whose windows meet that pixel. Rows of one residue modulo the stride meet the same taps, each at a fixed distance:
 * so a strip takes rows of one residue, and no multiply-add is spent on the zeros between strided rows. Horizontal taps one pixel
 * apart are the same in reverse: they are copies of the source, as in the forward. With a horizontal stride they are kept apart in the
 * product and added up on the way out (lath_gather_columns). */
#ifndef LATH_LOWRANK_CONV_TRANSPOSED_H
#define LATH_LOWRANK_CONV_TRANSPOSED_H

#include "core/arena.h"
#include "lowrank/conv_strips.h"

struct lath_transposed {
  const struct lath_kernels *kernels;
  const struct lath_conv_rows *stage;
  struct lath_columns columns;             /* of the stage; {1, 1, 0, 1} where it has no horizontal taps */
  int64_t batch, groups, sources, targets; /* channels of one group */
  lath_dtype source_dtype, target_dtype;
  struct lath_images source, target; /* target.data NULL: nothing is run */
  const float *weight;               /* (sources, targets taps columns.taps) per group, row stride s_weight */
  int64_t s_weight;
  /* set by lath_transposed_take */
  struct lath_columns from, to;                /* how the source is spread and the product is gathered: one of them plain */
  int64_t workers, images, pitch, rows, block; /* rows in a strip, target channels in a block */
  int64_t source_plane, target_plane, s_turned;
  int in_place, direct;    /* the source is read where it lies; the product is written where it belongs */
  float *turned, *turning; /* per group (targets to.taps, taps from.taps sources); room for one channel of it per worker */
  int64_t turning_size;
  int64_t *source_rows;
  float *copies, *source_planes, *products, *planes, *scratch; /* per worker */
  int64_t copies_size, source_planes_size, products_size, planes_size, scratch_size;
};

/* Needs the fields above `weight`, and of the images their strides. `macs`: of the whole stage. */
void lath_transposed_take(struct lath_transposed *t, const struct lath_host *host, int64_t macs, struct lath_arena *arena);
lath_status lath_transposed_run(struct lath_transposed *t, const struct lath_host *host);

#endif
