/* SPDX-License-Identifier: Apache-2.0
 *
 * call.h - one call of an operator: who owns which handle, what went wrong, and the single way out.
 *
 * torch hands a boxed kernel its arguments as owned handles, and takes an error only as an exception thrown through it. So a
 * kernel here is a plain function `bool kernel(struct call *)`: it reads arguments, adds outputs, and returns false after
 * call_fail(). call_run() wraps it: it releases every handle, whatever happened, and then either raises or returns the outputs.
 *
 * Nothing here knows what kind of device the tensors are on; see device.h.
 */
#ifndef LATH_CALL_H
#define LATH_CALL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lath.h"
#include "shim.h"

enum {
  CALL_MAX_DIM = 64,
  CALL_MAX_OWNED = 32, /* arguments, contiguous copies of them */
  CALL_MAX_OUTPUTS = 8,
  CALL_MESSAGE_BYTES = 768,    /* longer messages are cut */
  CALL_SMALL_WORKSPACE = 16384 /* a workspace up to this size comes from the stack */
};

struct call {
  const char *op; /* name without the namespace */
  const StableIValue *args;
  int num_outputs, num_output_tensors, num_owned;
  int32_t device_index;    /* of every tensor of the call, once the first one has been looked at */
  const char *device_from; /* the argument that settled it; NULL before */
  StableIValue outputs[CALL_MAX_OUTPUTS];
  AtenTensorHandle output_tensors[CALL_MAX_OUTPUTS];
  void *workspace;                        /* NULL: none, or the small one */
  AtenTensorHandle owned[CALL_MAX_OWNED]; /* the tensor arguments come first, at their own index */
  char message[CALL_MESSAGE_BYTES];
  _Alignas(64) unsigned char small_workspace[CALL_SMALL_WORKSPACE];
};

typedef bool (*call_kernel)(struct call *call);

/* Runs `kernel` on the stack of a boxed call. The first `num_tensors` arguments are tensors, the others are not. */
void call_run(const char *op, call_kernel kernel, int num_tensors, StableIValue *stack);

/* Defines the boxed entry (see operators.h) of a kernel. */
#define CALL_DEFINE_ENTRY(entry, op, kernel, num_tensors)                          \
  void entry(StableIValue *stack, uint64_t num_args, uint64_t num_stack_outputs) { \
    (void)num_args;                                                                \
    (void)num_stack_outputs;                                                       \
    call_run(op, kernel, num_tensors, stack);                                      \
  }

/* Notes the error "lath::<op>: <argument>: <text>" and returns false. `argument` may be NULL: the fault of no single one. */
__attribute__((format(printf, 3, 4))) bool call_fail(struct call *call, const char *argument, const char *format, ...);

/* True for LATH_OK, else call_fail() with the text of the status. */
bool call_check(struct call *call, lath_status status);

/* Arguments that are no tensors. call_int_between() demands low <= value <= high. */
bool call_bool(const struct call *call, int index);
bool call_int_between(struct call *call, int index, const char *name, int64_t low, int64_t high, int64_t *value);

/* The four that operators about the plan of a linear layer begin with: rows, in_features, rank, out_features. */
bool call_extents(struct call *call, int64_t *rows, int64_t *in, int64_t *rank, int64_t *out);

/* A fresh contiguous tensor on the device of the call, of torch's dtype `dtype_code`, its memory uninitialized. False: overflow, or out of memory. */
bool call_new_tensor(struct call *call, const char *name, int64_t dim, const int64_t *sizes, int32_t dtype_code,
                     AtenTensorHandle *tensor);

/* Hands `tensor` over: it is released with the arguments. */
void call_own(struct call *call, AtenTensorHandle tensor);

/* The next output, in the order of the schema: a fresh contiguous tensor, or a number. *data is NULL for no elements. */
bool call_output_tensor(struct call *call, const char *name, int64_t dim, const int64_t *sizes, lath_dtype dtype, void **data);
void call_output_int(struct call *call, int64_t value);

/* The same with strides of any order, but without gaps. */
bool call_output_strided(struct call *call, const char *name, int64_t dim, const int64_t *sizes, const int64_t *strides,
                         lath_dtype dtype, void **data);

#endif
