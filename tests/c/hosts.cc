// SPDX-License-Identifier: Apache-2.0
//
// hosts.cc - a host on threads that permutes the order of the work, and one that fails.

#include <algorithm>
#include <thread>
#include <utility>

#include "support.h"

namespace lath_test {

ThreadHost::ThreadHost(int threads, Cut cut, uint32_t seed)
    : threads_(threads), cut_(cut), choices_(seed), host_{this, NumThreads, ParallelFor} {}

int ThreadHost::NumThreads(void *ctx) { return static_cast<ThreadHost *>(ctx)->threads_; }

std::vector<std::pair<int64_t, int64_t>> ThreadHost::Ranges(int64_t n) {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  const int64_t share = std::max<int64_t>(1, (n + threads_ - 1) / threads_);
  for (int64_t begin = 0; begin < n;) {
    int64_t length = share;
    if (cut_ == Cut::kSingles) length = 1;
    if (cut_ == Cut::kUneven) length = 1 + choices_.Below(share);
    const int64_t end = std::min(n, begin + length);
    ranges.emplace_back(begin, end);
    begin = end;
  }
  for (int64_t k = static_cast<int64_t>(ranges.size()) - 1; k > 0; --k) {
    std::swap(ranges[static_cast<size_t>(k)], ranges[static_cast<size_t>(choices_.Below(k + 1))]);
  }
  return ranges;
}

int ThreadHost::ParallelFor(void *ctx, int64_t n, void (*body)(void *, int64_t, int64_t), void *arg) {
  ThreadHost *self = static_cast<ThreadHost *>(ctx);
  ++self->calls_;
  const auto ranges = self->Ranges(n);
  const size_t threads = static_cast<size_t>(self->threads_);
  const auto work = [&](size_t first) {
    for (size_t k = first; k < ranges.size(); k += threads) body(arg, ranges[k].first, ranges[k].second);
  };
  std::vector<std::thread> pool;
  for (size_t t = 1; t < threads && t < ranges.size(); ++t) pool.emplace_back(work, t);
  work(0);
  for (std::thread &thread : pool) thread.join();
  return 0;
}

FailingHost::FailingHost(int successes, int threads)
    : successes_(successes), threads_(threads), host_{this, NumThreads, ParallelFor} {}

int FailingHost::NumThreads(void *ctx) { return static_cast<FailingHost *>(ctx)->threads_; }

int FailingHost::ParallelFor(void *ctx, int64_t n, void (*body)(void *, int64_t, int64_t), void *arg) {
  FailingHost *self = static_cast<FailingHost *>(ctx);
  if (self->calls_++ >= self->successes_) return 1;
  if (n > 0) body(arg, 0, n);
  return 0;
}

}  // namespace lath_test
