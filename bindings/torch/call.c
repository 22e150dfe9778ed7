/* SPDX-License-Identifier: Apache-2.0
 * call.c - one call of an operator: ownership of handles, errors, outputs, workspace. */
#include "call.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "codes.h"
#include "device.h"

static void release(AtenTensorHandle *handles, int count) {
  for (int i = 0; i < count; i++) aoti_torch_delete_tensor_object(handles[i]);
}

void call_run(const char *op, call_kernel kernel, int num_tensors, StableIValue *stack) {
  struct call call; /* 17 KiB, for the most part never touched */
  call.op = op;
  call.args = stack;
  call.workspace = NULL;
  call.device_index = 0;
  call.device_from = NULL;
  call.num_outputs = call.num_output_tensors = call.num_owned = 0;
  for (int i = 0; i < num_tensors; i++) call_own(&call, (AtenTensorHandle)(uintptr_t)stack[i]);

  const bool ok = kernel(&call);

  device_give_workspace(&call);
  release(call.owned, call.num_owned);
  if (ok) {
    memcpy(stack, call.outputs, (size_t)call.num_outputs * sizeof *stack);
    return;
  }
  release(call.output_tensors, call.num_output_tensors);
  aoti_torch_check(false, op, __FILE__, __LINE__, call.message); /* raises RuntimeError */
}

bool call_fail(struct call *call, const char *argument, const char *format, ...) {
  const char *colon = argument ? ": " : "";
  const int used = snprintf(call->message, sizeof call->message, "lath::%s: %s%s", call->op, argument ? argument : "", colon);
  va_list values;
  va_start(values, format);
  vsnprintf(call->message + used, sizeof call->message - (size_t)used, format, values);
  va_end(values);
  return false;
}

bool call_check(struct call *call, lath_status status) {
  return status == LATH_OK || call_fail(call, NULL, "%s", lath_status_text(status));
}

bool call_bool(const struct call *call, int index) { return (call->args[index] & 0xff) != 0; }

bool call_int_between(struct call *call, int index, const char *name, int64_t low, int64_t high, int64_t *value) {
  *value = (int64_t)call->args[index];
  if (*value >= low && *value <= high) return true;
  if (high == INT64_MAX) return call_fail(call, name, "got %" PRId64 ", expected at least %" PRId64, *value, low);
  return call_fail(call, name, "got %" PRId64 ", expected %" PRId64 " to %" PRId64, *value, low, high);
}

bool call_extents(struct call *call, int64_t *rows, int64_t *in, int64_t *rank, int64_t *out) {
  enum { ROWS, IN, RANK, OUT };
  return call_int_between(call, ROWS, "rows", 0, INT64_MAX, rows) &&
         call_int_between(call, IN, "in_features", 0, INT64_MAX, in) &&
         call_int_between(call, RANK, "rank", 1, INT64_MAX, rank) &&
         call_int_between(call, OUT, "out_features", 0, INT64_MAX, out);
}

void call_own(struct call *call, AtenTensorHandle tensor) { call->owned[call->num_owned++] = tensor; }

/* Strides of a contiguous tensor, as torch counts them: an extent of 0 counts as 1. False when the elements, at up to 8 bytes
 * each, exceed the address space, in any order of the strides. */
static bool contiguous_strides(int64_t dim, const int64_t *sizes, int64_t *strides) {
  int64_t stride = 1, bytes;
  for (int64_t i = dim - 1; i >= 0; i--) {
    strides[i] = stride;
    if (__builtin_mul_overflow(stride, sizes[i] > 0 ? sizes[i] : 1, &stride)) return false;
  }
  return !__builtin_mul_overflow(stride, 8, &bytes);
}

/* `strides` may be NULL for a contiguous one. */
static bool new_tensor(struct call *call, const char *name, int64_t dim, const int64_t *sizes, const int64_t *strides,
                       int32_t dtype_code, AtenTensorHandle *tensor) {
  int64_t contiguous[CALL_MAX_DIM];
  if (dim > CALL_MAX_DIM) return call_fail(call, name, "got %" PRId64 " dimensions, expected at most %d", dim, CALL_MAX_DIM);
  if (!contiguous_strides(dim, sizes, contiguous))
    return call_fail(call, name, "a contiguous tensor of its shape exceeds 2^63 bytes");
  if (!strides) strides = contiguous;
  if (aoti_torch_empty_strided(dim, sizes, strides, dtype_code, codes.device, call->device_index, tensor) == 0) return true;
  int64_t elements = 1;
  for (int64_t i = 0; i < dim; i++) elements *= sizes[i];
  return call_fail(call, name, "out of memory for %" PRId64 " elements of %s", elements, codes_dtype_name(dtype_code));
}

bool call_new_tensor(struct call *call, const char *name, int64_t dim, const int64_t *sizes, int32_t dtype_code,
                     AtenTensorHandle *tensor) {
  return new_tensor(call, name, dim, sizes, NULL, dtype_code, tensor);
}

static bool data_of(struct call *call, const char *name, AtenTensorHandle tensor, void **data) {
  return torch_get_mutable_data_ptr(tensor, data) == 0 || call_fail(call, name, "torch gives no pointer to its data");
}

/* Dense in some order of its strides, as every output is; contiguous_strides() has seen that it fits. */
static size_t bytes_of(int64_t dim, const int64_t *sizes, lath_dtype dtype) {
  size_t bytes = lath_dtype_size(dtype);
  for (int64_t i = 0; i < dim; i++) bytes *= (size_t)sizes[i];
  return bytes;
}

bool call_output_strided(struct call *call, const char *name, int64_t dim, const int64_t *sizes, const int64_t *strides,
                         lath_dtype dtype, void **data) {
  AtenTensorHandle tensor;
  if (!new_tensor(call, name, dim, sizes, strides, codes.dtype[dtype], &tensor)) return false;
  call->output_tensors[call->num_output_tensors++] = tensor;
  call->outputs[call->num_outputs++] = (StableIValue)(uintptr_t)tensor;
  if (!data_of(call, name, tensor, data)) return false;
  device_new_memory(*data, bytes_of(dim, sizes, dtype));
  return true;
}

bool call_output_tensor(struct call *call, const char *name, int64_t dim, const int64_t *sizes, lath_dtype dtype, void **data) {
  return call_output_strided(call, name, dim, sizes, NULL, dtype, data);
}

void call_output_int(struct call *call, int64_t value) { call->outputs[call->num_outputs++] = (StableIValue)value; }
