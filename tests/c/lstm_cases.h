// SPDX-License-Identifier: Apache-2.0
//
// lstm_cases.h - calls of the low-rank LSTM, as cases.h makes those of the other entries, and shapes to call it with.

#ifndef LATH_TESTS_C_LSTM_CASES_H_
#define LATH_TESTS_C_LSTM_CASES_H_

#include "cases.h"
#include "lstm_oracle.h"

namespace lath_test {

using LstmArgs = struct ::lath_lowrank_lstm;

// ---- sequences ------------------------------------------------------------------------------------------------------------

// One row of n numbers per sample and step, step by step or sample by sample in memory. A packed sequence has no second order.
struct SequenceLayout {
  bool batch_first = false;
  Layout memory;  // its gap is that between rows
};

// Values go in and out step by step, whatever the layout.
class Sequence {
 public:
  Sequence(lath_dtype dtype, const LstmShape &shape, int64_t n, const SequenceLayout &layout = {});

  void Fill(const Values &values) { operand_.Fill(Reordered(values, true)); }
  Values Read() const { return Reordered(operand_.Read(), false); }
  Values InMemory(const Values &values) const { return Reordered(values, true); }  // in the order of operand()
  const Operand &operand() const { return operand_; }
  Operand &operand() { return operand_; }
  void *data() const { return operand_.data(); }
  int64_t s_step() const { return batch_first_ ? operand_.strides()[2] : operand_.strides()[1]; }
  int64_t s_row() const { return batch_first_ ? operand_.strides()[1] : operand_.strides()[2]; }

 private:
  Values Reordered(const Values &values, bool to_memory) const;

  bool batch_first_;
  int64_t steps_, batch_, n_;
  Operand operand_;
};

// One of the two halves of the output of a bidirectional layer.
SequenceLayout HalfOfOutput(int64_t hidden, bool second, bool batch_first = false);
SequenceLayout DrawSequence(Choices *choices);

// ---- calls ----------------------------------------------------------------------------------------------------------------

// What may be absent.
enum LstmOptional : unsigned { kBiasIn = 1, kBias = 2, kH0 = 4, kC0 = 8, kDy = 16, kDhn = 32, kDcn = 64, kAllOptional = 127 };

// Weights are scaled to gates of the order of 1 before their activation: neither saturated nor all alike.
struct LstmInputs {
  LstmInputs(lath_dtype type, const LstmShape &extents, uint32_t seed, unsigned with = kAllOptional,
             const SequenceLayout &layout_x = {}, const SequenceLayout &layout_dy = {}, const Layout &layout = {});

  lath_dtype dtype;
  LstmShape shape;
  unsigned present;  // of LstmOptional
  Sequence x, dy;
  Operand v_in, u_in, v, u, bias_in, bias, h0, c0, dhn, dcn;
};

LstmOracle OracleOf(const LstmInputs &inputs);
LstmArgs Arguments(const LstmInputs &inputs);  // what forward and backward share

enum LstmOutput : unsigned { kY = 1, kHn = 2, kCn = 4, kC = 8, kGates = 16, kAllOutputs = 31 };
enum LstmGradient : unsigned {
  kLstmDx = 1,
  kLstmDvIn = 2,
  kLstmDuIn = 4,
  kLstmDv = 8,
  kLstmDu = 16,
  kLstmDBias = 32,
  kLstmDh0 = 64,
  kLstmDc0 = 128,
  kAllLstmGradients = 255
};

struct LstmOptions : CallOptions {
  SequenceLayout sequence;  // of y and dx
  Layout state;             // of all other outputs, which have no gaps
};

struct LstmRun {
  lath_status status;
  bool workspace_intact;
  Sequence y;
  Operand hn, cn, c, gates;
};

struct LstmBackwardRun {
  lath_status status;
  bool workspace_intact;
  Sequence dx;
  Operand dv_in, du_in, dv, du, d_bias, dh0, dc0;
};

// Results that nothing has been written to.
LstmRun EmptyRun(const LstmInputs &inputs, const SequenceLayout &sequence, const Layout &state);
LstmBackwardRun EmptyBackwardRun(const LstmInputs &inputs, const SequenceLayout &sequence, const Layout &state);

LstmRun RunLstm(const LstmInputs &inputs, const LstmOptions &options, unsigned outputs = kAllOutputs);
// Outputs as a forward call could have left them, from the oracle.
LstmRun KeptStates(const LstmInputs &inputs, const SequenceLayout &layout = {});
LstmBackwardRun RunLstmBackward(const LstmInputs &inputs, const LstmRun &forward, bool with_gates, const LstmOptions &options,
                                unsigned gradients = kAllLstmGradients);

// Without v_in there is no gradient of it.
unsigned WantedGradients(const LstmShape &shape, unsigned gradients = kAllLstmGradients);

// ---- calls at random ------------------------------------------------------------------------------------------------------

constexpr lath_association kLstmAssociations[] = {LATH_AUTO, LATH_FACTORED, LATH_MERGED};
constexpr lath_dtype kLstmDtypes[] = {LATH_F32, LATH_F64};

// All of a call but its shape, and which results it is asked for.
struct LstmCall {
  lath_dtype dtype;
  LstmOptions options;  // of the fast entry
  Layout weights;
  unsigned present;
};

LstmCall DrawLstmCall(Choices *choices);
unsigned DrawLstmOutputs(Choices *choices);
unsigned DrawLstmGradients(Choices *choices);

// ---- comparisons ----------------------------------------------------------------------------------------------------------

// What was asked for lies within `Tolerance` of the oracle, relative to the largest number of each tensor; the rest was not
// touched.
double Tolerance(lath_dtype dtype);
testing::AssertionResult OutputsWithin(const LstmRun &run, const LstmStates &want, unsigned outputs = kAllOutputs);
testing::AssertionResult GradientsWithin(const LstmBackwardRun &run, const LstmGradients &want,
                                         unsigned gradients = kAllLstmGradients);
testing::AssertionResult SameOutputs(const LstmRun &a, const LstmRun &b, unsigned outputs = kAllOutputs);
testing::AssertionResult SameGradients(const LstmBackwardRun &a, const LstmBackwardRun &b,
                                       unsigned gradients = kAllLstmGradients);

// ---- shapes ---------------------------------------------------------------------------------------------------------------

std::vector<int64_t> DrawBatchSizes(Choices *choices, int64_t steps, int64_t batch);
LstmShape DrawLstm(Choices *choices);

const std::vector<LstmShape> &WidthLstms();     // hidden sizes, inputs and ranks around whole vectors
const std::vector<LstmShape> &BatchLstms();     // batches around the blocks of both directions
const std::vector<LstmShape> &SequenceLstms();  // no step, one, more than a chunk of them
const std::vector<LstmShape> &PackedLstms();
const std::vector<LstmShape> &LayerLstms();  // of the size that layers have
const std::vector<LstmShape> &EmptyLstms();  // an empty batch, inputs of no numbers

}  // namespace lath_test

#endif  // LATH_TESTS_C_LSTM_CASES_H_
