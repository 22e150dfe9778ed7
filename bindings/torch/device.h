/* SPDX-License-Identifier: Apache-2.0
 *
 * device.h - what the object for the CPU and the object for CUDA differ in.
 *
 * liblath_cpu.so and liblath_cuda.so share the operators (op_*.c) and all that serves them. Each links its own definition of what
 * follows: device_cpu.c or device_cuda.c. So an operator is written once, and a stream, a device guard or a BLAS handle is dealt
 * with at one place.
 */
#ifndef LATH_DEVICE_H
#define LATH_DEVICE_H

#include "call.h"

struct device {
  const char *name;      /* as messages put it: "the CPU" */
  const char *dtypes;    /* that its kernels take, for messages */
  lath_dtype last_dtype; /* the last one of these */
  int32_t (*type)(void); /* torch's number for this type of device */
};

extern const struct device device;

/* The type in which it stores the intermediate p over operands of `dtype`. */
lath_dtype device_p_dtype(lath_dtype dtype);

/* The tensor is on this type of device, and on the same one as all others of the call. */
bool device_check(struct call *call, const char *name, AtenTensorHandle tensor);

/* What a device does for memory that torch has just given and nothing was written to. */
void device_new_memory(void *data, size_t bytes);

/* `bytes` bytes that kernels can work in, aligned to 64, for the duration of the call. call_run() gives them back. */
bool device_take_workspace(struct call *call, size_t bytes, void **workspace);
void device_give_workspace(struct call *call);

/* The entries of lath.h or lath_cuda.h, with their workspace. `value` and `scale` are one number each, in the memory of the device
 * and in the type of sums. */
bool device_linear(struct call *call, struct lath_linear *args);
bool device_lowrank_linear(struct call *call, struct lath_lowrank_linear *args);
bool device_lowrank_linear_backward(struct call *call, struct lath_lowrank_linear *args);
bool device_lowrank_lstm(struct call *call, struct lath_lowrank_lstm *args);
bool device_lowrank_lstm_backward(struct call *call, struct lath_lowrank_lstm *args);
bool device_oialr_linear(struct call *call, struct lath_oialr_linear *args);
bool device_oialr_linear_backward(struct call *call, struct lath_oialr_linear *args);
bool device_frobenius(struct call *call, struct lath_frobenius *args, void *value);
bool device_frobenius_backward(struct call *call, struct lath_frobenius *args, const void *scale);

#endif
