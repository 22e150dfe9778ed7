// SPDX-License-Identifier: Apache-2.0
//
// test_emulator_bugs.cc - kernels with one bug each, which must be found, and the same kernels without it, which must pass.
//
// The table at the end says which build finds what, and how. No build finds all; each bug is found by at least one.

#include <string>

#include "device/ptx.h"
#include "device_memory.h"
#include "leg.h"

namespace {

using cuda_test::Device;
using cuda_test::kLeg;
using cuda_test::Leg;

enum Bug {
  kNone,
  kNoBarrierAfterLoads,
  kNoBarrierBeforeLoads,
  kReadPastTheEnd,
  kWritePastTheEnd,
  kSharedTooShort,
  kPointerPastShared,
  kMisalignedVector,
  kTwoBarriers,
  kReturnBeforeBarrier,
  kNeverWritten,
  kWaitTooLate,
  kBarrierBeforeWait,
  kNoBarrierBeforeRefill,
  kNoCommit,
  kDynamicTooShort,
  kStorePastDynamic,
  kNoSyncwarp,
  kShuffleInBranch,
  kNoThreadfence,
  kPlainAddInBlock,
  kPlainAddAcrossBlocks,
  kTwoBlocksWrite,
  kBlocksMeetAtTheirBarriers,
  kWithoutTranspose,
  kRowsSwapped
};

// What a launch left behind, compared with the plain loops.
enum class Verdict { kRight, kWrong, kOrder };  // kOrder: right in some order of threads, wrong in another

template <class Launch, class T>
Verdict Judge(const Launch &launch, const std::vector<T> &expected) {
  int right = 0;
  for (int seed = 0; seed < emulator_orders(); seed++) {
    emulator_order(static_cast<unsigned>(seed));
    right += launch() == expected;
  }
  emulator_order(0);
  return right == emulator_orders() ? Verdict::kRight : right ? Verdict::kOrder : Verdict::kWrong;
}

// ---- tiles of 64 turned around, by way of shared memory ---------------------------------------------------------------------

enum { kTile = 64, kTilesOfBlock = 2, kTurned = 2 * kTilesOfBlock * kTile - 5 };

template <int bug>
static __global__ void turn_tiles(const float *in, float *out, int n) {
  __shared__ __align__(16) float tile[bug == kSharedTooShort ? kTile - 1 : kTile];
  __shared__ float next_array[4];
  const int i = (int)threadIdx.x;
  for (int t = 0; t < kTilesOfBlock; t++) {
    const int first = ((int)blockIdx.x * kTilesOfBlock + t) * kTile, at = first + i;
    if (bug != kNeverWritten || i != 3) tile[i] = bug == kReadPastTheEnd || at < n ? in[at] : 0.0f;
    if (bug == kReturnBeforeBarrier && at >= n) return;
    if (bug == kTwoBarriers && i < 32)
      __syncthreads();
    else if (bug != kNoBarrierAfterLoads)
      __syncthreads();
    if (bug == kWritePastTheEnd || at < n) out[at] = tile[kTile - 1 - i];
    if (bug != kNoBarrierBeforeLoads) __syncthreads();
  }
  if (bug == kPointerPastShared) {
    float *volatile p = tile;
    p[kTile + i % 4] = next_array[i % 4];
  }
  if (bug == kMisalignedVector) *reinterpret_cast<float2 *>(tile + 1) = make_float2(0, 0);
}

template <int bug>
Verdict TurnTiles() {
  std::vector<float> in(kTurned), expected(kTurned);
  for (size_t i = 0; i < in.size(); i++) in[i] = static_cast<float>(i + 1);
  for (size_t i = 0; i < in.size(); i++) {
    const size_t from = i / kTile * kTile + kTile - 1 - i % kTile;
    expected[i] = from < in.size() ? in[from] : 0;
  }
  return Judge(
      [&] {
        const Device<float> device_in(in), out(in.size());
        LATH_LAUNCH((turn_tiles<bug>), 2, kTile, 0, nullptr, device_in.data(), out.data(), static_cast<int>(in.size()));
        return out.Read();
      },
      expected);
}

// ---- sums of slices that arrive by cp.async, two in flight ------------------------------------------------------------------

enum { kSlice = 256, kSlices = 4 };

template <int bug>
static __device__ void start_slice(float *stage, const float *slice) {
  lath_cp_async_16(&stage[threadIdx.x * 4], &slice[threadIdx.x * 4], 16);
  if (bug != kNoCommit) lath_cp_async_commit();
}

// out[i] = the sum over slices of element (i + 5) % 256, which another thread has copied.
template <int bug>
static __global__ void sum_slices(const float *in, float *out) {
  LATH_DYNAMIC_SHARED(float, stages);
  float sum[4] = {0, 0, 0, 0};
  start_slice<bug>(stages, in);
  for (int s = 0; s < kSlices; s++) {
    if (s + 1 < kSlices) start_slice<bug>(stages + (s + 1) % 2 * kSlice, in + (s + 1) * kSlice);
    if (bug == kBarrierBeforeWait) __syncthreads();
    if (s + 1 < kSlices)
      lath_cp_async_wait<bug == kWaitTooLate ? 2 : 1>();
    else
      lath_cp_async_wait<0>();
    if (bug != kBarrierBeforeWait) __syncthreads();
    for (int i = 0; i < 4; i++) sum[i] += stages[s % 2 * kSlice + ((int)threadIdx.x * 4 + i + 5) % kSlice];
    if (bug != kNoBarrierBeforeRefill) __syncthreads();
  }
  if (bug == kStorePastDynamic) stages[2 * kSlice + (int)threadIdx.x % 4] = 0;
  if (bug == kNoCommit) lath_cp_async_commit();
  lath_cp_async_wait<0>();
  for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + (unsigned)i] = sum[i];
}

template <int bug>
Verdict SumSlices() {
  std::vector<float> in(kSlice * kSlices), expected(kSlice, 0.0f);
  for (size_t i = 0; i < in.size(); i++) in[i] = static_cast<float>(i * 7 % 31);
  for (size_t i = 0; i < kSlice; i++)
    for (size_t s = 0; s < kSlices; s++) expected[i] += in[s * kSlice + (i + 5) % kSlice];
  const size_t bytes = 2 * kSlice * sizeof(float) - (bug == kDynamicTooShort ? 16 : 0);
  return Judge(
      [&] {
        const Device<float> device_in(in), out(kSlice);
        LATH_LAUNCH((sum_slices<bug>), 1, kSlice / 4, bytes, nullptr, device_in.data(), out.data());
        return out.Read();
      },
      expected);
}

// ---- the sum of all elements: warps, a block, the last of all blocks --------------------------------------------------------

struct Sums {
  int *part;  // of each block
  unsigned *ticket;
  int *sum;  // [0] of all; [1] how many threads came
};

template <int bug>
static __device__ int warp_sum(int value) {
  __shared__ int passing[64];
  for (int step = 16; step > 1; step /= 2)
    if (bug != kShuffleInBranch || threadIdx.x < 48) value += __shfl_xor_sync(0xffffffffu, value, step);
  passing[threadIdx.x] = value;  // the last step goes through memory
  if (bug != kNoSyncwarp) __syncwarp();
  return value + passing[threadIdx.x ^ 1];
}

template <int bug>
static __global__ void sum_all(const int *in, Sums to) {
  __shared__ int warps[2];
  __shared__ int came;
  __shared__ bool last;
  const int value = warp_sum<bug>(in[blockIdx.x * 64 + threadIdx.x]);
  if (threadIdx.x == 0) came = 0;
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  // A barrier is of one block: it orders nothing with another one.
  if (bug == kBlocksMeetAtTheirBarriers && threadIdx.x == 0 && blockIdx.x == 0) to.part[3] = 1;
  __syncthreads();
  if (bug == kBlocksMeetAtTheirBarriers && threadIdx.x == 0 && blockIdx.x != 0) to.part[3] = 1;
  if (bug == kPlainAddInBlock)
    came++;
  else
    atomicAdd(&came, 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    if (bug == kPlainAddAcrossBlocks)
      to.sum[1] += came;
    else
      atomicAdd(&to.sum[1], came);
    to.part[bug == kTwoBlocksWrite ? 0 : blockIdx.x] = warps[0] + warps[1];
    if (bug != kNoThreadfence) __threadfence();
    last = atomicInc(to.ticket, gridDim.x - 1) == gridDim.x - 1;
    if (last) {
      __threadfence();
      *to.sum = 0;
      for (unsigned i = 0; i < gridDim.x; i++) *to.sum += to.part[i];
    }
  }
}

template <int bug>
Verdict SumAll() {
  std::vector<int> in(3 * 64);
  std::vector<int> expected = {0, 3 * 64};
  for (size_t i = 0; i < in.size(); i++) expected[0] += in[i] = static_cast<int>(i * i % 17);
  return Judge(
      [&] {
        const Device<int> device_in(in), part(4), sum(std::vector<int>{0, 0});
        const Device<unsigned> ticket(std::vector<unsigned>{0});
        LATH_LAUNCH((sum_all<bug>), 3, 64, 0, nullptr, device_in.data(), (Sums{part.data(), ticket.data(), sum.data()}));
        return sum.Read();
      },
      expected);
}

// ---- c (16, 8) = a (16, 16) b (16, 8) on tensor cores, both row-major in shared memory --------------------------------------

template <int bug>
static __global__ void multiply_tile(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c) {
  __shared__ __align__(16) __nv_bfloat16 a_tile[16][16], b_tile[16][16];
  const int lane = (int)threadIdx.x;
  for (int i = lane; i < 256; i += 32) {
    a_tile[i / 16][i % 16] = a[i];
    b_tile[i / 16][i % 16] = i % 16 < 8 ? b[i / 16 * 8 + i % 16] : __float2bfloat16(0);
  }
  __syncthreads();
  unsigned x[4], y[4];
  const int row = bug == kRowsSwapped ? lane % 8 + lane / 16 * 8 : lane % 16,
            half = bug == kRowsSwapped ? lane / 8 % 2 : lane / 16;
  lath_ldmatrix_x4(x, &a_tile[row][half * 8]);
  if (bug == kWithoutTranspose)
    lath_ldmatrix_x4(y, &b_tile[lane % 16][lane / 16 * 8]);
  else
    lath_ldmatrix_x4_trans(y, &b_tile[lane % 16][lane / 16 * 8]);
  float d[4] = {0, 0, 0, 0};
  lath_mma_m16n8k16_bf16(d, x, y);
  for (int i = 0; i < 4; i++) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

template <int bug>
Verdict MultiplyTile() {
  std::vector<__nv_bfloat16> a(256), b(128);
  std::vector<float> expected(128, 0.0f);
  for (size_t i = 0; i < a.size(); i++) a[i] = __float2bfloat16(static_cast<float>(i * 5 % 13) - 6);
  for (size_t i = 0; i < b.size(); i++) b[i] = __float2bfloat16(static_cast<float>(i * 3 % 11) - 5);
  for (size_t i = 0; i < expected.size(); i++)
    for (size_t k = 0; k < 16; k++) expected[i] += __bfloat162float(a[i / 8 * 16 + k]) * __bfloat162float(b[k * 8 + i % 8]);
  return Judge(
      [&] {
        const Device<__nv_bfloat16> device_a(a), device_b(b);
        const Device<float> c(expected.size());
        LATH_LAUNCH((multiply_tile<bug>), 1, 32, 0, nullptr, device_a.data(), device_b.data(), c.data());
        return c.Read();
      },
      expected);
}

// ---- the table --------------------------------------------------------------------------------------------------------------

// What a build makes of a bug: the verdict on the numbers, or the message that the program ends with, or nothing.
struct Finding {
  Verdict verdict;
  const char *message;
};
constexpr Finding kMissed = {Verdict::kRight, nullptr}, kWrong = {Verdict::kWrong, nullptr},
                  kOrder = {Verdict::kOrder, nullptr};
constexpr Finding kRace = {Verdict::kWrong, "ThreadSanitizer: data race"}, kHeap = {Verdict::kWrong, "heap-buffer-overflow"};
constexpr Finding kPastTheEnd = {Verdict::kWrong, "bytes past the end of"};
constexpr Finding kBounds = {Verdict::kWrong, "out of bounds"}, kShared = {Verdict::kWrong, "global-buffer-overflow"};
constexpr Finding kMisaligned = {Verdict::kWrong, "misaligned address"}, kDiverged = {Verdict::kWrong, "is at another one"};
constexpr Finding kReturned = {Verdict::kWrong, "has returned"},
                  kNotMet = {Verdict::kWrong, "but lane 0 is in __shfl_xor_sync"};
constexpr Finding kNotShared = {Verdict::kWrong, "is not in shared memory"};
// The program is not run: what happens is up to the heap.
constexpr Finding kUntold = {Verdict::kWrong, ""};

struct Seeded {
  const char *name;
  Verdict (*run)();
  Finding plain, address, thread;
};

// clang-format off
#define SEEDED(bug, kernel) #bug, kernel<bug>
const Seeded kSeeded[] = {
    // bug, kernel                                   plain        ASan, UBSan  TSan
    {SEEDED(kNoBarrierAfterLoads, TurnTiles),        kWrong,      kWrong,      kRace},
    {SEEDED(kNoBarrierBeforeLoads, TurnTiles),       kWrong,      kWrong,      kRace},
    {SEEDED(kReadPastTheEnd, TurnTiles),             kPastTheEnd, kHeap,       kUntold},
    {SEEDED(kWritePastTheEnd, TurnTiles),            kPastTheEnd, kHeap,       kUntold},
    {SEEDED(kSharedTooShort, TurnTiles),             kUntold,     kBounds,     kUntold},
    {SEEDED(kPointerPastShared, TurnTiles),          kUntold,     kShared,     kUntold},
    {SEEDED(kMisalignedVector, TurnTiles),           kMissed,     kMisaligned, kUntold},
    {SEEDED(kTwoBarriers, TurnTiles),                kDiverged,   kDiverged,   kDiverged},
    {SEEDED(kReturnBeforeBarrier, TurnTiles),        kReturned,   kReturned,   kReturned},
    {SEEDED(kNeverWritten, TurnTiles),               kWrong,      kWrong,      kWrong},
    {SEEDED(kWaitTooLate, SumSlices),                kWrong,      kWrong,      kWrong},
    {SEEDED(kBarrierBeforeWait, SumSlices),          kWrong,      kWrong,      kRace},
    {SEEDED(kNoBarrierBeforeRefill, SumSlices),      kWrong,      kWrong,      kRace},
    {SEEDED(kNoCommit, SumSlices),                   kWrong,      kWrong,      kWrong},
    {SEEDED(kDynamicTooShort, SumSlices),            kNotShared,  kNotShared,  kNotShared},
    {SEEDED(kStorePastDynamic, SumSlices),           kUntold,     kHeap,       kUntold},
    {SEEDED(kNoSyncwarp, SumAll),                    kOrder,      kOrder,      kRace},
    {SEEDED(kShuffleInBranch, SumAll),               kNotMet,     kNotMet,     kNotMet},
    {SEEDED(kNoThreadfence, SumAll),                 kMissed,     kMissed,     kRace},
    {SEEDED(kPlainAddInBlock, SumAll),               kMissed,     kMissed,     kRace},
    {SEEDED(kPlainAddAcrossBlocks, SumAll),          kMissed,     kMissed,     kRace},
    {SEEDED(kTwoBlocksWrite, SumAll),                kWrong,      kWrong,      kRace},
    {SEEDED(kBlocksMeetAtTheirBarriers, SumAll),     kMissed,     kMissed,     kRace},
    {SEEDED(kWithoutTranspose, MultiplyTile),        kWrong,      kWrong,      kWrong},
    {SEEDED(kRowsSwapped, MultiplyTile),             kWrong,      kWrong,      kWrong},
};
// clang-format on

// For messages of GoogleTest.
std::ostream &operator<<(std::ostream &out, Verdict verdict) {
  return out << (verdict == Verdict::kRight ? "right" : verdict == Verdict::kWrong ? "wrong" : "depends on the order");
}
std::ostream &operator<<(std::ostream &out, const Seeded &seeded) { return out << seeded.name; }

const Finding &Expected(const Seeded &seeded) {
  return kLeg == Leg::kPlain ? seeded.plain : kLeg == Leg::kAddress ? seeded.address : seeded.thread;
}

class CudaBugs : public testing::TestWithParam<Seeded> {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "fast"); }
};

TEST_P(CudaBugs, AreFound) {
  const Finding &expected = Expected(GetParam());
  if (expected.message && !*expected.message) GTEST_SKIP() << "found by another build";
  if (expected.message)
    EXPECT_DEATH(GetParam().run(), expected.message);
  else
    EXPECT_EQ(GetParam().run(), expected.verdict);
}

INSTANTIATE_TEST_SUITE_P(Seeded, CudaBugs, testing::ValuesIn(kSeeded),
                         [](const testing::TestParamInfo<Seeded> &info) { return std::string(info.param.name + 1); });

TEST(CudaKernels, WithoutABugAreRight) {
  EXPECT_EQ(TurnTiles<kNone>(), Verdict::kRight);
  EXPECT_EQ(SumSlices<kNone>(), Verdict::kRight);
  EXPECT_EQ(SumAll<kNone>(), Verdict::kRight);
  EXPECT_EQ(MultiplyTile<kNone>(), Verdict::kRight);
}

bool Finds(const Finding &finding) { return finding.message ? *finding.message != 0 : finding.verdict != Verdict::kRight; }

TEST(CudaKernels, EachBugIsFoundBySomeBuild) {
  for (const Seeded &seeded : kSeeded)
    EXPECT_TRUE(Finds(seeded.plain) || Finds(seeded.address) || Finds(seeded.thread)) << seeded.name;
}

}  // namespace
