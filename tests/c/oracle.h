// SPDX-License-Identifier: Apache-2.0
//
// oracle.h - the formulas of the operators on dense double-precision matrices, with error bounds.
//
// The bound of an element is c * epsilon * (the same formula on absolute values), c = 8 + the square roots of the lengths of
// the sums: the rounding errors of a sum of K terms of random sign add up like sqrt(K). A wrong or missing term is off by about
// 1/K of the same magnitude, several hundred times more.

#ifndef LATH_TESTS_C_ORACLE_H_
#define LATH_TESTS_C_ORACLE_H_

#include "support.h"

namespace lath_test {

// c (m, n) = a (m, k) b (k, n)
Values Multiply(const Values &a, const Values &b, int64_t m, int64_t k, int64_t n);
Values Transpose(const Values &a, int64_t rows, int64_t cols);
Values Absolute(const Values &a);
Values Scaled(const Values &a, double factor);

// Of the sum of y * dy.
struct Gradients {
  Values dx, dv, du, d_inner_bias, d_bias;
};

struct LowrankShape {
  int64_t rows, in, rank, out;
};

// y = p u^T + bias, p = x v^T + inner_bias. Biases may be empty.
struct LowrankOracle {
  LowrankShape shape;
  Values x, v, u, inner_bias, bias, dy;

  LowrankOracle OfMagnitudes() const;  // the same on absolute values
  double ErrorFactor(lath_dtype dtype) const;

  Values P() const;
  Values Y() const;
  Values Dp() const;
  Values Dx() const;
  Values Dv() const;
  Values Du() const;
  Values DInnerBias() const;
  Values DBias() const;
  Gradients AllGradients() const { return {Dx(), Dv(), Du(), DInnerBias(), DBias()}; }
};

}  // namespace lath_test

#endif  // LATH_TESTS_C_ORACLE_H_
