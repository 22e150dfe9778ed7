// SPDX-License-Identifier: Apache-2.0
//
// conv_oracle.cc - a dense convolution, its gradients, and the way from its weight to the factors; see conv_oracle.h.

#include "conv_oracle.h"

#include <algorithm>
#include <cmath>

namespace lath_test {

// ---- shapes -------------------------------------------------------------------------------------------------------------

ConvShape ConvShape::Form(lath_conv_form f) const {
  ConvShape s = *this;
  s.form = f;
  return s;
}

ConvShape ConvShape::Batch(int64_t n) const {
  ConvShape s = *this;
  s.batch = n;
  return s;
}

ConvShape ConvShape::Channels(int64_t n_in, int64_t n_rank, int64_t n_out, int64_t n_groups) const {
  ConvShape s = *this;
  s.in = n_in, s.rank = n_rank, s.out = n_out, s.groups = n_groups;
  return s;
}

ConvShape ConvShape::Image(int64_t h, int64_t w) const {
  ConvShape s = *this;
  s.height = h, s.width = w;
  return s;
}

ConvShape ConvShape::Kernel(int64_t h, int64_t w) const {
  ConvShape s = *this;
  s.kernel_h = h, s.kernel_w = w;
  return s;
}

ConvShape ConvShape::Stride(int64_t h, int64_t w) const {
  ConvShape s = *this;
  s.stride_h = h, s.stride_w = w;
  return s;
}

ConvShape ConvShape::Dilation(int64_t h, int64_t w) const {
  ConvShape s = *this;
  s.dilation_h = h, s.dilation_w = w;
  return s;
}

ConvShape ConvShape::Pad(int64_t top, int64_t bottom, int64_t left, int64_t right) const {
  ConvShape s = *this;
  s.pad_top = top, s.pad_bottom = bottom, s.pad_left = left, s.pad_right = right;
  return s;
}

ConvShape ConvShape::Same() const {
  const int64_t h = (kernel_h - 1) * dilation_h, w = (kernel_w - 1) * dilation_w;
  return Pad(h / 2, h - h / 2, w / 2, w - w / 2);
}

namespace {

int64_t Windows(int64_t padded, int64_t taps, int64_t stride, int64_t dilation) {
  const int64_t room = padded - (taps - 1) * dilation;
  return room < 1 ? 0 : (room - 1) / stride + 1;
}

}  // namespace

int64_t ConvShape::out_height() const { return Windows(pad_top + height + pad_bottom, kernel_h, stride_h, dilation_h); }

int64_t ConvShape::out_width() const { return Windows(pad_left + width + pad_right, kernel_w, stride_w, dilation_w); }

int64_t ConvShape::dense_macs() const { return batch * out * (in / groups) * kernel_h * kernel_w * out_height() * out_width(); }

std::string Describe(lath_dtype dtype, const ConvShape &s) {
  static const char *const kNames[] = {"f32", "f64", "bf16"};
  const auto pair = [](int64_t a, int64_t b) { return std::to_string(a) + "x" + std::to_string(b); };
  std::string text = std::string(kNames[dtype]) + (s.separable() ? " separable " : " pointwise ") + std::to_string(s.batch) +
                     " images " + pair(s.height, s.width) + ", channels " + std::to_string(s.in) + "-" +
                     std::to_string(s.rank) + "-" + std::to_string(s.out) + ", kernel " + pair(s.kernel_h, s.kernel_w);
  if (s.groups != 1) text += ", groups " + std::to_string(s.groups);
  if (s.stride_h * s.stride_w != 1) text += ", stride " + pair(s.stride_h, s.stride_w);
  if (s.dilation_h * s.dilation_w != 1) text += ", dilation " + pair(s.dilation_h, s.dilation_w);
  if (s.pad_top + s.pad_bottom + s.pad_left + s.pad_right != 0) {
    text += ", pad " + pair(s.pad_top, s.pad_bottom) + " " + pair(s.pad_left, s.pad_right);
  }
  return text;
}

// ---- a dense convolution ------------------------------------------------------------------------------------------------

namespace {

// Calls visit(index of w, index of y, index of x, count) for each run of pixels in a row of y that one tap of the weight
// (out, in / groups, kernel_h, kernel_w) connects with pixels of x, stride_w apart.
template <typename Visit>
void ForEachRun(const ConvShape &s, Visit visit) {
  const int64_t in = s.in / s.groups, out = s.out / s.groups, rows = s.out_height(), columns = s.out_width();
  const auto first_inside = [&](int64_t offset) { return offset >= 0 ? 0 : (-offset + s.stride_w - 1) / s.stride_w; };
  for (int64_t n = 0; n < s.batch; ++n) {
    for (int64_t o = 0; o < s.out; ++o) {
      for (int64_t tap = 0; tap < in * s.kernel_h * s.kernel_w; ++tap) {
        const int64_t j = tap % s.kernel_w, i = tap / s.kernel_w % s.kernel_h, c = tap / s.kernel_w / s.kernel_h;
        const int64_t left = j * s.dilation_w - s.pad_left;
        const int64_t begin = first_inside(left), end = std::min(columns, first_inside(left - s.width));
        for (int64_t h = 0; h < rows && begin < end; ++h) {
          const int64_t row = h * s.stride_h - s.pad_top + i * s.dilation_h;
          if (row < 0 || row >= s.height) continue;
          const int64_t plane = n * s.in + o / out * in + c;
          visit(static_cast<size_t>(o * in * s.kernel_h * s.kernel_w + tap),
                static_cast<size_t>(((n * s.out + o) * rows + h) * columns + begin),
                static_cast<size_t>((plane * s.height + row) * s.width + left + begin * s.stride_w),
                static_cast<size_t>(end - begin));
        }
      }
    }
  }
}

Values DenseForward(const ConvShape &s, const Values &x, const Values &w) {
  Values y(static_cast<size_t>(s.batch * s.out * s.out_height() * s.out_width()), 0.0);
  const size_t step = static_cast<size_t>(s.stride_w);
  ForEachRun(s, [&](size_t k, size_t to, size_t from, size_t count) {
    const double factor = w[k], *source = x.data() + from;
    double *sum = y.data() + to;
    for (size_t l = 0; l < count; ++l) sum[l] += factor * source[l * step];
  });
  return y;
}

Values DenseDx(const ConvShape &s, const Values &w, const Values &dy) {
  Values dx(static_cast<size_t>(s.batch * s.in * s.height * s.width), 0.0);
  const size_t step = static_cast<size_t>(s.stride_w);
  ForEachRun(s, [&](size_t k, size_t from, size_t to, size_t count) {
    const double factor = w[k], *source = dy.data() + from;
    double *sum = dx.data() + to;
    for (size_t l = 0; l < count; ++l) sum[l * step] += factor * source[l];
  });
  return dx;
}

Values DenseDw(const ConvShape &s, const Values &x, const Values &dy) {
  Values dw(static_cast<size_t>(s.out * (s.in / s.groups) * s.kernel_h * s.kernel_w), 0.0);
  const size_t step = static_cast<size_t>(s.stride_w);
  ForEachRun(s, [&](size_t k, size_t of_dy, size_t of_x, size_t count) {
    const double *a = dy.data() + of_dy, *b = x.data() + of_x;
    double sum = 0;
    for (size_t l = 0; l < count; ++l) sum += a[l] * b[l * step];
    dw[k] += sum;
  });
  return dw;
}

void AddToChannels(Values *images, const Values &bias, int64_t pixels) {
  if (bias.empty()) return;
  for (size_t k = 0; k < images->size(); ++k) (*images)[k] += bias[k / static_cast<size_t>(pixels) % bias.size()];
}

// ---- factors ------------------------------------------------------------------------------------------------------------

// Calls visit(index of w, index of u, index of v) for each term of w = u v.
template <typename Visit>
void ForEachTerm(const ConvShape &s, Visit visit) {
  const int64_t in = s.in / s.groups, out = s.out / s.groups;
  for (int64_t o = 0; o < s.out; ++o) {
    for (int64_t q = 0; q < s.rank; ++q) {
      for (int64_t tap = 0; tap < in * s.kernel_h; ++tap) {
        const int64_t c = tap / s.kernel_h, i = tap % s.kernel_h, i_u = s.separable() ? i : 0, i_v = s.separable() ? 0 : i;
        const int64_t w = (o * in * s.kernel_h + tap) * s.kernel_w, u = (o * s.rank + q) * s.taps_u() + i_u;
        const int64_t v = (((o / out * s.rank + q) * in + c) * s.taps_v() + i_v) * s.kernel_w;
        for (int64_t j = 0; j < s.kernel_w; ++j) {
          visit(static_cast<size_t>(w + j), static_cast<size_t>(u), static_cast<size_t>(v + j));
        }
      }
    }
  }
}

// Calls visit(index of u, index of inner_bias) for each number of u.
template <typename Visit>
void ForEachU(const ConvShape &s, Visit visit) {
  for (int64_t k = 0; k < s.out * s.rank * s.taps_u(); ++k) {
    const int64_t q = k / s.taps_u() % s.rank, group = k / s.taps_u() / s.rank / (s.out / s.groups);
    visit(static_cast<size_t>(k), static_cast<size_t>(group * s.rank + q));
  }
}

// Whether the window of output row h meets a row of the intermediate, and not its padding, with tap i of u.
bool MeetsRow(const ConvShape &s, int64_t h, int64_t i) {
  const int64_t row = h * s.stride_h - s.pad_top + i * s.dilation_h;
  return !s.separable() || (row >= 0 && row < s.height);
}

// (out, taps_u): what the inner bias of 1 is weighted with in the loss, sum of dy where the tap meets a row.
Values MetDy(const ConvShape &s, const Values &dy) {
  Values sums(static_cast<size_t>(s.out * s.taps_u()), 0.0);
  const int64_t rows = s.out_height(), columns = s.out_width();
  for (int64_t k = 0; k < static_cast<int64_t>(dy.size()); ++k) {
    const int64_t h = k / columns % rows, o = k / columns / rows % s.out;
    for (int64_t i = 0; i < s.taps_u(); ++i) {
      if (MeetsRow(s, h, i)) sums[static_cast<size_t>(o * s.taps_u() + i)] += dy[static_cast<size_t>(k)];
    }
  }
  return sums;
}

bool RowIsMet(const ConvShape &s, int64_t row) {
  for (int64_t h = 0; h < s.out_height(); ++h) {
    for (int64_t i = 0; i < s.kernel_h; ++i) {
      if (h * s.stride_h - s.pad_top + i * s.dilation_h == row) return true;
    }
  }
  return false;
}

}  // namespace

// ---- the oracle -----------------------------------------------------------------------------------------------------------

ConvOracle ConvOracle::OfMagnitudes() const {
  return {shape, Absolute(x), Absolute(v), Absolute(u), Absolute(inner_bias), Absolute(bias), Absolute(dy)};
}

double ConvOracle::ErrorFactor(lath_dtype dtype) const {
  double lengths = 8;
  for (const int64_t length :
       {shape.in / shape.groups * shape.taps_v() * shape.kernel_w, shape.rank * shape.taps_u(),
        shape.out / shape.groups * shape.taps_u(), shape.batch * shape.out_height() * shape.out_width()}) {
    lengths += std::sqrt(static_cast<double>(length));
  }
  return lengths * AccumulatorEpsilon(dtype);
}

Values ConvOracle::W() const {
  Values w(static_cast<size_t>(shape.out * (shape.in / shape.groups) * shape.kernel_h * shape.kernel_w), 0.0);
  ForEachTerm(shape, [&](size_t k, size_t of_u, size_t of_v) { w[k] += u[of_u] * v[of_v]; });
  return w;
}

Values ConvOracle::P() const {
  ConvShape first = shape.Channels(shape.in, 1, shape.groups * shape.rank, shape.groups);
  if (shape.separable()) {
    first.kernel_h = first.stride_h = first.dilation_h = 1;
    first.pad_top = first.pad_bottom = 0;
  }
  Values p = DenseForward(first, x, v);
  const int64_t rows = shape.p_height(), columns = shape.out_width();
  AddToChannels(&p, inner_bias, rows * columns);
  for (int64_t row = 0; shape.separable() && row < rows; ++row) {
    if (RowIsMet(shape, row)) continue;
    for (int64_t k = row * columns; k < static_cast<int64_t>(p.size()); k += rows * columns) {
      std::fill_n(p.begin() + k, columns, 0.0);
    }
  }
  return p;
}

Values ConvOracle::Y() const {
  Values y = DenseForward(shape, x, W());
  const int64_t rows = shape.out_height(), columns = shape.out_width();
  Values inner(static_cast<size_t>(shape.out * rows), 0.0);
  if (!inner_bias.empty()) {
    ForEachU(shape, [&](size_t k, size_t q) {
      const int64_t i = static_cast<int64_t>(k) % shape.taps_u(), o = static_cast<int64_t>(k) / shape.taps_u() / shape.rank;
      for (int64_t h = 0; h < rows; ++h) {
        if (MeetsRow(shape, h, i)) inner[static_cast<size_t>(o * rows + h)] += u[k] * inner_bias[q];
      }
    });
    AddToChannels(&y, inner, columns);
  }
  AddToChannels(&y, bias, rows * columns);
  return y;
}

Gradients ConvOracle::AllGradients() const {
  const Values dw = DenseDw(shape, x, dy), met = MetDy(shape, dy);
  Gradients g = {DenseDx(shape, W(), dy), Values(v.size(), 0.0), Values(u.size(), 0.0),
                 Values(static_cast<size_t>(shape.groups * shape.rank), 0.0), Values(static_cast<size_t>(shape.out), 0.0)};
  ForEachTerm(shape, [&](size_t k, size_t of_u, size_t of_v) {
    g.du[of_u] += dw[k] * v[of_v];
    g.dv[of_v] += dw[k] * u[of_u];
  });
  const size_t taps = static_cast<size_t>(shape.taps_u()), per_out = taps * static_cast<size_t>(shape.rank);
  ForEachU(shape, [&](size_t k, size_t q) {
    const double weight = met[k / per_out * taps + k % taps];
    if (!inner_bias.empty()) g.du[k] += weight * inner_bias[q];
    g.d_inner_bias[q] += weight * u[k];
  });
  const int64_t pixels = shape.out_height() * shape.out_width();
  for (size_t k = 0; k < dy.size(); ++k) g.d_bias[k / static_cast<size_t>(pixels) % g.d_bias.size()] += dy[k];
  return g;
}

}  // namespace lath_test
