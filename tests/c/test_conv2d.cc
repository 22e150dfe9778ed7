// SPDX-License-Identifier: Apache-2.0
//
// test_conv2d.cc - the low-rank convolution in both forms, on every path: all kernels, image sizes, layouts and block edges.

#include <cmath>
#include <limits>

#include "conv_cases.h"

namespace lath_test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr lath_conv_form kForms[] = {LATH_SEPARABLE, LATH_POINTWISE};
constexpr lath_dtype kDtypes[] = {LATH_F32, LATH_F64, LATH_BF16};

testing::AssertionResult ExactForward(const ConvInputs &inputs, const ConvOracle &oracle, const CallOptions &options,
                                      bool with_p = false) {
  const ForwardRun run = RunForward(inputs, options, with_p);
  testing::AssertionResult result = Completed(run);
  if (result && !with_p && !run.p.Untouched()) result = testing::AssertionFailure() << "p was written and not asked for";
  if (result) result = Exactly(run.y, oracle.Y());
  if (result && with_p) {
    result = Exactly(run.p, oracle.P());
    if (!result) result = testing::AssertionFailure() << "p: " << result.message();
  }
  if (result) return result;
  return testing::AssertionFailure() << Describe(inputs.dtype, inputs.shape) << ", biases " << inputs.has_inner_bias
                                     << inputs.has_bias << ": " << result.message();
}

class Conv2d : public PerPath {
 protected:
  CallOptions Options() const {
    CallOptions options;
    options.ref = ref();
    return options;
  }

  // Integers: exact for every order of additions. All but the shape varies with the seed.
  void CheckExactly(const ConvShape &shape, uint32_t seed) {
    Choices choices(seed);
    const lath_dtype dtype = choices.OneIn(8) ? LATH_F64 : choices.OneIn(3) ? LATH_BF16 : LATH_F32;
    LowrankInputs::Layouts layouts;
    layouts.x = DrawImages(&choices, true);
    for (Layout *layout : {&layouts.v, &layouts.u, &layouts.biases}) layout->misalignment = choices.Below(3);
    CallOptions options = Options();
    options.output = DrawImages(&choices, false);
    options.contiguous.misalignment = choices.Below(3);
    options.workspace_misalignment = choices.OneIn(2) ? lath_dtype_size(dtype) : 0;
    const ConvInputs inputs(dtype, shape, choices.OneIn(2), choices.OneIn(2), Numbers::kIntegers, seed, layouts);
    EXPECT_TRUE(ExactForward(inputs, OracleOf(inputs), options, choices.OneIn(2)))
        << "x " << static_cast<int>(layouts.x.images) << ", y " << static_cast<int>(options.output.images);
  }

  void CheckAll(const std::vector<ConvShape> &shapes, uint32_t seed) {
    Choices choices(seed);
    for (const ConvShape &shape : shapes) CheckExactly(shape, choices.Next());
  }
};

TEST_P(Conv2d, IsExactForEveryKernelStrideAndDilation) { CheckAll(KernelShapes(), 1); }
TEST_P(Conv2d, IsExactForEveryImageSize) { CheckAll(ImageShapes(), 2); }
TEST_P(Conv2d, IsExactAtEveryRankAndChannelCount) { CheckAll(WidthShapes(), 3); }
TEST_P(Conv2d, IsExactWhereAnExtentNeedsSeveralBlocks) { CheckAll(BlockShapes(), 4); }
TEST_P(Conv2d, IsExactWhereWindowsLieInThePadding) { CheckAll(PaddingShapes(), 5); }

// Pixels whose channels are adjacent are the rows of a matrix.
TEST_P(Conv2d, OneByOneIsExactOnChannelsLastImages) {
  Choices choices(10);
  for (const ConvShape &shape : PixelShapes()) {
    LowrankInputs::Layouts layouts;
    CallOptions options = Options();
    for (Layout *layout : {&layouts.x, &options.output}) {
      layout->images = choices.OneIn(3) ? Images::kSomeChannels : Images::kChannelsLast;
    }
    const bool saved = choices.OneIn(2);
    const ConvInputs inputs(choices.OneIn(3) ? LATH_BF16 : LATH_F32, shape, choices.OneIn(2), choices.OneIn(2),
                            Numbers::kIntegers, choices.Next(), layouts);
    EXPECT_TRUE(ExactForward(inputs, OracleOf(inputs), options, saved));
  }
}

TEST_P(Conv2d, IsExactForShapesAtRandom) {
  Choices choices(6);
  for (int repeat = 0; repeat < 200; ++repeat) CheckExactly(DrawShape(&choices), choices.Next());
}

TEST_P(Conv2d, EveryLayoutOfXAndYGivesTheSame) {
  const ConvShape base = ConvShape().Kernel(3, 3).Pad(1);
  for (const ConvShape &one : {base.Batch(2).Channels(4, 5, 6).Image(9, 10), base.Batch(9).Channels(17, 3, 16).Image(4, 4),
                               base.Kernel(1, 1).Pad(0).Batch(2).Channels(6, 8, 9).Image(5, 7)}) {
    for (const lath_conv_form form : kForms) {
      for (int of_x = 0; of_x <= static_cast<int>(Images::kOneValue); ++of_x) {
        for (int of_y = 0; of_y <= static_cast<int>(Images::kEveryOther); ++of_y) {
          for (const int64_t gap : {0, 3}) {
            LowrankInputs::Layouts layouts;
            layouts.x.images = static_cast<Images>(of_x);
            CallOptions options = Options();
            options.output.images = static_cast<Images>(of_y);
            layouts.x.gap = options.output.gap = gap;
            const lath_dtype dtype = (of_x + of_y) % 3 ? LATH_F32 : LATH_BF16;
            const ConvInputs inputs(dtype, one.Form(form), true, true, Numbers::kIntegers, 7, layouts);
            EXPECT_TRUE(ExactForward(inputs, OracleOf(inputs), options)) << "x " << of_x << ", y " << of_y << ", gap " << gap;
          }
        }
      }
    }
  }
}

TEST_P(Conv2d, ZeroExtentsGiveEmptySums) {
  for (const ConvShape &shape : EmptyShapes()) {
    for (const lath_dtype dtype : kDtypes) {
      for (int biases = 0; biases < 4; ++biases) {
        const ConvInputs inputs(dtype, shape, biases & 1, biases & 2, Numbers::kIntegers, 3);
        EXPECT_TRUE(ExactForward(inputs, OracleOf(inputs), Options(), true));
      }
    }
  }
}

TEST_P(Conv2d, RealNumbersStayWithinTheBound) {
  Choices choices(8);
  std::vector<ConvShape> shapes = BlockShapes();
  for (int repeat = 0; repeat < 60; ++repeat) shapes.push_back(DrawShape(&choices));
  for (size_t k = 0; k < shapes.size(); ++k) {
    const lath_dtype dtype = kDtypes[k % 3];
    const ConvInputs inputs(dtype, shapes[k], choices.OneIn(2), choices.OneIn(2), Numbers::kUniform, choices.Next());
    const ForwardRun run = RunForward(inputs, Options(), true);
    ASSERT_EQ(run.status, LATH_OK);
    const ConvOracle oracle = OracleOf(inputs), magnitudes = oracle.OfMagnitudes();
    const double factor = oracle.ErrorFactor(dtype);
    EXPECT_TRUE(Within(run.y, oracle.Y(), Scaled(magnitudes.Y(), factor))) << Describe(dtype, shapes[k]);
    EXPECT_TRUE(Within(run.p, oracle.P(), Scaled(magnitudes.P(), factor))) << "p of " << Describe(dtype, shapes[k]);
  }
}

// ---- memory -------------------------------------------------------------------------------------------------------------

// Contiguous images without gaps are read and written in place, so half of them are.
TEST_P(Conv2d, TouchesNothingBeyondItsOperands) {
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
      options.output = DrawImages(&choices, false);
    }
    const Place place = choices.OneIn(3) ? Place::kPageStart : Place::kPageEnd;
    for (Layout *layout : {&layouts.x, &layouts.v, &layouts.u, &layouts.biases, &options.output, &options.contiguous}) {
      layout->misalignment = 0;
      layout->place = place;
    }
    const ConvInputs inputs(dtype, shape, true, true, Numbers::kIntegers, choices.Next(), layouts);
    EXPECT_TRUE(ExactForward(inputs, OracleOf(inputs), options, choices.OneIn(2)));
  }
}

TEST_P(Conv2d, InputsAreOnlyRead) {
  for (const lath_conv_form form : kForms) {
    const ConvShape shape = ConvShape().Form(form).Batch(3).Channels(5, 4, 6).Image(9, 8).Kernel(3, 3).Pad(1);
    const ConvInputs inputs(LATH_F32, shape, true, true, Numbers::kUniform, 14);
    const Operand *const operands[] = {&inputs.x, &inputs.v, &inputs.u, &inputs.inner_bias, &inputs.bias};
    std::vector<std::vector<unsigned char>> before;
    for (const Operand *operand : operands) before.push_back(operand->Bytes());
    ASSERT_EQ(RunForward(inputs, Options(), true).status, LATH_OK);
    for (size_t k = 0; k < before.size(); ++k) EXPECT_EQ(operands[k]->Bytes(), before[k]) << k;
  }
}

TEST_P(Conv2d, RunsAgreeBitForBitWhereverTheBuffersLie) {
  for (const lath_dtype dtype : kDtypes) {
    for (const ConvShape &shape : {ConvShape().Batch(2).Channels(30, 20, 33).Image(13, 17).Kernel(3, 3).Pad(1),
                                   ConvShape().Batch(11).Channels(30, 20, 33).Image(4, 4).Kernel(3, 3).Pad(1)}) {
      for (const lath_conv_form form : kForms) {
        const ConvInputs inputs(dtype, shape.Form(form), true, true, Numbers::kUniform, 15);
        LowrankInputs::Layouts layouts;
        for (Layout *layout : {&layouts.x, &layouts.v, &layouts.u, &layouts.biases}) layout->misalignment = 1;
        const ConvInputs moved(dtype, shape.Form(form), true, true, Numbers::kUniform, 15, layouts);
        CallOptions options = Options();
        const ForwardRun first = RunForward(inputs, options);
        ASSERT_EQ(first.status, LATH_OK);
        EXPECT_TRUE(SameBits(first.y, RunForward(inputs, options).y));
        options.workspace_misalignment = lath_dtype_size(dtype);
        options.output.misalignment = 1;
        EXPECT_TRUE(SameBits(first.y, RunForward(moved, options).y)) << Describe(dtype, shape.Form(form));
      }
    }
  }
}

// ---- special values -----------------------------------------------------------------------------------------------------

TEST_P(Conv2d, NanInAPixelReachesTheWindowsThatMeetIt) {
  const ConvShape base = ConvShape().Channels(6, 5, 8, 2).Kernel(3, 3).Pad(1);
  for (const ConvShape &one : {base.Batch(2).Image(11, 20), base.Batch(5).Image(4, 4), base.Batch(2).Image(9, 9).Stride(2, 3),
                               base.Batch(2).Image(12, 9).Dilation(2, 2), base.Batch(3).Image(3, 5).Kernel(1, 1).Pad(0)}) {
    for (const lath_conv_form form : kForms) {
      for (const lath_dtype dtype : kDtypes) {
        ConvInputs inputs(dtype, one.Form(form), true, true, Numbers::kIntegers, 11);
        inputs.x.Set({0, 5, 0, 0}, kNaN);
        inputs.x.Set({one.batch - 1, 1, one.height / 2, one.width - 1}, kNaN);
        EXPECT_TRUE(ExactForward(inputs, OracleOf(inputs), Options(), true));
      }
    }
  }
}

// Without padding, because nothing is said about zeros of the padding times NaN.
TEST_P(Conv2d, NanInAWeightStaysInItsChannelOrGroup) {
  for (const lath_conv_form form : kForms) {
    for (const int64_t width : {5, 40}) {
      const ConvShape shape = ConvShape().Form(form).Batch(2).Channels(6, 5, 8, 2).Image(7, width).Kernel(3, 3);
      ConvInputs of_u(LATH_F32, shape, true, true, Numbers::kIntegers, 12),
          of_v = ConvInputs(LATH_F32, shape, true, true, Numbers::kIntegers, 12);
      of_u.u.Set(3, 1, kNaN);
      of_u.bias.Set(0, 7, kNaN);
      EXPECT_TRUE(ExactForward(of_u, OracleOf(of_u), Options()));
      of_v.v.Set(6, 2, kNaN);
      EXPECT_TRUE(ExactForward(of_v, OracleOf(of_v), Options(), true));
    }
  }
}

TEST_P(Conv2d, InfinityIsNotTurnedIntoNanByPadding) {
  for (const lath_conv_form form : kForms) {
    for (const int64_t rank : {1, 5, 15, 17}) {
      for (const auto &image : {std::pair<int, int>{1, 1}, {3, 5}, {9, 33}}) {
        const ConvShape shape =
            ConvShape().Form(form).Batch(2).Channels(3, rank, 7).Image(image.first, image.second).Kernel(3, 3).Pad(1);
        ConvInputs inputs(LATH_F32, shape, false, false, Numbers::kIntegers, 13);
        inputs.v.Fill(Values(static_cast<size_t>(inputs.v.size()), 2.0));
        inputs.u.Fill(Values(static_cast<size_t>(inputs.u.size()), 1.0));
        inputs.x.Set({1, 2, image.first - 1, image.second - 1}, kInfinity);
        EXPECT_TRUE(ExactForward(inputs, OracleOf(inputs), Options(), true));
      }
    }
  }
}

TEST_P(Conv2d, Bf16IsRoundedOnceAfterTheSecondStage) {
  // p = 257 and 255 need 9 bits: had the intermediate been rounded to bf16, 257 - 255 would not be 2.
  for (const lath_conv_form form : kForms) {
    for (const int64_t width : {1, 20}) {
      const ConvShape shape = ConvShape().Form(form).Batch(3).Channels(2, 2, 1).Image(4, width);
      ConvInputs inputs(LATH_BF16, shape, false, false, Numbers::kIntegers, 14);
      Values x;
      for (int64_t n = 0; n < shape.batch; ++n) {
        for (const double value : {256, 1}) x.insert(x.end(), static_cast<size_t>(4 * width), value);
      }
      inputs.x.Fill(x);
      inputs.v.Fill({1, 1, 1, -1});
      inputs.u.Fill({1, -1});
      EXPECT_TRUE(Exactly(RunForward(inputs, Options()).y, Values(static_cast<size_t>(3 * 4 * width), 2.0)));
    }
  }
}

// ---- invariants -----------------------------------------------------------------------------------------------------------

const ConvShape kOrdinary = ConvShape().Batch(2).Channels(6, 5, 7).Image(9, 19).Kernel(3, 3).Pad(1);

// Rows of v and columns of u for more ranks: new rank k is old rank from[k], or zero for -1.
ConvInputs WithRanks(const ConvInputs &inputs, const std::vector<int64_t> &from) {
  const ConvShape &s = inputs.shape;
  const int64_t rank = static_cast<int64_t>(from.size()), taps = s.taps_u();
  ConvInputs wider(inputs.dtype, s.Channels(s.in, rank, s.out), false, inputs.has_bias, Numbers::kIntegers, 1);
  wider.x.Fill(inputs.x.Read());
  wider.bias.Fill(inputs.bias.Read());
  wider.v.Fill(Values(static_cast<size_t>(wider.v.size()), 0.0));
  wider.u.Fill(Values(static_cast<size_t>(wider.u.size()), 0.0));
  for (int64_t q = 0; q < rank; ++q) {
    const int64_t old = from[static_cast<size_t>(q)];
    for (int64_t k = 0; old >= 0 && k < wider.v.cols(); ++k) wider.v.Set(q, k, inputs.v.Get(old, k));
    for (int64_t o = 0; o < s.out; ++o) {
      for (int64_t i = 0; old >= 0 && i < taps; ++i) wider.u.Set(o, q * taps + i, inputs.u.Get(o, old * taps + i));
    }
  }
  return wider;
}

TEST_P(Conv2d, RanksOfZerosAndTheOrderOfRanksChangeNothing) {
  for (const lath_conv_form form : kForms) {
    const ConvInputs inputs(LATH_F32, kOrdinary.Form(form), false, true, Numbers::kIntegers, 21);
    const ForwardRun run = RunForward(inputs, Options());
    ASSERT_EQ(run.status, LATH_OK);
    EXPECT_TRUE(Exactly(RunForward(WithRanks(inputs, {0, 1, 2, 3, 4, -1, -1, -1}), Options()).y, run.y.Read()));
    EXPECT_TRUE(Exactly(RunForward(WithRanks(inputs, {-1, 3, 4, -1, 0, 2, 1}), Options()).y, run.y.Read()));
  }
}

TEST_P(Conv2d, AnInvertibleMatrixBetweenTheFactorsChangesNothing) {
  // G adds three times rank 0 to rank 4 of v; its inverse takes three times column 4 from column 0 of u.
  for (const lath_conv_form form : kForms) {
    const ConvShape shape = kOrdinary.Form(form);
    ConvInputs inputs(LATH_F32, shape, false, true, Numbers::kIntegers, 22);
    const ForwardRun run = RunForward(inputs, Options());
    ASSERT_EQ(run.status, LATH_OK);
    for (int64_t k = 0; k < inputs.v.cols(); ++k) inputs.v.Set(4, k, inputs.v.Get(4, k) + 3 * inputs.v.Get(0, k));
    const int64_t taps = shape.taps_u();
    for (int64_t o = 0; o < shape.out; ++o) {
      for (int64_t i = 0; i < taps; ++i) inputs.u.Set(o, i, inputs.u.Get(o, i) - 3 * inputs.u.Get(o, 4 * taps + i));
    }
    EXPECT_TRUE(Exactly(RunForward(inputs, Options()).y, run.y.Read()));
  }
}

// The elements of one image of a batch.
Values ImageOf(const Operand &images, int64_t n) {
  const Values all = images.Read();
  const auto size = static_cast<std::ptrdiff_t>(images.size() / images.extents()[0]);
  return Values(all.begin() + n * size, all.begin() + (n + 1) * size);
}

TEST_P(Conv2d, AnImageAloneAgreesWithTheImageInItsBatch) {
  for (const ConvShape &one : {kOrdinary.Batch(3), kOrdinary.Batch(21).Image(4, 5), kOrdinary.Batch(40).Image(1, 1)}) {
    for (const lath_conv_form form : kForms) {
      const ConvInputs inputs(LATH_F32, one.Form(form), true, true, Numbers::kUniform, 23);
      const ForwardRun batch = RunForward(inputs, Options());
      ASSERT_EQ(batch.status, LATH_OK);
      for (const int64_t n : {int64_t{0}, one.batch / 2, one.batch - 1}) {
        ConvInputs alone(LATH_F32, one.Form(form).Batch(1), true, true, Numbers::kUniform, 23);
        alone.x.Fill(ImageOf(inputs.x, n));
        alone.v.Fill(inputs.v.Read());
        alone.u.Fill(inputs.u.Read());
        alone.inner_bias.Fill(inputs.inner_bias.Read());
        alone.bias.Fill(inputs.bias.Read());
        const ConvOracle oracle = OracleOf(alone);
        const Values bound = Scaled(oracle.OfMagnitudes().Y(), 2 * oracle.ErrorFactor(LATH_F32));
        EXPECT_TRUE(Within(RunForward(alone, Options()).y, ImageOf(batch.y, n), bound)) << "image " << n;
      }
    }
  }
}

TEST_P(Conv2d, TheFormsAgreeForOneTapOneWay) {
  // A kernel of one row is the same thing in both forms once the padding above and below is gone.
  const ConvShape shape = kOrdinary.Kernel(1, 5).Pad(0, 0, 2, 2);
  const ConvInputs separable(LATH_F32, shape.Form(LATH_SEPARABLE), true, true, Numbers::kIntegers, 24);
  const ConvInputs pointwise(LATH_F32, shape.Form(LATH_POINTWISE), true, true, Numbers::kIntegers, 24);
  const ForwardRun run = RunForward(separable, Options());
  ASSERT_EQ(run.status, LATH_OK);
  EXPECT_TRUE(Exactly(RunForward(pointwise, Options()).y, run.y.Read()));
}

LATH_EVERY_PATH(Conv2d);

}  // namespace
}  // namespace lath_test
