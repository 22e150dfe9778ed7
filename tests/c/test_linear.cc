// SPDX-License-Identifier: Apache-2.0
//
// test_linear.cc - y = x w^T + bias against the oracle, on every path and at every tile edge.

#include <cmath>
#include <limits>

#include "cases.h"

namespace lath_test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

testing::AssertionResult ExactLinear(const LinearInputs &inputs, const LowrankOracle &oracle, const CallOptions &options) {
  const LinearRun run = RunLinear(inputs, options);
  const testing::AssertionResult completed = Completed(run);
  if (!completed) return completed;
  const testing::AssertionResult result = Exactly(run.y, oracle.P());
  if (result) return result;
  return testing::AssertionFailure() << Describe(inputs.dtype, oracle.shape) << " (rank = out), strides " << inputs.x.stride()
                                     << " " << inputs.w.stride() << " " << run.y.stride() << ": " << result.message();
}

class Linear : public PerPath {
 protected:
  // Integers: exact for every order of additions. The layouts and the bias vary with the seed.
  void CheckExactly(int64_t rows, int64_t in, int64_t out, uint32_t seed) {
    Choices choices(seed);
    Layout x, w;
    CallOptions options;
    options.ref = ref();
    x.gap = choices.OneIn(2) ? 0 : choices.Below(20);
    w.gap = choices.OneIn(2) ? 0 : choices.Below(20);
    options.output.gap = choices.OneIn(2) ? 0 : choices.Below(20);
    x.misalignment = choices.Below(3);
    w.misalignment = choices.Below(3);
    options.output.misalignment = choices.Below(3);
    x.repeat_row = choices.OneIn(16);
    w.repeat_row = choices.OneIn(16);
    const lath_dtype dtype = choices.OneIn(8) ? LATH_F64 : choices.OneIn(2) ? LATH_BF16 : LATH_F32;
    options.workspace_misalignment = choices.Below(2) ? lath_dtype_size(dtype) : 0;
    const LinearInputs inputs(dtype, rows, in, out, choices.OneIn(2), Numbers::kIntegers, seed, x, w);
    EXPECT_TRUE(ExactLinear(inputs, OracleOf(inputs), options));
  }
};

TEST_P(Linear, IsExactAtEveryPairOfWidths) {
  Choices choices(1);
  for (const int64_t in : kWidthEdges) {
    for (const int64_t out : kWidthEdges) CheckExactly(choices.From(kRowEdges), in, out, choices.Next());
  }
}

TEST_P(Linear, IsExactAtEveryRowCount) {
  Choices choices(2);
  for (const int64_t rows : kRowEdges) {
    for (int repeat = 0; repeat < 12; ++repeat) {
      CheckExactly(rows, choices.From(kWidthEdges), choices.From(kWidthEdges), choices.Next());
    }
  }
}

TEST_P(Linear, IsExactWhereTheInnerDimensionNeedsSeveralBlocks) {
  Choices choices(3);
  for (const int64_t in : {511, 512, 513, 1023, 1025, 2049, 4097}) {
    for (const int64_t rows : {1, 5, 33, 70}) CheckExactly(rows, in, choices.From(kWidthEdges), choices.Next());
  }
}

TEST_P(Linear, IsExactWhereTheOutputNeedsSeveralBlocks) {
  Choices choices(4);
  for (const int64_t out : {511, 1025, 3073}) {
    for (const int64_t rows : {1, 7, 64, 150}) CheckExactly(rows, choices.From(kWidthEdges), out, choices.Next());
  }
  CheckExactly(1500, 40, 50, choices.Next());
}

TEST_P(Linear, ZeroExtentsGiveEmptySums) {
  for (const lath_dtype dtype : {LATH_F32, LATH_F64, LATH_BF16}) {
    for (const bool bias : {false, true}) {
      for (int zeros = 1; zeros < 8; ++zeros) {
        const LinearInputs inputs(dtype, zeros & 1 ? 0 : 5, zeros & 2 ? 0 : 6, zeros & 4 ? 0 : 7, bias, Numbers::kIntegers, 3);
        CallOptions options;
        options.ref = ref();
        EXPECT_TRUE(ExactLinear(inputs, OracleOf(inputs), options));
      }
    }
  }
}

TEST_P(Linear, RealNumbersStayWithinTheBound) {
  Choices choices(5);
  for (const lath_dtype dtype : {LATH_F32, LATH_F64, LATH_BF16}) {
    for (int repeat = 0; repeat < 40; ++repeat) {
      const LinearInputs inputs(dtype, choices.From(kRowEdges), choices.From(kWidthEdges), choices.From(kWidthEdges),
                                choices.OneIn(2), Numbers::kUniform, choices.Next());
      CallOptions options;
      options.ref = ref();
      const LinearRun run = RunLinear(inputs, options);
      ASSERT_EQ(run.status, LATH_OK);
      const LowrankOracle oracle = OracleOf(inputs);
      const Values bound = Scaled(oracle.OfMagnitudes().P(), oracle.ErrorFactor(dtype));
      EXPECT_TRUE(Within(run.y, oracle.P(), bound)) << Describe(dtype, oracle.shape);
    }
  }
}

TEST_P(Linear, TouchesNothingBeyondItsOperands) {
  for (const Place place : {Place::kPageEnd, Place::kPageStart}) {
    Layout layout;
    layout.place = place;
    for (const lath_dtype dtype : {LATH_F32, LATH_BF16}) {
      for (const int64_t rows : {1, 3, 17, 70}) {
        for (const int64_t in : {1, 7, 16, 33, 100}) {
          for (const int64_t out : {1, 15, 48, 50, 100}) {
            const LinearInputs inputs(dtype, rows, in, out, true, Numbers::kIntegers, 9, layout, layout);
            CallOptions options;
            options.ref = ref();
            options.output.place = place;
            EXPECT_TRUE(ExactLinear(inputs, OracleOf(inputs), options));
          }
        }
      }
    }
  }
}

TEST_P(Linear, NanStaysInItsRowAndInItsColumn) {
  for (const lath_dtype dtype : {LATH_F32, LATH_BF16}) {
    for (const int64_t rows : {2, 9, 33, 130}) {
      LinearInputs inputs(dtype, rows, 37, 53, true, Numbers::kIntegers, 11);
      inputs.x.Set(rows / 2, 36, kNaN);
      inputs.w.Set(17, 0, kNaN);
      inputs.bias.Set(0, 52, kNaN);
      CallOptions options;
      options.ref = ref();
      EXPECT_TRUE(ExactLinear(inputs, OracleOf(inputs), options));
    }
  }
}

TEST_P(Linear, InfinityIsNotTurnedIntoNanByPadding) {
  for (const lath_dtype dtype : {LATH_F32, LATH_BF16}) {
    for (const int64_t in : {1, 7, 15, 17, 33, 65}) {
      for (const int64_t rows : {1, 5, 50}) {
        LinearInputs inputs(dtype, rows, in, 19, false, Numbers::kIntegers, 12);
        inputs.w.Fill(Values(static_cast<size_t>(19 * in), 2.0));
        inputs.x.Set(0, in - 1, kInfinity);
        inputs.x.Set(rows - 1, 0, rows == 1 ? kInfinity : -kInfinity);
        CallOptions options;
        options.ref = ref();
        EXPECT_TRUE(ExactLinear(inputs, OracleOf(inputs), options));
      }
    }
  }
}

TEST_P(Linear, Bf16RoundsOnceToNearestEvenAndKeepsSpecialValues) {
  // One product by 1: the result is the rounding of x + bias alone. 1 + 2^-8 is a tie, and 1 + 3 * 2^-8 another.
  const double tie = std::ldexp(1.0, -8), largest = std::ldexp(1.9921875, 127);
  const struct {
    double x, bias, want;
  } cases[] = {{1, tie, 1},
               {1, 3 * tie, 1 + 4 * tie},
               {1, tie + std::ldexp(1.0, -14), 1 + 2 * tie},
               {-1, -tie, -1},
               {largest, std::ldexp(1.0, 119), kInfinity},
               {largest, std::ldexp(1.0, 118), largest},
               {kInfinity, 1, kInfinity},
               {kInfinity, -kInfinity, kNaN}};
  for (const auto &one : cases) {
    LinearInputs inputs(LATH_BF16, 1, 1, 1, true, Numbers::kIntegers, 13);
    inputs.x.Set(0, 0, one.x);
    inputs.w.Set(0, 0, 1);
    inputs.bias.Set(0, 0, one.bias);
    CallOptions options;
    options.ref = ref();
    EXPECT_TRUE(Exactly(RunLinear(inputs, options).y, {one.want})) << one.x << " + " << one.bias;
  }
}

TEST_P(Linear, InputsAreOnlyRead) {
  for (const int64_t rows : {1, 40}) {
    const LinearInputs inputs(LATH_F32, rows, 33, 65, true, Numbers::kUniform, 14);
    const auto x = inputs.x.Bytes(), w = inputs.w.Bytes(), bias = inputs.bias.Bytes();
    CallOptions options;
    options.ref = ref();
    ASSERT_EQ(RunLinear(inputs, options).status, LATH_OK);
    EXPECT_EQ(inputs.x.Bytes(), x);
    EXPECT_EQ(inputs.w.Bytes(), w);
    EXPECT_EQ(inputs.bias.Bytes(), bias);
  }
}

TEST_P(Linear, RunsAgreeBitForBit) {
  for (const int64_t rows : {1, 12, 130}) {
    const LinearInputs inputs(LATH_F32, rows, 129, 67, true, Numbers::kUniform, 15);
    CallOptions options;
    options.ref = ref();
    const LinearRun first = RunLinear(inputs, options);
    options.workspace_misalignment = 4;
    options.output.gap = 5;
    options.output.misalignment = 1;
    EXPECT_TRUE(SameBits(first.y, RunLinear(inputs, options).y));
  }
}

LATH_EVERY_PATH(Linear);

}  // namespace
}  // namespace lath_test
