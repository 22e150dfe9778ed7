/* SPDX-License-Identifier: Apache-2.0
 *
 * runtime.cc - the calls of the CUDA runtime that host code makes: memory, streams, the device, attributes of kernels, errors.
 *
 * Streams do not wait: work is done when it is enqueued, which is one of the orders that CUDA allows. The prototypes are the
 * toolkit's.
 */
#include "runtime.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

#include "allocations.h"
#include "state.h"

struct emulator_device emulator_device = {132, 9, 0, 227 * 1024};

enum { DEVICES = 2, KERNELS = 256, SHARED_MULTIPROCESSOR_EXTRA = 1024 };

static struct {
  int device;
  cudaError_t error;
  int launches_to_failure; /* 0: none is to fail */
  cudaError_t launch_error;
} runtime;

/* What cudaFuncSetAttribute allowed, for each kernel. */
static struct {
  const void *kernel;
  size_t bytes;
} limits[KERNELS];

static cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess) runtime.error = error;
  return error;
}

void emulator_fail_launch(int n, int error) {
  runtime.launches_to_failure = n;
  runtime.launch_error = (cudaError_t)error;
}

bool emulator_launch_allowed(void) {
  if (runtime.launches_to_failure == 0 || --runtime.launches_to_failure > 0) return true;
  note(runtime.launch_error);
  return false;
}

static size_t *limit(const void *kernel) {
  for (int i = 0; i < KERNELS; i++) {
    if (limits[i].kernel == nullptr) limits[i].kernel = kernel;
    if (limits[i].kernel == kernel) return &limits[i].bytes;
  }
  abort(); /* KERNELS is too small */
}

size_t emulator_shared_limit(const void *kernel) { return *limit(kernel); }

extern "C" {

/* ---- memory -------------------------------------------------------------------------------------------------------------- */

cudaError_t cudaMalloc(void **pointer, size_t bytes) {
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  *pointer = emulator_allocate(bytes);
  return *pointer ? cudaSuccess : note(cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void *pointer) { return emulator_free(pointer) ? cudaSuccess : note(cudaErrorInvalidValue); }
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind) {
  emulator_open_memory();
  if (bytes) memcpy(to, from, bytes);
  emulator_close_memory();
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemset(void *to, int value, size_t bytes) {
  emulator_open_memory();
  if (bytes) memset(to, value, bytes);
  emulator_close_memory();
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t) { return cudaMemset(to, value, bytes); }

/* ---- streams ------------------------------------------------------------------------------------------------------------- */

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
  *stream = (cudaStream_t)malloc(1);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  free(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize(void) { return cudaSuccess; }

/* ---- the device ---------------------------------------------------------------------------------------------------------- */

cudaError_t cudaGetDeviceCount(int *count) {
  *count = DEVICES;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
  *device = runtime.device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= DEVICES) return note(cudaErrorInvalidDevice);
  runtime.device = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= DEVICES) return note(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = emulator_device.multiprocessors;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = emulator_device.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = emulator_device.minor;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = emulator_device.shared_bytes;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = 48 * 1024;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = emulator_device.shared_bytes + SHARED_MULTIPROCESSOR_EXTRA;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      break;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = EMULATOR_MAX_THREADS;
      break;
    case cudaDevAttrWarpSize:
      *value = EMULATOR_LANES;
      break;
    case cudaDevAttrL2CacheSize:
      *value = 50 << 20;
      break;
    default:
      return note(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

/* ---- kernels ------------------------------------------------------------------------------------------------------------- */

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || value > emulator_device.shared_bytes)
    return note(cudaErrorInvalidValue);
  *limit(kernel) = (size_t)value;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *kernel) {
  memset(attributes, 0, sizeof(*attributes));
  attributes->maxThreadsPerBlock = EMULATOR_MAX_THREADS;
  attributes->maxDynamicSharedSizeBytes = (int)emulator_shared_limit(kernel);
  return cudaSuccess;
}
/* By threads and shared memory; registers are the compiler's and unknown here. */
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int threads, size_t shared_bytes) {
  const int by_threads = 2048 / threads, room = emulator_device.shared_bytes + SHARED_MULTIPROCESSOR_EXTRA;
  const int by_shared = room / (int)(shared_bytes + SHARED_MULTIPROCESSOR_EXTRA);
  *blocks = by_threads < by_shared ? by_threads : by_shared;
  return cudaSuccess;
}

/* ---- errors -------------------------------------------------------------------------------------------------------------- */

cudaError_t cudaGetLastError(void) {
  const cudaError_t error = runtime.error;
  runtime.error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError(void) { return runtime.error; }
const char *cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "an error of the emulated device";
}
const char *cudaGetErrorName(cudaError_t error) { return error == cudaSuccess ? "cudaSuccess" : "cudaErrorEmulated"; }
}
