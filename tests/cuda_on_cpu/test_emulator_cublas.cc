// SPDX-License-Identifier: Apache-2.0
//
// test_emulator_cublas.cc - the stand-in for cuBLAS, through its own interface: values, types, what it refuses.

#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "device_memory.h"

namespace {

using cuda_test::Device;

class Cublas : public testing::Test {
 protected:
  void SetUp() override { ASSERT_EQ(cublasCreate(&handle_), CUBLAS_STATUS_SUCCESS); }
  void TearDown() override { cublasDestroy(handle_); }

  // c (2, 2) = op_a(a) op_b(b) + beta c, column-major, with k = 3.
  template <class T, class C>
  cublasStatus_t Multiply(cublasOperation_t op_a, cublasOperation_t op_b, const Device<T> &a, int lda, const Device<T> &b,
                          int ldb, float beta, const Device<C> &c, int ldc, cudaDataType_t type, cudaDataType_t c_type) {
    const float alpha = 1;
    return cublasGemmEx(handle_, op_a, op_b, 2, 2, 3, &alpha, a.data(), type, lda, b.data(), type, ldb, &beta, c.data(), c_type,
                        ldc, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
  }

  cublasHandle_t handle_ = nullptr;
};

// a = (1 3 5; 2 4 6), b = (1 0; 0 1; 2 -1): a b = (11 -2; 14 -2).
const std::vector<float> kA = {1, 2, 3, 4, 5, 6}, kATransposed = {1, 3, 5, 2, 4, 6};
const std::vector<float> kB = {1, 0, 2, 0, 1, -1}, kBTransposed = {1, 0, 0, 1, 2, -1};
const std::vector<float> kProduct = {11, 14, -2, -2};

TEST_F(Cublas, MultipliesColumnMajorMatrices) {
  const Device<float> a(kA), at(kATransposed), b(kB), bt(kBTransposed);
  for (const bool ta : {false, true})
    for (const bool tb : {false, true}) {
      const Device<float> c(4);  // NaN: not read when beta is 0
      ASSERT_EQ(Multiply(ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb ? CUBLAS_OP_T : CUBLAS_OP_N, ta ? at : a, ta ? 3 : 2, tb ? bt : b,
                         tb ? 2 : 3, 0, c, 2, CUDA_R_32F, CUDA_R_32F),
                CUBLAS_STATUS_SUCCESS);
      EXPECT_EQ(c.Read(), kProduct);
    }
}

TEST_F(Cublas, AddsToTheOutput) {
  const Device<float> a(kA), b(kB), c(std::vector<float>{100, 200, 300, 400});
  ASSERT_EQ(Multiply(CUBLAS_OP_N, CUBLAS_OP_N, a, 2, b, 3, 1, c, 2, CUDA_R_32F, CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(c.Read(), (std::vector<float>{111, 214, 298, 398}));
}

template <class T>
std::vector<T> Narrow(const std::vector<float> &values) {
  return std::vector<T>(values.begin(), values.end());
}

TEST_F(Cublas, MultipliesSixteenBitOperands) {
  const Device<__half> a(Narrow<__half>(kA)), b(Narrow<__half>(kB)), c(4);
  ASSERT_EQ(Multiply(CUBLAS_OP_N, CUBLAS_OP_N, a, 2, b, 3, 0, c, 2, CUDA_R_16F, CUDA_R_16F), CUBLAS_STATUS_SUCCESS);
  for (size_t i = 0; i < 4; i++) EXPECT_EQ(__half2float(c.Read()[i]), kProduct[i]);
  const Device<__nv_bfloat16> ab(Narrow<__nv_bfloat16>(kA)), bb(Narrow<__nv_bfloat16>(kB));
  const Device<float> cf(4);
  ASSERT_EQ(Multiply(CUBLAS_OP_N, CUBLAS_OP_N, ab, 2, bb, 3, 0, cf, 2, CUDA_R_16BF, CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(cf.Read(), kProduct);
}

TEST_F(Cublas, RoundsToTf32OnlyWhenAllowed) {
  const float fine = 1.0f + 0x1p-20f;
  const Device<float> a(std::vector<float>(6, fine)), b(kB), c(4);
  for (const bool allowed : {false, true}) {
    ASSERT_EQ(cublasSetMathMode(handle_, allowed ? CUBLAS_TF32_TENSOR_OP_MATH : CUBLAS_DEFAULT_MATH), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(Multiply(CUBLAS_OP_N, CUBLAS_OP_N, a, 2, b, 3, 0, c, 2, CUDA_R_32F, CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(c.Read()[0], allowed ? 3.0f : 3.0f * fine);
  }
}

TEST_F(Cublas, RefusesWhatTheRealOneRefuses) {
  const Device<float> a(kA), b(kB), c(4);
  const auto with = [&](int lda, int ldb, int ldc, cudaDataType_t c_type) {
    return Multiply(CUBLAS_OP_N, CUBLAS_OP_N, a, lda, b, ldb, 0, c, ldc, CUDA_R_32F, c_type);
  };
  EXPECT_EQ(with(2, 3, 2, CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(with(1, 3, 2, CUDA_R_32F), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(with(2, 2, 2, CUDA_R_32F), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(with(2, 3, 1, CUDA_R_32F), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(with(2, 3, 2, CUDA_R_16F), CUBLAS_STATUS_NOT_SUPPORTED);
}

}  // namespace
