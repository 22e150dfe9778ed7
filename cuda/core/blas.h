/* SPDX-License-Identifier: Apache-2.0
 * blas.h - inside the library: the cuBLAS that the process has loaded already. Ours is a guest: it neither links nor loads one.
 */
#ifndef LATH_CUDA_CORE_BLAS_H
#define LATH_CUDA_CORE_BLAS_H

#include <cublasLt.h>
#include <cublas_v2.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* cuBLASLt, the library that cuBLAS is built on. The init functions are what the header's inline ones of the same names call.
 */
struct lath_blas_lt {
  cublasStatus_t (*init_operation)(cublasLtMatmulDesc_t, size_t, cublasComputeType_t, cudaDataType_t scale_type);
  cublasStatus_t (*set_operation)(cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, const void *value, size_t);
  cublasStatus_t (*init_layout)(cublasLtMatrixLayout_t, size_t, cudaDataType_t, uint64_t rows, uint64_t cols, int64_t ld);
  cublasStatus_t (*init_preference)(cublasLtMatmulPreference_t, size_t);
  cublasStatus_t (*set_preference)(cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t, const void *value, size_t);
  cublasStatus_t (*choose)(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                           cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t, int most,
                           cublasLtMatmulHeuristicResult_t *, int *count);
  cublasStatus_t (*multiply)(cublasLtHandle_t, cublasLtMatmulDesc_t, const void *alpha, const void *a, cublasLtMatrixLayout_t,
                             const void *b, cublasLtMatrixLayout_t, const void *beta, const void *c, cublasLtMatrixLayout_t,
                             void *d, cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t *, void *workspace, size_t,
                             cudaStream_t);
};

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
  const struct lath_blas_lt *lt; /* of the same installation, or NULL */
};

/* Looked up at the first call, from whichever thread; then fixed. */
const struct lath_blas *lath_blas(void);

/* How the handle forms sums: its mode without the flags, the default one where it cannot be asked. */
cublasMath_t lath_blas_math(cublasHandle_t handle);

#ifdef __cplusplus
}
#endif

#endif
