// SPDX-License-Identifier: Apache-2.0
//
// test_oialr.cc - the layer in an orthogonal basis on the device: every route of the layer, every route of its pairs of products, every
// type, t kept or not, every set of gradients.

#include <limits>
#include <tuple>

#include "oialr_on_device.h"

namespace cuda_test {
namespace {

using lath_test::Completed;
using lath_test::EachOialrGradient;
using lath_test::Exact;
using lath_test::Within;

const std::vector<int64_t> kAny = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 129, 255, 257, 300};
const std::vector<int64_t> kRanks = {1, 2, 3, 5, 8, 15, 16, 17, 33, 64, 65, 128, 129, 257};
const std::vector<int64_t> kEights = {8, 16, 24, 40, 64, 72, 120, 128, 136, 192, 256, 264, 320};
const std::vector<int64_t> kFusedRanks = {8, 16, 24, 64, 72, 128, 136, 192, 256};
const std::vector<int64_t> kRows = {1, 2, 5, 13, 16, 17, 33, 64, 65, 100};
constexpr int kPairRoutes[] = {kPlanned, LATH_LOWRANK_PRODUCTS, LATH_LOWRANK_FEW, LATH_LOWRANK_FUSED};

class OialrDevice : public testing::TestWithParam<std::tuple<lath_oialr_route, int>> {
 protected:
  void TearDown() override { emulator_order(0); }

  static bool Fused() { return std::get<1>(GetParam()) == LATH_LOWRANK_FUSED; }
  static int64_t Width(Choices *choices) { return choices->From(Fused() ? kEights : kAny); }
  static int64_t Rank(Choices *choices) { return choices->From(Fused() ? kFusedRanks : kRanks); }

  static OialrDeviceOptions Options() {
    OialrDeviceOptions options;
    options.association = std::get<0>(GetParam());
    options.route = std::get<1>(GetParam());
    return options;
  }

  // Where the route allows it, anything; the fused kernel wants strides of 8 elements and 16 bytes.
  static Layout LayoutOfRoute(Choices *choices, bool input) {
    return Fused() ? AlignedLayout(choices, input) : RandomLayout(choices, input);
  }

  // Forward, then backward with t kept and without.
  static void CheckBothWays(const OialrInputs &inputs, const OialrDeviceOptions &options, unsigned gradients) {
    const OialrValues want = inputs.Want();
    const bool keeps = options.association != LATH_OIALR_MERGED;
    const OialrForward forward = OialrForwardOnDevice(inputs, options, keeps);
    EXPECT_TRUE(Exact(forward, want, keeps)) << Describe(inputs, options);
    EXPECT_TRUE(Exact(OialrForwardOnDevice(inputs, options, false), want, false)) << "without t: " << Describe(inputs, options);
    EXPECT_TRUE(Exact(OialrBackwardOnDevice(inputs, options, gradients), want, gradients))
        << "gradients " << gradients << " of " << Describe(inputs, options);
    if (keeps) {
      EXPECT_TRUE(Exact(OialrBackwardOnDevice(inputs, options, gradients, &forward.t, false), want, gradients))
          << "t kept, no x: gradients " << gradients << " of " << Describe(inputs, options);
    }
  }

  static void Check(const LowrankShape &shape, uint32_t seed) {
    if (LeftOut(seed)) return;
    Choices choices(seed);
    emulator_order(choices.Next() % 4);
    const lath_dtype dtype = Fused() ? (choices.OneIn(2) ? LATH_BF16 : LATH_F16) : kDtypes[choices.Below(4)];
    const OialrLayouts layouts = {LayoutOfRoute(&choices, true), LayoutOfRoute(&choices, true), LayoutOfRoute(&choices, true)};
    OialrDeviceOptions options = Options();
    options.blas = choices.OneIn(2);
    options.output = LayoutOfRoute(&choices, false);
    options.contiguous.misalignment = Fused() ? 0 : choices.Below(3);
    options.workspace_misalignment = choices.OneIn(2) ? lath_dtype_size(dtype) : 0;
    CheckBothWays(ExactOialrInputs(dtype, shape, choices.OneIn(2), seed, layouts), options,
                  choices.OneIn(2) ? kOialrAll : static_cast<unsigned>(choices.Below(8)));
  }
};

TEST_P(OialrDevice, IsExactAtEveryRowCount) {
  Choices choices(1);
  for (const int64_t rows : kRows) Check({rows, Width(&choices), Rank(&choices), Width(&choices)}, choices.Next());
}

TEST_P(OialrDevice, IsExactAtEveryRank) {
  Choices choices(2);
  for (const int64_t rank : Fused() ? kFusedRanks : kRanks)
    Check({choices.From({3, 16, 40, 70}), Width(&choices), rank, Width(&choices)}, choices.Next());
}

TEST_P(OialrDevice, IsExactAtEveryWidth) {
  Choices choices(3);
  for (const int64_t width : Fused() ? kEights : kAny) {
    const LowrankShape shape = {choices.From({2, 40}), width, choices.From({8, 16}), Width(&choices)};
    Check(shape, choices.Next());
    Check({shape.rows, shape.out, shape.rank, shape.in}, choices.Next());
  }
}

TEST_P(OialrDevice, IsExactForManyRows) {
  Choices choices(4);
  Check({700, 24, 8, 40}, choices.Next());
  Check({517, 40, 16, 8}, choices.Next());
}

// Both orders of the widths: the merged route starts from the smaller one.
TEST_P(OialrDevice, EveryMaskWritesExactlyWhatWasAskedFor) {
  Choices choices(5);
  for (const LowrankShape &shape : {LowrankShape{33, 24, 16, 40}, LowrankShape{33, 40, 16, 24}}) {
    for (unsigned gradients = 0; gradients <= kOialrAll; ++gradients) {
      if (LeftOut(choices.Next())) continue;
      const lath_dtype dtype = Fused() ? LATH_BF16 : kDtypes[gradients % 4];
      CheckBothWays(ExactOialrInputs(dtype, shape, true, choices.Next()), Options(), gradients);
    }
  }
}

TEST_P(OialrDevice, ZeroExtentsGiveEmptySums) {
  for (int zeros = 1; zeros < 16; ++zeros) {
    if (LeftOut(static_cast<uint32_t>(zeros))) continue;
    const LowrankShape shape = {zeros & 1 ? 0 : 5, zeros & 2 ? 0 : 8, zeros & 4 ? 0 : 8, zeros & 8 ? 0 : 16};
    OialrDeviceOptions options = Options();
    options.blas = zeros % 2;
    for (const lath_dtype dtype : {LATH_F32, LATH_F16})
      CheckBothWays(ExactOialrInputs(dtype, shape, true, 3), options, kOialrAll);
  }
}

TEST_P(OialrDevice, RealNumbersStayWithinTheBound) {
  Choices choices(6);
  for (const lath_dtype dtype : kDtypes) {
    for (const int64_t rows : {3, 70}) {
      if (LeftOut(choices.Next())) continue;
      const LowrankShape shape = {rows, 8 * choices.From({1, 7, 17}), 8 * choices.From({1, 3, 9}),
                                  8 * choices.From({2, 8, 19})};
      OialrDeviceOptions options = Options();
      options.blas = choices.OneIn(2);
      const OialrInputs inputs(dtype, shape, true, Numbers::kUniform, choices.Next());
      const OialrValues want = inputs.Want(), bounds = OialrDeviceBounds(inputs);
      const OialrForward forward = OialrForwardOnDevice(inputs, options, options.association != LATH_OIALR_MERGED);
      ASSERT_TRUE(Completed(forward)) << Describe(inputs, options);
      EXPECT_TRUE(Within(forward.y, want.y, bounds.y)) << Describe(inputs, options);
      EXPECT_TRUE(EachOialrGradient(
          OialrBackwardOnDevice(inputs, options), kOialrAll,
          [&](const Operand &got, Values OialrValues::*values) { return Within(got, want.*values, bounds.*values); }))
          << Describe(inputs, options);
    }
  }
}

TEST_P(OialrDevice, NanInARowStaysInThatRow) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  for (const int64_t rows : {2, 66}) {
    for (const lath_dtype dtype : kDtypes) {
      if (LeftOut(static_cast<uint32_t>(10 * rows + dtype))) continue;
      OialrInputs inputs = ExactOialrInputs(dtype, {rows, 40, 24, 56}, true, 11);
      inputs.x.Set(rows / 2, 39, kNan);
      inputs.dy.Set(rows / 2, 55, kNan);
      CheckBothWays(inputs, Options(), kOialrDx | kOialrDBias);
    }
  }
}

// Threads in any order give the same bits.
TEST_P(OialrDevice, OrdersDoNotChangeABit) {
  for (const lath_dtype dtype : {LATH_F32, LATH_BF16}) {
    if (kLeg == Leg::kThread && (dtype != LATH_BF16 || std::get<1>(GetParam()) == kPlanned)) continue;
    const OialrInputs inputs(dtype, {std::get<1>(GetParam()) == LATH_LOWRANK_FEW ? 9 : 130, 72, 24, 56}, true,
                             Numbers::kUniform, 15);
    OialrDeviceOptions options = Options();
    options.blas = false;
    const bool keeps = options.association != LATH_OIALR_MERGED;
    const OialrForward forward = OialrForwardOnDevice(inputs, options, keeps);
    const OialrBackward backward = OialrBackwardOnDevice(inputs, options);
    ASSERT_TRUE(Completed(forward) && Completed(backward));
    EachOrder([&](unsigned seed) {
      const OialrForward again = OialrForwardOnDevice(inputs, options, keeps);
      const OialrBackward back_again = OialrBackwardOnDevice(inputs, options);
      EXPECT_TRUE(SameBits(forward.y, again.y)) << "seed " << seed << " " << Describe(inputs, options);
      EXPECT_TRUE(SameBits(forward.t, again.t)) << "seed " << seed << " " << Describe(inputs, options);
      EXPECT_TRUE(SameBits(backward.dx, back_again.dx)) << "seed " << seed << " " << Describe(inputs, options);
      EXPECT_TRUE(SameBits(backward.ds, back_again.ds)) << "seed " << seed << " " << Describe(inputs, options);
      EXPECT_TRUE(SameBits(backward.d_bias, back_again.d_bias)) << "seed " << seed << " " << Describe(inputs, options);
    });
  }
}

std::string ParameterName(const testing::TestParamInfo<OialrDevice::ParamType> &info) {
  static const char *const kNames[] = {"auto", "chained", "folded", "merged"};
  return std::string(kNames[std::get<0>(info.param)]) + "_" +
         RouteName(testing::TestParamInfo<int>(std::get<1>(info.param), info.index));
}

INSTANTIATE_TEST_SUITE_P(Factored, OialrDevice,
                         testing::Combine(testing::Values(LATH_OIALR_CHAINED, LATH_OIALR_FOLDED),
                                          testing::ValuesIn(kPairRoutes)),
                         ParameterName);
INSTANTIATE_TEST_SUITE_P(Whole, OialrDevice,
                         testing::Combine(testing::Values(LATH_OIALR_AUTO, LATH_OIALR_MERGED), testing::Values(kPlanned)),
                         ParameterName);

// The device rounds t to the type of x and the processor does not; both compute the same layer.
TEST(OialrDeviceAndProcessor, AgreeOnIntegers) {
  Choices choices(7);
  for (const lath_dtype dtype : {LATH_F32, LATH_F64, LATH_BF16}) {
    for (const lath_oialr_route route : kOialrRoutes) {
      if (LeftOut(choices.Next())) continue;
      const OialrInputs inputs = ExactOialrInputs(dtype, {66, 40, 24, 56}, true, choices.Next());
      OialrDeviceOptions options;
      options.association = route;
      lath_test::OialrOptions on_processor;
      on_processor.ref = true;
      const OialrForward forward = OialrForwardOnDevice(inputs, options, false);
      ASSERT_TRUE(Completed(forward));
      EXPECT_TRUE(SameBits(forward.y, RunOialrForward(inputs, on_processor, false).y)) << Describe(inputs, options);
      const OialrBackward backward = OialrBackwardOnDevice(inputs, options), want = RunOialrBackward(inputs, on_processor);
      ASSERT_TRUE(Completed(backward));
      EXPECT_TRUE(SameBits(backward.dx, want.dx)) << Describe(inputs, options);
      EXPECT_TRUE(SameBits(backward.ds, want.ds)) << Describe(inputs, options);
      EXPECT_TRUE(SameBits(backward.d_bias, want.d_bias)) << Describe(inputs, options);
    }
  }
}

}  // namespace
}  // namespace cuda_test
