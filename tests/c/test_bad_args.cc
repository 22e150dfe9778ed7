// SPDX-License-Identifier: Apache-2.0
//
// test_bad_args.cc - every entry refuses what it cannot do with the right status, before it writes anything.

#include <limits>

#include "cases.h"
#include "refusals.h"

namespace lath_test {
namespace {

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
constexpr int64_t kLarge = int64_t{1} << 31;

// ---- linear -------------------------------------------------------------------------------------------------------------

struct ValidLinear {
  LinearInputs inputs{LATH_F32, 3, 4, 5, true, Numbers::kIntegers, 1};
  Operand y{LATH_F32, 3, 5};
  Memory workspace{1 << 20};
  LinearArgs args = Arguments(inputs);

  ValidLinear() {
    args.y = y.data();
    args.s_y = 5;
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.bytes();
  }
  bool Untouched() const { return y.Untouched(); }
};

const std::vector<BadCall<LinearArgs>> kBadLinear = {
    {"unknown dtype", LATH_UNSUPPORTED_DTYPE, [](LinearArgs *a) { SetTo(&a->dtype, 3); }},
    {"negative dtype", LATH_UNSUPPORTED_DTYPE, [](LinearArgs *a) { SetTo(&a->dtype, -1); }},
    {"negative rows", LATH_INVALID_ARGUMENT, [](LinearArgs *a) { a->rows = -1; }},
    {"negative in", LATH_INVALID_ARGUMENT, [](LinearArgs *a) { a->in = -1; }},
    {"negative out", LATH_INVALID_ARGUMENT, [](LinearArgs *a) { a->out = std::numeric_limits<int64_t>::min(); }},
    {"no x", LATH_INVALID_ARGUMENT, [](LinearArgs *a) { a->x = nullptr; }},
    {"no w", LATH_INVALID_ARGUMENT, [](LinearArgs *a) { a->w = nullptr; }},
    {"no y", LATH_INVALID_ARGUMENT, [](LinearArgs *a) { a->y = nullptr; }},
    {"short stride of x", LATH_INVALID_ARGUMENT, [](LinearArgs *a) { a->s_x = 3; }},
    {"short stride of w", LATH_INVALID_ARGUMENT, [](LinearArgs *a) { a->s_w = 3; }},
    {"short stride of y", LATH_INVALID_ARGUMENT, [](LinearArgs *a) { a->s_y = 4; }},
    {"negative stride of x", LATH_INVALID_ARGUMENT, [](LinearArgs *a) { a->s_x = -4; }},
    {"negative stride of w", LATH_INVALID_ARGUMENT, [](LinearArgs *a) { a->s_w = -4; }},
    {"negative stride of y", LATH_INVALID_ARGUMENT, [](LinearArgs *a) { a->s_y = -5; }},
    {"repeated rows of the output", LATH_INVALID_ARGUMENT, [](LinearArgs *a) { a->s_y = 0; }},
    {"rows beyond the address space", LATH_SIZE_OVERFLOW, [](LinearArgs *a) { a->rows = kHuge; }},
    {"rows in", LATH_SIZE_OVERFLOW, [](LinearArgs *a) { a->rows = a->in = a->s_x = a->s_w = kLarge; }},
    {"rows out", LATH_SIZE_OVERFLOW, [](LinearArgs *a) { a->rows = a->out = a->s_y = kLarge; }},
    {"in out", LATH_SIZE_OVERFLOW, [](LinearArgs *a) { a->in = a->out = a->s_x = a->s_w = a->s_y = kLarge; }},
    {"stride of x", LATH_SIZE_OVERFLOW, [](LinearArgs *a) { a->s_x = kHuge; }},
    {"stride of w", LATH_SIZE_OVERFLOW, [](LinearArgs *a) { a->s_w = kHuge; }},
    {"stride of y", LATH_SIZE_OVERFLOW, [](LinearArgs *a) { a->s_y = kHuge; }},
};

std::vector<BadCall<LinearArgs>> BadWorkspaces(size_t bytes) {
  return {{"small workspace", LATH_SMALL_WORKSPACE, [=](LinearArgs *a) { a->workspace_bytes = bytes - 1; }},
          {"empty workspace", LATH_SMALL_WORKSPACE, [](LinearArgs *a) { a->workspace_bytes = 0; }},
          {"no workspace", LATH_INVALID_ARGUMENT, [](LinearArgs *a) { a->workspace = nullptr; }}};
}

lath_status RunSerial(const LinearArgs *args) { return lath_linear(args, &lath_serial_host); }

TEST(BadLinear, IsRefused) {
  ExpectRefusals<LinearArgs>(
      kBadLinear, [] { return ValidLinear(); }, RunSerial);
  ExpectRefusals<LinearArgs>(
      kBadLinear, [] { return ValidLinear(); }, lath_linear_ref);
}

TEST(BadLinear, NullStructsAreRefused) {
  ValidLinear valid;
  size_t bytes;
  EXPECT_EQ(lath_linear(nullptr, &lath_serial_host), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_linear(&valid.args, nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_linear_ref(nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_linear_workspace(nullptr, &lath_serial_host, &bytes), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_linear_workspace(&valid.args, nullptr, &bytes), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_linear_workspace(&valid.args, &lath_serial_host, nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_TRUE(valid.Untouched());
}

TEST(BadLinear, TheWorkspaceMustBeWhatTheQueryAnswers) {
  for (const lath_dtype dtype : {LATH_F32, LATH_BF16}) {
    for (const int64_t rows : {1, 100}) {
      const LinearInputs inputs(dtype, rows, 40, 50, true, Numbers::kIntegers, 1);
      LinearArgs args = Arguments(inputs);
      Operand y(dtype, rows, 50);
      args.y = y.data();
      args.s_y = 50;
      size_t bytes = 0;
      ASSERT_EQ(lath_linear_workspace(&args, &lath_serial_host, &bytes), LATH_OK);
      Memory workspace(bytes);
      if (bytes == 0) continue;
      for (const auto &call : BadWorkspaces(bytes)) {
        args.workspace = workspace.data();
        args.workspace_bytes = bytes;
        call.change(&args);
        EXPECT_EQ(lath_linear(&args, &lath_serial_host), call.want) << call.name;
        EXPECT_TRUE(y.Untouched()) << call.name;
      }
    }
  }
}

// ---- low-rank linear ----------------------------------------------------------------------------------------------------

struct ValidLowrank {
  LowrankInputs inputs{LATH_F32, {3, 4, 2, 5}, true, true, Numbers::kIntegers, 1};
  Operand y{LATH_F32, 3, 5}, p{LATH_F32, 3, 2}, dx{LATH_F32, 3, 4}, dv{LATH_F32, 2, 4}, du{LATH_F32, 5, 2};
  Operand d_inner_bias{LATH_F32, 1, 2}, d_bias{LATH_F32, 1, 5};
  Memory workspace{1 << 20};
  LowrankArgs args = Arguments(inputs);

  explicit ValidLowrank(bool backward) {
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.bytes();
    if (!backward) {
      args.y = y.data();
      args.s_y = 5;
      args.p = p.data();
      return;
    }
    args.dy = inputs.dy.data();
    args.s_dy = 5;
    args.dx = dx.data();
    args.s_dx = 4;
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

// What both directions refuse.
const std::vector<BadCall<LowrankArgs>> kBadLowrank = {
    {"unknown dtype", LATH_UNSUPPORTED_DTYPE, [](LowrankArgs *a) { SetTo(&a->dtype, 3); }},
    {"negative dtype", LATH_UNSUPPORTED_DTYPE, [](LowrankArgs *a) { SetTo(&a->dtype, -1); }},
    {"unknown association", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { SetTo(&a->association, 3); }},
    {"negative association", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { SetTo(&a->association, -1); }},
    {"negative rows", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->rows = -1; }},
    {"negative in", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->in = -1; }},
    {"negative rank", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->rank = -1; }},
    {"negative out", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->out = std::numeric_limits<int64_t>::min(); }},
    {"no x", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->x = nullptr; }},
    {"no v", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->v = nullptr; }},
    {"no u", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->u = nullptr; }},
    {"short stride of x", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->s_x = 3; }},
    {"short stride of v", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->s_v = 3; }},
    {"short stride of u", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->s_u = 1; }},
    {"negative stride of x", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->s_x = -4; }},
    {"negative stride of v", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->s_v = -4; }},
    {"negative stride of u", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->s_u = -2; }},
    {"rows beyond the address space", LATH_SIZE_OVERFLOW, [](LowrankArgs *a) { a->rows = kHuge; }},
    {"rank beyond the address space", LATH_SIZE_OVERFLOW, [](LowrankArgs *a) { a->rank = a->s_u = kHuge; }},
    {"rows in", LATH_SIZE_OVERFLOW, [](LowrankArgs *a) { a->rows = a->in = a->s_x = a->s_v = a->s_dx = kLarge; }},
    {"rank in", LATH_SIZE_OVERFLOW, [](LowrankArgs *a) { a->rank = a->in = a->s_x = a->s_v = a->s_u = a->s_dx = kLarge; }},
    {"out rank", LATH_SIZE_OVERFLOW, [](LowrankArgs *a) { a->out = a->rank = a->s_u = a->s_y = a->s_dy = kLarge; }},
    {"rows rank", LATH_SIZE_OVERFLOW, [](LowrankArgs *a) { a->rows = a->rank = a->s_u = kLarge; }},
    {"stride of x", LATH_SIZE_OVERFLOW, [](LowrankArgs *a) { a->s_x = kHuge; }},
    {"stride of v", LATH_SIZE_OVERFLOW, [](LowrankArgs *a) { a->s_v = kHuge; }},
    {"stride of u", LATH_SIZE_OVERFLOW, [](LowrankArgs *a) { a->s_u = kHuge; }},
};

const std::vector<BadCall<LowrankArgs>> kBadForward = {
    {"no y", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->y = nullptr; }},
    {"short stride of y", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->s_y = 4; }},
    {"negative stride of y", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->s_y = -5; }},
    {"repeated rows of the output", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->s_y = 0; }},
    {"stride of y", LATH_SIZE_OVERFLOW, [](LowrankArgs *a) { a->s_y = kHuge; }},
};

const std::vector<BadCall<LowrankArgs>> kBadBackward = {
    {"no dy", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->dy = nullptr; }},
    {"short stride of dy", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->s_dy = 4; }},
    {"negative stride of dy", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->s_dy = -5; }},
    {"short stride of dx", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->s_dx = 3; }},
    {"repeated rows of dx", LATH_INVALID_ARGUMENT, [](LowrankArgs *a) { a->s_dx = 0; }},
    {"stride of dy", LATH_SIZE_OVERFLOW, [](LowrankArgs *a) { a->s_dy = kHuge; }},
    {"stride of dx", LATH_SIZE_OVERFLOW, [](LowrankArgs *a) { a->s_dx = kHuge; }},
};

TEST(BadLowrank, ForwardIsRefused) {
  const auto make_valid = [] { return ValidLowrank(false); };
  const auto fast = [](const LowrankArgs *args) { return lath_lowrank_linear(args, &lath_serial_host); };
  for (const auto &calls : {kBadLowrank, kBadForward}) {
    ExpectRefusals<LowrankArgs>(calls, make_valid, fast);
    ExpectRefusals<LowrankArgs>(calls, make_valid, lath_lowrank_linear_ref);
  }
}

TEST(BadLowrank, BackwardIsRefused) {
  const auto make_valid = [] { return ValidLowrank(true); };
  const auto fast = [](const LowrankArgs *args) { return lath_lowrank_linear_backward(args, &lath_serial_host); };
  for (const auto &calls : {kBadLowrank, kBadBackward}) {
    ExpectRefusals<LowrankArgs>(calls, make_valid, fast);
    ExpectRefusals<LowrankArgs>(calls, make_valid, lath_lowrank_linear_backward_ref);
  }
}

TEST(BadLowrank, NullStructsAreRefused) {
  size_t bytes;
  ValidLowrank forward(false), backward(true);
  EXPECT_EQ(lath_lowrank_linear(nullptr, &lath_serial_host), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_lowrank_linear(&forward.args, nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_lowrank_linear_ref(nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_lowrank_linear_backward(nullptr, &lath_serial_host), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_lowrank_linear_backward(&backward.args, nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_lowrank_linear_backward_ref(nullptr), LATH_INVALID_ARGUMENT);
  for (const auto query : {lath_lowrank_linear_workspace, lath_lowrank_linear_backward_workspace}) {
    EXPECT_EQ(query(nullptr, &lath_serial_host, &bytes), LATH_INVALID_ARGUMENT);
    EXPECT_EQ(query(&forward.args, nullptr, &bytes), LATH_INVALID_ARGUMENT);
    EXPECT_EQ(query(&forward.args, &lath_serial_host, nullptr), LATH_INVALID_ARGUMENT);
  }
  EXPECT_TRUE(forward.Untouched());
  EXPECT_TRUE(backward.Untouched());
}

TEST(BadLowrank, QueriesRefuseTheSameShapes) {
  const std::vector<BadCall<LowrankArgs>> shapes(kBadLowrank.begin(), kBadLowrank.begin() + 8);
  for (const auto query : {lath_lowrank_linear_workspace, lath_lowrank_linear_backward_workspace}) {
    for (const auto &call : shapes) {
      ValidLowrank valid(query == lath_lowrank_linear_backward_workspace);
      call.change(&valid.args);
      size_t bytes = 0;
      EXPECT_EQ(query(&valid.args, &lath_serial_host, &bytes), call.want) << call.name;
    }
  }
}

TEST(BadLowrank, TheWorkspaceMustBeWhatTheQueryAnswers) {
  for (const lath_dtype dtype : {LATH_F32, LATH_F64, LATH_BF16}) {
    for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
      for (const int64_t rows : {1, 100}) {
        const LowrankInputs inputs(dtype, {rows, 40, 8, 50}, true, true, Numbers::kIntegers, 1);
        const Operand y(dtype, rows, 50), dx(dtype, rows, 40), dv(dtype, 8, 40), du(dtype, 50, 8);
        LowrankArgs forward = Arguments(inputs);
        forward.association = association;
        LowrankArgs backward = forward;
        forward.y = y.data();
        forward.s_y = 50;
        backward.dy = inputs.dy.data();
        backward.s_dy = 50;
        backward.dx = dx.data();
        backward.s_dx = 40;
        backward.dv = dv.data();
        backward.du = du.data();
        size_t need[2];
        ASSERT_EQ(lath_lowrank_linear_workspace(&forward, &lath_serial_host, &need[0]), LATH_OK);
        ASSERT_EQ(lath_lowrank_linear_backward_workspace(&backward, &lath_serial_host, &need[1]), LATH_OK);
        ASSERT_GT(need[0], 0u);
        ASSERT_GT(need[1], 0u);
        Memory workspace(std::max(need[0], need[1]));
        forward.workspace = backward.workspace = workspace.data();
        forward.workspace_bytes = need[0] - 1;
        backward.workspace_bytes = need[1] - 1;
        EXPECT_EQ(lath_lowrank_linear(&forward, &lath_serial_host), LATH_SMALL_WORKSPACE);
        EXPECT_EQ(lath_lowrank_linear_backward(&backward, &lath_serial_host), LATH_SMALL_WORKSPACE);
        forward.workspace = backward.workspace = nullptr;
        forward.workspace_bytes = need[0];
        backward.workspace_bytes = need[1];
        EXPECT_EQ(lath_lowrank_linear(&forward, &lath_serial_host), LATH_INVALID_ARGUMENT);
        EXPECT_EQ(lath_lowrank_linear_backward(&backward, &lath_serial_host), LATH_INVALID_ARGUMENT);
        for (const Operand *output : {&y, &dx, &dv, &du}) EXPECT_TRUE(output->Untouched());
      }
    }
  }
}

// ---- Frobenius decay ------------------------------------------------------------------------------------------------------

struct ValidFrobenius {
  FrobeniusInputs inputs{LATH_F32, 4, 2, 5, Numbers::kIntegers, 1};
  Operand gram_v{LATH_F32, 2, 2}, gram_u{LATH_F32, 2, 2}, value{LATH_F64, 1, 1}, dv{LATH_F32, 2, 4}, du{LATH_F32, 5, 2};
  Memory workspace{1 << 20};
  FrobeniusArgs args = Arguments(inputs);

  ValidFrobenius() {
    args.gram_v = gram_v.data();
    args.gram_u = gram_u.data();
    args.value = reinterpret_cast<double *>(value.data());
    args.scale = 1;
    args.dv = dv.data();
    args.du = du.data();
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.bytes();
  }
  bool Untouched() const {
    for (const Operand *output : {&gram_v, &gram_u, &value, &dv, &du}) {
      if (!output->Untouched()) return false;
    }
    return true;
  }
};

const std::vector<BadCall<FrobeniusArgs>> kBadFrobenius = {
    {"unknown dtype", LATH_UNSUPPORTED_DTYPE, [](FrobeniusArgs *a) { SetTo(&a->dtype, 3); }},
    {"negative in", LATH_INVALID_ARGUMENT, [](FrobeniusArgs *a) { a->in = -1; }},
    {"negative rank", LATH_INVALID_ARGUMENT, [](FrobeniusArgs *a) { a->rank = -1; }},
    {"negative out", LATH_INVALID_ARGUMENT, [](FrobeniusArgs *a) { a->out = -1; }},
    {"rank squared", LATH_SIZE_OVERFLOW, [](FrobeniusArgs *a) { a->rank = a->s_u = kLarge; }},
    {"rank in", LATH_SIZE_OVERFLOW, [](FrobeniusArgs *a) { a->in = a->s_v = kHuge; }},
    {"out rank", LATH_SIZE_OVERFLOW, [](FrobeniusArgs *a) { a->out = kHuge; }},
    {"no v", LATH_INVALID_ARGUMENT, [](FrobeniusArgs *a) { a->v = nullptr; }},
    {"no u", LATH_INVALID_ARGUMENT, [](FrobeniusArgs *a) { a->u = nullptr; }},
    {"no gram_v", LATH_INVALID_ARGUMENT, [](FrobeniusArgs *a) { a->gram_v = nullptr; }},
    {"no gram_u", LATH_INVALID_ARGUMENT, [](FrobeniusArgs *a) { a->gram_u = nullptr; }},
    {"short stride of v", LATH_INVALID_ARGUMENT, [](FrobeniusArgs *a) { a->s_v = 3; }},
    {"short stride of u", LATH_INVALID_ARGUMENT, [](FrobeniusArgs *a) { a->s_u = 1; }},
    {"stride of v", LATH_SIZE_OVERFLOW, [](FrobeniusArgs *a) { a->s_v = kHuge; }},
};
const std::vector<BadCall<FrobeniusArgs>> kBadFrobeniusValue = {
    {"no value", LATH_INVALID_ARGUMENT, [](FrobeniusArgs *a) { a->value = nullptr; }},
};

TEST(BadFrobenius, ValueIsRefused) {
  const auto make_valid = [] { return ValidFrobenius(); };
  const auto fast = [](const FrobeniusArgs *args) { return lath_frobenius(args, &lath_serial_host); };
  for (const auto &calls : {kBadFrobenius, kBadFrobeniusValue}) {
    ExpectRefusals<FrobeniusArgs>(calls, make_valid, fast);
    ExpectRefusals<FrobeniusArgs>(calls, make_valid, lath_frobenius_ref);
  }
}

TEST(BadFrobenius, BackwardIsRefused) {
  const auto make_valid = [] { return ValidFrobenius(); };
  const auto fast = [](const FrobeniusArgs *args) { return lath_frobenius_backward(args, &lath_serial_host); };
  ExpectRefusals<FrobeniusArgs>(kBadFrobenius, make_valid, fast);
  ExpectRefusals<FrobeniusArgs>(kBadFrobenius, make_valid, lath_frobenius_backward_ref);
}

TEST(BadFrobenius, NullStructsAndWrongQueriesAreRefused) {
  ValidFrobenius valid;
  size_t bytes = 0;
  EXPECT_EQ(lath_frobenius(nullptr, &lath_serial_host), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_frobenius(&valid.args, nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_frobenius_ref(nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_frobenius_backward(nullptr, &lath_serial_host), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_frobenius_backward(&valid.args, nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_frobenius_backward_ref(nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_frobenius_workspace(nullptr, &lath_serial_host, &bytes), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_frobenius_workspace(&valid.args, nullptr, &bytes), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_frobenius_workspace(&valid.args, &lath_serial_host, nullptr), LATH_INVALID_ARGUMENT);
  const std::vector<BadCall<FrobeniusArgs>> shapes(kBadFrobenius.begin(), kBadFrobenius.begin() + 7);
  for (const auto &call : shapes) {
    ValidFrobenius changed;
    call.change(&changed.args);
    EXPECT_EQ(lath_frobenius_workspace(&changed.args, &lath_serial_host, &bytes), call.want) << call.name;
  }
  EXPECT_TRUE(valid.Untouched());
}

TEST(BadFrobenius, TheWorkspaceMustBeWhatTheQueryAnswers) {
  ValidFrobenius valid;
  size_t bytes = 0;
  ASSERT_EQ(lath_frobenius_workspace(&valid.args, &lath_serial_host, &bytes), LATH_OK);
  ASSERT_GT(bytes, 0u);
  for (const auto entry : {lath_frobenius, lath_frobenius_backward}) {
    valid.args.workspace = valid.workspace.data();
    valid.args.workspace_bytes = bytes - 1;
    EXPECT_EQ(entry(&valid.args, &lath_serial_host), LATH_SMALL_WORKSPACE);
    valid.args.workspace = nullptr;
    valid.args.workspace_bytes = bytes;
    EXPECT_EQ(entry(&valid.args, &lath_serial_host), LATH_INVALID_ARGUMENT);
  }
  EXPECT_TRUE(valid.Untouched());
}

// ---- sizes at the edge of the address space ---------------------------------------------------------------------------------

TEST(HugeShapes, NoQueryWrapsAround) {
  const ThreadHost host(64);
  const auto query = [&](auto function) {
    return [&host, function](const auto *args, size_t *bytes) { return function(args, host.get(), bytes); };
  };
  const LowrankShape shapes[] = {{0, 0, 0, 0}, {1, 1, 1, 1}, {17, 17, 17, 17}, {65, 1, 1, 1}, {1000, 1, 1, 1}, {1, 65, 65, 65}};
  for (const LowrankShape &shape : shapes) {
    for (const lath_dtype dtype : {LATH_F32, LATH_BF16}) {
      SCOPED_TRACE(Describe(dtype, shape));
      for (int64_t LinearArgs::*extent : {&LinearArgs::rows, &LinearArgs::in}) {  // `out` would need a stride that grows too
        ValidLinear valid;
        valid.args.dtype = dtype;
        valid.args.rows = shape.rows;
        valid.args.in = shape.in;
        valid.args.out = valid.args.s_y = shape.out;
        valid.args.s_x = valid.args.s_w = 0;
        ExpectGrowingSizes<LinearArgs>(valid.args, extent, query(lath_linear_workspace));
      }
      for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
        for (int64_t LowrankArgs::*extent : {&LowrankArgs::rows, &LowrankArgs::in, &LowrankArgs::rank, &LowrankArgs::out}) {
          ValidLowrank valid(true);
          valid.args.dtype = dtype;
          valid.args.association = association;
          valid.args.p = nullptr;
          valid.args.rows = shape.rows;
          valid.args.in = shape.in;
          valid.args.rank = shape.rank;
          valid.args.out = shape.out;
          ExpectGrowingSizes<LowrankArgs>(valid.args, extent, query(lath_lowrank_linear_workspace));
          ExpectGrowingSizes<LowrankArgs>(valid.args, extent, query(lath_lowrank_linear_backward_workspace));
        }
      }
      for (int64_t FrobeniusArgs::*extent : {&FrobeniusArgs::in, &FrobeniusArgs::rank, &FrobeniusArgs::out}) {
        ValidFrobenius valid;
        valid.args.dtype = dtype;
        valid.args.in = shape.in;
        valid.args.rank = shape.rank;
        valid.args.out = shape.out;
        ExpectGrowingSizes<FrobeniusArgs>(valid.args, extent, query(lath_frobenius_workspace));
      }
    }
  }
}

// ---- empty operands -------------------------------------------------------------------------------------------------------

// An empty tensor of torch has no memory: null pointers and any stride are right where there is nothing to read or write.
TEST(EmptyOperands, NeedNoMemory) {
  Memory workspace(1 << 20);
  LinearArgs linear = {};
  linear.workspace = workspace.data();
  linear.workspace_bytes = workspace.bytes();
  EXPECT_EQ(lath_linear(&linear, &lath_serial_host), LATH_OK);
  EXPECT_EQ(lath_linear_ref(&linear), LATH_OK);

  LowrankArgs lowrank = {};
  lowrank.workspace = workspace.data();
  lowrank.workspace_bytes = workspace.bytes();
  FrobeniusArgs frobenius = {};
  double value = -1;
  frobenius.value = &value;
  frobenius.workspace = workspace.data();
  frobenius.workspace_bytes = workspace.bytes();
  for (const lath_association association : {LATH_AUTO, LATH_FACTORED, LATH_MERGED}) {
    lowrank.association = association;
    EXPECT_EQ(lath_lowrank_linear(&lowrank, &lath_serial_host), LATH_OK);
    EXPECT_EQ(lath_lowrank_linear_ref(&lowrank), LATH_OK);
    EXPECT_EQ(lath_lowrank_linear_backward(&lowrank, &lath_serial_host), LATH_OK);
    EXPECT_EQ(lath_lowrank_linear_backward_ref(&lowrank), LATH_OK);
  }
  EXPECT_EQ(lath_frobenius(&frobenius, &lath_serial_host), LATH_OK);
  EXPECT_EQ(value, 0.0);
  EXPECT_EQ(lath_frobenius_backward(&frobenius, &lath_serial_host), LATH_OK);
}

TEST(EmptyOperands, AnEmptyBatchHasZeroGradientsWithoutXAndDy) {
  ValidLowrank valid(true);
  valid.args.rows = 0;
  valid.args.x = valid.args.dy = nullptr;
  valid.args.dx = nullptr;
  ASSERT_EQ(lath_lowrank_linear_backward(&valid.args, &lath_serial_host), LATH_OK);
  EXPECT_TRUE(Exactly(valid.dv, Values(8, 0.0)));
  EXPECT_TRUE(Exactly(valid.du, Values(10, 0.0)));
  EXPECT_TRUE(Exactly(valid.d_inner_bias, Values(2, 0.0)));
  EXPECT_TRUE(Exactly(valid.d_bias, Values(5, 0.0)));
}

// ---- hosts that fail --------------------------------------------------------------------------------------------------------

TEST(FailingHosts, AreReportedByEveryEntry) {
  for (const int64_t rows : {30, 300}) {
    const LinearInputs linear(LATH_F32, rows, 300, 300, true, Numbers::kIntegers, 1);
    ExpectHostFailures([&](const lath_host *host) {
      CallOptions options;
      options.host = host;
      return RunLinear(linear, options).status;
    });
    const LowrankInputs lowrank(LATH_F32, {rows, 300, 150, 310}, true, true, Numbers::kIntegers, 1);
    for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
      CallOptions options;
      options.association = association;
      ExpectHostFailures([&](const lath_host *host) {
        options.host = host;
        return RunForward(lowrank, options).status;
      });
      ExpectHostFailures([&](const lath_host *host) {
        options.host = host;
        return RunBackward(lowrank, options).status;
      });
    }
  }
  const FrobeniusInputs frobenius(LATH_F32, 300, 120, 310, Numbers::kIntegers, 1);
  const FrobeniusRun value = RunFrobenius(frobenius, {});
  ExpectHostFailures([&](const lath_host *host) {
    CallOptions options;
    options.host = host;
    return RunFrobenius(frobenius, options).status;
  });
  ExpectHostFailures([&](const lath_host *host) {
    CallOptions options;
    options.host = host;
    return RunFrobeniusBackward(frobenius, options, value.gram_v, value.gram_u, 1.0).status;
  });
}

}  // namespace
}  // namespace lath_test
