// SPDX-License-Identifier: Apache-2.0
//
// oialr_on_device.h - one call of an entry of the OIALR family on the device; operands, formulas and comparisons are those of the
// processor's tests.

#ifndef LATH_TESTS_CUDA_ON_CPU_OIALR_ON_DEVICE_H_
#define LATH_TESTS_CUDA_ON_CPU_OIALR_ON_DEVICE_H_

#include <algorithm>

#include "lowrank_cases.h"
#include "oialr_cases.h"

namespace cuda_test {

using lath_test::kOialrAll;
using lath_test::kOialrDBias;
using lath_test::kOialrDs;
using lath_test::kOialrDx;
using lath_test::OialrArgs;
using lath_test::OialrBackward;
using lath_test::OialrForward;
using lath_test::OialrInputs;
using lath_test::OialrLayouts;
using lath_test::OialrValues;

constexpr lath_oialr_route kOialrRoutes[] = {LATH_OIALR_AUTO, LATH_OIALR_CHAINED, LATH_OIALR_FOLDED, LATH_OIALR_MERGED};

// DeviceOptions::route is that of the two products that end in y or dx.
struct OialrDeviceOptions : DeviceOptions {
  lath_oialr_route association = LATH_OIALR_AUTO;
};

// Numbers with which every intermediate is exact in 16 bits too, where it is rounded to the type: -1, 0 and 1, the fewer of them other
// than 0 the longer the sums are, and a core of two of them in each row and column. The widest of those sums, u^T dy^T x, stays below
// 256 by ten of its standard deviations.
inline OialrInputs ExactOialrInputs(lath_dtype dtype, const LowrankShape &shape, bool with_bias, uint32_t seed,
                                    const OialrLayouts &layouts = {}) {
  OialrInputs inputs(dtype, shape, with_bias, Numbers::kIntegers, seed, layouts);
  if (!Is16Bit(dtype)) return inputs;
  const int64_t longest = std::max({shape.rows, shape.in, shape.rank, shape.out});
  Choices choices(seed);
  for (Operand *operand : {&inputs.x, &inputs.vh, &inputs.u, &inputs.dy}) {
    Values values = operand->Read();
    for (double &value : values) value = longest > 24 && !choices.OneIn(longest > 130 ? 8 : 4) ? 0.0 : std::fmod(value, 2.0);
    operand->Fill(values);
  }
  Values core(static_cast<size_t>(shape.rank * shape.rank), 0.0);
  const int64_t turn = choices.Below(std::max<int64_t>(shape.rank, 1)), sign = choices.OneIn(2) ? 1 : -1;
  for (int64_t i = 0; i < shape.rank; ++i) {
    core[static_cast<size_t>(i * shape.rank + (i + turn) % shape.rank)] += static_cast<double>(sign);
    core[static_cast<size_t>(i * shape.rank + (shape.rank - 1 - i))] += 1.0;
  }
  inputs.s.Fill(core);
  return inputs;
}

struct OialrOnDevice {
  explicit OialrOnDevice(const OialrInputs &inputs)
      : x(inputs.x), vh(inputs.vh), s(inputs.s), u(inputs.u), bias(inputs.bias), dy(inputs.dy) {}

  OialrArgs Arguments(const OialrInputs &inputs, const OialrDeviceOptions &options) const {
    OialrArgs args = inputs.Arguments();
    args.route = options.association;
    args.x = x.data();
    args.vh = vh.data();
    args.s = s.data();
    args.u = u.data();
    args.bias = inputs.has_bias ? bias.data() : nullptr;
    return args;
  }

  OnDevice x, vh, s, u, bias, dy;
};

inline OialrForward OialrForwardOnDevice(const OialrInputs &inputs, const OialrDeviceOptions &options, bool with_t) {
  const LowrankShape &shape = inputs.shape;
  OialrForward run = {LATH_OK, true, Operand(inputs.dtype, shape.rows, shape.rank, options.contiguous),
                      Operand(inputs.dtype, shape.rows, shape.out, options.output)};
  const OialrOnDevice operands(inputs);
  const OnDevice y(run.y), t(run.t);
  Lent lent(options);
  OialrArgs args = operands.Arguments(inputs, options);
  args.y = y.data();
  args.s_y = run.y.stride();
  args.t = with_t ? t.data() : nullptr;
  CallOnDevice(&args, options, &lent, lath_cuda_oialr_linear_workspace, lath_cuda_oialr_linear, &run);
  y.CopyTo(&run.y);
  t.CopyTo(&run.t);
  return run;
}

// `t` may be nullptr: recomputed from x. Without x its pointer is NULL.
inline OialrBackward OialrBackwardOnDevice(const OialrInputs &inputs, const OialrDeviceOptions &options,
                                           unsigned gradients = kOialrAll, const Operand *t = nullptr, bool with_x = true) {
  const LowrankShape &shape = inputs.shape;
  OialrBackward run = {LATH_OK, true, Operand(inputs.dtype, shape.rows, shape.in, options.output),
                       Operand(inputs.dtype, shape.rank, shape.rank, options.contiguous),
                       Operand(inputs.dtype, 1, shape.out, options.contiguous)};
  const OialrOnDevice operands(inputs);
  const OnDevice dx(run.dx), ds(run.ds), d_bias(run.d_bias), saved(t != nullptr ? *t : run.ds);
  Lent lent(options);
  OialrArgs args = operands.Arguments(inputs, options);
  if (!with_x) args.x = nullptr;
  args.dy = operands.dy.data();
  args.s_dy = inputs.dy.stride();
  args.t = t != nullptr ? saved.data() : nullptr;
  args.dx = gradients & kOialrDx ? dx.data() : nullptr;
  args.s_dx = run.dx.stride();
  args.ds = gradients & kOialrDs ? ds.data() : nullptr;
  args.d_bias = gradients & kOialrDBias ? d_bias.data() : nullptr;
  CallOnDevice(&args, options, &lent, lath_cuda_oialr_linear_backward_workspace, lath_cuda_oialr_linear_backward, &run);
  dx.CopyTo(&run.dx);
  ds.CopyTo(&run.ds);
  d_bias.CopyTo(&run.d_bias);
  return run;
}

inline std::string Describe(const OialrInputs &inputs, const OialrDeviceOptions &options) {
  return lath_test::Describe(inputs.dtype, inputs.shape) + " bias " + std::to_string(inputs.has_bias) + " route " +
         std::to_string(options.association) + " pair " + std::to_string(options.route) + " blas " +
         std::to_string(options.blas);
}

// The bound on real numbers, with half a unit in the last place for each of up to four intermediates in a row that 16-bit types round.
inline OialrValues OialrDeviceBounds(const OialrInputs &inputs) {
  return inputs.Bounds(inputs.dtype == LATH_BF16 ? std::ldexp(1.0, -7) : inputs.dtype == LATH_F16 ? std::ldexp(1.0, -10) : 0.0);
}

}  // namespace cuda_test

#endif  // LATH_TESTS_CUDA_ON_CPU_OIALR_ON_DEVICE_H_
