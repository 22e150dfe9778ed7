// SPDX-License-Identifier: Apache-2.0
//
// test_oialr.cc - the layer in an orthogonal basis: every route, t kept or not, every mask, and what the entries refuse.

#include <cmath>
#include <limits>

#include "oialr_cases.h"
#include "refusals.h"

namespace lath_test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr lath_oialr_route kRoutes[] = {LATH_OIALR_AUTO, LATH_OIALR_CHAINED, LATH_OIALR_FOLDED, LATH_OIALR_MERGED};
constexpr lath_dtype kDtypes[] = {LATH_F32, LATH_F64, LATH_BF16};

std::string Describe(const OialrInputs &inputs, lath_oialr_route route) {
  const LowrankShape &s = inputs.shape;
  return "dtype " + std::to_string(inputs.dtype) + " rows " + std::to_string(s.rows) + " in " + std::to_string(s.in) +
         " rank " + std::to_string(s.rank) + " out " + std::to_string(s.out) + " route " + std::to_string(route);
}

class Oialr : public PerPath {
 protected:
  OialrOptions Options(lath_oialr_route route = LATH_OIALR_AUTO) const {
    OialrOptions options;
    options.ref = ref();
    options.route = route;
    return options;
  }

  // Integers: exact on every route and for every order of additions. Forward, then backward with t kept and without.
  void CheckExactly(const LowrankShape &shape, uint32_t seed) {
    Choices choices(seed);
    const lath_dtype dtype = choices.OneIn(8) ? LATH_F64 : choices.OneIn(2) ? LATH_BF16 : LATH_F32;
    const OialrInputs inputs(dtype, shape, choices.OneIn(2), Numbers::kIntegers, seed,
                             {RandomLayout(&choices, true), RandomLayout(&choices, true), RandomLayout(&choices, true)});
    OialrOptions options = Options(kRoutes[choices.Below(4)]);
    options.output = RandomLayout(&choices, false);
    options.contiguous.misalignment = choices.Below(3);
    options.workspace_misalignment = choices.OneIn(2) ? lath_dtype_size(dtype) : 0;
    CheckBothWays(inputs, options, choices.OneIn(2) ? kOialrAll : static_cast<unsigned>(choices.Below(8)));
  }

  void CheckBothWays(const OialrInputs &inputs, const OialrOptions &options, unsigned gradients) {
    const OialrValues want = inputs.Want();
    const bool keeps = options.route != LATH_OIALR_MERGED;
    const OialrForward forward = RunOialrForward(inputs, options, keeps);
    EXPECT_TRUE(Exact(forward, want, keeps)) << Describe(inputs, options.route);
    EXPECT_TRUE(Exact(RunOialrBackward(inputs, options, gradients), want, gradients)) << Describe(inputs, options.route);
    if (keeps) {
      EXPECT_TRUE(Exact(RunOialrBackward(inputs, options, gradients, &forward.t, false), want, gradients))
          << "t kept, no x: " << Describe(inputs, options.route);
    }
  }
};

TEST_P(Oialr, IsExactAtEveryPairOfWidths) {
  Choices choices(1);
  for (const int64_t a : kWidthEdges) {
    for (const int64_t b : kWidthEdges) {
      const int64_t rows = choices.From(kRowEdges), c = choices.From({1, 7, 16, 17, 33, 64});
      const LowrankShape turns[] = {{rows, a, c, b}, {rows, c, a, b}, {rows, b, a, c}};
      CheckExactly(turns[choices.Below(3)], choices.Next());
    }
  }
}

TEST_P(Oialr, IsExactAtEveryRowCount) {
  Choices choices(2);
  for (const int64_t rows : kRowEdges) {
    for (int repeat = 0; repeat < 8; ++repeat)
      CheckExactly({rows, choices.From(kWidthEdges), choices.From({1, 8, 15, 48, 65}), choices.From(kWidthEdges)},
                   choices.Next());
  }
}

TEST_P(Oialr, IsExactWhereAnExtentNeedsSeveralBlocks) {
  Choices choices(3);
  for (const int64_t rows : {9, 66, 700}) {
    CheckExactly({rows, 1025, 20, 33}, choices.Next());
    CheckExactly({rows, 33, 20, 1025}, choices.Next());
    CheckExactly({rows, 40, 300, 50}, choices.Next());
  }
  CheckExactly({4100, 3, 2, 4}, choices.Next());
}

TEST_P(Oialr, EveryRouteAndMaskWritesExactlyWhatWasAskedFor) {
  for (const LowrankShape &shape : {LowrankShape{3, 18, 5, 21}, LowrankShape{70, 33, 17, 20}, LowrankShape{70, 20, 17, 33}}) {
    for (const lath_dtype dtype : kDtypes) {
      const OialrInputs inputs(dtype, shape, true, Numbers::kIntegers, 31);
      for (const lath_oialr_route route : kRoutes)
        for (unsigned gradients = 0; gradients <= kOialrAll; ++gradients) CheckBothWays(inputs, Options(route), gradients);
    }
  }
}

TEST_P(Oialr, RealNumbersStayWithinTheBound) {
  Choices choices(5);
  for (const lath_dtype dtype : kDtypes) {
    for (int repeat = 0; repeat < 40; ++repeat) {
      const LowrankShape shape = {choices.From(kRowEdges), choices.From(kWidthEdges), choices.From(kWidthEdges),
                                  choices.From(kWidthEdges)};
      const OialrInputs inputs(dtype, shape, true, Numbers::kUniform, choices.Next());
      const OialrOptions options = Options(kRoutes[repeat % 4]);
      const OialrValues want = inputs.Want(), bounds = inputs.Bounds();
      const OialrForward forward = RunOialrForward(inputs, options, false);
      ASSERT_TRUE(Completed(forward));
      EXPECT_TRUE(Within(forward.y, want.y, bounds.y)) << Describe(inputs, options.route);
      EXPECT_TRUE(EachOialrGradient(
          RunOialrBackward(inputs, options), kOialrAll,
          [&](const Operand &got, Values OialrValues::*values) { return Within(got, want.*values, bounds.*values); }))
          << Describe(inputs, options.route);
    }
  }
}

TEST_P(Oialr, ZeroExtentsGiveEmptySums) {
  for (const lath_dtype dtype : kDtypes) {
    for (const lath_oialr_route route : kRoutes) {
      for (int zeros = 1; zeros < 16; ++zeros) {
        const LowrankShape shape = {zeros & 1 ? 0 : 5, zeros & 2 ? 0 : 6, zeros & 4 ? 0 : 3, zeros & 8 ? 0 : 7};
        CheckBothWays(OialrInputs(dtype, shape, true, Numbers::kIntegers, 3), Options(route), kOialrAll);
      }
    }
  }
}

TEST_P(Oialr, TouchesNothingBeyondItsOperands) {
  Choices choices(6);
  for (const Place place : {Place::kPageEnd, Place::kPageStart}) {
    Layout layout;
    layout.place = place;
    for (int repeat = 0; repeat < 60; ++repeat) {
      const LowrankShape shape = {choices.From({1, 2, 5, 13, 33, 65}), choices.From({1, 7, 16, 33, 100}),
                                  choices.From({1, 3, 15, 16, 40, 65}), choices.From({1, 15, 48, 50, 100})};
      const lath_dtype dtype = choices.OneIn(2) ? LATH_F32 : LATH_BF16;
      const OialrInputs inputs(dtype, shape, true, Numbers::kIntegers, choices.Next(), {layout, layout, layout});
      OialrOptions options = Options(kRoutes[repeat % 4]);
      options.output.place = options.contiguous.place = place;
      CheckBothWays(inputs, options, kOialrAll);
    }
  }
}

TEST_P(Oialr, NanInARowStaysInThatRow) {
  for (const lath_oialr_route route : kRoutes) {
    for (const int64_t rows : {2, 9, 33, 130}) {
      OialrInputs inputs(LATH_F32, {rows, 37, 19, 53}, true, Numbers::kIntegers, 11);
      inputs.x.Set(rows / 2, 36, kNaN);
      inputs.dy.Set(rows / 2, 52, kNaN);
      CheckBothWays(inputs, Options(route), kOialrDx | kOialrDBias);
    }
  }
}

LATH_EVERY_PATH(Oialr);

// ---- the plan -----------------------------------------------------------------------------------------------------------

struct lath_oialr_plan PlanOf(int64_t rows, int64_t in, int64_t rank, int64_t out, int training) {
  OialrArgs args = {};
  args.rows = rows, args.in = in, args.rank = rank, args.out = out;
  struct lath_oialr_plan plan = {};
  EXPECT_EQ(lath_oialr_linear_plan(&args, training, &plan), LATH_OK);
  return plan;
}

TEST(OialrPlan, TheCoreGoesToTheCheaperSide) {
  EXPECT_EQ(PlanOf(1024, 768, 96, 3072, 0).route, LATH_OIALR_CHAINED);  // fewer rows than features
  EXPECT_EQ(PlanOf(8192, 768, 96, 3072, 0).route, LATH_OIALR_FOLDED);
  EXPECT_EQ(PlanOf(16, 768, 4, 12, 0).route, LATH_OIALR_CHAINED);  // few rows read weights in place
  EXPECT_EQ(PlanOf(4096, 768, 700, 768, 0).route, LATH_OIALR_MERGED);
}

TEST(OialrPlan, ATrainingStepCountsAllProducts) {
  const int64_t rows = 256, in = 768, rank = 96, out = 1024;
  const struct lath_oialr_plan plan = PlanOf(rows, in, rank, out, 1);
  EXPECT_EQ(plan.macs, rows * (2 * rank * (in + out) + 3 * rank * rank));
  EXPECT_EQ(plan.dense_macs, 3 * rows * in * out);
  EXPECT_EQ(plan.save_t, 1);
}

TEST(OialrPlan, AboveBreakEvenAStepKeepsX) {
  EXPECT_EQ(PlanOf(8192, 768, 600, 768, 1).save_t, 0);
  EXPECT_EQ(PlanOf(8192, 768, 384, 768, 1).save_t, 1);
}

// ---- refusals -----------------------------------------------------------------------------------------------------------

struct ValidCall {
  OialrInputs inputs{LATH_F32, {70, 33, 17, 20}, true, Numbers::kIntegers, 1};
  Operand y{LATH_F32, 70, 20}, dx{LATH_F32, 70, 33}, ds{LATH_F32, 17, 17}, d_bias{LATH_F32, 1, 20};
  std::unique_ptr<Memory> workspace;
  OialrArgs args = inputs.Arguments();

  explicit ValidCall(bool backward) {
    const auto query = backward ? lath_oialr_linear_backward_workspace : lath_oialr_linear_workspace;
    if (backward) {
      args.dy = inputs.dy.data(), args.s_dy = inputs.dy.stride();
      args.dx = dx.data(), args.s_dx = dx.stride(), args.ds = ds.data(), args.d_bias = d_bias.data();
    } else {
      args.y = y.data(), args.s_y = y.stride();
    }
    EXPECT_EQ(query(&args, &lath_serial_host, &args.workspace_bytes), LATH_OK);
    workspace = std::make_unique<Memory>(args.workspace_bytes);
    args.workspace = workspace->data();
  }
  bool Untouched() const { return y.Untouched() && dx.Untouched() && ds.Untouched() && d_bias.Untouched(); }
};

const std::vector<BadCall<OialrArgs>> kBadCalls = {
    {"dtype", LATH_UNSUPPORTED_DTYPE, [](OialrArgs *a) { SetTo(&a->dtype, 9); }},
    {"f16", LATH_UNSUPPORTED_DTYPE, [](OialrArgs *a) { a->dtype = LATH_F16; }},
    {"route", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { SetTo(&a->route, 4); }},
    {"rows", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->rows = -1; }},
    {"rank", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->rank = -1; }},
    {"huge", LATH_SIZE_OVERFLOW, [](OialrArgs *a) { a->rank = INT64_MAX / 2; }},
    {"vh", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->vh = nullptr; }},
    {"s", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->s = nullptr; }},
    {"u", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->u = nullptr; }},
    {"s_vh", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->s_vh = 32; }},
    {"s_s", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->s_s = 16; }},
    {"s_u", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->s_u = -17; }},
    {"x", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->x = nullptr; }},
    {"no workspace", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->workspace = nullptr; }},
    {"small workspace", LATH_SMALL_WORKSPACE, [](OialrArgs *a) { a->workspace_bytes -= 1; }},
};

TEST(OialrBadArguments, ForwardRefuses) {
  std::vector<BadCall<OialrArgs>> calls = kBadCalls;
  calls.push_back({"y", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->y = nullptr; }});
  calls.push_back({"s_y", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->s_y = 0; }});
  calls.push_back({"dy", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->dy = a->x; }});
  ExpectRefusals<OialrArgs>(
      calls, [] { return ValidCall(false); }, [](const OialrArgs *a) { return lath_oialr_linear(a, &lath_serial_host); });
}

TEST(OialrBadArguments, BackwardRefuses) {
  std::vector<BadCall<OialrArgs>> calls = kBadCalls;
  calls.push_back({"dy", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->dy = nullptr; }});
  calls.push_back({"s_dx", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->s_dx = 0; }});
  ExpectRefusals<OialrArgs>(
      calls, [] { return ValidCall(true); },
      [](const OialrArgs *a) { return lath_oialr_linear_backward(a, &lath_serial_host); });
}

TEST(OialrBadArguments, NullPointersAreRefused) {
  OialrArgs args = {};
  struct lath_oialr_plan plan;
  size_t bytes;
  EXPECT_EQ(lath_oialr_linear(nullptr, &lath_serial_host), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_oialr_linear(&args, nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_oialr_linear_backward(nullptr, &lath_serial_host), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_oialr_linear_ref(nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_oialr_linear_backward_ref(nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_oialr_linear_workspace(&args, &lath_serial_host, nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_oialr_linear_backward_workspace(nullptr, &lath_serial_host, &bytes), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_oialr_linear_plan(nullptr, 0, &plan), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_oialr_linear_plan(&args, 0, nullptr), LATH_INVALID_ARGUMENT);
}

TEST(OialrBadArguments, SizesAreCheckedForOverflow) {
  for (int64_t OialrArgs::*extent : {&OialrArgs::rows, &OialrArgs::in, &OialrArgs::rank, &OialrArgs::out}) {
    for (const lath_oialr_route route : kRoutes) {
      OialrArgs args = {};
      args.rows = args.in = args.rank = args.out = 64;
      args.route = route;
      ExpectGrowingSizes<OialrArgs>(args, extent, [](const OialrArgs *a, size_t *bytes) {
        return lath_oialr_linear_workspace(a, &lath_serial_host, bytes);
      });
      ExpectGrowingSizes<OialrArgs>(args, extent, [](const OialrArgs *a, size_t *bytes) {
        return lath_oialr_linear_backward_workspace(a, &lath_serial_host, bytes);
      });
    }
  }
}

}  // namespace
}  // namespace lath_test
