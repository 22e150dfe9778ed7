// SPDX-License-Identifier: Apache-2.0
//
// test_golden.cc - checksums of cases G1 (low-rank linear) and G6 (Frobenius decay), computed once by an independent
// float64 program. Checksums of a flattened tensor t: sum t, sum t_k ((k mod 7) - 3), sum t^2.

#include <cmath>

#include "cases.h"

namespace lath_test {
namespace {

struct Checksums {
  double sum, weighted, squares;
};

Checksums ChecksumsOf(const Operand &operand) {
  Checksums result = {0, 0, 0};
  const Values values = operand.Read();
  for (size_t k = 0; k < values.size(); ++k) {
    result.sum += values[k];
    result.weighted += values[k] * (static_cast<double>(k % 7) - 3);
    result.squares += values[k] * values[k];
  }
  return result;
}

double Tolerance(lath_dtype dtype) { return dtype == LATH_F64 ? 1e-9 : 1e-5; }

void ExpectGolden(const Operand &operand, const Checksums &want) {
  const Checksums got = ChecksumsOf(operand);
  const double tolerance = Tolerance(operand.dtype());
  EXPECT_NEAR(got.sum, want.sum, tolerance * std::fabs(want.sum));
  EXPECT_NEAR(got.weighted, want.weighted, tolerance * std::fabs(want.weighted));
  EXPECT_NEAR(got.squares, want.squares, tolerance * want.squares);
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
