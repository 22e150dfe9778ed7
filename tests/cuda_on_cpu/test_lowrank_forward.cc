// SPDX-License-Identifier: Apache-2.0
//
// test_lowrank_forward.cc - y = (x v^T + inner_bias) u^T + bias on the device: every route, type and tile edge.

#include <limits>

#include "lowrank_cases.h"

namespace cuda_test {
namespace {

// The orders of threads cost time; a case that is not about them runs in one that its seed decides.
class LowrankForward : public testing::TestWithParam<int> {
 protected:
  void TearDown() override { emulator_order(0); }

  DeviceOptions Options() const {
    DeviceOptions options;
    options.route = GetParam();
    return options;
  }

  // Extents that the fused kernel takes, where the route is that one.
  int64_t Extent(Choices *choices, const std::vector<int64_t> &any, const std::vector<int64_t> &eights) const {
    return choices->From(GetParam() == LATH_LOWRANK_FUSED ? eights : any);
  }

  lath_dtype Type(Choices *choices) const {
    if (GetParam() == LATH_LOWRANK_FUSED) return choices->OneIn(2) ? LATH_BF16 : LATH_F16;
    return kDtypes[choices->Below(4)];
  }

  // Where the route allows it, anything; the fused kernel wants strides of 8 elements and 16 bytes.
  Layout LayoutOfRoute(Choices *choices, bool input) const {
    return GetParam() == LATH_LOWRANK_FUSED ? AlignedLayout(choices, input) : RandomLayout(choices, input);
  }

  void Check(const LowrankShape &shape, uint32_t seed) {
    if (LeftOut(seed)) return;
    Choices choices(seed);
    emulator_order(choices.Next() % 4);
    const lath_dtype dtype = Type(&choices);
    LowrankInputs::Layouts layouts;
    for (Layout *layout : {&layouts.x, &layouts.v, &layouts.u}) *layout = LayoutOfRoute(&choices, true);
    layouts.biases.misalignment = choices.Below(3);
    DeviceOptions options = Options();
    options.blas = choices.OneIn(2);
    options.output = LayoutOfRoute(&choices, false);
    options.contiguous.misalignment = GetParam() == LATH_LOWRANK_FUSED ? 0 : choices.Below(3);
    options.workspace_misalignment = choices.OneIn(2) ? lath_dtype_size(dtype) : 0;
    const LowrankInputs inputs = ExactInputs(dtype, shape, choices.OneIn(2), choices.OneIn(2), seed, layouts);
    EXPECT_TRUE(ExactForward(inputs, options, choices.OneIn(2)));
    const bool few = shape.rows <= 16, always = GetParam() == LATH_LOWRANK_FUSED || GetParam() == LATH_LOWRANK_PRODUCTS;
    if (always || (GetParam() == LATH_LOWRANK_FEW && few)) {
      EXPECT_EQ(LastKernel(), GetParam()) << Describe(inputs, options);
    }
  }
};

const std::vector<int64_t> kAny = {1,  2,  3,  7,   8,   9,   15,  16,  17,  31,  32, 33,
                                   63, 64, 65, 100, 127, 128, 129, 255, 256, 257, 300};
const std::vector<int64_t> kEights = {8, 16, 24, 32, 40, 56, 64, 72, 96, 120, 128, 136, 184, 192, 248, 256, 264, 320};
const std::vector<int64_t> kRanks = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 63, 64, 65, 128, 129, 255, 256, 257};
const std::vector<int64_t> kFusedRanks = {8, 16, 24, 56, 64, 72, 96, 120, 128, 136, 192, 248, 256};

TEST_P(LowrankForward, IsExactAtEveryRowCountOfAFewRows) {
  Choices choices(1);
  for (int64_t rows = 1; rows <= 18; ++rows) {
    for (int repeat = 0; repeat < 3; ++repeat) {
      Check({rows, Extent(&choices, kAny, kEights), Extent(&choices, kRanks, kFusedRanks), Extent(&choices, kAny, kEights)},
            choices.Next());
    }
  }
}

TEST_P(LowrankForward, IsExactAtEveryRank) {
  Choices choices(2);
  for (const int64_t rank : GetParam() == LATH_LOWRANK_FUSED ? kFusedRanks : kRanks) {
    Check({choices.From({1, 2, 13, 16}), Extent(&choices, kAny, kEights), rank, Extent(&choices, kAny, kEights)},
          choices.Next());
    Check({choices.From({33, 63, 64, 65, 100}), Extent(&choices, kAny, kEights), rank, Extent(&choices, kAny, kEights)},
          choices.Next());
  }
}

TEST_P(LowrankForward, IsExactAtEveryWidth) {
  Choices choices(3);
  for (const int64_t width : GetParam() == LATH_LOWRANK_FUSED ? kEights : kAny) {
    const int64_t rows = choices.From({1, 5, 16, 17, 65}), rank = Extent(&choices, {1, 4, 8, 17}, {8, 16, 72});
    Check({rows, width, rank, Extent(&choices, kAny, kEights)}, choices.Next());
    Check({rows, Extent(&choices, kAny, kEights), rank, width}, choices.Next());
  }
}

TEST_P(LowrankForward, IsExactWhereAnExtentNeedsSeveralBlocks) {
  Choices choices(4);
  Check({2, 4104, 24, 40}, choices.Next());
  Check({16, 2056, 8, 1032}, choices.Next());
  Check({200, 40, 16, 520}, choices.Next());
  if (GetParam() != LATH_LOWRANK_FUSED) Check({3, 72, 600, 48}, choices.Next());
}

INSTANTIATE_TEST_SUITE_P(, LowrankForward, testing::ValuesIn(kRoutes), RouteName);

TEST(LowrankForwardEdges, ZeroExtentsGiveEmptySums) {
  for (const lath_dtype dtype : {LATH_F32, LATH_BF16}) {
    for (const int route : kRoutes) {
      for (int zeros = 1; zeros < 16; ++zeros) {
        const LowrankShape shape = {zeros & 1 ? 0 : 5, zeros & 2 ? 0 : 8, zeros & 4 ? 0 : 8, zeros & 8 ? 0 : 16};
        DeviceOptions options;
        options.route = route;
        options.blas = zeros % 2;
        for (int biases = 0; biases < 4; ++biases) {
          if (LeftOut(static_cast<uint32_t>(100 * route + 4 * zeros + biases))) continue;
          EXPECT_TRUE(ExactForward(ExactInputs(dtype, shape, biases & 1, biases & 2, 3), options, true));
        }
      }
    }
  }
}

TEST(LowrankForwardEdges, RealNumbersStayWithinTheBound) {
  Choices choices(5);
  for (const lath_dtype dtype : kDtypes) {
    for (const int route : kRoutes) {
      for (const int64_t rows : {3, 16, 70}) {
        if (LeftOut(choices.Next())) continue;
        const LowrankShape shape = {rows, 8 * choices.From({1, 7, 33}), 8 * choices.From({1, 3, 9, 17}),
                                    8 * choices.From({2, 8, 19})};
        DeviceOptions options;
        options.route = route;
        options.blas = choices.OneIn(2);
        const LowrankInputs inputs(dtype, shape, choices.OneIn(2), choices.OneIn(2), Numbers::kUniform, choices.Next());
        const ForwardRun run = ForwardOnDevice(inputs, options, true);
        ASSERT_TRUE(Completed(run)) << Describe(inputs, options);
        const LowrankOracle oracle = OracleOf(inputs), magnitudes = oracle.OfMagnitudes();
        const double factor = DeviceErrorFactor(oracle, dtype);
        EXPECT_TRUE(Within(run.y, oracle.Y(), Scaled(magnitudes.Y(), factor))) << Describe(inputs, options);
        if (LastKernel() == LATH_LOWRANK_MERGED) continue;
        EXPECT_TRUE(Within(run.p, oracle.P(), Scaled(magnitudes.P(), oracle.ErrorFactor(dtype))))
            << "p of " << Describe(inputs, options);
      }
    }
  }
}

TEST(LowrankForwardEdges, NanInARowOfXStaysInThatRow) {
  for (const lath_dtype dtype : kDtypes) {
    for (const int route : kRoutes) {
      for (const int64_t rows : {2, 9, 16, 65}) {
        if (LeftOut(static_cast<uint32_t>(100 * route + 1000 * dtype + rows))) continue;
        LowrankInputs inputs = ExactInputs(dtype, {rows, 40, 24, 56}, true, true, 11);
        inputs.x.Set(rows / 2, 39, std::numeric_limits<double>::quiet_NaN());
        DeviceOptions options;
        options.route = route;
        EXPECT_TRUE(ExactForward(inputs, options));
      }
    }
  }
}

TEST(LowrankForwardEdges, InfinityIsNotTurnedIntoNanByPadding) {
  for (const lath_dtype dtype : kDtypes) {
    for (const int route : kRoutes) {
      for (const int64_t rank : {1, 5, 8, 40, 72}) {
        if (kLeg == Leg::kThread && rank != 40) continue;
        for (const int64_t rows : {1, 5, 70}) {
          if (LeftOut(static_cast<uint32_t>(1000 * route + 10000 * dtype + 71 * rank + rows))) continue;
          LowrankInputs inputs(dtype, {rows, 24, rank, 16}, false, false, Numbers::kIntegers, 13);
          inputs.v.Fill(Values(static_cast<size_t>(rank * 24), 2.0));
          inputs.u.Fill(Values(static_cast<size_t>(rank * 16), 1.0));
          inputs.x.Set(rows - 1, 23, std::numeric_limits<double>::infinity());
          DeviceOptions options;
          options.route = route;
          options.blas = rank % 2;
          EXPECT_TRUE(ExactForward(inputs, options));
        }
      }
    }
  }
}

// Threads in any order, and a call made twice, give the same bits.
TEST(LowrankForwardOrders, DoNotChangeABit) {
  for (const lath_dtype dtype : kDtypes) {
    if (kLeg == Leg::kThread && dtype != LATH_BF16) continue;
    for (const int route : kRoutes) {
      for (const int64_t rows : {9, 66}) {
        if (kLeg == Leg::kThread && (route == kPlanned || (rows == 9) != (route == LATH_LOWRANK_FEW))) continue;
        const LowrankInputs inputs(dtype, {rows, 264, 40, 136}, true, true, Numbers::kUniform, 15);
        DeviceOptions options;
        options.route = route;
        options.blas = false;
        ForwardRun first = ForwardOnDevice(inputs, options, true);
        EachOrder([&](unsigned seed) {
          const ForwardRun run = ForwardOnDevice(inputs, options, true);
          EXPECT_TRUE(SameBits(first.y, run.y)) << "seed " << seed << " " << Describe(inputs, options);
          EXPECT_TRUE(SameBits(first.p, run.p)) << "seed " << seed << " " << Describe(inputs, options);
        });
      }
    }
  }
}

}  // namespace
}  // namespace cuda_test
