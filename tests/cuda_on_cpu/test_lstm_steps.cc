// SPDX-License-Identifier: Apache-2.0
//
// test_lstm_steps.cc - the product that a step of the low-rank LSTM waits for, in every shape of blocks that it is launched in,
// and the copies around it.

#include "lowrank/lstm_steps.h"

#include "lowrank_cases.h"

namespace cuda_test {
namespace {

constexpr lath_dtype kBoth[] = {LATH_F32, LATH_F64};

// A matrix whose rows lie on 16 bytes and end in zeros.
Operand Padded(lath_dtype dtype, int64_t rows, int64_t cols, uint32_t seed) {
  const int64_t width = lath_cuda_lstm_padded(cols);
  Operand padded(dtype, rows, width);
  Values values = lath_test::SmallIntegers(seed, rows * width);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = cols; j < width; ++j) values[static_cast<size_t>(i * width + j)] = 0;
  }
  padded.Fill(values);
  return padded;
}

class LstmProject : public testing::Test {
 protected:
  void TearDown() override { emulator_order(0); }

  void Check(lath_dtype dtype, int64_t m, int64_t n, int64_t k, int multiprocessors, uint32_t seed) {
    if (LeftOut(seed)) return;
    emulator_order(seed % 4);
    const int64_t width = lath_cuda_lstm_padded(k), s_p = lath_cuda_lstm_padded(n);
    const Operand a = Padded(dtype, m, k, seed), w = Padded(dtype, n, k, seed + 1);
    Layout gap;
    gap.gap = s_p - n;
    Operand p(dtype, m, n, gap);
    const OnDevice on_a(a), on_w(w), on_p(p);
    const struct lath_cuda_lstm_product product = {m, n, k, on_a.data(), on_w.data(), width, width};
    ASSERT_EQ(lath_cuda_lstm_project(dtype, &product, on_p.data(), p.stride(), multiprocessors, nullptr), cudaSuccess);
    on_p.CopyTo(&p);
    const Values want = Multiply(a.Read(), Transpose(w.Read(), n, width), m, width, n);
    EXPECT_TRUE(lath_test::Exactly(p, want)) << m << " x " << n << " x " << k << " on " << multiprocessors;
  }
};

// Few multiprocessors are full with items of 4 rows; many are shared out by single rows, and by warps along k.
TEST_F(LstmProject, IsExactInEveryShapeOfBlocks) {
  uint32_t seed = 1;
  for (const lath_dtype dtype : kBoth) {
    for (const int multiprocessors : {1, 3, 132}) {
      for (const int64_t m : {1, 3, 5, 8, 9, 16, 17, 40}) {
        for (const int64_t k : {1, 7, 60, 130, 600}) Check(dtype, m, 1 + 13 * (seed % 5), k, multiprocessors, seed), seed++;
      }
    }
  }
}

TEST_F(LstmProject, IsExactAtEveryNumberOfRows) {
  uint32_t seed = 500;
  for (const int64_t n : {1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 64, 65}) {
    for (const int multiprocessors : {1, 132}) {
      Check(LATH_F32, 9, n, 33, multiprocessors, seed++);
      Check(LATH_F64, 2, n, 513, multiprocessors, seed++);
    }
  }
}

TEST(LstmTranspose, FillsUpWithZeros) {
  uint32_t seed = 1;
  for (const lath_dtype dtype : kBoth) {
    for (const int64_t rows : {1, 7, 32, 33, 70}) {
      for (const int64_t cols : {1, 31, 32, 45}) {
        if (LeftOut(seed++)) continue;
        const int64_t width = lath_cuda_lstm_padded(rows);
        Operand from(dtype, rows, cols), to(dtype, cols, width);
        from.Fill(lath_test::SmallIntegers(seed, rows * cols));
        const OnDevice on_from(from), on_to(to);
        ASSERT_EQ(lath_cuda_lstm_transpose(dtype, rows, cols, on_from.data(), width, on_to.data(), width, nullptr),
                  cudaSuccess);
        on_to.CopyTo(&to);
        Values want(static_cast<size_t>(cols * width), 0.0);
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t j = 0; j < cols; ++j) want[static_cast<size_t>(j * width + i)] = from.Get(i, j);
        }
        EXPECT_TRUE(lath_test::Exactly(to, want)) << rows << " x " << cols;
      }
    }
  }
}

}  // namespace
}  // namespace cuda_test
