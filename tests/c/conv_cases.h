// SPDX-License-Identifier: Apache-2.0
//
// conv_cases.h - calls of the low-rank convolution, as cases.h makes those of the other entries, and shapes to call it with.

#ifndef LATH_TESTS_C_CONV_CASES_H_
#define LATH_TESTS_C_CONV_CASES_H_

#include "cases.h"
#include "conv_oracle.h"

namespace lath_test {

using ConvArgs = struct ::lath_lowrank_conv2d;
using ConvPlan = struct ::lath_conv_plan;
using ConvSizes = struct ::lath_conv_sizes;

struct ConvInputs {
  ConvInputs(lath_dtype type, const ConvShape &extents, bool with_inner_bias, bool with_bias, Numbers numbers, uint32_t seed,
             const LowrankInputs::Layouts &layouts = {});

  lath_dtype dtype;
  ConvShape shape;
  bool has_inner_bias, has_bias;
  Operand x, v, u, inner_bias, bias, dy;
};

ConvOracle OracleOf(const ConvInputs &inputs);

ConvArgs ArgsOf(const ConvShape &shape, lath_dtype dtype = LATH_F32);  // no operands
ConvArgs Arguments(const ConvInputs &inputs);                          // what forward and backward share
struct lath_images ImagesOf(const Operand &operand);

// Run as the linear entries are. `p` may be nullptr: recomputed.
ForwardRun RunForward(const ConvInputs &inputs, const CallOptions &options, bool with_p = false);
BackwardRun RunBackward(const ConvInputs &inputs, const CallOptions &options, unsigned gradients = kAllGradients,
                        const Operand *p = nullptr);

// Anything at all, up to 400,000 multiply-adds of the dense convolution.
ConvShape DrawShape(Choices *choices);
Layout DrawImages(Choices *choices, bool input);

// Shapes that a tile, a strip of rows, a block of channels or a group of small images could get wrong; both forms.
const std::vector<ConvShape> &KernelShapes();  // every kernel with every stride and dilation
const std::vector<ConvShape> &ImageShapes();   // from 1x1 to 40x33, one and many
const std::vector<ConvShape> &WidthShapes();   // every rank with few and with many channels, groups
const std::vector<ConvShape> &BlockShapes();   // extents that need several blocks
const std::vector<ConvShape> &PaddingShapes();
const std::vector<ConvShape> &PixelShapes();  // 1x1 kernels, which need no window
const std::vector<ConvShape> &EmptyShapes();

}  // namespace lath_test

#endif  // LATH_TESTS_C_CONV_CASES_H_
