// SPDX-License-Identifier: Apache-2.0
//
// test_lstm_threads.cc - the low-rank LSTM gives the same bits for every number of threads, every cut of the batch and every
// order of its parts; several calls may run at once.

#include <thread>

#include "lstm_cases.h"

namespace lath_test {
namespace {

constexpr struct {
  int threads;
  Cut cut;
} kHosts[] = {{1, Cut::kOnePerThread}, {2, Cut::kUneven}, {2, Cut::kSingles}, {3, Cut::kOnePerThread}, {5, Cut::kSingles}};

// Work enough that a call wants every thread of the host: one block of the backward, two, and several.
std::vector<LstmShape> LargeLstms() {
  const LstmShape base = LstmShape().Sizes(33, 70).Ranks(12, 20);
  return {base.Sizes(33, 100).Ranks(12, 30).Sequence(60, 2),
          base.Sequence(40, 19).Reverse(),
          base.Ranks(0, 20).Sequence(12, 130),
          base.Sizes(8, 49).Sequence(15, 257).Reverse(),
          base.Packed({200, 200, 190, 130, 129, 128, 64, 60, 9, 1, 1}),
          base.Packed({70, 70, 70, 70, 35, 34, 33, 3}).Reverse()};
}

class LstmThreads : public PerPath {
 protected:
  // Calls `same(options)` with hosts of every kind. Without a host that was used the comparison would show nothing.
  template <typename Same>
  void ForEveryHost(LstmOptions options, bool must_use, Same same) {
    int used = 0;
    for (const auto &kind : kHosts) {
      ThreadHost host(kind.threads, kind.cut, static_cast<uint32_t>(kind.threads));
      options.host = host.get();
      EXPECT_TRUE(same(options)) << kind.threads << " threads, cut " << static_cast<int>(kind.cut);
      used += host.calls();
    }
    EXPECT_EQ(used > 0, must_use);
  }
};

TEST_P(LstmThreads, ForwardIsBitwiseTheSame) {
  for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
    for (const LstmShape &shape : LargeLstms()) {
      const LstmInputs inputs(LATH_F32, shape, 1);
      LstmOptions options;
      options.association = association;
      const LstmRun serial = RunLstm(inputs, options);
      SCOPED_TRACE(Describe(LATH_F32, shape));
      ForEveryHost(options, true, [&](const LstmOptions &with) { return SameOutputs(RunLstm(inputs, with), serial); });
    }
  }
}

TEST_P(LstmThreads, BackwardIsBitwiseTheSame) {
  for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
    for (const LstmShape &shape : LargeLstms()) {
      const LstmInputs inputs(LATH_F32, shape, 2);
      LstmOptions options;
      options.association = association;
      const LstmRun kept = RunLstm(inputs, options);
      ASSERT_TRUE(Completed(kept));
      for (const bool gates : {false, true}) {
        const LstmBackwardRun serial = RunLstmBackward(inputs, kept, gates, options);
        SCOPED_TRACE(Describe(LATH_F32, shape) + (gates ? ", gates kept" : ""));
        // A small batch is one block, in which nothing is shared out; a merged weight is formed by many threads all the same.
        const bool shared = shape.batch >= 16 || association == LATH_MERGED;
        ForEveryHost(options, shared, [&](const LstmOptions &with) {
          const unsigned wanted = shape.in_rank > 0 ? kAllLstmGradients : kAllLstmGradients & ~static_cast<unsigned>(kLstmDvIn);
          return SameGradients(RunLstmBackward(inputs, kept, gates, with), serial, wanted);
        });
      }
    }
  }
}

// Forty workers and fewer samples or blocks than that.
TEST_P(LstmThreads, WorkersWithoutWorkAreHarmless) {
  ThreadHost host(40, Cut::kUneven);
  LstmOptions options;
  options.host = host.get();
  for (const LstmShape &shape :
       {LstmShape().Sizes(64, 70).Ranks(30, 40).Sequence(200, 3), LstmShape().Sizes(64, 70).Ranks(30, 40).Sequence(35, 17)}) {
    const LstmInputs inputs(LATH_F32, shape, 3);
    const LstmOracle oracle = OracleOf(inputs);
    EXPECT_TRUE(OutputsWithin(RunLstm(inputs, options), oracle.Forward())) << Describe(LATH_F32, shape);
    EXPECT_TRUE(GradientsWithin(RunLstmBackward(inputs, KeptStates(inputs), false, options), oracle.Backward()))
        << Describe(LATH_F32, shape);
  }
  EXPECT_GT(host.calls(), 0);
}

TEST_P(LstmThreads, CallsMayRunAtOnceOnSharedInputs) {
  const LstmInputs inputs(LATH_F32, LstmShape().Sizes(33, 40).Ranks(12, 20).Sequence(9, 130), 4);
  const LstmRun forward = RunLstm(inputs, {});
  const LstmBackwardRun backward = RunLstmBackward(inputs, forward, true, {});
  constexpr size_t kCallers = 4;
  bool same[kCallers] = {};
  std::vector<std::thread> callers;
  for (size_t caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      ThreadHost host(2, Cut::kOnePerThread, static_cast<uint32_t>(caller));
      LstmOptions options;
      options.host = host.get();
      same[caller] = true;
      for (int repeat = 0; repeat < 3; ++repeat) {
        same[caller] = same[caller] && SameOutputs(RunLstm(inputs, options), forward) &&
                       SameGradients(RunLstmBackward(inputs, forward, true, options), backward);
      }
    });
  }
  for (std::thread &caller : callers) caller.join();
  for (size_t caller = 0; caller < kCallers; ++caller) EXPECT_TRUE(same[caller]) << caller;
}

LATH_FAST_PATHS(LstmThreads);

}  // namespace
}  // namespace lath_test
