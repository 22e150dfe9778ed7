// SPDX-License-Identifier: Apache-2.0
//
// test_lowrank_backward.cc - the gradients of the low-rank product on the device: every route, type, tile edge and set of
// gradients.

#include <limits>

#include "lowrank_cases.h"

namespace cuda_test {
namespace {

using lath_test::kAllGradients;

constexpr int kBackwardRoutes[] = {kPlanned, LATH_LOWRANK_PRODUCTS, LATH_LOWRANK_FUSED, LATH_LOWRANK_MERGED};

class LowrankBackward : public testing::TestWithParam<int> {
 protected:
  void TearDown() override { emulator_order(0); }

  bool Fused() const { return GetParam() == LATH_LOWRANK_FUSED; }

  Layout LayoutOfRoute(Choices *choices, bool input) const {
    return Fused() ? AlignedLayout(choices, input) : RandomLayout(choices, input);
  }

  void Check(const LowrankShape &shape, unsigned gradients, uint32_t seed) {
    if (LeftOut(seed)) return;
    Choices choices(seed);
    emulator_order(choices.Next() % 4);
    const lath_dtype dtype = Fused() ? (choices.OneIn(2) ? LATH_BF16 : LATH_F16) : kDtypes[choices.Below(4)];
    LowrankInputs::Layouts layouts;
    for (Layout *layout : {&layouts.x, &layouts.v, &layouts.u, &layouts.dy}) *layout = LayoutOfRoute(&choices, true);
    layouts.biases.misalignment = choices.Below(3);
    DeviceOptions options;
    options.route = GetParam();
    options.blas = choices.OneIn(2);
    options.output = LayoutOfRoute(&choices, false);
    options.contiguous.misalignment = choices.Below(3);
    options.workspace_misalignment = choices.OneIn(2) ? lath_dtype_size(dtype) : 0;
    const LowrankInputs inputs = ExactInputs(dtype, shape, choices.OneIn(2), choices.OneIn(2), seed, layouts);
    Operand p(dtype, shape.rows, shape.rank, options.contiguous);
    p.Fill(OracleOf(inputs).P());
    EXPECT_TRUE(ExactBackward(inputs, options, gradients, choices.OneIn(2) ? &p : nullptr));
    if (Fused() && (gradients & lath_test::kDx)) {
      EXPECT_EQ(LastKernel(), LATH_LOWRANK_FUSED) << Describe(inputs, options);
    }
  }
};

const std::vector<int64_t> kRows = {1, 2, 7, 16, 17, 33, 63, 64, 65, 100, 129};
const std::vector<int64_t> kAny = {1, 2, 3, 7, 8, 9, 16, 17, 33, 63, 64, 65, 100, 127, 128, 129, 257};
const std::vector<int64_t> kEights = {8, 16, 24, 40, 64, 72, 120, 128, 136, 192, 256, 264};

TEST_P(LowrankBackward, IsExactForEverySetOfGradients) {
  Choices choices(1);
  for (unsigned gradients = 0; gradients <= kAllGradients; ++gradients) {
    const std::vector<int64_t> &widths = Fused() ? kEights : kAny;
    for (const int64_t rows : {choices.From({1, 5, 16}), choices.From({33, 65})}) {
      Check(
          {rows, choices.From(widths),
           choices.From(Fused() ? std::vector<int64_t>{8, 24, 72} : std::vector<int64_t>{1, 3, 16, 33}), choices.From(widths)},
          gradients, choices.Next());
    }
  }
}

TEST_P(LowrankBackward, IsExactAtEveryRowCount) {
  Choices choices(2);
  for (const int64_t rows : kRows) {
    const std::vector<int64_t> &widths = Fused() ? kEights : kAny;
    Check({rows, choices.From(widths), choices.From({8, 16, 40}), choices.From(widths)}, kAllGradients, choices.Next());
  }
}

TEST_P(LowrankBackward, IsExactAtEveryRank) {
  Choices choices(3);
  const std::vector<int64_t> ranks = Fused() ? std::vector<int64_t>{8, 16, 56, 64, 72, 120, 128, 136, 192, 256}
                                             : std::vector<int64_t>{1, 2, 7, 8, 15, 16, 17, 64, 65, 129, 256, 257};
  for (const int64_t rank : ranks) {
    const std::vector<int64_t> &widths = Fused() ? kEights : kAny;
    Check({choices.From({3, 20, 70}), choices.From(widths), rank, choices.From(widths)}, kAllGradients, choices.Next());
  }
}

TEST_P(LowrankBackward, IsExactAtEveryWidth) {
  Choices choices(4);
  for (const int64_t width : Fused() ? kEights : kAny) {
    const std::vector<int64_t> &widths = Fused() ? kEights : kAny;
    Check({choices.From({2, 40}), width, choices.From({8, 16}), choices.From(widths)}, kAllGradients, choices.Next());
    Check({choices.From({2, 40}), choices.From(widths), choices.From({8, 16}), width}, kAllGradients, choices.Next());
  }
}

// Sums of many rows are cut into parts, see rows.cu.
TEST_P(LowrankBackward, IsExactForManyRows) {
  Choices choices(5);
  Check({700, 24, 8, 40}, kAllGradients, choices.Next());
  Check({517, 8, 16, 8}, kAllGradients, choices.Next());
}

INSTANTIATE_TEST_SUITE_P(, LowrankBackward, testing::ValuesIn(kBackwardRoutes), RouteName);

TEST(LowrankBackwardEdges, ZeroExtentsGiveEmptySums) {
  for (const lath_dtype dtype : {LATH_F32, LATH_F16}) {
    for (const int route : kBackwardRoutes) {
      for (int zeros = 1; zeros < 16; ++zeros) {
        const LowrankShape shape = {zeros & 1 ? 0 : 5, zeros & 2 ? 0 : 8, zeros & 4 ? 0 : 8, zeros & 8 ? 0 : 16};
        DeviceOptions options;
        options.route = route;
        options.blas = zeros % 2;
        if (LeftOut(static_cast<uint32_t>(100 * route + zeros))) continue;
        EXPECT_TRUE(ExactBackward(ExactInputs(dtype, shape, true, true, 3), options, kAllGradients));
      }
    }
  }
}

TEST(LowrankBackwardEdges, RealNumbersStayWithinTheBound) {
  Choices choices(6);
  for (const lath_dtype dtype : kDtypes) {
    for (const int route : kBackwardRoutes) {
      for (const int64_t rows : {3, 70}) {
        if (LeftOut(choices.Next())) continue;
        const LowrankShape shape = {rows, 8 * choices.From({1, 7, 17}), 8 * choices.From({1, 3, 9}),
                                    8 * choices.From({2, 8, 19})};
        DeviceOptions options;
        options.route = route;
        options.blas = choices.OneIn(2);
        const LowrankInputs inputs(dtype, shape, choices.OneIn(2), true, Numbers::kUniform, choices.Next());
        const BackwardRun run = BackwardOnDevice(inputs, options);
        const LowrankOracle oracle = OracleOf(inputs);
        EXPECT_TRUE(GradientsWithin(run, oracle.AllGradients(), oracle.OfMagnitudes().AllGradients(),
                                    DeviceErrorFactor(oracle, dtype), kAllGradients))
            << Describe(inputs, options);
      }
    }
  }
}

TEST(LowrankBackwardEdges, NanInARowOfDyStaysInThatRowOfDx) {
  for (const lath_dtype dtype : kDtypes) {
    for (const int route : kBackwardRoutes) {
      if (LeftOut(static_cast<uint32_t>(100 * route + dtype))) continue;
      LowrankInputs inputs = ExactInputs(dtype, {66, 40, 24, 56}, true, true, 11);
      inputs.dy.Set(33, 55, std::numeric_limits<double>::quiet_NaN());
      DeviceOptions options;
      options.route = route;
      EXPECT_TRUE(ExactBackward(inputs, options, kAllGradients));
    }
  }
}

TEST(LowrankBackwardOrders, DoNotChangeABit) {
  for (const lath_dtype dtype : kDtypes) {
    if (kLeg == Leg::kThread && dtype != LATH_BF16) continue;
    for (const int route : kBackwardRoutes) {
      const LowrankInputs inputs(dtype, {130, 72, 24, 56}, true, true, Numbers::kUniform, 15);
      DeviceOptions options;
      options.route = route;
      options.blas = false;
      const BackwardRun first = BackwardOnDevice(inputs, options);
      EachOrder([&](unsigned seed) {
        EXPECT_TRUE(SameGradients(first, BackwardOnDevice(inputs, options)))
            << "seed " << seed << " " << Describe(inputs, options);
      });
    }
  }
}

}  // namespace
}  // namespace cuda_test
