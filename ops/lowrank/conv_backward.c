/* SPDX-License-Identifier: Apache-2.0
 * conv_backward.c - the gradients of a low-rank convolution, stage by stage:
 *
 *   z, if it was not kept      the first stage again
 *   dz                         the second stage transposed, from dy
 *   dx                         the first stage transposed, from dz
 *   dv, d_inner_bias           sums over x and dz
 *   du, d_bias                 sums over z and dy
 *
 * z and dz are thin: of all images, they are kept in the workspace. x and dy are read in strips, each as often as it is needed. */
#include "core/check.h"
#include "core/convert.h"
#include "core/host.h"
#include "lowrank/conv_forward.h"
#include "lowrank/conv_linear.h"
#include "lowrank/conv_sums.h"
#include "lowrank/conv_transposed.h"
#include "lowrank/lowrank.h"

struct backward {
  const struct lath_lowrank_conv2d *a;
  struct lath_conv_shape s;
  float *z, *dz;                          /* (batch, groups rank, p_height, width) */
  float *v, *u;                           /* float copies, for other types than float */
  float *dv, *du, *d_bias, *d_inner_bias; /* sums in float: the outputs themselves, or room for them */
  struct lath_transposed to_z, to_x;
  struct lath_sums of_v, of_u;
};

static int64_t v_length(const struct backward *b) { return b->s.in * b->s.first.taps * b->a->kernel_w; }
static int64_t u_length(const struct backward *b) { return b->s.rank * b->s.second.taps; }

static int wants_dz(const struct lath_lowrank_conv2d *a) { return a->dx.data || a->dv || a->d_inner_bias; }

/* ---- what each part is ------------------------------------------------------------------------------------------------------------------ */

static struct lath_images thin(const struct backward *b, float *data) {
  return lath_contiguous_images(data, b->a->groups * b->s.rank, b->s.p_height, b->s.width);
}

static struct lath_transposed second_transposed(const struct backward *b) {
  const struct lath_lowrank_conv2d *a = b->a;
  return (struct lath_transposed){.stage = &b->s.second,
                                  .columns = lath_plain_columns(b->s.width),
                                  .batch = a->batch,
                                  .groups = a->groups,
                                  .sources = b->s.out,
                                  .targets = b->s.rank,
                                  .source_dtype = a->dtype,
                                  .target_dtype = LATH_F32,
                                  .source = a->dy,
                                  .target = thin(b, b->dz),
                                  .s_weight = u_length(b)};
}

static struct lath_transposed first_transposed(const struct backward *b) {
  const struct lath_lowrank_conv2d *a = b->a;
  return (struct lath_transposed){.stage = &b->s.first,
                                  .columns = lath_conv_columns(a, &b->s),
                                  .batch = a->batch,
                                  .groups = a->groups,
                                  .sources = b->s.rank,
                                  .targets = b->s.in,
                                  .source_dtype = LATH_F32,
                                  .target_dtype = a->dtype,
                                  .source = thin(b, b->dz),
                                  .target = a->dx,
                                  .s_weight = v_length(b)};
}

static struct lath_sums sums_of_v(const struct backward *b) {
  const struct lath_lowrank_conv2d *a = b->a;
  return (struct lath_sums){.stage = &b->s.first,
                            .columns = lath_conv_columns(a, &b->s),
                            .batch = a->batch,
                            .groups = a->groups,
                            .wide = b->s.in,
                            .rank = b->s.rank,
                            .wide_is_input = 1,
                            .wide_dtype = a->dtype,
                            .input = a->x,
                            .output = thin(b, b->dz),
                            .d_weight = b->dv,
                            .d_bias = b->d_inner_bias};
}

static struct lath_sums sums_of_u(const struct backward *b) {
  const struct lath_lowrank_conv2d *a = b->a;
  return (struct lath_sums){.stage = &b->s.second,
                            .columns = lath_plain_columns(b->s.width),
                            .batch = a->batch,
                            .groups = a->groups,
                            .wide = b->s.out,
                            .rank = b->s.rank,
                            .wide_dtype = a->dtype,
                            .input = thin(b, b->z),
                            .output = a->dy,
                            .d_weight = b->du,
                            .d_bias = b->d_bias};
}

/* ---- workspace ---------------------------------------------------------------------------------------------------------------------------- */

/* The parts run one after the other, so they share what is left of the workspace. */
static void take_parts(struct backward *b, const struct lath_host *host, int64_t macs, struct lath_arena *arena) {
  const struct lath_lowrank_conv2d *a = b->a;
  const struct lath_arena rest = *arena;
  struct lath_arena part = rest;
  if (wants_dz(a)) {
    b->to_z = second_transposed(b);
    lath_transposed_take(&b->to_z, host, macs, &part);
    lath_arena_cover(arena, &part);
  }
  if (a->dx.data) {
    part = rest;
    b->to_x = first_transposed(b);
    lath_transposed_take(&b->to_x, host, macs, &part);
    lath_arena_cover(arena, &part);
  }
  if (a->dv || a->d_inner_bias) {
    part = rest;
    b->of_v = sums_of_v(b);
    lath_sums_take(&b->of_v, host, macs, &part);
    lath_arena_cover(arena, &part);
  }
  if (a->du || a->d_bias) {
    part = rest;
    b->of_u = sums_of_u(b);
    lath_sums_take(&b->of_u, host, macs, &part);
    lath_arena_cover(arena, &part);
  }
}

static lath_status prepare(struct backward *b, const struct lath_lowrank_conv2d *a, const struct lath_host *host,
                           struct lath_arena *arena, struct lath_arena *first_stage) {
  struct lath_conv_plan plan;
  b->a = a;
  LATH_TRY(lath_lowrank_conv2d_plan(a, 0, &plan));
  const int64_t ranks = a->groups * b->s.rank, z = a->batch * ranks * b->s.p_height;
  b->z = a->p ? a->p : a->du ? lath_take(arena, z, b->s.width) : NULL;
  if (wants_dz(a)) b->dz = lath_take(arena, z, b->s.width);
  if (a->dtype != LATH_F32) {
    b->v = lath_take(arena, ranks, v_length(b));
    b->u = lath_take(arena, a->out, u_length(b));
  }
  b->dv = lath_take_sum(arena, a->dtype, a->dv, ranks * v_length(b));
  b->du = lath_take_sum(arena, a->dtype, a->du, a->out * u_length(b));
  b->d_bias = lath_take_sum(arena, a->dtype, a->d_bias, a->out);
  b->d_inner_bias = lath_take_sum(arena, a->dtype, a->d_inner_bias, ranks);
  *first_stage = *arena;
  struct lath_arena part = *arena;
  if (!a->p && a->du) lath_conv_first_stage_take(a, &b->s, host, &part);
  take_parts(b, host, plan.macs, arena);
  lath_arena_cover(arena, &part);
  return LATH_OK;
}

lath_status lath_lowrank_conv2d_backward_workspace(const struct lath_lowrank_conv2d *a, const struct lath_host *host,
                                                   size_t *bytes) {
  struct backward b = {0};
  if (!host || !bytes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_conv_shape(a, &b.s));
  LATH_TRY(lath_check_dtype(a->dtype));
  struct lath_arena arena = lath_arena_on(NULL), first_stage;
  if (!lath_conv_is_plain(a) && lath_conv_is_linear(a, 1))
    LATH_TRY(lath_conv_linear_workspace(a, 1, host, &arena.used));
  else if (!lath_conv_is_plain(a))
    LATH_TRY(prepare(&b, a, host, &arena, &first_stage));
  return lath_arena_bytes(&arena, lath_conv_reference_bytes(a, &b.s), bytes);
}

/* ---- running ------------------------------------------------------------------------------------------------------------------------------ */

static lath_status run(struct backward *b, const struct lath_host *host) {
  const struct lath_lowrank_conv2d *a = b->a;
  const int64_t ranks = a->groups * b->s.rank;
  int64_t unused;
  b->to_z.weight = lath_as_float(a->dtype, a->out, u_length(b), a->u, u_length(b), b->u, &unused);
  b->to_x.weight = lath_as_float(a->dtype, ranks, v_length(b), a->v, v_length(b), b->v, &unused);
  if (wants_dz(a)) LATH_TRY(lath_transposed_run(&b->to_z, host));
  if (a->dx.data) LATH_TRY(lath_transposed_run(&b->to_x, host));
  if (a->dv || a->d_inner_bias) LATH_TRY(lath_sums_run(&b->of_v, host));
  if (a->du || a->d_bias) LATH_TRY(lath_sums_run(&b->of_u, host));
  if (b->dv) lath_from_float(a->dtype, ranks, v_length(b), b->dv, a->dv, v_length(b));
  if (b->du) lath_from_float(a->dtype, a->out, u_length(b), b->du, a->du, u_length(b));
  if (b->d_bias) lath_from_float(a->dtype, 1, a->out, b->d_bias, a->d_bias, a->out);
  if (b->d_inner_bias) lath_from_float(a->dtype, 1, ranks, b->d_inner_bias, a->d_inner_bias, ranks);
  return LATH_OK;
}

lath_status lath_lowrank_conv2d_backward(const struct lath_lowrank_conv2d *a, const struct lath_host *host) {
  struct backward b = {0};
  size_t bytes;
  if (!host) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_conv_check_backward(a, &b.s));
  LATH_TRY(lath_lowrank_conv2d_backward_workspace(a, host, &bytes));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, bytes));
  if (lath_conv_is_plain(a)) return lath_lowrank_conv2d_backward_ref(a);
  if (lath_conv_is_linear(a, 1)) return lath_conv_linear_backward(a, host);
  struct lath_arena arena = lath_arena_on(a->workspace), first_stage;
  LATH_TRY(prepare(&b, a, host, &arena, &first_stage));
  if (!a->p && a->du) LATH_TRY(lath_conv_first_stage(a, &b.s, host, first_stage, b.z));
  return run(&b, host);
}
