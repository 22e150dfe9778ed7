// SPDX-License-Identifier: Apache-2.0
//
// cases.cc - calls of the entry points; see cases.h.

#include "cases.h"

namespace lath_test {

Layout RandomLayout(Choices *choices, bool input) {
  Layout layout;
  layout.gap = choices->OneIn(2) ? 0 : choices->Below(20);
  layout.misalignment = choices->Below(3);
  layout.repeat_row = input && choices->OneIn(16);
  return layout;
}

Layout AlignedLayout(Choices *choices, bool input) {
  Layout layout;
  layout.gap = choices->OneIn(2) ? 0 : 8 * choices->Below(3);
  layout.misalignment = 8 * choices->Below(2);
  layout.repeat_row = input && choices->OneIn(16);
  return layout;
}

void FillWith(Operand *operand, Numbers numbers, uint32_t seed) {
  operand->Fill(numbers == Numbers::kIntegers ? SmallIntegers(seed, operand->size()) : Uniform(seed, operand->size()));
}

lath_dtype AccumulatorType(lath_dtype dtype) { return dtype == LATH_F64 ? LATH_F64 : LATH_F32; }

std::string Describe(lath_dtype dtype, const LowrankShape &shape) {
  static const char *const kNames[] = {"f32", "f64", "bf16", "f16"};
  return std::string(kNames[dtype]) + " rows " + std::to_string(shape.rows) + " in " + std::to_string(shape.in) + " rank " +
         std::to_string(shape.rank) + " out " + std::to_string(shape.out);
}

// ---- linear -------------------------------------------------------------------------------------------------------------

LinearInputs::LinearInputs(lath_dtype type, int64_t rows, int64_t in, int64_t out, bool with_bias, Numbers numbers,
                           uint32_t seed, Layout layout_x, Layout layout_w)
    : dtype(type), has_bias(with_bias), x(type, rows, in, layout_x), w(type, out, in, layout_w), bias(type, 1, out) {
  FillWith(&x, numbers, seed);
  FillWith(&w, numbers, seed + 1);
  FillWith(&bias, numbers, seed + 2);
}

LinearArgs Arguments(const LinearInputs &inputs) {
  LinearArgs args = {};
  args.dtype = inputs.dtype;
  args.rows = inputs.x.rows();
  args.in = inputs.x.cols();
  args.out = inputs.w.rows();
  args.x = inputs.x.data();
  args.s_x = inputs.x.stride();
  args.w = inputs.w.data();
  args.s_w = inputs.w.stride();
  args.bias = inputs.has_bias ? inputs.bias.data() : nullptr;
  return args;
}

LinearRun RunLinear(const LinearInputs &inputs, const CallOptions &options) {
  LinearRun run = {LATH_OK, true, Operand(inputs.dtype, inputs.x.rows(), inputs.w.rows(), options.output)};
  LinearArgs args = Arguments(inputs);
  args.y = run.y.data();
  args.s_y = run.y.stride();
  Call(&args, options, lath_linear_workspace, lath_linear, lath_linear_ref, &run);
  return run;
}

LowrankOracle OracleOf(const LinearInputs &inputs) {
  LowrankOracle oracle;
  oracle.shape = {inputs.x.rows(), inputs.x.cols(), inputs.w.rows(), 0};
  oracle.x = inputs.x.Read();
  oracle.v = inputs.w.Read();
  if (inputs.has_bias) oracle.inner_bias = inputs.bias.Read();
  return oracle;
}

// ---- low-rank linear ----------------------------------------------------------------------------------------------------

LowrankInputs::LowrankInputs(lath_dtype type, LowrankShape extents, bool with_inner_bias, bool with_bias, Numbers numbers,
                             uint32_t seed, const Layouts &layouts)
    : dtype(type),
      shape(extents),
      has_inner_bias(with_inner_bias),
      has_bias(with_bias),
      x(type, shape.rows, shape.in, layouts.x),
      v(type, shape.rank, shape.in, layouts.v),
      u(type, shape.out, shape.rank, layouts.u),
      inner_bias(type, 1, shape.rank, layouts.biases),
      bias(type, 1, shape.out, layouts.biases),
      dy(type, shape.rows, shape.out, layouts.dy) {
  for (Operand *operand : {&x, &v, &u, &inner_bias, &bias, &dy}) FillWith(operand, numbers, seed++);
}

LowrankOracle OracleOf(const LowrankInputs &inputs) {
  return {inputs.shape,
          inputs.x.Read(),
          inputs.v.Read(),
          inputs.u.Read(),
          inputs.has_inner_bias ? inputs.inner_bias.Read() : Values(),
          inputs.has_bias ? inputs.bias.Read() : Values(),
          inputs.dy.Read()};
}

LowrankArgs Arguments(const LowrankInputs &inputs) {
  LowrankArgs args = {};
  args.dtype = inputs.dtype;
  args.rows = inputs.shape.rows;
  args.in = inputs.shape.in;
  args.rank = inputs.shape.rank;
  args.out = inputs.shape.out;
  args.x = inputs.x.data();
  args.s_x = inputs.x.stride();
  args.v = inputs.v.data();
  args.s_v = inputs.v.stride();
  args.u = inputs.u.data();
  args.s_u = inputs.u.stride();
  args.inner_bias = inputs.has_inner_bias ? inputs.inner_bias.data() : nullptr;
  args.bias = inputs.has_bias ? inputs.bias.data() : nullptr;
  return args;
}

ForwardRun RunForward(const LowrankInputs &inputs, const CallOptions &options, bool with_p) {
  const LowrankShape &shape = inputs.shape;
  ForwardRun run = {LATH_OK, true, Operand(inputs.dtype, shape.rows, shape.out, options.output),
                    Operand(AccumulatorType(inputs.dtype), shape.rows, shape.rank, options.contiguous)};
  LowrankArgs args = Arguments(inputs);
  args.association = options.association;
  args.y = run.y.data();
  args.s_y = run.y.stride();
  args.p = with_p ? run.p.data() : nullptr;
  Call(&args, options, lath_lowrank_linear_workspace, lath_lowrank_linear, lath_lowrank_linear_ref, &run);
  return run;
}

BackwardRun RunBackward(const LowrankInputs &inputs, const CallOptions &options, unsigned gradients, const Operand *p) {
  const LowrankShape &shape = inputs.shape;
  const lath_dtype dtype = inputs.dtype;
  BackwardRun run = {LATH_OK,
                     true,
                     Operand(dtype, shape.rows, shape.in, options.output),
                     Operand(dtype, shape.rank, shape.in, options.contiguous),
                     Operand(dtype, shape.out, shape.rank, options.contiguous),
                     Operand(dtype, 1, shape.rank, options.contiguous),
                     Operand(dtype, 1, shape.out, options.contiguous)};
  LowrankArgs args = Arguments(inputs);
  args.association = options.association;
  args.dy = inputs.dy.data();
  args.s_dy = inputs.dy.stride();
  args.p = p == nullptr ? nullptr : p->data();
  args.dx = gradients & kDx ? run.dx.data() : nullptr;
  args.s_dx = run.dx.stride();
  args.dv = gradients & kDv ? run.dv.data() : nullptr;
  args.du = gradients & kDu ? run.du.data() : nullptr;
  args.d_inner_bias = gradients & kDInnerBias ? run.d_inner_bias.data() : nullptr;
  args.d_bias = gradients & kDBias ? run.d_bias.data() : nullptr;
  Call(&args, options, lath_lowrank_linear_backward_workspace, lath_lowrank_linear_backward, lath_lowrank_linear_backward_ref,
       &run);
  return run;
}

namespace {

struct NamedGradient {
  const char *name;
  unsigned bit;
  Operand BackwardRun::*result;
  Values Gradients::*values;
};

constexpr NamedGradient kNamedGradients[] = {
    {"dx", kDx, &BackwardRun::dx, &Gradients::dx},
    {"dv", kDv, &BackwardRun::dv, &Gradients::dv},
    {"du", kDu, &BackwardRun::du, &Gradients::du},
    {"d_inner_bias", kDInnerBias, &BackwardRun::d_inner_bias, &Gradients::d_inner_bias},
    {"d_bias", kDBias, &BackwardRun::d_bias, &Gradients::d_bias},
};

// Calls check(operand, its member of Gradients) for each gradient that was asked for; the others must be untouched.
template <typename Check>
testing::AssertionResult EachGradient(const BackwardRun &run, unsigned gradients, Check check) {
  const testing::AssertionResult completed = Completed(run);
  if (!completed) return completed;
  for (const NamedGradient &gradient : kNamedGradients) {
    const Operand &got = run.*gradient.result;
    if (!(gradients & gradient.bit)) {
      if (!got.Untouched()) return testing::AssertionFailure() << gradient.name << " was written and not asked for";
      continue;
    }
    const testing::AssertionResult result = check(got, gradient.values);
    if (!result) return testing::AssertionFailure() << gradient.name << ": " << result.message();
  }
  return testing::AssertionSuccess();
}

}  // namespace

testing::AssertionResult ExactGradients(const BackwardRun &run, const Gradients &want, unsigned gradients) {
  return EachGradient(run, gradients,
                      [&](const Operand &got, Values Gradients::*values) { return Exactly(got, want.*values); });
}

testing::AssertionResult GradientsWithin(const BackwardRun &run, const Gradients &want, const Gradients &magnitudes,
                                         double factor, unsigned gradients) {
  return EachGradient(run, gradients, [&](const Operand &got, Values Gradients::*values) {
    return Within(got, want.*values, Scaled(magnitudes.*values, factor));
  });
}

testing::AssertionResult SameGradients(const BackwardRun &a, const BackwardRun &b, unsigned gradients) {
  for (const BackwardRun *run : {&a, &b}) {
    const testing::AssertionResult completed = Completed(*run);
    if (!completed) return completed;
  }
  for (const NamedGradient &gradient : kNamedGradients) {
    if (!(gradients & gradient.bit)) continue;
    const testing::AssertionResult result = SameBits(a.*gradient.result, b.*gradient.result);
    if (!result) return testing::AssertionFailure() << gradient.name << ": " << result.message();
  }
  return testing::AssertionSuccess();
}

// ---- Frobenius decay ------------------------------------------------------------------------------------------------------

FrobeniusInputs::FrobeniusInputs(lath_dtype type, int64_t in, int64_t rank, int64_t out, Numbers numbers, uint32_t seed,
                                 Layout layout_v, Layout layout_u)
    : dtype(type), v(type, rank, in, layout_v), u(type, out, rank, layout_u) {
  FillWith(&u, numbers, seed);
  FillWith(&v, numbers, seed + 1);
}

Values FrobeniusInputs::GramV() const {
  return Multiply(v.Read(), Transpose(v.Read(), v.rows(), v.cols()), v.rows(), v.cols(), v.rows());
}

Values FrobeniusInputs::GramU() const {
  return Multiply(Transpose(u.Read(), u.rows(), u.cols()), u.Read(), u.cols(), u.rows(), u.cols());
}

FrobeniusArgs Arguments(const FrobeniusInputs &inputs) {
  FrobeniusArgs args = {};
  args.dtype = inputs.dtype;
  args.in = inputs.v.cols();
  args.rank = inputs.v.rows();
  args.out = inputs.u.rows();
  args.v = inputs.v.data();
  args.s_v = inputs.v.stride();
  args.u = inputs.u.data();
  args.s_u = inputs.u.stride();
  return args;
}

FrobeniusRun RunFrobenius(const FrobeniusInputs &inputs, const CallOptions &options) {
  const lath_dtype sums = AccumulatorType(inputs.dtype);
  const int64_t rank = inputs.v.rows();
  FrobeniusRun run = {LATH_OK, true, Operand(sums, rank, rank, options.contiguous),
                      Operand(sums, rank, rank, options.contiguous), Operand(LATH_F64, 1, 1)};
  FrobeniusArgs args = Arguments(inputs);
  args.gram_v = run.gram_v.data();
  args.gram_u = run.gram_u.data();
  args.value = reinterpret_cast<double *>(run.value.data());
  Call(&args, options, lath_frobenius_workspace, lath_frobenius, lath_frobenius_ref, &run);
  return run;
}

FrobeniusBackwardRun RunFrobeniusBackward(const FrobeniusInputs &inputs, const CallOptions &options, const Operand &gram_v,
                                          const Operand &gram_u, double scale, unsigned gradients) {
  FrobeniusBackwardRun run = {LATH_OK, true, Operand(inputs.dtype, inputs.v.rows(), inputs.v.cols(), options.contiguous),
                              Operand(inputs.dtype, inputs.u.rows(), inputs.u.cols(), options.contiguous)};
  FrobeniusArgs args = Arguments(inputs);
  args.gram_v = gram_v.data();
  args.gram_u = gram_u.data();
  args.scale = scale;
  args.dv = gradients & kDv ? run.dv.data() : nullptr;
  args.du = gradients & kDu ? run.du.data() : nullptr;
  Call(&args, options, lath_frobenius_workspace, lath_frobenius_backward, lath_frobenius_backward_ref, &run);
  return run;
}

}  // namespace lath_test
