// SPDX-License-Identifier: Apache-2.0
//
// device_memory.h - what tests of kernels share: arrays in device memory, and the orders of threads that the emulator runs.
//
// Only runtime calls are used, so the same tests can run on a GPU (-DLATH_TESTS_ON_GPU).

#ifndef LATH_TESTS_CUDA_ON_CPU_DEVICE_MEMORY_H_
#define LATH_TESTS_CUDA_ON_CPU_DEVICE_MEMORY_H_

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

#include "control.h"

namespace cuda_test {

// An array on the device. Without values its elements are whatever cudaMalloc gives; in the emulator they are NaN.
template <class T>
class Device {
 public:
  explicit Device(size_t count) : count_(count) {
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void **>(&data_), count * sizeof(T)), cudaSuccess);
  }
  explicit Device(const std::vector<T> &values) : Device(values.size()) {
    EXPECT_EQ(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  ~Device() { cudaFree(data_); }
  Device(const Device &) = delete;
  Device &operator=(const Device &) = delete;

  T *data() const { return data_; }
  size_t size() const { return count_; }

  // Waits for the device.
  std::vector<T> Read() const {
    std::vector<T> values(count_);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
  }

 private:
  T *data_ = nullptr;
  size_t count_ = 0;
};

// Runs body(seed) in each order of blocks, warps and lanes. What it computes must be the same in all of them.
template <class Body>
void EachOrder(const Body &body) {
  for (int seed = 0; seed < emulator_orders(); seed++) {
    emulator_order(static_cast<unsigned>(seed));
    body(static_cast<unsigned>(seed));
  }
  emulator_order(0);
}

}  // namespace cuda_test

#endif  // LATH_TESTS_CUDA_ON_CPU_DEVICE_MEMORY_H_
