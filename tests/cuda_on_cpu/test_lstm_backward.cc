// SPDX-License-Identifier: Apache-2.0
//
// test_lstm_backward.cc - the gradients of the low-rank LSTM on the device: all sets of them, gates kept or formed again, packed
// sequences, both associations.

#include <algorithm>
#include <limits>

#include "lstm_on_device.h"

namespace cuda_test {
namespace {

using lath_test::KeptStates;
using lath_test::SameGradients;

const LstmShape kOrdinary = LstmShape().Sizes(6, 19).Ranks(4, 7).Sequence(5, 21);
const LstmShape kPacked = LstmShape().Sizes(17, 16).Ranks(0, 5).Packed({21, 21, 20, 9, 3, 3, 1});

class LstmBackward : public testing::Test {
 protected:
  void TearDown() override { emulator_order(0); }

  testing::AssertionResult Right(const LstmInputs &inputs, const LstmRun &kept, bool with_gates,
                                 const LstmDeviceOptions &options, unsigned gradients = kAllLstmGradients) {
    const LstmBackwardRun run = LstmBackwardOnDevice(inputs, kept, with_gates, options, gradients);
    const testing::AssertionResult result =
        GradientsWithin(run, OracleOf(inputs).Backward(), WantedGradients(inputs.shape, gradients));
    if (result) return result;
    return testing::AssertionFailure() << Describe(inputs, options) << " gradients " << gradients << " gates kept "
                                       << with_gates << ": " << result.message();
  }

  testing::AssertionResult Right(const LstmInputs &inputs, const LstmDeviceOptions &options) {
    const LstmRun kept = KeptStates(inputs);
    const testing::AssertionResult result = Right(inputs, kept, false, options);
    return result ? Right(inputs, kept, true, options) : result;
  }

  // All but the shape varies with the seed.
  void Check(const LstmShape &shape, uint32_t seed) {
    if (LeftOut(seed)) return;
    Choices choices(seed);
    emulator_order(choices.Next() % 4);
    const LstmDeviceCall call = DrawLstmDeviceCall(&choices);
    const unsigned gradients = lath_test::DrawLstmGradients(&choices);
    const LstmInputs inputs(call.dtype, shape, seed, call.present, DrawSequence(&choices), DrawSequence(&choices),
                            call.weights);
    EXPECT_TRUE(Right(inputs, KeptStates(inputs, DrawSequence(&choices)), choices.OneIn(2), call.options, gradients));
  }

  void CheckAll(const std::vector<LstmShape> &shapes, uint32_t seed) {
    Choices choices(seed);
    for (const LstmShape &shape : shapes) Check(shape, choices.Next());
  }
};

TEST_F(LstmBackward, IsRightForEveryWidthAndRank) { CheckAll(lath_test::WidthLstms(), 1); }
TEST_F(LstmBackward, IsRightForPackedSequences) { CheckAll(lath_test::PackedLstms(), 2); }

TEST_F(LstmBackward, IsRightForEveryBatch) {
  Choices choices(3);
  for (const int64_t batch : {1, 2, 4, 5, 8, 9, 16, 17, 33, 130}) {
    const LstmShape one = LstmShape().Sizes(5, choices.From({3, 8, 13})).Ranks(choices.From({0, 3}), choices.From({1, 4, 9}));
    Check(one.Sequence(3, batch).Reverse(choices.OneIn(2)), choices.Next());
    Check(one.Packed(lath_test::DrawBatchSizes(&choices, 4, batch)).Reverse(choices.OneIn(2)), choices.Next());
  }
}

// Sums over hundreds of gates are shared by warps.
TEST_F(LstmBackward, IsRightForLongSums) {
  Choices choices(4);
  for (const int64_t hidden : {130, 260}) {
    Check(LstmShape().Sizes(9, hidden).Ranks(0, 51).Sequence(2, choices.From({1, 3, 9})), choices.Next());
    Check(LstmShape().Sizes(40, hidden).Ranks(17, 130).Sequence(2, choices.From({1, 5})).Reverse(), choices.Next());
  }
}

TEST_F(LstmBackward, EveryAssociationIsRight) {
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

// More rows than a chunk holds: what a step hands to the one before it crosses from one to the next.
TEST_F(LstmBackward, ChunksFollowOneAnother) {
  if (kLeg == Leg::kThread) GTEST_SKIP() << "thousands of rows";
  for (const bool reverse : {false, true}) {
    for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
      LstmDeviceOptions options;
      options.sequence.batch_first = reverse;
      options.association = association;
      const LstmShape shape = LstmShape().Sizes(3, 4).Ranks(2, 2).Sequence(9, 700).Reverse(reverse);
      EXPECT_TRUE(Right(LstmInputs(LATH_F64, shape, 7), options));
      std::vector<int64_t> sizes(70, 40);
      std::fill_n(sizes.begin(), 3, 2100);
      EXPECT_TRUE(Right(LstmInputs(LATH_F64, shape.Packed(sizes).Reverse(reverse), 8), options));
    }
  }
}

TEST_F(LstmBackward, EmptyExtentsGiveZeroGradients) {
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

TEST_F(LstmBackward, EverySetOfGradientsIsWrittenAndNoMoreAndHasTheSameBits) {
  for (const LstmShape &shape : {kOrdinary, kPacked}) {
    for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
      LstmDeviceOptions options;
      options.association = association;
      const LstmInputs inputs(LATH_F32, shape, 9);
      const LstmRun kept = KeptStates(inputs);
      const lath_test::LstmGradients want = OracleOf(inputs).Backward();
      const LstmBackwardRun all = LstmBackwardOnDevice(inputs, kept, true, options);
      for (unsigned gradients = 0; gradients <= kAllLstmGradients; ++gradients) {
        if (gradients % 3 && gradients % 7) continue;
        if (kLeg == Leg::kThread && gradients % 153 != 0 && gradients != kAllLstmGradients) continue;
        const LstmBackwardRun run = LstmBackwardOnDevice(inputs, kept, true, options, gradients);
        EXPECT_TRUE(GradientsWithin(run, want, WantedGradients(shape, gradients))) << gradients;
        EXPECT_TRUE(SameGradients(run, all, WantedGradients(shape, gradients))) << gradients;
      }
    }
  }
}

TEST_F(LstmBackward, StatesAndIncomingGradientsMayBeAbsent) {
  for (const LstmShape &shape : {kOrdinary, kPacked.Reverse()}) {
    for (unsigned absent = 0; absent < 128; absent += 3) {
      if (LeftOut(absent)) continue;
      EXPECT_TRUE(Right(LstmInputs(LATH_F32, shape, 8, kAllOptional & ~absent), {}));
    }
  }
}

// What the forward leaves is what the backward wants: h and c alone, or the gates as well.
TEST_F(LstmBackward, FollowsTheForward) {
  for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
    for (const LstmShape &shape : {kOrdinary.Reverse(), kPacked}) {
      LstmDeviceOptions options;
      options.association = association;
      const LstmInputs inputs(LATH_F32, shape, 10);
      const LstmRun forward = LstmForwardOnDevice(inputs, options);
      ASSERT_TRUE(Completed(forward));
      for (const bool with_gates : {false, true}) EXPECT_TRUE(Right(inputs, forward, with_gates, options));
    }
  }
}

TEST_F(LstmBackward, NanInAnIncomingGradientStaysInItsSample) {
  for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
    LstmDeviceOptions options;
    options.association = association;
    LstmInputs inputs(LATH_F32, kOrdinary, 12);
    const LstmRun kept = KeptStates(inputs);
    const LstmBackwardRun clean = LstmBackwardOnDevice(inputs, kept, true, options);
    inputs.dhn.Set(5, 18, std::numeric_limits<double>::quiet_NaN());
    const LstmBackwardRun run = LstmBackwardOnDevice(inputs, kept, true, options);
    for (int64_t b = 0; b < kOrdinary.batch; ++b) {
      for (int64_t k = 0; k < kOrdinary.hidden; ++k) {
        const double got = run.dh0.Get(b, k);
        EXPECT_TRUE(b == 5 ? std::isnan(got) : got == clean.dh0.Get(b, k)) << b << ", " << k;
      }
    }
  }
}

TEST_F(LstmBackward, OrdersDoNotChangeABit) {
  for (const LstmShape &shape : {kOrdinary.Sizes(6, 140), kOrdinary.Sizes(6, 40).Ranks(0, 9), kPacked}) {
    for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
      if (kLeg == Leg::kThread && (association == LATH_MERGED || shape.packed())) continue;
      LstmDeviceOptions options;
      options.association = association;
      options.blas = false;
      options.route = LATH_LOWRANK_FUSED;
      const LstmInputs inputs(LATH_F32, shape, 15);
      const LstmRun kept = KeptStates(inputs);
      const LstmBackwardRun first = LstmBackwardOnDevice(inputs, kept, false, options);
      EachOrder([&](unsigned seed) {
        EXPECT_TRUE(SameGradients(first, LstmBackwardOnDevice(inputs, kept, false, options), WantedGradients(shape)))
            << "seed " << seed << " " << Describe(inputs, options);
      });
    }
  }
}

// ---- all steps in one launch --------------------------------------------------------------------------------------------

TEST_F(LstmBackward, FactorsInOneMultiprocessorAreRight) {
  Choices choices(41);
  for (const int64_t hidden : {8, 24, 64, 104, 256}) {
    for (const int64_t rank : {int64_t{1}, std::min<int64_t>(hidden / 4 - 1, 51), hidden / 4}) {
      for (const int64_t batch : {int64_t{1}, int64_t{3}, hidden == 8 ? int64_t{133} : int64_t{5}}) {
        const uint32_t seed = choices.Next();
        if (LeftOut(seed)) continue;
        emulator_order(seed % 4);
        LstmDeviceOptions options;
        options.route = LATH_LOWRANK_FUSED;
        options.sequence = DrawSequence(&choices);
        options.state.misalignment = choices.Below(3);
        const LstmShape shape = LstmShape().Sizes(5, hidden).Ranks(choices.From({0, 3}), rank).Sequence(3, batch);
        const unsigned present = choices.OneIn(2) ? kAllOptional : static_cast<unsigned>(choices.Below(128));
        const unsigned gradients = choices.OneIn(2) ? kAllLstmGradients : static_cast<unsigned>(choices.Below(256));
        const LstmInputs inputs(LATH_F32, shape.Reverse(choices.OneIn(2)), seed, present, DrawSequence(&choices),
                                DrawSequence(&choices));
        EXPECT_TRUE(Right(inputs, KeptStates(inputs, DrawSequence(&choices)), choices.OneIn(2), options, gradients));
      }
    }
  }
}

TEST_F(LstmBackward, TheStateGoesFromOneLongChunkToTheNext) {
  if (kLeg == Leg::kThread) GTEST_SKIP() << "thousands of blocks";
  for (const bool reverse : {false, true}) {
    LstmDeviceOptions options;
    options.route = LATH_LOWRANK_FUSED;
    const LstmShape shape = LstmShape().Sizes(2, 8).Ranks(0, 2).Sequence(5, 4000).Reverse(reverse);
    const LstmInputs inputs(LATH_F32, shape, 43);
    const unsigned states = reverse ? lath_test::kLstmDh0 | lath_test::kLstmDc0 : 0u;
    EXPECT_TRUE(Right(inputs, KeptStates(inputs), reverse, options, lath_test::kLstmDx | states));
  }
}

#if !defined(LATH_TESTS_ON_GPU)
TEST_F(LstmBackward, OneLaunchServesAllSteps) {
  if (kLeg == Leg::kThread) GTEST_SKIP() << "counts launches";
  LstmDeviceOptions options;
  const auto launches = [&](const LstmShape &shape) {
    const LstmInputs inputs(LATH_F32, shape, 16);
    const LstmRun kept = KeptStates(inputs);
    const long before = emulator_launches();
    EXPECT_TRUE(Completed(LstmBackwardOnDevice(inputs, kept, true, options)));
    return emulator_launches() - before;
  };
  const LstmShape fits = LstmShape().Sizes(6, 64).Ranks(0, 13), too_wide = fits.Sizes(6, 264), too_many = fits.Ranks(0, 17);
  for (const int route : {kPlanned, static_cast<int>(LATH_LOWRANK_FUSED)}) {
    options.route = route;
    EXPECT_EQ(launches(fits.Sequence(12, 3)), launches(fits.Sequence(4, 3)));
    for (const LstmShape &shape : {too_wide, too_many}) {
      EXPECT_GE(launches(shape.Sequence(12, 3)), 8 + launches(shape.Sequence(4, 3)));
    }
  }
  options.route = LATH_LOWRANK_PRODUCTS;
  options.association = LATH_FACTORED;
  EXPECT_EQ(launches(fits.Sequence(12, 3)) - launches(fits.Sequence(4, 3)), 16);
}
#endif

}  // namespace
}  // namespace cuda_test
