// SPDX-License-Identifier: Apache-2.0
//
// refusals.h - what all entries have in common when they refuse a call.

#ifndef LATH_TESTS_C_REFUSALS_H_
#define LATH_TESTS_C_REFUSALS_H_

#include <cstring>
#include <functional>
#include <limits>

#include "support.h"

namespace lath_test {

template <typename Args>
using Change = std::function<void(Args *)>;

template <typename Args>
struct BadCall {
  const char *name;
  lath_status want;
  Change<Args> change;
};

// As a C caller can produce it; a cast of a value outside the enumeration would be undefined in C++.
template <typename Enum>
void SetTo(Enum *field, int value) {
  static_assert(sizeof *field == sizeof value, "enumerations of the interface are as wide as int");
  std::memcpy(field, &value, sizeof value);
}

// A call is valid until one thing of it is changed; the whole of its outputs must stay as it was.
template <typename Args, typename MakeValid>
void ExpectRefusals(const std::vector<BadCall<Args>> &calls, const MakeValid &make_valid,
                    const std::function<lath_status(const Args *)> &entry) {
  for (const BadCall<Args> &call : calls) {
    auto valid = make_valid();
    call.change(&valid.args);
    EXPECT_EQ(entry(&valid.args), call.want) << call.name;
    EXPECT_TRUE(valid.Untouched()) << call.name;
  }
}

// Doubles one extent until the query refuses it. A size that wrapped around would be smaller than the one before it.
template <typename Args>
void ExpectGrowingSizes(Args args, int64_t Args::*extent, const std::function<lath_status(const Args *, size_t *)> &query) {
  size_t before = 0;
  bool refused = false;
  for (int bit = 20; bit < 63; ++bit) {
    args.*extent = int64_t{1} << bit;
    size_t bytes = 0;
    const lath_status status = query(&args, &bytes);
    ASSERT_TRUE(status == LATH_OK || status == LATH_SIZE_OVERFLOW) << lath_status_text(status);
    if (status == LATH_OK) {
      EXPECT_FALSE(refused) << "accepted again at 2^" << bit;
      EXPECT_GE(bytes, before) << "smaller at 2^" << bit;
      EXPECT_LE(bytes, static_cast<size_t>(std::numeric_limits<ptrdiff_t>::max())) << "2^" << bit;
      before = bytes;
    }
    refused = status != LATH_OK;
  }
  EXPECT_TRUE(refused);
}

// Refuses the first, the second, ... call of parallel_for in turn, until the entry gets through.
inline void ExpectHostFailures(const std::function<lath_status(const lath_host *)> &entry) {
  int successes = 0;
  for (; successes < 64; ++successes) {
    FailingHost host(successes, 4);
    const lath_status status = entry(host.get());
    if (host.calls() <= successes) {
      EXPECT_EQ(status, LATH_OK);
      break;
    }
    EXPECT_EQ(status, LATH_HOST_FAILED) << "call " << successes << " was refused";
    EXPECT_EQ(host.calls(), successes + 1) << "work went on after the host had failed";
  }
  EXPECT_GT(successes, 0) << "the shape is too small to be shared";
  EXPECT_LT(successes, 64);
}

}  // namespace lath_test

#endif  // LATH_TESTS_C_REFUSALS_H_
