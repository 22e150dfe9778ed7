// SPDX-License-Identifier: Apache-2.0
//
// test_oialr_threads.cc - the layer in an orthogonal basis on several threads: the same bits, and a host that refuses.

#include "oialr_cases.h"
#include "refusals.h"

namespace lath_test {
namespace {

constexpr lath_oialr_route kRoutes[] = {LATH_OIALR_CHAINED, LATH_OIALR_FOLDED, LATH_OIALR_MERGED};
constexpr LowrankShape kShapes[] = {{20, 700, 90, 600}, {300, 200, 70, 150}, {1500, 96, 40, 130}};

class OialrThreads : public PerPath {};

TEST_P(OialrThreads, AnyNumberGivesTheSameBits) {
  uint32_t seed = 1;
  for (const LowrankShape &shape : kShapes) {
    for (const lath_dtype dtype : {LATH_F32, LATH_BF16}) {
      for (const lath_oialr_route route : kRoutes) {
        const OialrInputs inputs(dtype, shape, true, Numbers::kUniform, seed);
        OialrOptions options;
        options.route = route;
        const OialrForward one = RunOialrForward(inputs, options, true);
        const OialrBackward one_back = RunOialrBackward(inputs, options);
        for (const int threads : {2, 3, 7}) {
          ThreadHost host(threads, static_cast<Cut>(seed % 3), seed);
          options.host = host.get();
          const OialrForward many = RunOialrForward(inputs, options, true);
          const OialrBackward many_back = RunOialrBackward(inputs, options);
          ASSERT_TRUE(Completed(many));
          ASSERT_TRUE(Completed(many_back));
          EXPECT_TRUE(SameBits(many.y, one.y));
          if (route != LATH_OIALR_MERGED) {
            EXPECT_TRUE(SameBits(many.t, one.t));
          }
          EXPECT_TRUE(SameBits(many_back.dx, one_back.dx));
          EXPECT_TRUE(SameBits(many_back.ds, one_back.ds));
          EXPECT_TRUE(SameBits(many_back.d_bias, one_back.d_bias));
          ++seed;
        }
      }
    }
  }
}

LATH_FAST_PATHS(OialrThreads);

TEST(OialrHosts, ARefusalEndsTheCall) {
  for (const LowrankShape &shape : kShapes) {
    for (const lath_oialr_route route : kRoutes) {
      const OialrInputs inputs(LATH_F32, shape, true, Numbers::kUniform, 3);
      OialrOptions options;
      options.route = route;
      ExpectHostFailures([&](const lath_host *host) {
        options.host = host;
        return RunOialrForward(inputs, options, false).status;
      });
      ExpectHostFailures([&](const lath_host *host) {
        options.host = host;
        return RunOialrBackward(inputs, options).status;
      });
    }
  }
}

}  // namespace
}  // namespace lath_test
