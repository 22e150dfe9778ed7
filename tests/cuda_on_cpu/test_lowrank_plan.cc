// SPDX-License-Identifier: Apache-2.0
//
// test_lowrank_plan.cc - what the planner picks, and what the entries refuse: the same as the processor's.

#include <limits>

#include "lowrank_cases.h"
#include "refusals.h"

namespace cuda_test {
namespace {

using lath_test::BadCall;
using lath_test::LowrankArgs;
using lath_test::Plan;
using lath_test::SetTo;

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
constexpr int64_t kLarge = int64_t{1} << 31;

// Aligned as torch aligns its tensors; nothing reads it.
alignas(64) unsigned char kData[64];

LowrankArgs ArgsOf(lath_dtype dtype, int64_t rows, int64_t in, int64_t rank, int64_t out) {
  LowrankArgs args = {};
  args.dtype = dtype;
  args.rows = rows, args.in = in, args.rank = rank, args.out = out;
  args.x = args.v = args.u = args.bias = kData;
  args.y = kData;
  args.s_x = args.s_v = in;
  args.s_u = rank;
  args.s_y = args.s_dy = out;
  args.s_dx = in;
  return args;
}

Plan PlanOf(const LowrankArgs &args, bool backward = false, const DeviceOptions &options = {}) {
  Lent lent(options);
  Plan plan = {};
  EXPECT_EQ(lath_cuda_lowrank_linear_plan(&args, lent.get(), backward, &plan), LATH_OK);
  return plan;
}

TEST(DevicePlan, FewRowsReadEachWeightOnce) {
  for (const lath_dtype dtype : {LATH_F32, LATH_BF16, LATH_F16})
    for (const int64_t rows : {1, 2, 4})
      EXPECT_EQ(PlanOf(ArgsOf(dtype, rows, 4096, 256, 4096)).kernel, LATH_LOWRANK_FEW) << dtype << " " << rows;
  EXPECT_NE(PlanOf(ArgsOf(LATH_BF16, 17, 4096, 256, 4096)).kernel, LATH_LOWRANK_FEW);
}

TEST(DevicePlan, ManyRowsOfA16BitTypeAreFusedAtSmallRanks) {
  EXPECT_EQ(PlanOf(ArgsOf(LATH_BF16, 16384, 1024, 64, 1024)).kernel, LATH_LOWRANK_FUSED);
  EXPECT_EQ(PlanOf(ArgsOf(LATH_F16, 16384, 1024, 16, 1024), true).kernel, LATH_LOWRANK_FUSED);
  EXPECT_EQ(PlanOf(ArgsOf(LATH_F32, 16384, 1024, 64, 1024)).kernel, LATH_LOWRANK_PRODUCTS);
  EXPECT_EQ(PlanOf(ArgsOf(LATH_BF16, 16384, 4096, 1024, 4096)).kernel, LATH_LOWRANK_PRODUCTS);
}

TEST(DevicePlan, HighRanksAreMerged) {
  LowrankArgs args = ArgsOf(LATH_BF16, 16384, 1024, 900, 1024);
  EXPECT_EQ(PlanOf(args).kernel, LATH_LOWRANK_MERGED);
  EXPECT_EQ(PlanOf(args).association, LATH_MERGED);
  EXPECT_EQ(PlanOf(args).save_intermediate, 0);
  args.association = LATH_FACTORED;
  EXPECT_EQ(PlanOf(args).association, LATH_FACTORED);
  args.dtype = LATH_F64;
  args.association = LATH_MERGED;
  EXPECT_EQ(PlanOf(args).association, LATH_FACTORED);
}

TEST(DevicePlan, AnOrderIsFollowed) {
  for (const lath_dtype dtype : {LATH_F32, LATH_BF16}) {
    for (const bool backward : {false, true}) {
      LowrankArgs args = ArgsOf(dtype, 100, 64, 8, 64);
      args.association = LATH_MERGED;
      EXPECT_EQ(PlanOf(args, backward).kernel, LATH_LOWRANK_MERGED);
      DeviceOptions options;
      options.route = LATH_LOWRANK_FUSED;
      EXPECT_EQ(PlanOf(args, backward, options).kernel, LATH_LOWRANK_MERGED) << "a forced route does not overrule the caller";
      args.association = LATH_FACTORED;
      options.route = LATH_LOWRANK_MERGED;
      EXPECT_NE(PlanOf(args, backward, options).kernel, LATH_LOWRANK_MERGED);
    }
  }
}

// Each of these rules the fused kernel out, forced or not.
TEST(DevicePlan, TheFusedKernelWantsVectorsOf16Bytes) {
  DeviceOptions options;
  options.route = LATH_LOWRANK_FUSED;
  const LowrankArgs good = ArgsOf(LATH_BF16, 100, 64, 16, 64);
  ASSERT_EQ(PlanOf(good, false, options).kernel, LATH_LOWRANK_FUSED);
  const lath_test::Change<LowrankArgs> changes[] = {
      [](LowrankArgs *a) { a->dtype = LATH_F32; }, [](LowrankArgs *a) { a->in = 63; },
      [](LowrankArgs *a) { a->rank = 15; },        [](LowrankArgs *a) { a->rank = 264; },
      [](LowrankArgs *a) { a->out = 65; },         [](LowrankArgs *a) { a->s_x = 65; },
      [](LowrankArgs *a) { a->s_v = 65; },         [](LowrankArgs *a) { a->s_u = 17; },
      [](LowrankArgs *a) { a->s_y = 65; },         [](LowrankArgs *a) { a->x = kData + 2; },
      [](LowrankArgs *a) { a->v = kData + 8; },    [](LowrankArgs *a) { a->u = kData + 2; },
      [](LowrankArgs *a) { a->y = kData + 8; },    [](LowrankArgs *a) { a->p = kData + 2; },
      [](LowrankArgs *a) { a->rows = 0; },         [](LowrankArgs *a) { a->association = LATH_MERGED; }};
  for (size_t k = 0; k < sizeof changes / sizeof *changes; ++k) {
    LowrankArgs args = good;
    changes[k](&args);
    EXPECT_NE(PlanOf(args, false, options).kernel, LATH_LOWRANK_FUSED) << "change " << k;
  }
}

TEST(DevicePlan, CountsAsTheProcessorsDoes) {
  for (const bool backward : {false, true}) {
    for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
      LowrankArgs args = ArgsOf(LATH_F32, 33, 20, 7, 30);
      args.association = association;
      Plan want = {};
      ASSERT_EQ(lath_lowrank_linear_plan(&args, backward, &want), LATH_OK);
      EXPECT_EQ(PlanOf(args, backward).macs, want.macs);
      EXPECT_EQ(PlanOf(args, backward).dense_macs, want.dense_macs);
    }
  }
}

#if !defined(LATH_TESTS_ON_GPU)
TEST(DevicePlan, ADeviceThatIsUnknownIsAFailure) {
  Lent lent((DeviceOptions()));
  lent.get()->device = 10000;
  Plan plan = {};
  const LowrankArgs args = ArgsOf(LATH_F32, 3, 4, 2, 5);
  EXPECT_EQ(lath_cuda_lowrank_linear_plan(&args, lent.get(), 0, &plan), LATH_DEVICE_FAILED);
  lent.get()->device = -1;
  EXPECT_EQ(lath_cuda_lowrank_linear_plan(&args, lent.get(), 0, &plan), LATH_DEVICE_FAILED);
}
#endif

// ---- refusals: the checks are the processor's, so these are spot tests of each ---------------------------------------

const std::vector<BadCall<LowrankArgs>> kBad = {
    {"unknown dtype", LATH_UNSUPPORTED_DTYPE, [](LowrankArgs *a) { SetTo(&a->dtype, 4); }},
    {"negative dtype", LATH_UNSUPPORTED_DTYPE, [](LowrankArgs *a) { SetTo(&a->dtype, -1); }},
    {"unknown association", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { SetTo(&a->association, 3); }},
    {"negative rows", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->rows = -1; }},
    {"negative rank", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->rank = -1; }},
    {"no x", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->x = nullptr; }},
    {"no v", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->v = nullptr; }},
    {"no u", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->u = nullptr; }},
    {"short stride of x", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->s_x = 3; }},
    {"short stride of v", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->s_v = 3; }},
    {"short stride of u", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->s_u = 1; }},
    {"rows beyond the address space", LATH_SIZE_OVERFLOW, [](LowrankArgs *a) { a->rows = kHuge; }},
    {"rows rank", LATH_SIZE_OVERFLOW, [](LowrankArgs *a) { a->rows = a->rank = a->s_u = kLarge; }},
    {"stride of x", LATH_SIZE_OVERFLOW, [](LowrankArgs *a) { a->s_x = kHuge; }},
    {"small workspace", LATH_SMALL_WORKSPACE, [](LowrankArgs *a) { a->workspace_bytes--; }},
    {"no workspace", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->workspace = nullptr; }},
};
const std::vector<BadCall<LowrankArgs>> kBadForward = {
    {"no y", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->y = nullptr; }},
    {"dy in a forward", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->dy = a->x; }},
    {"repeated rows of y", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->s_y = 0; }},
};
const std::vector<BadCall<LowrankArgs>> kBadBackward = {
    {"no dy", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->dy = nullptr; }},
    {"short stride of dy", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->s_dy = 4; }},
    {"short stride of dx", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->s_dx = 3; }},
};

template <typename Query, typename Entry>
void ExpectRefused(const LowrankArgs &valid, const std::vector<BadCall<LowrankArgs>> &calls, Query query, Entry entry) {
  Lent lent((DeviceOptions()));
  size_t bytes = 0;
  ASSERT_EQ(query(&valid, lent.get(), &bytes), LATH_OK);
  ASSERT_GT(bytes, 0u);
  const Guarded workspace(bytes);
  for (const BadCall<LowrankArgs> &call : calls) {
    LowrankArgs args = valid;
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

TEST(DeviceRefusals, AreThoseOfTheProcessor) {
  for (const int route : {LATH_LOWRANK_PRODUCTS, LATH_LOWRANK_FEW, LATH_LOWRANK_MERGED}) {
    LowrankArgs forward = ArgsOf(LATH_F32, 3, 4, 2, 5);
    forward.association = route == LATH_LOWRANK_MERGED ? LATH_MERGED : LATH_FACTORED;
    LowrankArgs backward = forward;
    backward.y = nullptr;
    backward.dy = kData;
    backward.dx = backward.dv = backward.du = kData;
    lath_cuda_force_route(route);
    ExpectRefused(forward, kBad, lath_cuda_lowrank_linear_workspace, lath_cuda_lowrank_linear);
    ExpectRefused(forward, kBadForward, lath_cuda_lowrank_linear_workspace, lath_cuda_lowrank_linear);
    ExpectRefused(backward, kBad, lath_cuda_lowrank_linear_backward_workspace, lath_cuda_lowrank_linear_backward);
    ExpectRefused(backward, kBadBackward, lath_cuda_lowrank_linear_backward_workspace, lath_cuda_lowrank_linear_backward);
  }
  lath_cuda_force_route(-1);
}

TEST(DeviceRefusals, SizesGrowUntilTheyAreRefused) {
  for (int64_t LowrankArgs::*extent : {&LowrankArgs::rows, &LowrankArgs::in, &LowrankArgs::rank, &LowrankArgs::out}) {
    for (const bool backward : {false, true}) {
      LowrankArgs args = ArgsOf(LATH_BF16, 33, 40, 24, 56);
      args.s_x = args.s_v = args.s_u = args.s_y = args.s_dy = args.s_dx = 0;
      args.association = LATH_MERGED;
      // Strides follow the extents, and outputs do not repeat rows.
      lath_test::ExpectGrowingSizes<LowrankArgs>(args, extent, [=](const LowrankArgs *a, size_t *bytes) {
        LowrankArgs sized = *a;
        sized.s_x = sized.s_v = sized.s_dx = a->in;
        sized.s_u = a->rank;
        sized.s_y = sized.s_dy = a->out;
        Lent lent((DeviceOptions()));
        if (!backward) return lath_cuda_lowrank_linear_workspace(&sized, lent.get(), bytes);
        sized.y = nullptr;
        sized.dy = sized.dx = sized.dv = sized.du = sized.d_bias = sized.d_inner_bias = kData;
        return lath_cuda_lowrank_linear_backward_workspace(&sized, lent.get(), bytes);
      });
    }
  }
}

}  // namespace
}  // namespace cuda_test
