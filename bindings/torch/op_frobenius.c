/* SPDX-License-Identifier: Apache-2.0
 * op_frobenius.c - lath::frobenius_decay, value = || weight_u weight_v ||_F^2, and its backward. */
#include <inttypes.h>

#include "codes.h"
#include "device.h"
#include "kernels.h"
#include "unpack.h"

struct frobenius {
  struct lath_frobenius args;
  struct lead lead;
};

/* weight_v at index, weight_u after it. */
static bool take_factors(struct call *call, int index, struct frobenius *f) {
  struct lath_frobenius *a = &f->args;
  struct tensor tensor;
  struct matrix v, u;
  if (!unpack_tensor(call, index, "weight_v", &tensor) || !unpack_lead(call, &tensor, &f->lead)) return false;
  if (tensor.dim != 2) return fail_shape(call, &tensor, "(rank, in_features)");
  if (tensor.sizes[0] == 0) return call_fail(call, "weight_v", "got rank 0, expected at least 1");
  if (!unpack_matrix(call, &tensor, &v)) return false;
  if (!unpack_weight(call, index + 1, "weight_u", &f->lead, "out_features", v.rows, "the rank of weight_v", &u)) return false;
  a->dtype = f->lead.dtype;
  a->in = v.cols, a->rank = v.rows, a->out = u.rows;
  a->v = v.data, a->s_v = v.stride;
  a->u = u.data, a->s_u = u.stride;
  return true;
}

static bool frobenius_decay(struct call *call) {
  struct frobenius f = {0};
  struct lath_frobenius *a = &f.args;
  void *value;
  if (!take_factors(call, 0, &f)) return false;
  const lath_dtype sums = codes_sum_dtype(a->dtype);
  const int64_t square[] = {a->rank, a->rank};
  return call_output_tensor(call, "value", 0, NULL, sums, &value) &&
         call_output_tensor(call, "gram_v", 2, square, sums, &a->gram_v) &&
         call_output_tensor(call, "gram_u", 2, square, sums, &a->gram_u) && device_frobenius(call, a, value);
}

/* The incoming gradient of the value: one number, in the type of the value. */
static bool take_scale(struct call *call, int index, struct frobenius *f, const void **scale) {
  struct tensor grad;
  if (!unpack_tensor(call, index, "grad", &grad) || !unpack_sum_dtype(call, &grad, &f->lead)) return false;
  if (grad.dim != 0) return fail_shape(call, &grad, "(), the gradient of a scalar");
  return torch_get_const_data_ptr(grad.handle, scale) == 0 || call_fail(call, "grad", "torch gives no pointer to its data");
}

static bool take_gram(struct call *call, int index, const char *name, struct frobenius *f, void **data) {
  struct tensor gram;
  struct matrix matrix;
  if (!unpack_tensor(call, index, name, &gram) || !unpack_sum_dtype(call, &gram, &f->lead)) return false;
  if (gram.dim != 2 || gram.sizes[0] != f->args.rank || gram.sizes[1] != f->args.rank)
    return fail_shape(call, &gram, "(%" PRId64 ", %" PRId64 "), rank by rank", f->args.rank, f->args.rank);
  if (!unpack_contiguous(call, &gram, &matrix)) return false;
  /* The struct serves both directions; the backward only reads it. */
  *data = (void *)(uintptr_t)matrix.data;
  return true;
}

static bool frobenius_decay_backward(struct call *call) {
  enum { GRAD, WEIGHT_V, WEIGHT_U, GRAM_V, GRAM_U };
  struct frobenius f = {0};
  struct lath_frobenius *a = &f.args;
  const void *scale;
  return take_factors(call, WEIGHT_V, &f) && take_scale(call, GRAD, &f, &scale) &&
         take_gram(call, GRAM_V, "gram_v", &f, &a->gram_v) && take_gram(call, GRAM_U, "gram_u", &f, &a->gram_u) &&
         call_output_tensor(call, "dv", 2, (const int64_t[]){a->rank, a->in}, a->dtype, &a->dv) &&
         call_output_tensor(call, "du", 2, (const int64_t[]){a->out, a->rank}, a->dtype, &a->du) &&
         device_frobenius_backward(call, a, scale);
}

CALL_DEFINE_ENTRY(op_frobenius_decay, "frobenius_decay", frobenius_decay, 2)
CALL_DEFINE_ENTRY(op_frobenius_decay_backward, "frobenius_decay_backward", frobenius_decay_backward, 5)
