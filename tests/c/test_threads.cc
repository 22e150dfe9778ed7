// SPDX-License-Identifier: Apache-2.0
//
// test_threads.cc - results are the same bits for every number of threads, every cut of the work and every order of its parts;
// several calls may run at once. All suites here are named Threads*, so that the thread sanitizer can run them alone.

#include <cstdlib>
#include <thread>

#include "conv_cases.h"

namespace lath_test {
namespace {

constexpr struct {
  int threads;
  Cut cut;
} kHosts[] = {{1, Cut::kOnePerThread}, {2, Cut::kUneven}, {2, Cut::kSingles}, {3, Cut::kOnePerThread}, {5, Cut::kSingles}};

// Work enough that a call wants every thread of the host; few rows, row tiles, and edges of both.
const LowrankShape kLarge[] = {{5, 1024, 257, 530}, {7, 100, 257, 1500}, {13, 600, 100, 600}, {50, 120, 130, 300},
                               {64, 200, 60, 333},  {65, 200, 60, 333},  {130, 255, 33, 257}, {300, 65, 70, 130},
                               {1000, 40, 33, 100}, {97, 130, 120, 100}};

class Threads : public PerPath {
 protected:
  // Calls `same(host)` with hosts of every kind. Without a host that was used the comparison would show nothing.
  template <typename Same>
  void ForEveryHost(Same same) {
    int used = 0;
    for (const auto &kind : kHosts) {
      ThreadHost host(kind.threads, kind.cut, static_cast<uint32_t>(kind.threads));
      EXPECT_TRUE(same(host.get())) << kind.threads << " threads, cut " << static_cast<int>(kind.cut);
      used += host.calls();
    }
    EXPECT_GT(used, 0) << "no call wanted more than one thread: the shape is too small for this test";
  }
};

TEST_P(Threads, LinearIsBitwiseTheSame) {
  for (const lath_dtype dtype : {LATH_F32, LATH_BF16}) {
    for (const LowrankShape &shape : kLarge) {
      const LinearInputs inputs(dtype, shape.rows, shape.in, shape.out + 200, true, Numbers::kUniform, 1);
      const LinearRun serial = RunLinear(inputs, {});
      ASSERT_EQ(serial.status, LATH_OK);
      SCOPED_TRACE(Describe(dtype, shape));
      ForEveryHost([&](const lath_host *host) {
        CallOptions options;
        options.host = host;
        const LinearRun run = RunLinear(inputs, options);
        return run.status == LATH_OK && run.workspace_intact ? SameBits(run.y, serial.y) : testing::AssertionFailure();
      });
    }
  }
}

TEST_P(Threads, LowrankForwardIsBitwiseTheSame) {
  for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
    for (const LowrankShape &shape : kLarge) {
      const lath_dtype dtype = shape.rows % 2 == 0 ? LATH_F32 : LATH_BF16;
      const LowrankInputs inputs(dtype, shape, true, true, Numbers::kUniform, 2);
      CallOptions options;
      options.association = association;
      const ForwardRun serial = RunForward(inputs, options, true);
      ASSERT_EQ(serial.status, LATH_OK);
      SCOPED_TRACE(Describe(dtype, shape) + (association == LATH_MERGED ? " merged" : " factored"));
      ForEveryHost([&](const lath_host *host) {
        options.host = host;
        const ForwardRun run = RunForward(inputs, options, true);
        if (run.status != LATH_OK || !run.workspace_intact) return testing::AssertionFailure();
        const testing::AssertionResult same = SameBits(run.p, serial.p);
        return same ? SameBits(run.y, serial.y) : testing::AssertionFailure() << "p: " << same.message();
      });
    }
  }
}

TEST_P(Threads, LowrankBackwardIsBitwiseTheSame) {
  for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
    for (const LowrankShape &shape : kLarge) {
      const lath_dtype dtype = shape.rows % 2 == 0 ? LATH_BF16 : LATH_F32;
      const LowrankInputs inputs(dtype, shape, true, true, Numbers::kUniform, 3);
      CallOptions options;
      options.association = association;
      const BackwardRun serial = RunBackward(inputs, options);
      ASSERT_EQ(serial.status, LATH_OK);
      SCOPED_TRACE(Describe(dtype, shape) + (association == LATH_MERGED ? " merged" : " factored"));
      ForEveryHost([&](const lath_host *host) {
        options.host = host;
        return SameGradients(RunBackward(inputs, options), serial);
      });
    }
  }
}

TEST_P(Threads, LowrankBackwardWithASavedIntermediateIsBitwiseTheSame) {
  for (const LowrankShape &shape : kLarge) {
    const LowrankInputs inputs(LATH_F32, shape, true, true, Numbers::kUniform, 4);
    Operand p(LATH_F32, shape.rows, shape.rank);
    p.Fill(OracleOf(inputs).P());
    const BackwardRun serial = RunBackward(inputs, {}, kAllGradients, &p);
    SCOPED_TRACE(Describe(LATH_F32, shape));
    ForEveryHost([&](const lath_host *host) {
      CallOptions options;
      options.host = host;
      return SameGradients(RunBackward(inputs, options, kAllGradients, &p), serial);
    });
  }
}

// Large images in bands of rows, small ones side by side; fewer images than threads, and more.
std::vector<ConvShape> LargeConvolutions() {
  const ConvShape base = ConvShape().Kernel(3, 3).Pad(1);
  std::vector<ConvShape> shapes;
  for (const ConvShape &one :
       {base.Channels(33, 16, 40).Image(40, 33), base.Batch(3).Channels(20, 13, 50).Image(28, 17).Stride(2, 1),
        base.Batch(17).Channels(60, 17, 70).Image(7, 7), base.Batch(70).Channels(64, 30, 100).Image(2, 2),
        base.Batch(2).Channels(30, 9, 60, 3).Image(19, 25).Kernel(5, 1).Dilation(3, 1).Pad(6, 6, 0, 0),
        base.Batch(2).Channels(70, 20, 90).Image(20, 20).Kernel(1, 1).Pad(0),
        base.Batch(5).Channels(80, 13, 61).Image(33, 19).Stride(3, 2).Dilation(2, 1)}) {
    for (const lath_conv_form form : {LATH_SEPARABLE, LATH_POINTWISE}) shapes.push_back(one.Form(form));
  }
  return shapes;
}

Layout ChannelsLastEveryOther(size_t k) {
  Layout layout;
  layout.images = k % 2 ? Images::kChannelsLast : Images::kContiguous;
  return layout;
}

TEST_P(Threads, Conv2dForwardIsBitwiseTheSame) {
  const std::vector<ConvShape> shapes = LargeConvolutions();
  for (size_t k = 0; k < shapes.size(); ++k) {
    LowrankInputs::Layouts layouts;
    CallOptions options;
    layouts.x = options.output = ChannelsLastEveryOther(k / 2);
    const ConvInputs inputs(k % 3 ? LATH_F32 : LATH_BF16, shapes[k], true, true, Numbers::kUniform, 2, layouts);
    const ForwardRun serial = RunForward(inputs, options, true);
    ASSERT_EQ(serial.status, LATH_OK);
    SCOPED_TRACE(Describe(inputs.dtype, shapes[k]));
    ForEveryHost([&](const lath_host *host) {
      options.host = host;
      const ForwardRun run = RunForward(inputs, options, true);
      const testing::AssertionResult completed = Completed(run);
      if (!completed) return completed;
      const testing::AssertionResult same = SameBits(run.p, serial.p);
      return same ? SameBits(run.y, serial.y) : testing::AssertionFailure() << "p: " << same.message();
    });
  }
}

TEST_P(Threads, Conv2dBackwardIsBitwiseTheSame) {
  const std::vector<ConvShape> shapes = LargeConvolutions();
  for (size_t k = 0; k < shapes.size(); ++k) {
    LowrankInputs::Layouts layouts;
    CallOptions options;
    layouts.x = layouts.dy = options.output = ChannelsLastEveryOther(k / 2);
    const ConvInputs inputs(k % 3 ? LATH_F32 : LATH_BF16, shapes[k], true, true, Numbers::kUniform, 3, layouts);
    const ForwardRun forward = RunForward(inputs, options, true);
    const Operand *const p = k % 4 < 2 ? &forward.p : nullptr;
    const BackwardRun serial = RunBackward(inputs, options, kAllGradients, p);
    SCOPED_TRACE(Describe(inputs.dtype, shapes[k]) + (p == nullptr ? "" : " saved p"));
    ForEveryHost([&](const lath_host *host) {
      options.host = host;
      return SameGradients(RunBackward(inputs, options, kAllGradients, p), serial);
    });
  }
}

TEST_P(Threads, FrobeniusIsBitwiseTheSame) {
  for (const lath_dtype dtype : {LATH_F32, LATH_BF16}) {
    for (const LowrankShape &shape : {LowrankShape{0, 700, 70, 650}, LowrankShape{0, 257, 130, 100}}) {
      const FrobeniusInputs inputs(dtype, shape.in, shape.rank, shape.out, Numbers::kUniform, 5);
      const FrobeniusRun serial = RunFrobenius(inputs, {});
      ASSERT_EQ(serial.status, LATH_OK);
      const auto serial_back = RunFrobeniusBackward(inputs, {}, serial.gram_v, serial.gram_u, 1.0);
      ForEveryHost([&](const lath_host *host) {
        CallOptions options;
        options.host = host;
        const FrobeniusRun run = RunFrobenius(inputs, options);
        const auto back = RunFrobeniusBackward(inputs, options, run.gram_v, run.gram_u, 1.0);
        const bool same = SameBits(run.gram_v, serial.gram_v) && SameBits(run.gram_u, serial.gram_u) &&
                          SameBits(run.value, serial.value) && SameBits(back.dv, serial_back.dv) &&
                          SameBits(back.du, serial_back.du);
        return testing::AssertionResult(same);
      });
    }
  }
}

// Forty workers and fewer panels, columns or rows than that: some have nothing to do.
TEST_P(Threads, WorkersWithoutWorkAreHarmless) {
  ThreadHost host(40, Cut::kUneven);
  CallOptions options;
  options.host = host.get();
  for (const lath_association association : {LATH_FACTORED, LATH_MERGED}) {
    for (const LowrankShape &shape :
         {LowrankShape{2000, 33, 120, 70}, LowrankShape{5, 2100, 1030, 20}, LowrankShape{70, 20, 2000, 140}}) {
      const LowrankInputs inputs(LATH_F32, shape, true, true, Numbers::kIntegers, 8);
      const LowrankOracle oracle = OracleOf(inputs);
      options.association = association;
      EXPECT_TRUE(Exactly(RunForward(inputs, options).y, oracle.Y())) << Describe(LATH_F32, shape);
      EXPECT_TRUE(ExactGradients(RunBackward(inputs, options), oracle, kAllGradients)) << Describe(LATH_F32, shape);
    }
  }
  const ConvShape convolution = ConvShape().Batch(2).Channels(60, 17, 70).Image(7, 9).Kernel(3, 3).Pad(1);
  for (const lath_conv_form form : {LATH_SEPARABLE, LATH_POINTWISE}) {
    const ConvShape shape = convolution.Form(form);
    const ConvInputs inputs(LATH_F32, shape, true, true, Numbers::kIntegers, 8);
    EXPECT_TRUE(Exactly(RunForward(inputs, options).y, OracleOf(inputs).Y())) << Describe(LATH_F32, shape);
    EXPECT_TRUE(ExactGradients(RunBackward(inputs, options), OracleOf(inputs), kAllGradients)) << Describe(LATH_F32, shape);
  }
  const LinearInputs linear(LATH_F32, 5, 50000, 40, true, Numbers::kIntegers, 9);
  EXPECT_TRUE(Exactly(RunLinear(linear, options).y, OracleOf(linear).P()));
  EXPECT_GT(host.calls(), 0);
}

TEST_P(Threads, CallsMayRunAtOnceOnSharedInputs) {
  const LowrankInputs inputs(LATH_F32, {70, 129, 33, 100}, true, true, Numbers::kUniform, 6);
  const ForwardRun forward = RunForward(inputs, {});
  const BackwardRun backward = RunBackward(inputs, {});
  constexpr size_t kCallers = 4;
  bool same[kCallers] = {};
  std::vector<std::thread> callers;
  for (size_t caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      ThreadHost host(2, Cut::kOnePerThread, static_cast<uint32_t>(caller));
      CallOptions options;
      options.host = host.get();
      same[caller] = true;
      for (int repeat = 0; repeat < 5; ++repeat) {
        same[caller] = same[caller] && SameBits(RunForward(inputs, options).y, forward.y) &&
                       SameGradients(RunBackward(inputs, options), backward);
      }
    });
  }
  for (std::thread &caller : callers) caller.join();
  for (size_t caller = 0; caller < kCallers; ++caller) EXPECT_TRUE(same[caller]) << caller;
}

LATH_FAST_PATHS(Threads);

// The dispatch table is filled at the first call of a process, here by several threads at once; runs in a child process only.
TEST(ThreadsChild, FirstCallsMayRunAtOnce) {
  if (std::getenv(kChildMarker) == nullptr) GTEST_SKIP() << "runs in a process that another test starts";
  const LowrankInputs inputs(LATH_F32, {3, 17, 5, 9}, true, true, Numbers::kIntegers, 7);
  const LowrankOracle oracle = OracleOf(inputs);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] { EXPECT_TRUE(Exactly(RunForward(inputs, {}).y, oracle.Y())); });
  }
  for (std::thread &caller : callers) caller.join();
}

TEST(ThreadsFirstUse, FirstCallsMayRunAtOnce) {
  const ChildResult child = RunInChild("ThreadsChild.FirstCallsMayRunAtOnce", "LATH_ISA", "avx512");
  ASSERT_TRUE(child.exited) << child.output;
  EXPECT_EQ(child.status, 0) << child.output;
  EXPECT_NE(child.output.find("[  PASSED  ] 1 test."), std::string::npos) << child.output;
}

}  // namespace
}  // namespace lath_test
