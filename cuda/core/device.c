/* SPDX-License-Identifier: Apache-2.0
 * device.c - properties of GPUs, and errors of the runtime and of cuBLAS. */
#include "core/device.h"

#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <pthread.h>

static struct lath_device devices[LATH_MAX_DEVICES]; /* no multiprocessors: not asked yet */
static pthread_mutex_t devices_lock = PTHREAD_MUTEX_INITIALIZER;

static cudaError_t ask(int ordinal, struct lath_device *device) {
  int major = 0, minor = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal);
  if (!error) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal);
  if (!error) error = cudaDeviceGetAttribute(&device->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal);
  if (!error) error = cudaDeviceGetAttribute(&device->multiprocessors, cudaDevAttrMultiProcessorCount, ordinal);
  device->capability = 10 * major + minor;
  return error;
}

int lath_device(int ordinal, struct lath_device *device) {
  if (ordinal < 0 || ordinal >= LATH_MAX_DEVICES) return cudaErrorInvalidDevice;
  cudaError_t error = cudaSuccess;
  pthread_mutex_lock(&devices_lock);
  *device = devices[ordinal];
  if (!device->multiprocessors) {
    error = ask(ordinal, device);
    if (!error) devices[ordinal] = *device;
  }
  pthread_mutex_unlock(&devices_lock);
  return error;
}

int lath_device_allow_shared(const void *kernel, int bytes, int ordinal, int *allowed) {
  if (__atomic_load_n(&allowed[ordinal], __ATOMIC_RELAXED)) return cudaSuccess;
  const int error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (!error) __atomic_store_n(&allowed[ordinal], 1, __ATOMIC_RELAXED);
  return error;
}

lath_status lath_device_check(struct lath_cuda *cuda, int error) {
  if (error == cudaSuccess) return LATH_OK;
  cuda->error = error;
  return LATH_DEVICE_FAILED;
}

lath_status lath_blas_check(struct lath_cuda *cuda, int status) {
  if (status == CUBLAS_STATUS_SUCCESS) return LATH_OK;
  cuda->error = LATH_CUDA_BLAS_ERROR + status;
  return LATH_DEVICE_FAILED;
}

lath_status lath_cuda_check_dtype(lath_dtype dtype) {
  return dtype == LATH_F32 || dtype == LATH_F64 || dtype == LATH_F16 || dtype == LATH_BF16 ? LATH_OK : LATH_UNSUPPORTED_DTYPE;
}

static const char *blas_text(int status) {
  switch (status) {
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "cuBLAS: the handle is not initialized";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "cuBLAS: out of memory";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "cuBLAS: invalid value";
    case CUBLAS_STATUS_ARCH_MISMATCH:
      return "cuBLAS: not for this GPU";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "cuBLAS: execution failed";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "cuBLAS: not supported";
  }
  return "cuBLAS: failed";
}

const char *lath_cuda_error_text(int error) {
  if (error >= LATH_CUDA_BLAS_ERROR) return blas_text(error - LATH_CUDA_BLAS_ERROR);
  return cudaGetErrorString((cudaError_t)error);
}
