/* SPDX-License-Identifier: Apache-2.0
 * op_lstm.c - lath::lowrank_lstm_forward and its backward: one layer in one direction, over a padded or a packed sequence. */
#include <inttypes.h>

#include "codes.h"
#include "device.h"
#include "kernels.h"
#include "unpack.h"

/* A call in the making: the struct for liblath, and what its outputs are shaped after. */
struct lstm {
  struct lath_lowrank_lstm args;
  struct lead lead;
  struct tensor x;
  bool packed, batch_first;
  int64_t rows, gates; /* of all steps; 4 hidden */
};

/* Rows of a sequence: of step t and sample b at t s_step + b s_row, packed at their number times s_row. */
struct sequence {
  const void *data;
  int64_t s_step, s_row;
};

/* ---- sequences ----------------------------------------------------------------------------------------------------------------- */

static int step_axis(const struct lstm *l) { return l->batch_first ? 1 : 0; }
static int batch_axis(const struct lstm *l) { return l->batch_first ? 0 : 1; }

/* Of a contiguous one, `cols` numbers wide. */
static void set_contiguous(const struct lstm *l, int64_t cols, int64_t *s_step, int64_t *s_row) {
  const struct lath_lowrank_lstm *a = &l->args;
  *s_row = l->packed || !l->batch_first ? cols : a->steps * cols;
  *s_step = l->packed ? 0 : l->batch_first ? cols : a->batch * cols;
}

/* Through its own strides where the numbers of a row are adjacent, else through a copy. */
static bool view_sequence(struct call *call, const struct tensor *tensor, const struct lstm *l, struct sequence *s) {
  const int64_t last = tensor->dim - 1, cols = tensor->sizes[last];
  struct matrix matrix;
  set_contiguous(l, cols, &s->s_step, &s->s_row);
  if (l->rows == 0 || cols == 0) return true;
  if (tensor->strides[last] != 1 && cols > 1) {
    if (!unpack_contiguous(call, tensor, &matrix)) return false;
    s->data = matrix.data;
    return true;
  }
  const int rows = l->packed ? 0 : batch_axis(l);
  if (tensor->sizes[rows] > 1) s->s_row = tensor->strides[rows];
  if (!l->packed && tensor->sizes[step_axis(l)] > 1) s->s_step = tensor->strides[step_axis(l)];
  return torch_get_const_data_ptr(tensor->handle, &s->data) == 0 ||
         call_fail(call, tensor->name, "torch gives no pointer to its data");
}

/* Another sequence over the same steps and samples, `cols` numbers wide. */
static bool take_sequence(struct call *call, int index, const char *name, const struct lstm *l, int64_t cols,
                          struct sequence *s) {
  struct tensor tensor;
  if (!unpack_tensor(call, index, name, &tensor) || !unpack_same_dtype(call, &tensor, &l->lead)) return false;
  bool same = tensor.dim == l->x.dim && tensor.sizes[tensor.dim - 1] == cols;
  for (int64_t i = 0; same && i < tensor.dim - 1; i++) same = tensor.sizes[i] == l->x.sizes[i];
  if (!same) return fail_shape(call, &tensor, "the leading dimensions of x, then %" PRId64 " units", cols);
  return view_sequence(call, &tensor, l, s);
}

static bool take_dtype(struct call *call, const struct tensor *x, struct lead *lead) {
  lead->name = x->name;
  if (codes_to_dtype(x->dtype_code, &lead->dtype) && (lead->dtype == LATH_F32 || lead->dtype == LATH_F64)) return true;
  return call_fail(call, x->name, "got dtype %s, expected torch.float32 or torch.float64", codes_dtype_name(x->dtype_code));
}

/* The extents that x settles; of a packed one, steps and batch are still to come. */
static bool take_x(struct call *call, int index, struct lstm *l) {
  struct lath_lowrank_lstm *a = &l->args;
  struct tensor *x = &l->x;
  if (!unpack_tensor(call, index, "x", x) || !take_dtype(call, x, &l->lead)) return false;
  if (x->dim != 2 && x->dim != 3)
    return fail_shape(call, x, "(%s, in_features), or packed (rows, in_features)",
                      l->batch_first ? "batch, steps" : "steps, batch");
  a->dtype = l->lead.dtype;
  l->packed = x->dim == 2;
  a->in = x->sizes[x->dim - 1];
  l->rows = x->sizes[0];
  if (l->packed) return true;
  a->steps = x->sizes[step_axis(l)], a->batch = x->sizes[batch_axis(l)];
  return !__builtin_mul_overflow(a->steps, a->batch, &l->rows) || fail_shape(call, x, "fewer than 2^63 rows");
}

static bool view_x(struct call *call, struct lstm *l) {
  struct sequence s = {0};
  if (!view_sequence(call, &l->x, l, &s)) return false;
  l->args.x = s.data, l->args.s_x_step = s.s_step, l->args.s_x_row = s.s_row;
  return true;
}

/* ---- batch sizes --------------------------------------------------------------------------------------------------------------- */

/* Of each step at least one sample and no more than of the step before; together the rows of x. */
static bool check_batch_sizes(struct call *call, const struct lstm *l) {
  static const char name[] = "batch_sizes";
  const struct lath_lowrank_lstm *a = &l->args;
  int64_t rows = 0, before = a->batch;
  if (a->steps > 0 && a->batch_sizes[0] != a->batch)
    return call_fail(call, name, "got %" PRId64 " for the first step, expected %" PRId64 " as h0 has rows", a->batch_sizes[0],
                     a->batch);
  for (int64_t t = 0; t < a->steps; t++) {
    const int64_t size = a->batch_sizes[t];
    if (size < 1 || size > before)
      return call_fail(call, name, "got %" PRId64 " for step %" PRId64 ", expected 1 to %" PRId64 ", as of the step before",
                       size, t, before);
    if (__builtin_add_overflow(rows, size, &rows)) rows = -1, t = a->steps;
    before = size;
  }
  return rows == l->rows ||
         call_fail(call, name, "got sizes that add up to %" PRId64 ", expected %" PRId64 " as x has rows", rows, l->rows);
}

/* After h0, which settles the batch of a packed sequence. */
static bool take_batch_sizes(struct call *call, int index, struct lstm *l) {
  static const char name[] = "batch_sizes";
  struct tensor sizes;
  bool absent;
  if (!unpack_absent(call, index, name, &absent)) return false;
  if (absent && l->packed && l->rows > 0)
    return fail_shape(call, &l->x, "3 dimensions, as there are no batch_sizes of a packed sequence");
  if (absent) return true;
  if (!unpack_host_tensor(call, index, name, &sizes)) return false;
  if (sizes.dtype_code != aoti_torch_dtype_int64())
    return call_fail(call, name, "got dtype %s, expected torch.int64", codes_dtype_name(sizes.dtype_code));
  if (sizes.dim != 1) return fail_shape(call, &sizes, "(steps,)");
  if (!l->packed) return fail_shape(call, &sizes, "no elements for x of 3 dimensions, or a packed x of 2");
  if (!unpack_host_integers(call, &sizes, &l->args.batch_sizes)) return false;
  l->args.steps = sizes.sizes[0];
  return check_batch_sizes(call, l);
}

/* ---- states and weights -------------------------------------------------------------------------------------------------------- */

/* (batch, hidden), or NULL when it is absent. */
static bool take_state(struct call *call, int index, const char *name, const struct lstm *l, const void **data) {
  const struct lath_lowrank_lstm *a = &l->args;
  struct tensor tensor;
  struct matrix matrix;
  bool absent;
  *data = NULL;
  if (!unpack_absent(call, index, name, &absent)) return false;
  if (absent) return true;
  if (!unpack_tensor(call, index, name, &tensor) || !unpack_same_dtype(call, &tensor, &l->lead)) return false;
  if (!has_sizes(&tensor, 2, (const int64_t[]){a->batch, a->hidden}))
    return fail_shape(call, &tensor, "(%" PRId64 ", %" PRId64 "), batch by hidden size, or no elements", a->batch, a->hidden);
  if (!unpack_contiguous(call, &tensor, &matrix)) return false;
  *data = matrix.data;
  return true;
}

/* The shape of every result follows from the shapes of the arguments, so the batch of a packed sequence is that of h0. */
static bool take_packed_batch(struct call *call, int index, struct lstm *l) {
  struct tensor h0;
  if (!l->packed) return true;
  if (!unpack_tensor(call, index, "h0", &h0)) return false;
  if (h0.dim != 2) return fail_shape(call, &h0, "(batch, %" PRId64 "), which a packed sequence needs", l->args.hidden);
  l->args.batch = h0.sizes[0];
  return true;
}

static bool take_weight(struct call *call, int index, const char *name, const struct lstm *l, struct tensor *tensor,
                        const void **data) {
  struct matrix matrix;
  if (!unpack_tensor(call, index, name, tensor) || !unpack_same_dtype(call, tensor, &l->lead)) return false;
  if (tensor->dim != 2) return fail_shape(call, tensor, "2 dimensions");
  if (!unpack_contiguous(call, tensor, &matrix)) return false;
  *data = matrix.data;
  return true;
}

/* v and u at `index` and the one after it. */
static bool take_recurrent(struct call *call, int index, struct lstm *l) {
  struct lath_lowrank_lstm *a = &l->args;
  struct tensor v, u;
  if (!take_weight(call, index + 1, "u", l, &u, &a->u)) return false;
  l->gates = u.sizes[0], a->hidden = l->gates / 4, a->rank = u.sizes[1];
  if (l->gates < 4 || l->gates % 4) return fail_shape(call, &u, "(4 * hidden, rank)");
  if (a->rank == 0) return call_fail(call, "v", "got rank 0, expected at least 1");
  if (!take_weight(call, index, "v", l, &v, &a->v)) return false;
  return has_sizes(&v, 2, (const int64_t[]){a->rank, a->hidden}) ||
         fail_shape(call, &v, "(%" PRId64 ", %" PRId64 "), the rank of u by the hidden size", a->rank, a->hidden);
}

/* v_in, which may be absent, and u_in, after x and u. */
static bool take_input(struct call *call, int index, struct lstm *l) {
  struct lath_lowrank_lstm *a = &l->args;
  struct tensor v, u;
  bool dense;
  if (!unpack_absent(call, index, "v_in", &dense)) return false;
  if (!dense) {
    if (!take_weight(call, index, "v_in", l, &v, &a->v_in)) return false;
    if (v.sizes[1] != a->in)
      return fail_shape(call, &v, "(rank, %" PRId64 ") to match the last dimension of x, or no elements", a->in);
    a->in_rank = v.sizes[0];
  }
  if (!take_weight(call, index + 1, "u_in", l, &u, &a->u_in)) return false;
  const int64_t cols = dense ? a->in : a->in_rank;
  return has_sizes(&u, 2, (const int64_t[]){l->gates, cols}) ||
         fail_shape(call, &u, "(%" PRId64 ", %" PRId64 ") to match u and %s", l->gates, cols,
                    dense ? "the last dimension of x" : "the rank of v_in");
}

static bool take_bias(struct call *call, int index, const char *name, const struct lstm *l, const void **data) {
  return unpack_optional_vector(call, index, name, &l->lead, l->gates, "the rows of u", data);
}

static bool take_association(struct call *call, int index, struct lstm *l) {
  int64_t association;
  if (!call_int_between(call, index, "association", LATH_AUTO, LATH_MERGED, &association)) return false;
  l->args.association = (lath_association)association;
  return true;
}

/* Where the arguments stand that both operators have: x, h0 and c0; the four weights and two biases; the batch sizes, and the two
 * flags after them. */
static bool take_common(struct call *call, int x, int weights, int batch_sizes, struct lstm *l) {
  struct lath_lowrank_lstm *a = &l->args;
  a->reverse = call_bool(call, batch_sizes + 1);
  l->batch_first = call_bool(call, batch_sizes + 2);
  return take_x(call, x, l) && take_recurrent(call, weights + 2, l) && take_input(call, weights, l) &&
         take_bias(call, weights + 4, "bias_in", l, &a->bias_in) && take_bias(call, weights + 5, "bias", l, &a->bias) &&
         take_packed_batch(call, x + 1, l) && take_batch_sizes(call, batch_sizes, l) && view_x(call, l) &&
         take_state(call, x + 1, "h0", l, &a->h0) && take_state(call, x + 2, "c0", l, &a->c0);
}

/* ---- forward ------------------------------------------------------------------------------------------------------------------- */

enum { SAVE_NOTHING, SAVE_C, SAVE_GATES };

static bool output_results(struct call *call, int64_t save, struct lstm *l) {
  struct lath_lowrank_lstm *a = &l->args;
  const int64_t state[] = {a->batch, a->hidden}, c[] = {l->rows, a->hidden}, gates[] = {l->rows, l->gates};
  if (!output_like(call, "y", &l->x, a->hidden, a->dtype, &a->y)) return false;
  set_contiguous(l, a->hidden, &a->s_y_step, &a->s_y_row);
  return call_output_tensor(call, "hn", 2, state, a->dtype, &a->hn) &&
         call_output_tensor(call, "cn", 2, state, a->dtype, &a->cn) &&
         output_optional(call, save >= SAVE_C, "c", 2, c, a->dtype, &a->c) &&
         output_optional(call, save >= SAVE_GATES, "gates", 2, gates, a->dtype, &a->gates);
}

static bool lowrank_lstm_forward(struct call *call) {
  enum { X, WEIGHTS = 3, BATCH_SIZES = 9, SAVE = 12, ASSOCIATION };
  struct lstm l = {0};
  int64_t save;
  return take_common(call, X, WEIGHTS, BATCH_SIZES, &l) &&
         call_int_between(call, SAVE, "save", SAVE_NOTHING, SAVE_GATES, &save) && take_association(call, ASSOCIATION, &l) &&
         output_results(call, save, &l) && device_lowrank_lstm(call, &l.args);
}

/* ---- backward ------------------------------------------------------------------------------------------------------------------ */

enum {
  WANT_LSTM_DX = 1,
  WANT_LSTM_DH0 = 2,
  WANT_LSTM_DC0 = 4,
  WANT_LSTM_DV_IN = 8,
  WANT_LSTM_DU_IN = 16,
  WANT_LSTM_DV = 32,
  WANT_LSTM_DU = 64,
  WANT_LSTM_D_BIAS = 128,
  WANT_LSTM_ALL = 255
};

/* y, and dy unless it is absent. */
static bool take_y(struct call *call, int index, struct lstm *l) {
  struct sequence y = {0};
  if (!take_sequence(call, index, "y", l, l->args.hidden, &y)) return false;
  /* The struct serves both directions, and the forward writes y, c and gates; the backward only reads them. */
  l->args.y = (void *)(uintptr_t)y.data, l->args.s_y_step = y.s_step, l->args.s_y_row = y.s_row;
  return true;
}

static bool take_dy(struct call *call, int index, struct lstm *l) {
  struct sequence dy = {0};
  bool absent;
  if (!unpack_absent(call, index, "dy", &absent)) return false;
  if (!absent && !take_sequence(call, index, "dy", l, l->args.hidden, &dy)) return false;
  l->args.dy = dy.data, l->args.s_dy_step = dy.s_step, l->args.s_dy_row = dy.s_row;
  return true;
}

/* What the forward kept: (rows, cols). */
static bool take_kept(struct call *call, int index, const char *name, const struct lstm *l, int64_t cols, bool optional,
                      void **data) {
  struct tensor tensor;
  struct matrix matrix;
  bool absent;
  if (!unpack_absent(call, index, name, &absent)) return false;
  if (absent && (optional || l->rows == 0)) return true;
  if (!unpack_tensor(call, index, name, &tensor) || !unpack_same_dtype(call, &tensor, &l->lead)) return false;
  if (!has_sizes(&tensor, 2, (const int64_t[]){l->rows, cols}))
    return fail_shape(call, &tensor, "(%" PRId64 ", %" PRId64 ") as the forward kept it%s", l->rows, cols,
                      optional ? ", or no elements" : "");
  if (!unpack_contiguous(call, &tensor, &matrix)) return false;
  *data = (void *)(uintptr_t)matrix.data;
  return true;
}

static bool output_gradients(struct call *call, int64_t mask, struct lstm *l) {
  struct lath_lowrank_lstm *a = &l->args;
  const lath_dtype dtype = a->dtype;
  const int64_t state[] = {a->batch, a->hidden}, v_in[] = {a->in_rank, a->in}, v[] = {a->rank, a->hidden};
  const int64_t u_in[] = {l->gates, a->in_rank ? a->in_rank : a->in}, u[] = {l->gates, a->rank};
  const bool has_v_in = a->in_rank > 0;
  set_contiguous(l, a->in, &a->s_dx_step, &a->s_dx_row);
  return output_optional(call, mask & WANT_LSTM_DX, "dx", l->x.dim, l->x.sizes, dtype, &a->dx) &&
         output_optional(call, mask & WANT_LSTM_DH0, "dh0", 2, state, dtype, &a->dh0) &&
         output_optional(call, mask & WANT_LSTM_DC0, "dc0", 2, state, dtype, &a->dc0) &&
         output_optional(call, has_v_in && mask & WANT_LSTM_DV_IN, "dv_in", 2, v_in, dtype, &a->dv_in) &&
         output_optional(call, mask & WANT_LSTM_DU_IN, "du_in", 2, u_in, dtype, &a->du_in) &&
         output_optional(call, mask & WANT_LSTM_DV, "dv", 2, v, dtype, &a->dv) &&
         output_optional(call, mask & WANT_LSTM_DU, "du", 2, u, dtype, &a->du) &&
         output_optional(call, mask & WANT_LSTM_D_BIAS, "d_bias", 1, &l->gates, dtype, &a->d_bias);
}

static bool lowrank_lstm_backward(struct call *call) {
  enum { DY, DHN, DCN, X, Y = X + 3, C, GATES, WEIGHTS, BATCH_SIZES = WEIGHTS + 6, MASK = BATCH_SIZES + 3, ASSOCIATION };
  struct lstm l = {0};
  struct lath_lowrank_lstm *a = &l.args;
  int64_t mask;
  return take_common(call, X, WEIGHTS, BATCH_SIZES, &l) && take_y(call, Y, &l) && take_dy(call, DY, &l) &&
         take_kept(call, C, "c", &l, a->hidden, false, &a->c) &&
         take_kept(call, GATES, "gates", &l, l.gates, true, &a->gates) && take_state(call, DHN, "dhn", &l, &a->dhn) &&
         take_state(call, DCN, "dcn", &l, &a->dcn) && call_int_between(call, MASK, "mask", 0, WANT_LSTM_ALL, &mask) &&
         take_association(call, ASSOCIATION, &l) && output_gradients(call, mask, &l) && device_lowrank_lstm_backward(call, a);
}

CALL_DEFINE_ENTRY(op_lowrank_lstm_forward, "lowrank_lstm_forward", lowrank_lstm_forward, 10)
CALL_DEFINE_ENTRY(op_lowrank_lstm_backward, "lowrank_lstm_backward", lowrank_lstm_backward, 16)
