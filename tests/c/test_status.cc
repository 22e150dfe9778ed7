// SPDX-License-Identifier: Apache-2.0
//
// test_status.cc - status texts, element sizes and the serial host.

#include <climits>
#include <cstdio>
#include <cstring>
#include <set>

#include "out_of_range.h"
#include "support.h"

namespace lath_test {
namespace {

TEST(Status, EveryStatusHasItsOwnSentenceWithoutFullStop) {
  std::set<std::string> seen;
  for (int status = LATH_OK; status <= LATH_DEVICE_FAILED; ++status) {
    const char *text = lath_status_text(static_cast<lath_status>(status));
    ASSERT_NE(text, nullptr) << status;
    ASSERT_GT(std::strlen(text), 1u) << status;
    EXPECT_NE(text[std::strlen(text) - 1], '.') << text;
    EXPECT_TRUE(seen.insert(text).second) << "not the only one: " << text;
  }
}

TEST(Status, ValuesOutsideTheEnumerationHaveATextToo) {
  for (const int value : {-1, static_cast<int>(LATH_DEVICE_FAILED) + 1, INT_MAX, INT_MIN}) {
    const char *text = StatusTextOf(value);
    ASSERT_NE(text, nullptr) << value;
    EXPECT_STRNE(text, lath_status_text(LATH_OK)) << value;
    EXPECT_GT(std::strlen(text), 1u) << value;
  }
}

TEST(Dtype, SizesAreThoseOfTheElements) {
  EXPECT_EQ(lath_dtype_size(LATH_F32), 4u);
  EXPECT_EQ(lath_dtype_size(LATH_F64), 8u);
  EXPECT_EQ(lath_dtype_size(LATH_BF16), 2u);
  EXPECT_EQ(lath_dtype_size(LATH_F16), 2u);
  for (const int value : {-1, 4, INT_MAX, INT_MIN}) EXPECT_EQ(DtypeSizeOf(value), 0u) << value;
}

TEST(SerialHost, RunsTheWholeRangeInTheCallingThread) {
  EXPECT_EQ(lath_serial_host.num_threads(lath_serial_host.ctx), 1);
  std::vector<int> visits(100, 0);
  const auto visit = [](void *arg, int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) ++(*static_cast<std::vector<int> *>(arg))[static_cast<size_t>(k)];
  };
  EXPECT_EQ(lath_serial_host.parallel_for(lath_serial_host.ctx, 100, visit, &visits), 0);
  EXPECT_EQ(visits, std::vector<int>(100, 1));
}

TEST(SerialHost, DoesNothingForAnEmptyRange) {
  int calls = 0;
  const auto count = [](void *arg, int64_t begin, int64_t end) { *static_cast<int *>(arg) += end > begin ? 1 : 0; };
  EXPECT_EQ(lath_serial_host.parallel_for(lath_serial_host.ctx, 0, count, &calls), 0);
  EXPECT_EQ(calls, 0);
}

TEST(Version, IsThreeNumbers) {
  int major, minor, patch;
  char rest;
  EXPECT_EQ(std::sscanf(LATH_VERSION, "%d.%d.%d%c", &major, &minor, &patch, &rest), 3) << LATH_VERSION;
}

}  // namespace
}  // namespace lath_test
