// SPDX-License-Identifier: Apache-2.0
//
// test_lstm.cc - the forward of the low-rank LSTM on every path, and sigmoid and tanh of every instruction set.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "lstm_cases.h"

extern "C" {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#include "gemm/kernels.h"
#pragma GCC diagnostic pop
}

namespace lath_test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

const LstmShape kOrdinary = LstmShape().Sizes(6, 19).Ranks(4, 7).Sequence(9, 21);
const LstmShape kPacked = LstmShape().Sizes(17, 16).Ranks(0, 5).Packed({21, 21, 20, 9, 3, 3, 1});

// The values of some samples only. `n` numbers a row.
Values OfSample(const Values &values, const LstmShape &shape, int64_t sample, int64_t n) {
  Values result;
  for (const int64_t row : shape.RowsOf(sample)) {
    result.insert(result.end(), values.begin() + row * n, values.begin() + (row + 1) * n);
  }
  return result;
}

void CopyWeights(const LstmInputs &from, LstmInputs *to) {
  to->v_in.Fill(from.v_in.Read());
  to->u_in.Fill(from.u_in.Read());
  to->v.Fill(from.v.Read());
  to->u.Fill(from.u.Read());
  to->bias_in.Fill(from.bias_in.Read());
  to->bias.Fill(from.bias.Read());
}

Values Part(const Values &values, int64_t from, int64_t to) { return Values(values.begin() + from, values.begin() + to); }

class Lstm : public PerPath {
 protected:
  LstmOptions Options(lath_association association = LATH_AUTO) const {
    LstmOptions options;
    options.ref = ref();
    options.association = association;
    return options;
  }

  testing::AssertionResult Right(const LstmInputs &inputs, const LstmOptions &options, unsigned outputs = kAllOutputs) {
    const testing::AssertionResult result =
        OutputsWithin(RunLstm(inputs, options, outputs), OracleOf(inputs).Forward(), outputs);
    if (result) return result;
    return testing::AssertionFailure() << Describe(inputs.dtype, inputs.shape) << ", association " << options.association
                                       << ", present " << inputs.present << ", outputs " << outputs << ": " << result.message();
  }

  // All but the shape varies with the seed.
  void Check(const LstmShape &shape, uint32_t seed) {
    Choices choices(seed);
    LstmCall call = DrawLstmCall(&choices);
    call.options.ref = ref();
    const unsigned outputs = DrawLstmOutputs(&choices);
    const LstmInputs inputs(call.dtype, shape, seed, call.present, DrawSequence(&choices), {}, call.weights);
    EXPECT_TRUE(Right(inputs, call.options, outputs));
  }

  void CheckAll(const std::vector<LstmShape> &shapes, uint32_t seed) {
    Choices choices(seed);
    for (const LstmShape &shape : shapes) Check(shape, choices.Next());
  }
};

TEST_P(Lstm, IsRightForEveryWidthAndRank) { CheckAll(WidthLstms(), 1); }
TEST_P(Lstm, IsRightForEveryBatch) { CheckAll(BatchLstms(), 2); }
TEST_P(Lstm, IsRightForEveryNumberOfSteps) { CheckAll(SequenceLstms(), 3); }
TEST_P(Lstm, IsRightForPackedSequences) { CheckAll(PackedLstms(), 4); }

TEST_P(Lstm, IsRightForShapesAtRandom) {
  Choices choices(5);
  for (int repeat = 0; repeat < 80; ++repeat) Check(DrawLstm(&choices), choices.Next());
}

TEST_P(Lstm, IsRightForLayersOfOrdinarySize) {
  for (const LstmShape &shape : LayerLstms()) {
    for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
      EXPECT_TRUE(Right(LstmInputs(LATH_F32, shape, 16), Options(association)));
    }
  }
}

TEST_P(Lstm, EveryAssociationIsRight) {
  for (const lath_dtype dtype : kLstmDtypes) {
    for (const lath_association association : kLstmAssociations) {
      for (const LstmShape &shape : {kOrdinary, kPacked, kOrdinary.Reverse(), kOrdinary.Ranks(0, 30), kOrdinary.Ranks(2, 30)}) {
        EXPECT_TRUE(Right(LstmInputs(dtype, shape, 6), Options(association)));
      }
    }
  }
}

TEST_P(Lstm, EmptyExtentsLeaveTheStateOrTheBiases) {
  for (const LstmShape &shape : EmptyLstms()) {
    for (const lath_association association : kLstmAssociations) {
      for (const lath_dtype dtype : kLstmDtypes) EXPECT_TRUE(Right(LstmInputs(dtype, shape, 7), Options(association)));
    }
  }
}

TEST_P(Lstm, BiasesAndStatesMayBeAbsent) {
  for (const LstmShape &shape : {kOrdinary, kPacked.Reverse()}) {
    for (unsigned present = 0; present < 16; ++present) EXPECT_TRUE(Right(LstmInputs(LATH_F32, shape, 8, present), Options()));
  }
}

TEST_P(Lstm, EverySetOfOutputsIsWrittenAndNoMore) {
  for (const LstmShape &shape : {kOrdinary, kPacked}) {
    const LstmInputs inputs(LATH_F32, shape, 9);
    const LstmRun all = RunLstm(inputs, Options());
    for (unsigned outputs = 0; outputs <= kAllOutputs; ++outputs) {
      EXPECT_TRUE(Right(inputs, Options(), outputs));
      EXPECT_TRUE(SameOutputs(RunLstm(inputs, Options(), outputs), all, outputs)) << outputs;
    }
  }
}

// ---- memory -------------------------------------------------------------------------------------------------------------

TEST_P(Lstm, EveryLayoutOfXAndYGivesTheSameBits) {
  for (const LstmShape &shape :
       {kOrdinary, kOrdinary.Reverse(), kPacked, kOrdinary.Sequence(1, 21), kOrdinary.Sequence(9, 1)}) {
    const LstmInputs plain(LATH_F32, shape, 11);
    const LstmRun want = RunLstm(plain, Options());
    for (const bool batch_first_x : {false, true}) {
      for (const bool batch_first_y : {false, true}) {
        for (const bool second : {false, true}) {
          SequenceLayout layout_x;
          layout_x.batch_first = batch_first_x;
          layout_x.memory.gap = second ? 0 : 3;
          const LstmInputs inputs(LATH_F32, shape, 11, kAllOptional, layout_x);
          LstmOptions options = Options();
          options.sequence = HalfOfOutput(shape.hidden, second, batch_first_y);
          const LstmRun run = RunLstm(inputs, options);
          ASSERT_TRUE(Completed(run));
          EXPECT_TRUE(run.y.operand().Intact());
          EXPECT_EQ(run.y.Read(), want.y.Read()) << Describe(LATH_F32, shape) << batch_first_x << batch_first_y << second;
          EXPECT_TRUE(SameOutputs(run, want, kAllOutputs & ~static_cast<unsigned>(kY)));
        }
      }
    }
  }
}

TEST_P(Lstm, OneRowMayServeAllSamplesOrAllSteps) {
  LstmInputs inputs(LATH_F32, kOrdinary, 12);
  for (const bool of_samples : {false, true}) {
    Values x = inputs.x.Read();
    const int64_t in = kOrdinary.in, batch = kOrdinary.batch;
    for (int64_t k = 0; k < static_cast<int64_t>(x.size()); ++k) {
      const int64_t row = k / in, from = of_samples ? row / batch * batch : row % batch;
      x[static_cast<size_t>(k)] = x[static_cast<size_t>(from * in + k % in)];
    }
    inputs.x.Fill(x);
    const LstmRun want = RunLstm(inputs, Options());
    ASSERT_TRUE(Completed(want));
    LstmRun run = RunLstm(inputs, Options(), 0);
    LstmArgs args = Arguments(inputs);
    (of_samples ? args.s_x_row : args.s_x_step) = 0;
    args.y = run.y.data();
    args.s_y_step = run.y.s_step(), args.s_y_row = run.y.s_row();
    Call(&args, Options(), lath_lowrank_lstm_workspace, lath_lowrank_lstm, lath_lowrank_lstm_ref, &run);
    EXPECT_TRUE(SameOutputs(run, want, kY));
  }
}

TEST_P(Lstm, TouchesNothingBeyondItsOperands) {
  Choices choices(13);
  std::vector<LstmShape> shapes = PackedLstms();
  shapes.insert(shapes.end(), WidthLstms().begin(), WidthLstms().end());
  for (const LstmShape &shape : shapes) {
    LstmOptions options = Options(kLstmAssociations[choices.Below(3)]);
    SequenceLayout x;
    Layout weights;
    x.batch_first = choices.OneIn(2);
    options.sequence.batch_first = choices.OneIn(2);
    const Place place = choices.OneIn(3) ? Place::kPageStart : Place::kPageEnd;
    for (Layout *layout : {&x.memory, &weights, &options.sequence.memory, &options.state}) layout->place = place;
    EXPECT_TRUE(Right(LstmInputs(LATH_F32, shape, choices.Next(), kAllOptional, x, {}, weights), options));
  }
}

TEST_P(Lstm, InputsAreOnlyRead) {
  const LstmInputs inputs(LATH_F32, kOrdinary, 14);
  const Operand *const operands[] = {&inputs.x.operand(), &inputs.v_in, &inputs.u_in, &inputs.v, &inputs.u,
                                     &inputs.bias_in,     &inputs.bias, &inputs.h0,   &inputs.c0};
  std::vector<std::vector<unsigned char>> before;
  for (const Operand *operand : operands) before.push_back(operand->Bytes());
  ASSERT_TRUE(Completed(RunLstm(inputs, Options())));
  for (size_t k = 0; k < before.size(); ++k) EXPECT_EQ(operands[k]->Bytes(), before[k]) << k;
}

TEST_P(Lstm, RunsAgreeBitForBitWhereverTheBuffersLie) {
  for (const LstmShape &shape : {kOrdinary, kPacked}) {
    Layout moved;
    moved.misalignment = 1;
    SequenceLayout moved_x;
    moved_x.memory = moved;
    LstmOptions options = Options();
    const LstmRun first = RunLstm(LstmInputs(LATH_F32, shape, 15), options);
    EXPECT_TRUE(SameOutputs(first, RunLstm(LstmInputs(LATH_F32, shape, 15), options)));
    options.sequence = moved_x;
    options.state = moved;
    options.workspace_misalignment = 4;
    EXPECT_TRUE(SameOutputs(first, RunLstm(LstmInputs(LATH_F32, shape, 15, kAllOptional, moved_x, {}, moved), options)));
  }
}

// ---- invariants -----------------------------------------------------------------------------------------------------------

// LATH_AUTO may choose another association for one row than for many.
TEST_P(Lstm, ARowAloneHasTheBitsThatItHasInTheBatch) {
  for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
    for (const LstmShape &shape : {kOrdinary.Sequence(5, 130), kOrdinary.Reverse(), kPacked, kPacked.Reverse()}) {
      const LstmInputs inputs(LATH_F32, shape, 21);
      const LstmRun batch = RunLstm(inputs, Options(association));
      ASSERT_TRUE(Completed(batch));
      const int64_t n = shape.hidden;
      for (const int64_t sample : {int64_t{0}, int64_t{1}, shape.batch / 2, shape.batch - 1}) {
        const int64_t steps = static_cast<int64_t>(shape.RowsOf(sample).size());
        LstmInputs alone(LATH_F32, shape.Reverse(false).Sequence(steps, 1), 22);
        CopyWeights(inputs, &alone);
        alone.x.Fill(OfSample(inputs.x.Read(), shape, sample, shape.in));
        alone.h0.Fill(Part(inputs.h0.Read(), sample * n, (sample + 1) * n));
        alone.c0.Fill(Part(inputs.c0.Read(), sample * n, (sample + 1) * n));
        const LstmRun run = RunLstm(alone, Options(association));
        ASSERT_TRUE(Completed(run));
        EXPECT_EQ(run.y.Read(), OfSample(batch.y.Read(), shape, sample, n)) << Describe(LATH_F32, shape) << ", " << sample;
        EXPECT_EQ(run.c.Read(), OfSample(batch.c.Read(), shape, sample, n));
        EXPECT_EQ(run.gates.Read(), OfSample(batch.gates.Read(), shape, sample, 4 * n));
        EXPECT_EQ(run.hn.Read(), Part(batch.hn.Read(), sample * n, (sample + 1) * n));
        EXPECT_EQ(run.cn.Read(), Part(batch.cn.Read(), sample * n, (sample + 1) * n));
      }
    }
  }
}

TEST_P(Lstm, TwoPartsWithTheStateCarriedOverAreTheWhole) {
  for (const lath_dtype dtype : kLstmDtypes) {
    for (const bool reverse : {false, true}) {
      const LstmOptions options = Options(reverse ? LATH_FACTORED : LATH_MERGED);
      const LstmShape shape = kOrdinary.Reverse(reverse);
      const LstmInputs inputs(dtype, shape, 23);
      const LstmRun whole = RunLstm(inputs, options);
      ASSERT_TRUE(Completed(whole));
      for (const int64_t at : {1, 4, 8}) {
        // The part that runs first is the later one of a reversed sequence.
        const int64_t first[2] = {reverse ? at : 0, reverse ? 9 : at}, rest[2] = {reverse ? 0 : at, reverse ? at : 9};
        Values h = inputs.h0.Read(), c = inputs.c0.Read(), y(whole.y.Read().size());
        for (const auto &part : {first, rest}) {
          LstmInputs some(dtype, shape.Sequence(part[1] - part[0], shape.batch), 24);
          CopyWeights(inputs, &some);
          some.x.Fill(Part(inputs.x.Read(), part[0] * shape.batch * shape.in, part[1] * shape.batch * shape.in));
          some.h0.Fill(h);
          some.c0.Fill(c);
          const LstmRun run = RunLstm(some, options);
          ASSERT_TRUE(Completed(run));
          h = run.hn.Read(), c = run.cn.Read();
          const Values of_part = run.y.Read();
          std::copy(of_part.begin(), of_part.end(), y.begin() + part[0] * shape.batch * shape.hidden);
        }
        // The twin keeps its state in double within a call, so the parts of F32 are rounded once more.
        const Values bound(y.size(), ref() && dtype == LATH_F32 ? Tolerance(dtype) : 0.0), of_state(h.size(), bound[0]);
        EXPECT_TRUE(Within(whole.y.operand(), y, bound)) << at;
        EXPECT_TRUE(Within(whole.hn, h, of_state)) << at;
        EXPECT_TRUE(Within(whole.cn, c, of_state)) << at;
      }
    }
  }
}

TEST_P(Lstm, PaddingTheRanksWithZerosChangesNothing) {
  for (const lath_association association : kLstmAssociations) {
    const LstmInputs inputs(LATH_F32, kOrdinary, 25);
    LstmInputs wider(LATH_F32, kOrdinary.Ranks(kOrdinary.in_rank + 3, kOrdinary.rank + 14), 25);
    for (Operand *operand : {&wider.v_in, &wider.u_in, &wider.v, &wider.u}) {
      operand->Fill(Values(static_cast<size_t>(operand->size()), 0.0));
    }
    const std::pair<const Operand *, Operand *> pairs[] = {
        {&inputs.v_in, &wider.v_in}, {&inputs.u_in, &wider.u_in}, {&inputs.v, &wider.v}, {&inputs.u, &wider.u}};
    for (const auto &[from, to] : pairs) {
      for (int64_t i = 0; i < from->rows(); ++i) {
        for (int64_t j = 0; j < from->cols(); ++j) to->Set(i, j, from->Get(i, j));
      }
    }
    wider.x.Fill(inputs.x.Read());
    for (const auto &[from, to] : {std::pair<const Operand *, Operand *>{&inputs.bias_in, &wider.bias_in},
                                   {&inputs.bias, &wider.bias},
                                   {&inputs.h0, &wider.h0},
                                   {&inputs.c0, &wider.c0}}) {
      to->Fill(from->Read());
    }
    EXPECT_TRUE(OutputsWithin(RunLstm(wider, Options(association)), OracleOf(inputs).Forward()));
  }
}

// ---- special values -----------------------------------------------------------------------------------------------------

TEST_P(Lstm, NanStaysInItsSampleAndAfterItsStep) {
  for (const LstmShape &one : {kOrdinary, kOrdinary.Sequence(4, 130), kPacked}) {
    for (const bool reverse : {false, true}) {
      for (const lath_association association : kLstmAssociations) {
        const LstmShape shape = one.Reverse(reverse);
        LstmInputs inputs(LATH_F32, shape, 31);
        const LstmRun clean = RunLstm(inputs, Options(association));
        ASSERT_TRUE(Completed(clean));
        constexpr int64_t kSample = 2, kStep = 1;  // in the order in which the sample runs
        const std::vector<int64_t> rows = shape.RowsOf(kSample);
        Values x = inputs.x.Read(), want = clean.y.Read(), want_c = clean.c.Read();
        x[static_cast<size_t>(rows[kStep] * shape.in)] = kNaN;
        for (size_t t = kStep; t < rows.size(); ++t) {
          std::fill_n(want.begin() + rows[t] * shape.hidden, shape.hidden, kNaN);
          std::fill_n(want_c.begin() + rows[t] * shape.hidden, shape.hidden, kNaN);
        }
        inputs.x.Fill(x);
        const LstmRun run = RunLstm(inputs, Options(association));
        ASSERT_TRUE(Completed(run));
        EXPECT_TRUE(Exactly(run.y.operand(), want)) << Describe(LATH_F32, shape);
        EXPECT_TRUE(Exactly(run.c, want_c));
        for (int64_t b = 0; b < shape.batch; ++b) EXPECT_EQ(std::isnan(run.hn.Get(b, 0)), b == kSample) << b;
      }
    }
  }
}

TEST_P(Lstm, NanInAnInitialStateStaysInItsSample) {
  for (const bool in_h : {false, true}) {
    LstmInputs inputs(LATH_F32, kOrdinary, 32);
    const LstmRun clean = RunLstm(inputs, Options());
    (in_h ? inputs.h0 : inputs.c0).Set(5, 18, kNaN);
    const LstmRun run = RunLstm(inputs, Options());
    ASSERT_TRUE(Completed(run));
    for (int64_t b = 0; b < kOrdinary.batch; ++b) {
      const double h = run.hn.Get(b, 18);
      EXPECT_TRUE(b == 5 ? std::isnan(h) : h == clean.hn.Get(b, 18)) << b << ": " << h;
    }
  }
}

TEST_P(Lstm, LargeInputsSaturate) {
  for (const lath_dtype dtype : kLstmDtypes) {
    for (const lath_association association : kLstmAssociations) {
      for (const double size : {1e4, 1e30}) {
        LstmInputs inputs(dtype, kOrdinary, 33);
        Values x = inputs.x.Read();
        for (double &value : x) value = std::copysign(size, value);
        inputs.x.Fill(x);
        const LstmRun run = RunLstm(inputs, Options(association));
        ASSERT_TRUE(Completed(run));
        for (const double h : run.y.Read()) EXPECT_TRUE(std::fabs(h) <= 1) << h;
        for (const double gate : run.gates.Read()) EXPECT_TRUE(std::fabs(gate) <= 1) << gate;
        for (const double c : run.c.Read()) EXPECT_TRUE(std::isfinite(c)) << c;
      }
    }
  }
}

LATH_EVERY_PATH(Lstm);

// ---- sigmoid and tanh -----------------------------------------------------------------------------------------------------

double ExactSigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// The spacing of floats at this value.
double UlpOf(double value) {
  int exponent;
  std::frexp(value, &exponent);
  return std::ldexp(1.0, std::max(exponent, -125) - 24);
}

class LstmActivations : public PerPath {
 protected:
  // Of the gates of some units with these values before their activation; `values` fill whole groups of units.
  std::vector<float> Activated(const std::vector<float> &values) {
    const size_t lanes = static_cast<size_t>(lath_kernels()->lanes);
    std::vector<float> gates;
    for (size_t from = 0; from < values.size(); from += lanes) {
      for (int gate = 0; gate < 4; ++gate) {
        for (size_t k = from; k < from + lanes; ++k) gates.push_back(values[k]);
      }
    }
    const int64_t units = static_cast<int64_t>(values.size());
    lath_kernels()->lstm_gates(1, units, gates.data(), 4 * units);
    return gates;
  }

  struct Worst {
    double error = 0, at = 0;
    void Add(double got, double exact, double x) {
      const double here = std::fabs(got - exact) / UlpOf(exact);
      if (!(here <= error)) error = here, at = x;  // also if it is a NaN
    }
  };

  // Every `stride`-th float of [0, most], with both signs.
  void Sweep(uint32_t from, uint32_t to, uint32_t stride) {
    const size_t lanes = static_cast<size_t>(lath_kernels()->lanes), room = 64 * lanes;
    std::vector<float> values;
    Worst sigmoid, tanh;
    const auto flush = [&] {
      const std::vector<float> gates = Activated(values);
      for (size_t k = 0; k < values.size(); ++k) {
        const size_t at = k / lanes * 4 * lanes + k % lanes;
        const double x = static_cast<double>(values[k]);
        sigmoid.Add(static_cast<double>(gates[at]), ExactSigmoid(x), x);
        tanh.Add(static_cast<double>(gates[at + 2 * lanes]), std::tanh(x), x);
        ASSERT_EQ(gates[at], gates[at + lanes]) << "i and f of " << x;
        ASSERT_EQ(gates[at], gates[at + 3 * lanes]) << "i and o of " << x;
      }
      values.clear();
    };
    for (uint32_t bits = from; bits <= to; bits += stride) {
      float value;
      std::memcpy(&value, &bits, sizeof value);
      values.push_back(value);
      values.push_back(-value);
      if (values.size() == room) flush();
    }
    values.resize(room, 1.0f);
    flush();
    EXPECT_LE(sigmoid.error, 2) << "sigmoid(" << sigmoid.at << ")";
    EXPECT_LE(tanh.error, 2) << "tanh(" << tanh.at << ")";
  }
};

uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

TEST_P(LstmActivations, AreWithinTwoUnitsInTheLastPlace) {
  Sweep(BitsOf(0x1p-16f), BitsOf(87.0f), 61);
  Sweep(BitsOf(0.5f), BitsOf(0.625f), 1);  // where tanh changes its formula
  Sweep(0, BitsOf(0x1p-16f), 100003);      // down to subnormal numbers
}

// Below -87 the exact sigmoid leaves the normal floats; ours stays positive and below 2^-125.
TEST_P(LstmActivations, AreFlatFarOut) {
  const size_t lanes = static_cast<size_t>(lath_kernels()->lanes);
  for (const float x :
       {87.5f, 88.0f, 89.0f, 104.0f, 1e4f, 1e30f, std::numeric_limits<float>::max(), std::numeric_limits<float>::infinity()}) {
    const std::vector<float> up = Activated(std::vector<float>(lanes, x)), down = Activated(std::vector<float>(lanes, -x));
    for (size_t k = 0; k < lanes; ++k) {
      EXPECT_EQ(up[k], 1.0f) << x;
      EXPECT_EQ(up[2 * lanes + k], 1.0f) << x;
      EXPECT_GT(down[k], 0.0f) << x;
      EXPECT_LT(down[k], 0x1p-125f) << x;
      EXPECT_EQ(down[2 * lanes + k], -1.0f) << x;
    }
  }
}

TEST_P(LstmActivations, KeepNanInItsUnit) {
  const size_t lanes = static_cast<size_t>(lath_kernels()->lanes);
  std::vector<float> values(lanes, 0.25f);
  values[lanes - 1] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> gates = Activated(values);
  for (size_t gate = 0; gate < 4; ++gate) {
    for (size_t k = 0; k < lanes; ++k) EXPECT_EQ(std::isnan(gates[gate * lanes + k]), k == lanes - 1) << gate << ", " << k;
  }
}

LATH_FAST_PATHS(LstmActivations);

}  // namespace
}  // namespace lath_test
