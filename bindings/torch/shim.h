/* SPDX-License-Identifier: Apache-2.0
 *
 * shim.h - our own plain-C prototypes of the part of the LibTorch stable C shim that lath calls.
 *
 * torch's headers need a C++ compiler, but every function that they declare has a plain C signature and a promise of binary
 * compatibility. Declaring the handful that we use keeps C++, and torch itself, out of the build.
 *
 *   SHIM_FUNCTIONS(X) expands to X(return type, name, (parameters)) for each of them.
 *
 * The list is the single source of three things: the prototypes below, the library that stands in for torch at link time
 * (stub.c), and the allow-list of the symbol test (tests/python/test_binary.py). tests/abi/guard.cc holds it against torch's
 * own headers. To call one more function, add one line.
 *
 * SHIM_FUNCTIONS(X) is what libtorch_cpu.so of every build of torch has, and SHIM_CUDA_FUNCTIONS(X) what libtorch_cuda.so of a
 * CUDA build adds. Only liblath_cuda.so may call the latter.
 */
#ifndef LATH_SHIM_H
#define LATH_SHIM_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The release whose shim and marshalling rules this file describes; the oldest one that the object runs in. */
#define SHIM_TARGET_MAJOR 2
#define SHIM_TARGET_MINOR 10
#define SHIM_TARGET_VERSION (((uint64_t)SHIM_TARGET_MAJOR << 56) | ((uint64_t)SHIM_TARGET_MINOR << 48))

/* Opaque types of torch, under torch's names. */
typedef struct AtenTensorOpaque *AtenTensorHandle;
typedef struct TorchLibraryOpaque *TorchLibraryHandle;
typedef int32_t AOTITorchError; /* 0 is success */
typedef uint64_t StableIValue;  /* one argument or result: a handle, or the bits of an int64_t, double or bool */
typedef struct CUDAGuardOpaque *CUDAGuardHandle;
typedef void (*ParallelFunc)(int64_t begin, int64_t end, void *ctx);
typedef void (*ShimKernel)(StableIValue *stack, uint64_t num_args, uint64_t num_outputs);

/* Older than the stable operator API: present in every torch that this object can meet. */
#define SHIM_FUNCTIONS_BASE(X)                                                                                            \
  X(int32_t, aoti_torch_device_type_cpu, (void))                                                                          \
  X(int32_t, aoti_torch_device_type_cuda, (void))                                                                         \
  X(int32_t, aoti_torch_dtype_bfloat16, (void))                                                                           \
  X(int32_t, aoti_torch_dtype_float16, (void))                                                                            \
  X(int32_t, aoti_torch_dtype_float32, (void))                                                                            \
  X(int32_t, aoti_torch_dtype_float64, (void))                                                                            \
  X(int32_t, aoti_torch_dtype_uint8, (void))                                                                              \
  X(int32_t, aoti_torch_dtype_int8, (void))                                                                               \
  X(int32_t, aoti_torch_dtype_int16, (void))                                                                              \
  X(int32_t, aoti_torch_dtype_int32, (void))                                                                              \
  X(int32_t, aoti_torch_dtype_int64, (void))                                                                              \
  X(int32_t, aoti_torch_dtype_bool, (void))                                                                               \
  X(int32_t, aoti_torch_dtype_complex64, (void))                                                                          \
  X(int32_t, aoti_torch_dtype_complex128, (void))                                                                         \
  X(int32_t, aoti_torch_layout_strided, (void))                                                                           \
  X(AOTITorchError, aoti_torch_get_dtype, (AtenTensorHandle tensor, int32_t * dtype))                                     \
  X(AOTITorchError, aoti_torch_get_device_type, (AtenTensorHandle tensor, int32_t * device_type))                         \
  X(AOTITorchError, aoti_torch_get_device_index, (AtenTensorHandle tensor, int32_t * device_index))                       \
  X(AOTITorchError, aoti_torch_get_layout, (AtenTensorHandle tensor, int32_t * layout))                                   \
  X(AOTITorchError, aoti_torch_get_dim, (AtenTensorHandle tensor, int64_t * dim))                                         \
  X(AOTITorchError, aoti_torch_get_sizes, (AtenTensorHandle tensor, int64_t * *borrowed_sizes))                           \
  X(AOTITorchError, aoti_torch_get_strides, (AtenTensorHandle tensor, int64_t * *borrowed_strides))                       \
  X(AOTITorchError, aoti_torch_empty_strided,                                                                             \
    (int64_t dim, const int64_t *sizes, const int64_t *strides, int32_t dtype, int32_t device_type, int32_t device_index, \
     AtenTensorHandle *new_tensor))                                                                                       \
  X(AOTITorchError, aoti_torch_copy_, (AtenTensorHandle self, AtenTensorHandle src, int32_t non_blocking))                \
  X(AOTITorchError, aoti_torch_delete_tensor_object, (AtenTensorHandle tensor))                                           \
  X(bool, aoti_torch_grad_mode_is_enabled, (void))                                                                        \
  X(void, aoti_torch_grad_mode_set_enabled, (bool enabled))                                                               \
  X(void, aoti_torch_check, (bool condition, const char *function, const char *file, uint32_t line, const char *message))

/* The stable operator API, complete in 2.10. Weak references: an older torch loads the object too, finds these names null, and
 * its user is told so (library.c) instead of reading "undefined symbol". */
#define SHIM_FUNCTIONS_STABLE(X)                                                                                        \
  X(uint64_t, aoti_torch_abi_version, (void))                                                                           \
  X(AOTITorchError, aoti_torch_library_init_fragment,                                                                   \
    (const char *ns, const char *file, uint32_t line, TorchLibraryHandle *new_library))                                 \
  X(AOTITorchError, aoti_torch_library_init_impl,                                                                       \
    (const char *ns, const char *key, const char *file, uint32_t line, TorchLibraryHandle *new_library))                \
  X(AOTITorchError, aoti_torch_library_def, (TorchLibraryHandle library, const char *schema))                           \
  X(AOTITorchError, torch_library_impl,                                                                                 \
    (TorchLibraryHandle library, const char *name, ShimKernel kernel, uint64_t build_version))                          \
  X(AOTITorchError, aoti_torch_delete_library_object, (TorchLibraryHandle library))                                     \
  X(AOTITorchError, torch_get_const_data_ptr, (AtenTensorHandle tensor, const void **borrowed_data))                    \
  X(AOTITorchError, torch_get_mutable_data_ptr, (AtenTensorHandle tensor, void **borrowed_data))                        \
  X(AOTITorchError, torch_parallel_for, (int64_t begin, int64_t end, int64_t grain_size, ParallelFunc body, void *ctx)) \
  X(AOTITorchError, torch_get_num_threads, (uint32_t * num_threads))

#define SHIM_FUNCTIONS(X) SHIM_FUNCTIONS_BASE(X) SHIM_FUNCTIONS_STABLE(X)

#define SHIM_CUDA_FUNCTIONS_BASE(X)                                                                    \
  X(AOTITorchError, aoti_torch_create_cuda_guard, (int32_t device_index, CUDAGuardHandle * new_guard)) \
  X(AOTITorchError, aoti_torch_delete_cuda_guard, (CUDAGuardHandle guard))                             \
  X(AOTITorchError, aoti_torch_get_current_cuda_stream, (int32_t device_index, void **borrowed_stream))

/* Weak, as above. */
#define SHIM_CUDA_FUNCTIONS_STABLE(X) X(AOTITorchError, torch_get_current_cuda_blas_handle, (void **borrowed_handle))

#define SHIM_CUDA_FUNCTIONS(X) SHIM_CUDA_FUNCTIONS_BASE(X) SHIM_CUDA_FUNCTIONS_STABLE(X)

#ifndef SHIM_LIST_ONLY
#define SHIM_DECLARE(type, name, parameters) type name parameters;
#define SHIM_DECLARE_WEAK(type, name, parameters) __attribute__((weak)) type name parameters;
SHIM_FUNCTIONS_BASE(SHIM_DECLARE)
SHIM_FUNCTIONS_STABLE(SHIM_DECLARE_WEAK)
SHIM_CUDA_FUNCTIONS_BASE(SHIM_DECLARE)
SHIM_CUDA_FUNCTIONS_STABLE(SHIM_DECLARE_WEAK)
#endif

#ifdef __cplusplus
}
#endif
#endif
