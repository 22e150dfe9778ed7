/* SPDX-License-Identifier: Apache-2.0
 * op_oialr.c - lath::oialr_linear, with and without t, and its backward. */
#include <inttypes.h>

#include "device.h"
#include "kernels.h"
#include "unpack.h"

/* A call in the making: the struct for liblath, and what its outputs are shaped after: x, or dy in the backward. */
struct oialr {
  struct lath_oialr_linear args;
  struct lead lead;
  struct tensor rows;
};

enum { WANT_CORE = 2, WANT_CORE_BIAS = 4, WANT_EVERY = 7 }; /* ds, d_bias; WANT_DX is 1 */

static bool take_route(struct call *call, int index, struct oialr *o) {
  int64_t route;
  if (!call_int_between(call, index, "route", LATH_OIALR_AUTO, LATH_OIALR_MERGED, &route)) return false;
  o->args.route = (lath_oialr_route)route;
  return true;
}

/* weight_s and weight_u at index and after it; weight_vh came before them and settled the rank. */
static bool take_core(struct call *call, int index, struct oialr *o) {
  struct lath_oialr_linear *a = &o->args;
  struct matrix s, u;
  if (!unpack_weight(call, index, "weight_s", &o->lead, "rank", a->rank, "the rank of weight_vh", &s)) return false;
  if (s.rows != a->rank)
    return call_fail(call, "weight_s", "got %" PRId64 " rows, expected %" PRId64 " like weight_vh", s.rows, a->rank);
  if (!unpack_weight(call, index + 1, "weight_u", &o->lead, "out_features", a->rank, "the rank of weight_vh", &u)) return false;
  a->s = s.data, a->s_s = s.stride;
  a->u = u.data, a->s_u = u.stride, a->out = u.rows;
  return true;
}

static bool take_basis(struct call *call, struct oialr *o, const struct matrix *vh) {
  struct lath_oialr_linear *a = &o->args;
  if (vh->rows == 0) return call_fail(call, "weight_vh", "got rank 0, expected at least 1");
  a->dtype = o->lead.dtype;
  a->vh = vh->data, a->s_vh = vh->stride;
  a->rank = vh->rows, a->in = vh->cols;
  return true;
}

/* ---- forward ------------------------------------------------------------------------------------------------------------- */

static bool take_forward(struct call *call, struct oialr *o) {
  enum { X, WEIGHT_VH, WEIGHT_S, WEIGHT_U, BIAS };
  struct lath_oialr_linear *a = &o->args;
  struct matrix x, vh;
  if (!unpack_input(call, X, "x", &o->rows, &o->lead, &x)) return false;
  if (!unpack_weight(call, WEIGHT_VH, "weight_vh", &o->lead, "rank", x.cols, "the last dimension of x", &vh)) return false;
  a->x = x.data, a->s_x = x.stride, a->rows = x.rows;
  return take_basis(call, o, &vh) && take_core(call, WEIGHT_S, o) &&
         unpack_optional_vector(call, BIAS, "bias", &o->lead, a->out, "the rows of weight_u", &a->bias);
}

static bool output_y(struct call *call, struct oialr *o) {
  o->args.s_y = o->args.out;
  return output_like(call, "output", &o->rows, o->args.out, o->args.dtype, &o->args.y);
}

static bool oialr_linear(struct call *call) {
  enum { ROUTE = 5 };
  struct oialr o = {0};
  return take_forward(call, &o) && take_route(call, ROUTE, &o) && output_y(call, &o) && device_oialr_linear(call, &o.args);
}

/* The shape of t must follow from the arguments alone, for tracing. */
static bool output_t(struct call *call, bool save, struct lath_oialr_linear *a) {
  const bool kept = save && a->route != LATH_OIALR_MERGED;
  return output_optional(call, kept, "t", 2, (const int64_t[]){a->rows, a->rank}, device_p_dtype(a->dtype), &a->t);
}

static bool oialr_linear_forward(struct call *call) {
  enum { SAVE = 5, ROUTE };
  struct oialr o = {0};
  return take_forward(call, &o) && take_route(call, ROUTE, &o) && output_y(call, &o) &&
         output_t(call, call_bool(call, SAVE), &o.args) && device_oialr_linear(call, &o.args);
}

/* ---- backward ------------------------------------------------------------------------------------------------------------ */

/* dy leads: x may be absent. */
static bool take_gradient(struct call *call, struct oialr *o) {
  enum { DY, X, WEIGHT_VH, WEIGHT_S };
  struct lath_oialr_linear *a = &o->args;
  struct tensor weight;
  struct matrix dy, vh;
  if (!unpack_input(call, DY, "dy", &o->rows, &o->lead, &dy)) return false;
  if (!unpack_tensor(call, WEIGHT_VH, "weight_vh", &weight) || !unpack_same_dtype(call, &weight, &o->lead)) return false;
  if (weight.dim != 2) return fail_shape(call, &weight, "(rank, in_features)");
  if (!unpack_matrix(call, &weight, &vh)) return false;
  a->dy = dy.data, a->s_dy = dy.stride, a->rows = dy.rows;
  if (!take_basis(call, o, &vh) || !take_core(call, WEIGHT_S, o)) return false;
  return a->out == dy.cols || fail_shape(call, &o->rows, "%" PRId64 " in the last place as weight_u has rows", a->out);
}

static bool take_x(struct call *call, int index, struct oialr *o) {
  struct tensor x;
  struct matrix rows;
  bool absent;
  if (!unpack_absent(call, index, "x", &absent)) return false;
  if (absent) return true;
  if (!unpack_tensor(call, index, "x", &x) || !unpack_same_dtype(call, &x, &o->lead)) return false;
  if (x.dim == 0 || x.sizes[x.dim - 1] != o->args.in)
    return fail_shape(call, &x, "%" PRId64 " in the last place as weight_vh has columns", o->args.in);
  bool same = x.dim == o->rows.dim;
  for (int64_t i = 0; same && i < x.dim - 1; i++) same = x.sizes[i] == o->rows.sizes[i];
  if (!same)
    return fail_shape(call, &o->rows, "the leading dimensions of x, then %" PRId64 " as weight_u has rows", o->args.out);
  if (!unpack_matrix(call, &x, &rows)) return false;
  o->args.x = rows.data, o->args.s_x = rows.stride;
  return true;
}

static bool check_x(struct call *call, int64_t mask, const struct oialr *o) {
  const struct lath_oialr_linear *a = &o->args;
  const bool read = mask & WANT_CORE && (!a->t || a->route == LATH_OIALR_MERGED) && a->rows > 0 && a->in > 0;
  return !read || a->x || call_fail(call, "x", "got no elements, expected x itself where t is absent or the route is merged");
}

static bool output_gradients(struct call *call, int64_t mask, struct oialr *o) {
  struct lath_oialr_linear *a = &o->args;
  int64_t sizes[CALL_MAX_DIM];
  if (o->rows.dim > CALL_MAX_DIM)
    return call_fail(call, "dy", "got %" PRId64 " dimensions, expected at most %d", o->rows.dim, CALL_MAX_DIM);
  for (int64_t i = 0; i < o->rows.dim; i++) sizes[i] = o->rows.sizes[i];
  sizes[o->rows.dim - 1] = a->s_dx = a->in;
  return output_optional(call, mask & WANT_DX, "dx", o->rows.dim, sizes, a->dtype, &a->dx) &&
         output_optional(call, mask & WANT_CORE, "ds", 2, (const int64_t[]){a->rank, a->rank}, a->dtype, &a->ds) &&
         output_optional(call, mask & WANT_CORE_BIAS, "d_bias", 1, &a->out, a->dtype, &a->d_bias);
}

static bool oialr_linear_backward(struct call *call) {
  enum { X = 1, T = 5, MASK, ROUTE };
  struct oialr o = {0};
  int64_t mask;
  return take_gradient(call, &o) && take_x(call, X, &o) &&
         unpack_optional_kept(call, T, "t", &o.lead, o.args.rows, o.args.rank, "the rows of dy by the rank", &o.args.t) &&
         call_int_between(call, MASK, "mask", 0, WANT_EVERY, &mask) && take_route(call, ROUTE, &o) && check_x(call, mask, &o) &&
         output_gradients(call, mask, &o) && device_oialr_linear_backward(call, &o.args);
}

CALL_DEFINE_ENTRY(op_oialr_linear, "oialr_linear", oialr_linear, 5)
CALL_DEFINE_ENTRY(op_oialr_linear_forward, "oialr_linear_forward", oialr_linear_forward, 5)
CALL_DEFINE_ENTRY(op_oialr_linear_backward, "oialr_linear_backward", oialr_linear_backward, 6)
