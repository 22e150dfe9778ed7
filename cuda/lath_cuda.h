/* SPDX-License-Identifier: Apache-2.0
 * lath_cuda.h - the C interface of lath on NVIDIA GPUs: the operators of lath.h on device memory.
 *
 * The argument structs, conventions, extents and status codes are those of lath.h, with these differences:
 *   - Every pointer to data is a device pointer, `workspace` too. The structs themselves lie in host memory.
 *   - Work is enqueued on the caller's stream. No entry waits for the device, allocates, or asks the driver anything that it
 *     has not kept from the first call on that device, so calls can be captured in a CUDA graph. Make one call outside a capture
 *     first: a kernel is loaded and its limits are set when it is first used.
 *   - dtypes F32, F64, F16 and BF16. Sums are kept in fp32 (double for F64) and rounded once to the stored type.
 *   - The intermediate `p` is stored in the type of x.
 *   - F32 products use TF32 matrix units only when the caller's BLAS handle allows TF32; without a handle, never.
 *   - Results do not depend on timing: no floating-point atomics. They do depend on the route, on the BLAS library and
 *     on the GPU.
 *
 * LATH_DEVICE_FAILED: cuda->error then holds the cause, see lath_cuda_error_text. */
#ifndef LATH_CUDA_LATH_CUDA_H
#define LATH_CUDA_LATH_CUDA_H

#include "lath.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the caller lends. */
struct lath_cuda {
  int device;   /* ordinal; the caller has made it current */
  void *stream; /* cudaStream_t */
  void *blas;   /* cublasHandle_t on that stream with its pointer mode at "host", or NULL: products run on lath's own kernels */
  int error;    /* out: the cudaError_t, or LATH_CUDA_BLAS_ERROR + the cublasStatus_t, behind LATH_DEVICE_FAILED; else 0 */
};

#define LATH_CUDA_BLAS_ERROR 0x10000

/* One English sentence or name for lath_cuda.error; never NULL. */
LATH_API const char *lath_cuda_error_text(int error);

/* File name of the cuBLAS whose functions are called on lath_cuda.blas: it is looked up among the libraries that the process
 * has loaded, once, at the first call of this function or of an entry. NULL: none, and lath_cuda.blas is not used. Products
 * with a bias also call the cuBLASLt that belongs to it. */
LATH_API const char *lath_cuda_blas_name(void);

/* The plan depends on the shape, on the dtype, on which pointers are NULL, on alignment and strides, and on whether there is a
 * BLAS. LATH_AUTO leaves both the association and the route to the planner. */
LATH_API lath_status lath_cuda_lowrank_linear_plan(const struct lath_lowrank_linear *args, const struct lath_cuda *cuda,
                                                   int backward, struct lath_lowrank_plan *plan);

/* The queries look at what the CPU's look at: set every pointer (but `workspace`) as for the call. */
LATH_API lath_status lath_cuda_linear_workspace(const struct lath_linear *args, const struct lath_cuda *cuda, size_t *bytes);
LATH_API lath_status lath_cuda_linear(const struct lath_linear *args, struct lath_cuda *cuda);

LATH_API lath_status lath_cuda_lowrank_linear_workspace(const struct lath_lowrank_linear *args, const struct lath_cuda *cuda,
                                                        size_t *bytes);
LATH_API lath_status lath_cuda_lowrank_linear(const struct lath_lowrank_linear *args, struct lath_cuda *cuda);

LATH_API lath_status lath_cuda_lowrank_linear_backward_workspace(const struct lath_lowrank_linear *args,
                                                                 const struct lath_cuda *cuda, size_t *bytes);
LATH_API lath_status lath_cuda_lowrank_linear_backward(const struct lath_lowrank_linear *args, struct lath_cuda *cuda);

/* For tests and measurements: takes this route (PRODUCTS, MERGED, FUSED or FEW) wherever it can do the call at all, in the
 * calling thread, until it is set to -1. Affects plans, queries and entries alike. An LSTM goes step by step with PRODUCTS, and
 * through all steps in one launch with FUSED. */
LATH_API void lath_cuda_force_route(int kernel);

/* A layer in an orthogonal basis. t is in the type of x, as p is. The plan looks at what that of a low-rank layer looks at; with
 * LATH_OIALR_AUTO a forward that writes t and a backward that reads it are chained or folded each by its own time, and a call without t
 * takes the route that is best for it alone. A forced route is that of the two products that end in y or dx, or MERGED. */
LATH_API lath_status lath_cuda_oialr_linear_plan(const struct lath_oialr_linear *args, const struct lath_cuda *cuda,
                                                 int training, struct lath_oialr_plan *plan);
LATH_API lath_status lath_cuda_oialr_linear_workspace(const struct lath_oialr_linear *args, const struct lath_cuda *cuda,
                                                      size_t *bytes);
LATH_API lath_status lath_cuda_oialr_linear(const struct lath_oialr_linear *args, struct lath_cuda *cuda);
LATH_API lath_status lath_cuda_oialr_linear_backward_workspace(const struct lath_oialr_linear *args,
                                                               const struct lath_cuda *cuda, size_t *bytes);
LATH_API lath_status lath_cuda_oialr_linear_backward(const struct lath_oialr_linear *args, struct lath_cuda *cuda);

/* One layer of an LSTM in one direction, of F32 or F64. `batch_sizes` is in host memory. Launches follow one another on the stream,
 * two, one or less for each step; how many, and their arguments, follow from shapes, batch sizes and the device alone. */
LATH_API lath_status lath_cuda_lowrank_lstm_workspace(const struct lath_lowrank_lstm *args, const struct lath_cuda *cuda,
                                                      size_t *bytes);
LATH_API lath_status lath_cuda_lowrank_lstm(const struct lath_lowrank_lstm *args, struct lath_cuda *cuda);
LATH_API lath_status lath_cuda_lowrank_lstm_backward_workspace(const struct lath_lowrank_lstm *args,
                                                               const struct lath_cuda *cuda, size_t *bytes);
LATH_API lath_status lath_cuda_lowrank_lstm_backward(const struct lath_lowrank_lstm *args, struct lath_cuda *cuda);

/* Frobenius decay. The Gram matrices are in the type that sums are kept in, as on the CPU: float, double for F64. So are the
 * two scalars in device memory: `value`, which the forward writes, and `scale`, the incoming gradient of the value, which the
 * backward reads. args->value and args->scale are not looked at: the host would have to wait for the device. */
LATH_API lath_status lath_cuda_frobenius_workspace(const struct lath_frobenius *args, const struct lath_cuda *cuda,
                                                   size_t *bytes);
LATH_API lath_status lath_cuda_frobenius(const struct lath_frobenius *args, void *value, struct lath_cuda *cuda);
LATH_API lath_status lath_cuda_frobenius_backward(const struct lath_frobenius *args, const void *scale, struct lath_cuda *cuda);

#ifdef __cplusplus
}
#endif
#endif
