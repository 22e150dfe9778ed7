// SPDX-License-Identifier: Apache-2.0
//
// test_emulator_ptx.cc - the instructions of cuda/device/ptx.h, against plain loops over whole matrices.
//
// The register layouts are written down here a second time, from the element's point of view: where does element (row, column)
// of a tile live? The emulator asks the other way round.

#include "device/ptx.h"
#include "device_memory.h"

namespace {

using cuda_test::Device;
using cuda_test::EachOrder;

// ---- tensor cores -----------------------------------------------------------------------------------------------------------

struct Fragments {
  unsigned a[4], b[2];
  float d[4];
};

enum Type { kBf16, kF16, kTf32 };

static __global__ void multiply(int type, const Fragments *in, Fragments *out) {
  Fragments f = in[threadIdx.x];
  if (type == kBf16) lath_mma_m16n8k16_bf16(f.d, f.a, f.b);
  if (type == kF16) lath_mma_m16n8k16_f16(f.d, f.a, f.b);
  if (type == kTf32) lath_mma_m16n8k8_tf32(f.d, f.a, f.b);
  out[threadIdx.x] = f;
}

unsigned Bits(float value, Type type) {
  if (type == kF16) return __half_as_ushort(__float2half(value));
  if (type == kBf16) return __bfloat16_as_ushort(__float2bfloat16(value));
  unsigned bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

void PutA(std::vector<Fragments> *lanes, Type type, int row, int k, float value) {
  const int per_register = type == kTf32 ? 1 : 2, step = 4 * per_register;  // a quad of lanes holds `step` adjacent k
  const int lane = row % 8 * 4 + k % step / per_register, index = row / 8 + k / step * 2;
  (*lanes)[static_cast<size_t>(lane)].a[index] |= Bits(value, type) << (k % per_register * 16);
}

void PutB(std::vector<Fragments> *lanes, Type type, int k, int column, float value) {
  const int per_register = type == kTf32 ? 1 : 2, step = 4 * per_register;
  const int lane = column * 4 + k % step / per_register;
  (*lanes)[static_cast<size_t>(lane)].b[k / step] |= Bits(value, type) << (k % per_register * 16);
}

float *D(std::vector<Fragments> *lanes, int row, int column) {
  return &(*lanes)[static_cast<size_t>(row % 8 * 4 + column / 2)].d[row / 8 * 2 + column % 2];
}

// Small integers: every order of additions gives the same bits.
float A(int row, int k) { return static_cast<float>((row * 5 + k * 3) % 7 - 3); }
float B(int k, int column) { return static_cast<float>((k * 4 + column * 9) % 11 - 5); }

void CheckProduct(Type type) {
  const int depth = type == kTf32 ? 8 : 16;
  std::vector<Fragments> lanes(32, Fragments{});
  for (int k = 0; k < depth; k++) {
    for (int row = 0; row < 16; row++) PutA(&lanes, type, row, k, A(row, k));
    for (int column = 0; column < 8; column++) PutB(&lanes, type, k, column, B(k, column));
  }
  for (int row = 0; row < 16; row++)
    for (int column = 0; column < 8; column++) *D(&lanes, row, column) = static_cast<float>(row * 8 + column);
  const Device<Fragments> in(lanes), out(32);
  LATH_LAUNCH(multiply, 1, 32, 0, nullptr, static_cast<int>(type), in.data(), out.data());
  std::vector<Fragments> result = out.Read();
  for (int row = 0; row < 16; row++)
    for (int column = 0; column < 8; column++) {
      float expected = static_cast<float>(row * 8 + column);
      for (int k = 0; k < depth; k++) expected += A(row, k) * B(k, column);
      ASSERT_EQ(*D(&result, row, column), expected) << "type " << type << ", row " << row << ", column " << column;
    }
}

TEST(CudaPtx, TensorCoreProducts) {
  EachOrder([](unsigned) {
    for (const Type type : {kBf16, kF16, kTf32}) CheckProduct(type);
  });
}

// One product of one pair of elements, all else zero: special values survive.
float OneProduct(Type type, unsigned a, unsigned b) {
  std::vector<Fragments> lanes(32, Fragments{});
  lanes[0].a[0] = a;
  lanes[0].b[0] = b;
  const Device<Fragments> in(lanes), out(32);
  LATH_LAUNCH(multiply, 1, 32, 0, nullptr, static_cast<int>(type), in.data(), out.data());
  return out.Read()[0].d[0];
}

TEST(CudaPtx, TensorCoresTakeEveryValueOfTheType) {
  EXPECT_EQ(OneProduct(kF16, 0x0001, 0x3c00), 0x1p-24f);  // the smallest subnormal times one
  EXPECT_EQ(OneProduct(kF16, 0x7bff, 0x3c00), 65504.0f);
  EXPECT_EQ(OneProduct(kF16, 0xfc00, 0x3c00), -INFINITY);
  EXPECT_TRUE(std::isnan(OneProduct(kF16, 0x7e00, 0x3c00)));
  EXPECT_TRUE(std::isnan(OneProduct(kBf16, 0xffff, 0x3f80)));
  EXPECT_EQ(OneProduct(kTf32, Bits(1.0f, kTf32) | 0x1fff, Bits(1.0f, kTf32)), 1.0f);  // the low 13 bits are ignored
}

static __global__ void round_to_tf32(const float *in, unsigned *out) { out[threadIdx.x] = lath_to_tf32(in[threadIdx.x]); }

TEST(CudaPtx, Tf32IsTheNearestAndTiesGoAwayFromZero) {
  std::vector<float> in(32, 0.0f);
  in[0] = 1.0f + 0x1p-11f;  // a tie
  in[1] = -1.0f - 0x1p-11f;
  in[2] = 1.0f + 0x1p-11f - 0x1p-23f;
  in[3] = INFINITY;
  in[4] = -NAN;
  in[5] = 2.0f - 0x1p-23f;
  const Device<float> device_in(in);
  const Device<unsigned> out(32);
  LATH_LAUNCH(round_to_tf32, 1, 32, 0, nullptr, device_in.data(), out.data());
  const std::vector<float> expected = {1.0f + 0x1p-10f, -1.0f - 0x1p-10f, 1.0f, INFINITY, 0, 2.0f, 0};
  const std::vector<unsigned> bits = out.Read();
  for (const size_t i : {0, 1, 2, 3, 5, 6}) EXPECT_EQ(bits[i], Bits(expected[i], kTf32)) << i;
  EXPECT_EQ(bits[4], 0x7fffffffu);
}

// ---- ldmatrix ---------------------------------------------------------------------------------------------------------------

// Four 8x8 matrices, element (row, column) of matrix i is 64 i + 8 row + column; row addresses in an order of their own.
static __global__ void load_matrices(bool transposed, unsigned *out) {
  __shared__ __align__(16) unsigned short tile[32][8];
  for (int column = 0; column < 8; column++) tile[threadIdx.x][column] = (unsigned short)(threadIdx.x * 8 + (unsigned)column);
  __syncthreads();
  unsigned r[4];
  if (transposed)
    lath_ldmatrix_x4_trans(r, tile[threadIdx.x]);
  else
    lath_ldmatrix_x4(r, tile[threadIdx.x]);
  for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + (unsigned)i] = r[i];
}

TEST(CudaPtx, LdmatrixSpreadsRows) {
  EachOrder([](unsigned) {
    for (const bool transposed : {false, true}) {
      const Device<unsigned> out(128);
      LATH_LAUNCH(load_matrices, 1, 32, 0, nullptr, transposed, out.data());
      const std::vector<unsigned> r = out.Read();
      for (unsigned matrix = 0; matrix < 4; matrix++)
        for (unsigned row = 0; row < 8; row++)
          for (unsigned column = 0; column < 8; column++) {
            const unsigned lane = (transposed ? column : row) * 4 + (transposed ? row : column) / 2;
            const unsigned half = (transposed ? row : column) % 2;
            ASSERT_EQ(r[lane * 4 + matrix] >> (16 * half) & 0xffff, 64 * matrix + 8 * row + column);
          }
    }
  });
}

// ---- asynchronous copies ----------------------------------------------------------------------------------------------------

// Two groups of copies: what is visible after each wait.
static __global__ void copy_in_groups(const float *in, float *out, int bytes) {
  __shared__ __align__(16) float tile[2][128];
  const unsigned i = threadIdx.x * 4;
  lath_cp_async_16(&tile[0][i], &in[i], bytes);
  lath_cp_async_commit();
  lath_cp_async_16(&tile[1][i], &in[128 + i], bytes);
  lath_cp_async_commit();
  lath_cp_async_wait<1>();
  for (unsigned j = 0; j < 4; j++) out[i + j] = tile[0][i + j], out[128 + i + j] = tile[1][i + j];
  lath_cp_async_wait<0>();
  for (unsigned j = 0; j < 4; j++) out[256 + i + j] = tile[1][i + j];
}

TEST(CudaPtx, CopiesArriveWithTheWaitForTheirGroup) {
  std::vector<float> in(256);
  for (size_t i = 0; i < in.size(); i++) in[i] = static_cast<float>(i);
  const Device<float> device_in(in), device_out(384);
  for (const int bytes : {16, 8, 4, 0}) {
    LATH_LAUNCH(copy_in_groups, 1, 32, 0, nullptr, device_in.data(), device_out.data(), bytes);
    const std::vector<float> out = device_out.Read();
    for (size_t i = 0; i < 128; i++) {
      const bool copied = static_cast<int>(i % 4 * 4) < bytes;
      ASSERT_EQ(out[i], copied ? in[i] : 0);
      ASSERT_TRUE(std::isnan(out[128 + i]));
      ASSERT_EQ(out[256 + i], copied ? in[128 + i] : 0);
    }
  }
}

}  // namespace
