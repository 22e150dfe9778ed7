// SPDX-License-Identifier: Apache-2.0
//
// test_lowrank_backward.cc - the five gradients of the low-rank product: all masks, p saved or not, both associations.

#include <cmath>
#include <cstring>
#include <limits>

#include "cases.h"

namespace lath_test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr lath_association kAssociations[] = {LATH_AUTO, LATH_FACTORED, LATH_MERGED};
constexpr lath_dtype kDtypes[] = {LATH_F32, LATH_F64, LATH_BF16};

// p as the forward call would have left it.
Operand SavedIntermediate(const LowrankInputs &inputs, const LowrankOracle &oracle) {
  Operand p(AccumulatorType(inputs.dtype), inputs.shape.rows, inputs.shape.rank);
  p.Fill(oracle.P());
  return p;
}

class LowrankBackward : public PerPath {
 protected:
  CallOptions Options(lath_association association = LATH_AUTO) const {
    CallOptions options;
    options.ref = ref();
    options.association = association;
    return options;
  }

  testing::AssertionResult ExactBackward(const LowrankInputs &inputs, const CallOptions &options, unsigned gradients,
                                         bool saved) {
    const LowrankOracle oracle = OracleOf(inputs);
    const Operand p = SavedIntermediate(inputs, oracle);
    const testing::AssertionResult result =
        ExactGradients(RunBackward(inputs, options, gradients, saved ? &p : nullptr), oracle, gradients);
    if (result) return result;
    return testing::AssertionFailure() << Describe(inputs.dtype, inputs.shape) << " association " << options.association
                                       << " inner bias " << inputs.has_inner_bias << " gradients " << gradients << " saved p "
                                       << saved << ": " << result.message();
  }

  // Integers: exact for every order of additions and for both associations. All else varies with the seed.
  void CheckExactly(const LowrankShape &shape, uint32_t seed) {
    Choices choices(seed);
    const lath_dtype dtype = choices.OneIn(8) ? LATH_F64 : choices.OneIn(2) ? LATH_BF16 : LATH_F32;
    LowrankInputs::Layouts layouts;
    for (Layout *layout : {&layouts.x, &layouts.v, &layouts.u, &layouts.dy}) *layout = RandomLayout(&choices, true);
    CallOptions options = Options(kAssociations[choices.Below(3)]);
    options.output = RandomLayout(&choices, false);
    options.contiguous.misalignment = choices.Below(3);
    options.workspace_misalignment = choices.OneIn(2) ? lath_dtype_size(dtype) : 0;
    const unsigned gradients = choices.OneIn(2) ? kAllGradients : static_cast<unsigned>(choices.Below(32));
    const LowrankInputs inputs(dtype, shape, choices.OneIn(2), choices.OneIn(2), Numbers::kIntegers, seed, layouts);
    EXPECT_TRUE(ExactBackward(inputs, options, gradients, choices.OneIn(2)));
  }
};

TEST_P(LowrankBackward, IsExactAtEveryPairOfWidths) {
  Choices choices(1);
  for (const int64_t a : kWidthEdges) {
    for (const int64_t b : kWidthEdges) {
      const int64_t rows = choices.From(kRowEdges), c = choices.From(kWidthEdges);
      const LowrankShape turns[] = {{rows, a, b, c}, {rows, c, a, b}, {rows, b, c, a}};
      CheckExactly(turns[choices.Below(3)], choices.Next());
    }
  }
}

TEST_P(LowrankBackward, IsExactAtEveryRowCount) {
  Choices choices(2);
  for (const int64_t rows : kRowEdges) {
    for (int repeat = 0; repeat < 12; ++repeat) {
      const int64_t in = choices.From(kWidthEdges), rank = choices.From(kWidthEdges), out = choices.From(kWidthEdges);
      CheckExactly({rows, in, rank, out}, choices.Next());
    }
  }
}

TEST_P(LowrankBackward, IsExactWhereAnExtentNeedsSeveralBlocks) {
  Choices choices(3);
  for (const int64_t rows : {1, 9, 66}) {
    for (const int64_t wide : {513, 1025, 2049}) {
      CheckExactly({rows, wide, 20, 33}, choices.Next());
      CheckExactly({rows, 33, 20, wide}, choices.Next());
    }
    CheckExactly({rows, 40, 700, 50}, choices.Next());
  }
  CheckExactly({1500, 30, 5, 40}, choices.Next());
  CheckExactly({4100, 3, 2, 4}, choices.Next());
}

TEST_P(LowrankBackward, EveryMaskWritesExactlyWhatWasAskedFor) {
  for (const LowrankShape &shape : {LowrankShape{3, 18, 5, 21}, LowrankShape{70, 33, 17, 20}}) {
    for (const lath_dtype dtype : kDtypes) {
      for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
        for (int biases = 0; biases < 2; ++biases) {
          const LowrankInputs inputs(dtype, shape, biases != 0, true, Numbers::kIntegers, 31);
          for (unsigned gradients = 0; gradients <= kAllGradients; ++gradients) {
            EXPECT_TRUE(ExactBackward(inputs, Options(association), gradients, false));
            EXPECT_TRUE(ExactBackward(inputs, Options(association), gradients, true));
          }
        }
      }
    }
  }
}

TEST_P(LowrankBackward, SkippingOneGradientLeavesTheBitsOfTheOthers) {
  for (const LowrankShape &shape : {LowrankShape{4, 40, 9, 50}, LowrankShape{100, 65, 33, 49}}) {
    for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
      const LowrankInputs inputs(LATH_F32, shape, true, true, Numbers::kUniform, 32);
      const BackwardRun all = RunBackward(inputs, Options(association));
      ASSERT_EQ(all.status, LATH_OK);
      for (const unsigned skipped : {kDx, kDv, kDu, kDInnerBias, kDBias}) {
        const BackwardRun some = RunBackward(inputs, Options(association), kAllGradients & ~skipped);
        ASSERT_EQ(some.status, LATH_OK);
        EXPECT_TRUE(SameGradients(some, all, kAllGradients & ~skipped)) << "without " << skipped;
      }
    }
  }
}

TEST_P(LowrankBackward, ASavedIntermediateGivesTheRecomputedGradients) {
  for (const lath_dtype dtype : kDtypes) {
    for (const LowrankShape &shape : {LowrankShape{2, 40, 9, 50}, LowrankShape{100, 65, 33, 49}}) {
      const LowrankInputs inputs(dtype, shape, true, true, Numbers::kUniform, 33);
      const ForwardRun forward = RunForward(inputs, Options(LATH_FACTORED), true);
      ASSERT_EQ(forward.status, LATH_OK);
      EXPECT_TRUE(GradientsWithin(RunBackward(inputs, Options(LATH_FACTORED), kAllGradients, &forward.p), OracleOf(inputs),
                                  kAllGradients));
    }
  }
}

TEST_P(LowrankBackward, ZeroExtentsGiveZeroGradients) {
  for (const lath_dtype dtype : kDtypes) {
    for (const lath_association association : kAssociations) {
      for (int zeros = 1; zeros < 16; ++zeros) {
        const LowrankShape shape = {zeros & 1 ? 0 : 5, zeros & 2 ? 0 : 6, zeros & 4 ? 0 : 3, zeros & 8 ? 0 : 7};
        for (const bool inner_bias : {false, true}) {
          const LowrankInputs inputs(dtype, shape, inner_bias, true, Numbers::kIntegers, 3);
          EXPECT_TRUE(ExactBackward(inputs, Options(association), kAllGradients, false));
          EXPECT_TRUE(ExactBackward(inputs, Options(association), kAllGradients, true));
        }
      }
    }
  }
}

TEST_P(LowrankBackward, RealNumbersStayWithinTheBound) {
  Choices choices(5);
  for (const lath_dtype dtype : kDtypes) {
    for (int repeat = 0; repeat < 40; ++repeat) {
      const LowrankShape shape = {choices.From(kRowEdges), choices.From(kWidthEdges), choices.From(kWidthEdges),
                                  choices.From(kWidthEdges)};
      const LowrankInputs inputs(dtype, shape, choices.OneIn(2), true, Numbers::kUniform, choices.Next());
      EXPECT_TRUE(GradientsWithin(RunBackward(inputs, Options(kAssociations[repeat % 3])), OracleOf(inputs), kAllGradients))
          << Describe(dtype, shape) << " association " << kAssociations[repeat % 3];
    }
  }
}

TEST_P(LowrankBackward, TouchesNothingBeyondItsOperands) {
  Choices choices(6);
  for (const Place place : {Place::kPageEnd, Place::kPageStart}) {
    Layout layout;
    layout.place = place;
    for (int repeat = 0; repeat < 80; ++repeat) {
      const LowrankShape shape = {choices.From({1, 2, 5, 13, 33, 65}), choices.From({1, 7, 16, 33, 100}),
                                  choices.From({1, 3, 15, 16, 40, 65}), choices.From({1, 15, 48, 50, 100})};
      const lath_dtype dtype = choices.OneIn(2) ? LATH_F32 : LATH_BF16;
      const LowrankInputs inputs(dtype, shape, true, true, Numbers::kIntegers, choices.Next(),
                                 {layout, layout, layout, layout, layout});
      CallOptions options = Options(kAssociations[repeat % 3]);
      options.output.place = options.contiguous.place = place;
      EXPECT_TRUE(ExactBackward(inputs, options, kAllGradients, repeat % 2 == 0));
    }
  }
}

TEST_P(LowrankBackward, NanInARowOfDyStaysInThatRowOfDx) {
  for (const lath_association association : kAssociations) {
    for (const lath_dtype dtype : kDtypes) {
      for (const int64_t rows : {2, 9, 33, 130}) {
        LowrankInputs inputs(dtype, {rows, 37, 19, 53}, true, true, Numbers::kIntegers, 11);
        inputs.dy.Set(rows / 2, 52, kNaN);
        EXPECT_TRUE(ExactBackward(inputs, Options(association), kDx | kDBias, false));
      }
    }
  }
}

TEST_P(LowrankBackward, NanInXReachesTheFactorsAndNotDx) {
  for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
    for (const int64_t rows : {2, 9, 130}) {
      LowrankInputs inputs(LATH_F32, {rows, 37, 19, 53}, true, true, Numbers::kIntegers, 12);
      inputs.x.Set(1, 5, kNaN);
      const BackwardRun run = RunBackward(inputs, Options(association));
      const LowrankOracle oracle = OracleOf(inputs);
      EXPECT_TRUE(Exactly(run.dx, oracle.Dx()));
      EXPECT_TRUE(Exactly(run.d_inner_bias, oracle.DInnerBias()));
      EXPECT_TRUE(Exactly(run.d_bias, oracle.DBias()));
      for (int64_t j = 0; j < 19; ++j) EXPECT_TRUE(std::isnan(run.dv.Get(j, 5))) << j;
      EXPECT_TRUE(Exactly(run.dv, oracle.Dv()));
      EXPECT_TRUE(Exactly(run.du, oracle.Du()));
    }
  }
}

TEST_P(LowrankBackward, InfinityIsNotTurnedIntoNanByPadding) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
    for (const int64_t rank : {1, 5, 15, 17, 33}) {
      for (const int64_t rows : {1, 5, 70}) {
        LowrankInputs inputs(LATH_F32, {rows, 23, rank, 19}, false, false, Numbers::kIntegers, 13);
        inputs.x.Fill(Values(static_cast<size_t>(rows * 23), 1.0));
        inputs.v.Fill(Values(static_cast<size_t>(rank * 23), 2.0));
        inputs.u.Fill(Values(static_cast<size_t>(rank * 19), 1.0));
        inputs.dy.Set(rows - 1, 18, infinity);
        EXPECT_TRUE(ExactBackward(inputs, Options(association), kDx | kDv | kDBias, false));
      }
    }
  }
}

TEST_P(LowrankBackward, Bf16GradientsAreRoundedOnce) {
  // dy u = 257 and 255 need 9 bits: had dp been rounded to bf16, dx = 257 - 255 would not be 2.
  for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
    for (const int64_t rows : {1, 80}) {
      LowrankInputs inputs(LATH_BF16, {rows, 1, 2, 2}, false, false, Numbers::kIntegers, 14);
      Values dy;
      for (int64_t row = 0; row < rows; ++row) dy.insert(dy.end(), {256, 1});
      inputs.dy.Fill(dy);
      inputs.u.Fill({1, 1, 1, -1});
      inputs.v.Fill({1, -1});
      EXPECT_TRUE(Exactly(RunBackward(inputs, Options(association), kDx).dx, Values(static_cast<size_t>(rows), 2.0)));
    }
  }
}

TEST_P(LowrankBackward, Bf16KeepsNanOfEveryPayload) {
  // Rounding the mantissa of 0x7fffffff up would carry into the sign and leave -0.
  const LowrankInputs inputs(LATH_BF16, {1, 1, 1, 1}, false, false, Numbers::kIntegers, 14);
  for (const uint32_t bits : {0x7fffffffu, 0xffffffffu, 0x7fc00001u, 0x7f800001u}) {
    const Operand p(LATH_F32, 1, 1);
    std::memcpy(p.data(), &bits, sizeof bits);
    const BackwardRun run = RunBackward(inputs, Options(LATH_FACTORED), kDu, &p);
    ASSERT_EQ(run.status, LATH_OK);
    EXPECT_TRUE(std::isnan(run.du.Get(0, 0))) << std::hex << bits;
  }
}

TEST_P(LowrankBackward, RunsAgreeBitForBitWhereverTheBuffersLie) {
  for (const lath_dtype dtype : kDtypes) {
    for (const LowrankShape &shape :
         {LowrankShape{1, 129, 20, 67}, LowrankShape{12, 129, 20, 67}, LowrankShape{130, 50, 33, 49}}) {
      for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
        const LowrankInputs inputs(dtype, shape, true, true, Numbers::kUniform, 15);
        LowrankInputs::Layouts layouts;
        for (Layout *layout : {&layouts.x, &layouts.v, &layouts.u, &layouts.dy}) layout->misalignment = 1;
        layouts.x.gap = layouts.v.gap = layouts.u.gap = layouts.dy.gap = 3;
        const LowrankInputs moved(dtype, shape, true, true, Numbers::kUniform, 15, layouts);
        const BackwardRun first = RunBackward(inputs, Options(association));
        CallOptions options = Options(association);
        options.workspace_misalignment = lath_dtype_size(dtype);
        options.output.gap = 5;
        options.output.misalignment = options.contiguous.misalignment = 1;
        const BackwardRun second = RunBackward(moved, options);
        EXPECT_TRUE(SameGradients(first, second)) << Describe(dtype, shape) << " " << association;
      }
    }
  }
}

LATH_EVERY_PATH(LowrankBackward);

}  // namespace
}  // namespace lath_test
