// SPDX-License-Identifier: Apache-2.0
//
// test_emulator_cublaslt.cc - the stand-in for cuBLASLt, through its own interface: values, and what it refuses.

#include <cublasLt.h>
#include <cublas_v2.h>

#include "cublas/cublaslt.h"
#include "device_memory.h"

namespace {

using cuda_test::Device;

constexpr cublasLtMatmulPreferenceAttributes_t kAlignments[] = {
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};

// d (2, 2) = a b + bias, column-major: a = (1 3 5; 2 4 6), b = (1 0; 0 1; 2 -1), bias = (100; 200).
class CublasLt : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(cublasCreate(&handle_), CUBLAS_STATUS_SUCCESS);
    const uint32_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    const float *bias = bias_.data();
    ASSERT_EQ(cublasLtMatmulDescInit(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(Set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cublasLtMatrixLayoutInit(&a_layout_, CUDA_R_32F, 2, 3, 2), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cublasLtMatrixLayoutInit(&b_layout_, CUDA_R_32F, 3, 2, 3), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cublasLtMatrixLayoutInit(&d_layout_, CUDA_R_32F, 2, 2, 2), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cublasLtMatmulPreferenceInit(&preference_), CUBLAS_STATUS_SUCCESS);
    for (const auto name : kAlignments) ASSERT_EQ(Prefer(name, uint32_t{4}), CUBLAS_STATUS_SUCCESS);
  }
  void TearDown() override { cublasDestroy(handle_); }

  template <class T>
  cublasStatus_t Set(cublasLtMatmulDescAttributes_t name, const T &value) {
    return cublasLtMatmulDescSetAttribute(&operation_, name, &value, sizeof(value));
  }
  template <class T>
  cublasStatus_t Prefer(cublasLtMatmulPreferenceAttributes_t name, const T &value) {
    return cublasLtMatmulPreferenceSetAttribute(&preference_, name, &value, sizeof(value));
  }

  cublasStatus_t Choose() {
    int count = 0;
    return cublasLtMatmulAlgoGetHeuristic(Handle(), &operation_, &a_layout_, &b_layout_, &d_layout_, &d_layout_, &preference_,
                                          1, &found_, &count);
  }

  cublasStatus_t Multiply(float *d, void *workspace = nullptr, size_t workspace_bytes = 0) {
    const float one = 1, zero = 0;
    return cublasLtMatmul(Handle(), &operation_, &one, a_.data(), &a_layout_, b_.data(), &b_layout_, &zero, d, &d_layout_, d,
                          &d_layout_, &found_.algo, workspace, workspace_bytes, nullptr);
  }

  cublasLtHandle_t Handle() const { return reinterpret_cast<cublasLtHandle_t>(handle_); }

  cublasHandle_t handle_ = nullptr;
  Device<float> a_{{1, 2, 3, 4, 5, 6}}, b_{{1, 0, 2, 0, 1, -1}}, bias_{{100, 200}}, d_{4};
  cublasLtMatmulDescOpaque_t operation_;
  cublasLtMatrixLayoutOpaque_t a_layout_, b_layout_, d_layout_;
  cublasLtMatmulPreferenceOpaque_t preference_;
  cublasLtMatmulHeuristicResult_t found_;
};

TEST_F(CublasLt, AddsTheBiasToEachColumn) {
  ASSERT_EQ(Choose(), CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(Multiply(d_.data()), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(d_.Read(), (std::vector<float>{111, 214, 98, 198}));
}

TEST_F(CublasLt, LeavesTheBiasOutWithoutTheEpilogue) {
  ASSERT_EQ(Set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{CUBLASLT_EPILOGUE_DEFAULT}), CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(Choose(), CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(Multiply(d_.data()), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(d_.Read(), (std::vector<float>{11, 14, -2, -2}));
}

TEST_F(CublasLt, RefusesAttributesOfTheWrongSizeOrValue) {
  EXPECT_EQ(Set(CUBLASLT_MATMUL_DESC_TRANSA, int64_t{CUBLAS_OP_T}), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(Set(CUBLASLT_MATMUL_DESC_TRANSA, int32_t{7}), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(Set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{12345}), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(cublasLtMatmulDescSetAttribute(&operation_, CUBLASLT_MATMUL_DESC_TRANSA, nullptr, 4), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(Prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint64_t{16}), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(Prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32_t{12}), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(Prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint32_t{16}), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(Prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{8}), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(cublasLtMatmulDescInit_internal(&operation_, sizeof(operation_) - 1, CUBLAS_COMPUTE_32F, CUDA_R_32F),
            CUBLAS_STATUS_ALLOC_FAILED);
}

TEST_F(CublasLt, RefusesABiasThatIsNull) {
  ASSERT_EQ(Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const float *>(nullptr)), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(Choose(), CUBLAS_STATUS_INVALID_VALUE);
}

TEST_F(CublasLt, RefusesLayoutsThatDoNotFit) {
  const cublasLtMatrixLayoutOpaque_t good = a_layout_;
  ASSERT_EQ(Choose(), CUBLAS_STATUS_SUCCESS);
  const struct {
    uint64_t rows, cols;
    int64_t ld;
  } wrong[] = {{2, 3, 1}, {3, 2, 3}, {2, 4, 2}, {0, 3, 2}};
  for (const auto &layout : wrong) {
    ASSERT_EQ(cublasLtMatrixLayoutInit(&a_layout_, CUDA_R_32F, layout.rows, layout.cols, layout.ld), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(Choose(), CUBLAS_STATUS_INVALID_VALUE) << layout.rows << " " << layout.cols << " " << layout.ld;
  }
  ASSERT_EQ(cublasLtMatrixLayoutInit(&a_layout_, CUDA_R_16F, 2, 3, 2), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(Choose(), CUBLAS_STATUS_NOT_SUPPORTED);
  a_layout_ = good;
  EXPECT_EQ(Choose(), CUBLAS_STATUS_SUCCESS);
}

TEST_F(CublasLt, RefusesAWorkspaceThatIsTooSmall) {
  const Device<float> workspace(64);
  ASSERT_EQ(Prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{256}), CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(Choose(), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(Multiply(d_.data(), workspace.data(), 255), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(Multiply(d_.data(), nullptr, 256), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(Multiply(d_.data(), workspace.data(), 256), CUBLAS_STATUS_SUCCESS);
}

TEST_F(CublasLt, RefusesOperandsThatAreLessAlignedThanPromised) {
  for (const auto name : kAlignments) {
    ASSERT_EQ(cublasLtMatmulPreferenceInit(&preference_), CUBLAS_STATUS_SUCCESS);
    for (const auto other : kAlignments) ASSERT_EQ(Prefer(other, uint32_t{4}), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(Prefer(name, uint32_t{256}), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(Choose(), CUBLAS_STATUS_SUCCESS);
    const Device<float> d(128);
    const auto next_odd = [](float *data) { return reinterpret_cast<uintptr_t>(data) % 256 ? data : data + 1; };
    const bool output = name == kAlignments[2] || name == kAlignments[3];
    const bool refused = output || reinterpret_cast<uintptr_t>((name == kAlignments[0] ? a_ : b_).data()) % 256;
    EXPECT_EQ(Multiply(next_odd(d.data())), refused ? CUBLAS_STATUS_INVALID_VALUE : CUBLAS_STATUS_SUCCESS) << name;
  }
}

TEST_F(CublasLt, RefusesAKernelThatWasChosenForAnotherProblem) {
  const Device<float> d(6);
  ASSERT_EQ(Choose(), CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(cublasLtMatrixLayoutInit(&d_layout_, CUDA_R_32F, 2, 2, 3), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(Multiply(d.data()), CUBLAS_STATUS_INVALID_VALUE);
  found_ = {};
  EXPECT_EQ(Multiply(d.data()), CUBLAS_STATUS_INVALID_VALUE);
}

}  // namespace
