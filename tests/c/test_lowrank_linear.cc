// SPDX-License-Identifier: Apache-2.0
//
// test_lowrank_linear.cc - y = (x v^T + inner_bias) u^T + bias, on every path, association and tile edge.

#include <cmath>
#include <limits>

#include "cases.h"

namespace lath_test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr lath_association kAssociations[] = {LATH_AUTO, LATH_FACTORED, LATH_MERGED};
constexpr lath_dtype kDtypes[] = {LATH_F32, LATH_F64, LATH_BF16};

// p holds x v^T + inner_bias when the plan is factored; a merged plan may leave it alone.
testing::AssertionResult ExactIntermediate(const ForwardRun &run, const LowrankOracle &oracle, bool may_be_untouched) {
  if (may_be_untouched && run.p.Untouched()) return testing::AssertionSuccess();
  const testing::AssertionResult result = Exactly(run.p, oracle.P());
  return result ? result : testing::AssertionFailure() << "p: " << result.message();
}

lath_association Planned(const LowrankInputs &inputs, lath_association association) {
  LowrankArgs args = Arguments(inputs);
  args.association = association;
  Plan plan = {};
  EXPECT_EQ(lath_lowrank_linear_plan(&args, 0, &plan), LATH_OK);
  return plan.association;
}

testing::AssertionResult ExactForward(const LowrankInputs &inputs, const LowrankOracle &oracle, const CallOptions &options,
                                      bool with_p = false) {
  const ForwardRun run = RunForward(inputs, options, with_p);
  const testing::AssertionResult completed = Completed(run);
  if (!completed) return completed;
  if (!with_p && !run.p.Untouched()) return testing::AssertionFailure() << "p was written and not asked for";
  testing::AssertionResult result = Exactly(run.y, oracle.Y());
  if (result && with_p) {
    result = ExactIntermediate(run, oracle, Planned(inputs, options.association) == LATH_MERGED);
  }
  if (result) return result;
  return testing::AssertionFailure() << Describe(inputs.dtype, inputs.shape) << " association " << options.association
                                     << " biases " << inputs.has_inner_bias << inputs.has_bias << ": " << result.message();
}

class LowrankLinear : public PerPath {
 protected:
  CallOptions Options(lath_association association = LATH_AUTO) const {
    CallOptions options;
    options.ref = ref();
    options.association = association;
    return options;
  }

  // Integers: exact for every order of additions and for both associations. All else varies with the seed.
  void CheckExactly(const LowrankShape &shape, uint32_t seed) {
    Choices choices(seed);
    const lath_dtype dtype = choices.OneIn(8) ? LATH_F64 : choices.OneIn(2) ? LATH_BF16 : LATH_F32;
    LowrankInputs::Layouts layouts;
    for (Layout *layout : {&layouts.x, &layouts.v, &layouts.u}) *layout = RandomLayout(&choices, true);
    layouts.biases.misalignment = choices.Below(3);
    CallOptions options = Options(kAssociations[choices.Below(3)]);
    options.output = RandomLayout(&choices, false);
    options.contiguous.misalignment = choices.Below(3);
    options.workspace_misalignment = choices.OneIn(2) ? lath_dtype_size(dtype) : 0;
    const LowrankInputs inputs(dtype, shape, choices.OneIn(2), choices.OneIn(2), Numbers::kIntegers, seed, layouts);
    EXPECT_TRUE(ExactForward(inputs, OracleOf(inputs), options, choices.OneIn(2)));
  }
};

TEST_P(LowrankLinear, IsExactAtEveryPairOfWidths) {
  Choices choices(1);
  for (const int64_t a : kWidthEdges) {
    for (const int64_t b : kWidthEdges) {
      const int64_t rows = choices.From(kRowEdges), c = choices.From(kWidthEdges);
      // Each pair once in a position that varies, so that in, rank and out all meet each other.
      const LowrankShape turns[] = {{rows, a, b, c}, {rows, c, a, b}, {rows, b, c, a}};
      CheckExactly(turns[choices.Below(3)], choices.Next());
    }
  }
}

TEST_P(LowrankLinear, IsExactAtEveryRowCount) {
  Choices choices(2);
  for (const int64_t rows : kRowEdges) {
    for (int repeat = 0; repeat < 12; ++repeat) {
      const int64_t in = choices.From(kWidthEdges), rank = choices.From(kWidthEdges), out = choices.From(kWidthEdges);
      CheckExactly({rows, in, rank, out}, choices.Next());
    }
  }
}

TEST_P(LowrankLinear, IsExactAtEveryRankOfAWideLayer) {
  Choices choices(3);
  for (const int64_t rank : kWidthEdges) {
    for (const int64_t rows : {1, 6, 30, 100}) CheckExactly({rows, 300, rank, 257}, choices.Next());
  }
}

TEST_P(LowrankLinear, IsExactWhereAnExtentNeedsSeveralBlocks) {
  Choices choices(4);
  for (const int64_t rows : {1, 9, 66}) {
    for (const int64_t wide : {513, 1025, 2049, 4099}) {
      CheckExactly({rows, wide, 20, 33}, choices.Next());
      CheckExactly({rows, 33, 20, wide}, choices.Next());
    }
    CheckExactly({rows, 40, 700, 50}, choices.Next());
  }
  CheckExactly({1500, 30, 5, 40}, choices.Next());
}

TEST_P(LowrankLinear, ZeroExtentsGiveEmptySums) {
  for (const lath_dtype dtype : kDtypes) {
    for (const lath_association association : kAssociations) {
      for (int zeros = 1; zeros < 16; ++zeros) {
        const LowrankShape shape = {zeros & 1 ? 0 : 5, zeros & 2 ? 0 : 6, zeros & 4 ? 0 : 3, zeros & 8 ? 0 : 7};
        for (int biases = 0; biases < 4; ++biases) {
          const LowrankInputs inputs(dtype, shape, biases & 1, biases & 2, Numbers::kIntegers, 3);
          EXPECT_TRUE(ExactForward(inputs, OracleOf(inputs), Options(association), true));
        }
      }
    }
  }
}

TEST_P(LowrankLinear, RealNumbersStayWithinTheBound) {
  Choices choices(5);
  for (const lath_dtype dtype : kDtypes) {
    for (int repeat = 0; repeat < 60; ++repeat) {
      const LowrankShape shape = {choices.From(kRowEdges), choices.From(kWidthEdges), choices.From(kWidthEdges),
                                  choices.From(kWidthEdges)};
      const LowrankInputs inputs(dtype, shape, choices.OneIn(2), choices.OneIn(2), Numbers::kUniform, choices.Next());
      const ForwardRun run = RunForward(inputs, Options(kAssociations[repeat % 3]), true);
      ASSERT_EQ(run.status, LATH_OK);
      const LowrankOracle oracle = OracleOf(inputs), magnitudes = oracle.OfMagnitudes();
      const double factor = oracle.ErrorFactor(dtype);
      EXPECT_TRUE(Within(run.y, oracle.Y(), Scaled(magnitudes.Y(), factor))) << Describe(dtype, shape);
      if (!run.p.Untouched()) {
        EXPECT_TRUE(Within(run.p, oracle.P(), Scaled(magnitudes.P(), factor))) << "p of " << Describe(dtype, shape);
      }
    }
  }
}

TEST_P(LowrankLinear, AssociationsAgreeWithinRounding) {
  for (const lath_dtype dtype : kDtypes) {
    for (const LowrankShape &shape :
         {LowrankShape{1, 64, 8, 48}, LowrankShape{33, 100, 100, 65}, LowrankShape{130, 49, 70, 97}}) {
      const LowrankInputs inputs(dtype, shape, true, true, Numbers::kUniform, 21);
      const LowrankOracle oracle = OracleOf(inputs);
      const ForwardRun factored = RunForward(inputs, Options(LATH_FACTORED));
      const ForwardRun merged = RunForward(inputs, Options(LATH_MERGED));
      ASSERT_EQ(factored.status, LATH_OK);
      ASSERT_EQ(merged.status, LATH_OK);
      Values bound = Scaled(oracle.OfMagnitudes().Y(), 2 * oracle.ErrorFactor(dtype));
      const Values y = factored.y.Read();
      // Each of the two is rounded to bf16 on its own: half a unit in the last place more.
      for (size_t k = 0; dtype == LATH_BF16 && k < y.size(); ++k) bound[k] += std::ldexp(std::fabs(y[k]), -8);
      EXPECT_TRUE(Within(merged.y, y, bound)) << Describe(dtype, shape);
    }
  }
}

TEST_P(LowrankLinear, ARowAloneAgreesWithTheRowInItsBatch) {
  for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
    const LowrankShape shape = {97, 65, 17, 100};
    const LowrankInputs inputs(LATH_F32, shape, true, true, Numbers::kUniform, 22);
    const ForwardRun batch = RunForward(inputs, Options(association));
    ASSERT_EQ(batch.status, LATH_OK);
    const LowrankOracle oracle = OracleOf(inputs);
    const Values bound = Scaled(oracle.OfMagnitudes().Y(), 2 * oracle.ErrorFactor(LATH_F32));
    for (const int64_t row : {0, 1, 63, 64, 96}) {
      LowrankInputs alone(LATH_F32, {1, shape.in, shape.rank, shape.out}, true, true, Numbers::kUniform, 22);
      for (int64_t k = 0; k < shape.in; ++k) alone.x.Set(0, k, inputs.x.Get(row, k));
      alone.v.Fill(inputs.v.Read());
      alone.u.Fill(inputs.u.Read());
      alone.inner_bias.Fill(inputs.inner_bias.Read());
      alone.bias.Fill(inputs.bias.Read());
      const Values all = batch.y.Read();
      const auto from = static_cast<std::ptrdiff_t>(row * shape.out), to = from + static_cast<std::ptrdiff_t>(shape.out);
      EXPECT_TRUE(Within(RunForward(alone, Options(association)).y, Values(all.begin() + from, all.begin() + to),
                         Values(bound.begin() + from, bound.begin() + to)))
          << "row " << row << " association " << association;
    }
  }
}

TEST_P(LowrankLinear, TouchesNothingBeyondItsOperands) {
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
      EXPECT_TRUE(ExactForward(inputs, OracleOf(inputs), options, repeat % 2 == 0));
    }
  }
}

TEST_P(LowrankLinear, NanInARowOfXStaysInThatRow) {
  for (const lath_association association : kAssociations) {
    for (const lath_dtype dtype : kDtypes) {
      for (const int64_t rows : {2, 9, 33, 130}) {
        LowrankInputs inputs(dtype, {rows, 37, 19, 53}, true, true, Numbers::kIntegers, 11);
        inputs.x.Set(rows / 2, 36, kNaN);
        EXPECT_TRUE(ExactForward(inputs, OracleOf(inputs), Options(association)));
      }
    }
  }
}

TEST_P(LowrankLinear, NanInARowOfUStaysInThatColumn) {
  for (const lath_association association : kAssociations) {
    for (const int64_t rows : {1, 9, 130}) {
      LowrankInputs inputs(LATH_F32, {rows, 37, 19, 53}, true, true, Numbers::kIntegers, 12);
      inputs.u.Set(17, 3, kNaN);
      inputs.bias.Set(0, 52, kNaN);
      EXPECT_TRUE(ExactForward(inputs, OracleOf(inputs), Options(association)));
    }
  }
}

TEST_P(LowrankLinear, InfinityIsNotTurnedIntoNanByPadding) {
  for (const lath_association association : kAssociations) {
    for (const int64_t rank : {1, 5, 15, 17, 33}) {
      for (const int64_t rows : {1, 5, 70}) {
        LowrankInputs inputs(LATH_F32, {rows, 23, rank, 19}, false, false, Numbers::kIntegers, 13);
        inputs.v.Fill(Values(static_cast<size_t>(rank * 23), 2.0));
        inputs.u.Fill(Values(static_cast<size_t>(rank * 19), 1.0));
        inputs.x.Set(rows - 1, 22, kInfinity);
        EXPECT_TRUE(ExactForward(inputs, OracleOf(inputs), Options(association)));
      }
    }
  }
}

TEST_P(LowrankLinear, Bf16IsRoundedOnceAfterTheSecondProduct) {
  // p = 257 and 255 need 9 bits: had the intermediate been rounded to bf16, 257 - 255 would not be 2.
  for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
    for (const int64_t rows : {1, 40}) {
      LowrankInputs inputs(LATH_BF16, {rows, 2, 2, 1}, false, false, Numbers::kIntegers, 14);
      Values x;
      for (int64_t row = 0; row < rows; ++row) x.insert(x.end(), {256, 1});
      inputs.x.Fill(x);
      inputs.v.Fill({1, 1, 1, -1});
      inputs.u.Fill({1, -1});
      const ForwardRun run = RunForward(inputs, Options(association));
      EXPECT_TRUE(Exactly(run.y, Values(static_cast<size_t>(rows), 2.0))) << association;
    }
  }
}

TEST_P(LowrankLinear, RunsAgreeBitForBitWhereverTheBuffersLie) {
  for (const lath_dtype dtype : kDtypes) {
    for (const LowrankShape &shape :
         {LowrankShape{1, 129, 20, 67}, LowrankShape{12, 129, 20, 67}, LowrankShape{130, 50, 33, 49}}) {
      for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
        const LowrankInputs inputs(dtype, shape, true, true, Numbers::kUniform, 15);
        LowrankInputs::Layouts layouts;
        for (Layout *layout : {&layouts.x, &layouts.v, &layouts.u, &layouts.biases}) layout->misalignment = 1;
        layouts.x.gap = layouts.v.gap = layouts.u.gap = 3;
        const LowrankInputs moved(dtype, shape, true, true, Numbers::kUniform, 15, layouts);
        CallOptions options = Options(association);
        const ForwardRun first = RunForward(inputs, options);
        EXPECT_TRUE(SameBits(first.y, RunForward(inputs, options).y));
        options.workspace_misalignment = lath_dtype_size(dtype);
        options.output.gap = 5;
        options.output.misalignment = 1;
        EXPECT_TRUE(SameBits(first.y, RunForward(moved, options).y)) << Describe(dtype, shape) << " " << association;
      }
    }
  }
}

LATH_EVERY_PATH(LowrankLinear);

}  // namespace
}  // namespace lath_test
