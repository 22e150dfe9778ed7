// SPDX-License-Identifier: Apache-2.0
//
// test_conv2d_bad_args.cc - the entries of the low-rank convolution refuse what they cannot do, before they write anything.

#include <algorithm>

#include "conv_cases.h"
#include "refusals.h"

namespace lath_test {
namespace {

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
constexpr int64_t kLarge = int64_t{1} << 31;
constexpr lath_conv_form kForms[] = {LATH_SEPARABLE, LATH_POINTWISE};

const ConvShape kShape = ConvShape().Batch(2).Channels(4, 3, 6, 2).Image(5, 4).Kernel(3, 3).Pad(1);

struct ValidConv {
  ConvInputs inputs{LATH_F32, kShape, true, true, Numbers::kIntegers, 1};
  Operand y{LATH_F32, 2, 6, 5, 4}, p{LATH_F32, 2 * 6, 5 * 4}, dx{LATH_F32, 2, 4, 5, 4};
  Operand dv{LATH_F32, inputs.v.rows(), inputs.v.cols()}, du{LATH_F32, inputs.u.rows(), inputs.u.cols()};
  Operand d_inner_bias{LATH_F32, 1, 6}, d_bias{LATH_F32, 1, 6};
  Memory workspace{1 << 20};
  ConvArgs args = Arguments(inputs);

  explicit ValidConv(bool backward) {
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.bytes();
    if (!backward) {
      args.y = ImagesOf(y);
      args.p = p.data();
      return;
    }
    args.dy = ImagesOf(inputs.dy);
    args.dx = ImagesOf(dx);
    args.dv = dv.data();
    args.du = du.data();
    args.d_inner_bias = d_inner_bias.data();
    args.d_bias = d_bias.data();
  }
  bool Untouched() const {
    for (const Operand *output : {&y, &p, &dx, &dv, &du, &d_inner_bias, &d_bias}) {
      if (!output->Untouched()) return false;
    }
    return true;
  }
};

const std::vector<BadCall<ConvArgs>> kBadShapes = {
    {"unknown form", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { SetTo(&a->form, 2); }},
    {"negative form", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { SetTo(&a->form, -1); }},
    {"negative batch", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->batch = -1; }},
    {"negative in", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->in = -4; }},
    {"negative rank", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->rank = -1; }},
    {"negative out", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->out = -6; }},
    {"no groups", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->groups = 0; }},
    {"negative groups", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->groups = -2; }},
    {"in not a multiple of groups", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->in = 5; }},
    {"out not a multiple of groups", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->out = 7; }},
    {"negative height", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->height = -1; }},
    {"negative width", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->width = std::numeric_limits<int64_t>::min(); }},
    {"kernel without rows", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->kernel_h = 0; }},
    {"kernel without columns", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->kernel_w = 0; }},
    {"negative kernel", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->kernel_w = -3; }},
    {"stride 0 down", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->stride_h = 0; }},
    {"stride 0 across", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->stride_w = 0; }},
    {"negative stride", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->stride_w = -1; }},
    {"dilation 0 down", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->dilation_h = 0; }},
    {"dilation 0 across", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->dilation_w = 0; }},
    {"negative dilation", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->dilation_h = -1; }},
    {"negative padding above", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->pad_top = -1; }},
    {"negative padding below", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->pad_bottom = -1; }},
    {"negative padding left", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->pad_left = -1; }},
    {"negative padding right", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->pad_right = -1; }},
    {"window taller than the padded image", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->kernel_h = 8; }},
    {"window wider than the padded image", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->dilation_w = 3; }},
    {"image without pixels and without padding", LATH_INVALID_ARGUMENT,
     [](ConvArgs *a) { a->height = a->pad_top = a->pad_bottom = 0, a->kernel_h = 1; }},
    {"batch beyond the address space", LATH_SIZE_OVERFLOW, [](ConvArgs *a) { a->batch = kHuge; }},
    {"rank beyond the address space", LATH_SIZE_OVERFLOW, [](ConvArgs *a) { a->rank = kHuge; }},
    {"height beyond the address space", LATH_SIZE_OVERFLOW, [](ConvArgs *a) { a->height = kHuge; }},
    {"padding beyond the address space", LATH_SIZE_OVERFLOW, [](ConvArgs *a) { a->pad_left = a->pad_right = kHuge; }},
    {"window beyond the address space", LATH_SIZE_OVERFLOW, [](ConvArgs *a) { a->dilation_h = kHuge; }},
    {"batch in", LATH_SIZE_OVERFLOW, [](ConvArgs *a) { a->batch = a->in = kLarge; }},
    {"batch out", LATH_SIZE_OVERFLOW, [](ConvArgs *a) { a->batch = a->out = kLarge; }},
    {"batch rank", LATH_SIZE_OVERFLOW, [](ConvArgs *a) { a->batch = a->rank = kLarge; }},
    {"height width", LATH_SIZE_OVERFLOW, [](ConvArgs *a) { a->height = a->width = kLarge; }},
    {"rank in", LATH_SIZE_OVERFLOW, [](ConvArgs *a) { a->rank = a->in = kLarge; }},
    {"out rank", LATH_SIZE_OVERFLOW, [](ConvArgs *a) { a->rank = a->out = kLarge; }},
    {"out in", LATH_SIZE_OVERFLOW, [](ConvArgs *a) { a->in = a->out = kLarge; }},
};

// What both directions refuse besides.
const std::vector<BadCall<ConvArgs>> kBadOperands = {
    {"unknown dtype", LATH_UNSUPPORTED_DTYPE, [](ConvArgs *a) { SetTo(&a->dtype, 3); }},
    {"negative dtype", LATH_UNSUPPORTED_DTYPE, [](ConvArgs *a) { SetTo(&a->dtype, -1); }},
    {"no x", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->x.data = nullptr; }},
    {"no v", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->v = nullptr; }},
    {"no u", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->u = nullptr; }},
    {"negative stride between images of x", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->x.s_n = -80; }},
    {"negative stride between channels of x", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->x.s_c = -20; }},
    {"negative stride between rows of x", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->x.s_h = -4; }},
    {"negative stride between pixels of x", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->x.s_w = -1; }},
    {"stride of x", LATH_SIZE_OVERFLOW, [](ConvArgs *a) { a->x.s_c = kHuge; }},
};

const std::vector<BadCall<ConvArgs>> kBadForward = {
    {"no y", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->y.data = nullptr; }},
    {"negative stride of y", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->y.s_h = -4; }},
    {"images of y in one place", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->y.s_n = 0; }},
    {"channels of y in one place", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->y.s_c = 0; }},
    {"rows of y in one place", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->y.s_h = 0; }},
    {"pixels of y in one place", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->y.s_w = 0; }},
    {"stride of y", LATH_SIZE_OVERFLOW, [](ConvArgs *a) { a->y.s_n = kHuge; }},
    {"dy in the forward", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->dy = a->y; }},
};

const std::vector<BadCall<ConvArgs>> kBadBackward = {
    {"no dy", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->dy.data = nullptr; }},
    {"negative stride of dy", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->dy.s_c = -20; }},
    {"negative stride of dx", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->dx.s_w = -1; }},
    {"images of dx in one place", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->dx.s_n = 0; }},
    {"pixels of dx in one place", LATH_INVALID_ARGUMENT, [](ConvArgs *a) { a->dx.s_w = 0; }},
    {"stride of dy", LATH_SIZE_OVERFLOW, [](ConvArgs *a) { a->dy.s_w = kHuge; }},
    {"stride of dx", LATH_SIZE_OVERFLOW, [](ConvArgs *a) { a->dx.s_h = kHuge; }},
};

TEST(BadConv2d, ForwardIsRefused) {
  const auto make_valid = [] { return ValidConv(false); };
  const auto fast = [](const ConvArgs *args) { return lath_lowrank_conv2d(args, &lath_serial_host); };
  for (const auto &calls : {kBadShapes, kBadOperands, kBadForward}) {
    ExpectRefusals<ConvArgs>(calls, make_valid, fast);
    ExpectRefusals<ConvArgs>(calls, make_valid, lath_lowrank_conv2d_ref);
  }
}

TEST(BadConv2d, BackwardIsRefused) {
  const auto make_valid = [] { return ValidConv(true); };
  const auto fast = [](const ConvArgs *args) { return lath_lowrank_conv2d_backward(args, &lath_serial_host); };
  for (const auto &calls : {kBadShapes, kBadOperands, kBadBackward}) {
    ExpectRefusals<ConvArgs>(calls, make_valid, fast);
    ExpectRefusals<ConvArgs>(calls, make_valid, lath_lowrank_conv2d_backward_ref);
  }
}

TEST(BadConv2d, QueriesRefuseTheSameShapes) {
  for (const BadCall<ConvArgs> &call : kBadShapes) {
    ValidConv forward(false), backward(true);
    call.change(&forward.args);
    call.change(&backward.args);
    size_t bytes = 0;
    ConvSizes sizes = {};
    ConvPlan plan = {};
    EXPECT_EQ(lath_lowrank_conv2d_workspace(&forward.args, &lath_serial_host, &bytes), call.want) << call.name;
    EXPECT_EQ(lath_lowrank_conv2d_backward_workspace(&backward.args, &lath_serial_host, &bytes), call.want) << call.name;
    EXPECT_EQ(lath_lowrank_conv2d_sizes(&forward.args, &sizes), call.want) << call.name;
    for (const int direction : {0, 1}) {
      EXPECT_EQ(lath_lowrank_conv2d_plan(&forward.args, direction, &plan), call.want) << call.name;
    }
  }
}

TEST(BadConv2d, NullStructsAreRefused) {
  size_t bytes;
  ConvSizes sizes;
  ConvPlan plan;
  ValidConv forward(false), backward(true);
  EXPECT_EQ(lath_lowrank_conv2d(nullptr, &lath_serial_host), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_lowrank_conv2d(&forward.args, nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_lowrank_conv2d_ref(nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_lowrank_conv2d_backward(nullptr, &lath_serial_host), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_lowrank_conv2d_backward(&backward.args, nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_lowrank_conv2d_backward_ref(nullptr), LATH_INVALID_ARGUMENT);
  for (const auto query : {lath_lowrank_conv2d_workspace, lath_lowrank_conv2d_backward_workspace}) {
    EXPECT_EQ(query(nullptr, &lath_serial_host, &bytes), LATH_INVALID_ARGUMENT);
    EXPECT_EQ(query(&forward.args, nullptr, &bytes), LATH_INVALID_ARGUMENT);
    EXPECT_EQ(query(&forward.args, &lath_serial_host, nullptr), LATH_INVALID_ARGUMENT);
  }
  EXPECT_EQ(lath_lowrank_conv2d_sizes(nullptr, &sizes), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_lowrank_conv2d_sizes(&forward.args, nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_lowrank_conv2d_plan(nullptr, 0, &plan), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_lowrank_conv2d_plan(&forward.args, 0, nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_TRUE(forward.Untouched());
  EXPECT_TRUE(backward.Untouched());
}

TEST(BadConv2d, TheWorkspaceMustBeWhatTheQueryAnswers) {
  for (const lath_dtype dtype : {LATH_F32, LATH_F64, LATH_BF16}) {
    for (const lath_conv_form form : kForms) {
      for (const int64_t width : {3, 40}) {
        const ConvShape s = kShape.Form(form).Image(9, width);
        const ConvInputs inputs(dtype, s, true, true, Numbers::kIntegers, 1);
        const Operand y(dtype, s.batch, s.out, 9, width), dx(dtype, s.batch, s.in, 9, width);
        const Operand dv(dtype, inputs.v.rows(), inputs.v.cols()), du(dtype, inputs.u.rows(), inputs.u.cols());
        ConvArgs forward = Arguments(inputs), backward = forward;
        forward.y = ImagesOf(y);
        backward.dy = ImagesOf(inputs.dy);
        backward.dx = ImagesOf(dx);
        backward.dv = dv.data();
        backward.du = du.data();
        size_t need[2];
        ASSERT_EQ(lath_lowrank_conv2d_workspace(&forward, &lath_serial_host, &need[0]), LATH_OK);
        ASSERT_EQ(lath_lowrank_conv2d_backward_workspace(&backward, &lath_serial_host, &need[1]), LATH_OK);
        ASSERT_GT(need[0], 0u);
        ASSERT_GT(need[1], 0u);
        Memory workspace(std::max(need[0], need[1]));
        forward.workspace = backward.workspace = workspace.data();
        forward.workspace_bytes = need[0] - 1;
        backward.workspace_bytes = need[1] - 1;
        EXPECT_EQ(lath_lowrank_conv2d(&forward, &lath_serial_host), LATH_SMALL_WORKSPACE);
        EXPECT_EQ(lath_lowrank_conv2d_backward(&backward, &lath_serial_host), LATH_SMALL_WORKSPACE);
        forward.workspace = backward.workspace = nullptr;
        forward.workspace_bytes = need[0];
        backward.workspace_bytes = need[1];
        EXPECT_EQ(lath_lowrank_conv2d(&forward, &lath_serial_host), LATH_INVALID_ARGUMENT);
        EXPECT_EQ(lath_lowrank_conv2d_backward(&backward, &lath_serial_host), LATH_INVALID_ARGUMENT);
        for (const Operand *output : {&y, &dx, &dv, &du}) EXPECT_TRUE(output->Untouched());
      }
    }
  }
}

constexpr std::pair<const char *, int64_t ConvArgs::*> kExtents[] = {
    {"batch", &ConvArgs::batch},       {"in", &ConvArgs::in},
    {"rank", &ConvArgs::rank},         {"out", &ConvArgs::out},
    {"height", &ConvArgs::height},     {"width", &ConvArgs::width},
    {"pad_left", &ConvArgs::pad_left}, {"pad_bottom", &ConvArgs::pad_bottom}};

TEST(HugeConv2d, NoQueryWrapsAround) {
  const ThreadHost host(64);
  const auto query = [&](auto function) {
    return [&host, function](const ConvArgs *args, size_t *bytes) { return function(args, host.get(), bytes); };
  };
  const ConvShape base = ConvShape().Kernel(3, 3).Pad(1);
  for (const ConvShape &shape :
       {base, base.Image(17, 33).Channels(65, 17, 40), base.Image(4, 4).Channels(3, 1, 2).Batch(100)}) {
    for (const lath_conv_form form : kForms) {
      for (const lath_dtype dtype : {LATH_F32, LATH_BF16}) {
        for (const auto &[name, extent] : kExtents) {
          SCOPED_TRACE(Describe(dtype, shape.Form(form)) + ", growing " + name);
          ValidConv valid(true);
          ConvArgs args = ArgsOf(shape.Form(form), dtype);
          args.x = args.y = args.dy = args.dx = valid.args.dx;
          args.dv = valid.args.dv;
          args.du = valid.args.du;
          ExpectGrowingSizes<ConvArgs>(args, extent, query(lath_lowrank_conv2d_workspace));
          ExpectGrowingSizes<ConvArgs>(args, extent, query(lath_lowrank_conv2d_backward_workspace));
        }
      }
    }
  }
}

// An empty tensor of torch has no memory: null pointers and any stride are right where there is nothing to read or write.
TEST(EmptyConv2d, NeedsNoMemory) {
  Memory workspace(1 << 20);
  for (const lath_conv_form form : kForms) {
    ConvArgs args = ArgsOf(ConvShape().Form(form).Batch(0).Channels(0, 0, 0));
    args.x.s_n = args.y.s_c = args.dy.s_h = -1;
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.bytes();
    EXPECT_EQ(lath_lowrank_conv2d(&args, &lath_serial_host), LATH_OK);
    EXPECT_EQ(lath_lowrank_conv2d_ref(&args), LATH_OK);
    EXPECT_EQ(lath_lowrank_conv2d_backward(&args, &lath_serial_host), LATH_OK);
    EXPECT_EQ(lath_lowrank_conv2d_backward_ref(&args), LATH_OK);
  }
}

TEST(EmptyConv2d, AnEmptyBatchHasZeroGradientsWithoutXAndDy) {
  ValidConv valid(true);
  valid.args.batch = 0;
  valid.args.x = valid.args.dy = valid.args.dx = {};
  ASSERT_EQ(lath_lowrank_conv2d_backward(&valid.args, &lath_serial_host), LATH_OK);
  for (const Operand *gradient : {&valid.dv, &valid.du, &valid.d_inner_bias, &valid.d_bias}) {
    EXPECT_TRUE(Exactly(*gradient, Values(static_cast<size_t>(gradient->size()), 0.0)));
  }
}

TEST(FailingHosts, AreReportedByBothDirections) {
  for (const lath_conv_form form : kForms) {
    for (const ConvShape &one :
         {kShape.Channels(64, 30, 66).Image(40, 33), kShape.Channels(64, 30, 66).Batch(40).Image(4, 4)}) {
      const ConvInputs inputs(LATH_F32, one.Form(form), true, true, Numbers::kIntegers, 1);
      SCOPED_TRACE(Describe(LATH_F32, inputs.shape));
      CallOptions options;
      ExpectHostFailures([&](const lath_host *host) {
        options.host = host;
        return RunForward(inputs, options).status;
      });
      ExpectHostFailures([&](const lath_host *host) {
        options.host = host;
        return RunBackward(inputs, options).status;
      });
    }
  }
}

}  // namespace
}  // namespace lath_test
