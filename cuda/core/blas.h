/* SPDX-License-Identifier: Apache-2.0
 * blas.h - inside the library: the cuBLAS that the process has loaded already. Ours is a guest: it neither links nor loads one. */
#ifndef LATH_CUDA_CORE_BLAS_H
#define LATH_CUDA_CORE_BLAS_H

#include <cublas_v2.h>
#include <stdint.h>

struct lath_blas {
  const char *name; /* file name, or NULL: none was found and no function may be called */
  cublasStatus_t (*gemm)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k, const void *alpha,
                         const void *a, cudaDataType_t, int lda, const void *b, cudaDataType_t, int ldb, const void *beta,
                         void *c, cudaDataType_t, int ldc, cublasComputeType_t, cublasGemmAlgo_t);
  /* The same with 64-bit extents (CUDA 12 and newer), or NULL. */
  cublasStatus_t (*gemm_64)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int64_t m, int64_t n, int64_t k,
                            const void *alpha, const void *a, cudaDataType_t, int64_t lda, const void *b, cudaDataType_t,
                            int64_t ldb, const void *beta, void *c, cudaDataType_t, int64_t ldc, cublasComputeType_t,
                            cublasGemmAlgo_t);
  /* Both or neither. */
  cublasStatus_t (*get_math_mode)(cublasHandle_t, cublasMath_t *);
  cublasStatus_t (*set_math_mode)(cublasHandle_t, cublasMath_t);
};

/* Looked up at the first call, from whichever thread; then fixed. */
const struct lath_blas *lath_blas(void);

#endif
