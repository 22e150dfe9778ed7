/* SPDX-License-Identifier: Apache-2.0
 * unpack.c - from torch's handles to checked views and matrices. */
#include "unpack.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "codes.h"
#include "device.h"

enum { SHAPE_TEXT_BYTES = 256 };

/* "(2, 3)", "(2,)", "()" as Python prints it; many dimensions are cut with "...". */
static void shape_text(const struct tensor *tensor, char text[SHAPE_TEXT_BYTES]) {
  const int most = 8, room = SHAPE_TEXT_BYTES; /* 8 extents of up to 19 digits fit */
  const int shown = tensor->dim < most ? (int)tensor->dim : most;
  int used = snprintf(text, (size_t)room, "(");
  for (int i = 0; i < shown; i++)
    used += snprintf(text + used, (size_t)(room - used), "%s%" PRId64, i ? ", " : "", tensor->sizes[i]);
  const char *end = tensor->dim > most ? ", ...)" : tensor->dim == 1 ? ",)" : ")";
  snprintf(text + used, (size_t)(room - used), "%s", end);
}

bool fail_shape(struct call *call, const struct tensor *tensor, const char *format, ...) {
  char shape[SHAPE_TEXT_BYTES], expected[SHAPE_TEXT_BYTES];
  shape_text(tensor, shape);
  va_list values;
  va_start(values, format);
  vsnprintf(expected, sizeof expected, format, values);
  va_end(values);
  return call_fail(call, tensor->name, "got shape %s, expected %s", shape, expected);
}

bool has_sizes(const struct tensor *tensor, int64_t dim, const int64_t *sizes) {
  bool same = tensor->dim == dim;
  for (int64_t i = 0; same && i < dim; i++) same = tensor->sizes[i] == sizes[i];
  return same;
}

static bool fail_query(struct call *call, const char *name) {
  return call_fail(call, name, "torch cannot describe it; expected a dense tensor on %s", device.name);
}

static bool query_sizes(struct call *call, struct tensor *tensor) {
  int64_t *sizes;
  if (aoti_torch_get_dim(tensor->handle, &tensor->dim) || aoti_torch_get_sizes(tensor->handle, &sizes))
    return fail_query(call, tensor->name);
  tensor->sizes = sizes;
  return true;
}

bool unpack_on_host(struct call *call, const char *name, AtenTensorHandle tensor) {
  int32_t type;
  if (aoti_torch_get_device_type(tensor, &type))
    return call_fail(call, name, "torch does not say which device it is on; expected the CPU");
  return type == aoti_torch_device_type_cpu() || call_fail(call, name, "got a tensor on another device, expected the CPU");
}

static bool unpack(struct call *call, int index, const char *name,
                   bool (*on_device)(struct call *, const char *, AtenTensorHandle), struct tensor *tensor) {
  int32_t layout;
  int64_t *strides;
  *tensor = (struct tensor){.name = name, .handle = call->owned[index]};
  /* The layout goes first: a sparse tensor has no strides to ask for. */
  if (aoti_torch_get_layout(tensor->handle, &layout)) return fail_query(call, name);
  if (layout != codes.strided)
    return call_fail(call, name, "got a sparse or otherwise non-strided layout, expected a dense tensor (try .to_dense())");
  if (!on_device(call, name, tensor->handle)) return false;
  if (!query_sizes(call, tensor)) return false;
  if (aoti_torch_get_dtype(tensor->handle, &tensor->dtype_code)) return fail_query(call, name);
  if (aoti_torch_get_strides(tensor->handle, &strides)) return fail_query(call, name);
  tensor->strides = strides;
  return true;
}

bool unpack_tensor(struct call *call, int index, const char *name, struct tensor *tensor) {
  return unpack(call, index, name, device_check, tensor);
}

bool unpack_host_tensor(struct call *call, int index, const char *name, struct tensor *tensor) {
  return unpack(call, index, name, unpack_on_host, tensor);
}

bool unpack_absent(struct call *call, int index, const char *name, bool *absent) {
  struct tensor tensor = {.name = name, .handle = call->owned[index]};
  if (!query_sizes(call, &tensor)) return false;
  *absent = false;
  for (int64_t i = 0; i < tensor.dim; i++) *absent |= tensor.sizes[i] == 0;
  return true;
}

bool unpack_lead(struct call *call, const struct tensor *tensor, struct lead *lead) {
  lead->name = tensor->name;
  return codes_to_dtype(tensor->dtype_code, &lead->dtype) ||
         call_fail(call, tensor->name, "got dtype %s, expected %s", codes_dtype_name(tensor->dtype_code), device.dtypes);
}

static bool expect_dtype(struct call *call, const struct tensor *tensor, lath_dtype dtype, const char *why,
                         const struct lead *lead) {
  const int32_t expected = codes.dtype[dtype];
  return tensor->dtype_code == expected ||
         call_fail(call, tensor->name, "got dtype %s, expected %s%s%s", codes_dtype_name(tensor->dtype_code),
                   codes_dtype_name(expected), why, lead->name);
}

bool unpack_same_dtype(struct call *call, const struct tensor *tensor, const struct lead *lead) {
  return expect_dtype(call, tensor, lead->dtype, " like ", lead);
}

bool unpack_sum_dtype(struct call *call, const struct tensor *tensor, const struct lead *lead) {
  return expect_dtype(call, tensor, codes_sum_dtype(lead->dtype), ", the type of sums over ", lead);
}

bool unpack_p_dtype(struct call *call, const struct tensor *tensor, const struct lead *lead) {
  return expect_dtype(call, tensor, device_p_dtype(lead->dtype), ", the type of intermediates over ", lead);
}

/* The distance between consecutive rows, where the leading dimensions collapse to one: each continues the one inside it.
 * Dimensions of extent 1 have no say. */
static bool collapse(const struct tensor *tensor, int64_t rows, int64_t cols, int64_t *stride) {
  const int64_t last = tensor->dim - 1;
  if (cols > 1 && tensor->strides[last] != 1) return false;
  *stride = cols;
  if (rows == 1) return true;
  bool innermost = true;
  int64_t next = 0; /* the stride that would continue the dimensions seen so far */
  for (int64_t i = last - 1; i >= 0; i--) {
    if (tensor->sizes[i] == 1) continue;
    if (innermost) *stride = tensor->strides[i];
    if (!innermost && tensor->strides[i] != next) return false;
    if (__builtin_mul_overflow(tensor->strides[i], tensor->sizes[i], &next)) return false;
    innermost = false;
  }
  return *stride == 0 || *stride >= cols; /* rows that overlap, as unfold() makes them, are copied */
}

/* A contiguous copy that leaves no trace in the autograd graph. */
static bool copy_to(struct call *call, const struct tensor *tensor, AtenTensorHandle *copy) {
  call_own(call, *copy);
  const bool grad_mode = aoti_torch_grad_mode_is_enabled();
  aoti_torch_grad_mode_set_enabled(false);
  const AOTITorchError error = aoti_torch_copy_(*copy, tensor->handle, 0);
  aoti_torch_grad_mode_set_enabled(grad_mode);
  return error == 0 || call_fail(call, tensor->name, "torch could not make a contiguous copy");
}

static bool copy_contiguous(struct call *call, const struct tensor *tensor, AtenTensorHandle *copy) {
  return call_new_tensor(call, tensor->name, tensor->dim, tensor->sizes, tensor->dtype_code, copy) &&
         copy_to(call, tensor, copy);
}

bool unpack_host_integers(struct call *call, const struct tensor *tensor, const int64_t **data) {
  const int64_t one = 1;
  const void *address;
  AtenTensorHandle handle = tensor->handle;
  if (tensor->sizes[0] > 1 && tensor->strides[0] != 1) {
    if (aoti_torch_empty_strided(1, tensor->sizes, &one, tensor->dtype_code, aoti_torch_device_type_cpu(), 0, &handle))
      return call_fail(call, tensor->name, "out of memory for %" PRId64 " elements", tensor->sizes[0]);
    if (!copy_to(call, tensor, &handle)) return false;
  }
  if (torch_get_const_data_ptr(handle, &address)) return fail_query(call, tensor->name);
  *data = address;
  return true;
}

/* Extents of the matrix; its elements, at up to 8 bytes each, fit the address space. */
static bool matrix_extents(struct call *call, const struct tensor *tensor, struct matrix *matrix) {
  int64_t rows = 1, elements, bytes;
  for (int64_t i = 0; i < tensor->dim - 1; i++)
    if (__builtin_mul_overflow(rows, tensor->sizes[i], &rows)) return fail_shape(call, tensor, "fewer than 2^63 rows");
  const int64_t cols = tensor->sizes[tensor->dim - 1];
  if (__builtin_mul_overflow(rows, cols, &elements) || __builtin_mul_overflow(elements, 8, &bytes))
    return fail_shape(call, tensor, "fewer than 2^60 elements");
  *matrix = (struct matrix){.rows = rows, .cols = cols, .stride = cols};
  return true;
}

static bool to_matrix(struct call *call, const struct tensor *tensor, bool gaps, struct matrix *matrix) {
  if (!matrix_extents(call, tensor, matrix)) return false;
  const int64_t rows = matrix->rows, cols = matrix->cols;
  if (rows == 0 || cols == 0) return true;
  AtenTensorHandle handle = tensor->handle;
  if (!collapse(tensor, rows, cols, &matrix->stride) || (!gaps && matrix->stride != cols)) {
    matrix->stride = cols;
    if (!copy_contiguous(call, tensor, &handle)) return false;
  }
  return torch_get_const_data_ptr(handle, &matrix->data) == 0 || fail_query(call, tensor->name);
}

bool unpack_matrix(struct call *call, const struct tensor *tensor, struct matrix *matrix) {
  return to_matrix(call, tensor, true, matrix);
}

bool unpack_contiguous(struct call *call, const struct tensor *tensor, struct matrix *matrix) {
  return to_matrix(call, tensor, false, matrix);
}

bool unpack_input(struct call *call, int index, const char *name, struct tensor *tensor, struct lead *lead,
                  struct matrix *rows) {
  if (!unpack_tensor(call, index, name, tensor) || !unpack_lead(call, tensor, lead)) return false;
  if (tensor->dim == 0) return fail_shape(call, tensor, "(..., in_features)");
  return unpack_matrix(call, tensor, rows);
}

bool unpack_weight(struct call *call, int index, const char *name, const struct lead *lead, const char *rows_name, int64_t cols,
                   const char *match, struct matrix *weight) {
  struct tensor tensor;
  if (!unpack_tensor(call, index, name, &tensor) || !unpack_same_dtype(call, &tensor, lead)) return false;
  if (tensor.dim != 2 || tensor.sizes[1] != cols)
    return fail_shape(call, &tensor, "(%s, %" PRId64 ") to match %s", rows_name, cols, match);
  return unpack_matrix(call, &tensor, weight);
}

bool unpack_optional_vector(struct call *call, int index, const char *name, const struct lead *lead, int64_t n,
                            const char *match, const void **data) {
  struct tensor tensor;
  struct matrix vector;
  bool absent;
  *data = NULL;
  if (!unpack_absent(call, index, name, &absent)) return false;
  if (absent) return true;
  if (!unpack_tensor(call, index, name, &tensor) || !unpack_same_dtype(call, &tensor, lead)) return false;
  if (tensor.dim != 1 || tensor.sizes[0] != n)
    return fail_shape(call, &tensor, "(%" PRId64 ",) to match %s, or no elements for none", n, match);
  if (!unpack_matrix(call, &tensor, &vector)) return false;
  *data = vector.data;
  return true;
}

bool unpack_optional_kept(struct call *call, int index, const char *name, const struct lead *lead, int64_t rows, int64_t cols,
                          const char *sizes_name, void **data) {
  struct tensor tensor;
  struct matrix matrix;
  bool absent;
  if (!unpack_absent(call, index, name, &absent)) return false;
  if (absent) return true;
  if (!unpack_tensor(call, index, name, &tensor) || !unpack_p_dtype(call, &tensor, lead)) return false;
  if (tensor.dim != 2 || tensor.sizes[0] != rows || tensor.sizes[1] != cols)
    return fail_shape(call, &tensor, "(%" PRId64 ", %" PRId64 "), %s, or no elements", rows, cols, sizes_name);
  if (!unpack_contiguous(call, &tensor, &matrix)) return false;
  *data = (void *)(uintptr_t)matrix.data;
  return true;
}

bool output_like(struct call *call, const char *name, const struct tensor *tensor, int64_t last, lath_dtype dtype,
                 void **data) {
  int64_t sizes[CALL_MAX_DIM];
  if (tensor->dim > CALL_MAX_DIM)
    return call_fail(call, tensor->name, "got %" PRId64 " dimensions, expected at most %d", tensor->dim, CALL_MAX_DIM);
  memcpy(sizes, tensor->sizes, (size_t)tensor->dim * sizeof *sizes);
  sizes[tensor->dim - 1] = last;
  return call_output_tensor(call, name, tensor->dim, sizes, dtype, data);
}

bool output_none(struct call *call, const char *name, lath_dtype dtype) {
  const int64_t zero = 0;
  void *data;
  return call_output_tensor(call, name, 1, &zero, dtype, &data);
}

bool output_optional(struct call *call, bool wanted, const char *name, int64_t dim, const int64_t *sizes, lath_dtype dtype,
                     void **data) {
  return wanted ? call_output_tensor(call, name, dim, sizes, dtype, data) : output_none(call, name, dtype);
}
