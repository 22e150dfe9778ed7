// SPDX-License-Identifier: Apache-2.0
//
// lstm_oracle.cc - a low-rank LSTM on dense double-precision weights; see lstm_oracle.h.

#include "lstm_oracle.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

namespace lath_test {

// ---- shapes -------------------------------------------------------------------------------------------------------------

LstmShape LstmShape::Sequence(int64_t n_steps, int64_t n_batch) const {
  LstmShape s = *this;
  s.steps = n_steps, s.batch = n_batch;
  s.batch_sizes.clear();
  return s;
}

LstmShape LstmShape::Sizes(int64_t n_in, int64_t n_hidden) const {
  LstmShape s = *this;
  s.in = n_in, s.hidden = n_hidden;
  return s;
}

LstmShape LstmShape::Ranks(int64_t of_input, int64_t of_hidden) const {
  LstmShape s = *this;
  s.in_rank = of_input, s.rank = of_hidden;
  return s;
}

LstmShape LstmShape::Reverse(bool yes) const {
  LstmShape s = *this;
  s.reverse = yes;
  return s;
}

LstmShape LstmShape::Packed(const std::vector<int64_t> &sizes) const {
  LstmShape s = *this;
  s.batch_sizes = sizes;
  s.steps = static_cast<int64_t>(sizes.size());
  s.batch = sizes.empty() ? 0 : sizes.front();
  return s;
}

int64_t LstmShape::rows() const {
  return packed() ? std::accumulate(batch_sizes.begin(), batch_sizes.end(), int64_t{0}) : steps * batch;
}

std::vector<int64_t> LstmShape::RowsOf(int64_t sample) const {
  std::vector<int64_t> rows;
  int64_t first = 0;
  for (int64_t t = 0; t < steps; ++t) {
    const int64_t samples = packed() ? batch_sizes[static_cast<size_t>(t)] : batch;
    if (sample < samples) rows.push_back(first + sample);
    first += samples;
  }
  if (reverse) std::reverse(rows.begin(), rows.end());
  return rows;
}

std::string Describe(lath_dtype dtype, const LstmShape &s) {
  std::string text = (dtype == LATH_F64 ? "f64 " : "f32 ") + std::to_string(s.steps) + " steps of " + std::to_string(s.batch) +
                     ", in " + std::to_string(s.in) + ", hidden " + std::to_string(s.hidden) + ", ranks " +
                     std::to_string(s.in_rank) + " and " + std::to_string(s.rank);
  if (s.reverse) text += ", reverse";
  if (s.packed()) text += ", packed into " + std::to_string(s.rows()) + " rows";
  return text;
}

// ---- the oracle -----------------------------------------------------------------------------------------------------------

namespace {

double Sigmoid(double a) { return 1 / (1 + std::exp(-a)); }

double AtOrZero(const Values &values, int64_t k) { return values.empty() ? 0.0 : values[static_cast<size_t>(k)]; }

// The weights as one matrix (4 hidden, in + hidden) and one bias, as a cell of the textbook has them.
struct Dense {
  int64_t in, hidden, columns;
  Values w, bias;

  explicit Dense(const LstmOracle &o) : in(o.shape.in), hidden(o.shape.hidden), columns(in + hidden) {
    const LstmShape &s = o.shape;
    const Values of_x = s.in_rank > 0 ? Multiply(o.u_in, o.v_in, 4 * hidden, s.in_rank, in) : o.u_in;
    const Values of_h = Multiply(o.u, o.v, 4 * hidden, s.rank, hidden);
    for (int64_t g = 0; g < 4 * hidden; ++g) {
      w.insert(w.end(), of_x.begin() + g * in, of_x.begin() + (g + 1) * in);
      w.insert(w.end(), of_h.begin() + g * hidden, of_h.begin() + (g + 1) * hidden);
      bias.push_back(AtOrZero(o.bias_in, g) + AtOrZero(o.bias, g));
    }
  }
};

// One row: what went in, x and h side by side, and what came out.
struct Cell {
  int64_t row;
  Values input, gates, c_before, c, h;
};

Cell RunCell(const Dense &dense, int64_t row, const Values &input, const Values &c_before) {
  const size_t n = static_cast<size_t>(dense.hidden), columns = static_cast<size_t>(dense.columns);
  Cell cell = {row, input, dense.bias, c_before, Values(n), Values(n)};
  for (size_t g = 0; g < 4 * n; ++g) {
    cell.gates[g] =
        std::inner_product(input.begin(), input.end(), dense.w.begin() + static_cast<int64_t>(g * columns), cell.gates[g]);
    cell.gates[g] = g / n == 2 ? std::tanh(cell.gates[g]) : Sigmoid(cell.gates[g]);
  }
  for (size_t k = 0; k < n; ++k) {
    const double i = cell.gates[k], f = cell.gates[n + k], g = cell.gates[2 * n + k], o = cell.gates[3 * n + k];
    cell.c[k] = f * c_before[k] + i * g;
    cell.h[k] = o * std::tanh(cell.c[k]);
  }
  return cell;
}

Values RowOf(const Values &matrix, int64_t row, int64_t cols) {
  if (matrix.empty()) return Values(static_cast<size_t>(cols), 0.0);
  return Values(matrix.begin() + row * cols, matrix.begin() + (row + 1) * cols);
}

void SetRow(Values *matrix, int64_t row, const Values &values) {
  std::copy(values.begin(), values.end(), matrix->begin() + row * static_cast<int64_t>(values.size()));
}

// All cells of one sample, in the order in which they run; without a cell the state is the initial one.
std::vector<Cell> RunSample(const LstmOracle &o, const Dense &dense, int64_t sample) {
  std::vector<Cell> cells;
  Values h = RowOf(o.h0, sample, o.shape.hidden), c = RowOf(o.c0, sample, o.shape.hidden);
  for (const int64_t row : o.shape.RowsOf(sample)) {
    Values input = RowOf(o.x, row, o.shape.in);
    input.insert(input.end(), h.begin(), h.end());
    cells.push_back(RunCell(dense, row, input, c));
    h = cells.back().h, c = cells.back().c;
  }
  return cells;
}

Values Zeros(int64_t count) { return Values(static_cast<size_t>(count), 0.0); }

// Gradients of the gates before their activation from dh and dc, which becomes that of the cell before.
Values GatesBack(const Cell &cell, const Values &dh, Values *dc) {
  const size_t n = dh.size();
  Values da(4 * n);
  for (size_t k = 0; k < n; ++k) {
    const double i = cell.gates[k], f = cell.gates[n + k], g = cell.gates[2 * n + k], o = cell.gates[3 * n + k];
    const double t = std::tanh(cell.c[k]), of_c = (*dc)[k] + dh[k] * o * (1 - t * t);
    da[k] = of_c * g * i * (1 - i);
    da[n + k] = of_c * cell.c_before[k] * f * (1 - f);
    da[2 * n + k] = of_c * i * (1 - g * g);
    da[3 * n + k] = dh[k] * t * o * (1 - o);
    (*dc)[k] = of_c * f;
  }
  return da;
}

// What one cell gives to the gradients of the dense weights; returns the gradient of its input.
Values CellBack(const Dense &dense, const Cell &cell, const Values &da, Values *dw, Values *d_bias) {
  const size_t columns = static_cast<size_t>(dense.columns);
  Values d_input(columns, 0.0);
  for (size_t g = 0; g < da.size(); ++g) {
    (*d_bias)[g] += da[g];
    const double *w = dense.w.data() + g * columns;
    double *sum = dw->data() + g * columns;
    for (size_t k = 0; k < columns; ++k) {
      sum[k] += da[g] * cell.input[k];
      d_input[k] += da[g] * w[k];
    }
  }
  return d_input;
}

// Columns [from, from + count) of a matrix.
Values ColumnsOf(const Values &matrix, int64_t cols, int64_t from, int64_t count) {
  Values part;
  for (int64_t at = from; at + count <= static_cast<int64_t>(matrix.size()) && count > 0; at += cols) {
    part.insert(part.end(), matrix.begin() + at, matrix.begin() + at + count);
  }
  return part;
}

}  // namespace

LstmStates LstmOracle::Forward() const {
  const Dense dense(*this);
  const int64_t n = shape.hidden, rows = shape.rows();
  LstmStates states = {Zeros(rows * n), Zeros(rows * n), Zeros(rows * 4 * n), Zeros(shape.batch * n), Zeros(shape.batch * n)};
  for (int64_t b = 0; b < shape.batch; ++b) {
    const std::vector<Cell> cells = RunSample(*this, dense, b);
    for (const Cell &cell : cells) {
      SetRow(&states.y, cell.row, cell.h);
      SetRow(&states.c, cell.row, cell.c);
      SetRow(&states.gates, cell.row, cell.gates);
    }
    SetRow(&states.hn, b, cells.empty() ? RowOf(h0, b, n) : cells.back().h);
    SetRow(&states.cn, b, cells.empty() ? RowOf(c0, b, n) : cells.back().c);
  }
  return states;
}

LstmGradients LstmOracle::Backward() const {
  const Dense dense(*this);
  const int64_t n = shape.hidden, in = shape.in, gates = 4 * n;
  Values dw = Zeros(gates * dense.columns);
  LstmGradients g;
  g.dx = Zeros(shape.rows() * in), g.d_bias = Zeros(gates), g.dh0 = Zeros(shape.batch * n), g.dc0 = Zeros(shape.batch * n);
  for (int64_t b = 0; b < shape.batch; ++b) {
    const std::vector<Cell> cells = RunSample(*this, dense, b);
    Values dh = RowOf(dhn, b, n), dc = RowOf(dcn, b, n);
    for (size_t k = cells.size(); k-- > 0;) {
      const Values of_y = RowOf(dy, cells[k].row, n);
      std::transform(dh.begin(), dh.end(), of_y.begin(), dh.begin(), std::plus<double>());
      const Values d_input = CellBack(dense, cells[k], GatesBack(cells[k], dh, &dc), &dw, &g.d_bias);
      SetRow(&g.dx, cells[k].row, Values(d_input.begin(), d_input.begin() + in));
      dh.assign(d_input.begin() + in, d_input.end());
    }
    SetRow(&g.dh0, b, dh);
    SetRow(&g.dc0, b, dc);
  }
  const Values of_x = ColumnsOf(dw, dense.columns, 0, in), of_h = ColumnsOf(dw, dense.columns, in, n);
  g.du = Multiply(of_h, Transpose(v, shape.rank, n), gates, n, shape.rank);
  g.dv = Multiply(Transpose(u, gates, shape.rank), of_h, shape.rank, gates, n);
  g.du_in = of_x;
  if (shape.in_rank > 0) {
    g.du_in = Multiply(of_x, Transpose(v_in, shape.in_rank, in), gates, in, shape.in_rank);
    g.dv_in = Multiply(Transpose(u_in, gates, shape.in_rank), of_x, shape.in_rank, gates, in);
  }
  return g;
}

}  // namespace lath_test
