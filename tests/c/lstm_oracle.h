// SPDX-License-Identifier: Apache-2.0
//
// lstm_oracle.h - a low-rank LSTM in double, by another way than the library: dense weights, one sample after the other, each
// as a plain sequence of rows in the order in which it is run through; gradients of the dense weights, then of their factors.

#ifndef LATH_TESTS_C_LSTM_ORACLE_H_
#define LATH_TESTS_C_LSTM_ORACLE_H_

#include "oracle.h"

namespace lath_test {

struct LstmShape {
  int64_t steps = 1, batch = 1, in = 1, hidden = 1;
  int64_t in_rank = 0, rank = 1;     // in_rank 0: the input weight is dense
  bool reverse = false;              // from the last step of each sample to the first
  std::vector<int64_t> batch_sizes;  // of a packed sequence; empty: not packed

  LstmShape Sequence(int64_t n_steps, int64_t n_batch) const;
  LstmShape Sizes(int64_t n_in, int64_t n_hidden) const;
  LstmShape Ranks(int64_t of_input, int64_t of_hidden) const;
  LstmShape Reverse(bool yes = true) const;
  LstmShape Packed(const std::vector<int64_t> &sizes) const;  // sets steps and batch, too

  bool packed() const { return !batch_sizes.empty(); }
  int64_t wide() const { return in_rank > 0 ? in_rank : in; }  // columns of u_in
  int64_t rows() const;                                        // of all steps
  std::vector<int64_t> RowsOf(int64_t sample) const;           // in the order in which the sample is run through
};

std::string Describe(lath_dtype dtype, const LstmShape &shape);

// Sequences are (rows, n), states (batch, n); c and gates are of every row, gates i, f, g, o after their activation.
struct LstmStates {
  Values y, c, gates, hn, cn;
};

struct LstmGradients {
  Values dx, dv_in, du_in, dv, du, d_bias, dh0, dc0;
};

// v_in is empty with a dense input weight, which is then u_in. Biases, initial states and incoming gradients may be empty.
struct LstmOracle {
  LstmShape shape;
  Values x, v_in, u_in, v, u, bias_in, bias, h0, c0, dy, dhn, dcn;

  LstmStates Forward() const;
  LstmGradients Backward() const;  // of sum y dy + sum hn dhn + sum cn dcn
};

}  // namespace lath_test

#endif  // LATH_TESTS_C_LSTM_ORACLE_H_
