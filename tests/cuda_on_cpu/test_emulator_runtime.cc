// SPDX-License-Identifier: Apache-2.0
//
// test_emulator_runtime.cc - the runtime calls of the emulator: memory, devices, attributes of kernels, errors.

#include "device/kernel.h"
#include "device_memory.h"

namespace {

using cuda_test::Device;

static __global__ void store(int *to, int value) {
  if (threadIdx.x == 0) *to = value;
}

TEST(CudaRuntime, NewMemoryIsNan) {
  for (const float value : Device<float>(1000).Read()) EXPECT_TRUE(std::isnan(value));
}

TEST(CudaRuntime, EmptyMemoryIsNull) {
  void *pointer = &pointer;
  EXPECT_EQ(cudaMalloc(&pointer, 0), cudaSuccess);
  EXPECT_EQ(pointer, nullptr);
  EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
}

TEST(CudaRuntime, CopiesAndFillsInStreams) {
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  const Device<int> data(std::vector<int>{1, 2, 3, 4});
  const Device<int> copy(4);
  ASSERT_EQ(cudaMemcpyAsync(copy.data(), data.data(), 16, cudaMemcpyDeviceToDevice, stream), cudaSuccess);
  ASSERT_EQ(cudaMemsetAsync(copy.data() + 1, 0, 8, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(copy.Read(), (std::vector<int>{1, 0, 0, 4}));
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

TEST(CudaRuntime, DescribesTheDeviceThatTheTestWants) {
  int value = 0;
  const struct emulator_device usual = emulator_device;
  ASSERT_EQ(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0), cudaSuccess);
  EXPECT_EQ(value, 132);
  emulator_device = {108, 8, 0, 163 * 1024};
  ASSERT_EQ(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 1), cudaSuccess);
  EXPECT_EQ(value, 8);
  EXPECT_EQ(cudaFuncSetAttribute((const void *)store, cudaFuncAttributeMaxDynamicSharedMemorySize, 200 * 1024),
            cudaErrorInvalidValue);
  emulator_device = usual;
  EXPECT_EQ(cudaFuncSetAttribute((const void *)store, cudaFuncAttributeMaxDynamicSharedMemorySize, 200 * 1024), cudaSuccess);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
}

TEST(CudaRuntime, HasTwoDevices) {
  int device = -1;
  EXPECT_EQ(cudaSetDevice(1), cudaSuccess);
  EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
  EXPECT_EQ(device, 1);
  EXPECT_EQ(cudaSetDevice(2), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
}

TEST(CudaRuntime, CountsBlocksBySharedMemoryAndThreads) {
  int blocks = 0;
  ASSERT_EQ(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, (const void *)store, 256, 0), cudaSuccess);
  EXPECT_EQ(blocks, 8);
  ASSERT_EQ(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, (const void *)store, 256, 100 * 1024), cudaSuccess);
  EXPECT_EQ(blocks, 2);
}

TEST(CudaRuntime, LaunchesFailWhenTheTestWants) {
  const Device<int> value(std::vector<int>{0});
  const long before = emulator_launches();
  emulator_fail_launch(2, cudaErrorLaunchOutOfResources);
  for (const int i : {1, 2, 3}) {
    LATH_LAUNCH(store, 1, 32, 0, nullptr, value.data(), i);
    EXPECT_EQ(cudaPeekAtLastError(), i == 2 ? cudaErrorLaunchOutOfResources : cudaSuccess);
    EXPECT_EQ(cudaGetLastError(), i == 2 ? cudaErrorLaunchOutOfResources : cudaSuccess);
    EXPECT_EQ(value.Read()[0], i == 2 ? 1 : i);
  }
  EXPECT_EQ(emulator_launches() - before, 2);
}

}  // namespace
