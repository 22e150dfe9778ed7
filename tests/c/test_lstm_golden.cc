// SPDX-License-Identifier: Apache-2.0
//
// test_lstm_golden.cc - checksums of case G4 (low-rank LSTM), computed once by an independent float64 program. Checksums of a
// flattened tensor t: sum t, sum t_k ((k mod 7) - 3), sum t^2.

#include <cmath>
#include <numeric>

#include "lstm_cases.h"

namespace lath_test {
namespace {

void ExpectGolden(const char *name, lath_dtype dtype, const Values &values, const Values &want) {
  Values got(3, 0.0);
  for (size_t k = 0; k < values.size(); ++k) {
    got[0] += values[k];
    got[1] += values[k] * (static_cast<double>(k % 7) - 3);
    got[2] += values[k] * values[k];
  }
  const double tolerance = dtype == LATH_F64 ? 1e-9 : 1e-5;
  for (size_t k = 0; k < 3; ++k) EXPECT_NEAR(got[k], want[k], tolerance * std::max(1.0, std::fabs(want[k]))) << name;
}

double Dot(const Values &a, const Values &b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); }

LstmInputs G4(lath_dtype dtype) {
  LstmInputs inputs(dtype, LstmShape().Sizes(3, 4).Ranks(2, 3).Sequence(5, 2), 1);
  const auto fill = [](Operand *operand, uint32_t seed, double scale) { operand->Fill(Uniform(seed, operand->size(), scale)); };
  inputs.x.Fill(Uniform(90, 5 * 2 * 3));
  inputs.dy.Fill(Uniform(93, 5 * 2 * 4));
  fill(&inputs.v_in, 21, 0.7);
  fill(&inputs.u_in, 22, 0.7);
  fill(&inputs.v, 23, 0.7);
  fill(&inputs.u, 24, 0.7);
  fill(&inputs.bias_in, 25, 0.3);
  fill(&inputs.bias, 26, 0.3);
  fill(&inputs.h0, 91, 0.5);
  fill(&inputs.c0, 92, 0.5);
  fill(&inputs.dhn, 94, 1);
  fill(&inputs.dcn, 95, 1);
  return inputs;
}

class LstmGolden : public PerPath {};

TEST_P(LstmGolden, G4LowrankLstm) {
  for (const lath_dtype dtype : {LATH_F64, LATH_F32}) {
    for (const lath_association association : {LATH_AUTO, LATH_FACTORED, LATH_MERGED}) {
      for (const bool with_gates : {false, true}) {
        const LstmInputs inputs = G4(dtype);
        LstmOptions options;
        options.ref = ref();
        options.association = association;
        const LstmRun run = RunLstm(inputs, options);
        ASSERT_TRUE(Completed(run));
        const double loss =
            Dot(run.y.Read(), inputs.dy.Read()) + Dot(run.hn.Read(), inputs.dhn.Read()) + Dot(run.cn.Read(), inputs.dcn.Read());
        EXPECT_NEAR(loss, 0.39396300789, dtype == LATH_F64 ? 1e-10 : 1e-5);
        ExpectGolden("y", dtype, run.y.Read(), {-1.9750077904, 0.652726480024, 0.351492106376});
        ExpectGolden("cn", dtype, run.cn.Read(), {-1.2135751334, 2.34062537829, 1.05682822529});
        const LstmBackwardRun back = RunLstmBackward(inputs, run, with_gates, options);
        ASSERT_TRUE(Completed(back));
        ExpectGolden("dx", dtype, back.dx.Read(), {2.1750506085, 0.273024313137, 0.344392785819});
        ExpectGolden("dh0", dtype, back.dh0.Read(), {0.51145757286, -1.07826290528, 0.174274850031});
        ExpectGolden("dv_in", dtype, back.dv_in.Read(), {-0.975586519196, -1.38591237865, 0.388928466214});
        ExpectGolden("du_in", dtype, back.du_in.Read(), {-0.199658633581, -2.50941473553, 2.01264999585});
        ExpectGolden("dv", dtype, back.dv.Read(), {0.331897429159, 0.35572651659, 0.0638635899207});
        ExpectGolden("du", dtype, back.du.Read(), {-0.11242987724, 0.526694673378, 0.152467642502});
        ExpectGolden("d_bias", dtype, back.d_bias.Read(), {0.967063129356, -1.26911637953, 7.09833075044});
      }
    }
  }
}

LATH_EVERY_PATH(LstmGolden);

}  // namespace
}  // namespace lath_test
