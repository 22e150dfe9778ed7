// SPDX-License-Identifier: Apache-2.0
//
// test_conv2d_backward.cc - the five gradients of the low-rank convolution: all masks, p saved or not, both forms.

#include <cmath>
#include <limits>

#include "conv_cases.h"

namespace lath_test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr lath_conv_form kForms[] = {LATH_SEPARABLE, LATH_POINTWISE};
constexpr lath_dtype kDtypes[] = {LATH_F32, LATH_F64, LATH_BF16};

// p as the forward call would have left it.
Operand SavedIntermediate(const ConvInputs &inputs) {
  const ConvShape &s = inputs.shape;
  Operand p(AccumulatorType(inputs.dtype), s.batch * s.groups * s.rank, s.p_height() * s.out_width());
  p.Fill(OracleOf(inputs).P());
  return p;
}

class Conv2dBackward : public PerPath {
 protected:
  CallOptions Options() const {
    CallOptions options;
    options.ref = ref();
    return options;
  }

  testing::AssertionResult ExactBackward(const ConvInputs &inputs, const Gradients &want, const CallOptions &options,
                                         unsigned gradients, const Operand *p) {
    const testing::AssertionResult result = ExactGradients(RunBackward(inputs, options, gradients, p), want, gradients);
    if (result) return result;
    return testing::AssertionFailure() << Describe(inputs.dtype, inputs.shape) << ", inner bias " << inputs.has_inner_bias
                                       << ", gradients " << gradients << ", saved p " << (p != nullptr) << ": "
                                       << result.message();
  }

  testing::AssertionResult ExactBackward(const ConvInputs &inputs, const CallOptions &options, unsigned gradients, bool saved) {
    const Operand p = SavedIntermediate(inputs);
    return ExactBackward(inputs, OracleOf(inputs).AllGradients(), options, gradients, saved ? &p : nullptr);
  }

  // Integers: exact for every order of additions. All but the shape varies with the seed.
  void CheckExactly(const ConvShape &shape, uint32_t seed) {
    Choices choices(seed);
    const lath_dtype dtype = choices.OneIn(8) ? LATH_F64 : choices.OneIn(3) ? LATH_BF16 : LATH_F32;
    LowrankInputs::Layouts layouts;
    layouts.x = DrawImages(&choices, true);
    layouts.dy = DrawImages(&choices, true);
    for (Layout *layout : {&layouts.v, &layouts.u, &layouts.biases}) layout->misalignment = choices.Below(3);
    CallOptions options = Options();
    options.output = DrawImages(&choices, false);
    options.contiguous.misalignment = choices.Below(3);
    options.workspace_misalignment = choices.OneIn(2) ? lath_dtype_size(dtype) : 0;
    const unsigned gradients = choices.OneIn(2) ? kAllGradients : static_cast<unsigned>(choices.Below(32));
    const ConvInputs inputs(dtype, shape, choices.OneIn(2), choices.OneIn(2), Numbers::kIntegers, seed, layouts);
    EXPECT_TRUE(ExactBackward(inputs, options, gradients, choices.OneIn(2)))
        << "x " << static_cast<int>(layouts.x.images) << ", dy " << static_cast<int>(layouts.dy.images) << ", dx "
        << static_cast<int>(options.output.images);
  }

  void CheckAll(const std::vector<ConvShape> &shapes, uint32_t seed) {
    Choices choices(seed);
    for (const ConvShape &shape : shapes) CheckExactly(shape, choices.Next());
  }
};

TEST_P(Conv2dBackward, IsExactForEveryKernelStrideAndDilation) { CheckAll(KernelShapes(), 1); }
TEST_P(Conv2dBackward, IsExactForEveryImageSize) { CheckAll(ImageShapes(), 2); }
TEST_P(Conv2dBackward, IsExactAtEveryRankAndChannelCount) { CheckAll(WidthShapes(), 3); }
TEST_P(Conv2dBackward, IsExactWhereAnExtentNeedsSeveralBlocks) { CheckAll(BlockShapes(), 4); }
TEST_P(Conv2dBackward, IsExactWhereWindowsLieInThePadding) { CheckAll(PaddingShapes(), 5); }

// Pixels whose channels are adjacent are the rows of a matrix.
TEST_P(Conv2dBackward, OneByOneIsExactOnChannelsLastImages) {
  Choices choices(10);
  for (const ConvShape &shape : PixelShapes()) {
    LowrankInputs::Layouts layouts;
    CallOptions options = Options();
    for (Layout *layout : {&layouts.x, &layouts.dy, &options.output}) {
      layout->images = choices.OneIn(3) ? Images::kSomeChannels : Images::kChannelsLast;
    }
    const bool saved = choices.OneIn(2);
    const ConvInputs inputs(choices.OneIn(3) ? LATH_BF16 : LATH_F32, shape, choices.OneIn(2), choices.OneIn(2),
                            Numbers::kIntegers, choices.Next(), layouts);
    EXPECT_TRUE(ExactBackward(inputs, options, kAllGradients, saved));
  }
}

TEST_P(Conv2dBackward, IsExactForShapesAtRandom) {
  Choices choices(6);
  for (int repeat = 0; repeat < 200; ++repeat) CheckExactly(DrawShape(&choices), choices.Next());
}

const ConvShape kOrdinary = ConvShape().Batch(2).Channels(6, 5, 8, 2).Image(9, 19).Kernel(3, 3).Pad(1);
const ConvShape kSmallImages = ConvShape().Batch(9).Channels(17, 3, 16).Image(4, 4).Kernel(3, 3).Pad(1);
const ConvShape kStrided = ConvShape().Batch(2).Channels(5, 9, 33).Image(11, 8).Kernel(3, 2).Pad(1).Stride(2, 1);
const ConvShape kPixelwise = ConvShape().Batch(2).Channels(20, 7, 24).Image(5, 7);

TEST_P(Conv2dBackward, EveryLayoutGivesTheSame) {
  for (const ConvShape &one : {kOrdinary, kSmallImages, kPixelwise}) {
    for (const lath_conv_form form : kForms) {
      for (int of_inputs = 0; of_inputs <= static_cast<int>(Images::kOneValue); ++of_inputs) {
        for (int of_dx = 0; of_dx <= static_cast<int>(Images::kEveryOther); ++of_dx) {
          LowrankInputs::Layouts layouts;
          layouts.x.images = layouts.dy.images = static_cast<Images>(of_inputs);
          CallOptions options = Options();
          options.output.images = static_cast<Images>(of_dx);
          layouts.x.gap = layouts.dy.gap = options.output.gap = of_dx % 2 ? 3 : 0;
          const lath_dtype dtype = (of_inputs + of_dx) % 3 ? LATH_F32 : LATH_BF16;
          const ConvInputs inputs(dtype, one.Form(form), true, true, Numbers::kIntegers, 7, layouts);
          EXPECT_TRUE(ExactBackward(inputs, options, kAllGradients, of_dx % 2 == 0)) << of_inputs << ", dx " << of_dx;
        }
      }
    }
  }
}

TEST_P(Conv2dBackward, EveryMaskWritesExactlyWhatWasAskedFor) {
  for (const ConvShape &one : {kOrdinary, kSmallImages, kStrided, kPixelwise}) {
    for (const lath_conv_form form : kForms) {
      for (const bool inner_bias : {false, true}) {
        const ConvInputs inputs(LATH_F32, one.Form(form), inner_bias, true, Numbers::kIntegers, 31);
        const Gradients want = OracleOf(inputs).AllGradients();
        const Operand p = SavedIntermediate(inputs);
        for (unsigned gradients = 0; gradients <= kAllGradients; ++gradients) {
          EXPECT_TRUE(ExactBackward(inputs, want, Options(), gradients, nullptr));
          EXPECT_TRUE(ExactBackward(inputs, want, Options(), gradients, &p));
        }
      }
    }
  }
}

TEST_P(Conv2dBackward, SkippingOneGradientLeavesTheBitsOfTheOthers) {
  for (const ConvShape &one : {kOrdinary, kSmallImages, kStrided, kPixelwise}) {
    for (const lath_conv_form form : kForms) {
      const ConvInputs inputs(LATH_F32, one.Form(form), true, true, Numbers::kUniform, 32);
      const BackwardRun all = RunBackward(inputs, Options());
      for (const unsigned skipped : {kDx, kDv, kDu, kDInnerBias, kDBias}) {
        const BackwardRun some = RunBackward(inputs, Options(), kAllGradients & ~skipped);
        EXPECT_TRUE(SameGradients(some, all, kAllGradients & ~skipped))
            << Describe(LATH_F32, inputs.shape) << " without " << skipped;
      }
    }
  }
}

TEST_P(Conv2dBackward, ASavedIntermediateGivesTheRecomputedGradients) {
  for (const lath_dtype dtype : kDtypes) {
    for (const ConvShape &one : {kOrdinary, kSmallImages, kStrided, kPixelwise}) {
      for (const lath_conv_form form : kForms) {
        const ConvInputs inputs(dtype, one.Form(form), true, true, Numbers::kUniform, 33);
        const ForwardRun forward = RunForward(inputs, Options(), true);
        ASSERT_EQ(forward.status, LATH_OK);
        const BackwardRun run = RunBackward(inputs, Options(), kAllGradients, &forward.p);
        EXPECT_TRUE(GradientsWithin(run, OracleOf(inputs), kAllGradients)) << Describe(dtype, inputs.shape);
      }
    }
  }
}

TEST_P(Conv2dBackward, ZeroExtentsGiveZeroGradients) {
  for (const ConvShape &shape : EmptyShapes()) {
    for (const lath_dtype dtype : kDtypes) {
      for (const bool inner_bias : {false, true}) {
        const ConvInputs inputs(dtype, shape, inner_bias, true, Numbers::kIntegers, 3);
        EXPECT_TRUE(ExactBackward(inputs, Options(), kAllGradients, false));
        EXPECT_TRUE(ExactBackward(inputs, Options(), kAllGradients, true));
      }
    }
  }
}

TEST_P(Conv2dBackward, RealNumbersStayWithinTheBound) {
  Choices choices(8);
  std::vector<ConvShape> shapes = BlockShapes();
  for (int repeat = 0; repeat < 60; ++repeat) shapes.push_back(DrawShape(&choices));
  for (size_t k = 0; k < shapes.size(); ++k) {
    const lath_dtype dtype = kDtypes[k % 3];
    const ConvInputs inputs(dtype, shapes[k], choices.OneIn(2), true, Numbers::kUniform, choices.Next());
    EXPECT_TRUE(GradientsWithin(RunBackward(inputs, Options()), OracleOf(inputs), kAllGradients)) << Describe(dtype, shapes[k]);
  }
}

// ---- memory -------------------------------------------------------------------------------------------------------------

// Contiguous images without gaps are read and written in place, so half of them are.
TEST_P(Conv2dBackward, TouchesNothingBeyondItsOperands) {
  Choices choices(9);
  std::vector<ConvShape> shapes;
  for (int repeat = 0; repeat < 80; ++repeat) shapes.push_back(DrawShape(&choices));
  for (const ConvShape &shape : ImageShapes()) {
    if (choices.OneIn(2)) shapes.push_back(shape);
  }
  for (const ConvShape &shape : shapes) {
    const lath_dtype dtype = choices.OneIn(3) ? LATH_BF16 : LATH_F32;
    LowrankInputs::Layouts layouts;
    CallOptions options = Options();
    if (choices.OneIn(2)) {
      layouts.x = DrawImages(&choices, true);
      layouts.dy = DrawImages(&choices, true);
      options.output = DrawImages(&choices, false);
    }
    const Place place = choices.OneIn(3) ? Place::kPageStart : Place::kPageEnd;
    for (Layout *layout :
         {&layouts.x, &layouts.v, &layouts.u, &layouts.biases, &layouts.dy, &options.output, &options.contiguous}) {
      layout->misalignment = 0;
      layout->place = place;
    }
    const ConvInputs inputs(dtype, shape, true, true, Numbers::kIntegers, choices.Next(), layouts);
    EXPECT_TRUE(ExactBackward(inputs, options, kAllGradients, choices.OneIn(2)));
  }
}

TEST_P(Conv2dBackward, InputsAreOnlyRead) {
  for (const lath_conv_form form : kForms) {
    const ConvInputs inputs(LATH_F32, kOrdinary.Form(form), true, true, Numbers::kUniform, 14);
    const Operand p = SavedIntermediate(inputs);
    const Operand *const operands[] = {&inputs.x, &inputs.v, &inputs.u, &inputs.inner_bias, &inputs.dy, &p};
    std::vector<std::vector<unsigned char>> before;
    for (const Operand *operand : operands) before.push_back(operand->Bytes());
    for (const Operand *saved : {static_cast<const Operand *>(nullptr), &p}) {
      ASSERT_EQ(RunBackward(inputs, Options(), kAllGradients, saved).status, LATH_OK);
      for (size_t k = 0; k < before.size(); ++k) EXPECT_EQ(operands[k]->Bytes(), before[k]) << k;
    }
  }
}

TEST_P(Conv2dBackward, RunsAgreeBitForBitWhereverTheBuffersLie) {
  for (const lath_dtype dtype : kDtypes) {
    for (const ConvShape &one : {kOrdinary, kSmallImages, kStrided, kPixelwise}) {
      for (const lath_conv_form form : kForms) {
        const ConvInputs inputs(dtype, one.Form(form), true, true, Numbers::kUniform, 15);
        LowrankInputs::Layouts layouts;
        for (Layout *layout : {&layouts.x, &layouts.v, &layouts.u, &layouts.dy}) layout->misalignment = 1;
        const ConvInputs moved(dtype, one.Form(form), true, true, Numbers::kUniform, 15, layouts);
        const BackwardRun first = RunBackward(inputs, Options());
        CallOptions options = Options();
        options.workspace_misalignment = lath_dtype_size(dtype);
        options.output.misalignment = options.contiguous.misalignment = 1;
        EXPECT_TRUE(SameGradients(first, RunBackward(moved, options))) << Describe(dtype, inputs.shape);
      }
    }
  }
}

// ---- special values -----------------------------------------------------------------------------------------------------

TEST_P(Conv2dBackward, NanInDyReachesThePixelsOfItsWindow) {
  for (const ConvShape &one : {kOrdinary, kSmallImages, kStrided, kOrdinary.Dilation(2, 2), kPixelwise}) {
    for (const lath_conv_form form : kForms) {
      for (const lath_dtype dtype : kDtypes) {
        ConvInputs inputs(dtype, one.Form(form), true, true, Numbers::kIntegers, 11);
        inputs.dy.Set({0, one.out - 1, 0, 0}, kNaN);
        inputs.dy.Set({one.batch - 1, 1, one.out_height() / 2, one.out_width() - 1}, kNaN);
        EXPECT_TRUE(ExactBackward(inputs, Options(), kDx | kDBias, false));
      }
    }
  }
}

TEST_P(Conv2dBackward, NanInXReachesTheFactorsOfItsGroupAndNotDx) {
  for (const lath_conv_form form : kForms) {
    for (const bool saved : {false, true}) {
      ConvInputs inputs(LATH_F32, kOrdinary.Form(form), true, true, Numbers::kIntegers, 12);
      inputs.x.Set({1, 4, 4, 9}, kNaN);
      EXPECT_TRUE(ExactBackward(inputs, Options(), kAllGradients, saved));
    }
  }
}

// Without padding, because nothing is said about zeros of the padding times infinity.
TEST_P(Conv2dBackward, InfinityIsNotTurnedIntoNanByUnusedLanes) {
  for (const lath_conv_form form : kForms) {
    for (const int64_t rank : {1, 5, 15, 17}) {
      for (const int64_t width : {3, 9, 35}) {
        const ConvShape shape = ConvShape().Form(form).Batch(2).Channels(3, rank, 7).Image(6, width).Kernel(3, 3);
        ConvInputs inputs(LATH_F32, shape, false, false, Numbers::kIntegers, 13);
        inputs.x.Fill(Values(static_cast<size_t>(inputs.x.size()), 1.0));
        inputs.v.Fill(Values(static_cast<size_t>(inputs.v.size()), 2.0));
        inputs.u.Fill(Values(static_cast<size_t>(inputs.u.size()), 1.0));
        inputs.dy.Set({1, 6, shape.out_height() - 1, shape.out_width() - 1}, kInfinity);
        EXPECT_TRUE(ExactBackward(inputs, Options(), kAllGradients, false));
      }
    }
  }
}

TEST_P(Conv2dBackward, Bf16GradientsAreRoundedOnce) {
  // dy u = 257 and 255 need 9 bits: had dp been rounded to bf16, dx = 257 - 255 would not be 2.
  for (const lath_conv_form form : kForms) {
    for (const int64_t width : {1, 40}) {
      const ConvShape shape = ConvShape().Form(form).Channels(1, 2, 2).Image(3, width);
      ConvInputs inputs(LATH_BF16, shape, false, false, Numbers::kIntegers, 14);
      Values dy(static_cast<size_t>(3 * width), 256.0);
      dy.insert(dy.end(), static_cast<size_t>(3 * width), 1.0);
      inputs.dy.Fill(dy);
      inputs.u.Fill({1, 1, 1, -1});
      inputs.v.Fill({1, -1});
      EXPECT_TRUE(Exactly(RunBackward(inputs, Options(), kDx).dx, Values(static_cast<size_t>(3 * width), 2.0)));
    }
  }
}

LATH_EVERY_PATH(Conv2dBackward);

}  // namespace
}  // namespace lath_test
