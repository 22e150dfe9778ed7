// SPDX-License-Identifier: Apache-2.0
//
// test_lstm_forward.cc - the forward of the low-rank LSTM on the device: widths, batches, packed sequences, layouts, both
// associations, what is kept for the backward.

#include <algorithm>
#include <limits>

#include "lstm_on_device.h"

namespace cuda_test {
namespace {

const LstmShape kOrdinary = LstmShape().Sizes(6, 19).Ranks(4, 7).Sequence(5, 21);
const LstmShape kPacked = LstmShape().Sizes(17, 16).Ranks(0, 5).Packed({21, 21, 20, 9, 3, 3, 1});

class LstmForward : public testing::Test {
 protected:
  void TearDown() override { emulator_order(0); }

  testing::AssertionResult Right(const LstmInputs &inputs, const LstmDeviceOptions &options, unsigned outputs = kAllOutputs) {
    const testing::AssertionResult result =
        OutputsWithin(LstmForwardOnDevice(inputs, options, outputs), OracleOf(inputs).Forward(), outputs);
    if (result) return result;
    return testing::AssertionFailure() << Describe(inputs, options) << " outputs " << outputs << ": " << result.message();
  }

  // All but the shape varies with the seed.
  void Check(const LstmShape &shape, uint32_t seed) {
    if (LeftOut(seed)) return;
    Choices choices(seed);
    emulator_order(choices.Next() % 4);
    const LstmDeviceCall call = DrawLstmDeviceCall(&choices);
    const unsigned outputs = lath_test::DrawLstmOutputs(&choices);
    const LstmInputs inputs(call.dtype, shape, seed, call.present, DrawSequence(&choices), {}, call.weights);
    EXPECT_TRUE(Right(inputs, call.options, outputs));
  }

  void CheckAll(const std::vector<LstmShape> &shapes, uint32_t seed) {
    Choices choices(seed);
    for (const LstmShape &shape : shapes) Check(shape, choices.Next());
  }
};

TEST_F(LstmForward, IsRightForEveryWidthAndRank) { CheckAll(lath_test::WidthLstms(), 1); }
TEST_F(LstmForward, IsRightForPackedSequences) { CheckAll(lath_test::PackedLstms(), 2); }

TEST_F(LstmForward, IsRightForEveryBatch) {
  Choices choices(3);
  for (const int64_t batch : {1, 2, 4, 5, 8, 9, 16, 17, 33, 130}) {
    const LstmShape one = LstmShape().Sizes(5, choices.From({3, 8, 13})).Ranks(choices.From({0, 3}), choices.From({1, 4, 9}));
    Check(one.Sequence(3, batch).Reverse(choices.OneIn(2)), choices.Next());
    Check(one.Packed(lath_test::DrawBatchSizes(&choices, 4, batch)).Reverse(choices.OneIn(2)), choices.Next());
  }
}

// Sums over hundreds of units are shared by warps.
TEST_F(LstmForward, IsRightForLongSums) {
  Choices choices(4);
  for (const int64_t hidden : {130, 260, 515}) {
    Check(LstmShape().Sizes(9, hidden).Ranks(0, 51).Sequence(2, choices.From({1, 3, 9})), choices.Next());
    Check(LstmShape().Sizes(40, hidden).Ranks(17, 130).Sequence(2, choices.From({1, 5})).Reverse(), choices.Next());
  }
}

TEST_F(LstmForward, EveryAssociationIsRight) {
  uint32_t seed = 0;
  for (const lath_dtype dtype : kLstmDtypes) {
    for (const lath_association association : kLstmAssociations) {
      for (const LstmShape &shape : {kOrdinary, kPacked, kPacked.Reverse(), kOrdinary.Ranks(0, 30), kOrdinary.Ranks(2, 30)}) {
        LstmDeviceOptions options;
        options.association = association;
        if (LeftOut(seed++)) continue;
        EXPECT_TRUE(Right(LstmInputs(dtype, shape, 6), options));
      }
    }
  }
}

// More rows than a chunk holds, with and without room for the gates.
TEST_F(LstmForward, ChunksFollowOneAnother) {
  if (kLeg == Leg::kThread) GTEST_SKIP() << "thousands of rows";
  for (const bool reverse : {false, true}) {
    for (const unsigned gates : {0u, static_cast<unsigned>(lath_test::kGates)}) {
      const unsigned outputs = kAllOutputs & ~gates;
      LstmDeviceOptions options;
      options.sequence.batch_first = reverse;
      options.association = reverse ? LATH_MERGED : LATH_FACTORED;
      const LstmShape shape = LstmShape().Sizes(3, 4).Ranks(2, 2).Sequence(9, 700).Reverse(reverse);
      EXPECT_TRUE(Right(LstmInputs(LATH_F32, shape, 7), options, outputs));
      std::vector<int64_t> sizes(70, 40);
      std::fill_n(sizes.begin(), 3, 2100);
      EXPECT_TRUE(Right(LstmInputs(LATH_F32, shape.Packed(sizes).Reverse(reverse), 8), options, outputs));
    }
  }
}

TEST_F(LstmForward, EmptyExtentsLeaveTheStateOrTheBiases) {
  uint32_t seed = 100;
  for (const LstmShape &shape : lath_test::EmptyLstms()) {
    for (const lath_association association : kLstmAssociations) {
      LstmDeviceOptions options;
      options.association = association;
      options.blas = seed % 2;
      if (LeftOut(seed++)) continue;
      EXPECT_TRUE(Right(LstmInputs(LATH_F32, shape, 7), options));
    }
  }
}

TEST_F(LstmForward, EverySetOfOutputsIsWrittenAndNoMore) {
  for (const LstmShape &shape : {kOrdinary, kPacked.Reverse()}) {
    const LstmInputs inputs(LATH_F32, shape, 9);
    const LstmRun all = LstmForwardOnDevice(inputs, {});
    for (unsigned outputs = 0; outputs <= kAllOutputs; ++outputs) {
      if (kLeg == Leg::kThread && outputs % 8 != 7) continue;
      EXPECT_TRUE(Right(inputs, {}, outputs));
      EXPECT_TRUE(SameOutputs(LstmForwardOnDevice(inputs, {}, outputs), all, outputs)) << outputs;
    }
  }
}

// The twin keeps its states in double; the oracle, which the other tests compare with, knows nothing of factors.
TEST_F(LstmForward, AgreesWithThePlainLoopsOfTheProcessor) {
  for (const lath_dtype dtype : kLstmDtypes) {
    const LstmInputs inputs(dtype, kPacked.Reverse(), 10);
    lath_test::LstmOptions plain;
    plain.ref = true;
    const LstmRun want = RunLstm(inputs, plain);
    ASSERT_TRUE(Completed(want));
    const lath_test::LstmStates states = {want.y.Read(), want.c.Read(), want.gates.Read(), want.hn.Read(), want.cn.Read()};
    EXPECT_TRUE(OutputsWithin(LstmForwardOnDevice(inputs, {}), states));
  }
}

TEST_F(LstmForward, OneRowMayServeAllSamplesOrAllSteps) {
  for (const bool of_samples : {false, true}) {
    LstmInputs inputs(LATH_F32, kOrdinary, 12);
    Values x = inputs.x.Read();
    const int64_t in = kOrdinary.in, batch = kOrdinary.batch;
    for (int64_t k = 0; k < static_cast<int64_t>(x.size()); ++k) {
      const int64_t row = k / in, from = of_samples ? row / batch * batch : row % batch;
      x[static_cast<size_t>(k)] = x[static_cast<size_t>(from * in + k % in)];
    }
    inputs.x.Fill(x);
    LstmRun run = lath_test::EmptyRun(inputs, {}, {});
    const LstmOnDevice operands(inputs);
    const OnDevice y(run.y.operand());
    const LstmDeviceOptions options;
    Lent lent(options);
    lath_test::LstmArgs args = operands.Arguments(inputs, options);
    (of_samples ? args.s_x_row : args.s_x_step) = 0;
    args.y = y.data();
    args.s_y_step = run.y.s_step(), args.s_y_row = run.y.s_row();
    CallOnDevice(&args, options, &lent, lath_cuda_lowrank_lstm_workspace, lath_cuda_lowrank_lstm, &run);
    y.CopyTo(&run.y.operand());
    EXPECT_TRUE(OutputsWithin(run, OracleOf(inputs).Forward(), lath_test::kY));
  }
}

TEST_F(LstmForward, NanStaysInItsSampleAndAfterItsStep) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const LstmShape &shape : {kOrdinary, kPacked}) {
    for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
      LstmDeviceOptions options;
      options.association = association;
      LstmInputs inputs(LATH_F32, shape, 31);
      const LstmRun clean = LstmForwardOnDevice(inputs, options);
      constexpr int64_t kSample = 2, kStep = 1;
      const std::vector<int64_t> rows = shape.RowsOf(kSample);
      Values x = inputs.x.Read(), want = clean.y.Read();
      x[static_cast<size_t>(rows[kStep] * shape.in)] = nan;
      for (size_t t = kStep; t < rows.size(); ++t) std::fill_n(want.begin() + rows[t] * shape.hidden, shape.hidden, nan);
      inputs.x.Fill(x);
      const LstmRun run = LstmForwardOnDevice(inputs, options);
      EXPECT_TRUE(lath_test::Exactly(run.y.operand(), want)) << Describe(inputs, options);
    }
  }
}

TEST_F(LstmForward, LargeInputsSaturate) {
  for (const lath_dtype dtype : kLstmDtypes) {
    for (const double size : {1e4, 1e30}) {
      LstmInputs inputs(dtype, kOrdinary, 33);
      Values x = inputs.x.Read();
      for (double &value : x) value = std::copysign(size, value);
      inputs.x.Fill(x);
      const LstmRun run = LstmForwardOnDevice(inputs, {});
      for (const double h : run.y.Read()) EXPECT_TRUE(std::fabs(h) <= 1) << h;
      for (const double c : run.c.Read()) EXPECT_TRUE(std::isfinite(c)) << c;
    }
  }
}

TEST_F(LstmForward, OrdersDoNotChangeABit) {
  for (const LstmShape &shape : {kOrdinary.Sizes(6, 140), kOrdinary.Sizes(6, 16).Ranks(0, 23), kPacked}) {
    for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
      if (kLeg == Leg::kThread && (association == LATH_MERGED || shape.packed())) continue;
      LstmDeviceOptions options;
      options.association = association;
      options.blas = false;
      options.route = LATH_LOWRANK_FUSED;
      const LstmInputs inputs(LATH_F32, shape, 15);
      const LstmRun first = LstmForwardOnDevice(inputs, options);
      EachOrder([&](unsigned seed) {
        EXPECT_TRUE(SameOutputs(first, LstmForwardOnDevice(inputs, options))) << "seed " << seed << Describe(inputs, options);
      });
    }
  }
}

// ---- all steps in one launch --------------------------------------------------------------------------------------------

// Ranks around what is kept in registers, one sample and two in a block, with and without one that is left over.
TEST_F(LstmForward, FactorsInOneMultiprocessorAreRight) {
  Choices choices(41);
  for (const int64_t hidden : {8, 24, 64, 256}) {
    for (const int64_t rank : {1, 19, 20, 21, 50}) {
      for (const int64_t batch : {int64_t{1}, int64_t{3}, hidden == 8 ? int64_t{133} : int64_t{5}}) {
        const uint32_t seed = choices.Next();
        if (LeftOut(seed)) continue;
        emulator_order(seed % 4);
        LstmDeviceOptions options;
        options.route = LATH_LOWRANK_FUSED;
        options.sequence = DrawSequence(&choices);
        options.state.misalignment = choices.Below(3);
        Layout weights;
        weights.misalignment = choices.Below(3);
        const LstmShape shape = LstmShape().Sizes(5, hidden).Ranks(choices.From({0, 3}), rank).Sequence(3, batch);
        const unsigned present = choices.OneIn(2) ? kAllOptional : static_cast<unsigned>(choices.Below(128));
        const unsigned outputs = choices.OneIn(2) ? kAllOutputs : static_cast<unsigned>(choices.Below(32));
        const LstmInputs inputs(LATH_F32, shape.Reverse(choices.OneIn(2)), seed, present, DrawSequence(&choices), {}, weights);
        EXPECT_TRUE(Right(inputs, options, outputs));
      }
    }
  }
}

TEST_F(LstmForward, TheStateGoesFromOneLongChunkToTheNext) {
  if (kLeg == Leg::kThread) GTEST_SKIP() << "thousands of blocks";
  for (const bool reverse : {false, true}) {
    LstmDeviceOptions options;
    options.route = LATH_LOWRANK_FUSED;
    const LstmShape shape = LstmShape().Sizes(2, 8).Ranks(0, 2).Sequence(5, 4000).Reverse(reverse);
    EXPECT_TRUE(Right(LstmInputs(LATH_F32, shape, 43), options));
  }
}

TEST_F(LstmForward, NanStaysInItsSampleOfABlock) {
  LstmDeviceOptions options;
  options.route = LATH_LOWRANK_FUSED;
  const LstmShape shape = LstmShape().Sizes(4, 8).Ranks(0, 3).Sequence(2, 140);
  LstmInputs inputs(LATH_F32, shape, 44);
  const LstmRun clean = LstmForwardOnDevice(inputs, options);
  inputs.h0.Set(7, 3, std::numeric_limits<double>::quiet_NaN());
  const LstmRun run = LstmForwardOnDevice(inputs, options);
  for (int64_t b = 0; b < shape.batch; ++b) {
    const double h = run.hn.Get(b, 0);
    EXPECT_TRUE(b == 7 ? std::isnan(h) : h == clean.hn.Get(b, 0)) << b;
  }
}

#if !defined(LATH_TESTS_ON_GPU)
TEST_F(LstmForward, OneLaunchServesAllSteps) {
  if (kLeg == Leg::kThread) GTEST_SKIP() << "counts launches";
  LstmDeviceOptions options;
  const auto launches = [&](const LstmShape &shape) {
    const LstmInputs inputs(LATH_F32, shape, 16);
    const long before = emulator_launches();
    EXPECT_TRUE(Completed(LstmForwardOnDevice(inputs, options)));
    return emulator_launches() - before;
  };
  const LstmShape fits = LstmShape().Sizes(6, 64).Ranks(0, 13), too_wide = fits.Sizes(6, 264), odd = fits.Sizes(6, 60);
  for (const int route : {kPlanned, static_cast<int>(LATH_LOWRANK_FUSED)}) {
    options.route = route;
    EXPECT_EQ(launches(fits.Sequence(12, 3)), launches(fits.Sequence(4, 3)));
    for (const LstmShape &shape : {too_wide, odd}) {
      EXPECT_GE(launches(shape.Sequence(12, 3)), 8 + launches(shape.Sequence(4, 3)));
    }
  }
  options.route = LATH_LOWRANK_PRODUCTS;
  EXPECT_GE(launches(fits.Sequence(12, 3)), 8 + launches(fits.Sequence(4, 3)));
}

// Two launches a step, one where factors are merged, and nothing that grows with the steps beyond them.
TEST_F(LstmForward, LaunchesOnceOrTwiceAStep) {
  if (kLeg == Leg::kThread) GTEST_SKIP() << "counts launches";
  for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
    LstmDeviceOptions options;
    options.association = association;
    options.route = LATH_LOWRANK_PRODUCTS;
    const auto launches = [&](int64_t steps) {
      const LstmInputs inputs(LATH_F32, kOrdinary.Sequence(steps, 3), 16);
      const long before = emulator_launches();
      EXPECT_TRUE(Completed(LstmForwardOnDevice(inputs, options)));
      return emulator_launches() - before;
    };
    EXPECT_EQ(launches(12) - launches(4), 8 * (association == LATH_FACTORED ? 2 : 1));
  }
}

TEST_F(LstmForward, AFailedLaunchIsReported) {
  constexpr int kError = 719;
  const LstmInputs inputs(LATH_F32, kOrdinary, 18);
  for (const int n : {1, 4, 9}) {
    emulator_fail_launch(n, kError);
    EXPECT_EQ(LstmForwardOnDevice(inputs, {}).status, LATH_DEVICE_FAILED) << n;
  }
  EXPECT_TRUE(Completed(LstmForwardOnDevice(inputs, {})));
}
#endif

TEST_F(LstmForward, OtherTypesAreRefused) {
  LstmInputs inputs(LATH_F32, kOrdinary, 17);
  Lent lent{DeviceOptions()};
  for (const lath_dtype dtype : {LATH_BF16, LATH_F16}) {
    lath_test::LstmArgs args = lath_test::Arguments(inputs);
    args.dtype = dtype;
    size_t bytes = 0;
    EXPECT_EQ(lath_cuda_lowrank_lstm_workspace(&args, lent.get(), &bytes), LATH_UNSUPPORTED_DTYPE);
    EXPECT_EQ(lath_cuda_lowrank_lstm(&args, lent.get()), LATH_UNSUPPORTED_DTYPE);
  }
}

}  // namespace
}  // namespace cuda_test
