/* SPDX-License-Identifier: Apache-2.0
 * conv_reference.c - the `_ref` twins of the low-rank convolution. They are the oracle of the tests and the path of F64. */
#include <string.h>

#include "core/check.h"
#include "lowrank/conv.h"

/* Sums over the whole batch. */
struct sums {
  double *v, *u, *bias, *inner_bias;
};

#define FOR_EACH_PIXEL(h, w, height, width) \
  for (int64_t h = 0; h < (height); h++)    \
    for (int64_t w = 0; w < (width); w++)
#define FOR_EACH_TAP(c, i, j, channels, taps_h, taps_w) \
  for (int64_t c = 0; c < (channels); c++)              \
    for (int64_t i = 0; i < (taps_h); i++)              \
      for (int64_t j = 0; j < (taps_w); j++)

static int64_t row_at(const struct lath_conv_rows *rows, int64_t out, int64_t tap) {
  return out * rows->stride - rows->pad + tap * rows->dilation;
}

static int64_t column_at(const struct lath_lowrank_conv2d *a, int64_t out, int64_t tap) {
  return out * a->stride_w - a->pad_left + tap * a->dilation_w;
}

/* Multiply-adds of one element of z. */
static int64_t window_of(const struct lath_lowrank_conv2d *a, const struct lath_conv_shape *s) {
  return s->in * s->first.taps * a->kernel_w;
}

#define LOOPS "lowrank/conv_reference.inc"
#include "core/every_type.inc"

/* ---- workspace ----------------------------------------------------------------------------------------------------------------------- */

struct buffers {
  double *z, *dz, *dx;
  struct sums sums;
};

static double *take(struct lath_arena *arena, int64_t count) { return (double *)(void *)lath_take(arena, count, 2); }

static struct buffers prepare(const struct lath_lowrank_conv2d *a, const struct lath_conv_shape *s, struct lath_arena *arena) {
  const int64_t ranks = a->groups * s->rank, size = ranks * s->p_height * s->width;
  struct buffers b = {.z = take(arena, size), .dz = take(arena, size), .dx = take(arena, a->in * a->height * a->width)};
  b.sums.v = take(arena, ranks * window_of(a, s));
  b.sums.u = take(arena, a->out * s->rank * s->second.taps);
  b.sums.bias = take(arena, a->out);
  b.sums.inner_bias = take(arena, ranks);
  return b;
}

size_t lath_conv_reference_bytes(const struct lath_lowrank_conv2d *a, const struct lath_conv_shape *s) {
  struct lath_arena arena = lath_arena_on(NULL);
  (void)prepare(a, s, &arena);
  return arena.used;
}

static lath_status take_workspace(const struct lath_lowrank_conv2d *a, const struct lath_conv_shape *s, struct buffers *b) {
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, lath_conv_reference_bytes(a, s)));
  struct lath_arena arena = lath_arena_on(a->workspace);
  *b = prepare(a, s, &arena);
  return LATH_OK;
}

static void zero(double *sum, int64_t count) { memset(sum, 0, (size_t)count * sizeof *sum); }

/* ---- entries -------------------------------------------------------------------------------------------------------------------------- */

lath_status lath_lowrank_conv2d_ref(const struct lath_lowrank_conv2d *a) {
  struct lath_conv_shape s;
  struct buffers b;
  LATH_TRY(lath_conv_check_forward(a, &s));
  LATH_TRY(take_workspace(a, &s, &b));
  if (a->dtype == LATH_F64) conv_forward_f64(a, &s, b.z);
  if (a->dtype == LATH_F32) conv_forward_f32(a, &s, b.z);
  if (a->dtype == LATH_BF16) conv_forward_bf16(a, &s, b.z);
  return LATH_OK;
}

lath_status lath_lowrank_conv2d_backward_ref(const struct lath_lowrank_conv2d *a) {
  struct lath_conv_shape s;
  struct buffers b;
  LATH_TRY(lath_conv_check_backward(a, &s));
  LATH_TRY(take_workspace(a, &s, &b));
  zero(b.sums.v, a->groups * s.rank * window_of(a, &s));
  zero(b.sums.u, a->out * s.rank * s.second.taps);
  zero(b.sums.bias, a->out);
  zero(b.sums.inner_bias, a->groups * s.rank);
  if (a->dtype == LATH_F64) conv_backward_f64(a, &s, b.z, b.dz, b.dx, &b.sums);
  if (a->dtype == LATH_F32) conv_backward_f32(a, &s, b.z, b.dz, b.dx, &b.sums);
  if (a->dtype == LATH_BF16) conv_backward_bf16(a, &s, b.z, b.dz, b.dx, &b.sums);
  return LATH_OK;
}
