/* SPDX-License-Identifier: Apache-2.0
 * op_conv.c - lath::lowrank_conv2d, with and without the intermediate, its backward, and its plan. */
#include <inttypes.h>

#include "device.h"
#include "host.h"
#include "images.h"
#include "kernels.h"

struct shape {
  int64_t sizes[4];
};

/* A call in the making: the struct for liblath, and what its outputs are shaped after. */
struct conv {
  struct lath_lowrank_conv2d args;
  struct lead lead;
  struct tensor x;
  struct shape v, u, y, p;
};

/* ---- arguments --------------------------------------------------------------------------------------------------------------- */

enum { GEOMETRY_NUMBERS = 9 }; /* and `separable` after them */

static bool take_geometry(struct call *call, int index, struct lath_lowrank_conv2d *a) {
  const struct {
    const char *name;
    int64_t low, *value;
  } numbers[GEOMETRY_NUMBERS] = {
      {"stride_h", 1, &a->stride_h},     {"stride_w", 1, &a->stride_w},     {"pad_top", 0, &a->pad_top},
      {"pad_bottom", 0, &a->pad_bottom}, {"pad_left", 0, &a->pad_left},     {"pad_right", 0, &a->pad_right},
      {"dilation_h", 1, &a->dilation_h}, {"dilation_w", 1, &a->dilation_w}, {"groups", 1, &a->groups},
  };
  for (int i = 0; i < GEOMETRY_NUMBERS; i++)
    if (!call_int_between(call, index + i, numbers[i].name, numbers[i].low, INT64_MAX, numbers[i].value)) return false;
  a->form = call_bool(call, index + GEOMETRY_NUMBERS) ? LATH_SEPARABLE : LATH_POINTWISE;
  return true;
}

static bool take_x(struct call *call, int index, struct conv *c) {
  struct lath_lowrank_conv2d *a = &c->args;
  if (!unpack_images(call, index, "x", &c->x, &c->lead, &a->x)) return false;
  a->dtype = c->lead.dtype;
  a->batch = c->x.sizes[0], a->in = c->x.sizes[1], a->height = c->x.sizes[2], a->width = c->x.sizes[3];
  if (a->in % a->groups) return fail_shape(call, &c->x, "channels that are a multiple of groups, %" PRId64, a->groups);
  return true;
}

static bool take_weight(struct call *call, int index, const char *name, const struct conv *c, struct tensor *tensor,
                        const void **data) {
  struct matrix matrix;
  if (!unpack_tensor(call, index, name, tensor) || !unpack_same_dtype(call, tensor, &c->lead)) return false;
  if (tensor->dim != 4) return fail_shape(call, tensor, "4 dimensions");
  if (tensor->sizes[2] == 0 || tensor->sizes[3] == 0) return fail_shape(call, tensor, "at least one tap");
  if (!unpack_contiguous(call, tensor, &matrix)) return false;
  *data = matrix.data;
  return true;
}

static bool take_v(struct call *call, int index, struct conv *c) {
  struct lath_lowrank_conv2d *a = &c->args;
  struct tensor v;
  if (!take_weight(call, index, "weight_v", c, &v, &a->v)) return false;
  const int64_t ranks = v.sizes[0], in = a->in / a->groups;
  const bool separable = a->form == LATH_SEPARABLE;
  if (ranks == 0) return call_fail(call, "weight_v", "got rank 0, expected at least 1");
  if (ranks % a->groups || v.sizes[1] != in || (separable && v.sizes[2] != 1))
    return fail_shape(
        call, &v, "(%" PRId64 " * rank, %" PRId64 ", %s, kernel_w) to match %" PRId64 " channels of x in %" PRId64 " groups",
        a->groups, in, separable ? "1" : "kernel_h", a->in, a->groups);
  a->rank = ranks / a->groups;
  a->kernel_h = v.sizes[2], a->kernel_w = v.sizes[3];
  return true;
}

/* After weight_v. */
static bool take_u(struct call *call, int index, struct conv *c) {
  struct lath_lowrank_conv2d *a = &c->args;
  struct tensor u;
  if (!take_weight(call, index, "weight_u", c, &u, &a->u)) return false;
  const bool separable = a->form == LATH_SEPARABLE;
  if (u.sizes[0] % a->groups || u.sizes[1] != a->rank || (!separable && u.sizes[2] != 1) || u.sizes[3] != 1)
    return fail_shape(call, &u,
                      "(out_channels, %" PRId64 ", %s, 1) to match the rank of weight_v, out_channels a multiple of %" PRId64
                      " groups",
                      a->rank, separable ? "kernel_h" : "1", a->groups);
  a->out = u.sizes[0];
  if (separable) a->kernel_h = u.sizes[2];
  return true;
}

/* The shapes of weights and outputs, once those of x and the weights are known. */
static bool settle_sizes(struct call *call, struct conv *c) {
  struct lath_lowrank_conv2d *a = &c->args;
  struct lath_conv_sizes sizes;
  const bool separable = a->form == LATH_SEPARABLE;
  const lath_status status = lath_lowrank_conv2d_sizes(a, &sizes);
  if (status == LATH_SIZE_OVERFLOW) return fail_shape(call, &c->x, "images, kernels and padding of fewer than 2^60 elements");
  if (status != LATH_OK) /* all else was checked on the way */
    return fail_shape(call, &c->x,
                      "at least %" PRId64 " x %" PRId64 " pixels with padding (%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64
                      "), the reach of a %" PRId64 " x %" PRId64 " kernel",
                      (a->kernel_h - 1) * a->dilation_h + 1, (a->kernel_w - 1) * a->dilation_w + 1, a->pad_top, a->pad_bottom,
                      a->pad_left, a->pad_right, a->kernel_h, a->kernel_w);
  const int64_t ranks = a->groups * a->rank;
  c->v = (struct shape){{ranks, a->in / a->groups, separable ? 1 : a->kernel_h, a->kernel_w}};
  c->u = (struct shape){{a->out, a->rank, separable ? a->kernel_h : 1, 1}};
  c->y = (struct shape){{a->batch, a->out, sizes.out_height, sizes.out_width}};
  c->p = (struct shape){{a->batch, ranks, sizes.p_height, sizes.out_width}};
  return true;
}

/* x, weight_v and weight_u at index and the two after it. */
static bool take_operands(struct call *call, int index, int geometry, struct conv *c) {
  return take_geometry(call, geometry, &c->args) && take_x(call, index, c) && take_v(call, index + 1, c) &&
         take_u(call, index + 2, c) && settle_sizes(call, c);
}

static bool take_inner_bias(struct call *call, int index, struct conv *c) {
  const int64_t ranks = c->v.sizes[0];
  return unpack_optional_vector(call, index, "inner_bias", &c->lead, ranks, "the rows of weight_v", &c->args.inner_bias);
}

/* ---- forward ----------------------------------------------------------------------------------------------------------------- */

static bool take_forward(struct call *call, struct conv *c) {
  enum { X, WEIGHT_V, WEIGHT_U, BIAS, INNER_BIAS, GEOMETRY };
  return take_operands(call, X, GEOMETRY, c) &&
         unpack_optional_vector(call, BIAS, "bias", &c->lead, c->args.out, "the rows of weight_u", &c->args.bias) &&
         take_inner_bias(call, INNER_BIAS, c);
}

static bool output_y(struct call *call, struct conv *c) {
  return output_images(call, "output", c->y.sizes, images_channels_last(&c->x), c->args.dtype, &c->args.y);
}

static bool run_forward(struct call *call, struct lath_lowrank_conv2d *a) {
  return call_check(call, lath_lowrank_conv2d_workspace(a, &torch_host, &a->workspace_bytes)) &&
         device_take_workspace(call, a->workspace_bytes, &a->workspace) &&
         call_check(call, lath_lowrank_conv2d(a, &torch_host));
}

static bool lowrank_conv2d(struct call *call) {
  struct conv c = {0};
  return take_forward(call, &c) && output_y(call, &c) && run_forward(call, &c.args);
}

static bool lowrank_conv2d_forward(struct call *call) {
  enum { SAVE = 15 };
  struct conv c = {0};
  return take_forward(call, &c) && output_y(call, &c) &&
         output_optional(call, call_bool(call, SAVE), "p", 4, c.p.sizes, device_p_dtype(c.args.dtype), &c.args.p) &&
         run_forward(call, &c.args);
}

/* ---- backward ---------------------------------------------------------------------------------------------------------------- */

static bool take_p(struct call *call, int index, struct conv *c) {
  struct tensor p;
  struct matrix matrix;
  bool absent;
  if (!unpack_absent(call, index, "p", &absent)) return false;
  if (absent) return true;
  if (!unpack_tensor(call, index, "p", &p) || !unpack_p_dtype(call, &p, &c->lead)) return false;
  const int64_t *sizes = c->p.sizes;
  if (!has_sizes(&p, 4, sizes))
    return fail_shape(call, &p, "(%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64 "), or no elements", sizes[0], sizes[1],
                      sizes[2], sizes[3]);
  if (!unpack_contiguous(call, &p, &matrix)) return false;
  /* The struct serves both directions, and the forward writes p; the backward only reads it. */
  c->args.p = (void *)(uintptr_t)matrix.data;
  return true;
}

static bool output_gradients(struct call *call, int64_t mask, struct conv *c) {
  struct lath_lowrank_conv2d *a = &c->args;
  const lath_dtype dtype = a->dtype;
  const bool dx = mask & WANT_DX ? output_images(call, "dx", c->x.sizes, images_channels_last(&c->x), dtype, &a->dx)
                                 : output_none(call, "dx", dtype);
  return dx && output_optional(call, mask & WANT_DV, "dv", 4, c->v.sizes, dtype, &a->dv) &&
         output_optional(call, mask & WANT_DU, "du", 4, c->u.sizes, dtype, &a->du) &&
         output_optional(call, mask & WANT_D_BIAS, "d_bias", 1, &a->out, dtype, &a->d_bias) &&
         output_optional(call, mask & WANT_D_INNER_BIAS, "d_inner_bias", 1, &c->v.sizes[0], dtype, &a->d_inner_bias);
}

static bool lowrank_conv2d_backward(struct call *call) {
  enum { DY, X, WEIGHT_V, WEIGHT_U, INNER_BIAS, P, GEOMETRY, MASK = GEOMETRY + GEOMETRY_NUMBERS + 1 };
  struct conv c = {0};
  struct lath_lowrank_conv2d *a = &c.args;
  int64_t mask;
  return take_operands(call, X, GEOMETRY, &c) && unpack_images_like(call, DY, "dy", &c.lead, c.y.sizes, &a->dy) &&
         take_inner_bias(call, INNER_BIAS, &c) && take_p(call, P, &c) &&
         call_int_between(call, MASK, "mask", 0, WANT_ALL, &mask) && output_gradients(call, mask, &c) &&
         call_check(call, lath_lowrank_conv2d_backward_workspace(a, &torch_host, &a->workspace_bytes)) &&
         device_take_workspace(call, a->workspace_bytes, &a->workspace) &&
         call_check(call, lath_lowrank_conv2d_backward(a, &torch_host));
}

/* ---- plan -------------------------------------------------------------------------------------------------------------------- */

static bool take_extents(struct call *call, struct lath_lowrank_conv2d *a) {
  const struct {
    const char *name;
    int64_t low, *value;
  } extents[] = {
      {"batch", 0, &a->batch},   {"in_channels", 0, &a->in}, {"rank", 1, &a->rank},         {"out_channels", 0, &a->out},
      {"height", 1, &a->height}, {"width", 1, &a->width},    {"kernel_h", 1, &a->kernel_h}, {"kernel_w", 1, &a->kernel_w},
  };
  for (int i = 0; i < (int)(sizeof extents / sizeof *extents); i++)
    if (!call_int_between(call, i, extents[i].name, extents[i].low, INT64_MAX, extents[i].value)) return false;
  return true;
}

static bool lowrank_conv2d_plan(struct call *call) {
  enum { GEOMETRY = 8, CHANNELS_LAST = GEOMETRY + GEOMETRY_NUMBERS + 1, DTYPE, BACKWARD };
  struct lath_lowrank_conv2d a = {0};
  struct lath_conv_plan plan;
  int64_t dtype;
  if (!take_extents(call, &a) || !take_geometry(call, GEOMETRY, &a) ||
      !call_int_between(call, DTYPE, "dtype", LATH_F32, LATH_BF16, &dtype))
    return false;
  a.dtype = (lath_dtype)dtype;
  if (call_bool(call, CHANNELS_LAST))
    a.x.s_c = 1;
  else
    (void)__builtin_mul_overflow(a.height, a.width, &a.x.s_c); /* the plan is about to say that these overflow */
  if (!call_check(call, lath_lowrank_conv2d_plan(&a, call_bool(call, BACKWARD), &plan))) return false;
  call_output_int(call, plan.kernel);
  call_output_int(call, plan.macs);
  call_output_int(call, plan.dense_macs);
  call_output_int(call, plan.save_intermediate != 0);
  return true;
}

CALL_DEFINE_ENTRY(op_lowrank_conv2d, "lowrank_conv2d", lowrank_conv2d, 5)
CALL_DEFINE_ENTRY(op_lowrank_conv2d_forward, "lowrank_conv2d_forward", lowrank_conv2d_forward, 5)
CALL_DEFINE_ENTRY(op_lowrank_conv2d_backward, "lowrank_conv2d_backward", lowrank_conv2d_backward, 6)
CALL_DEFINE_ENTRY(op_lowrank_conv2d_plan, "lowrank_conv2d_plan", lowrank_conv2d_plan, 0)
