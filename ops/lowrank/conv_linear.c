/* SPDX-License-Identifier: Apache-2.0
 * conv_linear.c - a 1 x 1 convolution as a low-rank linear layer. Only the intermediate is laid out differently: (rank, pixels) of each
 * image here, (pixels, rank) there; it is thin, and turned on the way. */
#include "lowrank/conv_linear.h"

#include "core/arena.h"
#include "core/check.h"
#include "gemm/kernels.h"
#include "lowrank/conv.h"

static int64_t pixels_of(const struct lath_lowrank_conv2d *a) { return a->height * a->width; }

/* Pixels at one distance, channels adjacent. */
static int are_rows(const struct lath_lowrank_conv2d *a, const struct lath_images *images, int64_t channels) {
  if (images->s_w < channels || (channels > 1 && images->s_c != 1)) return 0;
  if (a->height > 1 && images->s_h != a->width * images->s_w) return 0;
  return a->batch <= 1 || images->s_n == pixels_of(a) * images->s_w;
}

int lath_conv_is_linear(const struct lath_lowrank_conv2d *a, int backward) {
  if (!lath_conv_is_1x1(a) || a->groups != 1 || !are_rows(a, &a->x, a->in)) return 0;
  if (!backward) return are_rows(a, &a->y, a->out);
  return are_rows(a, &a->dy, a->out) && (!a->dx.data || are_rows(a, &a->dx, a->in));
}

static struct lath_lowrank_linear as_linear(const struct lath_lowrank_conv2d *a) {
  return (struct lath_lowrank_linear){.dtype = a->dtype,
                                      .association = LATH_FACTORED,
                                      .rows = a->batch * pixels_of(a),
                                      .in = a->in,
                                      .rank = a->rank,
                                      .out = a->out,
                                      .x = a->x.data,
                                      .s_x = a->x.s_w,
                                      .v = a->v,
                                      .s_v = a->in,
                                      .u = a->u,
                                      .s_u = a->rank,
                                      .inner_bias = a->inner_bias,
                                      .bias = a->bias,
                                      .y = a->y.data,
                                      .s_y = a->y.s_w,
                                      .dy = a->dy.data,
                                      .s_dy = a->dy.s_w,
                                      .dx = a->dx.data,
                                      .s_dx = a->dx.s_w,
                                      .dv = a->dv,
                                      .du = a->du,
                                      .d_inner_bias = a->d_inner_bias,
                                      .d_bias = a->d_bias};
}

/* The turned intermediate comes first in the workspace, then what the linear layer needs. */
static size_t turned_bytes(const struct lath_lowrank_conv2d *a) {
  struct lath_arena arena = lath_arena_on(NULL);
  if (a->p) (void)lath_take(&arena, a->batch * pixels_of(a), a->rank);
  return arena.used;
}

static struct lath_lowrank_linear with_workspace(const struct lath_lowrank_conv2d *a) {
  struct lath_lowrank_linear l = as_linear(a);
  struct lath_arena arena = lath_arena_on(a->workspace);
  l.p = a->p ? lath_take(&arena, l.rows, l.rank) : NULL;
  l.workspace = (char *)a->workspace + turned_bytes(a);
  l.workspace_bytes = a->workspace_bytes - turned_bytes(a);
  return l;
}

lath_status lath_conv_linear_workspace(const struct lath_lowrank_conv2d *a, int backward, const struct lath_host *host,
                                       size_t *bytes) {
  struct lath_lowrank_linear l = as_linear(a);
  l.p = a->p;
  LATH_TRY(backward ? lath_lowrank_linear_backward_workspace(&l, host, bytes) : lath_lowrank_linear_workspace(&l, host, bytes));
  return __builtin_add_overflow(*bytes, turned_bytes(a), bytes) ? LATH_SIZE_OVERFLOW : LATH_OK;
}

lath_status lath_conv_linear(const struct lath_lowrank_conv2d *a, const struct lath_host *host) {
  const struct lath_lowrank_linear l = with_workspace(a);
  LATH_TRY(lath_lowrank_linear(&l, host));
  const int64_t pixels = pixels_of(a), size = pixels * a->rank;
  for (int64_t n = 0; a->p && n < a->batch; n++)
    lath_kernels()->transpose(pixels, a->rank, (float *)l.p + n * size, a->rank, (float *)a->p + n * size, pixels);
  return LATH_OK;
}

lath_status lath_conv_linear_backward(const struct lath_lowrank_conv2d *a, const struct lath_host *host) {
  const struct lath_lowrank_linear l = with_workspace(a);
  const int64_t pixels = pixels_of(a), size = pixels * a->rank;
  for (int64_t n = 0; a->p && n < a->batch; n++)
    lath_kernels()->transpose(a->rank, pixels, (const float *)a->p + n * size, pixels, (float *)l.p + n * size, a->rank);
  return lath_lowrank_linear_backward(&l, host);
}
