// SPDX-License-Identifier: Apache-2.0
//
// test_emulator_threads.cc - grids, blocks, barriers, fences and shared memory of the emulator, against plain loops.

#include "device/kernel.h"
#include "device_memory.h"

namespace {

using cuda_test::Device;
using cuda_test::EachOrder;

// ---- indices --------------------------------------------------------------------------------------------------------------

// Counts how often each (block, thread) runs.
static __global__ void count_threads(int *visits) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  visits[block * blockDim.x * blockDim.y * blockDim.z + thread]++;
}

TEST(CudaThreads, EachThreadOfEachBlockRunsOnce) {
  EachOrder([](unsigned) {
    for (const auto &[grid, block] : {std::pair{dim3(5), dim3(32)}, {dim3(2, 3, 2), dim3(8, 4, 2)}, {dim3(1), dim3(1024)}}) {
      const size_t count = size_t{1} * grid.x * grid.y * grid.z * block.x * block.y * block.z;
      Device<int> visits(std::vector<int>(count, 0));
      LATH_LAUNCH(count_threads, grid, block, 0, nullptr, visits.data());
      EXPECT_EQ(visits.Read(), std::vector<int>(count, 1));
    }
  });
}

// ---- barriers -------------------------------------------------------------------------------------------------------------

// Writes in[i] to the mirrored place of the block, by way of shared memory.
static __global__ void mirror(const float *in, float *out) {
  __shared__ float tile[128];
  const unsigned first = blockIdx.x * 128;
  tile[threadIdx.x] = in[first + threadIdx.x];
  __syncthreads();
  out[first + threadIdx.x] = tile[127 - threadIdx.x];
}

TEST(CudaThreads, BarrierShowsWhatOtherThreadsWrote) {
  std::vector<float> in(384), expected(384);
  for (size_t i = 0; i < in.size(); i++) in[i] = static_cast<float>(i);
  for (size_t i = 0; i < in.size(); i++) expected[i] = in[i / 128 * 128 + 127 - i % 128];
  EachOrder([&](unsigned) {
    Device<float> device_in(in), device_out(384);
    LATH_LAUNCH(mirror, 3, 128, 0, nullptr, device_in.data(), device_out.data());
    EXPECT_EQ(device_out.Read(), expected);
  });
}

static __global__ void vote(const int *predicate, int *count, int *any, int *all) {
  const unsigned i = threadIdx.x;
  count[i] = __syncthreads_count(predicate[i]);
  any[i] = __syncthreads_or(predicate[i]);
  all[i] = __syncthreads_and(predicate[i]);
}

TEST(CudaThreads, BarriersCountPredicates) {
  for (const int kind : {0, 1, 2}) {
    std::vector<int> predicate(64);
    for (int i = 0; i < 64; i++) predicate[static_cast<size_t>(i)] = kind == 0 ? 0 : kind == 1 ? 7 * (i % 3 == 0) : -1;
    const int expected = kind == 0 ? 0 : kind == 1 ? 22 : 64;
    Device<int> in(predicate), count(64), any(64), all(64);
    LATH_LAUNCH(vote, 1, 64, 0, nullptr, in.data(), count.data(), any.data(), all.data());
    EXPECT_EQ(count.Read(), std::vector<int>(64, expected));
    EXPECT_EQ(any.Read(), std::vector<int>(64, expected > 0));
    EXPECT_EQ(all.Read(), std::vector<int>(64, expected == 64));
  }
}

// ---- shared memory --------------------------------------------------------------------------------------------------------

// Copies unwritten shared memory out, then fills it, so that the next block would find its numbers. A template, because GCC is
// forgetful about the attributes of their variables.
template <int size>
static __global__ void peek(float *fixed_out, __half *half_out, float *dynamic_out) {
  __shared__ float fixed[32];
  __shared__ __half halves[size];
  LATH_DYNAMIC_SHARED(float, dynamic);
  const unsigned i = threadIdx.x, at = blockIdx.x * 32 + i;
  fixed_out[at] = fixed[i];
  half_out[at] = halves[i];
  dynamic_out[at] = dynamic[i];
  __syncthreads();
  fixed[i] = dynamic[i] = 1.0f;
  halves[i] = __float2half(1.0f);
}

TEST(CudaThreads, SharedMemoryIsNanBeforeEachBlock) {
  Device<float> fixed(std::vector<float>(64, 0)), dynamic(std::vector<float>(64, 0));
  Device<__half> halves(std::vector<__half>(64, __float2half(0)));
  LATH_LAUNCH((peek<32>), 2, 32, 32 * sizeof(float), nullptr, fixed.data(), halves.data(), dynamic.data());
  for (const float value : fixed.Read()) EXPECT_TRUE(std::isnan(value));
  for (const float value : dynamic.Read()) EXPECT_TRUE(std::isnan(value));
  for (const __half value : halves.Read()) EXPECT_TRUE(std::isnan(__half2float(value)));
}

static __global__ void alignment(int *misaligned) {
  LATH_DYNAMIC_SHARED(float4, dynamic);
  if (threadIdx.x == 0) *misaligned = (int)((uintptr_t)dynamic % 128);
}

TEST(CudaThreads, DynamicSharedMemoryIsAlignedTo128Bytes) {
  Device<int> misaligned(1);
  LATH_LAUNCH(alignment, 1, 32, 16, nullptr, misaligned.data());
  EXPECT_EQ(misaligned.Read()[0], 0);
}

// ---- between blocks -------------------------------------------------------------------------------------------------------

// Each block leaves its number; the last one to take a ticket adds them up.
static __global__ void sum_blocks(int *part, unsigned *ticket, int *sum) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    part[blockIdx.x] = (int)blockIdx.x + 1;
    __threadfence();
    last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last || threadIdx.x != 0) return;
  __threadfence();
  *sum = 0;
  for (unsigned i = 0; i < gridDim.x; i++) *sum += part[i];
}

TEST(CudaThreads, LastBlockSeesTheOthersBehindAFence) {
  EachOrder([](unsigned) {
    Device<int> part(7), sum(1);
    Device<unsigned> ticket(std::vector<unsigned>{0});
    LATH_LAUNCH(sum_blocks, 7, 64, 0, nullptr, part.data(), ticket.data(), sum.data());
    EXPECT_EQ(sum.Read()[0], 28);
    EXPECT_EQ(ticket.Read()[0], 0u);
  });
}

// A launch sees what the one before it wrote.
static __global__ void increment(int *value) {
  if (threadIdx.x == 31 && blockIdx.x == 0) ++*value;
}

TEST(CudaThreads, LaunchesFollowEachOther) {
  Device<int> value(std::vector<int>{40});
  LATH_LAUNCH(increment, 2, 32, 0, nullptr, value.data());
  LATH_LAUNCH(increment, 2, 32, 0, nullptr, value.data());
  EXPECT_EQ(value.Read()[0], 42);
}

template <int step, class T>
static __global__ void add_step(T *value) {
  if (threadIdx.x == 0) *value += step;
}

TEST(CudaThreads, TemplateKernelsAreLaunchedInParentheses) {
  Device<double> value(std::vector<double>{1.5});
  LATH_LAUNCH((add_step<3, double>), 1, 32, 0, nullptr, value.data());
  EXPECT_EQ(value.Read()[0], 4.5);
}

}  // namespace
