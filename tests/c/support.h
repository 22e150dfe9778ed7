// SPDX-License-Identifier: Apache-2.0
//
// support.h - what every test of the C core needs: reproducible numbers, operands in guarded memory, hosts, comparisons.
//
// Memory is filled with 0xff bytes before use, and 0xff bytes are a NaN in every element type. An element that a function
// should have written and did not, a read past a row that reaches a result, and a read of workspace that nobody wrote all end
// as a NaN in the comparison. Around each buffer lie guard bands: checked for changes afterwards, poisoned under
// AddressSanitizer, or (Place::kPageEnd, kPageStart) pages that fault at the first touch.

#ifndef LATH_TESTS_C_SUPPORT_H_
#define LATH_TESTS_C_SUPPORT_H_

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <memory>
#include <string>
#include <utility>
#include <vector>

// An entry point has the name of its argument struct, which C++ compilers take for the shadowing of a constructor.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#include "lath.h"
#pragma GCC diagnostic pop

namespace lath_test {

using LinearArgs = struct ::lath_linear;
using LowrankArgs = struct ::lath_lowrank_linear;
using FrobeniusArgs = struct ::lath_frobenius;
using Plan = struct ::lath_lowrank_plan;

using Values = std::vector<double>;

// ---- numbers ------------------------------------------------------------------------------------------------------------

// The generator of the golden values: mix is a 32-bit finalizer, element k is uniform in [-scale, scale).
uint32_t Mix(uint32_t x);
Values Uniform(uint32_t seed, int64_t count, double scale = 1.0);

// Integers in [-3, 3]. Sums of their products are exact in fp32 up to 2^24, so every order of additions, every tiling and
// every association must give the same bits: tests on them need no tolerance.
Values SmallIntegers(uint32_t seed, int64_t count);

// The nearest value of the element type, ties to even.
double RoundTo(lath_dtype dtype, double value);

// The spacing of the type that sums are kept in: 2^-23 for F32 and BF16, 2^-52 for F64.
double AccumulatorEpsilon(lath_dtype dtype);

// A stream of choices that is a function of its seed alone.
class Choices {
 public:
  explicit Choices(uint32_t seed) : state_(seed) {}
  uint32_t Next() { return Mix(state_++ * 0x9e3779b9u + 0x7f4a7c15u); }
  int64_t Below(int64_t n) { return static_cast<int64_t>(Next() % static_cast<uint64_t>(n)); }
  bool OneIn(int64_t n) { return Below(n) == 0; }
  int64_t From(const std::vector<int64_t> &set) { return set[static_cast<size_t>(Below(static_cast<int64_t>(set.size())))]; }

 private:
  uint32_t state_;
};

// Extents around the tile and vector sizes of every kernel.
extern const std::vector<int64_t> kRowEdges;
extern const std::vector<int64_t> kWidthEdges;

// ---- guarded memory -----------------------------------------------------------------------------------------------------

enum class Place {
  kHeap,      // guard bands on both sides
  kPageEnd,   // the byte after the last one is in a page without access
  kPageStart  // the byte before the first one is in a page without access
};

class Memory {
 public:
  Memory(size_t bytes, Place place = Place::kHeap, size_t misalignment = 0);
  ~Memory();
  Memory(const Memory &) = delete;
  Memory &operator=(const Memory &) = delete;

  unsigned char *data() const { return data_; }
  size_t bytes() const { return bytes_; }
  bool Intact() const;  // no byte outside [data, data + bytes) changed

 private:
  unsigned char *block_ = nullptr;  // all writable bytes, guards included
  size_t block_bytes_ = 0;
  unsigned char *mapping_ = nullptr;  // the mapping with its inaccessible pages, or nullptr on the heap
  size_t mapping_bytes_ = 0;
  unsigned char *data_ = nullptr;
  size_t bytes_ = 0;
};

// In which order the extents (n, c, h, w) of a batch of images lie in memory.
enum class Images {
  kContiguous,
  kChannelsLast,
  kSomeChannels,     // channels-last, the first channels of more
  kTransposed,       // height and width exchanged
  kImagesInnermost,  // n is adjacent
  kEveryOther,       // contiguous, every other element of a row
  kRepeatedImage,    // stride 0: all images are the first one; inputs only, as those below
  kRepeatedChannel,
  kOneValue  // all strides 0
};

struct Layout {
  int64_t gap = 0;           // elements between the end of a row and the next row; of images, in every dimension
  int64_t misalignment = 0;  // elements that the first one is shifted by, from a 64-byte boundary
  bool repeat_row = false;   // of a matrix: stride 0, all rows are the first one
  Place place = Place::kHeap;
  Images images = Images::kContiguous;
};

using Index = std::vector<int64_t>;

// A matrix or a batch of images of one element type. A vector is a matrix with one row.
class Operand {
 public:
  Operand(lath_dtype dtype, int64_t rows, int64_t cols, Layout layout = {});
  Operand(lath_dtype dtype, int64_t n, int64_t c, int64_t h, int64_t w, Layout layout = {});

  void Fill(const Values &values);  // row-major; rounded to the element type
  void Set(const Index &index, double value);
  void Set(int64_t row, int64_t col, double value) { Set({row, col}, value); }
  double Get(const Index &index) const;
  double Get(int64_t row, int64_t col) const { return Get({row, col}); }
  Values Read() const;  // row-major, as the library sees it: rounded, rows repeated

  void *data() const { return memory_->data(); }
  const Index &extents() const { return extents_; }
  const Index &strides() const { return strides_; }
  int64_t size() const;
  int64_t stride() const { return strides_[0]; }
  int64_t rows() const { return extents_[0]; }
  int64_t cols() const { return extents_[1]; }
  lath_dtype dtype() const { return dtype_; }
  std::vector<unsigned char> Bytes() const;  // of the elements, without the gaps
  bool Intact() const;                       // guard bands and gaps between rows are as they were
  bool Untouched() const;                    // no element was written either

 private:
  Operand(lath_dtype dtype, Index extents, Index strides, const Layout &layout);
  size_t At(const Index &index) const;   // bytes from the first element
  std::vector<size_t> Elements() const;  // the same of every element, row-major

  lath_dtype dtype_;
  Index extents_, strides_;
  std::unique_ptr<Memory> memory_;
};

// ---- comparisons --------------------------------------------------------------------------------------------------------

// Every element of `got` is `want` rounded once to the element type; NaN equals NaN. Also checks the guards of `got`.
testing::AssertionResult Exactly(const Operand &got, const Values &want);

// Every element of `got` lies between want - bound and want + bound, both rounded to the element type: rounding is monotone,
// so this is what "computed to within bound, then rounded once" means. Infinities and NaN must match. Also checks the guards.
testing::AssertionResult Within(const Operand &got, const Values &want, const Values &bound);

// Identical bits, element by element.
testing::AssertionResult SameBits(const Operand &a, const Operand &b);

// ---- paths --------------------------------------------------------------------------------------------------------------

// What runs an entry point: the plain loops of its _ref twin, or the fast function on one instruction set.
enum class Path { kRef, kGeneric, kAvx2, kAvx512 };

std::string PathName(const testing::TestParamInfo<Path> &info);
void PrintTo(Path path, std::ostream *stream);  // in failure messages

// A fixture for tests that run once per path. The instruction set is forced for the life of the test, which is skipped where
// the machine lacks it.
class PerPath : public testing::TestWithParam<Path> {
 protected:
  void SetUp() override;
  void TearDown() override;
  bool ref() const { return GetParam() == Path::kRef; }

 private:
  lath_isa before_ = LATH_ISA_GENERIC;
};

#define LATH_EVERY_PATH(suite)                                                                                             \
  INSTANTIATE_TEST_SUITE_P(                                                                                                \
      , suite,                                                                                                             \
      testing::Values(lath_test::Path::kRef, lath_test::Path::kGeneric, lath_test::Path::kAvx2, lath_test::Path::kAvx512), \
      lath_test::PathName)
#define LATH_FAST_PATHS(suite)                                                                                           \
  INSTANTIATE_TEST_SUITE_P(, suite,                                                                                      \
                           testing::Values(lath_test::Path::kGeneric, lath_test::Path::kAvx2, lath_test::Path::kAvx512), \
                           lath_test::PathName)

// ---- hosts --------------------------------------------------------------------------------------------------------------

// How ThreadHost cuts [0, n) into the ranges that it hands out.
enum class Cut { kOnePerThread, kSingles, kUneven };

// Runs each parallel_for on `threads` threads that it starts for it, with the ranges in an order shuffled anew per call.
class ThreadHost {
 public:
  explicit ThreadHost(int threads, Cut cut = Cut::kOnePerThread, uint32_t seed = 1);
  const lath_host *get() const { return &host_; }
  int calls() const { return calls_; }  // of parallel_for

 private:
  static int NumThreads(void *ctx);
  static int ParallelFor(void *ctx, int64_t n, void (*body)(void *, int64_t, int64_t), void *arg);
  std::vector<std::pair<int64_t, int64_t>> Ranges(int64_t n);

  int threads_, calls_ = 0;
  Cut cut_;
  Choices choices_;
  lath_host host_;
};

// Serves `successes` calls of parallel_for in the calling thread, then refuses every one.
class FailingHost {
 public:
  explicit FailingHost(int successes, int threads = 2);
  const lath_host *get() const { return &host_; }
  int calls() const { return calls_; }

 private:
  static int NumThreads(void *ctx);
  static int ParallelFor(void *ctx, int64_t n, void (*body)(void *, int64_t, int64_t), void *arg);

  int successes_, threads_, calls_ = 0;
  lath_host host_;
};

// ---- child processes ------------------------------------------------------------------------------------------------------

struct ChildResult {
  bool exited = false;  // ended by itself, not by a signal
  int status = -1;
  std::string output;  // stdout and stderr
};

// Runs one test of this binary in a new process with one more environment variable. The test prints what it finds.
ChildResult RunInChild(const std::string &test, const std::string &variable, const std::string &value);
extern const char kChildMarker[];  // environment variable that is set in such a process

}  // namespace lath_test

#endif  // LATH_TESTS_C_SUPPORT_H_
