// SPDX-License-Identifier: Apache-2.0
//
// test_cpu.cc - the choice of the instruction set: names, the forced level, and LATH_ISA.
//
// LATH_ISA is read at the first call of the process, so each value needs a process of its own.

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "out_of_range.h"
#include "support.h"

namespace lath_test {
namespace {

constexpr lath_isa kLevels[] = {LATH_ISA_GENERIC, LATH_ISA_AVX2, LATH_ISA_AVX512};

TEST(Cpu, LevelsHaveTheNamesThatTheVariableTakes) {
  EXPECT_STREQ(lath_isa_name(LATH_ISA_GENERIC), "generic");
  EXPECT_STREQ(lath_isa_name(LATH_ISA_AVX2), "avx2");
  EXPECT_STREQ(lath_isa_name(LATH_ISA_AVX512), "avx512");
}

TEST(Cpu, AnUnknownLevelHasANameToo) {
  for (const int value : {-1, 3, INT_MAX}) {
    ASSERT_NE(IsaNameOf(value), nullptr) << value;
    EXPECT_GT(std::strlen(IsaNameOf(value)), 0u) << value;
  }
}

TEST(Cpu, ForcingIsCutToWhatTheMachineCanRun) {
  const lath_isa before = lath_cpu_isa(), best = lath_cpu_best_isa();
  for (const lath_isa wish : kLevels) {
    const lath_isa want = wish < best ? wish : best;
    EXPECT_EQ(lath_cpu_force_isa(wish), want);
    EXPECT_EQ(lath_cpu_isa(), want);
    EXPECT_EQ(lath_cpu_best_isa(), best) << "the best level is deaf to the forced one";
  }
  lath_cpu_force_isa(before);
}

#if defined(__x86_64__)
TEST(Cpu, BestLevelAgreesWithTheCompilersDetection) {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  EXPECT_EQ(lath_cpu_best_isa(), avx512 ? LATH_ISA_AVX512 : avx2 ? LATH_ISA_AVX2 : LATH_ISA_GENERIC);
}
#endif

// Runs in the child process only.
TEST(CpuChild, Reports) {
  if (std::getenv(kChildMarker) == nullptr) GTEST_SKIP() << "runs in a process that another test starts";
  std::printf("isa=%s best=%s\n", lath_isa_name(lath_cpu_isa()), lath_isa_name(lath_cpu_best_isa()));
}

void ExpectReport(const char *variable, const std::string &value, lath_isa want) {
  const ChildResult child = RunInChild("CpuChild.Reports", variable, value);
  ASSERT_TRUE(child.exited) << child.output;
  EXPECT_EQ(child.status, 0) << child.output;
  const std::string report = std::string("isa=") + lath_isa_name(want) + " best=" + lath_isa_name(lath_cpu_best_isa()) + "\n";
  EXPECT_NE(child.output.find(report), std::string::npos) << value << ", expected " << report << child.output;
}

TEST(CpuEnvironment, LowersTheLevelAndNeverRaisesIt) {
  const lath_isa best = lath_cpu_best_isa();
  for (const lath_isa wish : kLevels) ExpectReport("LATH_ISA", lath_isa_name(wish), wish < best ? wish : best);
}

TEST(CpuEnvironment, OtherValuesLeaveTheBestLevel) {
  for (const char *value : {"", "sse9", "AVX2 "}) ExpectReport("LATH_ISA", value, lath_cpu_best_isa());
}

}  // namespace
}  // namespace lath_test
