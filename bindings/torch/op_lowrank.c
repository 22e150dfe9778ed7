/* SPDX-License-Identifier: Apache-2.0
 * op_lowrank.c - lath::lowrank_linear, with and without the intermediate, and its backward. */
#include <inttypes.h>

#include "device.h"
#include "kernels.h"
#include "unpack.h"

/* A call in the making: the struct for liblath, and what its outputs are shaped after. */
struct lowrank {
  struct lath_lowrank_linear args;
  struct lead lead;
  struct tensor x;
};

static bool take_association(struct call *call, int index, struct lowrank *l) {
  int64_t association;
  if (!call_int_between(call, index, "association", LATH_AUTO, LATH_MERGED, &association)) return false;
  l->args.association = (lath_association)association;
  return true;
}

/* x, weight_v and weight_u at index and the two after it. */
static bool take_operands(struct call *call, int index, struct lowrank *l) {
  struct lath_lowrank_linear *a = &l->args;
  struct matrix x, v, u;
  if (!unpack_input(call, index, "x", &l->x, &l->lead, &x)) return false;
  if (!unpack_weight(call, index + 1, "weight_v", &l->lead, "rank", x.cols, "the last dimension of x", &v)) return false;
  if (v.rows == 0) return call_fail(call, "weight_v", "got rank 0, expected at least 1");
  if (!unpack_weight(call, index + 2, "weight_u", &l->lead, "out_features", v.rows, "the rank of weight_v", &u)) return false;
  a->dtype = l->lead.dtype;
  a->rows = x.rows, a->in = x.cols, a->rank = v.rows, a->out = u.rows;
  a->x = x.data, a->s_x = x.stride;
  a->v = v.data, a->s_v = v.stride;
  a->u = u.data, a->s_u = u.stride;
  return true;
}

static bool take_inner_bias(struct call *call, int index, struct lowrank *l) {
  return unpack_optional_vector(call, index, "inner_bias", &l->lead, l->args.rank, "the rank of weight_v", &l->args.inner_bias);
}

/* ---- forward ------------------------------------------------------------------------------------------------------------- */

static bool take_forward(struct call *call, struct lowrank *l) {
  enum { X, WEIGHT_V, WEIGHT_U, BIAS, INNER_BIAS };
  return take_operands(call, X, l) &&
         unpack_optional_vector(call, BIAS, "bias", &l->lead, l->args.out, "the rows of weight_u", &l->args.bias) &&
         take_inner_bias(call, INNER_BIAS, l);
}

static bool output_y(struct call *call, struct lowrank *l) {
  l->args.s_y = l->args.out;
  return output_like(call, "output", &l->x, l->args.out, l->args.dtype, &l->args.y);
}

static bool lowrank_linear(struct call *call) {
  enum { ASSOCIATION = 5 };
  struct lowrank l = {0};
  return take_forward(call, &l) && take_association(call, ASSOCIATION, &l) && output_y(call, &l) &&
         device_lowrank_linear(call, &l.args);
}

/* The shape of p must follow from the arguments alone, for tracing; so `save` settles what the planner would decide. */
static bool output_p(struct call *call, bool save, struct lath_lowrank_linear *a) {
  const bool kept = save && a->association != LATH_MERGED;
  if (kept) a->association = LATH_FACTORED;
  return output_optional(call, kept, "p", 2, (const int64_t[]){a->rows, a->rank}, device_p_dtype(a->dtype), &a->p);
}

static bool lowrank_linear_forward(struct call *call) {
  enum { SAVE = 5, ASSOCIATION };
  struct lowrank l = {0};
  return take_forward(call, &l) && take_association(call, ASSOCIATION, &l) && output_y(call, &l) &&
         output_p(call, call_bool(call, SAVE), &l.args) && device_lowrank_linear(call, &l.args);
}

/* ---- backward ------------------------------------------------------------------------------------------------------------ */

/* dy has the leading dimensions of x and as many columns as weight_u has rows. */
static bool take_dy(struct call *call, int index, struct lowrank *l) {
  struct tensor dy;
  struct matrix rows;
  if (!unpack_tensor(call, index, "dy", &dy) || !unpack_same_dtype(call, &dy, &l->lead)) return false;
  bool same = dy.dim == l->x.dim && dy.sizes[dy.dim - 1] == l->args.out;
  for (int64_t i = 0; same && i < dy.dim - 1; i++) same = dy.sizes[i] == l->x.sizes[i];
  if (!same) return fail_shape(call, &dy, "the leading dimensions of x, then %" PRId64 " as weight_u has rows", l->args.out);
  if (!unpack_matrix(call, &dy, &rows)) return false;
  l->args.dy = rows.data, l->args.s_dy = rows.stride;
  return true;
}

static bool take_p(struct call *call, int index, struct lowrank *l) {
  return unpack_optional_kept(call, index, "p", &l->lead, l->args.rows, l->args.rank, "the rows of x by the rank", &l->args.p);
}

static bool output_gradients(struct call *call, int64_t mask, struct lowrank *l) {
  struct lath_lowrank_linear *a = &l->args;
  a->s_dx = a->in;
  return output_optional(call, mask & WANT_DX, "dx", l->x.dim, l->x.sizes, a->dtype, &a->dx) &&
         output_optional(call, mask & WANT_DV, "dv", 2, (const int64_t[]){a->rank, a->in}, a->dtype, &a->dv) &&
         output_optional(call, mask & WANT_DU, "du", 2, (const int64_t[]){a->out, a->rank}, a->dtype, &a->du) &&
         output_optional(call, mask & WANT_D_BIAS, "d_bias", 1, &a->out, a->dtype, &a->d_bias) &&
         output_optional(call, mask & WANT_D_INNER_BIAS, "d_inner_bias", 1, &a->rank, a->dtype, &a->d_inner_bias);
}

static bool lowrank_linear_backward(struct call *call) {
  enum { DY, X, WEIGHT_V, WEIGHT_U, INNER_BIAS, P, MASK, ASSOCIATION };
  struct lowrank l = {0};
  int64_t mask;
  return take_operands(call, X, &l) && take_dy(call, DY, &l) && take_inner_bias(call, INNER_BIAS, &l) && take_p(call, P, &l) &&
         call_int_between(call, MASK, "mask", 0, WANT_ALL, &mask) && take_association(call, ASSOCIATION, &l) &&
         output_gradients(call, mask, &l) && device_lowrank_linear_backward(call, &l.args);
}

CALL_DEFINE_ENTRY(op_lowrank_linear, "lowrank_linear", lowrank_linear, 5)
CALL_DEFINE_ENTRY(op_lowrank_linear_forward, "lowrank_linear_forward", lowrank_linear_forward, 5)
CALL_DEFINE_ENTRY(op_lowrank_linear_backward, "lowrank_linear_backward", lowrank_linear_backward, 6)
