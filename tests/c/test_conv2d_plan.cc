// SPDX-License-Identifier: Apache-2.0
//
// test_conv2d_plan.cc - the extents of a low-rank convolution, and its planner: pure arithmetic on them.

#include <algorithm>

#include "conv_cases.h"

namespace lath_test {
namespace {

constexpr lath_conv_form kForms[] = {LATH_SEPARABLE, LATH_POINTWISE};

ConvPlan PlanOf(const ConvShape &shape, bool backward, lath_dtype dtype = LATH_F32, bool channels_last = false) {
  ConvArgs args = ArgsOf(shape, dtype);  // no operand at all: the planner must not look at them
  args.x.s_c = channels_last ? 1 : shape.height * shape.width;
  ConvPlan plan = {};
  EXPECT_EQ(lath_lowrank_conv2d_plan(&args, backward, &plan), LATH_OK) << Describe(dtype, shape);
  return plan;
}

std::vector<ConvShape> SampledShapes() {
  std::vector<ConvShape> shapes;
  Choices choices(1);
  for (int k = 0; k < 500; ++k) shapes.push_back(DrawShape(&choices));
  for (const auto &more : {KernelShapes(), PaddingShapes(), EmptyShapes()})
    shapes.insert(shapes.end(), more.begin(), more.end());
  return shapes;
}

// Rows or columns in which a window of the image, padding included, can stand.
int64_t Positions(int64_t extent, int64_t before, int64_t after, int64_t taps, int64_t stride, int64_t dilation) {
  int64_t count = 0;
  for (int64_t at = -before; at + (taps - 1) * dilation < extent + after; at += stride) ++count;
  return count;
}

TEST(Conv2dSizes, CountThePositionsOfTheWindow) {
  for (const ConvShape &s : SampledShapes()) {
    const ConvArgs args = ArgsOf(s);
    ConvSizes sizes = {};
    ASSERT_EQ(lath_lowrank_conv2d_sizes(&args, &sizes), LATH_OK) << Describe(LATH_F32, s);
    const int64_t rows = Positions(s.height, s.pad_top, s.pad_bottom, s.kernel_h, s.stride_h, s.dilation_h);
    EXPECT_EQ(sizes.out_height, rows) << Describe(LATH_F32, s);
    EXPECT_EQ(sizes.out_width, Positions(s.width, s.pad_left, s.pad_right, s.kernel_w, s.stride_w, s.dilation_w));
    EXPECT_EQ(sizes.p_height, s.separable() ? s.height : rows);
  }
}

bool HasNoWindow(const ConvShape &s) {
  return s.kernel_h * s.kernel_w == 1 && s.pad_top + s.pad_bottom + s.pad_left + s.pad_right == 0;
}

// Without a window only the rows that are met are computed.
int64_t FactoredMacs(const ConvShape &s) {
  const int64_t rows = HasNoWindow(s) ? s.out_height() : s.p_height();
  const int64_t first = s.in / s.groups * s.taps_v() * s.kernel_w * rows;
  const int64_t second = s.out / s.groups * s.taps_u() * s.out_height();
  return s.batch * s.groups * s.rank * s.out_width() * (first + second);
}

// The dense convolution, and forming its weight.
int64_t MergedMacs(const ConvShape &s) { return s.dense_macs() + s.out * s.rank * (s.in / s.groups) * s.kernel_h * s.kernel_w; }

TEST(Conv2dPlan, CountsMultiplyAdds) {
  for (const ConvShape &s : SampledShapes()) {
    for (const lath_dtype dtype : {LATH_F32, LATH_F64, LATH_BF16}) {
      for (const bool channels_last : {false, true}) {
        for (const bool backward : {false, true}) {
          const ConvPlan plan = PlanOf(s, backward, dtype, channels_last);
          const int64_t passes = backward ? 2 : 1;
          EXPECT_EQ(plan.dense_macs, passes * s.dense_macs()) << Describe(dtype, s);
          const int64_t macs = plan.kernel == LATH_CONV_MERGED ? MergedMacs(s) : FactoredMacs(s);
          EXPECT_EQ(plan.macs, passes * macs) << Describe(dtype, s);
        }
      }
    }
  }
}

const ConvShape kThree = ConvShape().Batch(16).Kernel(3, 3).Pad(1);
// At ratio 0.2 of a ResNet for small images.
const ConvShape kResNet[] = {kThree.Channels(64, 38, 64).Image(32, 32),
                             kThree.Channels(128, 76, 128).Image(16, 16),
                             kThree.Channels(256, 153, 256).Image(8, 8),
                             kThree.Channels(512, 307, 512).Image(4, 4),
                             kThree.Channels(512, 307, 512).Image(2, 2),
                             kThree.Channels(64, 38, 128).Image(32, 32).Stride(2, 2),
                             kThree.Channels(256, 153, 512).Image(8, 8).Stride(2, 2)};

TEST(Conv2dPlan, LayersOfAResNetRunOnOwnKernelsAndSaveTwoAndAHalfTimes) {
  for (const ConvShape &shape : kResNet) {
    for (const bool backward : {false, true}) {
      const ConvPlan plan = PlanOf(shape, backward);
      EXPECT_EQ(plan.kernel, LATH_CONV_FUSED) << Describe(LATH_F32, shape);
      EXPECT_NEAR(static_cast<double>(plan.dense_macs) / static_cast<double>(plan.macs), 2.5, 0.05);
    }
  }
}

// Up to a quarter, which the measured constants of the planner may be worth.
TEST(Conv2dPlan, TheDenseWeightIsFormedWhereThatIsCheaper) {
  int merged_chosen = 0;
  for (const ConvShape &shape : SampledShapes()) {
    const double ratio =
        static_cast<double>(MergedMacs(shape)) / static_cast<double>(std::max<int64_t>(FactoredMacs(shape), 1));
    for (const bool channels_last : {false, true}) {
      const bool merged = PlanOf(shape, false, LATH_F32, channels_last).kernel == LATH_CONV_MERGED;
      if (ratio < 0.8 || ratio > 1.25) {
        EXPECT_EQ(merged, ratio < 1 && FactoredMacs(shape) > 0) << Describe(LATH_F32, shape);
      }
      merged_chosen += merged;
    }
  }
  EXPECT_GT(merged_chosen, 100) << "the sample must hold some";
  for (const bool backward : {false, true}) {
    EXPECT_EQ(PlanOf(kThree.Channels(128, 384, 128).Image(16, 16), backward).kernel, LATH_CONV_MERGED);
  }
}

TEST(Conv2dPlan, OneByOneOnChannelsLastImagesIsALinearLayer) {
  const ConvShape shape = ConvShape().Batch(8).Channels(256, 16, 64).Image(56, 56);
  for (const bool backward : {false, true}) {
    for (const ConvShape &one : {shape, shape.Stride(2, 2), shape.Stride(1, 3)}) {
      EXPECT_EQ(PlanOf(one, backward, LATH_F32, true).kernel, LATH_CONV_LINEAR);
      EXPECT_NE(PlanOf(one, backward, LATH_F32, false).kernel, LATH_CONV_LINEAR);
    }
    for (const ConvShape &other : {shape.Pad(0, 1, 0, 0), shape.Kernel(1, 3), shape.Channels(256, 16, 64, 2)}) {
      EXPECT_NE(PlanOf(other, backward, LATH_F32, true).kernel, LATH_CONV_LINEAR) << Describe(LATH_F32, other);
    }
  }
}

// Channels-last images, separable: full vectors of ranks, or half ones where rows of y leave ours half filled.
TEST(Conv2dPlan, RanksThatFillVectorsGoToALibraryOnChannelsLastImages) {
  const auto kernel = [](int64_t rank, int64_t size, bool backward, bool channels_last) {
    const ConvShape shape = ConvShape().Batch(16).Channels(128, rank, 128).Image(size, size).Kernel(3, 3).Pad(1);
    return PlanOf(shape, backward, LATH_F32, channels_last).kernel;
  };
  for (const bool backward : {false, true}) {
    for (const int64_t rank : {16, 48}) EXPECT_EQ(kernel(rank, 14, backward, true), LATH_CONV_PAIR);
    EXPECT_EQ(kernel(24, 14, backward, true), LATH_CONV_PAIR);
    EXPECT_EQ(kernel(24, 16, backward, true), LATH_CONV_FUSED);
    EXPECT_EQ(kernel(25, 14, backward, true), LATH_CONV_FUSED);
    EXPECT_EQ(kernel(32, 32, backward, true), backward ? LATH_CONV_FUSED : LATH_CONV_PAIR);
    for (const int64_t rank : {16, 24}) EXPECT_EQ(kernel(rank, 14, backward, false), LATH_CONV_FUSED);
  }
}

// Pointwise, forward: of many channels any rank of more than half a vector.
TEST(Conv2dPlan, ManyChannelsGoToALibraryOnChannelsLastImages) {
  const auto kernel = [](int64_t channels, int64_t rank, bool backward, bool channels_last) {
    const ConvShape shape =
        ConvShape().Batch(16).Channels(channels, rank, 128).Image(14, 14).Kernel(3, 3).Pad(1).Form(LATH_POINTWISE);
    return PlanOf(shape, backward, LATH_F32, channels_last).kernel;
  };
  for (const int64_t rank : {9, 24, 59}) {
    EXPECT_EQ(kernel(128, rank, false, true), LATH_CONV_PAIR);
    EXPECT_EQ(kernel(127, rank, false, true), LATH_CONV_FUSED);
    EXPECT_EQ(kernel(128, rank, true, true), LATH_CONV_FUSED);
    EXPECT_EQ(kernel(128, rank, false, false), LATH_CONV_FUSED);
  }
  EXPECT_EQ(kernel(128, 8, false, true), LATH_CONV_FUSED);
}

TEST(Conv2dPlan, Bf16GoesToALibraryOnlyWhereTheProcessorMultipliesIt) {
  for (const ConvShape &shape : kResNet) {
    const bool pair = PlanOf(shape, false, LATH_BF16).kernel == LATH_CONV_PAIR;
    EXPECT_EQ(pair, lath_cpu_multiplies_bf16() == 1) << Describe(LATH_BF16, shape);
  }
}

TEST(Conv2dPlan, DoublePrecisionTakesThePlainLoops) {
  for (const ConvShape &shape : SampledShapes()) {
    for (const bool backward : {false, true}) EXPECT_EQ(PlanOf(shape, backward, LATH_F64).kernel, LATH_CONV_PLAIN);
  }
}

TEST(Conv2dPlan, OtherTypesNeverTakeThePlainLoops) {
  for (const ConvShape &shape : WidthShapes()) {
    for (const lath_dtype dtype : {LATH_F32, LATH_BF16}) {
      for (const bool backward : {false, true}) EXPECT_NE(PlanOf(shape, backward, dtype).kernel, LATH_CONV_PLAIN);
    }
  }
}

TEST(Conv2dPlan, TheIntermediateIsSavedWhereRecomputingItIsLong) {
  for (const lath_conv_form form : kForms) {
    bool saved = false;
    for (int64_t in = 1; in <= 1024; in = in < 64 ? in + 1 : in * 2) {
      const ConvShape shape = ConvShape().Form(form).Batch(4).Channels(in, 16, 64).Image(8, 8).Kernel(3, 3).Pad(1);
      const ConvPlan plan = PlanOf(shape, false);
      ASSERT_TRUE(plan.save_intermediate == 0 || plan.save_intermediate == 1);
      if (plan.kernel == LATH_CONV_MERGED || plan.kernel == LATH_CONV_PAIR) continue;  // the library decides
      EXPECT_TRUE(plan.save_intermediate || !saved) << "a longer sum is no cheaper to compute again, in " << in;
      saved = plan.save_intermediate;
    }
    EXPECT_TRUE(saved);
  }
}

TEST(Conv2dPlan, LargeShapesThatFitHaveExactCounts) {
  const ConvShape shape = ConvShape().Batch(1 << 10).Channels(1 << 10, 1 << 6, 1 << 10).Image(1 << 8, 1 << 8).Kernel(2, 2);
  const int64_t pixels = int64_t{255} * 255, all = int64_t{1} << 10;
  EXPECT_EQ(PlanOf(shape, true).dense_macs, 2 * all * all * all * 4 * pixels);
}

}  // namespace
}  // namespace lath_test
