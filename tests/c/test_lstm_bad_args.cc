// SPDX-License-Identifier: Apache-2.0
//
// test_lstm_bad_args.cc - the entries of the low-rank LSTM refuse what they cannot do, before they write anything.

#include <algorithm>

#include "lstm_cases.h"
#include "refusals.h"

namespace lath_test {
namespace {

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
constexpr int64_t kLarge = int64_t{1} << 31;

const LstmShape kShape = LstmShape().Sizes(5, 6).Ranks(2, 3).Sequence(3, 4);
const LstmShape kPackedShape = LstmShape().Sizes(5, 6).Ranks(2, 3).Packed({4, 3, 1});

constexpr int64_t kGrowing[] = {4, 3, 4}, kNegative[] = {4, 3, -1}, kEnded[] = {4, 3, 0}, kOtherFirst[] = {3, 3, 1},
                  kBeyond[] = {kHuge, kHuge, kHuge};

struct ValidLstm {
  LstmInputs inputs;
  LstmRun kept;
  Sequence y, dx;
  Operand hn, cn, c, gates, dv_in, du_in, dv, du, d_bias, dh0, dc0;
  Memory workspace{1 << 20};
  LstmArgs args;

  ValidLstm(const LstmShape &s, bool backward)
      : inputs(LATH_F32, s, 1),
        kept(KeptStates(inputs)),
        y(LATH_F32, s, s.hidden),
        dx(LATH_F32, s, s.in),
        hn(LATH_F32, s.batch, s.hidden),
        cn(LATH_F32, s.batch, s.hidden),
        c(LATH_F32, s.rows(), s.hidden),
        gates(LATH_F32, s.rows(), 4 * s.hidden),
        dv_in(LATH_F32, s.in_rank, s.in),
        du_in(LATH_F32, 4 * s.hidden, s.wide()),
        dv(LATH_F32, s.rank, s.hidden),
        du(LATH_F32, 4 * s.hidden, s.rank),
        d_bias(LATH_F32, 1, 4 * s.hidden),
        dh0(LATH_F32, s.batch, s.hidden),
        dc0(LATH_F32, s.batch, s.hidden),
        args(Arguments(inputs)) {
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.bytes();
    const Sequence &h = backward ? kept.y : y;
    args.y = h.data();
    args.s_y_step = h.s_step(), args.s_y_row = h.s_row();
    args.c = backward ? kept.c.data() : c.data();
    args.gates = backward ? kept.gates.data() : gates.data();
    if (!backward) {
      args.hn = hn.data();
      args.cn = cn.data();
      return;
    }
    args.dy = inputs.dy.data();
    args.s_dy_step = inputs.dy.s_step(), args.s_dy_row = inputs.dy.s_row();
    args.dhn = inputs.dhn.data();
    args.dcn = inputs.dcn.data();
    args.dx = dx.data();
    args.s_dx_step = dx.s_step(), args.s_dx_row = dx.s_row();
    args.dv_in = dv_in.data(), args.du_in = du_in.data(), args.dv = dv.data(), args.du = du.data();
    args.d_bias = d_bias.data();
    args.dh0 = dh0.data(), args.dc0 = dc0.data();
  }
  bool Untouched() const {
    for (const Operand *output :
         {&y.operand(), &dx.operand(), &hn, &cn, &c, &gates, &dv_in, &du_in, &dv, &du, &d_bias, &dh0, &dc0}) {
      if (!output->Untouched()) return false;
    }
    return true;
  }
};

// Of both directions, and of their queries.
const std::vector<BadCall<LstmArgs>> kBadShapes = {
    {"unknown dtype", LATH_UNSUPPORTED_DTYPE, [](LstmArgs *a) { SetTo(&a->dtype, 17); }},
    {"negative dtype", LATH_UNSUPPORTED_DTYPE, [](LstmArgs *a) { SetTo(&a->dtype, -1); }},
    {"bf16", LATH_UNSUPPORTED_DTYPE, [](LstmArgs *a) { a->dtype = LATH_BF16; }},
    {"f16", LATH_UNSUPPORTED_DTYPE, [](LstmArgs *a) { a->dtype = LATH_F16; }},
    {"unknown association", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { SetTo(&a->association, 3); }},
    {"negative association", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { SetTo(&a->association, -1); }},
    {"negative steps", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->steps = -1; }},
    {"negative batch", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->batch = -4; }},
    {"negative in", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->in = -5; }},
    {"no hidden unit", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->hidden = 0; }},
    {"negative hidden", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->hidden = -6; }},
    {"negative input rank", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->in_rank = -1; }},
    {"no rank", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->rank = 0; }},
    {"negative rank", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->rank = -3; }},
    {"steps beyond the address space", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->steps = kHuge; }},
    {"batch beyond the address space", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->batch = kHuge; }},
    {"in beyond the address space", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->in = kHuge; }},
    {"hidden beyond the address space", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->hidden = kHuge; }},
    {"input rank beyond the address space", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->in_rank = kHuge; }},
    {"rank beyond the address space", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->rank = kHuge; }},
    {"steps batch", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->steps = a->batch = kLarge; }},
    {"steps in", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->steps = a->in = kLarge; }},
    {"batch hidden", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->batch = a->hidden = kLarge; }},
    {"hidden rank", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->hidden = a->rank = kLarge; }},
    {"hidden in", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->hidden = a->in = kLarge; }},
    {"in_rank in", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->in_rank = a->in = kLarge; }},
    {"no x", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->x = nullptr; }},
    {"no v_in", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->v_in = nullptr; }},
    {"no u_in", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->u_in = nullptr; }},
    {"no dense input weight", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->in_rank = 0, a->u_in = nullptr; }},
    {"no u_in for inputs of no numbers", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->in = 0, a->u_in = nullptr; }},
    {"no v", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->v = nullptr; }},
    {"no u", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->u = nullptr; }},
    {"negative distance of rows of x", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->s_x_row = -5; }},
    {"distance of rows of x", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->s_x_row = kHuge; }},
};

// Of a sequence that is not packed.
const std::vector<BadCall<LstmArgs>> kBadSteps = {
    {"negative distance of steps of x", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->s_x_step = -20; }},
    {"distance of steps of x", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->s_x_step = kHuge; }},
    {"negative distance of steps of y", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->s_y_step = -24; }},
    {"distance of steps of y", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->s_y_step = kHuge; }},
};

const std::vector<BadCall<LstmArgs>> kBadPacking = {
    {"more samples than in the step before", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->batch_sizes = kGrowing; }},
    {"a negative number of samples", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->batch_sizes = kNegative; }},
    {"a step without samples", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->batch_sizes = kEnded; }},
    {"another batch in the first step", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->batch_sizes = kOtherFirst; }},
    {"rows beyond the address space", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->batch_sizes = kBeyond, a->batch = kHuge; }},
};

const std::vector<BadCall<LstmArgs>> kBadY = {
    {"negative distance of rows of y", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->s_y_row = -6; }},
    {"distance of rows of y", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->s_y_row = kHuge; }},
};

const std::vector<BadCall<LstmArgs>> kBadForward = {
    {"rows of y in one place", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->s_y_row = 0; }},
    {"rows of y that overlap", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->s_y_row = 5; }},
};

const std::vector<BadCall<LstmArgs>> kBadBackward = {
    {"no y", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->y = nullptr; }},
    {"no c", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->c = nullptr; }},
    {"negative distance of rows of dy", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->s_dy_row = -6; }},
    {"distance of rows of dy", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->s_dy_row = kHuge; }},
    {"negative distance of rows of dx", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->s_dx_row = -5; }},
    {"distance of rows of dx", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->s_dx_row = kHuge; }},
    {"rows of dx in one place", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->s_dx_row = 0; }},
    {"rows of dx that overlap", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->s_dx_row = 4; }},
};

const std::vector<BadCall<LstmArgs>> kBadForwardSteps = {
    {"steps of y in one place", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->s_y_step = 0; }},
};

const std::vector<BadCall<LstmArgs>> kBadBackwardSteps = {
    {"negative distance of steps of dy", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->s_dy_step = -24; }},
    {"distance of steps of dy", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->s_dy_step = kHuge; }},
    {"steps of dx in one place", LATH_INVALID_ARGUMENT, [](LstmArgs *a) { a->s_dx_step = 0; }},
    {"distance of steps of dx", LATH_SIZE_OVERFLOW, [](LstmArgs *a) { a->s_dx_step = kHuge; }},
};

// By the entry, its twin and the query.
void ExpectRefused(const std::vector<BadCall<LstmArgs>> &calls, const LstmShape &shape, bool backward) {
  const auto make_valid = [&] { return ValidLstm(shape, backward); };
  const auto entry = backward ? lath_lowrank_lstm_backward : lath_lowrank_lstm;
  const auto query = backward ? lath_lowrank_lstm_backward_workspace : lath_lowrank_lstm_workspace;
  ExpectRefusals<LstmArgs>(calls, make_valid, [&](const LstmArgs *args) { return entry(args, &lath_serial_host); });
  ExpectRefusals<LstmArgs>(calls, make_valid, backward ? lath_lowrank_lstm_backward_ref : lath_lowrank_lstm_ref);
  ExpectRefusals<LstmArgs>(calls, make_valid, [&](const LstmArgs *args) {
    size_t bytes;
    return query(args, &lath_serial_host, &bytes);
  });
}

TEST(BadLstm, ForwardIsRefused) {
  for (const auto &calls : {kBadShapes, kBadSteps, kBadY, kBadForward, kBadForwardSteps}) ExpectRefused(calls, kShape, false);
}

TEST(BadLstm, BackwardIsRefused) {
  for (const auto &calls : {kBadShapes, kBadSteps, kBadY, kBadBackward, kBadBackwardSteps}) ExpectRefused(calls, kShape, true);
}

TEST(BadLstm, PackedForwardIsRefused) {
  for (const auto &calls : {kBadPacking, kBadY, kBadForward}) ExpectRefused(calls, kPackedShape, false);
}

TEST(BadLstm, PackedBackwardIsRefused) {
  for (const auto &calls : {kBadPacking, kBadY, kBadBackward}) ExpectRefused(calls, kPackedShape, true);
}

// The distance of steps says nothing about a packed sequence, and that of rows nothing about one sample.
TEST(BadLstm, DistancesThatAreNotUsedMayBeAnything) {
  for (const bool backward : {false, true}) {
    ValidLstm packed(kPackedShape, backward), one(kShape.Sequence(1, 4), backward), alone(kShape.Sequence(3, 1), backward);
    packed.args.s_x_step = packed.args.s_y_step = packed.args.s_dy_step = packed.args.s_dx_step = -1;
    one.args.s_x_step = one.args.s_y_step = one.args.s_dy_step = one.args.s_dx_step = 0;
    alone.args.s_x_row = alone.args.s_y_row = alone.args.s_dy_row = alone.args.s_dx_row = 0;
    for (const ValidLstm *valid : {&packed, &one, &alone}) {
      const auto entry = backward ? lath_lowrank_lstm_backward : lath_lowrank_lstm;
      EXPECT_EQ(entry(&valid->args, &lath_serial_host), LATH_OK);
      EXPECT_FALSE(valid->Untouched());
    }
  }
}

TEST(BadLstm, NullStructsAreRefused) {
  size_t bytes;
  ValidLstm forward(kShape, false), backward(kShape, true);
  EXPECT_EQ(lath_lowrank_lstm(nullptr, &lath_serial_host), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_lowrank_lstm(&forward.args, nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_lowrank_lstm_ref(nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_lowrank_lstm_backward(nullptr, &lath_serial_host), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_lowrank_lstm_backward(&backward.args, nullptr), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_lowrank_lstm_backward_ref(nullptr), LATH_INVALID_ARGUMENT);
  for (const auto query : {lath_lowrank_lstm_workspace, lath_lowrank_lstm_backward_workspace}) {
    EXPECT_EQ(query(nullptr, &lath_serial_host, &bytes), LATH_INVALID_ARGUMENT);
    EXPECT_EQ(query(&backward.args, nullptr, &bytes), LATH_INVALID_ARGUMENT);
    EXPECT_EQ(query(&backward.args, &lath_serial_host, nullptr), LATH_INVALID_ARGUMENT);
  }
  EXPECT_TRUE(forward.Untouched());
  EXPECT_TRUE(backward.Untouched());
}

TEST(BadLstm, TheWorkspaceMustBeWhatTheQueryAnswers) {
  for (const lath_dtype dtype : {LATH_F32, LATH_F64}) {
    for (const LstmShape &shape : {kShape, kPackedShape, kShape.Sizes(30, 40).Sequence(9, 130).Ranks(0, 7)}) {
      for (const bool backward : {false, true}) {
        ValidLstm valid(shape, backward);
        LstmArgs &args = valid.args;
        args.dtype = dtype;
        const auto entry = backward ? lath_lowrank_lstm_backward : lath_lowrank_lstm;
        const auto ref = backward ? lath_lowrank_lstm_backward_ref : lath_lowrank_lstm_ref;
        const auto query = backward ? lath_lowrank_lstm_backward_workspace : lath_lowrank_lstm_workspace;
        size_t need;
        ASSERT_EQ(query(&args, &lath_serial_host, &need), LATH_OK);
        ASSERT_GT(need, 0u);
        args.workspace_bytes = need - 1;
        EXPECT_EQ(entry(&args, &lath_serial_host), LATH_SMALL_WORKSPACE);
        args.workspace_bytes = 0;
        EXPECT_EQ(entry(&args, &lath_serial_host), LATH_SMALL_WORKSPACE);
        EXPECT_EQ(ref(&args), LATH_SMALL_WORKSPACE);
        args.workspace = nullptr;
        args.workspace_bytes = need;
        EXPECT_EQ(entry(&args, &lath_serial_host), LATH_INVALID_ARGUMENT);
        EXPECT_EQ(ref(&args), LATH_INVALID_ARGUMENT);
        EXPECT_TRUE(valid.Untouched());
      }
    }
  }
}

constexpr std::pair<const char *, int64_t LstmArgs::*> kExtents[] = {
    {"steps", &LstmArgs::steps},   {"batch", &LstmArgs::batch},     {"in", &LstmArgs::in},
    {"hidden", &LstmArgs::hidden}, {"in_rank", &LstmArgs::in_rank}, {"rank", &LstmArgs::rank}};

TEST(HugeLstm, NoQueryWrapsAround) {
  const ThreadHost host(64);
  const auto query = [&](auto function) {
    return [&host, function](const LstmArgs *args, size_t *bytes) { return function(args, host.get(), bytes); };
  };
  for (const lath_dtype dtype : {LATH_F32, LATH_F64}) {
    for (const lath_association association : {LATH_AUTO, LATH_FACTORED, LATH_MERGED}) {
      for (const auto &[name, extent] : kExtents) {
        for (const auto &[other_name, other] : kExtents) {
          SCOPED_TRACE(std::string("growing ") + name + " with 2^20 of " + other_name);
          ValidLstm valid(kShape, true);
          LstmArgs args = valid.args;
          args.dtype = dtype;
          args.association = association;
          args.s_x_step = args.s_x_row = args.s_dy_step = args.s_dy_row = 0;
          args.s_y_step = args.s_y_row = args.s_dx_step = args.s_dx_row = int64_t{1} << 22;
          args.*other = int64_t{1} << 20;
          args.dx = nullptr;
          ExpectGrowingSizes<LstmArgs>(args, extent, query(lath_lowrank_lstm_backward_workspace));
          args.y = nullptr;
          ExpectGrowingSizes<LstmArgs>(args, extent, query(lath_lowrank_lstm_workspace));
        }
      }
    }
  }
}

// An empty tensor of torch has no memory: null pointers and any stride are right where there is nothing to read or write.
TEST(EmptyLstm, NeedsNoMemory) {
  for (const bool packed : {false, true}) {
    LstmArgs args = Arguments(LstmInputs(LATH_F32, LstmShape().Sizes(0, 3).Ranks(0, 2).Sequence(packed ? 0 : 2, 0), 1));
    const LstmInputs weights(LATH_F32, LstmShape().Sizes(0, 3).Ranks(0, 2), 1);
    Memory workspace(1 << 20);
    const int64_t none = 0;
    args.batch_sizes = packed ? &none : nullptr;
    args.x = args.u_in = args.bias = args.bias_in = args.h0 = args.c0 = nullptr;
    args.v = weights.v.data();
    args.u = weights.u.data();
    args.s_x_row = args.s_x_step = args.s_y_row = args.s_dx_step = -1;
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.bytes();
    EXPECT_EQ(lath_lowrank_lstm(&args, &lath_serial_host), LATH_OK);
    EXPECT_EQ(lath_lowrank_lstm_ref(&args), LATH_OK);
    EXPECT_EQ(lath_lowrank_lstm_backward(&args, &lath_serial_host), LATH_OK);
    EXPECT_EQ(lath_lowrank_lstm_backward_ref(&args), LATH_OK);
  }
}

// Inputs of no numbers: x, its weight and their gradients have no memory, but the steps are there.
TEST(EmptyLstm, InputsOfNoNumbersNeedNoMemory) {
  const LstmShape shape = LstmShape().Sizes(0, 9).Ranks(0, 2).Sequence(3, 4);
  for (const bool ref : {false, true}) {
    ValidLstm forward(shape, false), backward(shape, true);
    for (LstmArgs *args : {&forward.args, &backward.args}) {
      args->x = args->u_in = nullptr;
      args->s_x_row = args->s_dx_row = 1, args->s_x_step = args->s_dx_step = shape.batch;  // torch's strides of nothing
      args->dx = args->du_in = args->dv_in = nullptr;
    }
    const LstmOracle oracle = OracleOf(forward.inputs);
    ASSERT_EQ(ref ? lath_lowrank_lstm_ref(&forward.args) : lath_lowrank_lstm(&forward.args, &lath_serial_host), LATH_OK);
    const Values y = oracle.Forward().y, du = oracle.Backward().du;
    EXPECT_TRUE(Within(forward.y.operand(), y, Values(y.size(), Tolerance(LATH_F32))));
    ASSERT_EQ(
        ref ? lath_lowrank_lstm_backward_ref(&backward.args) : lath_lowrank_lstm_backward(&backward.args, &lath_serial_host),
        LATH_OK);
    EXPECT_TRUE(Within(backward.du, du, Values(du.size(), 10 * Tolerance(LATH_F32))));
  }
}

TEST(FailingHosts, AreReportedByBothDirections) {
  for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
    for (const LstmShape &shape : {LstmShape().Sizes(64, 70).Ranks(30, 40).Sequence(20, 40),
                                   LstmShape().Sizes(300, 300).Ranks(60, 70).Sequence(2, 130)}) {
      const LstmInputs inputs(LATH_F32, shape, 1);
      LstmOptions options;
      options.association = association;
      const LstmRun forward = RunLstm(inputs, options);
      SCOPED_TRACE(Describe(LATH_F32, shape));
      ExpectHostFailures([&](const lath_host *host) {
        options.host = host;
        return RunLstm(inputs, options).status;
      });
      ExpectHostFailures([&](const lath_host *host) {
        options.host = host;
        return RunLstmBackward(inputs, forward, true, options).status;
      });
    }
  }
}

}  // namespace
}  // namespace lath_test
