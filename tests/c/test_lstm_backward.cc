// SPDX-License-Identifier: Apache-2.0
//
// test_lstm_backward.cc - the gradients of the low-rank LSTM on every path: all sets of them, gates kept or formed again.

#include <algorithm>
#include <cmath>
#include <limits>

#include "lstm_cases.h"

namespace lath_test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

const LstmShape kOrdinary = LstmShape().Sizes(6, 19).Ranks(4, 7).Sequence(9, 21);
const LstmShape kPacked = LstmShape().Sizes(17, 16).Ranks(0, 5).Packed({21, 21, 20, 9, 3, 3, 1});

class LstmBackward : public PerPath {
 protected:
  LstmOptions Options(lath_association association = LATH_AUTO) const {
    LstmOptions options;
    options.ref = ref();
    options.association = association;
    return options;
  }

  testing::AssertionResult Right(const LstmInputs &inputs, const LstmRun &kept, bool with_gates, const LstmOptions &options,
                                 unsigned gradients = kAllLstmGradients) {
    const LstmBackwardRun run = RunLstmBackward(inputs, kept, with_gates, options, gradients);
    const testing::AssertionResult result =
        GradientsWithin(run, OracleOf(inputs).Backward(), WantedGradients(inputs.shape, gradients));
    if (result) return result;
    return testing::AssertionFailure() << Describe(inputs.dtype, inputs.shape) << ", association " << options.association
                                       << ", present " << inputs.present << ", gradients " << gradients << ", gates kept "
                                       << with_gates << ": " << result.message();
  }

  testing::AssertionResult Right(const LstmInputs &inputs, const LstmOptions &options) {
    const LstmRun kept = KeptStates(inputs);
    const testing::AssertionResult result = Right(inputs, kept, false, options);
    return result ? Right(inputs, kept, true, options) : result;
  }

  // All but the shape varies with the seed.
  void Check(const LstmShape &shape, uint32_t seed) {
    Choices choices(seed);
    LstmCall call = DrawLstmCall(&choices);
    call.options.ref = ref();
    const unsigned gradients = DrawLstmGradients(&choices);
    const LstmInputs inputs(call.dtype, shape, seed, call.present, DrawSequence(&choices), DrawSequence(&choices),
                            call.weights);
    EXPECT_TRUE(Right(inputs, KeptStates(inputs, DrawSequence(&choices)), choices.OneIn(2), call.options, gradients));
  }

  void CheckAll(const std::vector<LstmShape> &shapes, uint32_t seed) {
    Choices choices(seed);
    for (const LstmShape &shape : shapes) Check(shape, choices.Next());
  }
};

TEST_P(LstmBackward, IsRightForEveryWidthAndRank) { CheckAll(WidthLstms(), 1); }
TEST_P(LstmBackward, IsRightForEveryBatch) { CheckAll(BatchLstms(), 2); }
TEST_P(LstmBackward, IsRightForEveryNumberOfSteps) { CheckAll(SequenceLstms(), 3); }
TEST_P(LstmBackward, IsRightForPackedSequences) { CheckAll(PackedLstms(), 4); }

TEST_P(LstmBackward, IsRightForShapesAtRandom) {
  Choices choices(5);
  for (int repeat = 0; repeat < 80; ++repeat) Check(DrawLstm(&choices), choices.Next());
}

TEST_P(LstmBackward, IsRightForLayersOfOrdinarySize) {
  for (const LstmShape &shape : LayerLstms()) {
    for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
      EXPECT_TRUE(Right(LstmInputs(LATH_F32, shape, 16), Options(association)));
    }
  }
}

TEST_P(LstmBackward, EveryAssociationIsRight) {
  for (const lath_dtype dtype : kLstmDtypes) {
    for (const lath_association association : kLstmAssociations) {
      for (const LstmShape &shape : {kOrdinary, kPacked, kOrdinary.Reverse(), kOrdinary.Ranks(0, 30), kOrdinary.Ranks(2, 30)}) {
        EXPECT_TRUE(Right(LstmInputs(dtype, shape, 6), Options(association)));
      }
    }
  }
}

TEST_P(LstmBackward, EmptyExtentsGiveZeroGradients) {
  for (const LstmShape &shape : EmptyLstms()) {
    for (const lath_association association : kLstmAssociations) {
      for (const lath_dtype dtype : kLstmDtypes) EXPECT_TRUE(Right(LstmInputs(dtype, shape, 7), Options(association)));
    }
  }
}

TEST_P(LstmBackward, StatesAndIncomingGradientsMayBeAbsent) {
  for (const LstmShape &shape : {kOrdinary, kPacked.Reverse()}) {
    for (unsigned absent = 0; absent < 128; ++absent) {
      EXPECT_TRUE(Right(LstmInputs(LATH_F32, shape, 8, kAllOptional & ~absent), Options()));
    }
  }
}

TEST_P(LstmBackward, EverySetOfGradientsIsWrittenAndNoMoreAndHasTheSameBits) {
  for (const LstmShape &shape : {kOrdinary, kPacked}) {
    for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
      const LstmInputs inputs(LATH_F32, shape, 9);
      const LstmRun kept = KeptStates(inputs);
      const LstmGradients want = OracleOf(inputs).Backward();
      const LstmBackwardRun all = RunLstmBackward(inputs, kept, false, Options(association));
      for (unsigned gradients = 0; gradients <= kAllLstmGradients; ++gradients) {
        const LstmBackwardRun run = RunLstmBackward(inputs, kept, false, Options(association), gradients);
        EXPECT_TRUE(GradientsWithin(run, want, WantedGradients(shape, gradients))) << gradients;
        EXPECT_TRUE(SameGradients(run, all, WantedGradients(shape, gradients))) << gradients;
      }
    }
  }
}

// What the forward leaves is what the backward wants: h and c alone, or the gates as well.
TEST_P(LstmBackward, FollowsTheForward) {
  for (const lath_dtype dtype : kLstmDtypes) {
    for (const lath_association association : kLstmAssociations) {
      for (const bool reverse : {false, true}) {
        for (const LstmShape &shape : {kOrdinary.Reverse(reverse), kPacked.Reverse(reverse), kOrdinary.Sequence(140, 3)}) {
          const LstmInputs inputs(dtype, shape, 10);
          const LstmRun forward = RunLstm(inputs, Options(association));
          ASSERT_TRUE(Completed(forward));
          for (const bool gates : {false, true}) EXPECT_TRUE(Right(inputs, forward, gates, Options(association)));
        }
      }
    }
  }
}

// ---- memory -------------------------------------------------------------------------------------------------------------

TEST_P(LstmBackward, EveryLayoutOfTheSequencesGivesTheSameBits) {
  for (const LstmShape &shape :
       {kOrdinary, kOrdinary.Reverse(), kPacked, kOrdinary.Sequence(1, 21), kOrdinary.Sequence(9, 1)}) {
    const LstmInputs plain(LATH_F32, shape, 11);
    const LstmBackwardRun want = RunLstmBackward(plain, KeptStates(plain), true, Options());
    ASSERT_TRUE(Completed(want));
    for (unsigned batch_first = 0; batch_first < 16; ++batch_first) {
      SequenceLayout x;
      x.batch_first = batch_first & 1;
      const SequenceLayout y = HalfOfOutput(shape.hidden, true, batch_first & 2);
      const SequenceLayout dy = HalfOfOutput(shape.hidden, false, batch_first & 4);
      const LstmInputs inputs(LATH_F32, shape, 11, kAllOptional, x, dy);
      LstmOptions options = Options();
      options.sequence.batch_first = batch_first & 8;
      options.sequence.memory.gap = batch_first % 3;
      const LstmBackwardRun run = RunLstmBackward(inputs, KeptStates(inputs, y), true, options);
      EXPECT_TRUE(SameGradients(run, want, WantedGradients(shape) & ~static_cast<unsigned>(kLstmDx))) << batch_first;
      EXPECT_TRUE(run.dx.operand().Intact());
      EXPECT_EQ(run.dx.Read(), want.dx.Read()) << Describe(LATH_F32, shape) << ", " << batch_first;
    }
  }
}

// The gradient of a sum: every number of dy is the same one.
TEST_P(LstmBackward, OneRowMayServeAllOfDy) {
  LstmInputs inputs(LATH_F32, kOrdinary, 12);
  inputs.dy.Fill(Values(static_cast<size_t>(kOrdinary.rows() * kOrdinary.hidden), 0.75));
  const LstmRun kept = KeptStates(inputs);
  const LstmBackwardRun want = RunLstmBackward(inputs, kept, false, Options());
  LstmBackwardRun run = RunLstmBackward(inputs, kept, false, Options(), 0);
  ASSERT_TRUE(Completed(want));
  LstmArgs args = Arguments(inputs);
  args.y = kept.y.data();
  args.s_y_step = kept.y.s_step(), args.s_y_row = kept.y.s_row();
  args.c = kept.c.data();
  args.dy = inputs.dy.data();
  args.s_dy_step = args.s_dy_row = 0;
  args.dhn = inputs.dhn.data();
  args.dcn = inputs.dcn.data();
  args.dh0 = run.dh0.data();
  args.du = run.du.data();
  Call(&args, Options(), lath_lowrank_lstm_backward_workspace, lath_lowrank_lstm_backward, lath_lowrank_lstm_backward_ref,
       &run);
  EXPECT_TRUE(SameGradients(run, want, kLstmDh0 | kLstmDu));
}

TEST_P(LstmBackward, TouchesNothingBeyondItsOperands) {
  Choices choices(13);
  std::vector<LstmShape> shapes = PackedLstms();
  shapes.insert(shapes.end(), WidthLstms().begin(), WidthLstms().end());
  for (const LstmShape &shape : shapes) {
    LstmOptions options = Options(kLstmAssociations[choices.Below(3)]);
    SequenceLayout sequence;
    Layout weights;
    sequence.batch_first = choices.OneIn(2);
    const Place place = choices.OneIn(3) ? Place::kPageStart : Place::kPageEnd;
    options.sequence.batch_first = choices.OneIn(2);
    for (Layout *layout : {&sequence.memory, &weights, &options.sequence.memory, &options.state}) layout->place = place;
    const LstmInputs inputs(LATH_F32, shape, choices.Next(), kAllOptional, sequence, sequence, weights);
    EXPECT_TRUE(Right(inputs, KeptStates(inputs, sequence), choices.OneIn(2), options));
  }
}

TEST_P(LstmBackward, InputsAreOnlyRead) {
  const LstmInputs inputs(LATH_F32, kOrdinary, 14);
  const LstmRun kept = KeptStates(inputs);
  const Operand *const operands[] = {&inputs.x.operand(), &inputs.dy.operand(), &inputs.v_in,      &inputs.u_in, &inputs.v,
                                     &inputs.u,           &inputs.bias_in,      &inputs.bias,      &inputs.h0,   &inputs.c0,
                                     &inputs.dhn,         &inputs.dcn,          &kept.y.operand(), &kept.c,      &kept.gates};
  std::vector<std::vector<unsigned char>> before;
  for (const Operand *operand : operands) before.push_back(operand->Bytes());
  for (const bool gates : {false, true}) {
    ASSERT_TRUE(Completed(RunLstmBackward(inputs, kept, gates, Options())));
    for (size_t k = 0; k < before.size(); ++k) EXPECT_EQ(operands[k]->Bytes(), before[k]) << k;
  }
}

TEST_P(LstmBackward, RunsAgreeBitForBitWhereverTheBuffersLie) {
  for (const LstmShape &shape : {kOrdinary, kPacked}) {
    Layout moved;
    moved.misalignment = 1;
    SequenceLayout moved_sequence;
    moved_sequence.memory = moved;
    const LstmInputs inputs(LATH_F32, shape, 15),
        elsewhere(LATH_F32, shape, 15, kAllOptional, moved_sequence, moved_sequence, moved);
    LstmOptions options = Options();
    const LstmBackwardRun first = RunLstmBackward(inputs, KeptStates(inputs), false, options);
    options.sequence = moved_sequence;
    options.state = moved;
    options.workspace_misalignment = 4;
    EXPECT_TRUE(SameGradients(first, RunLstmBackward(elsewhere, KeptStates(elsewhere, moved_sequence), false, options),
                              WantedGradients(shape)));
  }
}

// ---- invariants -----------------------------------------------------------------------------------------------------------

// What later steps were fed does not reach earlier ones' gradients if their outputs are not asked for.
TEST_P(LstmBackward, OutputsDependOnNoLaterInput) {
  for (const bool reverse : {false, true}) {
    const LstmShape shape = kOrdinary.Reverse(reverse);
    LstmInputs inputs(LATH_F32, shape, 21, kAllOptional & ~static_cast<unsigned>(kDhn | kDcn));
    constexpr int64_t kStep = 4;
    const int64_t rows = shape.batch * shape.hidden;
    Values dy = inputs.dy.Read();
    for (int64_t k = 0; k < static_cast<int64_t>(dy.size()); ++k) {
      if (k / rows != kStep) dy[static_cast<size_t>(k)] = 0;
    }
    inputs.dy.Fill(dy);
    const LstmBackwardRun run = RunLstmBackward(inputs, KeptStates(inputs), true, Options(), kLstmDx);
    ASSERT_TRUE(Completed(run));
    const Values dx = run.dx.Read();
    for (int64_t t = 0; t < shape.steps; ++t) {
      const bool later = reverse ? t < kStep : t > kStep;
      double largest = 0;
      for (int64_t k = t * shape.batch * shape.in; k < (t + 1) * shape.batch * shape.in; ++k) {
        largest = std::max(largest, std::fabs(dx[static_cast<size_t>(k)]));
      }
      EXPECT_EQ(largest > 0, !later) << t;
    }
  }
}

TEST_P(LstmBackward, NanInDyStaysInItsSample) {
  for (const lath_association association : kLstmAssociations) {
    LstmInputs inputs(LATH_F32, kOrdinary, 31);
    const LstmBackwardRun clean = RunLstmBackward(inputs, KeptStates(inputs), true, Options(association), kLstmDx | kLstmDh0);
    constexpr int64_t kSample = 5, kStep = 4;
    Values dy = inputs.dy.Read(), want = clean.dx.Read();
    dy[static_cast<size_t>((kStep * kOrdinary.batch + kSample) * kOrdinary.hidden)] = kNaN;
    inputs.dy.Fill(dy);
    for (int64_t t = 0; t <= kStep; ++t) {
      std::fill_n(want.begin() + (t * kOrdinary.batch + kSample) * kOrdinary.in, kOrdinary.in, kNaN);
    }
    const LstmBackwardRun run = RunLstmBackward(inputs, KeptStates(inputs), true, Options(association), kLstmDx | kLstmDh0);
    ASSERT_TRUE(Completed(run));
    EXPECT_TRUE(Exactly(run.dx.operand(), want));
    for (int64_t b = 0; b < kOrdinary.batch; ++b) EXPECT_EQ(std::isnan(run.dh0.Get(b, 0)), b == kSample) << b;
  }
}

// Saturated gates pass no gradient on, and no NaN either.
TEST_P(LstmBackward, SaturatedGatesHaveFiniteGradients) {
  for (const double size : {1e4, 1e30}) {
    LstmInputs inputs(LATH_F32, kOrdinary, 33);
    Values x = inputs.x.Read();
    for (double &value : x) value = std::copysign(size, value);
    inputs.x.Fill(x);
    const LstmRun forward = RunLstm(inputs, Options());
    for (const bool gates : {false, true}) {
      const LstmBackwardRun run = RunLstmBackward(inputs, forward, gates, Options());
      ASSERT_TRUE(Completed(run));
      for (const Values &values : {run.dx.Read(), run.du_in.Read(), run.dv_in.Read(), run.du.Read(), run.dv.Read(),
                                   run.d_bias.Read(), run.dh0.Read(), run.dc0.Read()}) {
        for (const double value : values) EXPECT_TRUE(std::isfinite(value)) << value;
      }
    }
  }
}

LATH_EVERY_PATH(LstmBackward);

}  // namespace
}  // namespace lath_test
