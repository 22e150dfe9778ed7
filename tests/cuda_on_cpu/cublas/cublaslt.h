// SPDX-License-Identifier: Apache-2.0
//
// cublaslt.h - what tests can ask of the stand-in for cuBLASLt, and make it do. All of it belongs to the calling thread.

#ifndef LATH_TESTS_CUDA_ON_CPU_CUBLAS_CUBLASLT_H_
#define LATH_TESTS_CUDA_ON_CPU_CUBLAS_CUBLASLT_H_

#include <cublasLt.h>

struct FakeLtRecord {
  int choices, products;  // calls that succeeded
  // Of the last choice:
  cublasComputeType_t compute;
  uint32_t alignment_a, alignment_b, alignment_c, alignment_d, reduction;
  uint64_t workspace_bytes;
  // Of the last product:
  void *workspace;
  cudaStream_t stream;
};

// How the next choices of a kernel end.
enum FakeLtChoice {
  kFakeLtFound,
  kFakeLtNone,         // success, and no kernel
  kFakeLtUnsupported,  // CUBLAS_STATUS_NOT_SUPPORTED
  kFakeLtBadState,     // a kernel that says it does not work
  kFakeLtBadProduct,   // a kernel whose launch fails
};

extern "C" {
FakeLtRecord *fake_lt_record(void);
void fake_lt_choose(FakeLtChoice choice);
}

#endif  // LATH_TESTS_CUDA_ON_CPU_CUBLAS_CUBLASLT_H_
