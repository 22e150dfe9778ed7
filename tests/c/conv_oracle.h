// SPDX-License-Identifier: Apache-2.0
//
// conv_oracle.h - the low-rank convolution as a dense one. The factors are merged into the weight of a dense convolution, and
// gradients come back from the gradient of that weight by the chain rule: another way than the two stages of the library. The
// inner bias is what a dense convolution cannot express, and is added by hand where a window meets the image. Bounds of errors
// are those of oracle.h.

#ifndef LATH_TESTS_C_CONV_ORACLE_H_
#define LATH_TESTS_C_CONV_ORACLE_H_

#include "oracle.h"

namespace lath_test {

// Channels of x and y are those of all groups, rank is that of one.
struct ConvShape {
  lath_conv_form form = LATH_SEPARABLE;
  int64_t batch = 1, in = 1, rank = 1, out = 1, groups = 1, height = 1, width = 1;
  int64_t kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, dilation_h = 1, dilation_w = 1;
  int64_t pad_top = 0, pad_bottom = 0, pad_left = 0, pad_right = 0;

  // Copies with some fields changed.
  ConvShape Form(lath_conv_form form) const;
  ConvShape Batch(int64_t batch) const;
  ConvShape Channels(int64_t in, int64_t rank, int64_t out, int64_t groups = 1) const;
  ConvShape Image(int64_t height, int64_t width) const;
  ConvShape Kernel(int64_t height, int64_t width) const;
  ConvShape Stride(int64_t height, int64_t width) const;
  ConvShape Dilation(int64_t height, int64_t width) const;
  ConvShape Pad(int64_t top, int64_t bottom, int64_t left, int64_t right) const;
  ConvShape Pad(int64_t all) const { return Pad(all, all, all, all); }
  ConvShape Same() const;  // padded to the size of the image at stride 1; even kernels get the odd one below and on the right

  bool separable() const { return form == LATH_SEPARABLE; }
  int64_t taps_v() const { return separable() ? 1 : kernel_h; }  // vertical taps of the first factor
  int64_t taps_u() const { return separable() ? kernel_h : 1; }  // and of the second
  int64_t out_height() const;                                    // 0 where the window does not fit
  int64_t out_width() const;
  int64_t p_height() const { return separable() ? height : out_height(); }
  int64_t dense_macs() const;
};

// Extents, the form, and all else that is not usual.
std::string Describe(lath_dtype dtype, const ConvShape &shape);

// Everything is row-major: x (batch, in, height, width), v (groups rank, in / groups, taps_v, kernel_w), u (out, rank, taps_u),
// y and dy (batch, out, out_height, out_width). Biases may be empty.
struct ConvOracle {
  ConvShape shape;
  Values x, v, u, inner_bias, bias, dy;

  ConvOracle OfMagnitudes() const;  // the same on absolute values
  double ErrorFactor(lath_dtype dtype) const;

  Values W() const;  // (out, in / groups, kernel_h, kernel_w), the merged weight
  Values P() const;  // (batch, groups rank, p_height, out_width); rows that no window meets are zero
  Values Y() const;
  Gradients AllGradients() const;
};

}  // namespace lath_test

#endif  // LATH_TESTS_C_CONV_ORACLE_H_
