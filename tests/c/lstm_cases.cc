// SPDX-License-Identifier: Apache-2.0
//
// lstm_cases.cc - calls of the low-rank LSTM and the shapes of its tests; see lstm_cases.h.

#include "lstm_cases.h"

#include <algorithm>
#include <cmath>

namespace lath_test {

// ---- sequences ------------------------------------------------------------------------------------------------------------

Sequence::Sequence(lath_dtype dtype, const LstmShape &s, int64_t n, const SequenceLayout &layout)
    : batch_first_(layout.batch_first && !s.packed()),
      steps_(s.packed() ? 1 : s.steps),
      batch_(s.packed() ? s.rows() : s.batch),
      n_(n),
      operand_(dtype, 1, batch_first_ ? batch_ : steps_, batch_first_ ? steps_ : batch_, n, layout.memory) {}

Values Sequence::Reordered(const Values &values, bool to_memory) const {
  if (!batch_first_) return values;
  Values result(values.size());
  for (int64_t t = 0; t < steps_; ++t) {
    for (int64_t b = 0; b < batch_; ++b) {
      const int64_t by_step = (t * batch_ + b) * n_, by_sample = (b * steps_ + t) * n_;
      const int64_t from = to_memory ? by_step : by_sample, to = to_memory ? by_sample : by_step;
      std::copy(values.begin() + from, values.begin() + from + n_, result.begin() + to);
    }
  }
  return result;
}

SequenceLayout HalfOfOutput(int64_t hidden, bool second, bool batch_first) {
  SequenceLayout layout;
  layout.batch_first = batch_first;
  layout.memory.gap = hidden;
  layout.memory.misalignment = second ? hidden : 0;
  return layout;
}

SequenceLayout DrawSequence(Choices *choices) {
  SequenceLayout layout;
  layout.batch_first = choices->OneIn(2);
  layout.memory.gap = choices->From({0, 0, 1, 5, 16});
  layout.memory.misalignment = choices->Below(3);
  return layout;
}

// ---- calls ----------------------------------------------------------------------------------------------------------------

namespace {

void FillScaled(Operand *operand, uint32_t seed, double scale) { operand->Fill(Uniform(seed, operand->size(), scale)); }

double OverRoot(double factor, int64_t length) { return factor / std::sqrt(static_cast<double>(std::max<int64_t>(1, length))); }

}  // namespace

LstmInputs::LstmInputs(lath_dtype type, const LstmShape &s, uint32_t seed, unsigned with, const SequenceLayout &layout_x,
                       const SequenceLayout &layout_dy, const Layout &layout)
    : dtype(type),
      shape(s),
      present(with),
      x(type, s, s.in, layout_x),
      dy(type, s, s.hidden, layout_dy),
      v_in(type, s.in_rank, s.in, layout),
      u_in(type, 4 * s.hidden, s.wide(), layout),
      v(type, s.rank, s.hidden, layout),
      u(type, 4 * s.hidden, s.rank, layout),
      bias_in(type, 1, 4 * s.hidden, layout),
      bias(type, 1, 4 * s.hidden, layout),
      h0(type, s.batch, s.hidden, layout),
      c0(type, s.batch, s.hidden, layout),
      dhn(type, s.batch, s.hidden, layout),
      dcn(type, s.batch, s.hidden, layout) {
  const double root = std::sqrt(3.0);
  x.Fill(Uniform(seed++, s.rows() * s.in));
  dy.Fill(Uniform(seed++, s.rows() * s.hidden));
  FillScaled(&v_in, seed++, OverRoot(3, s.in));
  FillScaled(&u_in, seed++, OverRoot(s.in_rank > 0 ? root : 3, s.wide()));
  FillScaled(&v, seed++, OverRoot(3, s.hidden));
  FillScaled(&u, seed++, OverRoot(root, s.rank));
  for (Operand *operand : {&bias_in, &bias, &h0, &c0, &dhn, &dcn}) FillScaled(operand, seed++, 0.7);
}

LstmOracle OracleOf(const LstmInputs &inputs) {
  const auto when = [&](LstmOptional bit, const auto &operand) { return inputs.present & bit ? operand.Read() : Values(); };
  return {inputs.shape,
          inputs.x.Read(),
          inputs.v_in.Read(),
          inputs.u_in.Read(),
          inputs.v.Read(),
          inputs.u.Read(),
          when(kBiasIn, inputs.bias_in),
          when(kBias, inputs.bias),
          when(kH0, inputs.h0),
          when(kC0, inputs.c0),
          when(kDy, inputs.dy),
          when(kDhn, inputs.dhn),
          when(kDcn, inputs.dcn)};
}

LstmArgs Arguments(const LstmInputs &inputs) {
  const LstmShape &s = inputs.shape;
  const auto when = [&](LstmOptional bit, const Operand &operand) { return inputs.present & bit ? operand.data() : nullptr; };
  LstmArgs args = {};
  args.dtype = inputs.dtype;
  args.steps = s.steps, args.batch = s.batch, args.in = s.in, args.hidden = s.hidden;
  args.in_rank = s.in_rank, args.rank = s.rank;
  args.batch_sizes = s.packed() ? s.batch_sizes.data() : nullptr;
  args.reverse = s.reverse;
  args.x = inputs.x.data();
  args.s_x_step = inputs.x.s_step(), args.s_x_row = inputs.x.s_row();
  args.v_in = s.in_rank > 0 ? inputs.v_in.data() : nullptr;
  args.u_in = inputs.u_in.data();
  args.v = inputs.v.data();
  args.u = inputs.u.data();
  args.bias_in = when(kBiasIn, inputs.bias_in);
  args.bias = when(kBias, inputs.bias);
  args.h0 = when(kH0, inputs.h0);
  args.c0 = when(kC0, inputs.c0);
  return args;
}

LstmRun EmptyRun(const LstmInputs &inputs, const SequenceLayout &sequence, const Layout &state) {
  const LstmShape &s = inputs.shape;
  const lath_dtype dtype = inputs.dtype;
  return {LATH_OK,
          true,
          Sequence(dtype, s, s.hidden, sequence),
          Operand(dtype, s.batch, s.hidden, state),
          Operand(dtype, s.batch, s.hidden, state),
          Operand(dtype, s.rows(), s.hidden, state),
          Operand(dtype, s.rows(), 4 * s.hidden, state)};
}

LstmBackwardRun EmptyBackwardRun(const LstmInputs &inputs, const SequenceLayout &sequence, const Layout &state) {
  const LstmShape &s = inputs.shape;
  const lath_dtype dtype = inputs.dtype;
  return {LATH_OK,
          true,
          Sequence(dtype, s, s.in, sequence),
          Operand(dtype, s.in_rank, s.in, state),
          Operand(dtype, 4 * s.hidden, s.wide(), state),
          Operand(dtype, s.rank, s.hidden, state),
          Operand(dtype, 4 * s.hidden, s.rank, state),
          Operand(dtype, 1, 4 * s.hidden, state),
          Operand(dtype, s.batch, s.hidden, state),
          Operand(dtype, s.batch, s.hidden, state)};
}

LstmRun RunLstm(const LstmInputs &inputs, const LstmOptions &options, unsigned outputs) {
  LstmRun run = EmptyRun(inputs, options.sequence, options.state);
  LstmArgs args = Arguments(inputs);
  args.association = options.association;
  args.y = outputs & kY ? run.y.data() : nullptr;
  args.s_y_step = run.y.s_step(), args.s_y_row = run.y.s_row();
  args.hn = outputs & kHn ? run.hn.data() : nullptr;
  args.cn = outputs & kCn ? run.cn.data() : nullptr;
  args.c = outputs & kC ? run.c.data() : nullptr;
  args.gates = outputs & kGates ? run.gates.data() : nullptr;
  Call(&args, options, lath_lowrank_lstm_workspace, lath_lowrank_lstm, lath_lowrank_lstm_ref, &run);
  return run;
}

LstmRun KeptStates(const LstmInputs &inputs, const SequenceLayout &layout) {
  LstmRun run = EmptyRun(inputs, layout, {});
  const LstmStates states = OracleOf(inputs).Forward();
  run.y.Fill(states.y);
  run.c.Fill(states.c);
  run.gates.Fill(states.gates);
  return run;
}

LstmBackwardRun RunLstmBackward(const LstmInputs &inputs, const LstmRun &forward, bool with_gates, const LstmOptions &options,
                                unsigned gradients) {
  LstmBackwardRun run = EmptyBackwardRun(inputs, options.sequence, options.state);
  const auto asked = [&](LstmGradient bit, const auto &to) { return gradients & bit ? to.data() : nullptr; };
  LstmArgs args = Arguments(inputs);
  args.association = options.association;
  args.y = forward.y.data();
  args.s_y_step = forward.y.s_step(), args.s_y_row = forward.y.s_row();
  args.c = forward.c.data();
  args.gates = with_gates ? forward.gates.data() : nullptr;
  args.dy = inputs.present & kDy ? inputs.dy.data() : nullptr;
  args.s_dy_step = inputs.dy.s_step(), args.s_dy_row = inputs.dy.s_row();
  args.dhn = inputs.present & kDhn ? inputs.dhn.data() : nullptr;
  args.dcn = inputs.present & kDcn ? inputs.dcn.data() : nullptr;
  args.dx = asked(kLstmDx, run.dx);
  args.s_dx_step = run.dx.s_step(), args.s_dx_row = run.dx.s_row();
  args.dv_in = inputs.shape.in_rank > 0 ? asked(kLstmDvIn, run.dv_in) : nullptr;
  args.du_in = asked(kLstmDuIn, run.du_in);
  args.dv = asked(kLstmDv, run.dv);
  args.du = asked(kLstmDu, run.du);
  args.d_bias = asked(kLstmDBias, run.d_bias);
  args.dh0 = asked(kLstmDh0, run.dh0);
  args.dc0 = asked(kLstmDc0, run.dc0);
  Call(&args, options, lath_lowrank_lstm_backward_workspace, lath_lowrank_lstm_backward, lath_lowrank_lstm_backward_ref, &run);
  return run;
}

// ---- comparisons ----------------------------------------------------------------------------------------------------------

namespace {

struct NamedOutput {
  const char *name;
  unsigned bit;
  Operand LstmRun::*result;
  Values LstmStates::*values;
};

constexpr NamedOutput kNamedOutputs[] = {
    {"hn", kHn, &LstmRun::hn, &LstmStates::hn},
    {"cn", kCn, &LstmRun::cn, &LstmStates::cn},
    {"c", kC, &LstmRun::c, &LstmStates::c},
    {"gates", kGates, &LstmRun::gates, &LstmStates::gates},
};

struct NamedLstmGradient {
  const char *name;
  unsigned bit;
  Operand LstmBackwardRun::*result;
  Values LstmGradients::*values;
};

constexpr NamedLstmGradient kNamedGradients[] = {
    {"dv_in", kLstmDvIn, &LstmBackwardRun::dv_in, &LstmGradients::dv_in},
    {"du_in", kLstmDuIn, &LstmBackwardRun::du_in, &LstmGradients::du_in},
    {"dv", kLstmDv, &LstmBackwardRun::dv, &LstmGradients::dv},
    {"du", kLstmDu, &LstmBackwardRun::du, &LstmGradients::du},
    {"d_bias", kLstmDBias, &LstmBackwardRun::d_bias, &LstmGradients::d_bias},
    {"dh0", kLstmDh0, &LstmBackwardRun::dh0, &LstmGradients::dh0},
    {"dc0", kLstmDc0, &LstmBackwardRun::dc0, &LstmGradients::dc0},
};

testing::AssertionResult Near(const Operand &got, const Values &want) {
  double largest = 0;
  for (const double value : want) largest = std::max(largest, std::fabs(value));
  return Within(got, want, Values(want.size(), Tolerance(got.dtype()) * largest));
}

// check() if the tensor was asked for; otherwise it must be untouched.
template <typename Check>
testing::AssertionResult One(const char *name, const Operand &got, bool asked, Check check) {
  if (!asked && got.Untouched()) return testing::AssertionSuccess();
  if (!asked) return testing::AssertionFailure() << name << " was written and not asked for";
  const testing::AssertionResult result = check();
  return result ? result : testing::AssertionFailure() << name << ": " << result.message();
}

}  // namespace

// With a rank of 1 the gradients of all gates of a sample add up to one number, and terms may cancel: more than 64 epsilons have been seen.
double Tolerance(lath_dtype dtype) { return 256 * AccumulatorEpsilon(dtype); }

testing::AssertionResult OutputsWithin(const LstmRun &run, const LstmStates &want, unsigned outputs) {
  testing::AssertionResult result = Completed(run);
  if (result) {
    const Operand &y = run.y.operand();
    result = One("y", y, outputs & kY, [&] { return Near(y, run.y.InMemory(want.y)); });
  }
  for (const NamedOutput &output : kNamedOutputs) {
    const Operand &got = run.*output.result;
    if (result) result = One(output.name, got, outputs & output.bit, [&] { return Near(got, want.*output.values); });
  }
  return result;
}

testing::AssertionResult GradientsWithin(const LstmBackwardRun &run, const LstmGradients &want, unsigned gradients) {
  testing::AssertionResult result = Completed(run);
  if (result) {
    const Operand &dx = run.dx.operand();
    result = One("dx", dx, gradients & kLstmDx, [&] { return Near(dx, run.dx.InMemory(want.dx)); });
  }
  for (const NamedLstmGradient &gradient : kNamedGradients) {
    const Operand &got = run.*gradient.result;
    if (result) result = One(gradient.name, got, gradients & gradient.bit, [&] { return Near(got, want.*gradient.values); });
  }
  return result;
}

testing::AssertionResult SameOutputs(const LstmRun &a, const LstmRun &b, unsigned outputs) {
  testing::AssertionResult result = Completed(a);
  if (result) result = Completed(b);
  if (result && outputs & kY) result = SameBits(a.y.operand(), b.y.operand());
  for (const NamedOutput &output : kNamedOutputs) {
    if (!result || !(outputs & output.bit)) continue;
    result = One(output.name, a.*output.result, true, [&] { return SameBits(a.*output.result, b.*output.result); });
  }
  return result;
}

testing::AssertionResult SameGradients(const LstmBackwardRun &a, const LstmBackwardRun &b, unsigned gradients) {
  testing::AssertionResult result = Completed(a);
  if (result) result = Completed(b);
  if (result && gradients & kLstmDx) result = SameBits(a.dx.operand(), b.dx.operand());
  for (const NamedLstmGradient &gradient : kNamedGradients) {
    if (!result || !(gradients & gradient.bit)) continue;
    result = One(gradient.name, a.*gradient.result, true, [&] { return SameBits(a.*gradient.result, b.*gradient.result); });
  }
  return result;
}

// ---- shapes ---------------------------------------------------------------------------------------------------------------

namespace {

// Around whole vectors of every kernel.
const std::vector<int64_t> kHiddenSizes = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 70};
const std::vector<int64_t> kRanks = {1, 2, 3, 8, 13, 16, 17, 40};
constexpr int64_t kMostMacs = 3000000;  // of the oracle's forward

int64_t MacsOf(const LstmShape &s) { return s.rows() * 4 * s.hidden * (s.in + s.hidden); }

int64_t DrawInRank(Choices *choices) { return choices->OneIn(3) ? 0 : choices->From(kRanks); }

}  // namespace

unsigned WantedGradients(const LstmShape &shape, unsigned gradients) {
  return shape.in_rank > 0 ? gradients : gradients & ~static_cast<unsigned>(kLstmDvIn);
}

// All of them, or any set.
static unsigned DrawSet(Choices *choices, unsigned all) {
  return choices->OneIn(2) ? all : static_cast<unsigned>(choices->Below(static_cast<int64_t>(all) + 1));
}

unsigned DrawLstmOutputs(Choices *choices) { return DrawSet(choices, kAllOutputs); }
unsigned DrawLstmGradients(Choices *choices) { return DrawSet(choices, kAllLstmGradients); }

LstmCall DrawLstmCall(Choices *choices) {
  LstmCall call;
  call.options.association = kLstmAssociations[choices->Below(3)];
  call.options.sequence = DrawSequence(choices);
  call.options.state.misalignment = choices->Below(3);
  call.dtype = choices->OneIn(6) ? LATH_F64 : LATH_F32;
  call.options.workspace_misalignment = choices->OneIn(2) ? lath_dtype_size(call.dtype) : 0;
  call.weights.misalignment = choices->Below(3);
  call.present = DrawSet(choices, kAllOptional);
  return call;
}

std::vector<int64_t> DrawBatchSizes(Choices *choices, int64_t steps, int64_t batch) {
  std::vector<int64_t> sizes;
  for (int64_t t = 0; t < steps; ++t) {
    sizes.push_back(batch);
    if (!choices->OneIn(3)) batch = std::max<int64_t>(1, batch - choices->Below(1 + batch / 3 + 1));
  }
  return sizes;
}

LstmShape DrawLstm(Choices *choices) {
  LstmShape s;
  do {
    s = s.Sizes(choices->From({1, 2, 3, 8, 15, 16, 17, 33, 70, 100}), choices->From(kHiddenSizes));
    s = s.Ranks(DrawInRank(choices), choices->From(kRanks)).Reverse(choices->OneIn(2));
    const int64_t steps = choices->From({1, 2, 3, 5, 8, 20, 40}),
                  batch = choices->From({1, 2, 3, 7, 15, 16, 17, 33, 64, 128, 130});
    s = choices->OneIn(2) ? s.Sequence(steps, batch) : s.Packed(DrawBatchSizes(choices, steps, batch));
  } while (MacsOf(s) > kMostMacs);
  return s;
}

const std::vector<LstmShape> &WidthLstms() {
  static const std::vector<LstmShape> shapes = [] {
    std::vector<LstmShape> all;
    Choices choices(41);
    for (const int64_t hidden : kHiddenSizes) {
      for (const int64_t in_rank : {int64_t{0}, choices.From(kRanks)}) {
        const int64_t in = choices.From({1, 3, 15, 16, 17, 33, 64, 70});
        const LstmShape one = LstmShape().Sizes(in, hidden).Ranks(in_rank, choices.From(kRanks));
        all.push_back(one.Sequence(5, choices.From({1, 3, 18})).Reverse(choices.OneIn(2)));
      }
    }
    // Ranks beyond full, which no association takes for cheap.
    all.push_back(LstmShape().Sizes(3, 5).Ranks(40, 33).Sequence(4, 3));
    all.push_back(LstmShape().Sizes(40, 16).Ranks(40, 64).Sequence(4, 17).Reverse());
    return all;
  }();
  return shapes;
}

const std::vector<LstmShape> &BatchLstms() {
  static const std::vector<LstmShape> shapes = [] {
    std::vector<LstmShape> all;
    Choices choices(42);
    for (const int64_t batch : {1, 2, 8, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 130, 192, 200, 257}) {
      const LstmShape one = LstmShape().Sizes(choices.From({5, 17}), choices.From({9, 16, 19})).Ranks(DrawInRank(&choices), 6);
      all.push_back(one.Sequence(7, batch).Reverse(choices.OneIn(2)));
      all.push_back(one.Packed(DrawBatchSizes(&choices, 9, batch)).Reverse(choices.OneIn(2)));
    }
    return all;
  }();
  return shapes;
}

const std::vector<LstmShape> &SequenceLstms() {
  static const std::vector<LstmShape> shapes = [] {
    std::vector<LstmShape> all;
    for (const int64_t in_rank : {0, 3}) {
      for (const bool reverse : {false, true}) {
        const LstmShape one = LstmShape().Sizes(6, 18).Ranks(in_rank, 5).Reverse(reverse);
        for (const int64_t steps : {0, 1, 2, 127, 128, 129, 300}) all.push_back(one.Sequence(steps, 1));
        for (const int64_t steps : {0, 1, 42, 43, 44, 87}) all.push_back(one.Sequence(steps, 3));
        for (const int64_t steps : {1, 15, 16, 17, 33}) all.push_back(one.Sequence(steps, 16));
      }
    }
    return all;
  }();
  return shapes;
}

const std::vector<LstmShape> &PackedLstms() {
  static const std::vector<LstmShape> shapes = [] {
    std::vector<LstmShape> all;
    std::vector<int64_t> one_by_one;
    for (int64_t samples = 20; samples > 0; --samples) one_by_one.push_back(samples);
    std::vector<int64_t> one_is_long(150, 1);
    one_is_long.front() = 130;
    for (const int64_t in_rank : {0, 4}) {
      for (const bool reverse : {false, true}) {
        const LstmShape one = LstmShape().Sizes(5, 17).Ranks(in_rank, 6).Reverse(reverse);
        all.push_back(one.Packed({1}));
        all.push_back(one.Packed({3, 3, 3}));
        all.push_back(one.Packed({4, 1}));
        all.push_back(one.Packed(one_by_one));
        all.push_back(one.Packed(one_is_long));
        all.push_back(one.Packed({130, 130, 65, 64, 44, 43, 1, 1}));
      }
    }
    return all;
  }();
  return shapes;
}

const std::vector<LstmShape> &LayerLstms() {
  static const std::vector<LstmShape> shapes = {
      LstmShape().Sizes(300, 260).Ranks(40, 51).Sequence(3, 66),
      LstmShape().Sizes(8, 256).Ranks(0, 204).Sequence(2, 130).Reverse(),
      LstmShape().Sizes(520, 512).Ranks(100, 90).Packed({17, 6}),
  };
  return shapes;
}

const std::vector<LstmShape> &EmptyLstms() {
  static const std::vector<LstmShape> shapes = [] {
    std::vector<LstmShape> all;
    for (const int64_t in_rank : {0, 3}) {
      const LstmShape one = LstmShape().Sizes(5, 17).Ranks(in_rank, 6);
      all.push_back(one.Sequence(4, 0));
      all.push_back(one.Sequence(0, 0));
      all.push_back(one.Sequence(0, 3).Reverse());
      all.push_back(one.Sizes(0, 17).Sequence(3, 4));
      all.push_back(one.Sizes(0, 9).Packed({4, 2}).Reverse());
    }
    return all;
  }();
  return shapes;
}

}  // namespace lath_test
