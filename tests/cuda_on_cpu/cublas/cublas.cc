// SPDX-License-Identifier: Apache-2.0
//
// cublas.cc - a stand-in for cuBLAS under its real name, so that the code that looks it up in a process runs unchanged.
//
// Only what lath looks up, and what a test needs to make a handle. The toolkit's header checks the prototypes. Arguments are
// refused as the real library's documentation says; sums are in double. With TF32 allowed, float operands are rounded to it.
// CUBLAS_WITHOUT_GEMM leaves out the product, CUBLAS_WITHOUT_64 its 64-bit form and the math modes, as an old library would.

#include <cublas_v2.h>

#include <new>
#include <vector>

#include "matrix.h"

struct cublasContext {
  cudaStream_t stream;
  cublasMath_t math;
  cublasPointerMode_t pointers;
};

namespace {

using fake_blas::Matrix;
using fake_blas::Operand;

struct Product {
  cublasOperation_t op_a, op_b;
  int64_t m, n, k;
  const void *alpha, *beta;
  Matrix a, b, c;
  cublasComputeType_t compute;
};

bool IsSupported(const Product &p) {
  const cudaDataType_t in = p.a.type, out = p.c.type;
  if (p.b.type != in) return false;
  if (p.compute == CUBLAS_COMPUTE_64F) return in == CUDA_R_64F && out == CUDA_R_64F;
  if (p.compute != CUBLAS_COMPUTE_32F) return false;
  if (in == CUDA_R_32F) return out == CUDA_R_32F;
  return (in == CUDA_R_16F || in == CUDA_R_16BF) && (out == in || out == CUDA_R_32F);
}

cublasStatus_t Check(const cublasContext *handle, const Product &p) {
  if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
  const int64_t rows_a = p.op_a == CUBLAS_OP_N ? p.m : p.k, rows_b = p.op_b == CUBLAS_OP_N ? p.k : p.n;
  if (p.m < 0 || p.n < 0 || p.k < 0 || !p.alpha || !p.beta) return CUBLAS_STATUS_INVALID_VALUE;
  for (const auto &[rows, ld] : {std::pair{rows_a, p.a.ld}, {rows_b, p.b.ld}, {p.m, p.c.ld}})
    if (ld < 1 || ld < rows) return CUBLAS_STATUS_INVALID_VALUE;
  return IsSupported(p) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

double Scalar(const void *scalar, bool f64) {
  return f64 ? *static_cast<const double *>(scalar) : static_cast<double>(*static_cast<const float *>(scalar));
}

// Column-major, as cuBLAS is: c (m, n) = alpha op(a) op(b) + beta c. Where beta is 0, c is not read.
void Compute(const cublasContext *handle, const Product &p) {
  const bool f64 = p.compute == CUBLAS_COMPUTE_64F, tf32 = p.a.type == CUDA_R_32F && (handle->math & CUBLAS_TF32_TENSOR_OP_MATH);
  const double alpha = Scalar(p.alpha, f64), beta = Scalar(p.beta, f64);
  const std::vector<double> a = Operand(p.a, p.op_a, p.m, p.k, tf32);
  const std::vector<double> b = Operand(p.b, p.op_b == CUBLAS_OP_N ? CUBLAS_OP_T : CUBLAS_OP_N, p.n, p.k, tf32);
  for (int64_t j = 0; j < p.n; j++)
    for (int64_t i = 0; i < p.m; i++) {
      const double *row = a.data() + i * p.k, *column = b.data() + j * p.k;
      double sum = 0;
      for (int64_t k = 0; k < p.k; k++) sum += row[k] * column[k];
      fake_blas::Store(p.c, i, j, alpha * sum + (beta != 0 ? beta * fake_blas::Load(p.c, i, j) : 0));
    }
}

[[maybe_unused]] cublasStatus_t Multiply(const cublasContext *handle, const Product &p) {
  const cublasStatus_t status = Check(handle, p);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (emulator_open_memory) emulator_open_memory();
  Compute(handle, p);
  if (emulator_close_memory) emulator_close_memory();
  return status;
}

}  // namespace

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t *handle) {
  *handle = new (std::nothrow) cublasContext{nullptr, CUBLAS_DEFAULT_MATH, CUBLAS_POINTER_MODE_HOST};
  return *handle ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}
cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetStream_v2(cublasHandle_t handle, cudaStream_t *stream) {
  *stream = handle->stream;
  return CUBLAS_STATUS_SUCCESS;
}

#ifndef CUBLAS_WITHOUT_GEMM
cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                            const void *alpha, const void *a, cudaDataType_t a_type, int lda, const void *b,
                            cudaDataType_t b_type, int ldb, const void *beta, void *c, cudaDataType_t c_type, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t) {
  return Multiply(handle, {op_a, op_b, m, n, k, alpha, beta, {const_cast<void *>(a), a_type, lda},
                           {const_cast<void *>(b), b_type, ldb}, {c, c_type, ldc}, compute});
}
#endif

#ifndef CUBLAS_WITHOUT_64
cublasStatus_t cublasGemmEx_64(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int64_t m, int64_t n,
                               int64_t k, const void *alpha, const void *a, cudaDataType_t a_type, int64_t lda, const void *b,
                               cudaDataType_t b_type, int64_t ldb, const void *beta, void *c, cudaDataType_t c_type, int64_t ldc,
                               cublasComputeType_t compute, cublasGemmAlgo_t) {
  return Multiply(handle, {op_a, op_b, m, n, k, alpha, beta, {const_cast<void *>(a), a_type, lda},
                           {const_cast<void *>(b), b_type, ldb}, {c, c_type, ldc}, compute});
}
cublasStatus_t cublasGetMathMode(cublasHandle_t handle, cublasMath_t *mode) {
  *mode = handle->math;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
  handle->math = mode;
  return CUBLAS_STATUS_SUCCESS;
}
#endif

}  // extern "C"
