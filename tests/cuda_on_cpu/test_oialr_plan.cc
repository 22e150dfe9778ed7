// SPDX-License-Identifier: Apache-2.0
//
// test_oialr_plan.cc - which route an OIALR layer takes on the device, which kernels a route launches, and what the entries refuse.

#include "oialr_on_device.h"
#include "refusals.h"

namespace cuda_test {
namespace {

using lath_test::BadCall;
using lath_test::SetTo;
using OialrPlan = struct ::lath_oialr_plan;

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();

// Aligned as torch aligns its tensors; nothing reads it.
alignas(64) unsigned char kData[64];

OialrArgs ArgsOf(lath_dtype dtype, int64_t rows, int64_t in, int64_t rank, int64_t out) {
  OialrArgs args = {};
  args.dtype = dtype;
  args.rows = rows, args.in = in, args.rank = rank, args.out = out;
  args.x = args.vh = args.s = args.u = args.bias = kData;
  args.y = kData;
  args.s_x = args.s_vh = args.s_dx = in;
  args.s_s = args.s_u = rank;
  args.s_y = args.s_dy = out;
  return args;
}

OialrPlan PlanOf(const OialrArgs &args, bool training, const DeviceOptions &options = {}) {
  Lent lent(options);
  OialrPlan plan = {};
  EXPECT_EQ(lath_cuda_oialr_linear_plan(&args, lent.get(), training, &plan), LATH_OK);
  return plan;
}

TEST(OialrDevicePlan, TheCoreGoesIntoABasisWhereRowsAreMany) {
  for (const lath_dtype dtype : {LATH_F32, LATH_BF16, LATH_F16}) {
    EXPECT_EQ(PlanOf(ArgsOf(dtype, 32768, 1024, 64, 1024), true).route, LATH_OIALR_FOLDED) << dtype;
    EXPECT_EQ(PlanOf(ArgsOf(dtype, 16, 4096, 256, 4096), false).route, LATH_OIALR_CHAINED) << dtype;
  }
}

TEST(OialrDevicePlan, AboveBreakEvenAStepKeepsX) {
  for (const lath_dtype dtype : {LATH_F32, LATH_BF16, LATH_F16}) {
    EXPECT_EQ(PlanOf(ArgsOf(dtype, 16384, 1024, 900, 1024), true).save_t, 0) << dtype;
    EXPECT_EQ(PlanOf(ArgsOf(dtype, 16384, 1024, 900, 1024), true).route, LATH_OIALR_MERGED) << dtype;
    EXPECT_EQ(PlanOf(ArgsOf(dtype, 16384, 1024, 256, 1024), true).save_t, 1) << dtype;
  }
  EXPECT_EQ(PlanOf(ArgsOf(LATH_F64, 16384, 1024, 900, 1024), true).route, LATH_OIALR_CHAINED);
  EXPECT_EQ(PlanOf(ArgsOf(LATH_F64, 16384, 1024, 900, 1024), false).route, LATH_OIALR_CHAINED);
}

TEST(OialrDevicePlan, AnOrderIsFollowed) {
  for (const lath_dtype dtype : kDtypes) {
    for (const bool training : {false, true}) {
      for (const lath_oialr_route route : {LATH_OIALR_CHAINED, LATH_OIALR_FOLDED, LATH_OIALR_MERGED}) {
        OialrArgs args = ArgsOf(dtype, 100, 64, 8, 64);
        args.route = route;
        EXPECT_EQ(PlanOf(args, training).route, route);
        EXPECT_EQ(PlanOf(args, training).save_t, route != LATH_OIALR_MERGED);
        DeviceOptions options;
        options.route = LATH_LOWRANK_MERGED;
        EXPECT_EQ(PlanOf(args, training, options).route, route) << "a forced route does not overrule the caller";
      }
    }
  }
  DeviceOptions options;
  for (const bool training : {false, true}) {
    options.route = LATH_LOWRANK_MERGED;
    EXPECT_EQ(PlanOf(ArgsOf(LATH_F32, 100, 64, 8, 64), training, options).route, LATH_OIALR_MERGED);
    options.route = LATH_LOWRANK_PRODUCTS;
    EXPECT_NE(PlanOf(ArgsOf(LATH_F32, 16384, 1024, 900, 1024), training, options).route, LATH_OIALR_MERGED);
  }
}

TEST(OialrDevicePlan, CountsAsTheProcessorsDoes) {
  for (const bool training : {false, true}) {
    for (const lath_oialr_route route : {LATH_OIALR_CHAINED, LATH_OIALR_FOLDED, LATH_OIALR_MERGED}) {
      OialrArgs args = ArgsOf(LATH_F32, 33, 20, 7, 30);
      args.route = route;
      OialrPlan want = {};
      ASSERT_EQ(lath_oialr_linear_plan(&args, training, &want), LATH_OK);
      args.dtype = LATH_F16;
      EXPECT_EQ(PlanOf(args, training).macs, want.macs);
      EXPECT_EQ(PlanOf(args, training).dense_macs, want.dense_macs);
    }
  }
  // A forward and a backward of different routes: the core is folded into the smaller side alone.
  const int64_t rows = 4096, in = 512, rank = 128, out = 65536;
  const OialrPlan plan = PlanOf(ArgsOf(LATH_F32, rows, in, rank, out), true);
  ASSERT_EQ(plan.route, LATH_OIALR_CHAINED);
  EXPECT_EQ(plan.macs, rows * (2 * rank * (in + out) + 2 * rank * rank) + rank * rank * in);
}

#if !defined(LATH_TESTS_ON_GPU)
TEST(OialrDevicePlan, ADeviceThatIsUnknownIsAFailure) {
  Lent lent((DeviceOptions()));
  lent.get()->device = 10000;
  OialrPlan plan = {};
  const OialrArgs args = ArgsOf(LATH_F32, 3, 4, 2, 5);
  EXPECT_EQ(lath_cuda_oialr_linear_plan(&args, lent.get(), 0, &plan), LATH_DEVICE_FAILED);
}

// cuBLAS is no launch of ours: what is left are the kernels of the pair of products that ends in y or dx.
TEST(OialrDeviceLaunches, AreThoseOfTheForcedPair) {
  struct Case {
    int route;
    int64_t rows;
    lath_dtype dtype;
    long forward, backward;
  };
  for (const Case &c : {Case{LATH_LOWRANK_PRODUCTS, 40, LATH_F32, 0, 0}, Case{LATH_LOWRANK_PRODUCTS, 4, LATH_BF16, 0, 0},
                        Case{LATH_LOWRANK_FEW, 4, LATH_F32, 2, 0}, Case{LATH_LOWRANK_FEW, 16, LATH_F64, 2, 0},
                        Case{LATH_LOWRANK_FUSED, 40, LATH_BF16, 1, 1}, Case{LATH_LOWRANK_FUSED, 40, LATH_F16, 1, 1}}) {
    for (const lath_oialr_route route : {LATH_OIALR_AUTO, LATH_OIALR_CHAINED, LATH_OIALR_FOLDED}) {
      const OialrInputs inputs = ExactOialrInputs(c.dtype, {c.rows, 40, 16, 56}, false, 5);
      OialrDeviceOptions options;
      options.association = route;
      options.route = c.route;
      long before = emulator_launches();
      const OialrForward forward = OialrForwardOnDevice(inputs, options, true);
      EXPECT_EQ(emulator_launches() - before, c.forward) << Describe(inputs, options);
      before = emulator_launches();
      OialrBackwardOnDevice(inputs, options, kOialrDx | kOialrDs, &forward.t, false);
      EXPECT_EQ(emulator_launches() - before, c.backward) << Describe(inputs, options);
    }
  }
}

// Without cuBLAS ds of many rows is a kernel over parts of them and one that adds the parts; h is one more, in front.
TEST(OialrDeviceLaunches, SumManyRowsInParts) {
  for (const lath_dtype dtype : kDtypes) {
    for (const int64_t rows : {300, 600}) {
      const OialrInputs inputs = ExactOialrInputs(dtype, {rows, 40, 16, 24}, false, 5);
      OialrDeviceOptions options;
      options.association = LATH_OIALR_CHAINED;
      options.blas = false;
      const OialrForward forward = OialrForwardOnDevice(inputs, options, true);
      const long before = emulator_launches();
      const OialrBackward run = OialrBackwardOnDevice(inputs, options, kOialrDs, &forward.t, false);
      EXPECT_EQ(emulator_launches() - before, rows == 600 ? 3 : 2);
      EXPECT_TRUE(Exact(run, inputs.Want(), kOialrDs));
    }
  }
}
#endif

// ---- refusals --------------------------------------------------------------------------------------------------------

const std::vector<BadCall<OialrArgs>> kBad = {
    {"unknown dtype", LATH_UNSUPPORTED_DTYPE, [](OialrArgs *a) { SetTo(&a->dtype, 4); }},
    {"unknown route", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { SetTo(&a->route, 4); }},
    {"negative rows", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->rows = -1; }},
    {"negative rank", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->rank = -1; }},
    {"no vh", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->vh = nullptr; }},
    {"no s", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->s = nullptr; }},
    {"no u", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->u = nullptr; }},
    {"no x", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->x = nullptr; }},
    {"short stride of x", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->s_x = 3; }},
    {"short stride of vh", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->s_vh = 3; }},
    {"short stride of s", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->s_s = 1; }},
    {"short stride of u", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->s_u = 1; }},
    {"rows beyond the address space", LATH_SIZE_OVERFLOW, [](OialrArgs *a) { a->rows = kHuge; }},
    {"stride of s", LATH_SIZE_OVERFLOW, [](OialrArgs *a) { a->s_s = kHuge; }},
    {"small workspace", LATH_SMALL_WORKSPACE, [](OialrArgs *a) { a->workspace_bytes--; }},
    {"no workspace", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->workspace = nullptr; }},
};
const std::vector<BadCall<OialrArgs>> kBadForward = {
    {"no y", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->y = nullptr; }},
    {"dy in a forward", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->dy = a->x; }},
    {"repeated rows of y", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->s_y = 0; }},
};
const std::vector<BadCall<OialrArgs>> kBadBackward = {
    {"no dy", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->dy = nullptr; }},
    {"short stride of dy", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->s_dy = 4; }},
    {"short stride of dx", LATH_INVALID_ARGUMENT, [](OialrArgs *a) { a->s_dx = 3; }},
};

template <typename Query, typename Entry>
void ExpectRefused(const OialrArgs &valid, const std::vector<BadCall<OialrArgs>> &calls, Query query, Entry entry) {
  Lent lent((DeviceOptions()));
  size_t bytes = 0;
  ASSERT_EQ(query(&valid, lent.get(), &bytes), LATH_OK);
  ASSERT_GT(bytes, 0u);
  const Guarded workspace(bytes);
  for (const BadCall<OialrArgs> &call : calls) {
    OialrArgs args = valid;
    args.workspace = workspace.data();
    args.workspace_bytes = bytes;
    call.change(&args);
    EXPECT_EQ(entry(&args, lent.get()), call.want) << call.name;
  }
  EXPECT_EQ(entry(nullptr, lent.get()), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(entry(&valid, nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(query(nullptr, lent.get(), &bytes), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(query(&valid, nullptr, &bytes), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(query(&valid, lent.get(), nullptr), LATH_INVALID_ARGUMENT);
}

OialrArgs BackwardArgsOf(lath_oialr_route route) {
  OialrArgs args = ArgsOf(LATH_F32, 3, 4, 2, 5);
  args.route = route;
  args.y = nullptr;
  args.dy = args.dx = args.ds = kData;
  return args;
}

TEST(OialrDeviceRefusals, AreThoseOfTheProcessor) {
  for (const lath_oialr_route route : {LATH_OIALR_CHAINED, LATH_OIALR_FOLDED, LATH_OIALR_MERGED}) {
    OialrArgs forward = ArgsOf(LATH_F32, 3, 4, 2, 5);
    forward.route = route;
    ExpectRefused(forward, kBad, lath_cuda_oialr_linear_workspace, lath_cuda_oialr_linear);
    ExpectRefused(forward, kBadForward, lath_cuda_oialr_linear_workspace, lath_cuda_oialr_linear);
    ExpectRefused(BackwardArgsOf(route), kBad, lath_cuda_oialr_linear_backward_workspace, lath_cuda_oialr_linear_backward);
    ExpectRefused(BackwardArgsOf(route), kBadBackward, lath_cuda_oialr_linear_backward_workspace,
                  lath_cuda_oialr_linear_backward);
  }
}

// Only ds needs x, and only without t or on the merged route.
TEST(OialrDeviceRefusals, XMayBeAbsentWhereNothingReadsIt) {
  Lent lent((DeviceOptions()));
  size_t bytes = 0;
  for (const lath_oialr_route route : kOialrRoutes) {
    for (const bool with_t : {false, true}) {
      for (const bool with_ds : {false, true}) {
        OialrArgs args = BackwardArgsOf(route);
        args.x = nullptr;
        args.t = with_t ? kData : nullptr;
        if (!with_ds) args.ds = nullptr;
        const bool reads = with_ds && (!with_t || route == LATH_OIALR_MERGED);
        EXPECT_EQ(lath_cuda_oialr_linear_backward_workspace(&args, lent.get(), &bytes), reads ? LATH_INVALID_ARGUMENT : LATH_OK)
            << "route " << route << " t " << with_t << " ds " << with_ds;
      }
    }
  }
}

TEST(OialrDeviceRefusals, SizesGrowUntilTheyAreRefused) {
  for (int64_t OialrArgs::*extent : {&OialrArgs::rows, &OialrArgs::in, &OialrArgs::rank, &OialrArgs::out}) {
    for (const lath_oialr_route route : {LATH_OIALR_CHAINED, LATH_OIALR_FOLDED, LATH_OIALR_MERGED}) {
      for (const bool backward : {false, true}) {
        OialrArgs args = ArgsOf(LATH_BF16, 33, 40, 24, 56);
        args.route = route;
        lath_test::ExpectGrowingSizes<OialrArgs>(args, extent, [=](const OialrArgs *a, size_t *bytes) {
          OialrArgs sized = ArgsOf(a->dtype, a->rows, a->in, a->rank, a->out);
          sized.route = a->route;
          Lent lent((DeviceOptions()));
          if (!backward) return lath_cuda_oialr_linear_workspace(&sized, lent.get(), bytes);
          sized.y = nullptr;
          sized.dy = sized.dx = sized.ds = sized.d_bias = kData;
          return lath_cuda_oialr_linear_backward_workspace(&sized, lent.get(), bytes);
        });
      }
    }
  }
}

}  // namespace
}  // namespace cuda_test
