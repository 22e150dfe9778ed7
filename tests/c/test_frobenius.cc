// SPDX-License-Identifier: Apache-2.0
//
// test_frobenius.cc - || u v ||_F^2 in Gram form, and its gradients.

#include <cmath>
#include <limits>

#include "cases.h"

namespace lath_test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr lath_dtype kDtypes[] = {LATH_F32, LATH_F64, LATH_BF16};

Values Square(int64_t rank, double value) { return Values(static_cast<size_t>(rank * rank), value); }

double SumOfSquares(const Values &values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return sum;
}

// The product formed in full: independent of the Gram identity.
double ValueOf(const Values &v, const Values &u, const LowrankShape &shape) {
  return SumOfSquares(Multiply(u, v, shape.out, shape.rank, shape.in));
}

LowrankShape ShapeOf(const FrobeniusInputs &inputs) { return {0, inputs.v.cols(), inputs.v.rows(), inputs.u.rows()}; }

class Frobenius : public PerPath {
 protected:
  CallOptions Options() const {
    CallOptions options;
    options.ref = ref();
    return options;
  }

  Operand Gram(const FrobeniusInputs &inputs, const Values &values) const {
    Operand gram(AccumulatorType(inputs.dtype), inputs.v.rows(), inputs.v.rows());
    gram.Fill(values);
    return gram;
  }

  // Integers: the Gram matrices and the gradients have exact results.
  void CheckExactly(const FrobeniusInputs &inputs, const CallOptions &options, double scale, unsigned gradients = kDv | kDu) {
    const LowrankShape shape = ShapeOf(inputs);
    const std::string name = Describe(inputs.dtype, shape);
    const Values gram_v = inputs.GramV(), gram_u = inputs.GramU();
    const FrobeniusRun run = RunFrobenius(inputs, options);
    ASSERT_EQ(run.status, LATH_OK) << name;
    EXPECT_TRUE(run.workspace_intact) << name;
    EXPECT_TRUE(Exactly(run.gram_v, gram_v)) << "gram_v of " << name;
    EXPECT_TRUE(Exactly(run.gram_u, gram_u)) << "gram_u of " << name;
    const Values v = inputs.v.Read(), u = inputs.u.Read();
    const double want = ValueOf(v, u, shape),
                 bound = 16 * AccumulatorEpsilon(inputs.dtype) * ValueOf(Absolute(v), Absolute(u), shape);
    EXPECT_TRUE(Within(run.value, {want}, {bound})) << name;

    const auto back = RunFrobeniusBackward(inputs, options, Gram(inputs, gram_v), Gram(inputs, gram_u), scale, gradients);
    ASSERT_EQ(back.status, LATH_OK) << name;
    EXPECT_TRUE(back.workspace_intact) << name;
    const Values dv = Scaled(Multiply(gram_u, v, shape.rank, shape.rank, shape.in), 2 * scale);
    const Values du = Scaled(Multiply(u, gram_v, shape.out, shape.rank, shape.rank), 2 * scale);
    EXPECT_TRUE(gradients & kDv ? Exactly(back.dv, dv) : testing::AssertionResult(back.dv.Untouched())) << "dv of " << name;
    EXPECT_TRUE(gradients & kDu ? Exactly(back.du, du) : testing::AssertionResult(back.du.Untouched())) << "du of " << name;
  }
};

TEST_P(Frobenius, IsExactAtEveryPairOfWidths) {
  Choices choices(1);
  for (const int64_t rank : kWidthEdges) {
    for (const int64_t width : kWidthEdges) {
      if (rank > 65 && width > 65 && !choices.OneIn(3)) continue;  // the reference is slow there
      const lath_dtype dtype = choices.OneIn(8) ? LATH_F64 : choices.OneIn(2) ? LATH_BF16 : LATH_F32;
      Layout v, u;
      v.gap = choices.OneIn(2) ? 0 : choices.Below(20);
      u.gap = choices.OneIn(2) ? 0 : choices.Below(20);
      v.misalignment = choices.Below(3);
      u.misalignment = choices.Below(3);
      v.repeat_row = choices.OneIn(16);
      u.repeat_row = choices.OneIn(16);
      CallOptions options = Options();
      options.contiguous.misalignment = choices.Below(3);
      options.workspace_misalignment = choices.OneIn(2) ? lath_dtype_size(dtype) : 0;
      const int64_t other = rank > 65 ? 1 + choices.Below(48) : choices.From(kWidthEdges);
      const bool turn = choices.OneIn(2);
      const FrobeniusInputs inputs(dtype, turn ? width : other, rank, turn ? other : width, Numbers::kIntegers, choices.Next(),
                                   v, u);
      CheckExactly(inputs, options, choices.OneIn(2) ? 1.0 : -0.5);
    }
  }
}

TEST_P(Frobenius, ZeroExtentsGiveZero) {
  for (const lath_dtype dtype : kDtypes) {
    for (int zeros = 1; zeros < 8; ++zeros) {
      const FrobeniusInputs inputs(dtype, zeros & 1 ? 0 : 6, zeros & 2 ? 0 : 3, zeros & 4 ? 0 : 7, Numbers::kIntegers, 3);
      CheckExactly(inputs, Options(), 1.0);
    }
  }
}

TEST_P(Frobenius, EachGradientCanBeSkipped) {
  for (const unsigned gradients : {0u, 1u * kDv, 1u * kDu}) {
    for (const int64_t rank : {2, 40}) {
      CheckExactly(FrobeniusInputs(LATH_F32, 33, rank, 50, Numbers::kIntegers, 4), Options(), 1.0, gradients);
    }
  }
}

TEST_P(Frobenius, RealNumbersStayWithinTheBound) {
  Choices choices(5);
  for (const lath_dtype dtype : kDtypes) {
    for (int repeat = 0; repeat < 20; ++repeat) {
      const FrobeniusInputs inputs(dtype, choices.From(kWidthEdges), 1 + choices.Below(70), choices.From(kWidthEdges),
                                   Numbers::kUniform, choices.Next());
      const LowrankShape shape = ShapeOf(inputs);
      FrobeniusInputs magnitudes(dtype, shape.in, shape.rank, shape.out, Numbers::kUniform, 0);
      magnitudes.v.Fill(Absolute(inputs.v.Read()));
      magnitudes.u.Fill(Absolute(inputs.u.Read()));
      LowrankOracle lengths;
      lengths.shape = shape;
      const double factor = lengths.ErrorFactor(dtype);
      const FrobeniusRun run = RunFrobenius(inputs, Options());
      ASSERT_EQ(run.status, LATH_OK);
      EXPECT_TRUE(Within(run.gram_v, inputs.GramV(), Scaled(magnitudes.GramV(), factor)));
      EXPECT_TRUE(Within(run.gram_u, inputs.GramU(), Scaled(magnitudes.GramU(), factor)));
      const Values v = inputs.v.Read(), u = inputs.u.Read();
      EXPECT_TRUE(Within(run.value, {ValueOf(v, u, shape)}, {factor * ValueOf(Absolute(v), Absolute(u), shape)}));

      const auto back = RunFrobeniusBackward(inputs, Options(), run.gram_v, run.gram_u, 0.75);
      ASSERT_EQ(back.status, LATH_OK);
      const Values dv = Scaled(Multiply(inputs.GramU(), v, shape.rank, shape.rank, shape.in), 1.5);
      const Values du = Scaled(Multiply(u, inputs.GramV(), shape.out, shape.rank, shape.rank), 1.5);
      const Values size_v = Multiply(magnitudes.GramU(), Absolute(v), shape.rank, shape.rank, shape.in);
      const Values size_u = Multiply(Absolute(u), magnitudes.GramV(), shape.out, shape.rank, shape.rank);
      EXPECT_TRUE(Within(back.dv, dv, Scaled(size_v, 1.5 * factor))) << Describe(dtype, shape);
      EXPECT_TRUE(Within(back.du, du, Scaled(size_u, 1.5 * factor))) << Describe(dtype, shape);
    }
  }
}

TEST_P(Frobenius, GradientIsTheSlopeOfTheValue) {
  const FrobeniusInputs inputs(LATH_F64, 9, 4, 7, Numbers::kUniform, 6);
  const FrobeniusRun run = RunFrobenius(inputs, Options());
  const auto back = RunFrobeniusBackward(inputs, Options(), run.gram_v, run.gram_u, 1.0);
  ASSERT_EQ(back.status, LATH_OK);
  const double step = 1e-5;
  const auto slope = [&](bool of_v, int64_t row, int64_t col) {
    double value[2];
    for (const int side : {0, 1}) {
      FrobeniusInputs moved(LATH_F64, 9, 4, 7, Numbers::kUniform, 6);
      Operand &factor = of_v ? moved.v : moved.u;
      factor.Set(row, col, factor.Get(row, col) + (side == 0 ? -step : step));
      value[side] = RunFrobenius(moved, Options()).value.Get(0, 0);
    }
    return (value[1] - value[0]) / (2 * step);
  };
  for (int64_t j = 0; j < 4; ++j) {
    for (int64_t k = 0; k < 9; ++k) EXPECT_NEAR(back.dv.Get(j, k), slope(true, j, k), 1e-7);
    for (int64_t o = 0; o < 7; ++o) EXPECT_NEAR(back.du.Get(o, j), slope(false, o, j), 1e-7);
  }
}

TEST_P(Frobenius, ZeroFactorsGiveZeroAndNotNan) {
  for (const lath_dtype dtype : kDtypes) {
    FrobeniusInputs inputs(dtype, 20, 3, 40, Numbers::kIntegers, 7);
    inputs.v.Fill(Values(60, 0.0));
    inputs.u.Fill(Values(120, 0.0));
    CheckExactly(inputs, Options(), 1.0);
    EXPECT_EQ(RunFrobenius(inputs, Options()).value.Get(0, 0), 0.0);
  }
}

TEST_P(Frobenius, NanReachesTheValue) {
  for (const lath_dtype dtype : kDtypes) {
    FrobeniusInputs inputs(dtype, 20, 3, 40, Numbers::kIntegers, 8);
    inputs.v.Set(2, 19, kNaN);
    EXPECT_TRUE(std::isnan(RunFrobenius(inputs, Options()).value.Get(0, 0)));
    const Operand gram = Gram(inputs, Square(3, 1.0));
    const auto back = RunFrobeniusBackward(inputs, Options(), gram, gram, kNaN);
    EXPECT_TRUE(Exactly(back.du, Values(120, kNaN)));
    EXPECT_TRUE(Exactly(back.dv, Values(60, kNaN)));
  }
}

TEST_P(Frobenius, TouchesNothingBeyondItsOperands) {
  for (const Place place : {Place::kPageEnd, Place::kPageStart}) {
    Layout layout;
    layout.place = place;
    for (const int64_t rank : {1, 7, 16, 33}) {
      for (const int64_t in : {1, 15, 48, 65}) {
        for (const lath_dtype dtype : {LATH_F32, LATH_BF16}) {
          CallOptions options = Options();
          options.contiguous.place = place;
          CheckExactly(FrobeniusInputs(dtype, in, rank, 66 - in, Numbers::kIntegers, 9, layout, layout), options, 1.0);
        }
      }
    }
  }
}

LATH_EVERY_PATH(Frobenius);

}  // namespace
}  // namespace lath_test
