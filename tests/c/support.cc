// SPDX-License-Identifier: Apache-2.0
//
// support.cc - numbers, comparisons, implementations and child processes of the tests; see support.h.

#include "support.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <ostream>

namespace lath_test {

const std::vector<int64_t> kRowEdges = {0,  1,  2,  3,  4,  5,  7,  8,  9,  12, 13, 15,  16,  17,  31,
                                        32, 33, 47, 48, 49, 63, 64, 65, 95, 96, 97, 128, 130, 200, 257};
const std::vector<int64_t> kWidthEdges = {1,  2,  3,  7,  8,  9,  15,  16,  17,  31,  32, 33,
                                          47, 48, 49, 63, 64, 65, 100, 255, 256, 257, 300};

// ---- numbers ------------------------------------------------------------------------------------------------------------

uint32_t Mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

Values Uniform(uint32_t seed, int64_t count, double scale) {
  Values values(static_cast<size_t>(count));
  for (size_t k = 0; k < values.size(); ++k) {
    const double unit = Mix(seed * 100003u + static_cast<uint32_t>(k)) / 4294967296.0;
    values[k] = 2 * scale * (unit - 0.5);
  }
  return values;
}

Values SmallIntegers(uint32_t seed, int64_t count) {
  Values values(static_cast<size_t>(count));
  for (size_t k = 0; k < values.size(); ++k) {
    values[k] = static_cast<double>(Mix(seed * 100003u + static_cast<uint32_t>(k)) % 7) - 3;
  }
  return values;
}

namespace {

// Nearest value with `digits` significant bits, ties to even; exponents (of frexp) from `least` to `most`.
double RoundToDigits(double value, int digits, int least, int most) {
  if (!std::isfinite(value) || value == 0) return value;
  int exponent;
  std::frexp(value, &exponent);
  const double ulp = std::ldexp(1.0, std::max(exponent, least) - digits);
  const double rounded = std::nearbyint(value / ulp) * ulp;  // exact scaling by a power of two
  return std::fabs(rounded) >= std::ldexp(1.0, most) ? std::copysign(std::numeric_limits<double>::infinity(), value) : rounded;
}

}  // namespace

double RoundTo(lath_dtype dtype, double value) {
  if (dtype == LATH_F64) return value;
  if (dtype == LATH_F16) return RoundToDigits(value, 11, -13, 16);
  return RoundToDigits(value, dtype == LATH_F32 ? 24 : 8, -125, 128);
}

double AccumulatorEpsilon(lath_dtype dtype) { return std::ldexp(1.0, dtype == LATH_F64 ? -52 : -23); }

// ---- comparisons --------------------------------------------------------------------------------------------------------

namespace {

bool SameValue(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

std::string IndexText(const Index &extents, size_t k) {
  std::string text;
  for (size_t d = extents.size(); d-- > 0;) {
    const size_t extent = static_cast<size_t>(extents[d]);
    text = (d > 0 ? ", " : "") + std::to_string(k % extent) + text;
    k /= extent;
  }
  return text;
}

// Compares element by element with `matches(got, k)`; the message names the first mismatch and counts them.
template <typename Matches>
testing::AssertionResult Compare(const Operand &got, const Values &want, Matches matches) {
  if (!got.Intact()) return testing::AssertionFailure() << "bytes outside the operand were written";
  const Values values = got.Read();
  if (values.size() != want.size()) {
    return testing::AssertionFailure() << values.size() << " elements, expected " << want.size();
  }
  size_t mismatches = 0, first = 0;
  for (size_t k = 0; k < values.size(); ++k) {
    if (!matches(values[k], k) && mismatches++ == 0) first = k;
  }
  if (mismatches == 0) return testing::AssertionSuccess();
  char text[160];
  std::snprintf(text, sizeof text, "%zu of %zu elements differ, first at (%s): got %.9g, expected %.9g", mismatches,
                values.size(), IndexText(got.extents(), first).c_str(), values[first], want[first]);
  return testing::AssertionFailure() << text;
}

}  // namespace

testing::AssertionResult Exactly(const Operand &got, const Values &want) {
  return Compare(got, want, [&](double value, size_t k) { return SameValue(value, RoundTo(got.dtype(), want[k])); });
}

testing::AssertionResult Within(const Operand &got, const Values &want, const Values &bound) {
  if (want.size() != bound.size()) return testing::AssertionFailure() << "the test has no bound for each element";
  return Compare(got, want, [&](double value, size_t k) {
    if (!std::isfinite(want[k])) return SameValue(value, want[k]);
    return RoundTo(got.dtype(), want[k] - bound[k]) <= value && value <= RoundTo(got.dtype(), want[k] + bound[k]);
  });
}

testing::AssertionResult SameBits(const Operand &a, const Operand &b) {
  if (!a.Intact() || !b.Intact()) return testing::AssertionFailure() << "bytes outside the operand were written";
  if (a.Bytes() == b.Bytes()) return testing::AssertionSuccess();
  return Exactly(a, b.Read()) << " (bits differ)";
}

// ---- paths --------------------------------------------------------------------------------------------------------------

namespace {

const char *NameOf(Path path) {
  static const char *const kNames[] = {"ref", "generic", "avx2", "avx512"};
  return kNames[static_cast<int>(path)];
}

}  // namespace

std::string PathName(const testing::TestParamInfo<Path> &info) { return NameOf(info.param); }

void PrintTo(Path path, std::ostream *stream) { *stream << NameOf(path); }

void PerPath::SetUp() {
  before_ = lath_cpu_isa();
  if (ref()) return;
  const lath_isa isa = static_cast<lath_isa>(static_cast<int>(GetParam()) - static_cast<int>(Path::kGeneric));
  if (isa > lath_cpu_best_isa()) GTEST_SKIP() << "this machine has no " << lath_isa_name(isa);
  ASSERT_EQ(lath_cpu_force_isa(isa), isa);
}

void PerPath::TearDown() { lath_cpu_force_isa(before_); }

// ---- child processes ------------------------------------------------------------------------------------------------------

const char kChildMarker[] = "LATH_TEST_CHILD";

ChildResult RunInChild(const std::string &test, const std::string &variable, const std::string &value) {
  ChildResult result;
  int ends[2];
  if (pipe(ends) != 0) return result;
  const std::string filter = "--gtest_filter=" + test;
  const pid_t pid = fork();
  if (pid == 0) {
    setenv(kChildMarker, "1", 1);
    setenv(variable.c_str(), value.c_str(), 1);
    dup2(ends[1], STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    close(ends[1]);
    execl("/proc/self/exe", "lath_tests", filter.c_str(), static_cast<char *>(nullptr));
    _exit(127);
  }
  close(ends[1]);
  char chunk[512];
  for (ssize_t n; pid > 0 && (n = read(ends[0], chunk, sizeof chunk)) > 0;) result.output.append(chunk, static_cast<size_t>(n));
  close(ends[0]);
  int status = 0;
  if (pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status)) {
    result.exited = true;
    result.status = WEXITSTATUS(status);
  }
  return result;
}

}  // namespace lath_test
