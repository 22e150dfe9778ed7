// SPDX-License-Identifier: Apache-2.0
//
// test_emulator_refusals.cc - each misuse that the emulator itself refuses, in every build: the message, and the correct
// neighbour.

#include "device/ptx.h"
#include "device_memory.h"
#include "leg.h"

namespace {

using cuda_test::Device;
using cuda_test::kLeg;
using cuda_test::Leg;

constexpr unsigned kAll = 0xffffffffu;

class CudaRefusals : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "fast"); }
};

// ---- launches -------------------------------------------------------------------------------------------------------------

static __global__ void nothing(int) {}

void LaunchNothing(dim3 grid, dim3 block, size_t shared_bytes = 0) {
  LATH_LAUNCH(nothing, grid, block, shared_bytes, nullptr, 0);
}

TEST_F(CudaRefusals, BlocksThatAreNotWholeWarps) {
  LaunchNothing(1, 64);
  EXPECT_DEATH(LaunchNothing(1, 48), "nothing:0: a block of \\(48, 1, 1\\) threads");
  EXPECT_DEATH(LaunchNothing(1, dim3(16, 3)), "a block of \\(16, 3, 1\\) threads");
  EXPECT_DEATH(LaunchNothing(1, 0), "a block of \\(0, 1, 1\\) threads");
  EXPECT_DEATH(LaunchNothing(1, dim3(64, 32)), "a block of \\(64, 32, 1\\) threads");
}

TEST_F(CudaRefusals, GridsBeyondTheLimits) {
  EXPECT_DEATH(LaunchNothing(0, 32), "a grid of \\(0, 1, 1\\) blocks");
  EXPECT_DEATH(LaunchNothing(dim3(1, 65536), 32), "a grid of \\(1, 65536, 1\\) blocks");
  EXPECT_DEATH(LaunchNothing(dim3(1, 1, 65536), 32), "a grid of \\(1, 1, 65536\\) blocks");
}

static __global__ void wants_much(int) {}

TEST_F(CudaRefusals, MuchSharedMemoryThatNobodyAskedFor) {
  const auto launch = [](size_t bytes) { LATH_LAUNCH(wants_much, 1, 32, bytes, nullptr, 0); };
  launch(48 * 1024);
  EXPECT_DEATH(launch(60000), "60000 bytes of dynamic shared memory");
  ASSERT_EQ(cudaFuncSetAttribute((const void *)wants_much, cudaFuncAttributeMaxDynamicSharedMemorySize, 60000), cudaSuccess);
  launch(60000);
  EXPECT_DEATH(launch(60001), "60001 bytes of dynamic shared memory");
}

static __global__ void launches_another(int) { LaunchNothing(1, 32); }

TEST_F(CudaRefusals, LaunchesFromAKernel) {
  EXPECT_DEATH(LATH_LAUNCH(launches_another, 1, 32, 0, nullptr, 0), "launched from a kernel");
}

// ---- barriers -------------------------------------------------------------------------------------------------------------

enum Barrier { kSame, kTwoPlaces, kReturned, kShuffleInstead };

static __global__ void meet(int kind, int *out) {
  if (kind == kReturned && threadIdx.x == 5) return;
  if (kind == kTwoPlaces && threadIdx.x < 32)
    __syncthreads();
  else if (kind == kShuffleInstead && threadIdx.x == 7)
    out[7] = __shfl_sync(kAll, 1, 0);
  else
    __syncthreads();
  out[threadIdx.x] = 1;
}

TEST_F(CudaRefusals, BarriersThatNotAllThreadsReach) {
  const Device<int> out(64);
  const auto launch = [&](int kind) { LATH_LAUNCH(meet, 1, 64, 0, nullptr, kind, out.data()); };
  launch(kSame);
  EXPECT_DEATH(launch(kTwoPlaces), "barrier, but thread \\(32, 0, 0\\) is at another one");
  EXPECT_DEATH(launch(kReturned), "barrier, but thread \\(5, 0, 0\\) has returned");
  EXPECT_DEATH(launch(kShuffleInstead), "thread \\(7, 0, 0\\): deadlock: __shfl_sync of mask ffffffff never completes");
}

// ---- warp operations ------------------------------------------------------------------------------------------------------

enum Warp { kTogether, kTwoMasks, kTwoLines, kTwoOperations, kNotInMask, kReadsOutside, kLaneReturned };

static __global__ void exchange(int kind, int *out) {
  const unsigned lane = threadIdx.x;
  int value = (int)lane;
  if (kind == kLaneReturned && lane == 9) return;
  if (kind == kTwoLines && lane < 16)
    value = __shfl_xor_sync(kAll, value, 1);
  else if (kind == kTwoLines)
    value = __shfl_xor_sync(kAll, value, 1);
  else if (kind == kTwoMasks)
    value = __shfl_xor_sync(lane < 16 ? kAll : 0xffff0000u, value, 1);
  else if (kind == kTwoOperations)
    value = lane % 2 ? __any_sync(kAll, 1) : __shfl_xor_sync(kAll, value, 1);
  else if (kind == kNotInMask)
    value = __shfl_sync(0xffffu, value, 0);
  else if (kind == kReadsOutside)
    value = lane < 16 ? __shfl_sync(0xffffu, value, 20) : 0;
  else
    value = __shfl_xor_sync(kAll, value, 1);
  out[lane] = value;
}

TEST_F(CudaRefusals, WarpOperationsThatDoNotMeet) {
  const Device<int> out(32);
  const auto launch = [&](int kind) { LATH_LAUNCH(exchange, 1, 32, 0, nullptr, kind, out.data()); };
  launch(kTogether);
  EXPECT_DEATH(launch(kTwoLines),
               "__shfl_xor_sync of mask ffffffff, but lane 0 is in __shfl_xor_sync of mask ffffffff at .*refusals");
  EXPECT_DEATH(launch(kTwoMasks),
               "__shfl_xor_sync of mask ffff0000, but lane 16 is|mask ffffffff, but lane 16 is|never completes");
  EXPECT_DEATH(launch(kTwoOperations), "__reduce_or_sync of mask ffffffff, but lane 0 is in __shfl_xor_sync");
  EXPECT_DEATH(launch(kNotInMask), "__shfl_sync: lane 16 is not in its own mask 0000ffff");
  EXPECT_DEATH(launch(kReadsOutside), "lane 0 reads lane 20, which is not in mask 0000ffff");
  EXPECT_DEATH(launch(kLaneReturned), "__shfl_xor_sync of mask ffffffff, but lane 9 has returned");
}

// ---- instructions ---------------------------------------------------------------------------------------------------------

enum Copy { kWaited, kInFlight, kMisalignedTarget, kMisalignedSource, kTooLong, kToGlobal, kTooMany };

static __global__ void copy(int kind, const float *in, float *out) {
  __shared__ __align__(16) float tile[32 * 4 + 4];
  float *to = &tile[threadIdx.x * 4];
  const float *from = &in[threadIdx.x * 4];
  if (kind == kMisalignedTarget) to++;
  if (kind == kMisalignedSource) from++;
  if (kind == kToGlobal) to = &out[threadIdx.x * 4];
  for (int i = 0; i < (kind == kTooMany ? 1000 : 1); i++) lath_cp_async_16(to, from, kind == kTooLong ? 20 : 16);
  lath_cp_async_commit();
  if (kind != kInFlight) lath_cp_async_wait<0>();
}

TEST_F(CudaRefusals, AsynchronousCopies) {
  const Device<float> in(132), out(132);
  const auto launch = [&](int kind) { LATH_LAUNCH(copy, 1, 32, 0, nullptr, kind, in.data(), out.data()); };
  launch(kWaited);
  EXPECT_DEATH(launch(kInFlight), "returns with cp.async in flight");
  EXPECT_DEATH(launch(kMisalignedTarget), "cp.async: .* is not aligned to 16 bytes");
  EXPECT_DEATH(launch(kMisalignedSource), "cp.async: .* is not aligned to 16 bytes");
  EXPECT_DEATH(launch(kTooLong), "cp.async of 20 bytes");
  EXPECT_DEATH(launch(kToGlobal), "cp.async: .* is not in shared memory");
  EXPECT_DEATH(launch(kTooMany), "more than 256 cp.async in flight");
}

enum Load { kAligned, kMisaligned, kFromGlobal };

static __global__ void load(int kind, unsigned *out) {
  __shared__ __align__(16) unsigned tile[32 * 4 + 1];
  unsigned r[4];
  for (unsigned i = threadIdx.x; i < 129; i += 32) tile[i] = i;
  __syncthreads();
  lath_ldmatrix_x4(r, kind == kFromGlobal ? &out[threadIdx.x * 4] : &tile[threadIdx.x * 4 + (kind == kMisaligned)]);
  out[threadIdx.x] = r[0];
}

TEST_F(CudaRefusals, Ldmatrix) {
  const Device<unsigned> out(128);
  const auto launch = [&](int kind) { LATH_LAUNCH(load, 1, 32, 0, nullptr, kind, out.data()); };
  launch(kAligned);
  EXPECT_DEATH(launch(kMisaligned), "ldmatrix: row .* is not aligned to 16 bytes");
  EXPECT_DEATH(launch(kFromGlobal), "ldmatrix: row .* is not in shared memory");
}

// ---- the stack of a thread --------------------------------------------------------------------------------------------------

static __global__ void fill_stack(int bytes, int *out) {
  volatile char *array = static_cast<char *>(__builtin_alloca(static_cast<size_t>(bytes)));
  for (int i = bytes - 1; i >= 0; i -= 1024) array[i] = 1;
  out[threadIdx.x] = array[bytes - 1];
}

TEST_F(CudaRefusals, MoreStackThanAThreadHas) {
  const Device<int> out(32);
  LATH_LAUNCH(fill_stack, 1, 32, 0, nullptr, 4096, out.data());
  const char *message = kLeg == Leg::kPlain ? "the thread needs more stack than it has" : "stack-overflow|SEGV";
  EXPECT_DEATH(LATH_LAUNCH(fill_stack, 1, 32, 0, nullptr, 66000, out.data()), message);
}

// ---- device memory ----------------------------------------------------------------------------------------------------------

static __global__ void write_at(float *data, int at) {
  if (threadIdx.x == 0) data[at] = 1;
}

// The sanitizers have means of their own against the second and third, and none against the first.
TEST_F(CudaRefusals, DeviceMemoryInTheHandsOfTheHost) {
  if (kLeg != Leg::kPlain) GTEST_SKIP() << "the heap of the sanitizer is used";
  const Device<float> data(std::vector<float>(5, 1.0f));
  EXPECT_DEATH(data.data()[2] = 3, "the host touches byte 8 of 20 bytes");
  EXPECT_DEATH(LATH_LAUNCH(write_at, 1, 32, 0, nullptr, data.data(), 8), "access 12 bytes past the end of 20 bytes");
  EXPECT_DEATH(
      {
        LATH_LAUNCH(write_at, 1, 32, 0, nullptr, data.data(), -3);
        cudaFree(data.data());
      },
      "cudaFree:0: somebody wrote -12 bytes from the beginning of 20 bytes");
  EXPECT_EQ(data.Read(), std::vector<float>(5, 1.0f));
}

TEST_F(CudaRefusals, WhatWasNotAllocatedIsNotFreed) {
  if (kLeg != Leg::kPlain) GTEST_SKIP() << "the heap of the sanitizer is used";
  int host = 0;
  EXPECT_EQ(cudaFree(&host), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
}

}  // namespace
