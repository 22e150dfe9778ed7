// SPDX-License-Identifier: Apache-2.0
//
// test_plan.cc - the planner is pure arithmetic on the shape: costs, choice of the association, kernel, save rule, overflow.

#include <limits>

#include "cases.h"

namespace lath_test {
namespace {

LowrankArgs ArgsOf(const LowrankShape &shape, lath_dtype dtype = LATH_F32, lath_association association = LATH_AUTO) {
  LowrankArgs args = {};  // no operand at all: the planner must not look at them
  args.dtype = dtype;
  args.association = association;
  args.rows = shape.rows;
  args.in = shape.in;
  args.rank = shape.rank;
  args.out = shape.out;
  return args;
}

Plan PlanOf(const LowrankShape &shape, bool backward, lath_dtype dtype = LATH_F32, lath_association association = LATH_AUTO) {
  const LowrankArgs args = ArgsOf(shape, dtype, association);
  Plan plan = {};
  EXPECT_EQ(lath_lowrank_linear_plan(&args, backward, &plan), LATH_OK) << Describe(dtype, shape);
  return plan;
}

std::vector<LowrankShape> SampledShapes() {
  const std::vector<int64_t> extents = {0, 1, 2, 16, 33, 64, 100, 512, 784, 1024, 4096, 100000};
  std::vector<LowrankShape> shapes;
  Choices choices(1);
  for (int k = 0; k < 2000; ++k) {
    const int64_t rows = choices.From(extents), in = choices.From(extents), rank = choices.From(extents);
    shapes.push_back({rows, in, rank, choices.From(extents)});
  }
  return shapes;
}

TEST(Plan, CountsTheMultiplyAddsOfEachAssociation) {
  for (const LowrankShape &s : SampledShapes()) {
    const Plan factored = PlanOf(s, false, LATH_F32, LATH_FACTORED), merged = PlanOf(s, false, LATH_F32, LATH_MERGED);
    EXPECT_EQ(factored.association, LATH_FACTORED);
    EXPECT_EQ(merged.association, LATH_MERGED);
    EXPECT_EQ(factored.macs, s.rows * s.rank * (s.in + s.out)) << Describe(LATH_F32, s);
    EXPECT_EQ(merged.macs, s.rows * s.in * s.out + s.rank * s.in * s.out) << Describe(LATH_F32, s);
    EXPECT_EQ(factored.dense_macs, s.rows * s.in * s.out);
    EXPECT_EQ(merged.dense_macs, s.rows * s.in * s.out);
  }
}

TEST(Plan, CountsEveryGradientOfTheBackward) {
  for (const LowrankShape &s : SampledShapes()) {
    const Plan factored = PlanOf(s, true, LATH_F32, LATH_FACTORED), merged = PlanOf(s, true, LATH_F32, LATH_MERGED);
    EXPECT_EQ(factored.dense_macs, 2 * s.rows * s.in * s.out);
    // dp and du, dx and dv.
    EXPECT_EQ(factored.macs, 2 * s.rows * s.rank * (s.in + s.out)) << Describe(LATH_F32, s);
    // dx and dw; w, du and dv.
    EXPECT_EQ(merged.macs, 2 * s.rows * s.in * s.out + 3 * s.rank * s.in * s.out) << Describe(LATH_F32, s);
  }
}

TEST(Plan, AutoIsTheCheaperAssociation) {
  int merged_chosen = 0, factored_chosen = 0;
  for (const lath_dtype dtype : {LATH_F32, LATH_BF16}) {
    for (const LowrankShape &shape : SampledShapes()) {
      for (const bool backward : {false, true}) {
        const Plan chosen = PlanOf(shape, backward, dtype);
        const Plan factored = PlanOf(shape, backward, dtype, LATH_FACTORED),
                   merged = PlanOf(shape, backward, dtype, LATH_MERGED);
        ASSERT_TRUE(chosen.association == LATH_FACTORED || chosen.association == LATH_MERGED);
        if (factored.macs < merged.macs) {
          EXPECT_EQ(chosen.association, LATH_FACTORED) << Describe(dtype, shape) << " backward " << backward;
        }
        EXPECT_EQ(chosen.macs, (chosen.association == LATH_MERGED ? merged : factored).macs);
        ++(chosen.association == LATH_MERGED ? merged_chosen : factored_chosen);
      }
    }
  }
  EXPECT_GT(merged_chosen, 100) << "the sample must hold both kinds";
  EXPECT_GT(factored_chosen, 100);
}

TEST(Plan, AFullRankLayerWithManyRowsIsMerged) {
  for (const int64_t width : {64, 512, 1024}) {
    for (const bool backward : {false, true}) {
      EXPECT_EQ(PlanOf({64 * width, width, width, width}, backward).association, LATH_MERGED) << width;
    }
  }
}

TEST(Plan, OneRowOrASmallRankIsFactored) {
  for (const bool backward : {false, true}) {
    EXPECT_EQ(PlanOf({1, 512, 512, 512}, backward).association, LATH_FACTORED);
    EXPECT_EQ(PlanOf({100000, 1024, 256, 1024}, backward).association, LATH_FACTORED);
    const Plan plan = PlanOf({4096, 1024, 128, 1024}, backward);
    EXPECT_EQ(plan.macs * 4, plan.dense_macs);
  }
}

TEST(Plan, KernelFollowsTheRowsTheTypeAndTheAssociation) {
  for (const lath_dtype dtype : {LATH_F32, LATH_BF16}) {
    for (const bool backward : {false, true}) {
      EXPECT_EQ(PlanOf({1, 512, 32, 512}, backward, dtype).kernel, LATH_LOWRANK_ROWS);
      EXPECT_EQ(PlanOf({4096, 512, 32, 512}, backward, dtype).kernel, LATH_LOWRANK_TILES);
      EXPECT_EQ(PlanOf({1, 512, 32, 512}, backward, dtype, LATH_MERGED).kernel, LATH_LOWRANK_MERGED);
      bool tiles = false;
      for (int64_t rows = 1; rows < 2000; ++rows) {
        const bool now = PlanOf({rows, 512, 32, 512}, backward, dtype).kernel == LATH_LOWRANK_TILES;
        EXPECT_TRUE(now || !tiles) << "back to few rows at " << rows;
        tiles = now;
      }
    }
  }
}

TEST(Plan, DoublePrecisionTakesThePlainLoops) {
  for (const lath_association association : {LATH_AUTO, LATH_FACTORED, LATH_MERGED}) {
    for (const bool backward : {false, true}) {
      const Plan plan = PlanOf({4096, 512, 512, 512}, backward, LATH_F64, association);
      EXPECT_EQ(plan.kernel, LATH_LOWRANK_PLAIN);
      EXPECT_EQ(plan.association, LATH_FACTORED) << "the plain loops know no other order";
    }
  }
}

TEST(Plan, TheIntermediateIsSavedWhereRecomputingItIsLong) {
  for (const int64_t rows : {1, 100, 10000}) {
    bool saved = false;
    for (int64_t in = 1; in <= 4096; in = in < 64 ? in + 1 : in * 2) {
      const Plan plan = PlanOf({rows, in, 16, 256}, false, LATH_F32, LATH_FACTORED);
      ASSERT_TRUE(plan.save_intermediate == 0 || plan.save_intermediate == 1);
      EXPECT_TRUE(plan.save_intermediate || !saved) << "a longer sum is no cheaper to compute again, in " << in;
      saved = plan.save_intermediate;
    }
    EXPECT_TRUE(saved);
    EXPECT_FALSE(PlanOf({rows, 1, 16, 256}, false, LATH_F32, LATH_FACTORED).save_intermediate);
  }
}

TEST(Plan, AMergedPlanHasNoIntermediateToSave) {
  EXPECT_EQ(PlanOf({4096, 512, 512, 512}, false, LATH_F32, LATH_MERGED).save_intermediate, 0);
}

TEST(Plan, ProductsThatOverflowAreRefused) {
  const int64_t huge = std::numeric_limits<int64_t>::max(), large = int64_t{1} << 31;
  const LowrankShape shapes[] = {{huge, 2, 2, 2},
                                 {2, huge, 2, 2},
                                 {2, 2, huge, 2},
                                 {2, 2, 2, huge},
                                 {large, large, 1, 1},
                                 {large, 1, large, 1},
                                 {large, 1, 1, large},
                                 {1, large, large, 1},
                                 {1, large, 1, large},
                                 {1, 1, large, large},
                                 {1 << 20, 1 << 21, 1, 1 << 20},
                                 {1 << 20, 1, 1 << 21, 1 << 20},
                                 {1, 1 << 20, 1 << 21, 1 << 20}};
  for (const LowrankShape &shape : shapes) {
    for (const lath_association association : {LATH_AUTO, LATH_FACTORED, LATH_MERGED}) {
      for (const int backward : {0, 1}) {
        const LowrankArgs args = ArgsOf(shape, LATH_F32, association);
        Plan plan = {};
        EXPECT_EQ(lath_lowrank_linear_plan(&args, backward, &plan), LATH_SIZE_OVERFLOW) << Describe(LATH_F32, shape);
      }
    }
  }
}

TEST(Plan, LargeShapesThatFitHaveExactCounts) {
  const LowrankShape shape = {int64_t{1} << 24, 1 << 12, 1 << 8, 1 << 12};
  EXPECT_EQ(PlanOf(shape, false).macs, int64_t{1} << 45);
  EXPECT_EQ(PlanOf(shape, true).dense_macs, int64_t{1} << 49);
}

TEST(Plan, BadArgumentsAreRefused) {
  Plan plan = {};
  LowrankArgs args = ArgsOf({1, 2, 3, 4});
  EXPECT_EQ(lath_lowrank_linear_plan(nullptr, 0, &plan), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_lowrank_linear_plan(&args, 0, nullptr), LATH_INVALID_ARGUMENT);
  for (int64_t LowrankArgs::*extent : {&LowrankArgs::rows, &LowrankArgs::in, &LowrankArgs::rank, &LowrankArgs::out}) {
    args = ArgsOf({1, 2, 3, 4});
    args.*extent = -1;
    EXPECT_EQ(lath_lowrank_linear_plan(&args, 0, &plan), LATH_INVALID_ARGUMENT);
    args.*extent = std::numeric_limits<int64_t>::min();
    EXPECT_EQ(lath_lowrank_linear_plan(&args, 0, &plan), LATH_INVALID_ARGUMENT);
  }
}

}  // namespace
}  // namespace lath_test
