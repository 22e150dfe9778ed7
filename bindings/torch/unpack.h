/* SPDX-License-Identifier: Apache-2.0
 *
 * unpack.h - from torch's handles to what liblath takes: checked views of tensors, and matrices with one row stride.
 *
 * Every function that returns bool returns false after call_fail(), with a message that names the operator and the argument and
 * says what came and what was expected.
 */
#ifndef LATH_UNPACK_H
#define LATH_UNPACK_H

#include "call.h"

/* What torch knows about a tensor; valid as long as the handle lives. */
struct tensor {
  const char *name; /* of the argument */
  AtenTensorHandle handle;
  int32_t dtype_code;
  int64_t dim;
  const int64_t *sizes, *strides;
};

/* Rows at a fixed distance, elements of a row adjacent: what the structs of lath.h describe. */
struct matrix {
  const void *data; /* NULL for no elements */
  int64_t rows, cols, stride;
};

/* The operand whose dtype the others must have, and that dtype. */
struct lead {
  const char *name;
  lath_dtype dtype;
};

/* Argument `index`, which must be a dense tensor on the device of the others. */
bool unpack_tensor(struct call *call, int index, const char *name, struct tensor *tensor);

/* The tensor is in main memory; all that the CPU asks of any tensor. */
bool unpack_on_host(struct call *call, const char *name, AtenTensorHandle tensor);

/* The same as unpack_tensor(), but in main memory whatever the device of the others. Then the numbers of one that has one dimension
 * and int64; a copy where they do not lie side by side. */
bool unpack_host_tensor(struct call *call, int index, const char *name, struct tensor *tensor);
bool unpack_host_integers(struct call *call, const struct tensor *tensor, const int64_t **data);

/* A tensor without elements stands for an argument that is absent; nothing else is asked of it. */
bool unpack_absent(struct call *call, int index, const char *name, bool *absent);

/* The dtype of the leading operand: one that lath has kernels for. Then that of the others. */
bool unpack_lead(struct call *call, const struct tensor *tensor, struct lead *lead);
bool unpack_same_dtype(struct call *call, const struct tensor *tensor, const struct lead *lead);

/* A tensor in the type that sums over the leading operand are kept in, or in the one that intermediates are. */
bool unpack_sum_dtype(struct call *call, const struct tensor *tensor, const struct lead *lead);
bool unpack_p_dtype(struct call *call, const struct tensor *tensor, const struct lead *lead);

/* The tensor, of at least one dimension, as (product of the leading ones, last one). A layout that no single row stride
 * describes is copied; the copy is released with the arguments. */
bool unpack_matrix(struct call *call, const struct tensor *tensor, struct matrix *matrix);

/* The same without gaps between the rows. */
bool unpack_contiguous(struct call *call, const struct tensor *tensor, struct matrix *matrix);

/* The leading operand of a linear map: (..., in_features), as a matrix of rows. */
bool unpack_input(struct call *call, int index, const char *name, struct tensor *tensor, struct lead *lead,
                  struct matrix *rows);

/* A weight of shape (any, cols) and the dtype of the lead. The message reads "expected (<rows_name>, <cols>) to match <match>".
 */
bool unpack_weight(struct call *call, int index, const char *name, const struct lead *lead, const char *rows_name, int64_t cols,
                   const char *match, struct matrix *weight);

/* A vector of shape (n,) and the dtype of the lead, or NULL when it is absent. */
bool unpack_optional_vector(struct call *call, int index, const char *name, const struct lead *lead, int64_t n,
                            const char *match, const void **data);

/* A contiguous matrix (rows, cols) that an earlier operator kept, in the type of intermediates, or NULL when it is absent. The
 * structs serve both directions, and the forward writes it; hence no const. `sizes_name` says what rows and cols are. */
bool unpack_optional_kept(struct call *call, int index, const char *name, const struct lead *lead, int64_t rows, int64_t cols,
                          const char *sizes_name, void **data);

/* The next output: shaped like `tensor` but for the last dimension. */
bool output_like(struct call *call, const char *name, const struct tensor *tensor, int64_t last, lath_dtype dtype, void **data);

/* A tensor of shape (0,) in the place of an output that is not wanted. */
bool output_none(struct call *call, const char *name, lath_dtype dtype);

/* The next output, if it is wanted; else output_none() and *data stays as it is. */
bool output_optional(struct call *call, bool wanted, const char *name, int64_t dim, const int64_t *sizes, lath_dtype dtype,
                     void **data);

/* Gradients that a backward is asked for: the bits of its argument `mask`, in the order of its outputs. */
enum { WANT_DX = 1, WANT_DV = 2, WANT_DU = 4, WANT_D_BIAS = 8, WANT_D_INNER_BIAS = 16, WANT_ALL = 31 };

bool has_sizes(const struct tensor *tensor, int64_t dim, const int64_t *sizes);

/* call_fail() with "got shape (2, 3), expected " and the formatted text. */
__attribute__((format(printf, 3, 4))) bool fail_shape(struct call *call, const struct tensor *tensor, const char *format, ...);

#endif
