// SPDX-License-Identifier: Apache-2.0
//
// oialr_cases.cc - see oialr_cases.h.

#include "oialr_cases.h"

#include <cmath>

namespace lath_test {

OialrInputs::OialrInputs(lath_dtype type, LowrankShape extents, bool with_bias, Numbers numbers, uint32_t seed,
                         const OialrLayouts &layouts)
    : dtype(type),
      shape(extents),
      has_bias(with_bias),
      x(type, shape.rows, shape.in, layouts.x),
      vh(type, shape.rank, shape.in, layouts.weights),
      s(type, shape.rank, shape.rank, layouts.weights),
      u(type, shape.out, shape.rank, layouts.weights),
      bias(type, 1, shape.out),
      dy(type, shape.rows, shape.out, layouts.dy) {
  for (Operand *operand : {&x, &vh, &s, &u, &bias, &dy}) FillWith(operand, numbers, seed++);
}

OialrArgs OialrInputs::Arguments() const {
  OialrArgs args = {};
  args.dtype = dtype;
  args.rows = shape.rows;
  args.in = shape.in;
  args.rank = shape.rank;
  args.out = shape.out;
  args.x = x.data();
  args.s_x = x.stride();
  args.vh = vh.data();
  args.s_vh = vh.stride();
  args.s = s.data();
  args.s_s = s.stride();
  args.u = u.data();
  args.s_u = u.stride();
  args.bias = has_bias ? bias.data() : nullptr;
  return args;
}

namespace {

struct Dense {
  Values x, vh, s, u, bias, dy;
};

OialrValues Formulas(const LowrankShape &shape, const Dense &d) {
  const int64_t rows = shape.rows, in = shape.in, rank = shape.rank, out = shape.out;
  OialrValues values;
  values.t = Multiply(d.x, Transpose(d.vh, rank, in), rows, in, rank);
  const Values z = Multiply(values.t, Transpose(d.s, rank, rank), rows, rank, rank);
  values.y = Multiply(z, Transpose(d.u, out, rank), rows, rank, out);
  for (size_t i = 0; i < values.y.size() && !d.bias.empty(); ++i) values.y[i] += d.bias[i % static_cast<size_t>(out)];
  const Values h = Multiply(d.dy, d.u, rows, out, rank);
  values.dx = Multiply(Multiply(h, d.s, rows, rank, rank), d.vh, rows, rank, in);
  values.ds = Multiply(Transpose(h, rows, rank), values.t, rank, rows, rank);
  values.d_bias = Multiply(Values(static_cast<size_t>(rows), 1.0), d.dy, 1, rows, out);
  return values;
}

}  // namespace

OialrValues OialrInputs::Want() const {
  return Formulas(shape, {x.Read(), vh.Read(), s.Read(), u.Read(), has_bias ? bias.Read() : Values(), dy.Read()});
}

OialrValues OialrInputs::Bounds(double further) const {
  OialrValues bounds = Formulas(shape, {Absolute(x.Read()), Absolute(vh.Read()), Absolute(s.Read()), Absolute(u.Read()),
                                        has_bias ? Absolute(bias.Read()) : Values(), Absolute(dy.Read())});
  double terms = 8.0;
  for (const int64_t n : {shape.in, shape.rank, shape.rank, shape.out, shape.rows}) terms += std::sqrt(static_cast<double>(n));
  for (Values *values : {&bounds.t, &bounds.y, &bounds.dx, &bounds.ds, &bounds.d_bias})
    *values = Scaled(*values, terms * AccumulatorEpsilon(dtype) + further);
  return bounds;
}

OialrForward RunOialrForward(const OialrInputs &inputs, const OialrOptions &options, bool with_t) {
  const LowrankShape &shape = inputs.shape;
  OialrForward run = {LATH_OK, true, Operand(AccumulatorType(inputs.dtype), shape.rows, shape.rank, options.contiguous),
                      Operand(inputs.dtype, shape.rows, shape.out, options.output)};
  OialrArgs args = inputs.Arguments();
  args.route = options.route;
  args.y = run.y.data();
  args.s_y = run.y.stride();
  args.t = with_t ? run.t.data() : nullptr;
  Call(&args, options, lath_oialr_linear_workspace, lath_oialr_linear, lath_oialr_linear_ref, &run);
  return run;
}

OialrBackward RunOialrBackward(const OialrInputs &inputs, const OialrOptions &options, unsigned gradients, const Operand *t,
                               bool with_x) {
  const LowrankShape &shape = inputs.shape;
  OialrBackward run = {LATH_OK, true, Operand(inputs.dtype, shape.rows, shape.in, options.output),
                       Operand(inputs.dtype, shape.rank, shape.rank, options.contiguous),
                       Operand(inputs.dtype, 1, shape.out, options.contiguous)};
  OialrArgs args = inputs.Arguments();
  if (!with_x) args.x = nullptr;
  args.route = options.route;
  args.dy = inputs.dy.data();
  args.s_dy = inputs.dy.stride();
  args.t = t == nullptr ? nullptr : t->data();
  args.dx = gradients & kOialrDx ? run.dx.data() : nullptr;
  args.s_dx = run.dx.stride();
  args.ds = gradients & kOialrDs ? run.ds.data() : nullptr;
  args.d_bias = gradients & kOialrDBias ? run.d_bias.data() : nullptr;
  Call(&args, options, lath_oialr_linear_backward_workspace, lath_oialr_linear_backward, lath_oialr_linear_backward_ref, &run);
  return run;
}

testing::AssertionResult Exact(const OialrForward &run, const OialrValues &want, bool with_t) {
  const testing::AssertionResult completed = Completed(run);
  if (!completed) return completed;
  if (!with_t && !run.t.Untouched()) return testing::AssertionFailure() << "t was written and not asked for";
  const testing::AssertionResult t = with_t ? Exactly(run.t, want.t) : testing::AssertionSuccess();
  return t ? Exactly(run.y, want.y) : t;
}

testing::AssertionResult Exact(const OialrBackward &run, const OialrValues &want, unsigned gradients) {
  return EachOialrGradient(run, gradients,
                           [&](const Operand &got, Values OialrValues::*values) { return Exactly(got, want.*values); });
}

}  // namespace lath_test
