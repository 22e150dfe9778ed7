// SPDX-License-Identifier: Apache-2.0
//
// oialr_cases.h - calls of the OIALR entries, and their formulas on dense double-precision matrices.

#ifndef LATH_TESTS_C_OIALR_CASES_H_
#define LATH_TESTS_C_OIALR_CASES_H_

#include "cases.h"

namespace lath_test {

using OialrArgs = struct ::lath_oialr_linear;

struct OialrValues {
  Values t, y, dx, ds, d_bias;
};

enum OialrGradient : unsigned { kOialrDx = 1, kOialrDs = 2, kOialrDBias = 4, kOialrAll = 7 };

struct OialrLayouts {
  Layout x, weights, dy;
};

struct OialrInputs {
  OialrInputs(lath_dtype type, LowrankShape extents, bool with_bias, Numbers numbers, uint32_t seed,
              const OialrLayouts &layouts = {});

  lath_dtype dtype;
  LowrankShape shape;
  bool has_bias;
  Operand x, vh, s, u, bias, dy;

  OialrArgs Arguments() const;  // what forward and backward share
  OialrValues Want() const;
  OialrValues Bounds(double further = 0.0) const;  // of rounding errors, see oracle.h; a further share of the magnitudes
};

struct OialrOptions : CallOptions {
  lath_oialr_route route = LATH_OIALR_AUTO;
};

struct OialrForward {
  lath_status status;
  bool workspace_intact;
  Operand t, y;
};

struct OialrBackward {
  lath_status status;
  bool workspace_intact;
  Operand dx, ds, d_bias;
};

OialrForward RunOialrForward(const OialrInputs &inputs, const OialrOptions &options, bool with_t);

// `t` may be nullptr: recomputed from x. Without x, which a call that has t may leave out, its pointer is NULL.
OialrBackward RunOialrBackward(const OialrInputs &inputs, const OialrOptions &options, unsigned gradients = kOialrAll,
                               const Operand *t = nullptr, bool with_x = true);

// The gradients that were asked for pass `check`, the others were not touched.
template <typename Check>
testing::AssertionResult EachOialrGradient(const OialrBackward &run, unsigned gradients, Check check) {
  struct Named {
    const char *name;
    unsigned bit;
    Operand OialrBackward::*got;
    Values OialrValues::*want;
  };
  static constexpr Named kNamed[] = {{"dx", kOialrDx, &OialrBackward::dx, &OialrValues::dx},
                                     {"ds", kOialrDs, &OialrBackward::ds, &OialrValues::ds},
                                     {"d_bias", kOialrDBias, &OialrBackward::d_bias, &OialrValues::d_bias}};
  const testing::AssertionResult completed = Completed(run);
  if (!completed) return completed;
  for (const Named &named : kNamed) {
    const Operand &got = run.*named.got;
    if (!(gradients & named.bit)) {
      if (!got.Untouched()) return testing::AssertionFailure() << named.name << " was written and not asked for";
      continue;
    }
    const testing::AssertionResult result = check(got, named.want);
    if (!result) return testing::AssertionFailure() << named.name << ": " << result.message();
  }
  return testing::AssertionSuccess();
}

testing::AssertionResult Exact(const OialrForward &run, const OialrValues &want, bool with_t);
testing::AssertionResult Exact(const OialrBackward &run, const OialrValues &want, unsigned gradients);

}  // namespace lath_test

#endif  // LATH_TESTS_C_OIALR_CASES_H_
