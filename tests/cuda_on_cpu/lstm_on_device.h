// SPDX-License-Identifier: Apache-2.0
//
// lstm_on_device.h - calls of the low-rank LSTM on the device, as lowrank_cases.h makes those of the low-rank product. Operands,
// oracles and comparisons are those of the processor's tests (tests/c/lstm_cases.h).

#ifndef LATH_TESTS_CUDA_ON_CPU_LSTM_ON_DEVICE_H_
#define LATH_TESTS_CUDA_ON_CPU_LSTM_ON_DEVICE_H_

#include "lowrank_cases.h"
#include "lstm_cases.h"

namespace cuda_test {

using lath_test::DrawSequence;
using lath_test::GradientsWithin;
using lath_test::kAllLstmGradients;
using lath_test::kAllOptional;
using lath_test::kAllOutputs;
using lath_test::kLstmAssociations;
using lath_test::kLstmDtypes;
using lath_test::LstmBackwardRun;
using lath_test::LstmInputs;
using lath_test::LstmRun;
using lath_test::LstmShape;
using lath_test::OutputsWithin;
using lath_test::SameOutputs;
using lath_test::Sequence;
using lath_test::SequenceLayout;
using lath_test::WantedGradients;

// As planned, step by step, and all steps in one launch where that can be done.
constexpr int kRoutesOfSteps[] = {kPlanned, LATH_LOWRANK_PRODUCTS, LATH_LOWRANK_FUSED};

struct LstmDeviceOptions : DeviceOptions {
  SequenceLayout sequence;  // of y and dx
  Layout state;             // of all other outputs, which have no gaps
};

struct LstmOnDevice {
  explicit LstmOnDevice(const LstmInputs &i)
      : x(i.x.operand()),
        dy(i.dy.operand()),
        v_in(i.v_in),
        u_in(i.u_in),
        v(i.v),
        u(i.u),
        bias_in(i.bias_in),
        bias(i.bias),
        h0(i.h0),
        c0(i.c0),
        dhn(i.dhn),
        dcn(i.dcn) {}

  lath_test::LstmArgs Arguments(const LstmInputs &inputs, const DeviceOptions &options) const {
    lath_test::LstmArgs args = lath_test::Arguments(inputs);
    args.association = options.association;
    args.x = x.data();
    args.v_in = args.v_in != nullptr ? v_in.data() : nullptr;
    args.u_in = u_in.data();
    args.v = v.data();
    args.u = u.data();
    args.bias_in = args.bias_in != nullptr ? bias_in.data() : nullptr;
    args.bias = args.bias != nullptr ? bias.data() : nullptr;
    args.h0 = args.h0 != nullptr ? h0.data() : nullptr;
    args.c0 = args.c0 != nullptr ? c0.data() : nullptr;
    return args;
  }

  OnDevice x, dy, v_in, u_in, v, u, bias_in, bias, h0, c0, dhn, dcn;
};

inline LstmRun LstmForwardOnDevice(const LstmInputs &inputs, const LstmDeviceOptions &options, unsigned outputs = kAllOutputs) {
  LstmRun run = lath_test::EmptyRun(inputs, options.sequence, options.state);
  const LstmOnDevice operands(inputs);
  const OnDevice y(run.y.operand()), hn(run.hn), cn(run.cn), c(run.c), gates(run.gates);
  Lent lent(options);
  lath_test::LstmArgs args = operands.Arguments(inputs, options);
  args.y = outputs & lath_test::kY ? y.data() : nullptr;
  args.s_y_step = run.y.s_step(), args.s_y_row = run.y.s_row();
  args.hn = outputs & lath_test::kHn ? hn.data() : nullptr;
  args.cn = outputs & lath_test::kCn ? cn.data() : nullptr;
  args.c = outputs & lath_test::kC ? c.data() : nullptr;
  args.gates = outputs & lath_test::kGates ? gates.data() : nullptr;
  CallOnDevice(&args, options, &lent, lath_cuda_lowrank_lstm_workspace, lath_cuda_lowrank_lstm, &run);
  y.CopyTo(&run.y.operand());
  hn.CopyTo(&run.hn);
  cn.CopyTo(&run.cn);
  c.CopyTo(&run.c);
  gates.CopyTo(&run.gates);
  return run;
}

inline LstmBackwardRun LstmBackwardOnDevice(const LstmInputs &inputs, const LstmRun &forward, bool with_gates,
                                            const LstmDeviceOptions &options, unsigned gradients = kAllLstmGradients) {
  LstmBackwardRun run = lath_test::EmptyBackwardRun(inputs, options.sequence, options.state);
  const LstmOnDevice operands(inputs);
  const OnDevice y(forward.y.operand()), dx(run.dx.operand()), c(forward.c), gates(forward.gates);
  const OnDevice dv_in(run.dv_in), du_in(run.du_in), dv(run.dv), du(run.du), d_bias(run.d_bias), dh0(run.dh0), dc0(run.dc0);
  const auto asked = [&](lath_test::LstmGradient bit, const OnDevice &to) { return gradients & bit ? to.data() : nullptr; };
  Lent lent(options);
  lath_test::LstmArgs args = operands.Arguments(inputs, options);
  args.y = y.data();
  args.s_y_step = forward.y.s_step(), args.s_y_row = forward.y.s_row();
  args.c = c.data();
  args.gates = with_gates ? gates.data() : nullptr;
  args.dy = inputs.present & lath_test::kDy ? operands.dy.data() : nullptr;
  args.s_dy_step = inputs.dy.s_step(), args.s_dy_row = inputs.dy.s_row();
  args.dhn = inputs.present & lath_test::kDhn ? operands.dhn.data() : nullptr;
  args.dcn = inputs.present & lath_test::kDcn ? operands.dcn.data() : nullptr;
  args.dx = asked(lath_test::kLstmDx, dx);
  args.s_dx_step = run.dx.s_step(), args.s_dx_row = run.dx.s_row();
  args.dv_in = inputs.shape.in_rank > 0 ? asked(lath_test::kLstmDvIn, dv_in) : nullptr;
  args.du_in = asked(lath_test::kLstmDuIn, du_in);
  args.dv = asked(lath_test::kLstmDv, dv);
  args.du = asked(lath_test::kLstmDu, du);
  args.d_bias = asked(lath_test::kLstmDBias, d_bias);
  args.dh0 = asked(lath_test::kLstmDh0, dh0);
  args.dc0 = asked(lath_test::kLstmDc0, dc0);
  CallOnDevice(&args, options, &lent, lath_cuda_lowrank_lstm_backward_workspace, lath_cuda_lowrank_lstm_backward, &run);
  dx.CopyTo(&run.dx.operand());
  dv_in.CopyTo(&run.dv_in);
  du_in.CopyTo(&run.du_in);
  dv.CopyTo(&run.dv);
  du.CopyTo(&run.du);
  d_bias.CopyTo(&run.d_bias);
  dh0.CopyTo(&run.dh0);
  dc0.CopyTo(&run.dc0);
  return run;
}

inline std::string Describe(const LstmInputs &inputs, const LstmDeviceOptions &options) {
  return lath_test::Describe(inputs.dtype, inputs.shape) + " association " + std::to_string(options.association) + " blas " +
         std::to_string(options.blas) + " present " + std::to_string(inputs.present);
}

// All of a call but its shape, and which results it is asked for.
struct LstmDeviceCall {
  lath_dtype dtype;
  LstmDeviceOptions options;
  Layout weights;
  unsigned present;
};

inline LstmDeviceCall DrawLstmDeviceCall(Choices *choices) {
  LstmDeviceCall call;
  call.dtype = kLstmDtypes[choices->OneIn(3)];
  call.options.association = kLstmAssociations[choices->Below(3)];
  call.options.blas = choices->OneIn(2);
  call.options.route = kRoutesOfSteps[choices->Below(3)];
  call.options.sequence = DrawSequence(choices);
  call.options.state.misalignment = choices->Below(3);
  call.options.workspace_misalignment = choices->OneIn(2) ? lath_dtype_size(call.dtype) : 0;
  call.weights.misalignment = choices->Below(3);
  call.present = choices->OneIn(2) ? kAllOptional : static_cast<unsigned>(choices->Below(128));
  return call;
}

}  // namespace cuda_test

#endif  // LATH_TESTS_CUDA_ON_CPU_LSTM_ON_DEVICE_H_
