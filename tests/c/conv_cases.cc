// SPDX-License-Identifier: Apache-2.0
//
// conv_cases.cc - calls of the low-rank convolution and the shapes of its tests; see conv_cases.h.

#include "conv_cases.h"

namespace lath_test {

// ---- calls --------------------------------------------------------------------------------------------------------------

ConvInputs::ConvInputs(lath_dtype type, const ConvShape &s, bool with_inner_bias, bool with_bias, Numbers numbers,
                       uint32_t seed, const LowrankInputs::Layouts &layouts)
    : dtype(type),
      shape(s),
      has_inner_bias(with_inner_bias),
      has_bias(with_bias),
      x(type, s.batch, s.in, s.height, s.width, layouts.x),
      v(type, s.groups * s.rank, s.in / s.groups * s.taps_v() * s.kernel_w, layouts.v),
      u(type, s.out, s.rank * s.taps_u(), layouts.u),
      inner_bias(type, 1, s.groups * s.rank, layouts.biases),
      bias(type, 1, s.out, layouts.biases),
      dy(type, s.batch, s.out, s.out_height(), s.out_width(), layouts.dy) {
  for (Operand *operand : {&x, &v, &u, &inner_bias, &bias, &dy}) FillWith(operand, numbers, seed++);
}

ConvOracle OracleOf(const ConvInputs &inputs) {
  return {inputs.shape,
          inputs.x.Read(),
          inputs.v.Read(),
          inputs.u.Read(),
          inputs.has_inner_bias ? inputs.inner_bias.Read() : Values(),
          inputs.has_bias ? inputs.bias.Read() : Values(),
          inputs.dy.Read()};
}

ConvArgs ArgsOf(const ConvShape &s, lath_dtype dtype) {
  ConvArgs args = {};
  args.dtype = dtype;
  args.form = s.form;
  args.batch = s.batch, args.in = s.in, args.rank = s.rank, args.out = s.out, args.groups = s.groups;
  args.height = s.height, args.width = s.width;
  args.kernel_h = s.kernel_h, args.kernel_w = s.kernel_w;
  args.stride_h = s.stride_h, args.stride_w = s.stride_w;
  args.dilation_h = s.dilation_h, args.dilation_w = s.dilation_w;
  args.pad_top = s.pad_top, args.pad_bottom = s.pad_bottom, args.pad_left = s.pad_left, args.pad_right = s.pad_right;
  return args;
}

struct lath_images ImagesOf(const Operand &operand) {
  const Index &strides = operand.strides();
  return {operand.data(), strides[0], strides[1], strides[2], strides[3]};
}

ConvArgs Arguments(const ConvInputs &inputs) {
  ConvArgs args = ArgsOf(inputs.shape, inputs.dtype);
  args.x = ImagesOf(inputs.x);
  args.v = inputs.v.data();
  args.u = inputs.u.data();
  args.inner_bias = inputs.has_inner_bias ? inputs.inner_bias.data() : nullptr;
  args.bias = inputs.has_bias ? inputs.bias.data() : nullptr;
  return args;
}

ForwardRun RunForward(const ConvInputs &inputs, const CallOptions &options, bool with_p) {
  const ConvShape &s = inputs.shape;
  ForwardRun run = {
      LATH_OK, true, Operand(inputs.dtype, s.batch, s.out, s.out_height(), s.out_width(), options.output),
      Operand(AccumulatorType(inputs.dtype), s.batch * s.groups * s.rank, s.p_height() * s.out_width(), options.contiguous)};
  ConvArgs args = Arguments(inputs);
  args.y = ImagesOf(run.y);
  args.p = with_p ? run.p.data() : nullptr;
  Call(&args, options, lath_lowrank_conv2d_workspace, lath_lowrank_conv2d, lath_lowrank_conv2d_ref, &run);
  return run;
}

BackwardRun RunBackward(const ConvInputs &inputs, const CallOptions &options, unsigned gradients, const Operand *p) {
  const ConvShape &s = inputs.shape;
  const lath_dtype dtype = inputs.dtype;
  BackwardRun run = {LATH_OK,
                     true,
                     Operand(dtype, s.batch, s.in, s.height, s.width, options.output),
                     Operand(dtype, inputs.v.rows(), inputs.v.cols(), options.contiguous),
                     Operand(dtype, inputs.u.rows(), inputs.u.cols(), options.contiguous),
                     Operand(dtype, 1, s.groups * s.rank, options.contiguous),
                     Operand(dtype, 1, s.out, options.contiguous)};
  ConvArgs args = Arguments(inputs);
  args.dy = ImagesOf(inputs.dy);
  args.p = p == nullptr ? nullptr : p->data();
  args.dx = ImagesOf(run.dx);
  if (!(gradients & kDx)) args.dx = {};
  args.dv = gradients & kDv ? run.dv.data() : nullptr;
  args.du = gradients & kDu ? run.du.data() : nullptr;
  args.d_inner_bias = gradients & kDInnerBias ? run.d_inner_bias.data() : nullptr;
  args.d_bias = gradients & kDBias ? run.d_bias.data() : nullptr;
  Call(&args, options, lath_lowrank_conv2d_backward_workspace, lath_lowrank_conv2d_backward, lath_lowrank_conv2d_backward_ref,
       &run);
  return run;
}

// ---- drawn shapes -------------------------------------------------------------------------------------------------------

namespace {

constexpr lath_conv_form kForms[] = {LATH_SEPARABLE, LATH_POINTWISE};
constexpr int64_t kMostMacs = 400000;

const std::vector<int64_t> kRanks = {1, 2, 7, 8, 13, 16, 17, 38, 100};
const std::vector<std::pair<int64_t, int64_t>> kKernels = {{1, 1}, {3, 3}, {2, 2}, {5, 5}, {7, 7},
                                                           {1, 5}, {5, 1}, {2, 4}, {3, 2}};

ConvShape DrawAnyShape(Choices *choices) {
  const int64_t groups = choices->OneIn(2) ? 1 : choices->From({2, 3, 5, 16});
  const auto channels = [&] { return groups * choices->From({1, 2, 3, 5, 8, 16, 31, 64, 100}); };
  const auto extent = [&] { return choices->From({1, 2, 3, 4, 5, 7, 8, 9, 14, 16, 17, 28, 31, 33, 40}); };
  const auto mostly_1 = [&] { return choices->OneIn(2) ? 1 : choices->From({1, 2, 3}); };
  const auto pad = [&] { return choices->OneIn(2) ? 1 : choices->Below(5); };
  const auto kernel = kKernels[static_cast<size_t>(choices->Below(static_cast<int64_t>(kKernels.size())))];
  ConvShape s;
  s = s.Form(kForms[choices->Below(2)]).Batch(choices->From({1, 2, 3, 17})).Kernel(kernel.first, kernel.second);
  s.groups = groups, s.in = channels(), s.out = channels(), s.rank = choices->From(kRanks);
  s.height = extent(), s.width = extent();
  s.stride_h = mostly_1(), s.stride_w = mostly_1(), s.dilation_h = mostly_1(), s.dilation_w = mostly_1();
  s.pad_top = pad(), s.pad_bottom = pad(), s.pad_left = pad(), s.pad_right = pad();
  return s;
}

int64_t WeightTerms(const ConvShape &s) { return s.out * s.rank * (s.in / s.groups) * s.kernel_h * s.kernel_w; }

bool Fits(const ConvShape &s) {
  return s.dense_macs() > 0 && s.dense_macs() <= kMostMacs && WeightTerms(s) <= kMostMacs &&
         s.batch * s.in * s.height * s.width <= kMostMacs / 8;
}

std::vector<ConvShape> InBothForms(const std::vector<ConvShape> &shapes) {
  std::vector<ConvShape> both;
  for (const ConvShape &shape : shapes) {
    for (const lath_conv_form form : kForms) both.push_back(shape.Form(form));
  }
  return both;
}

}  // namespace

ConvShape DrawShape(Choices *choices) {
  ConvShape shape = DrawAnyShape(choices);
  while (!Fits(shape)) shape = DrawAnyShape(choices);
  return shape;
}

Layout DrawImages(Choices *choices, bool input) {
  static const std::vector<Images> kUsual = {Images::kContiguous, Images::kChannelsLast},
                                   kRare = {Images::kSomeChannels, Images::kTransposed, Images::kImagesInnermost,
                                            Images::kEveryOther},
                                   kRepeated = {Images::kRepeatedImage, Images::kRepeatedChannel, Images::kOneValue};
  const std::vector<Images> &from = input && choices->OneIn(8) ? kRepeated : choices->OneIn(3) ? kRare : kUsual;
  Layout layout;
  layout.images = from[static_cast<size_t>(choices->Below(static_cast<int64_t>(from.size())))];
  layout.gap = choices->OneIn(2) ? 0 : choices->Below(9);
  layout.misalignment = choices->Below(3);
  return layout;
}

// ---- listed shapes ------------------------------------------------------------------------------------------------------

const std::vector<ConvShape> &KernelShapes() {
  static const std::vector<ConvShape> shapes = [] {
    std::vector<ConvShape> all;
    const ConvShape base = ConvShape().Batch(2).Channels(3, 2, 5);
    for (const auto &kernel : kKernels) {
      for (const auto &stride : {std::pair<int, int>{1, 1}, {2, 2}, {3, 3}, {1, 2}, {3, 1}}) {
        for (const auto &dilation : {std::pair<int, int>{1, 1}, {2, 2}, {1, 3}, {3, 2}}) {
          const ConvShape one = base.Kernel(kernel.first, kernel.second)
                                    .Stride(stride.first, stride.second)
                                    .Dilation(dilation.first, dilation.second);
          all.push_back(one.Image(9, 11).Same());
          all.push_back(one.Image(20, 19));
        }
      }
    }
    return InBothForms(all);
  }();
  return shapes;
}

const std::vector<ConvShape> &ImageShapes() {
  static const std::vector<ConvShape> shapes = [] {
    std::vector<ConvShape> all;
    const std::vector<int64_t> extents = {1, 2, 3, 4, 7, 8, 13, 16, 17, 31, 32, 33, 40};
    Choices choices(11);
    for (const int64_t height : extents) {
      for (const int64_t width : extents) {
        const ConvShape one = ConvShape().Image(height, width).Kernel(3, 3).Channels(2, 3, 4).Pad(1);
        all.push_back(one.Batch(choices.From({1, 2})).Stride(choices.From({1, 1, 2}), choices.From({1, 1, 2})));
      }
    }
    for (const int64_t extent : {1, 2, 4, 7, 8}) {
      for (const int64_t batch : {2, 3, 16, 17, 70, 300}) {
        if (batch * extent > 600) continue;
        const int64_t out = batch > 17 ? 3 : 19;
        all.push_back(ConvShape().Image(extent, extent).Batch(batch).Channels(9, 8, out).Kernel(3, 3).Pad(1));
        all.push_back(ConvShape().Image(extent, 2 * extent).Batch(batch).Channels(9, 8, out).Kernel(3, 3).Pad(1).Stride(2, 2));
      }
    }
    for (const auto &image : {std::pair<int, int>{1, 1100}, {3, 520}, {700, 2}, {65, 64}, {257, 5}}) {
      all.push_back(ConvShape().Image(image.first, image.second).Channels(3, 5, 7).Kernel(3, 3).Pad(1));
    }
    return InBothForms(all);
  }();
  return shapes;
}

const std::vector<ConvShape> &WidthShapes() {
  static const std::vector<ConvShape> shapes = [] {
    std::vector<ConvShape> all;
    Choices choices(12);
    const ConvShape base = ConvShape().Kernel(3, 3).Pad(1);
    for (const int64_t rank : kRanks) {
      for (const int64_t in : {1, 3, 5, 64, 100, 130}) {
        const int64_t out = choices.From({1, 3, 5, 16, 33});
        all.push_back(base.Image(5, choices.From({4, 7, 17})).Channels(in, rank, out));
        all.push_back(base.Image(4, choices.From({3, 5, 16})).Channels(out, rank, in));
      }
      for (const int64_t groups : {2, 3, 8}) {
        all.push_back(base.Image(6, 9).Channels(groups * choices.From({1, 2, 5}), rank, groups * choices.From({1, 3}), groups));
      }
    }
    for (const int64_t out : {31, 32, 33, 47, 48, 49, 64, 65, 100, 129}) all.push_back(base.Image(6, 8).Channels(4, 6, out));
    return InBothForms(all);
  }();
  return shapes;
}

const std::vector<ConvShape> &BlockShapes() {
  static const std::vector<ConvShape> shapes = [] {
    const ConvShape base = ConvShape().Kernel(3, 3).Pad(1);
    const ConvShape wide = base.Image(5, 6), large = ConvShape().Kernel(7, 7).Pad(3).Image(5, 5);
    return InBothForms({
        wide.Channels(28, 4, 3),
        wide.Channels(29, 4, 3),
        wide.Channels(57, 4, 3),  // 256 multiply-adds of a window
        wide.Channels(300, 7, 3),
        wide.Channels(1030, 2, 1),
        wide.Channels(3, 400, 2),  // long sums of both stages
        wide.Channels(3, 7, 300),
        wide.Channels(1, 2, 1030),
        wide.Channels(600, 5, 4, 2),
        large.Channels(100, 3, 5),
        large.Channels(5, 3, 100),
        large.Channels(3, 170, 4),
        base.Image(40, 33).Channels(8, 38, 7),
        base.Image(33, 40).Channels(40, 16, 3),  // several strips of rows
        base.Image(40, 33).Channels(5, 13, 24).Stride(2, 2).Batch(2),
        base.Image(40, 33).Channels(12, 8, 18, 2).Stride(1, 2),
        large.Image(40, 33).Channels(2, 5, 3).Dilation(2, 1).Pad(6, 6, 3, 3),
        ConvShape().Image(40, 33).Channels(30, 9, 20),
        ConvShape().Image(7, 7).Batch(17).Channels(40, 17, 24),  // 1x1
        ConvShape().Image(28, 28).Channels(64, 16, 13).Stride(2, 2),
    });
  }();
  return shapes;
}

const std::vector<ConvShape> &PaddingShapes() {
  static const std::vector<ConvShape> shapes = [] {
    std::vector<ConvShape> all;
    Choices choices(13);
    const ConvShape base = ConvShape().Batch(2).Channels(3, 4, 5);
    for (const auto &kernel : kKernels) {
      for (const auto &image : {std::pair<int, int>{1, 1}, {1, 6}, {5, 2}, {6, 7}}) {
        // Enough on one side that some windows meet nothing but padding, nothing on another.
        const ConvShape one = base.Kernel(kernel.first, kernel.second).Image(image.first, image.second);
        const int64_t beyond = kernel.first + kernel.second + 2;
        all.push_back(one.Pad(beyond, 0, 0, beyond));
        all.push_back(one.Pad(0, beyond, beyond, 0).Stride(choices.From({1, 2, 3}), choices.From({1, 2, 3})));
        all.push_back(one.Pad(beyond, beyond + 1, beyond + 2, beyond).Stride(3, 2).Dilation(1, 2));
      }
    }
    return InBothForms(all);
  }();
  return shapes;
}

const std::vector<ConvShape> &PixelShapes() {
  static const std::vector<ConvShape> shapes = [] {
    std::vector<ConvShape> all;
    Choices choices(14);
    for (const auto &image : {std::pair<int, int>{1, 1}, {1, 9}, {6, 1}, {5, 7}, {13, 31}}) {
      for (const int64_t batch : {1, 3, 20}) {
        const auto channels = [&] { return choices.From({1, 3, 16, 33, 70}); };
        const ConvShape one = ConvShape().Batch(batch).Image(image.first, image.second);
        all.push_back(one.Channels(channels(), choices.From(kRanks), channels()));
        all.push_back(one.Channels(channels(), choices.From(kRanks), channels()).Stride(2, choices.From({1, 2, 3})));
        all.push_back(one.Channels(6, 5, 10, 2).Pad(choices.Below(2), 0, 0, choices.Below(2)));
      }
    }
    return InBothForms(all);
  }();
  return shapes;
}

const std::vector<ConvShape> &EmptyShapes() {
  static const std::vector<ConvShape> shapes = [] {
    std::vector<ConvShape> all;
    for (int zeros = 1; zeros < 16; ++zeros) {
      const ConvShape one =
          ConvShape().Channels(zeros & 2 ? 0 : 6, zeros & 4 ? 0 : 3, zeros & 8 ? 0 : 4).Batch(zeros & 1 ? 0 : 2);
      all.push_back(one.Image(4, 5).Kernel(3, 3).Pad(1));
      all.push_back(one.Image(3, 3));
      all.push_back(one.Image(3, 3).Channels(one.in, one.rank, one.out, 2));
    }
    // Images without pixels: every window lies in the padding.
    for (const auto &image : {std::pair<int, int>{0, 3}, {3, 0}, {0, 0}}) {
      all.push_back(ConvShape().Batch(2).Channels(2, 3, 4).Image(image.first, image.second).Kernel(3, 2).Pad(2));
    }
    return InBothForms(all);
  }();
  return shapes;
}

}  // namespace lath_test
