// SPDX-License-Identifier: Apache-2.0
//
// test_lowrank_fused.cc - the fused kernel called directly: both heights of its tiles, both ways that operands are stored,
// columns shared between blocks, at the edges of every tile.

#include "lowrank/pair.h"
#include "lowrank_cases.h"

namespace cuda_test {
namespace {

constexpr int kMultiprocessors = 132;

struct Call {
  lath_dtype dtype;
  bool transposed;
  int tile_rows;
  LowrankShape shape;  // in: k, out: n
  int multiprocessors = kMultiprocessors;
};

// Ternary numbers, for which every intermediate is exact.
Operand Ternary(lath_dtype dtype, int64_t rows, int64_t cols, int64_t gap, uint32_t seed) {
  Layout layout;
  layout.gap = gap;
  Operand operand(dtype, rows, cols, layout);
  Values values = lath_test::SmallIntegers(seed, rows * cols);
  for (double &value : values) value = std::fmod(value, 2.0);
  operand.Fill(values);
  return operand;
}

void Check(const Call &call, uint32_t seed) {
  if (LeftOut(seed)) return;
  Choices choices(seed);
  const LowrankShape &s = call.shape;
  const Operand a = Ternary(call.dtype, s.rows, s.in, 8 * choices.Below(2), seed);
  const Operand first =
      Ternary(call.dtype, call.transposed ? s.in : s.rank, call.transposed ? s.rank : s.in, 8 * choices.Below(2), seed + 1);
  const Operand second =
      Ternary(call.dtype, call.transposed ? s.rank : s.out, call.transposed ? s.out : s.rank, 8 * choices.Below(2), seed + 2);
  const Operand inner_bias = Ternary(call.dtype, 1, s.rank, 0, seed + 3), bias = Ternary(call.dtype, 1, s.out, 0, seed + 4);
  Layout layout;
  layout.gap = 8 * choices.Below(2);
  Operand c(call.dtype, s.rows, s.out, layout), p(call.dtype, s.rows, s.rank);
  const OnDevice a_device(a), first_device(first), second_device(second), inner_device(inner_bias), bias_device(bias),
      c_device(c), p_device(p);
  const bool biases = choices.OneIn(2), with_p = choices.OneIn(2);

  struct lath_pair fused = {};
  fused.dtype = call.dtype;
  fused.transposed = call.transposed;
  fused.rows = s.rows, fused.k = s.in, fused.rank = s.rank, fused.n = s.out;
  fused.a = a_device.data(), fused.s_a = a.stride();
  fused.first = first_device.data(), fused.s_first = first.stride();
  fused.second = second_device.data(), fused.s_second = second.stride();
  fused.inner_bias = biases ? inner_device.data() : nullptr;
  fused.bias = biases ? bias_device.data() : nullptr;
  fused.p = with_p ? p_device.data() : nullptr;
  fused.c = c_device.data(), fused.s_c = c.stride();
  ASSERT_TRUE(lath_fused_has_tile(&fused, call.tile_rows));
  ASSERT_EQ(lath_cuda_fused(&fused, call.tile_rows, call.multiprocessors, 0, nullptr), cudaSuccess);
  c_device.CopyTo(&c);
  p_device.CopyTo(&p);

  LowrankOracle oracle = {s,
                          a.Read(),
                          call.transposed ? Transpose(first.Read(), s.in, s.rank) : first.Read(),
                          call.transposed ? Transpose(second.Read(), s.rank, s.out) : second.Read(),
                          biases ? inner_bias.Read() : Values(),
                          biases ? bias.Read() : Values(),
                          {}};
  const std::string what = lath_test::Describe(call.dtype, s) + " transposed " + std::to_string(call.transposed) + " tile of " +
                           std::to_string(call.tile_rows);
  EXPECT_TRUE(Exactly(c, oracle.Y())) << what;
  EXPECT_TRUE(with_p ? Exactly(p, oracle.P()) : testing::AssertionResult(p.Untouched())) << "p of " << what;
}

class Fused : public testing::TestWithParam<int> {
 protected:
  int TileRows() const { return GetParam() / 2; }
  bool Transposed() const { return GetParam() % 2 != 0; }
  void TearDown() override { emulator_order(0); }

  void Run(const LowrankShape &shape, uint32_t seed) {
    emulator_order(seed % 4);
    Check({seed % 2 ? LATH_BF16 : LATH_F16, Transposed(), TileRows(), shape}, seed);
  }
};

TEST_P(Fused, IsExactAtTheEdgesOfATileOfRows) {
  for (const int64_t rows : {1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129}) {
    Run({rows, 40, 24, 72}, static_cast<uint32_t>(rows));
  }
}

TEST_P(Fused, IsExactAtTheEdgesOfASlice) {
  for (const int64_t k : {8, 24, 32, 40, 64, 72, 96, 104, 128, 160}) Run({70, k, 16, 40}, static_cast<uint32_t>(k / 8));
}

TEST_P(Fused, IsExactAtTheEdgesOfATileOfColumns) {
  for (const int64_t n : {8, 56, 64, 72, 120, 128, 136, 192, 200, 264}) Run({70, 40, 16, n}, static_cast<uint32_t>(n / 8));
}

TEST_P(Fused, IsExactAtEveryRank) {
  for (int64_t rank = 8; rank <= (TileRows() == 128 ? 128 : 256); rank += 8)
    Run({40, 40, rank, 72}, static_cast<uint32_t>(rank / 8));
}

// Few tiles of rows: the columns of each are dealt out to several blocks.
TEST_P(Fused, SharesColumnsBetweenBlocks) {
  for (const int multiprocessors : {1, 2, 3, 8, 132}) {
    const LowrankShape shape = {70, 24, 16, 520};
    Check({LATH_BF16, Transposed(), TileRows(), shape, multiprocessors}, static_cast<uint32_t>(multiprocessors));
    struct lath_pair fused = {};
    fused.transposed = Transposed();
    fused.rows = shape.rows, fused.k = shape.in, fused.rank = shape.rank, fused.n = shape.out;
    const int shares = lath_fused_shares(&fused, TileRows(), multiprocessors);
    EXPECT_GE(shares, 1);
    EXPECT_LE(shares * ((70 + TileRows() - 1) / TileRows()), std::max(multiprocessors, 2));
    EXPECT_TRUE(shares > 1 || multiprocessors < 132);
  }
}

INSTANTIATE_TEST_SUITE_P(, Fused, testing::Values(2 * 64, 2 * 64 + 1, 2 * 128, 2 * 128 + 1),
                         [](const testing::TestParamInfo<int> &info) {
                           return "rows" + std::to_string(info.param / 2) + (info.param % 2 ? "transposed" : "");
                         });

// What a block asks for fits the smallest GPUs, but for the gradient at the highest ranks; see fused.cu.
TEST(FusedShapes, FitTheSharedMemoryOfABlock) {
  for (const bool transposed : {false, true}) {
    for (const int64_t rank : {8, 64, 72, 128, 136, 256}) {
      for (const int tile_rows : {64, 128}) {
        struct lath_pair fused = {};
        fused.transposed = transposed;
        fused.rank = rank;
        if (!lath_fused_has_tile(&fused, tile_rows)) continue;
        const int limit = transposed && rank > 128 ? 163 << 10 : 99 << 10;
        EXPECT_LE(lath_fused_shared_bytes(&fused, tile_rows), limit) << rank << " " << tile_rows << " " << transposed;
      }
    }
  }
}

}  // namespace
}  // namespace cuda_test
