// SPDX-License-Identifier: Apache-2.0
//
// cases.h - one call of an entry point, with its operands in guarded memory and a workspace of exactly the queried size.

#ifndef LATH_TESTS_C_CASES_H_
#define LATH_TESTS_C_CASES_H_

#include "oracle.h"
#include "support.h"

namespace lath_test {

enum class Numbers { kIntegers, kUniform };

// A gap, a shift, and now and then, for an input, all rows the same.
Layout RandomLayout(Choices *choices, bool input);

// The same with strides of 8 elements and 16 bytes.
Layout AlignedLayout(Choices *choices, bool input);

// Where the layout repeats elements, the last number drawn for one stays.
void FillWith(Operand *operand, Numbers numbers, uint32_t seed);

// The element type that p and the Gram matrices are stored in.
lath_dtype AccumulatorType(lath_dtype dtype);

// How a call is made, apart from its inputs.
struct CallOptions {
  bool ref = false;
  const lath_host *host = &lath_serial_host;
  lath_association association = LATH_AUTO;
  Layout output;                      // of y and dx; outputs do not repeat
  Layout contiguous;                  // of p, dv, du and the bias gradients: no gap
  size_t workspace_misalignment = 0;  // bytes
};

// Calls `entry`, or its twin `ref`, with a workspace of exactly the size that `query` answers.
template <typename Args, typename Query, typename Entry, typename Ref, typename Run>
void Call(Args *args, const CallOptions &options, Query query, Entry entry, Ref ref, Run *run) {
  run->status = query(args, options.host, &args->workspace_bytes);
  if (run->status != LATH_OK) return;
  Memory workspace(args->workspace_bytes, Place::kHeap, options.workspace_misalignment);
  args->workspace = workspace.data();
  run->status = options.ref ? ref(args) : entry(args, options.host);
  run->workspace_intact = workspace.Intact();
}

template <typename Run>
testing::AssertionResult Completed(const Run &run) {
  if (run.status != LATH_OK) return testing::AssertionFailure() << lath_status_text(run.status);
  if (!run.workspace_intact) return testing::AssertionFailure() << "bytes outside the workspace were written";
  return testing::AssertionSuccess();
}

// ---- linear -------------------------------------------------------------------------------------------------------------

struct LinearInputs {
  LinearInputs(lath_dtype type, int64_t rows, int64_t in, int64_t out, bool with_bias, Numbers numbers, uint32_t seed,
               Layout layout_x = {}, Layout layout_w = {});

  lath_dtype dtype;
  bool has_bias;
  Operand x, w, bias;
};

struct LinearRun {
  lath_status status;
  bool workspace_intact;
  Operand y;
};

LinearArgs Arguments(const LinearInputs &inputs);
LinearRun RunLinear(const LinearInputs &inputs, const CallOptions &options);
// x w^T + bias as the first half of a low-rank product: its P() is y.
LowrankOracle OracleOf(const LinearInputs &inputs);

// ---- low-rank linear ----------------------------------------------------------------------------------------------------

struct LowrankInputs {
  struct Layouts {
    Layout x, v, u, biases, dy;
  };
  LowrankInputs(lath_dtype type, LowrankShape extents, bool with_inner_bias, bool with_bias, Numbers numbers, uint32_t seed,
                const Layouts &layouts);
  LowrankInputs(lath_dtype type, LowrankShape extents, bool with_inner_bias, bool with_bias, Numbers numbers, uint32_t seed)
      : LowrankInputs(type, extents, with_inner_bias, with_bias, numbers, seed, Layouts()) {}

  lath_dtype dtype;
  LowrankShape shape;
  bool has_inner_bias, has_bias;
  Operand x, v, u, inner_bias, bias, dy;
};

LowrankOracle OracleOf(const LowrankInputs &inputs);
LowrankArgs Arguments(const LowrankInputs &inputs);  // what forward and backward share

struct ForwardRun {
  lath_status status;
  bool workspace_intact;
  Operand y, p;
};

ForwardRun RunForward(const LowrankInputs &inputs, const CallOptions &options, bool with_p = false);

enum Gradient : unsigned { kDx = 1, kDv = 2, kDu = 4, kDInnerBias = 8, kDBias = 16, kAllGradients = 31 };

struct BackwardRun {
  lath_status status;
  bool workspace_intact;
  Operand dx, dv, du, d_inner_bias, d_bias;
};

// `p` may be nullptr: recomputed.
BackwardRun RunBackward(const LowrankInputs &inputs, const CallOptions &options, unsigned gradients = kAllGradients,
                        const Operand *p = nullptr);

// The asked gradients are exact or within factor * magnitudes, the others were not touched.
testing::AssertionResult ExactGradients(const BackwardRun &run, const Gradients &want, unsigned gradients);
testing::AssertionResult GradientsWithin(const BackwardRun &run, const Gradients &want, const Gradients &magnitudes,
                                         double factor, unsigned gradients);

template <typename Oracle>
testing::AssertionResult ExactGradients(const BackwardRun &run, const Oracle &oracle, unsigned gradients) {
  return ExactGradients(run, oracle.AllGradients(), gradients);
}

template <typename Oracle>
testing::AssertionResult GradientsWithin(const BackwardRun &run, const Oracle &oracle, unsigned gradients) {
  return GradientsWithin(run, oracle.AllGradients(), oracle.OfMagnitudes().AllGradients(), oracle.ErrorFactor(run.dv.dtype()),
                         gradients);
}

testing::AssertionResult SameGradients(const BackwardRun &a, const BackwardRun &b, unsigned gradients = kAllGradients);

// ---- Frobenius decay ------------------------------------------------------------------------------------------------------

struct FrobeniusInputs {
  FrobeniusInputs(lath_dtype type, int64_t in, int64_t rank, int64_t out, Numbers numbers, uint32_t seed, Layout layout_v = {},
                  Layout layout_u = {});

  lath_dtype dtype;
  Operand v, u;

  Values GramV() const;  // v v^T
  Values GramU() const;  // u^T u
};

struct FrobeniusRun {
  lath_status status;
  bool workspace_intact;
  Operand gram_v, gram_u, value;
};

struct FrobeniusBackwardRun {
  lath_status status;
  bool workspace_intact;
  Operand dv, du;
};

FrobeniusArgs Arguments(const FrobeniusInputs &inputs);
FrobeniusRun RunFrobenius(const FrobeniusInputs &inputs, const CallOptions &options);
// `gradients` is a set of kDv and kDu.
FrobeniusBackwardRun RunFrobeniusBackward(const FrobeniusInputs &inputs, const CallOptions &options, const Operand &gram_v,
                                          const Operand &gram_u, double scale, unsigned gradients = kDv | kDu);

std::string Describe(lath_dtype dtype, const LowrankShape &shape);

}  // namespace lath_test

#endif  // LATH_TESTS_C_CASES_H_
