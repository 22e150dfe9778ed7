// SPDX-License-Identifier: Apache-2.0
//
// test_golden.cc - checksums of cases G1 (low-rank linear), G2, G3 (low-rank convolution) and G6 (Frobenius decay), computed
// once by an independent float64 program. Checksums of a flattened tensor t: sum t, sum t_k ((k mod 7) - 3), sum t^2.

#include <cmath>

#include "conv_cases.h"

namespace lath_test {
namespace {

struct Checksums {
  double sum, weighted, squares;
};

Checksums ChecksumsOf(const Values &values) {
  Checksums result = {0, 0, 0};
  for (size_t k = 0; k < values.size(); ++k) {
    result.sum += values[k];
    result.weighted += values[k] * (static_cast<double>(k % 7) - 3);
    result.squares += values[k] * values[k];
  }
  return result;
}

double Tolerance(lath_dtype dtype) { return dtype == LATH_F64 ? 1e-9 : 1e-5; }

void ExpectGolden(const Values &values, const Checksums &want, double tolerance) {
  const Checksums got = ChecksumsOf(values);
  EXPECT_NEAR(got.sum, want.sum, tolerance * std::fabs(want.sum));
  EXPECT_NEAR(got.weighted, want.weighted, tolerance * std::fabs(want.weighted));
  EXPECT_NEAR(got.squares, want.squares, tolerance * want.squares);
}

void ExpectGolden(const Operand &operand, const Checksums &want) {
  ExpectGolden(operand.Read(), want, Tolerance(operand.dtype()));
}

TEST(GoldenGenerator, StartsWithTheDocumentedNumbers) {
  const Values want = {0.820718984585255, -0.192663071677089, 0.00816801749169827, 0.950012705754489}, got = Uniform(1, 4);
  for (size_t k = 0; k < want.size(); ++k) EXPECT_NEAR(got[k], want[k], 1e-14);
}

class Golden : public PerPath {};

TEST_P(Golden, G1LowrankLinear) {
  for (const lath_dtype dtype : {LATH_F64, LATH_F32}) {
    for (const lath_association association : {LATH_AUTO, LATH_FACTORED, LATH_MERGED}) {
      // x, v, u, inner bias, bias and dy are seeds 1 to 6.
      const LowrankInputs inputs(dtype, {4, 7, 3, 5}, true, true, Numbers::kUniform, 1);
      CallOptions options;
      options.ref = ref();
      options.association = association;
      const ForwardRun forward = RunForward(inputs, options);
      ASSERT_EQ(forward.status, LATH_OK);
      ExpectGolden(forward.y, {12.2577475163, -13.8284176765, 43.7777792741});
      const BackwardRun backward = RunBackward(inputs, options);
      ASSERT_EQ(backward.status, LATH_OK);
      ExpectGolden(backward.dx, {-4.26689036791, -4.94783205243, 15.4687410369});
      ExpectGolden(backward.dv, {-2.50410601615, -5.75257881671, 14.1343304223});
      ExpectGolden(backward.du, {0.867622962363, 7.95126052133, 18.727296559});
      ExpectGolden(backward.d_inner_bias, {-3.0563908127, 7.63346021596, 10.2400418322});
    }
  }
}

TEST_P(Golden, G2LowrankConvolution) {
  const ConvShape shape = ConvShape().Batch(2).Channels(3, 2, 5).Image(7, 8).Kernel(3, 3).Stride(2, 2).Pad(1);
  for (const lath_dtype dtype : {LATH_F64, LATH_F32}) {
    // x, v, u and dy are seeds 11, 12, 13 and 16.
    const ConvInputs inputs(dtype, shape, false, false, Numbers::kUniform, 11);
    ExpectGolden(OracleOf(inputs).W(), {-1.51817794704, 7.9822346875, 28.3496164934}, Tolerance(dtype));
    CallOptions options;
    options.ref = ref();
    const ForwardRun forward = RunForward(inputs, options);
    ASSERT_EQ(forward.status, LATH_OK);
    ExpectGolden(forward.y, {-2.24674906973, 2.32092804534, 194.637728343});
    const BackwardRun backward = RunBackward(inputs, options);
    ASSERT_EQ(backward.status, LATH_OK);
    ExpectGolden(backward.dx, {16.482011876, 65.3533709458, 318.802814772});
    ExpectGolden(backward.dv, {16.7932486463, 10.2130275701, 332.181806571});
    ExpectGolden(backward.du, {1.25693642073, -8.28244409438, 106.231388391});
  }
}

TEST_P(Golden, G3LowrankConvolutionWithBiases) {
  const ConvShape shape = ConvShape().Batch(2).Channels(3, 3, 4).Image(6, 5).Kernel(3, 3).Dilation(2, 2).Pad(2);
  for (const lath_dtype dtype : {LATH_F64, LATH_F32}) {
    // As G2; the inner bias and the bias are seeds 14 and 15.
    const ConvInputs inputs(dtype, shape, true, true, Numbers::kUniform, 11);
    CallOptions options;
    options.ref = ref();
    const ForwardRun forward = RunForward(inputs, options);
    ASSERT_EQ(forward.status, LATH_OK);
    ExpectGolden(forward.y, {18.257688624, -40.8444584218, 340.519023816});
    const BackwardRun backward = RunBackward(inputs, options);
    ASSERT_EQ(backward.status, LATH_OK);
    ExpectGolden(backward.dx, {17.5947717924, 38.0154216604, 258.682957096});
    ExpectGolden(backward.d_inner_bias, {-12.5886439579, 21.8666729926, 446.482837081});
    ExpectGolden(backward.d_bias, {-24.4848131048, 42.658101141, 172.012087138});
  }
}

TEST_P(Golden, G6FrobeniusDecay) {
  for (const lath_dtype dtype : {LATH_F64, LATH_F32}) {
    // u and v are seeds 31 and 32.
    const FrobeniusInputs inputs(dtype, 5, 2, 6, Numbers::kUniform, 31);
    CallOptions options;
    options.ref = ref();
    const FrobeniusRun run = RunFrobenius(inputs, options);
    ASSERT_EQ(run.status, LATH_OK);
    EXPECT_NEAR(run.value.Get(0, 0), 7.65436499021, 7.65436499021 * Tolerance(dtype));
    const auto back = RunFrobeniusBackward(inputs, options, run.gram_v, run.gram_u, 1.0);
    ASSERT_EQ(back.status, LATH_OK);
    ExpectGolden(back.du, {-3.86203515062, -6.1106617213, 52.5022942223});
    ExpectGolden(back.dv, {-1.70155522677, -7.90596313515, 117.267980247});
  }
}

LATH_EVERY_PATH(Golden);

}  // namespace
}  // namespace lath_test
