// SPDX-License-Identifier: Apache-2.0
//
// test_emulator_warps.cc - shuffles, votes, reductions, atomics and arithmetic of the emulator, against plain loops.

#include "device/kernel.h"
#include "device_memory.h"

namespace {

using cuda_test::Device;
using cuda_test::EachOrder;

constexpr unsigned kAll = 0xffffffffu;

// ---- shuffles -------------------------------------------------------------------------------------------------------------

enum Shuffle { kFrom, kUp, kDown, kXor, kShuffles };
const int kOperands[] = {0, 1, 5, 16, 31}, kWidths[] = {32, 16, 4};

template <class T>
static __device__ T shuffle(int kind, T value, int operand, int width) {
  if (kind == kFrom) return __shfl_sync(kAll, value, operand, width);
  if (kind == kUp) return __shfl_up_sync(kAll, value, (unsigned)operand, width);
  if (kind == kDown) return __shfl_down_sync(kAll, value, (unsigned)operand, width);
  return __shfl_xor_sync(kAll, value, operand, width);
}

// Every kind, operand and width, one after the other.
template <class T>
static __global__ void shuffle_all(T *out) {
  const T value = (T)(100 + threadIdx.x);
  for (int kind = kFrom; kind < kShuffles; kind++)
    for (const int operand : {0, 1, 5, 16, 31})
      for (const int width : {32, 16, 4}) {
        out[threadIdx.x] = shuffle(kind, value, operand, width);
        out += blockDim.x;
      }
}

// The lane that the given one reads, by the definitions in the programming guide.
int Source(int kind, int operand, int width, int lane) {
  const int first = lane / width * width, place = lane - first;
  if (kind == kFrom) return first + operand % width;
  if (kind == kUp) return place < operand ? lane : lane - operand;
  if (kind == kDown) return place + operand >= width ? lane : lane + operand;
  return (lane ^ operand) >= first + width ? lane : lane ^ operand;
}

template <class T>
void CheckShuffles() {
  const Device<T> device_out(kShuffles * 5 * 3 * 64);
  LATH_LAUNCH((shuffle_all<T>), 1, 64, 0, nullptr, device_out.data());
  const std::vector<T> out = device_out.Read();
  size_t at = 0;
  for (int kind = kFrom; kind < kShuffles; kind++)
    for (const int operand : kOperands)
      for (const int width : kWidths)
        for (int i = 0; i < 64; i++)
          ASSERT_EQ(out[at++], static_cast<T>(100 + i / 32 * 32 + Source(kind, operand, width, i % 32)))
              << "kind " << kind << ", operand " << operand << ", width " << width << ", lane " << i;
}

TEST(CudaWarps, ShufflesMoveValuesBetweenLanes) {
  EachOrder([](unsigned) {
    CheckShuffles<float>();
    CheckShuffles<double>();
  });
}

static __global__ void sum_halves(const float *in, float *out) {
  float value = in[threadIdx.x];
  const unsigned mask = threadIdx.x < 16 ? 0xffffu : 0xffff0000u;
  if (threadIdx.x < 16) {
    for (int step = 8; step; step /= 2) value += __shfl_xor_sync(mask, value, step);
  } else {
    for (int step = 8; step; step /= 2) value += 2 * __shfl_xor_sync(mask, value, step);
  }
  out[threadIdx.x] = value;
}

TEST(CudaWarps, LanesOfOneMaskMeetWithoutTheOthers) {
  const Device<float> in(std::vector<float>(32, 1)), out(32);
  LATH_LAUNCH(sum_halves, 1, 32, 0, nullptr, in.data(), out.data());
  for (size_t i = 0; i < 32; i++) EXPECT_EQ(out.Read()[i], i < 16 ? 16.0f : 81.0f);
}

// ---- votes and reductions ---------------------------------------------------------------------------------------------------

struct Folds {
  unsigned ballot, any, all, add, least, most, ones, common, odd;
  int add_signed, least_signed, most_signed;
};

static __global__ void fold(const int *in, Folds *out) {
  const int value = in[threadIdx.x];
  const unsigned bits = (unsigned)value;
  Folds f;
  f.ballot = __ballot_sync(kAll, value & 1);
  f.any = (unsigned)__any_sync(kAll, value & 1);
  f.all = (unsigned)__all_sync(kAll, value & 1);
  f.add = __reduce_add_sync(kAll, bits);
  f.least = __reduce_min_sync(kAll, bits);
  f.most = __reduce_max_sync(kAll, bits);
  f.ones = __reduce_or_sync(kAll, bits);
  f.common = __reduce_and_sync(kAll, bits);
  f.odd = __reduce_xor_sync(kAll, bits);
  f.add_signed = __reduce_add_sync(kAll, value);
  f.least_signed = __reduce_min_sync(kAll, value);
  f.most_signed = __reduce_max_sync(kAll, value);
  out[threadIdx.x] = f;
}

Folds Expected(const std::vector<int> &in) {
  Folds f = {0, 0, 1, 0, ~0u, 0, 0, ~0u, 0, 0, INT32_MAX, INT32_MIN};
  for (size_t i = 0; i < in.size(); i++) {
    const unsigned bits = static_cast<unsigned>(in[i]);
    f.ballot |= (bits & 1) << i;
    f.any |= bits & 1;
    f.all &= bits & 1;
    f.add += bits;
    f.least = std::min(f.least, bits);
    f.most = std::max(f.most, bits);
    f.ones |= bits;
    f.common &= bits;
    f.odd ^= bits;
    f.add_signed += in[i];
    f.least_signed = std::min(f.least_signed, in[i]);
    f.most_signed = std::max(f.most_signed, in[i]);
  }
  return f;
}

TEST(CudaWarps, VotesAndReductionsFoldAllLanes) {
  for (const int kind : {0, 1, 2}) {
    std::vector<int> in(32);
    for (int i = 0; i < 32; i++)
      in[static_cast<size_t>(i)] = kind == 0 ? i * 7919 % 101 - 50 : kind == 1 ? 2 * i + 1 : -2 * i - 2;
    const Folds expected = Expected(in);
    EachOrder([&](unsigned) {
      const Device<int> device_in(in);
      const Device<Folds> out(32);
      LATH_LAUNCH(fold, 1, 32, 0, nullptr, device_in.data(), out.data());
      for (const Folds &folds : out.Read()) EXPECT_EQ(memcmp(&folds, &expected, sizeof(Folds)), 0);
    });
  }
}

// ---- memory of a warp, and atomics ------------------------------------------------------------------------------------------

static __global__ void rotate(const float *in, float *out) {
  __shared__ float tile[64];
  const unsigned i = threadIdx.x;
  tile[i] = in[i];
  __syncwarp();
  out[i] = tile[i / 32 * 32 + (i + 1) % 32];
}

TEST(CudaWarps, SyncwarpShowsWhatTheLanesWrote) {
  std::vector<float> in(64);
  for (size_t i = 0; i < 64; i++) in[i] = static_cast<float>(i);
  EachOrder([&](unsigned) {
    const Device<float> device_in(in), out(64);
    LATH_LAUNCH(rotate, 1, 64, 0, nullptr, device_in.data(), out.data());
    for (size_t i = 0; i < 64; i++) EXPECT_EQ(out.Read()[i], static_cast<float>(i / 32 * 32 + (i + 1) % 32));
  });
}

struct Counters {
  int sum, most, least;
  unsigned bits, wrapped, swapped;
};

static __global__ void count(Counters *c) {
  const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&c->sum, i);
  atomicMax(&c->most, i);
  atomicMin(&c->least, i);
  atomicOr(&c->bits, 1u << (i % 32));
  atomicInc(&c->wrapped, 4);
  atomicCAS(&c->swapped, 0u, 7u);
}

TEST(CudaWarps, AtomicsOfSeveralBlocks) {
  EachOrder([](unsigned) {
    const Device<Counters> counters(std::vector<Counters>{{0, -1, 1000, 0, 0, 0}});
    LATH_LAUNCH(count, 3, 64, 0, nullptr, counters.data());
    const Counters c = counters.Read()[0];
    EXPECT_EQ(c.sum, 191 * 192 / 2);
    EXPECT_EQ(c.most, 191);
    EXPECT_EQ(c.least, 0);
    EXPECT_EQ(c.bits, ~0u);
    EXPECT_EQ(c.wrapped, 192u % 5);
    EXPECT_EQ(c.swapped, 7u);
  });
}

// ---- arithmetic -------------------------------------------------------------------------------------------------------------

static __global__ void compute(float *out) {
  if (threadIdx.x) return;
  out[0] = __fmaf_rn(1.0f + 0x1p-12f, 1.0f - 0x1p-12f, -1.0f);
  out[1] = (float)(__popc(0xf0f0u) + __ffs(8) + __clz(1) + __clz(0));
  out[2] = __uint_as_float(0x40490fdbu);
  out[3] = rsqrtf(0.25f) + __fdividef(1.0f, 4.0f);
  out[4] = min(3.0f, 2.0f) + (float)max(4, 5);
}

TEST(CudaWarps, ArithmeticFunctions) {
  const Device<float> out(5);
  LATH_LAUNCH(compute, 1, 32, 0, nullptr, out.data());
  EXPECT_EQ(out.Read(), (std::vector<float>{-0x1p-24f, 8 + 4 + 31 + 32, 3.14159274f, 2.25f, 7}));
}

}  // namespace
