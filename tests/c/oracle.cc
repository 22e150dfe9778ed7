// SPDX-License-Identifier: Apache-2.0
//
// oracle.cc - the formulas on dense double-precision matrices; see oracle.h.

#include "oracle.h"

#include <cmath>

namespace lath_test {
namespace {

void AddToRows(Values *matrix, const Values &row) {
  for (size_t k = 0; !row.empty() && k < matrix->size(); ++k) (*matrix)[k] += row[k % row.size()];
}

Values SumOfRows(const Values &a, int64_t rows, int64_t cols) {
  return Multiply(Values(static_cast<size_t>(rows), 1.0), a, 1, rows, cols);
}

}  // namespace

Values Multiply(const Values &a, const Values &b, int64_t m, int64_t k, int64_t n) {
  Values c(static_cast<size_t>(m * n), 0.0);
  for (int64_t i = 0; i < m; ++i) {
    double *to = c.data() + i * n;
    for (int64_t l = 0; l < k; ++l) {
      const double factor = a[static_cast<size_t>(i * k + l)];
      const double *from = b.data() + l * n;
      for (int64_t j = 0; j < n; ++j) to[j] += factor * from[j];
    }
  }
  return c;
}

Values Transpose(const Values &a, int64_t rows, int64_t cols) {
  Values t(a.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) t[static_cast<size_t>(j * rows + i)] = a[static_cast<size_t>(i * cols + j)];
  }
  return t;
}

Values Absolute(const Values &a) {
  Values result = a;
  for (double &value : result) value = std::fabs(value);
  return result;
}

Values Scaled(const Values &a, double factor) {
  Values result = a;
  for (double &value : result) value *= factor;
  return result;
}

LowrankOracle LowrankOracle::OfMagnitudes() const {
  return {shape, Absolute(x), Absolute(v), Absolute(u), Absolute(inner_bias), Absolute(bias), Absolute(dy)};
}

double LowrankOracle::ErrorFactor(lath_dtype dtype) const {
  double lengths = 8;
  for (const int64_t extent : {shape.rows, shape.in, shape.rank, shape.out}) lengths += std::sqrt(static_cast<double>(extent));
  return lengths * AccumulatorEpsilon(dtype);
}

Values LowrankOracle::P() const {
  Values p = Multiply(x, Transpose(v, shape.rank, shape.in), shape.rows, shape.in, shape.rank);
  AddToRows(&p, inner_bias);
  return p;
}

Values LowrankOracle::Y() const {
  Values y = Multiply(P(), Transpose(u, shape.out, shape.rank), shape.rows, shape.rank, shape.out);
  AddToRows(&y, bias);
  return y;
}

Values LowrankOracle::Dp() const { return Multiply(dy, u, shape.rows, shape.out, shape.rank); }

Values LowrankOracle::Dx() const { return Multiply(Dp(), v, shape.rows, shape.rank, shape.in); }

Values LowrankOracle::Dv() const {
  return Multiply(Transpose(Dp(), shape.rows, shape.rank), x, shape.rank, shape.rows, shape.in);
}

Values LowrankOracle::Du() const {
  return Multiply(Transpose(dy, shape.rows, shape.out), P(), shape.out, shape.rows, shape.rank);
}

Values LowrankOracle::DInnerBias() const { return SumOfRows(Dp(), shape.rows, shape.rank); }

Values LowrankOracle::DBias() const { return SumOfRows(dy, shape.rows, shape.out); }

}  // namespace lath_test
